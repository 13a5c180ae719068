//! A seed on its way to the HSM: encrypted to the `import` key by whoever has it, and opened by the HSM alone.
//!
//! RSAES-OAEP (RFC 8017, section 7.1) of the seed with zeros behind it, which change no HMAC.

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How many bytes are wrapped: the seed, and zeros behind it.
pub const WRAPPED_BYTES: usize = 64;

/// How long what they are wrapped to is, in bytes: the modulus of the `import` key, RSA of 3072 bits.
pub const BLOB_BYTES: usize = 384;

/// What a wrapped seed has to look like from outside.
pub const FORM_RULE: &str = "must be 384 bytes in base64, as RSA of 3072 bits encrypts";

/// All that is ever said of one that looks right and is none, whatever is wrong inside: it was made for another key,
/// or by another padding, was changed, holds another length, or nothing but zeros. To tell those apart would help who
/// has somebody else's blob and sends changed ones.
pub const CONTENT_RULE: &str = "must be 64 bytes, the seed with zeros behind it, encrypted to the key of \
    GET /v1/import-key by RSA-OAEP with SHA-1";

/// The bytes as they came. No secret to anybody but the holder of the private key, and not to be taken twice.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct WrappedSeed(Vec<u8>);

/// Another length than [`BLOB_BYTES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not as long as an RSA modulus of 3072 bits")]
pub struct BadLength;

impl TryFrom<Vec<u8>> for WrappedSeed {
    type Error = BadLength;

    fn try_from(bytes: Vec<u8>) -> Result<Self, BadLength> {
        if bytes.len() == BLOB_BYTES { Ok(Self(bytes)) } else { Err(BadLength) }
    }
}

impl From<WrappedSeed> for Vec<u8> {
    fn from(seed: WrappedSeed) -> Self {
        seed.0
    }
}

impl WrappedSeed {
    /// From standard base64 (RFC 4648, section 4), in its one spelling; `None`: it is something else, or of another
    /// length.
    pub fn from_base64(text: &str) -> Option<Self> {
        // 384 bytes are whole groups of three: there is no padding, and no bit that means nothing.
        Self::try_from(BASE64.decode(text.as_bytes()).ok()?).ok()
    }

    /// [`BLOB_BYTES`] of them, big-endian as a number.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// What it is known by.
    pub fn fingerprint(&self) -> [u8; 32] {
        Sha256::digest(&self.0).into()
    }

    /// Whether it is below a key's modulus. RFC 8017 refuses others (section 5.1.2); a module that reduced them instead
    /// would open a second spelling of a blob that was taken already.
    pub fn is_below(&self, modulus: &[u8]) -> bool {
        modulus.len() == BLOB_BYTES && self.0.as_slice() < modulus
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn blob(byte: u8) -> WrappedSeed {
        WrappedSeed(vec![byte; BLOB_BYTES])
    }

    #[test]
    fn a_blob_has_one_spelling() {
        let text = BASE64.encode(&[0xfb; BLOB_BYTES]);
        assert!(text.len() == 512 && text.contains('+') && !text.contains('='));
        assert!(WrappedSeed::from_base64(&text) == Some(blob(0xfb)));
        let url = text.replace('+', "-").replace('/', "_");
        let lines = format!("{}\n{}", &text[..256], &text[256..]);
        for other in [
            "",
            &text[1..],
            &text[4..],
            &format!("{text}AAAA"),
            &format!("{text}===="),
            &format!("{text}="),
            &format!("{}==", &text[..510]),
            &format!(" {text}"),
            &format!("{text}\n"),
            &lines,
            &url,
        ] {
            assert!(WrappedSeed::from_base64(other).is_none(), "{other}");
        }
    }

    #[test]
    fn only_what_is_below_the_modulus_is_one() {
        let modulus = blob(0x80);
        let next = |last: u8| {
            let mut bytes = vec![0x80; BLOB_BYTES];
            bytes[BLOB_BYTES - 1] = last;
            WrappedSeed(bytes)
        };
        for (seed, below) in [(blob(0), true), (next(0x7f), true), (blob(0x80), false), (next(0x81), false)] {
            assert_eq!(seed.is_below(modulus.as_bytes()), below);
        }
        assert!(!blob(0).is_below(&[0x80; BLOB_BYTES + 1]), "a key of another length");
    }

    proptest! {
        #[test]
        fn what_is_taken_is_written_the_same_again(bytes in prop::collection::vec(any::<u8>(), 380..390)) {
            let taken = WrappedSeed::from_base64(&BASE64.encode(&bytes));
            prop_assert_eq!(taken.is_some(), bytes.len() == BLOB_BYTES);
            prop_assert!(taken.is_none_or(|seed| seed.as_bytes() == bytes));
        }

        #[test]
        fn no_text_is_too_much(text in "[A-Za-z0-9+/=\\n ]{508,516}") {
            let taken = WrappedSeed::from_base64(&text);
            prop_assert!(taken.is_none_or(|seed| BASE64.encode(seed.as_bytes()) == text));
        }

        #[test]
        fn a_message_holds_no_other_length(bytes in prop::collection::vec(any::<u8>(), 380..390)) {
            let message = postcard::to_stdvec(&bytes).unwrap();
            let read = postcard::from_bytes::<WrappedSeed>(&message);
            prop_assert_eq!(read.is_ok(), bytes.len() == BLOB_BYTES);
        }
    }
}
