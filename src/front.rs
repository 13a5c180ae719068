//! The front: everything between the network and the custodians, wired together.

use std::convert::Infallible;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use crate::api::{self, Api};
use crate::clock::{Clock, FileClock, STEP_MS_MAX, SystemClock, WatchedClock};
use crate::config::Config;
use crate::control::{self, Start, ToFront, ToSupervisor};
use crate::control_socket;
use crate::domain::audit::{AuditEntry, Event};
use crate::domain::certificate::Trust;
use crate::files::{Files, Opened};
use crate::hsm::{CustodianEvent, Hsm};
use crate::metrics::ConnectionMetrics;
use crate::ops::Ops;
use crate::server::{ACCEPT_PAUSE, Identities, Server};
use crate::service::{Policies, Service};
use crate::store::{Commit, Store};
use crate::{sandbox, trust};

/// How often rows past their time are looked for, by the wall clock, in milliseconds.
const PRUNE_EVERY_MS: u64 = 60_000;
/// How long to wait for custodians that do not tell their keys.
const KEYS_PAUSE: Duration = Duration::from_millis(100);
/// How often the wall clock is held against the time since boot.
const CLOCK_WATCH_EVERY: Duration = Duration::from_secs(1);
/// How often the supervisor hears that this process works.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// Draining: how long requests may take that outlived their connection.
const IDLE_MAX: Duration = Duration::from_secs(1);
/// How long callers are answered once the store has failed.
const LAST_ANSWERS_MAX: Duration = Duration::from_secs(2);

/// How long what is left may take to close.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// The main of the hidden subcommand `front`. Its standard input is the control channel.
///
/// # Errors
/// One line for the operator.
pub fn run(supervisor_pid: i32) -> Result<(), String> {
    control::bind_to_supervisor(supervisor_pid, c"hsm-authd-front").map_err(|e| e.to_string())?;
    let channel = std::io::stdin().as_fd().try_clone_to_owned().map_err(|e| e.to_string())?;
    let handed = match control::wait(&channel).map_err(|e| e.to_string())? {
        Some((ToFront::Start(start, files), descriptors)) => Handed::new(start, files, descriptors)?,
        _ => return Err("the front is started by the supervisor, not by hand".to_owned()),
    };
    // Before there is a secret in it.
    sandbox::lock_memory().map_err(|error| format!("the memory cannot be locked: {error}"))?;
    // Before there is another thread: it would keep what is taken from this one.
    sandbox::enclose_front(&handed.config.store.path, handed.start.clock_file.as_deref())?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|e| e.to_string())?;
    let result = runtime.block_on(async { serve(Channel::open(channel)?, handed).await });
    // The tasks' shares of the store go with them; the last one empties the WAL.
    runtime.shutdown_timeout(CLOSE_MAX);
    result
}

/// What the front begins with, handed over by the supervisor.
struct Handed {
    start: Start,
    config: Config,
    files: Files,
    api_socket: OwnedFd,
    ops_socket: OwnedFd,
    lock: OwnedFd,
}

impl Handed {
    fn new(start: Start, opened: Vec<Opened>, descriptors: Vec<OwnedFd>) -> Result<Self, String> {
        let mut descriptors = descriptors.into_iter();
        let (Some(api_socket), Some(ops_socket), Some(lock)) =
            (descriptors.next(), descriptors.next(), descriptors.next())
        else {
            return Err("the supervisor handed no listeners over".to_owned());
        };
        let files = Files::handed(opened, descriptors);
        let config = Config::load_from(&start.config, &files).map_err(|e| e.to_string())?;
        Ok(Self { start, config, files, api_socket, ops_socket, lock })
    }
}

/// The control channel, for the runtime: a thread waits at it.
struct Channel {
    socket: Arc<OwnedFd>,
    received: mpsc::UnboundedReceiver<Result<(ToFront, Vec<OwnedFd>), String>>,
}

