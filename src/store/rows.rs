//! Rows into the database: comparing, writing and removing them, each one statement.
//!
//! Every function runs inside the writer's transaction. But for [`write`], a statement that changes another
//! number of rows than one is an error: comparing came first, so only a commit that names a row twice gets
//! there.

use rusqlite::types::ToSql;
use rusqlite::{Connection, Error, OptionalExtension, Params, Result, params};
use serde::Serialize;

use crate::domain::account::{Account, AccountRef};
use crate::domain::attestation::Attestation;
use crate::domain::audit::AuditEntry;
use crate::domain::credential::{
    Credential, CredentialState, EncryptedPinHash, Kind, OcraUse, Signer, Status, UsedInput, WrappedSecret,
};
use crate::domain::idempotency::IdempotencyRecord;
use crate::domain::lockout::Lock;
use crate::domain::otp::MovingFactor;
use crate::domain::row::{Row, RowKey, RowSum, Seal, Sealed};
use crate::domain::text::DisplayText;
use crate::domain::transaction::Transaction;

/// The version of the row at `key`; `None` where there is none.
pub(super) fn version(connection: &Connection, key: &RowKey) -> Result<Option<u64>> {
    fn find(connection: &Connection, sql: &str, key: impl Params) -> Result<Option<u64>> {
        let version =
            connection.prepare_cached(sql)?.query_row(key, |row| row.get::<_, i64>(0)).optional()?;
        Ok(version.map(i64::cast_unsigned))
    }
    match key {
        RowKey::Credential(id) => {
            find(connection, "SELECT version FROM credential WHERE id = ?1", [id.to_bytes()])
        }
        RowKey::State(id) => {
            find(connection, "SELECT version FROM credential_state WHERE id = ?1", [id.to_bytes()])
        }
        RowKey::Account(tenant, account) => find(
            connection,
            "SELECT version FROM account WHERE tenant = ?1 AND account = ?2",
            [tenant.as_str(), account.as_str()],
        ),
        RowKey::Idempotency(client, key) => find(
            connection,
            "SELECT version FROM idempotency WHERE client = ?1 AND key = ?2",
            [client.as_str(), key.as_str()],
        ),
        RowKey::UsedInput(id, fingerprint) => find(
            connection,
            "SELECT version FROM used_input WHERE id = ?1 AND fingerprint = ?2",
            params![id.to_bytes(), fingerprint],
        ),
        RowKey::Attestation(transaction) => find(
            connection,
            "SELECT version FROM attestation WHERE transaction_id = ?1",
            [transaction.to_bytes()],
        ),
        RowKey::Transaction(id) => {
            find(connection, "SELECT version FROM payment WHERE id = ?1", [id.to_bytes()])
        }
    }
}

/// Removes the row at `key`.
pub(super) fn remove(connection: &Connection, key: &RowKey) -> Result<()> {
    match key {
        RowKey::Credential(id) => {
            change(connection, "DELETE FROM credential WHERE id = ?1", params![id.to_bytes()])
        }
        RowKey::State(id) => {
            change(connection, "DELETE FROM credential_state WHERE id = ?1", params![id.to_bytes()])
        }
        RowKey::Account(tenant, account) => change(
            connection,
            "DELETE FROM account WHERE tenant = ?1 AND account = ?2",
            params![tenant.as_str(), account.as_str()],
        ),
        RowKey::Idempotency(client, key) => change(
            connection,
            "DELETE FROM idempotency WHERE client = ?1 AND key = ?2",
            params![client.as_str(), key.as_str()],
        ),
        RowKey::UsedInput(id, fingerprint) => change(
            connection,
            "DELETE FROM used_input WHERE id = ?1 AND fingerprint = ?2",
            params![id.to_bytes(), fingerprint],
        ),
        RowKey::Attestation(transaction) => change(
            connection,
            "DELETE FROM attestation WHERE transaction_id = ?1",
            params![transaction.to_bytes()],
        ),
        RowKey::Transaction(id) => {
            change(connection, "DELETE FROM payment WHERE id = ?1", params![id.to_bytes()])
        }
    }
}

