//! WebAuthn authenticators: enrolled, approving, and with each thing about an assertion wrong by itself.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use crate::bank::{credential, done, path, refused};
use crate::client::Connection;
use crate::daemon::{Daemon, enrol, enrol_hotp, text};
use crate::device_pki::{Key, Kind};
use crate::refusals::{Case, all_refused};
use crate::security_devices::{Pending, base64url, enrol_device, es256, order, rs256, sha256, signed};
use crate::signers::{PAYLOAD, openssls_pem, pem_of, present, presented};

const RP_ID: &str = "bank.example";
const ORIGIN: &str = "https://pay.bank.example";
const APP: &str = "android:apk-key-hash:_2HBUymcqGN1_5dimo7nVj8erNyC32NupRjdtBPMYYU";

const UP: u8 = 0x01;
const UV: u8 = 0x04;
const BE: u8 = 0x08;
const BS: u8 = 0x10;

/// What an authenticator and its client say, each thing of it to be changed by a test.
#[derive(Clone)]
pub struct Assertion {
    pub client_data: Value,
    pub rp_id: String,
    pub flags: u8,
    pub sign_count: u32,
    pub behind: Vec<u8>,
}

impl Assertion {
    fn authenticator_data(&self) -> Vec<u8> {
        [&sha256(self.rp_id.as_bytes())[..], &[self.flags], &self.sign_count.to_be_bytes(), &self.behind]
            .concat()
    }

    /// The response, signed by this key.
    pub fn by(&self, key: &Key) -> Value {
        let (data, client_data) = (self.authenticator_data(), self.client_data.to_string());
        let signature = key.sign(&[&data[..], &sha256(client_data.as_bytes())].concat());
        json!({ "format": "webauthn", "authenticator_data": base64url(&data),
            "client_data_json": base64url(client_data.as_bytes()), "signature": base64url(&signature) })
    }
}

/// An authenticator that counts its signatures.
pub struct Authenticator {
    pub key: Key,
    pub id: String,
    pub sign_count: u32,
}

impl Authenticator {
    pub fn new(name: &str) -> Self {
        Self::with(es256(name))
    }

    pub fn with(key: Key) -> Self {
        Self { key, id: String::new(), sign_count: 0 }
    }

    /// The body that enrols it.
    pub fn enrolment(&self, account: &str) -> Value {
        json!({ "type": "signer", "account": account, "webauthn": {
            "credential_id": base64url(&[7; 16]), "public_key_pem": pem_of(self.key.public()),
            "rp_id": RP_ID, "origins": [ORIGIN, APP] } })
    }

    pub async fn enrol(&mut self, bank: &Connection, account: &str) -> String {
        self.id = enrol(bank, &self.enrolment(account)).await;
        self.id.clone()
    }

    /// A right one for a transaction, with the count as it is.
    pub fn assertion(&self, pending: &Pending) -> Assertion {
        Assertion {
            client_data: json!({ "type": "webauthn.get", "challenge": base64url(&pending.digest()),
                "origin": ORIGIN, "crossOrigin": false }),
            rp_id: RP_ID.to_owned(),
            flags: UP | UV,
            sign_count: self.sign_count,
            behind: Vec::new(),
        }
    }

    /// The next right response.
    pub fn response(&mut self, pending: &Pending) -> Value {
        self.sign_count += 1;
        self.assertion(pending).by(&self.key)
    }
}

/// What is wrong, and how an assertion becomes so.
type Wrong = (&'static str, Box<dyn Fn(&mut Assertion)>);

fn report(sign_count: u32, flags: u8) -> Value {
    json!({ "sign_count": sign_count, "backup_eligible": flags & BE != 0, "backed_up": flags & BS != 0 })
}

#[tokio::test]
async fn an_assertion_approves_and_what_it_says_is_kept() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    for key in [es256("authenticator"), rs256(Kind::Rsa2048, "authenticator")] {
        let mut authenticator = Authenticator::with(key);
        let id = authenticator.enrol(&bank, "acct-1").await;
        let view = credential(&bank, &id).await;
        let expected =
            json!({ "credential_id": base64url(&[7; 16]), "rp_id": RP_ID, "origins": [ORIGIN, APP] });
        assert_eq!(view["webauthn"], expected);
        assert_eq!(view["type"], "signer");
        for (round, flags) in (1..).zip([UP | UV, UP | UV | BE, UP | UV | BE | BS]) {
            let pending = Pending::of(&bank, &id).await;
            assert_eq!(pending.view["challenge"]["signing_input"], pending.view["signing_input"]);
            authenticator.sign_count += 1;
            let mut assertion = authenticator.assertion(&pending);
            assertion.flags = flags;
            if round == 2 {
                // An app's, and extensions that nobody asked for.
                assertion.client_data["origin"] = json!(APP);
                assertion.client_data["androidPackageName"] = json!("com.example.bank");
                assertion.flags |= 0x80;
                assertion.behind = vec![0xa0];
            }
            let approved = pending.approved_by(&bank, &assertion.by(&authenticator.key)).await;
            assert_eq!(approved["authenticator"], report(round, flags));
        }
        assert_eq!(credential(&bank, &id).await, view);
    }
}

