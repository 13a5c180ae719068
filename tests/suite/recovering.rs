//! A database that was turned back, and what `hsm-authd recover` makes of it.

use std::fs;
use std::io::Read;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use hsm_authd::domain::audit::{AuditEntry, Event};
use hsm_authd::domain::checkpoint::{Checkpoint, Note};
use hsm_authd::domain::row::TableSums;
use hsm_authd::hsm::messages::{Request, Response as Reply};
use hsm_authd::store::{Commit, Store};
use rusqlite::Connection as Database;
use serde_json::json;

use crate::approvals;
use crate::bank::{act, credential, credentials, delete, done, path, refused};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, enrol, enrol_hotp, rfc_code, text, verify};
use crate::intruder::intrude;
use crate::ocra::{PLAIN, enrolled, submission};
use crate::ocra_token::question;
use crate::presenting::{self};
use crate::rolling_terminal::{self};
use crate::signers::Device;
use crate::submissions::{Crowd, Dice};
use crate::token::{BINARY, TestToken};
use crate::wrapped_seeds::Wrapper;

pub fn run(daemon: &Daemon, arguments: &[&str]) -> Output {
    let mut command = Command::new(BINARY);
    command.args(arguments).arg("--config").arg(daemon.dir().join("hsm-authd.toml"));
    command.stdin(Stdio::null()).output().unwrap()
}

/// The line that `serve` ends with.
pub fn refusal(daemon: &Daemon) -> String {
    let mut command = Command::new(BINARY);
    command.args(["serve", "--config"]).arg(daemon.dir().join("hsm-authd.toml"));
    let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let status = crate::processes::ended(&mut child);
    let mut stderr = Vec::new();
    child.stderr.take().unwrap().read_to_end(&mut stderr).unwrap();
    complaint(&Output { status, stdout: Vec::new(), stderr })
}

pub fn recover(daemon: &Daemon) -> Output {
    run(daemon, &["recover", "--accept-rollback"])
}

pub fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The one line for the operator, among what the store and the custodian log.
pub fn complaint(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let words: Vec<_> = text.lines().filter(|line| line.starts_with("hsm-authd: ")).collect();
    assert_eq!(words.len(), 1, "{text}");
    words[0].to_owned()
}

/// The database of a daemon that has ended, in one file.
pub fn snapshot(daemon: &Daemon) -> Vec<u8> {
    assert!(!daemon.database().with_added_extension("wal").exists());
    fs::read(daemon.database()).unwrap()
}

/// Puts it back by hand.
pub fn put_back(daemon: &Daemon, snapshot: &[u8]) {
    let path = daemon.database();
    for suffix in ["-wal", "-shm"] {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        let _ = fs::remove_file(PathBuf::from(name));
    }
    fs::write(path, snapshot).unwrap();
}

/// Has the token know the log as it is now, if it does not yet.
pub fn anchor(daemon: &Daemon) {
    let store = Store::open(&daemon.database()).unwrap();
    let head = store.head().borrow().clone();
    drop(store);
    // The daemon comes back to it.
    let token = ManuallyDrop::new(TestToken::of(daemon));
    let mut custodian = token.custodian();
    let there = match custodian.call(Request::ReadAnchor) {
        Ok(Reply::Anchor(there)) => there,
        other => panic!("{:?}", other.err()),
    };
    if there.is_some_and(|there| Note::parse(&there).unwrap().unverified().head == head) {
        return;
    }
    let checkpoint = Checkpoint { head, unix_s: now_s() };
    let note = match custodian.call(Request::SignCheckpoint(checkpoint)) {
        Ok(Reply::Checkpoint(note)) => note,
        other => panic!("{:?}", other.err()),
    };
    assert!(matches!(
        custodian.call(Request::WriteAnchor { note, replace: false }),
        Ok(Reply::AnchorWritten)
    ));
}

pub fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Sends what has to be refused.
async fn refusals(bank: &Connection, id: &str, device: &Device) -> Vec<Response> {
    vec![
        verify(bank, id, &rfc_code(0)).await,
        bank.post(&path(id, "resync"), &json!({ "otps": [rfc_code(0), rfc_code(1)] })).await.unwrap(),
        bank.post("/v1/transactions", &approvals::order("device_signature", id)).await.unwrap(),
        act(bank, id, "suspend").await,
        rolling_terminal::rebind(bank, id).await,
        rolling_terminal::activate(bank, id, &[7; 32]).await,
        bank.post(&presenting::at(id, ""), &json!({ "method": "password", "evidence": "x" })).await.unwrap(),
        device_verify(bank, id, device).await,
    ]
}

