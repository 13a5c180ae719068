//! The log's checkpoints: signed by a custodian, kept in the store, and written to the anchor in the token.
//!
//! Requests wait for none of it, unless the configuration says that no answer leaves before an anchor covers it. But where
//! the token takes none for long, nothing more is committed: what could be taken back unnoticed must not grow for ever.

mod anchors;
mod lag;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::{Refused, Service};
use crate::clock::WatchedClock;
use crate::config::AnchorMode;
use crate::domain::anchors::Anchors;
use crate::domain::audit::{AuditEntry, Event};
use crate::domain::checkpoint::Checkpoint;
use crate::hsm::{Hsm, HsmError};
use crate::lifeline::Lifeline;
use crate::metrics::{Checkpointing, LogMetrics};
use crate::store::{Commit, CommitError, Committed, Store};
use anchors::TokenAnchors;
use lag::{Lag, Turn};

pub(in crate::service) use anchors::{NoAnchor, REMEDY, REMOVED, of_token, parse, while_there};

/// How often there is a checkpoint, if the log grew.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(10);
/// After so many entries there is one sooner.
const ENTRIES_MAX: u64 = 10_000;
/// How long after a failure it is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long an answer waits for its anchor.
const COVER_MAX: Duration = Duration::from_secs(5);
/// How long the end of the service waits for its last entry and its anchor.
const END_MAX: Duration = Duration::from_secs(2);

/// For how long every checkpoint is kept, in milliseconds.
const FULL_MS: u64 = 86_400_000;
/// So many checkpoints are looked at in a transaction, and so many times in a pass.
const THIN_PAGE: u16 = 1_000;
const THIN_PAGES: u8 = 20;

/// The keeper of the log's checkpoints.
pub(super) struct LogKeeper {
    store: Store,
    hsm: Hsm,
    clock: Arc<WatchedClock>,
    mode: AnchorMode,
    anchors: TokenAnchors,
    /// So many entries are covered by the anchor in every token that is there.
    anchored: watch::Sender<u64>,
    /// Woken when somebody waits for an anchor.
    wanted: Notify,
    /// Checkpoints over fewer entries than this are as few as they will be.
    thinned_to: AtomicU64,
    lag: Mutex<Lag>,
    /// What a start waits for.
    waits: Mutex<Option<String>>,
    pub(super) metrics: LogMetrics,
}

