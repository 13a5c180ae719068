//! One custodian whose HSM fails: what it answers, and how it ends. What becomes of a service then is in
//! `faults_served`.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use fault_module::sys::{
    CKR_DEVICE_ERROR, CKR_GENERAL_ERROR, CKR_HOST_MEMORY, CKR_OK, CKR_PIN_INCORRECT,
    CKR_SESSION_HANDLE_INVALID,
};
use fault_module::{Fault, Function, Kind, Latency, Length, Vanishing};
use hsm_authd::custodian::{EXIT_HSM_FAILED, EXIT_PIN_REFUSED, EXIT_START_FAILED};
use hsm_authd::domain::credential::ObjectId;
use hsm_authd::domain::otp::Algorithm;
use hsm_authd::domain::row::SealedBytes;
use hsm_authd::hsm::messages::{Call, Custody, Reply, Request, Response};
use nix::sys::signal::Signal;

use crate::custodian::{account, check, credential, state};
use crate::daemon::code;
use crate::fault_module::FaultModule;
use crate::modules::{Feature, TestModule, passed_over};
use crate::token::{Custodian, TestToken};

/// Not that of the self-test, which a custodian has unwrapped already when it starts.
const SEED: &[u8] = b"a seed of the faults";

/// As long as no test lasts.
const HOUR: Duration = Duration::from_secs(3_600);

/// A token behind a fault module, with a credential.
pub struct World {
    pub token: TestToken,
    pub faults: FaultModule,
    standing: Vec<SealedBytes>,
}

impl World {
    pub fn new() -> Self {
        let mut token = TestToken::new();
        let faults = token.with_faults();
        let mut custodian = token.custodian();
        let secret = custodian.import(Algorithm::Sha1, SEED);
        let standing = custodian.seal(&[credential(Algorithm::Sha1, 6, Some(secret)), state(1), account(1)]);
        assert!(custodian.end().0.success());
        Self { token, faults, standing }
    }

    fn send(&self, custodian: &mut Custodian, code: &str) {
        let request = Request::CheckOtp(check(&self.standing, &[code], &[0], &[]));
        custodian.send(&Call { repeated: false, id: 0, newest: Default::default(), request });
    }

    /// What a custodian says to the right code.
    pub fn verify(&self, custodian: &mut Custodian) -> Answer {
        self.send(custodian, &code(SEED, 0, 6));
        Answer::of(custodian)
    }

    /// What it says to a wrong one.
    pub fn refuse(&self, custodian: &mut Custodian) -> Answer {
        self.send(custodian, &code(SEED, 1, 6));
        Answer::of(custodian)
    }

    /// A custodian that comes up now says yes to what is right and no to what is wrong.
    pub fn is_well(&self) {
        let mut custodian = self.token.custodian();
        assert_eq!([self.verify(&mut custodian), self.refuse(&mut custodian)], [Answer::Yes, Answer::No]);
        assert!(custodian.end().0.success());
    }

    /// How a custodian that does not come up ends, and its last words.
    fn fails_to_start(&self) -> (ExitStatus, String) {
        let mut custodian = self.token.spawn();
        custodian.send(&self.token.boot);
        let hello = custodian.hello();
        let (status, words) = custodian.end();
        assert!(hello.is_none(), "it comes up: {status}, {words}");
        (status, words)
    }
}

/// What came back.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// It is right.
    Yes,
    /// It is wrong.
    No,
    /// It said so.
    Fault(String),
    /// It hung up.
    Nothing,
}

impl Answer {
    pub fn hsm(reason: &str) -> Self {
        Self::Fault(format!("the HSM failed: {reason}"))
    }

    fn of(custodian: &mut Custodian) -> Self {
        match custodian.receive::<Reply>().map(|reply| reply.result) {
            Some(Ok(Response::Checked { matched: Some(0), .. })) => Self::Yes,
            Some(Ok(Response::Checked { matched: None, .. })) => Self::No,
            Some(Ok(_)) => panic!("another response"),
            Some(Err(fault)) => Self::Fault(fault.to_string()),
            None => Self::Nothing,
        }
    }
}

