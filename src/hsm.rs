//! The front's side of the HSM: which custodian is asked, and what happens when one is lost.
//!
//! A request goes to the custodian that its credential belongs to, so that the custodians' caches of
//! unwrapped secrets do not overlap; to any other while that one is away. A custodian works on one
//! request at a time, in order: when it is lost, only the request at its head may be the cause. That
//! one is repeated once, alone; those behind it, and one that no custodian ever read, are innocent and
//! go to another custodian freely.
//!
//! One that is to be replaced goes on until its successor has said hello. From then on the successor is asked, and the old one
//! answers what it was asked before.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use prometheus_client::metrics::gauge::Gauge;
use tokio::net::UnixStream;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, timeout_at};

use crate::domain::credential::{Keeping, ObjectId};
use crate::domain::id::CredentialId;
use crate::domain::row::RowKey;
use crate::domain::system_key::NewestKeys;
use crate::lifeline::Lifeline;
use crate::metrics::{self, HsmMetrics, Loss, Operation, OperationEnd, Replacement};
use changes::Changes;
use connection::{Job, Lost};
use messages::{Call, Fault, Request, Response, Tired};
use residents::Room;
use start::Starts;
use state::State;

mod calls;
mod changes;
mod connection;
pub mod messages;
mod residents;
mod start;
mod state;

pub use calls::{NewSecret, RollingChecked};
pub use residents::{Claim, Swept};

/// How long a caller waits for an answer, a custodian's replacement included; within its request's time.
const CALL_MAX: Duration = Duration::from_secs(5);
/// How many requests may wait for one custodian.
pub const QUEUE_MAX: usize = 256;
/// How often each custodian is asked whether it can still use the HSM.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// How long one that said that the HSM failed may take to end.
const END_MAX: Duration = Duration::from_secs(1);

/// How long after a custodian said that it is to be asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// How many rows that were found changed wait to be written down.
const REPORTS_MAX: usize = 64;

/// What the front tells the supervisor of its custodians.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CustodianEvent {
    /// It said hello.
    Up {
        /// Its slot.
        slot: u16,
        /// Its generation.
        generation: u64,
    },
    /// It did not come up, and ends with this exit code; [`CustodianEvent::Lost`] follows.
    Down {
        /// Its slot.
        slot: u16,
        /// Its generation.
        generation: u64,
        /// The exit code that it said.
        exit: u8,
    },
    /// It is no use any more: what is left of it is to be killed.
    Lost {
        /// Its slot.
        slot: u16,
        /// Its generation.
        generation: u64,
    },
    /// It is to be replaced, and goes on until then.
    Tired {
        /// Its slot.
        slot: u16,
        /// Its generation.
        generation: u64,
    },
}

/// Why the HSM gave no answer. Nobody is let in by any of these.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HsmError {
    /// Its queue is full.
    #[error("too many requests wait for the HSM")]
    Busy,
    /// No custodian answered in time, or two were lost over this request, or the HSM failed.
    #[error("the HSM does not answer: {0}")]
    Unavailable(String),
    /// No custodian is up, and none comes up for now: nobody has waited for one. Why.
    #[error("the HSM cannot be used: {0}")]
    Away(String),
    /// A stored row is not what was sealed: the position among the standing rows.
    #[error("standing row {0} has been tampered with")]
    Tampered(u8),
    /// A row names an object that the HSM does not have, or not whole. An operator has to look.
    #[error("the HSM has no usable object {0}, labelled hsm-authd/secret, and a credential's row names it")]
    Missing(ObjectId),
    /// As many secrets are objects in the HSM as there may be.
    #[error("{objects_max} secrets are in the HSM: raise hsm.resident_capacity, or delete credentials")]
    NoRoom {
        /// How many there may be.
        objects_max: u64,
    },
}

const NO_CUSTODIAN: &str = "no custodian is up";
const CHANGING: &str = "another custodian still changes the token";
const LOOKING: &str = "a custodian still looks for a key";

