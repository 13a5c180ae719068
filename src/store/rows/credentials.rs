//! Credentials, and what their codes left.

use rusqlite::{Connection, Result, params};

use super::{bytes, lock_bytes, put};
use crate::domain::credential::{
    Credential, CredentialState, EncryptedPinHash, ImportedSeed, Kind, OcraUse, Signer, Status, StoredSecret,
    UsedInput,
};
use crate::domain::otp::MovingFactor;
use crate::domain::row::Seal;
use crate::domain::text::DisplayText;

/// What the columns of `credential` say of its kind. A column that a kind does not have is NULL.
#[derive(Default)]
struct KindColumns<'a> {
    kind: &'static str,
    algorithm: Option<&'static str>,
    digits: Option<u8>,
    look_ahead: Option<u8>,
    period_s: Option<u16>,
    skew_steps: Option<u8>,
    suite: Option<&'a str>,
    usage: Option<&'static str>,
    secret: Option<&'a StoredSecret>,
    pin_hash: Option<&'a EncryptedPinHash>,
    public_key: Option<Vec<u8>>,
    certificate_chain: Option<Vec<u8>>,
    relying_party: Option<Vec<u8>>,
    address: Option<&'a str>,
    salt: Option<&'a [u8]>,
    identity_key: Option<&'a StoredSecret>,
    evidence: Option<&'a str>,
}

impl<'a> KindColumns<'a> {
    fn new(kind: &'a Kind) -> Result<Self> {
        Ok(match kind {
            Kind::Otp(token) => {
                let columns = Self {
                    algorithm: Some(token.algorithm.name()),
                    digits: Some(token.digits.into()),
                    secret: token.secret.as_ref(),
                    ..Self::default()
                };
                match token.moving_factor {
                    MovingFactor::Hotp { look_ahead } => {
                        Self { kind: "hotp", look_ahead: Some(look_ahead), ..columns }
                    }
                    MovingFactor::Totp { period_s, skew_steps } => Self {
                        kind: "totp",
                        period_s: Some(period_s),
                        skew_steps: Some(skew_steps),
                        ..columns
                    },
                }
            }
            Kind::Ocra(token) => Self {
                kind: "ocra",
                look_ahead: Some(token.look_ahead),
                skew_steps: Some(token.skew_steps),
                suite: Some(token.suite.as_str()),
                usage: Some(usage_name(token.usage)),
                secret: token.secret.as_ref(),
                pin_hash: token.pin_hash.as_ref(),
                ..Self::default()
            },
            Kind::Signer(signer) => Self { kind: "signer", ..Self::signer(signer)? },
            Kind::CertifiedSigner(certified) => Self {
                kind: "certified_signer",
                certificate_chain: certified.chain.as_ref().map(bytes).transpose()?,
                ..Self::signer(&certified.signer)?
            },
            Kind::Authenticator(authenticator) => Self {
                kind: "authenticator",
                relying_party: Some(bytes(&authenticator.party)?),
                ..Self::signer(&authenticator.signer)?
            },
            Kind::Terminal(terminal) => Self {
                kind: "terminal",
                address: Some(terminal.address.as_str()),
                secret: terminal.secret.as_ref(),
                ..Self::default()
            },
            Kind::Rolling(rolling) => Self {
                kind: "rolling",
                secret: rolling.secret.as_ref(),
                salt: Some(&rolling.salt),
                identity_key: rolling.identity_key.as_ref(),
                evidence: rolling.evidence.as_ref().map(DisplayText::as_str),
                ..Self::default()
            },
        })
    }

    fn signer(signer: &Signer) -> Result<Self> {
        Ok(Self {
            algorithm: Some(signer.algorithm.name()),
            public_key: signer.key.as_ref().map(bytes).transpose()?,
            ..Self::default()
        })
    }
}

