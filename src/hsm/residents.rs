//! Secrets that are objects in the HSM: how many there may be, what becomes of one that no row came to name, and the
//! sweep at the start (`docs/custody.md`).

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::calls::wrong_kind;
use super::messages::{Custody, DESTROYED_MAX, Request, Response};
use super::{FIRST, Hsm, HsmError, Route, Way};
use crate::domain::credential::{Keeping, ObjectId};

/// How long after an HSM did not destroy something it is asked again: at first, and doubled each time up to the second.
const AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];
/// How often custodians may fail to destroy one thing. Each failure may cost two of them.
const FAILURES_MAX: u8 = 8;

/// Where new secrets go, and the room in the HSM.
pub(super) struct Room {
    keeping: Keeping,
    objects_max: u64,
    objects: AtomicU64,
    /// The same, as the operator sees it.
    gauge: Gauge,
    /// What is to be destroyed. It takes room until it is, so that there is never more of it than there is room.
    left: Mutex<VecDeque<Left>>,
    /// Woken when there is more of it.
    more: Notify,
}

/// A secret of nobody's.
struct Left {
    id: ObjectId,
    /// It may be there under its second id as well.
    or_second: bool,
    failures: u8,
}

impl Room {
    pub(super) fn new(keeping: Keeping, objects_max: u32, gauge: Gauge) -> Self {
        let (left, more) = (Mutex::default(), Notify::new());
        Self { keeping, objects_max: objects_max.into(), objects: AtomicU64::new(0), gauge, left, more }
    }

    /// How new secrets are kept.
    pub(super) fn keeping(&self) -> Keeping {
        self.keeping
    }

    fn take(&self) -> Result<(), HsmError> {
        let one_more = |objects: u64| objects.checked_add(1).filter(|objects| *objects <= self.objects_max);
        let taken = self.objects.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        taken.map_err(|_| HsmError::NoRoom { objects_max: self.objects_max })?;
        self.show();
        Ok(())
    }

    fn give_back(&self, count: u64) {
        let fewer = |objects: u64| Some(objects.saturating_sub(count));
        // It always finds a next value.
        let _ = self.objects.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer);
        self.show();
    }

    fn set(&self, objects: u64) {
        self.objects.store(objects, Ordering::Release);
        self.show();
    }

    /// Whether there are any, or are to be.
    pub(super) fn is_needed(&self) -> bool {
        self.keeping == Keeping::Resident || self.objects.load(Ordering::Acquire) > 0
    }

    fn left(&self) -> MutexGuard<'_, VecDeque<Left>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn leave(&self, id: ObjectId, or_second: bool) {
        self.left().push_back(Left { id, or_second, failures: 0 });
        self.more.notify_one();
    }

    fn show(&self) {
        self.gauge.set(self.objects.load(Ordering::Acquire).cast_signed());
    }
}

/// A new secret's claim on what is to be stored. Dropped, it has the object destroyed again; a wrapped secret leaves
/// nothing to destroy.
pub struct Claim {
    object: Option<(Hsm, ObjectId)>,
    /// How far the request came that makes it.
    pub(super) way: Way,
    /// Whether a durable row may name it: then it is not this process's to destroy.
    may_be_named: bool,
}

impl Claim {
    fn new(object: Option<(Hsm, ObjectId)>) -> Self {
        Self { object, way: Way::default(), may_be_named: false }
    }

    /// The answer says that nothing was made; by whom it was asked before, it does not say.
    pub(super) fn was_refused(&mut self) {
        self.way.sent = self.way.repeated;
    }

    /// From here on a durable row may name it, or not.
    pub fn may_be_named(&mut self) {
        self.may_be_named = true;
    }

    /// No row names it after all.
    pub fn is_unnamed(&mut self) {
        self.may_be_named = false;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let Some((hsm, id)) = self.object.take().filter(|_| !self.may_be_named) else { return };
        match self.way.sent {
            // Beside the caller, who waits for an answer. Under either id: a repetition may have made it.
            true => hsm.inner.room.leave(id, true),
            false => hsm.inner.room.give_back(1),
        }
    }
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Objects that rows name.
    pub named: u64,
    /// Objects that were destroyed: no row names them.
    pub destroyed: u64,
    /// Objects that no row names, and that could not be destroyed.
    pub left: u64,
    /// What rows name and is not there.
    pub missing: Vec<ObjectId>,
}

impl Hsm {
    /// Where the next secret goes, and its claim.
    ///
    /// # Errors
    /// [`HsmError::NoRoom`]; [`HsmError::Unavailable`]: there is no randomness.
    pub(super) fn place(&self) -> Result<(Custody, Claim), HsmError> {
        if self.inner.room.keeping == Keeping::Wrapped {
            return Ok((Custody::Wrapped, Claim::new(None)));
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| HsmError::Unavailable(error.to_string()))?;
        let id = ObjectId::from_random(id);
        self.inner.room.take()?;
        Ok((Custody::Resident(id), Claim::new(Some((self.clone(), id)))))
    }

