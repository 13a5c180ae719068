//! What somebody could do who has taken over a process: the front, a custodian, and, so that each act is known to work, one
//! without a sandbox.
//!
//! In a process of its own, which takes from itself what the front or a custodian does, by the same functions, and then tries
//! everything: this test binary is run again for it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::io::IoSliceMut;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};
use std::{env, io};

use hsm_authd::config::Config;
use hsm_authd::custodian::EXIT_START_FAILED;
use hsm_authd::dev::pki::{Authority, Purpose, Validity};
use hsm_authd::hsm::messages::{Request, Response};
use hsm_authd::sandbox::{self, Enforced};
use hsm_authd::{init, sandbox::Reach};
use nix::libc;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::sys::{prctl, ptrace};
use nix::unistd::Pid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

use crate::client::{Connection, Http};
use crate::daemon::{Daemon, enrol_hotp, rfc_code, verify};
use crate::modules::TestModule;
use crate::processes::Started;
use crate::served::{Served, configuration, section};
use crate::token::{Custodian, TestToken};

/// Whose place the attacker has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Nobodys,
    Front,
    Custodian,
    /// With `hsm.network`.
    NetworkCustodian,
    /// The module of a custodian, which is just being loaded.
    Module,
    /// The same with `hsm.network`.
    NetworkModule,
}

/// What is tried.
const ACTS: [&str; 19] = [
    "signal",
    "whether a process is there",
    "tcp socket",
    "socket of the kernel's ciphers",
    "socket of the machine's addresses",
    "pair of a network",
    "tcp connection",
    "udp socket",
    "unix socket",
    "unix connection",
    "child process",
    "ptrace",
    "process_vm_readv",
    "core files",
    "dumpable",
    "connection by the first bytes",
    "message by the first bytes",
    "mode",
    "thread",
];

/// Above the most that a kernel gives (`PID_MAX_LIMIT`).
const NOBODY: Pid = Pid::from_raw(1 << 22);

/// Whether the kernel has all that is asked of it; else there is less to see, and a line says so.
fn is_complete() -> bool {
    let missing: Vec<_> =
        Enforced::tried().missing().into_iter().filter(|gap| !gap.starts_with("memory")).collect();
    if !missing.is_empty() {
        println!("passed over: {missing:?}");
    }
    missing.is_empty()
}

/// What came of each act and of each file that was opened: `ok`, or the error's number.
struct Came(BTreeMap<String, String>);

impl Came {
    fn of(&self, act: impl Display) -> &str {
        self.0.get(&act.to_string()).unwrap_or_else(|| panic!("{act} was not tried"))
    }

    fn succeeded(&self, act: impl Display) {
        assert_eq!(self.of(&act), "ok", "{act}");
    }

    fn refused(&self, act: impl Display) {
        let errnos = [libc::EPERM, libc::EACCES].map(|errno| errno.to_string());
        assert!(errnos.iter().any(|errno| errno == self.of(&act)), "{act}: {}", self.of(&act));
    }

    /// By the filter: Landlock says `EACCES`.
    fn filtered(&self, act: impl Display) {
        assert_eq!(self.of(&act), libc::EPERM.to_string(), "{act}");
    }
}

