//! What is SQLite's alone: the files, a hand in the database, and how the writer shares a group.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use hsm_authd::domain::credential::{CredentialState, Kind, StoredSecret};
use hsm_authd::domain::presentation::Presentation;
use hsm_authd::domain::rolling::Binding;
use hsm_authd::domain::row::{Row, Sealed};
use hsm_authd::domain::transaction::{Parent, Terms, Transaction};
use hsm_authd::store::{CommitError, Page, QUEUE_MAX, ReadError, Store};
use rusqlite::types::Value;
use rusqlite::{Connection, params};
use tokio::task::JoinSet;

use crate::scratch::Scratch;
use crate::store_samples::*;

fn file(scratch: &Scratch) -> PathBuf {
    scratch.join("store.db")
}

fn open(scratch: &Scratch) -> Store {
    Store::open(&file(scratch)).unwrap()
}

/// A second connection, as an operator with a shell or a thief with the file has one.
fn intruder(scratch: &Scratch) -> Connection {
    let connection = Connection::open(file(scratch)).unwrap();
    connection.busy_timeout(Duration::from_secs(10)).unwrap();
    connection
}

fn refusal(scratch: &Scratch) -> String {
    match Store::open(&file(scratch)) {
        Ok(_) => panic!("it was opened"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let scratch = Scratch::new();
    drop(open(&scratch));
    let known: i64 = intruder(&scratch).pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    for version in [known + 1, 1_000, -1] {
        intruder(&scratch).pragma_update(None, "user_version", version).unwrap();
        let refusal = refusal(&scratch);
        assert!(refusal.contains(&format!("schema version {version}")), "{refusal}");
        assert!(!refusal.contains('\n'));
    }
    intruder(&scratch).pragma_update(None, "user_version", known).unwrap();
    drop(open(&scratch));
}

#[tokio::test]
async fn a_foreign_file_is_refused_and_left_alone() {
    let scratch = Scratch::new();
    let foreign_database = {
        let path = scratch.join("foreign.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE mine (x)").unwrap();
        fs::read(path).unwrap()
    };
    for content in [foreign_database, b"to be kept".to_vec(), vec![0; 4_096]] {
        fs::write(file(&scratch), &content).unwrap();
        let refusal = refusal(&scratch);
        assert!(refusal.contains("no hsm-authd database"), "{refusal}");
        assert_eq!(fs::read(file(&scratch)).unwrap(), content);
    }
}

/// A process that was killed gives its locks up one after the other.
#[tokio::test]
async fn a_start_waits_for_one_that_is_ending() {
    let scratch = Scratch::new();
    for _ in 0..20 {
        let store = open(&scratch);
        let (begins, begun) = std::sync::mpsc::channel();
        let path = file(&scratch);
        let next = std::thread::spawn(move || {
            begins.send(()).unwrap();
            Store::open(&path).map(drop).map_err(|error| error.to_string())
        });
        begun.recv().unwrap();
        drop(store);
        assert_eq!(next.join().unwrap(), Ok(()));
    }
}

#[tokio::test]
async fn only_one_process_may_have_it() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let refusal = refusal(&scratch);
    assert!(refusal.contains("another process uses"), "{refusal}");
    drop(store);
    drop(open(&scratch));
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_named() {
    let scratch = Scratch::new();
    let path = scratch.join("none").join("store.db");
    let refusal = Store::open(&path).err().unwrap().to_string();
    assert!(refusal.contains(path.to_str().unwrap()), "{refusal}");
}

#[tokio::test]
async fn nobody_else_may_read_its_files_and_a_clean_stop_leaves_no_wal() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let _ = store.commit(insert(&[row(state(1, "bank-a"))])).await.unwrap();
    for suffix in ["", "-wal", "-shm", "-lock"] {
        let mode = fs::metadata(scratch.join(&format!("store.db{suffix}"))).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{suffix}");
    }
    // A read leaves an idle connection behind.
    assert_eq!(every_row(&store, 10).await.len(), 1);
    drop(store);
    assert!(!scratch.join("store.db-wal").exists());
}

#[tokio::test]
async fn a_credential_whose_guesses_are_not_limited_is_not_served() {
    for table in ["credential_state", "account"] {
        let scratch = Scratch::new();
        let store = open(&scratch);
        let _ = store.commit(insert(&rows_of(&enrolment(1, "bank-a", "acct-1")))).await.unwrap();
        intruder(&scratch).execute(&format!("DELETE FROM {table}"), []).unwrap();
        assert_eq!(store.credential(&tenant("bank-a"), id(1)).await, Err(ReadError), "{table}");
        let page = Page { after: None, limit: 10 };
        assert_eq!(store.credentials(&tenant("bank-a"), None, page).await, Err(ReadError), "{table}");
    }
}

#[tokio::test]
async fn a_value_that_is_none_of_ours_is_an_error_and_no_panic() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let mut rows = rows_of(&enrolment(1, "bank-a", "acct-1"));
    rows.push(row(record("backend", "k-1", 9_000)));
    rows.push(row(used_input(1, 7, Some(60_000))));
    rows.push(row(attestation(1, "h.c.s")));
    let parent = Some(Parent { id: transaction_id(2), hash: [2; 32] });
    let paid = transaction(1, "acct-1", 1_000);
    rows.push(row(Transaction { terms: Terms { parent, ..paid.terms.clone() }, ..paid }));
    rows.extend([
        row(binding(1)),
        row(Presentation { transaction: Some(transaction_id(1)), ..presentation(1) }),
        row(authorization(1)),
    ]);
    let _ = store.commit(insert(&rows)).await.unwrap();
    let intruder = intruder(&scratch);
    for (table, bad) in [
        ("credential", "id = x'00'"),
        ("credential", "tenant = 'Bank A'"),
        ("credential", "account = ''"),
        ("credential", "algorithm = 'MD5'"),
        ("credential", "digits = 11"),
        ("credential", "digits = 262"),
        ("credential", "type = 'ocra'"),
        ("credential", "type = 'totp'"),
        ("credential", "look_ahead = -1"),
        ("credential", "look_ahead = NULL"),
        ("credential", "period_s = 30"),
        ("credential", "kek_version = NULL"),
        ("credential", "kek_version = 65537"),
        ("credential", "secret = NULL"),
        ("credential", "seal_key_version = -1"),
        ("credential", "seal = x''"),
        ("credential_state", "id = zeroblob(17)"),
        ("credential_state", "tenant = ''"),
        ("credential_state", "status = 'unknown'"),
        ("credential_state", "drift_steps = 40000"),
        ("credential_state", "failures = -1"),
        ("credential_state", "lock = x''"),
        ("credential_state", "lock = x'07'"),
        ("credential_state", "lock = x'0100'"),
        ("credential_state", "lock = x'8100'"),
        ("credential_state", "account_share = 4294967296"),
        ("credential_state", "account_epoch = -1"),
        ("account", "tenant = '*'"),
        ("account", "account = char(10)"),
        ("account", "lock = zeroblob(64)"),
        ("account", "epoch = -1"),
        ("idempotency", "client = 'A'"),
        ("idempotency", "key = 'a b'"),
        ("idempotency", "fingerprint = x'00'"),
        ("used_input", "id = x'00'"),
        ("used_input", "fingerprint = zeroblob(31)"),
        ("used_input", "fingerprint = zeroblob(33)"),
        ("used_input", "tenant = 'Bank A'"),
        ("used_input", "seal = x''"),
        ("attestation", "transaction_id = zeroblob(15)"),
        ("attestation", "tenant = 'Bank A'"),
        ("attestation", "jws = CAST(x'ff' AS TEXT)"),
        ("attestation", "seal_key_version = 65536"),
        ("attestation", "seal = zeroblob(33)"),
        ("payment", "id = x'00'"),
        ("payment", "tenant = 'Bank A'"),
        ("payment", "method = x'07'"),
        ("payment", "method = x''"),
        ("payment", "method_name = 'challenge_response'"),
        ("payment", "payer = ''"),
        ("payment", "payee = ' '"),
        ("payment", "payee = char(8238)"),
        ("payment", "order_text = ''"),
        ("payment", "platform = char(10)"),
        ("payment", "remark = ''"),
        ("payment", "parent_id = NULL"),
        ("payment", "parent_hash = NULL"),
        ("payment", "parent_hash = zeroblob(31)"),
        ("payment", "nonce = zeroblob(33)"),
        ("payment", "expires = x'00'"),
        ("payment", "expires_unix_ms = 5"),
        ("payment", "state = 'paid'"),
        ("payment", "attempts_left = 256"),
        ("payment", "authenticator = x''"),
        ("payment", "seal = x''"),
        ("payment", "progress = x''"),
        ("payment", "progress = x'00'"),
        ("payment", "progress = x'03'"),
        ("payment", "progress = x'8000'"),
        ("credential", "address = '+49'"),
        ("credential", "salt = zeroblob(16)"),
        ("credential", "identity_key_version = 1"),
        ("credential", "identity_key = x''"),
        ("credential", "evidence = 'case'"),
        ("credential", "type = 'terminal'"),
        ("credential", "type = 'rolling'"),
        ("binding", "credential = x'00'"),
        ("binding", "tenant = 'Bank A'"),
        ("binding", "acknowledged = 2"),
        ("binding", "acknowledged = -1"),
        ("binding", "lookup = zeroblob(11)"),
        ("binding", "lookup = zeroblob(13)"),
        ("binding", "seal_key_version = 65536"),
        ("binding", "seal = x''"),
        ("presentation", "id = zeroblob(15)"),
        ("presentation", "tenant = ''"),
        ("presentation", "credential = zeroblob(17)"),
        ("presentation", "account = ''"),
        ("presentation", "nonce = zeroblob(31)"),
        ("presentation", "code_hash = zeroblob(33)"),
        ("presentation", "expires = x'00'"),
        ("presentation", "expires = CAST(expires || x'00' AS BLOB)"),
        ("presentation", "transaction_id = x''"),
        ("presentation", "seal = x''"),
        ("device_authorization", "credential = x''"),
        ("device_authorization", "tenant = 'Bank A'"),
        ("device_authorization", "account = char(8238)"),
        ("device_authorization", "terminal = x'00'"),
        ("device_authorization", "terminal = NULL"),
        ("device_authorization", "evidence = 'case'"),
        ("device_authorization", "terminal = NULL, evidence = ''"),
        ("device_authorization", "terminal = NULL, evidence = ' case'"),
        ("device_authorization", "nonce = x''"),
        ("device_authorization", "expires = x''"),
        ("device_authorization", "expires_unix_ms = 5"),
        ("device_authorization", "uplink_seen = 2"),
        ("device_authorization", "attempts_left = 256"),
        ("device_authorization", "seal = zeroblob(31)"),
    ] {
        intruder
            .execute_batch(&format!(
                "CREATE TABLE kept AS SELECT * FROM {table};
                 UPDATE {table} SET {bad};"
            ))
            .unwrap();
        assert_eq!(store.rows_after(None, 100).await, Err(ReadError), "{table}: {bad}");
        intruder
            .execute_batch(&format!(
                "DELETE FROM {table};
                 INSERT INTO {table} SELECT * FROM kept;
                 DROP TABLE kept;"
            ))
            .unwrap();
        assert_eq!(every_row(&store, 100).await, rows);
    }
    for bad in [
        "event = 'unknown'",
        "client = NULL",
        "tenant = 'A'",
        "client = 'A'",
        "credential = x''",
        "transaction_id = x''",
    ] {
        intruder.execute_batch(&format!("BEGIN; UPDATE audit SET {bad}; COMMIT")).unwrap();
        assert_eq!(store.audit_entries(0, 10).await, Err(ReadError), "{bad}");
        intruder.execute("DELETE FROM audit", []).unwrap();
        let _ = store.commit(insert(&[])).await.unwrap();
        assert!(store.audit_entries(0, 10).await.is_ok());
    }
    drop(store);

    // What is looked at when it is opened, of a log that is whole.
    let scratch = Scratch::new();
    let store = open(&scratch);
    let _ = store.commit(insert(&rows_of(&enrolment(1, "bank-a", "acct-1")))).await.unwrap();
    let intruder = self::intruder(&scratch);
    intruder.execute("UPDATE table_sum SET name = 'other' WHERE name = 'account'", []).unwrap();
    assert_eq!(store.row_sum().await, Err(ReadError));
    drop(store);
    let refused = Store::open(&scratch.join("store.db")).err().unwrap().to_string();
    assert!(refused.contains("table_sum.name holds no valid value"), "{refused}");
}

