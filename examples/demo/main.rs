//! `make demo`: a bank's backend and its users' tokens against an appliance of this demonstration's own.
//!
//! It starts `hsm-authd dev` in a temporary folder, asks it over mutual TLS what a bank would ask, tells
//! what came back and which process did what, and holds every answer against what it expects. The tokens
//! are simulated here, with codes and signatures that share no code with what verifies them.

mod appliance;
mod authenticator;
mod bank;
#[path = "../../tests/suite/client.rs"]
mod client;
mod exchange;
mod narrator;
mod ocra;
mod operator;
mod payments;
mod phones;
mod presented;
mod qr;
mod refusals;
mod rolling;
mod signers;
mod terminal_script;
mod terms;
mod transaction;

use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use appliance::Appliance;
use bank::{Answer, Bank};
use data_encoding::{BASE32_NOPAD, HEXLOWER};
use hmac::{Hmac, KeyInit, Mac};
use narrator::Narrator;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use presented::Parties;
use serde_json::json;
use terminal_script::Script;

/// RFC 4226's test seed: the factory that made the token has sent it to the bank.
const TOKEN_SEED: &[u8] = b"12345678901234567890";
const PERIOD_S: u64 = 30;
/// So many codes beyond the expected one are tried, for both kinds of token here at most.
const TRIED: u64 = 12;

/// What went otherwise than told.
type Outcome<T = ()> = Result<T, String>;

fn main() -> ExitCode {
    // Before any thread is there: all of them inherit it. The appliance does not.
    let interrupts = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    let blocked = interrupts.thread_block();
    let (interrupt, interrupted) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        if blocked.is_ok() && interrupts.wait().is_ok() {
            let _ = interrupt.send(());
        }
    });
    let played = tokio::runtime::Runtime::new().map_err(words).and_then(|runtime| {
        runtime.block_on(async {
            tokio::select! {
                // Whichever ends first: the other is dropped, and the appliance with it.
                played = play() => played,
                Ok(()) = interrupted => Err("interrupted; the appliance is stopped".to_owned()),
            }
        })
    });
    match played {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            let _ = writeln!(std::io::stderr(), "\ndemo: {reason}");
            ExitCode::FAILURE
        }
    }
}