/// A service that runs, whom the attacker looks at, and where he could connect to.
struct Scene {
    daemon: Daemon,
    config: PathBuf,
    victim: Started,
    listener: TcpListener,
    _unix: UnixListener,
    socket: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let daemon = Daemon::start();
        let socket = daemon.dir().join("listener");
        Self {
            config: daemon.dir().join("hsm-authd.toml"),
            victim: Started::by(
                Command::new(env::current_exe().unwrap())
                    .args(["--exact", "sandbox::victim", "--ignored"])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::null()),
            ),
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            _unix: UnixListener::bind(&socket).unwrap(),
            socket,
            daemon,
        }
    }

    /// Has everything tried in that place, with these files to open.
    fn attack(&self, role: Role, files: &[PathBuf]) -> Came {
        let files: Vec<_> = files.iter().map(|path| path.to_str().unwrap()).collect();
        let spoil = self.daemon.dir().join("store/spoil");
        fs::write(&spoil, "").unwrap();
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "sandbox::attacker", "--ignored", "--nocapture"])
            .env("ATTACKER_ROLE", (role as u8).to_string())
            .env("ATTACKER_CONFIG", &self.config)
            .env("ATTACKER_FILES", files.join("\n"))
            .env("ATTACKER_VICTIM", self.victim.id().to_string())
            .env("ATTACKER_PORT", self.listener.local_addr().unwrap().port().to_string())
            .env("ATTACKER_SOCKET", &self.socket)
            .env("ATTACKER_SPOIL", &spoil)
            .output()
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let pairs = said.lines().filter_map(|line| line.strip_prefix("came: ")?.split_once('\t'));
        Came(pairs.map(|(act, end)| (act.to_owned(), end.to_owned())).collect())
    }

    fn config(&self) -> Config {
        Config::load(&self.config).unwrap()
    }

    fn token_files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.daemon.dir().join("token")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() { folders.push(path) } else { found.push(path) }
            }
        }
        assert!(!found.is_empty());
        found
    }

    /// What the front must not open.
    fn of_the_hsm(&self) -> Vec<PathBuf> {
        let beside = ["pin", "so-pin", "hsm-authd.toml", "softhsm2.conf", "pki/ca.key", "pki/server.key"];
        let beside = beside.map(|name| self.daemon.dir().join(name));
        let module = self.config().hsm.module;
        let mem = PathBuf::from(format!("/proc/{}/mem", self.victim.id()));
        let there = beside.into_iter().filter(|path| path.exists());
        there.chain(self.token_files()).chain([module, "/etc/passwd".into(), mem]).collect()
    }

    /// What a custodian must not open.
    fn of_the_front(&self) -> Vec<PathBuf> {
        let beside = |suffix: &str| PathBuf::from(format!("{}{suffix}", self.daemon.database().display()));
        let key = self.daemon.dir().join("pki/server.key");
        let pin = self.daemon.dir().join("pin");
        let mem = PathBuf::from(format!("/proc/{}/mem", self.victim.id()));
        vec![beside(""), beside("-wal"), beside("-shm"), key, pin, mem]
    }
}

/// Somebody whom the attacker may look at, as far as the system is concerned.
#[test]
#[ignore = "run by the other tests"]
fn victim() {
    // Where the system lets nobody but a parent look; what it says if it does not, is no matter.
    let _ = prctl::set_dumpable(true);
    let mut left = String::new();
    let _ = io::stdin().read_line(&mut left);
}