/// Whatever is written into a column: it is refused, or read as another row than the one that was sealed.
#[tokio::test]
async fn no_edit_of_a_column_goes_unseen() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let mut rows: Vec<_> = every_kind(1).iter().flat_map(rows_of).collect();
    rows.push(row(record("backend", "k-1", 9_000)));
    rows.extend([row(used_input(1, 1, None)), row(used_input(2, 2, Some(60_000)))]);
    rows.extend([row(attestation(1, "h.c.s")), row(attestation(2, "h.c.t"))]);
    rows.extend(every_transaction(1).into_iter().map(row));
    let acknowledged = Binding { acknowledged: true, ..binding(2) };
    rows.extend([row(binding(1)), row(acknowledged)]);
    let claimed = Presentation { transaction: Some(transaction_id(1)), ..presentation(2) };
    rows.extend([row(presentation(1)), row(claimed)]);
    rows.extend(every_authorization(1).map(row));
    let _ = store.commit(insert(&rows)).await.unwrap();
    rows.sort_by_key(|row| row.row.key());
    let intruder = intruder(&scratch);
    let values = |sql: &str| -> Vec<Value> {
        let mut statement = intruder.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<Result<_, _>>().unwrap()
    };
    let text = |value: &Value| match value {
        Value::Text(text) => text.clone(),
        other => panic!("{other:?}"),
    };
    // A number, a text and bytes that mean something in one column or another.
    let anywhere = [
        Value::Null,
        Value::Integer(0),
        Value::Integer(1),
        Value::Integer(6),
        Value::Integer(30),
        Value::Integer(2),
        Value::Text("verify".to_owned()),
        Value::Text(String::new()),
        Value::Blob(vec![]),
        Value::Blob(vec![0]),
        Value::Blob(vec![5; 12]),
        Value::Blob(vec![5; 16]),
        Value::Blob(vec![5; 32]),
        Value::Blob(vec![9; 48]),
    ];
    let (mut refused, mut unlike) = (0, 0);
    let tables = [
        ("credential", "id"),
        ("credential_state", "id"),
        ("account", "account"),
        ("idempotency", "key"),
        ("used_input", "id"),
        ("attestation", "transaction_id"),
        ("payment", "id"),
        ("binding", "credential"),
        ("presentation", "id"),
        ("device_authorization", "credential"),
        ("imported_seed", "fingerprint"),
    ];
    let every = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'
        AND name NOT IN ('audit', 'audit_subtree', 'checkpoint', 'log_head', 'table_sum')";
    let mut named: Vec<_> = tables.iter().map(|(table, _)| Value::Text((*table).to_owned())).collect();
    let mut there = values(every);
    for names in [&mut named, &mut there] {
        names.sort_by_key(text);
    }
    assert_eq!(named, there, "every table with rows under seals");
    for (table, key) in tables {
        intruder.execute_batch(&format!("CREATE TABLE kept_{table} AS SELECT * FROM {table}")).unwrap();
        let keys = values(&format!("SELECT {key} FROM {table}"));
        // Each kind of credential has columns of its own; otherwise one row is like another.
        let some = if ["credential", "payment", "device_authorization"].contains(&table) {
            keys.len()
        } else {
            keys.len().min(2)
        };
        for column in values(&format!("SELECT name FROM pragma_table_info('{table}')")) {
            let column = text(&column);
            let theirs = values(&format!("SELECT DISTINCT {column} FROM {table}"));
            for of in &keys[..some] {
                for value in theirs.iter().chain(&anywhere) {
                    let edit =
                        format!("UPDATE {table} SET {column} = ?1 WHERE {key} = ?2 AND {column} IS NOT ?1");
                    // NOT NULL, STRICT and primary keys refuse some; some is there already.
                    if !matches!(intruder.execute(&edit, [value, of]), Ok(1)) {
                        continue;
                    }
                    let what = format!("{table}.{column} = {value:?} of {of:?}");
                    match store.rows_after(None, 1_000).await {
                        Err(ReadError) => refused += 1,
                        Ok(read) => {
                            let fits = |read: &&Sealed<Row>| row(read.row.clone()).seal == read.seal;
                            assert!(read.iter().filter(fits).count() < rows.len(), "{what} fits its seal");
                            unlike += 1;
                        }
                    }
                    intruder
                        .execute_batch(&format!(
                            "BEGIN; DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept_{table}; COMMIT"
                        ))
                        .unwrap();
                }
                assert_eq!(every_row(&store, 1_000).await, rows, "{table}.{column} of {of:?}");
            }
        }
    }
    assert!(refused > 100 && unlike > 100, "{refused} refused, {unlike} unlike");
}

