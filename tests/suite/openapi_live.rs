//! What the OpenAPI document says, held against a live appliance: its examples are carried out, answers and problems
//! are as described, what its schemas refuse is refused, and what they allow at their bounds is taken.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use hsm_authd::dev::pki::{AlternativeName, Authority, Identity as Issued, Purpose, Validity};
use serde_json::{Value, json};

use crate::approvals::{
    self, TRANSACTIONS, answered, asserted, authenticator, signed, signed_jws, token, transactions,
};
use crate::audit_documented;
use crate::bank::credentials;
use crate::client::{Connection, Http, Identity, Response};
use crate::daemon::{Daemon, rfc_code, text};
use crate::documented::{Asked, Documented, JSON, examples};
use crate::multi_terminal::{codes, target_of};
use crate::mutations::{bounds, mutations};
use crate::openapi::start;
use crate::permissions::AUDIT;
use crate::presented_documented;
use crate::presenting::PRESENTATIONS;
use crate::rolling_documented;
use crate::scratch::Scratch;
use crate::signers::{Device, rsa_keys};
use crate::wrapped_seeds::{IMPORT_KEY, Wrapper};

pub const LIST: &str = "/v1/credentials";
const ONE: &str = "/v1/credentials/{id}";
const VERIFY: &str = "/v1/credentials/{id}/verify";
const RESYNC: &str = "/v1/credentials/{id}/resync";
pub const ACTIVATE: &str = "/v1/credentials/{id}/activate";
pub const ROTATION: &str = "/v1/credentials/{id}/rotation";
pub const REBIND: &str = "/v1/credentials/{id}/rebind";
const TRANSACTION: &str = "/v1/transactions/{id}";
pub const RESPONSES: &str = "/v1/transactions/{id}/responses";
const CANCEL: &str = "/v1/transactions/{id}/cancel";
const ATTESTATION: &str = "/v1/transactions/{id}/attestation";
const QR: &str = "/v1/transactions/{id}/qr";
const VERIFY_ATTESTATION: &str = "/v1/attestations/verify";
pub const START_S: u64 = 1_893_456_000;

/// An id that nobody has.
fn nobodys(route: &str) -> &'static str {
    if route.starts_with(TRANSACTIONS) {
        "txn_00000000000000000000000000"
    } else if route.starts_with(PRESENTATIONS) {
        "pres_00000000000000000000000000"
    } else {
        "cred_00000000000000000000000000"
    }
}

/// The device of the tests' transactions.
const DEVICE: u8 = 9;

/// An OCRA suite with every input, and what an enrolment for it has.
fn every_input() -> Value {
    json!({ "type": "ocra", "account": "every-input", "suite": "OCRA-1:HOTP-SHA256-8:C-QN08-PSHA1-S064-T1M",
        "use": "verify", "counter": 1, "look_ahead": 1, "skew_steps": 0, "pin": "1234",
        "seed_hex": "a5".repeat(32) })
}

impl Documented {
    /// The example of a request.
    pub fn request(&self, method: &str, route: &str, name: &str) -> Value {
        let content = &self.operation(method, route)["requestBody"]["content"][JSON];
        let found = examples(content).into_iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("{method} {route} has no example {name}")).1.clone()
    }

    pub async fn enrol(&self, bank: &Connection, body: &Value) -> String {
        let answer = self.ask(bank, Asked::new("POST", LIST, "").json(body)).await;
        assert_eq!(answer.status, 201, "{body}: {}", text(&answer));
        let defaults = self.defaults(body);
        let document = answer.json().unwrap();
        for (field, default) in defaults {
            assert!(document.get(&field).is_none_or(|value| *value == default), "{field}: {document}");
        }
        document["id"].as_str().unwrap().to_owned()
    }

    /// The fields that a body leaves out, with what the document says they are then.
    fn defaults(&self, body: &Value) -> Vec<(String, Value)> {
        let form = self.resolve(&self.document["components"]["schemas"]["Enrol"]["discriminator"]["mapping"]);
        let form = json!({ "$ref": form[body["type"].as_str().unwrap()] });
        let properties = self.resolve(&form)["properties"].as_object().cloned().unwrap_or_default();
        let left_out = properties.into_iter().filter(|(name, _)| body.get(name).is_none());
        left_out.filter_map(|(name, schema)| Some((name, schema.get("default")?.clone()))).collect()
    }

    async fn enrol_device(&self, bank: &Connection, account: &str) -> String {
        let body =
            json!({ "type": "signer", "account": account, "public_key_pem": Device::new(DEVICE).pem() });
        self.enrol(bank, &body).await
    }

    /// The example of a new transaction, for this credential.
    fn order(&self, name: &str, credential: &str) -> Value {
        let mut body = self.request("POST", TRANSACTIONS, name);
        body["credential"] = json!(credential);
        body
    }

    pub async fn create(&self, bank: &Connection, body: &Value) -> Value {
        let answer = self.ask(bank, Asked::new("POST", TRANSACTIONS, "").json(body)).await;
        assert_eq!(answer.status, 201, "{body}: {}", text(&answer));
        answer.json().unwrap()
    }

    /// What a route is about, and a body that it takes.
    async fn about(&self, bank: &Connection, method: &str, route: &str) -> (String, Value) {
        if route.starts_with(TRANSACTIONS) {
            let order = self.order("device", &self.enrol_device(bank, "account-1004").await);
            if route == TRANSACTIONS {
                return (String::new(), order);
            }
            let view = self.create(bank, &order).await;
            let body = if route == RESPONSES { signed(DEVICE, &view) } else { json!({}) };
            return (approvals::id(&view).to_owned(), body);
        }
        if route == VERIFY_ATTESTATION {
            return (String::new(), self.request("POST", route, "attestation"));
        }
        if route.starts_with(PRESENTATIONS) || route.contains("/authorization") {
            return presented_documented::about(self, bank, method, route).await;
        }
        if [ACTIVATE, ROTATION, REBIND].contains(&route) {
            return rolling_documented::about(self, bank, route).await;
        }
        let hotp = self.request("POST", LIST, "hotp");
        let id = self.enrol(bank, &hotp).await;
        let body = match (method, route) {
            ("POST", LIST) => hotp,
            (_, VERIFY) => json!({ "otp": rfc_code(0) }),
            (_, RESYNC) => json!({ "otps": [rfc_code(0), rfc_code(1)] }),
            _ => json!({}),
        };
        if route.ends_with("resume") {
            self.does(bank, "POST", "/v1/credentials/{id}/suspend", &id, None).await;
        }
        (id, body)
    }

    pub async fn does(
        &self,
        bank: &Connection,
        method: &str,
        route: &str,
        id: &str,
        body: Option<&Value>,
    ) -> Value {
        let asked = Asked::new(method, route, id);
        let answer = self.ask(bank, if let Some(body) = body { asked.json(body) } else { asked }).await;
        assert_eq!(answer.status, 200, "{method} {route}: {}", text(&answer));
        answer.json().unwrap()
    }
}

