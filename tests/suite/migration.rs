//! A database of an earlier release, opened by this one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use hsm_authd::domain::credential::{Kind, Status, StoredSecret};
use hsm_authd::domain::lockout::{Attempts, Lock};
use hsm_authd::domain::log::TreeHash;
use hsm_authd::domain::otp::{Algorithm, MovingFactor};
use hsm_authd::domain::row::{Row, RowBytes, RowSum, Sealed};
use hsm_authd::domain::transaction::{Method, Progress, Transaction};
use hsm_authd::store::Store;
use rusqlite::{Connection, params};

use crate::scratch::Scratch;
use crate::store_samples::*;

const VERSION_1: &str = include_str!("../schemas/1.sql");
const VERSION_2: &str = include_str!("../schemas/2.sql");
const VERSION_3: &str = include_str!("../schemas/3.sql");
const VERSION_4: &str = include_str!("../schemas/4.sql");

/// The bytes under seals of the third release: of an authenticator, of a pending transaction, of a used input.
const SEALED_3: [&str; 3] = [
    "1068736d2d61757468642f726f772f763104878e9cb8f0e0c183878e9cb8f0e0c183870e0662616e6b2d6106616363\
     742d3101e807040100100404040404040404040404040404040409612e6578616d706c65011168747470733a2f2f61\
     2e6578616d706c6500",
    "1068736d2d61757468642f726f772f763107010662616e6b2d6101a0c084d68d3700878e9cb8f0e0c183878e9cb8f0\
     e0c183870e194f4352412d313a484f54502d5348413235362d383a514836340109616363742d303030311644453839\
     33373034303034343035333230313330303007313235302e303003455552086f726465722d37370000002020202020\
     20202020202020202020202020202020202020202020202020202080e896d68d3780e896d68d370101010101010101\
     0101010101010101e0a71200030000",
    "1068736d2d61757468642f726f772f763105878e9cb8f0e0c183878e9cb8f0e0c183870e0505050505050505050505\
     0505050505050505050505050505050505050505050662616e6b2d6101016401c0c4f502",
];

/// Columns and contents of a table as the first release had them.
const CREDENTIAL_1: &str = "SELECT id, tenant, account, version, created_unix_ms, algorithm, digits, type,
    look_ahead, period_s, skew_steps, kek_version, secret, deleted_unix_ms, seal_key_version, seal
    FROM credential ORDER BY id";

/// A database of the first release with these rows, and the sum over them.
fn first_release(path: &Path, rows: &[Sealed<Row>]) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection.execute_batch(VERSION_1).unwrap();
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(())).unwrap();
    connection.pragma_update(None, "secure_delete", true).unwrap();
    for row in rows {
        insert_as_first_release(&connection, row);
    }
    connection.execute("UPDATE row_sum SET sum = ?1", [sum(rows).first()]).unwrap();
    let entry = "INSERT INTO audit (unix_ms, event, tenant, client, request_id, credential)
         VALUES (7, 'otp.verified', 'bank-a', 'backend', 'req-1', ?1)";
    connection.execute(entry, [id(1).to_bytes()]).unwrap();
    connection
}

fn insert_as_first_release(connection: &Connection, Sealed { row, seal }: &Sealed<Row>) {
    let lock = |attempts: &Attempts| attempts.lock.map(|lock| postcard::to_allocvec(&lock).unwrap());
    let inserted = match row {
        Row::Credential(row) => {
            let Kind::Otp(token) = &row.kind else { panic!("the first release had no such type") };
            let (kind, look_ahead, period_s, skew_steps) = match token.moving_factor {
                MovingFactor::Hotp { look_ahead } => ("hotp", Some(look_ahead), None, None),
                MovingFactor::Totp { period_s, skew_steps } => {
                    ("totp", None, Some(period_s), Some(skew_steps))
                }
            };
            connection.execute(
                "INSERT INTO credential VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
                params![
                    row.id.to_bytes(),
                    row.tenant.as_str(),
                    row.account.as_str(),
                    row.version.cast_signed(),
                    row.created_unix_ms.cast_signed(),
                    token.algorithm.name(),
                    u8::from(token.digits),
                    kind,
                    look_ahead,
                    period_s,
                    skew_steps,
                    token.secret.as_ref().map(|secret| secret.parts().0),
                    token.secret.as_ref().map(|secret| secret.parts().1),
                    row.deleted_unix_ms.map(u64::cast_signed),
                    seal.key_version,
                    seal.mac,
                ],
            )
        }
        Row::State(row) => connection.execute(
            "INSERT INTO credential_state VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
            params![
                row.id.to_bytes(),
                row.tenant.as_str(),
                row.version.cast_signed(),
                match row.status {
                    Status::Active => "active",
                    Status::Suspended => "suspended",
                    Status::Deleted => "deleted",
                    _ => panic!("the first release had no such state"),
                },
                row.next_factor.cast_signed(),
                row.last_accepted.map(u64::cast_signed),
                row.drift_steps,
                row.attempts.failures,
                lock(&row.attempts),
                row.account_share,
                row.account_epoch,
                seal.key_version,
                seal.mac,
            ],
        ),
        Row::Account(row) => connection.execute(
            "INSERT INTO account VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                row.tenant.as_str(),
                row.account.as_str(),
                row.version.cast_signed(),
                row.attempts.failures,
                lock(&row.attempts),
                row.epoch,
                seal.key_version,
                seal.mac,
            ],
        ),
        Row::Idempotency(row) => connection.execute(
            "INSERT INTO idempotency VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
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
        ),
        _ => panic!("the first release had no such table"),
    };
    assert_eq!(inserted, Ok(1));
}

