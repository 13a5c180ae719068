//! Challenges: what a token is asked, padded as it enters the HMAC (RFC 6287, section 5.1).

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::suite::{QuestionKind, Suite};

/// Length of a question in the DataInput.
const QUESTION_BYTES: usize = 128;

/// What a fingerprint begins with: it is equal to no hash that is made for anything else.
const DOMAIN: &[u8] = b"hsm-authd/ocra-challenge/v1";

/// A question, with the session where the suite has one, in the form in which they enter the HMAC.
///
/// That form is not the text. All of these are one challenge, and have one code:
/// * numeric questions whose integers differ by a power of 16 (`00000001`, `1` and `00000016`), because the
///   integer is written in hexadecimal and padded on the *right*;
/// * hexadecimal questions that differ in zeros at their end (`a`, `a0`) or in upper and lower case;
/// * sessions that differ in zero bytes at their beginning.
///
/// Alphanumeric questions differ if their texts do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// 4 * 32 bytes: serde knows no longer arrays.
    question: [[u8; 32]; QUESTION_BYTES / 32],
    /// Padded to the suite's length; empty if the suite has no session.
    session: Vec<u8>,
}

/// Which field of a challenge does not fit its suite, and what to mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeError {
    /// The question.
    #[error("question {0}")]
    Question(&'static str),
    /// The session.
    #[error("session {0}")]
    Session(&'static str),
}

impl Challenge {
    /// Of a question of 1 up to *twice* the suite's length, as in the mutual mode two parties' questions are
    /// one (RFC 6287, section 7.3); and of a session of 1 byte up to the suite's length, exactly if the suite
    /// has one.
    ///
    /// # Errors
    /// A length or a character that the suite does not have; a session missing, or given without need.
    pub fn new(suite: &Suite, question: &str, session: Option<&[u8]>) -> Result<Self, ChallengeError> {
        Ok(Self {
            question: padded_question(suite, question).map_err(ChallengeError::Question)?,
            session: padded_session(suite, session).map_err(ChallengeError::Session)?,
        })
    }

    /// SHA-256 over question, session and time step as they enter the HMAC, so that two spellings of one input
    /// are one: what an accepted input is remembered by, per credential. Inputs that the HMAC tells apart
    /// have different ones. Counter and PIN are not in it, and neither is the suite, of which a credential
    /// has one.
    pub fn fingerprint(&self, time_step: Option<u64>) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(self.question());
        // What has no fixed length says its length first: no two inputs are one sequence of bytes.
        hash.update((self.session.len() as u64).to_be_bytes());
        hash.update(&self.session);
        if let Some(step) = time_step {
            hash.update(step.to_be_bytes());
        }
        hash.finalize().into()
    }

    /// All 128 bytes of it.
    pub(super) fn question(&self) -> &[u8] {
        self.question.as_flattened()
    }

    /// Padded; empty if there is none.
    pub(super) fn session(&self) -> &[u8] {
        &self.session
    }
}

fn padded_question(suite: &Suite, text: &str) -> Result<[[u8; 32]; QUESTION_BYTES / 32], &'static str> {
    let format = suite.question();
    if !(1..=2 * usize::from(format.length)).contains(&text.len()) {
        return Err("must be 1 up to twice as many characters as the suite says");
    }
    let mut question = [[0; 32]; QUESTION_BYTES / 32];
    let bytes = question.as_flattened_mut().iter_mut();
    match format.kind {
        QuestionKind::Alphanumeric if text.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
            bytes.zip(text.bytes()).for_each(|(to, from)| *to = from);
        }
        QuestionKind::Alphanumeric => return Err("must be ASCII letters and digits"),
        QuestionKind::Numeric => {
            let digits = digits(text, 10).ok_or("must be decimal digits")?;
            bytes.zip(hexadecimal(&digits).chunks(2)).for_each(|(to, pair)| *to = byte(pair));
        }
        QuestionKind::Hexadecimal => {
            let digits = digits(text, 16).ok_or("must be hexadecimal digits")?;
            bytes.zip(digits.chunks(2)).for_each(|(to, pair)| *to = byte(pair));
        }
    }
    Ok(question)
}

