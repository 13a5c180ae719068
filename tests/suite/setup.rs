//! `hsm-authd token-setup` against SoftHSM.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Output};
use std::thread;
use std::time::Instant;

use hsm_authd::custodian::token::Setup;
use hsm_authd::custodian::{EXIT_PIN_REFUSED, EXIT_START_FAILED};
use hsm_authd::domain::system_key::KeyKind;
use hsm_authd::hsm::messages::{Request, Response};

use crate::custodian::request_fault;
use crate::intruder::intrude;
use crate::modules::{Feature, TestModule, passed_over};
use crate::submissions::Dice;
use crate::token::{PIN, SO_PIN, TestToken, label};

const KEYS: [&str; 6] = [
    "hsm-authd/kek/v1",
    "hsm-authd/row/v1",
    "hsm-authd/data/v1",
    "hsm-authd/attest/v1",
    "hsm-authd/audit/v1",
    "hsm-authd/import/v1",
];

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8(bytes.to_vec()).unwrap().lines().map(str::to_owned).collect()
}

/// Refused with one line that contains these words.
fn assert_refused(output: &Output, exit: u8, words: &[&str]) {
    let said = lines(&output.stderr);
    assert_eq!(output.status.code(), Some(exit.into()), "{said:?}");
    assert!(said.len() == 1 && said[0].starts_with("hsm-authd: "), "{said:?}");
    for word in words {
        assert!(said[0].contains(word), "{said:?} lacks {word:?}");
    }
}

#[test]
fn a_setup_makes_all_and_a_second_one_changes_nothing() {
    let token = TestToken::bare();
    let first = token.set_up(true);
    let [mut expected, again] = TestModule::chosen().set_up_says(&label());
    expected.extend(KEYS.map(|key| format!("key {key}: made")));
    assert_eq!(lines(&first.stdout), expected);

    let mut expected = again;
    let again = token.set_up(true);
    expected.extend(KEYS.map(|key| format!("key {key}: already there")));
    assert_eq!(lines(&again.stdout), expected);
    assert_eq!(lines(&token.set_up(false).stdout), expected, "without the SO PIN, too");

    for output in [first, again] {
        assert!(output.status.success() && output.stderr.is_empty());
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!said.contains(PIN) && !said.contains(SO_PIN));
    }
    token.custodian();
}

#[test]
fn what_is_missing_is_completed() {
    let token = TestToken::bare();
    if !passed_over(Feature::Officer) {
        intrude(&token, "a token without user PIN");
        assert_refused(&token.set_up(false), EXIT_START_FAILED, &["no user PIN", "--so-pin-file"]);
        let (exit, words) = token.refused(&token.boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED), "{words}");
        assert!(words.contains("run `hsm-authd init`"), "{words}");
    }
    assert!(token.set_up(true).status.success());

    for key in KEYS {
        intrude(&token, &format!("remove {key}"));
        let (exit, words) = token.refused(&token.boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED));
        assert!(words.contains(key) && words.contains("run `hsm-authd init`"), "{words}");
        let said = lines(&token.set_up(false).stdout);
        let made: Vec<_> = said.iter().filter(|line| line.ends_with(": made")).collect();
        assert_eq!(made, [&format!("key {key}: made")], "and no other");
    }
    token.custodian();
}

#[test]
fn no_token_and_no_officer_pin_names_the_flag() {
    let token = TestToken::bare();
    assert_refused(&token.set_up(false), EXIT_START_FAILED, &[&label(), "--so-pin-file"]);
}

#[test]
fn two_tokens_of_one_label_are_refused() {
    if passed_over(Feature::Tokens) {
        return;
    }
    let token = TestToken::new();
    intrude(&token, "a second token of the label");
    assert_refused(&token.set_up(true), EXIT_START_FAILED, &["several tokens", &label()]);
    let (exit, words) = token.refused(&token.boot);
    assert_eq!(exit, i32::from(EXIT_START_FAILED));
    assert!(words.contains("several tokens"), "{words}");
}

