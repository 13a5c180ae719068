//! The PKCS#11 module behind types of our own: with `pkcs11/`, the only code that names `cryptoki`.
//!
//! Nothing here decides anything; it says in our words what is asked of the module, and checks what
//! the module made of it, because a module may ignore parts of a template without a word.

mod cipher;
mod data;
mod description;
mod handles;
mod key_pair;
mod mechanisms;
mod oaep;
mod public_key;
mod random;
mod remedy;
mod resident;
mod search;
mod session;
mod shape;
mod shared;
mod trials;

use std::ffi::CStr;
use std::fmt;
use std::path::Path;

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Function, Pkcs11};
use cryptoki::error::{Error, RvError};
use cryptoki::session::UserType;
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;

use super::pin::Pin;

pub use cipher::GCM_NONCE_BYTES;
pub use data::DataForm;
pub use key_pair::{Half, PairForm};
pub use mechanisms::Purpose;
pub use public_key::VerifyingKey;
pub use session::{Object, Session, WRAP_OVERHEAD_BYTES};
pub use shape::{Material, Shape, Use};

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
    /// The module said yes, and what it returned is wrong.
    Lie(String),
    /// An object of another session.
    Stale,
    /// The kernel has no random bytes.
    Kernel(getrandom::Error),
}

impl Pkcs11Error {
    /// The module said yes, and what it returned is wrong: function and what is wrong, never a secret.
    pub fn lie(what: impl Into<String>) -> Self {
        Self(Cause::Lie(what.into()))
    }

    /// Whether the module said yes, and what came is wrong whatever it was asked.
    pub fn is_lie(&self) -> bool {
        matches!(self.0, Cause::Lie(_))
    }

    /// Whether the PIN itself was refused: another attempt with it would be another failed login,
    /// and a few of those lock a token for good.
    pub fn is_pin_refusal(&self) -> bool {
        use RvError::{PinExpired, PinIncorrect, PinInvalid, PinLenRange, PinLocked};
        let code = self.code();
        matches!(code, Some(PinIncorrect | PinInvalid | PinLenRange | PinExpired | PinLocked))
    }

    /// Whether it was the login itself that failed, and nothing before it.
    pub fn is_of_login(&self) -> bool {
        matches!(self.0, Cause::Returned(Error::Pkcs11(_, Function::Login)))
    }

    /// Whether an object was read, and is not what it must be.
    pub fn is_of_object(&self) -> bool {
        matches!(self.0, Cause::Attribute(_))
    }

    /// Whether the token has no user PIN yet.
    pub fn is_user_pin_unset(&self) -> bool {
        matches!(self.code(), Some(RvError::UserPinNotInitialized))
    }

    /// Whether the module does not take a key that came from outside. Nothing is wrong with the HSM, then.
    pub fn is_key_refusal(&self) -> bool {
        use RvError::{
            AttributeTypeInvalid, AttributeValueInvalid, CurveNotSupported, DomainParamsInvalid,
            KeySizeRange, PublicKeyInvalid, TemplateInconsistent,
        };
        match self.code() {
            Some(
                AttributeTypeInvalid
                | AttributeValueInvalid
                | CurveNotSupported
                | DomainParamsInvalid
                | KeySizeRange
                | PublicKeyInvalid
                | TemplateInconsistent,
            ) => true,
            Some(_) => false,
            // Made otherwise than asked for, and destroyed.
            None => self.is_of_object(),
        }
    }

    /// Whether the module says nothing but that it failed.
    fn is_general(&self) -> bool {
        matches!(self.code(), Some(RvError::GeneralError))
    }

    /// Whether there is no such file, or none that is a library.
    pub fn is_no_library(&self) -> bool {
        matches!(self.0, Cause::Returned(Error::LibraryLoading(_)))
    }

    /// Whether the module itself returned a code.
    pub fn is_returned(&self) -> bool {
        self.code().is_some()
    }

