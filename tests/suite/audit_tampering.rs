//! Whatever is done to the log of a database that a daemon made, `hsm-authd audit verify` finds, and names the first
//! entry that does not fit.

use rusqlite::Connection;
use serde_json::json;

use crate::approvals;
use crate::audit_files::{Copy, Notary, forge_tree, keep};
use crate::bank::done;
use crate::client::Connection as Client;
use crate::daemon::{Daemon, enrol_hotp, rfc_code, verify};
use crate::signers::Device;

/// More than two kept subtrees.
const VERIFICATIONS: u64 = 560;
/// Checkpoints are over so many entries; the last one over all.
const SIZES: [u64; 3] = [100, 290, 530];
/// In the middle: after the second checkpoint.
const MIDDLE: u64 = 300;

/// Some of everything that a log tells of.
pub async fn live(bank: &Client, verifications: u64) {
    let id = enrol_hotp(bank, "acct-1").await;
    let other = enrol_hotp(bank, "acct-2").await;
    let signer = Device::new(1).enrol(bank, "acct-3").await;
    let post = async |id: &str, action: &str| {
        done(&bank.post(&format!("/v1/credentials/{id}/{action}"), &json!({})).await.unwrap())
    };
    for number in 0..verifications {
        match number % 50 {
            7 => {
                post(&other, "suspend").await;
                post(&other, "resume").await;
            }
            13 => drop(approvals::approved(bank, 1, &signer).await),
            21 => {
                let gone = enrol_hotp(bank, "acct-4").await;
                let path = format!("/v1/credentials/{gone}");
                done(&bank.request("DELETE", &path, &[], "").await.unwrap());
            }
            // A wrong one, and the right one after it.
            29 => drop(verify(bank, &id, "000000").await),
            _ => {}
        }
        let key = format!("key-{number}");
        let headers = [("content-type", "application/json"), ("idempotency-key", &*key)];
        let body = json!({ "otp": rfc_code(number) }).to_string();
        let path = format!("/v1/credentials/{id}/verify");
        done(&bank.request("POST", &path, &headers, body).await.unwrap());
    }
}

/// The database of a daemon that ended, with checkpoints by a key of the test's own.
struct Made {
    copy: Copy,
    size: u64,
    notary: Notary,
    key: String,
}

impl Made {
    async fn new() -> Self {
        let mut daemon = Daemon::start();
        live(&daemon.connect("bank-a").await, VERIFICATIONS).await;
        assert!(daemon.stop().success());
        let (copy, notary) = (Copy::of(&daemon.database()), Notary::new(1));
        let size = copy.size();
        assert!(size > SIZES[2] + 50, "{size}");
        let heads: Vec<_> = SIZES.into_iter().chain([size]).map(|size| copy.head(size)).collect();
        let copy = copy.tampered(|connection| {
            connection.execute("DELETE FROM checkpoint", []).unwrap();
            for head in heads {
                keep(connection, head.size, &notary.note(head, 1_893_456_000));
            }
        });
        let key = copy.scratch.write("key.pem", &notary.pem()).to_str().unwrap().to_owned();
        Self { copy, size, notary, key }
    }

    /// With the key, so that every checkpoint counts.
    fn refused(&self, tamper: impl FnOnce(&Connection)) -> String {
        self.copy.tampered(tamper).refused(&["--key", &self.key])
    }
}

fn execute(sql: &str) -> impl FnOnce(&Connection) {
    move |connection| {
        let changed = connection.execute(sql, []).unwrap_or_else(|error| panic!("{sql}: {error}"));
        assert!(changed > 0, "{sql}");
    }
}

