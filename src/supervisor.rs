//! The parent: starts front and custodians, replaces custodians that die, passes signals on.
//!
//! It reads no network, holds no secret and has one thread: `PR_SET_PDEATHSIG` follows the thread
//! that spawned, so a second one would end the children with it. The front's death ends the
//! service, for systemd to start anew; a custodian's death is repaired here, and one that is worn is replaced
//! before it dies (`supervisor/recycling.rs`). A token whose PIN is refused is given up alone (`supervisor/pin.rs`).

mod custodians;
mod pin;
mod recycling;
pub mod refused_pin;
mod slot;
mod token;

use std::fs::{File, TryLockError};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::Ending;
use crate::config::{Config, HsmConfig};
use crate::control::{self, Start, ToFront, ToSupervisor};
use crate::custodian::{EXIT_PIN_REFUSED, EXIT_START_FAILED};
use crate::files::{self, Files};
use crate::hsm::messages::{self, Boot};
use crate::operator;
use crate::sandbox::{self, Enforced};
use crate::systemd::{self, Inherited, Notify};
use slot::{Running, Slot};
use token::Token;

/// How many connections wait in the kernel to be accepted, as long as it allows so many (`somaxconn`); as `Backlog=` in
/// systemd/hsm-authd.socket.
const BACKLOG: i32 = 4_096;
/// A start is given up by the front, which hears how far it comes, long before (`hsm/start.rs`). This is for one whose
/// front does not listen; thousands of secrets in a slow HSM are read in less.
const CUSTODIAN_START_MAX: Duration = Duration::from_secs(300);
/// The pause before a custodian that died is replaced, and what it doubles up to. An HSM that comes back is to be used
/// within 5 s: those are the 2.5 s after which a start that hangs is given up, this pause, and a start.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long custodians may take to be gone once the front has ended.
const PARTING_MAX: Duration = Duration::from_secs(1);
/// How long those that are killed then may take.
const BURIAL_MAX: Duration = Duration::from_secs(2);
/// Draining is over after this time (the front itself stops waiting after 10 s, writes its last entry, and closes).
const DRAIN_MAX: Duration = Duration::from_secs(15);

/// What the supervisor is given.
pub struct Plan {
    /// The configuration, already checked.
    pub config: Config,
    /// How the front begins.
    pub start: Start,
    /// The API's listener.
    pub api: TcpListener,
    /// The operator's listener.
    pub ops: TcpListener,
    /// Held by every process that may still write state.
    pub lock: OwnedFd,
}

/// What the front needs besides its connections: database, custodians, runtime, operator's listener.
const DESCRIPTORS_BESIDES: u64 = 128;
/// How long a start waits for an instance that is ending.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(10);

/// Why the service ended.
pub struct Failure {
    /// One line for the operator; `None`: the process that failed has said it already.
    pub reason: Option<String>,
    /// Nothing changes before somebody does something about it: the configuration is wrong, or the PIN. Each start that
    /// tries a wrong PIN again brings its token nearer to being locked.
    pub needs_operator: bool,
}

impl From<Option<String>> for Failure {
    fn from(reason: Option<String>) -> Self {
        Self { reason, needs_operator: false }
    }
}

/// The main of `hsm-authd serve`.
///
/// # Errors
/// See [`Failure`].
pub fn serve(path: &Path, accept_clock: bool) -> Result<(), Failure> {
    let misconfigured = |reason: String| Failure { reason: Some(reason), needs_operator: true };
    let config = Config::load(path).map_err(|e| misconfigured(e.to_string()))?;
    for path in config.exposed_files() {
        tracing::warn!(path = %path.display(), "everybody may read it; try chmod o= on it");
    }
    operator::no_root_in_its_place(&config, path).map_err(misconfigured)?;
    let lock = lock(&config.store.path).map_err(Some)?;
    let Inherited { api, ops } = Inherited::take().map_err(misconfigured)?;
    let api = api.map_or_else(|| bind(config.server.listen), Ok).map_err(Some)?;
    let ops = ops.map_or_else(|| bind(config.ops.listen), Ok).map_err(Some)?;
    let start = Start {
        config: std::path::absolute(path).map_err(|e| Some(e.to_string()))?,
        accept_clock,
        clock_file: None,
    };
    run(Plan { config, start, api, ops, lock }, || {
        tracing::info!("ready");
        Ok(())
    })
}

