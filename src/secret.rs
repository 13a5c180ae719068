//! Bytes that must not be shown, compared carelessly, or left behind.

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Secret bytes with one owner: no `Debug`, no `Clone`, constant-time equality, zeroized on drop.
///
/// `Serialize` exists for one purpose, the socketpair between front and custodian
/// (`hsm::messages`); nothing else may serialise a secret.
#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    /// Takes the bytes over; the caller's vector is the only copy.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Declassifies: the caller sees the bytes. Every use says why it may.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }

    /// Length in bytes, which is no secret.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no byte at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for SecretBytes {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for SecretBytes {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equality_is_by_content_and_length() {
        let secret = || SecretBytes::new(vec![1, 2, 3]);
        assert!(secret() == secret());
        assert!(secret() != SecretBytes::new(vec![1, 2, 4]));
        assert!(secret() != SecretBytes::new(vec![1, 2]));
    }
}
