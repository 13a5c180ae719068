//! Who may do what: every route by every client, and nobody sees another tenant's.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::approvals::{TRANSACTIONS, approved, create, id, order, transactions};
use crate::bank::{credentials, done, failed, refused, refused_uncounted, without_request_id};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, enrol_hotp, rfc_code, text, verify};
use crate::presenting::{PRESENTATIONS, Payer};
use crate::signers::Device;

/// Every route: its method, its path as the router has it, and the permission it asks for.
pub const ROUTES: [(&str, &str, &str); 34] = [
    ("GET", "/v1/credentials", "enroll"),
    ("POST", "/v1/credentials", "enroll"),
    ("GET", "/v1/credentials/{id}", "enroll"),
    ("DELETE", "/v1/credentials/{id}", "enroll"),
    ("POST", "/v1/credentials/{id}/verify", "verify"),
    ("POST", "/v1/credentials/{id}/resync", "enroll"),
    ("POST", "/v1/credentials/{id}/suspend", "enroll"),
    ("POST", "/v1/credentials/{id}/resume", "enroll or admin"),
    ("POST", "/v1/credentials/{id}/unlock", "admin"),
    ("GET", "/v1/credentials/{id}/authorization", "transact or deliver"),
    ("POST", "/v1/credentials/{id}/authorization", "transact"),
    ("POST", "/v1/credentials/{id}/authorization/uplink", "deliver"),
    ("POST", "/v1/credentials/{id}/authorization/complete", "transact"),
    ("POST", "/v1/presentations", "transact"),
    ("GET", "/v1/presentations/{id}", "transact"),
    ("GET", "/v1/presentations/{id}/qr", "transact"),
    ("POST", "/v1/credentials/{id}/activate", "enroll"),
    ("POST", "/v1/credentials/{id}/rotation", "transact"),
    ("POST", "/v1/credentials/{id}/rebind", "enroll"),
    ("GET", "/v1/transactions", "transact"),
    ("POST", "/v1/transactions", "transact"),
    ("GET", "/v1/transactions/{id}", "transact or deliver"),
    ("POST", "/v1/transactions/{id}/responses", "transact"),
    ("POST", "/v1/transactions/{id}/cancel", "transact"),
    ("GET", "/v1/transactions/{id}/attestation", "transact"),
    ("GET", "/v1/transactions/{id}/qr", "transact"),
    ("POST", "/v1/attestations/verify", ANYBODY),
    ("GET", "/v1/jwks", ANYBODY),
    ("GET", "/v1/audit", AUDIT),
    ("GET", "/v1/audit/checkpoint", AUDIT),
    ("GET", "/v1/audit/proof", AUDIT),
    ("GET", "/v1/audit/keys", AUDIT),
    ("GET", "/v1/import-key", ANYBODY),
    ("GET", "/v1/openapi.json", ANYBODY),
];

/// Also for a client of every tenant.
pub const AUDIT: &str = "audit";

/// In the place of a permission: every client may, also one without any.
const ANYBODY: &str = "any client";

/// The permissions of which a route asks for any.
pub fn any_of(asked: &str) -> impl Iterator<Item = &str> {
    asked.split(" or ")
}

const PERMISSIONS: [&str; 6] = ["enroll", "verify", "transact", "deliver", "audit", "admin"];
const BANK: &[&str] = &["enroll", "verify", "transact", "admin"];
/// The clients of `dev.json`: tenant and permissions.
const CLIENTS: [(&str, &str, &[&str]); 4] = [
    ("bank-a", "bank-a", BANK),
    ("bank-a-gateway", "bank-a", &["enroll", "verify", "transact", "admin", "deliver"]),
    ("bank-b", "bank-b", BANK),
    ("auditor", "*", &["audit"]),
];

/// The routes that a router's source adds.
fn routes_in(source: &str) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for rest in source.split(".route(").skip(1) {
        let path = rest.split('"').nth(1).unwrap();
        let mut open = 1;
        let length = rest.find(|c| {
            open += match c {
                '(' => 1,
                ')' => -1,
                _ => 0,
            };
            open == 0
        });
        let handlers = rest[..length.unwrap()].split_once(',').unwrap().1;
        let before = found.len();
        for method in ["get", "post", "put", "patch", "delete", "head", "options", "any", "on"] {
            let calls = |text: &str| text.trim() == method || text.ends_with(&format!(".{method}"));
            if handlers.split('(').any(calls) {
                found.insert((method.to_uppercase(), path.to_owned()));
            }
        }
        assert_eq!(
            found.len() - before,
            handlers.matches('(').count(),
            "{path}: a method that is not known here"
        );
    }
    found
}

