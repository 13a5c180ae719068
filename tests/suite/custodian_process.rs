//! The process `hsm-authd custodian`: how it starts, what it survives, how it ends.

use std::os::unix::fs::MetadataExt;

use hsm_authd::custodian::{EXIT_HSM_FAILED, EXIT_PIN_REFUSED, EXIT_PROTOCOL_BROKEN, EXIT_START_FAILED};
use hsm_authd::hsm::messages::{FRAME_BYTES_MAX, Fault, Request, Response};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::modules::{Feature, passed_over};
use crate::token::{BINARY, TestToken};

#[test]
fn health_notices_that_the_token_is_gone() {
    if passed_over(Feature::Removal) {
        return;
    }
    let token = TestToken::new();
    let mut custodian = token.custodian();
    assert!(matches!(custodian.call(Request::Health), Ok(Response::Healthy)));
    token.pull();
    match custodian.call(Request::Health) {
        Err(Fault::Hsm(reason)) => assert!(reason.to_string().starts_with("C_SignInit: CKR_"), "{reason}"),
        other => panic!("{:?}", other.err()),
    }
    assert!(custodian.receive::<Value>().is_none(), "it hangs up by itself");
    let (status, _) = custodian.end();
    assert_eq!(status.code(), Some(EXIT_HSM_FAILED.into()));
}

#[test]
fn a_refused_pin_is_final_and_costs_one_attempt() {
    let token = TestToken::new();
    let mut boot = token.boot.clone();
    boot.pin_file = token.file("wrong", "4711-wrong-4711\n");
    let (exit, words) = token.refused(&boot);
    assert_eq!(exit, i32::from(EXIT_PIN_REFUSED));
    assert!(words.starts_with("hsm-authd: ") && words.lines().count() == 1, "{words}");
    assert!(words.contains("CKR_PIN_INCORRECT") && words.contains("/wrong"), "{words}");
    assert!(!words.contains("4711"), "{words}");
    token.custodian();
}

#[test]
fn a_start_that_fails_says_what_to_mend() {
    let token = TestToken::new();
    let boot = |change: &dyn Fn(&mut hsm_authd::hsm::messages::Boot)| {
        let mut boot = token.boot.clone();
        change(&mut boot);
        boot
    };
    for (boot, expected) in [
        (boot(&|boot| boot.token_label = "nobody's".into()), &["nobody's", "run `hsm-authd init`"][..]),
        (
            boot(&|boot| boot.module = "/nowhere/libp11.so".into()),
            &["/nowhere/libp11.so", "does not load", "correct hsm.module"],
        ),
        (
            boot(&|boot| boot.module = token.file("no-library", "text")),
            &["no-library", "does not load", "correct hsm.module"],
        ),
        (boot(&|boot| boot.pin_file = "/nowhere/pin".into()), &["PIN file /nowhere/pin"]),
        (boot(&|boot| boot.pin_file = token.file("empty", "\n")), &["PIN file", "empty"]),
    ] {
        let (exit, words) = token.refused(&boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED), "{words}");
        assert!(words.starts_with("hsm-authd: ") && words.lines().count() == 1, "{words}");
        assert!(expected.iter().all(|word| words.contains(word)), "{words}");
    }
}

#[test]
fn it_leaves_quietly_when_the_other_end_is_closed() {
    let token = TestToken::new();
    for ended in [token.spawn().end(), token.custodian().end()] {
        let (status, words) = ended;
        assert!(status.success(), "{words}");
        assert!(!words.contains("ERROR"), "{words}");
    }
    let mut custodian = token.custodian();
    custodian.send_bytes(&[0, 0]);
    assert!(custodian.end().0.success(), "within a frame");
}

#[test]
fn signals_to_the_group_do_not_end_it() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        kill(Pid::from_raw(custodian.id() as i32), signal).unwrap();
        assert!(matches!(custodian.call(Request::Health), Ok(Response::Healthy)), "{signal}");
    }
    assert!(custodian.end().0.success());
}

#[test]
fn the_death_of_its_parent_ends_it() {
    let token = TestToken::new();
    // A shell in between, which background processes keep their standard input from.
    let mut custodian =
        token.spawn_as("sh", &["-c", r#"exec 3<&0; "$0" custodian --supervisor $$ <&3 & wait"#, BINARY]);
    custodian.send(&token.boot);
    assert!(custodian.hello().is_some());
    kill(Pid::from_raw(custodian.id() as i32), Signal::SIGKILL).unwrap();
    assert!(custodian.hello().is_none(), "our end is open all the while");
}

#[test]
fn no_process_of_the_same_user_looks_into_it() {
    let token = TestToken::new();
    let custodian = token.custodian();
    let owner = |pid: &str| std::fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid();
    // The kernel gives what belongs to an undumpable process to root. As root, this shows nothing.
    assert_eq!(owner(&custodian.id().to_string()), 0);
}

#[test]
fn a_malformed_frame_ends_it_without_a_panic() {
    let token = TestToken::new();
    let too_long = (FRAME_BYTES_MAX as u32 + 1).to_be_bytes();
    for frame in [&[0, 0, 0, 3, 1, 0xff, 0xff][..], &[0, 0, 0, 0], &too_long] {
        let mut custodian = token.custodian();
        custodian.send_bytes(frame);
        let (status, words) = custodian.end();
        assert_eq!(status.code(), Some(EXIT_PROTOCOL_BROKEN.into()), "{words}");

        let mut unbooted = token.spawn();
        unbooted.send_bytes(frame);
        let (status, words) = unbooted.end();
        assert_eq!(status.code(), Some(EXIT_START_FAILED.into()), "{words}");
        assert!(words.contains("boot message"), "{words}");
    }
}
