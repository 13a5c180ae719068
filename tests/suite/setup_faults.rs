//! `init`, commands and starts on an HSM that does not show what it has: nothing is made that may be there, and nobody is
//! told to make or to remove it.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use fault_module::sys::{CKR_DEVICE_ERROR, CKR_DEVICE_REMOVED, CKR_OK, CKR_TOKEN_NOT_PRESENT};
use fault_module::{Fault, Function, Kind, Length, Vanishing};
use hsm_authd::custodian::EXIT_START_FAILED;
use hsm_authd::custodian::token::Setup;
use hsm_authd::domain::system_key::{KeyKind, NewestKeys};
use hsm_authd::hsm::messages::{Fault as Refusal, Request, Response};

use crate::daemon::Daemon;
use crate::fault_module::FaultModule;
use crate::intruder::intrude;
use crate::modules::{Feature, passed_over};
use crate::served::{configuration, section};
use crate::token::{BINARY, SO_PIN, TestToken};

/// In no words to an operator as long as it is not certain.
const HARMFUL: [&str; 6] =
    ["run `hsm-authd init`", "remove the", "remove it", "remove all", "the login with", "makes a new pair"];

fn faulty() -> (TestToken, FaultModule) {
    let mut token = TestToken::new();
    let faults = token.with_faults();
    (token, faults)
}

