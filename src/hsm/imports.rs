//! Seeds that come wrapped. Each token has `import` keys of its own: what was wrapped for one opens there alone, and nothing
//! in it says for which it was.

use super::calls::wrong_kind;
use super::messages::{Custody, Request, Response};
use super::residents::Claim;
use super::{FIRST, Hsm, HsmError, NewSecret, Route};
use crate::domain::credential::{Keeping, StoredSecret};
use crate::domain::otp::Algorithm;
use crate::domain::signer::PublicKey;
use crate::domain::wrapped_seed::WrappedSeed;

impl Hsm {
    /// Takes in a seed that came wrapped; `None`: nobody wrapped a seed like this for a key of ours.
    ///
    /// # Errors
    /// [`HsmError`]; also if no token opens it that answers, and one that does not might.
    pub async fn import_wrapped(
        &self,
        algorithm: Algorithm,
        seed: WrappedSeed,
    ) -> Result<Option<NewSecret>, HsmError> {
        let (custody, mut claim) = self.place()?;
        let stored = match custody {
            Custody::Wrapped if self.tokens() > 1 => self.open_in_turn(algorithm, seed, &mut claim).await?,
            // What is to be an object is opened where it is to be, which is where it was wrapped for.
            _ => {
                let request = Request::ImportWrapped { algorithm, seed, custody };
                self.open(Self::route(custody), request, &mut claim).await?
            }
        };
        if stored.is_none() {
            claim.was_refused();
        }
        Ok(stored.map(|stored| NewSecret { stored, claim, exported: None }))
    }

    /// Asks one token after the other until one opens it. `None`: none of them does, and all were asked.
    async fn open_in_turn(
        &self,
        algorithm: Algorithm,
        seed: WrappedSeed,
        claim: &mut Claim,
    ) -> Result<Option<StoredSecret>, HsmError> {
        let mut unasked = None;
        for token in 0..self.tokens() {
            let away = || HsmError::Away(format!("token {} is away", self.token_name(token)));
            let custody = Custody::Wrapped;
            let request = Request::ImportWrapped { algorithm, seed: seed.clone(), custody };
            let opened = match self.is_token_up(token) {
                true => self.open(Route::Token(token), request, claim).await,
                false => Err(away()),
            };
            match opened {
                Ok(None) => {}
                Ok(opened) => return Ok(opened),
                Err(error @ (HsmError::Busy | HsmError::Unavailable(_) | HsmError::Away(_))) => {
                    unasked = unasked.or(Some(error));
                }
                Err(error) => return Err(error),
            }
        }
        // It may be for the key of that one: nobody is told that it is no seed.
        unasked.map_or(Ok(None), Err)
    }

    async fn open(
        &self,
        route: Route,
        request: Request,
        claim: &mut Claim,
    ) -> Result<Option<StoredSecret>, HsmError> {
        match self.call_on(route, request, &mut claim.way).await? {
            Response::Imported(opened) => Ok(opened),
            _ => Err(wrong_kind()),
        }
    }

    /// The key to wrap seeds for: that of the first token which is up; where secrets are objects, of the first, which has
    /// them.
    ///
    /// # Errors
    /// [`HsmError`].
    pub async fn import_key(&self) -> Result<PublicKey, HsmError> {
        let first_up = || (0..self.tokens()).find(|token| self.is_token_up(*token));
        let token = match self.inner.room.keeping() {
            Keeping::Resident => FIRST,
            Keeping::Wrapped => first_up().unwrap_or(FIRST),
        };
        match self.call(Route::Token(token), Request::ImportKey).await? {
            Response::ImportKey(key) => Ok(key),
            _ => Err(wrong_kind()),
        }
    }
}
