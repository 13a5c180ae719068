//! Responses: what somebody presents for a transaction, judged as any other, and the attestation of an approval.

use crate::domain::credential::{Kind, Signer};
use crate::domain::id::TransactionId;
use crate::domain::jws::Jws;
use crate::domain::ocra::Challenge;
use crate::domain::otp::Otp;
use crate::domain::row::Sealed;
use crate::domain::signer::signature::{Signature, SignatureFormat};
use crate::domain::transaction::{AuthenticatorReport, Device, Method, Transaction};
use crate::domain::verification::usable;
use crate::domain::webauthn::{Assertion, next_sign_count};

use super::super::memory::Recall;
use super::super::verification::signatures::{Proof, parsed};
use super::super::verification::{Attempt, Judged};
use super::{Ask, RACES_MAX, Refused, Service, ShownTransaction, TransactionAnswer, race_lost};

/// What is presented for a transaction.
pub enum Presented {
    /// A code.
    Code(Otp),
    /// A signature over the signing input.
    Signature {
        /// How it is written.
        format: SignatureFormat,
        /// As it came.
        signature: Vec<u8>,
    },
    /// A compact JWS whose payload is the signing input.
    Jws(String),
    /// A WebAuthn assertion.
    Assertion {
        /// What is signed.
        assertion: Assertion,
        /// The signature, as it came: DER of ES256, RSA's octets.
        signature: Vec<u8>,
    },
}

impl Service {
    /// Whether what is presented approves the transaction. A yes is final, and comes with the attestation.
    ///
    /// # Errors
    /// [`Refused`]; then nothing is charged.
    pub async fn respond(
        &self,
        mut ask: Ask,
        id: Option<TransactionId>,
        presented: Presented,
    ) -> Result<TransactionAnswer, Refused> {
        let memory = match self.recall(&mut ask).await? {
            Recall::Answered(answer) => return self.tell(&ask.caller, answer).await,
            Recall::New(memory) => memory,
        };
        let id = id.ok_or(Refused::Absent)?;
        let tenant = ask.caller.tenant.clone();
        let first = self.load_transaction(&tenant, id).await?;
        // Signatures too: each attempt at a transaction changes it.
        let _guard = match first.transaction.row.account() {
            Some(account) => Some(self.locks.lock(&tenant, account).await?),
            None => None,
        };
        for _ in 0..RACES_MAX {
            let rows = self.load_transaction(&tenant, id).await?;
            let now = self.now();
            if let Err(error) = rows.transaction.row.open(&now) {
                match self.not_open(&ask, &memory, &rows, error, &now).await? {
                    Some(told) => return Ok(told),
                    None => continue,
                }
            }
            let credential = rows.transaction.row.method.credential();
            // Pruned: its device cannot respond any more.
            let credential = self.store.credential(&tenant, credential).await?.ok_or(Refused::Conflict)?;
            // All that is told is read before the commit: nothing can fail behind it.
            let parent = self.parent_of(&rows.transaction.row).await?;
            if let Some(parent) = &parent {
                self.hsm.check(vec![parent.to_bytes()]).await?;
            }
            let transaction = Some(&rows.transaction);
            let attempt = Attempt { memory: &memory, rows: &credential, transaction, now: &now };
            let judged = self.judge_presented(attempt, &rows.transaction, &presented).await?;
            let shown = ShownTransaction::of(&judged.ending.rows, parent.as_ref());
            if let Some(answer) = self.commit_verdict(&ask, attempt, judged).await? {
                return Ok(TransactionAnswer { answer, transaction: shown });
            }
        }
        Err(race_lost())
    }

    async fn judge_presented(
        &self,
        attempt: Attempt<'_>,
        Sealed { row: transaction, .. }: &Sealed<Transaction>,
        presented: &Presented,
    ) -> Result<Judged, Refused> {
        // Deleted: the transaction is there, and nothing can approve it.
        usable(attempt.subject()).map_err(|_| Refused::Conflict)?;
        if let Some(suite) = transaction.method.suite() {
            let Presented::Code(otp) = presented else {
                return Err(misfit(
                    "otp",
                    "must be there: the transaction asks for a code, and for nothing else",
                ));
            };
            let digest = transaction.digest();
            let challenge = Challenge::of_transaction(suite, &digest).map_err(Refused::unavailable)?;
            return self.judge_response(attempt, challenge, otp).await;
        }
        let signer = attempt.rows.credential.row.kind.signer();
        let signer = signer.ok_or_else(|| Refused::unavailable("a transaction's signer is none"))?;
        let proof = match presented {
            Presented::Code(_) => {
                return Err(misfit("otp", "must not be there: the transaction asks for a signature"));
            }
            Presented::Assertion { assertion, signature } => {
                asserted(attempt, transaction, signer, assertion, signature)?
            }
            _ if is_assertion(transaction) => {
                return Err(misfit("format", "must be webauthn: the credential is a WebAuthn authenticator"));
            }
            Presented::Signature { format, signature } => Proof {
                digest: transaction.digest(),
                signature: parsed(signer, *format, signature)?,
                state: None,
                report: None,
            },
            Presented::Jws(jws) => signed_jws(transaction, signer, jws)?,
        };
        self.check_proof(attempt, proof).await
    }
}

fn misfit(field: &'static str, reason: &'static str) -> Refused {
    Refused::Invalid { field, reason }
}

fn is_assertion(transaction: &Transaction) -> bool {
    matches!(transaction.method, Method::DeviceSignature { device: Device::Assertion, .. })
}

/// A JWS proves something if its payload is the signing input, and its algorithm the signer's.
fn signed_jws(transaction: &Transaction, signer: &Signer, jws: &str) -> Result<Proof, Refused> {
    let key = signer.key.as_ref().ok_or(Refused::Absent)?;
    let format = SignatureFormat::of_jws(signer.algorithm);
    let fitting = Jws::parse(jws)
        .filter(|jws| jws.alg() == signer.algorithm.name() && jws.payload() == transaction.signing_input());
    let digest = fitting.as_ref().map_or_else(|| transaction.digest(), Jws::digest);
    let signature = fitting.and_then(|jws| Signature::parse(format, jws.signature(), key));
    Ok(Proof { digest, signature, state: None, report: None })
}

/// An assertion proves something if it is of where its authenticator was registered, of this transaction, and
/// its counter has not been seen.
fn asserted(
    attempt: Attempt<'_>,
    transaction: &Transaction,
    signer: &Signer,
    assertion: &Assertion,
    signature: &[u8],
) -> Result<Proof, Refused> {
    let subject = attempt.subject();
    let Kind::Authenticator(authenticator) = &subject.credential.kind else {
        return Err(misfit(
            "format",
            "must be der, p1363, raw or jws: the credential is no WebAuthn authenticator",
        ));
    };
    let key = signer.key.as_ref().ok_or(Refused::Absent)?;
    let fitting = assertion.fitting(&authenticator.party, &transaction.digest()).and_then(|fitting| {
        let next = next_sign_count(subject.state.next_factor, fitting.sign_count)?;
        Some((fitting, next))
    });
    let Some((fitting, next)) = fitting else {
        return Ok(Proof { digest: transaction.digest(), signature: None, state: None, report: None });
    };
    let report = AuthenticatorReport {
        sign_count: fitting.sign_count,
        backup_eligible: fitting.backup_eligible,
        backed_up: fitting.backed_up,
    };
    Ok(Proof {
        digest: fitting.digest,
        signature: Signature::parse(SignatureFormat::of_webauthn(signer.algorithm), signature, key),
        state: (next != subject.state.next_factor).then(|| subject.state.counted(next)),
        report: Some(report),
    })
}
