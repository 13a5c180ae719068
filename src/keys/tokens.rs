//! The configured tokens, each asked in a process of its own.

use super::{KeyTask, KeyTaskDone, WRONG_ANSWER, in_child};
use crate::config::HsmConfig;
use crate::custodian::key_task::KeyDescription;
use crate::custodian::shared_keys::{SharedDone, SharedTask, Standing};

/// A token, and what an operator calls it.
pub struct Token {
    /// Its label; where another token has the same one, with its place in the configuration.
    pub name: String,
    /// The configuration, with this token alone.
    pub hsm: HsmConfig,
}

/// All of them, the first one first.
pub struct Tokens(pub Vec<Token>);

impl Tokens {
    /// Those of a configuration.
    pub fn of(hsm: &HsmConfig) -> Self {
        let all = hsm.token_names().into_iter().zip(hsm.tokens());
        Self(all.map(|(name, hsm)| Token { name, hsm }).collect())
    }

    /// The name of one.
    pub fn name(&self, place: usize) -> &str {
        self.0.get(place).map_or("?", |token| &token.name)
    }

    /// Has one take a step.
    ///
    /// # Errors
    /// As for [`crate::Ending`]. What was begun stands under marks.
    pub fn step(&self, place: usize, task: SharedTask) -> Result<SharedDone, Option<String>> {
        let token = self.0.get(place).ok_or_else(|| Some(WRONG_ANSWER.to_owned()))?;
        match in_child(&token.hsm, KeyTask::Shared(task))? {
            KeyTaskDone::Shared(done) => Ok(done),
            _ => Err(Some(WRONG_ANSWER.to_owned())),
        }
    }

    /// What each has. To be asked before anything is changed.
    ///
    /// # Errors
    /// One of them is away, and why.
    pub fn look(&self) -> Result<Vec<Standing>, Option<String>> {
        let look = |place| match self.step(place, SharedTask::Look) {
            Ok(SharedDone::Standing(standing)) => Ok(standing),
            Ok(_) => Err(Some(WRONG_ANSWER.to_owned())),
            Err(reason) => Err(Some(self.away(place, reason))),
        };
        (0..self.0.len()).map(look).collect()
    }

    /// Every key of each, as its HSM reports it.
    ///
    /// # Errors
    /// One of them is away, and why.
    pub fn described(&self) -> Result<Vec<Vec<KeyDescription>>, Option<String>> {
        let described = |(place, token): (usize, &Token)| match super::described(&token.hsm) {
            Err(reason) if self.0.len() > 1 => Err(Some(self.away(place, reason))),
            described => described,
        };
        self.0.iter().enumerate().map(described).collect()
    }

    fn away(&self, place: usize, reason: Option<String>) -> String {
        // Mostly the process that asked it has said more.
        let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        format!(
            "token {} cannot be asked{reason}: nothing was changed, because it would lack what the others have",
            self.name(place)
        )
    }
}