#[tokio::test]
async fn what_fits_is_said_to_fit() {
    let made = Made::new().await;
    let size = made.size;
    let said = made.copy.verified(&["--key", &made.key]);
    let origin = made.copy.head(size).origin;
    assert!(said.starts_with(&format!("log          {origin}\nentries      {size}\n")), "{said}");
    assert!(said.contains(&format!("4 kept and 0 given fit; entries up to {size} are covered")), "{said}");
    assert!(said.contains("of every checkpoint right, by 1 keys"), "{said}");
    assert!(said.contains("seals        NOT CHECKED, nor sums: only the HSM can"), "{said}");
    assert!(said.ends_with("\nok           every entry fits\n"), "{said}");
    assert!(!said.contains("older"), "{said}");
    let rows = |table: &str| made.copy.number(&format!("SELECT count(*) FROM {table}")) as u64;
    let tables = ["credential", "credential_state", "account", "idempotency", "payment", "attestation"];
    let all: u64 = tables.into_iter().map(rows).sum();
    assert!(said.contains(&format!("rows         {all} are as the log says\n")), "{all}: {said}");
    assert!(made.copy.verified(&[]).contains("NOT CHECKED: no --key was given"));

    // A checkpoint that an auditor kept, and one of another log.
    let head = made.copy.head(17);
    let note = made.copy.scratch.write("note", &made.notary.note(head.clone(), 1));
    let note = note.to_str().unwrap();
    assert!(made.copy.verified(&["--checkpoint", note, "--key", &made.key]).contains("and 1 given fit"));
    let mut other = head;
    other.origin = hsm_authd::domain::checkpoint::Origin::from_random([9; 16]);
    let other = made.copy.scratch.write("other", &made.notary.note(other, 1));
    let line = made.copy.refused(&["--checkpoint", other.to_str().unwrap()]);
    assert!(line.contains("is of the log hsm-authd.log/0909"), "{line}");

    // What is no evidence is said to be none.
    for (name, text) in [("no-note", "x\n"), ("no-key", "x")] {
        let path = made.copy.scratch.write(name, text);
        let path = path.to_str().unwrap();
        let option = if name == "no-key" { "--key" } else { "--checkpoint" };
        assert!(made.copy.refused(&[option, path]).contains(path));
    }
    let stranger = made.copy.scratch.write("stranger", &Notary::new(2).pem());
    let line = made.copy.refused(&["--key", stranger.to_str().unwrap()]);
    assert!(
        line.contains("over 100 entries") && line.contains("not signed by a key that was given"),
        "{line}"
    );
    let both = ["--key", stranger.to_str().unwrap(), "--key", &made.key];
    assert!(made.copy.verified(&both).contains("by 2 keys"));
    // All of them in one file, as the API has them.
    let bundle = format!("{}\n{}", Notary::new(2).pem(), made.notary.pem());
    let bundle = made.copy.scratch.write("bundle", &bundle);
    assert!(made.copy.verified(&["--key", bundle.to_str().unwrap()]).contains("by 2 keys"));
    let empty = made.copy.scratch.write("empty", "\n");
    assert!(made.copy.refused(&["--key", empty.to_str().unwrap()]).ends_with("empty: no key"));
}

#[tokio::test]
async fn what_no_checkpoint_covers_is_said_to_be_covered_by_none() {
    let made = Made::new().await;
    let behind = made.size - SIZES[2];
    let cut = |size: u64| {
        made.copy.tampered(|connection| {
            execute(&format!("DELETE FROM checkpoint WHERE size > {size}"))(connection);
        })
    };
    let said = cut(SIZES[2]).verified(&["--key", &made.key]);
    let says =
        format!("ok           every entry fits; the last {behind} are covered by no signed checkpoint\n");
    assert!(said.ends_with(&says), "{said}");
    let said = cut(SIZES[2]).verified(&[]);
    assert!(said.ends_with(&says.replace("signed ", "")), "{said}");

    // Nothing that is signed.
    let bare = cut(0);
    let line = bare.refused(&["--key", &made.key]);
    assert!(line.starts_with("nothing signed covers this log"), "{line}");
    assert!(bare.verified(&[]).contains("NOT CHECKED: no --key was given"));
    let last = made.notary.note(made.copy.head(made.size - 1), 1_893_456_000);
    let last = made.copy.scratch.write("last", &last);
    let said = bare.verified(&["--key", &made.key, "--checkpoint", last.to_str().unwrap()]);
    assert!(said.ends_with("fits; the last one is covered by no signed checkpoint\n"), "{said}");
    let none = made.notary.note(made.copy.head(0), 1_893_456_000);
    let none = made.copy.scratch.write("none", &none);
    let line = bare.refused(&["--key", &made.key, "--checkpoint", none.to_str().unwrap()]);
    assert!(line.starts_with("nothing signed covers this log"), "{line}");
}

