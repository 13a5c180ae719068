//! Credentials, and what their codes left.

use rusqlite::Row;

use super::super::rows::{status_name, usage_name};
use super::{Columns, Fault, Table};
use crate::domain::credential::{
    Authenticator, CertifiedSigner, Credential, CredentialState, EncryptedPinHash, ImportedSeed, Kind,
    OcraToken, OcraUse, OtpToken, Signer, Status, StoredSecret, Terminal, UsedInput,
};
use crate::domain::id::CredentialId;
use crate::domain::ocra::Suite;
use crate::domain::otp::{Algorithm, Digits, MovingFactor};
use crate::domain::rolling::Rolling;
use crate::domain::row::Sealed;
use crate::domain::signer::SignatureAlgorithm;

pub(super) const CREDENTIAL: Table = Table {
    name: "credential",
    columns: &[
        "id",
        "tenant",
        "account",
        "version",
        "created_unix_ms",
        "type",
        "algorithm",
        "digits",
        "look_ahead",
        "period_s",
        "skew_steps",
        "suite",
        "usage",
        "kek_version",
        "secret",
        "data_version",
        "pin_hash",
        "public_key",
        "deleted_unix_ms",
        "seal_key_version",
        "seal",
        "certificate_chain",
        "relying_party",
        "address",
        "salt",
        "identity_key_version",
        "identity_key",
        "evidence",
    ],
};

pub(super) const STATE: Table = Table {
    name: "credential_state",
    columns: &[
        "id",
        "tenant",
        "version",
        "status",
        "next_factor",
        "last_accepted",
        "drift_steps",
        "failures",
        "lock",
        "account_share",
        "account_epoch",
        "seal_key_version",
        "seal",
    ],
};

pub(super) const USED_INPUT: Table = Table {
    name: "used_input",
    columns: &[
        "id",
        "fingerprint",
        "tenant",
        "version",
        "time_step",
        "expires_unix_ms",
        "seal_key_version",
        "seal",
    ],
};

pub(super) const IMPORTED_SEED: Table = Table {
    name: "imported_seed",
    columns: &["tenant", "fingerprint", "version", "credential", "seal_key_version", "seal"],
};

/// A row of `SELECT * FROM credential`.
pub fn credential(row: &Row<'_>) -> Result<Sealed<Credential>, Fault> {
    let columns = Columns { row, table: &CREDENTIAL };
    columns.sealed(Credential {
        id: columns.id()?,
        tenant: columns.tenant()?,
        account: columns.account()?,
        version: columns.u64("version")?,
        created_unix_ms: columns.u64("created_unix_ms")?,
        kind: kind(&columns)?,
        deleted_unix_ms: columns.optional_u64("deleted_unix_ms")?,
    })
}

/// The columns of `credential` that every kind has.
const OF_EVERY_KIND: [&str; 9] = [
    "id",
    "tenant",
    "account",
    "version",
    "created_unix_ms",
    "type",
    "deleted_unix_ms",
    "seal_key_version",
    "seal",
];

/// What the other columns say. Those that the kind has not must be NULL: its seal does not cover them.
fn kind(columns: &Columns<'_>) -> Result<Kind, Fault> {
    let (kind, own): (_, &[&str]) = match columns.get::<String>("type")?.as_str() {
        "hotp" => (
            Kind::Otp(otp_token(columns, MovingFactor::Hotp { look_ahead: columns.get("look_ahead")? })?),
            &["algorithm", "digits", "look_ahead", "kek_version", "secret"],
        ),
        "totp" => (
            Kind::Otp(otp_token(
                columns,
                MovingFactor::Totp {
                    period_s: columns.get("period_s")?,
                    skew_steps: columns.get("skew_steps")?,
                },
            )?),
            &["algorithm", "digits", "period_s", "skew_steps", "kek_version", "secret"],
        ),
        "ocra" => (
            Kind::Ocra(ocra_token(columns)?),
            &[
                "look_ahead",
                "skew_steps",
                "suite",
                "usage",
                "kek_version",
                "secret",
                "data_version",
                "pin_hash",
            ],
        ),
        "signer" => (Kind::Signer(signer(columns)?), &["algorithm", "public_key"]),
        "certified_signer" => (
            Kind::CertifiedSigner(CertifiedSigner {
                signer: signer(columns)?,
                chain: columns.optional("certificate_chain")?,
            }),
            &["algorithm", "public_key", "certificate_chain"],
        ),
        "authenticator" => (
            Kind::Authenticator(Authenticator {
                signer: signer(columns)?,
                party: columns.decoded("relying_party")?,
            }),
            &["algorithm", "public_key", "relying_party"],
        ),
        "terminal" => (
            Kind::Terminal(Terminal {
                address: columns.parsed("address", |text: String| text.try_into().ok())?,
                secret: secret(columns)?,
            }),
            &["address", "kek_version", "secret"],
        ),
        "rolling" => (
            Kind::Rolling(Rolling {
                secret: secret(columns)?,
                salt: columns.get("salt")?,
                identity_key: stored(columns, "identity_key_version", "identity_key")?,
                evidence: columns.text("evidence")?,
            }),
            &["kek_version", "secret", "salt", "identity_key_version", "identity_key", "evidence"],
        ),
        _ => return Err(columns.invalid("type")),
    };
    for column in columns.table.columns {
        let is_of_it = OF_EVERY_KIND.contains(column) || own.contains(column);
        if !is_of_it && !columns.is_null(column)? {
            return Err(columns.invalid("type"));
        }
    }
    Ok(kind)
}

