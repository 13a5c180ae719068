//! What somebody does to the database: never a yes, and nothing but a 503, until it is as it was.

use data_encoding::HEXLOWER;
use hsm_authd::domain::id::TransactionId;
use rusqlite::Connection as Database;
use serde_json::{Value, json};

use crate::bank::refused;
use crate::client::{Connection, Response};
use crate::daemon::Daemon;
use crate::ocra::{NOW, PLAIN};
use crate::transactions_client::{Approver, Hand, approve, at, create, respond, token, view};

/// An id as SQL spells it.
fn blob(transaction: &Value) -> String {
    let id = TransactionId::parse(transaction["id"].as_str().unwrap()).unwrap();
    format!("x'{}'", HEXLOWER.encode(&id.to_bytes()))
}

/// The database of a running daemon, in other hands.
struct Intruder(Database);

impl Intruder {
    fn of(daemon: &Daemon) -> Self {
        let database = Database::open(daemon.database()).unwrap();
        database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
        Self(database)
    }

    /// Does this, in one commit, keeping both tables as they were.
    fn edit(&self, sql: &str) {
        let keep = ["payment", "attestation"]
            .map(|table| format!("CREATE TABLE kept_{table} AS SELECT * FROM {table};"))
            .concat();
        self.0
            .execute_batch(&format!("BEGIN; {keep} {sql}; COMMIT"))
            .unwrap_or_else(|e| panic!("{sql}: {e}"));
        let differs = |table: &str| -> bool {
            let sql = format!(
                "SELECT EXISTS (SELECT * FROM {table} EXCEPT SELECT * FROM kept_{table})
                OR (SELECT count(*) FROM {table}) <> (SELECT count(*) FROM kept_{table})"
            );
            self.0.query_row(&sql, [], |row| row.get(0)).unwrap()
        };
        assert!(differs("payment") || differs("attestation"), "nothing was edited: {sql}");
    }

    /// Undoes it.
    fn undo(&self) {
        let undo = ["payment", "attestation"].map(|table| {
            format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept_{table}; DROP TABLE kept_{table};")
        });
        self.0.execute_batch(&format!("BEGIN; {} COMMIT", undo.concat())).unwrap();
    }

    /// How much is in the log besides what it says of the edits.
    fn audited(&self) -> i64 {
        self.0
            .query_row("SELECT count(*) FROM audit WHERE event <> 'store.row_tampered'", [], |row| row.get(0))
            .unwrap()
    }
}

/// Everything that a bank can ask of a transaction.
async fn all_answers(bank: &Connection, transaction: &Value, right: &Value) -> Vec<(&'static str, Response)> {
    let get = |action| at(transaction, action);
    vec![
        ("view", bank.get(&get("")).await.unwrap()),
        ("attestation", bank.get(&get("attestation")).await.unwrap()),
        ("qr", bank.request("GET", &get("qr"), &[("accept", "image/png")], "").await.unwrap()),
        ("list", bank.get("/v1/transactions?limit=100").await.unwrap()),
        ("right response", respond(bank, transaction, right).await),
        ("cancel", bank.request("POST", &get("cancel"), &[], "").await.unwrap()),
        ("list of the payer", {
            let payer = transaction["payer"].as_str().unwrap();
            bank.get(&format!("/v1/transactions?payer={payer}")).await.unwrap()
        }),
    ]
}

struct Set {
    pending: Value,
    approved: Value,
    other: Value,
    right: Value,
    right_of_approved: Value,
    attestation: String,
}

impl Set {
    async fn of(bank: &Connection, approver: &Approver) -> Self {
        let mut request = approver.request();
        request["remark"] = json!("for the roof");
        let [pending, approved, other] =
            [create(bank, &request).await, create(bank, &request).await, create(bank, &request).await];
        let right_of_approved = approver.response(&approved, 1);
        let attestation = approve(bank, &approved, &right_of_approved).await;
        approve(bank, &other, &approver.response(&other, 2)).await;
        Self {
            right: approver.response(&pending, 3),
            pending,
            approved,
            other,
            right_of_approved,
            attestation,
        }
    }
}