impl HsmError {
    /// Whether nobody has worked on the request: it is not what is wrong.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Busy | Self::Away(_) => true,
            Self::Unavailable(reason) => [NO_CUSTODIAN, LOOKING, CHANGING].contains(&reason.as_str()),
            Self::Tampered(_) | Self::Missing(_) | Self::NoRoom { .. } => false,
        }
    }
}

/// What a request is routed by.
#[derive(Clone, Copy)]
enum Route {
    /// The custodian that this credential belongs to.
    Credential(CredentialId),
    /// Any of them.
    Any,
    /// The one that makes and destroys objects: always the same, as long as it lives. A process in which SoftHSM changes
    /// the token misses what another one changes at that moment, and may not see it until somebody changes it again. So its
    /// successor changes nothing before it has answered every change ([`Changes`]).
    Writer,
    /// That of a slot; any other while it is away.
    Slot(u16),
}

/// How far a request came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Way {
    /// A custodian may have read it.
    sent: bool,
    /// One was lost over it: whoever answers need not have been the first to work on it.
    repeated: bool,
}

/// The handle; cheap to clone.
#[derive(Clone)]
pub struct Hsm {
    inner: Arc<Inner>,
}

struct Inner {
    slots: Vec<ArcSwapOption<Custodian>>,
    /// Woken when a custodian comes up, and when those who wait for one wait in vain.
    came_up: Notify,
    state: State,
    starts: Starts,
    /// Somebody replaces custodians that are lost.
    is_served: AtomicBool,
    next_call: AtomicU64,
    next_slot: AtomicU64,
    writer: AtomicU64,
    changes: Arc<Changes>,
    events: mpsc::UnboundedSender<CustodianEvent>,
    tampered: (mpsc::Sender<RowKey>, Mutex<Option<mpsc::Receiver<RowKey>>>),
    metrics: HsmMetrics,
    room: Room,
    /// The newest keys that a custodian told of.
    newest: Mutex<NewestKeys>,
}

impl Inner {
    fn learn(&self, newest: &NewestKeys) {
        let mut known = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        *known = std::mem::take(&mut *known).or_newer(newest);
    }

    fn has_newer(&self, than: &NewestKeys) -> bool {
        !self.newest.lock().unwrap_or_else(PoisonError::into_inner).beyond(than).is_empty()
    }
}

/// One that is up.
struct Custodian {
    /// No other one's.
    number: u64,
    jobs: mpsc::Sender<Job>,
    /// How many wait for it or are being worked on.
    queue_depth: Gauge,
    /// Whether it has said that it is to be replaced, and why.
    tired: OnceLock<Tired>,
    /// Another one has its place.
    replaced: Notify,
}

impl Custodian {
    fn try_send(&self, job: Job) -> Result<(), mpsc::error::TrySendError<Job>> {
        self.jobs.try_send(job.queued(&self.queue_depth))
    }
}

impl Hsm {
    /// A handle to as many custodians, none of them there yet; what happens to them goes to `events`. New secrets are
    /// kept as `keeping` says, at most `objects_max` of all in the HSM.
    pub fn new(
        custodians: u16,
        (keeping, objects_max): (Keeping, u32),
        events: mpsc::UnboundedSender<CustodianEvent>,
    ) -> Self {
        let metrics = HsmMetrics::new(custodians);
        let slots = (0..custodians).map(|_| ArcSwapOption::empty()).collect();
        let (report, reported) = mpsc::channel(REPORTS_MAX);
        Self {
            inner: Arc::new(Inner {
                slots,
                came_up: Notify::new(),
                state: State::new(custodians, metrics.clone()),
                starts: Starts::default(),
                is_served: AtomicBool::new(false),
                next_call: AtomicU64::new(0),
                next_slot: AtomicU64::new(0),
                writer: AtomicU64::new(0),
                changes: Arc::default(),
                events,
                tampered: (report, Mutex::new(Some(reported))),
                room: Room::new(keeping, objects_max, metrics.residents.clone()),
                metrics,
                newest: Mutex::default(),
            }),
        }
    }