async fn play() -> Outcome {
    let binary = std::env::args_os().nth(1).ok_or("usage: demo PATH-OF-HSM-AUTHD")?;
    let mut narrator = Narrator::new();
    let mut appliance = Appliance::new(binary.into())?;

    narrator.heading("The appliance starts")?;
    narrator.text(
        "A bank asks whether the code that its customer typed is right. The appliance answers, and keeps \
         the secret behind the codes in an HSM. Here the HSM is SoftHSM, a software token: it shows the \
         interface, not the protection that hardware gives.",
    )?;
    appliance.start(&mut narrator)?;
    let front = appliance.pid_of("front")?;
    let maps = fs::read_to_string(format!("/proc/{front}/maps")).map_err(words)?;
    narrator.check("the front has not loaded the PKCS#11 module", !maps.contains("softhsm"))?;
    let mut bank = Bank::connect(&appliance).await?;
    narrator
        .note("The bank's backend connects with its client certificate (bank-a): mutual TLS 1.3, HTTP/2.")?;

    let mut hotp = enrol_hotp(&mut narrator, &bank, &appliance).await?;
    let mut totp = enrol_totp(&mut narrator, &bank).await?;
    first_codes(&mut narrator, &bank, &appliance, &mut hotp).await?;
    time_codes(&mut narrator, &bank, &mut totp).await?;
    lockout(&mut narrator, &bank, &mut hotp).await?;
    ocra::with_pin(&mut narrator, &bank, &appliance).await?;
    let clock = ocra::with_time(&mut narrator, &bank).await?;
    ocra::for_transactions(&mut narrator, &bank).await?;
    signers::es256(&mut narrator, &bank).await?;
    signers::rs256(&mut narrator, &bank).await?;
    let mut exchange = exchange::trade(&mut narrator, &bank, &appliance).await?;
    refusals::all(&mut narrator, &bank, &mut exchange).await?;
    payments::by_device(&mut narrator, &bank).await?;
    payments::by_authenticator(&mut narrator, &bank).await?;
    payments::through_a_tampering_relay(&mut narrator, &bank).await?;
    let mut gateway = Bank::connect_as(&appliance, "bank-a-gateway", "gateway").await?;
    let stranger = Bank::connect_as(&appliance, "bank-b", "bank-b").await?;
    let mut script = Script::start()?;
    let phones = phones::all(&mut narrator, &bank, &gateway, &mut script, &exchange).await?;
    let mut app = rolling::all(&mut narrator, &bank, &mut script, &exchange).await?;
    let parties = Parties { bank: &bank, gateway: &gateway, stranger: &stranger };
    let phone = presented::all(&mut narrator, &parties, &mut script, &exchange).await?;

    narrator.heading("A restart forgets nothing")?;
    narrator.text("The operator stops the appliance (SIGTERM) and starts it on the same folder.")?;
    appliance.stop()?;
    appliance.start(&mut narrator)?;
    bank = Bank::connect(&appliance).await?;
    gateway = Bank::connect_as(&appliance, "bank-a-gateway", "gateway").await?;
    used_stays_used(&mut narrator, &bank, &mut hotp).await?;
    used_stays_used(&mut narrator, &bank, &mut totp).await?;
    exchange.is_remembered(&mut narrator, &bank).await?;
    phones.are_remembered(&mut narrator, &bank, &gateway).await?;
    app.is_remembered(&mut narrator, &bank, &mut script).await?;
    phone.is_remembered(&mut narrator, &bank).await?;

    narrator.heading("Nor does a crash: kill -9, right after a yes")?;
    appliance.crash()?;
    narrator.note("The supervisor was killed with SIGKILL; front and custodian die with it.")?;
    appliance.start(&mut narrator)?;
    bank = Bank::connect(&appliance).await?;
    // The step after next would be too early, so the phone shows no new code here.
    narrator.step("the phone's code from before the crash, again");
    bank.verify(&mut narrator, &totp.id, &totp.last).await?.is_refused(&mut narrator, 5)?;
    used_stays_used(&mut narrator, &bank, &mut hotp).await?;

    ocra::answered_stays_answered(&mut narrator, &bank, &clock).await?;

    custodian_dies(&mut narrator, &bank, &appliance, &mut hotp).await?;
    operator::metrics(&mut narrator, &bank, &appliance, &mut hotp).await?;
    operator::description(&mut narrator, &bank).await?;

    narrator.heading("What is on the disk")?;
    let ocra_secrets = ocra::secrets();
    let mut secrets: Vec<&[u8]> = ocra_secrets.iter().map(Vec::as_slice).collect();
    secrets.extend([TOKEN_SEED, &totp.seed]);
    secrets.extend(exchange::SEEDS);
    let rolling = app.secrets()?;
    secrets.extend(rolling.iter().map(Vec::as_slice));
    secrets.extend(phones.secrets.iter().chain(&phone.codes).map(String::as_bytes));
    let searched = appliance.search_database(&secrets)?;
    narrator.check(
        &format!("no seed and no hash of a PIN is in the database and its WAL ({searched} bytes)"),
        true,
    )?;
    narrator
        .check("nor a code of the phones, a temporary code, an identity key or a presented code", true)?;
    narrator.note("Seeds and keys are ciphertexts there, under keys that do not leave the HSM.")?;
    appliance.stop()?;
    narrator.summary()
}

/// A token as the user holds it, and the credential that the bank enrolled for it.
struct Token {
    id: String,
    seed: Vec<u8>,
    digits: u32,
    /// The counter or time step of its next code.
    next: u64,
    /// The code that was accepted last.
    last: String,
}

impl Token {
    /// RFC 4226, section 5.3, over HMAC-SHA-1.
    fn code(&self, factor: u64) -> Outcome<String> {
        let mut mac = Hmac::<sha1::Sha1>::new_from_slice(&self.seed).map_err(words)?;
        mac.update(&factor.to_be_bytes());
        Ok(truncated(&mac.finalize().into_bytes(), self.digits))
    }

    /// The next code; the one after it will be another.
    fn next_code(&mut self) -> Outcome<String> {
        self.last = self.code(self.next)?;
        self.next += 1;
        Ok(self.last.clone())
    }