async fn device_verify(bank: &Connection, id: &str, device: &Device) -> Response {
    let submission = device.submission(id, b"a payload");
    bank.post(&submission.path, &submission.body).await.unwrap()
}

#[tokio::test]
async fn who_may_resume_what() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let device = Device::new(1);
    let (signer, other) = (device.enrol(&bank, "acct-1").await, device.enrol(&bank, "acct-2").await);
    let hotp = enrol_hotp(&bank, "acct-3").await;
    daemon.stop();
    let copy = snapshot(&daemon);
    daemon.resume();
    enrol_hotp(&daemon.connect("bank-a").await, "acct-4").await;
    daemon.stop();
    anchor(&daemon);
    put_back(&daemon, &copy);
    said(&recover(&daemon));
    daemon.resume();

    let bank = daemon.connect("bank-a").await;
    for id in [&signer, &hotp] {
        for answer in refusals(&bank, id, &device).await {
            assert!([409, 422].contains(&answer.status.as_u16()), "{}", text(&answer));
        }
    }
    let permit = |permissions: &[&str]| {
        daemon.reload_with(|config| {
            let clients = config["client"].as_array_mut().unwrap();
            let entry = clients.iter_mut().find(|entry| entry["name"] == "bank-a-gateway").unwrap();
            entry["permissions"] = json!(permissions);
        });
    };
    permit(&["enroll"]);
    let enrolls = daemon.connect("bank-a-gateway").await;
    refused(&act(&enrolls, &signer, "resume").await, 403, "forbidden");
    refused(&act(&enrolls, &hotp, "resume").await, 409, "state-conflict");
    permit(&["admin"]);
    let administers = daemon.connect("bank-a-gateway").await;
    refused(&act(&administers, &hotp, "resume").await, 409, "state-conflict");
    assert_eq!(done(&act(&administers, &signer, "resume").await)["state"], "active");
    done(&device_verify(&bank, &signer, &device).await);
    // From then on it is its bank's again.
    done(&act(&bank, &signer, "suspend").await);
    refused(&act(&administers, &signer, "resume").await, 403, "forbidden");
    permit(&["enroll"]);
    let enrolls = daemon.connect("bank-a-gateway").await;
    done(&act(&enrolls, &signer, "resume").await);
    done(&delete(&bank, &hotp).await);
    refused(&bank.get(&path(&hotp, "")).await.unwrap(), 404, "not-found");
    assert_eq!(credential(&bank, &other).await["state"], "suspended");
}

/// Whether `recover` finds anything to do.
fn is_sound(daemon: &Daemon) -> bool {
    let output = run(daemon, &["recover"]);
    match output.status.success() {
        true => said(&output).contains("nothing to recover"),
        false => {
            assert!(complaint(&output).contains("--accept-rollback"));
            false
        }
    }
}

#[tokio::test]
async fn a_recovery_that_is_killed_anywhere_is_done_again() {
    let mut daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let tokens = crowd.enrol("hotp", None, 450).await;
    let bank = daemon.connect("bank-a").await;
    let signer = Device::new(1).enrol(&bank, "signer").await;
    for _ in 0..20 {
        approvals::create(&bank, &approvals::order("device_signature", &signer)).await;
    }
    daemon.stop();
    let copy = snapshot(&daemon);
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    done(&verify(&bank, &tokens[0].id, &tokens[0].code(0)).await);
    daemon.stop();
    anchor(&daemon);

    put_back(&daemon, &copy);
    let begun = Instant::now();
    said(&recover(&daemon));
    let whole = begun.elapsed();
    let (mut dice, seed) = Dice::new();
    let mut cut = 0;
    for _ in 0..10 {
        put_back(&daemon, &copy);
        let mut command = Command::new(BINARY);
        command.args(["recover", "--accept-rollback", "--config"]).arg(daemon.dir().join("hsm-authd.toml"));
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        // Its first half is the looking.
        let after = whole.mul_f64(0.3) + whole.mul_f64(dice.below(80) as f64 / 100.0);
        tokio::time::sleep(after).await;
        child.kill().unwrap();
        let is_done = child.wait().unwrap().success();
        if !is_sound(&daemon) {
            cut += 1;
            refusal(&daemon);
        }
        assert!(!is_done || is_sound(&daemon), "seed {seed}");
    }
    println!("{cut} of 10 were cut off before the end; a whole one takes {whole:?}");
    assert!(cut > 0, "seed {seed}");
    if !is_sound(&daemon) {
        said(&recover(&daemon));
    }
    assert!(is_sound(&daemon));
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    for token in &tokens {
        assert_eq!(token.view(&bank).await["resumable"], json!(false));
    }
    daemon.stop();
    let store = Store::open(&daemon.database()).unwrap();
    store.whole_log(Vec::new()).await.unwrap();
}

