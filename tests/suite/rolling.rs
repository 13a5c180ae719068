//! Rolling passwords against the real daemon: bound, paid with, rotated, bound anew; who is charged, and who is not.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::bank::{act, credential, delete, done, failed, locked, path, refused};
use crate::client::{Connection, Http};
use crate::daemon::{Daemon, enrol_hotp, rfc_code, verify};
use crate::refusals::{Case, all_refused};
use crate::rolling_terminal::{
    Code, IDENTITY_CODE, Terminal, activate, activation, enrol_pending, order, order_body, pbkdf2, quick_key,
    rebind, rotate,
};
use crate::served::{Served, configuration, section};
use crate::transactions_client::{at, respond, standing, view};

async fn failures(bank: &Connection, id: &str) -> u64 {
    credential(bank, id).await["failures"].as_u64().unwrap()
}

#[tokio::test]
async fn a_terminal_pays_by_what_it_makes_and_the_password_tells_whose_it_is() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    // Somebody else is there, too.
    Terminal::enrol(&bank, "bank-a", "acct-2").await;
    let (id, salt) = enrol_pending(&bank, "acct-1").await;
    assert_eq!(salt.len(), 32);
    // It takes seconds, and the connection is to be looked after meanwhile.
    let salt = HEXLOWER.decode(salt.as_bytes()).unwrap();
    let key = tokio::task::spawn_blocking(move || pbkdf2(IDENTITY_CODE, &salt, 600_000)).await.unwrap();
    let mut terminal = Terminal::bind(&bank, "bank-a", "acct-1", &id, key).await;
    for epoch in 2..5 {
        let transaction = order(&bank).await;
        let password = terminal.password(&transaction);
        let approved = done(&respond(&bank, &transaction, &password).await);
        assert_eq!(approved["next"]["epoch"], epoch);
        assert_eq!((&approved["account"], &approved["credential"]), (&json!("acct-1"), &json!(id)));
        assert_eq!(approved.get("payer"), None);
        let claims = done(
            &bank
                .post("/v1/attestations/verify", &json!({ "attestation": approved["attestation"] }))
                .await
                .unwrap(),
        );
        assert_eq!((&claims["account"], &claims["method"]), (&json!("acct-1"), &json!("rolling_password")));
        assert_eq!(claims["digest"], transaction["digest"]);
        refused(&respond(&bank, &transaction, &password).await, 409, "state-conflict");
        // What is read later has no code.
        let read = view(&bank, &transaction).await;
        assert_eq!((&read["state"], read.get("next")), (&json!("approved"), None));
        assert_eq!(read["account"], "acct-1");
        terminal.keep(&approved["next"]);
        // It acknowledges, or pays at once.
        if epoch == 3 {
            let told = done(&terminal.rotate(&bank).await);
            assert_eq!(told, json!({ "id": id, "account": "acct-1", "epoch": 3, "acknowledged": true }));
        }
    }
}

#[test]
fn an_identity_key_is_the_known_one() {
    let vectors: Value = serde_json::from_str(include_str!("../vectors/methods.json")).unwrap();
    let rolling = &vectors["rolling"];
    let salt = HEXLOWER.decode(rolling["salt_hex"].as_str().unwrap().as_bytes()).unwrap();
    let key = pbkdf2(rolling["identity_code"].as_str().unwrap(), &salt, 600_000);
    assert_eq!(HEXLOWER.encode(&key), rolling["identity_key_hex"].as_str().unwrap());
}