    /// Takes a new custodian's socket over and serves it until it is lost.
    pub async fn adopt(self, slot: u16, generation: u64, stream: UnixStream) {
        let Some(place) = self.inner.slots.get(usize::from(slot)) else { return };
        let mut stream = stream;
        let (token, newest) = match self.inner.starts.greet(&mut stream).await {
            Ok(hello) => (hello.token, hello.newest),
            Err(refusal) => {
                if let Some(exit) = refusal.exit {
                    let _ = self.inner.events.send(CustodianEvent::Down { slot, generation, exit });
                }
                self.inner.state.start_failed(slot, generation, refusal);
                // They wait in vain, if no other is up.
                self.inner.came_up.notify_waiters();
                self.inner.metrics.losses.get_or_create(&Loss::NoHello).inc();
                let _ = self.inner.events.send(CustodianEvent::Lost { slot, generation });
                return;
            }
        };
        self.inner.state.up(slot, generation, &token);
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let (metrics, label) = (&self.inner.metrics, metrics::Custodian { custodian: slot });
        let queue_depth = metrics.queue_depth.get_or_create_owned(&label);
        let custodian = Arc::new(Custodian {
            number: self.next_id(),
            jobs: sender,
            queue_depth,
            tired: OnceLock::new(),
            replaced: Notify::new(),
        });
        metrics.starts.get_or_create(&label).inc();
        self.inner.learn(&newest);
        // A key may have been made since it looked. Told before anybody can ask it; or after, if it becomes known just now.
        let mut told = self.catch_up(&custodian, &newest);
        let before = place.swap(Some(custodian.clone()));
        told = told || self.catch_up(&custodian, &newest);
        if told {
            tracing::info!(slot, generation, "custodian looks for keys that are new");
        }
        self.inner.came_up.notify_waiters();
        let _ = self.inner.events.send(CustodianEvent::Up { slot, generation });
        // Told first, so that the other one's end is expected.
        if let Some(before) = before {
            self.replaced(&before, (slot, generation));
        }
        let probe = tokio::spawn(self.clone().probe(custodian.clone()));

        // A successor may have taken the place already.
        let withdraw = || drop(place.compare_and_swap(&Some(custodian.clone()), None));
        let learn = |newest: &NewestKeys| self.inner.learn(newest);
        let tire = |tired| {
            if custodian.tired.set(tired).is_ok() {
                tracing::info!(slot, generation, ?tired, "custodian is to be replaced");
                let _ = self.inner.events.send(CustodianEvent::Tired { slot, generation });
            }
        };
        let told = (learn, tire, withdraw);
        let end = connection::serve(stream, receiver, &custodian.replaced, (metrics, label), told).await;
        probe.abort();
        let Some(loss) = end.loss else {
            tracing::info!(slot, generation, "custodian has answered everything, and is let go");
            return;
        };
        self.inner.state.lost(slot, generation, &end.reason);
        metrics.losses.get_or_create(&loss).inc();
        tracing::warn!(slot, generation, reason = end.reason, "custodian is lost");
        if loss == Loss::HsmFailed {
            // It ends by itself, with a code that may say that the PIN is not to be tried again. But a module may hang in
            // the process's last steps.
            sleep(END_MAX).await;
        }
        let _ = self.inner.events.send(CustodianEvent::Lost { slot, generation });
    }

    /// Lets one go whose place another one has taken.
    fn replaced(&self, before: &Custodian, (slot, generation): (u16, u64)) {
        let reason = match before.tired.get() {
            Some(Tired::Unwraps) => Replacement::Unwraps,
            Some(Tired::Memory) => Replacement::Memory,
            None => Replacement::Reload,
        };
        self.inner.metrics.replacements.get_or_create(&reason).inc();
        tracing::info!(slot, generation, reason = reason.name(), "custodian takes over");
        before.replaced.notify_one();
    }

    /// Has a custodian look for keys before what it is asked from here on, if there are newer ones than it has.
    fn catch_up(&self, custodian: &Arc<Custodian>, newest: &NewestKeys) -> bool {
        if !self.inner.has_newer(newest) {
            return false;
        }
        let call = self.calling(Request::LoadKeys);
        let Ok((job, answer)) = Job::new(&call) else { return false };
        let told = custodian.try_send(job).is_ok();
        // What nobody waits for is not asked.
        tokio::spawn(async move {
            if let Ok(Ok(Err(fault))) = answer.await {
                tracing::warn!(%fault, "a custodian does not use the newest keys");
            }
        });
        told
    }

