//! A database with rows in every table, made by a daemon that lived twice with 91 days between; and as it was in the
//! first life.

use std::time::Duration;

use rusqlite::Connection as Database;
use serde_json::{Value, json};

use crate::approvals;
use crate::audit_files::Copy;
use crate::bank::{act, delete, done, path};
use crate::client::Connection;
use crate::clock::recorded;
use crate::daemon::{Daemon, SEED_HEX, enrol, enrol_hotp, rfc_code, verify};
use crate::multi_terminal;
use crate::ocra::{BY_COUNTER, BY_TIME, PLAIN, answer, at, enrolled};
use crate::ocra_token::question;
use crate::presenting::{Payer, Sms, claimed};
use crate::processes::eventually;
use crate::rolling_terminal::{self, Terminal};
use crate::scratch::Scratch;
use crate::signers::Device;
use crate::wrapped_seeds::Wrapper;

const NOW: u64 = 2_000_000_000;
/// Behind everything that is kept for a time.
const LATER: u64 = NOW + 91 * 86_400;
/// So many that subtrees of the log are kept.
const VERIFICATIONS: u64 = 190;

/// A daemon that has ended, and its database.
pub struct World {
    pub daemon: Daemon,
    /// As it was left.
    pub newest: Copy,
    /// As it was in the first life.
    pub older: Copy,
    /// A file with the key that signs its checkpoints.
    pub key: String,
    _scratch: Scratch,
}

/// A life's credentials.
struct Life {
    hotp: String,
    doomed: Vec<String>,
    rolling: Terminal,
    sms: Sms,
    terminals: multi_terminal::Asked,
}

/// Something of everything, by accounts of this name.
async fn live(bank: &Connection, name: &str, now_s: u64) -> Life {
    let account = |what: &str| format!("{name}-{what}");
    let hotp = enrol_hotp(bank, &account("hotp")).await;
    enrol(bank, &json!({ "type": "totp", "account": account("hotp"), "seed_hex": SEED_HEX })).await;
    let (counted, _) = enrolled(bank, BY_COUNTER, &account("ocra-c")).await;
    let (plain, plain_token) = enrolled(bank, PLAIN, &account("ocra")).await;
    for asked in ["QUESTIO1", "QUESTIO2"] {
        done(&answer(bank, &plain, &plain_token.code(question(asked)), question(asked)).await);
    }
    let (timed, timed_token) = enrolled(bank, BY_TIME, &account("ocra-t")).await;
    let input = at(now_s / 60, "12345678");
    done(&answer(bank, &timed, &timed_token.code(input), input).await);
    let wrapper = Wrapper::fetch(bank).await;
    let mut doomed = vec![counted, plain, timed];
    for number in 0..2_u8 {
        let blob = wrapper.wrap(&[number + 1; 20]);
        let account = account(&format!("imported-{number}"));
        let body = json!({ "type": "hotp", "account": account, "seed_wrapped_base64": blob });
        doomed.push(enrol(bank, &body).await);
    }
    let mut rolling = Terminal::enrol(bank, "bank-a", &account("rolling")).await;
    rolling.pay(bank).await;
    doomed.push(Terminal::enrol(bank, "bank-a", &account("rolling-2")).await.id);
    rolling_terminal::enrol_pending(bank, &account("pending")).await;
    let (_, enrolment) = approvals::token(&account("approver"));
    let approver = enrol(bank, &enrolment).await;
    approvals::create(bank, &approvals::order("challenge_response", &approver)).await;
    let signer = Device::new(1).enrol(bank, &account("signer")).await;
    for _ in 0..2 {
        approvals::approved(bank, 1, &signer).await;
    }
    let authenticator = enrol(bank, &approvals::authenticator(2, &account("authenticator"))).await;
    let view = approvals::create(bank, &approvals::order("device_signature", &authenticator)).await;
    done(&approvals::respond(bank, approvals::id(&view), &approvals::asserted(2, &view, 1)).await);
    rolling_terminal::order(bank).await;
    let payer = Payer::enrol(bank, "bank-a", &account("presenter")).await;
    let taken = payer.present(bank, now_s).await;
    claimed(bank, &taken.code).await;
    payer.present(bank, now_s + 1).await;
    let sms = Sms::new(bank, &account("sms")).await;
    Sms::new(bank, &account("sms-2")).await;
    let terminals = multi_terminal::Payer::enrol(bank, &account("terminals"), 2).await;
    let asked = terminals.asked(bank, &multi_terminal::rule("preset_order")).await;
    for number in 0..2 {
        let key = account(&format!("key-{number}"));
        let headers = [("content-type", "application/json"), ("idempotency-key", &*key)];
        let body = json!({ "otp": rfc_code(number) }).to_string();
        done(&bank.request("POST", &path(&hotp, "verify"), &headers, body).await.unwrap());
    }
    let gone = enrol_hotp(bank, &account("gone")).await;
    done(&delete(bank, &gone).await);
    Life { hotp, doomed, rolling, sms, terminals: asked }
}

