//! A WebAuthn authenticator, and the browser before it.

use data_encoding::BASE64URL_NOPAD;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::elliptic_curve::Generate;
use p256::pkcs8::{EncodePublicKey, LineEnding};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::{Outcome, words};

const RP_ID: &str = "bank.example";
pub const ORIGIN: &str = "https://pay.bank.example";
/// User present, user verified (WebAuthn, section 6.1).
const FLAGS: u8 = 0b101;

pub struct Authenticator {
    key: SigningKey,
    sign_count: u32,
}

impl Authenticator {
    pub fn new() -> Outcome<Self> {
        Ok(Self { key: SigningKey::try_generate().map_err(words)?, sign_count: 0 })
    }

    /// What its registration told the bank.
    pub fn registration(&self) -> Outcome<Value> {
        Ok(json!({
            "credential_id": BASE64URL_NOPAD.encode(b"demo credential 1"),
            "public_key_pem": self.key.verifying_key().to_public_key_pem(LineEnding::LF).map_err(words)?,
            "rp_id": RP_ID,
            "origins": [ORIGIN],
        }))
    }

    /// What `navigator.credentials.get()` on a page of `origin` returns for this challenge.
    pub fn assertion(&mut self, challenge: &[u8; 32], origin: &str) -> Value {
        self.sign_count += 1;
        let count = self.sign_count.to_be_bytes();
        let authenticator_data = [Sha256::digest(RP_ID).as_slice(), &[FLAGS], &count].concat();
        let client_data = json!({ "type": "webauthn.get", "challenge": BASE64URL_NOPAD.encode(challenge),
            "origin": origin, "crossOrigin": false })
        .to_string();
        let signed = [authenticator_data.as_slice(), &Sha256::digest(&client_data)].concat();
        let signature: Signature = self.key.sign(&signed);
        json!({
            "format": "webauthn",
            "authenticator_data": BASE64URL_NOPAD.encode(&authenticator_data),
            "client_data_json": BASE64URL_NOPAD.encode(client_data.as_bytes()),
            "signature": BASE64URL_NOPAD.encode(signature.to_der().as_bytes()),
        })
    }
}
