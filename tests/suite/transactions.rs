//! Transactions that a code of an OCRA token approves (seed A), through the whole appliance. The tests compute
//! signing input, digest, question and code by their own hand.

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD, HEXLOWER};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::bank::{credential, done, failed, refused};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, enrol, text};
use crate::ocra_token::{Input, OcraToken};

/// 2027-01-15T08:00:00Z.
pub const NOW: u64 = 1_800_000_000;
/// No counter and no time: nothing but the question.
pub const PLAIN: &str = "OCRA-1:HOTP-SHA256-8:QH64";

/// A user with a token.
#[derive(Clone)]
pub struct Holder {
    pub account: String,
    pub credential: String,
    pub token: OcraToken,
}

impl Holder {
    /// Enrols one whose token answers transactions.
    pub async fn enrol(bank: &Connection, suite: &str, account: &str) -> Self {
        let token = OcraToken::new(suite);
        let mut body = token.enrolment(account);
        body.as_object_mut().unwrap().remove("use");
        Self { account: account.to_owned(), credential: enrol(bank, &body).await, token }
    }

    /// The code for what has this digest: nothing else of the answer is looked at.
    pub fn code_of(&self, digest: &str, counter: u64, unix_s: u64) -> String {
        let digest: [u8; 32] = HEXLOWER.decode(digest.as_bytes()).unwrap().try_into().unwrap();
        let question = question(&self.token.suite, &digest);
        let inputs = self.token.suite.rsplit_once(':').unwrap().1;
        let has = |letter| inputs.split('-').any(|input| input.starts_with(letter));
        self.token.code(Input {
            question: &question,
            counter: has('C').then_some(counter),
            session: has('S').then_some(&digest),
            step: period_s(inputs).map(|period_s| unix_s / period_s),
        })
    }

    /// The same for a transaction, with counter 0 at [`NOW`].
    pub fn code(&self, view: &Value) -> String {
        self.code_of(view["digest"].as_str().unwrap(), 0, NOW)
    }

    /// A transaction for it to approve.
    pub async fn asked(&self, bank: &Connection) -> Value {
        created(bank, &order(&self.credential)).await
    }

    /// A transaction that it has approved: as `respond` answers.
    pub async fn approved(&self, bank: &Connection, body: &Value) -> Value {
        let view = created(bank, body).await;
        done(&respond(bank, &id(&view), &self.code(&view)).await)
    }
}

fn period_s(inputs: &str) -> Option<u64> {
    let time = inputs.split('-').find_map(|input| input.strip_prefix('T'))?;
    let (count, unit) = time.split_at(time.len() - 1);
    let unit_s = match unit {
        "S" => 1,
        "M" => 60,
        _ => 3_600,
    };
    Some(count.parse::<u64>().unwrap() * unit_s)
}

/// What a token is asked about a transaction with this digest.
pub fn question(suite: &str, digest: &[u8; 32]) -> String {
    let inputs = suite.rsplit_once(':').unwrap().1;
    let format = inputs.split('-').find_map(|input| input.strip_prefix('Q')).unwrap();
    let (kind, length) = format.split_at(1);
    let length = length.parse().unwrap();
    match kind {
        "H" => HEXLOWER.encode(digest)[..length].to_owned(),
        "A" => BASE32_NOPAD.encode(&[&digest[..], &Sha256::digest(digest)].concat())[..length].to_owned(),
        _ => numeric(digest, length),
    }
}

/// 10^(n-1) + (D mod 9 * 10^(n-1)), bit by bit, in decimal digits with the highest first.
fn numeric(digest: &[u8; 32], length: usize) -> String {
    let mut modulus = vec![0; length + 1];
    modulus[1] = 9;
    let mut rest = vec![0_i8; length + 1];
    for bit in digest.iter().flat_map(|byte| (0..8).rev().map(move |place| (byte >> place & 1) as i8)) {
        let mut carry = bit;
        for digit in rest.iter_mut().rev() {
            let value = *digit * 2 + carry;
            (*digit, carry) = (value % 10, value / 10);
        }
        if rest >= modulus {
            let mut borrow = 0;
            for (digit, less) in rest.iter_mut().zip(&modulus).rev() {
                let value = *digit - less - borrow;
                (*digit, borrow) = (value.rem_euclid(10), i8::from(value < 0));
            }
        }
    }
    rest[1] += 1;
    rest[1..].iter().map(ToString::to_string).collect()
}

