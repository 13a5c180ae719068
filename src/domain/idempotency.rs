//! What an `Idempotency-Key` is worth: for a while the same request gets the first answer again.

use serde::{Deserialize, Serialize};

use super::caller::ClientName;

/// How long an answer is remembered, in milliseconds.
pub const REMEMBERED_MS: u64 = 24 * 60 * 60 * 1_000;

/// The value of an `Idempotency-Key` header: 1 to 255 visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    /// `None` unless it is 1 to 255 visible ASCII characters.
    pub fn parse(text: &str) -> Option<Self> {
        let good = (1..=255).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
        good.then(|| Self(text.to_owned()))
    }

    /// The key as sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Tenant, method, path with query, and body of a request as one HMAC-SHA-256 under a system key: a plain hash of a
/// body would let its reader try a million codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(pub [u8; 32]);

/// An answer kept with the verdict it tells of, in the same commit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdempotencyRecord {
    /// Keys are scoped by client.
    pub client: ClientName,
    /// The client's key.
    pub key: IdempotencyKey,
    /// Always 1: a record is made and pruned, never changed.
    pub version: u64,
    /// The request it belongs to.
    pub fingerprint: Fingerprint,
    /// The answer (`service::Answer`, JSON): no secret, and no code.
    pub answer: Vec<u8>,
    /// When it may be pruned, milliseconds since 1970.
    pub expires_unix_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_visible_ascii() {
        for good in ["a", "8e03978e-40d5-43dd-bc93-6894a57f9324", &"k".repeat(255)] {
            assert!(IdempotencyKey::parse(good).is_some(), "{good}");
        }
        for bad in ["", "a b", "\u{e9}", "a\t", &"k".repeat(256)] {
            assert!(IdempotencyKey::parse(bad).is_none(), "{bad:?}");
        }
    }
}
