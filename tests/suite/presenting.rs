//! Payers with a device that presents codes (seed C), what merchants send, and how devices are authorized. What is signed
//! is put together here, by the tests' own hand.

use hsm_authd::domain::time::rfc3339;
use serde_json::{Value, json};

use crate::bank::done;
use crate::by_hand::enc;
use crate::client::{Connection, Response};
use crate::daemon::{enrol, text};
use crate::device_pki::Key;
use crate::security_devices::{base64url, es256, sha256, signed};
use crate::signers::pem_of;
use crate::transactions::signing_input;

pub const PRESENTATIONS: &str = "/v1/presentations";

/// A user with a device.
#[derive(Clone)]
pub struct Payer {
    pub tenant: &'static str,
    pub account: String,
    pub id: String,
    pub key: Key,
}

impl Payer {
    /// One whose device is active.
    pub async fn enrol(bank: &Connection, tenant: &'static str, account: &str) -> Self {
        Self::with(bank, tenant, account, es256(account), json!({})).await
    }

    /// One whose device has to be authorized.
    pub async fn unauthorized(bank: &Connection, tenant: &'static str, account: &str) -> Self {
        Self::with(bank, tenant, account, es256(account), json!({ "authorization": "required" })).await
    }

    pub async fn with(
        bank: &Connection,
        tenant: &'static str,
        account: &str,
        key: Key,
        further: Value,
    ) -> Self {
        let mut body =
            json!({ "type": "signer", "account": account, "public_key_pem": pem_of(key.public()) });
        body.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
        Self { tenant, account: account.to_owned(), id: enrol(bank, &body).await, key }
    }

    /// The bytes that ask for a code.
    pub fn request(&self, issued_at: &str) -> Vec<u8> {
        enc(&["hsm-authd/presentation/v1", self.tenant, &self.account, &self.id, issued_at])
    }

    /// A right request.
    pub fn body(&self, unix_s: u64) -> Value {
        let issued_at = rfc3339(unix_s * 1_000);
        // An RSA key is far longer than a point.
        let format = if self.key.public().len() > 200 { "raw" } else { "der" };
        let mut body = signed(format, &self.key.sign(&self.request(&issued_at)));
        (body["account"], body["credential"]) = (json!(self.account), json!(self.id));
        body["issued_at"] = json!(issued_at);
        body
    }

    /// A presentation: its id, its code.
    pub async fn present(&self, bank: &Connection, unix_s: u64) -> Presented {
        let answer = bank.post(PRESENTATIONS, &self.body(unix_s)).await.unwrap();
        assert_eq!(answer.status, 201, "{}", text(&answer));
        Presented::of(&answer.json().unwrap())
    }

    /// A right decision in DER.
    pub fn decides(&self, decision: &str, transaction: &Value) -> Value {
        decided(decision, signed("der", &self.key.sign(&to_decide(self.tenant, decision, transaction))))
    }
}

/// The bytes that decide, made of what the transaction says.
pub fn to_decide(tenant: &str, decision: &str, transaction: &Value) -> Vec<u8> {
    let input = signing_input(tenant, transaction);
    match decision {
        "decline" => enc(&["hsm-authd/decline/v1", &data_encoding::HEXLOWER.encode(&sha256(&input))]),
        _ => input,
    }
}

pub fn decided(decision: &str, mut proof: Value) -> Value {
    proof["decision"] = json!(decision);
    proof
}

/// What a device got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    pub id: String,
    pub code: String,
    pub expires_at: String,
}

impl Presented {
    pub fn of(body: &Value) -> Self {
        let text = |name: &str| body[name].as_str().unwrap().to_owned();
        assert_eq!(body.as_object().unwrap().len(), 3, "{body}");
        let code = text("code");
        assert!(
            code.len() == 26 && code.bytes().all(|b| b.is_ascii_uppercase() || (b'2'..=b'7').contains(&b))
        );
        Self { id: text("id"), code, expires_at: text("expires_at") }
    }

    pub fn path(&self, action: &str) -> String {
        format!("{PRESENTATIONS}/{}{action}", self.id)
    }

    /// As the payer's side sees it.
    pub async fn now(&self, bank: &Connection) -> Value {
        done(&bank.get(&self.path("")).await.unwrap())
    }
}

