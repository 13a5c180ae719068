//! The server's keys in the HSM: which token has which, and what they sign.
//!
//! Each token has `tls` keys of its own. Its custodians tell of them when they come up; what is rotated later is asked for
//! when a certificate names a key that nobody has told of.

use std::sync::PoisonError;

use tokio::time::{Instant, timeout_at};

use super::asking::CALL_MAX;
use super::messages::{Request, Response};
use super::{Hsm, HsmError, Route};
use crate::domain::handshake::TranscriptHash;
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::Signature;
use crate::lifeline::Lifeline;

/// Where a `tls` key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyPlace {
    /// In a token that is up.
    Here,
    /// In one that is away, or perhaps in one that is.
    Away,
    /// Every token is up, and none has it.
    Nowhere,
}

impl Hsm {
    /// What a custodian of a token told of. It may not see what another one does, so nothing is forgotten for it.
    pub(super) fn learn_tls(&self, token: usize, keys: Vec<PublicKey>) {
        let Some(token) = self.inner.tokens.get(token) else { return };
        let mut known = token.tls.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            if !known.contains(&key) {
                known.push(key);
            }
        }
    }

    pub(super) fn forget_tls(&self, token: usize, key: &PublicKey) {
        if let Some(token) = self.inner.tokens.get(token) {
            token.tls.lock().unwrap_or_else(PoisonError::into_inner).retain(|known| known != key);
        }
    }

    fn knows_tls(&self, token: usize, key: &PublicKey) -> bool {
        let of = self.inner.tokens.get(token);
        of.is_some_and(|of| of.tls.lock().unwrap_or_else(PoisonError::into_inner).contains(key))
    }

    /// Where a key is, as far as the tokens have told.
    pub fn tls_place(&self, key: &PublicKey) -> KeyPlace {
        let is_up = |token: usize| self.is_token_up(token);
        if (0..self.tokens()).any(|token| is_up(token) && self.knows_tls(token, key)) {
            return KeyPlace::Here;
        }
        match (0..self.tokens()).all(is_up) {
            true => KeyPlace::Nowhere,
            false => KeyPlace::Away,
        }
    }

    /// Asks the tokens that are up which `tls` keys they have by now. Whether all of them told: of one that did not, what it
    /// told before stands.
    pub async fn ask_for_tls(&self) -> bool {
        let mut all_told = true;
        for token in (0..self.tokens()).filter(|token| self.is_token_up(*token)) {
            match self.call(Route::Token(token), Request::TlsKeys).await {
                Ok(Response::TlsKeys(keys)) => self.learn_tls(token, keys),
                other => {
                    let error = other.err().unwrap_or_else(super::calls::wrong_kind);
                    tracing::warn!(token, %error, "a token does not tell its tls keys");
                    all_told = false;
                }
            }
        }
        all_told
    }

    /// Signs the server's CertificateVerify of a handshake with this key, in a token that has it: one that is up, if there
    /// is one. A token signs for half as many at once as it has custodians: who shakes hands is nobody yet, and those who are
    /// let in are not to stand behind him everywhere.
    ///
    /// # Errors
    /// [`HsmError`]; [`HsmError::Unavailable`] also if the token has no such key.
    pub async fn sign_handshake(
        &self,
        key: &PublicKey,
        transcript: TranscriptHash,
    ) -> Result<Signature, HsmError> {
        let having = || (0..self.tokens()).filter(|token| self.knows_tls(*token, key));
        let token = having().find(|token| self.is_token_up(*token)).or_else(|| having().next());
        let signs = self.inner.tokens.get(token.unwrap_or(0));
        let Some(signs) = signs else { return Err(HsmError::Unavailable("there is no token".to_owned())) };
        // The semaphore is never closed. Who comes too late is not signed for.
        let until = Lifeline::no_later_than(Instant::now() + CALL_MAX);
        let late =
            |_| HsmError::Unavailable("the handshake's turn to be signed did not come in time".to_owned());
        let _turn = timeout_at(until, signs.signing.acquire()).await.map_err(late)?;
        let request = Request::SignHandshake { key: key.clone(), transcript };
        match self.call(token.map_or(Route::Any, Route::Token), request).await? {
            Response::HandshakeSigned(Some(signature)) => Ok(signature),
            Response::HandshakeSigned(None) => {
                if let Some(token) = token {
                    self.forget_tls(token, key);
                }
                Err(HsmError::Unavailable("the token does not have the certificate's key".to_owned()))
            }
            _ => Err(super::calls::wrong_kind()),
        }
    }
}
