//! The question that a token is asked about a transaction: made of the digest of all its fields, so that the code
//! that answers it is worth nothing for another one.
//!
//! Two texts that [`question`] makes for one suite are one question to the HMAC only if they are one text, though
//! RFC 6287 pads them on the right ([`Challenge`]):
//! * `QH` and `QA`: all are of one length, `QH` in lower case, so zeros behind both leave them different.
//! * `QN`: the padding makes one of two integers that differ by a power of 16 as a factor. All of these have
//!   exactly `n` digits and do not begin with 0, and 16 times an integer of `n` digits has more of them.

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use sha2::{Digest, Sha256};

use super::{Challenge, ChallengeError, QuestionKind, Suite};

/// How many decimal digits 256 bits fill.
const DECIMAL_DIGITS: usize = 78;

/// The question about a transaction, as long as the suite says, as the user sees it and types it in. With D the
/// digest, as an integer with its highest byte first:
/// * `QHn`: the first n digits of D in lower-case hexadecimal;
/// * `QAn`: the first n characters of D and SHA-256(D) in base32;
/// * `QNn`: 10^(n-1) + (D mod 9 * 10^(n-1)), so that it never begins with 0.
pub fn question(suite: &Suite, digest: &[u8; 32]) -> String {
    let format = suite.question();
    let length = usize::from(format.length);
    match format.kind {
        QuestionKind::Hexadecimal => first(HEXLOWER.encode(digest), length),
        QuestionKind::Alphanumeric => {
            let hash: [u8; 32] = Sha256::digest(digest).into();
            first(BASE32_NOPAD.encode([*digest, hash].as_flattened()), length)
        }
        QuestionKind::Numeric => numeric(digest, length),
    }
}

impl Challenge {
    /// The [`question`] about a transaction, and the digest as the session where the suite has one.
    ///
    /// # Errors
    /// The suite's session is shorter than the digest's 32 bytes.
    pub fn of_transaction(suite: &Suite, digest: &[u8; 32]) -> Result<Self, ChallengeError> {
        let session = suite.session_bytes().map(|_| digest.as_slice());
        Self::new(suite, &question(suite, digest), session)
    }
}

fn first(mut text: String, length: usize) -> String {
    text.truncate(length);
    text
}

/// With D = h * 10^(n-1) + l, D mod 9 * 10^(n-1) is (h mod 9) * 10^(n-1) + l. So the first digit is
/// 1 + (h mod 9), where h mod 9 is that of the sum of h's digits, and the others are l's.
fn numeric(digest: &[u8; 32], length: usize) -> String {
    let decimal = decimal(digest);
    let (high, low) = decimal.split_at(DECIMAL_DIGITS.saturating_sub(length.saturating_sub(1)));
    let first = 1 + high.iter().map(|digit| u32::from(*digit)).sum::<u32>() % 9;
    let low = low.iter().map(|digit| u32::from(*digit));
    std::iter::once(first).chain(low).filter_map(|digit| char::from_digit(digit, 10)).collect()
}

