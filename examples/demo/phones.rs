//! Seed E: payments that need the codes of three phones, entered as a rule says. The steps 1 to 4 and the conditions
//! (a) to (e) are those of the seed.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::exchange::Exchange;
use crate::narrator::Narrator;
use crate::terminal_script::Script;
use crate::transaction::Transaction;
use crate::{Answer, Bank, Outcome};

const ACCOUNT: &str = "account-1007";
const ADDRESSES: [&str; 3] = ["+49 151 5550101", "+49 151 5550102", "+49 151 5550103"];

/// The customer's phones, and what is open when the appliance stops.
pub struct Phones {
    /// Their credentials, as they were enrolled.
    ids: Vec<String>,
    /// With a window, and without.
    hurried: Transaction,
    patient: Transaction,
    /// Of the one without.
    codes: Vec<String>,
    /// Codes that must be nowhere on the disk.
    pub secrets: Vec<String>,
}

pub async fn all(
    narrator: &mut Narrator,
    bank: &Bank,
    gateway: &Bank,
    script: &mut Script,
    exchange: &Exchange,
) -> Outcome<Phones> {
    let ids = enrol(narrator, bank).await?;
    let overheard = in_order(narrator, bank, gateway, script, &ids).await?;
    one_by_one(narrator, bank, gateway, &ids).await?;
    at_intervals(narrator, bank, gateway).await?;
    by_size(narrator, bank, gateway, script).await?;
    let secrets = target(narrator, bank, gateway, script, exchange).await?;
    thief(narrator, bank, gateway, &ids, &overheard).await?;

    narrator.step("two payments that the coming restart will meet: one has a window, one has time");
    let hurried = begin(narrator, bank, json!({ "type": "preset_order", "window_seconds": 250 })).await?;
    let patient = begin(narrator, bank, json!({ "type": "preset_order" })).await?;
    let codes = deliver(narrator, gateway, &patient).await?;
    narrator.check("the stolen phone gets no code any more", codes.len() == 2)?;
    Ok(Phones { ids, hurried, patient, codes, secrets })
}

async fn enrol(narrator: &mut Narrator, bank: &Bank) -> Outcome<Vec<String>> {
    narrator.heading("A payment that three phones approve together (multi_terminal)")?;
    narrator.text(
        "Two clients of the bank share the work. Its backend makes the payment and enters the codes, and may not see \
         them; its gateway may (the permission deliver), and sends them to the phones.",
    )?;
    let mut ids = Vec::new();
    for address in ADDRESSES {
        narrator.step(&format!("enrol the phone {address}; its secret is generated in the HSM, and stays"));
        let body = json!({ "type": "terminal", "account": ACCOUNT, "address": address });
        let answer = bank.post(narrator, "/v1/credentials", &body).await?;
        answer.is(narrator, 201, "enrolled")?;
        ids.push(answer.id()?);
    }
    Ok(ids)
}

/// With `rule`, for the same three phones and the same grocer each time.
async fn begin(narrator: &mut Narrator, bank: &Bank, rule: Value) -> Outcome<Transaction> {
    begin_with(narrator, bank, json!({ "rule": rule })).await
}

async fn begin_with(narrator: &mut Narrator, bank: &Bank, more: Value) -> Outcome<Transaction> {
    let mut body = json!({ "method": "multi_terminal", "payer": ACCOUNT, "payee": "Grocer & Sons",
        "amount": "980.00", "currency": "EUR", "order": "invoice 9" });
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    bank.open(narrator, &body).await
}

/// The gateway reads the codes, and sends each to its phone with what it is for.
async fn deliver(narrator: &mut Narrator, gateway: &Bank, payment: &Transaction) -> Outcome<Vec<String>> {
    let answer = gateway.get(narrator, &format!("/v1/transactions/{}", payment.id)).await?;
    let codes = codes_of(&answer.json)?;
    for (terminal, code) in terminals(&answer.json).iter().zip(&codes) {
        let address = terminal["address"].as_str().unwrap_or("?");
        narrator.row(&format!("to {address}:"), &format!("{}: {code}", payment.terms.in_words()))?;
    }
    Ok(codes)
}

