//! Rows out of the database: columns parsed into types that cannot be wrong.

use rusqlite::Row;
use rusqlite::types::{FromSql, ValueRef};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::rows::{status_name, usage_name};
use crate::domain::account::{Account, AccountRef};
use crate::domain::attestation::Attestation;
use crate::domain::audit::{Actor, AuditEntry, Event};
use crate::domain::caller::{ClientName, Tenant};
use crate::domain::credential::{
    Authenticator, CertifiedSigner, Credential, CredentialState, EncryptedPinHash, Kind, OcraToken, OcraUse,
    OtpToken, Signer, Status, UsedInput, WrappedSecret,
};
use crate::domain::id::{CredentialId, TransactionId};
use crate::domain::idempotency::{Fingerprint, IdempotencyKey, IdempotencyRecord};
use crate::domain::lockout::Attempts;
use crate::domain::money::Money;
use crate::domain::ocra::Suite;
use crate::domain::otp::{Algorithm, Digits, MovingFactor};
use crate::domain::row::{Seal, Sealed};
use crate::domain::signer::SignatureAlgorithm;
use crate::domain::time::Deadline;
use crate::domain::transaction::{Method, Parent, State, Terms, Transaction};

/// Why a read failed; for the log, and without any value.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// SQLite said no.
    #[error("{0}")]
    Sql(#[from] rusqlite::Error),
    /// A value that we do not write: the file is damaged, or somebody else wrote it.
    #[error("column {table}.{column} holds no valid value")]
    Invalid {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
    },
    /// A credential without the row that limits guessing.
    #[error("credential {id} has no row in table {table}: it was removed")]
    Missing {
        /// Where it is missing.
        table: &'static str,
        /// Whose it is.
        id: CredentialId,
    },
    /// An approved transaction without its attestation.
    #[error("transaction {0} is approved and has no row in table attestation: it was removed")]
    Unattested(TransactionId),
    /// The attestation of a transaction that is not approved.
    #[error("transaction {0} has a row in table attestation and is not approved: an old row was put back")]
    Unapproved(TransactionId),
}

/// A table, with its columns in the order of `SELECT *`.
struct Table {
    name: &'static str,
    columns: &'static [&'static str],
}

const CREDENTIAL: Table = Table {
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
    ],
};
const STATE: Table = Table {
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
const ACCOUNT: Table = Table {
    name: "account",
    columns: &["tenant", "account", "version", "failures", "lock", "epoch", "seal_key_version", "seal"],
};
const IDEMPOTENCY: Table = Table {
    name: "idempotency",
    columns: &[
        "client",
        "key",
        "version",
        "fingerprint",
        "answer",
        "expires_unix_ms",
        "seal_key_version",
        "seal",
    ],
};
const USED_INPUT: Table = Table {
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
const ATTESTATION: Table = Table {
    name: "attestation",
    columns: &["transaction_id", "tenant", "version", "jws", "seal_key_version", "seal"],
};
const PAYMENT: Table = Table {
    name: "payment",
    columns: &[
        "id",
        "tenant",
        "version",
        "created_unix_ms",
        "method",
        "method_name",
        "payer",
        "payee",
        "amount",
        "currency",
        "order_text",
        "platform",
        "remark",
        "parent_id",
        "parent_hash",
        "nonce",
        "expires",
        "expires_unix_ms",
        "state",
        "attempts_left",
        "ended_unix_ms",
        "authenticator",
        "seal_key_version",
        "seal",
    ],
};
const AUDIT: Table = Table {
    name: "audit",
    columns: &["seq", "unix_ms", "event", "tenant", "client", "request_id", "credential", "transaction_id"],
};

/// One row of `SELECT *` from `table`. SQLite finds a column by its name far more slowly than this does.
struct Columns<'a> {
    row: &'a Row<'a>,
    table: &'static Table,
}

impl Columns<'_> {
    fn get<T: FromSql>(&self, column: &'static str) -> Result<T, Fault> {
        let place = self.place(column)?;
        self.row.get(place).map_err(|_| self.invalid(column))
    }

    fn is_null(&self, column: &'static str) -> Result<bool, Fault> {
        Ok(self.row.get_ref(self.place(column)?)? == ValueRef::Null)
    }

    fn place(&self, column: &'static str) -> Result<usize, Fault> {
        self.table.columns.iter().position(|name| *name == column).ok_or_else(|| self.invalid(column))
    }

    fn u64(&self, column: &'static str) -> Result<u64, Fault> {
        self.get::<i64>(column).map(i64::cast_unsigned)
    }

    fn optional_u64(&self, column: &'static str) -> Result<Option<u64>, Fault> {
        Ok(self.get::<Option<i64>>(column)?.map(i64::cast_unsigned))
    }

    fn parsed<T: FromSql, U>(
        &self,
        column: &'static str,
        parse: impl FnOnce(T) -> Option<U>,
    ) -> Result<U, Fault> {
        parse(self.get(column)?).ok_or_else(|| self.invalid(column))
    }

    /// A value as postcard spells it, in its one spelling.
    fn decoded<T: Serialize + DeserializeOwned>(&self, column: &'static str) -> Result<T, Fault> {
        self.parsed(column, |bytes: Vec<u8>| canonical(&bytes))
    }

    /// The same, or NULL.
    fn optional<T: Serialize + DeserializeOwned>(&self, column: &'static str) -> Result<Option<T>, Fault> {
        self.parsed(column, |bytes: Option<Vec<u8>>| match bytes {
            None => Some(None),
            Some(bytes) => canonical(&bytes).map(Some),
        })
    }

    /// A text of its type, or NULL.
    fn text<T: TryFrom<String>>(&self, column: &'static str) -> Result<Option<T>, Fault> {
        self.parsed(column, |text: Option<String>| text.map(T::try_from).transpose().ok())
    }

    fn invalid(&self, column: &'static str) -> Fault {
        Fault::Invalid { table: self.table.name, column }
    }

    fn id(&self) -> Result<CredentialId, Fault> {
        self.get("id").map(CredentialId::from_random)
    }

    fn tenant(&self) -> Result<Tenant, Fault> {
        self.parsed("tenant", |text: String| Tenant::try_from(text).ok())
    }

    fn account(&self) -> Result<AccountRef, Fault> {
        self.parsed("account", |text: String| AccountRef::try_from(text).ok())
    }

    fn attempts(&self) -> Result<Attempts, Fault> {
        Ok(Attempts { failures: self.get("failures")?, lock: self.optional("lock")? })
    }

    fn seal(&self) -> Result<Seal, Fault> {
        Ok(Seal { key_version: self.get("seal_key_version")?, mac: self.get("seal")? })
    }

    fn sealed<T>(&self, row: T) -> Result<Sealed<T>, Fault> {
        Ok(Sealed { row, seal: self.seal()? })
    }
}

