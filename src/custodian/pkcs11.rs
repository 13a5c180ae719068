//! The PKCS#11 module behind types of our own: the only file that names `cryptoki`.
//!
//! Nothing here decides anything; it says in our words what is asked of the module, and checks what
//! the module made of it, because a module may ignore parts of a template without a word.

use std::fmt;
use std::path::Path;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::UserType;
use cryptoki::slot::Slot;
use cryptoki::types::AuthPin;
use zeroize::{Zeroize, Zeroizing};

use super::pin::Pin;
use crate::domain::otp::Algorithm;

/// RFC 3394 adds one block of 8 bytes to what it wraps.
pub const WRAP_OVERHEAD_BYTES: usize = 8;

/// What the module did not do. Displays as function and return code, such as
/// `C_Login: CKR_PIN_INCORRECT`; never holds a secret.
#[derive(Debug)]
pub struct Pkcs11Error(Cause);

#[derive(Debug)]
enum Cause {
    /// The module, or the binding to it, returned an error.
    Returned(Error),
    /// The module said yes, and the object it made or holds is not what was asked for.
    Attribute(String),
    /// The module said yes, and returned too few bytes.
    Length(&'static str),
}

impl Pkcs11Error {
    /// Whether the PIN itself was refused: another attempt with it would be another failed login,
    /// and a few of those lock a token for good.
    pub fn is_pin_refusal(&self) -> bool {
        use RvError::{PinExpired, PinIncorrect, PinInvalid, PinLenRange, PinLocked};
        let code = self.code();
        matches!(code, Some(PinIncorrect | PinInvalid | PinLenRange | PinExpired | PinLocked))
    }

    /// Whether the token has no user PIN yet.
    pub fn is_user_pin_unset(&self) -> bool {
        matches!(self.code(), Some(RvError::UserPinNotInitialized))
    }

    fn code(&self) -> Option<RvError> {
        match &self.0 {
            Cause::Returned(Error::Pkcs11(code, _)) => Some(*code),
            _ => None,
        }
    }
}

impl From<Error> for Pkcs11Error {
    fn from(error: Error) -> Self {
        Self(Cause::Returned(error))
    }
}

impl fmt::Display for Pkcs11Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Cause::Returned(Error::Pkcs11(code, function)) => {
                write!(f, "C_{function:?}: {}", constant("CKR", &format!("{code:?}")))
            }
            Cause::Returned(error) => write!(f, "{error}"),
            Cause::Attribute(name) => write!(f, "{name} is not as asked for"),
            Cause::Length(function) => write!(f, "{function}: a result of the wrong length"),
        }
    }
}

impl std::error::Error for Pkcs11Error {}

/// The blob in the buffer of a `C_WrapKey`: the binding does not cut it to what the module wrote, which
/// may be less than the module had guessed. `None`: there is less than a blob of such a key.
fn cut(mut buffer: Vec<u8>, key_bytes: usize) -> Option<Vec<u8>> {
    let length = key_bytes.checked_add(WRAP_OVERHEAD_BYTES)?;
    buffer.truncate(length);
    (buffer.len() == length).then_some(buffer)
}

/// The name of a PKCS#11 constant from the binding's: `PinIncorrect` becomes `CKR_PIN_INCORRECT`.
fn constant(prefix: &str, name: &str) -> String {
    let mut text = prefix.to_owned();
    for character in name.chars() {
        if character.is_ascii_uppercase() {
            text.push('_');
        }
        text.push(character.to_ascii_uppercase());
    }
    text
}

/// An object's handle; it means something to the session that found or made it.
#[derive(Clone, Copy, Debug)]
pub struct Object(ObjectHandle);

/// What a secret key is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Material {
    /// `CKK_AES`.
    Aes,
    /// `CKK_GENERIC_SECRET`, for HMAC.
    Generic,
}

/// What a key may be used for. Nothing of ours verifies or derives inside the HSM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// `CKA_ENCRYPT` and `CKA_DECRYPT`.
    Cipher,
    /// `CKA_SIGN`.
    Sign,
    /// `CKA_WRAP` and `CKA_UNWRAP`.
    Wrap,
}

