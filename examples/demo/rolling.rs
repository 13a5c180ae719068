//! Seed B: a temporary code on the terminal, an identity code in the user's head, and a password made of both for one
//! payment. The steps 301, 101 to 106 and 201 to 206 are those of the seed.

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use crate::exchange::Exchange;
use crate::narrator::Narrator;
use crate::terminal_script::Script;
use crate::transaction::Transaction;
use crate::{Answer, Bank, Outcome, words};

const ACCOUNT: &str = "account-1008";
const IDENTITY_CODE: &str = "tulip 4938";
const GUESSED_CODE: &str = "tulip 1234";

/// The app on the user's terminal. It keeps salt, epoch and temporary code; the identity key here is what it makes of
/// the identity code each time that the user enters it, made once because that takes a while.
#[derive(Default)]
pub struct App {
    id: String,
    salt: String,
    identity_key: String,
    epoch: u64,
    temporary_code: String,
    /// A password that was accepted, and the payment that it was for.
    used: String,
    paid: String,
    /// What it has been given, in hexadecimal.
    secrets: Vec<String>,
}

/// What was typed, as a key: hexadecimal.
fn key_of(narrator: &mut Narrator, script: &mut Script, typed: &str, salt: &str) -> Outcome<String> {
    let request = json!({ "identity_code": typed, "salt_hex": salt });
    script.text(narrator, "identity-key", request, "identity_key_hex")
}

fn text(value: &Value, name: &str) -> Outcome<String> {
    value[name].as_str().map(str::to_owned).ok_or_else(|| format!("the answer holds no {name}"))
}

impl App {
    fn password(
        &self,
        narrator: &mut Narrator,
        script: &mut Script,
        key: &str,
        payment: &Transaction,
    ) -> Outcome<String> {
        payment.terms.show(narrator, "the terminal")?;
        let digest = HEXLOWER.encode(&payment.terms.digest());
        let request =
            json!({ "temporary_code": self.temporary_code, "identity_key_hex": key, "digest": digest });
        script.text(narrator, "password", request, "password")
    }

    fn rotation(&self, narrator: &mut Narrator, script: &mut Script) -> Outcome<Value> {
        let request = json!({ "temporary_code": self.temporary_code });
        let proof = script.text(narrator, "rotation", request, "proof_hex")?;
        Ok(json!({ "epoch": self.epoch, "proof_hex": proof }))
    }

    /// 105, 106: keeps the next temporary code, and forgets the one before.
    fn store(&mut self, next: &Value) -> Outcome {
        self.epoch = next["epoch"].as_u64().ok_or("the answer holds no epoch")?;
        self.temporary_code = text(next, "temporary_code")?;
        self.secrets.push(self.temporary_code.clone());
        Ok(())
    }

    fn path(&self, what: &str) -> String {
        format!("/v1/credentials/{}/{what}", self.id)
    }

    /// In both forms in which they could lie on a disk.
    pub fn secrets(&self) -> Outcome<Vec<Vec<u8>>> {
        let hex = self.secrets.iter().map(|secret| secret.clone().into_bytes());
        let raw = self.secrets.iter().map(|secret| HEXLOWER.decode(secret.as_bytes()).map_err(words));
        hex.map(Ok).chain(raw).collect()
    }

    async fn activate(&mut self, narrator: &mut Narrator, bank: &Bank) -> Outcome<Answer> {
        let body = json!({ "identity_key_hex": self.identity_key, "evidence": "application 2026-4711" });
        let answer = bank.post(narrator, &self.path("activate"), &body).await?;
        narrator.check(
            "active; the first temporary code is there",
            answer.status == 200 && answer.json["state"] == "active" && answer.json["epoch"] == 1,
        )?;
        self.secrets.push(self.identity_key.clone());
        self.store(&answer.json)?;
        Ok(answer)
    }
}