#[test]
fn every_route_of_the_code_is_in_the_table() {
    let table: BTreeSet<_> =
        ROUTES.iter().map(|(method, path, _)| (method.to_string(), path.to_string())).collect();
    assert_eq!(table.len(), ROUTES.len(), "a route is there twice");
    assert_eq!(routes_in(include_str!("../../src/api.rs")), table);
    assert!(
        ROUTES
            .iter()
            .all(|(.., asked)| *asked == ANYBODY || any_of(asked).all(|one| PERMISSIONS.contains(&one)))
    );
}

#[test]
fn the_documented_table_is_this_one() {
    let document = include_str!("../../docs/api.md");
    let row = |line: &str| {
        let cells: Vec<_> = line.split('|').map(|cell| cell.trim().replace('`', "")).collect();
        (cells[1].clone(), cells[2].clone(), cells[3].clone())
    };
    let documented: BTreeSet<_> = document.lines().filter(|line| line.contains("| `/v1/")).map(row).collect();
    let table = ROUTES.map(|(method, path, permission)| (method.into(), path.into(), permission.into()));
    assert_eq!(documented, BTreeSet::from(table));
}

const VERIFY_ATTESTATION: &str = "/v1/attestations/verify";

/// Asks a route about a credential or a transaction, as a well-behaved client would.
async fn ask(connection: &Connection, method: &str, route: &str, id: &str) -> Response {
    let path = route.replace("{id}", id);
    let body = match (method, route.rsplit('/').next().unwrap()) {
        ("POST", "credentials") => json!({ "type": "hotp", "account": "by-permission" }),
        ("POST", "transactions") => order("device_signature", id),
        _ if route == VERIFY_ATTESTATION => json!({ "attestation": "e30.e30.e30" }),
        (_, "verify") => json!({ "otp": rfc_code(9_000) }),
        (_, "resync") => json!({ "otps": [rfc_code(9_000), rfc_code(9_001)] }),
        (_, "activate") => json!({ "identity_key_hex": "a5".repeat(32), "evidence": "case 7" }),
        (_, "rotation") => json!({ "epoch": 1, "proof_hex": "a5".repeat(32) }),
        ("POST", "authorization") => json!({ "method": "password", "evidence": "login 42" }),
        (_, "uplink") => json!({ "code": "123456", "from": "+1" }),
        (_, "complete") => json!({ "format": "p1363", "signature": "AAAA" }),
        ("POST", "presentations") => serde_json::from_str(id).unwrap(),
        (_, "responses") => json!({ "format": "p1363", "signature": "AAAA" }),
        (_, "proof") => return connection.get(&format!("{path}?from=1&to=1")).await.unwrap(),
        _ => return connection.request(method, &path, &[], "").await.unwrap(),
    };
    connection.post(&path, &body).await.unwrap()
}

