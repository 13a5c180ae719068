//! OCRA tokens (RFC 6287) through the whole appliance.

use rusqlite::Connection as Database;
use serde_json::{Value, json};

use crate::bank::{act, credential, done, failed, path, refused};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, enrol, text};
use crate::ocra_token::{Input, OcraToken, golden, question, rfc};

/// When the RFC's codes with a time were shown: step 20107446 of minutes.
pub const NOW: u64 = 20_107_446 * 60;
pub const STEP: u64 = NOW / 60;

/// Suites by what their codes are used up by.
pub const PLAIN: &str = "OCRA-1:HOTP-SHA256-8:QA08";
pub const BY_TIME: &str = "OCRA-1:HOTP-SHA256-8:QN08-T1M";
pub const BY_COUNTER: &str = "OCRA-1:HOTP-SHA256-8:C-QN08";
pub const BY_BOTH: &str = "OCRA-1:HOTP-SHA256-8:C-QN08-PSHA1-T1M";

/// A question in a time step.
pub fn at(step: u64, text: &str) -> Input<'_> {
    Input { step: Some(step), ..question(text) }
}

/// Enrols a token for `/verify`.
pub async fn enrolled(bank: &Connection, suite: &str, account: &str) -> (String, OcraToken) {
    let token = OcraToken::new(suite);
    (enrol(bank, &token.enrolment(account)).await, token)
}

/// How many inputs are remembered.
pub fn inputs(daemon: &Daemon) -> i64 {
    let database = Database::open(daemon.database()).unwrap();
    database.query_row("SELECT count(*) FROM used_input", [], |row| row.get(0)).unwrap()
}

/// The body that submits a code for what was asked.
pub fn submission(otp: &str, input: Input<'_>) -> Value {
    let mut body = json!({ "otp": otp, "challenge": input.question });
    if let Some(session) = input.session {
        body["session"] = json!(std::str::from_utf8(session).unwrap());
    }
    body
}

/// Submits a code.
pub async fn answer(bank: &Connection, id: &str, otp: &str, input: Input<'_>) -> Response {
    bank.post(&path(id, "verify"), &submission(otp, input)).await.unwrap()
}

/// Submits two consecutive codes for one question.
pub async fn resync(bank: &Connection, id: &str, otps: [String; 2], input: Input<'_>) -> Response {
    let mut body = submission("", input);
    body.as_object_mut().unwrap().remove("otp");
    body["otps"] = json!(otps);
    bank.post(&path(id, "resync"), &body).await.unwrap()
}

/// A code that differs in its last digit.
pub fn wrong(otp: &str) -> String {
    let (rest, last) = otp.split_at(otp.len() - 1);
    format!("{rest}{}", (last.parse::<u8>().unwrap() + 1) % 10)
}

/// Verifies once; refused and not charged a second time; another code is charged.
async fn verifies_once(bank: &Connection, id: &str, otp: &str, input: Input<'_>, what: &str) {
    let first = answer(bank, id, otp, input).await;
    assert_eq!(first.status, 200, "{what}: {}", text(&first));
    assert_eq!(done(&first)["verified"], true);
    assert_eq!(failed(&answer(bank, id, otp, input).await), 5, "{what}: a repeat costs nothing");
    assert_eq!(failed(&answer(bank, id, &wrong(otp), input).await), 4, "{what}");
    assert_eq!(failed(&answer(bank, id, otp, input).await), 4, "{what}: it gives nothing back either");
}

#[tokio::test]
async fn known_codes_verify_once() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let mut enrolled: Vec<(OcraToken, String)> = Vec::new();
    let mut questions_of_two = 0;
    // The API's sessions are text; those of the golden codes are not: see `custodian_ocra.rs`.
    let vectors = rfc().into_iter().chain(golden().into_iter().filter(|vector| vector.session.is_none()));
    for (number, vector) in vectors.enumerate() {
        let same = |(token, _): &&(OcraToken, String)| {
            token.suite == vector.token.suite && token.seed == vector.token.seed
        };
        let known = enrolled.iter().find(same).map(|(_, id)| id.clone());
        let id = match known {
            Some(id) => id,
            None => {
                let mut body = vector.token.enrolment(&format!("acct-{number}"));
                if let Some(counter) = vector.counter {
                    body["counter"] = json!(counter);
                }
                let id = enrol(&bank, &body).await;
                enrolled.push((vector.token.clone(), id.clone()));
                id
            }
        };
        verifies_once(&bank, &id, &vector.code, vector.input(), &vector.token.suite).await;
        questions_of_two += usize::from(vector.token.suite.contains("QA08") && vector.question.len() == 16);
    }
    assert_eq!(questions_of_two, 20, "the mutual mode");
}

