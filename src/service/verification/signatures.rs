//! Signatures: whether a credential's device signed what it is said to have signed.

use crate::domain::audit::Event;
use crate::domain::credential::{CredentialState, Kind, Signer};
use crate::domain::row::Row;
use crate::domain::signer::signature::{Signature, SignatureFormat};
use crate::domain::transaction::AuthenticatorReport;
use crate::domain::verification::{remaining, usable};
use crate::hsm::messages::{Attest, CheckSignature};

use super::{Answer, Attempt, Ending, Judged, Possibilities, Refused, STATE, Service, TRANSACTION};

/// A signature, and what it is over.
pub struct PresentedSignature {
    /// SHA-256 of the payload.
    pub digest: [u8; 32],
    /// How `signature` is written.
    pub format: SignatureFormat,
    /// The signature, as it came.
    pub signature: Vec<u8>,
}

/// A signature that is to be checked, with what goes with it.
pub(in super::super) struct Proof {
    /// SHA-256 of what is said to be signed.
    pub digest: [u8; 32],
    /// If that is a JWS: its header in base64url.
    pub jws_header: Option<String>,
    /// `None`: what was presented can be no signature of this, or by such a key.
    pub signature: Option<Signature>,
    /// The credential's next state, where a right signature moves it.
    pub state: Option<CredentialState>,
    /// What an authenticator said of itself.
    pub report: Option<AuthenticatorReport>,
}

impl Service {
    pub(super) async fn judge_signature(
        &self,
        attempt: Attempt<'_>,
        presented: &PresentedSignature,
    ) -> Result<Judged, Refused> {
        let subject = attempt.subject();
        usable(subject)?;
        let kind = &subject.credential.kind;
        let (Some(signer), false) = (kind.signer(), matches!(kind, Kind::Authenticator(_))) else {
            return Err(Refused::Invalid {
                field: "signature_base64",
                reason: "only a signer makes signatures, and a WebAuthn authenticator makes none over a payload",
            });
        };
        let PresentedSignature { digest, format, signature } = presented;
        let signature = parsed(signer, *format, signature)?;
        let proof = Proof { digest: *digest, jws_header: None, signature, state: None, report: None };
        self.check_proof(attempt, proof).await
    }

    /// Whether the proof is right: of a transaction, that approves it.
    pub(in super::super) async fn check_proof(
        &self,
        attempt: Attempt<'_>,
        proof: Proof,
    ) -> Result<Judged, Refused> {
        let endings = Endings::new(attempt, &proof)?;
        let attest = attempt.transaction.map(|transaction| self.attest(&transaction.row, attempt.now));
        self.check_signed(attempt, proof, endings, attest).await
    }

    /// Has the signature checked by the custodian, with endings of the caller's own.
    pub(in super::super) async fn check_signed(
        &self,
        attempt: Attempt<'_>,
        proof: Proof,
        endings: Endings,
        attest: Option<Attest>,
    ) -> Result<Judged, Refused> {
        let proof = self.vouched(attempt, proof).await?;
        let Endings { accepted, refused } = endings;
        let is_attested = attest.is_some();
        let message = CheckSignature {
            standing: attempt.standing_bytes(),
            digest: proof.digest,
            jws_header: proof.jws_header,
            signature: proof.signature,
            accepted: accepted.outcome(),
            refused: refused.outcome(),
            attest,
        };
        let id = attempt.rows.credential.row.id;
        let (valid, sealed, attestation) = self.hsm.check_signature(id, message).await?;
        let ending = match (valid, is_attested, attestation) {
            (true, true, attestation) => accepted.attested(attempt, attestation)?,
            (true, false, None) => accepted,
            (false, _, None) => refused,
            _ => return Err(Refused::unavailable("the custodian attested what nobody asked")),
        };
        Ok(Judged { ending, sealed, before: attempt.before_but_account() })
    }

    /// The proof; while nothing vouches for the device's key it is no signature.
    pub(in super::super) async fn vouched(
        &self,
        attempt: Attempt<'_>,
        mut proof: Proof,
    ) -> Result<Proof, Refused> {
        let credential = attempt.subject().credential;
        if let Kind::CertifiedSigner(certified) = &credential.kind {
            let chain = certified.chain.clone().ok_or(Refused::Absent)?;
            if let Err(reason) = self.check_chain(chain, attempt.now).await? {
                tracing::warn!(credential = %credential.id, reason, "a signer's certificate is not to be trusted");
                proof.signature = None;
            }
        }
        Ok(proof)
    }
}

/// The signature in a form that the signer's algorithm has; `None`: such bytes can be none.
///
/// # Errors
/// [`Refused::Invalid`] for a form that it has not.
pub(in super::super) fn parsed(
    signer: &Signer,
    format: SignatureFormat,
    bytes: &[u8],
) -> Result<Option<Signature>, Refused> {
    if !format.fits(signer.algorithm) {
        let reason = "must be der or p1363 for ES256, raw for RS256";
        return Err(Refused::Invalid { field: "format", reason });
    }
    let key = signer.key.as_ref().ok_or(Refused::Absent)?;
    Ok(Signature::parse(format, bytes, key))
}

/// Both ways in which the check of a signature can end.
pub(in super::super) struct Endings {
    pub accepted: Ending,
    pub refused: Ending,
}

impl Endings {
    fn new(attempt: Attempt<'_>, proof: &Proof) -> Result<Self, Refused> {
        let (mut replaces, mut rows) = (Vec::new(), Vec::new());
        if let Some(state) = &proof.state {
            replaces.push(STATE);
            rows.push(Row::State(state.clone()));
        }
        let failed = |attempts_remaining| Answer::VerificationFailed { attempts_remaining };
        if attempt.transaction.is_none() {
            let credential = &attempt.rows.credential.row;
            let answer =
                Answer::Verified { id: credential.id.to_string(), account: credential.account.to_string() };
            let remaining = remaining(attempt.subject(), attempt.now);
            let refused = Event::SignatureRefused;
            return Ok(Self {
                accepted: attempt.ending(Event::SignatureVerified, replaces, rows, answer)?,
                refused: attempt.ending(refused, Vec::new(), Vec::new(), failed(remaining))?,
            });
        }
        let Possibilities { approved, missed, missed_event, answer } = attempt.possibilities(proof.report)?;
        replaces.push(TRANSACTION);
        rows.push(Row::Transaction(approved));
        let remaining = missed.attempts_left.into();
        let missed = vec![Row::Transaction(missed)];
        Ok(Self {
            accepted: attempt.ending(Event::TransactionApproved, replaces, rows, answer)?,
            refused: attempt.ending(missed_event, vec![TRANSACTION], missed, failed(remaining))?,
        })
    }
}
