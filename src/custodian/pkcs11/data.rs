//! Private objects of the token for data: a label, and a value that nobody can modify.
//!
//! A data object (`CKO_DATA`), or, in a token that has none, a secret key that nobody uses: its id is the value.

use cryptoki::object::{Attribute, AttributeType, ObjectClass};

use super::Pkcs11Error;
use super::handles::Search;
use super::session::{Object, Session};
use super::shape::{Material, Shape};

/// What holds data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataForm {
    /// A data object.
    Data,
    /// A secret key, for its id.
    Key,
}

/// A key that is there for its id.
const KEY: Shape = Shape {
    material: Material::Generic,
    length_bytes: Some(32),
    token: true,
    extractable: false,
    purpose: None,
};

impl DataForm {
    fn class(self) -> ObjectClass {
        match self {
            Self::Data => ObjectClass::DATA,
            Self::Key => ObjectClass::SECRET_KEY,
        }
    }

    /// By which they are found.
    fn private(self, label: &str) -> Vec<Attribute> {
        vec![
            Attribute::Class(self.class()),
            Attribute::Token(true),
            // Whoever reaches the token makes others without a PIN: those are nobody's of ours.
            Attribute::Private(true),
            Attribute::Label(label.as_bytes().to_vec()),
        ]
    }

    fn value(self, value: &[u8]) -> Attribute {
        match self {
            Self::Data => Attribute::Value(value.to_vec()),
            Self::Key => Attribute::Id(value.to_vec()),
        }
    }
}

impl Session {
    /// The objects with this label, of either form.
    ///
    /// # Errors
    /// The search failed.
    pub fn data_objects(&self, label: &str) -> Result<Vec<Object>, Pkcs11Error> {
        // Both at once: what is found now is all that there is.
        let mut found = self.search(&DataForm::Data.private(label))?;
        found.extend(self.search(&DataForm::Key.private(label))?);
        Ok(self.found(Search::Data, found))
    }

    /// An object's value; one that was left half made has none.
    ///
    /// # Errors
    /// It cannot be read: somebody may have destroyed it meanwhile.
    pub fn data_value(&self, object: Object) -> Result<Vec<u8>, Pkcs11Error> {
        let read = |place| self.attributes_of_found(object, &[place]);
        let found = read(AttributeType::Class).and_then(|class| match class.as_slice() {
            [Attribute::Class(ObjectClass::SECRET_KEY)] => read(AttributeType::Id),
            _ => read(AttributeType::Value),
        });
        if found.as_ref().is_err_and(Pkcs11Error::is_gone) {
            self.gone(object);
        }
        match found?.pop() {
            Some(Attribute::Value(value) | Attribute::Id(value)) => Ok(value),
            _ => Ok(Vec::new()),
        }
    }

    /// Makes one, and reads it back; one that came out otherwise is destroyed.
    ///
    /// # Errors
    /// The module takes neither form, or made something else.
    pub fn create_data(&self, label: &str, value: &[u8]) -> Result<Object, Pkcs11Error> {
        self.create_data_as(DataForm::Data, label, value).or_else(|error| match error.is_key_refusal() {
            true => self.create_data_as(DataForm::Key, label, value),
            false => Err(error),
        })
    }

    /// The same of one form.
    ///
    /// # Errors
    /// The module does not take it, or made something else.
    pub fn create_data_as(&self, form: DataForm, label: &str, value: &[u8]) -> Result<Object, Pkcs11Error> {
        let wanted = [form.private(label), vec![form.value(value)]].concat();
        let object = match form {
            DataForm::Data => {
                let template = [&wanted[..], &[Attribute::Modifiable(false)]].concat();
                self.made("C_CreateObject", self.raw.create_object(&template)?)?
            }
            DataForm::Key => {
                let label = Attribute::Label(label.as_bytes().to_vec());
                self.generate_with(&KEY, &[label, form.value(value), Attribute::Modifiable(false)])?
            }
        };
        self.check_attributes(object, &wanted).inspect_err(|_| drop(self.destroy(object)))?;
        Ok(object)
    }
}