impl World {
    pub async fn new() -> Self {
        let mut daemon = Daemon::start_at(NOW);
        let bank = daemon.connect("bank-a-gateway").await;
        let mut first = live(&bank, "first", NOW).await;
        let scratch = Scratch::new();
        let older = scratch.join("older.db");
        sql(&daemon).execute("VACUUM INTO ?1", [older.to_str().unwrap()]).unwrap();
        let older = Copy::of(&older);

        // Each kind of row gets its next version, or goes.
        verify(&bank, &first.hotp, "000000").await;
        done(&verify(&bank, &first.hotp, &rfc_code(2)).await);
        first.rolling.pay(&bank).await;
        done(&first.sms.uplink(&bank, &first.sms.uplink_body()).await);
        first.terminals.enter(&bank, &first.terminals.codes[0]).await;
        for id in &first.doomed {
            done(&delete(&bank, id).await);
        }
        daemon.set_clock(NOW + 7_200);
        drop(bank);
        daemon.kill();
        daemon.resume();
        eventually("what was open is over", async || {
            let open = "SELECT count(*) FROM payment WHERE state = 'pending'";
            (count(&daemon, open) == 0).then_some(())
        })
        .await;
        daemon.step_clock(LATER);
        recorded(&daemon);
        assert!(daemon.stop().success());
        daemon.resume_with(&["--accept-clock"]);
        let tables = ["imported_seed", "used_input", "attestation", "idempotency", "presentation"];
        eventually("what is past its time is gone", async || {
            let left = |table: &&str| count(&daemon, &format!("SELECT count(*) FROM {table}"));
            (tables.iter().map(left).sum::<i64>() == 0).then_some(())
        })
        .await;

        let bank = daemon.connect("bank-a-gateway").await;
        let second = live(&bank, "second", LATER).await;
        for counter in 2..VERIFICATIONS {
            done(&verify(&bank, &second.hotp, &rfc_code(counter)).await);
        }
        done(&act(&bank, &second.doomed[0], "suspend").await);
        let locked = enrol_hotp(&bank, "locked").await;
        for _ in 0..6 {
            verify(&bank, &locked, "000000").await;
        }
        let keys: Value = done(&daemon.connect("auditor").await.get("/v1/audit/keys").await.unwrap());
        let key = scratch.write("key.pem", keys["keys"][0]["public_key_pem"].as_str().unwrap());
        drop(bank);
        assert!(daemon.stop().success());
        let newest = Copy::of(&daemon.database());
        Self { daemon, newest, older, key: key.to_str().unwrap().to_owned(), _scratch: scratch }
    }
}

fn sql(daemon: &Daemon) -> Database {
    let database = Database::open(daemon.database()).unwrap();
    database.busy_timeout(Duration::from_secs(10)).unwrap();
    database
}

fn count(daemon: &Daemon, query: &str) -> i64 {
    sql(daemon).query_row(query, [], |row| row.get(0)).unwrap()
}
