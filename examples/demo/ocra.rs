//! OCRA tokens: they answer the bank's question. They are simulated with an RFC 6287 of this file's own.

use data_encoding::{HEXLOWER, HEXUPPER};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha1::Digest;

use crate::appliance::Appliance;
use crate::narrator::Narrator;
use crate::{Answer, Bank, Outcome, now_s, truncated, words};

/// The seeds and the PIN of RFC 6287's test vectors.
const SEED_32: &[u8] = b"12345678901234567890123456789012";
const SEED_64: &[u8] = b"1234567890123456789012345678901234567890123456789012345678901234";
const PIN: &str = "1234";
const WITH_PIN: &str = "OCRA-1:HOTP-SHA256-8:C-QN08-PSHA1";
const WITH_TIME: &str = "OCRA-1:HOTP-SHA512-8:QN08-T1M";

/// A token as the user holds it, and the credential that the bank enrolled for it.
pub struct OcraToken {
    id: String,
    suite: &'static str,
    seed: &'static [u8],
    /// The question and the answer that was accepted last.
    last: (String, String),
}

/// RFC 6287, section 5, for 8 digits: `before` and `after` are the inputs around the question, which is in
/// hexadecimal, and gets zeros at its end.
pub fn code(suite: &str, seed: &[u8], before: &[u8], question: &str, after: &[u8]) -> Outcome<String> {
    let question = HEXUPPER.decode(format!("{question:0<256}").to_uppercase().as_bytes()).map_err(words)?;
    let input = [suite.as_bytes(), &[0], before, &question, after].concat();
    let mac = if suite.contains("HOTP-SHA512") {
        let mac = Hmac::<sha2::Sha512>::new_from_slice(seed).map_err(words)?;
        mac.chain_update(&input).finalize().into_bytes().to_vec()
    } else {
        let mac = Hmac::<sha2::Sha256>::new_from_slice(seed).map_err(words)?;
        mac.chain_update(&input).finalize().into_bytes().to_vec()
    };
    Ok(truncated(&mac, 8))
}

impl OcraToken {
    /// A numeric question is an integer.
    fn answer(&self, before: &[u8], question: u32, after: &[u8]) -> Outcome<String> {
        code(self.suite, self.seed, before, &format!("{question:X}"), after)
    }

    /// With counter and PIN.
    fn answer_with_pin(&self, counter: u64, question: u32, pin: &str) -> Outcome<String> {
        self.answer(&counter.to_be_bytes(), question, &sha1::Sha1::digest(pin))
    }

    async fn verify(
        &self,
        narrator: &mut Narrator,
        bank: &Bank,
        (question, answer): &(String, String),
    ) -> Outcome<Answer> {
        let evidence = json!({ "challenge": question, "otp": answer });
        bank.present(narrator, &self.id, &evidence).await
    }
}

/// What of these tokens must be nowhere on the disk: seeds, and the hash of the PIN.
pub fn secrets() -> [Vec<u8>; 3] {
    [SEED_32.to_vec(), SEED_64.to_vec(), sha1::Sha1::digest(PIN).to_vec()]
}

async fn enrol(
    narrator: &mut Narrator,
    bank: &Bank,
    suite: &'static str,
    seed: &'static [u8],
    more: &[(&str, &str)],
) -> Outcome<(OcraToken, Answer)> {
    let mut body = json!({ "type": "ocra", "account": "account-1003", "suite": suite });
    body["seed_hex"] = HEXLOWER.encode(seed).into();
    for (name, value) in more {
        body[name] = Value::from(*value);
    }
    let answer = bank.post(narrator, "/v1/credentials", &body).await?;
    answer.is(narrator, 201, "the credential is enrolled")?;
    let token = OcraToken { id: answer.id()?, suite, seed, last: Default::default() };
    Ok((token, answer))
}