pub async fn all(
    narrator: &mut Narrator,
    bank: &Bank,
    script: &mut Script,
    exchange: &Exchange,
) -> Outcome<App> {
    let mut app = bind(narrator, bank, script).await?;
    pay(narrator, bank, script, exchange, &mut app).await?;
    let used_up = thief(narrator, bank, script, &mut app).await?;
    acknowledge(narrator, bank, script, &app, &used_up).await?;
    rebind(narrator, bank, script, &mut app).await?;
    Ok(app)
}

async fn bind(narrator: &mut Narrator, bank: &Bank, script: &mut Script) -> Outcome<App> {
    narrator.heading("A password that is another one each time (rolling_password): the binding")?;
    narrator.step("301: the user applies; a careless backend passes on all of the application");
    let body = json!({ "type": "rolling", "account": ACCOUNT, "pan": "4111 1111 1111 1111" });
    let answer = bank.post(narrator, "/v1/credentials", &body).await?;
    narrator.check(
        "refused by its name, and why: card data stay with the bank",
        answer.status == 422 && answer.json["field"] == "pan" && answer.json["reason"].is_string(),
    )?;
    narrator.check("the number is not in the answer", !answer.text.contains("4111"))?;
    narrator.step("the bank checks the application itself, and passes on the account alone");
    let body = json!({ "type": "rolling", "account": ACCOUNT });
    let answer = bank.post(narrator, "/v1/credentials", &body).await?;
    narrator.check("pending", answer.status == 201 && answer.json["state"] == "pending")?;
    let (id, salt) = (answer.id()?, text(&answer.json, "salt")?);
    narrator.step("the user chooses an identity code; the terminal makes a key of it and of the salt");
    let identity_key = key_of(narrator, script, IDENTITY_CODE, &salt)?;
    narrator.inside(
        "600,000 rounds of PBKDF2, on the terminal. The identity code is in no request; nobody but the user has it.",
    )?;
    let mut app = App { id, salt, identity_key, ..App::default() };
    narrator.step("the backend passes on the key, and a reference to what it checked");
    let first = app.activate(narrator, bank).await?;
    narrator.inside(
        "The HSM made the code. Stored are a tag to find it by, and the key, encrypted by the HSM.",
    )?;
    narrator.step("the answer was lost: the same once more");
    let again = app.activate(narrator, bank).await?;
    narrator.check("the same code", again.json["temporary_code"] == first.json["temporary_code"])?;
    Ok(app)
}

/// No payer in it: nobody knows yet who pays.
async fn begin(narrator: &mut Narrator, bank: &Bank, payee: &str, order: &str) -> Outcome<Transaction> {
    let body = json!({ "method": "rolling_password", "payee": payee, "amount": "49.90", "currency": "EUR",
        "order": order });
    bank.open(narrator, &body).await
}

async fn respond(
    narrator: &mut Narrator,
    bank: &Bank,
    payment: &Transaction,
    password: &str,
) -> Outcome<Answer> {
    bank.respond(narrator, &payment.id, &json!({ "password": password })).await
}

