//! A rolling credential's terminal: what it keeps, and what it makes of that. Written from the method's page, not from
//! the appliance's code.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::bank::{done, path};
use crate::by_hand::mac;
use crate::client::{Connection, Response};
use crate::daemon::enrol;
use crate::ocra_token::mac_of;
use crate::transactions_client::{bound, create};

pub const EVIDENCE: &str = "case 7";
/// A user's identity code; any other is a wrong one.
pub const IDENTITY_CODE: &str = "493817";

/// RFC 8018's PBKDF2 with HMAC-SHA-256, for one block.
pub fn pbkdf2(identity_code: &str, salt: &[u8], rounds: u32) -> Vec<u8> {
    use hmac::{Hmac, KeyInit, Mac};
    let keyed = Hmac::<Sha256>::new_from_slice(identity_code.as_bytes()).unwrap();
    let round =
        |message: &[u8]| -> [u8; 32] { keyed.clone().chain_update(message).finalize().into_bytes().into() };
    let mut last = round(&[salt, &1u32.to_be_bytes()].concat());
    let mut key = last;
    for _ in 1..rounds {
        last = round(&last);
        key.iter_mut().zip(last).for_each(|(byte, other)| *byte ^= other);
    }
    key.to_vec()
}

/// What stands in for [`pbkdf2`], which takes seconds: the appliance cannot tell.
pub fn quick_key(identity_code: &str, salt: &str) -> Vec<u8> {
    Sha256::digest(format!("{identity_code} {salt}")).to_vec()
}

/// T(n), with what is made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code(pub Vec<u8>);

impl Code {
    /// As it came.
    pub fn of(hex: &Value) -> Self {
        let code =
            HEXLOWER.decode(hex.as_str().unwrap_or_else(|| panic!("no code: {hex}")).as_bytes()).unwrap();
        assert_eq!(code.len(), 16);
        Self(code)
    }

    /// The one of a secret that a test knows.
    pub fn derived(secret: &[u8], credential: &str, epoch: u64) -> Self {
        let mac = mac(secret, &["hsm-authd/rolling/code/v1", credential, &epoch.to_string()]);
        Self(mac[..16].to_vec())
    }

    pub fn lookup(&self) -> Vec<u8> {
        mac(&self.0, &["hsm-authd/rolling/lookup/v1"])[..12].to_vec()
    }

    pub fn proof(&self, identity_key: &[u8], digest: &[u8; 32]) -> Vec<u8> {
        let inner = mac(&self.0, &["hsm-authd/rolling/proof/v1", &HEXLOWER.encode(digest)]);
        mac_of("SHA256", identity_key, &inner)[..16].to_vec()
    }

    pub fn rotation_proof(&self) -> Vec<u8> {
        mac(&self.0, &["hsm-authd/rolling/rotate/v1"])
    }

    /// `{password}` of a transaction's digest.
    pub fn password(&self, identity_key: &[u8], digest: &[u8; 32]) -> Value {
        let bytes = [self.lookup(), self.proof(identity_key, digest)].concat();
        json!({ "password": BASE64URL_NOPAD.encode(&bytes) })
    }

    /// `{epoch, proof_hex}`.
    pub fn rotation(&self, epoch: u64) -> Value {
        json!({ "epoch": epoch, "proof_hex": HEXLOWER.encode(&self.rotation_proof()) })
    }
}

/// A terminal that is bound.
#[derive(Clone)]
pub struct Terminal {
    pub tenant: &'static str,
    pub account: String,
    pub id: String,
    pub identity_key: Vec<u8>,
    /// The epoch whose code it has.
    pub epoch: u64,
    pub code: Code,
}

/// `{identity_key_hex, evidence}`.
pub fn activation(identity_key: &[u8]) -> Value {
    json!({ "identity_key_hex": HEXLOWER.encode(identity_key), "evidence": EVIDENCE })
}

