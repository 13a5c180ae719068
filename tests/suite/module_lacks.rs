//! Modules that cannot serve: what the probe says of them, at `init` and at a start, before anything of a customer is
//! touched. Those that exist are refused by `make test-modules`; others are imitated by the fault module.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fault_module::sys::{
    CKR_ATTRIBUTE_VALUE_INVALID, CKR_FUNCTION_NOT_SUPPORTED, CKR_MECHANISM_INVALID, CKR_OK,
};
use fault_module::{Fault, Function, Kind, Length};
use hsm_authd::custodian::EXIT_START_FAILED;
use hsm_authd::custodian::token::Setup;
use hsm_authd::domain::otp::Algorithm;
use hsm_authd::hsm::messages::{Request, Response};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::custodian::{account, check, credential, state};
use crate::daemon::code;
use crate::intruder::{attempt, intrude};
use crate::modules::TestModule;
use crate::scratch::Scratch;
use crate::token::TestToken;

/// What `token-setup` says on standard error, in one line, when it refuses the module.
fn refused(token: &TestToken) -> String {
    let output = token.set_up(true);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(EXIT_START_FAILED.into()), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn what_a_module_lacks_is_told_at_init_and_at_a_start_in_words() {
    use Function::{
        C_CopyObject, C_Decrypt, C_Encrypt, C_GenerateRandom, C_GetAttributeValue, C_GetMechanismList,
        C_SignInit, C_UnwrapKey, C_WrapKey,
    };
    // CKA_EXTRACTABLE, behind two numbers and three truths: of the unwrapped secret it says that it may leave.
    let extractable = Kind::Corrupt { bit: 19 * 8 };
    let unsupported = Kind::Fail(CKR_FUNCTION_NOT_SUPPORTED);
    let mut token = TestToken::new();
    let faults = token.with_faults();
    for (function, first, kind, words) in [
        (C_GetMechanismList, 1, Kind::Short(Length::To(0)), "CKM_AES_KEY_WRAP (secrets are wrapped with it)"),
        (C_WrapKey, 1, Kind::Fail(CKR_MECHANISM_INVALID), "it does not wrap secrets (AES key wrap)"),
        (C_UnwrapKey, 1, unsupported, "it does not unwrap secrets (AES key wrap)"),
        (C_GetAttributeValue, 2, extractable, "it ignores the template of C_UnwrapKey (CKA_EXTRACTABLE"),
        (C_SignInit, 4, Kind::Fail(CKR_MECHANISM_INVALID), "it computes no HMAC of SHA256"),
        (C_CopyObject, 1, unsupported, "it copies no key (C_CopyObject)"),
        (C_Encrypt, 1, unsupported, "it does not encrypt and decrypt (AES-GCM)"),
        (
            C_Decrypt,
            1,
            unsupported,
            "it does not encrypt and decrypt (AES-GCM) (C_Decrypt: CKR_FUNCTION_NOT_SUPPORTED)",
        ),
        (C_GenerateRandom, 1, unsupported, "it gives no random bytes"),
    ] {
        let set = faults.set(Fault::of(function, kind).from_call(first));
        let said = refused(&token);
        assert!(said.contains(words), "{function:?}: {said}");
        set.lift();
        let set = faults.set(Fault::of(function, kind).from_call(first));
        let (exit, said) = token.refused(&token.boot);
        assert_eq!(exit, i32::from(EXIT_START_FAILED), "{said}");
        assert!(said.contains(words), "{function:?}: {said}");
        set.lift();
    }
    token.custodian();
}

#[test]
fn all_that_is_missing_is_told_at_once() {
    let mut token = TestToken::new();
    let faults = token.with_faults();
    for function in [Function::C_CopyObject, Function::C_GenerateRandom, Function::C_Encrypt] {
        faults.set(Fault::of(function, Kind::Fail(CKR_FUNCTION_NOT_SUPPORTED)));
    }
    let said = refused(&token);
    for words in ["it copies no key", "it does not encrypt", "it gives no random bytes"] {
        assert!(said.contains(words), "{said}");
    }
}

/// Of the calls of a setup, the third `C_CreateObject` and the fourth `C_GenerateKey` are those that try to hold data.
#[test]
fn a_token_that_cannot_hold_the_anchor_is_refused_and_one_without_data_objects_is_not() {
    let mut token = TestToken::bare();
    assert!(token.set_up(true).status.success());
    // Of one that lacks nothing it is shown already.
    intrude(&token, "remove hsm-authd/data/v1");
    let faults = token.with_faults();
    let no_data = Fault::of(Function::C_CreateObject, Kind::Fail(CKR_ATTRIBUTE_VALUE_INVALID)).from_call(3);
    let no_key = Fault::of(Function::C_GenerateKey, Kind::Fail(CKR_ATTRIBUTE_VALUE_INVALID)).from_call(4);
    let [data, key] = [no_data, no_key].map(|fault| faults.set(fault));
    let said = refused(&token);
    assert!(said.contains("cannot hold the anchor of the log"), "{said}");
    assert!(said.contains("data object (") && said.contains("key's id (C_GenerateKey"), "{said}");
    data.lift();
    key.lift();

    faults.set(no_data);
    let output = token.set_up(false);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("has no data objects; the anchor of the log is the id of a key"), "{said}");
}

