//! Secrets that are objects in the HSM: how many there may be, what becomes of one that no row came to name, and the
//! sweep at the start (`docs/custody.md`).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::gauge::Gauge;

use super::calls::wrong_kind;
use super::messages::{Custody, DESTROYED_MAX, Request, Response};
use super::{Hsm, HsmError, Route};
use crate::domain::credential::{Keeping, ObjectId};

/// Where new secrets go, and the room in the HSM. Cheap to clone.
#[derive(Clone)]
pub(super) struct Room {
    keeping: Keeping,
    objects_max: u64,
    objects: Arc<AtomicU64>,
    /// The same, as the operator sees it.
    gauge: Gauge,
}

impl Room {
    pub(super) fn new(keeping: Keeping, objects_max: u32, gauge: Gauge) -> Self {
        Self { keeping, objects_max: objects_max.into(), objects: Arc::default(), gauge }
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

    fn show(&self) {
        self.gauge.set(self.objects.load(Ordering::Acquire).cast_signed());
    }
}

/// A new secret's claim on what is to be stored. Dropped, it has the object destroyed again; a wrapped secret leaves
/// nothing to destroy.
pub struct Claim {
    object: Option<(Hsm, ObjectId)>,
    /// Whether a durable row may name it: then it is not this process's to destroy.
    may_be_named: bool,
}

impl Claim {
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
        // Beside the caller, who waits for an answer. What a process that ends leaves is swept at the next start.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                // Under either id: a repetition may have made it.
                match hsm.destroy_objects(vec![id, id.second()], false).await {
                    Ok(_) => hsm.inner.room.give_back(1),
                    Err(error) => {
                        tracing::warn!(%id, %error, "a secret of nobody's is left in the HSM until the next start");
                    }
                }
            });
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
            return Ok((Custody::Wrapped, Claim { object: None, may_be_named: false }));
        }
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| HsmError::Unavailable(error.to_string()))?;
        let id = ObjectId::from_random(id);
        self.inner.room.take()?;
        Ok((Custody::Resident(id), Claim { object: Some((self.clone(), id)), may_be_named: false }))
    }

    /// Destroys what no row names any more, as well as it can: what is left is swept at the next start.
    pub async fn destroy(&self, ids: Vec<ObjectId>) {
        if ids.is_empty() {
            return;
        }
        match self.destroy_objects(ids, false).await {
            Ok(objects) => self.inner.room.give_back(objects),
            Err(error) => {
                tracing::warn!(%error, "secrets that were deleted are left in the HSM until the next start");
            }
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
        self.inner.room.set(swept.named + swept.left);
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