#[test]
#[ignore = "run by the other tests, in a place that is told by its environment"]
fn attacker() {
    let variable = |name: &str| env::var(name).unwrap();
    let config = Config::load(Path::new(&variable("ATTACKER_CONFIG"))).unwrap();
    let reach = init::boot(&config.hsm, false).reach;
    let victim = Pid::from_raw(variable("ATTACKER_VICTIM").parse().unwrap());
    let port: u16 = variable("ATTACKER_PORT").parse().unwrap();
    let (socket, files) = (variable("ATTACKER_SOCKET"), variable("ATTACKER_FILES"));
    // As if it were a listener that somebody handed over.
    let tcp = || socket::socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).unwrap();
    let (first, second) = (tcp(), tcp());
    match variable("ATTACKER_ROLE").parse::<u8>().unwrap() {
        role if role == Role::Nobodys as u8 => {}
        role if role == Role::Front as u8 => {
            sandbox::enclose_front(&config.store.path, None).unwrap();
            sandbox::seal_front().unwrap();
        }
        role => {
            // As where the configuration is in /etc: all of its folder can be read but for what is hidden.
            let folder = Path::new(&variable("ATTACKER_CONFIG")).parent().unwrap().to_owned();
            let reads = reach.reads.iter().cloned().chain([folder]).collect();
            let network =
                [Role::NetworkCustodian, Role::NetworkModule].map(|role| role as u8).contains(&role);
            let reach = Reach { network, reads, ..reach };
            sandbox::no_tracing().unwrap();
            sandbox::enclose_custodian(&config.hsm.module, &reach).unwrap();
            if [Role::Custodian, Role::NetworkCustodian].map(|role| role as u8).contains(&role) {
                sandbox::seal_custodian(&reach).unwrap();
            }
        }
    }
    for path in files.lines() {
        came(path, File::open(path));
        if !path.starts_with("/proc") {
            came(format!("write {path}"), File::options().append(true).open(path));
        }
    }
    let there = SockaddrIn::new(127, 0, 0, 1, port);
    let fast_open = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    for act in ACTS {
        match act {
            "tcp socket" => came(act, TcpListener::bind("127.0.0.1:0")),
            "tcp connection" => came(act, TcpStream::connect(("127.0.0.1", port))),
            "socket of the kernel's ciphers" => {
                came(
                    act,
                    socket::socket(AddressFamily::Alg, SockType::SeqPacket, SockFlag::empty(), None)
                        .map_err(io::Error::from),
                );
            }
            "socket of the machine's addresses" => {
                let made = socket::socket(
                    AddressFamily::Netlink,
                    SockType::Raw,
                    SockFlag::empty(),
                    SockProtocol::NetlinkRoute,
                );
                came(act, made.map_err(io::Error::from));
            }
            "pair of a network" => {
                let made = socket::socketpair(AddressFamily::Inet, SockType::Stream, None, SockFlag::empty());
                came(act, made.map_err(io::Error::from));
            }
            "udp socket" => came(act, UdpSocket::bind("127.0.0.1:0")),
            "unix socket" => came(act, UnixListener::bind(format!("{socket}-{}", std::process::id()))),
            "unix connection" => came(act, UnixStream::connect(&socket)),
            "signal" => came(act, kill(victim, Signal::SIGCONT).map_err(io::Error::from)),
            "whether a process is there" => came(act, kill(NOBODY, None).map_err(io::Error::from)),
            "child process" => came(act, Command::new("/bin/true").status()),
            "ptrace" => {
                came(act, ptrace::attach(victim).map_err(io::Error::from));
                let _ = ptrace::detach(victim, None);
            }
            "process_vm_readv" => {
                let mut byte = [0];
                let remote = [RemoteIoVec { base: mapped(victim), len: 1 }];
                let read = process_vm_readv(victim, &mut [IoSliceMut::new(&mut byte)], &remote);
                came(act, read.map_err(io::Error::from));
            }
            "core files" => {
                came(act, setrlimit(Resource::RLIMIT_CORE, 1, 1).map_err(io::Error::from));
            }
            "dumpable" => came(act, prctl::set_dumpable(true).map_err(io::Error::from)),
            "connection by the first bytes" => {
                let sent = socket::sendto(first.as_raw_fd(), b"out", &there, fast_open);
                came(act, sent.map_err(io::Error::from));
            }
            "message by the first bytes" => {
                let bytes = [io::IoSlice::new(b"out")];
                let sent = socket::sendmsg(second.as_raw_fd(), &bytes, &[], fast_open, Some(&there));
                came(act, sent.map_err(io::Error::from));
            }
            "mode" => {
                let everybody = fs::Permissions::from_mode(0o666);
                came(act, fs::set_permissions(variable("ATTACKER_SPOIL"), everybody));
            }
            "thread" => {
                came(act, std::thread::Builder::new().spawn(|| ()).map(|thread| thread.join().unwrap()))
            }
            other => panic!("{other}"),
        }
    }
    // The last: who succeeds is somebody else.
    came("program", Err::<(), _>(Command::new("/bin/echo").arg("came: program\tok").exec()));
}