/// NSS's `C_Verify` reads a whole HMAC whatever length it is told: of one byte it reads what lies behind, and over none the
/// process ends. Nobody asks it: a code is compared with one that was made, and that has its whole length.
#[test]
fn no_code_is_judged_by_the_modules_own_comparison() {
    const SEED: &[u8] = b"compared outside of it";
    let mut token = TestToken::new();
    if TestModule::chosen() == TestModule::Nss {
        intrude(&token, "a MAC is read behind its end");
        let ended = attempt(&token, "a MAC of no bytes is read");
        assert!(ended.status.signal().is_some(), "{ended:?}");
    }
    let faults = token.with_faults();
    let mut custodian = token.custodian();
    let secret = custodian.import(Algorithm::Sha1, SEED);
    let standing = custodian.seal(&[credential(Algorithm::Sha1, 6, Some(secret)), state(1), account(1)]);
    // It would say yes to anything.
    for function in [Function::C_VerifyInit, Function::C_Verify] {
        faults.set(Fault::of(function, Kind::Fail(CKR_OK)));
    }
    let verifications = || faults.counts().calls(Function::C_VerifyInit);
    let before = verifications();
    for (submitted, matched) in [(code(SEED, 0, 6), Some(0)), (code(SEED, 1, 6), None)] {
        let request = Request::CheckOtp(check(&standing, &[&submitted], &[0], &[]));
        let Ok(Response::Checked { matched: found, .. }) = custodian.call(request) else { panic!() };
        assert_eq!(found, matched);
    }
    // Codes of another length are none: neither of no digit nor of one.
    for short in ["1", &code(SEED, 0, 6)[..1], &code(SEED, 0, 6)[..5]] {
        let Some(otp) = hsm_authd::domain::otp::Otp::parse(short.to_owned()) else { continue };
        let mut request = check(&standing, &["000000"], &[0], &[]);
        request.codes = vec![otp];
        assert!(custodian.call(Request::CheckOtp(request)).is_err(), "{short}");
    }
    assert_eq!(verifications(), before, "C_Verify was asked");
}

/// Whatever a message asks for: what the module verifies are signatures, by public keys.
#[test]
fn one_function_alone_has_the_module_verify_and_its_keys_are_public() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/custodian/pkcs11");
    let mut sources: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    sources.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/custodian/pkcs11.rs"));
    let mut seen = 0;
    for path in sources {
        let text = std::fs::read_to_string(&path).unwrap();
        let product = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let compact: String = product.split_whitespace().collect();
        for asked in compact.split(".raw.verify(").skip(1) {
            assert_eq!(path.file_name().unwrap(), "public_key.rs", "{}", path.display());
            let mechanism = asked.split(',').next().unwrap();
            assert!(["&Mechanism::Ecdsa", "&Mechanism::RsaPkcs"].contains(&mechanism), "{mechanism}");
            seen += 1;
        }
        assert!(!compact.contains("verify_init") && !compact.contains("verify_update"), "{}", path.display());
    }
    assert_eq!(seen, 2, "the test does not see them");
}