/// Enrols a rolling credential: its id and its salt.
pub async fn enrol_pending(bank: &Connection, account: &str) -> (String, String) {
    let id = enrol(bank, &json!({ "type": "rolling", "account": account })).await;
    let view = done(&bank.get(&path(&id, "")).await.unwrap());
    assert_eq!(view["state"], "pending");
    (id, view["salt"].as_str().unwrap().to_owned())
}

pub async fn activate(bank: &Connection, id: &str, identity_key: &[u8]) -> Response {
    bank.post(&path(id, "activate"), &activation(identity_key)).await.unwrap()
}

pub async fn rebind(bank: &Connection, id: &str) -> Response {
    bank.request("POST", &path(id, "rebind"), &[], "").await.unwrap()
}

impl Terminal {
    pub async fn enrol(bank: &Connection, tenant: &'static str, account: &str) -> Self {
        let (id, salt) = enrol_pending(bank, account).await;
        Self::bind(bank, tenant, account, &id, quick_key(IDENTITY_CODE, &salt)).await
    }

    /// Binds a credential that waits for it.
    pub async fn bind(
        bank: &Connection,
        tenant: &'static str,
        account: &str,
        id: &str,
        identity_key: Vec<u8>,
    ) -> Self {
        let bound = done(&activate(bank, id, &identity_key).await);
        assert_eq!(
            (&bound["state"], &bound["epoch"], &bound["evidence"]),
            (&json!("active"), &json!(1), &json!(EVIDENCE))
        );
        let (account, code) = (account.to_owned(), Code::of(&bound["temporary_code"]));
        Self { tenant, account, id: id.to_owned(), identity_key, epoch: 1, code }
    }

    /// What it makes for a transaction, from what that says.
    pub fn password(&self, transaction: &Value) -> Value {
        self.code.password(&self.identity_key, &bound(self.tenant, transaction).digest)
    }

    /// The same by a user who does not know the identity code.
    pub fn guess(&self, transaction: &Value) -> Value {
        self.code.password(&[7; 32], &bound(self.tenant, transaction).digest)
    }

    /// Keeps what an approval or a rotation brought: `{epoch, temporary_code}`.
    pub fn keep(&mut self, next: &Value) {
        assert_eq!(next["epoch"], self.epoch + 1, "{next}");
        self.epoch += 1;
        self.code = Code::of(&next["temporary_code"]);
    }

    /// Pays, and keeps the next code: the answer.
    pub async fn pay(&mut self, bank: &Connection) -> Value {
        let transaction = order(bank).await;
        let answer =
            crate::transactions_client::respond(bank, &transaction, &self.password(&transaction)).await;
        let approved = done(&answer);
        assert_eq!((&approved["state"], &approved["account"]), (&json!("approved"), &json!(self.account)));
        assert_eq!(approved["credential"], json!(self.id));
        self.keep(&approved["next"]);
        approved
    }

    /// `POST .../rotation` with its own epoch.
    pub async fn rotate(&self, bank: &Connection) -> Response {
        rotate(bank, &self.id, &self.code.rotation(self.epoch)).await
    }
}

pub async fn rotate(bank: &Connection, id: &str, body: &Value) -> Response {
    bank.post(&path(id, "rotation"), body).await.unwrap()
}

/// What is to be approved by whoever has a password for it.
pub fn order_body() -> Value {
    json!({ "method": "rolling_password", "payee": "Alice", "amount": "12.50", "currency": "EUR", "order": "order 7" })
}

/// A transaction for whoever has a password for it.
pub async fn order(bank: &Connection) -> Value {
    let transaction = create(bank, &order_body()).await;
    for absent in ["account", "credential", "payer"] {
        assert_eq!(transaction.get(absent), None, "{transaction}");
    }
    assert_eq!((&transaction["challenge"], &transaction["attempts_remaining"]), (&json!({}), &json!(3)));
    transaction
}
