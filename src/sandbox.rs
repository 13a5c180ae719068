//! What each process takes from itself before anybody can talk it into something (`docs/decisions/0027-sandbox.md`).
//!
//! Files and ports by Landlock, system calls by seccomp, both for good and for all that the process starts. A kernel that
//! cannot do one of them does the rest: [`Enforced`] says what it does, in the log of a start and in `hsm-authd check`.

mod calls;
mod filter;
mod paths;

use std::fmt;
use std::path::{Path, PathBuf};
use std::thread;

use landlock::{ABI, LandlockStatus};
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use rustix::mm::{MlockAllFlags, mlockall};
use serde::{Deserialize, Serialize};

use paths::{Paths, without};

/// What a module of an HSM may need of a system: libraries, their settings, what says which processor and which devices
/// there are.
const SYSTEM: [&str; 9] =
    ["/usr", "/lib", "/lib32", "/lib64", "/opt", "/etc", "/proc", "/sys", "/run/systemd/resolve"];
/// Devices that are none.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
/// What libraries look at to count the processors that they may use. At the start alone: the kernel may make these anew.
const PROCESSORS: [&str; 2] = ["/proc/self", "/sys/fs/cgroup"];

/// What a process that loads a module may reach, besides its system's libraries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Files, and folders with all beneath them, that the module reads, such as its own folder.
    pub reads: Vec<PathBuf>,
    /// Files and folders that it changes too (`hsm.folders`).
    pub writes: Vec<PathBuf>,
    /// What it must not read, wherever it lies, except under `writes`.
    pub hides: Vec<PathBuf>,
    /// Whether it may open sockets (`hsm.network`).
    pub network: bool,
}

/// Holds the front to the folder of its database. Before it has a second thread, and before it listens to anybody; what it
/// is configured by was handed to it. `clock_file`: development only, its folder is readable.
///
/// # Errors
/// The kernel could, and did not. What it cannot do is no error: [`Enforced`] tells of it.
pub fn enclose_front(store: &Path, clock_file: Option<&Path>) -> Result<(), String> {
    let folder = |path: &Path| path.parent().unwrap_or(Path::new("/")).to_owned();
    let mut reads: Vec<_> = PROCESSORS.map(PathBuf::from).into();
    reads.push("/proc/sys/kernel/random/boot_id".into());
    reads.extend(clock_file.map(folder));
    Paths { reads, writes: vec![folder(store)], network: false }.enforce()?;
    done(filter::refuse(&[calls::NOT_THERE], libc::ENOSYS))?;
    done(filter::allow(&[calls::COMMON, calls::LEGACY, calls::STREAMS, calls::FRONT]))
}

/// Takes from the front what it needed until it was ready: it makes no socket any more. For all its threads.
///
/// # Errors
/// As [`enclose_front`].
pub fn seal_front() -> Result<(), String> {
    done(filter::refuse(&[calls::FRONT_NO_MORE], libc::EPERM))
}

/// Holds a process to what its module may reach. After the PIN is read, before the module is loaded.
///
/// # Errors
/// As [`enclose_front`].
pub fn enclose_custodian(module: &Path, reach: &Reach) -> Result<(), String> {
    let own = [Some(module.to_owned()), std::fs::canonicalize(module).ok()];
    let own = own.into_iter().flatten().filter_map(|path| path.parent().map(Path::to_owned));
    let reads = SYSTEM.map(PathBuf::from).into_iter().chain(own).chain(reach.reads.iter().cloned());
    let reads = reads.flat_map(|path| without(&path, &reach.hides)).collect();
    let writes = DEVICES.map(PathBuf::from).into_iter().chain(reach.writes.iter().cloned()).collect();
    Paths { reads, writes, network: reach.network }.enforce()?;
    done(filter::refuse(&[calls::NOT_THERE], libc::ENOSYS))?;
    // The module's code runs next: what it starts or opens to others now, the seal would not undo.
    let sockets = if reach.network { &[] } else { calls::NO_SOCKET };
    done(filter::refuse(&[calls::BEFORE_MODULE, sockets], libc::EPERM))
}

/// Leaves a process that has loaded its module, and is logged in, the system calls of its daily work. For all its threads:
/// the module may have some.
///
/// # Errors
/// As [`enclose_front`].
pub fn seal_custodian(reach: &Reach) -> Result<(), String> {
    let network = if reach.network { calls::NETWORK } else { calls::STREAMS };
    done(filter::allow(&[calls::COMMON, calls::LEGACY, calls::CUSTODIAN, network]))?;
    done(filter::refuse(&[calls::CUSTODIAN_NO_MORE], libc::EPERM))
}

/// What a kernel without filters says is told once, by who started this process.
fn done(filtered: Result<(), filter::Failure>) -> Result<(), String> {
    match filtered {
        Err(filter::Failure::Kernel(_)) | Ok(()) => Ok(()),
        Err(filter::Failure::Own(reason)) => Err(reason),
    }
}

/// This process, and those that it starts, leave no core file: it would hold codes, derived keys or PINs.
///
/// # Errors
/// What the kernel says.
pub fn no_cores() -> std::io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_CORE, 0, 0)?)
}