/// Each problem, of each operation that can be brought to it from outside.
async fn bring_about_problems(daemon: &Daemon, documented: &Documented, bank: &Connection) {
    let auditor = daemon.connect("auditor").await;
    let stranger = nobody(daemon).await;
    for (method, route, operation) in documented.operations() {
        let (id, good) = documented.about(bank, &method, &route).await;
        let asked = || Asked::new(&method, &route, &id);
        assert_eq!(documented.ask(&stranger, asked()).await.status, 401);
        if operation["x-permission"] != "any client" {
            let stranger = if operation["x-permission"] == AUDIT { bank } else { &auditor };
            assert_eq!(documented.ask(stranger, asked()).await.status, 403);
        }
        let takes_body = operation.get("requestBody").is_some();
        if route.contains("{id}") {
            let asked = Asked::new(&method, &route, nobodys(&route));
            let asked = if takes_body { asked.json(&good) } else { asked };
            assert_eq!(documented.ask(bank, asked).await.status, 404);
        }
        if !takes_body {
            continue;
        }
        for (body, kind, status) in [
            ("{", JSON, 400),
            (r#"{"unmistakable": 1}"#, JSON, 422),
            ("{}", "text/plain", 415),
            ("[]", JSON, 422),
        ] {
            let asked = Asked { headers: vec![("content-type", kind)], body: body.into(), ..asked() };
            assert_eq!(documented.ask(bank, asked).await.status, status, "{method} {route} {body}");
        }
        let large = json!({ "account": "a".repeat(64 * 1024) });
        assert_eq!(documented.ask(bank, asked().json(&large)).await.status, 413);
        let mut keyed = asked().json(&json!({}));
        keyed.headers.push(("idempotency-key", "a b"));
        assert_eq!(documented.ask(bank, keyed).await.status, 422, "no key");
        if operation["x-permission"] != "any client" {
            mismatch(documented, bank, &method, &route, &format!("{method}{route}")).await;
        }
    }
    for (route, own) in [(LIST, "?account="), (TRANSACTIONS, "?payer=")] {
        for query in ["?limit=0", "?limit=101", "?limit=x", own, "?after=x", "?x=1"] {
            let asked = Asked { query, ..Asked::new("GET", route, "") };
            assert_eq!(documented.ask(bank, asked).await.status, 422, "{route}{query}");
        }
    }
}

/// A key that was used for another request, of this route.
async fn mismatch(documented: &Documented, bank: &Connection, method: &str, route: &str, key: &str) {
    let (id, good) = documented.about(bank, method, route).await;
    let keyed = |query| {
        let mut asked = Asked { query, ..Asked::new(method, route, &id) }.json(&good);
        asked.headers.push(("idempotency-key", key));
        asked
    };
    assert!(documented.ask(bank, keyed("")).await.status.is_success());
    let other = documented.ask(bank, keyed("?another=request")).await;
    assert_eq!(other.json().unwrap()["type"], "urn:hsm-authd:problem:idempotency-mismatch");
}

/// A connection whose certificate names no client.
async fn nobody(daemon: &Daemon) -> Connection {
    let read = |name: &str| std::fs::read_to_string(daemon.dir().join("pki").join(name)).unwrap();
    let own = Authority::from_identity(Issued::from_pem(&read("ca.pem"), &read("ca.key")).unwrap()).unwrap();
    let day = Duration::from_secs(24 * 60 * 60);
    let life = Validity { not_before: SystemTime::now() - day, not_after: SystemTime::now() + day };
    let issued =
        own.issue(Purpose::Client, "nobody", &[AlternativeName::Uri("urn:nobody".into())], life).unwrap();
    let scratch = Scratch::new();
    let certificate = scratch.write("nobody.pem", &issued.certificate_pem().unwrap());
    let key = scratch.write("nobody.key", &issued.key_pem().unwrap());
    let identity = Identity::new(daemon.info["ca"].as_str().unwrap(), certificate, key);
    Connection::open(&daemon.url(), &identity, Http::Two).await.unwrap()
}

/// A whole life of each type, by the examples of the document.
async fn live_by_the_examples(documented: &Documented, bank: &Connection) {
    let ask = |name| documented.request("POST", LIST, name);
    for (name, verify, resync) in [
        ("hotp", Some("otp"), Some("otps")),
        ("totp", None, None),
        ("ocra", Some("ocra"), Some("ocra")),
        ("signer", Some("signature"), None),
        ("signer-jwk", Some("signature"), None),
        ("signer-chain", Some("signature"), None),
        ("signer-webauthn", None, None),
        ("ocra-transactions", None, None),
        ("rolling", None, None),
        ("terminal", None, None),
    ] {
        let id = documented.enrol(bank, &ask(name)).await;
        let view = documented.does(bank, "GET", ONE, &id, None).await;
        if let Some(verify) = verify {
            let body = documented.request("POST", VERIFY, verify);
            documented.does(bank, "POST", VERIFY, &id, Some(&body)).await;
        }
        if let Some(resync) = resync {
            let id = documented.enrol(bank, &ask(name)).await;
            let body = documented.request("POST", RESYNC, resync);
            documented.does(bank, "POST", RESYNC, &id, Some(&body)).await;
        }
        if name == "signer-webauthn" {
            let signature = documented.request("POST", VERIFY, "signature");
            let asked = Asked::new("POST", VERIFY, &id).json(&signature);
            assert_eq!(documented.ask(bank, asked).await.status, 422, "it signs no payloads");
        }
        if name.starts_with("signer") {
            let otps = Asked::new("POST", RESYNC, &id).json(&documented.request("POST", RESYNC, "otps"));
            assert_eq!(documented.ask(bank, otps).await.status, 409);
        }
        if name == "rolling" {
            let body = documented.request("POST", ACTIVATE, "identity-key");
            documented.does(bank, "POST", ACTIVATE, &id, Some(&body)).await;
        }
        for action in ["suspend", "resume", "unlock"] {
            let route = format!("{ONE}/{action}");
            let changed = documented.does(bank, "POST", &route, &id, Some(&json!({}))).await;
            assert_eq!(changed["type"], view["type"]);
        }
        documented.does(bank, "DELETE", ONE, &id, None).await;
    }
    documented.enrol(bank, &every_input()).await;
    let page = documented.ask(bank, Asked { query: "?limit=2", ..Asked::new("GET", LIST, "") }).await;
    let next = page.json().unwrap()["next"].as_str().unwrap().to_owned();
    let query = format!("?limit=100&after={next}");
    documented.ask(bank, Asked { query: &query, ..Asked::new("GET", LIST, "") }).await;
    documented.ask(bank, Asked::new("GET", "/v1/openapi.json", "")).await;
}

/// A wrapped seed: the example is for a key that nobody has, and says so; of the right key it is taken once.
async fn wrap_by_the_examples(documented: &Documented, bank: &Connection) {
    let mut body = documented.request("POST", LIST, "hotp-wrapped");
    let answer = documented.ask(bank, Asked::new("POST", LIST, "").json(&body)).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json().unwrap()["field"]),
        (422, &json!("seed_wrapped_base64"))
    );
    documented.does(bank, "GET", IMPORT_KEY, "", None).await;
    body["seed_wrapped_base64"] = json!(Wrapper::fetch(bank).await.wrap(b"12345678901234567890"));
    let id = documented.enrol(bank, &body).await;
    let otp = documented.request("POST", VERIFY, "otp");
    documented.does(bank, "POST", VERIFY, &id, Some(&otp)).await;
    assert_eq!(documented.ask(bank, Asked::new("POST", LIST, "").json(&body)).await.status, 409);
}

