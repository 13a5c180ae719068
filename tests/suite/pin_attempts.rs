//! A token counts the PINs that it refuses: the one too many is not tried by a machine.

use std::fs;
use std::os::unix::fs::MetadataExt;

use fault_module::{Fault, Function, Kind};
use hsm_authd::custodian::{EXIT_PIN_REFUSED, EXIT_START_FAILED};
use hsm_authd::hsm::messages::{Boot, PinFile, Request, Response};

use crate::fault_module::FaultModule;
use crate::modules::{Feature, passed_over};
use crate::token::TestToken;

/// Where CK_TOKEN_INFO has its flags: behind four texts.
const FLAGS_BIT: u64 = (32 + 32 + 16 + 16) * 8;
const COUNT_LOW: u64 = 16;
const FINAL_TRY: u64 = 17;
const LOCKED: u64 = 18;

/// Turns a flag over whenever somebody asks.
fn turned_over(flag: u64) -> Fault {
    Fault::of(Function::C_GetTokenInfo, Kind::Corrupt { bit: FLAGS_BIT + flag })
}

fn world() -> (TestToken, FaultModule) {
    let mut token = TestToken::new();
    let faults = token.with_faults();
    (token, faults)
}

fn cut_off(boot: &Boot) -> Boot {
    let file = fs::metadata(&boot.pin_file).unwrap();
    let pin_file =
        PinFile { inode: file.ino(), modified_unix_s: file.mtime(), modified_ns: file.mtime_nsec() };
    Boot { pin_cut_off: Some(pin_file), ..boot.clone() }
}

fn comes_up(token: &TestToken, boot: &Boot) {
    let mut custodian = token.spawn();
    custodian.send(boot);
    assert!(custodian.hello().is_some());
    assert!(matches!(custodian.call(Request::Health), Ok(Response::Healthy)));
    assert!(custodian.end().0.success());
}

#[test]
fn nobody_tries_a_pin_that_is_locked_or_has_one_attempt_left() {
    let (token, faults) = world();
    for (flag, words) in [
        (FINAL_TRY, ["one more wrong user PIN locks it", "--login --list-objects"]),
        (LOCKED, ["says that its user PIN is locked", "--login-type so --init-pin"]),
    ] {
        let set = faults.set(turned_over(flag));
        let before = faults.counts().calls(Function::C_Login);
        let (exit, line) = token.refused(&token.boot);
        assert_eq!(exit, i32::from(EXIT_PIN_REFUSED), "{line}");
        assert!(words.iter().all(|words| line.contains(words)) && line.contains("is not tried"), "{line}");
        assert_eq!(faults.counts().calls(Function::C_Login), before, "{line}");
        set.lift();
        comes_up(&token, &token.boot);
    }
    assert_eq!(faults.counts().sessions_open(), 0);
}

/// What a token says once ends no service.
#[test]
fn a_token_that_says_now_this_and_now_that_is_asked_again() {
    // How often it is asked is known of two slots.
    if passed_over(Feature::Tokens) {
        return;
    }
    let (token, faults) = world();
    // The first look, twice at each of two slots, and the second.
    for call in [1, 5] {
        let set = faults.set(turned_over(LOCKED).from_call(call).once());
        let before = faults.counts().calls(Function::C_Login);
        let mut custodian = token.spawn();
        custodian.send(&token.boot);
        let is_up = custodian.hello().is_some();
        let (status, line) = custodian.end();
        assert_eq!(set.count(), 1);
        match call {
            // What was said first alone stands against nobody.
            1 => assert!(is_up && status.success(), "{line}"),
            _ => {
                assert_eq!((is_up, status.code()), (false, Some(EXIT_START_FAILED.into())), "{line}");
                assert!(line.contains("now this and now that"), "{line}");
                assert_eq!(faults.counts().calls(Function::C_Login), before);
            }
        }
        set.lift();
    }
}

/// SoftHSM remembers one refusal, until a login that is none.
#[test]
fn a_pin_of_which_nobody_knows_whether_it_was_refused_is_not_tried_again() {
    if passed_over(Feature::Refusals) {
        return;
    }
    let (token, faults) = world();
    // Somebody else's wrong one is no reason.
    let wrong = Boot { pin_file: token.file("wrong", "0000\n"), ..token.boot.clone() };
    assert_eq!(token.refused(&wrong).0, i32::from(EXIT_PIN_REFUSED));
    let before = faults.counts().calls(Function::C_Login);
    for of_a_cut_off in [cut_off(&wrong), cut_off(&token.boot)] {
        let (exit, line) = token.refused(&of_a_cut_off);
        assert_eq!(exit, i32::from(EXIT_PIN_REFUSED), "{line}");
        assert!(line.contains("has refused a user PIN since") && line.contains("is not tried"), "{line}");
    }
    assert_eq!(faults.counts().calls(Function::C_Login), before);
    let another = Boot { pin_cut_off: cut_off(&wrong).pin_cut_off, ..token.boot.clone() };
    comes_up(&token, &another);
    // The token has forgotten it: what was cut off was not refused.
    comes_up(&token, &cut_off(&token.boot));
    let set = faults.set(turned_over(COUNT_LOW));
    comes_up(&token, &token.boot);
    assert!(set.count() > 0);
}
