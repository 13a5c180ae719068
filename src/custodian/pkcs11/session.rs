//! A session: keys and what is done with them.

use std::collections::HashSet;

use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use zeroize::{Zeroize, Zeroizing};

use super::mechanisms::Purpose;
use super::shape::{Material, Shape, Use};
use super::{Cause, Pkcs11Error, constant};
use crate::domain::otp::Algorithm;

/// RFC 3394 adds one block of 8 bytes to what it wraps.
pub const WRAP_OVERHEAD_BYTES: usize = 8;

/// An object's handle; it means something to the session that found or made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object(pub(super) ObjectHandle);

/// A read-write session of the logged-in user. Its session objects end with it.
pub struct Session(pub(super) cryptoki::session::Session);

impl Session {
    /// The user has been logged in.
    pub(super) fn of_user(session: cryptoki::session::Session) -> Self {
        Self(session)
    }

    /// Every token object that has a label, with it, but for secrets of credentials, of which there may be thousands.
    /// Labels that are no UTF-8 are nobody's of ours.
    ///
    /// # Errors
    /// The search failed.
    pub fn labelled_objects(&self) -> Result<Vec<(Object, String)>, Pkcs11Error> {
        let secrets: HashSet<_> = self.residents()?.into_iter().map(|object| object.0.handle()).collect();
        let mut found = Vec::new();
        // Not by class: an object that a crash left half made may have a label and nothing else.
        for handle in self.0.find_objects(&[Attribute::Token(true)])? {
            if secrets.contains(&handle.handle()) {
                continue;
            }
            let attributes = match self.attributes(Object(handle), &[AttributeType::Label]) {
                // A credential's secret, deleted meanwhile by another custodian.
                Err(error) if error.is_gone() => continue,
                other => other?,
            };
            if let [Attribute::Label(label)] = attributes.as_slice()
                && let Ok(label) = std::str::from_utf8(label)
            {
                found.push((Object(handle), label.to_owned()));
            }
        }
        Ok(found)
    }

    fn attributes(&self, object: Object, types: &[AttributeType]) -> Result<Vec<Attribute>, Pkcs11Error> {
        Ok(self.0.get_attributes(object.0, types)?)
    }

    /// Whether only who is logged in can have made this object (PKCS #11 3.1, C_CreateObject).
    ///
    /// # Errors
    /// The attribute cannot be read.
    pub fn is_private(&self, object: Object) -> Result<bool, Pkcs11Error> {
        Ok(self.0.get_attributes(object.0, &[AttributeType::Private])? == [Attribute::Private(true)])
    }

    /// Reads the key's attributes back.
    ///
    /// # Errors
    /// Names the first attribute that is missing or not as `shape` says.
    pub fn check(&self, object: Object, shape: &Shape) -> Result<(), Pkcs11Error> {
        self.check_attributes(object, &shape.all_attributes()?)
    }

    /// Whether a key was made in the HSM and has never been outside: what came from outside is known to whoever brought
    /// it (PKCS #11 3.1, section 4.9).
    ///
    /// # Errors
    /// Names the attribute that says otherwise.
    pub fn check_made_inside(&self, object: Object) -> Result<(), Pkcs11Error> {
        self.check_attributes(object, &[Attribute::AlwaysSensitive(true), Attribute::NeverExtractable(true)])
    }

    /// The same for attributes of any object.
    pub(super) fn check_attributes(&self, object: Object, wanted: &[Attribute]) -> Result<(), Pkcs11Error> {
        let types: Vec<_> = wanted.iter().map(Attribute::attribute_type).collect();
        let found = self.0.get_attributes(object.0, &types)?;
        match wanted.iter().find(|attribute| !found.contains(attribute)) {
            None => Ok(()),
            Some(wrong) => {
                let name = constant("CKA", &format!("{:?}", wrong.attribute_type()));
                Err(Pkcs11Error(Cause::Attribute(name)))
            }
        }
    }

    /// Generates a key.
    ///
    /// # Errors
    /// `C_GenerateKey` failed.
    pub fn generate(&self, shape: &Shape) -> Result<Object, Pkcs11Error> {
        self.generate_with(shape, &[])
    }

    /// Generates a key with a label, for one purpose. It is made unmodifiable, unless it wraps.
    ///
    /// # Errors
    /// `C_GenerateKey` failed.
    pub fn generate_labelled(
        &self,
        shape: &Shape,
        label: &str,
        purpose: Purpose,
    ) -> Result<Object, Pkcs11Error> {
        let label = Attribute::Label(label.as_bytes().to_vec());
        // A key that is to be copied to a session object must allow it: the copy's CKA_TOKEN is
        // a modification. No module lets go of CKA_SENSITIVE or non-extractability for that.
        let modifiable = Attribute::Modifiable(shape.purpose == Some(Use::Wrap));
        let besides = [label, modifiable];
        self.made_for(purpose, |allowed| self.generate_with(shape, &[&besides[..], allowed].concat()))
    }

    fn generate_with(&self, shape: &Shape, besides: &[Attribute]) -> Result<Object, Pkcs11Error> {
        let mechanism = match shape.material {
            Material::Aes => Mechanism::AesKeyGen,
            Material::Generic => Mechanism::GenericSecretKeyGen,
        };
        let mut template = shape.all_attributes()?;
        template.extend_from_slice(besides);
        Ok(Object(self.0.generate_key(&mechanism, &template)?))
    }

    /// Makes a token object that is nothing but its label.
    ///
    /// # Errors
    /// `C_CreateObject` failed: not every module has such objects.
    pub fn mark(&self, label: &str) -> Result<Object, Pkcs11Error> {
        let class = Attribute::Class(ObjectClass::DATA);
        let label = Attribute::Label(label.as_bytes().to_vec());
        Ok(Object(self.0.create_object(&[class, Attribute::Token(true), Attribute::Private(true), label])?))
    }