    /// Asks one custodian from time to time, so that a loss is noticed before a caller does.
    async fn probe(self, custodian: Arc<Custodian>) {
        let mut pause = tokio::time::interval(PROBE_EVERY);
        pause.tick().await;
        loop {
            pause.tick().await;
            let call = self.calling(Request::Health);
            let Ok((job, answer)) = Job::new(&call) else { return };
            let begun = Instant::now();
            // A full queue is proof enough that somebody else is asking.
            if custodian.try_send(job).is_ok() {
                let end = match answer.await {
                    Ok(Ok(Ok(_))) => OperationEnd::Answered,
                    _ => OperationEnd::Unavailable,
                };
                self.count(Operation::Health, end, Some(begun));
            }
        }
    }

    /// How many custodians there are to be.
    pub fn custodians(&self) -> usize {
        self.inner.slots.len()
    }

    /// Whether any custodian is there.
    pub fn is_up(&self) -> bool {
        self.up() > 0
    }

    /// How many custodians are there.
    pub fn up(&self) -> usize {
        self.inner.slots.iter().filter(|slot| slot.load().is_some()).count()
    }

    /// Somebody replaces custodians that are lost, so that whoever can wait for one may do so without an end.
    /// `was_used`: the database has been used with the token before.
    pub fn is_served(&self, was_used: bool) {
        self.inner.is_served.store(true, Ordering::Relaxed);
        if was_used {
            self.inner.state.was_used();
        }
    }

    /// Waits until one is there, if it is worth it: whether one is.
    pub async fn await_up(&self) -> bool {
        while self.inner.is_served.load(Ordering::Relaxed) {
            let came_up = self.inner.came_up.notified();
            if self.is_up() {
                break;
            }
            came_up.await;
        }
        self.is_up()
    }

    /// Whether callers are told at once that none is there, as it changes.
    pub fn breaker(&self) -> watch::Receiver<bool> {
        self.inner.state.breaker()
    }

    /// Why none is there, since when, and what is to be done, in a line for the operator; `None`: one is there, or they
    /// are being started and nothing has gone wrong yet.
    pub fn trouble(&self) -> Option<String> {
        self.inner.state.trouble()
    }

    /// Those that are not there while others are, and why: a line each.
    pub fn missing(&self) -> String {
        self.inner.state.missing()
    }

    /// For how long none has been there; `None`: one is.
    pub fn away_for(&self) -> Option<Duration> {
        self.inner.state.away_for()
    }

    /// Every slot.
    fn slots(&self) -> impl Iterator<Item = u16> + use<> {
        0..u16::try_from(self.inner.slots.len()).unwrap_or(u16::MAX)
    }

    /// What it counts.
    pub fn metrics(&self) -> &HsmMetrics {
        &self.inner.metrics
    }

    fn count(&self, operation: Operation, end: OperationEnd, begun: Option<Instant>) {
        self.inner.metrics.operations.get_or_create(&(operation, end)).inc();
        if let Some(begun) = begun {
            self.inner.metrics.seconds.get_or_create(&operation).observe(begun.elapsed().as_secs_f64());
        }
    }

    /// A call with all that is known of keys by now: whatever it is about was made before.
    fn calling(&self, request: Request) -> Call {
        let newest = self.inner.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Call { repeated: false, id: self.next_id(), newest, request }
    }

    fn next_id(&self) -> u64 {
        self.inner.next_call.fetch_add(1, Ordering::Relaxed)
    }

