//! No code that was used before a database was turned back is accepted after its recovery.

use std::time::Duration;

use rusqlite::Connection as Database;
use serde_json::{Value, json};

use hsm_authd::store::Store;

use crate::approvals;
use crate::bank::{act, credentials, delete, done, failed, path, refused};
use crate::client::Connection;
use crate::daemon::{Daemon, SEED_HEX, code, enrol, enrol_hotp, rfc_code, text, verify};
use crate::multi_terminal;
use crate::ocra::{BY_COUNTER, BY_TIME, PLAIN, at, enrolled, submission};
use crate::ocra_token::{Input, question};
use crate::presenting::{self, Payer, Sms, claim};
use crate::recovering::{anchor, complaint, now_s, put_back, recover, refusal, run, said, snapshot};
use crate::rolling_terminal::{self, Terminal};
use crate::signers::Device;

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
    assert!(
        plan.contains("the database was turned back: its log has")
            && plan.contains("suspend every credential"),
        "{plan}"
    );
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