#[tokio::test]
async fn a_row_that_is_put_back_behind_it_is_not_taken_for_a_recovered_one() {
    let mut daemon = Daemon::start();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let tokens = crowd.enrol("hotp", None, 450).await;
    daemon.stop();
    let copy = snapshot(&daemon);
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    done(&verify(&bank, &tokens[0].id, &tokens[0].code(0)).await);
    daemon.stop();
    anchor(&daemon);
    put_back(&daemon, &copy);

    // Who can write the file waits for the first row to be recovered, and puts back what stood there.
    let attacker = Database::open(daemon.database()).unwrap();
    let old = "CREATE TEMP TABLE old AS SELECT * FROM credential_state ORDER BY id LIMIT 1";
    attacker.execute(old, []).unwrap();
    let mut command = Command::new(BINARY);
    command.args(["recover", "--accept-rollback", "--config"]).arg(daemon.dir().join("hsm-authd.toml"));
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let put_back = "INSERT OR REPLACE INTO credential_state SELECT old.* FROM old \
                    JOIN credential_state AS now ON now.id = old.id WHERE now.seal <> old.seal";
    while attacker.execute(put_back, []).unwrap_or(0) == 0 {
        assert!(child.try_wait().unwrap().is_none(), "it ended before");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let line = complaint(&child.wait_with_output().unwrap());
    assert!(line.contains("changes the database while it is recovered"), "{line}");
    refusal(&daemon);
    said(&recover(&daemon));
    assert!(is_sound(&daemon));
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    for token in &tokens {
        assert_eq!(token.view(&bank).await["resumable"], json!(false));
    }
}

#[tokio::test]
async fn rows_that_are_not_what_was_sealed_are_removed_and_named() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let mut ids = Vec::new();
    for number in 0..6 {
        ids.push(enrol_hotp(&bank, &format!("acct-{number}")).await);
    }
    let signer = Device::new(1).enrol(&bank, "acct-signer").await;
    let input = question("QUESTIO1");
    let (plain, token) = enrolled(&bank, PLAIN, "acct-ocra").await;
    done(&bank.post(&path(&plain, "verify"), &submission(&token.code(input), input)).await.unwrap());
    daemon.stop();
    anchor(&daemon);
    assert!(is_sound(&daemon));

    let hex = |id: &str| {
        let id = hsm_authd::domain::id::CredentialId::parse(id).unwrap();
        format!("x'{}'", HEXLOWER.encode(&id.to_bytes()))
    };
    let database = Database::open(daemon.database()).unwrap();
    let change = |sql: String| assert_eq!(database.execute(&sql, []).unwrap(), 1, "{sql}");
    change(format!("UPDATE credential_state SET failures = 1 WHERE id = {}", hex(&ids[0])));
    change(format!("DELETE FROM credential_state WHERE id = {}", hex(&ids[1])));
    change(format!("UPDATE credential SET type = 'nonsense' WHERE id = {}", hex(&ids[2])));
    change("UPDATE account SET tenant = 'No Tenant' WHERE account = 'acct-3'".to_owned());
    change("DELETE FROM account WHERE account = 'acct-signer'".to_owned());
    change(format!("UPDATE credential SET seal_key_version = 9 WHERE id = {}", hex(&plain)));
    drop(database);

    let output = run(&daemon, &["recover"]);
    complaint(&output);
    let plan = String::from_utf8_lossy(&output.stdout).into_owned();
    for named in [
        format!("not what was sealed: credential_state {}", ids[0]),
        format!("not what was sealed: credential {plain}"),
        "not what was sealed: credential, one that cannot be read".to_owned(),
        "not what was sealed: account, one that cannot be read".to_owned(),
        "database: rows are not what was sealed".to_owned(),
    ] {
        assert!(plan.contains(&named), "{named}: {plan}");
    }
    assert!(!plan.contains("acct-"), "an account is the bank's: {plan}");
    let told = said(&recover(&daemon));
    for named in [
        format!("removed: credential_state {}", ids[0]),
        format!("removed: credential {}, whose state is gone", ids[0]),
        format!("removed: credential {}, whose state is gone", ids[1]),
        format!("removed: credential_state {}, whose credential is gone", ids[2]),
        format!("removed: credential {plain}"),
        "removed: account, one that cannot be read".to_owned(),
    ] {
        assert!(told.contains(&named), "{named}: {told}");
    }
    assert!(is_sound(&daemon));

    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    for id in [&ids[0], &ids[1], &ids[2], &plain] {
        refused(&bank.get(&path(id, "")).await.unwrap(), 404, "not-found");
    }
    let left = credentials(&bank).await;
    assert_eq!(left.as_array().unwrap().len(), 4);
    // Also where the anchor is behind, and the log's word on each row is asked for.
    let fresh = enrol_hotp(&bank, "acct-signer").await;
    daemon.kill();
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    // Whose account is gone may have been locked.
    done(&act(&bank, &signer, "resume").await);
    done(&device_verify(&bank, &signer, &Device::new(1)).await);
    let locked = verify(&bank, &fresh, &rfc_code(0)).await;
    assert_eq!(refused(&locked, 423, "locked").get("retry_after"), None);
    done(&act(&bank, &fresh, "unlock").await);
    done(&verify(&bank, &fresh, &rfc_code(0)).await);
    daemon.stop();
    let database = Database::open(daemon.database()).unwrap();
    let mut statement =
        database.prepare("SELECT detail FROM audit WHERE event = 'store.row_tampered' ORDER BY seq").unwrap();
    let details: Vec<String> =
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert!(details.len() >= 6, "{details:?}");
    assert!(details.iter().any(|detail| detail.contains(&ids[0])), "{details:?}");
    let orphans: i64 = database.query_row("SELECT count(*) FROM used_input", [], |row| row.get(0)).unwrap();
    assert_eq!(orphans, 0);
}

