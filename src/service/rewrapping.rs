//! Bringing every row under the newest keys, while requests go on.
//!
//! It goes through all rows and has each one that an older key sealed, wrapped or encrypted renewed by a custodian: its
//! next version, otherwise the same. Nothing is remembered of how far it came: what is done is under the newest keys, so
//! whoever begins again goes on where it was interrupted. A row that cannot be renewed is passed over and counted, so that
//! it keeps no other from its newer key.

mod batches;
mod left;
mod progress;

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::domain::audit::{AuditEntry, Event};
use crate::domain::caller::Tenant;
use crate::domain::id::CredentialId;
use crate::domain::row::{Row, Sealed, SealedBytes};
use crate::domain::system_key::{KeyKind, NewestKeys};
use crate::hsm::HsmError;
use crate::hsm::messages::portions;
use crate::store::{Commit, Found, Standing};

use super::{RACES_MAX, Refused, Service};
use batches::{at_once, halves, is_old, is_one, secrets_in};
use left::Left;

pub(super) use progress::Rewrapping;
pub use progress::{Progress, RewrapState};

/// How many rows are read at once.
const PAGE_ROWS: u16 = 256;
/// A row that no custodian renews is tried so often alone.
const FAILURES_MAX: u8 = 2;
/// How often all rows are gone through before it is given up: what is busy all the time is met again.
const PASSES_MAX: usize = 8;
/// A batch that cannot be done now is tried again after this pause, so often.
const PAUSE: Duration = Duration::from_millis(200);
const ATTEMPTS_MAX: usize = 50;

impl Service {
    /// How far the rewrap came.
    pub fn rewrap_progress(&self) -> Progress {
        self.rewrapping.progress().clone()
    }