    /// Whether the token has no room for another object. Nothing else is wrong with it, then.
    pub fn is_full(&self) -> bool {
        matches!(self.code(), Some(RvError::DeviceMemory))
    }

    /// Whether nothing can be made in the token, or destroyed.
    pub fn is_write_protection(&self) -> bool {
        matches!(self.code(), Some(RvError::TokenWriteProtected)) && self.changes_objects()
    }

    /// Whether it is of a function that makes objects, or destroys them: it may have done so all the same.
    fn changes_objects(&self) -> bool {
        use Function::{CopyObject, CreateObject, DestroyObject, GenerateKey, GenerateKeyPair, UnwrapKey};
        let Cause::Returned(Error::Pkcs11(_, function)) = &self.0 else { return false };
        matches!(
            function,
            CopyObject | CreateObject | DestroyObject | GenerateKey | GenerateKeyPair | UnwrapKey
        )
    }

    /// Whether there is no such object, or no more: somebody else may have destroyed it since it was found.
    pub fn is_gone(&self) -> bool {
        matches!(self.code(), Some(RvError::ObjectHandleInvalid))
    }

    /// The same failure of reading an object: that it is gone, if objects are found and it is none of them.
    fn of_object<H: PartialEq>(self, object: &H, found: Result<Vec<H>, Self>) -> Self {
        match found.is_ok_and(|found| !found.is_empty() && !found.contains(object)) {
            true => Error::Pkcs11(RvError::ObjectHandleInvalid, Function::GetAttributeValue).into(),
            false => self,
        }
    }

    /// Whether the module does not know an attribute.
    fn is_unknown_attribute(&self) -> bool {
        matches!(self.code(), Some(RvError::AttributeTypeInvalid))
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
                write!(f, "C_{function:?}: {}", code_name(*code))
            }
            Cause::Returned(error) => write!(f, "{error}"),
            Cause::Attribute(name) => write!(f, "{name} is not as asked for"),
            Cause::Length(function) => write!(f, "{function}: a result of the wrong length"),
            Cause::Lie(what) => f.write_str(what),
            Cause::Stale => f.write_str("an object of a session that is gone"),
            Cause::Kernel(error) => write!(f, "the kernel has no random bytes: {error}"),
        }
    }
}

impl std::error::Error for Pkcs11Error {}

/// The name of a return code. What the standard names not is a number: vendors write theirs in hex.
pub(super) fn code_name(code: RvError) -> String {
    match code {
        RvError::VendorDefined(code) => {
            // They count from 0x80000000.
            format!("CKR_VENDOR_DEFINED+{:#x}", code.wrapping_sub(0x8000_0000))
        }
        RvError::UnknownErrorCode(code) => format!("{code:#x}, which is no return code of PKCS #11"),
        code => constant("CKR", &format!("{code:?}")),
    }
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

/// A loaded and initialised module.
pub struct Module(Pkcs11);

/// A slot with an initialised token.
pub struct Token {
    slot: Slot,
    /// For the log: label, manufacturer and model.
    pub description: String,
    /// Whether the user PIN was set (`CKF_USER_PIN_INITIALIZED`).
    pub user_pin_set: bool,
    /// What it says of earlier attempts to log in with it.
    pub attempts: Attempts,
}

/// What a token says of earlier attempts to log in as its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempts {
    /// Nothing.
    Unspent,
    /// At least one was refused since the last that was not (`CKF_USER_PIN_COUNT_LOW`).
    Refused,
    /// One more that is refused locks the PIN (`CKF_USER_PIN_FINAL_TRY`).
    LastOne,
    /// None is taken any more (`CKF_USER_PIN_LOCKED`).
    Locked,
}

impl Attempts {
    fn of(info: &TokenInfo) -> Self {
        match info {
            _ if info.user_pin_locked() => Self::Locked,
            _ if info.user_pin_final_try() => Self::LastOne,
            _ if info.user_pin_count_low() => Self::Refused,
            _ => Self::Unspent,
        }
    }
}