#[tokio::test]
async fn an_edited_row_is_a_503_and_never_a_yes() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let intruder = Intruder::of(&daemon);
    for (number, hand) in [token(PLAIN), Hand::Es256(1), Hand::Authenticator(1)].into_iter().enumerate() {
        let approver =
            Approver::enrol(&bank, "bank-a", &format!("acct-{number}"), "device_signature", hand).await;
        let set = Set::of(&bank, &approver).await;
        let (pending, approved, other) = (blob(&set.pending), blob(&set.approved), blob(&set.other));
        let of_pending = [
            "payee = 'Mallory'",
            "amount = '12.51'",
            "currency = 'USD'",
            "order_text = 'order 8'",
            "platform = 'shop.example'",
            "remark = NULL",
            "payee = 'Alic', order_text = 'eorder 7'",
            "nonce = zeroblob(32)",
            "version = 2",
            "created_unix_ms = created_unix_ms + 1",
            "attempts_left = attempts_left + 1",
            "progress = x'0100000000'",
            "seal = zeroblob(length(seal))",
            "state = 'approved', ended_unix_ms = created_unix_ms",
            "state = 'cancelled', ended_unix_ms = created_unix_ms",
            "state = 'failed', ended_unix_ms = created_unix_ms, attempts_left = 0",
            "state = 'expired', ended_unix_ms = created_unix_ms",
        ]
        .map(|edit| format!("UPDATE payment SET {edit} WHERE id = {pending}"));
        let of_another = [
            "nonce", "seal", "expires", "ended_unix_ms", "authenticator", "state",
        ]
        .map(|column| {
            format!("UPDATE payment SET {column} = (SELECT o.{column} FROM payment o WHERE o.id = {other}), attempts_left = attempts_left + 1 WHERE id = {pending}")
        });
        let made_approved = format!(
            "UPDATE payment SET state = 'approved', ended_unix_ms = created_unix_ms WHERE id = {pending};
             INSERT INTO attestation SELECT {pending}, tenant, version, jws, seal_key_version, seal FROM attestation
                 WHERE transaction_id = {other}"
        );
        for edit in of_pending.iter().chain(&of_another).chain([&made_approved]) {
            let before = intruder.audited();
            intruder.edit(edit);
            for (what, answer) in all_answers(&bank, &set.pending, &set.right).await {
                println!("{edit}: {what}: {}", answer.status);
                refused(&answer, 503, "unavailable");
            }
            assert_eq!(intruder.audited(), before, "{edit}");
            intruder.undo();
        }
        let jws_of = |id: &str| format!("(SELECT jws FROM attestation WHERE transaction_id = {id})");
        for edit in [
            format!("UPDATE payment SET state = 'pending', ended_unix_ms = NULL, version = 1 WHERE id = {approved}"),
            format!("UPDATE payment SET state = 'pending', ended_unix_ms = NULL, authenticator = NULL WHERE id = {approved};
                DELETE FROM attestation WHERE transaction_id = {approved}"),
            format!("UPDATE payment SET payee = 'Mallory' WHERE id = {approved}"),
            format!("UPDATE payment SET ended_unix_ms = ended_unix_ms + 1 WHERE id = {approved}"),
            format!("DELETE FROM attestation WHERE transaction_id = {approved}"),
            format!("UPDATE attestation SET jws = {} WHERE transaction_id = {approved}", jws_of(&other)),
            format!("UPDATE attestation SET jws = substr(jws, 1, length(jws) - 1) WHERE transaction_id = {approved}"),
            format!("UPDATE attestation SET jws = jws || 'A' WHERE transaction_id = {approved}"),
            format!("UPDATE attestation SET seal = zeroblob(length(seal)) WHERE transaction_id = {approved}"),
            format!("UPDATE attestation SET version = 2 WHERE transaction_id = {approved}"),
            format!("UPDATE attestation SET tenant = 'bank-b' WHERE transaction_id = {approved}"),
            // Another transaction's, seal and all.
            format!("DELETE FROM attestation WHERE transaction_id = {approved};
                UPDATE attestation SET transaction_id = {approved} WHERE transaction_id = {other}"),
            format!("UPDATE attestation SET transaction_id = x'00' WHERE transaction_id = {approved};
                UPDATE attestation SET transaction_id = {approved} WHERE transaction_id = {other};
                UPDATE attestation SET transaction_id = {other} WHERE transaction_id = x'00'"),
        ] {
            let before = intruder.audited();
            intruder.edit(&edit);
            for (what, answer) in all_answers(&bank, &set.approved, &set.right_of_approved).await {
                println!("{edit}: {what}: {}", answer.status);
                refused(&answer, 503, "unavailable");
            }
            let mut child = approver.request();
            child["parent"] = json!(set.attestation);
            let answer = bank.post("/v1/transactions", &child).await.unwrap();
            println!("{edit}: child: {}", answer.status);
            assert_ne!(answer.status, 201);
            assert_eq!(intruder.audited(), before, "{edit}");
            intruder.undo();
        }
        // As it was: it is what it was.
        assert_eq!(view(&bank, &set.pending).await, set.pending);
        assert_eq!(view(&bank, &set.approved).await["state"], "approved");
        approve(&bank, &set.pending, &set.right).await;
    }
}

/// A row that was right once, with its seal, is put back.
#[tokio::test]
async fn an_approved_transaction_that_is_turned_back_is_not_approved_again() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let intruder = Intruder::of(&daemon);
    for (number, hand) in [token(PLAIN), Hand::Es256(1), Hand::Authenticator(1)].into_iter().enumerate() {
        let approver =
            Approver::enrol(&bank, "bank-a", &format!("acct-{number}"), "device_signature", hand).await;
        let transaction = approver.transaction(&bank).await;
        let id = blob(&transaction);
        intruder
            .0
            .execute_batch(&format!("CREATE TABLE old AS SELECT * FROM payment WHERE id = {id}"))
            .unwrap();
        let right = approver.response(&transaction, 1);
        let attestation = approve(&bank, &transaction, &right).await;
        let before = intruder.audited();
        intruder.edit(&format!("DELETE FROM payment WHERE id = {id}; INSERT INTO payment SELECT * FROM old"));
        let later = approver.response(&transaction, 2);
        for response in [&right, &later] {
            for (what, answer) in all_answers(&bank, &transaction, response).await {
                println!("{} {what}: {}", approver.name(), answer.status);
                refused(&answer, 503, "unavailable");
            }
        }
        assert_eq!(intruder.audited(), before);
        intruder.undo();
        intruder.0.execute_batch("DROP TABLE old").unwrap();
        let read = bank.get(&at(&transaction, "attestation")).await.unwrap();
        assert_eq!(read.json().unwrap()["attestation"], json!(attestation));
    }
}