fn nothing_found() -> Fault {
    Fault::of(Function::C_FindObjects, Kind::Short(Length::To(0)))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn is_refused(output: &Output) -> String {
    let said = said(output);
    assert_eq!(output.status.code(), Some(EXIT_START_FAILED.into()), "{said}");
    said
}

/// What is known of a token's keys by a custodian that starts on it; it starts on none of which there are two.
fn newest(token: &TestToken) -> NewestKeys {
    match token.custodian().call(Request::LoadKeys) {
        Ok(Response::KeysLoaded(newest)) => newest,
        other => panic!("{:?}", other.err()),
    }
}

/// SoftHSM makes one more slot for each token that was initialised, so a second token is a second folder.
fn tokens(token: &TestToken) -> usize {
    fs::read_dir(token.tokens()).unwrap().count()
}

#[test]
fn a_setup_that_finds_nothing_makes_nothing() {
    let (token, faults) = faulty();
    let before = newest(&token);
    for (fault, words) in [
        (nothing_found(), "not even hsm-authd/witness"),
        // One less, and of one none.
        (Fault::of(Function::C_FindObjects, Kind::Short(Length::LessByOne)), "C_FindObjects: "),
        (Fault::of(Function::C_FindObjects, Kind::Vanish(Vanishing::Quietly)), "nothing was made"),
        (Fault::of(Function::C_FindObjectsInit, Kind::ForgetLogin), "nobody is logged in"),
    ] {
        let set = faults.set(fault);
        let said = is_refused(&token.set_up(true));
        assert!(said.contains(words) && !said.contains(": made"), "{fault:?}: {said}");
        assert!(!said.contains("remove") && !said.contains(HARMFUL[0]), "{fault:?}: {said}");
        assert!(set.count() > 0);
        set.lift();
        assert_eq!(newest(&token), before);
    }
    // Once only, and whichever search it is.
    for call in 1..=16 {
        let set = faults.set(nothing_found().from_call(call).once());
        let said = said(&token.set_up(true));
        assert!(!said.contains(": made"), "{call}: {said}");
        set.lift();
        assert_eq!(newest(&token), before, "{call}");
    }
    let output = token.set_up(false);
    assert!(output.status.success() && !said(&output).contains(": made"), "{}", said(&output));
    // A witness of a run that could not destroy it stays for an hour: it may be another host's.
    intrude(&token, "count 11");
}

#[test]
fn a_setup_on_a_good_token_leaves_no_mark_and_one_that_lacks_a_key_makes_that_one() {
    let (token, faults) = faulty();
    intrude(&token, "remove hsm-authd/data/v1");
    let created = || faults.counts().calls(Function::C_CreateObject);
    let said = said(&token.set_up(false));
    assert_eq!(said.matches(": made").count(), 1, "{said}");
    assert!(said.contains("key hsm-authd/data/v1: made"), "{said}");
    // Of six keys, three are pairs; and the anchor.
    intrude(&token, "count 10");
    let before = created();
    assert!(token.set_up(false).status.success());
    // What the HSM can do is tried with two known keys, as session objects.
    assert_eq!(created(), before + 2, "where nothing is missing nothing is marked");
}

#[test]
fn a_token_that_is_not_shown_is_not_made_a_second_time() {
    let (token, faults) = faulty();
    let before = tokens(&token);
    let list = || Fault::of(Function::C_GetSlotList, Kind::Short(Length::To(0)));
    // The bit that says that the token is initialised, in the flags behind 96 bytes of text.
    let initialised = || Fault::of(Function::C_GetTokenInfo, Kind::Corrupt { bit: 96 * 8 + 10 });
    for fault in [
        list().once(),
        list().times(2),
        list(),
        initialised().once(),
        initialised(),
        Fault::of(Function::C_GetTokenInfo, Kind::Fail(CKR_TOKEN_NOT_PRESENT)).once(),
        Fault::of(Function::C_GetTokenInfo, Kind::Fail(CKR_TOKEN_NOT_PRESENT)),
        Fault::of(Function::C_GetTokenInfo, Kind::Vanish(Vanishing::Removed)).once(),
    ] {
        let set = faults.set(fault);
        let said = said(&token.set_up(true));
        assert!(!said.contains(": made"), "{fault:?}: {said}");
        assert!(set.count() > 0);
        set.lift();
        assert_eq!(tokens(&token), before, "{fault:?}: {said}");
        // It was not emptied either.
        token.custodian();
    }
}

#[test]
fn what_a_database_needs_is_not_made_anew() {
    let of_set = |token: &TestToken, needed: &[(KeyKind, u16)], token_only| {
        let mut boot = token.boot.clone();
        boot.in_use = true;
        let so_pin_file = Some(token.file("officer", SO_PIN));
        token.set_up_with(&Setup {
            boot,
            needed: needed.to_vec(),
            so_pin_file,
            so_pin_handed: false,
            token_only,
            serves_tls: false,
        })
    };
    let in_use = |token: &TestToken, needed: &[(KeyKind, u16)]| of_set(token, needed, false);
    let bare = TestToken::bare();
    let said = is_refused(&in_use(&bare, &[(KeyKind::Row, 1)]));
    assert!(said.contains("move the database away") && !said.contains(HARMFUL[0]), "{said}");
    assert!(passed_over(Feature::ObjectFiles) || tokens(&bare) == 0);

    let token = TestToken::new();
    intrude(&token, "remove hsm-authd/kek/v1");
    let said = is_refused(&in_use(&token, &[(KeyKind::Kek, 1), (KeyKind::Row, 1)]));
    assert!(said.contains("there is no key hsm-authd/kek/v1, and there is a database"), "{said}");
    assert!(!said.contains(": made") && HARMFUL.iter().all(|words| !said.contains(words)), "{said}");
    // Nor are other keys made for several tokens, the first of which is this one.
    let said = is_refused(&of_set(&token, &[(KeyKind::Kek, 1)], true));
    assert!(said.contains("there is no key hsm-authd/kek/v1, and there is a database"), "{said}");
    assert!(of_set(&token, &[(KeyKind::Row, 1)], true).status.success());
    // A database of an earlier release cannot be asked what it needs; a `row` it has.
    intrude(&token, "remove hsm-authd/row/v1");
    assert!(is_refused(&in_use(&token, &[])).contains("there is no key hsm-authd/row/v1"));
    assert!(
        token.refused(&token.boot).1.contains("there is no key hsm-authd/row/v1: run"),
        "nor was it made"
    );
    // What no row needs is made, as after an update.
    let token = TestToken::new();
    intrude(&token, "remove hsm-authd/import/v1");
    assert!(in_use(&token, &[(KeyKind::Kek, 1), (KeyKind::Row, 1)]).status.success());
    token.custodian();
}

#[test]
fn a_rotation_that_does_not_see_what_there_is_makes_no_second() {
    let daemon = daemon();
    let faults = FaultModule::new(&daemon.dir(), Path::new(&module(&daemon)));
    let config = with_faults(&daemon, &faults, "faulty.toml");
    for call in 1..=16 {
        let set = faults.set(nothing_found().from_call(call).once());
        drop(run(&["keys", "rotate", "row"], &config));
        set.lift();
        let listed = run(&["keys", "list"], &config);
        assert!(listed.status.success(), "{call}: {}", said(&listed));
    }
    let set = faults.set(nothing_found());
    let refused = run(&["keys", "rotate", "row"], &config);
    assert!(!refused.status.success() && !said(&refused).contains("made"), "{}", said(&refused));
    set.lift();
}

/// What it left says which process left it: one of this machine, which has ended.
#[test]
fn a_rotation_that_lost_its_token_is_waited_for_by_nobody() {
    let daemon = daemon();
    let faults = FaultModule::new(&daemon.dir(), Path::new(&module(&daemon)));
    let config = with_faults(&daemon, &faults, "faulty.toml");
    for version in 2..=3 {
        let lost = Fault::of(Function::C_GenerateKey, Kind::Vanish(Vanishing::Quietly)).once();
        let set = faults.set(lost);
        let refused = run(&["keys", "rotate", "row"], &config);
        assert!(!refused.status.success() && set.count() == 1, "{}", said(&refused));
        set.lift();
        let rotated = run(&["keys", "rotate", "row"], &config);
        let said = said(&rotated);
        assert!(
            rotated.status.success() && said.contains(&format!("key hsm-authd/row/v{version}: made")),
            "{said}"
        );
    }
}

#[test]
fn no_line_of_a_start_has_an_operator_make_or_remove_what_is_there() {
    let (mut token, faults) = faulty();
    token.boot.in_use = true;
    for (fault, words) in [
        (nothing_found(), "there is a database that needs it"),
        (Fault::everywhere(Kind::Vanish(Vanishing::NotPresent)), "bring the HSM back"),
        (Fault::everywhere(Kind::Vanish(Vanishing::Removed)), "bring the HSM back"),
        (Fault::everywhere(Kind::Vanish(Vanishing::Quietly)), "bring the HSM back"),
        (Fault::of(Function::C_FindObjects, Kind::Vanish(Vanishing::Quietly)), "the HSM does not show"),
        (Fault::of(Function::C_Login, Kind::Fail(CKR_OK)), "nobody is logged in"),
        (Fault::of(Function::C_FindObjectsInit, Kind::ForgetLogin), "nobody is logged in"),
        (
            Fault::of(Function::C_FindObjectsInit, Kind::ForgetLogin).from_call(2).once(),
            "nobody is logged in",
        ),
        (
            Fault::of(Function::C_GetAttributeValue, Kind::Fail(CKR_DEVICE_ERROR)).from_call(30),
            "CKR_DEVICE_ERROR",
        ),
        (Fault::of(Function::C_UnwrapKey, Kind::Fail(CKR_DEVICE_REMOVED)), "the HSM failed: C_UnwrapKey"),
        (Fault::of(Function::C_OpenSession, Kind::Fail(CKR_DEVICE_ERROR)), "the user PIN is not why"),
    ] {
        let set = faults.set(fault);
        let (exit, said) = token.refused(&token.boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED), "{fault:?}: {said}");
        assert!(said.contains(words), "{fault:?}: {said}");
        assert!(HARMFUL.iter().all(|harmful| !said.contains(harmful)), "{fault:?}: {said}");
        assert!(set.count() > 0);
        set.lift();
        token.custodian();
    }
    // A bit that is wrong always is no proof of another pair, and once it is none at all.
    let set = faults.set(Fault::of(Function::C_Sign, Kind::Corrupt { bit: 3 }));
    let (_, said) = token.refused(&token.boot);
    assert!(
        !said.contains("put the right one back") || said.contains("the HSM computes wrongly, or"),
        "{said}"
    );
    set.lift();
    let set = faults
        .set(Fault::of(Function::C_Verify, Kind::Fail(fault_module::sys::CKR_SIGNATURE_INVALID)).once());
    let mut custodian = token.spawn();
    custodian.send(&token.boot);
    let up = custodian.hello().is_some();
    let (_, said) = custodian.end();
    assert!(up || !said.contains("put the right one back"), "{said}");
    set.lift();
}

