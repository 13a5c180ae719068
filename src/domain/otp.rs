//! One-time passwords: RFC 4226 (HOTP) and RFC 6238 (TOTP), without the HMAC, which is the HSM's.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::verification::Factor;

/// The first counter that does not exist (it has to fit a signed 64-bit column, too).
pub const COUNTER_END: u64 = 1 << 63;

/// How long a seed that comes in may be: 128 bits (RFC 4226, section 4, R6) up to a block of SHA-1 and SHA-256,
/// to which zero-padding changes no HMAC.
pub const SEED_BYTES: RangeInclusive<usize> = 16..=64;

/// The hash under the HMAC (RFC 6238, section 1.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Algorithm {
    /// HMAC-SHA-1, RFC 4226's own.
    #[default]
    #[serde(rename = "SHA1")]
    Sha1,
    /// HMAC-SHA-256.
    #[serde(rename = "SHA256")]
    Sha256,
    /// HMAC-SHA-512.
    #[serde(rename = "SHA512")]
    Sha512,
}

impl Algorithm {
    /// Length of its output, and of a seed generated for it (RFC 4226, section 4, R6; RFC 6238,
    /// section 3, R6), in bytes.
    pub fn output_bytes(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// As in a JSON body and in an `otpauth` URI.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA1",
            Self::Sha256 => "SHA256",
            Self::Sha512 => "SHA512",
        }
    }
}

/// What a number of digits must be.
pub const DIGITS_RULE: &str = "digits must be 6 to 10";

/// What it must be for HOTP and TOTP.
pub const HOTP_DIGITS_RULE: &str = "digits must be 6, 7 or 8";

/// How many digits a code has: 6 to 10 (RFC 6287, section 6.2), of which HOTP and TOTP use 6, 7 and 8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Digits(u8);

impl Default for Digits {
    fn default() -> Self {
        Self(6)
    }
}

impl Digits {
    /// For HOTP and TOTP.
    ///
    /// # Errors
    /// [`HOTP_DIGITS_RULE`].
    pub fn for_hotp(digits: u8) -> Result<Self, &'static str> {
        if (6..=8).contains(&digits) { Ok(Self(digits)) } else { Err(HOTP_DIGITS_RULE) }
    }
}

impl Digits {
    /// One more than the largest code.
    pub fn modulus(self) -> u64 {
        10u64.pow(self.0.into())
    }
}

impl TryFrom<u8> for Digits {
    type Error = &'static str;
    fn try_from(digits: u8) -> Result<Self, Self::Error> {
        if (6..=10).contains(&digits) { Ok(Self(digits)) } else { Err(DIGITS_RULE) }
    }
}

impl From<Digits> for u8 {
    fn from(digits: Digits) -> u8 {
        digits.0
    }
}

/// A one-time password: decimal digits, as submitted or as expected. Secret until it is used.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct Otp(String);

impl Otp {
    /// `None` unless `text` is 6 to 10 ASCII digits.
    pub fn parse(text: String) -> Option<Self> {
        let mut otp = Self(text);
        if (6..=10).contains(&otp.0.len()) && otp.0.bytes().all(|b| b.is_ascii_digit()) {
            return Some(otp);
        }
        otp.zeroize();
        None
    }

    /// A number with zeros before it.
    pub fn of_number(number: u64, digits: Digits) -> Self {
        Self(format!("{number:0width$}", width = usize::from(digits.0)))
    }

    /// The number that its digits are.
    pub fn number(&self) -> u64 {
        let next = |number: u64, digit: u8| {
            number.wrapping_mul(10).wrapping_add(u64::from(digit.wrapping_sub(b'0')))
        };
        self.0.bytes().fold(0, next)
    }

    /// Declassifies: the caller sees the digits. Every use says why it may.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// One more owner, for one more message to a custodian.
    pub fn duplicate(&self) -> Self {
        Self(self.0.clone())
    }

    /// Whether it has as many digits as the credential's codes have.
    pub fn has(&self, digits: Digits) -> bool {
        self.0.len() == usize::from(digits.0)
    }

    /// Constant-time in the digits (their number is no secret).
    pub fn matches(&self, other: &Self) -> bool {
        self.0.as_bytes().ct_eq(other.0.as_bytes()).into()
    }
}

/// The code of an HMAC: RFC 4226, section 5.3, for any of the three hashes (RFC 6238, section 1.2).
///
/// It comes from 31 bits, which never fill 10 digits: the first of 10 is 0, 1 or 2.
///
/// `None` if `mac` is not the output of such an HMAC.
pub fn truncate(mac: &[u8], digits: Digits) -> Option<Otp> {
    let offset = usize::from(mac.last()? & 0x0f);
    let word: [u8; 4] = mac.get(offset..offset.checked_add(4)?)?.try_into().ok()?;
    let code = u64::from(u32::from_be_bytes(word) & 0x7fff_ffff) % digits.modulus();
    Some(Otp::of_number(code, digits))
}

/// The first 8 bytes of an HMAC as a number, the highest byte first, modulo 10^digits: the code of what is no RFC's, a
/// number yet ([`Otp::of_number`]).
///
/// `None` if there are not as many.
pub fn modulo(mac: &[u8], digits: Digits) -> Option<u64> {
    Some(u64::from_be_bytes(*mac.first_chunk()?) % digits.modulus())
}