#[test]
fn without_a_fault_everything_passes_through() {
    let world = World::new();
    let mut custodian = world.token.custodian();
    assert_eq!([world.verify(&mut custodian), world.refuse(&mut custodian)], [Answer::Yes, Answer::No]);
    let pid = custodian.id();
    let counts = world.faults.counts();
    let mine = counts.of(pid).unwrap();
    assert_eq!((mine.sessions_opened, mine.sessions_closed, mine.fired), (1, 0, 0));
    assert_eq!([Function::C_Initialize, Function::C_Login].map(|one| mine.calls(one)), [1, 1]);
    assert_eq!((counts.sessions_open(), counts.0.len()), (1, 2), "the one that enrolled has ended");
    let before = mine.calls(Function::C_Sign);
    assert_eq!(world.verify(&mut custodian), Answer::Yes);
    let after = world.faults.counts().of(pid).unwrap().calls(Function::C_Sign);
    assert_eq!(
        after - before,
        6,
        "the code of one counter, what is known, and the code again, each with its length"
    );
    assert!(custodian.end().0.success());
    let counts = world.faults.counts();
    assert_eq!(counts.of(pid).unwrap().sessions_closed, 1);
    assert_eq!((counts.sessions_open(), counts.fired()), (0, 0));
}

#[test]
fn a_custodian_whose_hsm_fails_says_so_and_leaves() {
    use Function::{C_FindObjectsInit, C_GetAttributeValue, C_Sign, C_SignInit, C_UnwrapKey};
    let world = World::new();
    let mut rounds = 0;
    for (function, kind, failure) in [
        (C_UnwrapKey, Kind::Fail(CKR_GENERAL_ERROR), "C_UnwrapKey: CKR_GENERAL_ERROR"),
        (C_UnwrapKey, Kind::FailDone(CKR_DEVICE_ERROR), "C_UnwrapKey: CKR_DEVICE_ERROR"),
        // Reading its attributes fails, and then destroying it: the former is told.
        (C_UnwrapKey, Kind::Fail(CKR_OK), "C_GetAttributeValue: CKR_OBJECT_HANDLE_INVALID"),
        (C_UnwrapKey, Kind::Corrupt { bit: 40 }, "C_GetAttributeValue: CKR_OBJECT_HANDLE_INVALID"),
        (C_UnwrapKey, Kind::ForgetLogin, "C_UnwrapKey: CKR_UNWRAPPING_KEY_HANDLE_INVALID"),
        (C_UnwrapKey, Kind::CloseSessions, "C_UnwrapKey: CKR_SESSION_HANDLE_INVALID"),
        (C_UnwrapKey, Kind::Vanish(Vanishing::Quietly), "C_UnwrapKey: CKR_OBJECT_HANDLE_INVALID"),
        (C_GetAttributeValue, Kind::Corrupt { bit: 0 }, "C_UnwrapKey: CKA_CLASS is not as asked for"),
        (C_SignInit, Kind::Fail(CKR_SESSION_HANDLE_INVALID), "C_SignInit: CKR_SESSION_HANDLE_INVALID"),
        (C_SignInit, Kind::Fail(CKR_OK), "C_Sign: CKR_OPERATION_NOT_INITIALIZED"),
        (C_SignInit, Kind::Vanish(Vanishing::NotPresent), "C_SignInit: CKR_TOKEN_NOT_PRESENT"),
        (C_SignInit, Kind::Vanish(Vanishing::Removed), "C_SignInit: CKR_DEVICE_REMOVED"),
        (C_Sign, Kind::FailDone(CKR_DEVICE_ERROR), "C_Sign: CKR_DEVICE_ERROR"),
        (C_Sign, Kind::Fail(CKR_OK), "C_Sign: a result of the wrong length"),
        // Nothing that is compared with may be shorter than a MAC.
        (C_Sign, Kind::Short(Length::To(0)), "C_Sign: a result of the wrong length"),
        (C_Sign, Kind::Short(Length::To(1)), "C_Sign: a result of the wrong length"),
        (C_Sign, Kind::Short(Length::LessByOne), "C_Sign: a result of the wrong length"),
    ] {
        let mut custodian = world.token.custodian();
        let set = world.faults.set(Fault::of(function, kind));
        let answer = world.verify(&mut custodian);
        match (TestModule::chosen(), answer) {
            (TestModule::SoftHsm, answer) => {
                assert_eq!(answer, Answer::hsm(failure), "{function:?}: {kind:?}");
            }
            // The codes above are SoftHSM's.
            (_, Answer::Fault(words)) => assert!(words.starts_with("the HSM failed: C_"), "{words}"),
            (_, answer) => panic!("{function:?}: {kind:?}: {answer:?}"),
        }
        assert!(set.count() > 0, "{function:?}: {kind:?}");
        let (status, words) = custodian.end();
        assert_eq!(status.code(), Some(EXIT_HSM_FAILED.into()), "{words}");
        set.lift();
        rounds += 1;
    }
    // Nothing of that is in a verification.
    let mut custodian = world.token.custodian();
    let set = world.faults.set(Fault::of(C_FindObjectsInit, Kind::Fail(CKR_DEVICE_ERROR)));
    assert_eq!((world.verify(&mut custodian), set.count()), (Answer::Yes, 0));
    drop(custodian);
    world.faults.clear();
    world.is_well();
    let counts = world.faults.counts();
    assert_eq!((counts.sessions_open(), counts.fired()), (0, counts.0.iter().map(|one| one.fired).sum()));
    assert!(counts.fired() >= rounds && counts.0.len() as u64 == rounds + 3, "{counts:?}");
}

