//! `softhsm-setup/make-token`, as an administrator runs it, and the sample configuration it puts in place.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::SystemTime;

use hsm_authd::dev::pki;

use crate::scratch::Scratch;
use crate::token::BINARY;

/// A machine without a token: two folders to be made.
struct Machine(Scratch);

impl Machine {
    fn new() -> Self {
        Self(Scratch::new())
    }

    fn etc(&self, name: &str) -> PathBuf {
        self.0.path().join("etc").join(name)
    }

    fn var(&self, name: &str) -> PathBuf {
        self.0.path().join("var").join(name)
    }

    fn make_token(&self) -> Output {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm-setup/make-token");
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        Command::new(script)
            .args(["--binary", BINARY, "--user", lines(&user)[0].as_str()])
            .arg("--etc")
            .arg(self.0.path().join("etc"))
            .arg("--var")
            .arg(self.0.path().join("var"))
            .output()
            .unwrap()
    }

    fn check(&self) -> Output {
        Command::new(BINARY).arg("check").arg("--config").arg(self.etc("hsm-authd.toml")).output().unwrap()
    }

    /// Every file under `etc`, and the token's folders.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let inside = |folder: PathBuf| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let etc = inside(self.etc("")).map(|path| (path.clone(), fs::read(&path).unwrap()));
        etc.chain(inside(self.var("tokens")).map(|path| (path, Vec::new()))).collect()
    }

    /// Runs the script, which has to succeed without a word on standard error or a PIN on either: its lines.
    fn made(&self) -> Vec<String> {
        let output = self.make_token();
        let (said, warned) = (lines(&output.stdout), lines(&output.stderr));
        assert!(output.status.success() && warned.is_empty(), "{said:?} {warned:?}");
        for name in ["pin", "so-pin"] {
            let pin = fs::read_to_string(self.etc(name)).unwrap();
            assert!(pin.trim_end().len() == 48, "{name}");
            assert!(!said.iter().any(|line| line.contains(pin.trim_end())), "{name} was printed");
        }
        said
    }
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8(bytes.to_vec()).unwrap().lines().map(str::to_owned).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_token_is_made_once_and_nobody_else_can_read_it() {
    let machine = Machine::new();
    let first = machine.made();
    assert!(first.iter().all(|line| line.ends_with(": made") || line.ends_with("PIN set")), "{first:?}");
    for (path, expected) in [
        (machine.etc(""), 0o750),
        (machine.etc("pin"), 0o640),
        (machine.etc("so-pin"), 0o600),
        (machine.etc("softhsm2.conf"), 0o640),
        (machine.etc("hsm-authd.toml"), 0o640),
        (machine.var(""), 0o700),
        (machine.var("tokens"), 0o700),
        (machine.var("store"), 0o700),
    ] {
        assert_eq!(mode(&path), expected, "{}", path.display());
    }
    let files = machine.files();
    assert_eq!(files.len(), 5, "four files, one token and nothing left over: {:?}", files.keys());
    assert_ne!(files[&machine.etc("pin")], files[&machine.etc("so-pin")]);
    for path in files.keys() {
        assert_eq!(mode(path) & 0o007, 0, "{}", path.display());
    }

    let second = machine.made();
    assert!(second.iter().all(|line| line.ends_with(": already there")), "{second:?}");
    assert!(machine.files() == files, "the second run changed something");
}

#[test]
fn the_sample_configuration_is_ready_but_for_its_certificates() {
    let machine = Machine::new();
    machine.made();
    let without = machine.check();
    let said = lines(&without.stderr);
    assert!(
        !without.status.success() && said.len() == 1 && said[0].contains("client-ca.pem: no such file"),
        "{said:?}"
    );

    let listen = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let made = pki::ensure(&machine.0.path().join("pki"), &["bank-a"], listen, SystemTime::now()).unwrap();
    fs::copy(made.ca, machine.etc("client-ca.pem")).unwrap();
    fs::copy(made.server.certificate, machine.etc("server.pem")).unwrap();
    fs::copy(made.server.key, machine.etc("server.key")).unwrap();
    let output = machine.check();
    let said = lines(&output.stdout);
    assert!(output.status.success(), "{said:?} {:?}", lines(&output.stderr));
    // What this machine's kernel and limits lack is said, and is no fault of the configuration.
    let is_fine = |line: &String| line.starts_with("ok  ") || line.starts_with("--  sandbox: ");
    assert!(said.iter().all(is_fine), "{said:?}");
    assert!(said.iter().any(|line| line.starts_with("ok  sandbox: ")), "{said:?}");
    assert!(said.iter().any(|line| line.contains("logged in")), "{said:?}");

    fs::set_permissions(machine.etc("pin"), fs::Permissions::from_mode(0o644)).unwrap();
    let open = machine.check();
    let said = lines(&open.stderr);
    assert!(!open.status.success() && said[0].contains("everybody may read it"), "{said:?}");
}

#[test]
fn what_is_missing_is_completed_and_a_lost_pin_is_not_replaced() {
    let machine = Machine::new();
    machine.made();
    let files = machine.files();
    fs::remove_file(machine.etc("softhsm2.conf")).unwrap();
    let said = machine.made();
    let made: Vec<_> = said.iter().filter(|line| !line.ends_with(": already there")).collect();
    assert_eq!(made, [&format!("{}: made", machine.etc("softhsm2.conf").display())]);
    assert!(machine.files() == files);

    fs::remove_file(machine.etc("pin")).unwrap();
    let refused = machine.make_token();
    let said = lines(&refused.stderr);
    assert!(!refused.status.success() && said.len() == 1 && said[0].contains("put it back"), "{said:?}");
    assert!(!machine.etc("pin").exists(), "a new PIN would be no PIN of this token");
}

#[test]
fn a_configuration_that_names_another_token_is_left_alone() {
    let machine = Machine::new();
    fs::create_dir(machine.etc("")).unwrap();
    fs::write(machine.etc("hsm-authd.toml"), "# somebody's own\n").unwrap();
    let refused = machine.make_token();
    let said = lines(&refused.stderr);
    assert!(!refused.status.success() && said[0].contains("SOFTHSM2_CONF"), "{said:?}");
    assert_eq!(fs::read(machine.etc("hsm-authd.toml")).unwrap(), b"# somebody's own\n");
    assert_eq!(fs::read_dir(machine.var("tokens")).unwrap().count(), 0, "no token was made");
}

#[test]
fn root_writes_into_no_folder_that_others_can_rearrange() {
    if lines(&Command::new("id").arg("-u").output().unwrap().stdout) != ["0"] {
        // An ordinary user writes what is his, and can be led nowhere else.
        return;
    }
    for (owner, mode) in [("nobody", 0o750), ("root", 0o770), ("root", 0o757)] {
        let machine = Machine::new();
        let etc = machine.0.path().join("etc");
        fs::create_dir(&etc).unwrap();
        fs::set_permissions(&etc, fs::Permissions::from_mode(mode)).unwrap();
        assert!(Command::new("chown").arg(owner).arg(&etc).status().unwrap().success());
        let output = machine.make_token();
        let said = lines(&output.stderr);
        assert!(!output.status.success() && said.len() == 1 && said[0].contains("root"), "{said:?}");
        assert_eq!(fs::read_dir(&etc).unwrap().count(), 0, "{owner} {mode:o}");
    }
}