/// Every table of the first release with all that can be in a row of it, in the order of the keys.
fn rows() -> Vec<Sealed<Row>> {
    let mut rows = Vec::new();
    for number in 1..=4 {
        let mut enrolled = enrolment(number, "bank-a", &format!("acct-{number}"));
        let Kind::Otp(token) = &mut enrolled.credential.row.kind else { panic!() };
        if number == 2 {
            token.algorithm = Algorithm::Sha512;
            token.moving_factor = MovingFactor::Totp { period_s: 60, skew_steps: 2 };
        }
        if number == 3 {
            enrolled.credential.row = enrolled.credential.row.deleted(9_000);
            enrolled.state.row = enrolled.state.row.with_status(Status::Deleted);
        }
        if number == 4 {
            let attempts = Attempts { failures: 100, lock: Some(Lock::UntilUnlocked) };
            enrolled.state.row.last_accepted = Some(41);
            enrolled.state.row.next_factor = 42;
            enrolled.state.row.drift_steps = -3;
            enrolled.state.row.attempts = attempts;
            enrolled.account.row.attempts = attempts;
        }
        rows.extend([row(enrolled.credential.row), row(enrolled.state.row), row(enrolled.account.row)]);
        rows.push(row(record("backend", &format!("k-{number}"), 9_000)));
    }
    rows.sort_by_key(|row| row.row.key());
    rows
}

#[tokio::test]
async fn a_database_of_the_first_release_keeps_every_row_and_its_sum() {
    let scratch = Scratch::new();
    let path = scratch.join("store.db");
    let rows = rows();
    drop(first_release(&path, &rows));
    for _ in 0..2 {
        let store = Store::open(&path).unwrap();
        assert_eq!(every_row(&store, 5).await, rows);
        assert_eq!(store.row_sum().await, Ok(RowSum::of_first(sum(&rows).first())));
        let log = store.audit_entries(0, 10).await.unwrap();
        assert_eq!(log.len(), 1);
        assert_eq!((log[0].entry.unix_ms, log[0].entry.credential), (7, Some(id(1))));
    }
    // It is used like any other.
    let store = Store::open(&path).unwrap();
    let since = [
        row(used_input(1, 1, Some(60_000))),
        row(attestation(1, "h.c.s")),
        row(transaction(1, "acct-1", 5)),
        row(binding(1)),
        row(presentation(1)),
        row(authorization(1)),
    ];
    let _ = store.commit(insert(&since)).await.unwrap();
    let state = rows.iter().find(|row| matches!(&row.row, Row::State(state) if state.id == id(1))).unwrap();
    let after = next(state, 7);
    let _ = store.commit(change(std::slice::from_ref(state), &[after])).await.unwrap();
    let found = every_row(&store, 1_000).await;
    assert_eq!(
        store.row_sum().await.unwrap().first(),
        sum(&found).first(),
        "of each sum the first number is known"
    );
}

/// Name and definition of everything in a database.
fn shape(path: &Path) -> BTreeMap<String, String> {
    let connection = Connection::open(path).unwrap();
    let mut statement = connection.prepare("SELECT name, sql FROM sqlite_master").unwrap();
    let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    // The source's indentation is part of what SQLite keeps.
    found
        .map(|pair| {
            pair.map(|(name, sql): (_, String)| (name, sql.split_whitespace().collect::<Vec<_>>().join(" ")))
        })
        .collect::<Result<_, _>>()
        .unwrap()
}

