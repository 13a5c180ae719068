//! Signatures: whether a credential's device signed what it is said to have signed.

use crate::domain::audit::Event;
use crate::domain::credential::Kind;
use crate::domain::signer::signature::{Signature, SignatureFormat};
use crate::domain::verification::{remaining, usable};
use crate::hsm::messages::CheckSignature;

use super::{Answer, Attempt, Judged, Refused, Service};

/// A signature, and what it is over.
pub struct PresentedSignature {
    /// SHA-256 of the payload.
    pub digest: [u8; 32],
    /// How `signature` is written.
    pub format: SignatureFormat,
    /// The signature, as it came.
    pub signature: Vec<u8>,
}

impl Service {
    pub(super) async fn judge_signature(
        &self,
        attempt: Attempt<'_>,
        presented: &PresentedSignature,
    ) -> Result<Judged, Refused> {
        let subject = attempt.subject();
        usable(subject)?;
        let Kind::Signer(signer) = &subject.credential.kind else {
            return Err(Refused::Invalid {
                field: "signature_base64",
                reason: "only a signer makes signatures",
            });
        };
        if !presented.format.fits(signer.algorithm) {
            return Err(Refused::Invalid {
                field: "format",
                reason: "must be der or p1363 for ES256, raw for RS256",
            });
        }
        let key = signer.key.as_ref().ok_or(Refused::Absent)?;

        let credential = subject.credential;
        let (id, account) = (credential.id.to_string(), credential.account.to_string());
        let accepted = || {
            let answer = Answer::Verified { id: id.clone(), account: account.clone() };
            attempt.ending(Event::SignatureVerified, Vec::new(), Vec::new(), answer)
        };
        let refused = || {
            let answer = Answer::VerificationFailed { attempts_remaining: remaining(subject, attempt.now) };
            attempt.ending(Event::SignatureRefused, Vec::new(), Vec::new(), answer)
        };
        let message = CheckSignature {
            standing: attempt.standing_bytes(),
            digest: presented.digest,
            signature: Signature::parse(presented.format, &presented.signature, key),
            accepted: accepted()?.outcome(),
            refused: refused()?.outcome(),
        };
        let (valid, sealed) = self.hsm.check_signature(credential.id, message).await?;
        let ending = if valid { accepted()? } else { refused()? };
        // Not on the account's row: codes change it, and no verdict on a signature depends on it, so a commit
        // that stood on it would lose races that are none.
        let standing = vec![credential.clone().into(), subject.state.clone().into()];
        Ok(Judged { ending, sealed, standing })
    }
}
