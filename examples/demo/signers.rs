//! Devices that sign: two with a P-256 key of this demonstration's own, one with an RSA key.

use data_encoding::{BASE64, BASE64URL_NOPAD};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::elliptic_curve::Generate;
use p256::pkcs8::{EncodePublicKey, LineEnding};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::narrator::Narrator;
use crate::{Answer, Bank, Outcome, words};

/// Made by `openssl genpkey -algorithm RSA`, `pkey -pubout` and `dgst -sha256 -sign`; the private key is gone.
const RSA_KEY: &str = include_str!("fixture/rs256.pem");
const RSA_PAYLOAD: &[u8] = include_bytes!("fixture/payment.txt");
const RSA_SIGNATURE: &[u8] = include_bytes!("fixture/payment.rs256");

const PAYLOAD: &[u8] = b"login of account-1004 at 2026-11-21T23:30:00Z, number 1";
const TAMPERED: &[u8] = b"login of account-1009 at 2026-11-21T23:30:00Z, number 1";

async fn enrol(narrator: &mut Narrator, bank: &Bank, field: &str, key: Value) -> Outcome<Answer> {
    let mut body = json!({ "type": "signer", "account": "account-1004" });
    body[field] = key;
    let answer = bank.post(narrator, "/v1/credentials", &body).await?;
    answer.is(narrator, 201, "the credential is enrolled")?;
    Ok(answer)
}

async fn verify(
    narrator: &mut Narrator,
    bank: &Bank,
    id: &str,
    payload: &[u8],
    (format, signature): (&str, &[u8]),
) -> Outcome<Answer> {
    let evidence = json!({
        "payload_base64": BASE64.encode(payload),
        "signature_base64": BASE64.encode(signature),
        "format": format,
    });
    bank.present(narrator, id, &evidence).await
}

/// ES256, by PEM and by JWK.
pub async fn es256(narrator: &mut Narrator, bank: &Bank) -> Outcome {
    narrator.heading("Phones that sign (ES256): the bank knows their public keys")?;
    let key = SigningKey::try_generate().map_err(words)?;
    let pem = key.verifying_key().to_public_key_pem(LineEnding::LF).map_err(words)?;
    narrator.step("enrol a phone by its public key in PEM");
    let answer = enrol(narrator, bank, "public_key_pem", pem.into()).await?;
    narrator.check("its algorithm is the key's, ES256", answer.json["algorithm"] == "ES256")?;
    let id = answer.id()?;
    let signature: Signature = key.sign(PAYLOAD);
    let (der, p1363) = (signature.to_der(), signature.to_bytes());
    narrator.step("the phone has signed a login; the signature in DER");
    verify(narrator, bank, &id, PAYLOAD, ("der", der.as_bytes())).await?.is_accepted(narrator)?;
    narrator.inside(
        "The front parsed the signature and hashed the payload; a custodian made an object of the sealed \
         key, and the HSM verified (C_Verify).",
    )?;
    narrator.step("the same signature as two numbers of 32 bytes (P1363)");
    verify(narrator, bank, &id, PAYLOAD, ("p1363", &p1363)).await?.is_accepted(narrator)?;
    narrator
        .inside("A signature is not used up, as a code is: what is signed has to say when or which one.")?;
    narrator.step("the same signature, and a payload with another account in it");
    verify(narrator, bank, &id, TAMPERED, ("der", der.as_bytes())).await?.is_refused(narrator, 5)?;
    narrator.inside("No attempt is charged: nobody guesses a signature.")?;

    let other = SigningKey::try_generate().map_err(words)?;
    let point = other.verifying_key().to_sec1_point(false);
    let coordinate = |bytes: Option<&_>| bytes.map(|bytes: &p256::FieldBytes| BASE64URL_NOPAD.encode(bytes));
    let (x, y) = coordinate(point.x()).zip(coordinate(point.y())).ok_or("the key has no coordinates")?;
    narrator.step("enrol another phone by its JWK");
    let jwk = json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y });
    let answer = enrol(narrator, bank, "jwk", jwk).await?;
    let members = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    let thumbprint = BASE64URL_NOPAD.encode(&Sha256::digest(members));
    narrator.check(
        "the answer has the key's RFC 7638 thumbprint, to compare",
        answer.json["thumbprint"] == thumbprint,
    )?;
    let id = answer.id()?;
    let signature: Signature = other.sign(PAYLOAD);
    narrator.step("its signature");
    verify(narrator, bank, &id, PAYLOAD, ("p1363", &signature.to_bytes())).await?.is_accepted(narrator)?;
    narrator.step("the first phone's signature, as if it were this one's");
    verify(narrator, bank, &id, PAYLOAD, ("p1363", &p1363)).await?.is_refused(narrator, 5)
}

/// RS256.
pub async fn rs256(narrator: &mut Narrator, bank: &Bank) -> Outcome {
    narrator.heading("A smart card that signs (RS256)")?;
    narrator.step("enrol it by its public key in PEM");
    let answer = enrol(narrator, bank, "public_key_pem", RSA_KEY.into()).await?;
    narrator.check("its algorithm is the key's, RS256", answer.json["algorithm"] == "RS256")?;
    let id = answer.id()?;
    narrator.step("the card has signed a payment; the signature is RSA's octets (raw)");
    verify(narrator, bank, &id, RSA_PAYLOAD, ("raw", RSA_SIGNATURE)).await?.is_accepted(narrator)?;
    narrator.step("the same signature, and another amount");
    let tampered = String::from_utf8_lossy(RSA_PAYLOAD).replace("1250.00", "9250.00");
    verify(narrator, bank, &id, tampered.as_bytes(), ("raw", RSA_SIGNATURE)).await?.is_refused(narrator, 5)
}
