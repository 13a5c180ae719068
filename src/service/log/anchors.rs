//! The anchor in each token: read before it counts, and written to all tokens that are there.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::KeepError;
use crate::domain::anchors::{Anchors, Coverage};
use crate::domain::checkpoint::{Checkpoint, Note};
use crate::hsm::{Hsm, HsmError};
use crate::metrics::{LogMetrics, Token};
use crate::store::{ReadError, Store};

/// What an operator does about a database that is not what a token knows.
pub(in crate::service) const REMEDY: &str = "put the newest database back, or run \
    `hsm-authd recover --config FILE --accept-rollback` (docs/integrity.md)";

/// How often it is looked whether a token has come up, or is gone while it is asked.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Why a token's anchor is not the one that it is to be.
#[derive(Debug, thiserror::Error)]
pub(in crate::service) enum NoAnchor {
    #[error("{0}")]
    Hsm(#[from] HsmError),
    #[error("{0}")]
    Store(#[from] ReadError),
    /// The database is not what the token knows, and nothing may be answered from it.
    #[error("{0}")]
    Doubt(String),
}

/// The anchors of all tokens, as far as they are known.
pub(super) struct TokenAnchors {
    store: Store,
    hsm: Hsm,
    coverage: Mutex<Coverage>,
    /// What a token that came up later held against the database.
    doubt: watch::Sender<Option<String>>,
}

impl TokenAnchors {
    pub fn new(store: Store, hsm: Hsm) -> Self {
        let coverage = Mutex::new(Coverage::new(hsm.tokens()));
        Self { store, hsm, coverage, doubt: watch::Sender::new(None) }
    }

    fn coverage(&self) -> MutexGuard<'_, Coverage> {
        self.coverage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A start has found that the database extends these.
    pub fn know(&self, anchors: &Anchors) {
        let mut coverage = self.coverage();
        anchors.each.iter().for_each(|(token, anchor)| coverage.know(*token, anchor.head.size));
    }

    /// Whether this token's anchor was read, and it has not been away since.
    pub fn knows(&self, token: usize) -> bool {
        self.coverage().is_current(token)
    }

    /// Why the database is not to be believed any more; `None`: nothing was found against it.
    pub fn doubt(&self) -> Option<String> {
        self.doubt.borrow().clone()
    }

    /// The same, as soon as there is something.
    pub async fn doubted(&self) -> String {
        let mut doubt = self.doubt.subscribe();
        match doubt.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(reason)) => reason.clone(),
            // The sender is there as long as this is.
            _ => std::future::pending().await,
        }
    }

    /// Returns when a token is there whose anchor is not known: it was away, or has just come up.
    pub async fn newcomer(&self) {
        if self.hsm.tokens() == 1 {
            return std::future::pending().await;
        }
        let mut pause = interval(LOOK_EVERY);
        pause.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            pause.tick().await;
            let (there, away) = self.there();
            let mut coverage = self.coverage();
            away.into_iter().for_each(|token| coverage.lose(token));
            if there.into_iter().any(|token| !coverage.is_current(token)) {
                return;
            }
        }
    }

    /// Those that are there, and those that are not. A token that is the only one always counts as there: whoever asks
    /// waits for it.
    fn there(&self) -> (Vec<usize>, Vec<usize>) {
        let all = 0..self.hsm.tokens();
        all.partition(|token| is_there(&self.hsm, *token))
    }

    /// Makes a note of so many entries the anchor of every token that is there; of one whose anchor is not known, once it is
    /// found that the database extends it.
    ///
    /// # Errors
    /// A token that is there has it not. Those that have it are known to.
    pub async fn write(&self, note: &str, size: u64) -> Result<(), KeepError> {
        let (there, away) = self.there();
        let mut tasks = JoinSet::new();
        {
            let mut coverage = self.coverage();
            away.into_iter().for_each(|token| coverage.lose(token));
            for token in there {
                let (hsm, store, note) = (self.hsm.clone(), self.store.clone(), note.to_owned());
                let is_known = coverage.is_current(token);
                tasks.spawn(async move { (token, put(&hsm, &store, token, note, is_known).await) });
            }
        }
        let mut failed = None;
        while let Some(done) = tasks.join_next().await {
            let (token, put) = done.map_err(|error| HsmError::Unavailable(error.to_string()))?;
            match put {
                Ok(()) => self.coverage().know(token, size),
                Err(NoAnchor::Doubt(reason)) => {
                    self.doubt.send_replace(Some(reason.clone()));
                    return Err(KeepError::Anchor(NoAnchor::Doubt(reason)));
                }
                Err(_) if !is_there(&self.hsm, token) => self.coverage().lose(token),
                Err(error) => failed = failed.or(Some((token, error))),
            }
        }
        match failed {
            None if self.covered().is_some() => Ok(()),
            None => Err(KeepError::Hsm(HsmError::Unavailable("no token is there".to_owned()))),
            Some((_, error)) if self.hsm.tokens() == 1 => Err(KeepError::Anchor(error)),
            Some((token, error)) => Err(KeepError::Token(self.hsm.token_name(token), error)),
        }
    }

    /// So many entries are covered in every token that is there; `None`: none is.
    pub fn covered(&self) -> Option<u64> {
        self.coverage().covered(|token| is_there(&self.hsm, token))
    }

    /// Brings up to date how many entries of `size` each token's anchor does not cover.
    pub fn show(&self, size: u64, metrics: &LogMetrics) {
        let coverage = self.coverage();
        for token in 0..self.hsm.tokens() {
            let lag = i64::try_from(size.saturating_sub(coverage.entries(token))).unwrap_or(i64::MAX);
            metrics.anchor_lag.get_or_create(&Token { token }).set(lag);
        }
    }
}