/// A listener, or what stands in its way.
///
/// # Errors
/// One line for the operator.
pub fn bind(address: SocketAddr) -> Result<TcpListener, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{address} cannot be listened on: {error}");
    let listener = TcpListener::bind(address).map_err(|error| failed(&error))?;
    // Rust's own has room for 128 who wait to be accepted.
    rustix::net::listen(&listener, BACKLOG).map_err(|error| failed(&error))?;
    Ok(listener)
}

/// Takes the lock beside a database, waiting up to 10 s for an instance that is ending. It is held by
/// every process that shares the descriptor, so it outlives a supervisor that was killed for as long
/// as its front might still write.
///
/// # Errors
/// One line for the operator.
pub fn lock(store: &Path) -> Result<OwnedFd, String> {
    hold(&store.with_added_extension("instance"), "another instance is running on this database")
}

/// Takes the lock of what changes the system keys, beside a running service too: none of it sees another's key half
/// made. It is a file beside the database, whether there is one or not.
///
/// # Errors
/// One line for the operator.
pub fn lock_keys(store: &Path) -> Result<OwnedFd, String> {
    hold(&store.with_added_extension("keys"), "another command changes the system keys just now")
}

fn hold(path: &Path, busy: &str) -> Result<OwnedFd, String> {
    let fail = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let file = File::options().create(true).append(true).mode(0o600).open(path).map_err(|e| fail(&e))?;
    let deadline = Instant::now() + LOCK_WAIT_MAX;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file.into()),
            Err(TryLockError::Error(error)) => return Err(fail(&error)),
            Err(TryLockError::WouldBlock) if Instant::now() >= deadline => {
                return Err(fail(&busy));
            }
            // The kernel has no lock that can be waited for with a deadline.
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// Runs the service until a signal or a failure ends it. `on_ready` is called once, when the front
/// answers requests.
///
/// # Errors
/// See [`Failure`].
pub fn run(plan: Plan, on_ready: impl FnOnce() -> Result<(), String>) -> Result<(), Failure> {
    raise_descriptor_limit(&plan.config).map_err(Some)?;
    sandbox::no_cores().map_err(|e| Some(e.to_string()))?;
    // It has no secret, but may open each, and nothing confines it.
    sandbox::no_tracing().map_err(|e| Some(e.to_string()))?;
    // Once for all the processes that are started here: they run on the same kernel, with the same limits.
    for missing in Enforced::tried().missing() {
        tracing::warn!(missing, "the sandbox has a gap");
    }
    let tokens = tokens(&plan.config);
    let barred: Vec<_> = tokens.iter().filter_map(Token::barred).collect();
    // Nothing is started that could ask for a PIN: not one attempt more.
    if barred.len() == tokens.len() {
        return Err(Failure { reason: Some(barred.join("; ")), needs_operator: true });
    }
    barred.iter().for_each(|reason| tracing::error!("{reason}"));
    let mut supervisor = Supervisor::start(plan, tokens)?;
    let ending = supervisor.watch(on_ready);
    supervisor.end_children();
    ending.map_err(|reason| Failure { reason, needs_operator: supervisor.needs_operator })
}

fn tokens(config: &Config) -> Vec<Token> {
    let (hsm, now) = (&config.hsm, Instant::now());
    hsm.token_names().into_iter().zip(hsm.tokens()).map(|token| Token::new(token, now)).collect()
}