    /// Has the custodians use the newest keys in the token, and writes to the log which of them are new since it was
    /// asked before. What could not be written down is new the next time still.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn load_keys(&self) -> Result<NewestKeys, Refused> {
        let mut known = self.rewrapping.known.lock().await;
        let newest = self.ask_for_keys().await?;
        let known = known.get_or_insert_with(|| newest.clone());
        for (kind, version) in newest.beyond(known) {
            tracing::info!(%kind, version, "a newer key is used");
            if kind == KeyKind::Row {
                self.take_over(None).await.map_err(Refused::unavailable)?;
            }
            self.log(Event::KeyRotated, format!("{kind} v{version}")).await?;
            *known = known.clone().or_newer(&NewestKeys::new([(kind, version)]));
        }
        Ok(newest)
    }

    /// Under load a custodian's queue may be full for a moment.
    async fn ask_for_keys(&self) -> Result<NewestKeys, Refused> {
        for _ in 0..ATTEMPTS_MAX {
            match self.hsm.load_keys().await {
                Err(HsmError::Busy) => sleep(PAUSE).await,
                loaded => return Ok(loaded?),
            }
        }
        Err(HsmError::Busy.into())
    }

    /// Takes the one place there is for a rewrap; `false`: one is running.
    pub fn begin_rewrap(&self) -> bool {
        let mut progress = self.rewrapping.progress();
        if progress.state == RewrapState::Running {
            return false;
        }
        *progress = Progress { state: RewrapState::Running, done: 0, total: 0, renewed: 0 };
        true
    }

    /// Does the rewrap that was begun, to its end.
    pub async fn rewrap(&self) {
        let result = self.rewrap_all().await;
        let renewed = self.rewrapping.progress().renewed;
        let state = match result {
            Ok(()) => {
                tracing::info!(renewed, "all rows are under the newest keys");
                RewrapState::Finished
            }
            Err(refused) => {
                tracing::error!(?refused, renewed, "the rewrap was given up");
                RewrapState::Failed(match refused {
                    Refused::Unavailable { cause, .. } => cause,
                    other => format!("{other:?}"),
                })
            }
        };
        self.rewrapping.progress().state = state;
    }

    async fn rewrap_all(&self) -> Result<(), Refused> {
        let newest = self.load_keys().await?;
        self.log(Event::Rewrapped, "begun".to_owned()).await?;
        let mut left = Left::default();
        for _ in 0..PASSES_MAX {
            if self.rewrap_pass(&newest, &mut left).await? {
                let renewed = self.rewrapping.progress().renewed;
                let Some(reason) = left.reason() else {
                    return self.log(Event::Rewrapped, format!("finished, {renewed} rows")).await;
                };
                self.log(Event::Rewrapped, format!("ended, {renewed} rows; {reason}")).await?;
                return Err(Refused::unavailable(reason));
            }
        }
        Err(Refused::unavailable("some rows were changed by others each time"))
    }

    /// Goes through all rows once; whether every one of them was under the newest keys already, or had been left.
    async fn rewrap_pass(&self, newest: &NewestKeys, left: &mut Left) -> Result<bool, Refused> {
        let total = self.store.rows_count().await?;
        {
            let mut progress = self.rewrapping.progress();
            (progress.done, progress.total) = (0, total);
        }
        let (mut place, mut clean) = (None, true);
        left.begin_pass();
        loop {
            let (page, last) = self.store.rows_found(place, PAGE_ROWS).await?;
            if last.is_none() {
                return Ok(clean);
            }
            place = last;
            let looked_at = page.len() as u64;
            let mut old = Vec::new();
            for found in page {
                match found {
                    Found::Readable(row) if left.is_passed_over(&row.row.key()) => {}
                    Found::Readable(row) if is_old(&row, newest) => old.push(*row),
                    Found::Readable(_) => {}
                    Found::Unreadable(place) => {
                        // The alarm that a custodian's answer raises for others.
                        place.unreadable().into_iter().for_each(|row| self.store.report(row));
                        left.unreadable();
                    }
                }
            }
            clean &= old.is_empty();
            for batch in self.batches(old, newest, left).await {
                let begun = Instant::now();
                self.renew(batch, left).await?;
                // As long as it took: half of the machine at most is taken from those who wait for an answer.
                sleep(begun.elapsed()).await;
            }
            let mut progress = self.rewrapping.progress();
            progress.done = progress.done.saturating_add(looked_at);
        }
    }

    /// What goes into one message each. A binding goes with its credential's state, whose version of it changes with it.
    async fn batches(
        &self,
        rows: Vec<Sealed<Row>>,
        newest: &NewestKeys,
        left: &mut Left,
    ) -> Vec<Vec<SealedBytes>> {
        let (mut batches, mut alone) = (Vec::new(), Vec::new());
        for row in rows {
            match &row.row {
                Row::Binding(binding) => match self.with_state(binding.credential, &binding.tenant).await {
                    Ok(pair) => batches.extend(pair),
                    // What cannot be read beside it is counted where it stands.
                    Err(_) => left.failed(&[row.to_bytes()], "the state beside it cannot be read"),
                },
                _ => alone.push((secrets_in(&row, newest), row.to_bytes())),
            }
        }
        for batch in at_once(alone) {
            batches.extend(portions(batch));
        }
        batches
    }

    /// Commits the next versions. What has been changed meanwhile is tried in smaller batches, and left for the next pass
    /// in the end; what is not as it was written last, or fails alone, is left for good.
    async fn renew(&self, batch: Vec<SealedBytes>, left: &mut Left) -> Result<(), Refused> {
        let mut batches = vec![(batch, 0)];
        let mut waits = 0;
        while let Some((mut batch, failures)) = batches.pop() {
            match self.try_to_renew(&batch).await? {
                Tried::Done => {
                    let mut progress = self.rewrapping.progress();
                    progress.renewed = progress.renewed.saturating_add(batch.len() as u64);
                }
                Tried::Raced if is_one(&batch) => {}
                Tried::Raced => batches.extend(halves(batch)),
                Tried::Changed(place) => {
                    left.changed(&batch, usize::from(place));
                    if !is_one(&batch) && usize::from(place) < batch.len() {
                        batch.remove(usize::from(place));
                        batches.push((batch, 0));
                    }
                }
                Tried::Failed(cause) => {
                    tracing::warn!(cause, rows = batch.len(), "rows cannot be renewed");
                    match failures + 1 {
                        _ if !is_one(&batch) => batches.extend(halves(batch)),
                        FAILURES_MAX.. => left.failed(&batch, &cause),
                        failures => batches.push((batch, failures)),
                    }
                    // A custodian may have been lost over it, and others have to be served.
                    sleep(PAUSE).await;
                }
                Tried::NotNow(cause) if waits < ATTEMPTS_MAX => {
                    tracing::warn!(cause, "the rewrap waits");
                    waits += 1;
                    batches.push((batch, failures));
                    sleep(PAUSE).await;
                }
                Tried::NotNow(cause) => return Err(Refused::unavailable(cause)),
            }
        }
        Ok(())
    }

    async fn try_to_renew(&self, batch: &[SealedBytes]) -> Result<Tried, Refused> {
        let (rows, sealed) = match self.hsm.renew(batch.to_vec()).await {
            Ok(renewed) => renewed,
            Err(HsmError::Tampered(place)) => return Ok(Tried::Changed(place)),
            Err(error) if error.is_passing() => return Ok(Tried::NotNow(error.to_string())),
            Err(error) => return Ok(Tried::Failed(error.to_string())),
        };
        let count = rows.len();
        let rows: Option<Vec<_>> = rows.iter().map(|row| row.decode()).collect();
        let rows = rows.ok_or_else(|| Refused::unavailable("a renewed row that cannot be read"))?;
        let commit = Commit {
            before: batch.iter().filter_map(read).collect(),
            rows: super::seal(rows, &sealed)?,
            removed: Vec::new(),
            sum_change: sealed.sum_change,
            audit: AuditEntry {
                detail: Some(format!("{count} rows")),
                ..AuditEntry::of_appliance(self.now().unix_ms, Event::Rewrapped)
            },
        };
        match self.commit_or_name(commit).await {
            Ok(Ok(Some(_))) => Ok(Tried::Done),
            Ok(Ok(None)) => Ok(Tried::Raced),
            Ok(Err(key)) => {
                let is_it = |row: &SealedBytes| row.bytes.decode().is_some_and(|row| row.key() == key);
                let place = batch.iter().position(is_it).and_then(|place| u8::try_from(place).ok());
                Ok(Tried::Changed(place.unwrap_or(u8::MAX)))
            }
            Err(Refused::Unavailable { cause, retry_after_s: 0..=2 }) => Ok(Tried::NotNow(cause)),
            Err(refused) => Err(refused),
        }
    }

    /// Writes what concerns no row.
    async fn log(&self, event: Event, detail: String) -> Result<(), Refused> {
        for _ in 0..RACES_MAX {
            let audit = AuditEntry {
                detail: Some(detail.clone()),
                ..AuditEntry::of_appliance(self.now().unix_ms, event)
            };
            let commit = Commit::of_entry(audit);
            if self.commit(commit).await?.is_some() {
                return Ok(());
            }
        }
        Err(super::race_lost())
    }

    async fn with_state(
        &self,
        credential: CredentialId,
        tenant: &Tenant,
    ) -> Result<Option<Vec<SealedBytes>>, Refused> {
        let (rows, binding) =
            (self.store.credential(tenant, credential).await?, self.store.binding(credential).await?);
        // It may have been rebound or deleted meanwhile.
        Ok(rows.zip(binding).map(|(rows, binding)| vec![binding.to_bytes(), rows.state.to_bytes()]))
    }
}

/// As it was read.
fn read(row: &SealedBytes) -> Option<Standing> {
    let SealedBytes { bytes, seal } = row;
    Some(Standing::from(&Sealed { row: bytes.decode()?, seal: seal.clone() }))
}

/// What became of a batch.
enum Tried {
    Done,
    /// Some row of it was changed meanwhile.
    Raced,
    /// The row at this place is not what was written last.
    Changed(u8),
    /// A custodian worked on it, and did not do it.
    Failed(String),
    /// A custodian is being replaced, or a queue is full.
    NotNow(String),
}
