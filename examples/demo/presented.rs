//! Seed C: a code that stands between payer and merchant. The steps S100, S200 and 1 to 4 are those of the seed.

use std::fs;
use std::path::Path;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use p256::ecdsa::signature::Signer;
use p256::ecdsa::{Signature, SigningKey};
use p256::elliptic_curve::Generate;
use p256::pkcs8::{EncodePublicKey, LineEnding};
use serde_json::{Value, json};

use crate::exchange::{Exchange, PICTURES};
use crate::narrator::Narrator;
use crate::terminal_script::Script;
use crate::terms::Terms;
use crate::transaction::Transaction;
use crate::{Answer, Bank, Outcome, now_s, qr, words};

const ACCOUNT: &str = "account-1009";
const TENANT: &str = "bank-a";
const ADDRESS: &str = "+49 151 5550901";

/// The payer's phone: an app with a key, and the number that messages are sent to.
pub struct Phone {
    id: String,
    key: SigningKey,
    terminal: String,
    /// When it presented last, seconds since 1970.
    presented_s: u64,
    /// The codes that it has shown.
    pub codes: Vec<String>,
}

/// What a phone has presented.
struct Shown {
    id: String,
    code: String,
}

/// Who takes part besides the phone.
pub struct Parties<'a> {
    pub bank: &'a Bank,
    /// May read codes, and reports messages.
    pub gateway: &'a Bank,
    /// A client of another tenant.
    pub stranger: &'a Bank,
}

pub async fn all(
    narrator: &mut Narrator,
    parties: &Parties<'_>,
    script: &mut Script,
    exchange: &Exchange,
) -> Outcome<Phone> {
    let bank = parties.bank;
    let mut phone = enrol(narrator, bank, script).await?;
    authorize(narrator, parties, script, &phone).await?;
    let shown = present(narrator, bank, script, &mut phone).await?;
    let payment = claim(narrator, parties, &shown).await?;
    approve(narrator, bank, script, exchange, &phone, &shown, &payment).await?;
    decline(narrator, bank, script, &mut phone).await?;
    Ok(phone)
}

fn signed(key: &SigningKey, bytes: &[u8]) -> Value {
    let signature: Signature = key.sign(bytes);
    json!({ "format": "p1363", "signature": BASE64URL_NOPAD.encode(&signature.to_bytes()) })
}

/// `body`, with the fields of `more`.
fn with(mut body: Value, more: &Value) -> Value {
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    body
}

/// What terminal.py says is to be signed.
fn input(narrator: &mut Narrator, script: &mut Script, command: &str, request: Value) -> Outcome<Vec<u8>> {
    let text = script.text(narrator, command, request, "signing_input")?;
    BASE64URL_NOPAD.decode(text.as_bytes()).map_err(words)
}

async fn enrol(narrator: &mut Narrator, bank: &Bank, script: &mut Script) -> Outcome<Phone> {
    narrator.heading("A phone is authorized (presented_code): two messages and its key")?;
    narrator.step(&format!("the bank has known the number {ADDRESS} for a while"));
    let body = json!({ "type": "terminal", "account": ACCOUNT, "address": ADDRESS });
    let terminal = bank.post(narrator, "/v1/credentials", &body).await?;
    terminal.is(narrator, 201, "enrolled")?;
    narrator.step("S100: the user logs in with a new phone, whose app has made a key");
    let key = SigningKey::try_generate().map_err(words)?;
    let pem = key.verifying_key().to_public_key_pem(LineEnding::LF).map_err(words)?;
    let body =
        json!({ "type": "signer", "account": ACCOUNT, "authorization": "required", "public_key_pem": pem });
    let answer = bank.post(narrator, "/v1/credentials", &body).await?;
    narrator.check("unauthorized", answer.status == 201 && answer.json["state"] == "unauthorized")?;
    let terminal = terminal.id()?;
    let mut phone = Phone { id: answer.id()?, key, terminal, presented_s: 0, codes: Vec::new() };
    narrator.step("it presents nothing yet");
    let answer = phone.present(narrator, bank, script).await?;
    answer.is(narrator, 409, "refused, though the signature is right")?;
    Ok(phone)
}