/// A connection needs a descriptor, and the limit that a shell sets is lower than the one that is allowed.
fn raise_descriptor_limit(config: &Config) -> Result<(), String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).map_err(|e| e.to_string())?;
    let needed = (config.server.limits.connections_max as u64).saturating_add(DESCRIPTORS_BESIDES);
    if hard < needed {
        return Err(format!(
            "server.limits.connections_max needs {needed} descriptors, and {hard} are allowed (ulimit -Hn)"
        ));
    }
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map_err(|e| e.to_string())?;
    }
    Ok(())
}

struct Supervisor {
    config_path: PathBuf,
    tokens: Vec<Token>,
    signals: SignalFd,
    front: Child,
    channel: OwnedFd,
    /// The first token's, then the next one's.
    slots: Vec<Slot>,
    /// Of which token they are, and processes that were killed and do not end.
    undead: Vec<(usize, Running)>,
    notify: Notify,
    /// Whether the database needs what the tokens have; `None`: the front has not opened it yet.
    in_use: Option<bool>,
    draining_since: Option<Instant>,
    /// What it ends with is for somebody to mend.
    needs_operator: bool,
    /// The front has closed its end of the channel: it is ending, or should be.
    unheard_since: Option<Instant>,
}

impl Supervisor {
    fn start(plan: Plan, tokens: Vec<Token>) -> Result<Self, Option<String>> {
        let signals = block_signals().map_err(|e| Some(format!("signals cannot be handled: {e}")))?;
        let (channel, theirs) = control::channel().map_err(|e| Some(format!("no control channel: {e}")))?;
        let front = spawn("front", theirs, |command| {
            // Of what it sorts, SQLite keeps files in a folder for temporary ones; the front has one folder.
            command.env("SQLITE_TMPDIR", plan.config.store.folder());
        })
        .map_err(Some)?;
        let config_path = plan.start.config.clone();
        let (opened, files) = open_files(&config_path, Some(&plan.config));
        let mut descriptors = vec![plan.api.as_fd(), plan.ops.as_fd(), plan.lock.as_fd()];
        descriptors.extend(files.iter().map(AsFd::as_fd));
        control::send(&channel, &ToFront::Start(plan.start, opened), &descriptors)
            .map_err(|e| Some(format!("the front does not listen: {e}")))?;
        let now = Instant::now();
        let places =
            |(token, of): (usize, &Token)| (0..of.hsm.custodians).map(move |_| Slot::new(token, now));
        let slots = tokens.iter().enumerate().flat_map(places).collect();
        Ok(Self {
            config_path,
            tokens,
            signals,
            front,
            channel,
            slots,
            undead: Vec::new(),
            notify: Notify::from_env(),
            in_use: None,
            draining_since: None,
            needs_operator: false,
            unheard_since: None,
        })
    }

    fn watch(&mut self, on_ready: impl FnOnce() -> Result<(), String>) -> Ending {
        let mut on_ready = Some(on_ready);
        loop {
            self.start_custodians()?;
            self.wait();
            while let Ok(Some(signal)) = self.signals.read_signal() {
                match Signal::try_from(signal.ssi_signo as i32) {
                    Ok(Signal::SIGHUP) => {
                        // Not ready yet, or ending: that is what systemd is to know.
                        if self.serves(&on_ready) {
                            self.notify.reloading();
                        }
                        self.reload()?;
                        self.recycle_all();
                    }
                    Ok(Signal::SIGTERM | Signal::SIGINT) => self.drain()?,
                    _ => {} // SIGCHLD: the children are looked at below
                }
            }
            while let Some(message) = self.heard()? {
                match message {
                    // Nobody asks the database here: what stands in it is checked by the front, which is shut in.
                    ToSupervisor::Opened { in_use } => self.in_use = Some(in_use),
                    ToSupervisor::Ready => {
                        // By then it has sealed the head of its log.
                        self.in_use = Some(true);
                        if let Some(on_ready) = on_ready.take() {
                            if self.draining_since.is_none() {
                                self.notify.ready();
                            }
                            on_ready().map_err(Some)?;
                        }
                    }
                    ToSupervisor::Reloaded => {
                        if self.serves(&on_ready) {
                            self.notify.ready();
                        }
                    }
                    ToSupervisor::Alive(status) => self.notify.alive(&status),
                    ToSupervisor::Custodian(event) => self.told(event),
                }
            }
            if let Ok(Some(status)) = self.front.try_wait() {
                return self.front_ended(status);
            }
            self.look_at_custodians()?;
            if self.draining_since.is_some_and(|since| since.elapsed() > DRAIN_MAX) {
                return Err(Some("draining took too long; the rest was cut off".into()));
            }
            if self.unheard_since.is_some_and(|since| since.elapsed() > DRAIN_MAX) {
                return Err(Some("the front neither listens nor ends; killed it".into()));
            }
        }
    }

