//! The appliance under load: a folder, its processes, and the CPU time that each of them has used.

use std::fs::{self, DirBuilder};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{Outcome, words};

/// Running, in a folder that goes with it. Killed on drop.
pub struct Appliance {
    folder: PathBuf,
    supervisor: Mutex<Child>,
    front: Pid,
    custodians: Vec<Pid>,
    /// `dev.json`.
    pub info: Value,
}

/// CPU time by role, user and system together.
#[derive(Clone, Copy)]
pub struct CpuTime {
    pub supervisor: Duration,
    pub front: Duration,
    pub custodians: Duration,
    /// This process: the load generator.
    pub generator: Duration,
}

impl CpuTime {
    pub fn since(self, before: Self) -> Self {
        Self {
            supervisor: self.supervisor.saturating_sub(before.supervisor),
            front: self.front.saturating_sub(before.front),
            custodians: self.custodians.saturating_sub(before.custodians),
            generator: self.generator.saturating_sub(before.generator),
        }
    }
}

impl Appliance {
    /// Starts one with `dev` and waits until all its custodians are there. `anchor` is what `[audit] anchor` says.
    pub fn start(folder: &Path, custodians: Option<u16>, anchor: &str) -> Outcome<Self> {
        let at = |e: std::io::Error| format!("{}: {e}", folder.display());
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(at)?;
        let log = fs::File::create(folder.join("log")).map_err(at)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_hsm-authd"));
        command.args(["dev", "--listen", "127.0.0.1:0", "--anchor", anchor, "--dir"]).arg(folder);
        if let Some(custodians) = custodians {
            command.arg("--custodians").arg(custodians.to_string());
        }
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(|e| format!("hsm-authd: {e}"))?;
        let stdout = child.stdout.take();
        // From here on it is stopped by its drop.
        let mut appliance = Self {
            folder: folder.to_owned(),
            front: Pid::from_raw(0),
            custodians: Vec::new(),
            supervisor: Mutex::new(child),
            info: Value::Null,
        };
        let mut line = String::new();
        let read = stdout.map(|stdout| BufReader::new(stdout).read_line(&mut line));
        if !matches!(read, Some(Ok(_))) || !line.starts_with("ready on ") {
            let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
            return Err(format!("the appliance does not start:\n{log}"));
        }
        let dev_json = fs::read(folder.join("dev.json")).map_err(at)?;
        appliance.info = serde_json::from_slice(&dev_json).map_err(words)?;
        appliance.await_custodians()?;
        Ok(appliance)
    }

    /// `ready` means that one custodian is there; the log tells of each.
    fn await_custodians(&mut self) -> Outcome {
        let config = fs::read_to_string(self.folder.join("hsm-authd.toml")).map_err(words)?;
        let config: toml::Table = config.parse().map_err(words)?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let configured = config.get("hsm").and_then(|hsm| hsm.get("custodians")?.as_integer());
        let wanted = configured.and_then(|count| usize::try_from(count).ok()).unwrap_or(cores.min(4));
        // One starts in well under a second; the bound is that of the whole run.
        for _ in 0..1_000 {
            let log = fs::read_to_string(self.folder.join("log")).map_err(words)?;
            if log.matches("custodian is up").count() >= wanted {
                self.front = *self.pids_of("front")?.first().ok_or("there is no front")?;
                self.custodians = self.pids_of("custodian")?;
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err("the custodians do not come up".to_owned())
    }

    /// The processes of a role, among the supervisor's children.
    fn pids_of(&self, role: &str) -> Outcome<Vec<Pid>> {
        let supervisor = self.supervisor_pid();
        let path = format!("/proc/{supervisor}/task/{supervisor}/children");
        let children = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        let is_role = |pid: &&str| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(role.as_bytes())
        };
        let pids = children.split_whitespace().filter(is_role);
        pids.map(|pid| pid.parse().map(Pid::from_raw).map_err(words)).collect()
    }

    fn supervisor_pid(&self) -> Pid {
        Pid::from_raw(self.supervisor.lock().unwrap_or_else(PoisonError::into_inner).id().cast_signed())
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn custodians(&self) -> usize {
        self.custodians.len()
    }

    /// The clocks of whole processes, which count threads that have ended too.
    pub fn cpu_time(&self) -> Outcome<CpuTime> {
        let of = |pid: Pid| -> Outcome<Duration> {
            let clock = clock_getcpuclockid(pid).map_err(|e| format!("process {pid} is gone: {e}"))?;
            clock_gettime(clock).map(Duration::from).map_err(words)
        };
        Ok(CpuTime {
            supervisor: of(self.supervisor_pid())?,
            front: of(self.front)?,
            custodians: self.custodians.iter().map(|pid| of(*pid)).sum::<Outcome<Duration>>()?,
            generator: of(Pid::this())?,
        })
    }

    /// Ends it and removes its folder. Its other processes end with their supervisor.
    pub fn end(&self) {
        let mut supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = supervisor.kill();
        let _ = supervisor.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        self.end();
    }
}