#[test]
fn a_module_that_ends_its_process_ends_nothing_else() {
    let world = World::new();
    for (kind, code, signal) in
        [(Kind::Segfault, None, Some(Signal::SIGSEGV)), (Kind::Exit(3), Some(3), None)]
    {
        let mut custodian = world.token.custodian();
        let set = world.faults.set(Fault::of(Function::C_Sign, kind));
        assert_eq!(world.verify(&mut custodian), Answer::Nothing, "{kind:?}");
        assert_eq!(set.count(), 1);
        let (status, words) = custodian.end();
        assert_eq!((status.code(), status.signal()), (code, signal.map(|one| one as i32)), "{words}");
        set.lift();
        world.is_well();
    }
}

#[test]
fn a_call_that_hangs_goes_on_when_the_fault_is_lifted_or_its_time_is_over() {
    let world = World::new();
    let mut custodian = world.token.custodian();
    let set = world.faults.set(Fault::of(Function::C_Sign, Kind::Hang(HOUR)).once());
    world.send(&mut custodian, &code(SEED, 0, 6));
    set.await_fired(1);
    set.lift();
    assert_eq!(Answer::of(&mut custodian), Answer::Yes);

    let time = Duration::from_millis(300);
    let set = world.faults.set(Fault::of(Function::C_SignInit, Kind::Hang(time)).once());
    let begun = Instant::now();
    assert_eq!(world.verify(&mut custodian), Answer::Yes);
    assert!(begun.elapsed() >= time && set.count() == 1);
}

#[test]
fn a_slow_module_is_slow_and_nothing_else() {
    let world = World::new();
    let mut custodian = world.token.custodian();
    let time = Duration::from_millis(150);
    for fault in [
        Fault::of(Function::C_SignInit, Kind::Latency(Latency::Uniform(time, time))),
        Fault::everywhere(Kind::Latency(Latency::Uniform(time, time * 2))),
    ] {
        let set = world.faults.set(fault);
        let begun = Instant::now();
        assert_eq!(world.verify(&mut custodian), Answer::Yes);
        assert!(begun.elapsed() >= time * set.count() as u32 && set.count() > 0, "{:?}", begun.elapsed());
        set.lift();
    }
    // Drawn again for each call.
    let mean = Duration::from_millis(40);
    for (latency, most) in
        [(Latency::Uniform(Duration::ZERO, mean * 2), mean * 2), (Latency::Exponential(mean), mean * 10)]
    {
        let drawn: Vec<_> = (0..10_000).map(|call| latency.draw(call)).collect();
        let average = drawn.iter().sum::<Duration>() / 10_000;
        assert!(average.abs_diff(mean) < mean / 20, "{latency:?}: {average:?}");
        assert!(drawn.iter().all(|time| *time <= most));
        assert!(
            drawn.iter().any(|time| *time < mean / 10) && drawn.iter().any(|time| *time > mean * 19 / 10)
        );
    }
}