/// Behind the last checkpoint anybody can write entries whose leaves fit. What they say has to follow all the same.
#[tokio::test]
async fn an_entry_that_cannot_be_next_is_named() {
    let made = Made::new().await;
    let next = made.size + 1;
    let connection = Connection::open(&made.copy.path).unwrap();
    let sql = "SELECT rows FROM audit WHERE rows LIKE 'credential_state:%' ORDER BY seq DESC LIMIT 1";
    let marks: String = connection.query_row(sql, [], |row| row.get(0)).unwrap();
    let (state, version) = marks.split(',').next().unwrap().rsplit_once(':').unwrap();
    let version: u64 = version.parse().unwrap();
    let forged = |rows: &str, event: &str| {
        made.copy.tampered(|connection| {
            let sql =
                "INSERT INTO audit (seq, unix_ms, event, rows, leaf) VALUES (?1, 1, ?3, ?2, zeroblob(32))";
            connection.execute(sql, rusqlite::params![next as i64, rows, event]).unwrap();
            connection.execute("UPDATE log_head SET ended = 0, last_unix_ms = 1", []).unwrap();
            forge_tree(connection);
        })
    };
    let nobody = format!("{:032x}", 7);
    for (rows, says) in [
        (format!("{state}:{}", version + 2), format!("it gives version {} to row {state}", version + 2)),
        (format!("{state}:{version}"), format!("that row has version {version} before")),
        (format!("{state}:1"), format!("that row has version {version} before")),
        (format!("used_input:{nobody}:0"), "no entry before it tells of that row".to_owned()),
        (format!("account:{nobody}:2"), "no entry before it tells of that row".to_owned()),
        (
            format!("account:{nobody}:1,account:{nobody}:0,account:{nobody}:1"),
            "that row was removed before".to_owned(),
        ),
        (
            format!("idempotency:{nobody}:1,idempotency:{nobody}:0,idempotency:{nobody}:2"),
            "no entry".to_owned(),
        ),
    ] {
        for event in ["store.pruned", "store.recovered"] {
            let line = forged(&rows, event).refused(&["--key", &made.key]);
            assert!(line.starts_with(&format!("entry {next} does not fit: it ")), "{rows}: {line}");
            assert!(line.contains(&says), "{rows}: {line}");
        }
    }
    // One that can be, of a row that is not there.
    let line = forged(&format!("account:{nobody}:1"), "store.pruned").refused(&["--key", &made.key]);
    assert!(line.contains(&format!("is missing: entry {next} says")), "{line}");
    // What comes again begins anew.
    let again =
        "idempotency:KEY:1,idempotency:KEY:0,idempotency:KEY:1,idempotency:KEY:0".replace("KEY", &nobody);
    let said = forged(&again, "store.pruned").verified(&["--key", &made.key]);
    assert!(said.contains("the last one is covered by no signed checkpoint"), "{said}");
}

/// Seals and sums are for the HSM to say.
#[tokio::test]
async fn with_the_hsm_every_seal_and_the_sums_are_checked() {
    let mut daemon = Daemon::start();
    live(&daemon.connect("bank-a").await, 60).await;
    assert!(daemon.stop().success());
    let copy = Copy::of(&daemon.database());
    let config = daemon.dir().join("hsm-authd.toml");
    let config = ["--config", config.to_str().unwrap()];
    let said = copy.verified(&config);
    let told = said.lines().find_map(|line| line.strip_prefix("rows ")).unwrap().trim();
    let rows = told.strip_suffix(" are as the log says").unwrap();
    assert!(said.contains(&format!("seals        of {rows} rows right; the rows add up")), "{said}");
    assert!(said.contains("of every checkpoint right, by 1 keys") && said.ends_with("fits\n"), "{said}");

    for (sql, says) in [
        ("UPDATE account SET failures = failures + 1 WHERE account = 'acct-1'", "has a wrong seal"),
        ("UPDATE credential_state SET seal = randomblob(32) WHERE version > 50", "row credential_state:"),
        (
            "UPDATE table_sum SET sum = randomblob(256) WHERE name = 'account'",
            "the rows of account do not add up",
        ),
        ("DELETE FROM table_sum WHERE name = 'payment'", "the rows of payment do not add up"),
        ("INSERT INTO table_sum VALUES ('', randomblob(256))", "the rows of all tables do not add up"),
    ] {
        // Whoever can do that takes the last checkpoint away, which tells of the sum.
        let tampered = copy.tampered(|connection| {
            execute(sql)(connection);
            execute("DELETE FROM checkpoint WHERE size = (SELECT max(size) FROM checkpoint)")(connection);
        });
        let line = tampered.refused(&config);
        assert!(line.contains(says), "{sql}: {line}");
        assert!(tampered.verified(&[]).contains("seals        NOT CHECKED"), "{sql}");
    }
    let line = copy.refused(&["--config", "/nowhere"]);
    assert!(line.contains("/nowhere"), "{line}");
    let stranger = copy.scratch.write("stranger", &Notary::new(2).pem());
    let line = copy.refused(&[&config[..], &["--key", stranger.to_str().unwrap()]].concat());
    assert!(line.contains("not signed by a key that was given"), "{line}");
}