/// The bytes that every approval is made for.
pub fn signing_input(tenant: &str, view: &Value) -> Vec<u8> {
    let mut bytes = b"\0\0\0\x18hsm-authd/transaction/v1".to_vec();
    let mut add = |text: &str| {
        bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        bytes.extend(text.as_bytes());
    };
    add(tenant);
    for field in [
        "/id",
        "/method",
        "/payer",
        "/payee",
        "/amount",
        "/currency",
        "/order",
        "/platform",
        "/remark",
        "/parent/hash",
        "/expires_at",
        "/nonce",
    ] {
        add(view.pointer(field).map_or("", |value| value.as_str().unwrap()));
    }
    bytes
}

/// The least that a bank sends.
pub fn order(credential: &str) -> Value {
    json!({ "method": "challenge_response", "credential": credential, "payee": "DE89370400440532013000",
        "amount": "1250.00", "currency": "EUR", "order": "order-77" })
}

/// `order` with further fields.
pub fn order_with(credential: &str, fields: Value) -> Value {
    let mut body = order(credential);
    for (name, value) in fields.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

/// A transaction's path, or that of something of it.
pub fn path(id: &str, of: &str) -> String {
    if of.is_empty() { format!("/v1/transactions/{id}") } else { format!("/v1/transactions/{id}/{of}") }
}

pub fn id(view: &Value) -> String {
    view["id"].as_str().unwrap().to_owned()
}

/// Asks for a transaction.
pub async fn create(bank: &Connection, body: &Value) -> Response {
    bank.post("/v1/transactions", body).await.unwrap()
}

/// Makes a transaction, and checks what every new one has to be.
pub async fn created(bank: &Connection, body: &Value) -> Value {
    let answer = create(bank, body).await;
    assert_eq!(answer.status, 201, "{}", text(&answer));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    let view = answer.json().unwrap();
    assert_eq!(answer.header("location"), Some(&*path(&id(&view), "")));
    assert_eq!((&view["state"], &view["attempts_remaining"]), (&json!("pending"), &json!(3)));
    view
}

/// Submits a code.
pub async fn respond(bank: &Connection, id: &str, otp: &str) -> Response {
    bank.post(&path(id, "responses"), &json!({ "otp": otp })).await.unwrap()
}

/// Takes it back.
pub async fn cancel(bank: &Connection, id: &str) -> Response {
    bank.request("POST", &path(id, "cancel"), &[], "").await.unwrap()
}

/// As it is now.
pub async fn transaction(bank: &Connection, id: &str) -> Value {
    done(&bank.get(&path(id, "")).await.unwrap())
}

/// The attestation of an approved one.
pub async fn attestation(bank: &Connection, id: &str) -> String {
    let body = done(&bank.get(&path(id, "attestation")).await.unwrap());
    assert_eq!(body.as_object().unwrap().len(), 1);
    body["attestation"].as_str().unwrap().to_owned()
}

const SUITES: [&str; 36] = [
    "OCRA-1:HOTP-SHA1-6:QH08",
    "OCRA-1:HOTP-SHA256-8:QH40",
    "OCRA-1:HOTP-SHA512-10:QH64",
    "OCRA-1:HOTP-SHA256-7:QA08",
    "OCRA-1:HOTP-SHA1-9:QA40",
    "OCRA-1:HOTP-SHA512-6:QA64",
    "OCRA-1:HOTP-SHA1-8:QN08",
    "OCRA-1:HOTP-SHA256-10:QN40",
    "OCRA-1:HOTP-SHA512-8:QN64",
    "OCRA-1:HOTP-SHA256-6:QN10",
    "OCRA-1:HOTP-SHA1-7:QA17",
    "OCRA-1:HOTP-SHA512-9:QH33",
    "OCRA-1:HOTP-SHA256-8:QN63",
    "OCRA-1:HOTP-SHA256-8:QA52",
    "OCRA-1:HOTP-SHA1-6:C-QH08",
    "OCRA-1:HOTP-SHA256-8:C-QN64",
    "OCRA-1:HOTP-SHA512-10:C-QA40",
    "OCRA-1:HOTP-SHA1-8:QA08-PSHA1",
    "OCRA-1:HOTP-SHA256-8:QN08-PSHA256",
    "OCRA-1:HOTP-SHA512-8:QH64-PSHA512",
    "OCRA-1:HOTP-SHA256-8:QH08-S032",
    "OCRA-1:HOTP-SHA1-8:QN08-S064",
    "OCRA-1:HOTP-SHA512-8:QA64-S512",
    "OCRA-1:HOTP-SHA256-8:QH40-T30S",
    "OCRA-1:HOTP-SHA1-8:QN08-T1M",
    "OCRA-1:HOTP-SHA512-8:QA08-T48H",
    "OCRA-1:HOTP-SHA256-6:C-QA64-T59M",
    "OCRA-1:HOTP-SHA256-9:C-QH40-PSHA512",
    "OCRA-1:HOTP-SHA512-7:C-QN08-S032",
    "OCRA-1:HOTP-SHA1-10:QN40-PSHA256-T1M",
    "OCRA-1:HOTP-SHA256-8:QA40-S064-T30S",
    "OCRA-1:HOTP-SHA256-8:QH08-PSHA1-S512",
    "OCRA-1:HOTP-SHA1-6:C-QN08-PSHA1-T1M",
    "OCRA-1:HOTP-SHA1-6:QN08-PSHA1-S064-T1M",
    "OCRA-1:HOTP-SHA1-6:C-QN08-PSHA1-S032-T1M",
    "OCRA-1:HOTP-SHA512-10:C-QA64-PSHA512-S512-T59M",
];

#[tokio::test]
async fn a_token_of_every_suite_approves_what_it_was_asked_and_nothing_else() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for (number, suite) in SUITES.into_iter().enumerate() {
        let holder = Holder::enrol(&bank, suite, &format!("acct-{number}")).await;
        let (first, second) = (holder.asked(&bank).await, holder.asked(&bank).await);
        assert_ne!(first["nonce"], second["nonce"], "though they say the same");
        for view in [&first, &second] {
            let digest = HEXLOWER.decode(view["digest"].as_str().unwrap().as_bytes()).unwrap();
            let question = question(suite, &digest.try_into().unwrap());
            assert_eq!(view["challenge"], json!({ "suite": suite, "question": question }));
        }
        let code = holder.code(&first);
        assert_eq!(failed(&respond(&bank, &id(&second), &code).await), 2, "{suite}: of another one");
        let answer = respond(&bank, &id(&first), &code).await;
        assert_eq!(answer.status, 200, "{suite}: {}", text(&answer));
        let mut approved = first.clone();
        approved["state"] = json!("approved");
        approved["ended_at"] = json!("2027-01-15T08:00:00Z");
        assert_eq!(transaction(&bank, &id(&first)).await, approved);
        approved["attestation"] = json!(attestation(&bank, &id(&first)).await);
        assert_eq!(done(&answer), approved, "{suite}");
        // What was accepted moves a counter on.
        let counter = u64::from(suite.contains(":C-"));
        let code = holder.code_of(second["digest"].as_str().unwrap(), counter, NOW);
        assert_eq!(done(&respond(&bank, &id(&second), &code).await)["state"], "approved", "{suite}");
        assert_eq!(credential(&bank, &holder.credential).await["failures"], 0);
    }
}

