//! Every kind of thing that a bank asks of the appliance, each time with secrets that are random and written down, so that
//! they can be looked for.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD, HEXLOWER};
use serde_json::{Value, json};
use sha2::Digest;

use crate::bank::{act, delete, done, failed, path, refused, resync};
use crate::client::{Connection, Response};
use crate::daemon::{enrol, text};
use crate::multi_terminal::{self, rule};
use crate::needles::{Kind, Needles};
use crate::ocra_token::{Input, OcraToken, mac_of, question};
use crate::presenting::{self, Sms, claimed};
use crate::rolling_terminal::{Terminal, activate, enrol_pending, order, quick_key};
use crate::transactions::{self, Holder};
use crate::transactions_client::{Approver, Hand, bound, respond};
use crate::wrapped_seeds::Wrapper;

/// Seeds have so many bytes: three pieces of a search.
const SEED_BYTES: usize = 48;
const JSON: (&str, &str) = ("content-type", "application/json");

/// Random text of so many characters, a multiple of four.
pub fn random_text(characters: usize) -> String {
    BASE64URL_NOPAD.encode(&random(characters / 4 * 3))
}

fn random(length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// The code of any hash: RFC 4226, section 5.3.
fn code(hash: &str, seed: &[u8], factor: u64) -> String {
    let mac = mac_of(hash, seed, &factor.to_be_bytes());
    let offset = usize::from(mac[mac.len() - 1] & 15);
    let word = u32::from_be_bytes(mac[offset..offset + 4].try_into().unwrap()) & 0x7fff_ffff;
    format!("{:08}", word % 100_000_000)
}

/// A code that differs in its last digit.
fn wrong(code: &str) -> String {
    crate::ocra::wrong(code)
}

/// A bank that keeps a list of all its secrets.
pub struct Life {
    pub bank: Connection,
    /// Sees codes that are delivered.
    pub gateway: Connection,
    pub auditor: Connection,
    /// HTTP/2: on HTTP/1.1 a body that is too large ends the connection.
    pub another: Connection,
    pub wrapper: Wrapper,
    pub needles: Arc<Mutex<Needles>>,
    /// What was answered to requests that hand nothing out.
    pub answers: Arc<Mutex<Vec<u8>>>,
}

impl Life {
    fn note(&self, kind: Kind, secret: impl AsRef<[u8]>) {
        self.needles.lock().unwrap().add(kind, secret.as_ref());
    }

    fn keep(&self, answer: &Response) {
        let mut answers = self.answers.lock().unwrap();
        answers.extend(format!("{} {:?} ", answer.status, answer.headers).into_bytes());
        answers.extend(&answer.body);
        answers.push(b'\n');
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: String) -> Response {
        let answer = self.bank.request(method, path, headers, body).await.unwrap();
        self.keep(&answer);
        answer
    }

    async fn verify(&self, id: &str, body: Value) -> Response {
        for member in ["otp", "code"] {
            if let Some(code) = body[member].as_str() {
                self.note(Kind::Submitted, code);
            }
        }
        self.ask("POST", &path(id, "verify"), &[JSON], body.to_string()).await
    }

    fn seed(&self, kind: Kind) -> Vec<u8> {
        let seed = random(SEED_BYTES);
        self.note(kind, &seed);
        seed
    }

    /// About 75 requests, all of them about accounts of this name.
    pub async fn go_on(&self, name: &str) {
        self.one_time_passwords(name).await;
        self.ocra(name).await;
        self.terminals(name).await;
        self.rolling(name).await;
        self.presented(name).await;
        self.authorized(name).await;
        self.transactions(name).await;
        self.what_is_no_request(name).await;
        self.reads().await;
    }

    async fn one_time_passwords(&self, name: &str) {
        // In the clear.
        let seed = self.seed(Kind::ClearSeed);
        let body = json!({ "type": "hotp", "account": format!("{name}-clear"), "digits": 8,
            "seed_hex": HEXLOWER.encode(&seed) });
        let id = enrol(&self.bank, &body).await;
        let of = |counter| code("SHA1", &seed, counter);
        done(&self.verify(&id, json!({ "otp": of(0) })).await);
        failed(&self.verify(&id, json!({ "otp": of(0) })).await);
        failed(&self.verify(&id, json!({ "otp": wrong(&of(1)) })).await);
        // Remembered by a key.
        let key = format!("{name}-key");
        self.note(Kind::Submitted, of(1));
        for _ in 0..2 {
            let keyed = [JSON, ("idempotency-key", &key)];
            let body = json!({ "otp": of(1) }).to_string();
            done(&self.ask("POST", &path(&id, "verify"), &keyed, body).await);
        }
        let ahead = [of(40), of(41)];
        ahead.iter().for_each(|code| self.note(Kind::Submitted, code));
        done(&resync(&self.bank, &id, ahead).await);
        for action in ["suspend", "resume"] {
            done(&act(&self.bank, &id, action).await);
        }
        // Locked by guesses.
        for counter in 50..56 {
            let answer = self.verify(&id, json!({ "otp": wrong(&of(counter)) })).await;
            assert!([403, 423].contains(&answer.status.as_u16()), "{}", text(&answer));
        }
        refused(&self.verify(&id, json!({ "otp": of(42) })).await, 423, "locked");
        done(&act(&self.bank, &id, "unlock").await);
        assert_eq!(delete(&self.bank, &id).await.status, 200);

        let seed = self.seed(Kind::ClearSeed);
        let body = json!({ "type": "totp", "account": format!("{name}-totp"), "digits": 8, "algorithm": "SHA256",
            "seed_base32": BASE32_NOPAD.encode(&seed) });
        let id = enrol(&self.bank, &body).await;
        done(&self.verify(&id, json!({ "otp": code("SHA256", &seed, unix_s() / 30) })).await);

        // Wrapped for the HSM.
        let seed = self.seed(Kind::WrappedSeed);
        let body = json!({ "type": "hotp", "account": format!("{name}-wrapped"), "digits": 8, "algorithm": "SHA512",
            "seed_wrapped_base64": self.wrapper.wrap(&seed) });
        let id = enrol(&self.bank, &body).await;
        for counter in 0..3 {
            let right = code("SHA512", &seed, counter);
            done(&self.verify(&id, json!({ "otp": right })).await);
            failed(&self.verify(&id, json!({ "otp": right })).await);
            failed(&self.verify(&id, json!({ "otp": wrong(&code("SHA512", &seed, counter + 1)) })).await);
        }

        // Made in the HSM.
        let made = json!({ "type": "totp", "account": format!("{name}-made") });
        enrol(&self.bank, &made).await;
        let made = json!({ "type": "totp", "account": format!("{name}-exported"), "digits": 8, "export": "otpauth" });
        let answer = self.bank.post("/v1/credentials", &made).await.unwrap();
        assert_eq!(answer.status, 201, "{}", text(&answer));
        let made = answer.json().unwrap();
        let uri = made["otpauth"].as_str().unwrap();
        let secret = uri.split("secret=").nth(1).unwrap().split('&').next().unwrap();
        let seed = BASE32_NOPAD.decode(secret.as_bytes()).unwrap();
        self.note(Kind::ExportedSeed, &seed);
        let otp = code("SHA1", &seed, unix_s() / 30);
        done(&self.verify(made["id"].as_str().unwrap(), json!({ "otp": otp })).await);
    }

    async fn ocra(&self, name: &str) {
        for (suite, kind) in [
            ("OCRA-1:HOTP-SHA256-10:QA08-PSHA1", Kind::ClearSeed),
            ("OCRA-1:HOTP-SHA512-10:C-QA08-PSHA256-S020", Kind::WrappedSeed),
        ] {
            let pin = random_text(32);
            self.note(Kind::OcraPin, &pin);
            self.note(Kind::OcraPinHash, sha1::Sha1::digest(&pin));
            self.note(Kind::OcraPinHash, sha2::Sha256::digest(&pin));
            let seed = self.seed(kind);
            let token = OcraToken { suite: suite.to_owned(), seed, pin: Some(pin) };
            let mut body = token.enrolment(&format!("{name}-{kind:?}"));
            if kind == Kind::WrappedSeed {
                body.as_object_mut().unwrap().remove("seed_hex");
                body["seed_wrapped_base64"] = json!(self.wrapper.wrap(&token.seed));
            }
            let id = enrol(&self.bank, &body).await;
            let session = suite.contains("-S0").then_some(b"session-of-its-own".as_slice());
            let input = Input { counter: Some(0), session, ..question("Question") };
            let right = token.code(input);
            for (otp, is_right) in [(wrong(&right), false), (right.clone(), true), (right.clone(), false)] {
                let answer = self.verify(&id, crate::ocra::submission(&otp, input)).await;
                assert_eq!(answer.status.is_success(), is_right, "{suite}: {}", text(&answer));
            }
        }
    }

    async fn terminals(&self, name: &str) {
        let payer = multi_terminal::Payer::enrol(&self.bank, &format!("{name}-terminals"), 3).await;
        for order in ["preset_order", "ascending"] {
            let asked = payer.asked(&self.gateway, &rule(order)).await;
            asked.codes.iter().for_each(|code| self.note(Kind::HandedOut, code));
            let right = multi_terminal::in_order(order, &asked.codes);
            let mut entered = right.clone();
            entered[0] = multi_terminal::other(&entered[0]);
            self.note(Kind::Submitted, &entered[0]);
            failed(&asked.at_once(&self.bank, &entered).await);
            let answer = asked.one_by_one(&self.bank, &right).await;
            self.keep(&answer);
            asked.approved(&self.bank, &answer).await;
        }
    }

    async fn rolling(&self, name: &str) {
        let account = format!("{name}-rolling");
        let (id, salt) = enrol_pending(&self.bank, &account).await;
        let key = quick_key(&random_text(8), &salt);
        self.note(Kind::IdentityKey, &key);
        let mut terminal = Terminal::bind(&self.bank, "bank-a", &account, &id, key).await;
        self.note(Kind::HandedOut, &terminal.code.0);
        let other_key = random(32);
        self.note(Kind::IdentityKey, &other_key);
        failed(&activate(&self.bank, &id, &other_key).await);
        for epoch in 1..4 {
            let transaction = order(&self.bank).await;
            let digest = bound("bank-a", &transaction).digest;
            let guess = terminal.code.proof(&[7; 32], &digest);
            let proof = terminal.code.proof(&terminal.identity_key, &digest);
            for secret in [guess, proof, terminal.code.rotation_proof()] {
                self.note(Kind::Submitted, secret);
            }
            failed(&respond(&self.bank, &transaction, &terminal.guess(&transaction)).await);
            let answer = respond(&self.bank, &transaction, &terminal.password(&transaction)).await;
            terminal.keep(&done(&answer)["next"]);
            self.note(Kind::HandedOut, &terminal.code.0);
            if epoch == 2 {
                self.note(Kind::Submitted, terminal.code.rotation_proof());
                done(&terminal.rotate(&self.bank).await);
            }
        }
    }

    async fn presented(&self, name: &str) {
        for (number, decision) in ["approve", "decline"].into_iter().enumerate() {
            let key = crate::security_devices::es256("canary");
            let account = format!("{name}-presents-{number}");
            let payer = presenting::Payer::with(&self.bank, "bank-a", &account, key, json!({})).await;
            let presented = payer.present(&self.bank, unix_s()).await;
            self.note(Kind::HandedOut, &presented.code);
            let transaction = claimed(&self.gateway, &presented.code).await;
            let again = presenting::claim(&self.gateway, &presented.code).await;
            assert!(again.status.is_client_error(), "{}", text(&again));
            done(&respond(&self.bank, &transaction, &payer.decides(decision, &transaction)).await);
            self.keep(&self.bank.get(&presented.path("")).await.unwrap());
        }
    }

    async fn authorized(&self, name: &str) {
        let account = format!("{name}-authorized");
        let key = crate::security_devices::es256("canary");
        let required = json!({ "authorization": "required" });
        let payer = presenting::Payer::with(&self.gateway, "bank-a", &account, key, required).await;
        let terminal = presenting::enrol_terminal(&self.gateway, &account, presenting::ADDRESS).await;
        let sms = Sms::begin(&self.gateway, &payer, &terminal).await;
        for way in ["downlink", "uplink"] {
            self.note(Kind::HandedOut, sms.code(way));
        }
        done(&sms.uplink(&self.gateway, &sms.uplink_body()).await);
        let mut guess = sms.completion();
        guess["downlink_code"] = json!(presenting::another(&sms.code("downlink")));
        self.note(Kind::Submitted, guess["downlink_code"].as_str().unwrap());
        assert!(sms.complete(&self.bank, &guess).await.status.is_client_error());
        let answer = sms.complete(&self.bank, &sms.completion()).await;
        self.keep(&answer);
        done(&answer);
    }

    async fn transactions(&self, name: &str) {
        let suite = "OCRA-1:HOTP-SHA512-10:QH64";
        let token = OcraToken { suite: suite.to_owned(), seed: self.seed(Kind::ClearSeed), pin: None };
        let account = format!("{name}-pays");
        let mut body = token.enrolment(&account);
        body["use"] = json!("transaction");
        let holder = Holder { account, credential: enrol(&self.bank, &body).await, token };
        let view = holder.asked(&self.bank).await;
        let (right, id) = (holder.code(&view), transactions::id(&view));
        for otp in [wrong(&right), right] {
            self.note(Kind::Submitted, &otp);
            self.keep(&transactions::respond(&self.bank, &id, &otp).await);
        }
        assert_eq!(transactions::transaction(&self.bank, &id).await["state"], "approved");
        let cancelled = holder.asked(&self.bank).await;
        done(&transactions::cancel(&self.bank, &transactions::id(&cancelled)).await);

        let (account, hand) = (format!("{name}-signs"), Hand::Es256(7));
        let device = Approver::enrol(&self.bank, "bank-a", &account, "device_signature", hand).await;
        let asked = device.transaction(&self.bank).await;
        done(&respond(&self.bank, &asked, &device.response(&asked, 0)).await);
        let attestation = transactions::attestation(&self.bank, &id).await;
        let body = json!({ "attestation": attestation });
        done(&self.bank.post("/v1/attestations/verify", &body).await.unwrap());
        self.keep(&self.bank.get(&transactions::path(&id, "qr")).await.unwrap());
    }

    /// Secrets where they do not belong: each is refused, and is nowhere afterwards.
    async fn what_is_no_request(&self, name: &str) {
        let (seed, pin, otp) = (HEXLOWER.encode(&self.seed(Kind::ClearSeed)), random_text(32), {
            format!("{:010}", getrandom::u64().unwrap() % 10_000_000_000)
        });
        self.note(Kind::OcraPin, &pin);
        self.note(Kind::Submitted, &otp);
        let (list, account) = ("/v1/credentials", format!("{name}-refused"));
        let whole = json!({ "type": "hotp", "account": account, "seed_hex": seed }).to_string();
        let fields = |fields: Value| {
            let mut body = json!({ "type": "hotp", "account": account });
            body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            body.to_string()
        };
        let large = fields(json!({ "seed_hex": seed, "account": "a".repeat(70_000) }));
        let none = "cred_00000000000000000000000000";
        for (what, to, kind, body) in [
            ("half of it", list.to_owned(), JSON.1, whole[..whole.len() - 1].to_owned()),
            ("no JSON", list.to_owned(), "text/plain", whole.clone()),
            ("an unknown field", list.to_owned(), JSON.1, fields(json!({ "seed": seed }))),
            ("a secret's name", list.to_owned(), JSON.1, fields(json!({ seed.clone(): 1 }))),
            ("a card's PIN", list.to_owned(), JSON.1, fields(json!({ "card_pin": pin }))),
            ("no hex", list.to_owned(), JSON.1, fields(json!({ "seed_hex": format!("x{seed}") }))),
            ("a number", list.to_owned(), JSON.1, fields(json!({ "seed_hex": seed, "digits": pin }))),
            ("a type", list.to_owned(), JSON.1, json!({ "type": seed }).to_string()),
            ("in the query", format!("{list}?seed_hex={seed}&pin={pin}&otp={otp}"), JSON.1, String::new()),
            ("in the path", format!("{list}/{seed}/verify"), JSON.1, json!({ "otp": otp }).to_string()),
            ("a code's path", format!("{list}/{otp}"), JSON.1, String::new()),
            ("nobody's", path(none, "verify"), JSON.1, json!({ "otp": otp }).to_string()),
            ("no code", path(none, "verify"), JSON.1, json!({ "otp": pin }).to_string()),
            ("a number for a code", path(none, "verify"), JSON.1, format!("{{\"otp\":{otp}}}")),
        ] {
            let headers = [(JSON.0, kind), ("x-unknown", pin.as_str())];
            let answer = self.ask("POST", &to, &headers, body).await;
            assert!(answer.status.is_client_error(), "{what}: {}", text(&answer));
        }
        let answer = self.another.request("POST", list, &[JSON], large).await.unwrap();
        self.keep(&answer);
        assert_eq!(answer.status, 413, "{}", text(&answer));
        let keyed = [JSON, ("idempotency-key", &format!("{pin} {pin}"))];
        assert_eq!(self.ask("POST", list, &keyed, whole).await.status, 422);
    }

    async fn reads(&self) {
        for path in [
            "/v1/credentials?limit=100",
            "/v1/transactions?limit=100",
            "/v1/jwks",
            "/v1/import-key",
            "/v1/openapi.json",
            "/v1/nothing",
        ] {
            self.keep(&self.bank.get(path).await.unwrap());
        }
        self.keep(&self.auditor.get("/v1/audit?limit=100").await.unwrap());
        self.keep(&self.auditor.get("/v1/credentials").await.unwrap());
    }
}
