//! Devices that sign, and what a bank's backend sends of theirs.

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::elliptic_curve::sec1::ToSec1Point;
use p256::pkcs8::{EncodePublicKey, LineEnding};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::bank::path;
use crate::client::{Connection, Response};
use crate::daemon::enrol;
use crate::submissions::Submission;

pub const PAYLOAD: &[u8] = b"pay 12.50 EUR to Alice";

/// A device with a P-256 key.
pub struct Device(SigningKey);

impl Device {
    /// One of 255.
    pub fn new(number: u8) -> Self {
        Self(SigningKey::from_slice(&[number; 32]).unwrap())
    }

    fn public(&self) -> p256::PublicKey {
        p256::PublicKey::from(*self.0.verifying_key())
    }

    pub fn pem(&self) -> String {
        self.public().to_public_key_pem(LineEnding::LF).unwrap()
    }

    pub fn jwk(&self) -> Value {
        let point = self.public().to_sec1_point(false);
        let [x, y] = [point.x(), point.y()].map(|coordinate| BASE64URL_NOPAD.encode(coordinate.unwrap()));
        json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y })
    }

    /// RFC 7638, by the tests' own hand.
    pub fn thumbprint(&self) -> String {
        // serde_json sorts the members, and these four are the required ones.
        BASE64URL_NOPAD.encode(&Sha256::digest(self.jwk().to_string()))
    }

    pub fn sign(&self, payload: &[u8]) -> Signature {
        self.0.sign(payload)
    }

    /// r and s, 32 bytes each.
    pub fn p1363(&self, payload: &[u8]) -> Vec<u8> {
        self.sign(payload).to_bytes().to_vec()
    }

    /// Enrols it.
    pub async fn enrol(&self, bank: &Connection, account: &str) -> String {
        enrol(bank, &json!({ "type": "signer", "account": account, "public_key_pem": self.pem() })).await
    }

    /// A right signature on its way.
    pub fn submission(&self, id: &str, payload: &[u8]) -> Submission {
        let body = presented(payload, &self.p1363(payload), "p1363");
        Submission { path: path(id, "verify"), body, idempotency_key: None }
    }
}

/// RSA keys, each with right signatures and with wrong ones.
pub fn rsa_keys() -> Vec<Value> {
    let document: Value = serde_json::from_str(include_str!("../vectors/rs256.json")).unwrap();
    assert_eq!(document["payload"].as_str().unwrap().as_bytes(), PAYLOAD);
    let keys = document["keys"].as_array().unwrap().clone();
    assert_eq!(keys.len(), 3);
    keys
}

/// A signature of OpenSSL's over [`PAYLOAD`] by its key `p256`, in DER.
pub fn openssls_der() -> Vec<u8> {
    let document: Value = serde_json::from_str(include_str!("../vectors/signer.json")).unwrap();
    assert_eq!(document["payload"].as_str().unwrap().as_bytes(), PAYLOAD);
    hex(&document["signatures"][0]["hex"])
}

/// A PEM of OpenSSL's: of a key that is taken, or of one that is not.
pub fn openssls_pem(name: &str) -> String {
    let document: Value = serde_json::from_str(include_str!("../vectors/signer.json")).unwrap();
    let mut keys = ["keys", "refused"].into_iter().flat_map(|list| document[list].as_array().unwrap());
    keys.find(|key| key["name"] == name).unwrap()["pem"].as_str().unwrap().to_owned()
}

/// The bytes in a PEM block.
pub fn der_of(pem: &str) -> Vec<u8> {
    let lines: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
    BASE64.decode(lines.as_bytes()).unwrap()
}

/// A PUBLIC KEY block.
pub fn pem_of(der: &[u8]) -> String {
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", BASE64.encode(der))
}

pub fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

/// A body of `verify`.
pub fn presented(payload: &[u8], signature: &[u8], format: &str) -> Value {
    let [payload, signature] = [payload, signature].map(|bytes| BASE64.encode(bytes));
    json!({ "payload_base64": payload, "signature_base64": signature, "format": format })
}

/// Submits a signature.
pub async fn present(
    bank: &Connection,
    id: &str,
    payload: &[u8],
    signature: &[u8],
    format: &str,
) -> Response {
    bank.post(&path(id, "verify"), &presented(payload, signature, format)).await.unwrap()
}

/// Enrols a key of [`rsa_keys`].
pub async fn enrol_rsa(bank: &Connection, key: &Value) -> String {
    enrol(bank, &json!({ "type": "signer", "account": "acct-1", "jwk": key["jwk"] })).await
}