#[tokio::test]
async fn before_it_is_activated_it_is_good_for_nothing() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let (id, salt) = enrol_pending(&bank, "acct-1").await;
    for action in ["suspend", "resume"] {
        refused(&act(&bank, &id, action).await, 409, "state-conflict");
    }
    let code = Code(vec![7; 16]);
    refused(&rotate(&bank, &id, &code.rotation(1)).await, 409, "state-conflict");
    refused(&verify(&bank, &id, "123456").await, 409, "state-conflict");
    let terminal = Terminal::bind(&bank, "bank-a", "acct-1", &id, quick_key("1", &salt)).await;
    refused(&act(&bank, &id, "resume").await, 409, "state-conflict");
    refused(&verify(&bank, &id, "123456").await, 409, "state-conflict");
    let resync = json!({ "otps": ["123456", "123457"] });
    refused(&bank.post(&path(&id, "resync"), &resync).await.unwrap(), 409, "state-conflict");
    // Nor is another type bound or rotated.
    let hotp = enrol_hotp(&bank, "acct-1").await;
    refused(&activate(&bank, &hotp, &[1; 32]).await, 409, "state-conflict");
    refused(&rotate(&bank, &hotp, &terminal.code.rotation(1)).await, 409, "state-conflict");
    refused(&rebind(&bank, &hotp).await, 409, "state-conflict");
    // Nor does it approve what asks for another credential.
    let body = json!({ "method": "device_signature", "credential": id, "payee": "Alice", "amount": "1.00",
        "currency": "EUR", "order": "1" });
    let answer = bank.post("/v1/transactions", &body).await.unwrap();
    assert!(answer.status.is_client_error(), "{}", answer.status);
}

#[tokio::test]
async fn a_wrong_identity_code_is_charged_to_its_owner() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let mut terminal = Terminal::enrol(&bank, "bank-a", "acct-1").await;
    let other = Terminal::enrol(&bank, "bank-a", "acct-2").await;
    let hotp = enrol_hotp(&bank, "acct-1").await;
    let first = order(&bank).await;
    for left in [2, 1, 0] {
        assert_eq!(failed(&respond(&bank, &first, &terminal.guess(&first)).await), left);
    }
    assert_eq!(standing(&bank, &first).await, ("failed".to_owned(), 0));
    refused(&respond(&bank, &first, &terminal.password(&first)).await, 409, "state-conflict");
    let second = order(&bank).await;
    // The credential's are fewer than the transaction's.
    assert_eq!(failed(&respond(&bank, &second, &terminal.guess(&second)).await), 1);
    assert_eq!((failures(&bank, &terminal.id).await, failures(&bank, &other.id).await), (4, 0));
    terminal.pay(&bank).await;
    assert_eq!(failures(&bank, &terminal.id).await, 0);
    // Five lock it and its account; another account's goes on, with the same transaction.
    let third = [order(&bank).await, order(&bank).await];
    for round in 0..5 {
        let transaction = &third[round / 3];
        failed(&respond(&bank, transaction, &terminal.guess(transaction)).await);
    }
    let last = &third[1];
    let before = standing(&bank, last).await;
    for password in [terminal.password(last), terminal.guess(last)] {
        assert_eq!(locked(&respond(&bank, last, &password).await), 900);
    }
    locked(&terminal.rotate(&bank).await);
    locked(&verify(&bank, &hotp, &rfc_code(0)).await);
    assert_eq!(standing(&bank, last).await, before, "nothing is charged while it is locked");
    done(&respond(&bank, last, &other.password(last)).await);
    done(&act(&bank, &terminal.id, "unlock").await);
    terminal.pay(&bank).await;
}

