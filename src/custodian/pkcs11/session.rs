//! A session: keys and what is done with them.

use std::cell::RefCell;
use std::collections::HashSet;

use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, ObjectHandle};
use cryptoki::session::{SessionState, UserType};
use cryptoki::types::AuthPin;
use zeroize::{Zeroize, Zeroizing};

use super::handles::{Handles, Search};
use super::mechanisms::Purpose;
use super::random::LastDrawn;
use super::shape::{Material, Shape, Use};
use super::trials::KnownKey;
use super::{Cause, Pkcs11Error, constant};
use crate::custodian::pin::Pin;
use crate::domain::otp::Algorithm;

/// RFC 3394 adds one block of 8 bytes to what it wraps.
pub const WRAP_OVERHEAD_BYTES: usize = 8;

/// An object's handle; it means something to the session that found or made it, and is refused by any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    handle: ObjectHandle,
    generation: u64,
}

impl Object {
    pub(super) fn new(handle: ObjectHandle, generation: u64) -> Self {
        Self { handle, generation }
    }

    /// Whose it is: the number of its session.
    pub(super) fn generation(self) -> u64 {
        self.generation
    }

    /// [`Session::handle`] is what a call takes.
    pub(super) fn handle_in_its_session(self) -> ObjectHandle {
        self.handle
    }
}

/// A read-write session. Its session objects end with it.
pub struct Session {
    pub(super) raw: cryptoki::session::Session,
    pub(super) handles: Handles,
    pub(super) known_key: KnownKey,
    pub(super) last_drawn: LastDrawn,
    /// The label of an object that is known to be there ([`Session::set_witness`]).
    pub(super) witness: RefCell<Option<String>>,
    /// Whether it takes secret keys of ours that were not made in this token.
    pub(super) accepting_shared_keys: bool,
}

impl Session {
    pub(super) fn new(raw: cryptoki::session::Session) -> Self {
        Self {
            raw,
            handles: Handles::new(),
            known_key: KnownKey::default(),
            last_drawn: LastDrawn::default(),
            witness: RefCell::default(),
            accepting_shared_keys: false,
        }
    }

    /// Whether the user is logged in, in this process.
    ///
    /// # Errors
    /// `C_GetSessionInfo` failed: the session is gone.
    pub fn is_logged_in(&self) -> Result<bool, Pkcs11Error> {
        Ok(self.raw.get_session_info()?.session_state() == SessionState::RwUser)
    }