#[tokio::test]
async fn versions_are_64_bits_wide() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let _ = store.commit(insert(&[row(state(1, "bank-a"))])).await.unwrap();
    let with = |version| row(CredentialState { version, ..state(1, "bank-a") });
    for version in [1 << 62, (1 << 63) - 1, 1 << 63, u64::MAX - 1] {
        let (before, after) = (with(version), with(version + 1));
        intruder(&scratch)
            .execute(
                "UPDATE credential_state SET version = ?1, seal = ?2",
                params![version.cast_signed(), before.seal.mac],
            )
            .unwrap();
        let _ = store.commit(change(&[before], std::slice::from_ref(&after))).await.unwrap();
        assert_eq!(every_row(&store, 10).await, [after]);
    }
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_loses_nothing() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let blocker = intruder(&scratch);
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    // The writer may hold a group besides the queue; no queue takes as many as these.
    let offered = 3 * QUEUE_MAX as u128;
    let mut tasks = JoinSet::new();
    for number in 0..offered {
        let store = store.clone();
        tasks.spawn(async move { store.commit(insert(&[row(state(number, "bank-a"))])).await.map(|_| ()) });
    }
    let busy = tasks.join_next().await.unwrap().unwrap();
    assert_eq!(busy, Err(CommitError::Busy), "nothing else can be answered while the lock is held");
    blocker.execute_batch("ROLLBACK").unwrap();
    let outcomes = tasks.join_all().await;
    let written = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(()) | Err(CommitError::Busy))));
    assert!((QUEUE_MAX..offered as usize).contains(&written), "{written} written");
    assert_eq!(every_row(&store, 10_000).await.len(), written);
    assert_sum_adds_up(&store).await;
}

