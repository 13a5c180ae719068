//! What somebody does to the rows of a rolling credential, and what is to be found in them: never a yes, and no code.

use std::fs;
use std::time::{Duration, Instant};

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use hsm_authd::domain::credential::{Credential, Kind, Status, StoredSecret};
use hsm_authd::domain::id::CredentialId;
use hsm_authd::domain::rolling::{Binding, Rolling};
use hsm_authd::domain::row::{Row, RowSum, Sealed};
use hsm_authd::store::Store;
use rusqlite::Connection as Database;
use serde_json::Value;

use crate::bank::{act, credential, delete, done, failed, refused};
use crate::client::{Connection, Response};
use crate::daemon::Daemon;
use crate::pruning::{rows, sum};
use crate::rolling_terminal::{
    Code, Terminal, activate, activation, enrol_pending, order, quick_key, rebind,
};
use crate::scratch::Scratch;
use crate::store_samples;
use crate::token::TestToken;
use crate::transactions_client::{respond, standing};

const TABLES: [&str; 4] = ["credential", "credential_state", "account", "binding"];

struct Intruder(Database);

impl Intruder {
    fn of(daemon: &Daemon) -> Self {
        let database = Database::open(daemon.database()).unwrap();
        database.busy_timeout(Duration::from_secs(10)).unwrap();
        Self(database)
    }

    fn run(&self, sql: &str) {
        self.0.execute_batch(&format!("BEGIN; {sql}; COMMIT")).unwrap_or_else(|e| panic!("{sql}: {e}"));
    }

    /// Keeps the rows as they are under a name.
    fn keep(&self, name: &str) {
        self.run(
            &TABLES.map(|table| format!("CREATE TABLE {name}_{table} AS SELECT * FROM {table};")).concat(),
        );
    }