#[tokio::test]
async fn what_a_removed_credentials_seed_came_as_may_come_again() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let wrapper = Wrapper::fetch(&bank).await;
    let bodies = ["acct-1", "acct-2", "acct-3"].map(|account| {
        let blob = wrapper.wrap(b"12345678901234567890");
        json!({ "type": "hotp", "account": account, "seed_wrapped_base64": blob })
    });
    let mut ids = Vec::new();
    for body in &bodies {
        ids.push(enrol(&bank, body).await);
    }
    daemon.stop();
    anchor(&daemon);
    let database = Database::open(daemon.database()).unwrap();
    let change = |sql: &str, id: &str| {
        let id = hsm_authd::domain::id::CredentialId::parse(id).unwrap();
        assert_eq!(database.execute(sql, [id.to_bytes()]).unwrap(), 1, "{sql}");
    };
    change("DELETE FROM credential_state WHERE id = ?1", &ids[0]);
    change("UPDATE credential SET seal_key_version = 9 WHERE id = ?1", &ids[1]);
    drop(database);
    said(&recover(&daemon));
    assert!(is_sound(&daemon));

    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    for (body, id) in bodies.iter().zip(&ids).take(2) {
        refused(&bank.get(&path(id, "")).await.unwrap(), 404, "not-found");
        enrol(&bank, body).await;
        refused(&bank.post("/v1/credentials", body).await.unwrap(), 409, "state-conflict");
    }
    refused(&bank.post("/v1/credentials", &bodies[2]).await.unwrap(), 409, "state-conflict");
}