/// The value of each digit.
fn digits(text: &str, radix: u32) -> Option<Vec<u8>> {
    text.chars().map(|c| c.to_digit(radix).and_then(|digit| u8::try_from(digit).ok())).collect()
}

/// An integer's hexadecimal digits, of its decimal ones; both the highest first. No leading zeros: of zero
/// itself none are left, which the padding makes the same as one.
fn hexadecimal(decimal: &[u8]) -> Vec<u8> {
    let mut lowest_first: Vec<u8> = Vec::new();
    for digit in decimal {
        // Times ten, plus the digit. The carry stays below 10, as 15 * 10 + 9 is below 16 * 10.
        let mut carry = *digit;
        for nibble in &mut lowest_first {
            let value = *nibble * 10 + carry;
            (*nibble, carry) = (value % 16, value / 16);
        }
        if carry > 0 {
            lowest_first.push(carry);
        }
    }
    lowest_first.reverse();
    lowest_first
}

/// Two hexadecimal digits, or one and the zero that it is padded with.
fn byte(pair: &[u8]) -> u8 {
    pair.first().map_or(0, |high| high << 4) | pair.get(1).copied().unwrap_or(0)
}

fn padded_session(suite: &Suite, session: Option<&[u8]>) -> Result<Vec<u8>, &'static str> {
    let (session, bytes) = match (session, suite.session_bytes()) {
        (None, None) => return Ok(Vec::new()),
        (None, Some(_)) => return Err("must be there: the suite has one"),
        (Some(_), None) => return Err("must not be there: the suite has none"),
        (Some([]), Some(_)) => return Err("must not be empty"),
        (Some(session), Some(bytes)) => (session, usize::from(bytes)),
    };
    let zeros = bytes.checked_sub(session.len()).ok_or("must not be longer than the suite says")?;
    Ok([&vec![0; zeros], session].concat())
}

#[cfg(test)]
mod tests {
    use super::super::suite::tests::suite;
    use super::*;
    use proptest::prelude::*;

    const NUMERIC: &str = "OCRA-1:HOTP-SHA256-8:QN08";
    const ALPHANUMERIC: &str = "OCRA-1:HOTP-SHA256-8:QA08";
    const HEXADECIMAL: &str = "OCRA-1:HOTP-SHA256-8:QH08";
    const SESSION: &str = "OCRA-1:HOTP-SHA256-8:QA08-S004";

    fn question(of: &str, text: &str) -> Challenge {
        Challenge::new(&suite(of), text, None).unwrap()
    }

    fn session(bytes: &[u8]) -> Challenge {
        Challenge::new(&suite(SESSION), "q", Some(bytes)).unwrap()
    }

    /// 128 bytes from hexadecimal digits, padded on the right, another way.
    fn from_hex(digits: &str) -> Vec<u8> {
        data_encoding::HEXLOWER.decode(format!("{digits:0<256}").as_bytes()).unwrap()
    }

    #[test]
    fn numeric_questions_are_integers_and_padded_on_the_right() {
        for (text, padded) in [
            ("0", ""),
            ("00000000", ""),
            ("1", "1"),
            ("9", "9"),
            ("10", "a"),
            ("15", "f"),
            ("16", "1"),
            ("255", "ff"),
            ("256", "1"),
            ("4660", "1234"),
            ("12345678", "bc614e"),
            ("99999999", "5f5e0ff"),
        ] {
            assert_eq!(question(NUMERIC, text).question(), from_hex(padded), "{text}");
        }
        assert_eq!(question(NUMERIC, "00000001"), question(NUMERIC, "00000016"), "as the RFC has it");
        assert_ne!(question(NUMERIC, "00000001"), question(NUMERIC, "00000017"));
        // 128 digits: 2^425 and one less.
        let long = |last: &str| {
            let text = "86645927941275464361825443254471365732388658605494267974077486894206915868925800719999200190\
                        754361815543475342543861619655442";
            question("OCRA-1:HOTP-SHA256-8:QN64", &format!("{text}{last}")).question().to_vec()
        };
        assert_eq!(long("432"), from_hex("2"));
        assert_eq!(long("431"), from_hex(&format!("1{}", "f".repeat(106))));
    }

