//! Verifies an attestation offline, as a bank's own program may do it:
//!
//! `offline_verification --jwks jwks.json [--issuer hsm-authd] < attestation.jws`
//!
//! `jwks.json` is what `GET /v1/jwks` answered once. Nothing here is hsm-authd's: the signature is verified by
//! the `jsonwebtoken` crate, and every other language has a library as good. The claims go to standard output as
//! JSON. One line on standard error and exit 1: do not rely on this attestation.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use data_encoding::HEXLOWER;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The longest input that is read. An attestation has a few kilobytes at most.
const INPUT_BYTES_MAX: u64 = 65_536;

/// Verifies the attestation on standard input, offline.
#[derive(Parser)]
struct Arguments {
    /// The appliance's public keys: what GET /v1/jwks answered, from a connection that was trusted
    #[arg(long)]
    jwks: PathBuf,
    /// Who has to have issued it
    #[arg(long, default_value = "hsm-authd")]
    issuer: String,
}

/// What an attestation says. Claims that are not named here are not printed, since nobody has checked them.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Claims {
    iss: String,
    /// The transaction's id.
    jti: String,
    /// Seconds since 1970, as is `exp`.
    iat: u64,
    exp: u64,
    /// Whose transaction it was. An appliance may serve several banks: compare it with your own name.
    tenant: String,
    method: String,
    /// Who approved.
    account: String,
    /// What was approved, as the hash that the user's token or signature was bound to.
    digest: String,
    transaction: Transaction,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Parent>,
}

/// What was approved, as it can be read. A field more would be one that the digest does not cover.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Transaction {
    #[serde(skip_serializing_if = "Option::is_none")]
    payer: Option<String>,
    payee: String,
    amount: String,
    currency: String,
    order: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remark: Option<String>,
    expires_at: String,
    nonce: String,
}

/// The transaction that had to be approved before this one.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Parent {
    jti: String,
    /// SHA-256 of its attestation.
    hash: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let said = read(&arguments.jwks)
        .and_then(|(jws, jwks)| verified(&jws, &jwks, &arguments.issuer))
        .and_then(|claims| serde_json::to_string_pretty(&claims).map_err(|error| error.to_string()));
    match said {
        Ok(claims) => match writeln!(std::io::stdout(), "{claims}") {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        },
        Err(reason) => {
            let _ = writeln!(std::io::stderr(), "offline_verification: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn read(jwks: &Path) -> Result<(String, JwkSet), String> {
    let jwks = fs::read(jwks).map_err(|error| format!("{}: {error}", jwks.display()))?;
    let jwks = serde_json::from_slice(&jwks).map_err(|_| "the file of keys is no JWK set".to_owned())?;
    let mut jws = String::new();
    let mut input = std::io::stdin().take(INPUT_BYTES_MAX);
    input.read_to_string(&mut jws).map_err(|error| format!("standard input: {error}"))?;
    Ok((jws, jwks))
}

/// The claims of an attestation that may be relied on now. The reason why not is one line, and shows nothing of
/// the attestation: it comes from anybody.
pub(crate) fn verified(jws: &str, jwks: &JwkSet, issuer: &str) -> Result<Claims, String> {
    let jws = jws.trim_ascii();
    // The header is not trusted. It may say what it is, and which of our keys to try; keys and addresses that it
    // brings along (jwk, x5c, jku, x5u) are not looked at.
    let header = decode_header(jws).map_err(|_| "it is no JWS with an algorithm that is known")?;
    if header.typ.as_deref() != Some("attestation+jwt") {
        return Err("its typ is not attestation+jwt: it was signed for something else".to_owned());
    }
    if header.crit.is_some() {
        return Err("its header demands what this program does not know (crit)".to_owned());
    }
    let kid = header.kid.ok_or("its header names no key (kid)")?;
    let jwk = jwks.find(&kid).ok_or("its key (kid) is not in the file of keys")?;
    if !matches!(&jwk.algorithm, AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256)
    {
        return Err("its key is not one of P-256".to_owned());
    }
    let key = DecodingKey::from_jwk(jwk).map_err(|_| "its key in the file of keys is broken")?;

    // The algorithm is ours to say, never the header's: neither "none", nor an HMAC whose secret would be the
    // public key.
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_issuer(&[issuer]);
    validation.set_required_spec_claims(&["exp", "iss"]);
    // On the second, without the library's minute of patience: its default would accept expired ones.
    validation.leeway = 0;
    validation.reject_tokens_expiring_in_less_than = 1;
    let claims = decode::<Claims>(jws, &key, &validation).map_err(|error| match error.kind() {
        ErrorKind::InvalidAlgorithm => "its algorithm is not ES256",
        ErrorKind::InvalidSignature => "its signature is wrong",
        ErrorKind::ExpiredSignature => "it has expired",
        ErrorKind::InvalidIssuer => "somebody else issued it (iss)",
        ErrorKind::Json(_) | ErrorKind::MissingRequiredClaim(_) => "its claims are not an attestation's",
        _ => "it is broken",
    })?;
    let claims = claims.claims;

    // The signature says that the appliance signed all this. That what can be read is what was approved, anybody
    // can compute.
    if digest(&claims) != claims.digest {
        return Err("its digest is not that of its transaction".to_owned());
    }
    Ok(claims)
}

/// The digest that the user approved: SHA-256 over all fields, each behind its length (32 bits, big-endian), so
/// that no text can pass for two others. An absent field is an empty one.
fn digest(claims: &Claims) -> String {
    let transaction = &claims.transaction;
    let fields = [
        "hsm-authd/transaction/v1",
        &claims.tenant,
        &claims.jti,
        &claims.method,
        transaction.payer.as_deref().unwrap_or_default(),
        &transaction.payee,
        &transaction.amount,
        &transaction.currency,
        &transaction.order,
        transaction.platform.as_deref().unwrap_or_default(),
        transaction.remark.as_deref().unwrap_or_default(),
        claims.parent.as_ref().map(|parent| parent.hash.as_str()).unwrap_or_default(),
        &transaction.expires_at,
        &transaction.nonce,
    ];
    let mut hash = Sha256::new();
    for field in fields {
        // All of them together were no longer than INPUT_BYTES_MAX.
        hash.update((field.len() as u32).to_be_bytes());
        hash.update(field);
    }
    HEXLOWER.encode(&hash.finalize())
}