fn came<T>(act: impl Display, result: io::Result<T>) {
    let end = match result {
        Ok(_) => "ok".to_owned(),
        Err(error) => error.raw_os_error().map_or(error.to_string(), |errno| errno.to_string()),
    };
    println!("came: {act}\t{end}");
}

/// Where something of a process is: the first line of its map, or, where that must not be looked at, anywhere.
fn mapped(victim: Pid) -> usize {
    let maps = fs::read_to_string(format!("/proc/{victim}/maps")).unwrap_or_default();
    let first = maps.split('-').next().unwrap_or_default();
    usize::from_str_radix(first, 16).unwrap_or(4_096)
}

#[test]
fn without_a_sandbox_everything_works() {
    let scene = Scene::new();
    let files = [scene.of_the_hsm(), scene.of_the_front()].concat();
    let came = scene.attack(Role::Nobodys, &files);
    files.iter().for_each(|path| came.succeeded(path.display()));
    let is_root = fs::metadata("/proc/self").unwrap().uid() == 0;
    for act in ACTS {
        match act {
            "whether a process is there" => assert_eq!(came.of(act), libc::ESRCH.to_string()),
            // There is none.
            "pair of a network" => assert_eq!(came.of(act), libc::EOPNOTSUPP.to_string()),
            // Of a system on which nobody looks at what is not his child.
            "ptrace" | "process_vm_readv" if !is_root => {}
            "core files" if getrlimit(Resource::RLIMIT_CORE).unwrap().1 == 0 => {}
            // Of a kernel that has them not.
            "socket of the kernel's ciphers" if came.of(act) == libc::EAFNOSUPPORT.to_string() => {}
            _ => came.succeeded(act),
        }
    }
    came.succeeded("program");
}

#[test]
fn the_front_opens_its_database_and_nothing_of_the_hsm() {
    if !is_complete() {
        return;
    }
    let scene = Scene::new();
    let database = scene.daemon.database();
    let hsm = scene.of_the_hsm();
    let came = scene.attack(Role::Front, &[hsm.clone(), vec![database.clone()]].concat());
    came.succeeded(database.display());
    came.succeeded(format!("write {}", database.display()));
    hsm.iter().for_each(|path| came.refused(path.display()));
    for act in ACTS {
        match act {
            "thread" => came.succeeded(act),
            _ => came.filtered(act),
        }
    }
    came.filtered("program");
}

#[test]
fn the_code_of_a_module_that_is_being_loaded_starts_nothing_that_outlives_it() {
    if !is_complete() {
        return;
    }
    let scene = Scene::new();
    let front = scene.of_the_front();
    for role in [Role::Module, Role::NetworkModule] {
        let came = scene.attack(role, &front);
        front.iter().for_each(|path| came.refused(path.display()));
        for act in [
            "child process",
            "ptrace",
            "process_vm_readv",
            "dumpable",
            "mode",
            "signal",
            "tcp socket",
            "socket of the kernel's ciphers",
            "pair of a network",
        ] {
            came.filtered(act);
        }
        came.filtered("program");
        came.succeeded("thread");
        // Who removes what another run left has to know whether that one has ended.
        assert_eq!(came.of("whether a process is there"), libc::ESRCH.to_string());
        for act in [
            "tcp connection",
            "unix connection",
            "connection by the first bytes",
            "socket of the machine's addresses",
        ] {
            match role {
                Role::NetworkModule => came.succeeded(act),
                _ => came.filtered(act),
            }
        }
    }
}