#[tokio::test]
async fn the_answer_is_what_the_contract_says() {
    let daemon = Daemon::start_at(NOW);
    for (client, tenant) in [("bank-a", "bank-a"), ("bank-a-gateway", "bank-a"), ("bank-b", "bank-b")] {
        let bank = daemon.connect(client).await;
        let holder = Holder::enrol(&bank, PLAIN, &format!("acct-{client} \u{e9}\u{1f3e6}")).await;
        let all = json!({ "payer": holder.account, "payee": "M\u{fc}ller & S\u{f6}hne \"\\/", "amount": "0.001",
            "currency": "BHD", "order": "\u{6771}\u{4eac} \u{5d0}\u{5d1}", "platform": "\u{1f600}",
            "remark": "a  b\u{a0}c", "expires_in": 3_600 });
        for (fields, expires_at) in [
            (json!({}), "2027-01-15T08:05:00Z"),
            (json!({ "payer": holder.account }), "2027-01-15T08:05:00Z"),
            (json!({ "expires_in": 1 }), "2027-01-15T08:00:01Z"),
            (json!({ "amount": "999999999999999999", "currency": "JPY" }), "2027-01-15T08:05:00Z"),
            (json!({ "amount": "0.00" }), "2027-01-15T08:05:00Z"),
            (all, "2027-01-15T09:00:00Z"),
        ] {
            let body = order_with(&holder.credential, fields);
            let view = created(&bank, &body).await;
            // What was sent comes back as it was sent, and with it what the appliance adds.
            let mut expected = body.clone();
            expected.as_object_mut().unwrap().remove("expires_in");
            let nonce = view["nonce"].as_str().unwrap();
            assert_eq!(HEXLOWER.decode(nonce.as_bytes()).unwrap().len(), 32);
            let id = id(&view);
            let random = id.strip_prefix("txn_").unwrap();
            assert!(
                random.len() == 26 && random.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
            );
            expected["id"] = json!(id);
            expected["nonce"] = json!(nonce);
            expected["payer"] = json!(holder.account);
            expected["expires_at"] = json!(expires_at);
            let input = signing_input(tenant, &expected);
            let digest: [u8; 32] = Sha256::digest(&input).into();
            for (name, value) in [
                ("state", json!("pending")),
                ("account", json!(holder.account)),
                ("created_at", json!("2027-01-15T08:00:00Z")),
                ("attempts_remaining", json!(3)),
                ("signing_input", json!(BASE64URL_NOPAD.encode(&input))),
                ("digest", json!(HEXLOWER.encode(&digest))),
                ("challenge", json!({ "suite": PLAIN, "question": HEXLOWER.encode(&digest) })),
            ] {
                expected[name] = value;
            }
            assert_eq!(view, expected);
            assert_eq!(transaction(&bank, &id).await, expected);
        }
    }
}

