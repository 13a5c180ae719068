//! What users, merchants and operators do, in steps: the stories that faults come into.

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use serde_json::{Value, json};

use crate::bank::path;
use crate::daemon::{code, enrol};
use crate::fault_asks::Ask;
use crate::fault_steps::{Run, id};
use crate::multi_terminal::{codes, in_order, other, rule, terminal};
use crate::ocra_token::{OcraToken, question};
use crate::presenting::{ADDRESS, Payer, Presented, Sms, at, enrol_terminal, order as till};
use crate::rolling_terminal::{Code, IDENTITY_CODE, Terminal, activation, order, order_body, quick_key};
use crate::signers::Device;
use crate::transactions_client::{self, Approver, FULL_QUESTION, Hand, create};
use crate::wrapped_seeds::{Wrapper, base64, padded};

/// A story.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Story {
    Imported,
    Generated,
    Exported,
    WrappedSeed,
    Ocra,
    Signature,
    ByCode,
    ByEs256,
    ByRs256,
    ByWebauthn,
    Rolling,
    Presented,
    Declined,
    Terminals,
    Sms,
    Renewal,
    Start,
    Rewrap,
    RotateRow,
    RotateKek,
    RotateData,
    RotateAttest,
}

type Told = Result<(), String>;

const VERIFIED_OCRA: &str = "OCRA-1:HOTP-SHA1-6:QN08-PSHA1";

impl Story {
    pub const ALL: [Self; 22] = [
        Self::Imported,
        Self::Generated,
        Self::Exported,
        Self::WrappedSeed,
        Self::Ocra,
        Self::Signature,
        Self::ByCode,
        Self::ByEs256,
        Self::ByRs256,
        Self::ByWebauthn,
        Self::Rolling,
        Self::Presented,
        Self::Declined,
        Self::Terminals,
        Self::Sms,
        Self::Renewal,
        Self::Start,
        Self::Rewrap,
        Self::RotateRow,
        Self::RotateKek,
        Self::RotateData,
        Self::RotateAttest,
    ];

    /// Each time there is another version of a key for good.
    pub fn wears_keys(self) -> bool {
        self >= Self::Rewrap
    }

    /// Whether it is another one where secrets are objects.
    pub fn has_secret(self) -> bool {
        self <= Self::Ocra || matches!(self, Self::Rolling | Self::Terminals | Self::Renewal | Self::Start)
    }

    /// Tells it.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn tell(self, run: &mut Run) -> Told {
        match self {
            Self::Imported => imported(run).await,
            Self::Generated => generated(run).await,
            Self::Exported => exported(run).await,
            Self::WrappedSeed => wrapped_seed(run).await,
            Self::Ocra => ocra(run).await,
            Self::Signature => signature(run).await,
            Self::ByCode => {
                approved(run, "challenge_response", transactions_client::token(FULL_QUESTION)).await
            }
            Self::ByEs256 => approved(run, "device_signature", Hand::Es256(1)).await,
            Self::ByRs256 => approved(run, "device_signature", transactions_client::rs256()).await,
            Self::ByWebauthn => approved(run, "device_signature", Hand::Authenticator(1)).await,
            Self::Rolling => rolling(run).await,
            Self::Presented => presented(run, "approve").await,
            Self::Declined => presented(run, "decline").await,
            Self::Terminals => terminals(run).await,
            Self::Sms => sms(run).await,
            Self::Renewal => renewal(run).await,
            Self::Start => start(run).await,
            Self::Rewrap => rewrap(run).await,
            Self::RotateRow => rotated(run, &["rotate", "row"]).await,
            Self::RotateKek => rotated(run, &["rotate", "kek"]).await,
            Self::RotateData => rotated(run, &["rotate", "data"]).await,
            Self::RotateAttest => rotated(run, &["rotate", "attest"]).await,
        }
    }
}

/// None of the first hundred.
fn wrong(seed: &[u8]) -> String {
    let right: Vec<String> = (0..100).map(|counter| code(seed, counter, 6)).collect();
    (0..).map(|number| format!("{number:06}")).find(|code| !right.contains(code)).unwrap()
}

fn verify(id: &str, otp: &str) -> Ask {
    Ask::post(path(id, "verify"), json!({ "otp": otp })).watching(path(id, "")).once()
}

fn now_s() -> u64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs()
}

