//! Secrets of credentials that are token objects: made with their label and id, found by them.

use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType};
use zeroize::Zeroize;

use super::Pkcs11Error;
use super::handles::Search;
use super::session::{Object, Session};
use super::shape::{Material, Shape, Use};
use crate::domain::otp::Algorithm;

/// What all of them are labelled.
const LABEL: &str = "hsm-authd/secret";

/// What each must be.
const SHAPE: Shape = Shape {
    material: Material::Generic,
    length_bytes: None,
    token: true,
    extractable: false,
    purpose: Some(Use::Sign),
};

impl Session {
    /// Every one that there is, whole or not.
    ///
    /// # Errors
    /// The search failed.
    pub fn residents(&self) -> Result<Vec<Object>, Pkcs11Error> {
        Ok(self.found(Search::Residents, self.list(&[Attribute::Token(true), label()])?))
    }

    /// Those of this id: one, if it is there and nobody tampered with the token.
    ///
    /// # Errors
    /// The search failed.
    pub fn residents_of(&self, id: &[u8]) -> Result<Vec<Object>, Pkcs11Error> {
        let template = [Attribute::Token(true), label(), Attribute::Id(id.to_vec())];
        Ok(self.found_more(Search::Residents, self.search(&template)?))
    }

    /// The object's id, empty if it has none.
    ///
    /// # Errors
    /// The attribute cannot be read: also if the object is gone.
    pub fn id(&self, object: Object) -> Result<Vec<u8>, Pkcs11Error> {
        match self.attributes_of_found(object, &[AttributeType::Id])?.pop() {
            Some(Attribute::Id(id)) => Ok(id),
            _ => Ok(Vec::new()),
        }
    }

    /// Destroys one, and nothing else that its handle may be of: it has the label, and this id.
    ///
    /// # Errors
    /// It is another object; or `C_DestroyObject` failed, and it may still be there.
    pub fn destroy_resident(&self, object: Object, id: Option<&[u8]>) -> Result<(), Pkcs11Error> {
        let mut wanted = vec![Attribute::Token(true), label()];
        wanted.extend(id.map(|id| Attribute::Id(id.to_vec())));
        self.check_attributes(object, &wanted)?;
        self.destroy_surely(object)
    }

    /// Has the HSM make one of so many bytes: nobody ever sees it.
    ///
    /// # Errors
    /// `C_GenerateKey` failed.
    pub fn generate_resident(
        &self,
        id: &[u8],
        algorithm: Algorithm,
        length_bytes: usize,
    ) -> Result<Object, Pkcs11Error> {
        let mut template = template(id);
        template.push(Attribute::ValueLen(length_bytes.try_into()?));
        self.made_with(allowed(algorithm), &mine(id), |allowed| {
            let template = [allowed, &template[..]].concat();
            self.made("C_GenerateKey", self.raw.generate_key(&Mechanism::GenericSecretKeyGen, &template)?)
        })
    }

    /// Makes one of `value`.
    ///
    /// # Errors
    /// `C_CreateObject` failed.
    pub fn create_resident(
        &self,
        id: &[u8],
        algorithm: Algorithm,
        value: &[u8],
    ) -> Result<Object, Pkcs11Error> {
        self.made_with(allowed(algorithm), &mine(id), |allowed| {
            let mut template = [allowed, &template(id)[..], &[Attribute::Value(value.to_vec())]].concat();
            let created = self.raw.create_object(&template);
            for attribute in &mut template {
                if let Attribute::Value(copy) = attribute {
                    copy.zeroize();
                }
            }
            self.made("C_CreateObject", created?)
        })
    }

    /// Makes one of a blob that this `kek` wrapped. Of a session object it comes by this way, not by `C_CopyObject`: that
    /// cannot say what a key may be used for (`CKA_ALLOWED_MECHANISMS`).
    ///
    /// # Errors
    /// `C_UnwrapKey` failed.
    pub fn unwrap_resident(
        &self,
        kek: Object,
        blob: &[u8],
        id: &[u8],
        algorithm: Algorithm,
    ) -> Result<Object, Pkcs11Error> {
        self.made_with(allowed(algorithm), &mine(id), |allowed| {
            self.unwrap_with(kek, blob, &[allowed, &template(id)[..]].concat())
        })
    }

    /// Reads the attributes of one back, and has the HSM use it: one that a crash left half made may lack nothing but
    /// its value.
    ///
    /// # Errors
    /// It is not whole, or not for `algorithm`; or the HSM failed.
    pub fn check_resident(&self, object: Object, id: &[u8], algorithm: Algorithm) -> Result<(), Pkcs11Error> {
        self.check(object, &SHAPE)?;
        self.check_attributes(object, &[label(), Attribute::Id(id.to_vec())])?;
        // Of a module that keeps no such list it is not known.
        match self.attributes(object, &[AttributeType::AllowedMechanisms]) {
            Ok(found) if found.is_empty() => {}
            Err(error) if error.is_unknown_attribute() => {}
            Ok(_) => self.check_attributes(object, &[allowed(algorithm)])?,
            Err(error) => return Err(error),
        }
        self.hmac(algorithm, object, b"hsm-authd/secret/check/v1").map(drop)
    }
}

fn label() -> Attribute {
    Attribute::Label(LABEL.as_bytes().to_vec())
}

/// Good for one HMAC, as an unwrapped secret is.
fn allowed(algorithm: Algorithm) -> Attribute {
    Attribute::AllowedMechanisms(vec![match algorithm {
        Algorithm::Sha1 => MechanismType::SHA1_HMAC,
        Algorithm::Sha256 => MechanismType::SHA256_HMAC,
        Algorithm::Sha512 => MechanismType::SHA512_HMAC,
    }])
}

/// What a new one is given, but for what it is made of and what it is good for. That comes before it: SoftHSM takes a
/// template's attributes in their order, and nothing behind CKA_MODIFIABLE.
fn template(id: &[u8]) -> Vec<Attribute> {
    let mut template = SHAPE.attributes();
    template.extend([label(), Attribute::Id(id.to_vec()), Attribute::Modifiable(false)]);
    template
}

/// By what it is found.
fn mine(id: &[u8]) -> [Attribute; 3] {
    [Attribute::Token(true), label(), Attribute::Id(id.to_vec())]
}

#[cfg(test)]
impl Session {
    /// What a crash may leave of one: an object that is none of ours but for its label, and its id if that is not empty.
    pub fn half_made(&self, id: &[u8]) -> Object {
        let mut template = vec![
            Attribute::Class(cryptoki::object::ObjectClass::SECRET_KEY),
            Attribute::KeyType(cryptoki::object::KeyType::GENERIC_SECRET),
            Attribute::Token(true),
            Attribute::Value(vec![1; 24]),
            label(),
        ];
        if !id.is_empty() {
            template.push(Attribute::Id(id.to_vec()));
        }
        self.made("C_CreateObject", self.raw.create_object(&template).unwrap()).unwrap()
    }

    /// Which attempts to weaken it succeed.
    pub fn weakened(&self, object: Object) -> [bool; 4] {
        [
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
            Attribute::Sign(false),
            Attribute::AllowedMechanisms(vec![MechanismType::SHA256_HMAC]),
        ]
        .map(|attribute| self.raw.update_attributes(self.handle(object).unwrap(), &[attribute]).is_ok())
    }
}
