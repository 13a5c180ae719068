//! A database that was turned back, and what `hsm-authd recover` makes of it.

use std::fs;
use std::io::Read;
use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use data_encoding::HEXLOWER;
use hsm_authd::domain::audit::{AuditEntry, Event};
use hsm_authd::domain::checkpoint::{Checkpoint, Note};
use hsm_authd::domain::row::TableSums;
use hsm_authd::hsm::messages::{Request, Response as Reply};
use hsm_authd::store::{Commit, Store};
use rusqlite::Connection as Database;
use serde_json::{Value, json};

use crate::approvals;
use crate::bank::{act, credential, credentials, delete, done, failed, path, refused};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, SEED_HEX, code, enrol, enrol_hotp, rfc_code, text, verify};
use crate::intruder::intrude;
use crate::multi_terminal;
use crate::ocra::{BY_COUNTER, BY_TIME, PLAIN, at, enrolled, submission};
use crate::ocra_token::{Input, question};
use crate::presenting::{self, Payer, Sms, claim};
use crate::rolling_terminal::{self, Terminal};
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

fn recover(daemon: &Daemon) -> Output {
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

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What was accepted once.
struct Used {
    what: &'static str,
    path: String,
    body: Value,
    /// Whose guesses it counts as.
    credential: Option<String>,
}

struct Uses<'a> {
    bank: &'a Connection,
    all: Vec<Used>,
}

impl Uses<'_> {
    /// Sends it, and remembers that it was accepted.
    async fn accepted(&mut self, what: &'static str, path: String, body: Value, credential: &str) -> Value {
        let answer = self.bank.post(&path, &body).await.unwrap();
        assert!(answer.status.is_success(), "{what}: {}", text(&answer));
        self.all.push(Used { what, path, body, credential: Some(credential.to_owned()) });
        answer.json().unwrap()
    }

    async fn verified(&mut self, what: &'static str, id: &str, body: Value) {
        self.accepted(what, path(id, "verify"), body, id).await;
    }
}

fn totp(account: &str) -> Value {
    json!({ "type": "totp", "account": account, "seed_hex": SEED_HEX, "period": 5, "skew_steps": 1 })
}