#[test]
fn a_custodian_opens_its_token_and_neither_database_nor_socket() {
    if !is_complete() {
        return;
    }
    let scene = Scene::new();
    let (front, token) = (scene.of_the_front(), scene.token_files());
    let module = scene.config().hsm.module;
    let files = [front.clone(), token.clone(), vec![module.clone()]].concat();
    for role in [Role::Custodian, Role::NetworkCustodian] {
        let came = scene.attack(role, &files);
        for path in &token {
            came.succeeded(path.display());
            came.succeeded(format!("write {}", path.display()));
        }
        came.succeeded(module.display());
        came.refused(format!("write {}", module.display()));
        front.iter().for_each(|path| came.refused(path.display()));
        for act in ACTS {
            match act {
                "thread" => came.succeeded(act),
                "whether a process is there" => assert_eq!(came.of(act), libc::ESRCH.to_string()),
                // It may connect to others, and nobody to it.
                "tcp connection"
                | "socket of the machine's addresses"
                | "udp socket"
                | "unix connection"
                | "connection by the first bytes"
                | "message by the first bytes"
                    if role == Role::NetworkCustodian =>
                {
                    came.succeeded(act);
                }
                // There is no folder to put it.
                "unix socket" if role == Role::NetworkCustodian => came.refused(act),
                _ => came.filtered(act),
            }
        }
        came.filtered("program");
    }
}

fn status(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {field}")).trim().to_owned()
}

#[tokio::test]
async fn the_processes_that_serve_are_in_it() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    assert_eq!(verify(&bank, &id, &rfc_code(0)).await.status, 200);
    // Front: what is not there, what it may, what it needs no more. Custodians: the first and the last of these, and sockets.
    for (role, filters) in [("front", "3"), ("custodian", "4")] {
        let pids = daemon.pids(role);
        assert!(!pids.is_empty());
        for pid in pids {
            for thread in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
                let thread = thread.unwrap().file_name().to_str().unwrap().parse().unwrap();
                assert_eq!(status(thread, "Seccomp"), "2", "{role}");
                assert_eq!(status(thread, "NoNewPrivs"), "1", "{role}");
                assert_eq!(status(thread, "Seccomp_filters"), filters, "{role}");
            }
            let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
            assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{role}");
            // The kernel gives what belongs to an undumpable process to root. As root, this shows nothing.
            assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0, "{role}");
        }
    }
    // Both are still who they were.
    assert_eq!(verify(&bank, &id, &rfc_code(1)).await.status, 200);
}

/// As root, too, whom no mode of a file keeps out.
#[test]
fn the_front_that_serves_opens_nothing_outside_its_folder() {
    if !is_complete() {
        return;
    }
    let mut daemon = Daemon::start();
    daemon.stop();
    let elsewhere = daemon.dir().join("elsewhere.db");
    fs::rename(daemon.database(), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, daemon.database()).unwrap();
    let said = daemon.refused();
    assert!(said.contains("Permission denied"), "{said}");
    fs::remove_file(daemon.database()).unwrap();
    fs::rename(&elsewhere, daemon.database()).unwrap();
    daemon.resume();
}

/// What a custodian says whose module is kept from its token.
#[test]
fn a_module_without_its_folder_finds_no_token_and_the_operator_is_told_why() {
    if !is_complete() || TestModule::chosen() != TestModule::SoftHsm {
        return;
    }
    let token = TestToken::new();
    let mut boot = token.boot.clone();
    boot.reach = Reach { reads: vec![token.tokens().with_file_name("softhsm2.conf")], ..Reach::default() };
    let (_, words) = token.refused(&boot);
    assert!(words.contains("hsm.folders") && words.lines().count() == 1, "{words}");
    boot.reach.writes = vec![token.tokens()];
    let mut custodian = token.spawn();
    custodian.send(&boot);
    assert!(custodian.hello().is_some());
    assert!(matches!(custodian.call(Request::Health), Ok(Response::Healthy)));
}