#[tokio::test]
async fn what_is_nobodys_is_charged_to_nobody() {
    let daemon = Daemon::start();
    let (bank, other) = (daemon.connect("bank-a").await, daemon.connect("bank-b").await);
    let mut terminal = Terminal::enrol(&bank, "bank-a", "acct-1").await;
    let transaction = order(&bank).await;
    let used = terminal.clone();
    terminal.pay(&bank).await;
    let unknown = Terminal { code: Code(vec![9; 16]), ..terminal.clone() };
    for _ in 0..20 {
        assert_eq!(failed(&respond(&bank, &transaction, &unknown.password(&transaction)).await), 3);
        // Of a used up epoch, with the right identity code and with a wrong one.
        assert_eq!(failed(&respond(&bank, &transaction, &used.password(&transaction)).await), 3);
        assert_eq!(failed(&respond(&bank, &transaction, &used.guess(&transaction)).await), 3);
    }
    // At another tenant it is nobody's, although its account has the same name.
    let there = Terminal::enrol(&other, "bank-b", "acct-1").await;
    let foreign = order(&other).await;
    let abroad = Terminal { tenant: "bank-b", ..terminal.clone() };
    assert_eq!(failed(&respond(&other, &foreign, &abroad.password(&foreign)).await), 3);
    assert_eq!(failures(&other, &there.id).await, 0);
    for action in ["activate", "rotation", "rebind"] {
        let body = match action {
            "activate" => activation(&terminal.identity_key),
            "rotation" => terminal.code.rotation(terminal.epoch),
            _ => json!({}),
        };
        refused(&other.post(&path(&terminal.id, action), &body).await.unwrap(), 404, "not-found");
    }
    // A deleted one's is nobody's, too.
    let gone = Terminal::enrol(&bank, "bank-a", "acct-3").await;
    done(&delete(&bank, &gone.id).await);
    assert_eq!(failed(&respond(&bank, &transaction, &gone.password(&transaction)).await), 3);
    for answer in
        [gone.rotate(&bank).await, activate(&bank, &gone.id, &[1; 32]).await, rebind(&bank, &gone.id).await]
    {
        refused(&answer, 404, "not-found");
    }
    assert_eq!(failures(&bank, &terminal.id).await, 0);
    assert_eq!(standing(&bank, &transaction).await, ("pending".to_owned(), 3));
    done(&respond(&bank, &transaction, &terminal.password(&transaction)).await);
}

#[tokio::test]
async fn a_password_is_of_one_transaction() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let mut terminal = Terminal::enrol(&bank, "bank-a", "acct-1").await;
    let (one, other) = (order(&bank).await, order(&bank).await);
    let password = terminal.password(&one);
    // Made for another: its owner is charged, for what did it is that terminal.
    assert_eq!(failed(&respond(&bank, &other, &password).await), 2);
    assert_eq!(failures(&bank, &terminal.id).await, 1);
    // With any other term it is another one.
    for field in ["payee", "amount", "order", "nonce", "expires_at", "id"] {
        let mut changed = one.clone();
        let text = changed[field].as_str().unwrap().to_owned();
        changed[field] = json!(match field {
            "amount" => "12.51".to_owned(),
            "nonce" => format!("{}{}", if text.starts_with('0') { "1" } else { "0" }, &text[1..]),
            _ => format!("{text}x"),
        });
        assert_ne!(terminal.password(&changed), password, "{field}");
    }
    done(&act(&bank, &terminal.id, "unlock").await);
    let approved = done(&respond(&bank, &one, &password).await);
    terminal.keep(&approved["next"]);
    done(&respond(&bank, &other, &terminal.password(&other)).await);
    // Nor is it a response to a transaction that asks for something else.
    let signer = crate::signers::Device::new(1).enrol(&bank, "acct-9").await;
    let signed = crate::approvals::create(&bank, &crate::approvals::order("device_signature", &signer)).await;
    refused(&respond(&bank, &signed, &password).await, 422, "invalid");
    let waits = order(&bank).await;
    let answer = respond(&bank, &waits, &json!({ "otp": "123456" })).await;
    assert_eq!(refused(&answer, 422, "invalid")["field"], "password");
    assert_eq!(standing(&bank, &waits).await, ("pending".to_owned(), 3));
}

#[tokio::test]
async fn a_suspended_one_approves_nothing_until_it_is_resumed() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let mut terminal = Terminal::enrol(&bank, "bank-a", "acct-1").await;
    let transaction = order(&bank).await;
    done(&act(&bank, &terminal.id, "suspend").await);
    for password in [terminal.password(&transaction), terminal.guess(&transaction)] {
        refused(&respond(&bank, &transaction, &password).await, 409, "state-conflict");
    }
    for answer in [
        terminal.rotate(&bank).await,
        activate(&bank, &terminal.id, &terminal.identity_key).await,
        rebind(&bank, &terminal.id).await,
    ] {
        refused(&answer, 409, "state-conflict");
    }
    assert_eq!(failures(&bank, &terminal.id).await, 0);
    assert_eq!(standing(&bank, &transaction).await, ("pending".to_owned(), 3));
    done(&act(&bank, &terminal.id, "resume").await);
    terminal.pay(&bank).await;
}