/// A value has one spelling: bytes that another encoding of it would have are none.
fn canonical<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let value = postcard::from_bytes(bytes).ok()?;
    (postcard::to_allocvec(&value).ok()? == bytes).then_some(value)
}

/// A row of `SELECT * FROM credential`.
pub(super) fn credential(row: &Row<'_>) -> Result<Sealed<Credential>, Fault> {
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

fn secret(columns: &Columns<'_>) -> Result<Option<WrappedSecret>, Fault> {
    match (columns.get("kek_version")?, columns.get("secret")?) {
        (Some(kek_version), Some(blob)) => Ok(Some(WrappedSecret { kek_version, blob })),
        (None, None) => Ok(None),
        _ => Err(columns.invalid("secret")),
    }
}

/// A row of `SELECT * FROM used_input`.
pub(super) fn used_input(row: &Row<'_>) -> Result<Sealed<UsedInput>, Fault> {
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

/// A row of `SELECT * FROM attestation`.
pub(super) fn attestation(row: &Row<'_>) -> Result<Sealed<Attestation>, Fault> {
    let columns = Columns { row, table: &ATTESTATION };
    columns.sealed(Attestation {
        transaction: columns.get("transaction_id").map(TransactionId::from_random)?,
        tenant: columns.tenant()?,
        version: columns.u64("version")?,
        jws: columns.get("jws")?,
    })
}

/// A row of `SELECT * FROM payment`.
pub(super) fn transaction(row: &Row<'_>) -> Result<Sealed<Transaction>, Fault> {
    let columns = Columns { row, table: &PAYMENT };
    let method: Method = columns.decoded("method")?;
    columns.parsed("method_name", |name: String| (name == method.name()).then_some(()))?;
    let expires: Deadline = columns.decoded("expires")?;
    columns.parsed("expires_unix_ms", |unix_ms: i64| {
        (unix_ms.cast_unsigned() == expires.unix_ms()).then_some(())
    })?;
    columns.sealed(Transaction {
        id: columns.get("id").map(TransactionId::from_random)?,
        tenant: columns.tenant()?,
        version: columns.u64("version")?,
        created_unix_ms: columns.u64("created_unix_ms")?,
        method,
        terms: terms(&columns)?,
        expires,
        state: columns
            .parsed("state", |name: String| State::ALL.into_iter().find(|state| state.name() == name))?,
        attempts_left: columns.get("attempts_left")?,
        ended_unix_ms: columns.optional_u64("ended_unix_ms")?,
        authenticator: columns.optional("authenticator")?,
    })
}

fn terms(columns: &Columns<'_>) -> Result<Terms, Fault> {
    let parent = match (columns.get("parent_id")?, columns.get("parent_hash")?) {
        (Some(id), Some(hash)) => Some(Parent { id: TransactionId::from_random(id), hash }),
        (None, None) => None,
        _ => return Err(columns.invalid("parent_hash")),
    };
    Ok(Terms {
        payer: columns.text("payer")?,
        payee: columns.parsed("payee", |text: String| text.try_into().ok())?,
        money: Money::stored(columns.get("amount")?, columns.get("currency")?),
        order: columns.parsed("order_text", |text: String| text.try_into().ok())?,
        platform: columns.text("platform")?,
        remark: columns.text("remark")?,
        parent,
        nonce: columns.get("nonce")?,
    })
}

/// A row of `SELECT * FROM credential_state`.
pub(super) fn state(row: &Row<'_>) -> Result<Sealed<CredentialState>, Fault> {
    let columns = Columns { row, table: &STATE };
    columns.sealed(CredentialState {
        id: columns.id()?,
        tenant: columns.tenant()?,
        version: columns.u64("version")?,
        status: columns.parsed("status", |name: String| {
            [Status::Active, Status::Suspended, Status::Deleted].into_iter().find(|s| status_name(*s) == name)
        })?,
        next_factor: columns.u64("next_factor")?,
        last_accepted: columns.optional_u64("last_accepted")?,
        drift_steps: columns.get("drift_steps")?,
        attempts: columns.attempts()?,
        account_share: columns.get("account_share")?,
        account_epoch: columns.get("account_epoch")?,
    })
}

/// A row of `SELECT * FROM account`.
pub(super) fn account(row: &Row<'_>) -> Result<Sealed<Account>, Fault> {
    let columns = Columns { row, table: &ACCOUNT };
    columns.sealed(Account {
        tenant: columns.tenant()?,
        account: columns.account()?,
        version: columns.u64("version")?,
        attempts: columns.attempts()?,
        epoch: columns.get("epoch")?,
    })
}

/// A row of `SELECT * FROM idempotency`.
pub(super) fn idempotency(row: &Row<'_>) -> Result<Sealed<IdempotencyRecord>, Fault> {
    let columns = Columns { row, table: &IDEMPOTENCY };
    columns.sealed(IdempotencyRecord {
        client: columns.parsed("client", |text: String| ClientName::try_from(text).ok())?,
        key: columns.parsed("key", |text: String| IdempotencyKey::parse(&text))?,
        version: columns.u64("version")?,
        fingerprint: Fingerprint(columns.get("fingerprint")?),
        answer: columns.get("answer")?,
        expires_unix_ms: columns.u64("expires_unix_ms")?,
    })
}

/// A row of `SELECT * FROM audit`, with its place in the log.
pub(super) fn audit(row: &Row<'_>) -> Result<(u64, AuditEntry), Fault> {
    let columns = Columns { row, table: &AUDIT };
    let actor = match (columns.get("tenant")?, columns.get("client")?, columns.get("request_id")?) {
        (None::<String>, None::<String>, None) => None,
        (Some(tenant), Some(client), Some(request_id)) => Some(Actor {
            tenant: Tenant::try_from(tenant).map_err(|_| columns.invalid("tenant"))?,
            client: ClientName::try_from(client).map_err(|_| columns.invalid("client"))?,
            request_id,
        }),
        _ => return Err(columns.invalid("tenant")),
    };
    let entry = AuditEntry {
        unix_ms: columns.u64("unix_ms")?,
        event: columns.parsed("event", |name: String| Event::parse(&name))?,
        actor,
        credential: columns.get::<Option<[u8; 16]>>("credential")?.map(CredentialId::from_random),
        transaction: columns.get::<Option<[u8; 16]>>("transaction_id")?.map(TransactionId::from_random),
    };
    Ok((columns.u64("seq")?, entry))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rusqlite::Connection;

    use super::*;
    use crate::store::schema;

    #[test]
    fn columns_stand_where_the_schema_has_them() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::migrate(&mut connection, Path::new("memory")).unwrap();
        for table in [CREDENTIAL, STATE, ACCOUNT, IDEMPOTENCY, USED_INPUT, ATTESTATION, PAYMENT, AUDIT] {
            let statement = connection.prepare(&format!("SELECT * FROM {}", table.name)).unwrap();
            assert_eq!(statement.column_names().collect::<Vec<_>>(), table.columns, "{}", table.name);
        }
    }
}
