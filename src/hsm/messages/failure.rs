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
    /// An object is not what it was, or another one: all are found again, in another session.
    Rebuild,
    /// The session is gone, or in no state that is known: another one, and all objects found again.
    NewSession,
    /// Nobody is logged in in this process any more: the custodian ends, and another one starts, for starts alone log in,
    /// one after the other. What was asked is not what is wrong.
    LogIn,
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

    /// The same, against which nothing helps that is milder than this.
    pub fn at_least(self, remedy: Remedy) -> Self {
        Self { remedy: self.remedy.max(remedy), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}