/// Counter, question and PIN.
pub async fn with_pin(narrator: &mut Narrator, bank: &Bank, appliance: &Appliance) -> Outcome {
    narrator.heading("A token that answers questions (OCRA), with a counter and a PIN")?;
    narrator.step("enrol it; its suite says: HMAC-SHA-256, 8 digits, counter, question, SHA-1 of the PIN");
    let (token, answer) =
        enrol(narrator, bank, WITH_PIN, SEED_32, &[("use", "verify"), ("pin", PIN)]).await?;
    let seed = HEXLOWER.encode(SEED_32);
    let pin = answer.json.get("pin");
    narrator.check("the answer holds neither seed nor PIN", !answer.text.contains(&seed) && pin.is_none())?;
    narrator.inside(&format!(
        "PIN and seed passed the front's memory this once. Custodian {} had the HSM hash the PIN, as the suite \
         says, and encrypt the hash, bound to this credential.",
        appliance.pid_of("custodian")?
    ))?;

    narrator.step("the bank asks 12345678; the user types PIN and question into the token");
    let right = ("12345678".to_owned(), token.answer_with_pin(0, 12_345_678, PIN)?);
    token.verify(narrator, bank, &right).await?.is_accepted(narrator)?;
    narrator.check("it is the answer that RFC 6287 prints for this", right.1 == "65347737")?;
    narrator.step("the same answer again");
    token.verify(narrator, bank, &right).await?.is_refused(narrator, 5)?;
    narrator.step("a thief has the token and guesses the PIN: its answer to the next question");
    let thief = ("87654321".to_owned(), token.answer_with_pin(1, 87_654_321, "0000")?);
    token.verify(narrator, bank, &thief).await?.is_refused(narrator, 4)?;
    narrator
        .inside("The token takes any PIN: whether it was right shows only here, and costs an attempt.")?;
    narrator.step("the user's answer to another question than the bank's");
    let other = ("87654321".to_owned(), token.answer_with_pin(1, 87_654_320, PIN)?);
    token.verify(narrator, bank, &other).await?.is_refused(narrator, 3)?;
    narrator.step("the user's answer to the bank's question");
    let right = ("87654321".to_owned(), token.answer_with_pin(1, 87_654_321, PIN)?);
    token.verify(narrator, bank, &right).await?.is_accepted(narrator)
}

/// Question and time.
pub async fn with_time(narrator: &mut Narrator, bank: &Bank) -> Outcome<OcraToken> {
    narrator.heading("A token that answers questions, with a clock")?;
    narrator.step("enrol it; its suite says: HMAC-SHA-512, 8 digits, question, the present minute");
    let (mut token, _) = enrol(narrator, bank, WITH_TIME, SEED_64, &[("use", "verify")]).await?;
    narrator.step("its answer of this minute");
    let right = ("20261121".to_owned(), token.answer(&[], 20_261_121, &(now_s()? / 60).to_be_bytes())?);
    token.verify(narrator, bank, &right).await?.is_accepted(narrator)?;
    token.last = right;
    narrator.step("the same answer to the same question");
    token.verify(narrator, bank, &token.last).await?.is_refused(narrator, 5)?;
    narrator.inside(
        "No counter moves on here. The appliance remembers that this question was answered in this \
         minute, for as long as the answer could still verify.",
    )?;
    narrator.step("the answer of an hour ago");
    let old = ("20261121".to_owned(), token.answer(&[], 20_261_121, &(now_s()? / 60 - 60).to_be_bytes())?);
    token.verify(narrator, bank, &old).await?.is_refused(narrator, 4)?;
    Ok(token)
}

/// What [`with_time`] accepted.
pub async fn answered_stays_answered(narrator: &mut Narrator, bank: &Bank, token: &OcraToken) -> Outcome {
    narrator.step("the OCRA token's answer from before the crash, again");
    token.verify(narrator, bank, &token.last).await?.is(narrator, 403, "still used up")
}

/// `"use": "transaction"`.
pub async fn for_transactions(narrator: &mut Narrator, bank: &Bank) -> Outcome {
    narrator.heading("A token for transactions logs nobody in")?;
    narrator.step("enrol a token without saying what it is for: then it is for transactions");
    let (token, answer) = enrol(narrator, bank, WITH_TIME, SEED_64, &[]).await?;
    narrator.check("its use is transaction", answer.json["use"] == "transaction")?;
    narrator.step("a right answer, outside of any transaction");
    let right = ("20261121".to_owned(), token.answer(&[], 20_261_121, &(now_s()? / 60).to_be_bytes())?);
    let answer = token.verify(narrator, bank, &right).await?;
    answer.is(narrator, 409, "refused, whatever the answer is")?;
    narrator.inside(
        "Its questions are made of transactions (below). If it also answered questions that somebody made up, \
         such an answer could approve a payment.",
    )?;
    let credential = bank.get(narrator, &format!("/v1/credentials/{}", token.id)).await?;
    narrator.check("no attempt was charged", credential.json["failures"] == 0)
}
