//! A module that attacks the process that loads it, from its first line of code on (`tests/fault-module/src/hostile.rs`): what
//! it gets of a custodian, and, so that each act is known to work, of a process without a sandbox.

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::{env, fs};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use fault_module::{HOSTILE, STAGES, WANTED};
use hsm_authd::hsm::messages::{Request, Response};
use hsm_authd::sandbox::Enforced;
use nix::libc;

use crate::fault_module::FaultModule;
use crate::modules::TestModule;
use crate::sandbox::Hindrance;
use crate::token::{PIN, TestToken};

/// What is refused, at every stage.
const REFUSED: [&str; 18] = [
    "process",
    "program",
    "call by another number",
    "openness",
    "socket",
    "datagram",
    "raw datagram",
    "connecting bytes",
    "connecting message",
    "connecting messages",
    "pair of a network",
    "mode",
    "attribute",
    "attribute from a folder",
    "flags of a file",
    "another's limits",
    "priority",
    "queue",
];
/// What a module needs, also after the login.
const LEFT: [&str; 5] = ["closed", "streams", "packets", "own limits", "thread"];

/// A hostile module before that of the token, and the socket that it may reach.
struct Scene {
    token: TestToken,
    _faults: FaultModule,
    datagrams: UnixDatagram,
}

impl Scene {
    fn new() -> Self {
        let mut token = TestToken::new();
        let faults = token.with_faults();
        let folder = folder(&token).to_owned();
        fs::write(folder.join("spoil"), "").unwrap();
        let datagrams = UnixDatagram::bind(folder.join("datagrams")).unwrap();
        datagrams.set_nonblocking(true).unwrap();
        let wanted = PIN.bytes().map(|byte| char::from(byte + 1)).collect();
        let hostile = [(HOSTILE, folder.to_str().unwrap().to_owned()), (WANTED, wanted)];
        token.environment.extend(hostile);
        Self { token, _faults: faults, datagrams }
    }

    /// What came of each act, by its stage: 0, or the error's number.
    fn came(&self) -> BTreeMap<(String, String), i32> {
        let told = fs::read_to_string(folder(&self.token).join("came")).unwrap();
        let mut came = BTreeMap::new();
        for line in told.lines() {
            let [stage, act, errno] = line.split('\t').collect::<Vec<_>>().try_into().unwrap();
            came.insert((stage.to_owned(), act.to_owned()), errno.parse().unwrap());
        }
        came
    }
}

fn folder(token: &TestToken) -> &Path {
    token.boot.pin_file.parent().unwrap()
}

#[test]
fn a_hostile_module_finds_no_pin_before_the_login_and_gets_out_by_nothing() {
    let scene = Scene::new();
    let mut custodian = scene.token.custodian();
    let dumpable = fs::metadata(format!("/proc/{}/environ", custodian.id())).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&dumpable), 0, "it opened its process to others");
    assert!(matches!(custodian.call(Request::Health), Ok(Response::Healthy)));
    let came = scene.came();
    let is_filtered = !Enforced::tried().missing().iter().any(|gap| gap.contains("seccomp"));
    let mut wrong = Vec::new();
    for stage in STAGES {
        let mut expect = |act: &'static str, errno: i32| {
            let came = came[&(stage.to_owned(), act.to_owned())];
            if came != errno {
                wrong.push((stage, act, came));
            }
        };
        // Once it was given to it, the real module may keep it. SoftHSM does not.
        if stage != "C_FindObjectsInit" || TestModule::chosen() == TestModule::SoftHsm {
            expect("memory", libc::ENOENT);
        }
        if is_filtered {
            REFUSED.iter().for_each(|act| expect(act, libc::EPERM));
        }
        LEFT.iter().for_each(|act| expect(act, 0));
    }
    assert!(wrong.is_empty(), "{wrong:?}");
    assert!(!is_filtered || scene.datagrams.recv(&mut [0; 8]).is_err(), "a message came out");
}

/// Loads the module that its environment names.
#[test]
#[ignore = "run by the other test, with a hostile module"]
fn victim() {
    let module = env::var_os("HOSTILE_MODULE").unwrap();
    // As a custodian that has read it too early.
    let pin = fs::read_to_string(env::var_os("HOSTILE_PIN").unwrap()).unwrap();
    let pkcs11 = Pkcs11::new(Path::new(&module)).unwrap();
    // The one behind it may want parameters (NSS). By then its own code has run.
    let _ = pkcs11.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK));
    assert!(pin.starts_with(PIN));
}

#[test]
fn without_a_sandbox_a_hostile_module_does_all_of_it() {
    let scene = Scene::new();
    let output = scene
        .token
        .command(env::current_exe().unwrap())
        .args(["--exact", "hostile_module::victim", "--ignored", "--nocapture"])
        .env("HOSTILE_MODULE", &scene.token.boot.module)
        .env("HOSTILE_PIN", &scene.token.boot.pin_file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let came = scene.came();
    let came = |act: &str| came[&("C_Initialize".to_owned(), act.to_owned())];
    assert_eq!(came("memory"), 0);
    for act in REFUSED.into_iter().chain(LEFT) {
        match act {
            "closed" => assert_eq!(came(act), libc::EBUSY),
            // There is no such program, and no pair of a network, and there are kernels without the others.
            "program" => assert_eq!(came(act), libc::ENOENT),
            "call by another number"
            | "queue"
            | "attribute"
            | "attribute from a folder"
            | "flags of a file"
            | "pair of a network" => assert_ne!(came(act), libc::EPERM, "{act}"),
            _ => assert_eq!(came(act), 0, "{act}"),
        }
    }
    assert_eq!(scene.datagrams.recv(&mut [0; 8]).unwrap(), 1);
}

/// Where no filter can be had: until the login nobody keeps a module from it.
#[test]
fn who_is_logged_in_is_closed_to_others_again_whatever_its_module_did() {
    let mut scene = Scene::new();
    let mut custodian = Hindrance::Forbidden.custodian(&mut scene.token);
    custodian.send(&scene.token.boot);
    assert!(custodian.hello().is_some(), "{:?}", custodian.end());
    let came = scene.came();
    let came = |stage: &str| came[&(stage.to_owned(), "closed".to_owned())];
    let opened = [0, libc::EBUSY, libc::EBUSY, 0];
    assert_eq!(STAGES.map(came), opened, "{STAGES:?}");
}