    /// Puts those of one table back.
    fn put_back(&self, name: &str, table: &str) {
        self.run(&format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM {name}_{table}"));
    }

    fn put_all_back(&self, name: &str) {
        TABLES.iter().for_each(|table| self.put_back(name, table));
    }

    fn count(&self, table: &str) -> i64 {
        self.0.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
    }
}

fn blob(id: &str) -> String {
    format!("x'{}'", HEXLOWER.encode(&CredentialId::parse(id).unwrap().to_bytes()))
}

/// Everything that its terminal can ask: a right password, a wrong one, both rotations.
async fn all_answers(bank: &Connection, terminal: &Terminal, before: &Code) -> Vec<(&'static str, Response)> {
    let transaction = order(bank).await;
    let answers = vec![
        ("right password", respond(bank, &transaction, &terminal.password(&transaction)).await),
        ("wrong password", respond(bank, &transaction, &terminal.guess(&transaction)).await),
        ("rotation", terminal.rotate(bank).await),
        ("rotation of the one before", {
            let body = before.rotation(terminal.epoch - 1);
            crate::rolling_terminal::rotate(bank, &terminal.id, &body).await
        }),
    ];
    assert_eq!(standing(bank, &transaction).await, ("pending".to_owned(), 3));
    answers
}

#[tokio::test]
async fn an_edited_row_is_a_503_and_never_a_yes() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let intruder = Intruder::of(&daemon);
    let mut terminal = Terminal::enrol(&bank, "bank-a", "acct-1").await;
    let mut other = Terminal::enrol(&bank, "bank-a", "acct-2").await;
    let before = terminal.code.clone();
    terminal.pay(&bank).await;
    other.pay(&bank).await;
    let (own, others) = (blob(&terminal.id), blob(&other.id));
    intruder.keep("right");
    let of_binding = |edit: &str| format!("UPDATE binding SET {edit} WHERE credential = {own}");
    let from_other = |column: &str| {
        let taken = format!("(SELECT {column} FROM right_binding WHERE credential = {others})");
        format!(
            "DELETE FROM binding WHERE credential = {others}; {}",
            of_binding(&format!("{column} = {taken}"))
        )
    };
    let of_credential = |edit: &str| format!("UPDATE credential SET {edit} WHERE id = {own}");
    let of_state = |edit: &str| format!("UPDATE credential_state SET {edit} WHERE id = {own}");
    let other_secret = format!("(SELECT secret FROM right_credential WHERE id = {others})");
    let other_key = format!("(SELECT identity_key FROM right_credential WHERE id = {others})");
    for edit in [
        of_binding("version = version + 1"),
        of_binding("version = version - 1"),
        of_binding("epoch = epoch + 1"),
        of_binding("epoch = epoch - 1"),
        of_binding("epoch = 0"),
        of_binding("acknowledged = 1"),
        of_binding("lookup = zeroblob(12)"),
        of_binding("tenant = 'bank-b'"),
        of_binding("seal = zeroblob(32)"),
        of_binding("seal_key_version = 7"),
        of_binding("credential = x'00112233445566778899aabbccddeeff'"),
        from_other("lookup"),
        from_other("seal"),
        format!("DELETE FROM binding WHERE credential = {own}"),
        // The other's binding, seal and all, in its place; and its own under the other's name.
        format!(
            "DELETE FROM binding WHERE credential = {own}; UPDATE binding SET credential = {own} WHERE credential = {others}"
        ),
        format!(
            "DELETE FROM binding WHERE credential = {others}; UPDATE binding SET credential = {others} WHERE credential = {own}"
        ),
        of_credential(&format!("secret = {other_secret}")),
        of_credential(&format!("identity_key = {other_key}")),
        of_credential("salt = zeroblob(16)"),
        of_credential("evidence = 'case 8'"),
        of_credential("account = 'acct-2'"),
        of_credential("tenant = 'bank-b'"),
        of_state("next_factor = next_factor + 1"),
        of_state("failures = 4"),
        of_state("status = 'suspended'"),
        of_state("status = 'pending'"),
        "UPDATE account SET failures = 4 WHERE account = 'acct-1'".to_owned(),
    ] {
        intruder.run(&edit);
        for (what, answer) in all_answers(&bank, &terminal, &before).await {
            println!("{edit}: {what}: {}", answer.status);
            match answer.status.as_u16() {
                // What it is found by is not there: then it is nobody's. Which is a no, and charged to nobody.
                403 if what.ends_with("password") => {
                    assert!(
                        ["lookup", "tenant", "DELETE"].iter().any(|column| edit.contains(column)),
                        "{edit}"
                    );
                    assert_eq!(failed(&answer), 3);
                }
                404 if edit.contains("SET tenant = 'bank-b' WHERE id") => {
                    drop(refused(&answer, 404, "not-found"))
                }
                // What is said to be suspended or to wait is refused before anything is made of it.
                409 if edit.contains("status = ") => drop(refused(&answer, 409, "state-conflict")),
                _ => drop(refused(&answer, 503, "unavailable")),
            }
        }
        intruder.put_all_back("right");
    }
    // As it was: it is what it was.
    assert_eq!(credential(&bank, &terminal.id).await["failures"], 0);
    terminal.pay(&bank).await;
    other.pay(&bank).await;
}

