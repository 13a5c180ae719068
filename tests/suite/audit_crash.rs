//! `kill -9` at any moment: of what is then on the disk every entry fits, there is no state without its entry and no
//! entry without its state, and nothing that was said yes to is missing.
//!
//! `HSM_AUTHD_LOG_CRASHES` is the number of verifications; by default a few hundred.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::approvals::{TRANSACTIONS, order, path, signed};
use crate::audit_files::{Copy, Notary, utf8};
use crate::bank::done;
use crate::client::{Connection, Failure, Response};
use crate::daemon::{Daemon, enrol_hotp, rfc_code};
use crate::signers::Device;
use crate::submissions::Dice;

const VERIFICATIONS: u64 = 300;
const WORKERS: usize = 8;

/// What one client has, and has been told.
struct Worker {
    id: String,
    account: String,
    signer: String,
    counter: u64,
    /// Requests that were answered with yes, by their ids.
    told: Vec<String>,
}

/// Sends one request. `None`: the daemon is gone. What is neither yes nor no fails.
async fn ask(connection: &Connection, method: &str, path: &str, body: &Value) -> Option<Response> {
    let headers = [("content-type", "application/json")];
    match connection.request(method, path, &headers, body.to_string()).await {
        Ok(answer) => {
            let status = answer.status.as_u16();
            assert!([200, 201, 403, 409].contains(&status), "{method} {path}: {status} {:?}", answer.body);
            Some(answer)
        }
        Err(Failure::Request(_)) => None,
        Err(other) => panic!("{other}"),
    }
}

impl Worker {
    /// Works until the daemon is gone. Every third request is no verification.
    async fn work(&mut self, connection: &Connection, number: &mut u64, yes: &AtomicU64) {
        loop {
            *number += 1;
            let done = match *number % 24 {
                3 => self.suspend(connection).await,
                7 => self.pay(connection).await,
                11 => self.come_and_go(connection).await,
                15 => self.miss(connection).await,
                _ => self.verify(connection, yes).await,
            };
            if done.is_none() {
                // It may have been accepted: the next one is in reach all the same.
                self.counter += 1;
                return;
            }
        }
    }

    fn heard(&mut self, answer: &Response) {
        if answer.status.is_success() {
            self.told.push(answer.header("x-request-id").unwrap().to_owned());
        }
    }

    async fn verify(&mut self, connection: &Connection, yes: &AtomicU64) -> Option<()> {
        let path = format!("/v1/credentials/{}/verify", self.id);
        let answer = ask(connection, "POST", &path, &json!({ "otp": rfc_code(self.counter) })).await?;
        assert_eq!(answer.status, 200, "counter {}: {:?}", self.counter, answer.body);
        self.counter += 1;
        yes.fetch_add(1, Ordering::Relaxed);
        self.heard(&answer);
        Some(())
    }

    async fn miss(&mut self, connection: &Connection) -> Option<()> {
        let path = format!("/v1/credentials/{}/verify", self.id);
        let answer =
            ask(connection, "POST", &path, &json!({ "otp": rfc_code(self.counter + 5_000) })).await?;
        assert_eq!(answer.status, 403);
        Some(())
    }

    async fn suspend(&mut self, connection: &Connection) -> Option<()> {
        for action in ["suspend", "resume"] {
            let path = format!("/v1/credentials/{}/{action}", self.signer);
            let answer = ask(connection, "POST", &path, &json!({})).await?;
            self.heard(&answer);
        }
        Some(())
    }

    async fn pay(&mut self, connection: &Connection) -> Option<()> {
        let created = ask(connection, "POST", TRANSACTIONS, &order("device_signature", &self.signer)).await?;
        self.heard(&created);
        if created.status != 201 {
            // A crash came between suspending and resuming.
            assert_eq!(created.status, 409);
            return Some(());
        }
        let view = created.json().unwrap();
        let id = view["id"].as_str().unwrap();
        let answer = ask(connection, "POST", &path(id, "responses"), &signed(1, &view)).await?;
        self.heard(&answer);
        Some(())
    }

