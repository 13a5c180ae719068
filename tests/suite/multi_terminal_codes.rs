//! The codes that go to terminals: who sees them, when, and where they are never found.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::bank::{done, failed};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, text};
use crate::multi_terminal::{Asked, Payer, codes, in_order, other, rule, target_of, without_codes};
use crate::scrape::Scrape;
use crate::transactions::{NOW, cancel, path, transaction};

async fn keyed(bank: &Connection, path: &str, key: &str, body: &Value) -> Response {
    let headers = [("content-type", "application/json"), ("idempotency-key", key)];
    bank.request("POST", path, &headers, body.to_string()).await.unwrap()
}

fn has_codes(answer: &Response, of: &[String]) -> bool {
    let shown = text(answer);
    let found = of.iter().filter(|code| shown.contains(&format!("\"{code}\""))).count();
    assert!(found == 0 || found == of.len(), "{shown}");
    assert_eq!(shown.contains("\"code\""), found > 0, "{shown}");
    found > 0
}

#[tokio::test]
async fn only_who_sends_them_sees_them_and_always_the_same() {
    let daemon = Daemon::start_at(NOW);
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 3).await;
    for name in ["preset_order", "target"] {
        let body = payer.order(&rule(name));
        let key = format!("k-{name}");
        let first = keyed(&gateway, "/v1/transactions", &key, &body).await;
        assert_eq!(first.status, 201, "{}", text(&first));
        let view = first.json().unwrap();
        let sent = codes(&view);
        let id = view["id"].as_str().unwrap();
        assert!(has_codes(&first, &sent));
        // The same answer, byte for byte, although no code of it is kept; also after a restart, see below.
        for _ in 0..3 {
            let again = keyed(&gateway, "/v1/transactions", &key, &body).await;
            assert_eq!((again.status, text(&again)), (first.status, text(&first)));
            assert_eq!(transaction(&gateway, id).await, view);
        }
        assert_eq!(transaction(&bank, id).await, without_codes(&view));
        for client in [&bank, &gateway] {
            let list = client.get("/v1/transactions?payer=acct-1").await.unwrap();
            assert!(!has_codes(&list, &sent), "lists have none");
            for of in ["attestation", "qr"] {
                assert!(!has_codes(&client.get(&path(id, of)).await.unwrap(), &sent));
            }
        }
        // Who does not send them makes one without.
        let made = bank.post("/v1/transactions", &body).await.unwrap();
        assert_eq!(made.status, 201);
        let own = made.json().unwrap();
        assert_eq!(without_codes(&own), own);
        let own_codes = codes(&transaction(&gateway, own["id"].as_str().unwrap()).await);
        assert_ne!(own_codes, sent, "another transaction's are others");

        let asked = Asked { id: id.to_owned(), codes: sent.clone(), view: view.clone() };
        if name == "preset_order" {
            let path = path(id, "responses");
            let entry = json!({ "code": sent[0] });
            let entered = keyed(&gateway, &path, "e", &entry).await;
            assert_eq!(entered.status, 202);
            assert_eq!(codes(&entered.json().unwrap()), sent);
            let again = keyed(&gateway, &path, "e", &entry).await;
            assert_eq!((again.status.as_u16(), text(&again)), (202, text(&entered)), "entered once");
            assert_eq!(transaction(&bank, id).await["entered"], 1);
            let by_bank = asked.enter(&bank, &sent[1]).await;
            assert_eq!(by_bank.status, 202);
            assert!(!text(&by_bank).contains("\"code\""));
            // A failure and a success show none.
            let wrong = asked.enter(&gateway, &other(&sent[2])).await;
            assert_eq!(failed(&wrong), 2);
            assert!(!has_codes(&wrong, &sent));
            assert_eq!(transaction(&gateway, id).await["challenge"], view["challenge"], "nor is one used up");
        }
        let approved = match name {
            "target" => asked.target(&gateway, &target_of(&sent)).await,
            _ => asked.at_once(&gateway, &sent).await,
        };
        done(&approved);
        assert!(!has_codes(&approved, &sent));
        // Then there are none any more, not even in what was answered before.
        assert_eq!(without_codes(&transaction(&gateway, id).await), transaction(&gateway, id).await);
        let again = keyed(&gateway, "/v1/transactions", &key, &body).await;
        assert_eq!((again.status.as_u16(), again.json().unwrap()), (201, without_codes(&view)));
    }
    // Of what ended otherwise there are none, either.
    let asked = payer.asked(&gateway, &rule("ascending")).await;
    let cancelled = cancel(&gateway, &asked.id).await;
    assert!(!has_codes(&cancelled, &asked.codes));
    let asked = payer.asked(&gateway, &rule("ascending")).await;
    daemon.set_clock(NOW + 300);
    let expired = gateway.get(&path(&asked.id, "")).await.unwrap();
    assert_eq!(done(&expired)["state"], "expired");
    assert!(!has_codes(&expired, &asked.codes));
}