/// The value of each decimal digit, the highest first.
fn decimal(digest: &[u8; 32]) -> [u8; DECIMAL_DIGITS] {
    let mut digits = [0; DECIMAL_DIGITS];
    for byte in digest {
        // Times 256, plus the byte. The carry stays below 256, as 9 * 256 + 255 is below 256 * 10.
        let mut carry = u16::from(*byte);
        for digit in digits.iter_mut().rev() {
            let value = u16::from(*digit) * 256 + carry;
            (*digit, carry) = ((value % 10) as u8, value / 10);
        }
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::super::suite::tests::suite;
    use super::*;
    use crate::domain::ocra::data_input;
    use crate::domain::otp::tests::hmac_of;
    use crate::domain::otp::{Algorithm, Otp, truncate};
    use proptest::prelude::*;
    use serde_json::Value;

    const KINDS: [char; 3] = ['H', 'A', 'N'];

    fn of(kind: char, length: u8) -> Suite {
        suite(&format!("OCRA-1:HOTP-SHA256-8:Q{kind}{length:02}"))
    }

    /// 32-bit limbs, the lowest first, and a long division: nothing of the above.
    fn by_division(digest: &[u8; 32], length: u8) -> String {
        let compare = |a: &[u32], b: &[u32]| a.iter().rev().cmp(b.iter().rev());
        let multiplied = |number: &[u32], factor: u64, plus: u64| {
            let mut carry = plus;
            let limbs = number.iter().map(|limb| {
                let value = u64::from(*limb) * factor + carry;
                carry = value >> 32;
                value as u32
            });
            limbs.collect::<Vec<_>>()
        };
        let one: Vec<u32> = std::iter::once(1).chain([0; 9]).collect();
        let least = (1..length).fold(one, |power, _| multiplied(&power, 10, 0));
        let modulus = multiplied(&least, 9, 0);
        let mut rest = vec![0; 10];
        for bit in digest.iter().flat_map(|byte| (0..8).rev().map(move |place| u64::from(byte >> place & 1)))
        {
            rest = multiplied(&rest, 2, bit);
            if compare(&rest, &modulus).is_ge() {
                let mut borrow = 0;
                for (limb, less) in rest.iter_mut().zip(&modulus) {
                    let value = i64::from(*limb) - i64::from(*less) + borrow;
                    (*limb, borrow) = (value as u32, value >> 32);
                }
            }
        }
        let mut carry = 0;
        for (limb, more) in rest.iter_mut().zip(&least) {
            let value = u64::from(*limb) + u64::from(*more) + carry;
            (*limb, carry) = (value as u32, value >> 32);
        }
        let mut digits = Vec::new();
        while rest.iter().any(|limb| *limb != 0) {
            let mut remainder = 0;
            for limb in rest.iter_mut().rev() {
                let value = (remainder << 32) + u64::from(*limb);
                (*limb, remainder) = ((value / 10) as u32, value % 10);
            }
            digits.push(char::from(b'0' + remainder as u8));
        }
        digits.iter().rev().collect()
    }

    #[test]
    fn questions_and_codes_are_those_of_a_second_implementation() {
        let document: Value =
            serde_json::from_str(include_str!("../../../tests/vectors/transaction.json")).unwrap();
        let hex = |text: &Value| HEXLOWER.decode(text.as_str().unwrap().as_bytes()).unwrap();
        let digest: [u8; 32] = hex(&document["transaction"]["digest"]).try_into().unwrap();
        let vectors = document["ocra"].as_array().unwrap();
        for vector in vectors {
            let suite = suite(vector["suite"].as_str().unwrap());
            assert_eq!(question(&suite, &digest), vector["question"].as_str().unwrap(), "{vector}");
            let challenge = Challenge::of_transaction(&suite, &digest).unwrap();
            let pin_hash = vector["pin"].as_str().map(Sha256::digest);
            assert!(matches!(suite.pin_hash(), None | Some(Algorithm::Sha256)));
            let (counter, step) = (vector["counter"].as_u64(), vector["time_steps"].as_u64());
            let message = data_input(&suite, &challenge, counter, pin_hash.as_deref(), step).unwrap();
            let mac = hmac_of(suite.algorithm(), &hex(&vector["key_hex"]), &message);
            let expected = Otp::parse(vector["expected"].as_str().unwrap().to_owned()).unwrap();
            assert!(truncate(&mac, suite.digits()).unwrap().matches(&expected), "{vector}");
        }
        assert_eq!(vectors.len(), 8);
    }

    #[test]
    fn the_least_and_the_greatest_digests_have_questions() {
        for length in 8..=64u8 {
            let n = usize::from(length);
            assert_eq!(question(&of('H', length), &[0; 32]), "0".repeat(n));
            assert_eq!(question(&of('N', length), &[0; 32]), format!("1{}", "0".repeat(n - 1)));
            assert!(question(&of('A', length), &[0; 32]).chars().take(51).all(|c| c == 'A'));
            assert_eq!(question(&of('N', length), &[255; 32]), by_division(&[255; 32], length));
        }
        // 2^256 - 1, as everybody knows it.
        let digits: String = decimal(&[255; 32]).iter().map(u8::to_string).collect();
        assert_eq!(digits, "115792089237316195423570985008687907853269984665640564039457584007913129639935");
    }

    #[test]
    fn leading_zeros_would_collide() {
        let entered = |text: &str| Challenge::new(&of('N', 8), text, None).unwrap();
        assert_eq!(entered("00000001"), entered("00000016"));
        assert_eq!(entered("00000001"), entered("00000256"));
        assert_ne!(entered("10000000"), entered("16000000"));
    }

    #[test]
    fn a_session_is_the_whole_digest() {
        let digest = [7; 32];
        let with = |session: &str| {
            Challenge::of_transaction(&suite(&format!("OCRA-1:HOTP-SHA256-8:QN08-S{session}")), &digest)
        };
        assert_eq!(with("032").unwrap().session(), digest);
        assert_eq!(with("064").unwrap().session(), [[0; 32], digest].as_flattened());
        assert_eq!(with("512").unwrap().session().len(), 512);
        for short in ["001", "031"] {
            assert!(matches!(with(short), Err(ChallengeError::Session(_))), "{short}");
        }
        assert!(Challenge::of_transaction(&of('N', 8), &digest).unwrap().session().is_empty());
    }

    proptest! {
        #[test]
        fn a_question_fits_its_suite(digest: [u8; 32], length in 8..=64u8) {
            for kind in KINDS {
                let suite = of(kind, length);
                let text = question(&suite, &digest);
                prop_assert_eq!(text.len(), usize::from(length));
                let of_text = Challenge::new(&suite, &text, None).unwrap();
                prop_assert_eq!(of_text, Challenge::of_transaction(&suite, &digest).unwrap());
                match kind {
                    'N' => {
                        prop_assert!(!text.starts_with('0'));
                        prop_assert_eq!(text, by_division(&digest, length));
                    }
                    'H' => prop_assert!(HEXLOWER.encode(&digest).starts_with(&text)),
                    _ => prop_assert!(text.bytes().all(|c| matches!(c, b'A'..=b'Z' | b'2'..=b'7'))),
                }
            }
        }

        /// Digests whose questions are likely to collide if any can: small, and of few different bytes.
        #[test]
        fn different_texts_are_different_questions(
            one in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(16)], 4),
            two in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(16)], 4),
            length in 8..=64u8,
            at_end: bool,
        ) {
            let digest = |few: &[u8]| {
                let mut digest = [0; 32];
                digest[if at_end { 28 } else { 0 }..][..4].copy_from_slice(few);
                digest
            };
            for kind in KINDS {
                let suite = of(kind, length);
                let asked = |few| (question(&suite, few), Challenge::of_transaction(&suite, few).unwrap());
                let (one, two) = (asked(&digest(&one)), asked(&digest(&two)));
                prop_assert_eq!(one.0 == two.0, one.1 == two.1, "{} {}", one.0, two.0);
            }
        }

        /// Any two of those that QN can make, at the distances at which the padding makes numbers one.
        #[test]
        fn no_two_numbers_of_one_length_are_one_question(text in "[1-9][0-9]{7}", shift in 1..4u32) {
            let suite = of('N', 8);
            let entered = |value: u64| Challenge::new(&suite, &value.to_string(), None);
            let value: u64 = text.parse().unwrap();
            prop_assert_eq!(entered(value).unwrap(), entered(value << (4 * shift)).unwrap());
            prop_assert!((value << (4 * shift)).to_string().len() > text.len());
        }
    }
}
