//! `examples/terminal/terminal.py`: a second implementation of what a terminal computes, against ours.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use hsm_authd::domain::enc::enc;
use hsm_authd::domain::ocra::{Challenge, Suite, data_input, question};
use hsm_authd::domain::otp::{Otp, truncate};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::ocra_token::{golden, hash_of, mac_of, rfc};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/terminal/terminal.py");

const FIELDS: [&str; 13] = [
    "tenant",
    "id",
    "method",
    "payer",
    "payee",
    "amount",
    "currency",
    "order",
    "platform",
    "remark",
    "parent_hash",
    "expires_at",
    "nonce",
];

/// One process that answers many requests. Killed on drop.
pub struct Terminal {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Terminal {
    pub fn start() -> Self {
        let mut child = Command::new("python3")
            .args([SCRIPT, "lines"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("python3 cannot be run ({error}): apt-get install python3"));
        let (requests, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { child, requests, answers: BufReader::new(answers) }
    }

    pub fn ask_line(&mut self, line: &[u8]) -> Value {
        self.requests.write_all(&[line, b"\n"].concat()).unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        serde_json::from_str(&answer).unwrap_or_else(|_| panic!("{answer:?}"))
    }

    pub fn ask(&mut self, command: &str, mut request: Value) -> Value {
        request["do"] = json!(command);
        self.ask_line(request.to_string().as_bytes())
    }

    pub fn refused(&mut self, command: &str, request: Value) -> String {
        let answer = self.ask(command, request.clone());
        assert_eq!(answer.as_object().unwrap().len(), 1, "{request}: {answer}");
        answer["error"].as_str().unwrap_or_else(|| panic!("{request}: {answer}")).to_owned()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As a user runs it: one command, one request.
fn run(arguments: &[&str], request: &str) -> Output {
    let mut child = Command::new("python3")
        .arg(SCRIPT)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended without reading this.
    let _ = child.stdin.take().unwrap().write_all(request.as_bytes());
    child.wait_with_output().unwrap()
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../vectors/transaction.json")).unwrap()
}

/// The same bytes every time for a number, unlike those of any other.
pub fn bytes(number: u64) -> [u8; 32] {
    Sha256::digest([b"terminal".as_slice(), &number.to_be_bytes()].concat()).into()
}

/// Our signing input of a transaction's fields.
fn signing_input(fields: &Map<String, Value>) -> Vec<u8> {
    let texts = FIELDS.map(|name| fields.get(name).and_then(Value::as_str).unwrap_or_default().as_bytes());
    enc(&[&[b"hsm-authd/transaction/v1".as_slice()], texts.as_slice()].concat())
}

/// Random fields, in all scripts; about a third of them is absent.
fn fields(number: u64) -> Map<String, Value> {
    let texts = [
        "a",
        "acct-0001",
        "1250.00",
        "M\u{fc}ller & S\u{f6}hne",
        "\u{6771}\u{4eac}",
        "\u{1f600}",
        "\"\\/",
        " ",
        "\u{5d0}",
    ];
    let random = bytes(number);
    let field = |(place, name): (usize, &&str)| {
        let (choice, count) = (random[place], random[place + 13]);
        let text = texts[usize::from(choice) % texts.len()].repeat(1 + usize::from(count % 40));
        (choice % 3 > 0).then(|| ((*name).to_owned(), json!(text)))
    };
    FIELDS.iter().enumerate().filter_map(field).collect()
}

fn without_nulls(fields: &Value) -> Map<String, Value> {
    fields.as_object().unwrap().clone().into_iter().filter(|(_, value)| !value.is_null()).collect()
}

#[test]
fn it_has_the_known_values() {
    let (mut terminal, vectors) = (Terminal::start(), vectors());
    let transaction = &vectors["transaction"];
    let answer = terminal.ask("digest", json!({ "fields": transaction["fields"] }));
    assert_eq!(answer["signing_input"], transaction["signing_input"]);
    assert_eq!(answer["digest"], transaction["digest"]);
    let raw = HEXLOWER.decode(transaction["digest"].as_str().unwrap().as_bytes()).unwrap();
    assert_eq!(answer["webauthn_challenge"], BASE64URL_NOPAD.encode(&raw));

    let parent = &vectors["parent_hash"];
    let with_parent =
        terminal.ask("digest", json!({ "fields": transaction["fields"], "parent": parent["jws"] }));
    let decoded = terminal.ask("decode", json!({ "signing_input": with_parent["signing_input"] }));
    assert_eq!(decoded["fields"]["parent_hash"], parent["expected"]);

    for (kind, name, fields) in [
        (
            "presentation",
            "presentation_b64u",
            json!({ "tenant": "bank-a", "account": "acct-0001", "credential": "cred_00000000000000000000000004",
                "issued_at": "2030-01-01T00:00:00Z" }),
        ),
        ("decline", "decline_b64u", json!({ "digest": transaction["digest"] })),
        (
            "authorization",
            "authorization_b64u",
            json!({ "tenant": "bank-a", "account": "acct-0001", "credential": "cred_00000000000000000000000004",
                "terminal": "cred_00000000000000000000000001", "nonce": "30".repeat(32),
                "expires_at": "2030-01-01T00:05:00Z" }),
        ),
    ] {
        let kind = format!("hsm-authd/{kind}/v1");
        let signed = &vectors["signed_by_devices"][name];
        let answer = terminal.ask("digest", json!({ "kind": kind, "fields": fields }));
        assert_eq!(answer["signing_input"], *signed);
        let decoded = terminal.ask("decode", json!({ "signing_input": signed }));
        assert_eq!((&decoded["kind"], &decoded["fields"]), (&json!(kind), &fields));
    }

    for vector in vectors["ocra"].as_array().unwrap() {
        let answer = terminal.ask(
            "code",
            json!({ "suite": vector["suite"], "key_hex": vector["key_hex"], "digest": transaction["digest"],
                "counter": vector["counter"], "pin": vector["pin"], "time_steps": vector["time_steps"] }),
        );
        assert_eq!(answer, json!({ "question": vector["question"], "code": vector["expected"] }));
    }
    for vector in rfc().into_iter().chain(golden()) {
        let answer = terminal.ask(
            "code",
            json!({ "suite": vector.token.suite, "key_hex": HEXLOWER.encode(&vector.token.seed),
                "question": vector.question, "counter": vector.counter, "pin": vector.token.pin,
                "session_hex": vector.session.map(|session| HEXLOWER.encode(&session)),
                "time_steps": vector.step }),
        );
        assert_eq!(
            answer,
            json!({ "question": vector.question, "code": vector.code }),
            "{}",
            vector.token.suite
        );
    }
}

/// Every kind and length of question with every set of inputs and, in turn, every hash and number of digits.
#[test]
fn its_questions_and_codes_are_ours() {
    let mut terminal = Terminal::start();
    let mut number = 0;
    for (kind, length) in
        ["H", "A", "N"].into_iter().flat_map(|kind| (8..=64).map(move |length| (kind, length)))
    {
        for inputs in 0..32 {
            number += 1;
            let (digest, random) = (bytes(number), bytes(number | 1 << 32));
            let choice = |place: usize, of: &[&'static str]| of[usize::from(random[place]) % of.len()];
            let hash = choice(0, &["SHA1", "SHA256", "SHA512"]);
            let inputs = [
                if inputs & 1 > 0 { "C-" } else { "" },
                &format!("Q{kind}{length:02}"),
                ["", "-PSHA1", "-PSHA256", "-PSHA512"][inputs >> 1 & 3],
                if inputs & 8 > 0 { choice(1, &["-S032", "-S033", "-S064", "-S128", "-S512"]) } else { "" },
                if inputs & 16 > 0 { choice(2, &["-T1S", "-T59S", "-T30S", "-T1M", "-T48H"]) } else { "" },
            ]
            .concat();
            let digits = choice(3, &["6", "7", "8", "9", "10"]);
            let text = format!("OCRA-1:HOTP-{hash}-{digits}:{inputs}");
            let suite = Suite::parse(&text).unwrap();

            let key = &bytes(number | 1 << 33)[..16 + usize::from(random[4] % 17)];
            let factor = |place: usize| {
                u64::from_be_bytes(random[place..place + 8].try_into().unwrap()) >> (random[place] % 64)
            };
            let counter = suite.has_counter().then(|| factor(8));
            let step = suite.time_step_s().map(|_| factor(16));
            let pin = suite.pin_hash().map(|_| choice(5, &["1234", "000000", "p\u{e4}ss w\u{f6}rd"]));

            let challenge = Challenge::of_transaction(&suite, &digest).unwrap();
            let pin_hash = pin.map(|pin| hash_of(suite.pin_hash().unwrap().name(), pin.as_bytes()));
            let message = data_input(&suite, &challenge, counter, pin_hash.as_deref(), step).unwrap();
            let ours = truncate(&mac_of(hash, key, &message), suite.digits()).unwrap();

            let digest_hex = HEXLOWER.encode(&digest);
            let theirs = terminal.ask(
                "code",
                json!({ "suite": text, "key_hex": HEXLOWER.encode(key), "digest": digest_hex,
                    "counter": counter, "pin": pin, "time_steps": step }),
            );
            assert_eq!(theirs["question"], question(&suite, &digest), "{text} {digest_hex}");
            let code = theirs["code"].as_str().unwrap_or_else(|| panic!("{text}: {theirs}"));
            assert!(Otp::parse(code.to_owned()).unwrap().matches(&ours), "{text} {digest_hex}");

            let asked = terminal.ask("question", json!({ "suite": text, "digest": digest_hex }));
            assert_eq!(asked["question"], theirs["question"]);
            let session =
                suite.session_bytes().map(|bytes| format!("{digest_hex:0>0$}", 2 * usize::from(bytes)));
            assert_eq!(asked["session_hex"], json!(session));
        }
    }
    assert_eq!(number, 3 * 57 * 32);
}

#[test]
fn its_signing_inputs_are_ours_and_can_be_read_again() {
    let mut terminal = Terminal::start();
    for number in 0..500 {
        let fields = fields(number);
        let ours = signing_input(&fields);
        let (input, digest) = (BASE64URL_NOPAD.encode(&ours), HEXLOWER.encode(&Sha256::digest(&ours)));
        let made = terminal.ask("digest", json!({ "fields": fields }));
        assert_eq!((&made["signing_input"], &made["digest"]), (&json!(input), &json!(digest)));
        let read = terminal.ask("decode", json!({ "signing_input": input }));
        assert_eq!((&read["fields"], &read["digest"]), (&Value::from(fields), &json!(digest)));
    }
}

/// A compact JWS, signed by nobody.
fn jws(header: &Value, claims: &Value) -> String {
    let part = |json: &Value| BASE64URL_NOPAD.encode(json.to_string().as_bytes());
    format!("{}.{}.{}", part(header), part(claims), BASE64URL_NOPAD.encode(&[1; 64]))
}

fn attestation(claims: &Value) -> String {
    jws(&json!({ "alg": "ES256", "kid": "k", "typ": "attestation+jwt" }), claims)
}

#[test]
fn an_attestation_gives_the_signed_bytes_again() {
    let (mut terminal, vectors) = (Terminal::start(), vectors());
    let golden = &vectors["transaction"];
    let mut transaction = without_nulls(&golden["fields"]);
    let [id, tenant, method] = ["id", "tenant", "method"].map(|name| transaction.remove(name).unwrap());
    let claims = json!({ "iss": "hsm-authd", "jti": id, "iat": 1, "exp": 2, "tenant": tenant, "method": method,
        "account": "acct-0001", "digest": golden["digest"], "transaction": transaction });
    let signed = attestation(&claims);
    let answer = terminal.ask("attestation", json!({ "attestation": signed }));
    assert_eq!(answer["digest"], golden["digest"], "{answer}");
    assert_eq!(answer["signing_input"], golden["signing_input"]);
    assert_eq!(answer["parent_hash"], HEXLOWER.encode(&Sha256::digest(&signed)));
    assert_eq!(answer["kid"], "k");

    // One of a transaction that has a parent.
    let hash = answer["parent_hash"].clone();
    let mut fields = without_nulls(&golden["fields"]);
    fields.insert("parent_hash".to_owned(), hash.clone());
    let mut child = claims.clone();
    child["parent"] = json!({ "jti": "txn_00000000000000000000000000", "hash": hash });
    child["digest"] = json!(HEXLOWER.encode(&Sha256::digest(signing_input(&fields))));
    let answer = terminal.ask("attestation", json!({ "attestation": attestation(&child) }));
    assert_eq!(answer["digest"], child["digest"], "{answer}");

    for name in ["payer", "payee", "amount", "currency", "order", "expires_at", "nonce"] {
        let mut other = claims.clone();
        other["transaction"][name] = json!("1");
        let reason = terminal.refused("attestation", json!({ "attestation": attestation(&other) }));
        assert_eq!(reason, "the digest is not that of the transaction", "{name}");
    }
    for name in ["jti", "tenant", "method", "digest", "transaction"] {
        let mut other = claims.clone();
        other.as_object_mut().unwrap().remove(name);
        terminal.refused("attestation", json!({ "attestation": attestation(&other) }));
        other[name] = json!("1");
        terminal.refused("attestation", json!({ "attestation": attestation(&other) }));
    }
    for (alg, typ) in [("none", "attestation+jwt"), ("HS256", "attestation+jwt"), ("ES256", "JWT")] {
        let other = jws(&json!({ "alg": alg, "kid": "k", "typ": typ }), &claims);
        terminal.refused("attestation", json!({ "attestation": other }));
    }
    for bad in ["", "a.b", "a.b.c", "....", &*signed.replace('.', "")] {
        terminal.refused("attestation", json!({ "attestation": bad }));
    }
}

#[test]
fn what_is_not_right_is_refused_and_not_computed() {
    let (mut terminal, vectors) = (Terminal::start(), vectors());
    let transaction = &vectors["transaction"];
    let whole = BASE64URL_NOPAD.decode(transaction["signing_input"].as_str().unwrap().as_bytes()).unwrap();
    for end in 0..whole.len() {
        terminal.refused("decode", json!({ "signing_input": BASE64URL_NOPAD.encode(&whole[..end]) }));
    }
    for more in [b"\0".as_slice(), b"\0\0\0\0", b"\xff\xff\xff\xff"] {
        let longer = [whole.as_slice(), more].concat();
        terminal.refused("decode", json!({ "signing_input": BASE64URL_NOPAD.encode(&longer) }));
    }
    let padded = format!("{}=", transaction["signing_input"].as_str().unwrap());
    let strange = [enc(&[b"hsm-authd/decline/v2", b"a"]), enc(&[b"hsm-authd/decline/v1", b"\xff"])];
    let strange = strange.map(|bytes| BASE64URL_NOPAD.encode(&bytes));
    for bad in [&*padded, "AAA A", "\u{e4}", "AB", &*strange[0], &*strange[1]] {
        terminal.refused("decode", json!({ "signing_input": bad }));
    }

    let fields = |name: &str, value: Value| {
        let mut fields = without_nulls(&transaction["fields"]);
        fields.insert(name.to_owned(), value);
        json!({ "fields": fields })
    };
    for (name, value) in [
        ("amount", json!(1250.0)),
        ("payer", json!("")),
        ("payer", Value::Null),
        ("bic", json!("X")),
        ("id", json!(1)),
    ] {
        terminal.refused("digest", fields(name, value));
    }
    terminal.refused("digest", json!({ "fields": {}, "kind": "hsm-authd/transaction/v2" }));
    terminal.refused("digest", json!({ "fields": {}, "more": 1 }));

    let good = json!({ "suite": "OCRA-1:HOTP-SHA256-8:QN08", "key_hex": "31", "question": "12345678" });
    assert!(terminal.ask("code", good.clone())["code"].is_string());
    for inputs in [
        "QN07",
        "QN65",
        "QN8",
        "QX08",
        "QN08-T49H",
        "QN08-T60S",
        "QN08-T60M",
        "QN08-T0S",
        "QN08-S513",
        "QN08-S000",
        "QN08\n",
        "",
    ] {
        let suite = format!("OCRA-1:HOTP-SHA256-8:{inputs}");
        let reason = terminal.refused("question", json!({ "suite": suite, "digest": transaction["digest"] }));
        assert_eq!(reason, "not a suite", "{suite}");
    }
    for (name, value) in [
        ("suite", json!("OCRA-1:HOTP-SHA256-4:QN08")),
        ("suite", json!("OCRA-1:HOTP-SHA256-8:C-QN08")),
        ("question", json!("1234567a")),
        ("question", json!("")),
        ("question", json!("1".repeat(17))),
        ("question", json!("\u{661}2345678")),
        ("question", json!(12345678)),
        ("key_hex", json!("3")),
        ("key_hex", json!("3g")),
        ("counter", json!(1)),
        ("pin", json!("1234")),
        ("session_hex", json!("00")),
        ("time_steps", json!(1)),
        ("digest", transaction["digest"].clone()),
        ("more", json!(1)),
    ] {
        let mut bad = good.clone();
        bad[name] = value;
        terminal.refused("code", bad);
    }
    for (suite, digest) in
        [("OCRA-1:HOTP-SHA256-8:QN08-S031", "00".repeat(32)), ("OCRA-1:HOTP-SHA256-8:QN08", "00".into())]
    {
        terminal.refused("question", json!({ "suite": suite, "digest": digest }));
    }
    for counter in [json!(-1), json!(true), json!(1.0), json!("1"), json!(1e30)] {
        let suite = "OCRA-1:HOTP-SHA256-8:C-QN08";
        terminal
            .refused("code", json!({ "suite": suite, "key_hex": "31", "question": "1", "counter": counter }));
    }
    for line in [
        &b""[..],
        b"{",
        b"[]",
        b"1",
        b"\xff",
        b"{\"do\": []}",
        b"{\"do\": \"digest\", \"fields\": {\"order\": \"1\", \"order\": \"2\"}}",
        b"{}",
        b"{\"do\": \"digest\", \"fields\": {\"payee\": \"\\ud800\"}}",
    ] {
        let answer = terminal.ask_line(line);
        assert!(answer["error"].is_string(), "{line:?}: {answer}");
    }
    assert!(terminal.ask("code", good)["code"].is_string(), "and it goes on");
}

#[test]
fn it_runs_one_command_as_its_readme_shows() {
    let readme = include_str!("../../examples/terminal/README.md");
    let block =
        |from: &str, to: &str| readme.split_once(from).unwrap().1.split_once(to).unwrap().0.to_owned();
    let output = run(&["code"], &block("<<'END'\n", "END"));
    assert!(output.status.success());
    assert_eq!(String::from_utf8(output.stdout).unwrap(), block("```json\n", "```"));

    let refused = run(&["code"], "{\"suite\": \"x\", \"key_hex\": \"5ec2e7\", \"question\": \"1\"}");
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(String::from_utf8(refused.stderr).unwrap(), "terminal.py: not a suite\n");
    for arguments in [&[][..], &["other"], &["code", "5ec2e7"]] {
        let output = run(arguments, "");
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
}