    /// Codes that are wrong whichever is expected.
    fn wrong_codes(&self, count: usize) -> Outcome<Vec<String>> {
        let from = self.next.saturating_sub(TRIED);
        let right = (from..self.next + TRIED).map(|factor| self.code(factor)).collect::<Outcome<Vec<_>>>()?;
        let all = (0..).map(|n: u32| format!("{n:0width$}", width = self.digits as usize));
        Ok(all.filter(|code| !right.contains(code)).take(count).collect())
    }
}

/// RFC 4226, section 5.3.
fn truncated(mac: &[u8], digits: u32) -> String {
    let offset = usize::from(mac.last().unwrap_or(&0) & 15);
    let word = mac.iter().skip(offset).take(4).fold(0, |word, byte| word << 8 | u32::from(*byte));
    let code = (word & 0x7fff_ffff) % 10u32.pow(digits);
    format!("{code:0width$}", width = digits as usize)
}

async fn enrol_hotp(narrator: &mut Narrator, bank: &Bank, appliance: &Appliance) -> Outcome<Token> {
    narrator.heading("A hardware token (HOTP): its seed comes from the factory")?;
    let body = json!({ "type": "hotp", "account": "account-1001", "seed_hex": HEXLOWER.encode(TOKEN_SEED) });
    narrator.step("enrol the token for account-1001");
    let answer = bank.post(narrator, "/v1/credentials", &body).await?;
    answer.is(narrator, 201, "the credential is enrolled")?;
    narrator
        .check("the answer does not hold the seed", !answer.text.contains(&HEXLOWER.encode(TOKEN_SEED)))?;
    narrator.inside(&format!(
        "The seed came in the clear: it passed the memory of front {} this once, then custodian {} put it \
         into the HSM and wrapped it. What is stored is the wrapped blob.",
        appliance.pid_of("front")?,
        appliance.pid_of("custodian")?,
    ))?;
    Ok(Token { id: answer.id()?, seed: TOKEN_SEED.to_vec(), digits: 6, next: 0, last: String::new() })
}

async fn enrol_totp(narrator: &mut Narrator, bank: &Bank) -> Outcome<Token> {
    narrator.heading("A phone (TOTP): its seed is generated in the HSM and exported once")?;
    let body = json!({ "type": "totp", "account": "account-1002", "digits": 8, "export": "otpauth" });
    narrator.step("enrol the phone for account-1002");
    let answer = bank.post(narrator, "/v1/credentials", &body).await?;
    answer.is(narrator, 201, "the credential is enrolled")?;
    let uri = answer.json["otpauth"].as_str().ok_or("the answer holds no otpauth URI")?;
    let secret = uri.split(['?', '&']).find_map(|part| part.strip_prefix("secret="));
    let seed = BASE32_NOPAD.decode(secret.unwrap_or_default().as_bytes()).map_err(words)?;
    narrator.check("the otpauth URI holds a seed of 20 bytes", seed.len() == 20)?;
    narrator.inside(
        "The random bytes are the HSM's. Because the bank asked for an export, they passed the custodian \
         and the front once, into this one answer. The user scans it; nobody can ask for it again.",
    )?;
    let id = answer.id()?;
    let again = bank.get(narrator, &format!("/v1/credentials/{id}")).await?;
    again.is(narrator, 200, "the credential can be read")?;
    narrator.check("this time without a seed", again.json.get("otpauth").is_none())?;
    Ok(Token { id, seed, digits: 8, next: 0, last: String::new() })
}

async fn first_codes(
    narrator: &mut Narrator,
    bank: &Bank,
    appliance: &Appliance,
    hotp: &mut Token,
) -> Outcome {
    narrator.heading("The token's codes: a right one, the same again, a wrong one")?;
    narrator.step("the user presses the button and types the code");
    let code = hotp.next_code()?;
    bank.verify(narrator, &hotp.id, &code).await?.is_accepted(narrator)?;
    let (front, custodian) = (appliance.pid_of("front")?, appliance.pid_of("custodian")?);
    narrator.inside(&format!(
        "Front {front} saw the submitted code, and which codes to try: counters 0 to 10. Custodian \
         {custodian} had the HSM unwrap the seed into a session object that cannot be extracted, and \
         compute the HMACs; it cut each to 6 digits, compared, and wiped it. Back to the front went which \
         counter matched, and the seals of the rows that this writes. The front committed them (fsync), \
         then answered."
    ))?;
    narrator.step("somebody who looked over the shoulder types it again");
    bank.verify(narrator, &hotp.id, &code).await?.is_refused(narrator, 5)?;
    narrator
        .inside("A code is accepted once. The repeat costs no attempt: a double click locks nobody out.")?;
    narrator.step("somebody guesses");
    let wrong = hotp.wrong_codes(1)?.concat();
    bank.verify(narrator, &hotp.id, &wrong).await?.is_refused(narrator, 4)?;
    narrator.inside("A miss is charged in the same commit that decides it. The right code stays secret.")
}

