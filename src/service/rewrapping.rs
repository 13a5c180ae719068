//! Bringing every row under the newest keys, while requests go on.
//!
//! It goes through all rows and has each one that an older key sealed, wrapped or encrypted renewed by a custodian: its
//! next version, otherwise the same. Nothing is remembered of how far it came: what is done is under the newest keys, so
//! whoever begins again goes on where it was interrupted.

use std::sync::Mutex;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::domain::audit::{AuditEntry, Event};
use crate::domain::caller::Tenant;
use crate::domain::credential::{Kind, StoredSecret};
use crate::domain::id::CredentialId;
use crate::domain::row::{Row, Sealed, SealedBytes, TableSums};
use crate::domain::system_key::{KeyKind, NewestKeys};
use crate::hsm::HsmError;
use crate::hsm::messages::portions;
use crate::store::Commit;

use super::{RACES_MAX, Refused, Service};

/// How many rows are read at once.
const PAGE_ROWS: u16 = 256;
/// How often all rows are gone through before it is given up: what is busy all the time is met again.
const PASSES_MAX: usize = 8;
/// A batch that cannot be done now is tried again after this pause, so often.
const PAUSE: Duration = Duration::from_millis(200);
const ATTEMPTS_MAX: usize = 50;

/// How far it came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What it is doing.
    pub state: RewrapState,
    /// How many rows it has looked at in this pass.
    pub done: u64,
    /// How many rows there were when the pass began.
    pub total: u64,
    /// How many rows it has renewed.
    pub renewed: u64,
}

/// What a rewrap is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "name", content = "reason")]
pub enum RewrapState {
    /// None was begun since the start.
    Idle,
    /// It goes on.
    Running,
    /// All rows are under the newest keys.
    Finished,
    /// It was given up. Beginning again goes on where it stopped.
    Failed(String),
}

/// The one rewrap that there can be, and the newest keys as far as they are known.
pub(super) struct Rewrapping {
    progress: Mutex<Progress>,
    known: Mutex<Option<NewestKeys>>,
}

impl Default for Rewrapping {
    fn default() -> Self {
        let progress = Progress { state: RewrapState::Idle, done: 0, total: 0, renewed: 0 };
        Self { progress: Mutex::new(progress), known: Mutex::default() }
    }
}

impl Rewrapping {
    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// What is new since the last time; nothing the first time.
    fn learn(&self, newest: &NewestKeys) -> Vec<(KeyKind, u16)> {
        let mut known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let new = known.as_ref().map_or_else(Vec::new, |known| newest.beyond(known));
        *known = Some(newest.clone());
        new
    }
}

impl Service {
    /// How far the rewrap came.
    pub fn rewrap_progress(&self) -> Progress {
        self.rewrapping.progress().clone()
    }

