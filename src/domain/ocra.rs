//! OCRA (RFC 6287): suites, challenges, and the bytes that the HSM computes the HMAC over. The code is then
//! [`truncate`](super::otp::truncate)d from that HMAC.

mod challenge;
mod question;
mod suite;

use zeroize::Zeroizing;

use super::otp::Algorithm;

pub use challenge::{Challenge, ChallengeError};
pub use question::question;
pub use suite::{QuestionFormat, QuestionKind, SUITE_RULE, Suite};

/// Why there is no DataInput: what the suite says and what is given differ. Names the input, never its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataInputError {
    /// The suite has it.
    #[error("the suite has a {0}, and none is given")]
    Missing(&'static str),
    /// The suite does not have it.
    #[error("a {0} is given, and the suite has none")]
    Unwanted(&'static str),
    /// It has another length than the suite says.
    #[error("the {0} has another length than the suite says")]
    Length(&'static str),
}

/// The DataInput of RFC 6287, section 5.1, to compute the HMAC over: the suite's text, 0x00, and of these what
/// the suite has: counter (8 bytes), question (128), hash of the PIN (20, 32 or 64), session (as long as the
/// suite says), time step (8). It is wiped when dropped, for the PIN hash's sake.
///
/// `pin_hash` is the suite's hash of the PIN's text; `time_step` counts whole steps since 1970.
///
/// # Errors
/// An input that the suite has is not given; one is given that it does not have; the hash or the session has
/// another length.
pub fn data_input(
    suite: &Suite,
    challenge: &Challenge,
    counter: Option<u64>,
    pin_hash: Option<&[u8]>,
    time_step: Option<u64>,
) -> Result<Zeroizing<Vec<u8>>, DataInputError> {
    let (counter, time_step) = (counter.map(u64::to_be_bytes), time_step.map(u64::to_be_bytes));
    let session = Some(challenge.session()).filter(|session| !session.is_empty());
    let inputs = [
        expected("counter", counter.as_ref().map(<[u8; 8]>::as_slice), suite.has_counter().then_some(8))?,
        challenge.question(),
        expected("PIN hash", pin_hash, suite.pin_hash().map(Algorithm::output_bytes))?,
        expected("session", session, suite.session_bytes().map(usize::from))?,
        expected("time step", time_step.as_ref().map(<[u8; 8]>::as_slice), suite.time_step_s().map(|_| 8))?,
    ];
    // All at once: a vector that grows would leave copies behind that nobody wipes.
    let length = suite.as_str().len() + 1 + inputs.iter().map(|input| input.len()).sum::<usize>();
    let mut message = Zeroizing::new(Vec::with_capacity(length));
    message.extend_from_slice(suite.as_str().as_bytes());
    message.push(0);
    inputs.into_iter().for_each(|input| message.extend_from_slice(input));
    Ok(message)
}

/// The bytes of an input that the suite has, at `bytes` length; none of one that it does not have.
fn expected<'a>(
    name: &'static str,
    given: Option<&'a [u8]>,
    bytes: Option<usize>,
) -> Result<&'a [u8], DataInputError> {
    match (given, bytes) {
        (Some(given), Some(bytes)) if given.len() == bytes => Ok(given),
        (Some(_), Some(_)) => Err(DataInputError::Length(name)),
        (None, Some(_)) => Err(DataInputError::Missing(name)),
        (Some(_), None) => Err(DataInputError::Unwanted(name)),
        (None, None) => Ok(&[]),
    }
}

#[cfg(test)]
mod tests {
    use super::super::otp::tests::hmac_of;
    use super::super::otp::{Otp, truncate};
    use super::suite::tests::{suite, suites};
    use super::*;
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;
    use serde_json::Value;
    use sha2::Digest;

    fn hash_of(algorithm: Algorithm, pin: &str) -> Vec<u8> {
        match algorithm {
            Algorithm::Sha1 => sha1::Sha1::digest(pin).to_vec(),
            Algorithm::Sha256 => sha2::Sha256::digest(pin).to_vec(),
            Algorithm::Sha512 => sha2::Sha512::digest(pin).to_vec(),
        }
    }

    fn check(file: &str) -> usize {
        let document: Value = serde_json::from_str(file).unwrap();
        let vectors = document["vectors"].as_array().unwrap();
        for vector in vectors {
            let bytes = |field: &str| HEXLOWER.decode(vector[field].as_str()?.as_bytes()).ok();
            let suite = suite(vector["suite"].as_str().unwrap());
            let session = bytes("session_hex");
            let challenge =
                Challenge::new(&suite, vector["q"].as_str().unwrap(), session.as_deref()).unwrap();
            let pin_hash = vector["pin"].as_str().map(|pin| hash_of(suite.pin_hash().unwrap(), pin));
            let (counter, time_step) = (vector["counter"].as_u64(), vector["t"].as_u64());
            let message = data_input(&suite, &challenge, counter, pin_hash.as_deref(), time_step).unwrap();
            let mac = hmac_of(suite.algorithm(), &bytes("key_hex").unwrap(), &message);
            let expected = Otp::parse(vector["expected"].as_str().unwrap().to_owned()).unwrap();
            assert!(truncate(&mac, suite.digits()).unwrap().matches(&expected), "{vector}");
        }
        vectors.len()
    }