/// Everything that is asked of a secret key, and read back. All are private and sensitive.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its type.
    pub material: Material,
    /// Its length in bytes; `None`: that of the blob it is unwrapped from, which PKCS#11 does not
    /// take in a template, and some modules do not tell afterwards.
    pub length_bytes: Option<usize>,
    /// Whether it stays in the token, or ends with the session.
    pub token: bool,
    /// Whether it may leave under another key.
    pub extractable: bool,
    /// What it is for; `None`: for nothing but to be wrapped.
    pub purpose: Option<Use>,
}

impl Shape {
    /// The attributes that a template gives and that are read back, without the length.
    fn attributes(&self) -> Vec<Attribute> {
        let key_type = match self.material {
            Material::Aes => KeyType::AES,
            Material::Generic => KeyType::GENERIC_SECRET,
        };
        let is_for = |purpose| self.purpose == Some(purpose);
        vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(key_type),
            Attribute::Token(self.token),
            Attribute::Private(true),
            Attribute::Sensitive(true),
            Attribute::Extractable(self.extractable),
            Attribute::Encrypt(is_for(Use::Cipher)),
            Attribute::Decrypt(is_for(Use::Cipher)),
            Attribute::Sign(is_for(Use::Sign)),
            Attribute::Verify(false),
            Attribute::Wrap(is_for(Use::Wrap)),
            Attribute::Unwrap(is_for(Use::Wrap)),
            Attribute::Derive(false),
        ]
    }

    /// The same with the length.
    fn all_attributes(&self) -> Result<Vec<Attribute>, Pkcs11Error> {
        let mut attributes = self.attributes();
        if let Some(length_bytes) = self.length_bytes {
            attributes.push(Attribute::ValueLen(length_bytes.try_into()?));
        }
        Ok(attributes)
    }
}

/// A loaded and initialised module.
pub struct Module(Pkcs11);

/// A slot with an initialised token.
pub struct Token {
    slot: Slot,
    /// For the log: label, manufacturer and model.
    pub description: String,
    /// Whether the user PIN was set (`CKF_USER_PIN_INITIALIZED`).
    pub user_pin_set: bool,
}