    /// Makes a key of `value`.
    ///
    /// # Errors
    /// `C_CreateObject` failed.
    pub fn create(&self, shape: &Shape, value: &[u8]) -> Result<Object, Pkcs11Error> {
        let mut template = shape.attributes();
        template.push(Attribute::Value(value.to_vec()));
        let created = self.0.create_object(&template);
        for attribute in &mut template {
            if let Attribute::Value(copy) = attribute {
                copy.zeroize();
            }
        }
        Ok(Object(created?))
    }

    /// A session object that is otherwise the same key.
    ///
    /// # Errors
    /// `C_CopyObject` failed.
    pub fn copy_to_session(&self, object: Object) -> Result<Object, Pkcs11Error> {
        Ok(Object(self.0.copy_object(object.0, &[Attribute::Token(false)])?))
    }

    /// The key of `length_bytes` under `kek` (AES key wrap, RFC 3394): `length_bytes` + 8 bytes.
    ///
    /// # Errors
    /// `C_WrapKey` failed, or returned fewer bytes.
    pub fn wrap(&self, kek: Object, key: Object, length_bytes: usize) -> Result<Vec<u8>, Pkcs11Error> {
        let buffer = self.0.wrap_key(&Mechanism::AesKeyWrap, kek.0, key.0)?;
        cut(buffer, length_bytes).ok_or(Pkcs11Error(Cause::Length("C_WrapKey")))
    }

    /// The key in `blob` as an object that can do `algorithm`'s HMAC and nothing else.
    ///
    /// # Errors
    /// `C_UnwrapKey` failed: also if the blob is not what this `kek` wrapped.
    pub fn unwrap_hmac_key(
        &self,
        kek: Object,
        blob: &[u8],
        shape: &Shape,
        algorithm: Algorithm,
    ) -> Result<Object, Pkcs11Error> {
        let mut template = shape.attributes();
        template.push(Attribute::AllowedMechanisms(vec![match algorithm {
            Algorithm::Sha1 => MechanismType::SHA1_HMAC,
            Algorithm::Sha256 => MechanismType::SHA256_HMAC,
            Algorithm::Sha512 => MechanismType::SHA512_HMAC,
        }]));
        Ok(Object(self.0.unwrap_key(&Mechanism::AesKeyWrap, kek.0, blob, &template)?))
    }

    /// The key in `blob` as an object of this shape, whose length the module takes from the blob.
    ///
    /// # Errors
    /// `C_UnwrapKey` failed: also if the blob is not what this `kek` wrapped.
    pub fn unwrap(&self, kek: Object, blob: &[u8], shape: &Shape) -> Result<Object, Pkcs11Error> {
        Ok(Object(self.0.unwrap_key(&Mechanism::AesKeyWrap, kek.0, blob, &shape.attributes())?))
    }

    /// The HMAC of `message`: [`Algorithm::output_bytes`] of it, zeroized on drop.
    ///
    /// # Errors
    /// `C_SignInit` or `C_Sign` failed, or the result has another length.
    pub fn hmac(
        &self,
        algorithm: Algorithm,
        key: Object,
        message: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Pkcs11Error> {
        let mechanism = match algorithm {
            Algorithm::Sha1 => Mechanism::Sha1Hmac,
            Algorithm::Sha256 => Mechanism::Sha256Hmac,
            Algorithm::Sha512 => Mechanism::Sha512Hmac,
        };
        let mac = Zeroizing::new(self.0.sign(&mechanism, key.0, message)?);
        if mac.len() == algorithm.output_bytes() {
            Ok(mac)
        } else {
            Err(Pkcs11Error(Cause::Length("C_Sign")))
        }
    }

    /// Destroys the object.
    ///
    /// # Errors
    /// `C_DestroyObject` failed: the object may still be there.
    pub fn destroy(&self, object: Object) -> Result<(), Pkcs11Error> {
        Ok(self.0.destroy_object(object.0)?)
    }

    /// Fills `bytes` from the HSM's random generator.
    ///
    /// # Errors
    /// `C_GenerateRandom` failed.
    pub fn random(&self, bytes: &mut [u8]) -> Result<(), Pkcs11Error> {
        Ok(self.0.generate_random_slice(bytes)?)
    }

    /// The bytes of a key, if the module gives them out.
    #[cfg(test)]
    pub fn value(&self, object: Object) -> Option<Vec<u8>> {
        match self.0.get_attributes(object.0, &[AttributeType::Value]).unwrap().pop() {
            Some(Attribute::Value(value)) => Some(value),
            _ => None,
        }
    }

    /// How many session objects there are.
    #[cfg(test)]
    pub fn session_objects(&self) -> usize {
        self.0.find_objects(&[Attribute::Token(false)]).unwrap().len()
    }
}

/// The blob in the buffer of a `C_WrapKey`: the binding does not cut it to what the module wrote, which
/// may be less than the module had guessed. `None`: there is less than a blob of such a key.
fn cut(mut buffer: Vec<u8>, key_bytes: usize) -> Option<Vec<u8>> {
    let length = key_bytes.checked_add(WRAP_OVERHEAD_BYTES)?;
    buffer.truncate(length);
    (buffer.len() == length).then_some(buffer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_is_cut_to_its_length() {
        assert_eq!(cut(vec![1; 32], 24), Some(vec![1; 32]));
        assert_eq!(cut(vec![1; 40], 24), Some(vec![1; 32]));
        assert_eq!(cut(vec![1; 31], 24), None);
        assert_eq!(cut(vec![1; 31], usize::MAX), None);
    }
}
