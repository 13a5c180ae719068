//! The appliance as its operator sees it: a folder, three processes, a database.

use std::fs::{self, DirBuilder};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::narrator::Narrator;
use crate::{Outcome, words};

/// The appliance, in a folder that goes with it. Killed on drop.
pub struct Appliance {
    binary: PathBuf,
    pub folder: PathBuf,
    child: Option<Child>,
    /// `dev.json`.
    pub info: Value,
}

impl Appliance {
    pub fn new(binary: PathBuf) -> Outcome<Self> {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = base.join(format!("hsm-authd-demo-{}", std::process::id()));
        DirBuilder::new().mode(0o700).create(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        Ok(Self { binary, folder, child: None, info: Value::Null })
    }

    pub fn start(&mut self, narrator: &mut Narrator) -> Outcome {
        narrator.note("$ hsm-authd dev --dir DIR --listen 127.0.0.1:0 --custodians 1")?;
        let log = fs::File::options().create(true).append(true).open(self.log()).map_err(words)?;
        let mut child = Command::new(&self.binary)
            .args(["dev", "--listen", "127.0.0.1:0", "--custodians", "1", "--dir"])
            .arg(&self.folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("{}: {e}", self.binary.display()))?;
        let mut line = String::new();
        let read = child.stdout.take().map(|stdout| BufReader::new(stdout).read_line(&mut line));
        self.child = Some(child);
        if !matches!(read, Some(Ok(_))) || !line.starts_with("ready on ") {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            return Err(format!("the appliance does not start:\n{log}"));
        }
        self.info =
            serde_json::from_slice(&fs::read(self.folder.join("dev.json")).map_err(words)?).map_err(words)?;
        let supervisor = self.info["pid"].as_u64().unwrap_or(0);
        let (front, custodian) = (self.pid_of("front")?, self.pid_of("custodian")?);
        narrator.row(
            &format!("supervisor {supervisor:>8}"),
            "starts the others; reads no network, has no secret",
        )?;
        narrator.row(
            &format!("front      {front:>8}"),
            "TLS, HTTP, decisions, database; no PIN, no stored seed",
        )?;
        narrator.row(&format!("custodian  {custodian:>8}"), "PKCS#11 and the PIN; no network, no database")
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    /// The process of a role, among the supervisor's children.
    pub fn pid_of(&self, role: &str) -> Outcome<i32> {
        let supervisor = self.info["pid"].as_u64().unwrap_or(0);
        let path = format!("/proc/{supervisor}/task/{supervisor}/children");
        let children = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        let is_role = |pid: &&str| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(role.as_bytes())
        };
        let pid = children.split_whitespace().find(is_role).and_then(|pid| pid.parse().ok());
        pid.ok_or_else(|| format!("no {role} process"))
    }

    pub fn stop(&mut self) -> Outcome {
        let mut child = self.child.take().ok_or("the appliance does not run")?;
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).map_err(words)?;
        let status = child.wait().map_err(words)?;
        if status.success() { Ok(()) } else { Err(format!("the appliance ended with {status}")) }
    }

    pub fn crash(&mut self) -> Outcome {
        let mut child = self.child.take().ok_or("the appliance does not run")?;
        child.kill().and_then(|()| child.wait()).map(drop).map_err(words)
    }

    /// Looks for secrets in the database's files; how many bytes it read.
    pub fn search_database(&self, secrets: &[&[u8]]) -> Outcome<usize> {
        let mut searched = 0;
        for name in ["hsm-authd.db", "hsm-authd.db-wal"] {
            let bytes = fs::read(self.folder.join("store").join(name)).map_err(|e| format!("{name}: {e}"))?;
            searched += bytes.len();
            for secret in secrets {
                if bytes.windows(secret.len()).any(|window| window == *secret) {
                    return Err(format!("{name} holds a secret in the clear"));
                }
            }
        }
        Ok(searched)
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        let _ = self.crash();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