    /// Logs the user in: exactly one attempt.
    ///
    /// # Errors
    /// The PIN is refused ([`Pkcs11Error::is_pin_refusal`]), or anything else.
    pub fn login(&self, pin: &Pin) -> Result<(), Pkcs11Error> {
        match self.raw.login(UserType::User, Some(&AuthPin::from(pin.as_str()))) {
            // By another session of this process.
            Err(Error::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Every token object that has a label, with it, but for secrets of credentials, of which there may be thousands.
    /// Labels that are no UTF-8 are nobody's of ours.
    ///
    /// # Errors
    /// The search failed.
    pub fn labelled_objects(&self) -> Result<Vec<(Object, String)>, Pkcs11Error> {
        let secrets: HashSet<_> =
            self.residents()?.into_iter().map(|object| object.handle.handle()).collect();
        let mut found = Vec::new();
        // Not by class: an object that a crash left half made may have a label and nothing else.
        let all = self.search(&[Attribute::Token(true)])?;
        for object in self.found(Search::Token, all) {
            if secrets.contains(&object.handle.handle()) {
                continue;
            }
            let attributes = match self.attributes_of_found(object, &[AttributeType::Label]) {
                // A credential's secret, deleted meanwhile by another custodian.
                Err(error) if error.is_gone() => continue,
                other => other?,
            };
            if let [Attribute::Label(label)] = attributes.as_slice()
                && let Ok(label) = std::str::from_utf8(label)
            {
                found.push((object, label.to_owned()));
            }
        }
        Ok(found)
    }

    /// Those of them that the object has, and gives out.
    pub(super) fn attributes(
        &self,
        object: Object,
        types: &[AttributeType],
    ) -> Result<Vec<Attribute>, Pkcs11Error> {
        Ok(self.raw.get_attributes(self.handle(object)?, types)?)
    }

    /// The same of a token object that was found, and that another process may have destroyed since.
    ///
    /// # Errors
    /// They cannot be read; [`Pkcs11Error::is_gone`] also where the module says nothing but that it failed, as Kryoptic does
    /// then, and a search finds other objects and not this one.
    pub(super) fn attributes_of_found(
        &self,
        object: Object,
        types: &[AttributeType],
    ) -> Result<Vec<Attribute>, Pkcs11Error> {
        match self.attributes(object, types) {
            Err(error) if error.is_general() => {
                Err(error.of_object(&self.handle(object)?, self.search(&[Attribute::Token(true)])))
            }
            read => read,
        }
    }

    /// Whether only who is logged in can have made this object (PKCS #11 3.1, C_CreateObject).
    ///
    /// # Errors
    /// The attribute cannot be read.
    pub fn is_private(&self, object: Object) -> Result<bool, Pkcs11Error> {
        Ok(self.attributes(object, &[AttributeType::Private])? == [Attribute::Private(true)])
    }

    /// Reads the key's attributes back.
    ///
    /// # Errors
    /// Names the first attribute that is missing or not as `shape` says.
    pub fn check(&self, object: Object, shape: &Shape) -> Result<(), Pkcs11Error> {
        self.check_attributes(object, &shape.all_attributes()?)
    }

    /// Reads the label back.
    ///
    /// # Errors
    /// It is another one.
    pub fn check_label(&self, object: Object, label: &str) -> Result<(), Pkcs11Error> {
        self.check_attributes(object, &[Attribute::Token(true), Attribute::Label(label.as_bytes().to_vec())])
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
        let found = self.attributes(object, &types)?;
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
        let mine = [Attribute::Token(true), label.clone()];
        let besides = [label, modifiable];
        self.made_with(purpose.attribute(), &mine, |allowed| {
            self.generate_with(shape, &[&besides[..], allowed].concat())
        })
    }

    pub(super) fn generate_with(&self, shape: &Shape, besides: &[Attribute]) -> Result<Object, Pkcs11Error> {
        let mechanism = match shape.material {
            Material::Aes => Mechanism::AesKeyGen,
            Material::Generic => Mechanism::GenericSecretKeyGen,
        };
        let mut template = shape.all_attributes()?;
        template.extend_from_slice(besides);
        self.made("C_GenerateKey", self.raw.generate_key(&mechanism, &template)?)
    }

    /// Makes a private token object that is nothing but its label.
    ///
    /// # Errors
    /// The module makes none.
    pub fn mark(&self, label: &str) -> Result<Object, Pkcs11Error> {
        // A value of its own: two keys of one id are one to NSS.
        let mut value = [0; 16];
        self.random(&mut value)?;
        self.create_data(label, &value)
    }

    /// Makes a key of `value`.
    ///
    /// # Errors
    /// `C_CreateObject` failed.
    pub fn create(&self, shape: &Shape, value: &[u8]) -> Result<Object, Pkcs11Error> {
        let mut template = shape.attributes();
        template.push(Attribute::Value(value.to_vec()));
        let created = self.raw.create_object(&template);
        for attribute in &mut template {
            if let Attribute::Value(copy) = attribute {
                copy.zeroize();
            }
        }
        self.made("C_CreateObject", created?)
    }

    /// A session object that is otherwise the same key.
    ///
    /// # Errors
    /// `C_CopyObject` failed.
    pub fn copy_to_session(&self, object: Object) -> Result<Object, Pkcs11Error> {
        let copy = self.raw.copy_object(self.handle(object)?, &[Attribute::Token(false)])?;
        self.made("C_CopyObject", copy)
    }

    /// The key of `length_bytes` under `kek` (AES key wrap, RFC 3394): `length_bytes` + 8 bytes.
    ///
    /// # Errors
    /// `C_WrapKey` failed, or returned fewer bytes.
    pub fn wrap(&self, kek: Object, key: Object, length_bytes: usize) -> Result<Vec<u8>, Pkcs11Error> {
        let (kek, key) = (self.handle(kek)?, self.handle(key)?);
        let buffer = self.raw.wrap_key(&Mechanism::AesKeyWrap, kek, key)?;
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
        self.unwrap_with(kek, blob, &template)
    }

    /// The key in `blob` as an object of this shape, whose length the module takes from the blob.
    ///
    /// # Errors
    /// `C_UnwrapKey` failed: also if the blob is not what this `kek` wrapped.
    pub fn unwrap(&self, kek: Object, blob: &[u8], shape: &Shape) -> Result<Object, Pkcs11Error> {
        self.unwrap_with(kek, blob, &shape.attributes())
    }

    pub(super) fn unwrap_with(
        &self,
        kek: Object,
        blob: &[u8],
        template: &[Attribute],
    ) -> Result<Object, Pkcs11Error> {
        let handle = self.raw.unwrap_key(&Mechanism::AesKeyWrap, self.handle(kek)?, blob, template)?;
        self.made("C_UnwrapKey", handle)
    }

    /// The HMAC of `message`, as the module says it is.
    pub(super) fn hmac_once(
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
        let mac = Zeroizing::new(self.raw.sign(&mechanism, self.handle(key)?, message)?);
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
        let destroyed = self.raw.destroy_object(self.handle(object)?).map_err(Pkcs11Error::from);
        if destroyed.as_ref().err().is_none_or(Pkcs11Error::is_gone) {
            self.gone(object);
        }
        destroyed
    }

    /// Destroys what something was done with. If that failed, its failure is told, and none that came of it.
    ///
    /// # Errors
    /// The first of both.
    pub fn destroy_after<T, E: From<Pkcs11Error>>(&self, object: Object, done: Result<T, E>) -> Result<T, E> {
        let destroyed = self.destroy(object);
        let done = done?;
        destroyed?;
        Ok(done)
    }

    /// Destroys the object, and looks whether it is there no more: for one that may leave the HSM.
    ///
    /// # Errors
    /// `C_DestroyObject` or the look failed, or it is there still.
    pub fn destroy_surely(&self, object: Object) -> Result<(), Pkcs11Error> {
        self.destroy(object)?;
        match self.attributes(object, &[AttributeType::Class]) {
            Err(error) if error.is_gone() => Ok(()),
            Err(error) => Err(error),
            Ok(_) => Err(Pkcs11Error::lie("C_DestroyObject: the object is still there")),
        }
    }

    /// Destroys the object of this label, and nothing else that its handle may be of: the label is read once more. Looks
    /// whether it is there no more.
    ///
    /// # Errors
    /// It is another object; or it was not destroyed, and may still be there.
    pub fn destroy_labelled(&self, object: Object, label: &str) -> Result<(), Pkcs11Error> {
        self.check_label(object, label).map_err(|error| match error.is_of_object() {
            true => Pkcs11Error::lie(format!("C_GetAttributeValue: {label} is the label of another object")),
            false => error,
        })?;
        self.destroy_surely(object)
    }

    /// The same of one that a search by the label finds, too: what goes for good is not read alone.
    ///
    /// # Errors
    /// As there.
    pub fn destroy_named(&self, object: Object, label: &str) -> Result<(), Pkcs11Error> {
        if !self.labelled(label)?.contains(&object) {
            // Somebody else may have destroyed it.
            self.check_label(object, label)?;
            return Err(Pkcs11Error::lie(format!("C_FindObjects: not an object that is labelled {label}")));
        }
        self.destroy_labelled(object, label)
    }

    /// The bytes of a key, if the module gives them out.
    #[cfg(test)]
    pub fn value(&self, object: Object) -> Option<Vec<u8>> {
        match self.attributes(object, &[AttributeType::Value]).unwrap().pop() {
            Some(Attribute::Value(value)) => Some(value),
            _ => None,
        }
    }

    /// How many session objects there are.
    #[cfg(test)]
    pub fn session_objects(&self) -> usize {
        self.raw.find_objects(&[Attribute::Token(false)]).unwrap().len()
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
    use fault_module::{Fault, Function, Kind, sys};

    use super::*;
    use crate::custodian::test_token::with_faulty_session;

    /// As Kryoptic says it of an object that another process destroyed.
    #[test]
    fn what_a_module_fails_to_read_is_gone_if_the_token_has_others() {
        const NAME: &str =
            "custodian::pkcs11::session::tests::what_a_module_fails_to_read_is_gone_if_the_token_has_others";
        with_faulty_session(NAME, |session, faults| {
            let [gone, last] = ["gone", "last"].map(|label| session.mark(label).unwrap());
            // A session object, which says nothing of a token that is away.
            let secret = session.generate_resident(&[1; 16], Algorithm::Sha1, 20).unwrap();
            session.hmac(Algorithm::Sha1, secret, b"once").unwrap();
            session.raw.destroy_object(secret.handle).unwrap();
            assert_eq!(session.session_objects(), 1);
            let fails = Fault::of(Function::C_GetAttributeValue, Kind::Fail(sys::CKR_GENERAL_ERROR));
            faults.set(&fails).unwrap();

            session.raw.destroy_object(gone.handle).unwrap();
            assert!(session.id(gone).unwrap_err().is_gone());
            assert!(session.data_value(gone).unwrap_err().is_gone());
            assert!(session.data_value(last).unwrap_err().is_general(), "it is found");
            session.raw.destroy_object(last.handle).unwrap();
            assert!(session.data_value(last).unwrap_err().is_general(), "the token may be away");
        });
    }

    #[test]
    fn a_blob_is_cut_to_its_length() {
        assert_eq!(cut(vec![1; 32], 24), Some(vec![1; 32]));
        assert_eq!(cut(vec![1; 40], 24), Some(vec![1; 32]));
        assert_eq!(cut(vec![1; 31], 24), None);
        assert_eq!(cut(vec![1; 31], usize::MAX), None);
    }
}
