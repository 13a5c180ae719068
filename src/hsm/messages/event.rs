//! What the front tells the supervisor of its custodians.

use serde::{Deserialize, Serialize};

use super::PinFile;

/// What became of a custodian, by its slot and its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CustodianEvent {
    /// It said hello.
    Up {
        /// Its slot.
        slot: u16,
        /// Its generation.
        generation: u64,
    },
    /// It did not come up; [`CustodianEvent::Lost`] follows.
    Down {
        /// Its slot.
        slot: u16,
        /// Its generation.
        generation: u64,
        /// What the next start has to know of it.
        failure: StartFailed,
    },
    /// It is no use any more: what is left of it is to be killed.
    Lost {
        /// Its slot.
        slot: u16,
        /// Its generation.
        generation: u64,
    },
    /// It is to be replaced, and goes on until then.
    Tired {
        /// Its slot.
        slot: u16,
        /// Its generation.
        generation: u64,
    },
}

/// What a start that failed means for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StartFailed {
    /// It ends with this exit code, and may be killed before it does.
    Said {
        /// The exit code.
        exit: u8,
        /// The PIN that it handed to the token last.
        pin_file: Option<PinFile>,
    },
    /// It fell silent, or ended, with this PIN in the token's hands, which has never accepted it: it may have been refused.
    PinInDoubt(PinFile),
    /// It came up with other keys than those in use, or not with all of them. A start a moment later finds the same.
    Unfit,
}
