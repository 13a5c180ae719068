//! What the OpenAPI document says of presentations and authorizations, carried out.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use crate::approvals::{self, TRANSACTIONS};
use crate::client::{Connection, Response};
use crate::daemon::Daemon;
use crate::documented::{Asked, Documented};
use crate::openapi_live::{LIST, RESPONSES, START_S};
use crate::presenting::{PRESENTATIONS, Payer, Presented, Sms, another, order, to_authorize, to_decide};
use crate::security_devices::{es256, p1363_of, signed};
use crate::signers::pem_of;

const PRESENTATION: &str = "/v1/presentations/{id}";
const PICTURE: &str = "/v1/presentations/{id}/qr";
const AUTHORIZATION: &str = "/v1/credentials/{id}/authorization";
const UPLINK: &str = "/v1/credentials/{id}/authorization/uplink";
const COMPLETE: &str = "/v1/credentials/{id}/authorization/complete";

/// The account of the document's examples.
const ACCOUNT: &str = "account-1004";

/// A device of the examples' account, enrolled by this example with a key of the test's own.
async fn device(documented: &Documented, bank: &Connection, example: &str) -> Payer {
    let key = es256("a documented payer");
    let mut body = documented.request("POST", LIST, example);
    body["public_key_pem"] = json!(pem_of(key.public()));
    let id = documented.enrol(bank, &body).await;
    Payer { tenant: "bank-a", account: ACCOUNT.to_owned(), id, key }
}

/// The example of a signature, with another one in it.
fn with_signature(mut example: Value, payer: &Payer, bytes: &[u8]) -> Value {
    assert_eq!(example["format"], "p1363");
    example["signature"] = json!(BASE64URL_NOPAD.encode(&p1363_of(&payer.key.sign(bytes))));
    example
}

/// A request for a code, made of the document's example.
fn request(documented: &Documented, payer: &Payer) -> Value {
    let mut body = documented.request("POST", PRESENTATIONS, "p1363");
    body["credential"] = json!(payer.id);
    let issued_at = body["issued_at"].as_str().unwrap().to_owned();
    with_signature(body, payer, &payer.request(&issued_at))
}

async fn presented(documented: &Documented, bank: &Connection, payer: &Payer) -> Presented {
    let asked = Asked::new("POST", PRESENTATIONS, "").json(&request(documented, payer));
    let answer = documented.ask(bank, asked).await;
    assert_eq!(answer.status, 201);
    Presented::of(&answer.json().unwrap())
}

/// By SMS, begun as the document's example does.
async fn begun(documented: &Documented, gateway: &Connection) -> Sms {
    let payer = device(documented, gateway, "signer-authorization").await;
    let mut body = documented.request("POST", AUTHORIZATION, "sms");
    let mut terminal = documented.request("POST", LIST, "terminal");
    terminal["account"] = json!(ACCOUNT);
    terminal["address"] = documented.request("POST", UPLINK, "uplink")["from"].clone();
    let terminal = documented.enrol(gateway, &terminal).await;
    body["terminal"] = json!(terminal);
    let answer = documented.ask(gateway, Asked::new("POST", AUTHORIZATION, &payer.id).json(&body)).await;
    assert_eq!(answer.status, 201);
    Sms { payer, terminal, begun: answer.json().unwrap() }
}

fn uplink(documented: &Documented, sms: &Sms) -> Value {
    let mut body = documented.request("POST", UPLINK, "uplink");
    body["code"] = json!(sms.code("uplink"));
    body
}

fn completion(documented: &Documented, sms: &Sms) -> Value {
    let mut body = documented.request("POST", COMPLETE, "sms");
    body["downlink_code"] = json!(sms.code("downlink"));
    with_signature(body, &sms.payer, &sms.to_sign())
}

/// What a route is about, and a body that it takes: for a client with `deliver`, at the examples' time.
pub async fn about(
    documented: &Documented,
    gateway: &Connection,
    method: &str,
    route: &str,
) -> (String, Value) {
    match (method, route) {
        (_, PRESENTATIONS) => {
            let payer = device(documented, gateway, "signer").await;
            (String::new(), request(documented, &payer))
        }
        (_, PRESENTATION | PICTURE) => {
            let payer = device(documented, gateway, "signer").await;
            (presented(documented, gateway, &payer).await.id, json!({}))
        }
        ("POST", AUTHORIZATION) => {
            let payer = device(documented, gateway, "signer-authorization").await;
            (payer.id, documented.request(method, route, "password"))
        }
        _ => {
            let sms = begun(documented, gateway).await;
            if route == COMPLETE {
                documented
                    .does(gateway, "POST", UPLINK, &sms.payer.id, Some(&uplink(documented, &sms)))
                    .await;
            }
            let body = if route == UPLINK { uplink(documented, &sms) } else { completion(documented, &sms) };
            (sms.payer.id, body)
        }
    }
}

