//! Attestations that somebody presents, and the keys that they are verified with.

use crate::domain::attestation::{Claims, Unverified};
use crate::domain::signer::PublicKey;
use crate::domain::signer::signature::Signature;
use crate::domain::time::Now;
use crate::domain::transaction::Transaction;
use crate::hsm::messages::Attest;

use super::{Refused, Service};

impl Service {
    /// What stands before an attestation in a QR code.
    pub fn qr_url_prefix(&self) -> &str {
        &self.policies.attestations.qr_url_prefix
    }

    /// What an attestation says, if it is one of ours and holds still; `None`: it is not, or does not.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn verify_attestation(&self, jws: &str) -> Result<Option<Claims>, Refused> {
        let now = self.now();
        if !now.trusted {
            return Err(Refused::clock_untrusted());
        }
        let Some(unverified) = Unverified::parse(jws) else { return Ok(None) };
        let Some(signature) = Signature::es256(&unverified.signature) else { return Ok(None) };
        let Unverified { kid, digest, claims, .. } = unverified;
        let valid = self.hsm.verify_attestation(kid, digest, signature).await?;
        let holds = claims.iss == self.policies.attestations.issuer && claims.exp > now.unix_ms / 1_000;
        Ok((valid && holds).then_some(claims))
    }

    /// The public keys that attestations are verified with, newest first.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn attestation_keys(&self) -> Result<Vec<PublicKey>, Refused> {
        Ok(self.hsm.attestation_keys().await?)
    }

    /// What an attestation of `transaction` says, if it is approved at `unix_ms`.
    pub(super) fn claims(&self, transaction: &Transaction, unix_ms: u64) -> Claims {
        let policy = &self.policies.attestations;
        let lifetime_s = u64::from(policy.lifetime_hours) * 3_600;
        Claims::new(transaction, &policy.issuer, unix_ms / 1_000, lifetime_s)
    }

    /// Asks the custodian to attest it, if the response is right.
    pub(in super::super) fn attest(&self, transaction: &Transaction, now: &Now) -> Attest {
        Attest {
            transaction: transaction.id,
            tenant: transaction.tenant.clone(),
            claims: self.claims(transaction, now.unix_ms).to_json(),
        }
    }
}
