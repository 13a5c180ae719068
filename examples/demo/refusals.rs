//! What goes wrong with transactions and attestations, and what the appliance says of it.

use data_encoding::BASE64URL_NOPAD;
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::elliptic_curve::Generate;
use serde_json::{Value, json};

use crate::exchange::Exchange;
use crate::narrator::Narrator;
use crate::{Bank, Outcome, words};

pub async fn all(narrator: &mut Narrator, bank: &Bank, exchange: &mut Exchange) -> Outcome {
    wrong_codes(narrator, bank, exchange).await?;
    expired(narrator, bank, exchange).await?;
    forged(narrator, bank, exchange).await
}

fn body(exchange: &Exchange, order: &str) -> Value {
    json!({ "method": "challenge_response", "credential": exchange.ada.id, "payee": "fx", "amount": "10.00",
        "currency": "EUR", "order": order })
}

async fn wrong_codes(narrator: &mut Narrator, bank: &Bank, exchange: &mut Exchange) -> Outcome {
    narrator.heading("Wrong codes: three, and the transaction has failed")?;
    narrator.step("two transactions of Ada's");
    let one = bank.open(narrator, &body(exchange, "fee 1")).await?;
    let two = bank.open(narrator, &body(exchange, "fee 2")).await?;
    let (right_one, right_two) = (exchange.ada.code(&one.terms)?, exchange.ada.code(&two.terms)?);
    narrator.step("the right code, for the other one");
    bank.respond_code(narrator, &one.id, &right_two).await?.is_refused(narrator, 2)?;
    narrator.step("what Ada's token showed for the listing");
    let old = exchange.ada.code(&exchange.listing.terms)?;
    bank.respond_code(narrator, &one.id, &old).await?.is_refused(narrator, 1)?;
    narrator.step("the right one");
    bank.respond_code(narrator, &one.id, &right_one).await?.is_approved(narrator)?;

    let wrong = (0..).map(|n: u32| format!("{n:08}")).filter(|code| *code != right_two);
    narrator.step("three guesses at the second transaction");
    for (left, code) in (0..3).rev().zip(wrong) {
        bank.respond_code(narrator, &two.id, &code).await?.is_refused(narrator, left)?;
    }
    bank.told(narrator, &two, "failed").await?;
    narrator.step("now the right code");
    let answer = bank.respond_code(narrator, &two.id, &right_two).await?;
    answer.is(narrator, 409, "too late: failed is final")
}

async fn expired(narrator: &mut Narrator, bank: &Bank, exchange: &mut Exchange) -> Outcome {
    narrator.heading("A transaction whose time is over")?;
    narrator.step("one that is open for a second at most");
    let mut body = body(exchange, "fee 3");
    body["expires_in"] = json!(1);
    let late = bank.open(narrator, &body).await?;
    let code = exchange.ada.code(&late.terms)?;
    bank.wait_for_expiry(&late).await?;
    narrator.step("the initiator looks again and again; then");
    bank.told(narrator, &late, "expired").await?;
    narrator.step("the right code");
    let answer = bank.respond_code(narrator, &late.id, &code).await?;
    answer.is(narrator, 410, "refused, although it is right")?;
    narrator.check("it is called expired", answer.json["type"] == "urn:hsm-authd:problem:expired")
}

async fn forged(narrator: &mut Narrator, bank: &Bank, exchange: &Exchange) -> Outcome {
    narrator.heading("A forged parent, an altered attestation")?;
    narrator.step("Ada's attestation, with 950.00 in the place of 250.00 and the signature as it was");
    let altered = altered(&exchange.attestation)?;
    let answer = bank.post(narrator, "/v1/attestations/verify", &json!({ "attestation": altered })).await?;
    answer.is(narrator, 403, "the appliance refuses it")?;
    let reason = exchange.refused_offline(&altered)?.unwrap_or_default();
    narrator.check(&format!("so does {reason:?}"), reason.ends_with("its signature is wrong"))?;

    narrator.step("the same, signed anew by somebody, with our key's name on it");
    let forged = resigned(&altered)?;
    let answer = bank.post(narrator, "/v1/attestations/verify", &json!({ "attestation": forged })).await?;
    answer.is(narrator, 403, "the appliance refuses it")?;
    let reason = exchange.refused_offline(&forged)?.unwrap_or_default();
    narrator.check(&format!("so does {reason:?}"), reason.ends_with("its signature is wrong"))?;

    for (what, parent) in [("the altered one", &altered), ("the forged one", &forged)] {
        narrator.step(&format!("{what} as the parent of a transaction"));
        let mut body = body(exchange, "fee 4");
        body["parent"] = json!(parent);
        let answer = bank.post(narrator, "/v1/transactions", &body).await?;
        narrator.check(
            "there is no such transaction",
            answer.status == 422 && answer.json["field"] == "parent" && answer.json.get("id").is_none(),
        )?;
    }
    Ok(())
}

/// Other claims under the same header and signature.
fn altered(attestation: &str) -> Outcome<String> {
    let parts: Vec<&str> = attestation.split('.').collect();
    let &[header, claims, signature] = parts.as_slice() else { return Err("no compact JWS".to_owned()) };
    let claims = BASE64URL_NOPAD.decode(claims.as_bytes()).map_err(words)?;
    let altered = String::from_utf8(claims).map_err(words)?.replace("\"250.00\"", "\"950.00\"");
    Ok([header, &BASE64URL_NOPAD.encode(altered.as_bytes()), signature].join("."))
}

/// The same header and claims, signed by a key of this demonstration's own.
fn resigned(attestation: &str) -> Outcome<String> {
    let (signed, _) = attestation.rsplit_once('.').ok_or("no compact JWS")?;
    let key = SigningKey::try_generate().map_err(words)?;
    let signature: Signature = key.sign(signed.as_bytes());
    Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature.to_bytes())))
}