async fn time_codes(narrator: &mut Narrator, bank: &Bank, totp: &mut Token) -> Outcome {
    narrator.heading("The phone's codes")?;
    narrator.step("the code of the present 30 seconds");
    totp.next = now_s()? / PERIOD_S;
    let code = totp.next_code()?;
    bank.verify(narrator, &totp.id, &code).await?.is_accepted(narrator)?;
    narrator.step("the same code within its 30 seconds");
    bank.verify(narrator, &totp.id, &code).await?.is_refused(narrator, 5)?;
    narrator.step("a wrong one");
    let wrong = totp.wrong_codes(1)?.concat();
    bank.verify(narrator, &totp.id, &wrong).await?.is_refused(narrator, 4)
}

async fn lockout(narrator: &mut Narrator, bank: &Bank, hotp: &mut Token) -> Outcome {
    narrator.heading("Five wrong codes lock")?;
    narrator.step("a right code first: it forgives the guess from before");
    let code = hotp.next_code()?;
    bank.verify(narrator, &hotp.id, &code).await?.is_accepted(narrator)?;
    narrator.step("five guesses");
    for (remaining, wrong) in (0..5).rev().zip(hotp.wrong_codes(5)?) {
        bank.verify(narrator, &hotp.id, &wrong).await?.is_refused(narrator, remaining)?;
    }
    narrator.step("now the right code");
    let code = hotp.next_code()?;
    let answer = bank.verify(narrator, &hotp.id, &code).await?;
    answer.is(narrator, 423, "locked, although the code is right")?;
    let seconds = answer.json["retry_after"].as_u64().unwrap_or(0);
    narrator.check("for 15 minutes", (880..=900).contains(&seconds))?;
    narrator.inside("A lock is answered by the front from its rows: the HSM was not asked.")?;
    narrator.step("the bank has spoken to its customer, and lifts the lock");
    let answer = bank.post(narrator, &format!("/v1/credentials/{}/unlock", hotp.id), &json!({})).await?;
    answer.is(narrator, 200, "unlocked")?;
    narrator.step("the same right code: it was not used up while locked");
    bank.verify(narrator, &hotp.id, &code).await?.is_accepted(narrator)
}

async fn used_stays_used(narrator: &mut Narrator, bank: &Bank, token: &mut Token) -> Outcome {
    narrator.step("the code from before");
    let answer = bank.verify(narrator, &token.id, &token.last).await?;
    answer.is(narrator, 403, "still used up")?;
    narrator.step("the next code");
    let code = token.next_code()?;
    bank.verify(narrator, &token.id, &code).await?.is_accepted(narrator)
}

async fn custodian_dies(
    narrator: &mut Narrator,
    bank: &Bank,
    appliance: &Appliance,
    hotp: &mut Token,
) -> Outcome {
    narrator.heading("The HSM's process crashes: no caller notices")?;
    let before = appliance.pid_of("custodian")?;
    kill(Pid::from_raw(before), Signal::SIGKILL).map_err(words)?;
    narrator
        .note(&format!("Custodian {before} was killed with SIGKILL, as a module that crashes would be."))?;
    narrator.step("the next code, at once");
    let code = hotp.next_code()?;
    bank.verify(narrator, &hotp.id, &code).await?.is_accepted(narrator)?;
    let after = appliance.pid_of("custodian")?;
    narrator.check(&format!("custodian {after} has taken its place"), after != before)
}

fn now_s() -> Outcome<u64> {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|since| since.as_secs()).map_err(words)
}

fn words(error: impl Display) -> String {
    error.to_string()
}