/// Whether a client may, as the answer says; whatever else the answer is, it is none of 401, 404 or 5xx.
fn may(route: &str, answer: &Response) -> bool {
    let said = text(answer);
    match answer.status.as_u16() {
        200 | 201 => true,
        403 if said.contains(":problem:verification-failed") => {
            match route {
                VERIFY_ATTESTATION => assert_eq!(refused_uncounted(answer)["status"], 403),
                // One wrong signature ends a transaction.
                _ => assert_eq!(failed(answer) == 0, route.starts_with(TRANSACTIONS)),
            }
            true
        }
        403 => {
            refused(answer, 403, "forbidden");
            false
        }
        // Resuming what is active, reading the attestation of what is not approved: allowed, but for its state.
        409 => refused(answer, 409, "state-conflict")["status"] == 409,
        status => panic!("{status}: {said}"),
    }
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What a route is about: a credential, a transaction or a presentation of its own, or else what a request names; of
/// `POST /v1/presentations` the whole body, which is signed.
async fn subject(admin: &Connection, route: &str, account: &str, signer: &str) -> String {
    match route {
        TRANSACTIONS => signer.to_owned(),
        _ if route.starts_with(TRANSACTIONS) => {
            id(&create(admin, &order("device_signature", signer)).await).to_owned()
        }
        _ if route.starts_with(PRESENTATIONS) => {
            let tenant = if account.starts_with("bank-b") { "bank-b" } else { "bank-a" };
            let payer = Payer::enrol(admin, tenant, account).await;
            match route {
                PRESENTATIONS => payer.body(now_s()).to_string(),
                _ => payer.present(admin, now_s()).await.id,
            }
        }
        _ if route.contains("{id}") => enrol_hotp(admin, account).await,
        _ => String::new(),
    }
}

/// Every route, each about something of its own.
async fn allowed(
    admin: &Connection,
    client: &Connection,
    account: &str,
) -> Vec<(&'static str, &'static str)> {
    let mut allowed = Vec::new();
    let signer = Device::new(1).enrol(admin, account).await;
    for (number, (method, route, _)) in ROUTES.into_iter().enumerate() {
        let id = subject(admin, route, &format!("{account}-{number}"), &signer).await;
        let before = (credentials(admin).await, transactions(admin).await);
        if may(route, &ask(client, method, route, &id).await) {
            allowed.push((method, route));
        } else {
            let now = (credentials(admin).await, transactions(admin).await);
            assert_eq!(now, before, "{method} {route}: refused, and changed");
        }
    }
    allowed
}

fn routes_for(permissions: &[&str]) -> Vec<(&'static str, &'static str)> {
    let may = |asked: &str| asked == ANYBODY || any_of(asked).any(|one| permissions.contains(&one));
    let of = ROUTES.into_iter().filter(|(.., permission)| may(permission));
    of.map(|(method, route, _)| (method, route)).collect()
}

#[tokio::test]
async fn every_client_may_what_its_permissions_say() {
    let daemon = Daemon::start();
    for (client, tenant, permissions) in CLIENTS {
        let admin = daemon.connect(if tenant == "*" { "bank-a" } else { tenant }).await;
        let found = allowed(&admin, &daemon.connect(client).await, client).await;
        assert_eq!(found, routes_for(permissions), "{client}");
    }
    // Without the permission nothing else is looked at: neither id nor body.
    let auditor = daemon.connect("auditor").await;
    for (method, route, _) in ROUTES.into_iter().filter(|(.., asked)| ![ANYBODY, AUDIT].contains(asked)) {
        let path = route.replace("{id}", "no-id");
        let answer = auditor.request(method, &path, &[("content-type", "text/plain")], "{").await.unwrap();
        refused(&answer, 403, "forbidden");
    }
    let bank = daemon.connect("bank-a").await;
    for (_, route, _) in ROUTES.into_iter().filter(|(.., asked)| *asked == AUDIT) {
        for method in ["GET", "HEAD"] {
            let answer = bank.request(method, &format!("{route}?no=query"), &[], "").await.unwrap();
            assert_eq!(answer.status, 403, "{method} {route}");
        }
    }
}

/// Gives a client of `dev.json` other permissions, for connections from here on.
pub fn permit(daemon: &Daemon, client: &str, permissions: &[&str]) {
    daemon.reload_with(|config| {
        let clients = config["client"].as_array_mut().unwrap();
        let entry = clients.iter_mut().find(|entry| entry["name"] == client).unwrap();
        entry["permissions"] = json!(permissions);
    });
}

#[tokio::test]
async fn each_permission_alone_opens_its_own_routes() {
    for permission in PERMISSIONS {
        // Of its own: what all of them make is more than a page.
        let daemon = Daemon::start();
        let admin = daemon.connect("bank-a").await;
        permit(&daemon, "bank-a-gateway", &[permission]);
        let client = daemon.connect("bank-a-gateway").await;
        let found = allowed(&admin, &client, permission).await;
        assert_eq!(found, routes_for(&[permission]), "{permission}");
    }
    let daemon = Daemon::start();
    let admin = daemon.connect("bank-a").await;
    permit(&daemon, "bank-a-gateway", &[]);
    let found = allowed(&admin, &daemon.connect("bank-a-gateway").await, "none").await;
    assert_eq!(found, routes_for(&[]));
}

#[tokio::test]
async fn an_answer_is_not_replayed_to_a_client_that_may_no_more() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let headers = [("content-type", "application/json"), ("idempotency-key", "k-1")];
    let body = json!({ "otp": rfc_code(0) }).to_string();
    let path = format!("/v1/credentials/{id}/verify");
    let gateway = daemon.connect("bank-a-gateway").await;
    let first = gateway.request("POST", &path, &headers, body.clone()).await.unwrap();
    done(&first);
    permit(&daemon, "bank-a-gateway", &["enroll", "admin"]);
    let gateway = daemon.connect("bank-a-gateway").await;
    refused(&gateway.request("POST", &path, &headers, body.clone()).await.unwrap(), 403, "forbidden");
    permit(&daemon, "bank-a-gateway", &["verify"]);
    let gateway = daemon.connect("bank-a-gateway").await;
    let again = gateway.request("POST", &path, &headers, body).await.unwrap();
    assert_eq!((again.status, &again.body), (first.status, &first.body));
}

/// Asked about another's, it answers as about what nobody has.
async fn is_absent(other: &Connection, method: &str, route: &str, about: &str, nobodys: &str) {
    let answer = ask(other, method, route, about).await;
    refused(&answer, 404, "not-found");
    let absent = ask(other, method, route, nobodys).await;
    assert_eq!(without_request_id(&answer), without_request_id(&absent), "{method} {route} {about}");
    let names = |answer: &Response| answer.headers.keys().map(ToString::to_string).collect::<BTreeSet<_>>();
    assert_eq!(names(&answer), names(&absent));
}