/// What moves from code to code (RFC 4226's counter; RFC 6238's time step), and how far apart the
/// token and the appliance may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MovingFactor {
    /// A counter that each code consumes.
    Hotp {
        /// How many codes beyond the expected one are tried (0..=100).
        look_ahead: u8,
    },
    /// The time.
    Totp {
        /// Seconds a code lives (5..=600).
        period_s: u16,
        /// Steps tried on either side of the present one (0..=2).
        skew_steps: u8,
    },
}

impl MovingFactor {
    /// The factor of counter or time step `number`.
    pub fn factor(self, number: u64) -> Factor {
        match self {
            Self::Hotp { .. } => Factor { counter: Some(number), time_step: None },
            Self::Totp { .. } => Factor { counter: None, time_step: Some(number) },
        }
    }
}

/// RFC 6238, section 4.2: the number of whole periods since 1970.
pub fn time_step(unix_ms: u64, period_s: u32) -> u64 {
    unix_ms / 1_000 / u64::from(period_s.max(1))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use hmac::{Hmac, KeyInit, Mac};
    use serde_json::Value;

    pub fn hmac_of(algorithm: Algorithm, key: &[u8], message: &[u8]) -> Vec<u8> {
        macro_rules! mac {
            ($hash:ty) => {{
                let mut mac = Hmac::<$hash>::new_from_slice(key).unwrap();
                mac.update(message);
                mac.finalize().into_bytes().to_vec()
            }};
        }
        match algorithm {
            Algorithm::Sha1 => mac!(sha1::Sha1),
            Algorithm::Sha256 => mac!(sha2::Sha256),
            Algorithm::Sha512 => mac!(sha2::Sha512),
        }
    }

    fn check(file: &str, factor_of: impl Fn(&Value) -> u64) -> usize {
        let document: Value = serde_json::from_str(file).unwrap();
        let vectors = document["vectors"].as_array().unwrap();
        for vector in vectors {
            let key = data_encoding::HEXLOWER.decode(vector["key_hex"].as_str().unwrap().as_bytes()).unwrap();
            let algorithm: Algorithm = serde_json::from_value(vector["algorithm"].clone()).unwrap();
            let digits = Digits::try_from(vector["digits"].as_u64().unwrap() as u8).unwrap();
            let expected = Otp::parse(vector["expected"].as_str().unwrap().to_owned()).unwrap();
            let mac = hmac_of(algorithm, &key, &factor_of(vector).to_be_bytes());
            assert!(truncate(&mac, digits).unwrap().matches(&expected), "{vector}");
        }
        vectors.len()
    }

    #[test]
    fn rfc_4226_appendix_d() {
        let count = check(include_str!("../../tests/vectors/hotp.json"), |v| v["counter"].as_u64().unwrap());
        assert_eq!(count, 10);
    }

    #[test]
    fn rfc_6238_appendix_b() {
        let count = check(include_str!("../../tests/vectors/totp.json"), |v| {
            time_step(v["unix_time"].as_u64().unwrap() * 1_000, v["period"].as_u64().unwrap() as u32)
        });
        assert_eq!(count, 18);
    }

    #[test]
    fn truncation_refuses_what_is_no_hmac() {
        assert!(truncate(&[], Digits::default()).is_none());
        assert!(truncate(&[0x0f; 8], Digits::default()).is_none());
        assert!(truncate(&[0x0f; 19], Digits::default()).is_some());
    }

    #[test]
    fn codes_of_ten_digits_are_31_bits() {
        for (word, digits, code) in [
            ([0xff; 4], 10, "2147483647"),
            ([0xff; 4], 9, "147483647"),
            ([0xff; 4], 6, "483647"),
            ([0, 0, 0, 7], 10, "0000000007"),
            ([0x3b, 0x9a, 0xca, 0x00], 10, "1000000000"),
            ([0x3b, 0x9a, 0xca, 0x00], 9, "000000000"),
        ] {
            // The last byte is the offset: 0.
            let mac = [word.as_slice(), &[0; 16]].concat();
            let expected = Otp::parse(code.to_owned()).unwrap();
            assert!(truncate(&mac, Digits::try_from(digits).unwrap()).unwrap().matches(&expected), "{code}");
        }
    }

    #[test]
    fn hotp_and_totp_use_fewer_digits_than_there_are() {
        for digits in 0..=u8::MAX {
            let (any, hotp) = (Digits::try_from(digits), Digits::for_hotp(digits));
            assert_eq!(
                any.map(u8::from),
                if (6..=10).contains(&digits) { Ok(digits) } else { Err(DIGITS_RULE) }
            );
            let expected = if (6..=8).contains(&digits) { Ok(digits) } else { Err(HOTP_DIGITS_RULE) };
            assert_eq!(hotp.map(u8::from), expected);
        }
    }

    #[test]
    fn an_otp_is_six_to_ten_digits() {
        for good in ["000000", "1234567", "99999999", "123456789", "9999999999"] {
            assert!(Otp::parse(good.to_owned()).is_some(), "{good}");
        }
        for bad in ["", "12345", "12345678901", "12345a", "12 345", "+12345", "\u{661}\u{662}\u{663}"] {
            assert!(Otp::parse(bad.to_owned()).is_none(), "{bad}");
        }
    }

    #[test]
    fn codes_differ_in_any_digit_or_in_length() {
        let otp = |text: &str| Otp::parse(text.to_owned()).unwrap();
        assert!(otp("012345").matches(&otp("012345")));
        assert!(!otp("012345").matches(&otp("012346")));
        assert!(!otp("012345").matches(&otp("0123450")));
        assert!(otp("012345").has(Digits::default()) && !otp("0123456").has(Digits::default()));
    }
}