fn otp_token(columns: &Columns<'_>, moving_factor: MovingFactor) -> Result<OtpToken, Fault> {
    Ok(OtpToken {
        algorithm: columns.parsed("algorithm", |name: String| {
            [Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512].into_iter().find(|a| a.name() == name)
        })?,
        digits: columns.parsed("digits", |digits: u8| Digits::try_from(digits).ok())?,
        moving_factor,
        secret: secret(columns)?,
    })
}

fn ocra_token(columns: &Columns<'_>) -> Result<OcraToken, Fault> {
    let pin_hash = match (columns.get("data_version")?, columns.get("pin_hash")?) {
        (Some(data_version), Some(blob)) => Some(EncryptedPinHash { data_version, blob }),
        (None, None) => None,
        _ => return Err(columns.invalid("pin_hash")),
    };
    Ok(OcraToken {
        suite: columns.parsed("suite", |text: String| Suite::parse(&text).ok())?,
        look_ahead: columns.get("look_ahead")?,
        skew_steps: columns.get("skew_steps")?,
        usage: columns.parsed("usage", |name: String| {
            [OcraUse::Transaction, OcraUse::Verify].into_iter().find(|usage| usage_name(*usage) == name)
        })?,
        secret: secret(columns)?,
        pin_hash,
    })
}

fn signer(columns: &Columns<'_>) -> Result<Signer, Fault> {
    Ok(Signer {
        algorithm: columns.parsed("algorithm", |name: String| {
            [SignatureAlgorithm::Es256, SignatureAlgorithm::Rs256].into_iter().find(|a| a.name() == name)
        })?,
        key: columns.optional("public_key")?,
    })
}

fn secret(columns: &Columns<'_>) -> Result<Option<StoredSecret>, Fault> {
    stored(columns, "kek_version", "secret")
}

/// A secret in two columns, or none in both.
fn stored(
    columns: &Columns<'_>,
    version: &'static str,
    blob: &'static str,
) -> Result<Option<StoredSecret>, Fault> {
    match (columns.get(version)?, columns.get(blob)?) {
        (Some(kek_version), Some(bytes)) => {
            StoredSecret::from_parts(kek_version, bytes).map(Some).map_err(|_| columns.invalid(blob))
        }
        (None, None) => Ok(None),
        _ => Err(columns.invalid(blob)),
    }
}

/// A row of `SELECT * FROM used_input`.
pub fn used_input(row: &Row<'_>) -> Result<Sealed<UsedInput>, Fault> {
    let columns = Columns { row, table: &USED_INPUT };
    columns.sealed(UsedInput {
        id: columns.id()?,
        fingerprint: columns.get("fingerprint")?,
        tenant: columns.tenant()?,
        version: columns.u64("version")?,
        time_step: columns.optional_u64("time_step")?,
        expires_unix_ms: columns.optional_u64("expires_unix_ms")?,
    })
}

/// A row of `SELECT * FROM imported_seed`.
pub fn imported_seed(row: &Row<'_>) -> Result<Sealed<ImportedSeed>, Fault> {
    let columns = Columns { row, table: &IMPORTED_SEED };
    columns.sealed(ImportedSeed {
        tenant: columns.tenant()?,
        fingerprint: columns.get("fingerprint")?,
        version: columns.u64("version")?,
        credential: columns.get("credential").map(CredentialId::from_random)?,
    })
}

/// A row of `SELECT * FROM credential_state`.
pub fn state(row: &Row<'_>) -> Result<Sealed<CredentialState>, Fault> {
    let columns = Columns { row, table: &STATE };
    columns.sealed(CredentialState {
        id: columns.id()?,
        tenant: columns.tenant()?,
        version: columns.u64("version")?,
        status: columns.parsed("status", |name: String| {
            Status::ALL.into_iter().find(|status| status_name(*status) == name)
        })?,
        next_factor: columns.u64("next_factor")?,
        last_accepted: columns.optional_u64("last_accepted")?,
        drift_steps: columns.get("drift_steps")?,
        attempts: columns.attempts()?,
        account_share: columns.get("account_share")?,
        account_epoch: columns.get("account_epoch")?,
    })
}
