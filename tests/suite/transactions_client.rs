//! What approves transactions, in its user's hand, and what a bank's backend sends for it.
//!
//! What is signed and answered is computed here from what the transaction *says*, field by field, and not taken from
//! the appliance's `signing_input`, `digest` or `question`.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::client::{Connection, Response};
use crate::daemon::{Daemon, enrol, text};
use crate::device_pki::{Key, Kind, key};
use crate::ocra::STEP;
use crate::ocra_token::{Input, OcraToken};
use crate::signers::{Device, pem_of};
use crate::transactions::{question, signing_input};

/// Suites whose question holds the whole digest.
pub const FULL_QUESTION: &str = "OCRA-1:HOTP-SHA256-10:QH64";
/// The same by its session.
pub const FULL_SESSION: &str = "OCRA-1:HOTP-SHA512-10:QN08-S064";

const RP_ID: &str = "bank.example";
const ORIGIN: &str = "https://pay.bank.example";

/// A credential's other half.
#[derive(Clone)]
pub enum Hand {
    Token(OcraToken),
    /// A [`Device`] of this number.
    Es256(u8),
    Rs256(Key),
    Authenticator(u8),
}

/// A credential and its other half.
#[derive(Clone)]
pub struct Approver {
    pub tenant: &'static str,
    pub account: String,
    pub id: String,
    pub method: &'static str,
    pub hand: Hand,
}

/// What a response is made for.
#[derive(Clone, PartialEq, Eq)]
pub struct Bound {
    pub input: Vec<u8>,
    pub digest: [u8; 32],
}

pub fn token(suite: &str) -> Hand {
    Hand::Token(OcraToken::new(suite))
}

pub fn rs256() -> Hand {
    Hand::Rs256(key(Kind::Rsa2048, "a device"))
}

/// What a transaction's fields make, `tenant` with them: the signing input and its digest.
pub fn bound(tenant: &str, transaction: &Value) -> Bound {
    let input = signing_input(tenant, transaction);
    Bound { digest: Sha256::digest(&input).into(), input }
}

impl Approver {
    pub async fn enrol(
        bank: &Connection,
        tenant: &'static str,
        account: &str,
        method: &'static str,
        hand: Hand,
    ) -> Self {
        let signer =
            |member: &str, value: Value| json!({ "type": "signer", "account": account, member: value });
        let body = match &hand {
            Hand::Token(token) => {
                let mut body = token.enrolment(account);
                body["use"] = json!("transaction");
                body
            }
            Hand::Es256(number) => signer("public_key_pem", Device::new(*number).pem().into()),
            Hand::Rs256(key) => signer("public_key_pem", pem_of(key.public()).into()),
            Hand::Authenticator(number) => {
                let id = BASE64URL_NOPAD.encode(&[*number; 16]);
                let pem = Device::new(*number).pem();
                let members = json!({ "credential_id": id, "public_key_pem": pem, "rp_id": RP_ID, "origins": [ORIGIN] });
                signer("webauthn", members)
            }
        };
        let id = enrol(bank, &body).await;
        Self { tenant, account: account.to_owned(), id, method, hand }
    }

    /// For a failed test's words.
    pub fn name(&self) -> &str {
        match &self.hand {
            Hand::Token(token) => &token.suite,
            Hand::Es256(_) => "ES256",
            Hand::Rs256(_) => "RS256",
            Hand::Authenticator(_) => "WebAuthn",
        }
    }

    /// The forms that its responses have.
    pub fn forms(&self) -> &'static [&'static str] {
        match self.hand {
            Hand::Token(_) => &["otp"],
            Hand::Es256(_) => &["der", "p1363", "jws"],
            Hand::Rs256(_) => &["raw", "jws"],
            Hand::Authenticator(_) => &["webauthn"],
        }
    }

    /// A request for its approval.
    pub fn request(&self) -> Value {
        json!({ "method": self.method, "credential": self.id, "payee": "Alice", "amount": "12.50",
            "currency": "EUR", "order": "order 7" })
    }

    /// A transaction that it can approve.
    pub async fn transaction(&self, bank: &Connection) -> Value {
        create(bank, &self.request()).await
    }

    /// Its response in its first form.
    pub fn response(&self, transaction: &Value, factor: u64) -> Value {
        self.made_for(&bound(self.tenant, transaction), self.forms()[0], factor)
    }

    /// What it makes. `factor` is the counter of a token or an authenticator; a token's time is [`STEP`].
    pub fn made_for(&self, bound: &Bound, form: &str, factor: u64) -> Value {
        self.made_at(STEP, bound, form, factor)
    }

    /// The same at another time of a token.
    pub fn made_at(&self, step: u64, Bound { input, digest }: &Bound, form: &str, factor: u64) -> Value {
        let signed =
            |signature: &[u8]| json!({ "format": form, "signature": BASE64URL_NOPAD.encode(signature) });
        match (&self.hand, form) {
            (Hand::Token(token), _) => {
                let question = question(&token.suite, digest);
                let has = |letter| {
                    token.suite.rsplit(':').next().unwrap().split('-').any(|p| p.starts_with(letter))
                };
                let code = token.code(Input {
                    question: &question,
                    counter: has("C").then_some(factor),
                    session: has("S").then_some(digest),
                    step: has("T").then_some(step),
                });
                json!({ "otp": code })
            }
            (Hand::Es256(number), "jws") => {
                jws(form, "ES256", input, |bytes| Device::new(*number).p1363(bytes))
            }
            (Hand::Es256(number), "p1363") => signed(&Device::new(*number).p1363(input)),
            (Hand::Es256(number), _) => signed(Device::new(*number).sign(input).to_der().as_bytes()),
            (Hand::Rs256(key), "jws") => jws(form, "RS256", input, |bytes| key.sign(bytes)),
            (Hand::Rs256(key), _) => signed(&key.sign(input)),
            (Hand::Authenticator(number), _) => assertion(*number, digest, factor as u32),
        }
    }
}

