//! Codes to several terminals (seed E): where they go, how they have to be entered, and how far an entry is.

mod codes;
mod entry;

use std::fmt;

use serde::{Deserialize, Serialize};

use super::id::CredentialId;
use super::otp::Digits;
use super::text::is_printable;
use super::time::{Deadline, Now, RunId};

pub use codes::{Codes, Expected, message};

/// What the codes of a target are multiplied with, in the rule's order. None of them shares a factor with 10, so that a
/// wrong digit in any code changes the sum.
pub const WEIGHTS: [u8; 4] = [1, 3, 7, 9];
/// How many terminals a transaction may have.
pub const TERMINALS: std::ops::RangeInclusive<usize> = 2..=8;

/// What an address must be.
pub const ADDRESS_RULE: &str = "an address is 1 to 256 bytes of printable characters";

/// Where a terminal's codes are sent to: a phone number, a push id. The appliance sends nothing, and knows no more of
/// it than its bytes: 1 to 256 of them, in printable characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Address(String);

impl Address {
    /// The address as the bank wrote it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Address {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        if (1..=256).contains(&text.len()) && text.chars().all(is_printable) {
            Ok(Self(text))
        } else {
            Err(ADDRESS_RULE)
        }
    }
}

impl From<Address> for String {
    fn from(address: Address) -> String {
        address.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a transaction is approved by codes sent to several terminals. In sealed rows: its fields never change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MultiTerminal {
    /// The payer's terminals when it was made, 2 to 8, in the rule's order.
    pub terminals: Vec<FrozenTerminal>,
    /// How their codes have to be entered.
    pub rule: EntryRule,
    /// The length of the codes.
    pub digits: Digits,
    /// Which codes: raised from 1 until no two of them are equal.
    pub generation: u32,
    /// Until when they have to be entered, where the rule says so.
    pub window: Option<Deadline>,
}

/// A terminal as it was when the transaction was made. In sealed rows, likewise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrozenTerminal {
    /// The credential.
    pub credential: CredentialId,
    /// Its address.
    pub address: Address,
}

/// The preset input condition (seed E, step 4). In sealed rows, likewise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryRule {
    /// In which order, or what of them.
    pub order: EntryOrder,
    /// How far apart (condition e).
    pub interval: Option<Interval>,
}

/// Which codes in which order. In sealed rows: variants go to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryOrder {
    /// In the order of the terminals (condition a).
    PresetOrder,
    /// By size, the smallest first (condition b).
    Ascending,
    /// By size, the largest first (condition b).
    Descending,
    /// Their weighted sum (condition c).
    Target,
}

/// How far apart two codes have to arrive. In sealed rows: its fields never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interval {
    /// Seconds between two arrivals.
    pub interval_s: u16,
    /// How many seconds more or less that may be.
    pub tolerance_s: u16,
}

/// How far the entry of codes, one by one, has come. In sealed rows: its fields never change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// How many codes have been entered.
    pub entered: u8,
    /// Whether any of them was wrong, or came at a wrong time.
    pub wrong: bool,
    /// When the last one came, milliseconds since boot.
    pub arrived_boot_ms: u64,
    /// The run that measures its time; another one cannot go on.
    pub run: Option<RunId>,
}

impl MultiTerminal {
    /// What each terminal's code is multiplied with, in the rule's order; `None` unless a target is asked for.
    pub fn weights(&self) -> Option<Vec<u8>> {
        let is_target = self.rule.order == EntryOrder::Target;
        is_target.then(|| WEIGHTS.into_iter().cycle().take(self.terminals.len()).collect())
    }

    /// A round in which nothing has been entered. A window is measured from the transaction's beginning, so that its
    /// run is the one in which the transaction was made.
    pub fn begin(&self, run: RunId) -> Round {
        Round { run: self.window.map(|_| run), ..Round::default() }
    }
}

impl Round {
    /// Whether its time was measured by a run that has ended: nobody can tell any more how much has passed.
    pub fn is_interrupted(&self, now: &Now) -> bool {
        self.run.is_some_and(|run| run != now.run)
    }
}