async fn imported(run: &mut Run) -> Told {
    let seed = run.seed();
    let body = json!({ "type": "hotp", "account": run.account(), "seed_hex": HEXLOWER.encode(&seed) });
    let id = id(&run.step("enrol", Ask::post("/v1/credentials", body)).await?)?;
    run.step("right", verify(&id, &code(&seed, 0, 6))).await?;
    run.step("wrong", verify(&id, &wrong(&seed))).await?;
    run.step("next", verify(&id, &code(&seed, 1, 6))).await?;
    let otps = json!({ "otps": [code(&seed, 30, 6), code(&seed, 31, 6)] });
    run.step("resync", Ask::post(path(&id, "resync"), otps).watching(path(&id, "")).once()).await?;
    run.step("last", verify(&id, &code(&seed, 32, 6))).await?;
    Ok(())
}

async fn generated(run: &mut Run) -> Told {
    let body = json!({ "type": "hotp", "account": run.account(), "digits": 8 });
    let id = id(&run.step("enrol", Ask::post("/v1/credentials", body)).await?)?;
    // Nobody knows a right one; this is one by the rarest of accidents.
    run.step("wrong", verify(&id, "12345678")).await?;
    Ok(())
}

async fn exported(run: &mut Run) -> Told {
    let body = json!({ "type": "totp", "account": run.account(), "export": "otpauth" });
    let mut enrolled = run.step("enrol", Ask::post("/v1/credentials", body.clone())).await?;
    if enrolled["otpauth"].is_null() {
        // The answer with the seed was lost: the bank enrols again.
        enrolled = run.bank.post("/v1/credentials", &body).await.unwrap().json().unwrap();
    }
    let id = id(&enrolled)?;
    let url = enrolled["otpauth"].as_str().ok_or("no otpauth")?;
    let secret = url.split("secret=").nth(1).unwrap().split('&').next().unwrap();
    let seed = BASE32_NOPAD.decode(secret.as_bytes()).unwrap();
    run.step("right", verify(&id, &code(&seed, now_s() / 30, 6))).await?;
    let now = now_s() / 30;
    let right: Vec<_> = (now - 5..now + 10).map(|step| code(&seed, step, 6)).collect();
    let wrong = (0..).map(|number| format!("{number:06}")).find(|code| !right.contains(code)).unwrap();
    run.step("wrong", verify(&id, &wrong)).await?;
    Ok(())
}

async fn wrapped_seed(run: &mut Run) -> Told {
    let seed = run.seed();
    let blob = base64(&Wrapper::fetch(&run.bank).await.blob(&padded(&seed)));
    let body = json!({ "type": "hotp", "account": run.account(), "seed_wrapped_base64": blob });
    let id = id(&run.step("enrol", Ask::post("/v1/credentials", body)).await?)?;
    run.step("right", verify(&id, &code(&padded(&seed), 0, 6))).await?;
    Ok(())
}

fn answered(id: &str, token: &OcraToken, asked: &str, otp: Option<&str>) -> Ask {
    let otp = otp.map_or_else(|| token.code(question(asked)), str::to_owned);
    let body = json!({ "otp": otp, "challenge": asked });
    Ask::post(path(id, "verify"), body).watching(path(id, "")).once()
}

async fn ocra(run: &mut Run) -> Told {
    let token = OcraToken::new(VERIFIED_OCRA);
    let body = token.enrolment(&run.account());
    let id = id(&run.step("enrol", Ask::post("/v1/credentials", body)).await?)?;
    run.step("right", answered(&id, &token, "00000001", None)).await?;
    let other = token.code(question("00000003"));
    run.step("wrong", answered(&id, &token, "00000002", Some(&other))).await?;
    run.step("next", answered(&id, &token, "00000004", None)).await?;
    Ok(())
}

async fn signature(run: &mut Run) -> Told {
    let device = Device::new(1);
    let id = device.enrol(&run.bank, &run.account()).await;
    let body = device.submission(&id, b"pay 1").body;
    let ask = |body| Ask::post(path(&id, "verify"), body).watching(path(&id, "")).once();
    run.step("right", ask(body.clone())).await?;
    let mut other = device.submission(&id, b"pay 2").body;
    other["payload_base64"] = body["payload_base64"].clone();
    run.step("wrong", ask(other)).await?;
    Ok(())
}