fn totp_code(step: u64) -> String {
    code(b"12345678901234567890", step, 6)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_used_code_of_any_kind_is_accepted_again() {
    let mut daemon = Daemon::start();
    let gateway = daemon.connect("bank-a-gateway").await;
    let bank = &gateway;

    let mut hotp = Vec::new();
    for number in 0..6 {
        hotp.push(enrol_hotp(bank, &format!("hotp-{number}")).await);
    }
    let mut totps = Vec::new();
    for number in 0..6 {
        totps.push(enrol(bank, &totp(&format!("totp-{number}"))).await);
    }
    let (mut counted, mut timed, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..3 {
        counted.push(enrolled(bank, BY_COUNTER, &format!("ocra-c-{number}")).await);
        timed.push(enrolled(bank, BY_TIME, &format!("ocra-t-{number}")).await);
        plain.push(enrolled(bank, PLAIN, &format!("ocra-{number}")).await);
    }
    let mut rolling = Terminal::enrol(bank, "bank-a", "rolling-1").await;
    let unactivated = rolling_terminal::enrol_pending(bank, "rolling-2").await;
    let payer = Payer::enrol(bank, "bank-a", "presenter").await;
    let sms = Sms::new(bank, "authorized").await;
    let terminals = multi_terminal::Payer::enrol(bank, "terminals", 2).await;
    let (token, enrolment) = approvals::token("approver");
    let approver = enrol(bank, &enrolment).await;
    let device = Device::new(1);
    let signer = device.enrol(bank, "signer").await;
    let (gone, going) = (enrol_hotp(bank, "gone").await, enrol(bank, &totp("going")).await);
    done(&delete(bank, &gone).await);
    let locked = enrol(bank, &totp("locked")).await;
    for _ in 0..5 {
        verify(bank, &locked, "000000").await;
    }
    let lock =
        refused(&verify(bank, &locked, "000000").await, 423, "locked")["retry_after"].as_u64().unwrap();
    let waiting = enrol_hotp(bank, "waiting").await;
    done(&act(bank, &waiting, "suspend").await);

    // Pending as of the copy: answered later.
    let mut orders = Vec::new();
    for _ in 0..4 {
        orders.push(approvals::create(bank, &approvals::order("challenge_response", &approver)).await);
    }
    let by_device = approvals::create(bank, &approvals::order("device_signature", &signer)).await;
    let mut by_password = Vec::new();
    for _ in 0..4 {
        by_password.push(rolling_terminal::order(bank).await);
    }
    let (at_once, target) = (
        terminals.asked(bank, &multi_terminal::rule("preset_order")).await,
        terminals.asked(bank, &multi_terminal::rule("target")).await,
    );
    let issued_s = now_s();
    let presented = payer.present(bank, issued_s).await;
    let [claimable, unclaimed] = {
        let first = payer.present(bank, issued_s + 1).await;
        [first, payer.present(bank, issued_s + 2).await]
    };

    daemon.stop();
    let copy = snapshot(&daemon);
    daemon.resume();
    let gateway = daemon.connect("bank-a-gateway").await;
    let bank = &gateway;
    let mut uses = Uses { bank, all: Vec::new() };

    for id in &hotp {
        for counter in 0..16 {
            uses.verified("hotp", id, json!({ "otp": rfc_code(counter) })).await;
        }
    }
    for id in &totps {
        for _ in 0..2 {
            // The step before the present one, and the present one: in this order, whenever a step ends meanwhile.
            let last = credential_step(&uses, id);
            let step = (now_s() / 5 - 1).max(last + 1);
            uses.verified("totp", id, json!({ "otp": totp_code(step) })).await;
        }
    }
    for (id, token) in &counted {
        for counter in 0..10 {
            let input = Input { counter: Some(counter), ..question("12345678") };
            uses.verified("ocra C", id, submission(&token.code(input), input)).await;
        }
    }
    for (id, token) in &timed {
        for number in 0..8 {
            let asked = format!("1234567{number}");
            let input = at(now_s() / 60, &asked);
            uses.verified("ocra T", id, submission(&token.code(input), input)).await;
        }
    }
    for (id, token) in &plain {
        for number in 0..10 {
            let asked = format!("QUESTIO{number}");
            let input = question(&asked);
            uses.verified("ocra", id, submission(&token.code(input), input)).await;
        }
    }
    let responses = |view: &Value| approvals::path(approvals::id(view), "responses");
    for view in &orders {
        uses.accepted("approval", responses(view), approvals::answered(&token, view), &approver).await;
    }
    let proof = approvals::signed(1, &by_device);
    uses.accepted("signed approval", responses(&by_device), proof, &signer).await;
    for view in &by_password {
        let answer = uses.accepted("password", responses(view), rolling.password(view), &rolling.id).await;
        rolling.keep(&answer["next"]);
    }
    let key = rolling_terminal::quick_key(rolling_terminal::IDENTITY_CODE, &unactivated.1);
    let body = rolling_terminal::activation(&key);
    uses.accepted("activation", path(&unactivated.0, "activate"), body, &unactivated.0).await;
    let first = terminals.terminals[0].clone();
    let body = json!({ "codes": at_once.codes });
    uses.accepted("terminals", responses(&at_once.view), body, &first).await;
    let body = json!({ "target": multi_terminal::target_of(&target.codes) });
    uses.accepted("target", responses(&target.view), body, &first).await;
    let taken = uses
        .accepted("claim", approvals::TRANSACTIONS.into(), presenting::order(&presented.code), &payer.id)
        .await;
    uses.accepted("decision", responses(&taken), payer.decides("approve", &taken), &payer.id).await;
    uses.accepted("claim", approvals::TRANSACTIONS.into(), presenting::order(&claimable.code), &payer.id)
        .await;
    for later in 3..6 {
        let body = payer.body(issued_s + later);
        uses.accepted("presentation", presenting::PRESENTATIONS.to_owned(), body, &payer.id).await;
    }
    let device_id = sms.payer.id.clone();
    uses.accepted("uplink", presenting::at(&device_id, "/uplink"), sms.uplink_body(), &device_id).await;
    uses.accepted("authorization", presenting::at(&device_id, "/complete"), sms.completion(), &device_id)
        .await;
    done(&delete(bank, &going).await);
    let used = uses.all;
    assert!(used.len() >= 200, "{}", used.len());
    assert!(daemon.stop().success());
    anchor(&daemon);

    // Turned back.
    put_back(&daemon, &copy);
    let line = refusal(&daemon);
    assert!(line.contains("the database was turned back") && line.contains("recover"), "{line}");
    let looked = run(&daemon, &["recover"]);
    assert!(complaint(&looked).contains("--accept-rollback"));
    let plan = String::from_utf8_lossy(&looked.stdout).into_owned();
    assert!(plan.contains("it was turned back") && plan.contains("suspend every credential"), "{plan}");
    assert_eq!(snapshot(&daemon), copy, "nothing was changed");
    let told = said(&recover(&daemon));
    println!("{told}");
    assert!(told.contains("next: hsm-authd serve"), "{told}");
    let again = said(&recover(&daemon));
    assert!(again.contains("nothing to recover"), "{again}");

    daemon.resume();
    let gateway = daemon.connect("bank-a-gateway").await;
    let bank = &gateway;
    let all = credentials(bank).await;
    for view in all.as_array().unwrap() {
        assert_eq!(view["state"], "suspended", "{view}");
        let stranded = match view["type"].as_str().unwrap() {
            "hotp" | "rolling" => true,
            "ocra" => view["suite"] != BY_TIME,
            _ => view["id"] == json!(device_id),
        };
        assert_eq!(view.get("resumable"), stranded.then_some(&json!(false)), "{view}");
        let id = view["id"].as_str().unwrap();
        let answer = act(bank, id, "resume").await;
        match stranded {
            true => drop(refused(&answer, 409, "state-conflict")),
            false if id == going => drop(done(&act(bank, id, "suspend").await)),
            false => drop(done(&answer)),
        }
    }
    assert!(all.as_array().unwrap().iter().all(|view| view["id"] != json!(gone)));
    refused(&bank.get(&path(&gone, "")).await.unwrap(), 404, "not-found");
    refused(&act(bank, &gone, "resume").await, 404, "not-found");
    let still =
        refused(&verify(bank, &locked, "000000").await, 423, "locked")["retry_after"].as_u64().unwrap();
    assert!(still <= lock && still + 300 > lock, "{still} of {lock}");

    for Used { what, path, body, credential } in &used {
        if let Some(id) = credential {
            done(&act(bank, id, "unlock").await);
        }
        let answer = bank.post(path, body).await.unwrap();
        assert!(!answer.status.is_success(), "{what} {path} {body}: {}", text(&answer));
        assert!(answer.status.as_u16() < 500, "{what}: {}", text(&answer));
    }
    // Two that follow each other, too.
    for id in hotp.iter().chain(&totps).chain(counted.iter().map(|(id, _)| id)) {
        done(&act(bank, id, "unlock").await);
        let body = |first: u64| json!({ "otps": [totp_code(first), totp_code(first + 1)] });
        let last = credential_step_of(&used, id);
        let answer = bank.post(&path(id, "resync"), &body(last.saturating_sub(1))).await.unwrap();
        assert!(!answer.status.is_success(), "{}", text(&answer));
    }
    refused(&claim(bank, &unclaimed.code).await, 404, "not-found");

    what_is_new_works(bank, &totps[0], &payer, &terminals, &rolling, &unactivated.0).await;
    daemon.kill();
    daemon.resume();

    // The log tells of it, and goes on.
    assert!(daemon.stop().success());
    let store = Store::open(&daemon.database()).unwrap();
    store.whole_log(Vec::new()).await.unwrap();
    drop(store);
    let database = Database::open(daemon.database()).unwrap();
    let count = |event: &str| -> i64 {
        let sql = "SELECT count(*) FROM audit WHERE event = ?1";
        database.query_row(sql, [event], |row| row.get(0)).unwrap()
    };
    assert_eq!(count("store.recovered"), 1);
    assert_eq!(count("service.stopped"), 2, "of the copy, and of the end");
    assert!(count("store.credential_recovered") >= 1);
    assert_eq!(count("transaction.cancelled"), 11);
}

/// The last step that was used of a TOTP credential, 0 for none.
fn credential_step(uses: &Uses<'_>, id: &str) -> u64 {
    credential_step_of(&uses.all, id)
}

fn credential_step_of(uses: &[Used], id: &str) -> u64 {
    let of_it = uses.iter().rfind(|used| used.credential.as_deref() == Some(id));
    let present = now_s() / 5;
    let is = |step: &u64| of_it.is_some_and(|used| used.body["otp"] == json!(totp_code(*step)));
    (present.saturating_sub(100)..present + 3).chain(0..20).find(is).unwrap_or(0)
}

/// What was resumed is of use again; what was not is enrolled or bound anew.
async fn what_is_new_works(
    bank: &Connection,
    totp: &str,
    payer: &Payer,
    terminals: &multi_terminal::Payer,
    rolling: &Terminal,
    unactivated: &str,
) {
    let mark = now_s() / 5 + 2;
    while now_s() / 5 < mark {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    done(&act(bank, totp, "unlock").await);
    // Nobody knows how far ahead its clock was found to be: no code is new before that is over, and none is charged.
    assert_eq!(failed(&verify(bank, totp, &totp_code(now_s() / 5)).await), 5);
    let asked = terminals.asked(bank, &multi_terminal::rule("preset_order")).await;
    asked.approved(bank, &asked.at_once(bank, &asked.codes).await).await;

    let again = done(&rolling_terminal::rebind(bank, &rolling.id).await);
    assert_eq!((&again["state"], again.get("resumable")), (&json!("pending"), None));
    let key = rolling_terminal::quick_key(rolling_terminal::IDENTITY_CODE, again["salt"].as_str().unwrap());
    let mut bound = Terminal::bind(bank, "bank-a", &rolling.account, &rolling.id, key).await;
    bound.pay(bank).await;
    done(&delete(bank, unactivated).await);

    let at_s = now_s() + 29;
    let presented = payer.present(bank, at_s).await;
    assert_eq!(claim(bank, &presented.code).await.status, 201);
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
    let (standing, rows, removed) = (Vec::new(), Vec::new(), Vec::new());
    let commit = Commit { standing, rows, removed, sum_change: TableSums::default(), audit };
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
}