/// A whole life of transactions, by the examples of the document: what is presented comes from tokens and devices of
/// the tests' own.
async fn approve_by_the_examples(documented: &Documented, bank: &Connection) {
    let (token, enrolment) = token("account-1005");
    let token_id = documented.enrol(bank, &enrolment).await;
    let device_id = documented.enrol_device(bank, "account-1004").await;
    let authenticator_id = documented.enrol(bank, &authenticator(DEVICE, "account-1006")).await;

    let first = documented.create(bank, &documented.order("ocra", &token_id)).await;
    let first_id = approvals::id(&first);
    let approved = documented.does(bank, "POST", RESPONSES, first_id, Some(&answered(&token, &first))).await;
    let mut second = documented.order("second", &device_id);
    second["parent"] = approved["attestation"].clone();
    let second = documented.create(bank, &second).await;
    assert_eq!(second["parent"]["transaction"]["remark"], "two pallets");
    let device_order = documented.order("device", &device_id);
    let third = documented.create(bank, &device_order).await;
    let mut order = documented.order("device", &authenticator_id);
    order.as_object_mut().unwrap().remove("payer");
    let fourth = documented.create(bank, &order).await;
    let fifth = documented.create(bank, &documented.order("ocra", &token_id)).await;

    for (view, response) in [
        (&second, signed(DEVICE, &second)),
        (&third, signed_jws(DEVICE, &third)),
        (&fourth, asserted(DEVICE, &fourth, 1)),
    ] {
        let id = approvals::id(view);
        assert_eq!(documented.ask(bank, Asked::new("GET", ATTESTATION, id)).await.status, 409);
        assert_eq!(documented.ask(bank, Asked::new("GET", QR, id)).await.status, 409);
        let approved = documented.does(bank, "POST", RESPONSES, id, Some(&response)).await;
        let read = documented.does(bank, "GET", ATTESTATION, id, None).await;
        assert_eq!(read["attestation"], approved["attestation"]);
        let claims = documented.does(bank, "POST", VERIFY_ATTESTATION, "", Some(&read)).await;
        assert_eq!((&claims["digest"], &claims["jti"]), (&view["digest"], &view["id"]));
        for route in [RESPONSES, CANCEL] {
            let asked = Asked::new("POST", route, id);
            let asked = if route == RESPONSES { asked.json(&response) } else { asked };
            assert_eq!(documented.ask(bank, asked).await.status, 409);
        }
        pictures(documented, bank, id).await;
    }
    documented.does(bank, "GET", "/v1/jwks", "", None).await;

    documented.does(bank, "GET", TRANSACTION, approvals::id(&fourth), None).await;
    documented.does(bank, "POST", CANCEL, approvals::id(&fifth), Some(&json!({}))).await;
    let page = documented.ask(bank, Asked { query: "?limit=2", ..Asked::new("GET", TRANSACTIONS, "") }).await;
    let next = page.json().unwrap()["next"].as_str().unwrap().to_owned();
    let query = format!("?payer=account-1004&limit=100&after={next}");
    documented.ask(bank, Asked { query: &query, ..Asked::new("GET", TRANSACTIONS, "") }).await;

    // What the document's own attestation and responses are not: ours, and about these.
    let example = documented.request("POST", VERIFY_ATTESTATION, "attestation");
    let asked = Asked::new("POST", VERIFY_ATTESTATION, "").json(&example);
    assert_eq!(documented.ask(bank, asked).await.status, 403);
    for (name, order) in [
        ("code", documented.order("ocra", &token_id)),
        ("der", device_order.clone()),
        ("p1363", device_order.clone()),
        ("jws", device_order),
        ("webauthn", order),
    ] {
        let view = documented.create(bank, &order).await;
        let response = documented.request("POST", RESPONSES, name);
        let asked = Asked::new("POST", RESPONSES, approvals::id(&view)).json(&response);
        assert_eq!(documented.ask(bank, asked).await.status, 403, "{name}");
    }
}