async fn authorize(
    narrator: &mut Narrator,
    parties: &Parties<'_>,
    script: &mut Script,
    phone: &Phone,
) -> Outcome {
    let (bank, gateway) = (parties.bank, parties.gateway);
    let path = format!("/v1/credentials/{}/authorization", phone.id);
    narrator.step("S200: the bank begins its authorization by SMS, both ways");
    let body = json!({ "method": "sms", "terminal": phone.terminal });
    let begun = bank.post(narrator, &path, &body).await?;
    narrator.check(
        "begun; the backend sees no code",
        begun.status == 201
            && begun.json.get("downlink_code").is_none()
            && begun.json.get("uplink_code").is_none(),
    )?;
    narrator.step("the gateway does: it sends one to the number, and has the other one shown by the app");
    let codes = gateway.get(narrator, &path).await?;
    let code = |name: &str| codes.json[name].as_str().map(str::to_owned).ok_or(format!("there is no {name}"));
    let (down, up) = (code("downlink_code")?, code("uplink_code")?);
    narrator.row(&format!("to {ADDRESS}:"), &down)?;
    narrator.row("the app shows:", &up)?;
    narrator.check("of 6 digits each, and not alike", down.len() == 6 && up.len() == 6 && down != up)?;

    narrator.step("the app signs who it is, for which number and until when");
    let bytes = input(
        narrator,
        script,
        "authorization",
        json!({ "tenant": TENANT, "account": ACCOUNT, "credential": phone.id, "terminal": phone.terminal,
            "nonce": begun.json["nonce"], "expires_at": begun.json["expires_at"] }),
    )?;
    let complete = with(json!({ "downlink_code": down }), &signed(&phone.key, &bytes));
    let (uplink, completion) = (format!("{path}/uplink"), format!("{path}/complete"));
    let answer = bank.post(narrator, &completion, &complete).await?;
    answer.is(narrator, 409, "too early: no message has come from the number")?;
    narrator.step("somebody sends the code that the app shows from a number of his own");
    let message = json!({ "code": up, "from": "+49 151 5550666" });
    let answer = gateway.post(narrator, &uplink, &message).await?;
    answer.is_refused(narrator, 2)?;
    narrator.step("the user sends it; the gateway reports it, and may report it twice");
    let message = json!({ "code": up, "from": ADDRESS });
    for _ in 0..2 {
        let answer = gateway.post(narrator, &uplink, &message).await?;
        answer.is(narrator, 200, "the number is the user's")?;
    }
    narrator.step("a backend without the permission cannot say so");
    let answer = bank.post(narrator, &uplink, &message).await?;
    narrator.check(
        "forbidden",
        answer.status == 403 && answer.json["type"] == "urn:hsm-authd:problem:forbidden",
    )?;
    narrator.step("who reads both messages has another key");
    let thief = SigningKey::try_generate().map_err(words)?;
    let forged = with(json!({ "downlink_code": down }), &signed(&thief, &bytes));
    bank.post(narrator, &completion, &forged).await?.is_refused(narrator, 1)?;
    narrator.step("the user enters the code of the message, and the app completes it");
    let answer = bank.post(narrator, &completion, &complete).await?;
    narrator.check("active", answer.status == 200 && answer.json["state"] == "active")
}

impl Phone {
    /// 1: signs that it presents itself now. No two times are alike: one that is too early is a second later.
    async fn present(
        &mut self,
        narrator: &mut Narrator,
        bank: &Bank,
        script: &mut Script,
    ) -> Outcome<Answer> {
        self.presented_s = now_s()?.max(self.presented_s + 1);
        let body = self.presentation(narrator, script)?;
        bank.post(narrator, "/v1/presentations", &body).await
    }

    /// What it sent last, byte for byte in all that is signed.
    fn presentation(&self, narrator: &mut Narrator, script: &mut Script) -> Outcome<Value> {
        let fields =
            json!({ "account": ACCOUNT, "credential": self.id, "issued_at": rfc3339(self.presented_s) });
        let request = with(json!({ "tenant": TENANT }), &fields);
        let bytes = input(narrator, script, "presentation", request)?;
        Ok(with(fields, &signed(&self.key, &bytes)))
    }

    fn shows(&mut self, narrator: &mut Narrator, answer: &Answer) -> Outcome<Shown> {
        let code = answer.json["code"].as_str().unwrap_or_default().to_owned();
        narrator.check(
            "a code of 128 bits, in 26 letters and digits",
            answer.status == 201
                && code.len() == 26
                && code.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7')),
        )?;
        self.codes.push(code.clone());
        Ok(Shown { id: answer.id()?, code })
    }