/// While somebody else holds the write lock, commits pile up; let go, they share a group.
#[tokio::test]
async fn a_group_keeps_unrelated_commits_apart() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let taken = row(state(1, "bank-a"));
    let _ = store.commit(insert(std::slice::from_ref(&taken))).await.unwrap();
    let blocker = intruder(&scratch);
    let twice = |number| vec![row(state(number, "bank-a")), row(state(number, "bank-a"))];
    type Failing<'a> = &'a dyn Fn(u128) -> Vec<Sealed<Row>>;
    let failing: [Option<Failing<'_>>; 3] = [None, Some(&twice), Some(&twice)];
    let mut written = 1;
    for (round, failing) in failing.into_iter().enumerate() {
        if round == 2 {
            // Stands for the errors (a full disk, a failed read) that make SQLite roll back by itself.
            let sql = "PRAGMA writable_schema = ON;
                UPDATE sqlite_master SET sql = replace(sql, 'PRIMARY KEY', 'PRIMARY KEY ON CONFLICT ROLLBACK')
                    WHERE name = 'credential_state';
                PRAGMA schema_version = 1000;
                PRAGMA writable_schema = OFF;";
            blocker.execute_batch(sql).unwrap();
        }
        blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut waiting = Vec::new();
        for number in 0..100u128 {
            let number = 1_000 * (round as u128 + 1) + number;
            let mine = row(state(number, "bank-a"));
            let (rows, expected) = match (number % 10, failing) {
                (3, _) => (vec![mine, taken.clone()], Err(CommitError::Conflict)),
                (7, Some(rows)) => (rows(number), Err(CommitError::Unavailable)),
                _ => (vec![mine], Ok(())),
            };
            written += usize::from(expected.is_ok());
            let store = store.clone();
            let commit = insert(&rows);
            waiting.push((tokio::spawn(async move { store.commit(commit).await.map(|_| ()) }), expected));
        }
        // On this one thread, every task is in the queue when it yields.
        tokio::task::yield_now().await;
        blocker.execute_batch("ROLLBACK").unwrap();
        for (outcome, expected) in waiting {
            assert_eq!(outcome.await.unwrap(), expected, "round {round}");
        }
        assert_sum_adds_up(&store).await;
        assert_eq!(every_row(&store, 1_000).await.len(), written);
        assert_eq!(store.audit_entries(0, 1_000).await.unwrap().len(), written);
    }
}