impl Channel {
    fn open(socket: OwnedFd) -> Result<Self, String> {
        let socket = Arc::new(socket);
        let (sender, received) = mpsc::unbounded_channel();
        let waiting = socket.clone();
        // It ends with the channel, or with the process.
        std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || {
                while let Some(message) = control::wait(&*waiting).transpose() {
                    let broken = message.is_err();
                    if sender.send(message.map_err(|e| e.to_string())).is_err() || broken {
                        return;
                    }
                }
            })
            .map_err(|e| e.to_string())?;
        Ok(Self { socket, received })
    }

    /// `None`: the supervisor is gone.
    async fn receive(&mut self) -> Result<Option<(ToFront, Vec<OwnedFd>)>, String> {
        self.received.recv().await.transpose()
    }

    fn voice(&self) -> Voice {
        Voice(self.socket.clone())
    }
}

/// What the supervisor hears.
struct Voice(Arc<OwnedFd>);

impl Voice {
    fn send(&self, message: &ToSupervisor) {
        // A supervisor that does not listen is gone, and this process with it.
        if let Err(error) = control::send(&*self.0, message, &[]) {
            tracing::error!(%error, "the supervisor does not listen");
        }
    }
}

async fn serve(channel: Channel, handed: Handed) -> Result<(), String> {
    let Handed { start, config, files, api_socket, ops_socket, lock } = handed;
    // Held to the last moment in which this process could write.
    let _lock = lock;
    let (events, custodian_events) = mpsc::unbounded_channel();
    let keeping = (config.hsm.custody, config.hsm.resident_capacity);
    let custodians: Vec<_> = config.hsm.tokens().iter().map(|token| token.custodians).collect();
    let hsm = Hsm::new(&custodians, keeping, events);
    hsm.name_tokens(config.hsm.token_names());
    let identities = Identities::load(&config, &files, &hsm).map_err(|e| e.to_string())?;
    let trust = trust::load(&config.signers, &files).map_err(|e| e.to_string())?;
    drop(files);
    let store = Store::open(&config.store.path).map_err(|e| e.to_string())?;
    let has_entries = store.left().0.size > 0;
    let voice = channel.voice();
    voice.send(&ToSupervisor::Opened { in_use: has_entries });
    let (clock, accepted) = open_clock(&start, &store).await?;
    let clock = Arc::new(clock);
    // What has entries has a token, with keys.
    hsm.is_served(has_entries);
    let policies = Policies {
        credentials: config.credentials,
        transactions: config.transactions,
        attestations: config.attestations,
        audit: config.audit,
    };
    let service = Arc::new(Service::new(store.clone(), hsm.clone(), clock.clone(), policies, trust));
    let api = Api::new(service.clone(), &config.server.limits, custodians.iter().sum());
    let server = Arc::new(Server {
        identities: watch::Sender::new(Arc::new(identities)),
        router: api::router(&api),
        limits: config.server.limits,
        metrics: ConnectionMetrics::default(),
    });

    let (drain, draining) = watch::channel(false);
    let (checked, is_checked) = watch::channel(false);
    let mut control = tokio::spawn(listen(
        channel,
        custodian_events,
        hsm.clone(),
        server.clone(),
        service.clone(),
        start.config,
        (drain.clone(), is_checked.clone()),
    ));
    let ops = Ops::new(
        hsm.clone(),
        store.clone(),
        clock.clone(),
        api.clone(),
        server.clone(),
        service.clone(),
        (is_checked, draining.clone()),
    );
    tokio::spawn(beat(voice, store.clone(), ops.clone()));
    tokio::spawn(async move {
        if let Err(error) = ops.serve(TcpListener::from(ops_socket)).await {
            tracing::error!(%error, "the operator's listener ended");
        }
    });

    let mut drained = draining.clone();
    let api_listener = listener(api_socket).map_err(|e| e.to_string())?;
    // Custodians are adopted meanwhile, and signals are heard.
    tokio::select! {
        begun = begin(&service, accepted) => begun?,
        never = turn_away(&api_listener, hsm.breaker()) => match never {},
        // Nothing was answered, and nothing has to be written down.
        _ = drained.wait_for(|drain| *drain) => return Ok(()),
        () = store.failed() => return Err(STORE_FAILED.to_owned()),
        ended = &mut control => return Err(control_ended(ended)),
    }
    let identities = server.identities.borrow().clone();
    // No reason to end: systemd's next start would find the same, and write an end and a start into the log each time.
    for (_, reason) in identities.misfits(&hsm).await {
        tracing::error!(reason, "a certificate is not served");
    }
    let mut upkeep = JoinSet::new();
    // Before anybody is told that it is ready: an operator may come at once.
    match control_socket::bind(&config.store.path) {
        Ok(operators) => drop(upkeep.spawn(control_socket::serve(operators, service.clone()))),
        // Such as for a path that is too long for a socket. Nobody's request needs it.
        Err(error) => {
            let path = control_socket::path(&config.store.path);
            tracing::error!(path = %path.display(), %error, "`hsm-authd keys` cannot reach this service");
        }
    }
    sandbox::seal_front()?;
    checked.send_replace(true);
    upkeep.spawn(watch_clock(clock.clone(), store.clone(), accepted));
    upkeep.spawn(prune(service.clone(), clock));
    let (log, rows) = (service.clone(), service.clone());
    upkeep.spawn(async move { log.keep_log().await });
    upkeep.spawn(async move { rows.watch_rows().await });
    upkeep.spawn(learn_keys(service.clone()));
    upkeep.spawn(async move { hsm.destroy_left().await });

    let mut drained = draining.clone();
    let serving = async {
        tracing::info!("serving");
        server
            .serve(api_listener.into_std()?, async move { drop(drained.wait_for(|drain| *drain).await) })
            .await?;
        if tokio::time::timeout(IDLE_MAX, api.idle()).await.is_err() {
            tracing::warn!("requests were cut off");
        }
        Ok::<(), std::io::Error>(())
    };
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => {
            served.map_err(|e| e.to_string())?;
            // Who still commits would do so behind the last entry.
            upkeep.shutdown().await;
            service.end().await;
            Ok(())
        }
        () = store.failed() => {
            // From here on the store refuses every commit: whoever waits is told 503, not cut off.
            let _ = drain.send(true);
            let _ = tokio::time::timeout(LAST_ANSWERS_MAX, serving).await;
            Err(STORE_FAILED.to_owned())
        }
        // As a start would have ended that had seen this token. Nobody is answered from another history.
        reason = service.doubted() => Err(reason),
        ended = &mut control => Err(control_ended(ended)),
    }
}