fn respond(transaction: &Value, response: Value, credential: &str) -> Ask {
    let at = |of| transactions_client::at(transaction, of);
    Ask::post(at("responses"), response).watching(at("")).watching(path(credential, "")).once()
}

async fn verify_attestation(run: &mut Run, approved: &Value) -> Told {
    let body = json!({ "attestation": approved["attestation"] });
    run.step("attestation", Ask::post("/v1/attestations/verify", body).unkeyed()).await?;
    Ok(())
}

async fn approved(run: &mut Run, method: &'static str, hand: Hand) -> Told {
    let approver = Approver::enrol(&run.bank, "bank-a", &run.account(), method, hand).await;
    let transaction = run.step("create", Ask::post("/v1/transactions", approver.request())).await?;
    id(&transaction)?;
    let another = approver.transaction(&run.bank).await;
    run.step("wrong", respond(&transaction, approver.response(&another, 1), &approver.id)).await?;
    let right = approver.response(&transaction, 2);
    let approved = run.step("right", respond(&transaction, right, &approver.id)).await?;
    verify_attestation(run, &approved).await
}

async fn rolling(run: &mut Run) -> Told {
    let account = run.account();
    let body = json!({ "type": "rolling", "account": account });
    let enrolled = run.step("enrol", Ask::post("/v1/credentials", body)).await?;
    let (id, salt) = (id(&enrolled)?, enrolled["salt"].as_str().ok_or("no salt")?.to_owned());
    let identity_key = quick_key(IDENTITY_CODE, &salt);
    let activate = Ask::post(path(&id, "activate"), activation(&identity_key)).watching(path(&id, ""));
    let bound = run.step("activate", activate).await?;
    let code = Code::of(&bound["temporary_code"]);
    let mut terminal = Terminal { tenant: "bank-a", account, id, identity_key, epoch: 1, code };
    let order_of = run.step("order", Ask::post("/v1/transactions", order_body())).await?;
    run.step("wrong", respond(&order_of, terminal.guess(&order_of), &terminal.id)).await?;
    let paid = run.step("pay", respond(&order_of, terminal.password(&order_of), &terminal.id)).await?;
    verify_attestation(run, &paid).await?;
    let rotation = |terminal: &Terminal| {
        let body = terminal.code.rotation(terminal.epoch);
        Ask::post(path(&terminal.id, "rotation"), body).watching(path(&terminal.id, "")).once()
    };
    let handed_out = run.step("rotation", rotation(&terminal)).await?;
    terminal.keep(&paid["next"]);
    if Code::of(&handed_out["temporary_code"]) != terminal.code {
        return Err("another code was handed out".to_owned());
    }
    run.step("acknowledge", rotation(&terminal)).await?;
    let next = order(&run.bank).await;
    run.step("pay again", respond(&next, terminal.password(&next), &terminal.id)).await?;
    Ok(())
}

async fn presented(run: &mut Run, decision: &'static str) -> Told {
    let payer = Payer::enrol(&run.bank, "bank-a", &run.account()).await;
    let body = payer.body(now_s());
    let shown = run.step("present", Ask::post("/v1/presentations", body)).await?;
    id(&shown)?;
    let shown = Presented::of(&shown);
    let claim = Ask::post("/v1/transactions", till(&shown.code)).by_gateway();
    let transaction = run.step("claim", claim.once()).await?;
    id(&transaction)?;
    let mut wrong = payer.decides(decision, &transaction);
    wrong["signature"] = payer.body(now_s())["signature"].clone();
    run.step("wrong", respond(&transaction, wrong, &payer.id)).await?;
    let right = payer.decides(decision, &transaction);
    let decided = run.step("decide", respond(&transaction, right, &payer.id)).await?;
    match decision {
        "approve" => verify_attestation(run, &decided).await,
        _ => Ok(()),
    }
}

async fn terminals(run: &mut Run) -> Told {
    let account = run.account();
    let enrol_one = |number| Ask::post("/v1/credentials", terminal(&account, number));
    let first = id(&run.step("enrol", enrol_one(0)).await?)?;
    enrol(&run.bank, &terminal(&account, 1)).await;
    let body = json!({ "method": "multi_terminal", "payer": account, "rule": rule("ascending"), "payee": "Alice",
        "amount": "12.50", "currency": "EUR", "order": "order 7" });
    let transaction = run.step("create", Ask::post("/v1/transactions", body).by_gateway()).await?;
    id(&transaction)?;
    let right = in_order("ascending", &codes(&transaction));
    let mut wrong = right.clone();
    wrong[0] = other(&wrong[0]);
    run.step("wrong", respond(&transaction, json!({ "codes": wrong }), &first)).await?;
    run.step("entry", respond(&transaction, json!({ "code": right[0] }), &first).repeatable()).await?;
    let last = json!({ "code": right[1] });
    let approved = run.step("right", respond(&transaction, last, &first)).await?;
    verify_attestation(run, &approved).await
}