#[tokio::test]
async fn another_tenants_credential_or_transaction_is_an_absent_one() {
    let daemon = Daemon::start();
    permit(&daemon, "bank-b", &[BANK, &["deliver"]].concat());
    let (bank, other) = (daemon.connect("bank-a").await, daemon.connect("bank-b").await);
    let id = enrol_hotp(&bank, "acct-1").await;
    let own = enrol_hotp(&other, "acct-1").await;
    let device = Device::new(1);
    let (signer, own_signer) = (device.enrol(&bank, "acct-2").await, device.enrol(&other, "acct-2").await);
    let (transaction, attestation) = approved(&bank, 1, &signer).await;
    let pending = create(&bank, &order("device_signature", &signer)).await;
    let own_pending = create(&other, &order("device_signature", &own_signer)).await;
    let before = (credentials(&bank).await, transactions(&bank).await);
    let ids = [&*id, "cred_00000000000000000000000000", "no-id", &id[..30]];
    let pending = self::id(&pending);
    let transaction_ids =
        [self::id(&transaction), "txn_00000000000000000000000000", "no-id", &pending[..29], pending, &signer];
    for (method, route, _) in ROUTES.into_iter().filter(|(_, route, _)| route.contains("{id}")) {
        let ids = if route.starts_with(TRANSACTIONS) { &transaction_ids[..] } else { &ids };
        for about in ids {
            is_absent(&other, method, route, about, ids[1]).await;
        }
    }
    for about in [&*signer, "cred_00000000000000000000000000", "no-id", self::id(&own_pending)] {
        is_absent(&other, "POST", TRANSACTIONS, about, "cred_00000000000000000000000000").await;
    }
    // Nor can it be followed.
    let mut second = order("device_signature", &own_signer);
    let mut answers = Vec::new();
    for parent in [attestation.as_str(), "e30.e30.e30"] {
        second["parent"] = json!(parent);
        let answer = other.post(TRANSACTIONS, &second).await.unwrap();
        assert_eq!(refused(&answer, 422, "invalid")["field"], "parent");
        answers.push(without_request_id(&answer));
    }
    assert_eq!(answers[0], answers[1]);
    second["credential"] = json!(signer);
    second["parent"] = json!(attestation);
    let followed = create(&bank, &second).await;
    assert_eq!(followed["parent"]["jti"], transaction["id"]);
    done(
        &bank
            .request("POST", &format!("{TRANSACTIONS}/{}/cancel", self::id(&followed)), &[], "")
            .await
            .unwrap(),
    );
    let right = json!({ "otp": rfc_code(0) });
    let path = format!("/v1/credentials/{id}/verify");
    refused(&other.post(&path, &right).await.unwrap(), 404, "not-found");
    let keyed = [("content-type", "application/json"), ("idempotency-key", "k")];
    refused(&other.request("POST", &path, &keyed, right.to_string()).await.unwrap(), 404, "not-found");
    let pages: Vec<_> = ids
        .map(|after| format!("/v1/credentials?after={after}"))
        .into_iter()
        .chain(transaction_ids.map(|after| format!("/v1/transactions?after={after}")))
        .collect();
    let answer = async |path: &str| {
        let answer = other.get(path).await.unwrap();
        refused(&answer, 422, "invalid");
        without_request_id(&answer)
    };
    for page in &pages {
        assert_eq!(answer(page).await, answer(&pages[1]).await, "{page}");
    }

    let mut now = (credentials(&bank).await, transactions(&bank).await);
    assert_eq!(now.1.as_array_mut().unwrap().pop().unwrap()["id"], followed["id"]);
    assert_eq!(now, before);
    let listed = |items: Value| -> Vec<String> {
        items.as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed(credentials(&bank).await), [&*id, &*signer]);
    assert_eq!(listed(credentials(&other).await), [&*own, &*own_signer]);
    assert_eq!(listed(transactions(&other).await), [self::id(&own_pending)]);
    let of_payer = done(&other.get("/v1/transactions?payer=acct-2").await.unwrap());
    assert_eq!(listed(of_payer["items"].clone()), [self::id(&own_pending)]);
    let filtered = done(&other.get("/v1/credentials?account=acct-1").await.unwrap());
    assert_eq!(listed(filtered["items"].clone()), [&*own], "the same account of two banks is two");

    // Nor do its failures count there.
    for _ in 0..5 {
        verify(&bank, &id, &rfc_code(9_000)).await;
    }
    refused(&verify(&bank, &id, &rfc_code(0)).await, 423, "locked");
    done(&verify(&other, &own, &rfc_code(0)).await);
    // Two clients of one tenant see the same.
    let gateway = daemon.connect("bank-a-gateway").await;
    assert_eq!(credentials(&gateway).await, credentials(&bank).await);
}