#[test]
fn a_wrong_pin_of_either_kind_says_which() {
    let token = TestToken::new();
    let wrong = token.file("wrong", "not the PIN");
    let mut boot = token.boot.clone();
    boot.pin_file = wrong.clone();
    let output = token.set_up_with(&Setup {
        boot,
        needed: Vec::new(),
        so_pin_file: None,
        so_pin_handed: false,
        token_only: false,
        serves_tls: false,
    });
    assert_refused(&output, EXIT_PIN_REFUSED, &["user PIN", "CKR_PIN_INCORRECT"]);

    if passed_over(Feature::Officer) {
        return;
    }
    let token = TestToken::bare();
    intrude(&token, "a token without user PIN");
    let output = token.set_up_with(&Setup {
        boot: token.boot.clone(),
        needed: Vec::new(),
        so_pin_file: Some(wrong),
        so_pin_handed: false,
        token_only: false,
        serves_tls: false,
    });
    assert_refused(&output, EXIT_PIN_REFUSED, &["SO PIN", "CKR_PIN_INCORRECT"]);
}

/// Every attribute that makes a key what it must be: one wrong, and neither setup nor custodian goes
/// on.
#[test]
fn a_key_that_is_not_as_it_must_be_is_refused_by_name() {
    // Where there are no data objects, half a key is another key.
    let of_half = if TestModule::chosen() == TestModule::Nss { "CKA_KEY_TYPE" } else { "CKA_CLASS" };
    let of_misused = "CKA_ALLOWED_MECHANISMS";
    for (what, label, attribute) in [
        ("readable", "hsm-authd/row/v1", "CKA_SENSITIVE"),
        ("extractable", "hsm-authd/kek/v1", "CKA_EXTRACTABLE"),
        ("public", "hsm-authd/data/v1", "CKA_PRIVATE"),
        ("decrypting", "hsm-authd/kek/v1", "CKA_DECRYPT"),
        ("encrypting", "hsm-authd/kek/v1", "CKA_ENCRYPT"),
        ("useless", "hsm-authd/kek/v1", "CKA_UNWRAP"),
        ("wrapping", "hsm-authd/data/v1", "CKA_WRAP"),
        ("signing", "hsm-authd/data/v1", "CKA_SIGN"),
        ("verifying", "hsm-authd/row/v1", "CKA_VERIFY"),
        ("deriving", "hsm-authd/row/v1", "CKA_DERIVE"),
        ("short", "hsm-authd/kek/v1", "CKA_VALUE_LEN"),
        ("short", "hsm-authd/row/v1", "CKA_VALUE_LEN"),
        ("aes", "hsm-authd/row/v1", "CKA_KEY_TYPE"),
        ("half", "hsm-authd/kek/v1", of_half),
        ("misused", "hsm-authd/data/v1", of_misused),
        ("known", "hsm-authd/kek/v1", "CKA_ALWAYS_SENSITIVE"),
        ("known", "hsm-authd/row/v1", "CKA_ALWAYS_SENSITIVE"),
        ("known", "hsm-authd/data/v1", "CKA_ALWAYS_SENSITIVE"),
    ] {
        if attribute == of_misused && passed_over(Feature::KeysMechanisms) {
            continue;
        }
        let token = TestToken::new();
        intrude(&token, &format!("remove {label}"));
        intrude(&token, &format!("{what} {label}"));
        assert_refused(&token.set_up(false), EXIT_START_FAILED, &[label, attribute]);
        let (exit, words) = token.refused(&token.boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED), "{what}");
        assert!(words.contains(label) && words.contains(attribute), "{what}: {words}");
    }
}

/// Also while a custodian runs: whoever has the PIN would choose what everything is wrapped by.
#[test]
fn a_key_of_known_bytes_is_never_the_newest() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    intrude(&token, "known hsm-authd/kek/v2");
    assert!(request_fault(custodian.call(Request::LoadKeys)).contains("CKA_ALWAYS_SENSITIVE"));
    intrude(&token, "remove hsm-authd/kek/v2");
    let Ok(Response::KeysLoaded(newest)) = custodian.call(Request::LoadKeys) else { panic!() };
    assert_eq!(newest.of(KeyKind::Kek), 1);
}

