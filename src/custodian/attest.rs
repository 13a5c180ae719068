//! The `attest` key: what the appliance signs in its own name. It signs with an accepted check, and never else.

use sha2::{Digest, Sha256};

use super::keys::SigningKey;
use super::pkcs11::Session;
use crate::domain::attestation::{Attestation, compose, signing_input};
use crate::domain::credential::{Credential, Kind};
use crate::domain::jws;
use crate::domain::ocra::Challenge;
use crate::domain::row::{Row, RowBytes, SealedBytes};
use crate::domain::transaction::{Device, Method, State, Transaction};
use crate::hsm::messages::{Attest, CLAIMS_BYTES_MAX, CheckSignature, Fault};

/// What came of it: the row that keeps it, and the compact JWS.
pub struct Attested {
    pub row: RowBytes,
    pub jws: String,
}

impl SigningKey {
    /// Signs the claims of what was accepted; they must have been [`validated`].
    ///
    /// # Errors
    /// The HSM failed.
    pub fn attest(&self, session: &Session, attest: &Attest) -> Result<Attested, Fault> {
        let input = signing_input(self.kid(), &attest.claims);
        let signature = self.sign(session, &Sha256::digest(&input).into())?;
        let jws = compose(&input, &signature);
        let row = Attestation::new(attest.transaction, attest.tenant.clone(), jws.clone());
        Ok(Attested { row: Row::from(row).encode(), jws })
    }
}

/// Whether this could be attested of a check by that credential: a pending transaction of the credential has to be
/// among the rows that stand (their seals are right), and an OCRA code has to answer the question about it.
///
/// # Errors
/// [`Fault::Request`].
pub fn validated<'a>(
    attest: Option<&'a Attest>,
    credential: &Credential,
    challenge: Option<&Challenge>,
    standing: &[SealedBytes],
) -> Result<Option<&'a Attest>, Fault> {
    let Some(attest) = attest else { return Ok(None) };
    let refused = |reason: &str| Err(Fault::Request(reason.to_owned()));
    if attest.claims.len() > CLAIMS_BYTES_MAX {
        return refused("an attestation's claims are too long");
    }
    if serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&attest.claims).is_err() {
        return refused("an attestation's claims are no JSON object");
    }
    if attest.tenant != credential.tenant {
        return refused("an attestation of another tenant's");
    }
    let transaction = standing.iter().find_map(|row| match row.bytes.decode() {
        Some(Row::Transaction(transaction)) if transaction.id == attest.transaction => Some(transaction),
        _ => None,
    });
    // Codes of terminals approve what asks for them, and nothing else.
    let is_terminal = matches!(credential.kind, Kind::Terminal(_));
    let of_it = |transaction: &Transaction| {
        transaction.state == State::Pending
            && transaction.tenant == attest.tenant
            && transaction.method.takes(credential.id)
            // Which credential it is, a password tells; that it is one of passwords, nobody else does.
            && (transaction.method == Method::RollingPassword) == matches!(credential.kind, Kind::Rolling(_))
            && matches!(transaction.method, Method::MultiTerminal(_)) == is_terminal
    };
    let Some(transaction) = transaction.filter(of_it) else {
        return refused("an attestation of no transaction that the credential is asked about");
    };
    if let Kind::Ocra(token) = &credential.kind {
        let question = Challenge::of_transaction(&token.suite, &transaction.digest());
        if question.ok().as_ref() != challenge {
            return refused("a code that answers another question than the transaction's");
        }
    }
    Ok(Some(attest))
}

/// Whether what is said to be signed is the transaction that is to be attested: its signing input, or a JWS of it. A
/// signature of anything else proves no approval, however right it is: not that of a decline, nor of a presentation, nor
/// of what somebody had the device sign for `/verify`.
///
/// It rests on the transaction's sealed row, which the bytes are computed from here. An assertion is the exception: its
/// challenge stands in JSON that the front reads, so only a transaction that asks for an assertion takes one.
///
/// # Errors
/// [`Fault::Request`].
pub fn is_signed(attest: &Attest, credential: &Credential, check: &CheckSignature) -> Result<(), Fault> {
    let is_of = |transaction: Transaction| match (&credential.kind, &transaction.method) {
        (Kind::Authenticator(_), Method::DeviceSignature { device: Device::Assertion, .. }) => true,
        (Kind::Signer(_) | Kind::CertifiedSigner(_), _) => {
            check.digest == signed_digest(&transaction.signing_input(), check.jws_header.as_deref())
        }
        _ => false,
    };
    let rows = check.standing.iter().filter_map(|row| row.bytes.decode());
    let mut transactions = rows.filter_map(|row| match row {
        Row::Transaction(transaction) if transaction.id == attest.transaction => Some(transaction),
        _ => None,
    });
    match transactions.next().is_some_and(is_of) {
        true => Ok(()),
        false => Err(Fault::Request("a signature of something else than the transaction".to_owned())),
    }
}

/// SHA-256 of what a signer signs of `message`: of itself, or of a JWS with this header.
pub fn signed_digest(message: &[u8], jws_header: Option<&str>) -> [u8; 32] {
    match jws_header {
        Some(header) => jws::digest_of(header, message),
        None => Sha256::digest(message).into(),
    }
}