/// The same by codes of terminals, which another client is shown.
async fn approve_by_terminals(daemon: &Daemon, documented: &Documented, bank: &Connection) {
    let gateway = daemon.connect("bank-a-gateway").await;
    let terminal = documented.request("POST", LIST, "terminal");
    for _ in 0..3 {
        documented.enrol(bank, &terminal).await;
    }
    let respond = async |view: &Value, body: Value| {
        let asked = Asked::new("POST", RESPONSES, approvals::id(view)).json(&body);
        documented.ask(&gateway, asked).await.status.as_u16()
    };
    let order = documented.request("POST", TRANSACTIONS, "terminals");
    let view = documented.create(&gateway, &order).await;
    documented.does(&gateway, "GET", TRANSACTION, approvals::id(&view), None).await;
    documented.does(bank, "GET", TRANSACTION, approvals::id(&view), None).await;
    for (number, code) in (0..).zip(codes(&view)) {
        daemon.set_clock(START_S + 10 * number);
        assert_eq!(respond(&view, json!({ "code": code })).await, if number < 2 { 202 } else { 200 });
    }
    daemon.set_clock(START_S);
    let target = documented.create(&gateway, &documented.request("POST", TRANSACTIONS, "target")).await;
    assert_eq!(respond(&target, json!({ "target": target_of(&codes(&target)) })).await, 200);
    let mut plain = order;
    plain["rule"] = json!({ "type": "preset_order" });
    let view = documented.create(bank, &plain).await;
    for (name, status) in [("entry", 202), ("codes", 403), ("target", 422)] {
        assert_eq!(respond(&view, documented.request("POST", RESPONSES, name)).await, status, "{name}");
    }
    let right = codes(&documented.does(&gateway, "GET", TRANSACTION, approvals::id(&view), None).await);
    assert_eq!(respond(&view, json!({ "codes": right })).await, 200);
}