    #[test]
    fn rfc_6287_appendix_c() {
        assert_eq!(check(include_str!("../../tests/vectors/ocra.json")), 70);
    }

    #[test]
    fn codes_of_a_second_implementation_with_sessions_and_every_input() {
        assert_eq!(check(include_str!("../../tests/vectors/ocra_session.json")), 8);
    }

    #[test]
    fn inputs_stand_in_the_rfcs_order() {
        let text = "OCRA-1:HOTP-SHA256-8:C-QA08-PSHA1-S003-T1M";
        let suite = suite(text);
        let challenge = Challenge::new(&suite, "ab", Some(b"s")).unwrap();
        let message = data_input(&suite, &challenge, Some(0x0102), Some(&[0xee; 20]), Some(0x0304)).unwrap();
        let counter: &[u8] = &[0, 0, 0, 0, 0, 0, 1, 2];
        let step: &[u8] = &[0, 0, 0, 0, 0, 0, 3, 4];
        let parts = [text.as_bytes(), b"\0", counter, b"ab", &[0; 126], &[0xee; 20], b"\0\0s", step];
        assert_eq!(*message, parts.concat());
    }

    #[test]
    fn inputs_are_those_of_the_suite() {
        use DataInputError::{Length, Missing, Unwanted};
        let (all, none) =
            (suite("OCRA-1:HOTP-SHA1-6:C-QN08-PSHA256-S008-T1M"), suite("OCRA-1:HOTP-SHA1-6:QN08"));
        let with = Challenge::new(&all, "1", Some(b"s")).unwrap();
        let without = Challenge::new(&none, "1", None).unwrap();
        let other = Challenge::new(&suite("OCRA-1:HOTP-SHA1-6:QN08-S009"), "1", Some(b"s")).unwrap();
        let zeros = [0; 64];
        let (count, hash) = (Some(1), zeros.get(..32));
        let failure = |suite, challenge, counter, pin_hash, step| {
            data_input(suite, challenge, counter, pin_hash, step).map(|_| ()).err()
        };
        assert_eq!(failure(&all, &with, count, hash, count), None);
        assert_eq!(failure(&all, &with, None, hash, count), Some(Missing("counter")));
        assert_eq!(failure(&all, &with, count, None, count), Some(Missing("PIN hash")));
        assert_eq!(failure(&all, &with, count, hash, None), Some(Missing("time step")));
        assert_eq!(failure(&all, &without, count, hash, count), Some(Missing("session")));
        assert_eq!(failure(&all, &other, count, hash, count), Some(Length("session")));
        for bytes in [0, 20, 31, 33, 64] {
            let hash = zeros.get(..bytes);
            assert_eq!(failure(&all, &with, count, hash, count), Some(Length("PIN hash")), "{bytes}");
        }
        assert_eq!(failure(&none, &without, None, None, None), None);
        assert_eq!(failure(&none, &without, count, None, None), Some(Unwanted("counter")));
        assert_eq!(failure(&none, &without, None, hash, None), Some(Unwanted("PIN hash")));
        assert_eq!(failure(&none, &without, None, None, count), Some(Unwanted("time step")));
        assert_eq!(failure(&none, &with, None, None, None), Some(Unwanted("session")));
    }

    proptest! {
        #[test]
        fn the_length_is_the_suites(
            text in suites(),
            counter: u64, question in "[0-9]{1,16}", session in proptest::collection::vec(any::<u8>(), 1), step: u64,
        ) {
            let suite = suite(&text);
            let session = suite.session_bytes().map(|_| &*session);
            let challenge = Challenge::new(&suite, &question, session).unwrap();
            let hash = suite.pin_hash().map(|hash| vec![0xa5; hash.output_bytes()]);
            let counter = suite.has_counter().then_some(counter);
            let step = suite.time_step_s().map(|_| step);
            let message = data_input(&suite, &challenge, counter, hash.as_deref(), step).unwrap();
            let length = text.len() + 1 + 128
                + if text.contains(":C-") { 8 } else { 0 }
                + hash.map_or(0, |hash| hash.len())
                + usize::from(suite.session_bytes().unwrap_or(0))
                + if text.contains("-T") { 8 } else { 0 };
            prop_assert_eq!(message.len(), length);
            // It did not grow, which would leave a copy of the PIN hash behind.
            prop_assert_eq!(message.capacity(), length);
        }
    }
}