#[test]
fn one_search_that_passes_something_over_hides_no_key_from_a_start() {
    let (token, faults) = faulty();
    ["kek", "row", "data", "attest"]
        .iter()
        .for_each(|kind| intrude(&token, &format!("right hsm-authd/{kind}/v2")));
    let all = newest(&token);
    assert_eq!([KeyKind::Kek, KeyKind::Row].map(|kind| all.of(kind)), [2, 2]);
    for length in [Length::LessByOne, Length::To(0), Length::To(3)] {
        for call in 1..=12 {
            let set =
                faults.set(Fault::of(Function::C_FindObjects, Kind::Short(length)).from_call(call).once());
            let mut custodian = token.spawn();
            custodian.send(&token.boot);
            if let Some(hello) = custodian.hello() {
                assert_eq!(hello.newest, all, "{length:?} {call}");
            }
            set.lift();
        }
    }
}

#[test]
fn an_anchor_that_is_not_shown_is_not_gone_and_none_is_written_beside_it() {
    let (token, faults) = faulty();
    let mut custodian = token.custodian();
    let five = custodian.checkpoint(&crate::anchor::head(1, 5, 5));
    let three = custodian.checkpoint(&crate::anchor::head(1, 3, 3));
    custodian.write(&five, false).unwrap();
    let hsm = |fault: Option<Refusal>| matches!(fault, Some(Refusal::Hsm(_)));
    let [mut reader, mut writer] = [token.custodian(), token.custodian()];
    let set = faults.set(nothing_found());
    assert!(hsm(reader.call(Request::ReadAnchor).err()));
    assert!(hsm(writer.write(&three, false).err()));
    set.lift();
    for call in 1..=4 {
        let mut custodian = token.custodian();
        let set = faults.set(nothing_found().from_call(call).once());
        match custodian.call(Request::ReadAnchor) {
            Ok(Response::Anchor(note)) => assert_eq!(note.as_ref(), Some(&five)),
            other => {
                assert!(hsm(other.err()));
                custodian = token.custodian();
            }
        }
        assert!(custodian.write(&three, false).is_err());
        set.lift();
    }
    assert_eq!(token.custodian().anchor(), Some(five));
    intrude(&token, "anchors 1");
}