#[tokio::test]
async fn a_database_of_another_token_is_left_as_it_is() {
    let (mut one, mut other) = (Daemon::start(), Daemon::start_with_own_keys());
    enrol_hotp(&one.connect("bank-a").await, "acct-1").await;
    one.stop();
    other.stop();
    let copy = snapshot(&one);
    put_back(&other, &copy);
    let line = complaint(&recover(&other));
    assert!(line.contains("hsm-authd/row/v1") && line.contains("nothing was changed"), "{line}");
    assert_eq!(snapshot(&other), copy);

    // Nor is anything made where there is nothing.
    fs::remove_file(other.database()).unwrap();
    let line = complaint(&recover(&other));
    assert!(line.contains("there is no database"), "{line}");
    assert!(!other.database().exists());
}

#[tokio::test]
async fn a_token_without_an_anchor_gets_one_and_a_running_service_is_let_alone() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let signer = Device::new(1).enrol(&bank, "acct-1").await;
    let daemon = tokio::task::spawn_blocking(move || {
        let line = complaint(&recover(&daemon));
        assert!(line.contains("another instance is running"), "{line}");
        daemon
    });
    let mut daemon = {
        let daemon = daemon.await.unwrap();
        assert_eq!(credential(&bank, &signer).await["state"], "active");
        daemon
    };
    daemon.stop();
    anchor(&daemon);
    intrude(&ManuallyDrop::new(TestToken::of(&daemon)), "remove hsm-authd/anchor");
    let output = run(&daemon, &["recover"]);
    complaint(&output);
    assert!(String::from_utf8_lossy(&output.stdout).contains("token: has no anchor of the log"));
    said(&recover(&daemon));
    assert!(is_sound(&daemon));
    daemon.resume();
    assert_eq!(credential(&daemon.connect("bank-a").await, &signer).await["state"], "suspended");
}

/// Sums can be made to fit by who has seen them change; then only the log's word on a row is left.
#[tokio::test]
async fn what_a_start_refuses_can_be_recovered() {
    let mut daemon = Daemon::start();
    let id = enrol_hotp(&daemon.connect("bank-a").await, "acct-1").await;
    daemon.stop();
    let older = daemon.dir().join("older");
    fs::write(&older, snapshot(&daemon)).unwrap();
    daemon.resume();
    done(&verify(&daemon.connect("bank-a").await, &id, &rfc_code(0)).await);
    daemon.stop();
    let database = Database::open(daemon.database()).unwrap();
    database.execute("ATTACH ?1 AS older", [older.to_str().unwrap()]).unwrap();
    for table in ["credential_state", "table_sum"] {
        let sql = format!("DELETE FROM main.{table}; INSERT INTO main.{table} SELECT * FROM older.{table}");
        database.execute_batch(&sql).unwrap();
    }
    drop(database);
    let store = Store::open(&daemon.database()).unwrap();
    let audit = AuditEntry::of_appliance(now_s() * 1_000, Event::ClockAccepted);
    let (before, rows, removed) = (Vec::new(), Vec::new(), Vec::new());
    let commit = Commit { before, rows, removed, sum_change: TableSums::default(), audit };
    let _durable = store.commit(commit).await.unwrap();
    drop(store);

    assert!(refusal(&daemon).contains("version 1 is there, and the log says 2"));
    assert!(!is_sound(&daemon));
    said(&recover(&daemon));
    assert!(is_sound(&daemon));
    for _ in 0..2 {
        daemon.resume();
        assert_eq!(credential(&daemon.connect("bank-a").await, &id).await["resumable"], json!(false));
        daemon.kill();
    }
    // And whatever stands besides rows and entries.
    for edit in [
        "DELETE FROM log_head",
        "UPDATE log_head SET origin = 'nobody''s'",
        "UPDATE log_head SET lost_unix_ms = -1, seal_key_version = -1",
        "UPDATE table_sum SET name = 'nobody''s' WHERE name = 'account'",
        "DELETE FROM table_sum",
        "DELETE FROM audit_subtree; DELETE FROM checkpoint; UPDATE log_head SET seal = NULL",
    ] {
        Database::open(daemon.database()).unwrap().execute_batch(edit).unwrap();
        refusal(&daemon);
        said(&recover(&daemon));
        assert!(is_sound(&daemon), "{edit}");
        daemon.resume();
        assert_eq!(credential(&daemon.connect("bank-a").await, &id).await["resumable"], json!(false));
        daemon.kill();
    }
}
