//! `docs/transactions.md`: what it works out is what the code computes, and its limits are the code's.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use hsm_authd::domain::account::AccountRef;
use hsm_authd::domain::attestation::{self, Claims};
use hsm_authd::domain::caller::Tenant;
use hsm_authd::domain::id::{CredentialId, TransactionId};
use hsm_authd::domain::jws::JWS_BYTES_MAX;
use hsm_authd::domain::money::Money;
use hsm_authd::domain::ocra::{Challenge, Suite, data_input, question};
use hsm_authd::domain::otp::{Otp, truncate};
use hsm_authd::domain::qr::QR_BYTES_MAX;
use hsm_authd::domain::text::DisplayText;
use hsm_authd::domain::time::{BootId, Now, RunId};
use hsm_authd::domain::transaction::{
    CODES_MAX, LIFETIME_S_DEFAULT, LIFETIME_S_MAX, Label, Method, Progress, Remark, State, Step, StepError,
    Terms, Transaction, deadline,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::ocra_token::{hash_of, mac_of};

const PAGE: &str = include_str!("../../docs/transactions.md");
const LIFETIME_S: u32 = 3_600;

fn assert_said(text: &str) {
    assert!(PAGE.contains(text), "docs/transactions.md does not say: {text}");
}

/// The cells of each row of the table that begins with this head.
fn table(head: &str) -> Vec<Vec<String>> {
    let rows = PAGE.lines().skip_while(|line| *line != head).skip(2).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    let table: Vec<_> = rows.map(cells).collect();
    assert!(!table.is_empty(), "no table {head}");
    table
}

/// What stands in backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

fn golden() -> Value {
    serde_json::from_str(include_str!("../vectors/transaction.json")).unwrap()
}

/// When the worked example is made: an hour before its end.
fn now() -> Now {
    Now {
        unix_ms: 1_893_452_400_000,
        boot_ms: 0,
        boot_id: BootId([0; 16]),
        run: RunId([0; 16]),
        trusted: true,
        floor: Default::default(),
    }
}

fn example() -> Transaction {
    let document = golden();
    let field = |name: &str| document["transaction"]["fields"][name].as_str().unwrap().to_owned();
    Transaction {
        id: TransactionId::parse(&field("id")).unwrap(),
        tenant: Tenant::try_from(field("tenant")).unwrap(),
        version: 1,
        created_unix_ms: now().unix_ms,
        method: Method::ChallengeResponse {
            credential: CredentialId::from_random([0; 16]),
            suite: Suite::parse("OCRA-1:HOTP-SHA256-8:QN08").unwrap(),
        },
        terms: Terms {
            payer: Some(AccountRef::try_from(field("payer")).unwrap()),
            payee: Label::try_from(field("payee")).unwrap(),
            money: Money::new(&field("amount"), &field("currency")).unwrap(),
            order: Label::try_from(field("order")).unwrap(),
            platform: None,
            remark: None,
            parent: None,
            nonce: HEXLOWER.decode(field("nonce").as_bytes()).unwrap().try_into().unwrap(),
        },
        expires: deadline(&now(), LIFETIME_S),
        state: State::Pending,
        attempts_left: CODES_MAX,
        ended_unix_ms: None,
        authenticator: None,
        progress: Progress::None,
    }
}

#[test]
fn the_signing_input_is_taken_apart_byte_by_byte() {
    let bytes = example().signing_input();
    let mut at = 0;
    for row in table("| At | Length | Bytes | As text |") {
        let [position, length, hex, text] = row.try_into().unwrap();
        assert_eq!(position, at.to_string());
        assert_eq!(quoted(&length), [HEXLOWER.encode(&bytes[at..at + 4])]);
        let end = at + 4 + u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
        let part = &bytes[at + 4..end];
        match (part.len(), quoted(&hex).as_slice()) {
            (0, []) => assert!(text.ends_with(", absent"), "{text}"),
            (64, [beginning]) => assert!(HEXLOWER.encode(part).starts_with(beginning)),
            (_, whole) => assert_eq!(whole, [HEXLOWER.encode(part)]),
        }
        if !part.is_empty() {
            assert_eq!(quoted(&text), [str::from_utf8(part).unwrap()]);
        }
        at = end;
    }
    assert_eq!(at, bytes.len());
    assert_said(&format!("has {} bytes", bytes.len()));
    assert_said(&format!("signing_input  {}\n", BASE64URL_NOPAD.encode(&bytes)));
    assert_said(&format!("digest         {}\n", HEXLOWER.encode(&example().digest())));
}

#[test]
fn every_question_and_code_is_right() {
    let digest = example().digest();
    let key = "3132333435363738393031323334353637383930313233343536373839303132";
    assert_said(&format!("`{key}`"));
    let rows = table("| Suite | Question | C, P, T | Code |");
    for row in &rows {
        let [suite, asked, more, code] = row.as_slice() else { panic!("{row:?}") };
        let suite = Suite::parse(quoted(suite)[0]).unwrap();
        assert_eq!(quoted(asked), [question(&suite, &digest)]);
        let more: Vec<_> = more.split(", ").collect();
        let number = |place: usize| more.get(place).and_then(|text| text.parse::<u64>().ok());
        let pin_hash =
            suite.pin_hash().map(|algorithm| hash_of(algorithm.name(), more[1].trim_matches('`').as_bytes()));
        let challenge = Challenge::of_transaction(&suite, &digest).unwrap();
        let input = data_input(&suite, &challenge, number(0), pin_hash.as_deref(), number(2)).unwrap();
        let mac = mac_of(suite.algorithm().name(), &HEXLOWER.decode(key.as_bytes()).unwrap(), &input);
        let otp = Otp::parse(quoted(code)[0].to_owned()).unwrap();
        assert!(truncate(&mac, suite.digits()).unwrap().matches(&otp), "{row:?}");
    }
    assert_eq!(rows.len(), golden()["ocra"].as_array().unwrap().len());

    let suite = Suite::parse("OCRA-1:HOTP-SHA256-8:QN08").unwrap();
    let number: u64 = question(&suite, &digest).parse().unwrap();
    assert_said(&format!("D mod 90000000 is {}", number - 10_000_000));
    assert_said(&format!("which is {number:x} in hexadecimal"));
    let challenge = Challenge::of_transaction(&suite, &digest).unwrap();
    let input = data_input(&suite, &challenge, None, None, None).unwrap();
    let (name, rest) = input.split_at(suite.as_str().len());
    assert_eq!((name, rest.len()), (suite.as_str().as_bytes(), 129));
    assert_said(&format!("the suite's {} characters", name.len()));
    assert_said(&format!("`{}` and zeros", HEXLOWER.encode(&rest[1..5])));
    assert!(rest[5..].iter().all(|byte| *byte == 0));
}

#[test]
fn what_devices_sign_is_right() {
    let challenge = BASE64URL_NOPAD.encode(&example().digest());
    assert_said(&format!("`\"challenge\":\"{challenge}\"`"));
    let header = r#"{"alg":"ES256"}"#;
    assert_said(&format!("`{header}`"));
    let jws =
        [header.as_bytes(), &example().signing_input()].map(|part| BASE64URL_NOPAD.encode(part)).join(".");
    let begins = PAGE.split_once("JWS of the worked example begins `").unwrap().1.split_once('`').unwrap().0;
    assert!(begins.len() > 40 && jws.starts_with(begins), "{begins}");
}

#[test]
fn the_attestation_is_right() {
    let shown = PAGE.split_once("```json\n").unwrap().1.split_once("```").unwrap().0;
    let shown: Value = serde_json::from_str(shown).unwrap();
    let claims = Claims::new(&example(), "hsm-authd", now().unix_ms / 1_000, 24 * 3_600).to_json();
    assert_eq!(shown, serde_json::from_slice::<Value>(&claims).unwrap());

    let (header, _) = attestation::signing_input("...", &claims)
        .split_once('.')
        .map(|(h, c)| (h.to_owned(), c.len()))
        .unwrap();
    assert_said(&format!(
        "`{}`",
        String::from_utf8(BASE64URL_NOPAD.decode(header.as_bytes()).unwrap()).unwrap()
    ));

    let parent = &golden()["parent_hash"];
    let jws = parent["jws"].as_str().unwrap();
    assert_said(&format!("`{jws}`"));
    assert_said(&format!("`{}`", HEXLOWER.encode(&Sha256::digest(jws))));
}

#[test]
fn the_limits_are_the_codes() {
    assert_said(&format!("1 to {LIFETIME_S_MAX}, by default {LIFETIME_S_DEFAULT}"));
    assert_said(&format!("takes {CODES_MAX} wrong responses"));
    let row = |what: &str| {
        let rows = table("| What | At most |");
        rows.into_iter().find(|row| row[0].starts_with(what)).unwrap_or_else(|| panic!("{what}"))[1].clone()
    };
    let first_number = |text: String| text.split(' ').next().unwrap().parse::<usize>().unwrap();
    let label = first_number(row("payee"));
    assert!(Label::try_from("x".repeat(label)).is_ok() && Label::try_from("x".repeat(label + 1)).is_err());
    let remark = first_number(row("remark"));
    assert!(
        Remark::try_from("x".repeat(remark)).is_ok() && Remark::try_from("x".repeat(remark + 1)).is_err()
    );
    let payer = first_number(row("payer"));
    assert!(
        AccountRef::try_from("x".repeat(payer)).is_ok()
            && AccountRef::try_from("x".repeat(payer + 1)).is_err()
    );
    assert!(DisplayText::<1>::try_from("e\u{301}".to_owned()).is_err(), "form C");
    assert_eq!(first_number(row("an attestation")), QR_BYTES_MAX);
    assert_eq!(first_number(row("a JWS")), JWS_BYTES_MAX);
    let claims = first_number(row("claims"));
    assert!(attestation::jws_bytes(&vec![b'x'; claims]) <= QR_BYTES_MAX);
    assert!(attestation::jws_bytes(&vec![b'x'; claims + 1]) > QR_BYTES_MAX);
}

#[test]
fn the_diagram_has_every_way_that_there_is() {
    let diagram = PAGE.split_once("stateDiagram-v2\n").unwrap().1.split_once("```").unwrap().0;
    let mut drawn: Vec<_> = diagram
        .lines()
        .filter_map(|line| line.trim().split_once(" --> "))
        .map(|(from, to)| (from, to.split(':').next().unwrap()))
        .collect();
    drawn.sort_unstable();

    let pending = Transaction { attempts_left: 1, ..example() };
    let late = Now { unix_ms: now().unix_ms + u64::from(LIFETIME_S) * 1_000, ..now() };
    let mut reached = vec![("[*]", "pending")];
    for (step, now) in [
        (Step::Approve(None), now()),
        (Step::Miss, now()),
        (Step::Decline, now()),
        (Step::Cancel, now()),
        (Step::Expire, late),
    ] {
        let ended = pending.after(step, &now).unwrap();
        reached.push(("pending", ended.state.name()));
        assert_eq!(ended.after(Step::Approve(None), &now), Err(StepError::Ended(ended.state)), "final");
    }
    reached.sort_unstable();
    assert_eq!(drawn, reached);
    let named =
        |state: &State| PAGE.contains(&format!("`{}`", state.name())) || diagram.contains(state.name());
    assert!(State::ALL.iter().all(named));
}