const STORE_FAILED: &str =
    "the store does not know whether it wrote the last commit; a start reads what is durable";

fn control_ended(ended: Result<Result<(), String>, JoinError>) -> String {
    match ended {
        Ok(Ok(())) => "the supervisor is gone".to_owned(),
        Ok(Err(reason)) => reason,
        Err(error) => error.to_string(),
    }
}

fn listener(socket: OwnedFd) -> std::io::Result<tokio::net::TcpListener> {
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

/// Before the first request can be decided: who comes waits in the kernel, for a check takes a moment; but not for an HSM
/// that is away, which takes as long as it takes. Their connections are closed, as if no service were there: a load
/// balancer asks another one at once, and a client comes again. For ever.
async fn turn_away(listener: &tokio::net::TcpListener, mut breaker: watch::Receiver<bool>) -> Infallible {
    while breaker.wait_for(|is_open| *is_open).await.is_ok() {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(connection) => drop(connection),
                Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
            },
            _ = breaker.wait_for(|is_open| !*is_open) => {}
        }
    }
    std::future::pending().await
}

/// Finds out whether the database may be used, and writes down that it is.
async fn begin(service: &Service, clock_accepted: bool) -> Result<(), String> {
    service.begin(clock_accepted).await?;
    service.sweep().await?;
    if clock_accepted {
        tracing::warn!("the operator accepted the wall clock");
    }
    Ok(())
}