#[test]
fn a_fault_is_met_by_the_calls_and_the_process_that_it_is_for() {
    let world = World::new();
    let [mut one, mut other] = [world.token.custodian(), world.token.custodian()];
    // A verification signs three times, and asks for the length before each.
    let fail = || Fault::of(Function::C_Sign, Kind::Fail(CKR_HOST_MEMORY)).in_process(one.id());
    let set = world.faults.set(fail().from_call(13).once());
    assert_eq!(world.verify(&mut other), Answer::Yes);
    assert_eq!([world.verify(&mut one), world.verify(&mut one)], [Answer::Yes, Answer::Yes]);
    assert_eq!(set.count(), 0);
    assert_eq!(world.verify(&mut one), Answer::hsm("C_Sign: CKR_HOST_MEMORY"));
    assert_eq!((world.verify(&mut other), set.count()), (Answer::Yes, 1));

    // For two calls, over both; what is set first counts. Those that put nothing out do not.
    let mut one = world.token.custodian();
    let short =
        world.faults.set(Fault::of(Function::C_Sign, Kind::Short(Length::To(0))).from_call(4).times(2));
    let lie = world.faults.set(Fault::of(Function::C_SignInit, Kind::Fail(CKR_OK)).from_call(6));
    assert_eq!((world.verify(&mut one), short.count()), (Answer::Yes, 0));
    assert_eq!(world.verify(&mut one), Answer::hsm("C_Sign: a result of the wrong length"));
    assert_eq!(world.verify(&mut other), Answer::hsm("C_Sign: a result of the wrong length"));
    assert_eq!((short.count(), lie.count()), (2, 0));
    lie.lift();
    world.is_well();

    // Asking for a length does nothing that could have been done.
    let mut one = world.token.custodian();
    let done = world.faults.set(Fault::of(Function::C_Sign, Kind::FailDone(CKR_HOST_MEMORY)).from_call(4));
    assert_eq!((world.verify(&mut one), done.count()), (Answer::Yes, 0));
    assert_eq!(world.verify(&mut one), Answer::hsm("C_Sign: CKR_HOST_MEMORY"));
}

#[test]
fn a_token_that_is_away_comes_back_and_a_quiet_loss_lasts_as_long_as_the_process() {
    let world = World::new();
    let mut before = world.token.custodian();
    for (how, words) in [
        (Vanishing::NotPresent, "no token is labelled"),
        (Vanishing::Removed, "no token is labelled"),
        (Vanishing::Quietly, "no token is labelled"),
    ] {
        let set = world.faults.set(Fault::everywhere(Kind::Vanish(how)));
        let (status, said) = world.fails_to_start();
        assert_eq!(status.code(), Some(EXIT_START_FAILED.into()), "{how:?}: {status}: {said}");
        assert!(said.contains(words), "{said}");
        set.lift();
        world.is_well();
    }
    let quiet = Fault::of(Function::C_GetAttributeValue, Kind::Vanish(Vanishing::Quietly)).once();
    let set = world.faults.set(quiet);
    assert_eq!(world.verify(&mut before), Answer::hsm("C_GetAttributeValue: CKR_OBJECT_HANDLE_INVALID"));
    assert_eq!(set.count(), 1, "and everything after that");
    world.is_well();
}