fn terminals(transaction: &Value) -> &[Value] {
    transaction["challenge"]["terminals"].as_array().map_or(&[], Vec::as_slice)
}

fn codes_of(transaction: &Value) -> Outcome<Vec<String>> {
    let code = |terminal: &Value| terminal["code"].as_str().map(str::to_owned);
    let codes: Option<Vec<String>> = terminals(transaction).iter().map(code).collect();
    codes.filter(|codes| !codes.is_empty()).ok_or_else(|| "the answer holds no codes".to_owned())
}

/// A code of as many digits that is none of `codes`.
fn guess(codes: &[String]) -> Outcome<String> {
    let digits = codes.first().map_or(6, String::len);
    let mut guesses = (0..).map(|n: u32| format!("{n:0digits$}"));
    guesses.find(|guess| !codes.contains(guess)).ok_or_else(|| "there is no wrong code".to_owned())
}

/// The codes of the payment.
async fn in_order(
    narrator: &mut Narrator,
    bank: &Bank,
    gateway: &Bank,
    script: &mut Script,
    ids: &[String],
) -> Outcome<Vec<String>> {
    narrator.step("1: a payment of the account; the appliance finds its phones");
    let payment = begin(narrator, bank, json!({ "type": "preset_order" })).await?;
    let order: Vec<&str> = terminals(&payment.json).iter().filter_map(|t| t["credential"].as_str()).collect();
    narrator.check("all three, in the order of their enrolment", order == ids)?;
    narrator.check("the backend sees no code", !payment.json.to_string().contains("\"code\""))?;
    narrator.step("2: the gateway reads the codes and sends them, and says what they are for");
    let codes = deliver(narrator, gateway, &payment).await?;
    let digits = codes.iter().all(|code| code.len() == 6 && code.bytes().all(|byte| byte.is_ascii_digit()));
    let unlike: BTreeSet<&String> = codes.iter().collect();
    narrator.check("of 6 digits each, and no two alike", codes.len() == 3 && digits && unlike.len() == 3)?;
    narrator.step("a message was lost: the gateway reads them again");
    let again = deliver(narrator, gateway, &payment).await?;
    narrator.check("the same ones", again == codes)?;
    narrator.inside(
        "3: The appliance keeps the phones and the rule, and no code. The HSM makes them of each phone's secret and \
         the payment's digest whenever they are needed.",
    )?;
    narrator.step("the backend looks, and the gateway lists the account's payments");
    let told = bank.told(narrator, &payment, "pending").await?;
    narrator.check("no code there", codes.iter().all(|code| !told.text.contains(&format!("\"{code}\""))))?;
    let list = gateway.get(narrator, &format!("/v1/transactions?payer={ACCOUNT}")).await?;
    narrator.check(
        "nor in a list, whoever asks",
        list.status == 200 && list.text.contains(&payment.id) && !list.text.contains("\"code\""),
    )?;

    narrator.step("4: the user types them in that order (a)");
    let request = json!({ "rule": "preset_order", "codes": codes });
    let entered = script.ask(narrator, "order", request)?["codes"].clone();
    let answer = bank.respond(narrator, &payment.id, &json!({ "codes": entered })).await?;
    let attestation = answer.is_approved(narrator)?;
    script.agrees(narrator, &attestation, &payment.json["digest"])?;
    Ok(codes)
}

async fn one_by_one(narrator: &mut Narrator, bank: &Bank, gateway: &Bank, ids: &[String]) -> Outcome {
    narrator.heading("One code after the other, and no hint between")?;
    narrator.step("a payment whose codes come in another order, and within two minutes (d)");
    let order: Vec<&String> = ids.iter().rev().collect();
    let rule = json!({ "type": "preset_order", "order": order, "window_seconds": 120 });
    let payment = begin(narrator, bank, rule).await?;
    let codes = deliver(narrator, gateway, &payment).await?;
    let [first, second, third] = codes.as_slice() else { return Err("not three codes".to_owned()) };
    narrator.step("a round whose first code is wrong");
    let wrong = guess(&codes)?;
    bank.enter(narrator, &payment.id, &wrong).await?.is_partial(narrator, 1)?;
    bank.enter(narrator, &payment.id, second).await?.is_partial(narrator, 2)?;
    bank.enter(narrator, &payment.id, third).await?.is_refused(narrator, 2)?;
    narrator
        .inside("202 says that a code came, not whether it was right. The verdict is of the whole round.")?;
    narrator.step("the right ones");
    bank.enter(narrator, &payment.id, first).await?.is_partial(narrator, 1)?;
    bank.enter(narrator, &payment.id, second).await?.is_partial(narrator, 2)?;
    bank.enter(narrator, &payment.id, third).await?.is_approved(narrator)?;
    failures_are(narrator, bank, ids, 0, "the success has forgiven the wrong round").await
}

