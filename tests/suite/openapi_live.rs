//! What the OpenAPI document says, held against a live appliance: its examples are carried out, answers and problems
//! are as described, what its schemas refuse is refused, and what they allow at their bounds is taken.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use hsm_authd::dev::pki::{AlternativeName, Authority, Identity as Issued, Purpose, Validity};
use serde_json::{Value, json};

use crate::bank::credentials;
use crate::client::{Connection, Http, Identity, Response};
use crate::daemon::{Daemon, rfc_code, text};
use crate::documented::{Asked, Documented, JSON, examples};
use crate::mutations::{bounds, mutations};
use crate::openapi::start;
use crate::scratch::Scratch;

const LIST: &str = "/v1/credentials";
const ONE: &str = "/v1/credentials/{id}";
const VERIFY: &str = "/v1/credentials/{id}/verify";
const RESYNC: &str = "/v1/credentials/{id}/resync";
const NOBODYS: &str = "cred_00000000000000000000000000";

/// An OCRA suite with every input, and what an enrolment for it has.
fn every_input() -> Value {
    json!({ "type": "ocra", "account": "every-input", "suite": "OCRA-1:HOTP-SHA256-8:C-QN08-PSHA1-S064-T1M",
        "use": "verify", "counter": 1, "look_ahead": 1, "skew_steps": 0, "pin": "1234",
        "seed_hex": "a5".repeat(32) })
}

impl Documented {
    /// The example of a request.
    fn request(&self, method: &str, route: &str, name: &str) -> Value {
        let content = &self.operation(method, route)["requestBody"]["content"][JSON];
        let found = examples(content).into_iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("{method} {route} has no example {name}")).1.clone()
    }

    async fn enrol(&self, bank: &Connection, body: &Value) -> String {
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

    async fn does(
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
    let hotp = documented.request("POST", LIST, "hotp");
    let stranger = nobody(daemon).await;
    for (method, route, operation) in documented.operations() {
        let id = documented.enrol(bank, &hotp).await;
        let asked = || Asked::new(&method, &route, &id);
        assert_eq!(documented.ask(&stranger, asked()).await.status, 401);
        if operation["x-permission"] != "any client" {
            assert_eq!(documented.ask(&auditor, asked()).await.status, 403);
        }
        let takes_body = operation.get("requestBody").is_some();
        let good = if takes_body {
            examples(&operation["requestBody"]["content"][JSON])[0].1.clone()
        } else {
            json!({})
        };
        if route.contains("{id}") {
            let asked = Asked::new(&method, &route, NOBODYS);
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
        let key = format!("{method}{route}");
        mismatch(documented, bank, &method, &route, &key, &good).await;
    }
    for (query, status) in [
        ("?limit=0", 422),
        ("?limit=101", 422),
        ("?limit=x", 422),
        ("?account=", 422),
        ("?after=x", 422),
        ("?x=1", 422),
    ] {
        assert_eq!(documented.ask(bank, Asked { query, ..Asked::new("GET", LIST, "") }).await.status, status);
    }
}

/// A key that was used for another request, of this route.
async fn mismatch(
    documented: &Documented,
    bank: &Connection,
    method: &str,
    route: &str,
    key: &str,
    good: &Value,
) {
    let id = documented.enrol(bank, &documented.request("POST", LIST, "hotp")).await;
    let suspended = route.ends_with("resume");
    if suspended {
        documented.does(bank, "POST", "/v1/credentials/{id}/suspend", &id, None).await;
    }
    let good = match route {
        VERIFY => json!({ "otp": rfc_code(0) }),
        RESYNC => json!({ "otps": [rfc_code(0), rfc_code(1)] }),
        _ => good.clone(),
    };
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
        if name.starts_with("signer") {
            let otps = Asked::new("POST", RESYNC, &id).json(&documented.request("POST", RESYNC, "otps"));
            assert_eq!(documented.ask(bank, otps).await.status, 409);
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
    let unavailable = status == 503 && ![VERIFY, RESYNC].iter().any(|one| route.ends_with(one));
    let in_flight =
        status == 409 && !["verify", "resync", "suspend", "resume"].iter().any(|one| route.ends_with(one));
    unavailable || in_flight || name == "method-not-allowed"
}

#[tokio::test]
async fn its_examples_work_and_answers_are_as_it_says() {
    let mut daemon = Daemon::start_at(1_893_456_000);
    let documented = Documented::fetch(&daemon.connect("auditor").await).await;
    let bank = daemon.connect("bank-a").await;
    live_by_the_examples(&documented, &bank).await;
    guess(&documented, &bank).await;
    bring_about_problems(&daemon, &documented, &bank).await;
    let totp = documented.enrol(&bank, &documented.request("POST", LIST, "totp")).await;
    daemon.step_clock(1_893_456_000 + 60);
    while !daemon.log().contains("the wall clock stepped") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for (route, body) in
        [(VERIFY, json!({ "otp": "000000" })), (RESYNC, json!({ "otps": ["000000", "000001"] }))]
    {
        assert_eq!(documented.ask(&bank, Asked::new("POST", route, &totp).json(&body)).await.status, 503);
    }
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
    let unseen: Vec<_> =
        answer_members(&documented).difference(&documented.members.lock().unwrap()).cloned().collect();
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
        assert_ne!(answer.status, 403, "{body} was tried: {}", said(&answer));
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
    let enrolments =
        ["hotp", "totp", "ocra", "signer", "signer-jwk"].map(|name| documented.request("POST", LIST, name));
    for good in enrolments.iter().chain([&every_input()]) {
        count += all_are_refused(&documented, &bank, LIST, "", good).await;
    }
    assert_eq!(credentials(&bank).await, json!([]));
    let hotp = documented.enrol(&bank, &enrolments[0]).await;
    let ocra = documented.enrol(&bank, &every_input()).await;
    let signer = documented.enrol(&bank, &enrolments[3]).await;
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
    assert!(count > 400, "only {count} mutations: the generator does not see the schemas");
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
