//! Identifiers: a readable prefix and 128 random bits.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Crockford's base32, lower case: no letter that reads like another.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// 128 bits in 26 characters of 5 bits; the first one holds the top 3 bits.
const BODY_LEN: usize = 26;

/// A type of ids, with its prefix.
macro_rules! id {
    ($(#[$about:meta])* $name:ident $prefix:literal) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name(u128);

        impl $name {
            /// From 16 random bytes.
            pub const fn from_random(bytes: [u8; 16]) -> Self {
                Self(u128::from_be_bytes(bytes))
            }

            /// `None` for anything that [`fmt::Display`] would not write: ids have one spelling.
            pub fn parse(text: &str) -> Option<Self> {
                parse_body(text.strip_prefix($prefix)?.as_bytes()).map(Self)
            }

            /// The 16 bytes, as stored and as hashed to a custodian.
            pub fn to_bytes(self) -> [u8; 16] {
                self.0.to_be_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($prefix)?;
                write_body(f, self.0)
            }
        }
    };
}

id! {
    /// A credential's id: `cred_` and 26 characters.
    CredentialId "cred_"
}

id! {
    /// A transaction's id: `txn_` and 26 characters.
    TransactionId "txn_"
}

id! {
    /// A presentation's id: `pres_` and 26 characters.
    PresentationId "pres_"
}

fn parse_body(body: &[u8]) -> Option<u128> {
    if body.len() != BODY_LEN || body.first()? > &b'7' {
        return None;
    }
    body.iter().try_fold(0u128, |value, byte| {
        let digit = ALPHABET.iter().position(|c| c == byte)?;
        Some(value << 5 | digit as u128)
    })
}

fn write_body(f: &mut fmt::Formatter<'_>, value: u128) -> fmt::Result {
    (0..BODY_LEN).rev().try_for_each(|place| {
        let digit = (value >> (5 * place)) as usize & 31;
        fmt::Write::write_char(f, char::from(ALPHABET[digit]))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_spelling_only() {
        let id = CredentialId::from_random([0xff; 16]);
        assert_eq!(id.to_string(), "cred_7zzzzzzzzzzzzzzzzzzzzzzzzz");
        for bad in [
            "",
            "cred_",
            "cred_8zzzzzzzzzzzzzzzzzzzzzzzzz",
            "CRED_7zzzzzzzzzzzzzzzzzzzzzzzzz",
            "cred_7Zzzzzzzzzzzzzzzzzzzzzzzzz",
            "cred_7zzzzzzzzzzzzzzzzzzzzzzzzzz",
            "cred_7zzzzzzzzzzzzzzzzzzzzzzzz\u{e9}",
            "txn_7zzzzzzzzzzzzzzzzzzzzzzzzz",
        ] {
            assert!(CredentialId::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn each_type_has_a_prefix_of_its_own() {
        let id = TransactionId::from_random([0xff; 16]);
        assert_eq!(id.to_string(), "txn_7zzzzzzzzzzzzzzzzzzzzzzzzz");
        assert_eq!(TransactionId::parse(&id.to_string()), Some(id));
        let credential = CredentialId::from_random([0xff; 16]).to_string();
        assert!(TransactionId::parse(&credential).is_none());
        assert_eq!(postcard::to_stdvec(&id).unwrap(), postcard::to_stdvec(&u128::MAX).unwrap());
    }

    proptest! {
        #[test]
        fn display_and_parse_agree(bytes: [u8; 16]) {
            let id = CredentialId::from_random(bytes);
            prop_assert_eq!(CredentialId::parse(&id.to_string()), Some(id));
            prop_assert_eq!(id.to_bytes(), bytes);
            let id = TransactionId::from_random(bytes);
            prop_assert_eq!(TransactionId::parse(&id.to_string()), Some(id));
            prop_assert_eq!(id.to_bytes(), bytes);
        }

        #[test]
        fn parse_never_panics(text in ".{0,40}") {
            if let Some(id) = CredentialId::parse(&text) {
                prop_assert_eq!(id.to_string(), text.clone());
            }
            if let Some(id) = TransactionId::parse(&text) {
                prop_assert_eq!(id.to_string(), text);
            }
        }
    }
}
