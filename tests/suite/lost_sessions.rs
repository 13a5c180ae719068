//! One custodian that loses its session, its login or its handles, and goes on.

use std::time::Duration;

use fault_module::sys::{
    CKR_ARGUMENTS_BAD, CKR_BUFFER_TOO_SMALL, CKR_DATA_LEN_RANGE, CKR_DEVICE_ERROR, CKR_FUNCTION_FAILED,
    CKR_FUNCTION_REJECTED, CKR_GENERAL_ERROR, CKR_KEY_HANDLE_INVALID, CKR_OBJECT_HANDLE_INVALID, CKR_OK,
    CKR_OPERATION_ACTIVE, CKR_OPERATION_NOT_INITIALIZED, CKR_PIN_INCORRECT, CKR_SESSION_CLOSED,
    CKR_SESSION_COUNT, CKR_SESSION_HANDLE_INVALID, CKR_SESSION_READ_ONLY, CKR_TOKEN_WRITE_PROTECTED,
    CKR_USER_NOT_LOGGED_IN, CKR_VENDOR_DEFINED,
};
use fault_module::{Fault, Function, Kind, Latency, Vanishing};
use hsm_authd::custodian::EXIT_HSM_FAILED;
use hsm_authd::domain::credential::ObjectId;
use hsm_authd::domain::otp::Algorithm;
use hsm_authd::hsm::messages::{Custody, Request, Response};

use crate::faults::{Answer, World};
use crate::intruder::intrude;
use crate::modules::{Feature, passed_over};
use crate::scratch::Scratch;
use crate::wrapped_seeds;

/// The process is the same, has one session, and has logged in once.
fn is_one_session(world: &World, pid: u32) {
    let counts = world.faults.counts();
    let mine = counts.of(pid).unwrap();
    assert_eq!((mine.sessions_opened - mine.sessions_closed, mine.calls(Function::C_Login)), (1, 1));
}

#[test]
fn what_another_session_heals_costs_neither_the_process_nor_the_answer() {
    use Function::{C_Sign, C_SignInit, C_UnwrapKey};
    let world = World::new();
    for (function, kind) in [
        (C_SignInit, Kind::Fail(CKR_SESSION_HANDLE_INVALID)),
        (C_SignInit, Kind::Fail(CKR_SESSION_CLOSED)),
        (C_SignInit, Kind::Fail(CKR_SESSION_COUNT)),
        (C_SignInit, Kind::Fail(CKR_OPERATION_ACTIVE)),
        (C_SignInit, Kind::FailDone(CKR_OPERATION_ACTIVE)),
        (C_SignInit, Kind::Fail(CKR_KEY_HANDLE_INVALID)),
        (C_SignInit, Kind::Fail(CKR_USER_NOT_LOGGED_IN)),
        // It says that it was begun, and nothing was.
        (C_SignInit, Kind::Fail(CKR_OK)),
        (C_Sign, Kind::Fail(CKR_OPERATION_NOT_INITIALIZED)),
        (C_Sign, Kind::FailDone(CKR_DEVICE_ERROR)),
        (C_Sign, Kind::Fail(CKR_BUFFER_TOO_SMALL)),
        (C_Sign, Kind::Fail(CKR_GENERAL_ERROR)),
        (C_SignInit, Kind::Fail(CKR_FUNCTION_FAILED)),
        (C_SignInit, Kind::FailDone(CKR_FUNCTION_REJECTED)),
        (C_UnwrapKey, Kind::Fail(CKR_OBJECT_HANDLE_INVALID)),
        (C_UnwrapKey, Kind::FailDone(CKR_VENDOR_DEFINED + 7)),
    ] {
        println!("{function:?}: {kind:?}");
        let mut custodian = world.token.custodian();
        let pid = custodian.id();
        let set = world.faults.set(Fault::of(function, kind).once());
        assert_eq!(world.verify(&mut custodian), Answer::Yes, "{function:?}: {kind:?}");
        assert_eq!(set.count(), 1, "{function:?}: {kind:?}");
        is_one_session(&world, pid);
        assert_eq!([world.refuse(&mut custodian), world.verify(&mut custodian)], [Answer::No, Answer::Yes]);
        assert!(custodian.end().0.success());
        set.lift();
    }
    assert_eq!(world.faults.counts().sessions_open(), 0);
}