    /// 4: what is asked of it, read from the bytes that it is to sign.
    async fn asked(&self, narrator: &mut Narrator, bank: &Bank, shown: &Shown) -> Outcome<Terms> {
        let answer = bank.get(narrator, &format!("/v1/presentations/{}", shown.id)).await?;
        narrator.check("the phone is told: claimed", answer.json["state"] == "claimed")?;
        let terms = Terms::read(&answer.json["signing_input"])?;
        terms.show(narrator, "the phone")?;
        let display = &answer.json["display"];
        narrator.check(
            "that is what the merchant claimed",
            ["payee", "order", "amount", "currency"].iter().all(|name| display[name] == terms.get(name)),
        )?;
        Ok(terms)
    }
}

async fn present(
    narrator: &mut Narrator,
    bank: &Bank,
    script: &mut Script,
    phone: &mut Phone,
) -> Outcome<Shown> {
    narrator.heading("At the till: the phone shows a code, the merchant claims it")?;
    narrator.step("1, 2: the phone presents itself, and gets a code for a minute");
    let answer = phone.present(narrator, bank, script).await?;
    let shown = phone.shows(narrator, &answer)?;
    narrator.step("somebody has recorded the phone's request, and sends it again");
    let recorded = phone.presentation(narrator, script)?;
    let answer = bank.post(narrator, "/v1/presentations", &recorded).await?;
    answer.is(narrator, 409, "refused: each has a time later than the last")?;

    narrator.step("the phone shows the code");
    let path = format!("/v1/presentations/{}/qr", shown.id);
    let folder = Path::new(PICTURES);
    fs::create_dir_all(folder).map_err(|error| format!("{PICTURES}: {error}"))?;
    let picture = folder.join("presented.png");
    fs::write(&picture, bank.picture(narrator, &path, "image/png").await?).map_err(words)?;
    narrator.picture(&qr::terminal(&shown.code).unwrap_or_default())?;
    match qr::scanned(&picture)? {
        Some(scanned) => narrator.check("zbarimg reads the code in the picture", scanned == shown.code)?,
        None => narrator.note("(There is no zbarimg here: the merchant gets the text.)")?,
    }
    Ok(shown)
}

fn claim_of(code: &str, payee: &str, amount: &str) -> Value {
    json!({ "method": "presented_code", "presentation": code, "payee": payee, "amount": amount,
        "currency": "EUR", "order": "till 3" })
}

async fn claim(narrator: &mut Narrator, parties: &Parties<'_>, shown: &Shown) -> Outcome<Transaction> {
    let bank = parties.bank;
    let body = claim_of(&shown.code, "Grocer & Sons", "23.80");
    narrator.step("another bank's merchant has photographed it");
    let answer = parties.stranger.post(narrator, "/v1/transactions", &body).await?;
    answer.is(narrator, 404, "there is no such code for another tenant")?;
    narrator.step("3: the merchant claims it, with payee and amount");
    let payment = bank.open(narrator, &body).await?;
    let told = payment.json.to_string();
    narrator.check(
        "the merchant learns neither account nor device",
        !told.contains(ACCOUNT) && !told.contains("cred_"),
    )?;
    narrator.step("another merchant of this bank has a photograph, too");
    let answer = bank.post(narrator, "/v1/transactions", &claim_of(&shown.code, "Mallory", "980.00")).await?;
    answer.is(narrator, 409, "claimed once, and never again")?;
    narrator.step("the phone, if it asks for the picture again");
    let answer = bank.get(narrator, &format!("/v1/presentations/{}/qr", shown.id)).await?;
    answer.is(narrator, 409, "it is not shown any more")?;
    Ok(payment)
}

