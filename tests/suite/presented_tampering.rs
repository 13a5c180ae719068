//! Presentations and authorizations in other hands: what somebody does to the database, a crash at any moment, and
//! whether a code is anywhere to be read.

use std::time::Duration;

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use hsm_authd::domain::id::{CredentialId, PresentationId};
use rusqlite::Connection as Database;
use serde_json::{Value, json};

use crate::bank::{credential, delete, done, refused};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, text};
use crate::presenting::{
    PRESENTATIONS, Payer, Presented, Sms, another, at, claim, claimed, enrol_terminal, order,
};
use crate::pruning::{rows, sum};
use crate::submissions::{Crowd, Dice};
use crate::token::TestToken;
use crate::transactions::NOW;
use crate::transactions_client::{respond, view};

/// A database of a running daemon, and one of its tables as it was.
struct Intruder(Database, &'static str);

impl Intruder {
    fn of(daemon: &Daemon, table: &'static str) -> Self {
        let database = Database::open(daemon.database()).unwrap();
        database.busy_timeout(Duration::from_secs(10)).unwrap();
        Self(database, table)
    }

    fn edit(&self, sql: &str) {
        let Self(database, table) = self;
        let batch = format!("BEGIN; CREATE TABLE kept AS SELECT * FROM {table}; {sql}; COMMIT");
        database.execute_batch(&batch).unwrap_or_else(|error| panic!("{sql}: {error}"));
        let differs: bool = database
            .query_row(
                &format!("SELECT EXISTS (SELECT * FROM {table} EXCEPT SELECT * FROM kept)"),
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert!(differs, "nothing was edited: {sql}");
    }

    fn undo(&self) {
        let Self(database, table) = self;
        let batch = format!(
            "BEGIN; DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept; DROP TABLE kept; COMMIT"
        );
        database.execute_batch(&batch).unwrap();
    }

    /// How much is in the log besides what it says of the edits.
    fn audited(&self) -> i64 {
        self.0
            .query_row("SELECT count(*) FROM audit WHERE event <> 'store.row_tampered'", [], |row| row.get(0))
            .unwrap()
    }

    fn columns(&self) -> Vec<String> {
        let statement = self.0.prepare(&format!("SELECT * FROM {}", self.1)).unwrap();
        statement.column_names().map(str::to_owned).collect()
    }
}

/// None is a yes, and those of which that is said are 503.
fn refused_all(edit: &str, answers: Vec<(&str, Response)>, found: impl Fn(&str) -> bool) {
    for (what, answer) in answers {
        match found(what) {
            true => drop(refused(&answer, 503, "unavailable")),
            false => {
                assert!([404, 503].contains(&answer.status.as_u16()), "{edit}: {what}: {}", text(&answer))
            }
        }
    }
}

#[tokio::test]
async fn an_edited_presentation_is_a_503_and_never_a_claim() {
    let daemon = Daemon::start_at(NOW);
    let (bank, other) = (daemon.connect("bank-a").await, daemon.connect("bank-b").await);
    let intruder = Intruder::of(&daemon, "presentation");
    let payer = Payer::enrol(&bank, "bank-a", "acct-1").await;
    let twin = Payer::enrol(&bank, "bank-a", "acct-2").await;
    let open = payer.present(&bank, NOW).await;
    daemon.set_clock(NOW + 5);
    let taken = twin.present(&bank, NOW).await;
    let transaction = claimed(&bank, &taken.code).await;
    let blob = |id: &str| format!("x'{}'", HEXLOWER.encode(&PresentationId::parse(id).unwrap().to_bytes()));
    let (id, of_taken) = (blob(&open.id), blob(&taken.id));
    let from_taken =
        |column: &str| format!("(SELECT p.{column} FROM presentation p WHERE p.id = {of_taken})");
    let edits = [
        ("id", vec!["zeroblob(16)".to_owned()]),
        ("tenant", vec!["'bank-b'".to_owned()]),
        ("version", vec!["2".to_owned()]),
        ("credential", vec!["zeroblob(16)".to_owned(), from_taken("credential")]),
        ("account", vec!["'acct-2'".to_owned()]),
        ("created_unix_ms", vec!["created_unix_ms + 1".to_owned()]),
        ("nonce", vec!["zeroblob(32)".to_owned(), from_taken("nonce")]),
        ("code_hash", vec!["zeroblob(32)".to_owned()]),
        ("expires", vec![from_taken("expires"), "x''".to_owned()]),
        ("transaction_id", vec!["zeroblob(16)".to_owned(), from_taken("transaction_id")]),
        ("seal_key_version", vec!["2".to_owned()]),
        ("seal", vec!["zeroblob(32)".to_owned(), from_taken("seal")]),
    ];
    let mut named: Vec<_> = edits.iter().map(|(column, _)| (*column).to_owned()).collect();
    let mut columns = intruder.columns();
    named.sort();
    columns.sort();
    assert_eq!(named, columns, "a column that no edit is of");
    for (column, values) in edits {
        for value in values {
            let edit = format!("UPDATE presentation SET {column} = {value} WHERE id = {id}");
            let before = intruder.audited();
            intruder.edit(&edit);
            let answers = vec![
                ("read", bank.get(&open.path("")).await.unwrap()),
                ("picture", bank.get(&open.path("/qr")).await.unwrap()),
                ("claim", claim(&bank, &open.code).await),
                ("other", claim(&other, &open.code).await),
            ];
            refused_all(&edit, answers, |what| match (column, what) {
                ("tenant", what) => what == "other",
                ("id", what) => what == "claim",
                ("code_hash", what) => what != "claim" && what != "other",
                (_, what) => what != "other",
            });
            assert_eq!(intruder.audited(), before, "{edit}");
            intruder.undo();
        }
    }
    // A claim that is undone by hand, and another's code under this one's row.
    for edit in [
        format!("UPDATE presentation SET transaction_id = NULL WHERE id = {of_taken}"),
        format!("UPDATE presentation SET transaction_id = NULL, version = 1 WHERE id = {of_taken}"),
    ] {
        intruder.edit(&edit);
        refused(&claim(&bank, &taken.code).await, 503, "unavailable");
        refused(&bank.get(&taken.path("")).await.unwrap(), 503, "unavailable");
        intruder.undo();
    }
    assert_eq!(taken.now(&bank).await["transaction"], transaction["id"]);
    claimed(&bank, &open.code).await;
}

#[tokio::test]
async fn an_edited_authorization_is_a_503_and_never_a_yes() {
    let daemon = Daemon::start_at(NOW);
    let gateway = daemon.connect("bank-a-gateway").await;
    let intruder = Intruder::of(&daemon, "device_authorization");
    let waiting = Sms::new(&gateway, "acct-1").await;
    daemon.set_clock(NOW + 10);
    let other = Sms::new(&gateway, "acct-1").await;
    done(&other.uplink(&gateway, &other.uplink_body()).await);
    let blob = |id: &str| format!("x'{}'", HEXLOWER.encode(&CredentialId::parse(id).unwrap().to_bytes()));
    let (id, of_other) = (blob(&waiting.payer.id), blob(&other.payer.id));
    let of = |column: &str| {
        format!("(SELECT a.{column} FROM device_authorization a WHERE a.credential = {of_other})")
    };
    let spare = Payer::unauthorized(&gateway, "bank-a", "acct-1").await;
    let edits = [
        ("credential", vec![blob(&spare.id)]),
        ("tenant", vec!["'bank-b'".to_owned()]),
        ("account", vec!["'acct-2'".to_owned()]),
        ("version", vec!["2".to_owned()]),
        (
            "terminal",
            vec![of("terminal"), "NULL, evidence = 'checked'".to_owned(), "zeroblob(16)".to_owned()],
        ),
        ("evidence", vec!["'checked'".to_owned()]),
        ("nonce", vec![of("nonce")]),
        ("expires", vec![format!("{}, expires_unix_ms = {}", of("expires"), of("expires_unix_ms"))]),
        ("expires_unix_ms", vec!["expires_unix_ms + 300000".to_owned()]),
        ("uplink_seen", vec!["1".to_owned(), "2".to_owned()]),
        ("attempts_left", vec!["100".to_owned(), "0".to_owned()]),
        ("seal_key_version", vec!["2".to_owned()]),
        ("seal", vec!["zeroblob(32)".to_owned(), of("seal")]),
    ];
    let mut named: Vec<_> = edits.iter().map(|(column, _)| (*column).to_owned()).collect();
    let mut columns = intruder.columns();
    named.sort();
    columns.sort();
    assert_eq!(named, columns, "a column that no edit is of");
    let begin = json!({ "method": "sms", "terminal": waiting.terminal });
    for (column, values) in edits {
        for value in values {
            let edit = format!("UPDATE device_authorization SET {column} = {value} WHERE credential = {id}");
            let before = intruder.audited();
            intruder.edit(&edit);
            let spare_now = Sms { payer: spare.clone(), ..waiting.clone() };
            let mut answers = vec![
                ("read", waiting.view(&gateway).await),
                ("uplink", waiting.uplink(&gateway, &waiting.uplink_body()).await),
                ("complete", waiting.complete(&gateway, &waiting.completion()).await),
            ];
            if column == "credential" {
                answers.push(("spare", spare_now.view(&gateway).await));
                answers.push(("spare", spare_now.complete(&gateway, &spare_now.completion()).await));
                answers.push(("spare", spare_now.uplink(&gateway, &waiting.uplink_body()).await));
                answers.push(("spare", gateway.post(&at(&spare.id, ""), &begin).await.unwrap()));
            } else {
                answers.push(("begin", gateway.post(&at(&waiting.payer.id, ""), &begin).await.unwrap()));
                answers.push(("delete", delete(&gateway, &waiting.payer.id).await));
            }
            refused_all(&edit, answers, |what| column != "credential" || what == "spare");
            assert_eq!(intruder.audited(), before, "{edit}");
            intruder.undo();
        }
    }
    done(&waiting.uplink(&gateway, &waiting.uplink_body()).await);
    done(&waiting.complete(&gateway, &waiting.completion()).await);
    done(&other.complete(&gateway, &other.completion()).await);
    assert_eq!(credential(&gateway, &spare.id).await["state"], "unauthorized");
}

/// Everything in the daemon's folder that is the database's, and its log without the times.
fn kept(daemon: &Daemon) -> (Vec<u8>, String) {
    let name = daemon.database().file_name().unwrap().to_str().unwrap().to_owned();
    let of_database =
        |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(&name);
    let files =
        std::fs::read_dir(daemon.store()).unwrap().map(|entry| entry.unwrap().path()).filter(of_database);
    // The control socket is none.
    let files = files.filter(|path| path.is_file());
    let lines = daemon.log().lines().map(str::to_owned).collect::<Vec<_>>();
    let without_times = lines.into_iter().map(|line| {
        let mut line: Value = serde_json::from_str(&line).unwrap();
        for time in ["timestamp", "latency_us"] {
            line.as_object_mut().unwrap().remove(time);
        }
        line.to_string()
    });
    (files.flat_map(|path| std::fs::read(path).unwrap()).collect(), without_times.collect())
}

#[tokio::test]
async fn no_code_is_anywhere_to_be_read() {
    let daemon = Daemon::start_at(NOW);
    let gateway = daemon.connect("bank-a-gateway").await;
    let keyed = |key| [("content-type", "application/json"), ("idempotency-key", key)];
    let mut codes = Vec::new();
    let payer = Payer::enrol(&gateway, "bank-a", "acct-1").await;
    for (number, [key, key_of_claim]) in (0..).zip([["k-1", "k-1-claim"], ["k-2", "k-2-claim"]]) {
        let body = payer.body(NOW + number).to_string();
        let answer = gateway.request("POST", PRESENTATIONS, &keyed(key), body.clone()).await.unwrap();
        let presented = Presented::of(&answer.json().unwrap());
        gateway.request("POST", PRESENTATIONS, &keyed(key), body).await.unwrap();
        gateway.get(&presented.path("/qr")).await.unwrap();
        let body = order(&presented.code).to_string();
        gateway.request("POST", "/v1/transactions", &keyed(key_of_claim), body).await.unwrap();
        claim(&gateway, &presented.code).await;
        codes.push(presented.code);
    }
    let sms = Sms::new(&gateway, "acct-2").await;
    let body = json!({ "method": "sms", "terminal": sms.terminal }).to_string();
    let again = gateway.request("POST", &at(&sms.payer.id, ""), &keyed("k-3"), body).await.unwrap();
    let sms = Sms { begun: again.json().unwrap(), ..sms };
    let wrong = json!({ "code": another(&sms.code("uplink")), "from": "x" });
    sms.uplink(&gateway, &wrong).await;
    let uplink = sms.uplink_body().to_string();
    done(&gateway.request("POST", &at(&sms.payer.id, "/uplink"), &keyed("k-4"), uplink).await.unwrap());
    done(&sms.view(&gateway).await);
    let completion = sms.completion().to_string();
    done(&gateway.request("POST", &at(&sms.payer.id, "/complete"), &keyed("k-5"), completion).await.unwrap());

    let (database, log) = kept(&daemon);
    assert!(log.contains("/v1/credentials/{id}/authorization/complete") && log.contains(PRESENTATIONS));
    let contains = |bytes: &[u8]| database.windows(bytes.len()).any(|window| window == bytes);
    assert!(contains(b"acct-2"), "the search finds what is there");
    let mut secrets: Vec<Vec<u8>> = ["downlink", "uplink"].map(|way| sms.code(way).into_bytes()).into();
    for code in codes {
        let bits = BASE32_NOPAD.decode(code.as_bytes()).unwrap();
        secrets.extend([
            HEXLOWER.encode(&bits).into_bytes(),
            code.to_lowercase().into_bytes(),
            code.into_bytes(),
            bits,
        ]);
    }
    for secret in secrets {
        let shown = String::from_utf8_lossy(&secret).into_owned();
        assert!(!contains(&secret), "the database has {shown}");
        assert!(!log.contains(&shown), "the log says {shown}");
    }
}

/// What a claim, a decision or a completion was told is so after the crash; what was not told is whole or not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_daemon_keeps_what_it_told() {
    let (mut dice, seed) = Dice::new();
    println!("seed {seed}");
    let mut daemon = Daemon::start_at(NOW);
    let mut crowd = Crowd::of(&daemon, "bank-a-gateway").await;
    let terminal = enrol_terminal(crowd.connection(0), "acct-0", crate::presenting::ADDRESS).await;
    let mut payers = Vec::new();
    for number in 0..4 {
        payers.push(Payer::enrol(crowd.connection(0), "bank-a", &format!("acct-{number}")).await);
    }
    let (mut lost, mut told_of) = (0, 0);
    for round in 0..8 {
        let second = NOW + 2 * round;
        daemon.set_clock(second);
        let bank = crowd.connection(0).clone();
        let device = Payer::unauthorized(&bank, "bank-a", "acct-0").await;
        let sms = Sms::begin(&bank, &device, &terminal).await;
        done(&sms.uplink(&bank, &sms.uplink_body()).await);
        let mut open = Vec::new();
        for payer in &payers {
            let (first, next) = (payer.present(&bank, second).await, payer.present(&bank, second + 1).await);
            let transaction = claimed(&bank, &first.code).await;
            open.push((payer, next, transaction));
        }
        let (sender, mut answers) = tokio::sync::mpsc::unbounded_channel();
        let send = |what: (usize, &'static str), path: String, body: Value, number: usize| {
            let (sender, connection) = (sender.clone(), crowd.connection(number).clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_micros(700 * number as u64)).await;
                let _ = sender.send((what, connection.post(&path, &body).await));
            });
        };
        for (place, (payer, presented, transaction)) in open.iter().enumerate() {
            for copy in 0..2 {
                send((place, "claim"), "/v1/transactions".into(), order(&presented.code), 3 * place + copy);
                let decision = if copy == 0 { "approve" } else { "decline" };
                let path = crate::transactions_client::at(transaction, "responses");
                send((place, decision), path, payer.decides(decision, transaction), 3 * place + copy);
            }
        }
        send((0, "complete"), at(&device.id, "/complete"), sms.completion(), 5);
        drop(sender);
        let last = dice.below(12);
        let (mut seen, mut told) = (0, Vec::new());
        loop {
            if seen == last {
                tokio::time::sleep(Duration::from_micros(200 * dice.below(8) as u64)).await;
                daemon.kill();
            }
            let Some((what, answer)) = answers.recv().await else { break };
            seen += 1;
            match answer {
                Ok(answer) if answer.status.is_success() => told.push((what, answer.json().unwrap())),
                Ok(answer) => assert!([409, 503].contains(&answer.status.as_u16()), "{}", text(&answer)),
                Err(_) => lost += 1,
            }
        }
        daemon.resume();
        crowd = Crowd::of(&daemon, "bank-a-gateway").await;
        settled(crowd.connection(0), &open, &told).await;
        told_of += told.len();
        let state = credential(crowd.connection(0), &device.id).await["state"].clone();
        let was_told = told.iter().any(|((_, what), _)| *what == "complete");
        if state == "unauthorized" {
            assert!(!was_told, "a completion was forgotten");
            done(&sms.complete(crowd.connection(0), &sms.completion()).await);
        } else {
            assert_eq!(state, "active");
            refused(&sms.complete(crowd.connection(0), &sms.completion()).await, 409, "state-conflict");
        }
    }
    println!("{lost} answers lost, {told_of} told");
    assert!(lost > 0, "the daemon was never killed in the middle");
    drop(crowd);
    assert!(daemon.stop().success());
    let (kept, kept_sum) = rows(&daemon).await;
    let token = TestToken::of(&daemon);
    let mut custodian = token.custodian();
    let sums = kept.chunks(50).map(|some| sum(&mut custodian, some));
    let zero = hsm_authd::domain::row::RowSum::default();
    assert_eq!(sums.fold(zero, hsm_authd::domain::row::RowSum::plus), kept_sum);
}