/// Module, and what else it needs, of one that exists and cannot serve.
fn unsuitable(
    library: &str,
    environment: Vec<(&'static str, String)>,
    so_pin: &str,
    folders: &[&str],
) -> String {
    let library = PathBuf::from(library);
    assert!(library.exists(), "{} is not there: make test-modules installs it", library.display());
    let mut token = TestToken::bare();
    token.boot.module = library;
    token.boot.module_arguments = None;
    token.boot.token_label = "hsm-authd".to_owned();
    token.environment = environment;
    // Both talk to somebody by a socket.
    token.boot.reach.network = true;
    token.boot.reach.writes.extend(folders.iter().map(PathBuf::from));
    let so_pin_file = Some(token.file("its-so-pin", so_pin));
    let output = token.set_up_with(&Setup {
        boot: token.boot.clone(),
        needed: Vec::new(),
        so_pin_file,
        so_pin_handed: false,
        token_only: false,
        serves_tls: false,
    });
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(EXIT_START_FAILED.into()), "{said}");
    let ours: Vec<_> = said.lines().filter(|line| line.starts_with("hsm-authd: ")).collect();
    assert_eq!(ours.len(), 1, "{said}");
    ours[0].to_owned()
}

/// What opencryptoki shares with its daemon, and keeps its tokens in.
const OPENCRYPTOKI_FOLDERS: [&str; 4] =
    ["/var/lib/opencryptoki", "/run/lock/opencryptoki", "/run/pkcsslotd.socket", "/dev/shm"];

#[test]
#[ignore = "make test-modules: needs opencryptoki and its pkcsslotd"]
fn opencryptoki_is_refused_because_it_does_not_wrap() {
    let socket = Path::new("/run/pkcsslotd.socket");
    let _daemon = (!socket.exists()).then(|| Beside::start(Command::new("pkcsslotd").arg("-f"), &[socket]));
    // The socket is there before the rest of it.
    let deadline = Instant::now() + Duration::from_secs(30);
    let library = "/usr/lib/x86_64-linux-gnu/opencryptoki/libopencryptoki.so.0";
    let said = loop {
        let said = unsuitable(library, vec![], "87654321", &OPENCRYPTOKI_FOLDERS);
        if !said.contains("does not load") || Instant::now() >= deadline {
            break said;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    println!("{said}");
    assert!(said.contains("CKM_AES_KEY_WRAP (secrets are wrapped with it)"), "{said}");
}

/// What a module talks to: a TPM in software, a daemon.
struct Beside(Child);

impl Beside {
    fn start(command: &mut Command, sockets: &[&Path]) -> Self {
        let child = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        while !sockets.iter().all(|socket| socket.exists()) {
            assert!(Instant::now() < deadline, "{command:?} does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        child
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // In good order: it has a socket to remove.
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "make test-modules: needs tpm2-pkcs11 and swtpm"]
fn tpm2_pkcs11_is_refused_because_it_does_not_wrap() {
    let scratch = Scratch::new();
    let socket = scratch.path().join("tpm");
    let at = |path: &Path| format!("type=unixio,path={}", path.display());
    let control = socket.with_extension("ctrl");
    let mut swtpm = Command::new("swtpm");
    swtpm
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear", "--tpmstate"])
        .arg(format!("dir={}", scratch.path().display()))
        .args(["--ctrl", &at(&control), "--server", &at(&socket)]);
    let _tpm = Beside::start(&mut swtpm, &[&socket, &control]);
    let environment = vec![
        ("TPM2_PKCS11_STORE", scratch.path().display().to_string()),
        ("TPM2_PKCS11_TCTI", format!("swtpm:path={}", socket.display())),
        ("TPM2_PKCS11_LOG_LEVEL", "0".to_owned()),
    ];
    let said = unsuitable(
        "/usr/lib/x86_64-linux-gnu/pkcs11/libtpm2_pkcs11.so",
        environment,
        "officer",
        &[scratch.path().to_str().unwrap()],
    );
    println!("{said}");
    assert!(said.contains("CKM_AES_KEY_WRAP (secrets are wrapped with it)"), "{said}");
    assert!(said.contains("CKM_GENERIC_SECRET_KEY_GEN (it makes secrets)"), "{said}");
}
