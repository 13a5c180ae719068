//! The `tls` keys: they sign what a server says in a handshake of TLS 1.3 ([`crate::domain::handshake`]), and requests for
//! their certificates ([`super::certificate_request`], never for a front).

use super::operations::Operations;
use crate::domain::handshake::TranscriptHash;
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::Signature;
use crate::domain::system_key::KeyKind;
use crate::hsm::messages::{Fault, Response};

impl Operations {
    /// The public halves, the newest first.
    pub fn tls_keys(&self) -> Vec<PublicKey> {
        self.keys.tls().map(|key| key.public().clone()).collect()
    }

    /// Signs with the key that is named, whichever version it is: a certificate says which one is in use. The signature is
    /// verified with that key before it leaves ([`super::keys::SigningKey::sign`]).
    pub(super) fn sign_handshake(
        &self,
        key: &PublicKey,
        transcript: &TranscriptHash,
    ) -> Result<Response, Fault> {
        let Some(own) = self.keys.noted(self.keys.tls().find(|own| own.public() == key)) else {
            // It may be one that others see.
            return match self.is_behind(KeyKind::Tls) {
                true => Err(Fault::Later),
                false => Ok(Response::HandshakeSigned(None)),
            };
        };
        let signature = own.sign(&self.session, &transcript.digest_to_sign())?;
        Ok(Response::HandshakeSigned(Signature::es256(&signature)))
    }
}