    async fn come_and_go(&mut self, connection: &Connection) -> Option<()> {
        let body = json!({ "type": "hotp", "account": format!("{}-guest", self.account) });
        let enrolled = ask(connection, "POST", "/v1/credentials", &body).await?;
        self.heard(&enrolled);
        let id = enrolled.json().unwrap()["id"].as_str().unwrap().to_owned();
        let answer = ask(connection, "DELETE", &format!("/v1/credentials/{id}"), &json!({})).await?;
        self.heard(&answer);
        Some(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_daemon_leaves_fits() {
    let asked = std::env::var("HSM_AUTHD_LOG_CRASHES").ok().map(|text| text.parse().unwrap());
    let verifications: u64 = asked.unwrap_or(VERIFICATIONS);
    let (mut dice, seed) = Dice::new();
    println!("seed {seed}");
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        let account = format!("acct-{number}");
        let id = enrol_hotp(&bank, &account).await;
        let signer = Device::new(1).enrol(&bank, &format!("{account}-payer")).await;
        workers.push(Worker { id, account, signer, counter: 0, told: Vec::new() });
    }
    drop(bank);
    let keys = done(&daemon.connect("auditor").await.get("/v1/audit/keys").await.unwrap());
    let yes = Arc::new(AtomicU64::new(0));
    let (notary, evidence) = (Notary::new(1), crate::scratch::Scratch::new());
    let own = evidence.write("own.pem", keys["keys"][0]["public_key_pem"].as_str().unwrap());
    let key = evidence.write("key.pem", &notary.pem());
    let signed = ["--key", own.to_str().unwrap(), "--key", key.to_str().unwrap()];
    let (mut notes, mut kills, mut entries, mut checking) = (Vec::<String>::new(), 0, 0, Duration::ZERO);
    let begun = Instant::now();
    while yes.load(Ordering::Relaxed) < verifications {
        let until = yes.load(Ordering::Relaxed) + 1 + dice.below(80) as u64;
        let mut at_work = Vec::new();
        for (place, mut worker) in workers.drain(..).enumerate() {
            let connection = daemon.connect("bank-a").await;
            let (yes, mut number) = (Arc::clone(&yes), (3 * place + kills) as u64);
            at_work.push(tokio::spawn(async move {
                worker.work(&connection, &mut number, &yes).await;
                worker
            }));
        }
        while yes.load(Ordering::Relaxed) < until {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        // Between two answers too.
        tokio::time::sleep(Duration::from_micros(100 * dice.below(40) as u64)).await;
        daemon.kill();
        kills += 1;
        for worker in at_work {
            workers.push(worker.await.unwrap());
        }

        let copy = Copy::of(&daemon.database());
        let checked = Instant::now();
        let mut arguments = signed.to_vec();
        // The last few: what each killed daemon left is the beginning of what the next one leaves.
        for note in notes.iter().rev().take(5) {
            arguments.extend(["--checkpoint", note]);
        }
        let said = copy.verified(&arguments);
        checking += checked.elapsed();
        let files = std::fs::read_dir(copy.scratch.path()).unwrap();
        let left: BTreeSet<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        assert!(left.iter().all(|name| ["copy.db", "copy.db-wal"].contains(&&**name)), "{left:?}");
        let of_rows = said.lines().find(|line| line.starts_with("rows ")).unwrap();
        assert!(!said.contains("older"), "{said}");
        let size = copy.size();
        assert!(size >= entries);
        entries = size;
        println!("seed {seed}, kill {kills}: {size} entries; {of_rows}");
        let note = evidence.write(&format!("note-{kills}"), &notary.note(copy.head(size), 1_893_456_000));
        notes.push(note.to_str().unwrap().to_owned());
        let exported = utf8(&copy.audit(&["export"]).stdout);
        for worker in &mut workers {
            for told in worker.told.drain(..) {
                assert!(
                    exported.contains(&format!("\"{told}\"")),
                    "{told} was answered, and is not in the log"
                );
            }
        }
        drop(copy);
        daemon.resume();
    }
    let connection = daemon.connect("bank-a").await;
    for worker in &mut workers {
        worker.verify(&connection, &yes).await.unwrap();
    }
    drop(connection);
    assert!(daemon.stop().success());
    let copy = Copy::of(&daemon.database());
    let of_notes = notes.iter().flat_map(|note| ["--checkpoint", note]);
    copy.verified(&signed.into_iter().chain(of_notes).collect::<Vec<_>>());
    let cut = copy.tampered(|connection| {
        let sql = "DELETE FROM audit WHERE seq >= (SELECT max(seq) FROM audit WHERE rows <> '')";
        connection.execute(sql, []).unwrap();
        connection.execute("DELETE FROM checkpoint", []).unwrap();
    });
    let line = cut.refused(&[]);
    assert!(
        line.contains("row ") || line.contains("is missing"),
        "an entry is gone and its rows are not: {line}"
    );
    assert!(kills > 2, "only {kills} kills");
    println!(
        "{} verifications, {kills} kills, {} entries in {:?}; {checking:?} of it checking",
        yes.load(Ordering::Relaxed),
        copy.size(),
        begun.elapsed(),
    );
}