#[test]
fn it_goes_on_for_as_often_as_it_loses_its_session() {
    let world = World::new();
    let mut custodian = world.token.custodian();
    let pid = custodian.id();
    for round in 1..=20 {
        let lost = Kind::Fail(CKR_SESSION_HANDLE_INVALID);
        let set = world.faults.set(Fault::of(Function::C_SignInit, lost).once());
        assert_eq!(world.verify(&mut custodian), Answer::Yes, "{round}");
        assert_eq!(world.refuse(&mut custodian), Answer::No, "{round}");
        assert_eq!(set.count(), 1);
        set.lift();
        is_one_session(&world, pid);
    }
}

/// Nothing that a probe asks for comes from a request: whatever code the HSM finds for it, the session is not well.
#[test]
fn a_session_in_which_the_probe_is_refused_is_given_up() {
    let world = World::new();
    for code in [CKR_ARGUMENTS_BAD, CKR_DATA_LEN_RANGE, CKR_SESSION_READ_ONLY, CKR_TOKEN_WRITE_PROTECTED] {
        let mut custodian = world.token.custodian();
        let pid = custodian.id();
        let set = world.faults.set(Fault::of(Function::C_SignInit, Kind::Fail(code)).once());
        assert!(matches!(custodian.call(Request::Health), Ok(Response::Healthy)), "{code:#x}");
        assert_eq!(set.count(), 1);
        is_one_session(&world, pid);
        assert_eq!(world.faults.counts().of(pid).unwrap().sessions_opened, 2, "{code:#x}");
        set.lift();
        // In the next one as well.
        let set = world.faults.set(Fault::of(Function::C_SignInit, Kind::Fail(code)));
        assert!(custodian.call(Request::Health).is_err());
        let (status, words) = custodian.end();
        assert_eq!(status.code(), Some(EXIT_HSM_FAILED.into()), "{words}");
        set.lift();
    }
    world.is_well();
}

/// Session objects go with their session; of one that may leave nobody knows whether it is there.
#[test]
fn where_a_secret_that_may_leave_may_be_left_the_session_ends() {
    use Function::{C_CreateObject, C_DestroyObject, C_GenerateKey, C_GetAttributeValue, C_WrapKey};
    let world = World::new();
    let generate =
        |export| Request::Generate { algorithm: Algorithm::Sha1, export, custody: Custody::Wrapped };
    let failed = Kind::Fail(CKR_GENERAL_ERROR);
    for (export, faults) in [
        (false, vec![Fault::of(C_GenerateKey, Kind::FailDone(CKR_GENERAL_ERROR)).once()]),
        (true, vec![Fault::of(C_CreateObject, Kind::FailDone(CKR_FUNCTION_FAILED)).once()]),
        // Of that by which its blob is opened, and then of itself.
        (false, vec![Fault::of(C_DestroyObject, failed).from_call(2).once()]),
        (false, vec![Fault::of(C_GetAttributeValue, failed).from_call(2).once()]),
        // What comes first could be tried again.
        (false, vec![Fault::of(C_WrapKey, failed).once(), Fault::of(C_DestroyObject, failed).once()]),
    ] {
        let mut custodian = world.token.custodian();
        let pid = custodian.id();
        let set: Vec<_> = faults.iter().map(|fault| world.faults.set(*fault)).collect();
        assert!(matches!(custodian.call(generate(export)), Ok(Response::Secret { .. })), "{faults:?}");
        assert!(set.iter().all(|set| set.count() == 1), "{faults:?}");
        is_one_session(&world, pid);
        assert_eq!(world.faults.counts().of(pid).unwrap().sessions_opened, 2, "{faults:?}");
        set.iter().for_each(|set| set.lift());
        assert!(custodian.end().0.success());
    }
}

