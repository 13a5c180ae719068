//! A machine of a test's own, as the package leaves it: a folder for the configuration that is root's, and one for the database
//! that is the service's user's. Without root both are the test's.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::SystemTime;

use hsm_authd::dev::{SOFTHSM_MODULES, pki};

use crate::scratch::Scratch;
use crate::token::BINARY;

/// A user who has no name, and a group that has none.
pub const SERVICE: u32 = 61_234;

pub fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// Where SoftHSM is on this machine.
pub fn softhsm() -> &'static str {
    SOFTHSM_MODULES.into_iter().find(|path| Path::new(path).exists()).unwrap()
}

pub struct Machine {
    scratch: Scratch,
    /// As whom the service runs.
    pub service: u32,
}

impl Machine {
    /// With the service's user; without root it is who runs the test.
    pub fn new() -> Self {
        let scratch = Scratch::new();
        let service = if is_root() { SERVICE } else { fs::metadata("/proc/self").unwrap().uid() };
        let machine = Self { scratch, service };
        for (folder, mode) in [("etc", 0o750), ("var", 0o700), ("var/store", 0o700)] {
            let path = machine.scratch.join(folder);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            if is_root() {
                let owner = if folder == "etc" { 0 } else { service };
                chown(&path, Some(owner), Some(service)).unwrap();
            }
        }
        machine
    }

    pub fn etc(&self, name: &str) -> PathBuf {
        self.scratch.join("etc").join(name)
    }

    pub fn var(&self, name: &str) -> PathBuf {
        self.scratch.join("var").join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.etc("hsm-authd.toml")
    }

    pub fn database(&self) -> PathBuf {
        self.var("store").join("hsm-authd.db")
    }

    /// A command with the configuration of this machine, with nobody at a terminal.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(arguments).arg("--config").arg(self.config());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// What `init` is told of SoftHSM and one client.
    pub fn usual(&self) -> Vec<String> {
        let store = self.database();
        ["init", "--module", softhsm(), "--client", "bank-a", "--store", store.to_str().unwrap()]
            .map(str::to_owned)
            .to_vec()
    }

    /// One with a configuration, a token and its keys.
    pub fn initialised() -> Self {
        let machine = Self::new();
        let mut usual = machine.usual();
        usual.extend(["--key", "server.key"].map(str::to_owned));
        let output = machine.run(&usual);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        machine
    }

    /// With certificates as well, in whose names the service is asked.
    pub fn complete() -> Self {
        let machine = Self::initialised();
        let listen = std::net::Ipv4Addr::LOCALHOST.into();
        let made = pki::ensure(&machine.scratch.join("pki"), &["bank-a"], listen, SystemTime::now()).unwrap();
        machine.install(&made.ca, "client-ca.pem", 0o644);
        machine.install(&made.server.certificate, "server.pem", 0o644);
        machine.install(&made.server.key, "server.key", 0o640);
        machine
    }

    /// A file for the service, as an operator puts it there.
    pub fn install(&self, from: &Path, name: &str, mode: u32) {
        let to = self.etc(name);
        fs::copy(from, &to).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(mode)).unwrap();
        if is_root() {
            chown(&to, Some(0), Some(self.service)).unwrap();
        }
    }

    /// Changes the configuration in place.
    pub fn configure(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        fs::write(self.config(), text.replacen(from, to, 1)).unwrap();
    }

    /// Every file and folder beneath `var`, but it.
    pub fn state(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        beneath(&self.var(""), &mut found);
        found
    }

    /// The files beside the configuration, with what is in them.
    pub fn written(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(self.etc("")).unwrap().map(|entry| entry.unwrap().path());
        entries.map(|path| (path.clone(), fs::read(&path).unwrap())).collect()
    }

    /// All that the service has is its user's, and closed to others.
    pub fn assert_owned(&self, after: &str) {
        let state = self.state();
        assert!(state.len() > 3, "{after}: {state:?}");
        for path in state {
            let metadata = fs::symlink_metadata(&path).unwrap();
            let path = path.display();
            assert_eq!((metadata.uid(), metadata.gid()), (self.service, self.group()), "{after}: {path}");
            assert_eq!(metadata.mode() & 0o077, 0, "{after}: {path} is {:o}", metadata.mode());
        }
    }

    pub fn group(&self) -> u32 {
        fs::metadata(self.var("")).unwrap().gid()
    }
}

fn beneath(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            beneath(&path, found);
        }
        found.push(path);
    }
}

pub fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8(bytes.to_vec()).unwrap().lines().map(str::to_owned).collect()
}

/// Not done, for one reason.
pub fn refused(output: &Output) -> String {
    let said = lines(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said:?} {}", String::from_utf8_lossy(&output.stdout));
    assert!(said.len() == 1 && said[0].starts_with("hsm-authd: "), "{said:?}");
    said[0].clone()
}