#[tokio::test]
async fn an_activation_may_be_repeated_by_who_knows_the_key() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let terminal = Terminal::enrol(&bank, "bank-a", "acct-1").await;
    for _ in 0..3 {
        let again = done(&activate(&bank, &terminal.id, &terminal.identity_key).await);
        assert_eq!(Code::of(&again["temporary_code"]), terminal.code);
        assert_eq!((&again["epoch"], &again["state"]), (&json!(1), &json!("active")));
    }
    // Another one would be a guess at the identity code, free of charge.
    assert_eq!(failed(&activate(&bank, &terminal.id, &[1; 32]).await), 4);
    done(&activate(&bank, &terminal.id, &terminal.identity_key).await);
    assert_eq!(failures(&bank, &terminal.id).await, 1, "who repeats it is not yet the one who pays");
    for left in [3, 2, 1, 0] {
        assert_eq!(failed(&activate(&bank, &terminal.id, &[1; 32]).await), left);
    }
    locked(&activate(&bank, &terminal.id, &terminal.identity_key).await);
    done(&act(&bank, &terminal.id, "unlock").await);
    // From the acknowledgement or the first use on it has nothing to give.
    let acknowledged = Terminal::enrol(&bank, "bank-a", "acct-2").await;
    done(&acknowledged.rotate(&bank).await);
    let mut used = terminal.clone();
    used.pay(&bank).await;
    for one in [&acknowledged, &terminal] {
        for key in [&one.identity_key[..], &[1; 32]] {
            refused(&activate(&bank, &one.id, key).await, 409, "state-conflict");
        }
        assert_eq!(failures(&bank, &one.id).await, 0);
    }
}

#[tokio::test]
async fn rotations_hand_out_until_they_are_acknowledged() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let mut terminal = Terminal::enrol(&bank, "bank-a", "acct-1").await;
    let first = terminal.clone();
    terminal.pay(&bank).await;
    // T(2) got lost: it is handed out as often as the proof of T(1) comes.
    for _ in 0..3 {
        let told = done(&first.rotate(&bank).await);
        let code = HEXLOWER.encode(&terminal.code.0);
        assert_eq!(
            told,
            json!({ "id": terminal.id, "account": "acct-1", "epoch": 2, "temporary_code": code })
        );
    }
    // Wrong proofs, each charged: of another code, of the other epoch, of the next one.
    for (left, body) in
        [(4, Code(vec![0; 16]).rotation(1)), (3, terminal.code.rotation(1)), (2, first.code.rotation(2))]
    {
        assert_eq!(failed(&rotate(&bank, &terminal.id, &body).await), left);
    }
    done(&first.rotate(&bank).await);
    assert_eq!(failures(&bank, &terminal.id).await, 3, "who has the terminal alone forgives himself nothing");
    // Other epochs are not looked at.
    for epoch in [3, 4, u64::MAX] {
        refused(&rotate(&bank, &terminal.id, &terminal.code.rotation(epoch)).await, 409, "state-conflict");
    }
    refused(&rotate(&bank, &terminal.id, &first.code.rotation(0)).await, 422, "invalid");
    // Acknowledged, any number of times.
    for _ in 0..3 {
        let told = done(&terminal.rotate(&bank).await);
        assert_eq!(told, json!({ "id": terminal.id, "account": "acct-1", "epoch": 2, "acknowledged": true }));
    }
    assert_eq!(failures(&bank, &terminal.id).await, 3);
    // Then it is gone, whatever the proof.
    for body in [first.code.rotation(1), terminal.code.rotation(1)] {
        refused(&rotate(&bank, &terminal.id, &body).await, 409, "state-conflict");
    }
    assert_eq!(failed(&rotate(&bank, &terminal.id, &Code(vec![0; 16]).rotation(2)).await), 1);
    let second = terminal.clone();
    terminal.pay(&bank).await;
    assert_eq!(failures(&bank, &terminal.id).await, 0);
    refused(&first.rotate(&bank).await, 409, "state-conflict");
    assert_eq!(Code::of(&done(&second.rotate(&bank).await)["temporary_code"]), terminal.code);
    // Its first use acknowledges as well.
    let third = terminal.clone();
    terminal.pay(&bank).await;
    refused(&second.rotate(&bank).await, 409, "state-conflict");
    assert_eq!(Code::of(&done(&third.rotate(&bank).await)["temporary_code"]), terminal.code);
}

