//! Rolling credentials as the OpenAPI document says them, by its examples.

use serde_json::{Value, json};

use crate::approvals;
use crate::client::Connection;
use crate::documented::{Asked, Documented};
use crate::openapi_live::{ACTIVATE, REBIND, RESPONSES, ROTATION};
use crate::rolling_terminal::{Code, Terminal, quick_key};

const LIST: &str = "/v1/credentials";

/// One that is bound, by what the document says.
async fn terminal(documented: &Documented, bank: &Connection, account: &str) -> Terminal {
    let id = documented.enrol(bank, &json!({ "type": "rolling", "account": account })).await;
    let key = quick_key(account, "salt");
    let mut body = documented.request("POST", ACTIVATE, "identity-key");
    body["identity_key_hex"] = json!(data_encoding::HEXUPPER.encode(&key));
    let told = documented.does(bank, "POST", ACTIVATE, &id, Some(&body)).await;
    let (account, code) = (account.to_owned(), Code::of(&told["temporary_code"]));
    Terminal { tenant: "bank-a", account, id, identity_key: key, epoch: 1, code }
}

/// What such a route is about, and a body that it takes.
pub async fn about(documented: &Documented, bank: &Connection, route: &str) -> (String, Value) {
    let rolling = documented.request("POST", LIST, "rolling");
    match route {
        ACTIVATE => {
            (documented.enrol(bank, &rolling).await, documented.request("POST", ACTIVATE, "identity-key"))
        }
        ROTATION => {
            let terminal = terminal(documented, bank, "rotates").await;
            (terminal.id.clone(), terminal.code.rotation(1))
        }
        _ => (documented.enrol(bank, &rolling).await, json!({})),
    }
}

/// A whole life, and how else it can end.
pub async fn roll_by_the_examples(documented: &Documented, bank: &Connection) {
    let mut rolls = terminal(documented, bank, "rolls").await;
    let first = rolls.clone();
    let order = documented.request("POST", "/v1/transactions", "rolling");
    let view = documented.create(bank, &order).await;
    let id = approvals::id(&view);
    let example = documented.request("POST", RESPONSES, "password");
    assert_eq!(documented.ask(bank, Asked::new("POST", RESPONSES, id).json(&example)).await.status, 403);
    let approved = documented.does(bank, "POST", RESPONSES, id, Some(&rolls.password(&view))).await;
    rolls.keep(&approved["next"]);
    let rotate = async |body: Value, status: u16| {
        let answer = documented.ask(bank, Asked::new("POST", ROTATION, &rolls.id).json(&body)).await;
        assert_eq!(answer.status, status, "{body}");
    };
    rotate(first.code.rotation(1), 200).await;
    for name in ["consumed", "open"] {
        rotate(documented.request("POST", ROTATION, name), 403).await;
    }
    rotate(rolls.code.rotation(2), 200).await;
    rotate(first.code.rotation(1), 409).await;
    let activate = documented.request("POST", ACTIVATE, "identity-key");
    let asked = || Asked::new("POST", ACTIVATE, &rolls.id).json(&activate);
    assert_eq!(documented.ask(bank, asked()).await.status, 409);
    for _ in 0..3 {
        rotate(documented.request("POST", ROTATION, "open"), 403).await;
    }
    rotate(rolls.code.rotation(2), 423).await;

    // Another key is a guess.
    let guessed = terminal(documented, bank, "another-key").await;
    let asked = || Asked::new("POST", ACTIVATE, &guessed.id).json(&activate);
    for _ in 0..5 {
        assert_eq!(documented.ask(bank, asked()).await.status, 403);
    }
    assert_eq!(documented.ask(bank, asked()).await.status, 423);
    documented.does(bank, "POST", REBIND, &guessed.id, Some(&json!({}))).await;
    documented.does(bank, "POST", ACTIVATE, &guessed.id, Some(&activate)).await;
    documented.does(bank, "POST", "/v1/credentials/{id}/suspend", &guessed.id, None).await;
    assert_eq!(documented.ask(bank, Asked::new("POST", REBIND, &guessed.id)).await.status, 409);
}