/// A whole life of a code and of a device, by the examples of the document.
pub async fn present_by_the_examples(daemon: &Daemon, documented: &Documented, gateway: &Connection) {
    let ask = async |method: &str, route: &str, id: &str, body: Option<&Value>| -> Response {
        let asked = Asked::new(method, route, id);
        documented.ask(gateway, if let Some(body) = body { asked.json(body) } else { asked }).await
    };
    daemon.set_clock(START_S);
    let sms = begun(documented, gateway).await;
    let id = sms.payer.id.clone();
    let right = completion(documented, &sms);
    assert_eq!(ask("POST", COMPLETE, &id, Some(&right)).await.status, 409, "no message yet");
    assert_eq!(ask("POST", PRESENTATIONS, "", Some(&request(documented, &sms.payer))).await.status, 409);
    let mut wrong = uplink(documented, &sms);
    wrong["code"] = json!(another(&sms.code("uplink")));
    assert_eq!(ask("POST", UPLINK, &id, Some(&wrong)).await.status, 403);
    documented.does(gateway, "GET", AUTHORIZATION, &id, None).await;
    documented.does(gateway, "POST", UPLINK, &id, Some(&uplink(documented, &sms))).await;
    let mut wrong = right.clone();
    wrong["downlink_code"] = json!(another(&sms.code("downlink")));
    assert_eq!(ask("POST", COMPLETE, &id, Some(&wrong)).await.status, 403);
    let active = documented.does(gateway, "POST", COMPLETE, &id, Some(&right)).await;
    assert_eq!(active["state"], "active");
    for (method, route, body) in [
        ("GET", AUTHORIZATION, None),
        ("POST", AUTHORIZATION, Some(documented.request("POST", AUTHORIZATION, "password"))),
        ("POST", UPLINK, Some(uplink(documented, &sms))),
        ("POST", COMPLETE, Some(right)),
    ] {
        assert_eq!(ask(method, route, &id, body.as_ref()).await.status, 409, "{method} {route}");
    }
    let waiting = device(documented, gateway, "signer-authorization").await;
    let body = documented.request("POST", AUTHORIZATION, "password");
    let answer = ask("POST", AUTHORIZATION, &waiting.id, Some(&body)).await;
    let begun_by_password: Value = answer.json().unwrap();
    documented.does(gateway, "GET", AUTHORIZATION, &waiting.id, None).await;
    let body = documented.request("POST", COMPLETE, "password");
    let body = with_signature(body, &waiting, &to_authorize(&waiting, "", &begun_by_password));
    documented.does(gateway, "POST", COMPLETE, &waiting.id, Some(&body)).await;

    decide_by_the_examples(documented, gateway, &sms.payer, &waiting).await;
    fail_as_documented(daemon, documented, gateway).await;
}

/// One approves, the other declines.
async fn decide_by_the_examples(documented: &Documented, gateway: &Connection, one: &Payer, other: &Payer) {
    let example = documented.request("POST", PRESENTATIONS, "p1363");
    let mut wrong = request(documented, one);
    wrong["signature"] = example["signature"].clone();
    let answer = documented.ask(gateway, Asked::new("POST", PRESENTATIONS, "").json(&wrong)).await;
    assert_eq!(answer.status, 403);
    for (payer, decision, state) in [(one, "approve", "approved"), (other, "decline", "rejected")] {
        let presented = presented(documented, gateway, payer).await;
        documented.does(gateway, "GET", PRESENTATION, &presented.id, None).await;
        for (accept, status) in [("image/png", 200), ("image/svg+xml", 200), ("text/html", 406)] {
            let asked =
                Asked { headers: vec![("accept", accept)], ..Asked::new("GET", PICTURE, &presented.id) };
            assert_eq!(documented.ask(gateway, asked).await.status, status);
        }
        let mut body = documented.request("POST", TRANSACTIONS, "presented");
        body["presentation"] = json!(presented.code);
        let transaction = documented.create(gateway, &body).await;
        assert_eq!(
            documented.ask(gateway, Asked::new("POST", TRANSACTIONS, "").json(&body)).await.status,
            409
        );
        assert_eq!(documented.ask(gateway, Asked::new("GET", PICTURE, &presented.id)).await.status, 409);
        documented.does(gateway, "GET", PRESENTATION, &presented.id, None).await;
        let response = documented.request("POST", RESPONSES, decision);
        let response = with_signature(response, payer, &to_decide("bank-a", decision, &transaction));
        let id = approvals::id(&transaction);
        let decided = documented.does(gateway, "POST", RESPONSES, id, Some(&response)).await;
        assert_eq!(decided["state"], state);
        let read = documented.does(gateway, "GET", PRESENTATION, &presented.id, None).await;
        assert_eq!(read["transaction_state"], state);
    }
}

