//! What a server signs in a handshake of TLS 1.3: its CertificateVerify (RFC 8446, section 4.4.3).
//!
//! The content is spelt here, of a hash alone: so that whoever hands over the hash chooses nothing else of what is signed.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What stands before the context string.
const PADDING: [u8; 64] = [b' '; 64];
/// Tells what a server signs from what a client does, with the byte that ends it.
const CONTEXT: &[u8] = b"TLS 1.3, server CertificateVerify\0";

/// The hash of a handshake so far, up to the server's certificate: of 32 bytes or of 48, as the cipher suites of TLS 1.3
/// have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct TranscriptHash(Vec<u8>);

/// It has neither 32 bytes nor 48.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a transcript's hash has 32 or 48 bytes")]
pub struct NoTranscriptHash;

impl TryFrom<Vec<u8>> for TranscriptHash {
    type Error = NoTranscriptHash;
    fn try_from(bytes: Vec<u8>) -> Result<Self, Self::Error> {
        if matches!(bytes.len(), 32 | 48) { Ok(Self(bytes)) } else { Err(NoTranscriptHash) }
    }
}

impl From<TranscriptHash> for Vec<u8> {
    fn from(hash: TranscriptHash) -> Self {
        hash.0
    }
}

impl TranscriptHash {
    /// That of which somebody else has spelt the content; `None`: it is no such content.
    pub fn of_content(content: &[u8]) -> Option<Self> {
        content.strip_prefix(&PADDING)?.strip_prefix(CONTEXT)?.to_vec().try_into().ok()
    }

    /// SHA-256 of the content: what ecdsa_secp256r1_sha256 signs.
    pub fn digest_to_sign(&self) -> [u8; 32] {
        Sha256::new().chain_update(PADDING).chain_update(CONTEXT).chain_update(&self.0).finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 8446, section 4.4.3: the hash is 32 bytes of 01.
    const EXAMPLE: &str = "\
        2020202020202020202020202020202020202020202020202020202020202020\
        2020202020202020202020202020202020202020202020202020202020202020\
        544c5320312e332c207365727665722043657274696669636174655665726966\
        79000101010101010101010101010101010101010101010101010101010101010101";

    #[test]
    fn the_content_is_that_of_the_rfcs_example() {
        let content = data_encoding::HEXLOWER.decode(EXAMPLE.as_bytes()).unwrap();
        let hash = TranscriptHash::of_content(&content).unwrap();
        assert_eq!(hash, TranscriptHash::try_from(vec![1; 32]).unwrap());
        assert_eq!(hash.digest_to_sign(), <[u8; 32]>::from(Sha256::digest(&content)));
    }

    #[test]
    fn nothing_else_is_a_transcripts_hash() {
        for length in 0..100 {
            let is_hash = TranscriptHash::try_from(vec![7; length]).is_ok();
            assert_eq!(is_hash, [32, 48].contains(&length), "{length}");
            // Nor does one come over the wire.
            let sent = postcard::to_stdvec(&vec![7; length]).unwrap();
            assert_eq!(postcard::from_bytes::<TranscriptHash>(&sent).is_ok(), is_hash, "{length}");
        }
        let content = |padding: usize, context: &[u8]| [&vec![b' '; padding], context, &[1; 32]].concat();
        assert!(TranscriptHash::of_content(&content(64, CONTEXT)).is_some());
        for other in [
            content(63, CONTEXT),
            content(65, CONTEXT),
            content(64, b"TLS 1.3, client CertificateVerify\0"),
            content(64, b"TLS 1.3, server CertificateVerify"),
            content(0, b""),
        ] {
            assert_eq!(TranscriptHash::of_content(&other), None, "{other:?}");
        }
    }
}