#[tokio::test]
async fn every_data_input_counts() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let session = "s\u{e9}ance \u{1f3e6}";
    for (number, suite) in [
        "OCRA-1:HOTP-SHA1-6:C-QN08-PSHA1-S064-T1M",
        "OCRA-1:HOTP-SHA256-7:C-QA08-PSHA256-S012-T30S",
        "OCRA-1:HOTP-SHA512-8:QH64-PSHA512-S512-T48H",
        "OCRA-1:HOTP-SHA256-9:QN64-S128",
        "OCRA-1:HOTP-SHA512-10:C-QA64-T59M",
        "OCRA-1:HOTP-SHA1-10:QH08-PSHA1",
    ]
    .into_iter()
    .enumerate()
    {
        let token = OcraToken::new(suite);
        let (counter, step_s) = (1_u64 << 40, period_s(suite));
        let mut body = token.enrolment(&format!("acct-{number}"));
        if suite.contains(":C-") {
            body["counter"] = json!(counter);
        }
        let id = enrol(&bank, &body).await;
        let length = suite.split(":").last().unwrap().trim_start_matches("C-")[2..4].parse().unwrap();
        let question = "1357902468".repeat(7)[..length].to_owned();
        let input = Input {
            question: &question,
            counter: Some(counter),
            session: has_session(suite).then_some(session.as_bytes()),
            step: step_s.map(|period_s| NOW / period_s),
        };
        let other_pin =
            token.pin.as_ref().map(|_| OcraToken { pin: Some("1235".to_owned()), ..token.clone() });
        let mut others = vec![
            ("seed", OcraToken { seed: vec![7; 20], ..token.clone() }.code(input)),
            ("question", token.code(Input { question: &question.replace('1', "2"), ..input })),
        ];
        others.extend(other_pin.map(|other| ("PIN", other.code(input))));
        others.extend(input.session.map(|_| ("session", token.code(Input { session: Some(b"x"), ..input }))));
        others
            .extend(step_s.map(|_| ("step", token.code(Input { step: input.step.map(|s| s + 2), ..input }))));
        if suite.contains(":C-") {
            others.push(("counter", token.code(Input { counter: Some(counter + 11), ..input })));
        }
        for (what, code) in others {
            failed(&answer(&bank, &id, &code, input).await);
            done(&act(&bank, &id, "unlock").await);
            println!("{suite}: another {what} is wrong");
        }
        verifies_once(&bank, &id, &token.code(input), input, suite).await;
    }
}

fn has_session(suite: &str) -> bool {
    let inputs = suite.rsplit_once(':').unwrap().1;
    inputs.split('-').any(|input| input.starts_with('S'))
}

fn period_s(suite: &str) -> Option<u64> {
    let (_, time) = suite.rsplit_once("-T")?;
    let (count, unit) = time.split_at(time.len() - 1);
    Some(
        count.parse::<u64>().unwrap()
            * match unit {
                "S" => 1,
                "M" => 60,
                _ => 3_600,
            },
    )
}

/// RFC 6287 pads on the right: these are one challenge each, and have one code.
#[tokio::test]
async fn what_the_padding_makes_one_is_accepted_once() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    for (number, (format, ones, other)) in [
        ("QN08", vec!["00000001", "1", "16", "00000016", "256", "00000256"], "17"),
        ("QH08", vec!["a", "a0", "A0", "a0000000"], "0a"),
        ("QH08-S008", vec!["AB", "ab", "ab00"], "ab01"),
    ]
    .into_iter()
    .enumerate()
    {
        let token = OcraToken::new(&format!("OCRA-1:HOTP-SHA256-8:{format}"));
        let id = enrol(&bank, &token.enrolment(&format!("acct-{number}"))).await;
        let session = format.contains("-S").then_some(b"abc".as_slice());
        let asked = |text| Input { session, ..question(text) };
        let code = token.code(asked(ones[0]));
        done(&answer(&bank, &id, &code, asked(ones[0])).await);
        for one in ones {
            assert_eq!(token.code(asked(one)), code, "{one}");
            assert_eq!(failed(&answer(&bank, &id, &code, asked(one)).await), 5, "{one}");
        }
        if session.is_some() {
            let padded = Input { session: Some(b"\0abc"), ..question("ab") };
            assert_eq!(failed(&answer(&bank, &id, &code, padded).await), 5, "zeros before a session");
        }
        done(&answer(&bank, &id, &token.code(asked(other)), asked(other)).await);
    }
}