/// Each code is claimed by at most one transaction, and each transaction is decided as was told.
async fn settled(
    bank: &Connection,
    open: &[(&Payer, Presented, Value)],
    told: &[((usize, &'static str), Value)],
) {
    for (place, (payer, presented, transaction)) in open.iter().enumerate() {
        let of = |what: &str| {
            told.iter()
                .filter(|(told, _)| *told == (place, what))
                .map(|(_, body)| body.clone())
                .collect::<Vec<_>>()
        };
        let claims = of("claim");
        assert!(claims.len() <= 1, "claimed twice");
        let now = presented.now(bank).await;
        match now["state"].as_str().unwrap() {
            "open" => {
                assert!(claims.is_empty(), "a claim was forgotten");
                claimed(bank, &presented.code).await;
            }
            "claimed" => {
                assert!(claims.iter().all(|told| told["id"] == now["transaction"]));
                let of_claim = view(bank, &json!({ "id": now["transaction"] })).await;
                assert_eq!(of_claim["state"], "pending");
            }
            other => panic!("{other}"),
        }
        refused(&claim(bank, &presented.code).await, 409, "state-conflict");
        let decisions = [of("approve"), of("decline")].concat();
        assert!(decisions.len() <= 1, "decided twice");
        let state = view(bank, transaction).await["state"].clone();
        if state == "pending" {
            assert!(decisions.is_empty(), "a decision was forgotten");
            done(&respond(bank, transaction, &payer.decides("decline", transaction)).await);
        } else {
            assert!(decisions.iter().all(|told| told["state"] == state), "{state}");
            refused(
                &respond(bank, transaction, &payer.decides("approve", transaction)).await,
                409,
                "state-conflict",
            );
        }
    }
}