    /// One that is up: where there is a choice, not `but`.
    fn pick(&self, route: Route, but: Option<&Arc<Custodian>>) -> Option<Arc<Custodian>> {
        let first = match route {
            Route::Credential(id) => {
                id.to_bytes().iter().fold(0u64, |sum, byte| sum.wrapping_mul(31) + u64::from(*byte))
            }
            Route::Any => self.inner.next_slot.fetch_add(1, Ordering::Relaxed),
            Route::Writer => self.inner.writer.load(Ordering::Relaxed),
            Route::Slot(slot) => u64::from(slot),
        };
        let count = self.inner.slots.len();
        let start = (first % count.max(1) as u64) as usize;
        let up = || {
            let turns = self.inner.slots.iter().enumerate().cycle().skip(start).take(count);
            turns.filter_map(|(slot, place)| place.load_full().map(|custodian| (slot, custodian)))
        };
        let is_other = |custodian: &Arc<Custodian>| but.is_none_or(|but| !Arc::ptr_eq(but, custodian));
        let (slot, custodian) = up().find(|(_, custodian)| is_other(custodian)).or_else(|| up().next())?;
        if let Route::Writer = route {
            self.inner.writer.store(slot as u64, Ordering::Relaxed);
        }
        Some(custodian)
    }

    /// The rows that custodians find changed, as they find them: for whoever asks first.
    pub fn tampered_rows(&self) -> Option<mpsc::Receiver<RowKey>> {
        self.inner.tampered.1.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn report(&self, job: &Job, place: u8) {
        let call = job.call();
        let row = call.as_ref().and_then(|call| call.request.standing().get(usize::from(place)));
        if let Some(row) = row.and_then(|row| row.bytes.decode()) {
            // What finds no room is found again when somebody asks for it again.
            let _ = self.inner.tampered.0.try_send(row.key());
        }
    }

    async fn call(&self, route: Route, request: Request) -> Result<Response, HsmError> {
        self.call_on(route, request, &mut Way::default()).await
    }

    /// The same; how far it came is known at any moment, also to who gives up waiting.
    async fn call_on(&self, route: Route, request: Request, way: &mut Way) -> Result<Response, HsmError> {
        let (operation, begun) = (operation(&request), Instant::now());
        let result = self.ask(route, request, way).await;
        let end = match &result {
            Ok(_) => OperationEnd::Answered,
            Err(HsmError::Busy) => OperationEnd::Busy,
            Err(HsmError::Unavailable(_) | HsmError::Away(_)) => OperationEnd::Unavailable,
            Err(HsmError::Tampered(_)) => OperationEnd::Tampered,
            Err(error @ HsmError::Missing(_)) => {
                tracing::error!(%error, "a secret is not in the HSM");
                OperationEnd::Missing
            }
            // Asked of nobody.
            Err(HsmError::NoRoom { .. }) => OperationEnd::Unavailable,
        };
        // One that was turned away took no time, and would make the others look fast.
        let took = !matches!(result, Err(HsmError::Busy | HsmError::Away(_)));
        self.count(operation, end, took.then_some(begun));
        result
    }

    async fn ask(&self, route: Route, request: Request, way: &mut Way) -> Result<Response, HsmError> {
        let unavailable = |reason: &str| HsmError::Unavailable(reason.to_owned());
        let deadline = Lifeline::no_later_than(Instant::now() + CALL_MAX);
        let call = self.calling(request);
        let (mut job, mut answer) = Job::new(&call).map_err(|e| unavailable(&e.to_string()))?;
        drop(call);
        let mut missed_by: Option<Arc<Custodian>> = None;
        loop {
            let came_up = self.inner.came_up.notified();
            let Some(custodian) = self.pick(route, missed_by.as_ref()) else {
                if let Some(reason) = self.inner.state.objection() {
                    return Err(HsmError::Away(reason));
                }
                if timeout_at(deadline, came_up).await.is_err() {
                    return Err(unavailable(NO_CUSTODIAN));
                }
                continue;
            };
            let mut change = None;
            if let Route::Writer = route {
                let settled = self.inner.changes.settled();
                change = self.inner.changes.begin(custodian.number);
                if change.is_none() {
                    if timeout_at(deadline, settled).await.is_err() {
                        return Err(unavailable(CHANGING));
                    }
                    continue;
                }
            }
            let again = job.again();
            match custodian.try_send(job.changing(change)) {
                Ok(()) => way.sent = true,
                Err(mpsc::error::TrySendError::Full(_)) => return Err(HsmError::Busy),
                Err(mpsc::error::TrySendError::Closed(_)) => {
                    // Lost between the two lines above; its place is being withdrawn.
                    (job, answer) = again;
                    tokio::task::yield_now().await;
                    continue;
                }
            }
            let reply = timeout_at(deadline, answer).await.map_err(|_| unavailable("no answer in time"))?;
            let ended = |_| Err(Lost { suspect: false, reason: "its custodian ended".to_owned() });
            let lost = match reply.unwrap_or_else(ended) {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(Fault::Seal(row))) => {
                    self.report(&again.0, row);
                    return Err(HsmError::Tampered(row));
                }
                // Only if two say so, where there are two: one of them may not see what the other made.
                Ok(Err(Fault::Missing(id))) => match &missed_by {
                    Some(_) => return Err(HsmError::Missing(id)),
                    None => {
                        missed_by = Some(custodian);
                        (job, answer) = again;
                        continue;
                    }
                },
                // It looks through its token at most once a second: what it says then is final.
                Ok(Err(Fault::Later)) => {
                    if timeout_at(deadline, sleep(ASK_AGAIN_AFTER)).await.is_err() {
                        return Err(unavailable(LOOKING));
                    }
                    (job, answer) = again;
                    continue;
                }
                Ok(Err(fault @ Fault::Request(_))) => return Err(unavailable(&fault.to_string())),
                Ok(Err(fault @ Fault::Hsm(_))) => Lost { suspect: true, reason: fault.to_string() },
                Err(lost) => lost,
            };
            if lost.suspect && std::mem::replace(&mut way.repeated, true) {
                return Err(HsmError::Unavailable(lost.reason));
            }
            way.sent = way.repeated;
            (job, answer) = again;
            if lost.suspect {
                job = job.suspected();
            }
        }
    }
}