    /// Has the custodians use the newest keys in the token, and writes to the log which of them are new since it was
    /// asked before.
    ///
    /// # Errors
    /// [`Refused::Unavailable`].
    pub async fn load_keys(&self) -> Result<NewestKeys, Refused> {
        let newest = self.ask_for_keys().await?;
        for (kind, version) in self.rewrapping.learn(&newest) {
            tracing::info!(%kind, version, "a newer key is used");
            self.log(Event::KeyRotated, format!("{kind} v{version}")).await?;
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
        for _ in 0..PASSES_MAX {
            if self.rewrap_pass(&newest).await? {
                let renewed = self.rewrapping.progress().renewed;
                return self.log(Event::Rewrapped, format!("finished, {renewed} rows")).await;
            }
        }
        Err(Refused::unavailable("some rows were changed by others each time"))
    }

    /// Goes through all rows once; whether every one of them was under the newest keys already.
    async fn rewrap_pass(&self, newest: &NewestKeys) -> Result<bool, Refused> {
        let total = self.store.rows_count().await?;
        {
            let mut progress = self.rewrapping.progress();
            (progress.done, progress.total) = (0, total);
        }
        let (mut cursor, mut clean) = (None, true);
        loop {
            let page = self.store.rows_after(cursor, PAGE_ROWS).await?;
            let Some(last) = page.last() else { return Ok(clean) };
            cursor = Some(last.row.key());
            let looked_at = page.len() as u64;
            let old: Vec<_> = page.into_iter().filter(|row| is_old(row, newest)).collect();
            clean &= old.is_empty();
            for batch in self.batches(old).await? {
                let begun = Instant::now();
                self.renew(batch).await?;
                // As long as it took: half of the machine at most is taken from those who wait for an answer.
                sleep(begun.elapsed()).await;
            }
            let mut progress = self.rewrapping.progress();
            progress.done = progress.done.saturating_add(looked_at);
        }
    }

    /// What goes into one message each. A binding goes with its credential's state, whose version of it changes with it.
    async fn batches(&self, rows: Vec<Sealed<Row>>) -> Result<Vec<Vec<SealedBytes>>, Refused> {
        let (mut batches, mut alone) = (Vec::new(), Vec::new());
        for row in rows {
            match &row.row {
                Row::Binding(binding) => {
                    if let Some(pair) = self.with_state(binding.credential, &binding.tenant).await? {
                        batches.push(pair);
                    }
                }
                _ => alone.push(row.to_bytes()),
            }
        }
        if !alone.is_empty() {
            batches.extend(portions(alone));
        }
        Ok(batches)
    }

    /// Commits the next versions. What has been changed meanwhile is tried in smaller batches, and left for the next pass
    /// in the end.
    async fn renew(&self, batch: Vec<SealedBytes>) -> Result<(), Refused> {
        let mut batches = vec![batch];
        let mut attempts = 0;
        while let Some(batch) = batches.pop() {
            match self.try_to_renew(&batch).await {
                Ok(true) => {
                    let mut progress = self.rewrapping.progress();
                    progress.renewed = progress.renewed.saturating_add(batch.len() as u64);
                }
                Ok(false) if is_one(&batch) => {}
                Ok(false) => {
                    let (first, second) = batch.split_at(batch.len() / 2);
                    batches.extend([second.to_vec(), first.to_vec()]);
                }
                // A custodian is being replaced, or a queue is full.
                Err(Refused::Unavailable { cause, retry_after_s: 0..=2 }) if attempts < ATTEMPTS_MAX => {
                    tracing::warn!(cause, "the rewrap waits");
                    attempts += 1;
                    batches.push(batch);
                    sleep(PAUSE).await;
                }
                Err(refused) => return Err(refused),
            }
        }
        Ok(())
    }

    /// `false`: lost a race.
    async fn try_to_renew(&self, batch: &[SealedBytes]) -> Result<bool, Refused> {
        let (rows, sealed) = self.hsm.renew(batch.to_vec()).await?;
        let count = rows.len();
        let rows: Option<Vec<_>> = rows.iter().map(|row| row.decode()).collect();
        let rows = rows.ok_or_else(|| Refused::unavailable("a renewed row that cannot be read"))?;
        let commit = Commit {
            standing: Vec::new(),
            rows: super::seal(rows, &sealed)?,
            removed: Vec::new(),
            sum_change: sealed.sum_change,
            audit: AuditEntry {
                detail: Some(format!("{count} rows")),
                ..AuditEntry::of_appliance(self.now().unix_ms, Event::Rewrapped)
            },
        };
        Ok(self.commit(commit).await?.is_some())
    }

    /// Writes what concerns no row.
    async fn log(&self, event: Event, detail: String) -> Result<(), Refused> {
        for _ in 0..RACES_MAX {
            let commit = Commit {
                standing: Vec::new(),
                rows: Vec::new(),
                removed: Vec::new(),
                sum_change: TableSums::default(),
                audit: AuditEntry {
                    detail: Some(detail.clone()),
                    ..AuditEntry::of_appliance(self.now().unix_ms, event)
                },
            };
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

/// A row, or a binding with its state: what is not divided.
fn is_one(batch: &[SealedBytes]) -> bool {
    let is_binding = |row: &SealedBytes| matches!(row.bytes.decode(), Some(Row::Binding(_)));
    batch.len() <= 1 || batch.iter().any(is_binding)
}

/// Whether an older key sealed it, or wrapped or encrypted what is in it.
fn is_old(row: &Sealed<Row>, newest: &NewestKeys) -> bool {
    // Version 0 says that nothing is wrapped.
    let wrapped = |secret: &Option<StoredSecret>| {
        secret.as_ref().is_some_and(|secret| (1..newest.of(KeyKind::Kek)).contains(&secret.parts().0))
    };
    let inside = match &row.row {
        Row::Credential(credential) => match &credential.kind {
            Kind::Otp(token) => wrapped(&token.secret),
            Kind::Ocra(token) => {
                let hash = token.pin_hash.as_ref();
                wrapped(&token.secret)
                    || hash.is_some_and(|hash| hash.data_version < newest.of(KeyKind::Data))
            }
            Kind::Terminal(terminal) => wrapped(&terminal.secret),
            Kind::Rolling(rolling) => wrapped(&rolling.secret) || wrapped(&rolling.identity_key),
            Kind::Signer(_) | Kind::CertifiedSigner(_) | Kind::Authenticator(_) => false,
        },
        _ => false,
    };
    inside || row.seal.key_version < newest.of(KeyKind::Row)
}