pub fn write_credential(connection: &Connection, row: &Credential, seal: &Seal) -> Result<bool> {
    let kind = KindColumns::new(&row.kind)?;
    put(
        connection,
        row.version,
        "INSERT INTO credential (id, version, tenant, account, created_unix_ms, type, algorithm, digits,
             look_ahead, period_s, skew_steps, suite, usage, kek_version, secret, data_version, pin_hash,
             public_key, certificate_chain, relying_party, address, salt, identity_key_version, identity_key,
             evidence, deleted_unix_ms, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21,
             ?22, ?23, ?24, ?25, ?26, ?27, ?28)",
        "UPDATE credential SET (version, tenant, account, created_unix_ms, type, algorithm, digits,
             look_ahead, period_s, skew_steps, suite, usage, kek_version, secret, data_version, pin_hash,
             public_key, certificate_chain, relying_party, address, salt, identity_key_version, identity_key,
             evidence, deleted_unix_ms, seal_key_version, seal)
         = (?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23,
             ?24, ?25, ?26, ?27, ?28)
         WHERE id = ?1 AND version = ?29",
        params![
            row.id.to_bytes(),
            row.version.cast_signed(),
            row.tenant.as_str(),
            row.account.as_str(),
            row.created_unix_ms.cast_signed(),
            kind.kind,
            kind.algorithm,
            kind.digits,
            kind.look_ahead,
            kind.period_s,
            kind.skew_steps,
            kind.suite,
            kind.usage,
            kind.secret.map(|secret| secret.parts().0),
            kind.secret.map(|secret| secret.parts().1),
            kind.pin_hash.map(|hash| hash.data_version),
            kind.pin_hash.map(|hash| &hash.blob),
            kind.public_key,
            kind.certificate_chain,
            kind.relying_party,
            kind.address,
            kind.salt,
            kind.identity_key.map(|key| key.parts().0),
            kind.identity_key.map(|key| key.parts().1),
            kind.evidence,
            row.deleted_unix_ms.map(u64::cast_signed),
            seal.key_version,
            seal.mac,
        ],
    )
}

pub fn write_state(connection: &Connection, row: &CredentialState, seal: &Seal) -> Result<bool> {
    put(
        connection,
        row.version,
        "INSERT INTO credential_state (id, version, tenant, status, next_factor, last_accepted, drift_steps,
             failures, lock, account_share, account_epoch, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        "UPDATE credential_state SET (version, tenant, status, next_factor, last_accepted, drift_steps,
             failures, lock, account_share, account_epoch, seal_key_version, seal)
         = (?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)
         WHERE id = ?1 AND version = ?14",
        params![
            row.id.to_bytes(),
            row.version.cast_signed(),
            row.tenant.as_str(),
            status_name(row.status),
            row.next_factor.cast_signed(),
            row.last_accepted.map(u64::cast_signed),
            row.drift_steps,
            row.attempts.failures,
            lock_bytes(row.attempts.lock)?,
            row.account_share,
            row.account_epoch,
            seal.key_version,
            seal.mac,
        ],
    )
}

pub fn write_used_input(connection: &Connection, row: &UsedInput, seal: &Seal) -> Result<bool> {
    put(
        connection,
        row.version,
        "INSERT INTO used_input
             (id, fingerprint, version, tenant, time_step, expires_unix_ms, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        "UPDATE used_input SET (version, tenant, time_step, expires_unix_ms, seal_key_version, seal)
         = (?3, ?4, ?5, ?6, ?7, ?8)
         WHERE id = ?1 AND fingerprint = ?2 AND version = ?9",
        params![
            row.id.to_bytes(),
            row.fingerprint,
            row.version.cast_signed(),
            row.tenant.as_str(),
            row.time_step.map(u64::cast_signed),
            row.expires_unix_ms.map(u64::cast_signed),
            seal.key_version,
            seal.mac,
        ],
    )
}

pub fn write_imported_seed(connection: &Connection, row: &ImportedSeed, seal: &Seal) -> Result<bool> {
    put(
        connection,
        row.version,
        "INSERT INTO imported_seed (tenant, fingerprint, version, credential, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        "UPDATE imported_seed SET (version, credential, seal_key_version, seal) = (?3, ?4, ?5, ?6)
         WHERE tenant = ?1 AND fingerprint = ?2 AND version = ?7",
        params![
            row.tenant.as_str(),
            row.fingerprint,
            row.version.cast_signed(),
            row.credential.to_bytes(),
            seal.key_version,
            seal.mac,
        ],
    )
}

pub fn status_name(status: Status) -> &'static str {
    match status {
        Status::Active => "active",
        Status::Suspended => "suspended",
        Status::Deleted => "deleted",
        Status::Pending => "pending",
        Status::Unauthorized => "unauthorized",
        Status::Recovered => "recovered",
        Status::Stranded => "stranded",
    }
}

pub fn usage_name(usage: OcraUse) -> &'static str {
    match usage {
        OcraUse::Transaction => "transaction",
        OcraUse::Verify => "verify",
    }
}