/// Why there is no checkpoint, or no anchor of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum KeepError {
    #[error("{0}")]
    Hsm(#[from] HsmError),
    #[error("{0}")]
    Store(#[from] CommitError),
    #[error("{0}")]
    Anchor(NoAnchor),
    /// One of several tokens, and why it has no anchor.
    #[error("token {0}: {1}")]
    Token(String, NoAnchor),
}

impl LogKeeper {
    pub fn new(store: Store, hsm: Hsm, clock: Arc<WatchedClock>, mode: AnchorMode) -> Self {
        let (anchored, _) = watch::channel(0);
        let metrics = LogMetrics::default();
        let lag = Mutex::new(Lag::new(store.head().borrow().size));
        let anchors = TokenAnchors::new(store.clone(), hsm.clone());
        Self {
            store,
            hsm,
            clock,
            mode,
            anchors,
            anchored,
            wanted: Notify::new(),
            thinned_to: AtomicU64::new(0),
            lag,
            waits: Mutex::default(),
            metrics,
        }
    }

    fn lag(&self) -> MutexGuard<'_, Lag> {
        self.lag.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A start waits for a token, and says why; `None`: it goes on.
    pub fn wait_for(&self, reason: Option<String>) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = reason.as_ref().filter(|_| waits.is_none()) {
            tracing::warn!(reason, "nobody can tell yet whether the database was turned back");
        }
        *waits = reason;
    }

    /// What a start waits for.
    pub fn waits_for(&self) -> Option<String> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A start has found that the database extends these.
    pub fn know(&self, anchors: &Anchors) {
        self.anchors.know(anchors);
    }

    /// Whether the database is known to extend the anchor of this token, as it is there now.
    pub fn knows(&self, token: usize) -> bool {
        self.anchors.knows(token)
    }

    /// Why this database is not the one that a token knows of.
    pub fn doubt(&self) -> Option<String> {
        self.anchors.doubt()
    }

    /// Why nothing is committed: the anchor is too far behind the log, or a token that came up knows of another one.
    /// `None`: it is.
    pub fn objection(&self) -> Option<String> {
        if let Some(doubt) = self.doubt() {
            return Some(doubt);
        }
        let size = self.store.head().borrow().size;
        let mut lag = self.lag();
        let turn = lag.look(size, Instant::now());
        let reason = lag.reason();
        drop(lag);
        self.tell(turn);
        reason
    }

    fn tell(&self, turn: Option<Turn>) {
        match turn {
            Some(Turn::Closed(reason)) => {
                self.metrics.closed.set(1);
                tracing::error!(reason, "nothing is committed until the anchor follows the log");
            }
            Some(Turn::Opened) => {
                self.metrics.closed.set(0);
                tracing::info!("the anchor follows the log again");
            }
            None => {}
        }
    }

    /// Returns when an anchor covers so many entries; at once where nobody has to wait for that.
    ///
    /// # Errors
    /// [`Refused::Unavailable`]: the token takes no anchor now. What was committed stays.
    pub async fn covers(&self, size: u64) -> Result<(), Refused> {
        if let Some(doubt) = self.doubt() {
            return Err(Refused::unavailable(doubt));
        }
        if self.mode == AnchorMode::Interval {
            return Ok(());
        }
        let mut anchored = self.anchored.subscribe();
        if *anchored.borrow_and_update() >= size {
            return Ok(());
        }
        // Others are worked on meanwhile, so that one anchor covers the answers of many.
        if let Some(line) = Lifeline::current() {
            line.end_turn();
        }
        self.wanted.notify_one();
        match timeout(COVER_MAX, anchored.wait_for(|covered| *covered >= size)).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(Refused::unavailable("the anchor in the token does not follow the log")),
        }
    }

    /// The same for all that was committed before: what is remembered may be from a moment ago.
    pub async fn covers_all(&self) -> Result<(), Refused> {
        let size = self.store.head().borrow().size;
        self.covers(size).await
    }

    /// Makes checkpoints and anchors, for ever.
    async fn keep(&self) {
        let mut head = self.store.head();
        let mut pause = interval(CHECKPOINT_EVERY);
        pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
        pause.tick().await;
        let mut kept = *self.anchored.borrow();
        loop {
            let many = async {
                let is_due = |size: u64| size >= kept.saturating_add(ENTRIES_MAX);
                if head.wait_for(|head| is_due(head.size)).await.is_err() {
                    // The store has ended, and with it everything else.
                    std::future::pending::<()>().await;
                }
            };
            let (is_wanted, is_new) = tokio::select! {
                _ = pause.tick() => (false, false),
                () = many => (false, false),
                () = self.wanted.notified() => (true, false),
                () = self.anchors.newcomer() => (true, true),
            };
            let size = self.store.head().borrow().size;
            let done = if is_wanted { *self.anchored.borrow() } else { kept };
            // A token that has come up is asked what it knows, also while nothing happens.
            if size <= done && !is_new {
                continue;
            }
            let covered = self.persist(!is_wanted).await;
            if !is_wanted {
                kept = covered;
            }
        }
    }

    /// Tries until there is an anchor. How many entries it covers: also those that came meanwhile.
    async fn persist(&self, publish: bool) -> u64 {
        loop {
            match self.anchor(publish).await {
                Ok(size) => return size,
                Err(error) => {
                    // Once: the door's closing and opening is told, and each attempt is counted.
                    if self.lag().failed(error.to_string()) {
                        tracing::error!(%error, "no anchor of the log; it is tried again each second");
                    }
                    // Also if nobody asks.
                    let _ = self.objection();
                    sleep(RETRY_AFTER).await;
                }
            }
        }
    }

    /// Signs the head and makes it the anchor, and keeps the checkpoint if it is to be published. How many entries it
    /// covers.
    pub async fn anchor(&self, publish: bool) -> Result<u64, KeepError> {
        let anchored = self.try_anchor(publish).await;
        let outcome = if anchored.is_ok() { Checkpointing::Anchored } else { Checkpointing::Failed };
        self.metrics.checkpoints.get_or_create(&outcome).inc();
        anchored
    }

    async fn try_anchor(&self, publish: bool) -> Result<u64, KeepError> {
        let begun = Instant::now();
        let head = self.store.head().borrow().clone();
        let (size, unix_ms) = (head.size, self.clock.now().unix_ms);
        let note = self.hsm.sign_checkpoint(Checkpoint { head, unix_s: unix_ms / 1_000 }).await?;
        if publish {
            self.store.keep_checkpoint(size, unix_ms, note.clone()).await?;
        }
        let written = self.anchors.write(&note, size).await;
        // As much as all have: one that came up meanwhile has not.
        if let Some(covered) = self.anchors.covered() {
            self.anchored.send_replace(covered);
            self.metrics.anchored.set(i64::try_from(covered).unwrap_or(i64::MAX));
        }
        written?;
        let turn = self.lag().anchored(size, begun, self.store.head().borrow().size);
        self.tell(turn);
        Ok(size)
    }

    /// Of checkpoints that are older than a day leaves the last one of each hour, and always the newest: whatever one of
    /// them proves, a later one proves too. Looks at a bounded number of them; the next time it goes on.
    ///
    /// # Errors
    /// Some of it is done.
    pub async fn thin(&self, now_unix_ms: u64) -> Result<(), CommitError> {
        let before_unix_ms = now_unix_ms.saturating_sub(FULL_MS);
        let (mut from, mut settled) = (self.thinned_to.load(Ordering::Relaxed), true);
        for _ in 0..THIN_PAGES {
            let page = self.store.thin_checkpoints(from, before_unix_ms, THIN_PAGE).await?;
            if settled {
                self.thinned_to.store(page.settled_to, Ordering::Relaxed);
            }
            let Some(next) = page.next else { return Ok(()) };
            // Behind one that is young yet, or has a time that is still to come, others may be old.
            settled &= page.settled_to == next;
            from = next;
        }
        Ok(())
    }

    /// Commits an entry that changes no row.
    pub async fn note(&self, entry: AuditEntry) -> Result<Committed, CommitError> {
        self.store.commit(Commit::of_entry(entry)).await
    }
}

