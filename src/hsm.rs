//! The front's side of the HSM: which custodian is asked, and what happens when one is lost.
//!
//! A request goes to the custodian that its credential belongs to, so that the custodians' caches of
//! unwrapped secrets do not overlap; to any other while that one is away. A custodian works on one
//! request at a time, in order: when it is lost, only the request at its head may be the cause. That
//! one is repeated once, alone; those behind it, and one that no custodian ever read, are innocent and
//! go to another custodian freely. So is one that met a lost login: all custodians may have lost theirs at once.
//!
//! One that is to be replaced goes on until its successor has said hello. From then on the successor is asked, and the old one
//! answers what it was asked before.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

use crate::domain::credential::{Keeping, ObjectId};
use crate::domain::row::RowKey;
use crate::domain::signer::PublicKey;
use crate::domain::system_key::NewestKeys;
use crate::metrics::{HsmMetrics, Operation};
use asking::{Route, Way};
use changes::Changes;
use connection::{Job, Lost};
use messages::{Fault, Hello, Request, Response, StartFailed, Tired};
use residents::Room;
use shared::SharedKeys;
use start::Starts;
use state::State;

mod adoption;
mod asking;
mod calls;
mod changes;
mod connection;
mod handshakes;
mod imports;
pub mod messages;
mod residents;
mod shared;
mod start;
mod state;

pub use calls::{NewSecret, RollingChecked};
pub use handshakes::KeyPlace;
pub use messages::CustodianEvent;
pub use residents::{Claim, Swept};

/// How many requests may wait for one custodian.
pub const QUEUE_MAX: usize = 256;
/// How often each custodian is asked whether it can still use the HSM.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// The token that has the secrets that are objects.
pub const FIRST: usize = 0;

/// How many rows that were found changed wait to be written down.
const REPORTS_MAX: usize = 64;

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
    /// Somebody replaces custodians that are lost.
    is_served: AtomicBool,
    next_call: AtomicU64,
    next_slot: AtomicU64,
    tokens: Vec<Token>,
    events: mpsc::UnboundedSender<CustodianEvent>,
    tampered: (mpsc::Sender<RowKey>, Mutex<Option<mpsc::Receiver<RowKey>>>),
    metrics: HsmMetrics,
    room: Room,
    /// The newest keys that a custodian told of.
    newest: Mutex<NewestKeys>,
    /// What tokens that are in use have told of the keys that they share.
    shared: Mutex<SharedKeys>,
    /// What an operator calls the tokens.
    names: OnceLock<Vec<String>>,
}

impl Inner {
    fn shared(&self) -> MutexGuard<'_, SharedKeys> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn(&self, newest: &NewestKeys) {
        let mut known = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        *known = std::mem::take(&mut *known).or_newer(newest);
    }

    fn has_newer(&self, than: &NewestKeys) -> bool {
        !self.newest.lock().unwrap_or_else(PoisonError::into_inner).beyond(than).is_empty()
    }
}

/// One of several with the same keys; the first one has the secrets that are objects, too.
struct Token {
    /// Its custodians' slots. They are numbered through: the first token's come first.
    slots: Range<usize>,
    /// The slot of the one that changes it, counted from its first.
    writer: AtomicU64,
    changes: Arc<Changes>,
    starts: Starts,
    /// The public halves of its `tls` keys, as its custodians told.
    tls: Mutex<Vec<PublicKey>>,
    /// Turns of those who have a handshake signed: half as many as it has custodians.
    signing: Semaphore,
}