#[tokio::test]
async fn a_pin_is_kept_as_its_credentials_own_secret() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let token = OcraToken::new("OCRA-1:HOTP-SHA256-8:QN08-PSHA1");
    let mut ids = Vec::new();
    for pin in ["1234", "1234", "p\u{ef}n \u{1f511} 1234", &"9".repeat(64)] {
        let token = OcraToken { pin: Some(pin.to_owned()), ..token.clone() };
        let id = enrol(&bank, &token.enrolment(&format!("acct-{}", ids.len()))).await;
        let other = OcraToken { pin: Some("1243".to_owned()), ..token.clone() };
        assert_eq!(failed(&answer(&bank, &id, &other.code(question("1")), question("1")).await), 4);
        done(&answer(&bank, &id, &token.code(question("1")), question("1")).await);
        let shown = credential(&bank, &id).await.to_string();
        assert!(!shown.contains(pin) && !shown.contains("pin"), "{shown}");
        ids.push(id);
    }
    let database = Database::open(daemon.database()).unwrap();
    let mut statement = database.prepare("SELECT pin_hash FROM credential").unwrap();
    let blobs: Vec<Vec<u8>> =
        statement.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect();
    assert_eq!(blobs.len(), ids.len());
    for (place, blob) in blobs.iter().enumerate() {
        assert_eq!(blob.len(), 12 + 20 + 16);
        assert!(blobs[..place].iter().all(|other| other[..12] != blob[..12] && other[12..] != blob[12..]));
    }
}

/// What decides that a code is right, changed by somebody who has the database.
#[tokio::test]
async fn an_edited_row_verifies_nothing() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let token = OcraToken::new("OCRA-1:HOTP-SHA1-6:QN08-PSHA1-T1M");
    let body = token.enrolment("acct-1");
    let id = enrol(&bank, &body).await;
    let mut other = token.enrolment("acct-2");
    other["use"] = json!("transaction");
    other["seed_hex"] = json!("a5".repeat(20));
    let other = enrol(&bank, &other).await;
    let input = Input { step: Some(STEP), ..question("12345678") };
    let code = token.code(input);
    done(&answer(&bank, &id, &code, input).await);
    let database = Database::open(daemon.database()).unwrap();
    database.busy_timeout(std::time::Duration::from_secs(10)).unwrap();
    let hex = |account: &str| -> String {
        let sql = "SELECT hex(id) FROM credential WHERE account = ?1";
        database.query_row(sql, [account], |row| row.get(0)).unwrap()
    };
    let (hex, other_hex) = (hex("acct-1"), hex("acct-2"));
    for (table, edit) in [
        // Its own columns: the seal.
        ("credential", "suite = 'OCRA-1:HOTP-SHA1-6:QN08-PSHA1-T2M'"),
        ("credential", "skew_steps = 2"),
        ("credential", "look_ahead = 1"),
        ("credential", "data_version = 2"),
        ("credential", "pin_hash = (SELECT b.pin_hash FROM credential b WHERE b.account = 'acct-2')"),
        ("credential", "secret = (SELECT b.secret FROM credential b WHERE b.account = 'acct-2')"),
        ("credential", "data_version = NULL, pin_hash = NULL"),
        // Those of other types: the parser.
        ("credential", "algorithm = 'SHA1'"),
        ("credential", "digits = 6"),
        ("credential", "period_s = 60"),
        ("credential", "public_key = x'00'"),
        ("credential", "pin_hash = NULL"),
        ("credential", "type = 'signer'"),
        ("used_input", "time_step = NULL"),
        ("used_input", "time_step = 1"),
        ("used_input", "expires_unix_ms = 1"),
        ("used_input", "expires_unix_ms = NULL"),
        ("used_input", "tenant = 'bank-b'"),
        ("used_input", "version = 2"),
        ("credential_state", "next_factor = 1"),
    ] {
        database
            .execute_batch(&format!(
                "BEGIN; CREATE TABLE kept AS SELECT * FROM {table}; UPDATE {table} SET {edit} WHERE id = x'{hex}'; COMMIT"
            ))
            .unwrap();
        for otp in [&*code, "000000"] {
            let answer = answer(&bank, &id, otp, input).await;
            refused(&answer, 503, "unavailable");
        }
        database
            .execute_batch(&format!(
                "BEGIN; DELETE FROM {table}; INSERT INTO {table} SELECT * FROM kept; DROP TABLE kept; COMMIT"
            ))
            .unwrap();
    }
    assert_eq!(failed(&answer(&bank, &id, &code, input).await), 5);
    // Nor does a token for transactions become one for questions that somebody made up.
    let edit = format!("UPDATE credential SET usage = 'verify' WHERE id = x'{other_hex}'");
    assert_eq!(database.execute(&edit, []), Ok(1));
    refused(&answer(&bank, &other, &code, input).await, 503, "unavailable");
}