#[tokio::test]
async fn a_lock_that_nobody_lets_go_is_unavailable_and_no_longer() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let blocker = intruder(&scratch);
    blocker.execute_batch("BEGIN IMMEDIATE").unwrap();
    let state = row(state(1, "bank-a"));
    let blocked = store.commit(insert(std::slice::from_ref(&state))).await.map(|_| ());
    assert_eq!(blocked, Err(CommitError::Unavailable));
    blocker.execute_batch("ROLLBACK").unwrap();
    let _ = store.commit(insert(&[state])).await.unwrap();
    assert_sum_adds_up(&store).await;
}

/// A reader that stays keeps PASSIVE checkpoints from finishing; when it goes, the WAL is cut.
#[tokio::test]
async fn the_wal_is_cut_when_it_passes_its_cap() {
    const CAP: u64 = 64 << 20;
    let scratch = Scratch::new();
    let store = open(&scratch);
    let wal = || fs::metadata(scratch.join("store.db-wal")).unwrap().len();
    let reader = intruder(&scratch);
    reader.execute_batch("BEGIN; SELECT * FROM log_head").unwrap();
    let writer = intruder(&scratch);
    writer.pragma_update(None, "wal_autocheckpoint", 0).unwrap();
    writer
        .execute_batch(&format!("CREATE TABLE big (x); INSERT INTO big VALUES (zeroblob({CAP} + 1))"))
        .unwrap();
    assert!(wal() > CAP);
    reader.execute_batch("COMMIT").unwrap();
    for number in 0.. {
        let rows: Vec<_> = (0..200).map(|n| row(state(number * 200 + n, "bank-a"))).collect();
        let _ = store.commit(insert(&rows)).await.unwrap();
        if wal() < CAP {
            break;
        }
        assert!(number < 500, "the WAL still has {} bytes", wal());
    }
    assert_sum_adds_up(&store).await;
}