#[tokio::test]
async fn a_restart_makes_the_same_codes_and_nobody_else_has_the_hsm_make_any() {
    let mut daemon = Daemon::start();
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 8).await;
    let body = payer.order(&rule("descending"));
    let first = keyed(&gateway, "/v1/transactions", "k", &body).await;
    let view = first.json().unwrap();
    daemon.kill();
    daemon.resume();
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    assert_eq!(text(&keyed(&gateway, "/v1/transactions", "k", &body).await), text(&first));
    let id = view["id"].as_str().unwrap();
    assert_eq!(transaction(&gateway, id).await, view);
    let labels = [("operation", "terminal-codes"), ("outcome", "answered")];
    let made = || Scrape::of(&daemon).value("hsm_authd_hsm_operations_total", &labels);
    let before = made();
    let own = bank.post("/v1/transactions", &body).await.unwrap();
    assert_eq!(own.status, 201);
    transaction(&bank, id).await;
    done(&bank.get("/v1/transactions").await.unwrap());
    done(&gateway.get("/v1/transactions").await.unwrap());
    let asked = Asked { id: id.to_owned(), codes: codes(&view), view };
    let right = in_order("descending", &asked.codes);
    asked.approved(&bank, &asked.one_by_one(&bank, &right).await).await;
    assert_eq!(made(), before);
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.is_file() {
            found.push((path.display().to_string(), fs::read(&path).unwrap()));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn no_code_is_in_any_file() {
    let mut daemon = Daemon::start();
    let (bank, gateway) = (daemon.connect("bank-a").await, daemon.connect("bank-a-gateway").await);
    let payer = Payer::enrol(&bank, "acct-1", 3).await;
    let mut secrets = Vec::new();
    for (number, name) in ["preset_order", "ascending", "target"].into_iter().enumerate() {
        // As long as there are: no accident makes ten digits.
        let mut body = payer.order(&rule(name));
        body["digits"] = json!(10);
        let created = keyed(&gateway, "/v1/transactions", &format!("c-{number}"), &body).await;
        let view = created.json().unwrap();
        let asked = Asked { id: view["id"].as_str().unwrap().to_owned(), codes: codes(&view), view };
        secrets.extend(asked.codes.clone());
        let responses = path(&asked.id, "responses");
        match name {
            "target" => {
                let target = target_of(&asked.codes);
                secrets.extend([target.clone(), other(&target)]);
                let wrong = json!({ "target": other(&target) });
                assert_eq!(keyed(&gateway, &responses, "w-2", &wrong).await.status, 403);
                done(&keyed(&gateway, &responses, "r-2", &json!({ "target": target })).await);
            }
            _ => {
                let right = in_order(name, &asked.codes);
                let entry = json!({ "code": other(&right[0]) });
                secrets.push(other(&right[0]));
                assert_eq!(keyed(&gateway, &responses, &format!("e-{number}"), &entry).await.status, 202);
                done(&keyed(&gateway, &responses, &format!("r-{number}"), &json!({ "codes": right })).await);
            }
        }
    }
    // One that is pending yet.
    let mut body = payer.order(&json!({ "type": "target", "window_seconds": 9 }));
    body["digits"] = json!(10);
    secrets.extend(Asked::of(&gateway, &body).await.codes);
    drop((bank, gateway));
    assert!(daemon.stop().success());
    let mut files = files(&daemon.dir());
    files.push(("the log".to_owned(), daemon.log().into_bytes()));
    assert!(files.iter().any(|(name, bytes)| name.ends_with("hsm-authd.db") && !bytes.is_empty()));
    for (name, bytes) in &files {
        for secret in &secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} is in {name}");
        }
    }
}
