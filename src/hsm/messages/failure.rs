//! What the HSM did not do, and what helps against it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What the HSM did not do: function and return code, or what was wrong with what it did. Never a secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    what: String,
    /// What is to be tried against it.
    pub remedy: Remedy,
}

/// What helps, the mildest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Remedy {
    /// Nothing is wrong with the HSM: what it was asked for cannot be. The request is refused.
    Refuse,
    /// The same once more, in this session.
    Repeat,
    /// The session is there and logged in, and its handles mean nothing any more: keys are found again.
    Rebuild,
    /// The session is there, and nobody is logged in: one login, then [`Remedy::Rebuild`].
    LogIn,
    /// The session is gone, or in no state that is known: another one, then [`Remedy::LogIn`] where that is needed.
    NewSession,
    /// The module in this process is not to be believed any more: the custodian ends, and another one starts.
    NewProcess,
    /// No machine mends it: an operator has to. The custodian ends; whether it is mended is tried from time to time, but
    /// never a PIN that was refused.
    GiveUp,
}

impl Failure {
    /// One that a fresh process may not have: what the module did is not what it said.
    pub fn new(what: impl Into<String>) -> Self {
        Self::with(Remedy::NewProcess, what)
    }

    /// One against which this helps.
    pub fn with(remedy: Remedy, what: impl Into<String>) -> Self {
        Self { what: what.into(), remedy }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}