/// The same of each half of a key pair.
#[test]
fn a_pair_that_is_not_as_it_must_be_is_refused_by_half_and_name() {
    if passed_over(Feature::OddKeys) {
        return;
    }
    const LABEL: &str = "hsm-authd/attest/v1";
    for (what, half, attribute) in [
        ("readable", "private key", "CKA_SENSITIVE"),
        ("extractable", "private key", "CKA_EXTRACTABLE"),
        ("public", "private key", "CKA_PRIVATE"),
        ("useless", "private key", "CKA_SIGN"),
        ("recovering", "private key", "CKA_SIGN_RECOVER"),
        ("decrypting", "private key", "CKA_DECRYPT"),
        ("unwrapping", "private key", "CKA_UNWRAP"),
        ("deriving", "private key", "CKA_DERIVE"),
        ("imported", "private key", "CKA_ALWAYS_SENSITIVE"),
        ("hidden", "public key", "CKA_PRIVATE"),
        ("blind", "public key", "CKA_VERIFY"),
        ("verify-recovering", "public key", "CKA_VERIFY_RECOVER"),
        ("encrypting", "public key", "CKA_ENCRYPT"),
        ("wrapping", "public key", "CKA_WRAP"),
        ("public-deriving", "public key", "CKA_DERIVE"),
        ("p384", "", "CKA_EC_PARAMS"),
        ("rsa", "", "CKA_KEY_TYPE"),
    ] {
        let token = TestToken::new();
        intrude(&token, &format!("remove {LABEL}"));
        intrude(&token, &format!("{what} {LABEL}"));
        let words = [&format!("the {half}"), LABEL, &format!("{attribute} is not"), "remove it"];
        assert_refused(&token.set_up(false), EXIT_START_FAILED, &words);
        let (exit, said) = token.refused(&token.boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED), "{what}");
        assert!(words.iter().all(|word| said.contains(word)), "{what}: {said}");
    }
    for (what, half, attribute) in [
        ("readable", "private key", "CKA_SENSITIVE"),
        ("extractable", "private key", "CKA_EXTRACTABLE"),
        ("public", "private key", "CKA_PRIVATE"),
        ("signing", "private key", "CKA_SIGN"),
        ("decrypting", "private key", "CKA_DECRYPT"),
        ("closed", "private key", "CKA_UNWRAP"),
        ("hidden", "public key", "CKA_PRIVATE"),
        ("verifying", "public key", "CKA_VERIFY"),
        ("encrypting", "public key", "CKA_ENCRYPT"),
        ("unwrappable", "public key", "CKA_WRAP"),
        ("exponent-3", "public key", "CKA_PUBLIC_EXPONENT"),
        ("p256", "", "CKA_KEY_TYPE"),
    ] {
        const LABEL: &str = "hsm-authd/import/v1";
        let token = TestToken::new();
        intrude(&token, &format!("remove {LABEL}"));
        intrude(&token, &format!("{what} {LABEL}"));
        let words = [&format!("the {half}"), LABEL, &format!("{attribute} is not"), "remove it"];
        assert_refused(&token.set_up(false), EXIT_START_FAILED, &words);
        let (exit, said) = token.refused(&token.boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED), "{what}");
        assert!(words.iter().all(|word| said.contains(word)), "{what}: {said}");
    }
    // The test's own pairs are right where they are not wrong on purpose.
    for label in ["hsm-authd/attest/v1", "hsm-authd/audit/v1", "hsm-authd/import/v1"] {
        let token = TestToken::new();
        intrude(&token, &format!("remove {label}"));
        intrude(&token, &format!("right {label}"));
        token.custodian();
    }
}