/// Listens to the supervisor, and tells it what becomes of its custodians.
async fn listen(
    mut channel: Channel,
    mut events: mpsc::UnboundedReceiver<CustodianEvent>,
    hsm: Hsm,
    server: Arc<Server>,
    service: Arc<Service>,
    config: PathBuf,
    (drain, mut is_checked): (watch::Sender<bool>, watch::Receiver<bool>),
) -> Result<(), String> {
    let (mut ready, voice) = (false, channel.voice());
    let (reload, reloads) = mpsc::unbounded_channel();
    tokio::spawn(reload_each(reloads, (server, service, hsm.clone()), config, channel.voice()));
    loop {
        tokio::select! {
            received = channel.receive() => match received? {
                None => return Ok(()),
                Some((ToFront::Custodian { slot, generation }, descriptors)) => {
                    let Some(socket) = descriptors.into_iter().next() else {
                        // This process had no room for one more descriptor.
                        tracing::warn!(slot, generation, "a custodian's socket did not arrive");
                        hsm.not_started(slot, generation, "its socket did not arrive: this process has too few descriptors");
                        continue;
                    };
                    let socket = StdUnixStream::from(socket);
                    socket.set_nonblocking(true).map_err(|e| e.to_string())?;
                    let socket = UnixStream::from_std(socket).map_err(|e| e.to_string())?;
                    tokio::spawn(hsm.clone().adopt(slot, generation, socket));
                }
                Some((ToFront::NotStarted { slot, generation, reason }, _)) => {
                    hsm.not_started(slot, generation, &reason);
                }
                Some((ToFront::Reload(opened), descriptors)) => {
                    // Custodians are adopted meanwhile, which it may wait for.
                    let _ = reload.send(Files::handed(opened, descriptors));
                }
                Some((ToFront::Drain, _)) => {
                    tracing::info!("draining");
                    let _ = drain.send(true);
                }
                Some((ToFront::Start(..), _)) => return Err("the supervisor started the front twice".to_owned()),
            },
            // It takes custodians to check the database: one has come up by then.
            Ok(_) = is_checked.wait_for(|is_checked| *is_checked), if !ready => {
                ready = true;
                voice.send(&ToSupervisor::Ready);
            }
            Some(event) = events.recv() => voice.send(&ToSupervisor::Custodian(event)),
        }
    }
}

/// One after the other, in the order in which they were asked for.
async fn reload_each(
    mut asked: mpsc::UnboundedReceiver<Files>,
    (server, service, hsm): (Arc<Server>, Arc<Service>, Hsm),
    config: PathBuf,
    voice: Voice,
) {
    while let Some(files) = asked.recv().await {
        reload((&server, &service, &hsm), config.clone(), files).await;
        voice.send(&ToSupervisor::Reloaded);
    }
}

/// New connections begin with the new files, and signers' certificates are held against them; a configuration
/// that is wrong changes nothing.
async fn reload((server, service, hsm): (&Server, &Service, &Hsm), path: PathBuf, files: Files) {
    match load_anew(server, hsm, path, files).await {
        Ok((identities, trust)) => {
            server.identities.send_replace(identities);
            service.reload(trust);
            tracing::info!("certificates, revocation lists and clients reloaded");
        }
        Err(reason) => {
            tracing::error!(reason, "not reloaded; the old certificates, revocation lists and clients stay");
        }
    }
}

/// What a reload puts in the place of what is there. A certificate whose key is in no token is refused if it is new. With one that
/// was there before, such as of a token that was replaced, the rest still counts: above all revocations.
async fn load_anew(
    server: &Server,
    hsm: &Hsm,
    path: PathBuf,
    files: Files,
) -> Result<(Arc<Identities>, Trust), String> {
    let signing = hsm.clone();
    let load = move || {
        let config = Config::load_from(&path, &files).map_err(|e| e.to_string())?;
        let identities = Identities::load(&config, &files, &signing).map_err(|e| e.to_string())?;
        let trust = trust::load(&config.signers, &files).map_err(|e| e.to_string())?;
        Ok::<_, String>((Arc::new(identities), trust))
    };
    // Of a list of an authority's whole life nobody's request waits for the end.
    let loaded = tokio::task::spawn_blocking(load).await.unwrap_or_else(|error| Err(error.to_string()));
    let (identities, trust) = loaded?;
    let before = server.identities.borrow().clone();
    for (of, reason) in identities.misfits(hsm).await {
        if before.listener.in_hsm.iter().all(|before| before.key != of.key) {
            return Err(reason);
        }
        tracing::error!(reason, "a certificate is not served");
    }
    Ok((identities, trust))
}