impl Service {
    /// Keeps the log's checkpoints, for ever.
    pub async fn keep_log(&self) {
        self.log.keep().await;
    }

    /// Writes down that the service ends, so that the next start knows that nothing is missing. For when nobody commits
    /// any more; it takes 2 seconds at most.
    pub async fn end(&self) {
        let end = async {
            let entry = AuditEntry::of_appliance(self.now().unix_ms, Event::Stopped);
            let _durable = self.log.note(entry).await?;
            self.log.anchor(true).await
        };
        match timeout(END_MAX, end).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the end is not anchored"),
            Err(_) => tracing::warn!("the end is not anchored: no answer in time"),
        }
    }

    /// Why nothing is committed; `None`: it is. What is asked only is answered all the same.
    pub fn commits_nothing(&self) -> Option<String> {
        self.log.objection()
    }

    /// Returns when a token that came up later knows of another log than the database has, with a line that says so:
    /// nothing may be answered any more.
    pub async fn doubted(&self) -> String {
        self.log.anchors.doubted().await
    }

    /// Brings up to date what nobody counts of the log.
    pub fn look_at_log(&self) {
        let (size, metrics) = (self.store.head().borrow().size, &self.log.metrics);
        metrics.entries.set(i64::try_from(size).unwrap_or(i64::MAX));
        self.log.anchors.show(size, metrics);
    }

    /// What is counted of the log.
    pub fn log_metrics(&self) -> &LogMetrics {
        &self.log.metrics
    }
}

#[cfg(test)]
mod tests;