    /// Between the first answer and the order to end; `on_ready`: what is to be done at that answer.
    fn serves<T>(&self, on_ready: &Option<T>) -> bool {
        on_ready.is_none() && self.draining_since.is_none()
    }

    /// Waits for a signal, a message, or the next thing that is due.
    fn wait(&self) {
        let now = Instant::now();
        let starts = (0..self.tokens.len()).filter_map(|token| Some(self.next_start(token, now)?.0));
        let due = starts.chain(self.slots.iter().flat_map(Slot::due));
        let endings = [self.draining_since, self.unheard_since].into_iter().flatten();
        let due = due.chain(endings.map(|since| since + DRAIN_MAX)).min();
        let timeout = due.map_or(PollTimeout::NONE, |due| {
            let ms = due.saturating_duration_since(now).as_millis().saturating_add(1);
            PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
        });
        let mut watched = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        // A closed channel is always ready, and would keep this loop spinning.
        if self.unheard_since.is_none() {
            watched.push(PollFd::new(self.channel.as_fd(), PollFlags::POLLIN));
        }
        // Interrupted or not: the caller looks at everything anyway.
        let _ = poll(&mut watched, timeout);
    }

    /// Has the front read everything again that it is configured by, as it is there now. What is wrong with it, the front says.
    fn reload(&self) -> Ending {
        let config = Config::load_from(&self.config_path, &Files::Disk).ok();
        let (opened, files) = open_files(&self.config_path, config.as_ref());
        self.hand(&ToFront::Reload(opened), &files)
    }

    fn hand(&self, message: &ToFront, files: &[File]) -> Ending {
        let descriptors: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        control::send(&self.channel, message, &descriptors).or_else(|error| match error.kind() {
            std::io::ErrorKind::BrokenPipe => Ok(()), // it is ending; its exit status says how
            _ => Err(Some(format!("the front does not listen: {error}"))),
        })
    }

    fn heard(&mut self) -> Result<Option<ToSupervisor>, Option<String>> {
        if self.unheard_since.is_some() {
            return Ok(None);
        }
        match control::receive(&self.channel) {
            Ok(Some((message, _))) => Ok(Some(message)),
            Ok(None) => {
                self.unheard_since = Some(Instant::now());
                Ok(None)
            }
            Err(error) => match error.kind() {
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted => Ok(None),
                std::io::ErrorKind::ConnectionReset => {
                    self.unheard_since = Some(Instant::now());
                    Ok(None)
                }
                _ => Err(Some(format!("the front talks nonsense: {error}"))),
            },
        }
    }

    /// The first signal drains, the second cuts off.
    fn drain(&mut self) -> Ending {
        if self.draining_since.is_some() {
            return Err(Some("ended before everything was answered".into()));
        }
        self.draining_since = Some(Instant::now());
        self.notify.stopping();
        self.hand(&ToFront::Drain, &[])
    }