#[test]
fn a_seed_that_came_wrapped_and_may_have_been_left_opened_goes_with_its_session() {
    let world = World::new();
    let mut custodian = world.token.custodian();
    let Ok(Response::ImportKey(key)) = custodian.call(Request::ImportKey) else { panic!() };
    let scratch = Scratch::new();
    scratch.write("key.pem", &key.to_pem().unwrap());
    let seed = wrapped_seeds::padded(b"a seed that came wrapped");
    let blob = wrapped_seeds::encrypt(&scratch.join("key.pem"), &seed, &wrapped_seeds::OAEP_SHA1);
    let seed = blob.try_into().unwrap();
    let set = world.faults.set(Fault::of(Function::C_UnwrapKey, Kind::FailDone(CKR_GENERAL_ERROR)).once());
    let import = Request::ImportWrapped { algorithm: Algorithm::Sha1, seed, custody: Custody::Wrapped };
    assert!(matches!(custodian.call(import), Ok(Response::Imported(Some(_)))));
    assert_eq!(set.count(), 1);
    is_one_session(&world, custodian.id());
    assert_eq!(world.faults.counts().of(custodian.id()).unwrap().sessions_opened, 2);
}

/// What was sealed under an old version needs it as long as it stands: without it its rows would look tampered with.
#[test]
fn a_session_that_shows_fewer_keys_is_not_gone_on_with() {
    let world = World::new();
    intrude(&world.token, "right hsm-authd/row/v2");
    let mut custodian = world.token.custodian();
    assert_eq!(world.verify(&mut custodian), Answer::Yes);
    intrude(&world.token, "remove hsm-authd/row/v1");
    let lost = Kind::Fail(CKR_SESSION_HANDLE_INVALID);
    let set = world.faults.set(Fault::of(Function::C_SignInit, lost).once());
    assert_eq!(world.verify(&mut custodian), Answer::hsm("C_SignInit: CKR_SESSION_HANDLE_INVALID"));
    assert_eq!(set.count(), 1);
    let (status, words) = custodian.end();
    assert_eq!(status.code(), Some(EXIT_HSM_FAILED.into()), "{words}");
}

#[test]
fn what_another_session_does_not_heal_ends_the_process() {
    let world = World::new();
    for (first, then) in [
        // The same again in the new session.
        (Fault::of(Function::C_UnwrapKey, Kind::Fail(CKR_DEVICE_ERROR)), None),
        // No new session.
        (
            Fault::of(Function::C_SignInit, Kind::Fail(CKR_SESSION_CLOSED)).once(),
            Some(Fault::of(Function::C_OpenSession, Kind::Fail(CKR_SESSION_COUNT))),
        ),
        // Everything in it is gone.
        (Fault::of(Function::C_SignInit, Kind::Vanish(Vanishing::Quietly)), None),
    ] {
        let mut custodian = world.token.custodian();
        let set: Vec<_> = std::iter::once(first).chain(then).map(|fault| world.faults.set(fault)).collect();
        assert!(matches!(world.verify(&mut custodian), Answer::Fault(_)), "{first:?}");
        let (status, words) = custodian.end();
        assert_eq!(status.code(), Some(EXIT_HSM_FAILED.into()), "{words}");
        set.iter().for_each(|set| set.lift());
        world.is_well();
    }
}