    /// Destroys what no row names any more: now, or later if that fails.
    pub async fn destroy(&self, ids: Vec<ObjectId>) {
        if ids.is_empty() {
            return;
        }
        let count = ids.len() as u64;
        match self.destroy_objects(ids.clone(), false).await {
            // Also for one that was not there: its row had taken the room.
            Ok(_) => self.inner.room.give_back(count),
            Err(error) => {
                tracing::warn!(%error, "secrets that were deleted are still in the HSM");
                ids.into_iter().for_each(|id| self.inner.room.leave(id, false));
            }
        }
    }

    /// Destroys what failed enrolments and deletions leave, as it comes; where that fails, again until the HSM answers.
    /// It never ends. What a process leaves that ends, is swept at the next start.
    pub async fn destroy_left(&self) {
        let [first_pause, pause_max] = AGAIN_AFTER;
        let mut pause = first_pause;
        loop {
            let next = self.inner.room.left().pop_front();
            let Some(left) = next else {
                self.inner.room.more.notified().await;
                continue;
            };
            match self.destroy_one_left(left).await {
                true => pause = first_pause,
                false => {
                    sleep(pause).await;
                    pause = pause.saturating_mul(2).min(pause_max);
                }
            }
        }
    }

    /// Whether it is there no more.
    async fn destroy_one_left(&self, mut left: Left) -> bool {
        let (room, mut way) = (&self.inner.room, Way::default());
        let id = left.id;
        let ids = std::iter::once(id).chain(left.or_second.then(|| id.second())).collect();
        let request = Request::DestroyResidents { ids, nameless: false };
        let error = match self.call_on(Route::Writer, request, &mut way).await {
            Ok(Response::Destroyed { .. }) => {
                room.give_back(1);
                return true;
            }
            Ok(_) => wrong_kind(),
            Err(error) => error,
        };
        // While nobody could be asked, nothing is lost by asking again.
        left.failures = left.failures.saturating_add(way.sent.into());
        if left.failures < FAILURES_MAX {
            tracing::warn!(%id, %error, "a secret of nobody's is still in the HSM");
            room.left().push_back(left);
        } else {
            tracing::error!(%id, %error, "a secret of nobody's is left in the HSM until the next start");
        }
        false
    }

    /// Waits until the first token is there, or is known to be away: whether the objects can be listed. Until they are, what
    /// rows name takes its room.
    pub async fn can_sweep(&self, named: u64) -> bool {
        self.inner.room.set(named);
        loop {
            let changed = self.inner.came_up.notified();
            if self.tokens() == 1 || self.is_token_up(FIRST) {
                return true;
            }
            if self.has_token_failed(FIRST) && self.is_up() {
                return false;
            }
            changed.await;
        }
    }

    /// Holds the objects in the HSM against those that rows name, and destroys the others. Only before the first
    /// request: an object is there before its row is.
    ///
    /// # Errors
    /// [`HsmError`]: the objects cannot be listed.
    pub async fn sweep(&self, named: &HashSet<ObjectId>) -> Result<Swept, HsmError> {
        let mut there: Vec<ObjectId> = Vec::new();
        let nameless = loop {
            let request = Request::Residents { after: there.last().copied() };
            let Response::Residents { ids, nameless } = self.call(Route::Writer, request).await? else {
                return Err(wrong_kind());
            };
            if ids.is_empty() {
                break u64::from(nameless);
            }
            there.extend(ids);
        };
        let mut swept = Swept::default();
        let (owned, orphans): (Vec<_>, Vec<_>) = there.into_iter().partition(|id| named.contains(id));
        swept.named = owned.len() as u64;
        let owned: HashSet<_> = owned.into_iter().collect();
        swept.missing = named.difference(&owned).copied().collect();
        for orphans in orphans.chunks(DESTROYED_MAX) {
            self.sweep_some(&mut swept, orphans.to_vec(), orphans.len() as u64).await;
        }
        let mut left = nameless;
        while left > 0 {
            let some = left.min(DESTROYED_MAX as u64);
            self.sweep_some(&mut swept, Vec::new(), some).await;
            left -= some;
        }
        // What is missing may be put back.
        self.inner.room.set(named.len() as u64 + swept.left);
        Ok(swept)
    }

    /// These, or if there are none some that have no id.
    async fn sweep_some(&self, swept: &mut Swept, ids: Vec<ObjectId>, count: u64) {
        let nameless = ids.is_empty();
        match self.destroy_objects(ids, nameless).await {
            Ok(objects) => swept.destroyed += objects,
            Err(error) => {
                tracing::warn!(%error, count, "secrets of nobody's cannot be removed from the HSM");
                swept.left += count;
            }
        }
    }

    async fn destroy_objects(&self, ids: Vec<ObjectId>, nameless: bool) -> Result<u64, HsmError> {
        match self.call(Route::Writer, Request::DestroyResidents { ids, nameless }).await? {
            Response::Destroyed { objects } => Ok(objects.into()),
            _ => Err(wrong_kind()),
        }
    }
}
