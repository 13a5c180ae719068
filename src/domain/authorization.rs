//! Authorizing a device for an account (seed C, S100 and S200): by SMS both ways, or by what the bank has checked; and
//! always by a signature of the device.

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::account::AccountRef;
use super::caller::Tenant;
use super::enc::enc;
use super::id::CredentialId;
use super::otp::{Digits, Otp, modulo};
use super::rolling::Evidence;
use super::time::{Deadline, Now, rfc3339};

/// How long an authorization can be completed, in seconds.
pub const LIFETIME_S: u32 = 5 * 60;
/// How many wrong attempts end it.
pub const ATTEMPTS_MAX: u8 = 3;

/// The row of an authorization that is under way: at most one a device. Gone when it is completed. In sealed rows: its
/// fields never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authorization {
    /// The device.
    pub credential: CredentialId,
    /// The tenant it belongs to.
    pub tenant: Tenant,
    /// The account that the device is to speak for.
    pub account: AccountRef,
    /// 1 when made, one more with each change.
    pub version: u64,
    /// How the user shows who he is.
    pub means: Means,
    /// 32 bytes from the HSM: no two authorizations are alike.
    pub nonce: [u8; 32],
    /// Until when it can be completed, a whole second.
    pub expires: Deadline,
    /// Whether the uplink message has come.
    pub uplink_seen: bool,
    /// How many wrong attempts end it.
    pub attempts_left: u8,
}

/// How the user shows who he is. In sealed rows: variants go to the end, their fields never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Means {
    /// By a message to this terminal, and one from it.
    Sms {
        /// The terminal.
        terminal: CredentialId,
    },
    /// By a password that the bank has checked.
    Password {
        /// The bank's reference of that.
        evidence: Evidence,
    },
}

/// Which way a code of an authorization by SMS goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the terminal, by SMS; the user enters it on the device.
    Downlink,
    /// Shown on the device; the user sends it from the terminal.
    Uplink,
}

/// Why an authorization goes no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halt {
    /// Its time or its attempts are used up: a new one has to be begun.
    Over,
    /// Whether its time is over depends on a clock that stepped.
    ClockUntrusted,
}

impl Authorization {
    /// Until when, RFC 3339 in UTC.
    pub fn expires_at(&self) -> String {
        rfc3339(self.expires.unix_ms())
    }

    /// The nonce as it is signed.
    pub fn nonce_hex(&self) -> String {
        HEXLOWER.encode(&self.nonce)
    }

    /// The terminal, of one by SMS.
    pub fn terminal(&self) -> Option<CredentialId> {
        match self.means {
            Means::Sms { terminal } => Some(terminal),
            Means::Password { .. } => None,
        }
    }

    /// The bytes that the device signs; the terminal is empty where there is none.
    pub fn signing_input(&self) -> Vec<u8> {
        let terminal = self.terminal().map(|id| id.to_string()).unwrap_or_default();
        enc(&[
            b"hsm-authd/authorization/v1",
            self.tenant.as_str().as_bytes(),
            self.account.as_str().as_bytes(),
            self.credential.to_string().as_bytes(),
            terminal.as_bytes(),
            self.nonce_hex().as_bytes(),
            self.expires_at().as_bytes(),
        ])
    }

    /// What the code that goes this way is the HMAC-SHA-256 of, under the terminal's secret.
    pub fn code_message(&self, way: Way) -> Vec<u8> {
        let purpose: &[u8] = match way {
            Way::Downlink => b"hsm-authd/authorization/downlink/v1",
            Way::Uplink => b"hsm-authd/authorization/uplink/v1",
        };
        enc(&[
            purpose,
            self.tenant.as_str().as_bytes(),
            self.account.as_str().as_bytes(),
            self.credential.to_string().as_bytes(),
            self.nonce_hex().as_bytes(),
            self.expires_at().as_bytes(),
        ])
    }

    /// The code of that HMAC: 6 digits. `None` if it is none.
    pub fn code(mac: &[u8]) -> Option<Otp> {
        let digits = Digits::default();
        modulo(mac, digits).map(|number| Otp::of_number(number, digits))
    }

    /// Whether it can still be completed.
    ///
    /// # Errors
    /// Why not.
    pub fn open(&self, now: &Now) -> Result<(), Halt> {
        if self.attempts_left == 0 {
            return Err(Halt::Over);
        }
        match (now.trusted, self.expires.left_ms(now)) {
            (false, _) => Err(Halt::ClockUntrusted),
            (true, 0) => Err(Halt::Over),
            (true, _) => Ok(()),
        }
    }

    /// After its uplink message.
    pub fn seen(&self) -> Self {
        Self { version: self.version.saturating_add(1), uplink_seen: true, ..self.clone() }
    }

