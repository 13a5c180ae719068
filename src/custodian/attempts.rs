//! Whether a PIN may be tried: a token counts the attempts that it refuses, and one too many locks it for good.

use super::pkcs11::{Attempts, Module, Token};
use super::{EXIT_PIN_REFUSED, StartFailure};
use crate::hsm::messages::{Boot, DownCause, PinFile};

/// Looks at what the token says of earlier attempts, right before one.
///
/// # Errors
/// The PIN is not to be tried, which is final; or the token says now this and now that.
pub(super) fn may_log_in(
    module: &Module,
    token: &Token,
    boot: &Boot,
    pin_file: PinFile,
) -> Result<(), StartFailure> {
    let label = &boot.token_label;
    let unclear = |line: String| StartFailure::new(line).of(DownCause::Login);
    // A second time: one bit decides whether the token is given up.
    let attempts = module.attempts(token).map_err(|error| {
        unclear(format!("token {label} does not say whether a PIN may be tried ({error})"))
    })?;
    let reason = match reason(attempts, boot.pin_cut_off == Some(pin_file)) {
        None => return Ok(()),
        Some(_) if attempts != token.attempts => {
            return Err(unclear(format!("token {label} says now this and now that of its user PIN")));
        }
        Some(reason) => reason,
    };
    let (module, pin_file) = (boot.module.display(), boot.pin_file.display());
    let todo = match attempts {
        Attempts::Locked => {
            "its security officer has to set it anew (`pkcs11-tool --login --login-type so --init-pin`)"
        }
        Attempts::Unspent | Attempts::Refused | Attempts::LastOne => {
            "log in with the right one yourself, which takes the count back (`pkcs11-tool --login --list-objects`), and see \
             that it is the one in the file"
        }
    };
    let line = format!(
        "token {label} (module {module}) {reason}: the one in {pin_file} is not tried; {todo}, then write that file again, \
         with the same PIN if it is right, and start hsm-authd if it has ended"
    );
    Err(StartFailure { line, cause: DownCause::PinRefused, exit: EXIT_PIN_REFUSED })
}

/// Why it is not to be tried; `cut_off`: an earlier attempt with it did not hear what the token said.
fn reason(attempts: Attempts, cut_off: bool) -> Option<&'static str> {
    match attempts {
        Attempts::Locked => Some("says that its user PIN is locked"),
        Attempts::LastOne => Some("says that one more wrong user PIN locks it"),
        Attempts::Refused if cut_off => {
            Some("says that it has refused a user PIN since, and the last attempt was cut off")
        }
        Attempts::Refused | Attempts::Unspent => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_tried_as_long_as_that_locks_nothing_and_is_not_what_was_refused() {
        use Attempts::{LastOne, Locked, Refused, Unspent};
        for (attempts, cut_off, is_tried) in [
            (Unspent, false, true),
            (Unspent, true, true),
            (Refused, false, true),
            (Refused, true, false),
            (LastOne, false, false),
            (Locked, false, false),
        ] {
            assert_eq!(reason(attempts, cut_off).is_none(), is_tried, "{attempts:?}, {cut_off}");
        }
    }
}