/// Nobody of the same user looks into this process, or takes it over by tracing it. Not for those that it starts: each
/// program begins without.
///
/// # Errors
/// What the kernel says.
pub fn no_tracing() -> std::io::Result<()> {
    Ok(prctl::set_dumpable(false)?)
}

/// Keeps the memory of this process out of swap space, now and later, if as much as it likes may be locked: under a limit,
/// threads could not be started any more. [`Enforced`] tells whether.
pub fn lock_memory() {
    if may_lock_memory() {
        // A page is locked when it is first used: modules map far more than they use.
        let _ = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT);
    }
}

fn may_lock_memory() -> bool {
    getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == RLIM_INFINITY)
}

/// What the kernel does for the processes that this one starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enforced {
    /// Why system calls are not filtered; `None`: they are.
    no_seccomp: Option<String>,
    /// The version of Landlock that there is; 0: none.
    landlock_abi: u8,
    /// Whether memory stays out of swap space.
    memory_locked: bool,
}

impl Enforced {
    /// Tries it, in a thread that ends: what is taken from a thread is taken from no other.
    pub fn tried() -> Self {
        let trial = || {
            let landlock = Paths::default().enforce();
            let seccomp = filter::refuse_in_this_thread(calls::NOT_THERE, libc::ENOSYS);
            (landlock, seccomp)
        };
        let tried =
            thread::Builder::new().name("sandbox".to_owned()).spawn(trial).map(thread::JoinHandle::join);
        let (landlock, seccomp) = match tried {
            Ok(Ok(tried)) => tried,
            _ => {
                let reason = || "it could not be tried".to_owned();
                (Err(reason()), Err(filter::Failure::Own(reason())))
            }
        };
        Self {
            no_seccomp: seccomp.err().map(|failure| failure.to_string()),
            landlock_abi: landlock.map_or(0, abi),
            memory_locked: may_lock_memory(),
        }
    }

    /// What is missing, each in a few words with what would bring it. None of it keeps a service from running.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        if let Some(reason) = &self.no_seccomp {
            missing.push(format!("system calls are not filtered (seccomp: {reason})"));
        }
        let lacks = match self.landlock_abi {
            0 => Some(
                "files and ports are not guarded: no Landlock, since Linux 5.13; in a container it may be forbidden",
            ),
            1..=2 => Some(
                "truncating files, ports, devices and signals are not guarded: Landlock of Linux 6.12 would",
            ),
            3 => Some("ports, devices and signals are not guarded: Landlock of Linux 6.12 would"),
            4 => Some("calls to devices and signals are not guarded: Landlock of Linux 6.12 would"),
            5 => Some("signals are not guarded: Landlock of Linux 6.12 would"),
            _ => None,
        };
        missing.extend(lacks.map(str::to_owned));
        if !self.memory_locked {
            missing.push(
                "memory may be swapped out: LimitMEMLOCK=infinity (ulimit -l unlimited) would lock it"
                    .to_owned(),
            );
        }
        missing
    }
}

/// What is enforced, for an operator.
impl fmt::Display for Enforced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if self.no_seccomp.is_none() {
            parts.push("seccomp".to_owned());
        }
        let guarded = match self.landlock_abi {
            0 => None,
            1..=3 => Some("files"),
            4..=5 => Some("files, network"),
            _ => Some("files, network, signals"),
        };
        parts.extend(guarded.map(|guarded| format!("Landlock (ABI {}: {guarded})", self.landlock_abi)));
        if self.memory_locked {
            parts.push("memory locked".to_owned());
        }
        match parts.is_empty() {
            true => f.write_str("nothing"),
            false => f.write_str(&parts.join(", ")),
        }
    }
}

fn abi(status: LandlockStatus) -> u8 {
    match status {
        LandlockStatus::Available { effective_abi, .. } => u8::try_from(effective_abi as i32).unwrap_or(0),
        _ => ABI::Unsupported as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_what_would_bring_it() {
        let all = Enforced { no_seccomp: None, landlock_abi: 6, memory_locked: true };
        assert_eq!(all.to_string(), "seccomp, Landlock (ABI 6: files, network, signals), memory locked");
        assert_eq!(all.missing(), Vec::<String>::new());
        let of_6_1 = Enforced { landlock_abi: 2, ..all.clone() };
        assert_eq!(of_6_1.to_string(), "seccomp, Landlock (ABI 2: files), memory locked");
        assert!(of_6_1.missing()[0].contains("Linux 6.12"));
        let none = Enforced { no_seccomp: Some("EINVAL".into()), landlock_abi: 0, memory_locked: false };
        assert_eq!(none.to_string(), "nothing");
        let words = none.missing().join("; ");
        for word in ["EINVAL", "Linux 5.13", "LimitMEMLOCK"] {
            assert!(words.contains(word), "{words}");
        }
    }

    /// The thread that tried it is gone, and this one is as free as before.
    #[test]
    fn a_trial_takes_nothing_from_who_tries() {
        let tried = Enforced::tried();
        assert_eq!(Enforced::tried(), tried, "twice");
        assert!(std::fs::read("/proc/self/status").is_ok());
        assert!(std::process::Command::new("true").status().unwrap().success());
    }
}