    fn front_ended(&self, status: ExitStatus) -> Ending {
        match (status.success(), self.draining_since.is_some()) {
            (true, true) => Ok(()),
            // The front has said why on its way out.
            (false, _) if status.code().is_some() => Err(None),
            _ => Err(Some(format!("the front ended unexpectedly: {status}"))),
        }
    }

    fn end_children(&mut self) {
        let _ = self.front.kill();
        let _ = self.front.wait();
        let mut left: Vec<_> = self.slots.iter_mut().flat_map(Slot::processes).collect();
        // They end by themselves once the front has. One that is killed while it logs in leaves an empty token behind, where
        // that is SoftHSM's; and a start that fails is tried again and again.
        if await_ends(&mut left, PARTING_MAX) {
            return;
        }
        let now = Instant::now();
        for running in &mut left {
            running.kill(now);
        }
        await_ends(&mut left, BURIAL_MAX);
    }
}

/// Whether all of them have ended within this time.
fn await_ends(left: &mut Vec<&mut Running>, within: Duration) -> bool {
    let begun = Instant::now();
    loop {
        left.retain_mut(|running| running.has_ended().is_none());
        if left.is_empty() || begun.elapsed() >= within {
            return left.is_empty();
        }
        // There is nothing to wait for a process with for a while only.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Why a process that had loaded the module ended without a word; `None`: it has said why.
pub fn killed(hsm: &HsmConfig, status: ExitStatus) -> Option<String> {
    let module = hsm.module.display();
    let has_said = [EXIT_PIN_REFUSED, EXIT_START_FAILED].map(|code| Some(i32::from(code)));
    (!has_said.contains(&status.code())).then(|| {
        format!(
            "the PKCS#11 module {module} ended the process that had loaded it ({status}): it is broken, is not for this \
             system, or is no such module; try `pkcs11-tool --module {module} --list-slots`, and another release of it"
        )
    })
}

/// A custodian that knows what it needs to know, and the front's end of its socket. It says on standard error why it does
/// not start if it ends with one of `finals`; of none at all, always.
///
/// # Errors
/// One line for the operator.
pub fn start_custodian(hsm: &HsmConfig, boot: &Boot, finals: &[u8]) -> Result<(Child, UnixStream), String> {
    let (ours, theirs) = UnixStream::pair().map_err(|e| format!("no socketpair: {e}"))?;
    let frame = messages::encode(boot).map_err(|e| e.to_string())?;
    let child = spawn("custodian", theirs.into(), |command| {
        command.envs(&hsm.environment);
        for code in finals {
            command.arg("--final").arg(code.to_string());
        }
    })?;
    let pin = hsm.opened.get(&hsm.pin_file).filter(|_| boot.pin_handed);
    let handed: Vec<_> = pin.map(|file| file.as_fd()).into_iter().collect();
    // If it is dead already, the next look at the children says so.
    let _ = control::begin(&ours, &frame, &handed);
    Ok((child, ours))
}

/// What the front is configured by, opened for it.
fn open_files(path: &Path, config: Option<&Config>) -> (Vec<files::Opened>, Vec<File>) {
    files::open(std::iter::once(path).chain(config.into_iter().flat_map(Config::files_of_front)))
}

fn block_signals() -> nix::Result<SignalFd> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        set.add(signal);
    }
    // Children inherit the mask: no signal to the whole group finds them unprepared.
    set.thread_block()?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Starts this same binary in another role, with `stdin` as its channel, and nothing of what systemd told this process.
///
/// # Errors
/// One line for the operator.
pub fn spawn(role: &str, stdin: OwnedFd, prepare: impl FnOnce(&mut Command)) -> Result<Child, String> {
    let mut command = Command::new("/proc/self/exe");
    command.args([role, "--supervisor", &std::process::id().to_string()]).stdin(stdin);
    systemd::hide(&mut command);
    prepare(&mut command);
    command.spawn().map_err(|e| format!("the {role} process cannot be started: {e}"))
}
