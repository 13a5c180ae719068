//! An account's row: what limits guessing over all its credentials together.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::caller::Tenant;
use super::lockout::Attempts;
use super::text::is_printable;

/// What an account must be.
pub const ACCOUNT_RULE: &str = "an account is 1 to 128 printable characters";

/// The bank's own reference to an account: 1 to 128 printable characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccountRef(String);

impl AccountRef {
    /// The reference as the bank wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for AccountRef {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        let length = text.chars().count();
        if (1..=128).contains(&length) && text.chars().all(is_printable) {
            Ok(Self(text))
        } else {
            Err(ACCOUNT_RULE)
        }
    }
}

impl From<AccountRef> for String {
    fn from(account: AccountRef) -> String {
        account.0
    }
}

impl fmt::Display for AccountRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The row of an account: made with its first credential and never removed, so that no deletion
/// gives guesses back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The tenant it belongs to.
    pub tenant: Tenant,
    /// The bank's reference.
    pub account: AccountRef,
    /// 1 when made, one more with each change.
    pub version: u64,
    /// The sum of its credentials' shares, and the account's lock.
    pub attempts: Attempts,
    /// One more with each `/unlock`: shares counted in an earlier epoch are void.
    pub epoch: u32,
}

impl Account {
    /// A new account, without failures.
    pub fn new(tenant: Tenant, account: AccountRef) -> Self {
        Self { tenant, account, version: 1, attempts: Attempts::default(), epoch: 0 }
    }

    /// After `/unlock`.
    pub fn unlocked(&self) -> Self {
        Self {
            version: self.version.saturating_add(1),
            attempts: Attempts::default(),
            epoch: self.epoch.wrapping_add(1),
            ..self.clone()
        }
    }

    /// Whether `/unlock` would change anything.
    pub fn is_clear(&self) -> bool {
        self.attempts == Attempts::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_printable_and_bounded() {
        for good in ["1", "acct-0001", "M\u{fc}ller & S\u{f6}hne", &"\u{e4}".repeat(128)] {
            assert!(AccountRef::try_from(good.to_owned()).is_ok(), "{good}");
        }
        for bad in ["", "a\nb", "a\u{0}", "\u{202e}evil", "zero\u{200b}width", "\u{fffd}", &"a".repeat(129)] {
            assert!(AccountRef::try_from(bad.to_owned()).is_err(), "{bad:?}");
        }
    }
}