/// The attestation as a picture: which one, and that there is no third.
async fn pictures(documented: &Documented, bank: &Connection, id: &str) {
    for (accept, kind, begins) in [
        (None, "image/svg+xml", b"<svg".as_slice()),
        (Some("image/*"), "image/svg+xml", b"<svg"),
        (Some("image/png"), "image/png", b"\x89PNG"),
        (Some("image/svg+xml;q=0.5, image/png"), "image/png", b"\x89PNG"),
    ] {
        let mut asked = Asked::new("GET", QR, id);
        asked.headers.extend(accept.map(|accept| ("accept", accept)));
        let answer = documented.ask(bank, asked).await;
        assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some(kind)), "{accept:?}");
        assert!(answer.body.starts_with(begins), "{accept:?}");
        assert_eq!(answer.header("vary"), Some("accept"));
    }
    for accept in ["text/html", "image/png;q=0, image/svg+xml;q=0"] {
        let asked = Asked { headers: vec![("accept", accept)], ..Asked::new("GET", QR, id) };
        assert_eq!(documented.ask(bank, asked).await.status, 406, "{accept}");
    }
}

/// What is over, suspended, locked or nobody's.
async fn come_too_late(daemon: &Daemon, documented: &Documented, bank: &Connection) {
    let device_id = documented.enrol_device(bank, "late").await;
    let mut order = documented.order("second", &device_id);
    order.as_object_mut().unwrap().remove("parent");
    order["expires_in"] = json!(1);
    let mut overdue = Vec::new();
    for _ in 0..4 {
        overdue.push(documented.create(bank, &order).await);
    }
    order["expires_in"] = json!(3600);
    let pending = documented.create(bank, &order).await;
    daemon.set_clock(START_S + 2);
    let response = signed(DEVICE, &overdue[0]);
    for (view, (method, route)) in
        overdue.iter().zip([("POST", RESPONSES), ("POST", CANCEL), ("GET", ATTESTATION), ("GET", QR)])
    {
        let asked = Asked::new(method, route, approvals::id(view));
        let asked = if route == RESPONSES { asked.json(&response) } else { asked };
        assert_eq!(documented.ask(bank, asked).await.status, 410, "{method} {route}");
        let view = documented.does(bank, "GET", TRANSACTION, approvals::id(view), None).await;
        assert_eq!(view["state"], "expired");
    }
    documented.does(bank, "POST", "/v1/credentials/{id}/suspend", &device_id, None).await;
    let created = documented.ask(bank, Asked::new("POST", TRANSACTIONS, "").json(&order)).await;
    assert_eq!(created.status, 409);
    let asked = Asked::new("POST", RESPONSES, approvals::id(&pending)).json(&signed(DEVICE, &pending));
    assert_eq!(documented.ask(bank, asked).await.status, 409);
    order["credential"] = json!(nobodys(LIST));
    let created = documented.ask(bank, Asked::new("POST", TRANSACTIONS, "").json(&order)).await;
    assert_eq!(created.status, 404);

    // Five wrong codes, over two transactions.
    let (_, mut enrolment) = token("guessed-about");
    enrolment["account"] = json!("guessed-about");
    let token_id = documented.enrol(bank, &enrolment).await;
    let order = documented.order("ocra", &token_id);
    let views = [documented.create(bank, &order).await, documented.create(bank, &order).await];
    for (round, view) in [&views[0], &views[0], &views[0], &views[1], &views[1]].into_iter().enumerate() {
        let asked = Asked::new("POST", RESPONSES, approvals::id(view)).json(&json!({ "otp": "00000000" }));
        let answer = documented.ask(bank, asked).await;
        assert_eq!(answer.status, 403);
        assert_eq!(answer.json().unwrap()["attempts_remaining"], [2, 1, 0, 1, 0][round]);
    }
    let asked = Asked::new("POST", RESPONSES, approvals::id(&views[1])).json(&json!({ "otp": "00000000" }));
    assert_eq!(documented.ask(bank, asked).await.status, 423);
}