#[tokio::test]
async fn each_thing_wrong_by_itself_ends_the_transaction() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let mut authenticator = Authenticator::new("authenticator");
    let id = authenticator.enrol(&bank, "acct-1").await;
    let earlier = Pending::of(&bank, &id).await;
    let said = |name: &'static str, value: Value| -> Box<dyn Fn(&mut Assertion)> {
        Box::new(move |assertion: &mut Assertion| assertion.client_data[name] = value.clone())
    };
    let other = base64url(&earlier.digest());
    let cases: Vec<Wrong> = vec![
        ("a registration", said("type", json!("webauthn.create"))),
        ("a payment of another kind", said("type", json!("payment.get"))),
        ("no type", said("type", Value::Null)),
        ("another transaction's challenge", said("challenge", json!(other))),
        (
            "a padded challenge",
            Box::new(|it| {
                let padded = format!("{}=", it.client_data["challenge"].as_str().unwrap());
                it.client_data["challenge"] = json!(padded);
            }),
        ),
        (
            "a hexadecimal challenge",
            Box::new(|it| {
                let challenge = it.client_data["challenge"].as_str().unwrap();
                let digest = BASE64URL_NOPAD.decode(challenge.as_bytes()).unwrap();
                it.client_data["challenge"] = json!(data_encoding::HEXLOWER.encode(&digest));
            }),
        ),
        ("another origin", said("origin", json!("https://pay.bank.example.evil.example"))),
        ("the rp_id's origin", said("origin", json!("https://bank.example"))),
        ("another port", said("origin", json!("https://pay.bank.example:444"))),
        ("no TLS", said("origin", json!("http://pay.bank.example"))),
        ("in another's frame", said("crossOrigin", json!(true))),
        ("crossOrigin as text", said("crossOrigin", json!("false"))),
        ("below another's page", said("topOrigin", json!("https://evil.example"))),
        ("below its own page", said("topOrigin", json!(ORIGIN))),
        ("another party", Box::new(|it| it.rp_id = "evil.example".to_owned())),
        ("a party below", Box::new(|it| it.rp_id = "pay.bank.example".to_owned())),
        ("nobody present", Box::new(|it| it.flags = UV)),
        ("nobody verified", Box::new(|it| it.flags = UP)),
        ("backed up, not eligible", Box::new(|it| it.flags = UP | UV | BS)),
        ("attested data", Box::new(|it| it.flags = UP | UV | 0x40)),
        ("extensions that are not there", Box::new(|it| it.flags = UP | UV | 0x80)),
        ("a byte behind", Box::new(|it| it.behind = vec![0xa0])),
        ("the same count", Box::new(|it| it.sign_count -= 1)),
        ("an earlier count", Box::new(|it| it.sign_count = 1)),
        ("no count any more", Box::new(|it| it.sign_count = 0)),
    ];
    for _ in 0..2 {
        let pending = Pending::of(&bank, &id).await;
        let response = authenticator.response(&pending);
        pending.approved_by(&bank, &response).await;
    }
    for (what, change) in cases {
        let pending = Pending::of(&bank, &id).await;
        let right = Assertion { sign_count: 3, ..authenticator.assertion(&pending) };
        let mut wrong = right.clone();
        change(&mut wrong);
        let (wrong, right) = (wrong.by(&authenticator.key), right.by(&authenticator.key));
        pending.failed_by(&bank, what, &wrong, &right).await;
    }
    let changed = |right: &Value, field: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = BASE64URL_NOPAD.decode(right[field].as_str().unwrap().as_bytes()).unwrap();
        change(&mut bytes);
        let mut wrong = right.clone();
        wrong[field] = json!(base64url(&bytes));
        wrong
    };
    for round in 0..10 {
        let pending = Pending::of(&bank, &id).await;
        let assertion = Assertion { sign_count: 3, ..authenticator.assertion(&pending) };
        let right = assertion.by(&authenticator.key);
        let wrong = match round {
            0 => changed(&right, "authenticator_data", &|bytes| bytes[36] = 9),
            1 => changed(&right, "authenticator_data", &|bytes| bytes[32] |= BE),
            2 => changed(&right, "authenticator_data", &|bytes| bytes.truncate(36)),
            3 => changed(&right, "client_data_json", &|bytes| bytes.push(b' ')),
            4 => changed(&right, "client_data_json", &|bytes| *bytes = b"[]".to_vec()),
            5 => changed(&right, "client_data_json", &|bytes| {
                *bytes = [&b"{\"origin\":\"x\","[..], &bytes[1..]].concat();
            }),
            6 => changed(&right, "signature", &|bytes| bytes.push(0)),
            7 => changed(&right, "signature", &|bytes| {
                *bytes = authenticator.key.sign(&pending.signing_input())
            }),
            8 => changed(&right, "signature", &|bytes| *bytes = authenticator.key.sign(&pending.digest())),
            _ => assertion.by(&es256("another")),
        };
        pending.failed_by(&bank, &format!("round {round}"), &wrong, &right).await;
    }
    assert_eq!(credential(&bank, &id).await["failures"], 0);
    // Nothing of this has moved the counter.
    let pending = Pending::of(&bank, &id).await;
    let response = authenticator.response(&pending);
    assert_eq!(pending.approved_by(&bank, &response).await["authenticator"], report(3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_rise_each_by_itself_and_outlast_a_restart() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let (mut one, mut other, mut without) =
        (Authenticator::new("one"), Authenticator::new("other"), Authenticator::new("without"));
    for authenticator in [&mut one, &mut other, &mut without] {
        authenticator.enrol(&bank, "acct-1").await;
    }
    let counted =
        async |bank: &Connection, authenticator: &Authenticator, sign_count: u32, is_right: bool| {
            let pending = Pending::of(bank, &authenticator.id).await;
            let assertion = Assertion { sign_count, ..authenticator.assertion(&pending) };
            let response = assertion.by(&authenticator.key);
            if is_right {
                let approved = pending.approved_by(bank, &response).await;
                assert_eq!(approved["authenticator"], report(sign_count, 0));
            } else {
                let later = Assertion { sign_count: u32::MAX, ..assertion }.by(&authenticator.key);
                pending.failed_by(bank, "a count that was there", &response, &later).await;
            }
        };
    for (authenticator, sign_count, is_right) in [
        (&one, 5, true),
        (&other, 1, true),
        (&one, 6, true),
        (&one, 6, false),
        (&other, 2, true),
        (&without, 0, true),
        (&one, 1_000, true),
        (&other, 1, false),
    ] {
        counted(&bank, authenticator, sign_count, is_right).await;
    }
    daemon.kill();
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    for (authenticator, sign_count, is_right) in [
        (&one, 1_000, false),
        (&one, 0, false),
        (&without, 0, true),
        (&without, 0, true),
        (&without, u32::MAX - 1, true),
        (&without, 0, false),
        (&without, u32::MAX, true),
        (&without, u32::MAX, false),
        (&one, 1_001, true),
        (&other, 2, false),
        (&other, 3, true),
    ] {
        counted(&bank, authenticator, sign_count, is_right).await;
    }
}

#[tokio::test]
async fn an_enrolment_that_is_wrong_names_its_field() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let good = Authenticator::new("authenticator").enrolment("acct-1");
    let mut cases = Vec::new();
    let mut add = |field: &'static str, value: Value, said: &'static str| {
        let mut body = good.clone();
        body["webauthn"][field] = value.clone();
        let case = Case::post(format!("{field} {value}"), "/v1/credentials", body.to_string(), 422);
        cases.push(if said.is_empty() { case } else { case.about(said) });
    };
    for bytes in [0, 15, 1_024] {
        add("credential_id", json!(base64url(&vec![7; bytes])), "credential_id");
    }
    for text in ["AAAAAAAAAAAAAAAAAAAAAA==", "+/+/+/+/+/+/+/+/+/+/+/", "AAAAAAAAAAAAAAAAAAAAAB", "\u{e9}"] {
        add("credential_id", json!(text), "credential_id");
    }
    for pem in ["", "unmistakable", &openssls_pem("rsa1024")] {
        add("public_key_pem", json!(pem), "public_key_pem");
    }
    for rp_id in
        ["", "com", "Bank.example", "bank.example.", "https://bank.example", "10.0.0.1", "bank_.example"]
    {
        add("rp_id", json!(rp_id), "rp_id");
    }
    for origins in [
        json!([]),
        json!([ORIGIN, "https://bank.example.evil.example"]),
        json!(["http://pay.bank.example"]),
        json!(["https://pay.bank.example/"]),
        json!(["https://pay.bank.example:443"]),
        json!(["null"]),
        json!(vec![ORIGIN; 9]),
    ] {
        add("origins", origins, "origins");
    }
    for field in ["credential_id", "public_key_pem", "rp_id", "origins"] {
        add(field, Value::Null, "");
        add(field, json!(7), "");
    }
    add("aaguid", json!("00"), "");
    let mut lacking = Vec::new();
    for field in ["credential_id", "public_key_pem", "rp_id", "origins"] {
        let mut body = good.clone();
        body["webauthn"].as_object_mut().unwrap().remove(field);
        lacking.push(Case::post(format!("no {field}"), "/v1/credentials", body.to_string(), 422));
    }
    for (name, value) in
        [("public_key_pem", good["webauthn"]["public_key_pem"].clone()), ("algorithm", json!("RS256"))]
    {
        let mut body = good.clone();
        body[name] = value;
        lacking.push(Case::post(name, "/v1/credentials", body.to_string(), 422).about(name));
    }
    cases.extend(lacking);
    all_refused(&daemon, &bank, cases).await;
    let longest = json!({ "credential_id": base64url(&[7; 1_023]), "rp_id": "localhost",
        "public_key_pem": good["webauthn"]["public_key_pem"], "origins": ["http://localhost:8080"] });
    let id = enrol(&bank, &json!({ "type": "signer", "account": "acct-1", "webauthn": longest })).await;
    assert_eq!(credential(&bank, &id).await["webauthn"]["credential_id"], longest["credential_id"]);
}

