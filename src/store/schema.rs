//! The database's shape, and how an older one becomes the present one.

use std::collections::BTreeSet;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::{OpenError, ledger};
use crate::domain::audit::Event;

/// `PRAGMA application_id` of every hsm-authd database: "hsma".
pub(super) const APPLICATION_ID: i32 = 0x6873_6d61;

/// One step per version: the first makes version 1. A released step never changes.
///
/// * A `u64` is stored as the same 64 bits in SQLite's signed integer.
/// * Keys are random, so the tables are clustered on them (`WITHOUT ROWID`): one tree, not two.
/// * `credential_state` is apart from `credential` because each code rewrites it: small rows make
///   few dirty pages, and the size of a group's fsync is the throughput.
/// * `used_input` holds what OCRA tokens without a counter have used up.
/// * A transaction is a row of `payment`: SQL keeps the word for itself. Its attestation has a row of its own, which
///   is written once.
/// * `audit` only ever grows; its `seq` is the order of the commits, from 1 and without a gap.
const STEPS: &[&str] = &["
    CREATE TABLE credential (
        id               BLOB PRIMARY KEY,
        tenant           TEXT NOT NULL,
        account          TEXT NOT NULL,
        version          INTEGER NOT NULL,
        created_unix_ms  INTEGER NOT NULL,
        algorithm        TEXT NOT NULL,
        digits           INTEGER NOT NULL,
        type             TEXT NOT NULL,
        look_ahead       INTEGER,
        period_s         INTEGER,
        skew_steps       INTEGER,
        kek_version      INTEGER,
        secret           BLOB,
        deleted_unix_ms  INTEGER,
        seal_key_version INTEGER NOT NULL,
        seal             BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX credential_of_account ON credential (tenant, account, created_unix_ms, id)
        WHERE deleted_unix_ms IS NULL;
    CREATE INDEX credential_of_tenant ON credential (tenant, created_unix_ms, id)
        WHERE deleted_unix_ms IS NULL;
    CREATE INDEX credential_deleted ON credential (deleted_unix_ms)
        WHERE deleted_unix_ms IS NOT NULL;

    CREATE TABLE credential_state (
        id               BLOB PRIMARY KEY,
        tenant           TEXT NOT NULL,
        version          INTEGER NOT NULL,
        status           TEXT NOT NULL,
        next_factor      INTEGER NOT NULL,
        last_accepted    INTEGER,
        drift_steps      INTEGER NOT NULL,
        failures         INTEGER NOT NULL,
        lock             BLOB,
        account_share    INTEGER NOT NULL,
        account_epoch    INTEGER NOT NULL,
        seal_key_version INTEGER NOT NULL,
        seal             BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE account (
        tenant           TEXT NOT NULL,
        account          TEXT NOT NULL,
        version          INTEGER NOT NULL,
        failures         INTEGER NOT NULL,
        lock             BLOB,
        epoch            INTEGER NOT NULL,
        seal_key_version INTEGER NOT NULL,
        seal             BLOB NOT NULL,
        PRIMARY KEY (tenant, account)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE idempotency (
        client           TEXT NOT NULL,
        key              TEXT NOT NULL,
        version          INTEGER NOT NULL,
        fingerprint      BLOB NOT NULL,
        answer           BLOB NOT NULL,
        expires_unix_ms  INTEGER NOT NULL,
        seal_key_version INTEGER NOT NULL,
        seal             BLOB NOT NULL,
        PRIMARY KEY (client, key)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX idempotency_expires ON idempotency (expires_unix_ms);

    CREATE TABLE audit (
        seq        INTEGER PRIMARY KEY,
        unix_ms    INTEGER NOT NULL,
        event      TEXT NOT NULL,
        tenant     TEXT,
        client     TEXT,
        request_id TEXT,
        credential BLOB
    ) STRICT;
    CREATE INDEX audit_clock ON audit (seq) WHERE event IN ('clock.stepped', 'clock.accepted');

    CREATE TABLE row_sum (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        sum  BLOB NOT NULL CHECK (length(sum) = 32)
    ) STRICT;
    INSERT INTO row_sum (only, sum) VALUES (1, zeroblob(32));
", "
    -- Two more types of credential: columns that one type has not are NULL.
    CREATE TABLE credential_2 (
        id               BLOB PRIMARY KEY,
        tenant           TEXT NOT NULL,
        account          TEXT NOT NULL,
        version          INTEGER NOT NULL,
        created_unix_ms  INTEGER NOT NULL,
        type             TEXT NOT NULL,
        algorithm        TEXT,
        digits           INTEGER,
        look_ahead       INTEGER,
        period_s         INTEGER,
        skew_steps       INTEGER,
        suite            TEXT,
        usage            TEXT,
        kek_version      INTEGER,
        secret           BLOB,
        data_version     INTEGER,
        pin_hash         BLOB,
        public_key       BLOB,
        deleted_unix_ms  INTEGER,
        seal_key_version INTEGER NOT NULL,
        seal             BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    INSERT INTO credential_2 (id, tenant, account, version, created_unix_ms, type, algorithm, digits, look_ahead,
            period_s, skew_steps, kek_version, secret, deleted_unix_ms, seal_key_version, seal)
        SELECT id, tenant, account, version, created_unix_ms, type, algorithm, digits, look_ahead,
            period_s, skew_steps, kek_version, secret, deleted_unix_ms, seal_key_version, seal FROM credential;
    DROP TABLE credential;
    ALTER TABLE credential_2 RENAME TO credential;
    CREATE INDEX credential_of_account ON credential (tenant, account, created_unix_ms, id)
        WHERE deleted_unix_ms IS NULL;
    CREATE INDEX credential_of_tenant ON credential (tenant, created_unix_ms, id)
        WHERE deleted_unix_ms IS NULL;
    CREATE INDEX credential_deleted ON credential (deleted_unix_ms)
        WHERE deleted_unix_ms IS NOT NULL;

    CREATE TABLE used_input (
        id               BLOB NOT NULL,
        fingerprint      BLOB NOT NULL,
        tenant           TEXT NOT NULL,
        version          INTEGER NOT NULL,
        time_step        INTEGER,
        expires_unix_ms  INTEGER,
        seal_key_version INTEGER NOT NULL,
        seal             BLOB NOT NULL,
        PRIMARY KEY (id, fingerprint)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX used_input_expires ON used_input (expires_unix_ms) WHERE expires_unix_ms IS NOT NULL;
", "
    ALTER TABLE credential ADD COLUMN certificate_chain BLOB;
    ALTER TABLE credential ADD COLUMN relying_party BLOB;
    ALTER TABLE audit ADD COLUMN transaction_id BLOB;

    -- Transactions (SQL keeps the word for itself). An operator can read all but method, expires and authenticator,
    -- which are spelt as they are sealed; method_name and expires_unix_ms repeat a part of them, to be looked for.
    CREATE TABLE payment (
        id               BLOB PRIMARY KEY,
        tenant           TEXT NOT NULL,
        version          INTEGER NOT NULL,
        created_unix_ms  INTEGER NOT NULL,
        method           BLOB NOT NULL,
        method_name      TEXT NOT NULL,
        payer            TEXT,
        payee            TEXT NOT NULL,
        amount           TEXT NOT NULL,
        currency         TEXT NOT NULL,
        order_text       TEXT NOT NULL,
        platform         TEXT,
        remark           TEXT,
        parent_id        BLOB,
        parent_hash      BLOB,
        nonce            BLOB NOT NULL,
        expires          BLOB NOT NULL,
        expires_unix_ms  INTEGER NOT NULL,
        state            TEXT NOT NULL,
        attempts_left    INTEGER NOT NULL,
        ended_unix_ms    INTEGER,
        authenticator    BLOB,
        seal_key_version INTEGER NOT NULL,
        seal             BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX payment_of_payer ON payment (tenant, payer, created_unix_ms, id);
    CREATE INDEX payment_of_tenant ON payment (tenant, created_unix_ms, id);
    CREATE INDEX payment_pending ON payment (expires_unix_ms) WHERE state = 'pending';
    CREATE INDEX payment_ended ON payment (ended_unix_ms) WHERE ended_unix_ms IS NOT NULL;

    -- What was signed of an approval: as durable as the approval, in the same commit.
    CREATE TABLE attestation (
        transaction_id   BLOB PRIMARY KEY,
        tenant           TEXT NOT NULL,
        version          INTEGER NOT NULL,
        jws              TEXT NOT NULL,
        seal_key_version INTEGER NOT NULL,
        seal             BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
", "
    ALTER TABLE credential ADD COLUMN address TEXT;
    ALTER TABLE credential ADD COLUMN salt BLOB;
    ALTER TABLE credential ADD COLUMN identity_key_version INTEGER;
    ALTER TABLE credential ADD COLUMN identity_key BLOB;
    ALTER TABLE credential ADD COLUMN evidence TEXT;
    ALTER TABLE payment ADD COLUMN progress BLOB;

    -- Whose a rolling password is, by what it begins with.
    CREATE TABLE binding (
        credential       BLOB PRIMARY KEY,
        tenant           TEXT NOT NULL,
        version          INTEGER NOT NULL,
        epoch            INTEGER NOT NULL,
        acknowledged     INTEGER NOT NULL,
        lookup           BLOB NOT NULL,
        seal_key_version INTEGER NOT NULL,
        seal             BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX binding_of_lookup ON binding (tenant, lookup);

    -- Strings that payers show. The string itself is nowhere.
    CREATE TABLE presentation (
        id               BLOB PRIMARY KEY,
        tenant           TEXT NOT NULL,
        version          INTEGER NOT NULL,
        credential       BLOB NOT NULL,
        account          TEXT NOT NULL,
        created_unix_ms  INTEGER NOT NULL,
        nonce            BLOB NOT NULL,
        code_hash        BLOB NOT NULL,
        expires          BLOB NOT NULL,
        transaction_id   BLOB,
        seal_key_version INTEGER NOT NULL,
        seal             BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE UNIQUE INDEX presentation_of_code ON presentation (tenant, code_hash);
    CREATE INDEX presentation_created ON presentation (created_unix_ms);

    -- Devices that are being authorized. expires_unix_ms repeats a part of expires, to be looked for.
    CREATE TABLE device_authorization (
        credential       BLOB PRIMARY KEY,
        tenant           TEXT NOT NULL,
        account          TEXT NOT NULL,
        version          INTEGER NOT NULL,
        terminal         BLOB,
        evidence         TEXT,
        nonce            BLOB NOT NULL,
        expires          BLOB NOT NULL,
        expires_unix_ms  INTEGER NOT NULL,
        uplink_seen      INTEGER NOT NULL,
        attempts_left    INTEGER NOT NULL,
        seal_key_version INTEGER NOT NULL,
        seal             BLOB NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX device_authorization_expires ON device_authorization (expires_unix_ms);
", "
    -- The log becomes a Merkle tree: which rows an entry's commit changed, and the hash of its leaf. What an earlier
    -- release wrote gets its leaves right after this step, in the same transaction.
    ALTER TABLE audit ADD COLUMN detail TEXT;
    ALTER TABLE audit ADD COLUMN rows TEXT NOT NULL DEFAULT '';
    ALTER TABLE audit ADD COLUMN leaf BLOB CHECK (length(leaf) = 32);
    CREATE INDEX audit_of_tenant ON audit (tenant, seq) WHERE tenant IS NOT NULL;
    CREATE INDEX audit_lost ON audit (seq) WHERE event IN ('service.started_unclean', 'store.recovered');

    -- Complete subtrees of 256, 65536, ... leaves.
    CREATE TABLE audit_subtree (
        level INTEGER NOT NULL,
        place INTEGER NOT NULL,
        hash  BLOB NOT NULL CHECK (length(hash) = 32),
        PRIMARY KEY (level, place)
    ) STRICT, WITHOUT ROWID;

    -- Which log it is.
    CREATE TABLE log_head (
        only   INTEGER PRIMARY KEY CHECK (only = 1),
        origin TEXT NOT NULL
    ) STRICT;
    INSERT INTO log_head (only, origin) VALUES (1, 'hsm-authd.log/' || lower(hex(randomblob(16))));

    -- Signed heads of the log, as notes.
    CREATE TABLE checkpoint (
        size    INTEGER PRIMARY KEY,
        unix_ms INTEGER NOT NULL,
        note    TEXT NOT NULL
    ) STRICT;

    -- The sum a table, so that a wrong one names its table. That of an earlier release is over all of them, until a
    -- start has split it: its name is empty.
    CREATE TABLE table_sum (
        name TEXT PRIMARY KEY,
        sum  BLOB NOT NULL CHECK (length(sum) = 32)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO table_sum (name, sum) SELECT '', sum FROM row_sum WHERE sum <> zeroblob(32);
    DROP TABLE row_sum;

    -- What wrapped seeds came as: none is taken twice in a tenant.
    CREATE TABLE imported_seed (
        tenant           TEXT NOT NULL,
        fingerprint      BLOB NOT NULL,
        version          INTEGER NOT NULL,
        credential       BLOB NOT NULL,
        seal_key_version INTEGER NOT NULL,
        seal             BLOB NOT NULL,
        PRIMARY KEY (tenant, fingerprint)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX imported_seed_of_credential ON imported_seed (credential);
", "
    -- What events of the log left for the next start, and the seal over all that a start believes besides rows. What
    -- an earlier release wrote is put here right after this step, without a seal.
    ALTER TABLE log_head ADD COLUMN lost_unix_ms INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE log_head ADD COLUMN recovered_unix_ms INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE log_head ADD COLUMN clock_stepped INTEGER NOT NULL DEFAULT 0 CHECK (clock_stepped IN (0, 1));
    ALTER TABLE log_head ADD COLUMN ended INTEGER NOT NULL DEFAULT 1 CHECK (ended IN (0, 1));
    ALTER TABLE log_head ADD COLUMN last_unix_ms INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE log_head ADD COLUMN run BLOB CHECK (length(run) = 16);
    ALTER TABLE log_head ADD COLUMN seal_key_version INTEGER;
    ALTER TABLE log_head ADD COLUMN seal BLOB CHECK (length(seal) = 32);
    DROP INDEX audit_clock;
    DROP INDEX audit_lost;

    -- Of eight numbers each. Of what an earlier release wrote the first is known, until a start has computed the others.
    ALTER TABLE table_sum RENAME TO table_sum_of_first;
    CREATE TABLE table_sum (
        name TEXT PRIMARY KEY,
        sum  BLOB NOT NULL CHECK (length(sum) = 256)
    ) STRICT, WITHOUT ROWID;
"];

/// The present version.
pub(super) const VERSION: i64 = STEPS.len() as i64;

/// The step after which the log's leaves are there.
const LEAVES: usize = 5;
/// The step after which the ledger is sealed.
const LEDGER: usize = 6;
/// The first version whose log has an origin and checkpoints: backups are of this one or a later one.
pub(super) const WITH_A_LOG: i64 = LEAVES as i64;
/// The version that this release makes and knows.
pub const SCHEMA: i64 = STEPS.len() as i64;

/// Whatever else stands in the file, no connection of ours runs it: a trigger would change rows after they were checked.
pub(super) fn distrust(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
    Ok(())
}

/// Whether the database has what these steps make, and nothing else.
pub(super) fn compare(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |error| OpenError(format!("cannot read {}: {error}", path.display()));
    let mut blank = Connection::open_in_memory().map_err(failed)?;
    migrate(&mut blank, path)?;
    let (found, wanted) = (shape(connection).map_err(failed)?, shape(&blank).map_err(failed)?);
    let strange = found.symmetric_difference(&wanted).next();
    strange.map_or(Ok(()), |(kind, name, _)| {
        let path = path.display();
        Err(OpenError(format!(
            "{path}: {kind} {name} is not as this release makes it: somebody changed the schema"
        )))
    })
}

/// Kind, name and definition of everything in it.
fn shape(connection: &Connection) -> rusqlite::Result<BTreeSet<(String, String, Option<String>)>> {
    let sql = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    let mut statement = connection.prepare(sql)?;
    // Between words one space is as good as a line's end.
    let spaced = |sql: Option<String>| sql.map(|sql| sql.split_whitespace().collect::<Vec<_>>().join(" "));
    let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, spaced(row.get(2)?))))?;
    found.collect()
}

/// Refuses what the fifth step's release left without an end, before it is changed: nothing sealed it, and that release can
/// still end it as it should be.
///
/// # Errors
/// One line for the operator.
pub(super) fn check_ended(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let last_event = || -> rusqlite::Result<Option<String>> {
        let version: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
        let sql = "SELECT event FROM audit ORDER BY seq DESC LIMIT 1";
        match version == LEAVES as i64 {
            true => connection.query_row(sql, [], |row| row.get(0)).optional(),
            false => Ok(None),
        }
    };
    let path = path.display();
    match last_event().map_err(|error| OpenError(format!("cannot read {path}: {error}")))? {
        Some(event) if event != Event::Stopped.name() => Err(OpenError(format!(
            "{path}: the release before did not end as it should have: start it once more, and stop it; or run \
             `hsm-authd recover --config FILE --accept-rollback` (docs/integrity.md)"
        ))),
        _ => Ok(()),
    }
}

/// Brings the database to the present version, one transaction a step: a crash leaves a whole
/// version, and the next start goes on from there.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let failed = |error| OpenError(format!("cannot migrate {}: {error}", path.display()));
    let version: i64 =
        connection.pragma_query_value(None, "user_version", |row| row.get(0)).map_err(failed)?;
    let done = usize::try_from(version).ok().filter(|done| *done <= STEPS.len()).ok_or_else(|| {
        OpenError(format!(
            "{} has schema version {version}, made by a newer release; this one knows up to {}",
            path.display(),
            STEPS.len()
        ))
    })?;
    for (step, sql) in STEPS.iter().enumerate().skip(done) {
        let transaction =
            connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
        transaction.execute_batch(sql).map_err(failed)?;
        let filled = match step + 1 {
            LEAVES => ledger::hash_old_entries(&transaction),
            LEDGER => ledger::take_over(&transaction),
            _ => Ok(()),
        };
        filled.map_err(|error| OpenError(format!("cannot migrate {}: {error}", path.display())))?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID).map_err(failed)?;
        transaction.pragma_update(None, "user_version", step as i64 + 1).map_err(failed)?;
        transaction.commit().map_err(failed)?;
    }
    Ok(())
}
