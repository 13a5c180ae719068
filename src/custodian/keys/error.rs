//! What is wrong with the system keys, and what an operator is to do about it.

use super::super::pkcs11::{Half, Pkcs11Error, Session};
use super::{KeyName, Kind};
use crate::hsm::messages::Fault;

/// Why the system keys cannot be used. Its text follows the token's name, and is followed by an advice
/// ([`KeyError::advice`]).
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The HSM failed.
    #[error("the HSM failed: {0}")]
    Hsm(#[from] Pkcs11Error),
    /// A label that names no version.
    #[error("the object labelled {0} names no version of a key")]
    Version(String),
    /// Two objects with one label.
    #[error("two objects are labelled {0}")]
    Twice(KeyName),
    /// A key that is not what it must be.
    #[error("key {0} is not usable: {1}; it was not made by `hsm-authd init`, or not wholly")]
    Wrong(KeyName, Pkcs11Error),
    /// An object of a pair's label that is no key of a pair.
    #[error("an object labelled {0} is neither a private nor a public key")]
    NoHalf(KeyName),
    /// More than one private or public key of one pair.
    #[error("several {0}s are labelled {1}")]
    HalfTwice(Half, KeyName),
    /// A half alone: what is missing, and what is there. Nothing in the token says whether the pair was ever used.
    #[error("the {0} of {1} is missing")]
    HalfMissing(Half, KeyName, Half),
    /// A half that is not what it must be.
    #[error("the {0} of {1} is not usable: {2}; it was not made by `hsm-authd init`, or not wholly")]
    WrongHalf(Half, KeyName, Pkcs11Error),
    /// A pair that is being made, or whose making was interrupted.
    #[error("key {0} is not finished: run `hsm-authd init`")]
    Unfinished(KeyName),
    /// Halves of two pairs.
    #[error(
        "the public key of {0} does not fit its private key, tried twice: the HSM computes wrongly, or somebody has \
         replaced one of them and is to put the right one back"
    )]
    OtherPair(KeyName),
    /// A private half that does not unwrap what the public one wrapped.
    #[error(
        "the private key of {0} does not unwrap what its public key wraps, tried twice ({1}): the HSM computes wrongly, or \
         somebody has replaced one of them and is to put the right one back"
    )]
    Unwraps(KeyName, Pkcs11Error),
    /// The token's first anchor.
    #[error("the anchor of the log cannot be made: {0}")]
    Anchor(Fault),
    /// A step of what several tokens do that is not to be taken.
    #[error("{0}")]
    Step(&'static str),
    /// A kind of which there is no version.
    #[error("there is no key hsm-authd/{}/v1", .0.name())]
    Missing(Kind),
    /// A version that something is stored under.
    #[error("there is no key {0}")]
    Lost(KeyName),
}

impl KeyError {
    /// What is to be done about what is missing: another thing if there is a database that needs it.
    pub fn advice(&self, in_use: bool) -> String {
        match (self, in_use) {
            (Self::Missing(Kind::Kek | Kind::Row | Kind::Data), true) | (Self::Lost(_), _) => {
                ", and there is a database that needs it: this is another token, or the HSM does not show what it has, or \
                 the key is lost and comes back from the HSM's own backup (docs/hsm-faults.md)"
                    .to_owned()
            }
            (Self::Missing(_), true) => {
                ", and there is a database: the key comes back from the HSM's own backup, unless the database is of a \
                 release that had no such key yet (docs/hsm-faults.md)"
                    .to_owned()
            }
            (Self::Missing(_), false) => {
                ": run `hsm-authd init`, if this is the right token and it shows what it has".to_owned()
            }
            (Self::HalfMissing(..), true) => {
                ": put it back from the HSM's own backup, and remove nothing (docs/hsm-faults.md)".to_owned()
            }
            (Self::HalfMissing(_, _, there), false) => format!(
                ": put it back, or remove the {there} of that label and run `hsm-authd init`, which makes a new pair; what \
                 the old one signed then verifies no more, and what was wrapped for it opens no more"
            ),
            (Self::Version(_), false) => ": remove it or give it another label".to_owned(),
            (Self::Version(_) | Self::NoHalf(_), true) => {
                ": give it another label with the HSM's own tools, and remove nothing: somebody may have labelled a key so \
                 that the database needs"
                    .to_owned()
            }
            (Self::Twice(_), false) => ": remove the one that wrapped or sealed nothing".to_owned(),
            (Self::Twice(_), true) => ", and there is a database: what is stored was wrapped or sealed by one of them, and is \
                 lost for good without that one. Back the HSM up before anything is removed (docs/hsm-faults.md)"
                .to_owned(),
            (Self::NoHalf(_) | Self::WrongHalf(..), false) => ": remove it".to_owned(),
            (Self::HalfTwice(..), false) => ": remove all but that of the pair that was used".to_owned(),
            (Self::WrongHalf(_, name, _) | Self::HalfTwice(_, name), true) => {
                let lost = match name.kind {
                    Kind::Import => "what was wrapped for it opens no more",
                    _ => "what it signed verifies no more",
                };
                format!(
                    ", and there is a database: if the pair that was used goes, {lost}. Put back what is missing from the \
                     HSM's own backup, and back the HSM up before anything is removed (docs/hsm-faults.md)"
                )
            }
            _ => String::new(),
        }
    }

    /// Of a key that was read: it is wrong only if it was read, and is not what it must be.
    pub(super) fn of_object(error: Pkcs11Error, wrong: impl FnOnce(Pkcs11Error) -> Self) -> Self {
        match error.is_of_object() {
            true => wrong(error),
            false => Self::Hsm(error),
        }
    }

    /// Itself, if it is known to be so: of a session that nobody is logged in to the half of all objects is not there.
    pub fn established(self, session: &Session) -> Self {
        if let Self::Hsm(_) = self {
            return self;
        }
        // By another search than the first: what that one passes over is shown by this one, or neither is to be believed.
        if let Self::HalfMissing(missing, name, there) = self {
            let count = |half| session.labelled_half(&name.to_string(), half).map(|found| found.len());
            match [there, missing].map(count).into_iter().collect::<Result<Vec<_>, _>>() {
                Ok(counts) if counts == [1, 0] => {}
                Ok(_) => {
                    return Pkcs11Error::lie(format!("C_FindObjects: {name} is there, and is not")).into();
                }
                Err(error) => return error.into(),
            }
        }
        match session.is_logged_in() {
            Ok(true) => self,
            Ok(false) => Self::Hsm(Pkcs11Error::lie("C_GetSessionInfo: nobody is logged in any more")),
            Err(error) => Self::Hsm(error),
        }
    }
}