/// 409, 403 and 423 of those who guess; 409 of suspending and resuming.
async fn guess(documented: &Documented, bank: &Connection) {
    let id = documented.enrol(bank, &json!({ "type": "hotp", "account": "guessed" })).await;
    let (wrong, otps) =
        (json!({ "otp": rfc_code(9_000) }), json!({ "otps": [rfc_code(9_000), rfc_code(9_001)] }));
    let suspend = format!("{ONE}/suspend");
    let resume = format!("{ONE}/resume");
    assert_eq!(documented.ask(bank, Asked::new("POST", &resume, &id)).await.status, 409);
    documented.does(bank, "POST", &suspend, &id, None).await;
    assert_eq!(documented.ask(bank, Asked::new("POST", &suspend, &id)).await.status, 409);
    for (route, body) in [(VERIFY, &wrong), (RESYNC, &otps)] {
        assert_eq!(documented.ask(bank, Asked::new("POST", route, &id).json(body)).await.status, 409);
    }
    documented.does(bank, "POST", &resume, &id, None).await;
    for round in 0..5 {
        let (route, body) = if round % 2 == 0 { (VERIFY, &wrong) } else { (RESYNC, &otps) };
        assert_eq!(documented.ask(bank, Asked::new("POST", route, &id).json(body)).await.status, 403);
    }
    for (route, body) in [(VERIFY, &wrong), (RESYNC, &otps)] {
        assert_eq!(documented.ask(bank, Asked::new("POST", route, &id).json(body)).await.status, 423);
    }
}

/// What needs more than a request to bring about: the first one with a key still under way; a queue, an HSM or a
/// store that does not answer.
fn not_from_outside(route: &str, status: u16, name: &str) -> bool {
    let is_one_of = |ways: &[&str]| ways.iter().any(|way| route.split_once(' ').unwrap().1.ends_with(way));
    let by_clock = [VERIFY, RESYNC, RESPONSES, VERIFY_ATTESTATION];
    let unavailable = status == 503 && !is_one_of(&by_clock) && route != "POST /v1/transactions";
    let by_state = [
        "activate",
        "rotation",
        "rebind",
        "verify",
        "resync",
        "suspend",
        "resume",
        "responses",
        "cancel",
        "attestation",
        "qr",
    ];
    let in_flight = status == 409 && !is_one_of(&by_state) && route != "POST /v1/transactions";
    // A start makes a checkpoint before anybody can ask for one.
    let no_checkpoint = status == 404 && route == audit_documented::CHECKPOINT_ROUTE;
    // A limit that is configured, and not here: `rolling.rs` has one.
    unavailable || in_flight || no_checkpoint || ["method-not-allowed", "rate-limited"].contains(&name)
}

#[tokio::test]
async fn its_examples_work_and_answers_are_as_it_says() {
    let mut daemon = Daemon::start_at(START_S);
    let scratch = Scratch::new();
    let anchors = scratch.write("anchors.pem", include_str!("../vectors/signer_root.pem"));
    daemon.reload_with(|config| config["signers"] = json!({ "trust_anchors": anchors }));
    let documented = Documented::fetch(&daemon.connect("auditor").await).await;
    let bank = daemon.connect("bank-a").await;
    live_by_the_examples(&documented, &bank).await;
    wrap_by_the_examples(&documented, &bank).await;
    guess(&documented, &bank).await;
    // Who delivers may everything that a bank may.
    let gateway = daemon.connect("bank-a-gateway").await;
    bring_about_problems(&daemon, &documented, &gateway).await;
    presented_documented::present_by_the_examples(&daemon, &documented, &gateway).await;
    approve_by_the_examples(&documented, &bank).await;
    rolling_documented::roll_by_the_examples(&documented, &bank).await;
    approve_by_terminals(&daemon, &documented, &bank).await;
    come_too_late(&daemon, &documented, &bank).await;
    audit_documented::audit(&daemon, &documented).await;
    let totp = documented.enrol(&bank, &documented.request("POST", LIST, "totp")).await;
    let (pending, response) = documented.about(&bank, "POST", RESPONSES).await;
    let (_, order) = documented.about(&bank, "POST", TRANSACTIONS).await;
    daemon.step_clock(START_S + 120);
    while !daemon.log().contains("the wall clock stepped") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for (route, body) in
        [(VERIFY, json!({ "otp": "000000" })), (RESYNC, json!({ "otps": ["000000", "000001"] }))]
    {
        assert_eq!(documented.ask(&bank, Asked::new("POST", route, &totp).json(&body)).await.status, 503);
    }
    let attestation = documented.request("POST", VERIFY_ATTESTATION, "attestation");
    for (route, body) in [(RESPONSES, response), (TRANSACTIONS, order), (VERIFY_ATTESTATION, attestation)] {
        assert_eq!(documented.ask(&bank, Asked::new("POST", route, &pending).json(&body)).await.status, 503);
    }
    // What is stored can be read, and taken back.
    assert_eq!(documented.does(&bank, "GET", TRANSACTION, &pending, None).await["state"], "pending");
    documented.does(&bank, "POST", CANCEL, &pending, None).await;
    daemon.stop();

    let seen = documented.seen.lock().unwrap();
    let mut unseen = BTreeSet::new();
    for (method, path, operation) in documented.operations() {
        let route = format!("{method} {path}");
        for (status, response) in operation["responses"].as_object().unwrap() {
            let status: u16 = status.parse().unwrap();
            let problems = examples(&documented.resolve(response)["content"]["application/problem+json"]);
            let names: Vec<_> = problems.iter().map(|(name, _)| name.to_string()).collect();
            let names = if status < 300 { vec![String::new()] } else { names };
            unseen.extend(names.into_iter().map(|name| (route.clone(), status, name)));
        }
    }
    unseen
        .retain(|one @ (route, status, name)| !seen.contains(one) && !not_from_outside(route, *status, name));
    assert!(unseen.is_empty(), "documented, and not brought about: {unseen:?}");
    let mut unseen: Vec<_> =
        answer_members(&documented).difference(&documented.members.lock().unwrap()).cloned().collect();
    // It takes a database that was turned back: `recovering.rs` has it.
    unseen.retain(|member| member != "resumable");
    assert!(unseen.is_empty(), "no answer had {unseen:?}");
}

