//! `examples/terminal/terminal.py`: several terminals, rolling passwords and presented codes, against the known values
//! and against HMACs of our own.

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use hsm_authd::domain::enc::enc;
use hsm_authd::domain::id::CredentialId;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::ocra_token::mac_of;
use crate::terminal_script::{Terminal, bytes};

fn methods() -> Value {
    serde_json::from_str(include_str!("../vectors/methods.json")).unwrap()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

fn raw(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(text(value).as_bytes()).unwrap()
}

/// The members with these names; what a request repeats of a vector.
fn some(value: &Value, names: &[&str]) -> Value {
    names.iter().map(|name| ((*name).to_owned(), value[name].clone())).collect()
}

fn with(value: &Value, name: &str, other: Value) -> Value {
    let mut value = value.clone();
    value[name] = other;
    value
}

fn hmac(key: &[u8], parts: &[&str]) -> Vec<u8> {
    mac_of("SHA256", key, &enc(&parts.iter().map(|part| part.as_bytes()).collect::<Vec<_>>()))
}

/// The first 8 bytes as a number, its last digits.
fn digits_of(mac: &[u8], digits: usize) -> String {
    let number = format!("{:020}", u64::from_be_bytes(mac[..8].try_into().unwrap()));
    number[20 - digits..].to_owned()
}

#[test]
fn terminals_have_the_known_codes() {
    let (mut terminal, methods) = (Terminal::start(), methods());
    let golden = &methods["multi_terminal"];
    for vector in golden["terminals"].as_array().unwrap() {
        let request = with(
            &some(vector, &["credential", "key_hex", "generation", "digits"]),
            "digest",
            golden["digest"].clone(),
        );
        assert_eq!(terminal.ask("terminal-code", request), json!({ "code": vector["code"] }));
    }

    let target = &golden["target"];
    let answer = terminal.ask("target", some(target, &["codes", "digits"]));
    assert_eq!(answer, json!({ "target": target["expected"], "weights": target["weights"] }));
    let eight: Vec<_> = (0..8).map(|code| format!("1000000{code}")).collect();
    let answer = terminal.ask("target", json!({ "codes": eight, "digits": 8 }));
    // 40 of ten millions, and 0 + 3 + 14 + 27 + 4 + 15 + 42 + 63.
    assert_eq!(answer, json!({ "target": "00000168", "weights": [1, 3, 7, 9, 1, 3, 7, 9] }));

    // The rule's order is kept by preset_order alone.
    let codes = json!(["978554", "253531", "140804", "000007"]);
    for (rule, entered) in [
        ("preset_order", codes.clone()),
        ("ascending", json!(["000007", "140804", "253531", "978554"])),
        ("descending", json!(["978554", "253531", "140804", "000007"])),
    ] {
        assert_eq!(
            terminal.ask("order", json!({ "rule": rule, "codes": codes })),
            json!({ "codes": entered })
        );
    }
    let answer = terminal.ask("order", json!({ "rule": "descending", "codes": ["100000", "200000"] }));
    assert_eq!(answer, json!({ "codes": ["200000", "100000"] }));
}

/// A generation in which two codes are alike is not used, and what would need them is not computed.
#[test]
fn two_codes_alike_are_refused() {
    let (mut terminal, methods) = (Terminal::start(), methods());
    let ties = &methods["ties"];
    assert_eq!(raw(&ties["digest"]), Sha256::digest(text(&ties["digest_of"])).as_slice());
    for generation in ties["generations"].as_array().unwrap() {
        let mut codes = Vec::new();
        for one in ties["terminals"].as_array().unwrap() {
            let number = generation["generation"].as_u64().unwrap().to_string();
            let parts = ["hsm-authd/terminal/v1", text(&ties["digest"]), text(&one["credential"]), &number];
            let request = json!({ "key_hex": one["key_hex"], "digest": ties["digest"], "digits": 6,
                "credential": one["credential"], "generation": generation["generation"] });
            let code = terminal.ask("terminal-code", request)["code"].clone();
            assert_eq!(code, digits_of(&hmac(&raw(&one["key_hex"]), &parts), 6));
            codes.push(code);
        }
        assert_eq!(json!(codes), generation["codes"]);
        let request = json!({ "rule": "ascending", "codes": codes });
        if generation["generation"] == 1 {
            assert_eq!(codes[0], codes[1]);
            let reason = terminal.refused("order", request);
            assert_eq!(reason, "two codes are alike: the appliance takes another generation");
        } else {
            assert!(terminal.ask("order", request)["codes"].is_array());
        }
    }
}

#[test]
fn a_rolling_password_has_the_known_values() {
    let (mut terminal, methods) = (Terminal::start(), methods());
    let golden = &methods["rolling"];
    let key = terminal.ask("identity-key", some(golden, &["identity_code", "salt_hex"]));
    assert_eq!(key, some(golden, &["identity_key_hex"]));
    for epoch in golden["epochs"].as_array().unwrap() {
        let request = with(&some(golden, &["secret_hex", "credential"]), "epoch", epoch["epoch"].clone());
        assert_eq!(terminal.ask("temporary-code", request), some(epoch, &["temporary_code"]));
        let request = with(
            &some(golden, &["identity_key_hex", "digest"]),
            "temporary_code",
            epoch["temporary_code"].clone(),
        );
        let answer = terminal.ask("password", request);
        assert_eq!(answer, some(epoch, &["lookup_hex", "proof_hex", "password"]));
        let answer = terminal.ask("rotation", some(epoch, &["temporary_code"]));
        assert_eq!(answer["proof_hex"], epoch["rotation_proof_hex"]);
    }
}

#[test]
fn a_presenting_device_signs_the_known_bytes() {
    let (mut terminal, methods) = (Terminal::start(), methods());
    let transaction: Value = serde_json::from_str(include_str!("../vectors/transaction.json")).unwrap();
    let device = json!({ "tenant": "bank-a", "account": "acct-0001",
        "credential": "cred_00000000000000000000000004" });
    let begun = &methods["authorization_codes"];
    let names = ["tenant", "account", "credential", "terminal", "nonce", "expires_at"];
    for (command, request, name) in [
        ("presentation", with(&device, "issued_at", json!("2030-01-01T00:00:00Z")), "presentation_b64u"),
        ("decline", json!({ "digest": transaction["transaction"]["digest"] }), "decline_b64u"),
        ("authorization", some(begun, &names), "authorization_b64u"),
    ] {
        let signed = &transaction["signed_by_devices"][name];
        let digest = Sha256::digest(BASE64URL_NOPAD.decode(text(signed).as_bytes()).unwrap());
        let answer = terminal.ask(command, request);
        assert_eq!(answer, json!({ "signing_input": signed, "digest": HEXLOWER.encode(&digest) }));
    }

    // By password there is no terminal: an empty part, and not a part less.
    let answer = terminal.ask("authorization", with(&some(begun, &names), "terminal", json!("")));
    let fields = names.map(|name| if name == "terminal" { "" } else { text(&begun[name]) });
    let parts = [&["hsm-authd/authorization/v1"], fields.as_slice()].concat();
    let ours = enc(&parts.iter().map(|part| part.as_bytes()).collect::<Vec<_>>());
    assert_eq!(answer["signing_input"], BASE64URL_NOPAD.encode(&ours));
}

#[test]
fn an_authorization_has_two_codes_that_are_not_alike() {
    let (mut terminal, methods) = (Terminal::start(), methods());
    let golden = &methods["authorization_codes"];
    let request = some(golden, &["key_hex", "tenant", "account", "credential", "nonce", "expires_at"]);
    let code_of = |way: &str, nonce: &Value| {
        let context = format!("hsm-authd/authorization/{way}/v1");
        let names = ["tenant", "account", "credential"].map(|name| text(&golden[name]));
        let parts = [&[&*context], names.as_slice(), &[text(nonce), text(&golden["expires_at"])]].concat();
        digits_of(&hmac(&raw(&golden["key_hex"]), &parts), 6)
    };
    let codes = ["downlink", "uplink"].map(|way| code_of(way, &golden["nonce"]));
    let answer = terminal.ask("authorization-codes", request.clone());
    assert_eq!(answer, json!({ "downlink_code": codes[0], "uplink_code": codes[1] }));
    assert_eq!(answer, some(golden, &["downlink_code", "uplink_code"]));

    let other = &golden["nonce_of_two_codes_alike"];
    assert_eq!(code_of("downlink", other), code_of("uplink", other));
    let reason = terminal.refused("authorization-codes", with(&request, "nonce", other.clone()));
    assert_eq!(reason, "the two codes are alike: the appliance takes another nonce");
}

/// Random keys, digests and ids, every number of digits.
#[test]
fn its_derivations_are_ours() {
    let mut terminal = Terminal::start();
    for number in 0..300 {
        let [key, secret, digest] = [0, 1, 2].map(|place| bytes(3 * number + place + 1_000_000));
        let digest_hex = HEXLOWER.encode(&digest);
        let id = CredentialId::from_random(key[16..].try_into().unwrap()).to_string();
        let count = u64::from_be_bytes(secret[..8].try_into().unwrap()) >> (number % 64) | 1;
        let digits = 6 + usize::try_from(number % 5).unwrap();

        let parts = ["hsm-authd/terminal/v1", &digest_hex, &id, &count.to_string()];
        let answer = terminal.ask(
            "terminal-code",
            json!({ "key_hex": HEXLOWER.encode(&key), "digest": digest_hex, "credential": id,
                "generation": count, "digits": digits }),
        );
        assert_eq!(answer["code"], digits_of(&hmac(&key, &parts), digits), "{number}");

        let made = &hmac(&secret, &["hsm-authd/rolling/code/v1", &id, &count.to_string()])[..16];
        let answer = terminal.ask(
            "temporary-code",
            json!({ "secret_hex": HEXLOWER.encode(&secret), "credential": id, "epoch": count }),
        );
        assert_eq!(answer["temporary_code"], HEXLOWER.encode(made), "{number}");

        let lookup = &hmac(made, &["hsm-authd/rolling/lookup/v1"])[..12];
        let inner = hmac(made, &["hsm-authd/rolling/proof/v1", &digest_hex]);
        let proof = &mac_of("SHA256", &key, &inner)[..16];
        let request = json!({ "temporary_code": HEXLOWER.encode(made), "digest": digest_hex,
            "identity_key_hex": HEXLOWER.encode(&key) });
        let answer = terminal.ask("password", request);
        assert_eq!(answer["password"], BASE64URL_NOPAD.encode(&[lookup, proof].concat()), "{number}");

        let answer = terminal.ask("rotation", json!({ "temporary_code": HEXLOWER.encode(made) }));
        assert_eq!(answer["proof_hex"], HEXLOWER.encode(&hmac(made, &["hsm-authd/rolling/rotate/v1"])));
    }
}

#[test]
fn what_is_not_right_is_refused() {
    let (mut terminal, methods) = (Terminal::start(), methods());
    let (digest, key) = ("4e".repeat(32), "01".repeat(32));
    let (credential, code) = ("cred_00000000000000000000000001", "9b37ab14e2fd250388e9c1b93730dc33");
    let (account, issued_at) = ("acct-0001", "2030-01-01T00:00:00Z");
    let begun = &methods["authorization_codes"];
    let good = [
        (
            "terminal-code",
            json!({ "key_hex": key, "digest": digest, "credential": credential, "generation": 1, "digits": 6 }),
        ),
        ("target", json!({ "codes": ["12345678", "12345679"], "digits": 8 })),
        ("order", json!({ "rule": "ascending", "codes": ["123456", "123457"] })),
        ("identity-key", json!({ "identity_code": "493817", "salt_hex": code })),
        ("temporary-code", json!({ "secret_hex": key, "credential": credential, "epoch": 1 })),
        ("password", json!({ "temporary_code": code, "identity_key_hex": key, "digest": digest })),
        ("rotation", json!({ "temporary_code": code })),
        (
            "presentation",
            json!({ "tenant": "bank-a", "account": account, "credential": credential, "issued_at": issued_at }),
        ),
        ("decline", json!({ "digest": digest })),
        (
            "authorization",
            some(begun, &["tenant", "account", "credential", "terminal", "nonce", "expires_at"]),
        ),
        (
            "authorization-codes",
            some(begun, &["key_hex", "tenant", "account", "credential", "nonce", "expires_at"]),
        ),
    ];
    let nine: Vec<_> = (0..9).map(|code| format!("1234567{code}")).collect();
    let bad = |name: &str| match name {
        "key_hex" | "secret_hex" | "identity_key_hex" | "digest" => {
            vec![json!("01".repeat(31)), json!("01".repeat(33)), json!("0g".repeat(32))]
        }
        "salt_hex" | "temporary_code" => vec![json!("01".repeat(15)), json!("01".repeat(17)), json!("0")],
        "credential" | "terminal" => vec![
            json!("cred_80000000000000000000000001"),
            json!("cred_0000000000000000000000000l"),
            json!("cred_0000000000000000000000001"),
            json!("txn_00000000000000000000000001"),
        ],
        "generation" | "epoch" => vec![json!(0), json!(-1), json!("1"), json!(1.0), json!(true)],
        "digits" => vec![json!(5), json!(11), json!("8")],
        "codes" => vec![
            json!(["12345678"]),
            json!(nine),
            json!(["12345678", "123456789"]),
            json!(["12345678", "12345678"]),
            json!(["12345678", "1234567a"]),
            json!(["12345678", "\u{661}2345678"]),
            json!(["12345678", 12345679]),
            json!(["12345", "12346"]),
            json!("12345678"),
        ],
        "rule" => vec![json!("target"), json!("Ascending")],
        "issued_at" | "expires_at" => [
            "2030-01-01T00:00:00",
            "2030-01-01T00:00:00+00:00",
            "2030-01-01T00:00:00.0Z",
            "2030-02-29T00:00:00Z",
            "2030-01-01T24:00:00Z",
            "2030-01-01 00:00:00Z",
            "2030-1-1T00:00:00Z",
        ]
        .map(Value::from)
        .to_vec(),
        "nonce" => vec![json!("30".repeat(31)), json!("3G".repeat(32)), json!("AA".repeat(32))],
        "tenant" | "account" | "identity_code" => Vec::new(),
        other => panic!("{other}"),
    };
    for (command, request) in good {
        let answer = terminal.ask(command, request.clone());
        assert!(answer.get("error").is_none(), "{command}: {answer}");
        for name in request.as_object().unwrap().keys() {
            let mut without = request.clone();
            without.as_object_mut().unwrap().remove(name);
            terminal.refused(command, without);
            if name != "terminal" {
                terminal.refused(command, with(&request, name, json!("")));
            }
            terminal.refused(command, with(&request, name, Value::Null));
            terminal.refused(command, with(&request, name, json!({})));
            for value in bad(name) {
                terminal.refused(command, with(&request, name, value));
            }
        }
        terminal.refused(command, with(&request, "more", json!("1")));
    }
    // A target of fewer digits would be guessed too soon.
    terminal.refused("target", json!({ "codes": ["1234567", "1234568"], "digits": 7 }));
    terminal.refused("target", json!({ "codes": ["12345678", "12345679"], "digits": 9 }));
}

#[test]
fn its_readme_names_every_command() {
    let readme = include_str!("../../examples/terminal/README.md");
    let said = Terminal::start().refused("", json!({}));
    let commands: Vec<_> = said.strip_prefix("what to do is one of ").unwrap().split(", ").collect();
    assert_eq!(commands.len(), 16);
    for command in commands {
        assert!(readme.contains(&format!("\n| `{command}` |")), "{command}");
    }
}