fn is_there(hsm: &Hsm, token: usize) -> bool {
    hsm.tokens() == 1 || hsm.is_token_up(token)
}

/// Asks a token for something, as long as it is there.
pub(in crate::service) async fn while_there<T>(
    hsm: &Hsm,
    token: usize,
    asked: impl Future<Output = Result<T, HsmError>>,
) -> Result<T, HsmError> {
    let gone = async {
        let mut pause = interval(LOOK_EVERY);
        while is_there(hsm, token) {
            pause.tick().await;
        }
    };
    tokio::select! {
        biased;
        answer = asked => answer,
        () = gone, if hsm.tokens() > 1 => Err(HsmError::Unavailable("it is away".to_owned())),
    }
}

/// Writes it, over an anchor that is known.
async fn put(hsm: &Hsm, store: &Store, token: usize, note: String, is_known: bool) -> Result<(), NoAnchor> {
    if !is_known {
        check(hsm, store, token).await?;
    }
    Ok(while_there(hsm, token, hsm.write_anchor(token, note, false)).await?)
}

/// Whether the database extends the anchor of a token that came up after the start.
async fn check(hsm: &Hsm, store: &Store, token: usize) -> Result<(), NoAnchor> {
    let note = while_there(hsm, token, hsm.read_anchor(token)).await?;
    let doubt = |reason: String| NoAnchor::Doubt(of_token(hsm, token, format!("{reason}; {REMEDY}")));
    let Some(note) = note else { return Err(doubt(REMOVED.to_owned())) };
    let anchor = parse(&note).map_err(doubt)?;
    if anchor.is_of_no_log() {
        return Ok(());
    }
    let head = store.head().borrow().clone();
    let roots = store.roots(anchor.head.size, head.size).await?;
    // Both roots of one tree: or each could be that of another history.
    let root = roots.and_then(|[first, whole]| (whole == head.root).then_some(first));
    anchor.objection(&head, root).map_or(Ok(()), |reason| Err(doubt(reason)))
}

/// Of a token that should have one.
pub(in crate::service) const REMOVED: &str = "the token has no anchor of the log: it was removed, so nothing tells \
    whether the database was turned back";

/// What an anchor says. The custodian has verified it.
pub(in crate::service) fn parse(note: &str) -> Result<Checkpoint, String> {
    let note = Note::parse(note).ok_or("the anchor in the token is no checkpoint")?;
    Ok(note.unverified().clone())
}

/// What a token holds against the database, with its name where there are several.
pub(in crate::service) fn of_token(hsm: &Hsm, token: usize, reason: String) -> String {
    match hsm.tokens() {
        1 => reason,
        _ => format!("token {}: {reason}", hsm.token_name(token)),
    }
}

#[cfg(test)]
mod tests;
