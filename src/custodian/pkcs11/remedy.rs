//! What helps against each return code: the one table of them (`docs/hsm-faults.md`).
//!
//! The codes are those of PKCS #11 2.40, section 5.1, and what two modules were seen to mean by them. A code says little by
//! itself: modules answer a lost login with that of a lost object, or with that of nothing known. So what is mild is
//! tried first, and the next harder remedy once it did not help ([`crate::custodian::connection`]).

use cryptoki::error::{Error, RvError};

use super::{Cause, Pkcs11Error};
use crate::hsm::messages::Remedy;

impl Pkcs11Error {
    /// What is to be tried against it.
    pub fn remedy(&self) -> Remedy {
        match &self.0 {
            Cause::Returned(Error::Pkcs11(code, _)) => remedy(*code).0,
            // The binding found no such function, or could not read what the module wrote; or the module lied.
            Cause::Returned(_)
            | Cause::Attribute(_)
            | Cause::Length(_)
            | Cause::Lie(_)
            | Cause::Kernel(_) => Remedy::NewProcess,
            Cause::Stale => Remedy::Rebuild,
        }
    }

    /// The same where nothing from outside was handed in: then it cannot be the request that is wrong.
    pub fn healing(&self) -> Remedy {
        match self.remedy() {
            Remedy::Refuse => Remedy::NewSession,
            // What may have been made goes with its session: it may be a secret that may leave.
            Remedy::Repeat if self.changes_objects() => Remedy::NewSession,
            remedy => remedy,
        }
    }
}

/// The remedy, and why it is that.
pub(super) fn remedy(code: RvError) -> (Remedy, &'static str) {
    use Remedy::{GiveUp, NewProcess, NewSession, Rebuild, Refuse, Repeat};
    match code {
        // The session, and what was begun in it.
        RvError::SessionClosed => (NewSession, "it was closed while the call ran"),
        RvError::SessionHandleInvalid => (NewSession, "it is gone; module and process may be well"),
        RvError::OperationActive => {
            (NewSession, "one was begun and left, and no call of version 2.40 takes it back")
        }
        RvError::OperationNotInitialized => {
            (NewSession, "somebody else has this session, or the beginning lied")
        }
        RvError::Cancel | RvError::FunctionCanceled => {
            (NewSession, "only a callback could, and none is given: the module is confused")
        }
        RvError::DeviceError => (NewSession, "network HSMs say it of a connection that broke"),
        RvError::VendorDefined(_) | RvError::UnknownErrorCode(_) => {
            (NewSession, "nobody can know; network HSMs say such of lost connections")
        }
        RvError::SessionCount => {
            (NewSession, "others hold them, such as ours that died, until the HSM notices")
        }
        RvError::BufferTooSmall => (NewSession, "the operation goes on, and the binding gives it up"),

        // The login, and what it makes visible.
        RvError::UserNotLoggedIn => {
            (NewSession, "which tells whether it is so: then it takes another process")
        }
        RvError::ObjectHandleInvalid => (
            Rebuild,
            "SoftHSM says it after a logout and after the token's loss, as of an object that is gone",
        ),
        RvError::KeyHandleInvalid => (Rebuild, "the standard's word for what SoftHSM says of any object"),
        RvError::UnwrappingKeyHandleInvalid | RvError::WrappingKeyHandleInvalid => {
            (Rebuild, "SoftHSM says it of a session's copy after a logout")
        }
        RvError::KeyTypeInconsistent
        | RvError::KeyFunctionNotPermitted
        | RvError::UnwrappingKeySizeRange
        | RvError::UnwrappingKeyTypeInconsistent
        | RvError::WrappingKeySizeRange
        | RvError::WrappingKeyTypeInconsistent
        | RvError::KeyNotWrappable
        | RvError::KeyUnextractable => {
            (Rebuild, "the key was tried at the start: another object has its handle")
        }
        RvError::MechanismInvalid => {
            (Rebuild, "it was there at the start: the key behind the handle is for another one")
        }

        // Nothing is known: the same may do, and what is harder is tried after it.
        RvError::FunctionFailed => {
            (Repeat, "the standard: the session may be well, and the call be repeated")
        }
        RvError::GeneralError => (
            Repeat,
            "Kryoptic says it of a lost login and of an object that is gone, SoftHSM of a wrong blob",
        ),
        RvError::ExceededMaxIterations => (Repeat, "a search for a prime that was in vain"),
        RvError::FunctionRejected => (Repeat, "a policy of the HSM, or somebody at it, refused this call"),

        // The process.
        RvError::HostMemory => (NewProcess, "a fresh process has some; SoftHSM leaks"),
        RvError::DeviceMemory => (NewProcess, "session objects fill it, and they end with the process"),
        RvError::SlotIdInvalid => (NewProcess, "slots move, and most modules list them when they begin"),
        RvError::DeviceRemoved | RvError::TokenNotPresent | RvError::TokenNotRecognized => {
            (NewProcess, "all sessions are gone, and SoftHSM sees a token again in a new process only")
        }
        RvError::CryptokiNotInitialized => {
            (NewProcess, "somebody ended the module under us, or its beginning lied")
        }
        RvError::CryptokiAlreadyInitialized => (NewProcess, "it was not by us"),
        RvError::MutexBad | RvError::MutexNotLocked => (NewProcess, "the module's own locks are broken"),
        RvError::UserAnotherAlreadyLoggedIn => (NewProcess, "in this process nobody else may log in"),
        RvError::UserTooManyTypes => (NewProcess, "another application's login holds the token"),
        RvError::LibraryLoadFailed => (NewProcess, "of a library that the module needs"),
        RvError::FipsSelfTestFailed => {
            (NewProcess, "the module has shut itself; a fresh one tests itself anew")
        }

        // What was asked for cannot be: a key, a blob or a value from outside, or a mistake of ours.
        RvError::ArgumentsBad
        | RvError::ActionProhibited
        | RvError::AttributeReadOnly
        | RvError::AttributeSensitive
        | RvError::AttributeTypeInvalid
        | RvError::AttributeValueInvalid
        | RvError::CurveNotSupported
        | RvError::DataInvalid
        | RvError::DataLenRange
        | RvError::DomainParamsInvalid
        | RvError::EncryptedDataInvalid
        | RvError::EncryptedDataLenRange
        | RvError::KeySizeRange
        | RvError::MechanismParamInvalid
        | RvError::PublicKeyInvalid
        | RvError::TemplateIncomplete
        | RvError::TemplateInconsistent
        | RvError::WrappedKeyInvalid
        | RvError::WrappedKeyLenRange => (Refuse, "it would be as wrong again"),
        RvError::SignatureInvalid | RvError::SignatureLenRange => (Refuse, "that is an answer"),
        RvError::TokenWriteProtected => (Refuse, "what makes no objects goes on"),
        RvError::SessionReadOnly | RvError::SessionParallelNotSupported => (Refuse, "ours are not such"),
        RvError::SessionExists => (Refuse, "a token is made while nobody else has it open"),
        RvError::UserAlreadyLoggedIn => (Rebuild, "of a login it is what was wanted"),

        // Of functions that are not called.
        RvError::NoEvent
        | RvError::FunctionNotParallel
        | RvError::KeyNotNeeded
        | RvError::KeyChanged
        | RvError::KeyNeeded
        | RvError::KeyIndigestible
        | RvError::RandomSeedNotSupported
        | RvError::SavedStateInvalid
        | RvError::InformationSensitive
        | RvError::StateUnsaveable => (NewProcess, "of a function that is not called"),

        // Somebody has to look.
        RvError::PinIncorrect
        | RvError::PinInvalid
        | RvError::PinLenRange
        | RvError::PinExpired
        | RvError::PinLocked => (GiveUp, "each attempt counts, and a few lock the token"),
        RvError::PinTooWeak => (GiveUp, "the token wants another one"),
        RvError::UserPinNotInitialized => (GiveUp, "the token has no user PIN yet"),
        RvError::UserTypeInvalid => (GiveUp, "a module without users"),
        RvError::NewPinMode | RvError::NextOtp => (GiveUp, "a device that asks a human"),
        RvError::SessionReadOnlyExists | RvError::SessionReadWriteSoExists => {
            (GiveUp, "of a security officer's login, which is not made here")
        }
        RvError::NeedToCreateThreads | RvError::CantLock => {
            (GiveUp, "the module does not lock as it was told to")
        }
        RvError::FunctionNotSupported => (GiveUp, "it never will be"),
        RvError::RandomNoRng => (GiveUp, "an HSM without a generator"),
    }
}

