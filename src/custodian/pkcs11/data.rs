//! Private data objects of the token: a label, and a value that nobody can modify.

use cryptoki::object::{Attribute, AttributeType, ObjectClass};

use super::Pkcs11Error;
use super::handles::Search;
use super::session::{Object, Session};

fn private_data(label: &str) -> Vec<Attribute> {
    vec![
        Attribute::Class(ObjectClass::DATA),
        Attribute::Token(true),
        // Whoever reaches the token makes others without a PIN: those are nobody's of ours.
        Attribute::Private(true),
        Attribute::Label(label.as_bytes().to_vec()),
    ]
}

impl Session {
    /// The objects with this label.
    ///
    /// # Errors
    /// The search failed.
    pub fn data_objects(&self, label: &str) -> Result<Vec<Object>, Pkcs11Error> {
        Ok(self.found(Search::Data, self.search(&private_data(label))?))
    }

    /// An object's value; one that was left half made has none.
    ///
    /// # Errors
    /// It cannot be read: somebody may have destroyed it meanwhile.
    pub fn data_value(&self, object: Object) -> Result<Vec<u8>, Pkcs11Error> {
        let found = self.attributes(object, &[AttributeType::Value]);
        if found.as_ref().is_err_and(Pkcs11Error::is_gone) {
            self.gone(object);
        }
        match found?.pop() {
            Some(Attribute::Value(value)) => Ok(value),
            _ => Ok(Vec::new()),
        }
    }

    /// Makes one, and reads it back; one that came out otherwise is destroyed.
    ///
    /// # Errors
    /// `C_CreateObject` failed, or made something else.
    pub fn create_data(&self, label: &str, value: &[u8]) -> Result<Object, Pkcs11Error> {
        let mut wanted = private_data(label);
        wanted.push(Attribute::Value(value.to_vec()));
        let mut template = wanted.clone();
        template.push(Attribute::Modifiable(false));
        let object = self.made("C_CreateObject", self.raw.create_object(&template)?)?;
        self.check_attributes(object, &wanted).inspect_err(|_| drop(self.destroy(object)))?;
        Ok(object)
    }
}