/// The binding believes what a module says that it found, and looks behind the array that it gave.
#[test]
fn more_objects_than_were_asked_for_are_a_lie_and_no_panic() {
    let (token, faults) = faulty();
    for count in [10, 11, 12, 1 << 40, u64::MAX] {
        let long = Fault::of(Function::C_FindObjects, Kind::Long(count));
        for fault in (1..=10).map(|call| long.from_call(call).once()).chain([long, long.from_call(4)]) {
            let set = faults.set(fault);
            let mut custodian = token.spawn();
            custodian.send(&token.boot);
            let up = custodian.hello().is_some();
            let (_, said) = custodian.end_anyhow();
            assert!(!said.contains("panicked"), "{fault:?}: {said}");
            // Of ten that are there ten are no lie.
            assert!(up == (set.count() == 0) || count == 10, "{fault:?}: up {up}: {said}");
            assert!(up || said.contains("C_FindObjects: more objects than it gave out"), "{fault:?}: {said}");
            set.lift();
        }
    }
    // The same of a search in service.
    let mut custodian = token.custodian();
    let set = faults.set(Fault::of(Function::C_FindObjects, Kind::Long(11)));
    match custodian.call(Request::ReadAnchor) {
        Err(Refusal::Hsm(failure)) => {
            assert_eq!(failure.to_string(), "C_FindObjects: more objects than it gave out");
        }
        other => panic!("{:?}", other.err()),
    }
    set.lift();
    token.custodian();
}