#[test]
fn what_is_no_whole_pair_is_refused_with_what_to_remove() {
    const LABEL: &str = "hsm-authd/attest/v1";
    for (what, words) in [
        ("no-private", ["the private key of", "put it back, or remove the public key of that label"]),
        ("no-public", ["the public key of", "put it back, or remove the private key of that label"]),
        ("second-private", ["several private keys", "remove all but"]),
        ("second-public", ["several public keys", "remove all but"]),
        ("half", ["neither a private nor a public key", "remove it"]),
    ] {
        let token = TestToken::new();
        intrude(&token, &format!("{what} {LABEL}"));
        for _ in 0..2 {
            assert_refused(&token.set_up(false), EXIT_START_FAILED, &[LABEL, words[0], words[1]]);
        }
        let (exit, said) = token.refused(&token.boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED), "{what}");
        assert!(said.contains(LABEL) && words.iter().all(|word| said.contains(word)), "{what}: {said}");
    }
    // Once it is removed as told, there is a new pair.
    let token = TestToken::new();
    intrude(&token, &format!("no-private {LABEL}"));
    intrude(&token, &format!("no-public {LABEL}"));
    assert!(token.set_up(false).status.success());
    token.custodian();
}

#[test]
fn a_public_half_without_a_point_on_the_curve_stops_a_start() {
    if passed_over(Feature::BadPublicKeys) {
        return;
    }
    for what in ["off-curve", "bare"] {
        let token = TestToken::new();
        intrude(&token, &format!("{what} hsm-authd/attest/v1"));
        let (exit, said) = token.refused(&token.boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED), "{what}");
        assert!(
            said.contains("the public key of hsm-authd/attest/v1 is not usable: CKA_EC_POINT is not"),
            "{said}"
        );
    }
    let token = TestToken::new();
    intrude(&token, "remove hsm-authd/import/v1");
    intrude(&token, "short hsm-authd/import/v1");
    let (exit, said) = token.refused(&token.boot);
    assert_eq!(exit, i32::from(EXIT_START_FAILED));
    assert!(
        said.contains("the public key of hsm-authd/import/v1 is not usable: CKA_MODULUS is not"),
        "{said}"
    );
}

#[test]
fn a_label_of_a_pair_without_version_is_refused() {
    let token = TestToken::new();
    intrude(&token, "right hsm-authd/attest/v01");
    assert_refused(&token.set_up(false), EXIT_START_FAILED, &["no version", "hsm-authd/attest/v01"]);
    let token = TestToken::new();
    intrude(&token, "right hsm-authd/attestation/v1");
    assert!(token.set_up(false).status.success(), "nobody's of ours");
}

/// What a crash leaves while a pair is made: a mark, and any part of the pair.
#[test]
fn what_is_unfinished_of_a_pair_is_made_anew_and_no_custodian_starts_on_it() {
    const LABEL: &str = "hsm-authd/attest/v1";
    const MARK: &str = "half hsm-authd/unfinished/attest/v1";
    for left in [
        &["right"][..],
        &["right", "no-private"],
        &["right", "no-public"],
        &["half"],
        &["right", "half"],
        &["right", "second-public", "no-private"],
        &[],
    ] {
        let token = TestToken::new();
        intrude(&token, &format!("remove {LABEL}"));
        intrude(&token, MARK);
        left.iter().for_each(|what| intrude(&token, &format!("{what} {LABEL}")));
        let (exit, said) = token.refused(&token.boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED));
        assert!(said.contains(&format!("key {LABEL} is not finished: run `hsm-authd init`")), "{said}");
        let output = token.set_up(false);
        assert!(output.status.success(), "{left:?}: {:?}", lines(&output.stderr));
        let said = lines(&output.stdout);
        assert!(said.contains(&format!("key {LABEL}: unfinished, removed")), "{said:?}");
        assert!(said.contains(&format!("key {LABEL}: made")), "{said:?}");
        token.custodian();
    }
    // Nothing of it stays, and no other key can be marked.
    let token = TestToken::new();
    intrude(&token, "count 10");
    intrude(&token, MARK);
    intrude(&token, MARK);
    assert!(token.set_up(false).status.success());
    intrude(&token, "count 10");
    intrude(&token, "half hsm-authd/unfinished/kek/v1");
    assert_eq!(lines(&token.set_up(false).stdout).iter().filter(|line| line.contains("made")).count(), 0);
    token.custodian();
}

