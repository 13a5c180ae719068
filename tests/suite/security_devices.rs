//! External security devices (seed D): transactions for them to approve, and what they make of these.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use p256::ecdsa::Signature;
use rustls::SignatureScheme;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::bank::{done, refused};
use crate::client::{Connection, Response};
use crate::daemon::{enrol, text};
use crate::device_pki::{Key, Kind, key};
use crate::signers::pem_of;

/// Base64url without padding.
pub fn base64url(bytes: &[u8]) -> String {
    BASE64URL_NOPAD.encode(bytes)
}

/// A P-256 key of this name.
pub fn es256(name: &str) -> Key {
    key(Kind::P256, name)
}

/// An RSA key of this name, which signs as RS256 does.
pub fn rs256(kind: Kind, name: &str) -> Key {
    key(kind, name).with_scheme(SignatureScheme::RSA_PKCS1_SHA256)
}

/// Enrols a device by its public key.
pub async fn enrol_device(bank: &Connection, device: &Key, account: &str) -> String {
    let pem = pem_of(device.public());
    enrol(bank, &json!({ "type": "signer", "account": account, "public_key_pem": pem })).await
}

/// r and s, 32 bytes each.
pub fn p1363_of(der: &[u8]) -> Vec<u8> {
    Signature::from_der(der).unwrap().to_bytes().to_vec()
}

/// A response with a signature that is there already.
pub fn signed(format: &str, signature: &[u8]) -> Value {
    json!({ "format": format, "signature": base64url(signature) })
}

/// A response of each form that an ES256 device has.
pub fn es256_forms(device: &Key, message: &[u8]) -> [Value; 3] {
    [
        signed("der", &device.sign(message)),
        signed("p1363", &p1363_of(&device.sign(message))),
        json!({ "format": "jws", "signature": es256_jws(device, r#"{"alg":"ES256"}"#, message) }),
    ]
}

/// A compact JWS with this header.
pub fn es256_jws(device: &Key, header: &str, payload: &[u8]) -> String {
    let input = format!("{}.{}", base64url(header.as_bytes()), base64url(payload));
    let signature = p1363_of(&device.sign(input.as_bytes()));
    format!("{input}.{}", base64url(&signature))
}

/// The same of an RS256 device.
pub fn rs256_jws(device: &Key, header: &str, payload: &[u8]) -> String {
    let input = format!("{}.{}", base64url(header.as_bytes()), base64url(payload));
    format!("{input}.{}", base64url(&device.sign(input.as_bytes())))
}

/// What an initiator asks to be approved.
pub fn order(credential: &str) -> Value {
    json!({ "method": "device_signature", "credential": credential, "payee": "Alice's Books", "amount": "1250.00",
        "currency": "EUR", "order": "No. 7, \u{201c}Faust\u{201d}" })
}

/// A transaction as it was made.
pub struct Pending {
    pub view: Value,
}

impl Pending {
    /// Makes the usual one.
    pub async fn of(bank: &Connection, credential: &str) -> Self {
        Self::ordered(bank, &order(credential)).await
    }

    pub async fn ordered(bank: &Connection, order: &Value) -> Self {
        let answer = bank.post("/v1/transactions", order).await.unwrap();
        assert_eq!(answer.status, 201, "{}", text(&answer));
        let view = answer.json().unwrap();
        assert_eq!(view["state"], "pending");
        Self { view }
    }

    fn text(&self, name: &str) -> &str {
        self.view[name].as_str().unwrap()
    }

    /// Its path, or that of something done to it.
    pub fn path(&self, action: &str) -> String {
        format!("/v1/transactions/{}{action}", self.text("id"))
    }

    /// The bytes that its device signs.
    pub fn signing_input(&self) -> Vec<u8> {
        BASE64URL_NOPAD.decode(self.text("signing_input").as_bytes()).unwrap()
    }

    pub fn digest(&self) -> [u8; 32] {
        HEXLOWER.decode(self.text("digest").as_bytes()).unwrap().try_into().unwrap()
    }

    /// As it is now.
    pub async fn now(&self, bank: &Connection) -> Value {
        done(&bank.get(&self.path("")).await.unwrap())
    }

    pub async fn respond(&self, bank: &Connection, response: &Value) -> Response {
        bank.post(&self.path("/responses"), response).await.unwrap()
    }

    /// The response approves it: the answer, the transaction and the attestation say so. Returns the transaction.
    pub async fn approved_by(&self, bank: &Connection, response: &Value) -> Value {
        let mut answer = done(&self.respond(bank, response).await);
        let attestation = answer.as_object_mut().unwrap().remove("attestation").unwrap();
        assert_eq!(answer["state"], "approved");
        assert_eq!(self.now(bank).await, answer);
        let stored = done(&bank.get(&self.path("/attestation")).await.unwrap());
        assert_eq!(stored, json!({ "attestation": attestation }));

        let claims = done(&bank.post("/v1/attestations/verify", &stored).await.unwrap());
        let payload = attestation.as_str().unwrap().split('.').nth(1).unwrap();
        let payload: Value =
            serde_json::from_slice(&BASE64URL_NOPAD.decode(payload.as_bytes()).unwrap()).unwrap();
        assert_eq!(claims, payload);
        for (claim, field) in
            [("jti", "id"), ("method", "method"), ("account", "account"), ("digest", "digest")]
        {
            assert_eq!(claims[claim], self.view[field], "{claim}");
        }
        assert_eq!(claims["iat"].as_u64().unwrap() + 24 * 3_600, claims["exp"].as_u64().unwrap());
        let terms: Map<String, Value> =
            ["payer", "payee", "amount", "currency", "order", "platform", "remark", "expires_at", "nonce"]
                .into_iter()
                .filter_map(|name| Some((name.to_owned(), self.view.get(name)?.clone())))
                .collect();
        assert_eq!(claims["transaction"], Value::Object(terms));
        answer
    }

    /// The response ends it (step 107): the initiator finds it failed, and no response is right any more.
    pub async fn failed_by(&self, bank: &Connection, what: &str, response: &Value, right: &Value) {
        let answer = self.respond(bank, response).await;
        assert_eq!(answer.status, 403, "{what}: {}", text(&answer));
        assert_eq!(refused(&answer, 403, "verification-failed")["attempts_remaining"], 0, "{what}");
        let now = self.now(bank).await;
        assert_eq!((&now["state"], &now["attempts_remaining"]), (&json!("failed"), &json!(0)), "{what}");
        assert!(now["ended_at"].is_string(), "{what}");
        for response in [right, response] {
            refused(&self.respond(bank, response).await, 409, "state-conflict");
        }
        for action in ["/attestation", "/qr"] {
            assert_eq!(bank.get(&self.path(action)).await.unwrap().status, 409, "{what}");
        }
        assert_eq!(self.now(bank).await, now, "{what}");
    }
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}