fn operation(request: &Request) -> Operation {
    match request {
        Request::Health => Operation::Health,
        Request::Generate { .. } => Operation::Generate,
        Request::Import { .. } => Operation::Import,
        Request::ImportWrapped { .. } => Operation::ImportWrapped,
        Request::ImportKey => Operation::ImportKey,
        Request::Residents { .. } => Operation::Residents,
        Request::DestroyResidents { .. } => Operation::DestroyResidents,
        Request::EncryptPinHash { .. } => Operation::EncryptPinHash,
        Request::CheckOtp(_) => Operation::CheckOtp,
        Request::CheckSignature(_) => Operation::CheckSignature,
        Request::Seal(_) => Operation::Seal,
        Request::Fingerprint(_) => Operation::Fingerprint,
        Request::Sum(_) => Operation::Sum,
        Request::Random => Operation::Random,
        Request::AttestationKeys => Operation::AttestationKeys,
        Request::VerifyAttestation { .. } => Operation::VerifyAttestation,
        Request::FindGeneration(_) => Operation::FindGeneration,
        Request::TerminalCodes(_) => Operation::TerminalCodes,
        Request::CheckEntry(_) => Operation::CheckEntry,
        Request::CheckRolling(_) => Operation::CheckRolling,
        Request::OpenEpoch { .. } => Operation::OpenEpoch,
        Request::PresentationCode { .. } => Operation::PresentationCode,
        Request::AuthorizationCodes(_) => Operation::AuthorizationCodes,
        Request::CheckAuthorization(_) => Operation::CheckAuthorization,
        Request::SignCheckpoint(_) => Operation::SignCheckpoint,
        Request::ReadAnchor => Operation::ReadAnchor,
        Request::WriteAnchor { .. } => Operation::WriteAnchor,
        Request::AuditKeys => Operation::AuditKeys,
        Request::LedgerKey { .. } => Operation::LedgerKey,
        Request::LoadKeys => Operation::LoadKeys,
        Request::Renew(_) => Operation::Renew,
    }
}

type Answer = oneshot::Receiver<Result<Result<Response, Fault>, Lost>>;

#[cfg(test)]
mod tests;