#[tokio::test]
async fn an_entry_that_was_edited_is_named() {
    let made = Made::new().await;
    let (first, middle, last) = (1, MIDDLE, made.size);
    for seq in [first, middle, last] {
        for (column, value) in [
            ("unix_ms", "unix_ms + 1"),
            ("unix_ms", "-1"),
            ("event", "CASE event WHEN 'otp.verified' THEN 'otp.refused' ELSE 'otp.verified' END"),
            ("event", "'no.event'"),
            ("tenant", "coalesce(tenant, '') || 'x'"),
            ("client", "coalesce(client, '') || 'x'"),
            ("request_id", "coalesce(request_id, '') || 'x'"),
            ("credential", "randomblob(16)"),
            ("credential", "x'00'"),
            ("transaction_id", "randomblob(16)"),
            ("detail", "coalesce(detail, '') || 'x'"),
            ("rows", "rows || ',account:0000000000000000:1'"),
            ("rows", "rows || 'x'"),
            ("leaf", "randomblob(32)"),
            ("leaf", "NULL"),
            ("leaf", "x'00'"),
        ] {
            let line =
                made.refused(execute(&format!("UPDATE audit SET {column} = {value} WHERE seq = {seq}")));
            assert!(line.starts_with(&format!("entry {seq} does not fit: ")), "{column} = {value}: {line}");
        }
    }
    for number in ["-5", "0"] {
        let line = made.refused(execute(&format!("UPDATE audit SET seq = {number} WHERE seq = {middle}")));
        assert_eq!(line, format!("an entry has the number {number}, which none can have"));
    }
    let line = made.refused(execute(&format!("UPDATE audit SET seq = 100000 WHERE seq = {middle}")));
    let after = middle - 1;
    assert_eq!(line, format!("entry {middle} is missing: after entry {after} comes entry {}", middle + 1));
}

#[tokio::test]
async fn an_entry_that_was_deleted_moved_or_inserted_is_named() {
    let made = Made::new().await;
    let size = made.size;
    let delete = |from: u64, to: u64| format!("DELETE FROM audit WHERE seq BETWEEN {from} AND {to}");
    for (from, to) in [(1, 1), (1, 3), (MIDDLE, MIDDLE), (256, 257), (MIDDLE, size - 1)] {
        let line = made.refused(execute(&delete(from, to)));
        assert_eq!(line, format!("entry {from} is missing: after entry {} comes entry {}", from - 1, to + 1));
    }
    // The last ones: only a checkpoint says so.
    for from in [size, MIDDLE, 1] {
        let line = made.refused(execute(&delete(from, size)));
        let says =
            format!("entry {from} is missing: the log ends with entry {}, and the checkpoint of ", from - 1);
        assert!(line.starts_with(&says), "{line}");
    }

    let columns =
        "unix_ms, event, tenant, client, request_id, credential, transaction_id, detail, rows, leaf";
    let swap = |one: u64, other: u64| {
        format!(
            "INSERT OR REPLACE INTO audit (seq, {columns}) SELECT CASE seq WHEN {one} THEN {other} ELSE {one} END, \
             {columns} FROM audit WHERE seq IN ({one}, {other})"
        )
    };
    for (one, other) in [(1, 2), (MIDDLE, MIDDLE + 1), (5, size)] {
        let line = made.refused(execute(&swap(one, other)));
        assert!(line.starts_with(&format!("entry {one} does not fit: ")), "{line}");
    }

    for place in [1, MIDDLE, size] {
        let other = columns.replace("unix_ms", "unix_ms + 1");
        let line = made.refused(|connection| {
            let sql = format!(
                "UPDATE audit SET seq = -seq WHERE seq >= {place};
                 UPDATE audit SET seq = 1 - seq WHERE seq < 0;
                 INSERT INTO audit (seq, {columns}) SELECT {place}, {other} FROM audit WHERE seq = {place} + 1;"
            );
            connection.execute_batch(&sql).unwrap();
        });
        assert!(line.starts_with(&format!("entry {place} does not fit: ")), "{line}");
    }
}