/// What the sixth step added, and what it took away.
pub const WITHOUT_STEP_6: &str =
    "CREATE TEMP TABLE first AS SELECT name, substr(sum, 1, 32) AS sum FROM table_sum;
    DROP TABLE table_sum;
    CREATE TABLE table_sum (
        name TEXT PRIMARY KEY,
        sum  BLOB NOT NULL CHECK (length(sum) = 32)
    ) STRICT, WITHOUT ROWID;
    INSERT INTO table_sum SELECT name, sum FROM first;
    DROP TABLE first;
    ALTER TABLE log_head DROP COLUMN ended;
    ALTER TABLE log_head DROP COLUMN last_unix_ms;
    ALTER TABLE log_head DROP COLUMN lost_unix_ms;
    ALTER TABLE log_head DROP COLUMN recovered_unix_ms;
    ALTER TABLE log_head DROP COLUMN clock_stepped;
    ALTER TABLE log_head DROP COLUMN run;
    ALTER TABLE log_head DROP COLUMN seal_key_version;
    ALTER TABLE log_head DROP COLUMN seal;
    CREATE INDEX audit_clock ON audit (seq) WHERE event IN ('clock.stepped', 'clock.accepted');
    CREATE INDEX audit_lost ON audit (seq) WHERE event IN ('service.started_unclean', 'store.recovered');
    PRAGMA user_version = 5;";
/// What the fifth step added, and what it took away.
const WITHOUT_STEP_5: &str = "DROP INDEX audit_of_tenant;
    DROP INDEX audit_lost;
    ALTER TABLE audit DROP COLUMN detail;
    ALTER TABLE audit DROP COLUMN rows;
    ALTER TABLE audit DROP COLUMN leaf;
    DROP TABLE audit_subtree;
    DROP TABLE log_head;
    DROP TABLE checkpoint;
    DROP TABLE table_sum;
    DROP TABLE imported_seed;
    CREATE TABLE row_sum (
        only INTEGER PRIMARY KEY CHECK (only = 1),
        sum  BLOB NOT NULL CHECK (length(sum) = 32)
    ) STRICT;
    INSERT INTO row_sum (only, sum) VALUES (1, zeroblob(32));
    PRAGMA user_version = 4;";
/// What the fourth step added.
const WITHOUT_STEP_4: &str = "DROP TABLE binding;
    DROP TABLE presentation;
    DROP TABLE device_authorization;
    ALTER TABLE credential DROP COLUMN address;
    ALTER TABLE credential DROP COLUMN salt;
    ALTER TABLE credential DROP COLUMN identity_key_version;
    ALTER TABLE credential DROP COLUMN identity_key;
    ALTER TABLE credential DROP COLUMN evidence;
    ALTER TABLE payment DROP COLUMN progress;
    PRAGMA user_version = 3;";
/// What the third step added.
const WITHOUT_STEP_3: &str = "DROP TABLE payment;
    DROP TABLE attestation;
    ALTER TABLE credential DROP COLUMN certificate_chain;
    ALTER TABLE credential DROP COLUMN relying_party;
    ALTER TABLE audit DROP COLUMN transaction_id;
    PRAGMA user_version = 2;";

/// A database of an earlier release with these rows, and one more entry in its log: what the later steps added is
/// taken away again, the last step's first, and what is left has to be what `released`, that release, made.
async fn earlier_release(path: &Path, rows: &[Sealed<Row>], without: &[&str], released: &str) {
    let _ = Store::open(path).unwrap().commit(insert(rows)).await.unwrap();
    let connection = Connection::open(path).unwrap();
    for step in [WITHOUT_STEP_6, WITHOUT_STEP_5].iter().chain(without) {
        connection.execute_batch(step).unwrap();
    }
    connection.execute("UPDATE row_sum SET sum = ?1", [sum(rows).first()]).unwrap();
    let entry = "INSERT INTO audit (unix_ms, event, credential) VALUES (7, 'otp.verified', zeroblob(16))";
    connection.execute_batch(entry).unwrap();
    drop(connection);
    let scratch = Scratch::new();
    let other = scratch.join("released.db");
    Connection::open(&other).unwrap().execute_batch(released).unwrap();
    assert_eq!(shape(path), shape(&other));
}