/// Rows that were right once, with their seals, each put back by itself.
#[tokio::test]
async fn an_old_row_beside_the_others_is_a_503() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let intruder = Intruder::of(&daemon);
    let mut terminal = Terminal::enrol(&bank, "bank-a", "acct-1").await;
    let first = terminal.clone();
    intruder.keep("first");
    terminal.pay(&bank).await;
    let second = terminal.clone();
    intruder.keep("used");
    done(&terminal.rotate(&bank).await);
    intruder.keep("acknowledged");
    terminal.pay(&bank).await;
    intruder.keep("right");
    for (name, old) in [("first", &first), ("used", &second), ("acknowledged", &second)] {
        for table in ["binding", "credential_state"] {
            intruder.put_back(name, table);
            let transaction = order(&bank).await;
            // Of the old binding; or of the present one, beside an old state.
            let asked = if table == "binding" { old } else { &terminal };
            for password in [asked.password(&transaction), asked.guess(&transaction)] {
                refused(&respond(&bank, &transaction, &password).await, 503, "unavailable");
            }
            refused(&asked.rotate(&bank).await, 503, "unavailable");
            if table == "binding" && name == "first" {
                refused(&activate(&bank, &old.id, &old.identity_key).await, 503, "unavailable");
            }
            assert_eq!(standing(&bank, &transaction).await, ("pending".to_owned(), 3));
            intruder.put_all_back("right");
        }
    }
    // The one before the acknowledgement: its code is not handed out again.
    intruder.put_back("used", "binding");
    refused(&first.rotate(&bank).await, 503, "unavailable");
    intruder.put_all_back("right");
    // One of an earlier secret, whose version fits by chance.
    intruder.run("CREATE TABLE earlier AS SELECT * FROM binding");
    done(&rebind(&bank, &terminal.id).await);
    let salt = credential(&bank, &terminal.id).await["salt"].as_str().unwrap().to_owned();
    let mut anew = Terminal::bind(&bank, "bank-a", "acct-1", &terminal.id, quick_key("1", &salt)).await;
    anew.pay(&bank).await;
    done(&anew.rotate(&bank).await);
    anew.pay(&bank).await;
    let version = |table: &str| -> i64 {
        intruder.0.query_row(&format!("SELECT version FROM {table}"), [], |row| row.get(0)).unwrap()
    };
    assert_eq!(version("binding"), version("earlier"));
    intruder.keep("anew");
    intruder.run("DELETE FROM binding; INSERT INTO binding SELECT * FROM earlier");
    let transaction = order(&bank).await;
    refused(&respond(&bank, &transaction, &terminal.password(&transaction)).await, 503, "unavailable");
    refused(&terminal.rotate(&bank).await, 503, "unavailable");
    intruder.put_all_back("anew");
    anew.pay(&bank).await;
}

