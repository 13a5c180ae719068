//! What a device made of a message: read, and held against what it is said to be of.

use sha2::{Digest, Sha256};

use crate::domain::credential::{Kind, Signer};
use crate::domain::jws::Jws;
use crate::domain::signer::signature::{Signature, SignatureFormat};
use crate::domain::transaction::AuthenticatorReport;
use crate::domain::webauthn::{Assertion, next_sign_count};

use super::signatures::{Proof, parsed};
use super::{Attempt, Refused};

/// What a device made of a message.
pub enum DeviceProof {
    /// A signature over it.
    Signature {
        /// How it is written.
        format: SignatureFormat,
        /// As it came.
        signature: Vec<u8>,
    },
    /// A compact JWS whose payload it is.
    Jws(String),
    /// A WebAuthn assertion, whose challenge is its SHA-256.
    Assertion {
        /// What is signed.
        assertion: Assertion,
        /// The signature, as it came: DER of ES256, RSA's octets.
        signature: Vec<u8>,
    },
}

/// What is to be checked of `presented`, if it is to be of `message`.
///
/// # Errors
/// [`Refused::Invalid`]: the attempt's credential makes no such proofs.
pub(in super::super) fn proof(
    attempt: Attempt<'_>,
    message: &[u8],
    presented: &DeviceProof,
) -> Result<Proof, Refused> {
    let kind = &attempt.rows.credential.row.kind;
    let signer = kind.signer().ok_or_else(|| Refused::unavailable("a signer is none"))?;
    let wrong_format = |reason| Err(Refused::Invalid { field: "format", reason });
    match (presented, kind) {
        (DeviceProof::Assertion { assertion, signature }, Kind::Authenticator(_)) => {
            asserted(attempt, message, signer, assertion, signature)
        }
        (DeviceProof::Assertion { .. }, _) => {
            wrong_format("must be der, p1363, raw or jws: the credential is no WebAuthn authenticator")
        }
        (_, Kind::Authenticator(_)) => {
            wrong_format("must be webauthn: the credential is a WebAuthn authenticator")
        }
        (DeviceProof::Signature { format, signature }, _) => Ok(Proof {
            digest: Sha256::digest(message).into(),
            jws_header: None,
            signature: parsed(signer, *format, signature)?,
            state: None,
            report: None,
        }),
        (DeviceProof::Jws(jws), _) => signed_jws(message, signer, jws),
    }
}

/// A JWS proves something if its payload is the message, and its algorithm the signer's.
fn signed_jws(message: &[u8], signer: &Signer, jws: &str) -> Result<Proof, Refused> {
    let key = signer.key.as_ref().ok_or(Refused::Absent)?;
    let format = SignatureFormat::of_jws(signer.algorithm);
    let fitting =
        Jws::parse(jws).filter(|jws| jws.alg() == signer.algorithm.name() && jws.payload() == message);
    let digest = fitting.as_ref().map_or_else(|| Sha256::digest(message).into(), Jws::digest);
    let jws_header = fitting.as_ref().map(|jws| jws.header().to_owned());
    let signature = fitting.and_then(|jws| Signature::parse(format, jws.signature(), key));
    Ok(Proof { digest, jws_header, signature, state: None, report: None })
}

/// An assertion proves something if it is of where its authenticator was registered, of this message, and its
/// counter has not been seen.
fn asserted(
    attempt: Attempt<'_>,
    message: &[u8],
    signer: &Signer,
    assertion: &Assertion,
    signature: &[u8],
) -> Result<Proof, Refused> {
    let subject = attempt.subject();
    let Kind::Authenticator(authenticator) = &subject.credential.kind else {
        return Err(Refused::unavailable("an authenticator is none"));
    };
    let key = signer.key.as_ref().ok_or(Refused::Absent)?;
    let challenge: [u8; 32] = Sha256::digest(message).into();
    let fitting = assertion.fitting(&authenticator.party, &challenge).and_then(|fitting| {
        let next = next_sign_count(subject.state.next_factor, fitting.sign_count)?;
        Some((fitting, next))
    });
    let Some((fitting, next)) = fitting else {
        let (state, report) = (None, None);
        return Ok(Proof { digest: challenge, jws_header: None, signature: None, state, report });
    };
    let report = AuthenticatorReport {
        sign_count: fitting.sign_count,
        backup_eligible: fitting.backup_eligible,
        backed_up: fitting.backed_up,
    };
    Ok(Proof {
        digest: fitting.digest,
        jws_header: None,
        signature: Signature::parse(SignatureFormat::of_webauthn(signer.algorithm), signature, key),
        state: (next != subject.state.next_factor).then(|| subject.state.counted(next)),
        report: Some(report),
    })
}