/// With an `Idempotency-Key`.
async fn keyed(bank: &Connection, key: &str, path: &str, body: &Value) -> crate::client::Response {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    bank.request("POST", path, &headers, body.to_string()).await.unwrap()
}

#[tokio::test]
async fn a_replay_tells_a_code_while_it_may_be_told() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let (id, salt) = enrol_pending(&bank, "acct-1").await;
    let key = quick_key(IDENTITY_CODE, &salt);
    let (to_activate, to_rotate) = (path(&id, "activate"), path(&id, "rotation"));
    let activated = async || done(&keyed(&bank, "a", &to_activate, &activation(&key)).await);
    let first = activated().await;
    assert_eq!(activated().await, first);
    let mut terminal = Terminal {
        tenant: "bank-a",
        account: "acct-1".to_owned(),
        id: id.clone(),
        identity_key: key.clone(),
        epoch: 1,
        code: Code::of(&first["temporary_code"]),
    };
    let transaction = order(&bank).await;
    let (to_respond, password) = (at(&transaction, "responses"), terminal.password(&transaction));
    let paid = async || done(&keyed(&bank, "p", &to_respond, &password).await);
    let approved = paid().await;
    assert_eq!(paid().await, approved);
    let without = |answer: &Value, field: &str| {
        let mut answer = answer.clone();
        answer.as_object_mut().unwrap().remove(field).unwrap_or_else(|| panic!("{answer} has no {field}"));
        answer
    };
    // The first one is used.
    assert_eq!(activated().await, without(&first, "temporary_code"));
    let asked = terminal.code.rotation(1);
    let rotated = async || done(&keyed(&bank, "r", &to_rotate, &asked).await);
    let told = rotated().await;
    assert_eq!((&told["temporary_code"], &told["epoch"]), (&approved["next"]["temporary_code"], &json!(2)));
    assert_eq!(rotated().await, told);
    // A suspended one's is kept back.
    done(&act(&bank, &id, "suspend").await);
    assert_eq!(
        (paid().await, rotated().await),
        (without(&approved, "next"), without(&told, "temporary_code"))
    );
    done(&act(&bank, &id, "resume").await);
    assert_eq!((paid().await, rotated().await), (approved.clone(), told.clone()));
    terminal.keep(&approved["next"]);
    let acknowledged = keyed(&bank, "k", &to_rotate, &terminal.code.rotation(2)).await;
    assert_eq!(done(&acknowledged)["acknowledged"], true);
    assert_eq!(done(&keyed(&bank, "k", &to_rotate, &terminal.code.rotation(2)).await), done(&acknowledged));
    assert_eq!(
        (paid().await, rotated().await),
        (without(&approved, "next"), without(&told, "temporary_code"))
    );
    // A wrong one that is repeated is charged once.
    let (wrong, guess) = (order(&bank).await, terminal.clone());
    for _ in 0..3 {
        let answer = keyed(&bank, "w", &at(&wrong, "responses"), &guess.guess(&wrong)).await;
        assert_eq!(failed(&answer), 2);
    }
    assert_eq!((failures(&bank, &id).await, standing(&bank, &wrong).await.1), (1, 2));
    // What is nobody's is remembered, too: it stays so, whoever it might be later.
    let nobody = Terminal { code: Code(vec![3; 16]), ..terminal.clone() };
    for _ in 0..2 {
        assert_eq!(failed(&keyed(&bank, "n", &at(&wrong, "responses"), &nobody.password(&wrong)).await), 2);
    }
    // Bound anew there is an epoch 1 and a 2 again, which are not for who asked before.
    done(&rebind(&bank, &id).await);
    let salt = credential(&bank, &id).await["salt"].as_str().unwrap().to_owned();
    let mut anew = Terminal::bind(&bank, "bank-a", "acct-1", &id, quick_key(IDENTITY_CODE, &salt)).await;
    assert_eq!(activated().await, without(&first, "temporary_code"));
    anew.pay(&bank).await;
    assert_eq!(anew.epoch, 2);
    assert_eq!(
        (paid().await, rotated().await),
        (without(&approved, "next"), without(&told, "temporary_code"))
    );
}