/// What of all this is kept: lookups, and nothing that anybody could pay with.
// Stopping waits for the client's end of its connection, which needs a thread of its own.
#[tokio::test(flavor = "multi_thread")]
async fn no_code_key_or_password_is_to_be_read_anywhere() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let keyed = async |key: &str, path: String, body: &Value| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        bank.request("POST", &path, &headers, body.to_string()).await.unwrap()
    };
    let (id, salt) = enrol_pending(&bank, "acct-1").await;
    let key = quick_key("unmistakable", &salt);
    let path = |action: &str| format!("/v1/credentials/{id}/{action}");
    let told = done(&keyed("a", path("activate"), &activation(&key)).await);
    let mut terminal = Terminal {
        tenant: "bank-a",
        account: "acct-1".to_owned(),
        id: id.clone(),
        identity_key: key.clone(),
        epoch: 1,
        code: Code::of(&told["temporary_code"]),
    };
    let (mut codes, mut proofs) = (vec![terminal.code.clone()], Vec::new());
    for round in 0..3 {
        let transaction = order(&bank).await;
        let responses = format!("/v1/transactions/{}/responses", transaction["id"].as_str().unwrap());
        for (what, body) in [("g", terminal.guess(&transaction)), ("p", terminal.password(&transaction))] {
            let answer = keyed(&format!("{what}{round}"), responses.clone(), &body).await;
            let bytes = BASE64URL_NOPAD.decode(body["password"].as_str().unwrap().as_bytes()).unwrap();
            proofs.push(bytes[12..].to_vec());
            if what == "p" {
                let before = terminal.clone();
                terminal.keep(&done(&answer)["next"]);
                codes.push(terminal.code.clone());
                done(
                    &keyed(&format!("r{round}"), path("rotation"), &before.code.rotation(before.epoch)).await,
                );
                done(
                    &keyed(&format!("k{round}"), path("rotation"), &terminal.code.rotation(terminal.epoch))
                        .await,
                );
                done(&keyed(&format!("p{round}"), responses.clone(), &body).await);
            }
        }
    }
    failed(&keyed("w", path("rotation"), &Code(vec![0xd7; 16]).rotation(terminal.epoch)).await);
    proofs.extend(codes.iter().map(Code::rotation_proof));
    drop(bank);
    assert!(daemon.stop().success());
    let mut files = vec![("the log".to_owned(), daemon.log().into_bytes())];
    for entry in fs::read_dir(daemon.store()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path.file_name().unwrap().to_string_lossy().starts_with("hsm-authd.db") {
            files.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    assert!(files.len() >= 2 && files[1].1.len() > 10_000);
    let contains = |file: &[u8], wanted: &[u8]| file.windows(wanted.len()).any(|window| window == wanted);
    let mut secrets: Vec<Vec<u8>> = codes.iter().map(|code| code.0.clone()).collect();
    secrets.push(key);
    secrets.extend(proofs);
    assert!(secrets.len() >= 4 + 1 + 6 + 4);
    for (name, file) in &files {
        let lower = file.to_ascii_lowercase();
        for secret in &secrets {
            assert!(!contains(file, secret), "{name} has {secret:?}");
            assert!(!contains(&lower, HEXLOWER.encode(secret).as_bytes()), "{name} has it in hex");
            for spelling in [BASE64URL_NOPAD.encode(secret), BASE64.encode(&secret[..15])] {
                assert!(!contains(file, spelling.as_bytes()), "{name} has {spelling}");
            }
            let list = format!("{secret:?}");
            assert!(!contains(file, &list.as_bytes()[1..list.len() - 1]), "{name} has it as numbers");
        }
    }
    // The search would find what is there.
    let open = terminal.code.lookup();
    assert!(files.iter().any(|(_, file)| contains(file, &open)));
}

/// Bindings go with their credentials, and the sum over all rows goes with them.
// Stopping waits for the client's end of its connection, which needs a thread of its own.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_binding_stays_behind() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let intruder = Intruder::of(&daemon);
    let mut kept = Terminal::enrol(&bank, "bank-a", "acct-1").await;
    for action in ["delete", "rebind", "delete-pending", "delete-used"] {
        let mut terminal = Terminal::enrol(&bank, "bank-a", "acct-2").await;
        assert_eq!(intruder.count("binding"), 2, "{action}");
        match action {
            "delete" => drop(done(&delete(&bank, &terminal.id).await)),
            "rebind" => drop(done(&rebind(&bank, &terminal.id).await)),
            "delete-pending" => {
                done(&rebind(&bank, &terminal.id).await);
                done(&delete(&bank, &terminal.id).await);
            }
            _ => {
                terminal.pay(&bank).await;
                done(&terminal.rotate(&bank).await);
                done(&act(&bank, &terminal.id, "suspend").await);
                done(&delete(&bank, &terminal.id).await);
            }
        }
        assert_eq!(intruder.count("binding"), 1, "{action}");
        kept.pay(&bank).await;
    }
    drop(bank);
    drop(intruder);
    assert!(daemon.stop().success());
    let (all, kept_sum) = rows(&daemon).await;
    let left = all.iter().filter_map(|sealed| match &sealed.row {
        Row::Credential(Credential { kind: Kind::Rolling(rolling), deleted_unix_ms: Some(_), .. }) => {
            Some(rolling)
        }
        _ => None,
    });
    let left: Vec<_> = left.collect();
    assert!(
        left.len() == 3
            && left.iter().all(|rolling| rolling.secret.is_none() && rolling.identity_key.is_none())
    );
    let token = TestToken::of(&daemon);
    let mut custodian = token.custodian();
    let sums = all.chunks(50).map(|some| sum(&mut custodian, some));
    assert_eq!(sums.fold(RowSum::default(), RowSum::plus), kept_sum);
}