/// Others have lost theirs at the same moment, and all would try a PIN that was changed meanwhile.
#[test]
fn who_has_lost_the_login_ends_and_tries_no_pin() {
    use Function::{C_GetAttributeValue, C_Login, C_SignInit, C_UnwrapKey};
    let world = World::new();
    for (function, kind) in [
        (C_SignInit, Kind::CloseSessions),
        (C_UnwrapKey, Kind::CloseSessions),
        (C_UnwrapKey, Kind::ForgetLogin),
        (C_SignInit, Kind::ForgetLogin),
        (C_GetAttributeValue, Kind::ForgetLogin),
    ] {
        if kind == Kind::ForgetLogin && function != C_UnwrapKey && passed_over(Feature::Logout) {
            continue;
        }
        let mut custodian = world.token.custodian();
        let set = world.faults.set(Fault::of(function, kind).once());
        let refuse = world.faults.set(Fault::of(C_Login, Kind::Fail(CKR_PIN_INCORRECT)));
        assert!(matches!(world.verify(&mut custodian), Answer::Fault(_)), "{function:?}: {kind:?}");
        let (status, words) = custodian.end();
        assert_eq!(status.code(), Some(EXIT_HSM_FAILED.into()), "{words}");
        assert_eq!((set.count(), refuse.count()), (1, 0), "{function:?}: {kind:?}");
        set.lift();
        refuse.lift();
    }
    world.is_well();
    assert_eq!(world.faults.counts().sessions_open(), 0);
}

/// A request waits no longer for a custodian than until its front gives it up.
#[test]
fn who_has_read_for_long_does_not_read_again_while_somebody_waits() {
    let world = World::new();
    let slow = Latency::Uniform(Duration::from_millis(600), Duration::from_millis(600));
    let slow = world.faults.set(Fault::of(Function::C_FindObjectsInit, Kind::Latency(slow)).once());
    let mut custodian = world.token.custodian();
    assert_eq!(slow.count(), 1);
    let lost = Kind::Fail(CKR_SESSION_HANDLE_INVALID);
    let lost = world.faults.set(Fault::of(Function::C_SignInit, lost).once());
    assert!(matches!(world.verify(&mut custodian), Answer::Fault(_)));
    assert_eq!(lost.count(), 1);
    let (status, words) = custodian.end();
    assert_eq!(status.code(), Some(EXIT_HSM_FAILED.into()), "{words}");
}

#[test]
fn what_was_made_before_it_failed_is_not_made_twice() {
    let world = World::new();
    let mut custodian = world.token.custodian();
    let id = ObjectId::from_random([8; 16]);
    let generate =
        || Request::Generate { algorithm: Algorithm::Sha1, export: false, custody: Custody::Resident(id) };
    let made = |code| Fault::of(Function::C_GenerateKey, Kind::FailDone(code)).once();
    // A module that keeps no list of a key's mechanisms may be asked more than once for each key.
    let before = world.faults.counts().calls(Function::C_GenerateKey);
    let Ok(Response::Secret { .. }) = custodian.call(generate()) else { panic!("without a fault") };
    let calls = world.faults.counts().calls(Function::C_GenerateKey) - before;
    let destroyed = Request::DestroyResidents { ids: vec![id], nameless: false };
    assert!(matches!(custodian.call(destroyed), Ok(Response::Destroyed { objects: 1 })));
    // Behind the three of the pulse: of the one that was made.
    let unused = Fault::of(Function::C_SignInit, Kind::Fail(CKR_GENERAL_ERROR)).from_call(4).once();
    // Once, and again when it is tried again.
    for faults in [
        vec![made(CKR_DEVICE_ERROR)],
        vec![made(CKR_GENERAL_ERROR)],
        vec![unused],
        vec![unused, made(CKR_DEVICE_ERROR).from_call(calls + 1)],
    ] {
        let set: Vec<_> = faults.iter().map(|fault| world.faults.set(*fault)).collect();
        let stored = match custodian.call(generate()) {
            Ok(Response::Secret { stored, .. }) => stored,
            other => panic!("{faults:?}: {:?}\n{}", other.err(), custodian.end().1),
        };
        assert!(set.iter().all(|set| set.count() == 1), "{faults:?}");
        set.iter().for_each(|set| set.lift());
        assert_eq!(stored.object(), Some(id), "the second name is for another custodian");
        let ids = match custodian.call(Request::Residents { after: None }) {
            Ok(Response::Residents { ids, nameless: 0 }) => ids,
            other => panic!("{:?}", other.err()),
        };
        assert_eq!(ids, [id]);
        let destroyed = Request::DestroyResidents { ids, nameless: false };
        assert!(matches!(custodian.call(destroyed), Ok(Response::Destroyed { objects: 1 })));
    }
}
