//! What is destroyed for good is what was meant: no wrong bit, and no removal of another host's, takes a finished key.

use fault_module::sys::CKR_OK;
use fault_module::{Fault, Function, Kind};
use hsm_authd::domain::system_key::KeyKind;
use hsm_authd::hsm::messages::{Request, Response};

use crate::fault_module::FaultModule;
use crate::intruder::intrude;
use crate::token::TestToken;

/// Where the version stands in a label such as `hsm-authd/kek/v3`: 3 becomes 2.
const VERSION_BIT: u64 = 15 * 8;

fn faulty() -> (TestToken, FaultModule) {
    let mut token = TestToken::new();
    let faults = token.with_faults();
    (token, faults)
}

fn newest(token: &TestToken, kind: KeyKind) -> u16 {
    match token.custodian().call(Request::LoadKeys) {
        Ok(Response::KeysLoaded(newest)) => newest.of(kind),
        other => panic!("{:?}", other.err()),
    }
}

#[test]
fn a_wrong_bit_in_a_label_removes_no_finished_key() {
    let (token, faults) = faulty();
    intrude(&token, "right hsm-authd/kek/v2");
    let mut removed = 0;
    for call in 1..=24 {
        intrude(&token, "mark hsm-authd/unfinished/kek/v3");
        intrude(&token, "right hsm-authd/kek/v3");
        let lie = Fault::of(Function::C_GetAttributeValue, Kind::Corrupt { bit: VERSION_BIT });
        let lie = if call == 24 { lie } else { lie.from_call(call).once() };
        let set = faults.set(lie);
        let said = String::from_utf8_lossy(&token.set_up(false).stdout).into_owned();
        assert!(set.count() > 0, "{call}");
        set.lift();
        removed += said.matches("unfinished, removed").count();
        assert_eq!(newest(&token, KeyKind::Kek), 2, "{call}: {said}");
        // What was not removed under the lie goes now.
        assert!(token.set_up(false).status.success());
        assert_eq!(newest(&token, KeyKind::Kek), 2, "{call}: {said}");
        // Six keys, three of them pairs; the anchor; kek/v2.
        intrude(&token, "count 11");
    }
    println!("{removed} of 24 removed under the lie what was unfinished, and nothing else");
}

#[test]
fn what_is_said_to_be_destroyed_and_is_not_is_no_removal() {
    let (token, faults) = faulty();
    intrude(&token, "mark hsm-authd/unfinished/kek/v2");
    intrude(&token, "right hsm-authd/kek/v2");
    let set = faults.set(Fault::of(Function::C_DestroyObject, Kind::Fail(CKR_OK)));
    let output = token.set_up(false);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("the object is still there"), "{said}");
    set.lift();
    // It is nobody's key meanwhile, and the next run removes it.
    assert_eq!(newest(&token, KeyKind::Kek), 1);
    let said = String::from_utf8_lossy(&token.set_up(false).stdout).into_owned();
    assert!(said.contains("key hsm-authd/kek/v2: unfinished, removed"), "{said}");
}

#[test]
fn a_bit_that_says_that_no_pin_is_set_replaces_none() {
    let (token, faults) = faulty();
    // CKF_USER_PIN_INITIALIZED, in the flags behind 96 bytes of text.
    let unset = Fault::of(Function::C_GetTokenInfo, Kind::Corrupt { bit: 96 * 8 + 3 });
    for fault in [unset, unset.once(), unset.from_call(2).once()] {
        let set = faults.set(fault);
        assert!(token.set_up(true).status.success());
        assert!(set.count() > 0);
        set.lift();
    }
    assert_eq!(faults.counts().calls(Function::C_InitPIN), 0);
    token.custodian();
}