impl Module {
    /// Loads the module and initialises it. Runs the vendor's code in this process.
    ///
    /// # Errors
    /// It cannot be loaded, or `C_Initialize` failed.
    pub fn load(path: &Path) -> Result<Self, Pkcs11Error> {
        let context = Pkcs11::new(path)?;
        context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))?;
        Ok(Self(context))
    }

    /// Every initialised token with this label. Labels need not be unique: more than one is for the
    /// caller to refuse.
    ///
    /// # Errors
    /// A slot cannot be read; a slot whose token is just being pulled is passed over.
    pub fn tokens_labelled(&self, label: &str) -> Result<Vec<Token>, Pkcs11Error> {
        let mut found = Vec::new();
        for slot in self.0.get_slots_with_token()? {
            let info = match self.0.get_token_info(slot) {
                Err(Error::Pkcs11(RvError::TokenNotPresent | RvError::TokenNotRecognized, _)) => continue,
                other => other?,
            };
            if info.token_initialized() && info.label() == label {
                let description = format!("{label} ({}, {})", info.manufacturer_id(), info.model());
                found.push(Token { slot, description, user_pin_set: info.user_pin_initialized() });
            }
        }
        Ok(found)
    }

    /// Makes a token with this label and SO PIN of the first slot whose token is uninitialised;
    /// `false` if there is no such slot.
    ///
    /// # Errors
    /// `C_InitToken` failed, or the slots cannot be read.
    pub fn init_token(&self, label: &str, so_pin: &Pin) -> Result<bool, Pkcs11Error> {
        for slot in self.0.get_slots_with_token()? {
            if !self.0.get_token_info(slot)?.token_initialized() {
                self.0.init_token(slot, &AuthPin::from(so_pin.as_str()), label)?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sets the user PIN of a token that has none, as its security officer.
    ///
    /// # Errors
    /// The SO PIN is refused ([`Pkcs11Error::is_pin_refusal`]), or the user PIN is one the token does
    /// not take.
    pub fn init_user_pin(&self, token: &Token, so_pin: &Pin, pin: &Pin) -> Result<(), Pkcs11Error> {
        let session = self.0.open_rw_session(token.slot)?;
        session.login(UserType::So, Some(&AuthPin::from(so_pin.as_str())))?;
        session.init_pin(&AuthPin::from(pin.as_str()))?;
        Ok(session.logout()?)
    }

    /// Opens a read-write session and logs the user in: exactly one attempt.
    ///
    /// # Errors
    /// The PIN is refused ([`Pkcs11Error::is_pin_refusal`]), or anything else.
    pub fn login(&self, token: &Token, pin: &Pin) -> Result<Session, Pkcs11Error> {
        let session = self.0.open_rw_session(token.slot)?;
        session.login(UserType::User, Some(&AuthPin::from(pin.as_str())))?;
        Ok(Session(session))
    }
}

/// A read-write session of the logged-in user. Its session objects end with it.
pub struct Session(cryptoki::session::Session);

impl Session {
    /// Every token object that has a label, with it. Labels that are no UTF-8 are nobody's of ours.
    ///
    /// # Errors
    /// The search failed.
    pub fn labelled_objects(&self) -> Result<Vec<(Object, String)>, Pkcs11Error> {
        let mut found = Vec::new();
        // Not by class: an object that a crash left half made may have a label and nothing else.
        for handle in self.0.find_objects(&[Attribute::Token(true)])? {
            let attributes = self.0.get_attributes(handle, &[AttributeType::Label])?;
            if let [Attribute::Label(label)] = attributes.as_slice()
                && let Ok(label) = std::str::from_utf8(label)
            {
                found.push((Object(handle), label.to_owned()));
            }
        }
        Ok(found)
    }

    /// Reads the key's attributes back.
    ///
    /// # Errors
    /// Names the first attribute that is missing or not as `shape` says.
    pub fn check(&self, object: Object, shape: &Shape) -> Result<(), Pkcs11Error> {
        let wanted = shape.all_attributes()?;
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

    /// Generates a key. One with a label is made unmodifiable, unless it wraps.
    ///
    /// # Errors
    /// `C_GenerateKey` failed.
    pub fn generate(&self, shape: &Shape, label: Option<&str>) -> Result<Object, Pkcs11Error> {
        let mechanism = match shape.material {
            Material::Aes => Mechanism::AesKeyGen,
            Material::Generic => Mechanism::GenericSecretKeyGen,
        };
        let mut template = shape.all_attributes()?;
        if let Some(label) = label {
            template.push(Attribute::Label(label.as_bytes().to_vec()));
            // A key that is to be copied to a session object must allow it: the copy's CKA_TOKEN is
            // a modification. No module lets go of CKA_SENSITIVE or non-extractability for that.
            template.push(Attribute::Modifiable(shape.purpose == Some(Use::Wrap)));
        }
        Ok(Object(self.0.generate_key(&mechanism, &template)?))
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

#[cfg(test)]
mod tests {
    use super::*;
    use cryptoki::context::Function;

    #[test]
    fn a_blob_is_cut_to_its_length() {
        assert_eq!(cut(vec![1; 32], 24), Some(vec![1; 32]));
        assert_eq!(cut(vec![1; 40], 24), Some(vec![1; 32]));
        assert_eq!(cut(vec![1; 31], 24), None);
        assert_eq!(cut(vec![1; 31], usize::MAX), None);
    }

    #[test]
    fn errors_are_named_as_in_the_standard() {
        for (code, text, is_pin_refusal) in [
            (RvError::PinIncorrect, "C_Login: CKR_PIN_INCORRECT", true),
            (RvError::PinLocked, "C_Login: CKR_PIN_LOCKED", true),
            (RvError::PinExpired, "C_Login: CKR_PIN_EXPIRED", true),
            (RvError::PinLenRange, "C_Login: CKR_PIN_LEN_RANGE", true),
            (RvError::DeviceRemoved, "C_Login: CKR_DEVICE_REMOVED", false),
            (RvError::UserPinNotInitialized, "C_Login: CKR_USER_PIN_NOT_INITIALIZED", false),
        ] {
            let error = Pkcs11Error::from(Error::Pkcs11(code, Function::Login));
            assert_eq!(error.to_string(), text);
            assert_eq!(error.is_pin_refusal(), is_pin_refusal, "{text}");
        }
    }
}