#[tokio::test]
async fn bound_anew_nothing_of_before_is_good() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let terminal = Terminal::enrol(&bank, "bank-a", "acct-1").await;
    let salt = credential(&bank, &terminal.id).await["salt"].clone();
    let transaction = order(&bank).await;
    failed(&respond(&bank, &transaction, &terminal.guess(&transaction)).await);
    let bound = done(&rebind(&bank, &terminal.id).await);
    assert_eq!(
        (&bound["state"], bound.get("evidence"), &bound["failures"]),
        (&json!("pending"), None, &json!(1))
    );
    assert_ne!(bound["salt"], salt);
    // Its password is nobody's, its proofs are not looked at.
    assert_eq!(failed(&respond(&bank, &transaction, &terminal.password(&transaction)).await), 2);
    refused(&terminal.rotate(&bank).await, 409, "state-conflict");
    assert_eq!(failures(&bank, &terminal.id).await, 1);
    // Once more, while it waits: another salt.
    let again = done(&rebind(&bank, &terminal.id).await);
    assert_ne!(again["salt"], bound["salt"]);
    let key = quick_key(IDENTITY_CODE, again["salt"].as_str().unwrap());
    let mut anew = Terminal::bind(&bank, "bank-a", "acct-1", &terminal.id, key).await;
    assert_ne!(anew.code, terminal.code);
    assert_eq!(failed(&respond(&bank, &transaction, &terminal.password(&transaction)).await), 2);
    assert_eq!(failed(&terminal.rotate(&bank).await), 3);
    anew.pay(&bank).await;
    assert_eq!(failures(&bank, &terminal.id).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_at_once_one_approves() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let mut terminal = Terminal::enrol(&bank, "bank-a", "acct-1").await;
    for same in [false, true] {
        let first = order(&bank).await;
        let mut all = Vec::new();
        for _ in 0..20 {
            let transaction = if same { first.clone() } else { order(&bank).await };
            all.push((terminal.password(&transaction), transaction));
        }
        let mut tasks = JoinSet::new();
        for (password, transaction) in all.clone() {
            let bank = bank.clone();
            tasks.spawn(async move { respond(&bank, &transaction, &password).await });
        }
        let (mut approved, mut others) = (Vec::new(), 0);
        while let Some(answer) = tasks.join_next().await {
            let answer = answer.unwrap();
            match answer.status.as_u16() {
                200 => approved.push(answer.json().unwrap()),
                // The epoch is used up: it is nobody's. Or the transaction is approved.
                403 if !same => assert_eq!(failed(&answer), 3),
                _ => drop(refused(&answer, 409, "state-conflict")),
            }
            others += 1;
        }
        assert_eq!((approved.len(), others), (1, 20), "{same}");
        terminal.keep(&approved[0]["next"]);
        let mut states = Vec::new();
        for (_, transaction) in &all {
            states.push(standing(&bank, transaction).await.0);
        }
        let count = states.iter().filter(|state| *state == "approved").count();
        assert_eq!(count, if same { 20 } else { 1 });
        assert_eq!(failures(&bank, &terminal.id).await, 0);
    }
    terminal.pay(&bank).await;
}