fn jws(form: &str, alg: &str, payload: &[u8], sign: impl Fn(&[u8]) -> Vec<u8>) -> Value {
    let header = json!({ "alg": alg }).to_string();
    let input = format!("{}.{}", BASE64URL_NOPAD.encode(header.as_bytes()), BASE64URL_NOPAD.encode(payload));
    let signature = BASE64URL_NOPAD.encode(&sign(input.as_bytes()));
    json!({ "format": form, "signature": format!("{input}.{signature}") })
}

fn assertion(number: u8, challenge: &[u8; 32], sign_count: u32) -> Value {
    let client_data = json!({ "type": "webauthn.get", "challenge": BASE64URL_NOPAD.encode(challenge),
        "origin": ORIGIN })
    .to_string();
    let data = [&Sha256::digest(RP_ID)[..], &[5], &sign_count.to_be_bytes()].concat();
    let signed = [&data[..], &Sha256::digest(&client_data)].concat();
    let [data, client_data, signature] =
        [&data[..], client_data.as_bytes(), Device::new(number).sign(&signed).to_der().as_bytes()]
            .map(|bytes| BASE64URL_NOPAD.encode(bytes));
    json!({ "format": "webauthn", "authenticator_data": data, "client_data_json": client_data,
        "signature": signature })
}

/// Makes a transaction.
pub async fn create(bank: &Connection, request: &Value) -> Value {
    let answer = bank.post("/v1/transactions", request).await.unwrap();
    assert_eq!(answer.status, 201, "{}", text(&answer));
    answer.json().unwrap()
}

/// Its path, or that of something done to it.
pub fn at(transaction: &Value, action: &str) -> String {
    let id = transaction["id"].as_str().unwrap();
    if action.is_empty() {
        format!("/v1/transactions/{id}")
    } else {
        format!("/v1/transactions/{id}/{action}")
    }
}

/// Submits a response.
pub async fn respond(bank: &Connection, transaction: &Value, response: &Value) -> Response {
    bank.post(&at(transaction, "responses"), response).await.unwrap()
}

/// The same, of a response that approves: the attestation.
pub async fn approve(bank: &Connection, transaction: &Value, response: &Value) -> String {
    let answer = respond(bank, transaction, response).await;
    assert_eq!(answer.status, 200, "{}", text(&answer));
    let body = answer.json().unwrap();
    assert_eq!((&body["state"], &body["id"]), (&json!("approved"), &transaction["id"]));
    body["attestation"].as_str().unwrap().to_owned()
}

/// As it is now.
pub async fn view(bank: &Connection, transaction: &Value) -> Value {
    let answer = bank.get(&at(transaction, "")).await.unwrap();
    assert_eq!(answer.status, 200, "{}", text(&answer));
    answer.json().unwrap()
}

/// Its state and how many attempts are left.
pub async fn standing(bank: &Connection, transaction: &Value) -> (String, u64) {
    let view = view(bank, transaction).await;
    (view["state"].as_str().unwrap().to_owned(), view["attempts_remaining"].as_u64().unwrap())
}

/// How many attestations are kept of these transactions, in the order of their ids.
pub fn kept_attestations(daemon: &Daemon, transactions: &[&Value]) -> Vec<Vec<String>> {
    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let mut statement = database.prepare("SELECT jws FROM attestation").unwrap();
    let all: Vec<String> = statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    let jti = |jws: &String| {
        let payload = BASE64URL_NOPAD.decode(jws.split('.').nth(1).unwrap().as_bytes()).unwrap();
        serde_json::from_slice::<Value>(&payload).unwrap()["jti"].clone()
    };
    let of = |transaction: &&Value| {
        all.iter().filter(|jws| jti(jws) == transaction["id"]).cloned().collect::<Vec<String>>()
    };
    transactions.iter().map(of).collect()
}