/// What SoftHSM says of a token whose files are gone: that there is nothing, and that all is well.
#[test]
fn no_objects_where_there_are_some_is_no_secret_that_is_missing() {
    let world = World::new();
    let id = ObjectId::from_random([7; 16]);
    // They have read which secrets there are before there was this one.
    let [mut one, mut other] = [world.token.custodian(), world.token.custodian()];
    let mut writer = world.token.custodian();
    let custody = Custody::Resident(id);
    let generated = writer.call(Request::Generate { algorithm: Algorithm::Sha1, export: false, custody });
    let Ok(Response::Secret { stored, .. }) = generated else { panic!("{:?}", generated.err()) };
    let standing = writer.seal(&[credential(Algorithm::Sha1, 6, Some(stored)), state(1), account(1)]);
    let ask = || Request::CheckOtp(check(&standing, &["123456"], &[0], &[]));

    let set = world.faults.set(Fault::of(Function::C_FindObjects, Kind::Short(Length::To(0))));
    // The HSM does otherwise what it always did, and yet does not find a key that is there.
    let blind = one.call(ask()).err().unwrap();
    let words = "the HSM failed: C_FindObjects: not even hsm-authd/row/v1, which is there";
    assert_eq!(blind.to_string(), words);
    assert!(set.count() >= 2);
    set.lift();
    let set = world.faults.set(Fault::everywhere(Kind::Vanish(Vanishing::Quietly)));
    let gone = other.call(ask()).err().unwrap();
    assert_eq!(gone.to_string(), words);
    assert!(set.count() > 0);
    set.lift();
    assert!(world.token.custodian().call(ask()).is_ok());
}

#[test]
fn nobody_starts_on_a_token_that_shows_no_keys() {
    let world = World::new();
    for fault in [
        Fault::of(Function::C_FindObjects, Kind::Short(Length::To(0))),
        Fault::of(Function::C_FindObjects, Kind::Vanish(Vanishing::Quietly)),
        Fault::of(Function::C_FindObjectsInit, Kind::ForgetLogin).from_call(2),
        Fault::of(Function::C_Login, Kind::Fail(CKR_OK)),
    ] {
        let set = world.faults.set(fault);
        let (status, words) = world.fails_to_start();
        assert_eq!(status.code(), Some(EXIT_START_FAILED.into()), "{words}");
        assert!(words.starts_with("hsm-authd: ") && words.lines().count() == 1, "{words}");
        assert!(set.count() > 0);
        set.lift();
    }
    world.is_well();
}

#[test]
fn a_pin_that_the_module_refuses_is_tried_once() {
    let world = World::new();
    let set = world.faults.set(Fault::of(Function::C_Login, Kind::Fail(CKR_PIN_INCORRECT)));
    let (status, words) = world.fails_to_start();
    assert_eq!((status.code(), set.count()), (Some(EXIT_PIN_REFUSED.into()), 1), "{words}");
}

#[test]
fn a_start_fails_with_any_function_that_it_needs_and_says_which() {
    use Function::{
        C_CopyObject, C_CreateObject, C_DestroyObject, C_FindObjects, C_FindObjectsInit, C_GetAttributeValue,
        C_GetFunctionList, C_GetMechanismList, C_GetSlotList, C_GetTokenInfo, C_Initialize, C_Login,
        C_OpenSession, C_Sign, C_SignInit, C_UnwrapKey, C_Verify, C_VerifyInit, C_WrapKey,
    };
    let world = World::new();
    for function in [
        C_GetFunctionList,
        C_Initialize,
        C_GetSlotList,
        C_GetTokenInfo,
        C_GetMechanismList,
        C_OpenSession,
        C_Login,
        C_FindObjectsInit,
        C_FindObjects,
        C_GetAttributeValue,
        C_CopyObject,
        C_SignInit,
        C_Sign,
        C_VerifyInit,
        C_Verify,
        C_CreateObject,
        C_WrapKey,
        C_DestroyObject,
        C_UnwrapKey,
    ] {
        if function == C_GetFunctionList && passed_over(Feature::FunctionList) {
            continue;
        }
        for kind in [Kind::Fail(CKR_DEVICE_ERROR), Kind::FailDone(CKR_DEVICE_ERROR)] {
            let set = world.faults.set(Fault::of(function, kind));
            let (status, words) = world.fails_to_start();
            assert_eq!(status.code(), Some(EXIT_START_FAILED.into()), "{words}");
            assert!(words.contains(&format!("{function:?}: CKR_DEVICE_ERROR")), "{function:?}: {words}");
            assert!(set.count() >= 1);
            set.lift();
        }
    }
    world.is_well();
    let counts = world.faults.counts();
    assert_eq!(counts.sessions_open(), 0);
}