/// What a module says that a length is the binding asks the system for, before it looks.
#[test]
fn a_length_that_cannot_be_costs_a_process_and_no_answer() {
    let (token, faults) = faulty();
    for (function, length) in
        [(Function::C_Sign, 1 << 60), (Function::C_Sign, u64::MAX), (Function::C_Sign, 1 << 62)]
    {
        let mut custodian = token.custodian();
        let set = faults.set(Fault::of(function, Kind::Long(length)));
        custodian.send(&hsm_authd::hsm::messages::Call {
            repeated: false,
            id: 1,
            newest: NewestKeys::default(),
            request: Request::Health,
        });
        let reply: Option<hsm_authd::hsm::messages::Reply> = custodian.receive();
        let answer = reply.map(|reply| reply.result);
        assert!(matches!(answer, None | Some(Err(Refusal::Hsm(_)))), "{length:#x}: an answer");
        let (status, _) = custodian.end_anyhow();
        assert!(!status.success() && set.count() > 0, "{length:#x}: {status}");
        set.lift();
    }
    for function in [
        Function::C_GetSlotList,
        Function::C_GetMechanismList,
        Function::C_GetAttributeValue,
        Function::C_WrapKey,
    ] {
        let set = faults.set(Fault::of(function, Kind::Long(1 << 60)));
        let mut custodian = token.spawn();
        custodian.send(&token.boot);
        assert!(custodian.hello().is_none(), "{function:?}");
        let (status, _) = custodian.end_anyhow();
        assert!(!status.success() && set.count() > 0, "{function:?}: {status}");
        set.lift();
    }
    token.custodian();
}

fn daemon() -> Daemon {
    let mut daemon = Daemon::start();
    daemon.stop();
    daemon
}

fn module(daemon: &Daemon) -> String {
    let text = fs::read_to_string(daemon.dir().join("hsm-authd.toml")).unwrap();
    text.parse::<toml::Table>().unwrap()["hsm"]["module"].as_str().unwrap().to_owned()
}

fn with_faults(daemon: &Daemon, faults: &FaultModule, name: &str) -> std::path::PathBuf {
    configuration(daemon, name, |config| {
        let hsm = section(config, "hsm");
        hsm.insert("module".into(), FaultModule::library().to_str().unwrap().into());
        faults.configure(hsm);
    })
}

fn run(arguments: &[&str], config: &Path) -> Output {
    Command::new(BINARY).args(arguments).arg("--config").arg(config).output().unwrap()
}

#[test]
fn init_beside_a_database_makes_neither_token_nor_keys() {
    let daemon = daemon();
    let config = daemon.dir().join("hsm-authd.toml");
    let so_pin = daemon.dir().join("so-pin");
    let init = || {
        let output = run(&["init", "--so-pin-file", so_pin.to_str().unwrap()], &config);
        assert!(!output.status.success(), "{}", said(&output));
        said(&output)
    };
    let token = std::mem::ManuallyDrop::new(TestToken::of(&daemon));
    intrude(&token, "remove hsm-authd/row/v1");
    let words = init();
    assert!(words.contains("there is no key hsm-authd/row/v1") && !words.contains(": made"), "{words}");
    if passed_over(Feature::Removal) {
        return;
    }
    let (there, away) = (daemon.dir().join("token"), daemon.dir().join("away"));
    fs::rename(&there, &away).unwrap();
    fs::create_dir(&there).unwrap();
    let words = init();
    assert!(words.contains("no token is labelled") && words.contains("move the database away"), "{words}");
    assert_eq!(fs::read_dir(&there).unwrap().count(), 0);
    for arguments in [&["check"][..], &["keys", "list"]] {
        let words = said(&run(arguments, &config));
        assert!(words.contains("no token is labelled") && !words.contains(HARMFUL[0]), "{words}");
    }
}

#[test]
fn a_module_that_kills_who_loads_it_is_named() {
    let daemon = daemon();
    let faults = FaultModule::new(&daemon.dir(), Path::new(&module(&daemon)));
    let config = with_faults(&daemon, &faults, "faulty.toml");
    // A list that is not there, and a module that does so by itself.
    for fault in [
        Fault::of(Function::C_GetFunctionList, Kind::Fail(CKR_OK)),
        Fault::of(Function::C_Initialize, Kind::Segfault),
    ] {
        if fault.function == Some(Function::C_GetFunctionList) && passed_over(Feature::FunctionList) {
            continue;
        }
        let set = faults.set(fault);
        for arguments in [&["init"][..], &["check"], &["keys", "list"]] {
            let output = run(arguments, &config);
            let words = said(&output);
            assert!(
                !output.status.success() && words.contains("ended the process"),
                "{arguments:?}: {words}"
            );
            assert!(words.contains("libfault_module.so") && words.contains("pkcs11-tool"), "{words}");
        }
        set.lift();
    }
    assert!(run(&["check"], &config).status.success());
}