#[tokio::test]
async fn two_codes_for_one_question_find_a_counter() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for (number, (suite, usage)) in
        [(BY_COUNTER, "verify"), (BY_COUNTER, "transaction"), (BY_BOTH, "transaction")]
            .into_iter()
            .enumerate()
    {
        let token = OcraToken::new(suite);
        let mut body = token.enrolment(&format!("acct-{number}"));
        body["use"] = json!(usage);
        let id = enrol(&bank, &body).await;
        let asked = |counter, step| Input { counter: Some(counter), ..at(step, "12345678") };
        let pair = |first: u64| [first, first + 1].map(|counter| token.code(asked(counter, STEP)));
        let find = async |otps| resync(&bank, &id, otps, question("12345678")).await;
        let found = done(&find(pair(500)).await);
        assert_eq!(found, json!({ "resynced": true, "id": id, "account": format!("acct-{number}") }));
        assert_eq!(credential(&bank, &id).await["counter"], 502);
        assert_eq!(failed(&find(pair(500)).await), 5, "the same two again cost nothing");
        assert_eq!(failed(&find(pair(499)).await), 4, "used up");
        assert_eq!(failed(&find(pair(501)).await), 3, "one of them is used up");
        let [first, second] = pair(600);
        assert_eq!(failed(&find([second, first]).await), 2, "the wrong way round");
        let other = resync(&bank, &id, pair(600), question("12345679")).await;
        assert_eq!(failed(&other), 1, "of another question");
        done(&act(&bank, &id, "unlock").await);
        assert_eq!(failed(&find(pair(502 + 1_000)).await), 4, "beyond the window");
        done(&find(pair(502 + 999)).await);
        assert_eq!(credential(&bank, &id).await["counter"], 1_503);
        if suite == BY_BOTH {
            // Between the two codes the step may have changed.
            let later = [token.code(asked(1_600, STEP)), token.code(asked(1_601, STEP + 1))];
            done(&find(later.clone()).await);
            assert_eq!(failed(&find(later).await), 5);
        }
        let next = credential(&bank, &id).await["counter"].as_u64().unwrap();
        let last = answer(&bank, &id, &token.code(asked(next - 1, STEP)), question("12345678")).await;
        let fresh = answer(&bank, &id, &token.code(asked(next, STEP)), question("12345678")).await;
        if usage == "verify" {
            assert_eq!(failed(&last), 5, "the second one is the one accepted last");
            done(&fresh);
        } else {
            refused(&last, 409, "state-conflict");
            refused(&fresh, 409, "state-conflict");
        }
    }
    for (number, suite) in [PLAIN, BY_TIME].into_iter().enumerate() {
        let (id, token) = enrolled(&bank, suite, &format!("without-{number}")).await;
        let otps = [STEP, STEP + 1].map(|step| token.code(at(step, "12345678")));
        refused(&resync(&bank, &id, otps, question("12345678")).await, 409, "state-conflict");
        assert_eq!(credential(&bank, &id).await["failures"], 0);
    }
}

#[tokio::test]
async fn a_token_for_transactions_never_tells_whether_a_code_is_right() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for (number, suite) in [PLAIN, BY_TIME, BY_COUNTER, BY_BOTH].into_iter().enumerate() {
        let token = OcraToken::new(suite);
        let mut body = token.enrolment(&format!("acct-{number}"));
        body.as_object_mut().unwrap().remove("use");
        let id = enrol(&bank, &body).await;
        let before = credential(&bank, &id).await;
        assert_eq!(before["use"], "transaction", "it is the default");
        let input = Input { counter: Some(0), ..at(STEP, "12345678") };
        let code = token.code(input);
        for _ in 0..7 {
            for otp in [&*code, &wrong(&code), "123456"] {
                let answer = answer(&bank, &id, otp, input).await;
                refused(&answer, 409, "state-conflict");
            }
            let without = bank.post(&path(&id, "verify"), &json!({ "otp": code })).await.unwrap();
            refused(&without, 409, "state-conflict");
        }
        assert_eq!(credential(&bank, &id).await, before);
        assert_eq!(inputs(&daemon), 0);
    }
}