async fn at_intervals(narrator: &mut Narrator, bank: &Bank, gateway: &Bank) -> Outcome {
    narrator.step("a payment whose codes have to come a minute apart (e), and a program that does not wait");
    let rule = json!({ "type": "preset_order", "interval_seconds": 60, "tolerance_seconds": 1 });
    let payment = begin(narrator, bank, rule).await?;
    let codes = deliver(narrator, gateway, &payment).await?;
    let [first, second, third] = codes.as_slice() else { return Err("not three codes".to_owned()) };
    bank.enter(narrator, &payment.id, first).await?.is_partial(narrator, 1)?;
    bank.enter(narrator, &payment.id, second).await?.is_partial(narrator, 2)?;
    bank.enter(narrator, &payment.id, third).await?.is_refused(narrator, 2)?;
    narrator.inside("All three were right, and the answer is the same as for wrong ones.")?;
    let path = format!("/v1/transactions/{}/cancel", payment.id);
    bank.post(narrator, &path, &json!({})).await?.is(narrator, 200, "the bank gives this one up")
}

async fn by_size(narrator: &mut Narrator, bank: &Bank, gateway: &Bank, script: &mut Script) -> Outcome {
    narrator.heading("Codes by their size, or one value made of them")?;
    narrator.step("a payment whose codes are entered from the smallest to the greatest (b)");
    let payment = begin(narrator, bank, json!({ "type": "ascending" })).await?;
    let codes = deliver(narrator, gateway, &payment).await?;
    for (rule, is_right) in [("descending", false), ("ascending", true)] {
        narrator.step(&format!("entered {rule}"));
        let sorted = script.ask(narrator, "order", json!({ "rule": rule, "codes": codes }))?;
        let response = json!({ "codes": sorted["codes"] });
        let answer = bank.respond(narrator, &payment.id, &response).await?;
        match is_right {
            true => answer.is_approved(narrator).map(drop)?,
            false => answer.is_refused(narrator, 2)?,
        }
    }
    Ok(())
}

/// Its codes and its value, of ten digits: none of them is anywhere by chance.
async fn target(
    narrator: &mut Narrator,
    bank: &Bank,
    gateway: &Bank,
    script: &mut Script,
    exchange: &Exchange,
) -> Outcome<Vec<String>> {
    narrator.step("a payment for which one value is entered, that the phones' codes add up to (c)");
    let more = json!({ "rule": { "type": "target" }, "digits": 10 });
    let payment = begin_with(narrator, bank, more).await?;
    let codes = deliver(narrator, gateway, &payment).await?;
    narrator.step("who has two of the three codes guesses the third");
    let mut guessed = codes.clone();
    let wrong = guess(&codes)?;
    guessed.last_mut().into_iter().for_each(|last| last.clone_from(&wrong));
    let value = script.text(narrator, "target", json!({ "codes": guessed, "digits": 10 }), "target")?;
    let answer = bank.respond(narrator, &payment.id, &json!({ "target": value })).await?;
    answer.is_refused(narrator, 2)?;
    narrator.step("the user's value");
    let told = script.ask(narrator, "target", json!({ "codes": codes, "digits": 10 }))?;
    narrator.check(
        "terminal.py multiplies with what the appliance says: 1, 3, 7",
        told["weights"] == payment.json["challenge"]["weights"] && told["weights"] == json!([1, 3, 7]),
    )?;
    let answer = bank.respond(narrator, &payment.id, &json!({ "target": told["target"] })).await?;
    let attestation = answer.is_approved(narrator)?;
    let claims = exchange.claims_offline(narrator, &attestation)?;
    narrator.check(
        "it names method, account and payee, and no phone",
        claims["method"] == "multi_terminal"
            && claims["account"] == ACCOUNT
            && claims["transaction"]["payee"] == "Grocer & Sons"
            && ADDRESSES.iter().all(|address| !claims.to_string().contains(address)),
    )?;
    script.agrees(narrator, &attestation, &payment.json["digest"])?;
    Ok(codes.into_iter().chain(told["target"].as_str().map(str::to_owned)).collect())
}