#[tokio::test]
async fn a_code_of_the_skew_and_of_the_window_is_taken() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let by_time = Holder::enrol(&bank, "OCRA-1:HOTP-SHA256-8:QN08-T1M", "acct-1").await;
    for (offset, taken) in [(-120_i64, false), (-60, true), (0, true), (60, true), (120, false)] {
        let view = by_time.asked(&bank).await;
        let at = NOW.checked_add_signed(offset).unwrap();
        let code = by_time.code_of(view["digest"].as_str().unwrap(), 0, at);
        let answer = respond(&bank, &id(&view), &code).await;
        assert_eq!(answer.status == 200, taken, "{offset}: {}", text(&answer));
    }
    let by_counter = Holder::enrol(&bank, "OCRA-1:HOTP-SHA256-8:C-QH64", "acct-2").await;
    for (counter, taken) in [(10, true), (10, false), (22, false), (21, true), (20, false)] {
        let view = by_counter.asked(&bank).await;
        let code = by_counter.code_of(view["digest"].as_str().unwrap(), counter, NOW);
        let answer = respond(&bank, &id(&view), &code).await;
        assert_eq!(answer.status == 200, taken, "{counter}: {}", text(&answer));
    }
    assert_eq!(credential(&bank, &by_counter.credential).await["counter"], 22);
}

#[tokio::test]
async fn another_tenants_transaction_is_as_one_that_nobody_has() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let stranger = daemon.connect("bank-b").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let own = Holder::enrol(&stranger, PLAIN, "acct-1").await;
    let view = holder.asked(&bank).await;
    let (pending, approved) = (id(&view), holder.approved(&bank, &order(&holder.credential)).await);
    let absent = "txn_00000000000000000000000000";
    let before = transaction(&bank, &pending).await;
    for id in [&pending, &*id(&approved), absent, &pending.to_uppercase(), &pending[..29], "txn_", "x", "%00"]
    {
        refused(&stranger.get(&path(id, "")).await.unwrap(), 404, "not-found");
        refused(&stranger.get(&path(id, "attestation")).await.unwrap(), 404, "not-found");
        refused(&stranger.get(&path(id, "qr")).await.unwrap(), 404, "not-found");
        refused(&cancel(&stranger, id).await, 404, "not-found");
        refused(&respond(&stranger, id, &holder.code(&view)).await, 404, "not-found");
        refused(&respond(&stranger, id, "00000000").await, 404, "not-found");
    }
    assert_eq!(transaction(&bank, &pending).await, before);
    assert_eq!(credential(&bank, &holder.credential).await["failures"], 0);
    assert_eq!(credential(&stranger, &own.credential).await["failures"], 0);
    done(&respond(&bank, &pending, &holder.code(&view)).await);
}