/// What a merchant asks for with a code.
pub fn order(code: &str) -> Value {
    json!({ "method": "presented_code", "presentation": code, "payee": "Corner Shop", "amount": "9.90",
        "currency": "EUR", "order": "till 3" })
}

pub async fn claim(merchant: &Connection, code: &str) -> Response {
    merchant.post("/v1/transactions", &order(code)).await.unwrap()
}

/// The same, of a code that can be claimed: the transaction.
pub async fn claimed(merchant: &Connection, code: &str) -> Value {
    let answer = claim(merchant, code).await;
    assert_eq!(answer.status, 201, "{}", text(&answer));
    answer.json().unwrap()
}

/// A terminal that codes are sent to.
pub async fn enrol_terminal(bank: &Connection, account: &str, address: &str) -> String {
    enrol(bank, &json!({ "type": "terminal", "account": account, "address": address })).await
}

/// The path of a device's authorization, or of a step of it.
pub fn at(id: &str, step: &str) -> String {
    format!("/v1/credentials/{id}/authorization{step}")
}

pub const ADDRESS: &str = "+4915112345678";

/// A device that is being authorized by SMS, and all that goes with it.
#[derive(Clone)]
pub struct Sms {
    pub payer: Payer,
    pub terminal: String,
    /// As it was begun, with the codes.
    pub begun: Value,
}

impl Sms {
    pub async fn begin(gateway: &Connection, payer: &Payer, terminal: &str) -> Self {
        let body = json!({ "method": "sms", "terminal": terminal });
        let answer = gateway.post(&at(&payer.id, ""), &body).await.unwrap();
        assert_eq!(answer.status, 201, "{}", text(&answer));
        Self { payer: payer.clone(), terminal: terminal.to_owned(), begun: answer.json().unwrap() }
    }

    /// With a terminal and a device of its own.
    pub async fn new(gateway: &Connection, account: &str) -> Self {
        let payer = Payer::unauthorized(gateway, "bank-a", account).await;
        let terminal = enrol_terminal(gateway, account, ADDRESS).await;
        Self::begin(gateway, &payer, &terminal).await
    }

    pub fn code(&self, way: &str) -> String {
        self.begun[format!("{way}_code")].as_str().unwrap().to_owned()
    }

    pub fn uplink_body(&self) -> Value {
        json!({ "code": self.code("uplink"), "from": ADDRESS })
    }

    pub async fn uplink(&self, gateway: &Connection, body: &Value) -> Response {
        gateway.post(&at(&self.payer.id, "/uplink"), body).await.unwrap()
    }

    /// The bytes that the device signs.
    pub fn to_sign(&self) -> Vec<u8> {
        to_authorize(&self.payer, &self.terminal, &self.begun)
    }

    /// What completes it.
    pub fn completion(&self) -> Value {
        let mut body = signed("der", &self.payer.key.sign(&self.to_sign()));
        body["downlink_code"] = json!(self.code("downlink"));
        body
    }

    pub async fn complete(&self, bank: &Connection, body: &Value) -> Response {
        bank.post(&at(&self.payer.id, "/complete"), body).await.unwrap()
    }

    pub async fn view(&self, bank: &Connection) -> Response {
        bank.get(&at(&self.payer.id, "")).await.unwrap()
    }
}

/// The bytes that a device signs to be authorized, made of what was begun.
pub fn to_authorize(payer: &Payer, terminal: &str, begun: &Value) -> Vec<u8> {
    let said = |name: &str| begun[name].as_str().unwrap();
    let Payer { tenant, account, id, .. } = payer;
    enc(&["hsm-authd/authorization/v1", tenant, account, id, terminal, said("nonce"), said("expires_at")])
}

/// Another code of as many digits.
pub fn another(code: &str) -> String {
    format!("{:06}", (code.parse::<u32>().unwrap() + 1) % 1_000_000)
}

/// A compact JWS of RS256 or ES256, as a response.
pub fn jws(token: &str) -> Value {
    json!({ "format": "jws", "signature": token })
}

/// Base64url of what nobody signed.
pub fn garbage() -> Value {
    json!({ "format": "der", "signature": base64url(&[1; 70]) })
}