/// It has every row and the sum, the bytes under each seal are what they were, and what came since can be written.
async fn assert_it_is_kept(path: &Path, rows: &[Sealed<Row>], since: &[Sealed<Row>]) {
    for _ in 0..2 {
        let store = Store::open(path).unwrap();
        let read = every_row(&store, 5).await;
        assert_eq!(read, rows);
        // The seals of the samples are over these bytes.
        assert!(read.iter().all(|sealed| row(sealed.row.clone()).seal == sealed.seal));
        assert_eq!(store.row_sum().await, Ok(RowSum::of_first(sum(rows).first())));
        let log = store.audit_entries(0, 10).await.unwrap();
        assert_eq!((log.len(), log[1].entry.unix_ms, log[1].entry.transaction), (2, 7, None));
        // What was written without a tree is in it.
        let root = TreeHash::of_node(log[0].leaf(), log[1].leaf());
        assert_eq!((store.head().borrow().size, store.head().borrow().root), (2, root));
    }
    let store = Store::open(path).unwrap();
    let _ = store.commit(insert(since)).await.unwrap();
    let found = every_row(&store, 1_000).await;
    assert_eq!(
        store.row_sum().await.unwrap().first(),
        sum(&found).first(),
        "of each sum the first number is known"
    );
    assert_eq!(every_row(&store, 1_000).await.len(), rows.len() + since.len());
}

#[tokio::test]
async fn a_database_of_the_second_release_keeps_every_row_and_its_sum() {
    let scratch = Scratch::new();
    let path = scratch.join("store.db");
    let is_of_it = |kind: &Kind| matches!(kind, Kind::Otp(_) | Kind::Ocra(_) | Kind::Signer(_));
    let of_it = every_kind(1).into_iter().filter(|rows| is_of_it(&rows.credential.row.kind));
    let mut rows: Vec<_> = of_it.flat_map(|rows| rows_of(&rows)).collect();
    rows.extend([row(record("backend", "k-1", 9_000)), row(used_input(1, 7, None))]);
    rows.sort_by_key(|row| row.row.key());
    earlier_release(&path, &rows, &[WITHOUT_STEP_4, WITHOUT_STEP_3], VERSION_2).await;
    let since: Vec<_> = every_transaction(1).into_iter().map(row).collect();
    assert_it_is_kept(&path, &rows, &since).await;
}

#[tokio::test]
async fn a_database_of_the_third_release_keeps_every_row_and_its_sum() {
    let scratch = Scratch::new();
    let path = scratch.join("store.db");
    let is_of_it = |kind: &Kind| !matches!(kind, Kind::Terminal(_) | Kind::Rolling(_));
    let of_it = every_kind(1).into_iter().filter(|rows| is_of_it(&rows.credential.row.kind));
    let mut rows: Vec<_> = of_it.flat_map(|rows| rows_of(&rows)).collect();
    rows.extend([row(record("backend", "k-1", 9_000)), row(used_input(1, 7, None))]);
    let is_of_it = |transaction: &Transaction| {
        let known =
            matches!(transaction.method, Method::ChallengeResponse { .. } | Method::DeviceSignature { .. });
        known && transaction.progress == Progress::None
    };
    let (of_it, later): (Vec<_>, Vec<_>) = every_transaction(2).into_iter().partition(is_of_it);
    assert_eq!(of_it.len(), 11, "what the third release could make");
    rows.extend(of_it.into_iter().map(row));
    rows.push(row(attestation(1, "h.c.s")));
    let bytes = SEALED_3.map(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap());
    let sealed_then = bytes.each_ref().map(|bytes| row(decoded(bytes)));
    rows.extend(sealed_then.clone());
    rows.sort_by_key(|row| row.row.key());
    earlier_release(&path, &rows, &[WITHOUT_STEP_4], VERSION_3).await;
    let mut since: Vec<_> = later.into_iter().map(row).collect();
    since.extend(every_kind(100).iter().flat_map(rows_of));
    since.extend([row(binding(1)), row(presentation(1)), row(authorization(1))]);
    assert_it_is_kept(&path, &rows, &since).await;
    let now = every_row(&Store::open(&path).unwrap(), 1_000).await;
    for (bytes, then) in bytes.iter().zip(sealed_then) {
        let row = now.iter().find(|row| row.row.key() == then.row.key()).unwrap();
        assert_eq!(row.row.encode().as_bytes(), bytes, "its seal fits");
    }
}