/// The front cannot open them; they come to it opened.
#[tokio::test]
async fn a_reload_takes_certificates_that_were_replaced_by_a_rename() {
    let daemon = Daemon::start();
    let identity = daemon.identity("bank-a");
    drop(daemon.connect("bank-a").await);
    let day = Duration::from_secs(86_400);
    let validity = Validity { not_before: SystemTime::now() - day, not_after: SystemTime::now() + day };
    let stranger = Authority::generate("somebody else", validity).unwrap();
    let names = [hsm_authd::dev::pki::AlternativeName::Ip("127.0.0.1".parse().unwrap())];
    let issued = stranger.issue(Purpose::Server, "server", &names, validity).unwrap();
    let config = Config::load(&daemon.dir().join("hsm-authd.toml")).unwrap();
    let (certificate, key) = (config.server.certificates.iter().next().unwrap(), config.server.key.unwrap());
    let saved = [certificate, &key].map(|path| (path, fs::read(path).unwrap()));
    let replace = |path: &Path, content: &[u8]| {
        let new = path.with_added_extension("new");
        fs::write(&new, content).unwrap();
        fs::rename(new, path).unwrap();
    };
    replace(certificate, issued.certificate_pem().unwrap().as_bytes());
    replace(&key, issued.key_pem().unwrap().as_bytes());
    daemon.reload_with(|_| ());
    assert!(Connection::open(&daemon.url(), &identity, Http::Two).await.is_err(), "the old certificate");
    saved.iter().for_each(|(path, content)| replace(path, content));
    daemon.reload_with(|_| ());
    drop(daemon.connect("bank-a").await);
}

#[test]
fn a_gap_is_told_once_and_check_tells_it_too() {
    let mut daemon = Daemon::start();
    daemon.stop();
    let config = configuration(&daemon, "again.toml", |config| {
        section(config, "hsm").insert("custodians".into(), 2.into());
    });
    let served = Served::start(&config);
    let missing = Enforced::tried().missing();
    for gap in &missing {
        assert_eq!(served.heard().matches(gap.as_str()).count(), 1, "{gap}: {}", served.heard());
    }
    assert_eq!(served.heard().matches("the sandbox has a gap").count(), missing.len());
    let checked =
        Command::new(crate::token::BINARY).args(["check", "--config"]).arg(&config).output().unwrap();
    let said = String::from_utf8(checked.stdout).unwrap();
    assert!(said.contains(&format!("ok  sandbox: {}\n", Enforced::tried())), "{said}");
    for gap in &missing {
        assert!(said.contains(&format!("--  sandbox: {gap}\n")), "{said}");
    }
    // As it is built: only the package's is of another mode.
    assert!(said.contains("--  sandbox: a debugger may open a process before its first line: "), "{said}");
}

/// What keeps a filter from being installed, or memory from being locked, before a custodian is started in its place.
#[derive(Clone, Copy, Debug)]
pub enum Hindrance {
    /// As in a container that forbids it.
    Forbidden,
    /// It can be done for one thread, and not for all.
    ForAllThreads,
    /// There are so many already that there is room for none but a short one.
    NoRoom,
    /// Memory may be locked, and no process may do it.
    LockForbidden,
    /// Memory may be locked, and there is none to lock.
    NoMemory,
}

/// Of a process whose limits cannot be raised to where this would show.
const PASSED_OVER: i32 = 77;

impl Hindrance {
    const ALL: [Self; 5] =
        [Self::Forbidden, Self::ForAllThreads, Self::NoRoom, Self::LockForbidden, Self::NoMemory];

    /// A custodian with it, to which nothing was said yet.
    pub fn custodian(self, token: &mut TestToken) -> Custodian {
        let ours = std::process::id().to_string();
        let which = (self as usize).to_string();
        token.environment.extend([("HINDRANCE", which), ("HINDRANCE_SUPERVISOR", ours)]);
        // What the test says on its standard output before it is a custodian is nobody's.
        let this = env::current_exe().unwrap();
        let quietly = ["-c", "exec \"$0\" --exact sandbox::hindered_custodian --ignored >/dev/null"];
        token.spawn_as("sh", &[&quietly[..], &[this.to_str().unwrap()]].concat())
    }

