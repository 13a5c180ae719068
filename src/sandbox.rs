//! What each process takes from itself before anybody can talk it into something (`docs/decisions/0027-sandbox.md`).
//!
//! Files and ports by Landlock, system calls by seccomp, both for good and for all that the process starts. A kernel that
//! cannot do one of them does the rest: [`Enforced`] says what it does, in the log of a start and in `hsm-authd check`.

mod calls;
mod filter;
mod paths;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use landlock::{ABI, LandlockStatus};
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::unistd::{AccessFlags, access};
use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall, munlockall};
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

/// Holds a process to what its module may reach. After the PIN's file is opened, before the module is loaded.
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
    let sockets = if reach.network { calls::NO_OTHER_SOCKET } else { calls::NO_SOCKET };
    done(filter::refuse(&[calls::BEFORE_MODULE, sockets], libc::EPERM))
}

/// Leaves a process that has loaded its module, and is logged in, the system calls of its daily work. For all its threads:
/// the module may have some. Against what takes the process over from here on: a module that is hostile from the beginning
/// could hinder it, and is held by [`enclose_custodian`].
///
/// # Errors
/// As [`enclose_front`].
pub fn seal_custodian(reach: &Reach) -> Result<(), String> {
    // Without filters a module may have opened its process to others. With them nobody can, and this would be refused.
    let closed = prctl::get_dumpable()
        .map_err(io::Error::from)
        .and_then(|open| if open { no_tracing() } else { Ok(()) });
    closed.map_err(|error| format!("it stays open to tracing: {error}"))?;
    let network = if reach.network { calls::NETWORK } else { calls::STREAMS };
    done(filter::allow(&[calls::COMMON, calls::LEGACY, calls::CUSTODIAN, network]))?;
    done(filter::refuse(&[calls::CUSTODIAN_NO_MORE], libc::EPERM))
}

/// A refusal is accepted where a filter that refuses nothing else meets the same: `hsm-authd check` and the log of a start tell
/// of it. Where that one is taken, this process would go on unfiltered and nobody would know.
fn done(filtered: Result<(), filter::Failure>) -> Result<(), String> {
    let Err(failure) = filtered else { return Ok(()) };
    match (&failure, in_a_thread(filter_tried)) {
        (filter::Failure::NotThere(here), Some(Err(filter::Failure::NotThere(there)))) if *here == there => {
            Ok(())
        }
        _ => Err(format!("its system calls are not filtered, and could be (seccomp: {failure})")),
    }
}

/// For the calling thread alone.
fn filter_tried() -> Result<(), filter::Failure> {
    filter::refuse_in_this_thread(calls::NOT_THERE, libc::ENOSYS)
}

/// What comes of a trial, in a thread that ends: what is taken from a thread is taken from no other. `None`: there was none.
fn in_a_thread<T: Send + 'static>(trial: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    thread::Builder::new().name("sandbox".to_owned()).spawn(trial).ok()?.join().ok()
}

/// This process, and those that it starts, leave no core file: it would hold codes, derived keys or PINs.
///
/// # Errors
/// What the kernel says.
pub fn no_cores() -> io::Result<()> {
    Ok(setrlimit(Resource::RLIMIT_CORE, 0, 0)?)
}

/// Nobody of the same user looks into this process, or takes it over by tracing it. Not for those that it starts: a program
/// begins without, unless its file may not be read by who starts it, as the package's may not ([`open_at_first`]).
///
/// # Errors
/// What the kernel says.
pub fn no_tracing() -> io::Result<()> {
    Ok(prctl::set_dumpable(false)?)
}

/// Why debuggers of this user may look into a process of this program between its `exec` and [`no_tracing`], with what would
/// keep them out; `None`: they may not. By a process that has the rights of the service's user.
pub fn open_at_first() -> Option<String> {
    let suid_dumpable = std::fs::read_to_string("/proc/sys/fs/suid_dumpable").unwrap_or_default();
    open_where(access("/proc/self/exe", AccessFlags::R_OK).is_ok(), suid_dumpable.trim())
}