/// Who can write the file can compute hashes too. What he cannot do is sign.
#[tokio::test]
async fn a_forged_tree_is_found_by_its_checkpoints() {
    let made = Made::new().await;
    let size = made.size;
    let edit = |seq: u64| format!("UPDATE audit SET unix_ms = unix_ms + 1 WHERE seq = {seq}");
    for (seq, first, last) in
        [(1, 1, 100), (100, 1, 100), (MIDDLE, 291, 530), (531, 531, size), (size, 531, size)]
    {
        let line = made.refused(|connection| {
            execute(&edit(seq))(connection);
            forge_tree(connection);
        });
        let says = format!(
            "one of the entries {first} to {last} does not fit: the root over the first {last} is not"
        );
        assert!(line.starts_with(&says), "{seq}: {line}");
    }
    // The leaf alone: what is kept of the tree narrows it down.
    let line = made.refused(|connection| {
        let before = Copy::of(connection.path().unwrap().as_ref());
        execute(&edit(MIDDLE))(connection);
        forge_tree(connection);
        let path = before.path.to_str().unwrap();
        connection.execute("ATTACH ?1 AS before", [path]).unwrap();
        connection.execute("DELETE FROM audit_subtree", []).unwrap();
        connection.execute("INSERT INTO audit_subtree SELECT * FROM before.audit_subtree", []).unwrap();
        connection.execute("DETACH before", []).unwrap();
    });
    assert_eq!(line, "one of the entries 291 to 512 does not fit: the hash that is kept of them is another");

    // Checkpoints of his own making, and none in the database: what was kept elsewhere finds it.
    let elsewhere =
        made.copy.scratch.write("elsewhere", &made.notary.note(made.copy.head(size), 1_893_456_000));
    let elsewhere = elsewhere.to_str().unwrap();
    for own in [false, true] {
        let forged = made.copy.tampered(|connection| {
            execute(&edit(MIDDLE))(connection);
            forge_tree(connection);
            connection.execute("DELETE FROM checkpoint", []).unwrap();
        });
        let head = forged.head(size);
        let forged = forged.tampered(|connection| {
            if own {
                keep(connection, size, &Notary::new(7).note(head, 1_893_456_000));
            }
        });
        forged.verified(&[]);
        let line = forged.refused(&["--checkpoint", elsewhere]);
        assert!(line.starts_with(&format!("one of the entries 1 to {size} does not fit: ")), "{line}");
        let line = forged.refused(&["--checkpoint", elsewhere, "--key", &made.key]);
        assert!(line.starts_with(&format!("one of the entries 1 to {size} does not fit: ")), "{line}");
        if own {
            let line = forged.refused(&["--key", &made.key]);
            assert!(line.contains("not signed by a key that was given"), "{line}");
        }
    }

    // Cut off, with everything that told of the end.
    let cut = made.copy.tampered(|connection| {
        execute(&format!("DELETE FROM audit WHERE seq > {MIDDLE}"))(connection);
        connection.execute(&format!("DELETE FROM checkpoint WHERE size > {MIDDLE}"), []).unwrap();
        forge_tree(connection);
    });
    let line = cut.refused(&["--checkpoint", elsewhere, "--key", &made.key]);
    assert!(
        line.starts_with(&format!("entry {} is missing: the log ends with entry {MIDDLE}, ", MIDDLE + 1))
    );
    assert!(cut.refused(&[]).contains("row "), "and rows are newer than what is left of it says");
}