/// So many bindings, each of a credential and an account of its own.
fn bound(numbers: std::ops::Range<u128>) -> Vec<Sealed<Row>> {
    numbers
        .flat_map(|number| {
            let mut rows = store_samples::enrolment(number, "bank-a", &format!("acct-{number}"));
            let secret = StoredSecret::Wrapped { kek_version: 1, blob: vec![7; 40] };
            rows.credential.row.kind = Kind::Rolling(Rolling::new(secret, [5; 16]));
            rows.state.row.status = Status::Active;
            let binding =
                Binding::first(store_samples::id(number), store_samples::tenant("bank-a"), lookup(number));
            [
                store_samples::row(rows.credential.row),
                store_samples::row(rows.state.row),
                store_samples::row(rows.account.row),
                store_samples::row(binding),
            ]
        })
        .collect()
}

fn lookup(number: u128) -> [u8; 12] {
    Code(number.to_be_bytes().to_vec()).lookup().try_into().unwrap()
}

#[tokio::test]
async fn whose_a_password_is_takes_no_longer_among_ten_thousand() {
    const MANY: u128 = 10_000;
    let scratch = Scratch::new();
    let path = scratch.join("store.db");
    let store = Store::open(&path).unwrap();
    let tenant = store_samples::tenant("bank-a");
    drop(store.commit(store_samples::insert(&bound(0..10))).await.unwrap());
    let measure = async |among: u128| {
        let mut times = Vec::new();
        for turn in 0..400u128 {
            let number = turn * 7 % among;
            let begun = Instant::now();
            let found = store.bound(&tenant, lookup(number)).await.unwrap().unwrap();
            times.push(begun.elapsed());
            assert_eq!(found.binding.row.credential, store_samples::id(number));
            assert_eq!(
                found.credential.credential.row.account,
                store_samples::account(&format!("acct-{number}"))
            );
        }
        times.sort();
        times[times.len() / 2]
    };
    let among_ten = measure(10).await;
    for first in (10..MANY).step_by(100) {
        let end = (first + 100).min(MANY);
        drop(store.commit(store_samples::insert(&bound(first..end))).await.unwrap());
    }
    let among_many = measure(MANY).await;
    assert!(store.bound(&tenant, lookup(MANY)).await.unwrap().is_none());
    let elsewhere = store_samples::tenant("bank-b");
    assert!(store.bound(&elsewhere, lookup(7)).await.unwrap().is_none());
    let database = Database::open(&path).unwrap();
    let count: i64 = database.query_row("SELECT count(*) FROM binding", [], |row| row.get(0)).unwrap();
    let plan: String = database
        .query_row(
            "EXPLAIN QUERY PLAN SELECT * FROM binding WHERE tenant = 'bank-a' AND lookup = x'00'",
            [],
            |row| row.get("detail"),
        )
        .unwrap();
    println!("median of 10: {among_ten:?}, of {count}: {among_many:?}; {plan}");
    assert_eq!(count, MANY as i64);
    assert_eq!(plan, "SEARCH binding USING INDEX binding_of_lookup (tenant=? AND lookup=?)");
    // A scan would take some hundred times as long.
    assert!(among_many < among_ten * 10 + Duration::from_micros(500), "{among_ten:?}, {among_many:?}");
}

#[tokio::test]
async fn two_with_one_lookup_cannot_be() {
    let scratch = Scratch::new();
    let store = Store::open(&scratch.join("store.db")).unwrap();
    let mut first = bound(1..2);
    let second = bound(2..3);
    drop(store.commit(store_samples::insert(&first)).await.unwrap());
    let Row::Binding(binding) = first.pop().unwrap().row else { panic!("no binding") };
    let same = |tenant: &str| {
        let mut rows = second.clone();
        let tenant = store_samples::tenant(tenant);
        *rows.last_mut().unwrap() =
            store_samples::row(Binding { credential: store_samples::id(2), tenant, ..binding.clone() });
        rows
    };
    assert!(store.commit(store_samples::insert(&same("bank-a"))).await.is_err());
    drop(store.commit(store_samples::insert(&same("bank-b"))).await.unwrap());
    store_samples::assert_sum_adds_up(&store).await;
}
