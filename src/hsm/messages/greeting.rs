//! What a custodian says before it is asked anything: how far it has come, and whether it came up.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::KeyCheck;
use crate::domain::signer::PublicKey;
use crate::domain::system_key::{KeyKind, NewestKeys};

/// What a custodian says first: [`Greeting::Starting`] any number of times, then one of the others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Greeting {
    /// It goes on, with this.
    Starting(Step),
    /// It is ready.
    Up(Hello),
    /// It is not, and ends.
    Down(Down),
}

/// A custodian that is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its [`super::BUILD_ID`].
    pub build_id: String,
    /// For the log: the token's label, manufacturer and model.
    pub token: String,
    /// The newest keys that it has: others may be newer since it looked.
    pub newest: NewestKeys,
    /// A check value of each version of `kek`, `row` and `data`: two tokens that share keys have the same.
    pub shared: Vec<(KeyKind, u16, KeyCheck)>,
    /// The public halves of its `tls` keys, the newest first.
    pub tls: Vec<PublicKey>,
}

/// A step of a start. Displays as what the HSM is asked for, after "while".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The module is loaded and initialised.
    Module,
    /// The token is looked for.
    Token,
    /// A session is opened, and the PIN given to the token.
    Login(PinFile),
    /// What the token must be able to do is tried.
    Abilities,
    /// The system keys are read.
    Keys,
    /// The secrets that are objects in the HSM are listed; again after each so many of them.
    Secrets,
    /// The keys are tried.
    SelfTest,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Module => "its module is initialised",
            Self::Token => "its tokens are listed",
            Self::Login(_) => "the user is logged in",
            Self::Abilities => "what it can do is tried",
            Self::Keys => "its keys are read",
            Self::Secrets => "its secrets are listed",
            Self::SelfTest => "its keys are tried",
        })
    }
}

/// Which PIN it is: tells whether somebody wrote another one since. Nothing of the PIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinFile {
    /// Its inode.
    pub inode: u64,
    /// When it was last written, seconds since 1970.
    pub modified_unix_s: i64,
    /// The nanoseconds of that.
    pub modified_ns: i64,
}

/// Why a custodian did not start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Down {
    /// What it is about.
    pub cause: DownCause,
    /// One line for the operator; never a secret.
    pub line: String,
    /// The exit code that it ends with. Who hears this may kill it before it does.
    pub exit: u8,
}

/// What kept a custodian from starting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownCause {
    /// A file that the configuration names, or something that an operator has to tell apart.
    Configuration,
    /// The module is there, and does not begin, or begins and says what makes no sense.
    Module,
    /// The token is not there.
    TokenAway,
    /// Nobody could log in, and the PIN was not refused.
    Login,
    /// The PIN was refused. It is never tried again.
    PinRefused,
    /// Keys are missing, or not what they must be.
    Keys,
    /// The HSM does not do with its keys what it must.
    SelfTest,
}