    #[test]
    fn hexadecimal_questions_have_one_case_and_are_padded_on_the_right() {
        for (text, padded) in
            [("0", ""), ("a", "a"), ("abc", "abc"), ("0012", "0012"), ("DeadBeef", "deadbeef")]
        {
            assert_eq!(question(HEXADECIMAL, text).question(), from_hex(padded), "{text}");
        }
        assert_eq!(question(HEXADECIMAL, "ABCDEF"), question(HEXADECIMAL, "abcdef00"));
        assert_ne!(question(HEXADECIMAL, "a"), question(HEXADECIMAL, "0a"));
    }

    #[test]
    fn alphanumeric_questions_are_their_bytes() {
        let padded = question(ALPHANUMERIC, "aZ09").question().to_vec();
        assert_eq!(padded, [b"aZ09".as_slice(), &[0; 124]].concat());
        assert_ne!(question(ALPHANUMERIC, "a"), question(ALPHANUMERIC, "A"));
        assert_ne!(question(ALPHANUMERIC, "1"), question(ALPHANUMERIC, "10"));
        let longest = "z".repeat(128);
        assert_eq!(question("OCRA-1:HOTP-SHA256-8:QA64", &longest).question(), longest.as_bytes());
    }

    #[test]
    fn a_question_is_of_the_suites_characters_and_at_most_twice_its_length() {
        for (of, good, bad) in [
            (NUMERIC, '1', ["a", "1a", "-1", "+1", " 1", "1 ", "0x1", "1.0", "\u{661}", "\u{ff11}"]),
            (ALPHANUMERIC, 'z', ["a b", "a-", "_", "a\0", " a", "a\n", "\u{e4}", "\u{661}", "a:", "+"]),
            (HEXADECIMAL, 'f', ["g", "0x1", "-1", "+1", " 1", "1 ", "f\0", "\u{661}", "\u{ff21}", "a:"]),
        ] {
            let refused = |text: &str| match Challenge::new(&suite(of), text, None) {
                Err(ChallengeError::Question(reason)) => reason,
                other => panic!("{of} takes {text:?}: {other:?}"),
            };
            for text in bad {
                assert!(refused(text).starts_with("must be "), "{text:?}");
                assert!(!refused(text).contains("twice"), "{text:?}");
            }
            for length in [1, 8, 16] {
                assert!(Challenge::new(&suite(of), &good.to_string().repeat(length), None).is_ok());
            }
            for length in [0, 17, 100_000] {
                assert!(refused(&good.to_string().repeat(length)).contains("twice"), "{length}");
            }
        }
    }

    #[test]
    fn a_session_is_padded_on_the_left_and_there_exactly_if_the_suite_has_one() {
        assert_eq!(session(b"ab").session(), b"\0\0ab");
        assert_eq!(session(b"abcd").session(), b"abcd");
        assert_eq!(session(b"\0ab"), session(b"ab"));
        assert_ne!(session(b"ab\0"), session(b"ab"));
        let refused = |of: &str, session: Option<&[u8]>| match Challenge::new(&suite(of), "1", session) {
            Err(ChallengeError::Session(reason)) => reason,
            other => panic!("{of} takes {session:?}: {other:?}"),
        };
        assert_eq!(refused(SESSION, None), "must be there: the suite has one");
        assert_eq!(refused(SESSION, Some(b"")), "must not be empty");
        assert_eq!(refused(SESSION, Some(b"abcde")), "must not be longer than the suite says");
        assert_eq!(refused(NUMERIC, Some(b"a")), "must not be there: the suite has none");
        assert_eq!(refused(NUMERIC, Some(b"")), "must not be there: the suite has none");
    }