#[tokio::test]
async fn what_is_kept_besides_entries_is_checked() {
    let made = Made::new().await;
    let size = made.size;
    for (sql, says) in [
        ("UPDATE audit_subtree SET hash = randomblob(32) WHERE place = 0", "one of the entries 101 to 256 "),
        ("DELETE FROM audit_subtree WHERE place = 1", "the hash over the entries 257 to 512 is not kept"),
        (
            "INSERT INTO audit_subtree VALUES (8, 5, randomblob(32))",
            &format!("entry {} is missing: ", size + 1),
        ),
        (
            "INSERT INTO audit_subtree VALUES (3, 0, randomblob(32))",
            &format!("entry {} is missing: ", size + 1),
        ),
        (
            "UPDATE checkpoint SET note = replace(note, 'time 2030', 'time 2031')",
            "what is kept as the checkpoint",
        ),
        (
            "UPDATE checkpoint SET note = 'x' WHERE size = 290",
            "what is kept as the checkpoint over 290 entries is none",
        ),
        (
            "UPDATE checkpoint SET unix_ms = unix_ms + 1000",
            "what is kept as the checkpoint over 100 entries is none",
        ),
        (
            "UPDATE checkpoint SET size = 291 WHERE size = 290",
            "what is kept as the checkpoint over 291 entries is none",
        ),
        ("UPDATE log_head SET origin = 'hsm-authd.log/' || hex(zeroblob(16))", "the checkpoint of 2030"),
        ("UPDATE log_head SET origin = 'x'", ""),
        (
            "UPDATE table_sum SET sum = randomblob(256) WHERE name = 'account'",
            "the sum over all rows is not that",
        ),
    ] {
        let line = made.refused(execute(sql));
        assert!(line.starts_with(says), "{sql}: {line}");
    }
}

/// No state without its entry, no entry without its state.
#[tokio::test]
async fn rows_are_as_the_log_says() {
    let made = Made::new().await;
    for (sql, says) in [
        ("UPDATE credential_state SET version = version - 1 WHERE version > 100", "has version"),
        ("UPDATE account SET version = version + 1 WHERE account = 'acct-1'", "has version"),
        ("DELETE FROM idempotency WHERE key = 'key-7'", "is missing: entry "),
        ("DELETE FROM attestation", "is missing: entry "),
        ("DELETE FROM credential WHERE deleted_unix_ms IS NULL AND account = 'acct-2'", "is missing: entry "),
        ("INSERT INTO account SELECT tenant, 'acct-9', version, failures, lock, epoch, seal_key_version, seal
            FROM account WHERE account = 'acct-1'", "no entry tells of row account:"),
        ("UPDATE credential SET tenant = 'BANK'", "holds no valid value"),
    ] {
        let line = made.refused(execute(sql));
        assert!(line.contains(says), "{sql}: {line}");
    }
}

#[tokio::test]
async fn what_is_no_database_of_this_release_is_refused() {
    let mut daemon = Daemon::start();
    assert!(daemon.stop().success());
    let copy = Copy::of(&daemon.database());
    let before = std::fs::read(&copy.path).unwrap();
    copy.verified(&[]);
    assert_eq!(std::fs::read(&copy.path).unwrap(), before, "nothing is written");
    for (sql, says) in [
        (
            "PRAGMA user_version = 5",
            "schema version 5, and this release reads 6: start the service on it once",
        ),
        (
            "PRAGMA user_version = 7",
            "schema version 7, and this release reads 6: use the release that made it",
        ),
        ("PRAGMA application_id = 1", "is no hsm-authd database"),
        ("DROP TABLE payment", "no such table"),
    ] {
        let line = copy.tampered(|connection| connection.execute_batch(sql).unwrap()).refused(&[]);
        assert!(line.contains(says), "{sql}: {line}");
    }
    std::fs::write(&copy.path, "no database").unwrap();
    assert!(copy.refused(&[]).contains("cannot read "));
    std::fs::remove_file(&copy.path).unwrap();
    assert!(copy.refused(&[]).contains("is no file"));
    assert!(!copy.path.exists());
}
