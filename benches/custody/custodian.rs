//! A token in a folder of its own, and custodians on it.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hsm_authd::custodian::token::Setup;
use hsm_authd::dev::SOFTHSM_MODULES;
use hsm_authd::domain::credential::ObjectId;
use hsm_authd::hsm::messages::{
    Boot, Call, CheckOtp, Hello, Reply, Request, Response, decode, encode, frame_length,
};
use hsm_authd::sandbox::Reach;
use serde::{Serialize, de::DeserializeOwned};

use crate::{Outcomes, allocated};

const BINARY: &str = env!("CARGO_BIN_EXE_hsm-authd");

fn words(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Removed on drop.
pub struct Folder {
    path: PathBuf,
    boot: Boot,
}

impl Folder {
    /// With a token and its keys.
    pub fn new(base: &Path) -> Outcomes<Self> {
        let path = base.join(format!("hsm-authd-custody-{}", std::process::id()));
        fs::create_dir_all(path.join("tokens")).map_err(words)?;
        let conf = format!(
            "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\n",
            path.join("tokens").display()
        );
        for (name, content) in
            [("softhsm2.conf", conf.as_str()), ("pin", "1234-5678"), ("so-pin", "8765-4321")]
        {
            fs::write(path.join(name), content).map_err(words)?;
        }
        let module = SOFTHSM_MODULES.iter().map(PathBuf::from).find(|path| path.exists());
        let boot = Boot {
            module: module.ok_or("no SoftHSM")?,
            module_arguments: None,
            token_label: "custody".to_owned(),
            pin_file: path.join("pin"),
            pin_handed: false,
            pin_cut_off: None,
            secrets_cached_max: 10_000,
            in_use: false,
            unwraps_max: u64::MAX,
            memory_bytes_max: u64::MAX,
            shared_keys: false,
            reach: Reach { writes: vec![path.join("tokens")], ..Reach::default() },
        };
        let folder = Self { path, boot };
        let setup = Setup {
            boot: folder.boot.clone(),
            needed: Vec::new(),
            so_pin_file: Some(folder.path.join("so-pin")),
            so_pin_handed: false,
            token_only: false,
            serves_tls: false,
        };
        let mut child = folder
            .command("token-setup")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(words)?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&encode(&setup).map_err(words)?).map_err(words)?;
        }
        match child.wait().map_err(words)?.success() {
            true => Ok(folder),
            false => Err("no token".to_owned()),
        }
    }

    fn command(&self, role: &str) -> Command {
        let mut command = Command::new(BINARY);
        command.args([role, "--supervisor", &std::process::id().to_string()]);
        command.env("SOFTHSM2_CONF", self.path.join("softhsm2.conf"));
        command
    }

    /// What the token takes on the disk.
    pub fn token_bytes(&self) -> Outcomes<u64> {
        allocated(&self.path.join("tokens")).map_err(words)
    }

    /// One that has said hello, and keeps so many unwrapped secrets.
    pub fn custodian(&self, secrets_cached_max: usize) -> Outcomes<Custodian> {
        let (ours, theirs) = UnixStream::pair().map_err(words)?;
        let child = self
            .command("custodian")
            .stdin(OwnedFd::from(theirs))
            .stderr(Stdio::inherit())
            .env("RUST_LOG", "error")
            .spawn()
            .map_err(words)?;
        let mut custodian = Custodian { child, stream: ours, calls: 0 };
        custodian.send(&Boot { secrets_cached_max, ..self.boot.clone() })?;
        custodian.receive::<Hello>()?;
        Ok(custodian)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Killed on drop.
pub struct Custodian {
    child: Child,
    stream: UnixStream,
    calls: u64,
}

impl Custodian {
    fn send(&mut self, message: &impl Serialize) -> Outcomes {
        self.stream.write_all(&encode(message).map_err(words)?).map_err(words)
    }

    fn receive<T: DeserializeOwned>(&mut self) -> Outcomes<T> {
        let mut header = [0; 4];
        self.stream.read_exact(&mut header).map_err(words)?;
        let mut body = vec![0; frame_length(header).map_err(words)?];
        self.stream.read_exact(&mut body).map_err(words)?;
        decode(&body).map_err(words)
    }

    pub fn call(&mut self, request: Request) -> Outcomes<Response> {
        self.calls += 1;
        self.send(&Call { repeated: false, id: self.calls, newest: Default::default(), request })?;
        self.receive::<Reply>()?.result.map_err(words)
    }

    pub fn check(&mut self, check: CheckOtp) -> Outcomes {
        match self.call(Request::CheckOtp(check))? {
            Response::Checked { .. } => Ok(()),
            _ => Err("nothing checked".to_owned()),
        }
    }

    /// How many objects there are.
    pub fn residents(&mut self) -> Outcomes<usize> {
        let (mut count, mut after) = (0, None);
        loop {
            let Response::Residents { ids, .. } = self.call(Request::Residents { after })? else {
                return Err("no list".to_owned());
            };
            match ids.last() {
                Some(last) => after = Some(*last),
                None => return Ok(count),
            }
            count += ids.len();
        }
    }

    pub fn destroy(&mut self, id: ObjectId) -> Outcomes {
        self.call(Request::DestroyResidents { ids: vec![id], nameless: false }).map(drop)
    }
}

impl Drop for Custodian {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