/// One that is up.
struct Custodian {
    /// No other one's.
    number: u64,
    /// Whose keys it has.
    token: usize,
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
    /// A handle to as many custodians of each token, none of them there yet; what happens to them goes to `events`. Their
    /// slots are numbered through. New secrets are kept as `keeping` says, at most `objects_max` of all in the HSM.
    pub fn new(
        counts: &[u16],
        (keeping, objects_max): (Keeping, u32),
        events: mpsc::UnboundedSender<CustodianEvent>,
    ) -> Self {
        let mut end = 0_usize;
        let tokens: Vec<_> = counts
            .iter()
            .map(|count| {
                let slots = end..end.saturating_add(usize::from(*count));
                end = slots.end;
                let (writer, changes, starts) = (AtomicU64::new(0), Arc::default(), Starts::default());
                let signing = Semaphore::new(usize::from(*count).div_ceil(2).max(1));
                Token { slots, writer, changes, starts, tls: Mutex::default(), signing }
            })
            .collect();
        let custodians = u16::try_from(end).unwrap_or(u16::MAX);
        let metrics = HsmMetrics::new(counts);
        let slots = (0..custodians).map(|_| ArcSwapOption::empty()).collect();
        let (report, reported) = mpsc::channel(REPORTS_MAX);
        Self {
            inner: Arc::new(Inner {
                slots,
                came_up: Notify::new(),
                state: State::new(counts, metrics.clone()),
                is_served: AtomicBool::new(false),
                next_call: AtomicU64::new(0),
                next_slot: AtomicU64::new(0),
                tokens,
                events,
                tampered: (report, Mutex::new(Some(reported))),
                room: Room::new(keeping, objects_max, metrics.residents.clone()),
                metrics,
                newest: Mutex::default(),
                shared: Mutex::default(),
                names: OnceLock::new(),
            }),
        }
    }

    /// One that asks nobody: of an HSM that is not there.
    pub fn none() -> Self {
        Self::new(&[], (Keeping::Wrapped, 0), mpsc::unbounded_channel().0)
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

    /// How many tokens there are. The first one has the secrets that are objects.
    pub fn tokens(&self) -> usize {
        self.inner.tokens.len()
    }

    /// What an operator calls a token.
    pub fn token_name(&self, token: usize) -> String {
        let named = self.inner.names.get().and_then(|names| names.get(token)).cloned();
        named.unwrap_or_else(|| format!("token {}", token.saturating_add(1)))
    }

    /// What an operator calls each token, from here on.
    pub fn name_tokens(&self, names: Vec<String>) {
        self.inner.state.name_tokens(&names);
        let _ = self.inner.names.set(names);
    }

    /// Whether no custodian of this token is there, and a start has failed since the last one was: nobody knows when it
    /// comes back.
    pub fn has_token_failed(&self, token: usize) -> bool {
        self.inner.state.objection(Some(token)).is_some()
    }

    /// Whether somebody replaces custodians that are lost, so that a token that is away may come back.
    pub fn waits_for_tokens(&self) -> bool {
        self.inner.is_served.load(Ordering::Relaxed)
    }

    /// Whether any custodian of this token is there; the first token is 0.
    pub fn is_token_up(&self, token: usize) -> bool {
        self.of(Some(token)).iter().any(|place| place.load().is_some())
    }

    /// A token that is up besides this one.
    fn another_than(&self, token: usize) -> Option<usize> {
        (0..self.tokens()).find(|other| *other != token && self.is_token_up(*other))
    }

    /// The places of this token's custodians; of all of them.
    fn of(&self, token: Option<usize>) -> &[ArcSwapOption<Custodian>] {
        let Some(token) = token else { return &self.inner.slots };
        let slots = self.inner.tokens.get(token).map(|token| token.slots.clone()).unwrap_or_default();
        self.inner.slots.get(slots).unwrap_or_default()
    }

    /// Which token a slot is of.
    fn token_of(&self, slot: u16) -> usize {
        let is_it = |token: &Token| token.slots.contains(&usize::from(slot));
        self.inner.tokens.iter().position(is_it).unwrap_or_default()
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
        self.inner.state.trouble(self.needs_first())
    }

    /// Whether secrets that are objects are to be used or made: the first token has them.
    fn needs_first(&self) -> bool {
        self.tokens() > 1 && self.inner.room.is_needed()
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

    fn next_id(&self) -> u64 {
        self.inner.next_call.fetch_add(1, Ordering::Relaxed)
    }

    /// The rows that custodians find changed, as they find them: for whoever asks first.
    pub fn tampered_rows(&self) -> Option<mpsc::Receiver<RowKey>> {
        self.inner.tampered.1.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

type Answer = oneshot::Receiver<Result<Result<Response, Fault>, Lost>>;

#[cfg(test)]
mod tests;
