//! Seed D: payments that begin on a PC and are signed by an external device, with a relay between. The steps 101 to
//! 107 are those of the seed.

use data_encoding::BASE64URL_NOPAD;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::elliptic_curve::Generate;
use p256::pkcs8::{EncodePublicKey, LineEnding};
use serde_json::{Value, json};

use crate::authenticator::{Authenticator, ORIGIN};
use crate::narrator::Narrator;
use crate::terms::Terms;
use crate::transaction::Transaction;
use crate::{Bank, Outcome, words};

/// A security device with a key of its own, and the credential that the bank enrolled for it.
struct Device {
    id: String,
    key: SigningKey,
}

impl Device {
    async fn enrol(narrator: &mut Narrator, bank: &Bank) -> Outcome<Self> {
        let key = SigningKey::try_generate().map_err(words)?;
        let pem = key.verifying_key().to_public_key_pem(LineEnding::LF).map_err(words)?;
        narrator.step("enrol a security device (ES256) of account-1005");
        let body = json!({ "type": "signer", "account": "account-1005", "public_key_pem": pem });
        let answer = bank.post(narrator, "/v1/credentials", &body).await?;
        answer.is(narrator, 201, "the credential is enrolled")?;
        Ok(Self { id: answer.id()?, key })
    }

    /// It signs whatever it is sent, and its user has confirmed what it shows of that.
    fn sign(&self, terms: &Terms) -> Value {
        let signature: Signature = self.key.sign(&terms.signing_input());
        json!({ "format": "p1363", "signature": BASE64URL_NOPAD.encode(&signature.to_bytes()) })
    }

    fn sign_jws(&self, terms: &Terms) -> Value {
        let part = |bytes: &[u8]| BASE64URL_NOPAD.encode(bytes);
        let signed = format!("{}.{}", part(br#"{"alg":"ES256"}"#), part(&terms.signing_input()));
        let signature: Signature = self.key.sign(signed.as_bytes());
        json!({ "format": "jws", "signature": format!("{signed}.{}", part(&signature.to_bytes())) })
    }
}

async fn begin(narrator: &mut Narrator, bank: &Bank, id: &str, order: &str) -> Outcome<Transaction> {
    let body = json!({ "method": "device_signature", "credential": id, "payee": "Grocer & Sons",
        "amount": "1250.00", "currency": "EUR", "order": order });
    bank.open(narrator, &body).await
}

pub async fn by_device(narrator: &mut Narrator, bank: &Bank) -> Outcome {
    narrator.heading("A payment from a PC, signed by a device of its own (device_signature)")?;
    let device = Device::enrol(narrator, bank).await?;
    narrator.step("101: the PC's payment; the appliance makes the confirmation request of it");
    let payment = begin(narrator, bank, &device.id, "invoice 1").await?;
    narrator.check("one wrong signature ends it", payment.json["attempts_remaining"] == 1)?;
    narrator.step("102, 103: the phone relays the bytes to the device; 104: it returns the signature");
    payment.terms.show(narrator, "the device")?;
    let shown = &payment.json["challenge"]["display"];
    narrator.check(
        "that is the payment: what it shows, it read from what it signs",
        ["payer", "payee", "order", "amount", "currency"]
            .iter()
            .all(|name| shown[name] == payment.terms.get(name)),
    )?;
    let answer = bank.respond(narrator, &payment.id, &device.sign(&payment.terms)).await?;
    answer.is_approved(narrator)?;
    narrator.inside(
        "105: the HSM verified the signature over the bytes that the appliance has kept, which nobody sent back. \
         106: the bank may pay.",
    )?;
    narrator.step("another payment, and a device that signs JWS");
    let payment = begin(narrator, bank, &device.id, "invoice 2").await?;
    bank.respond(narrator, &payment.id, &device.sign_jws(&payment.terms)).await?.is_approved(narrator)?;
    Ok(())
}

pub async fn by_authenticator(narrator: &mut Narrator, bank: &Bank) -> Outcome {
    narrator.heading("The same with a WebAuthn authenticator")?;
    let mut authenticator = Authenticator::new()?;
    narrator.step("enrol it, as its registration on the bank's page told");
    let body =
        json!({ "type": "signer", "account": "account-1006", "webauthn": authenticator.registration()? });
    let answer = bank.post(narrator, "/v1/credentials", &body).await?;
    answer.is(narrator, 201, "the credential is enrolled")?;
    let id = answer.id()?;
    narrator.step("a payment; its digest is the challenge of navigator.credentials.get()");
    let payment = begin(narrator, bank, &id, "invoice 3").await?;
    let assertion = authenticator.assertion(&payment.terms.digest(), ORIGIN);
    let answer = bank.respond(narrator, &payment.id, &assertion).await?;
    answer.is_approved(narrator)?;
    narrator.check("its signature counter is kept", answer.json["authenticator"]["sign_count"] == 1)?;
    narrator.step("a payment whose assertion a page of somebody else's asked for");
    let payment = begin(narrator, bank, &id, "invoice 4").await?;
    let assertion = authenticator.assertion(&payment.terms.digest(), "https://pay.bank-example.net");
    bank.respond(narrator, &payment.id, &assertion).await?.is_refused(narrator, 0)?;
    bank.told(narrator, &payment, "failed").await?;
    Ok(())
}

pub async fn through_a_tampering_relay(narrator: &mut Narrator, bank: &Bank) -> Outcome {
    narrator.heading("A relay that tampers is caught, and the initiator told")?;
    let device = Device::enrol(narrator, bank).await?;
    for (field, text, order) in [("payee", "Mallory", "invoice 5"), ("amount", "9250.00", "invoice 6")] {
        narrator.step(&format!("a payment; the relay changes its {field} on the way to the device"));
        let payment = begin(narrator, bank, &device.id, order).await?;
        let changed = payment.terms.with(field, text);
        changed.show(narrator, "the device")?;
        narrator.check("who reads that, does not confirm it", changed.get(field) == text)?;
        narrator.step("107: its user did not read it, and the device signed");
        bank.respond(narrator, &payment.id, &device.sign(&changed)).await?.is_refused(narrator, 0)?;
        bank.told(narrator, &payment, "failed").await?;
        narrator.step("the device's signature of the true bytes, too late");
        let answer = bank.respond(narrator, &payment.id, &device.sign(&payment.terms)).await?;
        answer.is(narrator, 409, "failed is final: the initiator begins anew")?;
    }
    narrator.step("two payments at once; the relay swaps their signatures");
    let one = begin(narrator, bank, &device.id, "invoice 7").await?;
    let two = begin(narrator, bank, &device.id, "invoice 7").await?;
    narrator.check(
        "though their terms read the same, the bytes do not: id and nonce differ",
        one.terms.digest() != two.terms.digest(),
    )?;
    for (payment, other) in [(&one, &two), (&two, &one)] {
        bank.respond(narrator, &payment.id, &device.sign(&other.terms)).await?.is_refused(narrator, 0)?;
        bank.told(narrator, payment, "failed").await?;
    }
    Ok(())
}
