//! Who asks, for which tenant, and what they may.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A tenant's name, as configured: 1 to 64 characters of `a-z 0-9 - _ .`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant(String);

/// A client's name, as configured: the same characters as a tenant's.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClientName(String);

/// A configured name that is no name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name is 1 to 64 characters of a-z, 0-9, '-', '_' and '.'")]
pub struct BadName;

fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b))
}

macro_rules! name {
    ($type:ident) => {
        impl $type {
            /// The name as configured.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> {
                if is_name(&text) { Ok(Self(text)) } else { Err(BadName) }
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(Tenant);
name!(ClientName);

/// What a client may do. The route table in `docs/api.md` says which route asks for which.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Permission {
    /// Credentials and resync.
    Enroll,
    /// Verification outside transactions.
    Verify,
    /// Transactions, presentations, authorizations.
    Transact,
    /// Sees codes to send out, reports uplink messages.
    Deliver,
    /// Reads the audit log.
    Audit,
    /// Unlock; resume after recovery.
    Admin,
}

impl Permission {
    /// What reads that codes can be in ask for: who sends them out has no business to enter them.
    pub const READS_CODES: &[Self] = &[Self::Transact, Self::Deliver];
    /// Resuming: what its bank suspended, or what a recovery did. Which of them it takes, the credential says.
    pub const RESUMES: &[Self] = &[Self::Enroll, Self::Admin];
}

/// An authenticated client that has the permission, acting for one tenant.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The configured client.
    pub client: ClientName,
    /// The tenant whose data it sees; nothing of another tenant exists for it.
    pub tenant: Tenant,
    /// Whether it has [`Permission::Deliver`] besides: then it sees codes.
    pub delivers: bool,
    /// Whether it has [`Permission::Enroll`].
    pub enrolls: bool,
    /// Whether it has [`Permission::Admin`]: then it may resume what a recovery suspended.
    pub administers: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain() {
        for good in ["bank-a", "a", "bank_1.test"] {
            assert_eq!(Tenant::try_from(good.to_owned()).map(|t| t.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", "Bank", "bank a", "*", "b\u{e4}nk", &"a".repeat(65)] {
            assert_eq!(Tenant::try_from(bad.to_owned()), Err(BadName), "{bad}");
        }
    }
}