#[tokio::test]
async fn an_authenticator_signs_assertions_and_nothing_else() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let mut authenticator = Authenticator::new("authenticator");
    let id = authenticator.enrol(&bank, "acct-1").await;
    let answer = present(&bank, &id, PAYLOAD, &authenticator.key.sign(PAYLOAD), "der").await;
    assert_eq!(refused(&answer, 422, "invalid")["field"], "signature_base64", "{}", text(&answer));
    let otps = json!({ "otps": ["123456", "123457"] });
    refused(&bank.post(&path(&id, "resync"), &otps).await.unwrap(), 409, "state-conflict");
    let code = bank.post(&path(&id, "verify"), &json!({ "otp": "123456" })).await.unwrap();
    refused(&code, 422, "invalid");
    let mut dynamic = order(&id);
    dynamic["method"] = json!("challenge_response");
    let answer = bank.post("/v1/transactions", &dynamic).await.unwrap();
    assert_eq!(refused(&answer, 422, "invalid")["field"], "credential");
    let hotp = enrol_hotp(&bank, "acct-1").await;
    let answer = bank.post("/v1/transactions", &order(&hotp)).await.unwrap();
    assert_eq!(refused(&answer, 422, "invalid")["field"], "credential");

    // The same key as a plain signer: no transaction of one is approved through the other.
    let plain = enrol_device(&bank, &authenticator.key, "acct-1").await;
    let (as_signer, asserted) = (Pending::of(&bank, &plain).await, Pending::of(&bank, &id).await);
    let signature = signed("der", &authenticator.key.sign(&as_signer.signing_input()));
    let assertion = authenticator.response(&asserted);
    refused(&as_signer.respond(&bank, &assertion).await, 422, "invalid");
    refused(&asserted.respond(&bank, &signature).await, 422, "invalid");
    as_signer.approved_by(&bank, &signature).await;
    asserted.approved_by(&bank, &assertion).await;
    done(
        &bank
            .post(&path(&plain, "verify"), &presented(PAYLOAD, &authenticator.key.sign(PAYLOAD), "der"))
            .await
            .unwrap(),
    );
}