/// The clock, and whether what the log remembers allows to believe it; and whether it is believed because an operator
/// accepted it.
async fn open_clock(start: &Start, store: &Store) -> Result<(WatchedClock, bool), String> {
    let clock: Box<dyn Clock> = match &start.clock_file {
        Some(path) => Box::new(FileClock(path.clone())),
        None => Box::new(SystemClock),
    };
    let (left, _) = store.left();
    let stepped = left.aftermath.clock_stepped;
    let clock = WatchedClock::new(clock, stepped && !start.accept_clock)?;
    let now = clock.now();
    let before_the_log = now.unix_ms.saturating_add(STEP_MS_MAX) < left.aftermath.last_unix_ms;
    if before_the_log && !start.accept_clock {
        clock.distrust();
    }
    Ok((clock, start.accept_clock && (stepped || before_the_log)))
}

/// Writes a step of the wall clock to the log, so that a restart does not forget it.
async fn watch_clock(clock: Arc<WatchedClock>, store: Store, accepted: bool) {
    let mut pause = tokio::time::interval(CLOCK_WATCH_EVERY);
    // What a start found sealed, not what stands in the file now.
    let mut recorded = store.left().0.aftermath.clock_stepped && !accepted;
    loop {
        tokio::select! {
            _ = pause.tick() => {}
            // At once: a process that is killed now must not have forgotten it.
            () = clock.steps() => {}
        }
        let now = clock.now();
        if clock.has_stepped() && !recorded {
            tracing::error!(
                "the wall clock stepped: what depends on the time is refused until a start with --accept-clock"
            );
            recorded = record(&store, now.unix_ms, Event::ClockStepped).await.is_ok();
        }
    }
}

async fn record(store: &Store, unix_ms: u64, event: Event) -> Result<(), String> {
    let commit = Commit::of_entry(AuditEntry::of_appliance(unix_ms, event));
    store.commit(commit).await.map(drop).map_err(|e| e.to_string())
}

/// Tells the supervisor that this process works, for as long as it does: systemd ends one of which it hears nothing.
async fn beat(supervisor: Voice, store: Store, ops: Arc<Ops>) {
    let mut pause = tokio::time::interval(BEAT_EVERY);
    loop {
        pause.tick().await;
        if !store.beats().await {
            return;
        }
        supervisor.send(&ToSupervisor::Alive(ops.status().into_owned()));
    }
}

/// Which keys are the newest at the start: what is newer later was rotated.
async fn learn_keys(service: Arc<Service>) {
    while let Err(refused) = service.load_keys().await {
        tracing::debug!(?refused, "the keys are not known yet");
        tokio::time::sleep(KEYS_PAUSE).await;
    }
}

async fn prune(service: Arc<Service>, clock: Arc<WatchedClock>) {
    let mut pause = tokio::time::interval(CLOCK_WATCH_EVERY);
    let mut last_unix_ms = None;
    loop {
        pause.tick().await;
        let unix_ms = clock.now().unix_ms;
        if last_unix_ms.is_some_and(|last| unix_ms.abs_diff(last) < PRUNE_EVERY_MS) {
            continue;
        }
        last_unix_ms = Some(unix_ms);
        match service.prune().await {
            Ok(0) => {}
            Ok(rows) => tracing::info!(rows, "pruned"),
            Err(refused) => tracing::warn!(?refused, "pruning has to wait"),
        }
    }
}
