//! One custodian that loses its session, its login or its handles, and goes on.

use fault_module::sys::{
    CKR_BUFFER_TOO_SMALL, CKR_DEVICE_ERROR, CKR_FUNCTION_FAILED, CKR_FUNCTION_REJECTED, CKR_GENERAL_ERROR,
    CKR_KEY_HANDLE_INVALID, CKR_OBJECT_HANDLE_INVALID, CKR_OK, CKR_OPERATION_ACTIVE,
    CKR_OPERATION_NOT_INITIALIZED, CKR_PIN_INCORRECT, CKR_SESSION_CLOSED, CKR_SESSION_COUNT,
    CKR_SESSION_HANDLE_INVALID, CKR_USER_NOT_LOGGED_IN, CKR_VENDOR_DEFINED,
};
use fault_module::{Fault, Function, Kind, Vanishing};
use hsm_authd::custodian::{EXIT_HSM_FAILED, EXIT_PIN_REFUSED};
use hsm_authd::domain::credential::ObjectId;
use hsm_authd::domain::otp::Algorithm;
use hsm_authd::hsm::messages::{Custody, Request, Response};

use crate::faults::{Answer, World};

/// The process is the same, has one session, and has logged in so often.
fn is_one_session(world: &World, pid: u32, logins: u64) {
    let counts = world.faults.counts();
    let mine = counts.of(pid).unwrap();
    assert_eq!((mine.sessions_opened - mine.sessions_closed, mine.calls(Function::C_Login)), (1, logins));
}

#[test]
fn what_another_session_heals_costs_neither_the_process_nor_the_answer() {
    use Function::{C_GetAttributeValue, C_Sign, C_SignInit, C_UnwrapKey};
    let world = World::new();
    for (function, kind, logins) in [
        (C_SignInit, Kind::CloseSessions, 2),
        (C_UnwrapKey, Kind::CloseSessions, 2),
        (C_UnwrapKey, Kind::ForgetLogin, 2),
        (C_SignInit, Kind::ForgetLogin, 2),
        (C_GetAttributeValue, Kind::ForgetLogin, 2),
        (C_SignInit, Kind::Fail(CKR_SESSION_HANDLE_INVALID), 1),
        (C_SignInit, Kind::Fail(CKR_SESSION_CLOSED), 1),
        (C_SignInit, Kind::Fail(CKR_SESSION_COUNT), 1),
        (C_SignInit, Kind::Fail(CKR_OPERATION_ACTIVE), 1),
        (C_SignInit, Kind::FailDone(CKR_OPERATION_ACTIVE), 1),
        (C_SignInit, Kind::Fail(CKR_KEY_HANDLE_INVALID), 1),
        (C_SignInit, Kind::Fail(CKR_USER_NOT_LOGGED_IN), 1),
        // It says that it was begun, and nothing was.
        (C_SignInit, Kind::Fail(CKR_OK), 1),
        (C_Sign, Kind::Fail(CKR_OPERATION_NOT_INITIALIZED), 1),
        (C_Sign, Kind::FailDone(CKR_DEVICE_ERROR), 1),
        (C_Sign, Kind::Fail(CKR_BUFFER_TOO_SMALL), 1),
        (C_Sign, Kind::Fail(CKR_GENERAL_ERROR), 1),
        (C_SignInit, Kind::Fail(CKR_FUNCTION_FAILED), 1),
        (C_SignInit, Kind::FailDone(CKR_FUNCTION_REJECTED), 1),
        (C_UnwrapKey, Kind::Fail(CKR_OBJECT_HANDLE_INVALID), 1),
        (C_UnwrapKey, Kind::FailDone(CKR_VENDOR_DEFINED + 7), 1),
    ] {
        let mut custodian = world.token.custodian();
        let pid = custodian.id();
        let set = world.faults.set(Fault::of(function, kind).once());
        assert_eq!(world.verify(&mut custodian), Answer::Yes, "{function:?}: {kind:?}");
        assert_eq!(set.count(), 1, "{function:?}: {kind:?}");
        is_one_session(&world, pid, logins);
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
        let set = world.faults.set(Fault::of(Function::C_SignInit, Kind::CloseSessions).once());
        assert_eq!(world.verify(&mut custodian), Answer::Yes, "{round}");
        assert_eq!(world.refuse(&mut custodian), Answer::No, "{round}");
        assert_eq!(set.count(), 1);
        set.lift();
        is_one_session(&world, pid, 1 + round);
    }
}

#[test]
fn what_another_session_does_not_heal_ends_the_process() {
    let world = World::new();
    for (first, then) in [
        // The same again in the new session.
        (Fault::of(Function::C_UnwrapKey, Kind::Fail(CKR_DEVICE_ERROR)), None),
        // No new session.
        (
            Fault::of(Function::C_SignInit, Kind::CloseSessions).once(),
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

#[test]
fn a_pin_that_was_changed_meanwhile_is_tried_once() {
    let world = World::new();
    let mut custodian = world.token.custodian();
    let forget = world.faults.set(Fault::of(Function::C_SignInit, Kind::ForgetLogin).once());
    let refuse = world.faults.set(Fault::of(Function::C_Login, Kind::Fail(CKR_PIN_INCORRECT)));
    assert!(matches!(world.verify(&mut custodian), Answer::Fault(_)));
    let (status, words) = custodian.end();
    assert_eq!(status.code(), Some(EXIT_PIN_REFUSED.into()), "{words}");
    assert_eq!((forget.count(), refuse.count()), (1, 1));
}

#[test]
fn what_was_made_before_it_failed_is_not_made_twice() {
    let world = World::new();
    let mut custodian = world.token.custodian();
    let id = ObjectId::from_random([8; 16]);
    let generate =
        || Request::Generate { algorithm: Algorithm::Sha1, export: false, custody: Custody::Resident(id) };
    // Once, and again when it is tried again.
    for codes in [&[CKR_DEVICE_ERROR][..], &[CKR_GENERAL_ERROR], &[CKR_GENERAL_ERROR, CKR_DEVICE_ERROR]] {
        let fail = |code| Fault::of(Function::C_GenerateKey, Kind::FailDone(code)).once();
        let set = (1..).zip(codes).map(|(call, code)| world.faults.set(fail(*code).from_call(call)));
        let set: Vec<_> = set.collect();
        let Ok(Response::Secret { stored, .. }) = custodian.call(generate()) else { panic!("{codes:?}") };
        assert!(set.iter().all(|set| set.count() == 1), "{codes:?}");
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