/// The names of all members that answers may have.
fn answer_members(documented: &Documented) -> BTreeSet<String> {
    fn collect(documented: &Documented, schema: &Value, found: &mut BTreeSet<String>) {
        let schema = documented.resolve(schema);
        found.extend(schema["properties"].as_object().into_iter().flat_map(|all| all.keys().cloned()));
        for all in ["oneOf", "allOf"] {
            schema[all].as_array().into_iter().flatten().for_each(|one| collect(documented, one, found));
        }
    }
    let mut found = BTreeSet::new();
    for (_, _, operation) in documented.operations() {
        for response in operation["responses"].as_object().unwrap().values() {
            for content in documented.resolve(response)["content"].as_object().unwrap().values() {
                collect(documented, &content["schema"], &mut found);
            }
        }
    }
    found
}

/// Sends each, and asks for a 4xx.
async fn all_are_refused(
    documented: &Documented,
    bank: &Connection,
    route: &str,
    id: &str,
    good: &Value,
) -> usize {
    let schema = documented.body_schema("POST", route).unwrap();
    assert!(documented.accepts(schema, good), "{good}");
    let wrong: Vec<_> = mutations(documented, schema, good);
    for body in &wrong {
        assert!(!documented.accepts(schema, body), "{body}");
        let answer = documented.ask(bank, Asked::new("POST", route, id).json(body)).await;
        assert!(answer.status.is_client_error(), "the document refuses {body}: {}", said(&answer));
        // Any text may be said to be an attestation, and nothing is counted.
        let is_tried = answer.status == 403 && route != VERIFY_ATTESTATION;
        assert!(!is_tried, "{body} was tried: {}", said(&answer));
    }
    wrong.len()
}

fn said(answer: &Response) -> String {
    format!("{} {}", answer.status, text(answer))
}

#[tokio::test]
async fn what_it_refuses_is_refused() {
    let (daemon, documented) = start().await;
    let bank = daemon.connect("bank-a").await;
    let mut count = 0;
    let enrolments = [
        "hotp",
        "hotp-wrapped",
        "totp",
        "ocra",
        "signer",
        "signer-jwk",
        "signer-chain",
        "signer-webauthn",
        "terminal",
        "rolling",
    ]
    .map(|name| documented.request("POST", LIST, name));
    for good in enrolments.iter().chain([&every_input()]) {
        count += all_are_refused(&documented, &bank, LIST, "", good).await;
    }
    let chain = documented.ask(&bank, Asked::new("POST", LIST, "").json(&enrolments[6])).await;
    assert_eq!(chain.status, 422, "there is no trust anchor");
    assert_eq!(chain.json().unwrap()["field"], "certificate_chain_pem");
    assert_eq!(credentials(&bank).await, json!([]));
    let hotp = documented.enrol(&bank, &enrolments[0]).await;
    let ocra = documented.enrol(&bank, &every_input()).await;
    let signer = documented.enrol(&bank, &enrolments[4]).await;
    let before = credentials(&bank).await;
    let asked = json!({ "otp": "00000000", "challenge": "1", "session": "s" });
    let signature = documented.request("POST", VERIFY, "signature");
    for (id, good) in [(&hotp, json!({ "otp": "755224" })), (&ocra, asked), (&signer, signature)] {
        count += all_are_refused(&documented, &bank, VERIFY, id, &good).await;
    }
    let asked = json!({ "otps": ["00000000", "00000001"], "challenge": "1", "session": "s" });
    for (id, good) in [(&hotp, json!({ "otps": ["755224", "287082"] })), (&ocra, asked)] {
        count += all_are_refused(&documented, &bank, RESYNC, id, &good).await;
    }
    for action in ["suspend", "resume", "unlock"] {
        count += all_are_refused(&documented, &bank, &format!("{ONE}/{action}"), &hotp, &json!({})).await;
    }
    assert_eq!(credentials(&bank).await, before, "nothing is charged, and nothing changes");
    let gateway = daemon.connect("bank-a-gateway").await;
    for (route, id, good) in presented_documented::bodies(&documented, &gateway).await {
        count += all_are_refused(&documented, &gateway, route, &id, &good).await;
    }
    let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let (view, decisions) = presented_documented::to_be_decided(&documented, &gateway, now_s).await;
    for good in &decisions {
        count += all_are_refused(&documented, &gateway, RESPONSES, approvals::id(&view), good).await;
    }
    let cancelled = documented.does(&gateway, "POST", CANCEL, approvals::id(&view), None).await;
    assert_eq!(cancelled["attempts_remaining"], 3);
    for route in [ACTIVATE, ROTATION, REBIND] {
        let (id, good) = rolling_documented::about(&documented, &bank, route).await;
        let before = credentials(&bank).await;
        count += all_are_refused(&documented, &bank, route, &id, &good).await;
        assert_eq!(credentials(&bank).await, before);
    }
    count += no_transaction_is_touched(&documented, &bank).await;
    assert!(count > 800, "only {count} mutations: the generator does not see the schemas");
}

