//! `hsm-authd token-setup` against SoftHSM.

use std::process::Output;

use hsm_authd::custodian::token::Setup;
use hsm_authd::custodian::{EXIT_PIN_REFUSED, EXIT_START_FAILED};

use crate::intruder::intrude;
use crate::token::{LABEL, PIN, SO_PIN, TestToken};

const KEYS: [&str; 3] = ["hsm-authd/kek/v1", "hsm-authd/row/v1", "hsm-authd/data/v1"];

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
    let mut expected = vec![format!("token {LABEL}: made"), format!("token {LABEL}: user PIN set")];
    expected.extend(KEYS.map(|key| format!("key {key}: made")));
    assert_eq!(lines(&first.stdout), expected);

    let again = token.set_up(true);
    let mut expected = vec![format!("token {LABEL}: already there")];
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
    intrude(&token, "a token without user PIN");
    assert_refused(&token.set_up(false), EXIT_START_FAILED, &["no user PIN", "--so-pin-file"]);
    let (exit, words) = token.refused(&token.boot);
    assert_eq!(exit, i32::from(EXIT_START_FAILED), "{words}");
    assert!(words.contains("run `hsm-authd init`"), "{words}");
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
    assert_refused(&token.set_up(false), EXIT_START_FAILED, &[LABEL, "--so-pin-file"]);
}

#[test]
fn two_tokens_of_one_label_are_refused() {
    let token = TestToken::new();
    intrude(&token, "a second token of the label");
    assert_refused(&token.set_up(true), EXIT_START_FAILED, &["several tokens", LABEL]);
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
    let output = token.set_up_with(&Setup { boot, so_pin_file: None });
    assert_refused(&output, EXIT_PIN_REFUSED, &["user PIN", "CKR_PIN_INCORRECT"]);

    let token = TestToken::bare();
    intrude(&token, "a token without user PIN");
    let output = token.set_up_with(&Setup { boot: token.boot.clone(), so_pin_file: Some(wrong) });
    assert_refused(&output, EXIT_PIN_REFUSED, &["SO PIN", "CKR_PIN_INCORRECT"]);
}

/// Every attribute that makes a key what it must be: one wrong, and neither setup nor custodian goes
/// on.
#[test]
fn a_key_that_is_not_as_it_must_be_is_refused_by_name() {
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
        ("half", "hsm-authd/kek/v1", "CKA_CLASS"),
    ] {
        let token = TestToken::new();
        intrude(&token, &format!("remove {label}"));
        intrude(&token, &format!("{what} {label}"));
        assert_refused(&token.set_up(false), EXIT_START_FAILED, &[label, attribute]);
        let (exit, words) = token.refused(&token.boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED), "{what}");
        assert!(words.contains(label) && words.contains(attribute), "{what}: {words}");
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