/// What is locked, nobody's, or over.
async fn fail_as_documented(daemon: &Daemon, documented: &Documented, gateway: &Connection) {
    let payer = device(documented, gateway, "signer").await;
    let open = presented(documented, gateway, &payer).await;
    let mut body = request(documented, &payer);
    body["credential"] = json!("cred_00000000000000000000000000");
    let answer = documented.ask(gateway, Asked::new("POST", PRESENTATIONS, "").json(&body)).await;
    assert_eq!(answer.status, 404);

    let guessed = Payer::unauthorized(gateway, "bank-a", "guessed-by-sms").await;
    let terminal = crate::presenting::enrol_terminal(gateway, "guessed-by-sms", "+1").await;
    for round in 0..2 {
        let sms = Sms::begin(gateway, &guessed, &terminal).await;
        let wrong = json!({ "code": another(&sms.code("uplink")), "from": "+1" });
        for _ in 0..3 - round {
            let asked = Asked::new("POST", UPLINK, &guessed.id).json(&wrong);
            assert_eq!(documented.ask(gateway, asked).await.status, 403);
        }
        if round == 0 {
            continue;
        }
        let body = json!({ "method": "sms", "terminal": terminal });
        let completion = sms.completion();
        for (route, body) in [(AUTHORIZATION, &body), (UPLINK, &wrong), (COMPLETE, &completion)] {
            let asked = Asked::new("POST", route, &guessed.id).json(body);
            assert_eq!(documented.ask(gateway, asked).await.status, 423, "{route}");
        }
    }
    let late = begun(documented, gateway).await;
    daemon.set_clock(START_S + 300);
    for (method, route, body) in [
        ("GET", AUTHORIZATION, None),
        ("POST", UPLINK, Some(uplink(documented, &late))),
        ("POST", COMPLETE, Some(completion(documented, &late))),
    ] {
        let asked = Asked::new(method, route, &late.payer.id);
        let asked = if let Some(body) = &body { asked.json(body) } else { asked };
        assert_eq!(documented.ask(gateway, asked).await.status, 410, "{method} {route}");
    }
    assert_eq!(documented.ask(gateway, Asked::new("GET", PICTURE, &open.id)).await.status, 410);
    let asked = Asked::new("POST", TRANSACTIONS, "").json(&order(&open.code));
    assert_eq!(documented.ask(gateway, asked).await.status, 410);
    documented.does(gateway, "GET", PRESENTATION, &open.id, None).await;
    daemon.set_clock(START_S);
}

/// A request for each route that takes one, and what it is about: to be changed into what the document refuses.
pub async fn bodies(documented: &Documented, gateway: &Connection) -> Vec<(&'static str, String, Value)> {
    let waiting = device(documented, gateway, "signer-authorization").await;
    let uplink = documented.request("POST", UPLINK, "uplink");
    let mut all: Vec<_> = ["sms", "password"]
        .map(|name| (AUTHORIZATION, waiting.id.clone(), documented.request("POST", AUTHORIZATION, name)))
        .into();
    all.push((UPLINK, waiting.id.clone(), uplink));
    all.extend(
        ["sms", "password"]
            .map(|name| (COMPLETE, waiting.id.clone(), documented.request("POST", COMPLETE, name))),
    );
    all.push((PRESENTATIONS, String::new(), documented.request("POST", PRESENTATIONS, "p1363")));
    all.push((TRANSACTIONS, String::new(), documented.request("POST", TRANSACTIONS, "presented")));
    all
}

/// A transaction of a presented code, and the bodies that decide on it.
pub async fn to_be_decided(documented: &Documented, gateway: &Connection, now_s: u64) -> (Value, [Value; 2]) {
    let payer = Payer::enrol(gateway, "bank-a", "acct-decides").await;
    let presented = payer.present(gateway, now_s).await;
    let view = documented.create(gateway, &order(&presented.code)).await;
    let example = |name| documented.request("POST", RESPONSES, name);
    assert_eq!(signed("p1363", &[0; 64])["format"], example("approve")["format"]);
    (view, [example("approve"), example("decline")])
}
