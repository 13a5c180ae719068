//! Whoever edits a row of a terminal has it left out of nothing that looks at the row, no code sent elsewhere, and no entry
//! turned right. A row that is not found is another matter: `docs/methods/multi_terminal.md` says which.

use data_encoding::HEXLOWER;
use hsm_authd::domain::id::{CredentialId, TransactionId};
use rusqlite::Connection as Database;
use serde_json::json;

use crate::bank::refused;
use crate::daemon::Daemon;
use crate::multi_terminal::{Payer, other, rule};
use crate::transactions::{NOW, create, path};

#[tokio::test]
async fn an_edited_row_is_worth_nothing() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 3).await;
    let database = Database::open(daemon.database()).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let terminal = CredentialId::parse(&payer.terminals[1]).unwrap();
    let terminal = format!("x'{}'", HEXLOWER.encode(&terminal.to_bytes()));
    let asked = payer.asked(&gateway, &rule("preset_order")).await;
    assert_eq!(asked.enter(&bank, &other(&asked.codes[0])).await.status, 202);
    let transaction = TransactionId::parse(&asked.id).unwrap();
    let transaction = format!("x'{}'", HEXLOWER.encode(&transaction.to_bytes()));
    // What is done, and whether it is to a terminal or to the transaction.
    for (edit, of_terminal) in [
        (format!("UPDATE credential_state SET status = 'suspended' WHERE id = {terminal}"), true),
        (format!("UPDATE credential SET created_unix_ms = 1900000000000 WHERE id = {terminal}"), true),
        (format!("UPDATE credential SET address = '+1 900' WHERE id = {terminal}"), true),
        (format!("UPDATE credential_state SET failures = 1 WHERE id = {terminal}"), true),
        (format!("UPDATE payment SET attempts_left = 200 WHERE id = {transaction}"), false),
        (
            // The same round with its last entry right.
            format!("UPDATE payment SET progress = (SELECT progress FROM other) WHERE id = {transaction}"),
            false,
        ),
    ] {
        if edit.contains("other") {
            let twin = payer.asked(&gateway, &rule("preset_order")).await;
            assert_eq!(twin.enter(&bank, &twin.codes[0]).await.status, 202);
            let twin = HEXLOWER.encode(&TransactionId::parse(&twin.id).unwrap().to_bytes());
            let copy = format!("CREATE TABLE other AS SELECT progress FROM payment WHERE id = x'{twin}'");
            database.execute_batch(&copy).unwrap();
        }
        let tables = ["credential", "credential_state", "payment"];
        let keep =
            tables.map(|table| format!("CREATE TABLE kept_{table} AS SELECT * FROM {table};")).concat();
        database.execute_batch(&keep).unwrap();
        assert_eq!(database.execute(&edit, []).unwrap(), 1, "{edit}");
        for body in [json!({ "code": asked.codes[1] }), json!({ "codes": asked.codes })] {
            let answer = asked.send(&bank, &body).await;
            match edit.contains("'suspended'") {
                // It looks suspended, and nothing is decided.
                true => refused(&answer, 409, "state-conflict"),
                false => refused(&answer, 503, "unavailable"),
            };
        }
        if of_terminal {
            refused(&create(&bank, &payer.order(&rule("ascending"))).await, 503, "unavailable");
        } else {
            refused(&gateway.get(&path(&asked.id, "")).await.unwrap(), 503, "unavailable");
        }
        for table in tables {
            let undo = format!(
                "DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept_{table}; DROP TABLE kept_{table}"
            );
            database.execute_batch(&undo).unwrap();
        }
    }
    asked.approved(&bank, &asked.at_once(&bank, &asked.codes).await).await;
    assert_eq!(payer.failures(&bank).await, [0, 0, 0]);
}