    #[test]
    fn a_challenge_arrives_as_it_left() {
        for challenge in [question(NUMERIC, "12345678"), session(b"ab")] {
            let bytes = postcard::to_allocvec(&challenge).unwrap();
            assert_eq!(postcard::from_bytes::<Challenge>(&bytes).unwrap(), challenge);
        }
    }

    #[test]
    fn a_fingerprint_tells_apart_what_the_hmac_tells_apart() {
        let plain = question(ALPHANUMERIC, "q");
        assert_ne!(plain.fingerprint(None), plain.fingerprint(Some(0)));
        assert_ne!(plain.fingerprint(Some(0)), plain.fingerprint(Some(1)));
        // Eight bytes of a session are no time step.
        let eight = Challenge::new(&suite("OCRA-1:HOTP-SHA256-8:QA08-S008"), "q", Some(&[1; 8])).unwrap();
        assert_ne!(eight.fingerprint(None), plain.fingerprint(Some(0x0101_0101_0101_0101)));
        // It is stored: what it is made of must stay.
        let hex = data_encoding::HEXLOWER.encode(&eight.fingerprint(Some(7)));
        assert_eq!(hex, "47772a0e6e8b5ac286a6e17d9a696e380690320112f1139f39f91527dd316ca1");
    }

    proptest! {
        #[test]
        fn integers_are_converted_as_u128_is(value: u128, zeros in 0..40usize) {
            let text = format!("{}{value}", "0".repeat(zeros));
            let challenge = question("OCRA-1:HOTP-SHA256-8:QN64", &text);
            prop_assert_eq!(challenge.question(), from_hex(&format!("{value:x}")));
        }

        /// Beyond u128: the hexadecimal digits, evaluated in two moduli, are the integer.
        #[test]
        fn long_integers_keep_their_value(text in "[1-9][0-9]{40,127}") {
            let decimal = digits(&text, 10).unwrap();
            let hexadecimal = hexadecimal(&decimal);
            for modulus in [0xffff_ffff_ffff_ffc5u128, 1_000_000_007] {
                let value = |digits: &[u8], radix: u128| {
                    digits.iter().fold(0, |value, digit| (value * radix + u128::from(*digit)) % modulus)
                };
                prop_assert_eq!(value(&hexadecimal, 16), value(&decimal, 10));
            }
            prop_assert_ne!(hexadecimal.first(), Some(&0));
        }

        #[test]
        fn fingerprints_are_equal_exactly_if_the_padded_inputs_are(
            of in prop_oneof![Just("QN08-S004-T1M"), Just("QH08-S004-T1M")],
            // Few values, so that padding often makes two of them one.
            one in ("0{0,2}(1|16|256|17){1,2}", "[\0a]{1,4}", 0..2u64),
            two in ("0{0,2}(1|16|256|17){1,2}", "[\0a]{1,4}", 0..2u64),
        ) {
            let suite = suite(&format!("OCRA-1:HOTP-SHA256-8:{of}"));
            let input = |(question, session, step): &(String, String, u64)| {
                let challenge = Challenge::new(&suite, question, Some(session.as_bytes())).unwrap();
                let message = super::super::data_input(&suite, &challenge, None, None, Some(*step)).unwrap();
                (challenge.fingerprint(Some(*step)), message)
            };
            let (one, two) = (input(&one), input(&two));
            prop_assert_eq!(one.0 == two.0, *one.1 == *two.1);
        }

        #[test]
        fn no_question_panics(
            of in prop_oneof![Just(NUMERIC), Just(ALPHANUMERIC), Just(HEXADECIMAL), Just(SESSION)],
            text in ".{0,40}",
            session in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..8)),
        ) {
            let _ = Challenge::new(&suite(of), &text, session.as_deref());
        }
    }
}