async fn pay(
    narrator: &mut Narrator,
    bank: &Bank,
    script: &mut Script,
    exchange: &Exchange,
    app: &mut App,
) -> Outcome {
    narrator.heading("Paying by the password alone")?;
    narrator.step("101: somebody wants to pay; the backend does not say who, it does not know");
    let payment = begin(narrator, bank, "Grocer & Sons", "basket 1").await?;
    narrator.check("no account is in it", payment.json.get("account").is_none_or(Value::is_null))?;
    narrator.step("102, 103: the user enters the identity code, and the terminal makes the password; 104");
    let password = app.password(narrator, script, &app.identity_key, &payment)?;
    let path = format!("/v1/transactions/{}/responses", payment.id);
    let body = json!({ "password": password });
    let answer = bank.post_once(narrator, &path, &body, "basket-1").await?;
    let attestation = answer.is_approved(narrator)?;
    narrator.check(
        &format!("the answer names who paid: {ACCOUNT}"),
        answer.json["account"] == ACCOUNT && answer.json["credential"] == app.id.as_str(),
    )?;
    narrator.inside(
        "201 to 203: The first 12 bytes found the binding; the HSM made the rest again, and compared. 204 to 206: The \
         password is used up, and the answer brings the next temporary code.",
    )?;
    let claims = exchange.claims_offline(narrator, &attestation)?;
    narrator.check("it names the account, too", claims["account"] == ACCOUNT)?;
    script.agrees(narrator, &attestation, &payment.json["digest"])?;
    narrator.step("the answer was lost on the way to the backend: the same request, with the same key");
    let again = bank.post_once(narrator, &path, &body, "basket-1").await?;
    narrator.check(
        "the same answer, with the same next code",
        again.status == 200 && again.json["next"] == answer.json["next"] && again.json["next"]["epoch"] == 2,
    )?;
    narrator.step("or on the way to the terminal: it proves that it has the used up code");
    let body = app.rotation(narrator, script)?;
    let handed_out = bank.post(narrator, &app.path("rotation"), &body).await?;
    narrator.check(
        "the next code is handed out again",
        handed_out.status == 200
            && handed_out.json["epoch"] == 2
            && handed_out.json["temporary_code"] == answer.json["next"]["temporary_code"],
    )?;
    app.store(&handed_out.json)?;

    narrator.step("somebody has overheard the password, and tries it for a payment of his own");
    let other = begin(narrator, bank, "Mallory", "basket 2").await?;
    respond(narrator, bank, &other, &password).await?.is_refused(narrator, 3)?;
    narrator
        .inside("It belongs to nobody any more. So nobody is charged, and the payment keeps its attempts.")?;
    failures_are(narrator, bank, app, 0).await?;
    (app.used, app.paid) = (password, payment.id);
    Ok(())
}

/// What asks for the new code with the one that was used up.
async fn thief(narrator: &mut Narrator, bank: &Bank, script: &mut Script, app: &mut App) -> Outcome<Value> {
    narrator.heading("The terminal is stolen; the identity code is not on it")?;
    narrator.step("the thief wants to pay");
    let payment = begin(narrator, bank, "Mallory", "basket 3").await?;
    narrator.step("the thief guesses the identity code");
    let guessed = key_of(narrator, script, GUESSED_CODE, &app.salt)?;
    let password = app.password(narrator, script, &guessed, &payment)?;
    respond(narrator, bank, &payment, &password).await?.is_refused(narrator, 2)?;
    narrator.inside(
        "Whose it is shows all the same: the guess is charged to its owner, who is locked after five.",
    )?;
    failures_are(narrator, bank, app, 1).await?;
    narrator.step("a password made up altogether");
    respond(narrator, bank, &payment, &"A".repeat(38)).await?.is_refused(narrator, 2)?;
    failures_are(narrator, bank, app, 1).await?;
    narrator.step("the user's password for a payment, caught on its way and sent for the thief's");
    let own = begin(narrator, bank, "Grocer & Sons", "basket 4").await?;
    let password = app.password(narrator, script, &app.identity_key, &own)?;
    respond(narrator, bank, &payment, &password).await?.is_refused(narrator, 1)?;
    failures_are(narrator, bank, app, 2).await?;
    narrator.step("the user, who has the terminal again, sends it for the right one");
    let answer = respond(narrator, bank, &own, &password).await?;
    answer.is_approved(narrator)?;
    failures_are(narrator, bank, app, 0).await?;

    narrator.step("105, 106: the terminal stores the new code, and only then forgets the used up one");
    let used_up = app.rotation(narrator, script)?;
    app.store(&answer.json["next"])?;
    narrator.step("somebody without the used up code asks for the new one");
    let forged = json!({ "epoch": used_up["epoch"], "proof_hex": "00".repeat(32) });
    let answer = bank.post(narrator, &app.path("rotation"), &forged).await?;
    answer.is_refused(narrator, 4)?;
    Ok(used_up)
}