async fn sms(run: &mut Run) -> Told {
    let payer = Payer::unauthorized(&run.bank, "bank-a", &run.account()).await;
    let terminal = enrol_terminal(&run.bank, &run.account(), ADDRESS).await;
    let credential = path(&payer.id, "");
    let ask = |step: &str, body| Ask::post(at(&payer.id, step), body).by_gateway().watching(&*credential);
    let body = json!({ "method": "sms", "terminal": terminal });
    let begun = run.step("begin", ask("", body)).await?;
    if begun["uplink_code"].is_null() {
        return Err(format!("no codes: {begun}"));
    }
    let sms = Sms { payer: payer.clone(), terminal, begun };
    let wrong = json!({ "code": crate::presenting::another(&sms.code("uplink")), "from": ADDRESS });
    run.step("wrong", ask("/uplink", wrong)).await?;
    run.step("uplink", ask("/uplink", sms.uplink_body())).await?;
    run.step("complete", ask("/complete", sms.completion()).once()).await?;
    run.step("present", Ask::post("/v1/presentations", payer.body(now_s()))).await?;
    Ok(())
}

/// Everything in the HSM is used once.
async fn use_all(run: &mut Run, hotp: &str, ocra: &str, factor: u64) -> Told {
    let (seed, token) = (run.seed(), OcraToken::new(VERIFIED_OCRA));
    run.step("hotp", verify(hotp, &code(&seed, factor, 6))).await?;
    run.step("ocra", answered(ocra, &token, &format!("{factor:08}"), None)).await?;
    let account = run.account();
    let approver = Approver::enrol(&run.bank, "bank-a", &account, "device_signature", Hand::Es256(1)).await;
    let transaction = create(&run.bank, &approver.request()).await;
    let right = approver.response(&transaction, 2);
    let approved = run.step("approve", respond(&transaction, right, &approver.id)).await?;
    verify_attestation(run, &approved).await
}

async fn enrolled(run: &Run) -> (String, String) {
    let seed = HEXLOWER.encode(&run.seed());
    let hotp = json!({ "type": "hotp", "account": run.account(), "seed_hex": seed });
    let token = OcraToken::new(VERIFIED_OCRA);
    (enrol(&run.bank, &hotp).await, enrol(&run.bank, &token.enrolment(&run.account())).await)
}

async fn renewal(run: &mut Run) -> Told {
    let (hotp, ocra) = enrolled(run).await;
    let seed = run.seed();
    run.step("renewal", verify(&hotp, &code(&seed, 0, 6)).renewing()).await?;
    run.step("wrong", verify(&hotp, &wrong(&seed)).renewing()).await?;
    use_all(run, &hotp, &ocra, 1).await
}

async fn start(run: &mut Run) -> Told {
    let (hotp, ocra) = enrolled(run).await;
    let seed = run.seed();
    run.step("start", verify(&hotp, &code(&seed, 0, 6)).killing()).await?;
    run.step("wrong", verify(&hotp, &wrong(&seed))).await?;
    use_all(run, &hotp, &ocra, 1).await
}

async fn rewrap(run: &mut Run) -> Told {
    let (hotp, ocra) = enrolled(run).await;
    run.command("rotate", &["rotate", "kek"]).await?;
    run.command("rewrap", &["rewrap"]).await?;
    use_all(run, &hotp, &ocra, 0).await
}

async fn rotated(run: &mut Run, arguments: &'static [&'static str]) -> Told {
    let (hotp, ocra) = enrolled(run).await;
    run.command("rotate", arguments).await?;
    use_all(run, &hotp, &ocra, 0).await?;
    let (hotp, ocra) = enrolled(run).await;
    use_all(run, &hotp, &ocra, 0).await?;
    run.step("start", verify(&hotp, &code(&run.seed(), 1, 6)).killing()).await?;
    Ok(())
}