impl Token {
    fn new(slot: Slot, description: String, info: &TokenInfo) -> Self {
        Self { slot, description, user_pin_set: info.user_pin_initialized(), attempts: Attempts::of(info) }
    }

    /// One of which nothing is known but where it is.
    fn unknown(slot: Slot) -> Self {
        Self { slot, description: String::new(), user_pin_set: false, attempts: Attempts::Unspent }
    }
}

impl Module {
    /// Loads the module and initialises it, with a text for those that take one. Runs the vendor's code in this process.
    ///
    /// # Errors
    /// It cannot be loaded, or `C_Initialize` failed.
    pub fn load(path: &Path, arguments: Option<&CStr>) -> Result<Self, Pkcs11Error> {
        let context = Pkcs11::new(path)?;
        let flags = CInitializeFlags::OS_LOCKING_OK;
        context.initialize(match arguments {
            Some(text) => module_arguments::with_text(flags, text.to_owned()),
            None => CInitializeArgs::new(flags),
        })?;
        Ok(Self(context))
    }

    /// Every initialised token with this label, and how many slots were passed over because their token was just being
    /// pulled. Labels need not be unique: more than one is for the caller to refuse.
    ///
    /// # Errors
    /// A slot cannot be read.
    pub fn tokens_labelled(&self, label: &str) -> Result<(Vec<Token>, usize), Pkcs11Error> {
        let (mut found, mut passed_over) = (Vec::new(), 0);
        for slot in self.0.get_slots_with_token()? {
            let read = self.0.get_token_info(slot).and_then(|info| Ok((self.0.get_token_info(slot)?, info)));
            let (again, info) = match read {
                Err(Error::Pkcs11(RvError::TokenNotPresent | RvError::TokenNotRecognized, _)) => {
                    passed_over += 1;
                    continue;
                }
                // The binding cannot read it ([`Module::unreadable`]).
                Err(error) if !matches!(error, Error::Pkcs11(..)) => continue,
                other => other?,
            };
            if info.token_initialized() && info.label() == label {
                let description = format!("{label} ({}, {})", info.manufacturer_id(), info.model());
                // One bit decides whether a PIN is set.
                let user_pin_set = info.user_pin_initialized() || again.user_pin_initialized();
                found.push(Token { user_pin_set, ..Token::new(slot, description, &info) });
            }
        }
        Ok((found, passed_over))
    }

    /// The first slot with a token of which the binding cannot read what the module says (opencryptoki: a time that is
    /// none).
    pub fn unreadable(&self) -> Option<Token> {
        let is_unreadable = |slot: &Slot| {
            self.0.get_token_info(*slot).is_err_and(|error| !matches!(error, Error::Pkcs11(..)))
        };
        let slot = self.0.get_slots_with_token().ok()?.into_iter().find(is_unreadable)?;
        Some(Token::unknown(slot))
    }

    /// The first slot whose token is uninitialised, for one of this label; `None`: there is no such slot. What is there is
    /// never made anew: that would empty it.
    ///
    /// # Errors
    /// There is a token of this label, or the slots cannot be read.
    pub fn uninitialised(&self, label: &str) -> Result<Option<Token>, Pkcs11Error> {
        let mut uninitialised = None;
        for slot in self.0.get_slots_with_token()? {
            // Twice: one bit decides whether a token that is in use is emptied.
            let infos = [self.0.get_token_info(slot)?, self.0.get_token_info(slot)?];
            if infos.iter().any(|info| info.label() == label) {
                return Err(Pkcs11Error::lie(format!(
                    "C_GetTokenInfo: {label} is there, and was not before"
                )));
            }
            if !infos.iter().any(TokenInfo::token_initialized) {
                uninitialised.get_or_insert(Token::unknown(slot));
            }
        }
        Ok(uninitialised)
    }