/// An object that is not private can be made by whoever reaches the token, without a PIN.
#[test]
fn a_mark_that_needed_no_pin_is_none() {
    let token = TestToken::new();
    let keys = || token.custodian().call(Request::AttestationKeys);
    let Ok(Response::AttestationKeys(before)) = keys() else { panic!("no keys") };
    intrude(&token, "without the PIN: hsm-authd/unfinished/attest/v1");
    let output = token.set_up(false);
    assert!(output.status.success(), "{:?}", lines(&output.stderr));
    let said = lines(&output.stdout);
    assert!(said.contains(&"key hsm-authd/attest/v1: already there".to_owned()), "{said:?}");
    let Ok(Response::AttestationKeys(after)) = keys() else { panic!("no keys") };
    assert_eq!(after, before, "the pair that signed is gone");
}

/// A setup that has come as far as the pair, and nothing of it yet.
fn begun(token: &TestToken) -> (Child, BufReader<ChildStdout>) {
    intrude(token, "remove hsm-authd/attest/v1");
    let mut child = token.begin_set_up();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("hsm-authd/data/v1") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0);
    }
    (child, output)
}

/// Not while it logs in: SoftHSM writes the token's own file anew at each login, and may lose it so.
#[test]
fn a_setup_that_is_killed_while_it_makes_the_pair_leaves_nothing_in_the_way() {
    let token = TestToken::new();
    let (mut dice, seed) = Dice::new();
    println!("seed {seed}");
    let (mut child, mut output) = begun(&token);
    let making = Instant::now();
    output.read_to_string(&mut String::new()).unwrap();
    let making = making.elapsed();
    assert!(child.wait().unwrap().success());
    for _ in 0..40 {
        let (mut child, _output) = begun(&token);
        // The moment is the test.
        thread::sleep(making.mul_f64(dice.below(1_000) as f64 / 1_000.0));
        child.kill().unwrap();
        child.wait().unwrap();
        let output = token.set_up(false);
        assert!(output.status.success(), "{:?}", lines(&output.stderr));
    }
    token.custodian();
}

/// Each half is as it must be, and only using both shows that they are of two pairs.
#[test]
fn halves_of_two_pairs_stop_a_start() {
    let of_import = match TestModule::chosen() {
        // So it calls what its key does not open.
        TestModule::Kryoptic => "the HSM failed: C_UnwrapKey: CKR_DEVICE_ERROR",
        _ => "the private key of hsm-authd/import/v1 does not unwrap",
    };
    for (label, words) in [
        ("hsm-authd/attest/v1", "the public key of hsm-authd/attest/v1 does not fit"),
        ("hsm-authd/audit/v1", "the public key of hsm-authd/audit/v1 does not fit"),
        ("hsm-authd/import/v1", of_import),
    ] {
        let token = TestToken::new();
        intrude(&token, &format!("crossed {label}"));
        assert!(token.set_up(false).status.success());
        let (exit, said) = token.refused(&token.boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED));
        assert!(said.contains(words), "{said}");

        let token = TestToken::new();
        intrude(&token, &format!("right {}", label.replace("v1", "v2")));
        token.custodian();
    }
}

#[test]
fn two_keys_of_one_label_and_labels_without_version_are_refused() {
    for (label, words) in [
        ("hsm-authd/kek/v1", ["two objects", "hsm-authd/kek/v1"]),
        ("hsm-authd/kek/v01", ["no version", "v01"]),
    ] {
        let token = TestToken::new();
        intrude(&token, &format!("right {label}"));
        assert_refused(&token.set_up(false), EXIT_START_FAILED, &words);
        let (exit, said) = token.refused(&token.boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED));
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    }
}

#[test]
fn no_system_key_can_be_read_wrapped_or_weakened() {
    if passed_over(Feature::Unextractable) {
        return;
    }
    intrude(&TestToken::new(), "read and wrap every system key");
}

#[test]
fn something_else_on_standard_input_is_refused() {
    let token = TestToken::bare();
    let output = token
        .command(crate::token::BINARY)
        .args(["token-setup", "--supervisor", &std::process::id().to_string()])
        .output()
        .unwrap();
    assert_refused(&output, EXIT_START_FAILED, &["hsm-authd init"]);
}
