//! Transactions in the JSON that a bank's backend sends, with what the transactions' own tests make of them.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde_json::{Value, json};

use crate::bank::done;
use crate::client::{Connection, Response};
use crate::daemon::text;
use crate::ocra_token::OcraToken;
use crate::signers::Device;
use crate::transactions_client::{Approver, Hand, bound};

pub const TRANSACTIONS: &str = "/v1/transactions";
/// A question of the digest's first 160 bits.
pub const SUITE: &str = "OCRA-1:HOTP-SHA256-8:QH40";

/// What is to be approved by this credential.
pub fn order(method: &str, credential: &str) -> Value {
    json!({ "method": method, "credential": credential, "payee": "DE89370400440532013000", "amount": "1250.00",
        "currency": "EUR", "order": "order-77" })
}

/// A transaction's path, or that of something about it.
pub fn path(id: &str, what: &str) -> String {
    if what.is_empty() { format!("{TRANSACTIONS}/{id}") } else { format!("{TRANSACTIONS}/{id}/{what}") }
}

/// Makes it.
pub async fn create(bank: &Connection, body: &Value) -> Value {
    let answer = bank.post(TRANSACTIONS, body).await.unwrap();
    assert_eq!(answer.status, 201, "{}", text(&answer));
    let view = answer.json().unwrap();
    assert_eq!(answer.header("location"), Some(&*path(id(&view), "")));
    view
}

pub fn id(view: &Value) -> &str {
    view["id"].as_str().unwrap()
}

/// All transactions of the tenant, as they are now.
pub async fn transactions(bank: &Connection) -> Value {
    let page = done(&bank.get("/v1/transactions?limit=100").await.unwrap());
    assert_eq!(page["next"], Value::Null, "more than one page");
    page["items"].clone()
}

/// What this half of a credential makes for a transaction, which has to say itself what it is made for.
fn made(hand: Hand, view: &Value, form: &str, factor: u64) -> Value {
    let bound = bound("bank-a", view);
    assert_eq!(view["signing_input"], BASE64URL_NOPAD.encode(&bound.input), "{view}");
    assert_eq!(view["digest"], HEXLOWER.encode(&bound.digest), "{view}");
    let (account, id, method) = (String::new(), String::new(), "");
    Approver { tenant: "bank-a", account, id, method, hand }.made_for(&bound, form, factor)
}

/// A token of [`SUITE`], and the body that enrols it for transactions.
pub fn token(account: &str) -> (OcraToken, Value) {
    let token = OcraToken::new(SUITE);
    let mut body = token.enrolment(account);
    body.as_object_mut().unwrap().remove("use");
    (token, body)
}

/// What a token of [`SUITE`] shows.
pub fn answered(token: &OcraToken, view: &Value) -> Value {
    let asked = view["digest"].as_str().unwrap()[..40].to_owned();
    assert_eq!(view["challenge"], json!({ "suite": SUITE, "question": asked }));
    made(Hand::Token(token.clone()), view, "otp", 0)
}

/// What the device of this number signs.
pub fn signed(device: u8, view: &Value) -> Value {
    made(Hand::Es256(device), view, "p1363", 0)
}

/// The same as a compact JWS.
pub fn signed_jws(device: u8, view: &Value) -> Value {
    made(Hand::Es256(device), view, "jws", 0)
}

/// What it makes as a WebAuthn authenticator.
pub fn asserted(device: u8, view: &Value, sign_count: u32) -> Value {
    made(Hand::Authenticator(device), view, "webauthn", sign_count.into())
}

/// The body that enrols a device as a WebAuthn authenticator.
pub fn authenticator(device: u8, account: &str) -> Value {
    json!({ "type": "signer", "account": account, "webauthn": { "credential_id": BASE64URL_NOPAD.encode(&[7; 16]),
        "public_key_pem": Device::new(device).pem(), "rp_id": "bank.example", "origins": ["https://pay.bank.example"] } })
}

/// Presents a response.
pub async fn respond(bank: &Connection, id: &str, body: &Value) -> Response {
    bank.post(&path(id, "responses"), body).await.unwrap()
}

/// A transaction that a device approves: it, and its attestation.
pub async fn approved(bank: &Connection, device: u8, credential: &str) -> (Value, String) {
    let view = create(bank, &order("device_signature", credential)).await;
    let approved = done(&respond(bank, id(&view), &signed(device, &view)).await);
    assert_eq!(approved["state"], "approved");
    let attestation = approved["attestation"].as_str().unwrap().to_owned();
    (view, attestation)
}