#[tokio::test]
async fn a_deleted_secret_leaves_the_file() {
    let scratch = Scratch::new();
    let store = open(&scratch);
    let mut rows = enrolment(1, "bank-a", "acct-1");
    let mark = b"what the file must not keep";
    let mut credential = rows.credential.row.clone();
    let Kind::Otp(token) = &mut credential.kind else { panic!() };
    let kek_version = token.secret.as_ref().unwrap().parts().0;
    token.secret = Some(StoredSecret::Wrapped { kek_version, blob: mark.repeat(20) });
    rows.credential = sealed(credential);
    let _ = store.commit(insert(&rows_of(&rows))).await.unwrap();
    drop(store);
    let holds = || fs::read(file(&scratch)).unwrap().windows(mark.len()).any(|window| window == mark);
    assert!(holds());
    let store = open(&scratch);
    let tombstone = row(rows.credential.row.deleted(9_000));
    let _ = store.commit(change(&[any(rows.credential)], &[tombstone])).await.unwrap();
    drop(store);
    assert!(!holds());
}

/// Between fork and exec a child has every descriptor of its parent.
#[test]
fn a_child_that_is_being_started_keeps_no_lock() {
    let scratch = Scratch::new();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                Command::new("true").status().unwrap();
            }
        });
        for _ in 0..100 {
            if let Err(error) = Store::open(&file(&scratch)) {
                over.store(true, Ordering::Relaxed);
                panic!("{error}");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[tokio::test]
async fn an_empty_file_is_a_new_database() {
    // What a crash between making the file and making the tables leaves.
    let scratch = Scratch::new();
    fs::File::create(file(&scratch)).unwrap().write_all(b"").unwrap();
    assert_sum_adds_up(&open(&scratch)).await;
}