async fn no_transaction_is_touched(documented: &Documented, bank: &Connection) -> usize {
    let mut count = 0;
    let (token, enrolment) = token("account-1005");
    let token_id = documented.enrol(bank, &enrolment).await;
    let device_id = documented.enrol_device(bank, "account-1004").await;
    let authenticator_id = documented.enrol(bank, &authenticator(DEVICE, "account-1006")).await;
    let rsa_id = documented
        .enrol(bank, &json!({ "type": "signer", "account": "r", "jwk": rsa_keys()[0]["jwk"] }))
        .await;
    let full = documented.order("ocra", &token_id);
    let asked = documented.create(bank, &full).await;
    let mut second = full.clone();
    second["parent"] = documented
        .does(bank, "POST", RESPONSES, approvals::id(&asked), Some(&answered(&token, &asked)))
        .await["attestation"]
        .clone();
    second["payer"] = json!("account-1005");
    second["expires_in"] = json!(300);
    let order = |credential: &str| approvals::order("device_signature", credential);
    let view = documented.create(bank, &full).await;
    let to_sign = documented.create(bank, &order(&device_id)).await;
    let to_assert = documented.create(bank, &order(&authenticator_id)).await;
    let of_rsa = documented.create(bank, &order(&rsa_id)).await;
    let rolling = documented.create(bank, &documented.request("POST", TRANSACTIONS, "rolling")).await;
    let terminal = documented.request("POST", LIST, "terminal");
    for _ in 0..2 {
        documented.enrol(bank, &terminal).await;
    }
    let mut by_terminals = documented.request("POST", TRANSACTIONS, "terminals");
    let timed = by_terminals.clone();
    by_terminals["rule"] = json!({ "type": "descending" });
    let sent = documented.create(bank, &by_terminals).await;
    let by_target = documented.request("POST", TRANSACTIONS, "target");
    let of_target = documented.create(bank, &by_target).await;
    let before = (transactions(bank).await, credentials(bank).await);
    for good in [&second, &timed, &by_target] {
        count += all_are_refused(documented, bank, TRANSACTIONS, "", good).await;
    }
    for (view, good) in [
        (&view, answered(&token, &view)),
        (&to_sign, signed(DEVICE, &to_sign)),
        (&to_sign, signed_jws(DEVICE, &to_sign)),
        (&to_assert, asserted(DEVICE, &to_assert, 1)),
        (&of_rsa, json!({ "format": "raw", "signature": "AAAA" })),
        (&rolling, documented.request("POST", RESPONSES, "password")),
        (&sent, json!({ "codes": ["123456", "123457"] })),
        (&sent, json!({ "code": "123456" })),
        (&of_target, json!({ "target": "12345678" })),
    ] {
        count += all_are_refused(documented, bank, RESPONSES, approvals::id(view), &good).await;
    }
    count += all_are_refused(documented, bank, CANCEL, approvals::id(&view), &json!({})).await;
    let attestation = json!({ "attestation": second["parent"] });
    count += all_are_refused(documented, bank, VERIFY_ATTESTATION, "", &attestation).await;
    assert_eq!((transactions(bank).await, credentials(bank).await), before, "nothing was tried");
    count
}

#[tokio::test]
async fn what_it_allows_at_its_bounds_is_taken() {
    let (daemon, documented) = start().await;
    let bank = daemon.connect("bank-a").await;
    let schema = documented.body_schema("POST", LIST).unwrap();
    let mut count = 0;
    for good in
        [documented.request("POST", LIST, "hotp"), documented.request("POST", LIST, "totp"), every_input()]
    {
        for body in bounds(&documented, schema, &good) {
            assert!(documented.accepts(schema, &body), "{body}");
            let id = documented.enrol(&bank, &body).await;
            let view = documented.does(&bank, "GET", ONE, &id, None).await;
            for (field, value) in body.as_object().unwrap() {
                assert!(view.get(field).is_none_or(|shown| shown == value), "{field} of {body}: {view}");
            }
            count += 1;
        }
    }
    assert!(count > 30, "only {count} bounds: the generator does not see the schemas");
}
