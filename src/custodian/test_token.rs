//! A SoftHSM token for a unit test that needs a session itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use fault_module::{BOARD, Shared, TARGET};

use super::pin::Pin;
use super::pkcs11::{Module, Session};

const FOLDER: &str = "HSM_AUTHD_TEST_TOKEN";

/// Gives the test of this name a session on a token of its own.
///
/// Session objects are seen by their own process alone, and the module takes its configuration from the
/// environment: so the test is run again, in a child.
pub fn with_session(test_name: &str, test: impl FnOnce(Session)) {
    match std::env::var_os(FOLDER) {
        Some(folder) => test(session(&soft_hsm(), Path::new(&folder))),
        None => run_again(test_name),
    }
}

/// The same behind the fault module, with its faults.
pub fn with_faulty_session(test_name: &str, test: impl FnOnce(Session, Shared)) {
    let Some(folder) = std::env::var_os(FOLDER) else { return run_again(test_name) };
    let faults = Shared::create(&Path::new(&folder).join("faults")).unwrap();
    let fault_module = std::env::current_exe().unwrap().with_file_name("libfault_module.so");
    test(session(&fault_module, Path::new(&folder)), faults)
}

fn run_again(test_name: &str) {
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let short = test_name.rsplit("::").next().unwrap();
    let folder = base.join(format!("hsm-authd-unit-{}-{short}", std::process::id()));
    let tokens = folder.join("tokens");
    std::fs::create_dir_all(&tokens).unwrap();
    let conf = folder.join("softhsm2.conf");
    std::fs::write(&conf, format!("directories.tokendir = {}\nlog.level = ERROR\n", tokens.display()))
        .unwrap();
    std::fs::write(folder.join("pin"), "1234-5678").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test_name, "--nocapture"])
        .env("SOFTHSM2_CONF", conf)
        .env(FOLDER, &folder)
        .env(TARGET, soft_hsm())
        .env(BOARD, folder.join("faults"))
        .output();
    let _ = std::fs::remove_dir_all(&folder);
    let output = output.unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn soft_hsm() -> PathBuf {
    let places = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so"];
    places.iter().map(PathBuf::from).find(|path| path.exists()).expect("SoftHSM")
}

fn session(module_path: &Path, folder: &Path) -> Session {
    let module = Module::load(module_path, None).unwrap();
    let pin = Pin::read(&std::fs::File::open(folder.join("pin")).unwrap()).unwrap();
    module.init_token(&module.uninitialised("unit").unwrap().unwrap(), "unit", &pin).unwrap();
    let token = module.tokens_labelled("unit").unwrap().0.pop().unwrap();
    module.init_user_pin(&token, &pin, &pin).unwrap();
    module.login(&token, &pin).unwrap()
}