/// Writes a row: version 1 as a new one, any other over the version before it. `false`: that version is
/// not there, and nothing was written.
pub(super) fn write(connection: &Connection, sealed: &Sealed<Row>) -> Result<bool> {
    match &sealed.row {
        Row::Credential(row) => write_credential(connection, row, &sealed.seal),
        Row::State(row) => write_state(connection, row, &sealed.seal),
        Row::Account(row) => write_account(connection, row, &sealed.seal),
        Row::Idempotency(row) => write_idempotency(connection, row, &sealed.seal),
        Row::UsedInput(row) => write_used_input(connection, row, &sealed.seal),
        Row::Attestation(row) => write_attestation(connection, row, &sealed.seal),
        Row::Transaction(row) => write_transaction(connection, row, &sealed.seal),
    }
}

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
    secret: Option<&'a WrappedSecret>,
    pin_hash: Option<&'a EncryptedPinHash>,
    public_key: Option<Vec<u8>>,
    certificate_chain: Option<Vec<u8>>,
    relying_party: Option<Vec<u8>>,
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

fn write_credential(connection: &Connection, row: &Credential, seal: &Seal) -> Result<bool> {
    let kind = KindColumns::new(&row.kind)?;
    put(
        connection,
        row.version,
        "INSERT INTO credential (id, version, tenant, account, created_unix_ms, type, algorithm, digits,
             look_ahead, period_s, skew_steps, suite, usage, kek_version, secret, data_version, pin_hash,
             public_key, certificate_chain, relying_party, deleted_unix_ms, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21,
             ?22, ?23)",
        "UPDATE credential SET (version, tenant, account, created_unix_ms, type, algorithm, digits,
             look_ahead, period_s, skew_steps, suite, usage, kek_version, secret, data_version, pin_hash,
             public_key, certificate_chain, relying_party, deleted_unix_ms, seal_key_version, seal)
         = (?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23)
         WHERE id = ?1 AND version = ?24",
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
            kind.secret.map(|secret| secret.kek_version),
            kind.secret.map(|secret| &secret.blob),
            kind.pin_hash.map(|hash| hash.data_version),
            kind.pin_hash.map(|hash| &hash.blob),
            kind.public_key,
            kind.certificate_chain,
            kind.relying_party,
            row.deleted_unix_ms.map(u64::cast_signed),
            seal.key_version,
            seal.mac,
        ],
    )
}

fn write_state(connection: &Connection, row: &CredentialState, seal: &Seal) -> Result<bool> {
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

fn write_account(connection: &Connection, row: &Account, seal: &Seal) -> Result<bool> {
    put(
        connection,
        row.version,
        "INSERT INTO account (tenant, account, version, failures, lock, epoch, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        "UPDATE account SET (version, failures, lock, epoch, seal_key_version, seal)
         = (?3, ?4, ?5, ?6, ?7, ?8)
         WHERE tenant = ?1 AND account = ?2 AND version = ?9",
        params![
            row.tenant.as_str(),
            row.account.as_str(),
            row.version.cast_signed(),
            row.attempts.failures,
            lock_bytes(row.attempts.lock)?,
            row.epoch,
            seal.key_version,
            seal.mac,
        ],
    )
}

fn write_idempotency(connection: &Connection, row: &IdempotencyRecord, seal: &Seal) -> Result<bool> {
    put(
        connection,
        row.version,
        "INSERT INTO idempotency
             (client, key, version, fingerprint, answer, expires_unix_ms, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        "UPDATE idempotency SET (version, fingerprint, answer, expires_unix_ms, seal_key_version, seal)
         = (?3, ?4, ?5, ?6, ?7, ?8)
         WHERE client = ?1 AND key = ?2 AND version = ?9",
        params![
            row.client.as_str(),
            row.key.as_str(),
            row.version.cast_signed(),
            row.fingerprint.0,
            row.answer,
            row.expires_unix_ms.cast_signed(),
            seal.key_version,
            seal.mac,
        ],
    )
}

fn write_used_input(connection: &Connection, row: &UsedInput, seal: &Seal) -> Result<bool> {
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

fn write_attestation(connection: &Connection, row: &Attestation, seal: &Seal) -> Result<bool> {
    put(
        connection,
        row.version,
        "INSERT INTO attestation (transaction_id, version, tenant, jws, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        "UPDATE attestation SET (version, tenant, jws, seal_key_version, seal) = (?2, ?3, ?4, ?5, ?6)
         WHERE transaction_id = ?1 AND version = ?7",
        params![
            row.transaction.to_bytes(),
            row.version.cast_signed(),
            row.tenant.as_str(),
            row.jws,
            seal.key_version,
            seal.mac,
        ],
    )
}

fn write_transaction(connection: &Connection, row: &Transaction, seal: &Seal) -> Result<bool> {
    let terms = &row.terms;
    put(
        connection,
        row.version,
        "INSERT INTO payment (id, version, tenant, created_unix_ms, method, method_name, payer, payee, amount,
             currency, order_text, platform, remark, parent_id, parent_hash, nonce, expires, expires_unix_ms,
             state, attempts_left, ended_unix_ms, authenticator, seal_key_version, seal)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21,
             ?22, ?23, ?24)",
        "UPDATE payment SET (version, tenant, created_unix_ms, method, method_name, payer, payee, amount,
             currency, order_text, platform, remark, parent_id, parent_hash, nonce, expires, expires_unix_ms,
             state, attempts_left, ended_unix_ms, authenticator, seal_key_version, seal)
         = (?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, ?22, ?23,
             ?24)
         WHERE id = ?1 AND version = ?25",
        params![
            row.id.to_bytes(),
            row.version.cast_signed(),
            row.tenant.as_str(),
            row.created_unix_ms.cast_signed(),
            bytes(&row.method)?,
            row.method.name(),
            terms.payer.as_ref().map(AccountRef::as_str),
            terms.payee.as_str(),
            terms.money.amount(),
            terms.money.currency(),
            terms.order.as_str(),
            terms.platform.as_ref().map(DisplayText::as_str),
            terms.remark.as_ref().map(DisplayText::as_str),
            terms.parent.map(|parent| parent.id.to_bytes()),
            terms.parent.map(|parent| parent.hash),
            terms.nonce,
            bytes(&row.expires)?,
            row.expires.unix_ms().cast_signed(),
            row.state.name(),
            row.attempts_left,
            row.ended_unix_ms.map(u64::cast_signed),
            row.authenticator.as_ref().map(bytes).transpose()?,
            seal.key_version,
            seal.mac,
        ],
    )
}