    /// After a wrong attempt.
    pub fn missed(&self) -> Self {
        let attempts_left = self.attempts_left.saturating_sub(1);
        Self { version: self.version.saturating_add(1), attempts_left, ..self.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::presentation::tests::{device, vector};
    use super::*;
    use crate::domain::transaction::{self, tests::at};
    use data_encoding::BASE64URL_NOPAD;

    fn authorization() -> Authorization {
        Authorization {
            credential: device(),
            tenant: "bank-a".to_owned().try_into().unwrap(),
            account: "acct-0001".to_owned().try_into().unwrap(),
            version: 1,
            means: Means::Sms { terminal: CredentialId::from_random(1u128.to_be_bytes()) },
            nonce: [0x30; 32],
            expires: transaction::deadline(&at(1_893_456_000_000), 300),
            uplink_seen: false,
            attempts_left: ATTEMPTS_MAX,
        }
    }

    #[test]
    fn what_devices_sign_is_what_a_second_implementation_signs() {
        assert_eq!(BASE64URL_NOPAD.encode(&authorization().signing_input()), vector("authorization_b64u"));
        let evidence = "case 7".to_owned().try_into().unwrap();
        let by_password = Authorization { means: Means::Password { evidence }, ..authorization() };
        let bytes = by_password.signing_input();
        let shorter = authorization().signing_input().len() - "cred_00000000000000000000000001".len();
        assert_eq!(bytes.len(), shorter, "the terminal is empty");
    }

    /// Each field is in what is signed, and but for the terminal in what the codes are made of.
    #[test]
    fn no_two_authorizations_share_what_is_signed_or_a_code() {
        let plain = authorization();
        let others = [
            Authorization { credential: CredentialId::from_random([9; 16]), ..plain.clone() },
            Authorization { tenant: "bank-b".to_owned().try_into().unwrap(), ..plain.clone() },
            Authorization { account: "acct-0002".to_owned().try_into().unwrap(), ..plain.clone() },
            Authorization { nonce: [0x31; 32], ..plain.clone() },
            Authorization { expires: transaction::deadline(&at(1_893_456_001_000), 300), ..plain.clone() },
        ];
        for other in &others {
            assert_ne!(other.signing_input(), plain.signing_input());
            for way in [Way::Downlink, Way::Uplink] {
                assert_ne!(other.code_message(way), plain.code_message(way));
            }
        }
        let terminal = Means::Sms { terminal: CredentialId::from_random([9; 16]) };
        assert_ne!(Authorization { means: terminal, ..plain.clone() }.signing_input(), plain.signing_input());
        assert_ne!(plain.code_message(Way::Downlink), plain.code_message(Way::Uplink));
    }

    #[test]
    fn codes_are_six_digits_of_the_first_eight_bytes() {
        let known = Otp::parse("551615".into()).unwrap();
        let code = |mac: &[u8]| Authorization::code(mac).map(|code| code.matches(&known));
        let mut mac = [0xff; 32];
        assert_eq!(code(&mac), Some(true), "18446744073709551615");
        mac[31] = 0;
        assert_eq!(code(&mac), Some(true));
        mac[7] = 0xfe;
        assert_eq!(code(&mac), Some(false));
        assert!(Authorization::code(&[0; 32]).unwrap().matches(&Otp::parse("000000".into()).unwrap()));
        assert!(Authorization::code(&[0; 7]).is_none());
    }

    #[test]
    fn it_is_open_for_300_seconds_by_both_clocks_and_for_3_attempts() {
        let begun = 1_893_456_000_000;
        let plain = authorization();
        assert_eq!(plain.open(&at(begun + 299_999)), Ok(()));
        for now in [
            at(begun + 300_000),
            Now { unix_ms: begun, ..at(begun + 300_000) },
            Now { boot_ms: begun, ..at(begun + 300_000) },
        ] {
            assert_eq!(plain.open(&now), Err(Halt::Over));
        }
        assert_eq!(plain.open(&Now { trusted: false, ..at(begun) }), Err(Halt::ClockUntrusted));
        let (mut left, mut attempt) = (ATTEMPTS_MAX, plain.clone());
        while left > 0 {
            assert_eq!(attempt.open(&at(begun)), Ok(()));
            let missed = attempt.missed();
            left -= 1;
            assert_eq!((missed.attempts_left, missed.version), (left, attempt.version + 1));
            attempt = missed;
        }
        assert_eq!(attempt.open(&at(begun)), Err(Halt::Over));
        assert_eq!(attempt.missed().attempts_left, 0);
        let seen = plain.seen();
        assert!(seen.uplink_seen && seen.version == 2 && seen.attempts_left == plain.attempts_left);
    }
}