    /// Makes a token with this label and SO PIN of an uninitialised one. Its slot may be another then.
    ///
    /// # Errors
    /// `C_InitToken` failed.
    pub fn init_token(&self, token: &Token, label: &str, so_pin: &Pin) -> Result<(), Pkcs11Error> {
        Ok(self.0.init_token(token.slot, &AuthPin::from(so_pin.as_str()), label)?)
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

    /// What the token says by now of earlier attempts to log in.
    ///
    /// # Errors
    /// `C_GetTokenInfo` failed.
    pub fn attempts(&self, token: &Token) -> Result<Attempts, Pkcs11Error> {
        Ok(Attempts::of(&self.0.get_token_info(token.slot)?))
    }

    /// Opens a read-write session and logs the user in: exactly one attempt.
    ///
    /// # Errors
    /// The PIN is refused ([`Pkcs11Error::is_pin_refusal`]), or anything else.
    pub fn login(&self, token: &Token, pin: &Pin) -> Result<Session, Pkcs11Error> {
        let session = self.session(token)?;
        session.login(pin)?;
        Ok(session)
    }

    /// Opens a read-write session. Whether somebody is logged in depends on the process's other sessions.
    ///
    /// # Errors
    /// `C_OpenSession` failed.
    pub fn session(&self, token: &Token) -> Result<Session, Pkcs11Error> {
        Ok(Session::new(self.0.open_rw_session(token.slot)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_named_as_in_the_standard() {
        for (code, text, is_pin_refusal) in [
            (RvError::PinIncorrect, "C_Login: CKR_PIN_INCORRECT", true),
            (RvError::PinLocked, "C_Login: CKR_PIN_LOCKED", true),
            (RvError::PinExpired, "C_Login: CKR_PIN_EXPIRED", true),
            (RvError::PinLenRange, "C_Login: CKR_PIN_LEN_RANGE", true),
            (RvError::DeviceRemoved, "C_Login: CKR_DEVICE_REMOVED", false),
            (RvError::UserPinNotInitialized, "C_Login: CKR_USER_PIN_NOT_INITIALIZED", false),
            (RvError::VendorDefined(0x8000_0383), "C_Login: CKR_VENDOR_DEFINED+0x383", false),
            (RvError::UnknownErrorCode(0x1ff), "C_Login: 0x1ff, which is no return code of PKCS #11", false),
        ] {
            let error = Pkcs11Error::from(Error::Pkcs11(code, Function::Login));
            assert_eq!(error.to_string(), text);
            assert_eq!(error.is_pin_refusal(), is_pin_refusal, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_gone_if_others_are_found_and_not_it() {
        let general = || Pkcs11Error::from(Error::Pkcs11(RvError::GeneralError, Function::GetAttributeValue));
        let (it, other) = (7, 8);
        for (found, is_gone) in [
            (Ok(vec![other]), true),
            (Ok(vec![other, it]), false),
            // Of a token that is away nothing is found.
            (Ok(vec![]), false),
            (Err(general()), false),
        ] {
            let words = format!("{found:?}");
            assert_eq!(general().of_object(&it, found).is_gone(), is_gone, "{words}");
        }
    }

    #[test]
    fn a_module_that_takes_no_such_key_has_not_failed() {
        for (code, is_key_refusal) in [
            (RvError::KeySizeRange, true),
            (RvError::AttributeValueInvalid, true),
            (RvError::CurveNotSupported, true),
            (RvError::TemplateInconsistent, true),
            (RvError::DeviceRemoved, false),
            (RvError::SessionHandleInvalid, false),
            (RvError::GeneralError, false),
        ] {
            let error = Pkcs11Error::from(Error::Pkcs11(code, Function::CreateObject));
            assert_eq!(error.is_key_refusal(), is_key_refusal, "{error}");
        }
    }
}