async fn thief(
    narrator: &mut Narrator,
    bank: &Bank,
    gateway: &Bank,
    ids: &[String],
    overheard: &[String],
) -> Outcome {
    narrator.heading("One of the phones is stolen, and the login with it")?;
    narrator.step("the thief begins a payment; all three phones tell of it");
    let more = json!({ "rule": { "type": "preset_order" }, "payee": "Mallory", "order": "invoice 10" });
    let payment = begin_with(narrator, bank, more).await?;
    let codes = deliver(narrator, gateway, &payment).await?;
    let wrong = guess(&codes)?;
    narrator.step("the stolen phone's code, and two guesses");
    let entered = json!({ "codes": [codes.first(), Some(&wrong), Some(&wrong)] });
    let partly = bank.respond(narrator, &payment.id, &entered).await?;
    partly.is_refused(narrator, 2)?;
    narrator.step("three guesses");
    let entered = json!({ "codes": [wrong, wrong, wrong] });
    let wholly = bank.respond(narrator, &payment.id, &entered).await?;
    wholly.is_refused(narrator, 1)?;
    narrator.check("but for the count both answers say the same", verdict(&partly) == verdict(&wholly))?;
    narrator.step("the codes of the payment that the user approved before, overheard");
    let entered = json!({ "codes": overheard });
    bank.respond(narrator, &payment.id, &entered).await?.is_refused(narrator, 0)?;
    bank.told(narrator, &payment, "failed").await?;
    failures_are(narrator, bank, ids, 3, "every phone was charged once a round, whoever was wrong").await?;

    narrator.step("the user has begun a payment, and reports the phone");
    let payment = begin(narrator, bank, json!({ "type": "preset_order" })).await?;
    let codes = deliver(narrator, gateway, &payment).await?;
    let stolen = ids.first().ok_or("there is no phone")?;
    let answer = bank.post(narrator, &format!("/v1/credentials/{stolen}/suspend"), &json!({})).await?;
    answer.is(narrator, 200, "suspended")?;
    let answer = bank.respond(narrator, &payment.id, &json!({ "codes": codes })).await?;
    answer.is(narrator, 409, "what was open approves nobody any more, not even with the right codes")
}

/// A refusal, without what is another in each answer.
fn verdict(answer: &Answer) -> Value {
    let mut json = answer.json.clone();
    for name in ["request_id", "attempts_remaining"] {
        json.as_object_mut().map(|members| members.remove(name));
    }
    json
}

async fn failures_are(
    narrator: &mut Narrator,
    bank: &Bank,
    ids: &[String],
    failures: u32,
    what: &str,
) -> Outcome {
    let mut all = true;
    for id in ids {
        let answer = bank.get(narrator, &format!("/v1/credentials/{id}")).await?;
        all &= answer.json["failures"] == failures;
    }
    narrator.check(what, all)
}

impl Phones {
    /// After a restart.
    pub async fn are_remembered(&self, narrator: &mut Narrator, bank: &Bank, gateway: &Bank) -> Outcome {
        narrator.step("the phones' payment with a window: how long the restart took, nobody has measured");
        bank.told(narrator, &self.hurried, "failed").await?;
        narrator.step("the one without: the codes, which nothing has kept");
        let codes = deliver(narrator, gateway, &self.patient).await?;
        narrator.check("the HSM makes the same ones again", codes == self.codes)?;
        let answer = bank.respond(narrator, &self.patient.id, &json!({ "codes": codes })).await?;
        answer.is_approved(narrator)?;
        let left = self.ids.get(1..).unwrap_or_default();
        failures_are(narrator, bank, left, 0, "the two phones have no failures left").await
    }
}