#[tokio::test]
async fn a_client_may_send_so_many_of_nobodys_in_a_minute() {
    let mut daemon = Daemon::start();
    daemon.kill();
    let config = configuration(&daemon, "limited.toml", |table| {
        section(table, "transactions").insert("unknown_passwords_per_minute".into(), 3.into());
    });
    let served = Served::start(&config);
    let connect = async |client: &str| {
        Connection::open(&served.url, &daemon.identity(client), Http::Two).await.unwrap()
    };
    let (bank, gateway) = (connect("bank-a").await, connect("bank-a-gateway").await);
    let mut terminal = Terminal::enrol(&bank, "bank-a", "acct-1").await;
    let unknown = Terminal { code: Code(vec![9; 16]), ..terminal.clone() };
    let transaction = order(&bank).await;
    for _ in 0..3 {
        assert_eq!(failed(&respond(&bank, &transaction, &unknown.password(&transaction)).await), 3);
    }
    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    let audited =
        || -> i64 { database.query_row("SELECT count(*) FROM audit", [], |row| row.get(0)).unwrap() };
    let before = audited();
    for _ in 0..5 {
        let answer = keyed(&bank, "k", &at(&transaction, "responses"), &unknown.password(&transaction)).await;
        let wait = refused(&answer, 429, "rate-limited")["retry_after"].as_u64().unwrap();
        assert!((1..=20).contains(&wait), "{wait}");
    }
    assert_eq!(audited(), before, "nothing is written");
    // Another client has its own, and a known one is never limited, right or wrong.
    assert_eq!(failed(&respond(&gateway, &transaction, &unknown.password(&transaction)).await), 3);
    assert_eq!(failed(&respond(&bank, &transaction, &terminal.guess(&transaction)).await), 2);
    done(&respond(&bank, &transaction, &terminal.password(&transaction)).await);
    terminal.keep(&done(&terminal.rotate(&bank).await));
    terminal.pay(&bank).await;
}

#[tokio::test]
async fn what_does_not_belong_here_is_refused_by_its_name() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let (id, _) = enrol_pending(&bank, "acct-1").await;
    let hotp = enrol_hotp(&bank, "acct-2").await;
    let transaction = order(&bank).await;
    let password = BASE64URL_NOPAD.encode(&[7; 28]);
    let bodies = [
        ("/v1/credentials".to_owned(), json!({ "type": "rolling", "account": "acct-3" })),
        ("/v1/credentials".to_owned(), json!({ "type": "hotp", "account": "acct-3" })),
        (path(&id, "activate"), activation(&[1; 32])),
        (path(&id, "rotation"), Code(vec![1; 16]).rotation(1)),
        (path(&id, "rebind"), json!({})),
        (path(&hotp, "verify"), json!({ "otp": "123456" })),
        ("/v1/transactions".to_owned(), order_body()),
        (at(&transaction, "responses"), json!({ "password": password })),
    ];
    let card = "card data, PINs and identity numbers do not belong here: check them and pass a reference as evidence";
    let code = "the identity code stays on the terminal: send the identity key";
    let names = [
        ("pan", "pan", card),
        ("card_number", "card_number", card),
        ("cardNumber", "card_number", card),
        ("card_no", "card_no", card),
        ("primary_account_number", "primary_account_number", card),
        ("cvv", "cvv", card),
        ("CVV2", "cvv2", card),
        ("cvc", "cvc", card),
        ("cvc2", "cvc2", card),
        ("csc", "csc", card),
        ("expiry", "expiry", card),
        ("expiry_date", "expiry_date", card),
        ("card_expiry", "card_expiry", card),
        ("pin", "pin", card),
        ("card-pin", "card_pin", card),
        ("pin_block", "pin_block", card),
        ("track1", "track1", card),
        ("track2", "track2", card),
        ("id_number", "id_number", card),
        ("identity_number", "identity_number", card),
        ("national_id", "national_id", card),
        ("ssn", "ssn", card),
        ("passport_number", "passport_number", card),
        ("identity_code", "identity_code", code),
    ];
    for (to, good) in &bodies {
        for (sent, told, reason) in names {
            let mut body = good.clone();
            body[sent] = json!("unmistakable");
            let answer = bank.post(to, &body).await.unwrap();
            let problem = refused(&answer, 422, "invalid");
            assert_eq!(
                (&problem["field"], &problem["reason"]),
                (&json!(told), &json!(reason)),
                "{to} {sent}"
            );
        }
        let mut body = good.clone();
        body["unmistakable"] = json!(1);
        let problem = refused(&bank.post(to, &body).await.unwrap(), 422, "invalid");
        assert_eq!(problem.get("field"), None, "{problem}");
    }
    // Where it is a field's name, it is that field.
    let ocra =
        json!({ "type": "ocra", "account": "a", "suite": "OCRA-1:HOTP-SHA1-6:QN08-PSHA1", "pin": "1234" });
    assert_eq!(bank.post("/v1/credentials", &ocra).await.unwrap().status, 201);
    assert_eq!(standing(&bank, &transaction).await, ("pending".to_owned(), 3));
}