    fn install(self) {
        let refuse = |call, rules: Vec<SeccompRule>, errno: i32| {
            let calls = [(call, rules)].into_iter().collect();
            let refused = SeccompAction::Errno(errno.cast_unsigned());
            let architecture = env::consts::ARCH.try_into().unwrap();
            SeccompFilter::new(calls, SeccompAction::Allow, refused, architecture)
                .unwrap()
                .try_into()
                .unwrap()
        };
        let install = |program: &BpfProgram| seccompiler::apply_filter(program);
        match self {
            Self::Forbidden => install(&refuse(libc::SYS_seccomp, Vec::new(), libc::EPERM)).unwrap(),
            Self::ForAllThreads => {
                let (operator, flag) = (SeccompCmpOp::Eq, libc::SECCOMP_FILTER_FLAG_TSYNC);
                let condition = SeccompCondition::new(1, SeccompCmpArgLen::Dword, operator, flag).unwrap();
                let rule = SeccompRule::new(vec![condition]).unwrap();
                install(&refuse(libc::SYS_seccomp, vec![rule], libc::EPERM)).unwrap();
            }
            Self::NoRoom => {
                let allowed =
                    sock_filter { code: libc::BPF_RET as u16, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW };
                for length in [2_048, 512, 128, 64] {
                    while install(&vec![allowed.clone(); length]).is_ok() {}
                }
            }
            Self::LockForbidden | Self::NoMemory => {
                let errno = if matches!(self, Self::NoMemory) { libc::ENOMEM } else { libc::EPERM };
                if setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_err() {
                    std::process::exit(PASSED_OVER);
                }
                install(&refuse(libc::SYS_mlockall, Vec::new(), errno)).unwrap();
                // Not by a macro, whose words the test would keep.
                let gaps = Enforced::tried().missing().join("; ");
                io::Write::write_all(&mut io::stderr(), format!("{gaps}\n").as_bytes()).unwrap();
            }
        }
    }
}

#[test]
#[ignore = "run by the other tests, with a hindrance in its environment"]
fn hindered_custodian() {
    let which: usize = env::var("HINDRANCE").unwrap().parse().unwrap();
    Hindrance::ALL[which].install();
    let custodian = ["custodian", "--supervisor", &env::var("HINDRANCE_SUPERVISOR").unwrap()];
    panic!("{}", Command::new(crate::token::BINARY).args(custodian).exec());
}

/// A custodian that went on without would be one of which nobody was told.
#[test]
fn what_the_kernel_refuses_is_done_without_only_where_it_is_not_to_be_had() {
    if !is_complete() {
        return;
    }
    for hindrance in Hindrance::ALL {
        let mut token = TestToken::new();
        let mut custodian = hindrance.custodian(&mut token);
        custodian.send(&token.boot);
        let greeted = custodian.hello().is_some();
        if greeted {
            assert!(matches!(custodian.call(Request::Health), Ok(Response::Healthy)));
        }
        let (status, words) = custodian.end();
        let (goes_on, said) = match hindrance {
            _ if status.code() == Some(PASSED_OVER) => {
                println!("passed over: {hindrance:?}, because no limit can be raised here");
                continue;
            }
            Hindrance::Forbidden => (true, ""),
            Hindrance::ForAllThreads | Hindrance::NoRoom => (false, "its system calls are not filtered"),
            Hindrance::LockForbidden => (true, "memory may be swapped out: mlockall: "),
            Hindrance::NoMemory => (false, "its memory is not locked"),
        };
        assert_eq!(greeted, goes_on, "{hindrance:?}: {words}");
        assert!(words.contains(said), "{hindrance:?}: {words}");
        assert_eq!(status.code(), Some(if goes_on { 0 } else { EXIT_START_FAILED.into() }), "{hindrance:?}");
        let own = words.lines().filter(|line| line.starts_with("hsm-authd: "));
        assert_eq!(own.count(), usize::from(!goes_on), "{hindrance:?}: {words}");
    }
}