/// Appends what the log keeps of a commit.
pub(super) fn append(connection: &Connection, entry: &AuditEntry) -> Result<()> {
    let actor = entry.actor.as_ref();
    change(
        connection,
        "INSERT INTO audit (unix_ms, event, tenant, client, request_id, credential, transaction_id)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        params![
            entry.unix_ms.cast_signed(),
            entry.event.name(),
            actor.map(|actor| actor.tenant.as_str()),
            actor.map(|actor| actor.client.as_str()),
            actor.map(|actor| actor.request_id.as_str()),
            entry.credential.map(|id| id.to_bytes()),
            entry.transaction.map(|id| id.to_bytes()),
        ],
    )
}

/// Adds to the sum over all rows.
pub(super) fn add_to_sum(connection: &Connection, difference: RowSum) -> Result<()> {
    let sum: [u8; 32] =
        connection.prepare_cached("SELECT sum FROM row_sum")?.query_row([], |row| row.get(0))?;
    change(connection, "UPDATE row_sum SET sum = ?1", params![RowSum(sum).plus(difference).0])
}

fn put(
    connection: &Connection,
    version: u64,
    insert: &str,
    update: &str,
    values: &[&dyn ToSql],
) -> Result<bool> {
    if version == 1 {
        return change(connection, insert, values).map(|()| true);
    }
    let before = version.wrapping_sub(1).cast_signed();
    let values: Vec<&dyn ToSql> = values.iter().copied().chain([&before as &dyn ToSql]).collect();
    // Keys are unique: it is one row or none.
    Ok(connection.prepare_cached(update)?.execute(values.as_slice())? == 1)
}

fn change(connection: &Connection, sql: &str, values: &[&dyn ToSql]) -> Result<()> {
    match connection.prepare_cached(sql)?.execute(values)? {
        1 => Ok(()),
        count => Err(Error::StatementChangedRows(count)),
    }
}

pub(super) fn status_name(status: Status) -> &'static str {
    match status {
        Status::Active => "active",
        Status::Suspended => "suspended",
        Status::Deleted => "deleted",
    }
}

pub(super) fn usage_name(usage: OcraUse) -> &'static str {
    match usage {
        OcraUse::Transaction => "transaction",
        OcraUse::Verify => "verify",
    }
}

fn lock_bytes(lock: Option<Lock>) -> Result<Option<Vec<u8>>> {
    lock.as_ref().map(bytes).transpose()
}

fn bytes(value: &impl Serialize) -> Result<Vec<u8>> {
    postcard::to_allocvec(value).map_err(|error| Error::ToSqlConversionFailure(Box::new(error)))
}