#[cfg(test)]
mod tests {
    use cryptoki::error::Rv;

    use super::super::code_name;
    use super::*;

    /// Every code of the standard that the binding knows is below this.
    const CODES_END: u64 = 0x1000;

    fn words(remedy: Remedy) -> &'static str {
        match remedy {
            Remedy::Refuse => "none: the request is refused",
            Remedy::Repeat => "the same again, then another session",
            Remedy::Rebuild | Remedy::NewSession => "another session",
            Remedy::LogIn | Remedy::NewProcess => "another process",
            Remedy::GiveUp => "an operator",
        }
    }

    fn row(code: RvError, name: &str) -> String {
        let (remedy, why) = remedy(code);
        format!("| `{name}` | {} | {why} |", words(remedy))
    }

    #[test]
    fn the_documented_table_is_this_one() {
        let known = (1..CODES_END).filter_map(|number| match Rv::from(number) {
            Rv::Error(RvError::UnknownErrorCode(_)) | Rv::Ok => None,
            Rv::Error(code) => Some(row(code, &code_name(code))),
        });
        let besides = [
            row(RvError::VendorDefined(0x8000_0001), "CKR_VENDOR_DEFINED+0x..."),
            row(RvError::UnknownErrorCode(CODES_END), "any other"),
        ];
        let table = known.chain(besides).collect::<Vec<_>>().join("\n");
        let documented = include_str!("../../../docs/hsm-faults.md");
        let documented =
            documented.lines().filter(|line| line.starts_with("| `CKR_") || line.starts_with("| `any "));
        assert_eq!(
            documented.collect::<Vec<_>>().join("\n"),
            table,
            "docs/hsm-faults.md is to have:\n{table}\n"
        );
    }
}