#[tokio::test]
async fn a_database_of_the_fourth_release_keeps_every_row_and_its_sum() {
    let scratch = Scratch::new();
    let path = scratch.join("store.db");
    let mut rows: Vec<_> = every_kind(1).iter().flat_map(rows_of).collect();
    rows.extend(every_transaction(2).into_iter().map(row));
    rows.extend([row(binding(1)), row(presentation(1)), row(authorization(1))]);
    rows.sort_by_key(|row| row.row.key());
    earlier_release(&path, &rows, &[], VERSION_4).await;
    assert_it_is_kept(&path, &rows, &[row(imported_seed(1))]).await;
}

/// Whatever an earlier release's log lost: its tree is not made of the rest.
#[tokio::test]
async fn a_log_with_a_gap_gets_no_tree() {
    let scratch = Scratch::new();
    let path = scratch.join("store.db");
    earlier_release(&path, &[], &[], VERSION_4).await;
    Connection::open(&path).unwrap().execute("UPDATE audit SET seq = 3 WHERE seq = 2", []).unwrap();
    let refused = Store::open(&path).err().unwrap().to_string();
    assert!(refused.contains("entry 2 of the log"), "{refused}");
    assert!(shape(&path).contains_key("row_sum"), "nothing was changed");
}

/// A row out of the bytes under its seal.
fn decoded(bytes: &[u8]) -> Row {
    let message = postcard::to_allocvec(&bytes.to_vec()).unwrap();
    postcard::from_bytes::<RowBytes>(&message).unwrap().decode().unwrap()
}

#[test]
fn it_becomes_what_a_new_one_is() {
    let scratch = Scratch::new();
    let (old, new) = (scratch.join("old.db"), scratch.join("new.db"));
    drop(first_release(&old, &rows()));
    drop(Store::open(&old).unwrap());
    drop(Store::open(&new).unwrap());
    assert_eq!(shape(&old), shape(&new));
}

#[tokio::test]
async fn a_step_that_does_not_reach_its_end_leaves_the_version_before_it() {
    let scratch = Scratch::new();
    let path = scratch.join("store.db");
    let rows = rows();
    let contents = |connection: &Connection| -> Vec<Vec<rusqlite::types::Value>> {
        let mut statement = connection.prepare(CREDENTIAL_1).unwrap();
        let columns = statement.column_count();
        let row = |row: &rusqlite::Row<'_>| (0..columns).map(|place| row.get(place)).collect();
        statement.query_map([], row).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let old = first_release(&path, &rows);
    let before = contents(&old);
    assert_eq!(before.len(), 4);
    // Behind the point at which the second step has dropped the old table.
    old.execute_batch("CREATE TABLE used_input (in_the_way)").unwrap();
    let shape_before = shape(&path);
    drop(old);
    let refusal = Store::open(&path).err().unwrap().to_string();
    assert!(refusal.contains("cannot migrate") && refusal.contains("used_input"), "{refusal}");

    let old = Connection::open(&path).unwrap();
    let version: i64 = old.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    assert_eq!((version, contents(&old)), (1, before));
    assert_eq!(shape(&path), shape_before);
    old.execute_batch("DROP TABLE used_input").unwrap();
    drop(old);
    assert_eq!(every_row(&Store::open(&path).unwrap(), 100).await, rows);
}

#[tokio::test]
async fn what_is_deleted_afterwards_is_not_in_pages_that_the_migration_left() {
    let scratch = Scratch::new();
    let path = scratch.join("store.db");
    let mark = b"what the file must not keep";
    let mut rows = Vec::new();
    // Many pages, so that not all that are left are used again.
    for number in 1..=200 {
        let mut enrolled = enrolment(number, "bank-a", &format!("acct-{number}"));
        let Kind::Otp(token) = &mut enrolled.credential.row.kind else { panic!() };
        let kek_version = token.secret.as_ref().unwrap().parts().0;
        token.secret = Some(StoredSecret::Wrapped { kek_version, blob: mark.repeat(20) });
        rows.push(row(enrolled.credential.row));
    }
    drop(first_release(&path, &rows));
    let holds = || fs::read(&path).unwrap().windows(mark.len()).any(|window| window == mark);
    assert!(holds());
    let store = Store::open(&path).unwrap();
    for before in rows {
        let Row::Credential(credential) = &before.row else { panic!() };
        let tombstone = row(credential.deleted(9_000));
        let _ = store.commit(change(&[before], &[tombstone])).await.unwrap();
    }
    drop(store);
    assert!(!holds());
}