async fn approve(
    narrator: &mut Narrator,
    bank: &Bank,
    script: &mut Script,
    exchange: &Exchange,
    phone: &Phone,
    shown: &Shown,
    payment: &Transaction,
) -> Outcome {
    narrator.step("4: the phone asks what has become of its code");
    let terms = phone.asked(narrator, bank, shown).await?;
    let decided =
        |terms: &Terms| with(json!({ "decision": "approve" }), &signed(&phone.key, &terms.signing_input()));
    narrator.step("a malicious relay has the phone sign another amount");
    let changed = terms.with("amount", "2.38");
    changed.show(narrator, "the phone")?;
    bank.respond(narrator, &payment.id, &decided(&changed)).await?.is_refused(narrator, 2)?;
    narrator.step("the merchant asks meanwhile");
    let told = bank.told(narrator, payment, "pending").await?;
    narrator.check("still no account", !told.text.contains(ACCOUNT) && !told.text.contains("cred_"))?;
    narrator.step("the user reads payee and amount, and approves");
    let answer = bank.respond(narrator, &payment.id, &decided(&terms)).await?;
    let attestation = answer.is_approved(narrator)?;
    narrator.check(
        "only now the bank hears whose money it is",
        answer.json["account"] == ACCOUNT && answer.json["credential"] == phone.id.as_str(),
    )?;
    let claims = exchange.claims_offline(narrator, &attestation)?;
    narrator.check("as the attestation says", claims["account"] == ACCOUNT)?;
    script.agrees(narrator, &attestation, &payment.json["digest"])?;
    narrator.step("both sides hear of it");
    bank.told(narrator, payment, "approved").await?;
    phone.told(narrator, bank, shown, "approved").await
}

impl Phone {
    async fn told(&self, narrator: &mut Narrator, bank: &Bank, shown: &Shown, state: &str) -> Outcome {
        let answer = bank.get(narrator, &format!("/v1/presentations/{}", shown.id)).await?;
        narrator.check(&format!("the phone is told: {state}"), answer.json["transaction_state"] == state)
    }

    /// After a restart.
    pub async fn is_remembered(&self, narrator: &mut Narrator, bank: &Bank) -> Outcome {
        narrator.step("the presented code from before, once more");
        let code = self.codes.first().map_or("", String::as_str);
        let answer = bank.post(narrator, "/v1/transactions", &claim_of(code, "Mallory", "1.00")).await?;
        answer.is(narrator, 409, "still claimed")
    }
}

async fn decline(narrator: &mut Narrator, bank: &Bank, script: &mut Script, phone: &mut Phone) -> Outcome {
    narrator.heading("A merchant who claims more than agreed")?;
    narrator.step("the phone presents itself again");
    let answer = phone.present(narrator, bank, script).await?;
    let shown = phone.shows(narrator, &answer)?;
    narrator.step("the merchant claims ten times the price");
    let payment = bank.open(narrator, &claim_of(&shown.code, "Grocer & Sons", "238.00")).await?;
    narrator.step("the user reads it, and declines");
    let terms = phone.asked(narrator, bank, &shown).await?;
    let digest = HEXLOWER.encode(&terms.digest());
    let no = signed(&phone.key, &input(narrator, script, "decline", json!({ "digest": digest }))?);
    narrator.step("somebody turns the answer round");
    let turned = with(json!({ "decision": "approve" }), &no);
    bank.respond(narrator, &payment.id, &turned).await?.is_refused(narrator, 2)?;
    narrator.step("as it was signed");
    let declined = with(json!({ "decision": "decline" }), &no);
    let answer = bank.respond(narrator, &payment.id, &declined).await?;
    narrator.check(
        "rejected; there is no attestation",
        answer.status == 200
            && answer.json["state"] == "rejected"
            && answer.json.get("attestation").is_none(),
    )?;
    narrator.step("an approval, too late");
    let yes = with(json!({ "decision": "approve" }), &signed(&phone.key, &terms.signing_input()));
    bank.respond(narrator, &payment.id, &yes).await?.is(narrator, 409, "rejected is final")?;
    narrator.step("both sides hear of it");
    let told = bank.told(narrator, &payment, "rejected").await?;
    narrator.check("the merchant has never learned whose phone it was", !told.text.contains(ACCOUNT))?;
    phone.told(narrator, bank, &shown, "rejected").await
}

/// Seconds since 1970 as `2030-01-01T00:00:00Z`, by the calendar's own rules.
fn rfc3339(unix_s: u64) -> String {
    let (mut days, second) = (unix_s / 86_400, unix_s % 86_400);
    let is_leap =
        |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 1;
    for length in [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!("{year}-{month:02}-{:02}T{hour:02}:{minute:02}:{:02}Z", days + 1, second % 60)
}