async fn acknowledge(
    narrator: &mut Narrator,
    bank: &Bank,
    script: &mut Script,
    app: &App,
    used_up: &Value,
) -> Outcome {
    narrator.heading("The terminal says that it has stored the code")?;
    narrator.step("it proves that it has the new one");
    let body = app.rotation(narrator, script)?;
    for _ in 0..2 {
        let answer = bank.post(narrator, &app.path("rotation"), &body).await?;
        narrator.check(
            "acknowledged, also when it says so twice",
            answer.status == 200
                && answer.json["acknowledged"] == true
                && answer.json.get("temporary_code").is_none(),
        )?;
    }
    narrator.step("from now on the used up code gets nobody the new one");
    let answer = bank.post(narrator, &app.path("rotation"), used_up).await?;
    answer.is(narrator, 409, "refused, although the proof is right")?;
    narrator.step("nor does the answered request, repeated with its key");
    let (path, body) = (format!("/v1/transactions/{}/responses", app.paid), json!({ "password": app.used }));
    let again = bank.post_once(narrator, &path, &body, "basket-1").await?;
    again.is_approved(narrator)?;
    narrator.check("the answer from before, without its next code", again.json.get("next").is_none())
}

async fn rebind(narrator: &mut Narrator, bank: &Bank, script: &mut Script, app: &mut App) -> Outcome {
    narrator.heading("A new terminal: the old one's codes are worth nothing")?;
    narrator.step("just before, the old terminal makes a password for a payment");
    let payment = begin(narrator, bank, "Grocer & Sons", "basket 5").await?;
    let old = app.password(narrator, script, &app.identity_key, &payment)?;
    narrator.step("the bank binds anew");
    let answer = bank.post(narrator, &app.path("rebind"), &json!({})).await?;
    let salt = text(&answer.json, "salt")?;
    narrator.check(
        "pending, with another salt",
        answer.status == 200 && answer.json["state"] == "pending" && salt != app.salt,
    )?;
    narrator.step("the old terminal's password");
    respond(narrator, bank, &payment, &old).await?.is_refused(narrator, 3)?;
    narrator.step("the new terminal, with the same identity code and the new salt");
    app.salt = salt;
    app.identity_key = key_of(narrator, script, IDENTITY_CODE, &app.salt)?;
    app.activate(narrator, bank).await?;
    narrator.step("it pays what the old one could not");
    let password = app.password(narrator, script, &app.identity_key, &payment)?;
    let answer = respond(narrator, bank, &payment, &password).await?;
    answer.is_approved(narrator)?;
    app.store(&answer.json["next"])?;
    (app.used, app.paid) = (password, payment.id);
    Ok(())
}

async fn failures_are(narrator: &mut Narrator, bank: &Bank, app: &App, failures: u32) -> Outcome {
    let answer = bank.get(narrator, &format!("/v1/credentials/{}", app.id)).await?;
    narrator.check(&format!("the binding's failures: {failures}"), answer.json["failures"] == failures)
}

impl App {
    /// After a restart.
    pub async fn is_remembered(
        &mut self,
        narrator: &mut Narrator,
        bank: &Bank,
        script: &mut Script,
    ) -> Outcome {
        narrator.step("the rolling password that was used before the restart");
        let payment = begin(narrator, bank, "Grocer & Sons", "basket 6").await?;
        respond(narrator, bank, &payment, &self.used).await?.is_refused(narrator, 3)?;
        narrator.step("the next one");
        let password = self.password(narrator, script, &self.identity_key, &payment)?;
        let answer = respond(narrator, bank, &payment, &password).await?;
        answer.is_approved(narrator)?;
        self.store(&answer.json["next"])
    }
}