#[tokio::test]
async fn what_cannot_be_is_422_and_charged_to_nobody() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let terminal = Terminal::enrol(&bank, "bank-a", "acct-1").await;
    let (pending, _) = enrol_pending(&bank, "acct-2").await;
    let transaction = order(&bank).await;
    let good = terminal.password(&transaction)["password"].as_str().unwrap().to_owned();
    let responses = at(&transaction, "responses");
    let mut cases = Vec::new();
    let padded = format!("{good}==");
    let last = format!("{}_", &good[..37]);
    for password in
        ["", &good[1..], &format!("{good}A"), &padded, &last, &"+".repeat(38), &"A".repeat(60_000)]
    {
        let body = json!({ "password": password }).to_string();
        cases.push(Case::post(format!("{password:.40}"), &responses, body, 422).about("password"));
    }
    for (with, value) in [("otp", json!("123456")), ("format", json!("der")), ("signature", json!("AAAA"))] {
        let mut body = json!({ "password": good });
        body[with] = value;
        cases.push(Case::post(with, &responses, body.to_string(), 422));
    }
    let activate = path(&pending, "activate");
    for (field, value) in [
        ("identity_key_hex", json!("")),
        ("identity_key_hex", json!("a5".repeat(31))),
        ("identity_key_hex", json!("a5".repeat(33))),
        ("identity_key_hex", json!("x5".repeat(32))),
        ("evidence", json!("")),
        ("evidence", json!("a".repeat(129))),
        ("evidence", json!("a\nb")),
        ("evidence", json!(" a")),
    ] {
        let mut body = activation(&[1; 32]);
        body[field] = value;
        cases.push(Case::post(body.to_string(), &activate, body.to_string(), 422).about(field));
        body.as_object_mut().unwrap().remove(field);
        cases.push(Case::post(body.to_string(), &activate, body.to_string(), 422).about(field));
    }
    let rotation = path(&terminal.id, "rotation");
    for (field, value) in
        [("proof_hex", json!("a5".repeat(31))), ("proof_hex", json!("")), ("epoch", json!(0))]
    {
        let mut body = terminal.code.rotation(1);
        body[field] = value;
        cases.push(Case::post(body.to_string(), &rotation, body.to_string(), 422).about(field));
    }
    for epoch in [json!(-1), json!("1"), json!(1.5), json!(null)] {
        let mut body = terminal.code.rotation(1);
        body["epoch"] = epoch;
        cases.push(Case::post(body.to_string(), &rotation, body.to_string(), 422));
    }
    for (field, value) in [
        ("credential", json!(terminal.id)),
        ("payer", json!("acct-1")),
        ("digits", json!(6)),
        ("presentation", json!("A")),
    ] {
        let mut body = order_body();
        body[field] = value;
        cases.push(Case::post(field, "/v1/transactions", body.to_string(), 422).about(field));
    }
    all_refused(&daemon, &bank, cases).await;
    assert_eq!(failures(&bank, &terminal.id).await, 0);
    done(&respond(&bank, &transaction, &terminal.password(&transaction)).await);
}