/// What may not be read begins with what this setting says (proc_sys_fs(5)), what may be read with 1.
fn open_where(may_read_program: bool, suid_dumpable: &str) -> Option<String> {
    let mend = match (may_read_program, suid_dumpable) {
        (true, _) => "its user may read the program's file: make it root's, of mode 0711",
        (false, "1") => "fs.suid_dumpable is 1: 0 or 2 would keep them out",
        (false, _) => return None,
    };
    Some(format!("a debugger may open a process before its first line: {mend}"))
}

/// Keeps the memory of this process out of swap space, now and later, if as much as it likes may be locked: under a limit,
/// threads could not be started any more. [`Enforced`] tells whether.
///
/// # Errors
/// It may, and the kernel did not.
pub fn lock_memory() -> io::Result<()> {
    match may_lock_memory().then(lock_all).transpose() {
        // Forbidden altogether: the trial met it too.
        Err(Errno::PERM | Errno::NOSYS) | Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn may_lock_memory() -> bool {
    getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft == RLIM_INFINITY)
}

fn lock_all() -> Result<(), Errno> {
    // A page is locked when it is first used: modules map far more than they use.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
}

/// What the kernel does for the processes that this one starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enforced {
    /// Why system calls are not filtered; `None`: they are.
    no_seccomp: Option<String>,
    /// The version of Landlock that there is; 0: none.
    landlock_abi: u8,
    /// Why memory may be in swap space; `None`: it stays out of it.
    swapped: Option<String>,
}

impl Enforced {
    /// Tries it, and takes nothing from this process: by one that starts others, and locks none of its memory.
    pub fn tried() -> Self {
        let (landlock_abi, no_seccomp) = in_a_thread(|| {
            let landlock = Paths::default().enforce();
            (landlock.map_or(0, abi), filter_tried().err().map(|failure| failure.to_string()))
        })
        .unwrap_or_else(|| (0, Some("it could not be tried".to_owned())));
        let swapped = match may_lock_memory().then(lock_all) {
            None => Some("LimitMEMLOCK=infinity (ulimit -l unlimited) would lock it".to_owned()),
            Some(locked) => locked.err().map(|error| format!("mlockall: {error}")),
        };
        let _ = munlockall();
        Self { no_seccomp, landlock_abi, swapped }
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
        missing.extend(self.swapped.iter().map(|reason| format!("memory may be swapped out: {reason}")));
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
        if self.swapped.is_none() {
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
        let all = Enforced { no_seccomp: None, landlock_abi: 6, swapped: None };
        assert_eq!(all.to_string(), "seccomp, Landlock (ABI 6: files, network, signals), memory locked");
        assert_eq!(all.missing(), Vec::<String>::new());
        let of_6_1 = Enforced { landlock_abi: 2, ..all.clone() };
        assert_eq!(of_6_1.to_string(), "seccomp, Landlock (ABI 2: files), memory locked");
        assert!(of_6_1.missing()[0].contains("Linux 6.12"));
        let none =
            Enforced { no_seccomp: Some("EINVAL".into()), landlock_abi: 0, swapped: Some("EAGAIN".into()) };
        assert_eq!(none.to_string(), "nothing");
        let words = none.missing().join("; ");
        for word in ["EINVAL", "Linux 5.13", "swapped out: EAGAIN"] {
            assert!(words.contains(word), "{words}");
        }
    }

    #[test]
    fn a_program_is_closed_from_the_beginning_if_it_cannot_be_read_and_no_setting_opens_it() {
        for closed in ["0", "2", ""] {
            assert_eq!(open_where(false, closed), None, "{closed:?}");
            assert!(open_where(true, closed).is_some_and(|said| said.contains("0711")), "{closed:?}");
        }
        assert!(open_where(false, "1").is_some_and(|said| said.contains("fs.suid_dumpable is 1")));
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
