//! What `hsm-authd recover` does once an operator has accepted a database that was turned back. The service is stopped,
//! and nobody else has the database.
//!
//! The log gets its new origin before anything else changes, and the token its new anchor when all is done: in between
//! the service does not start, wherever it was cut off. Every step may be done again. What does not fit of a log is in a
//! file before it goes, in the transaction that gives the log its origin.

mod aside;
mod survey;

use std::path::PathBuf;
use std::sync::Arc;

use data_encoding::BASE64;
use tokio::time::{Instant, sleep};

use crate::clock::WatchedClock;
use crate::domain::audit::{AuditEntry, Event};
use crate::domain::checkpoint::{Checkpoint, Origin};
use crate::domain::credential::{Credential, Status};
use crate::domain::id::CredentialId;
use crate::domain::recovery::{self, Fate};
use crate::domain::row::{Row, RowKey, Sealed, SealedBytes, TableSums};
use crate::domain::time::Now;
use crate::hsm::messages::portions;
use crate::hsm::{Hsm, HsmError};
use crate::store::{Commit, CommitError, Damage, Found, ReadError, Standing, Store};

use super::at_rest::AtRest;
use super::integrity::sums::{Found as AllRows, over_all_rows};
use super::patience::{ASK_AGAIN_AFTER, PATIENCE, persist};
use super::pruning::Batch;
use super::{Refused, Service};

pub use survey::Survey;
use survey::name;

/// How many rows are read at once.
const PAGE: u16 = 100;
/// How many rows a batch may stand on: a custodian names them by one byte, and a credential has two.
const BATCH_ROWS_MAX: usize = 200;
/// The longest detail of an entry, in characters.
const DETAIL_CHARS_MAX: usize = 256;

/// The database, the HSM and the moment of a recovery.
pub struct Recovery {
    /// What a start looks at, it looks at.
    service: Service,
    store: Store,
    hsm: Hsm,
    now: Now,
}

/// Why there is no recovery, or only a part of one: one line for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RecoveryError(String);

impl From<HsmError> for RecoveryError {
    fn from(error: HsmError) -> Self {
        Self(error.to_string())
    }
}

impl From<ReadError> for RecoveryError {
    fn from(error: ReadError) -> Self {
        Self(format!("{error}; the line above says why"))
    }
}

impl From<CommitError> for RecoveryError {
    fn from(error: CommitError) -> Self {
        Self(format!("{error}; run the same command again"))
    }
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Rows that were removed because they were not what had been sealed, or what they belong to is gone: by name.
    pub removed: Vec<String>,
    /// How many credentials an administrator may resume.
    pub resumable: u64,
    /// How many may only be deleted, or bound anew.
    pub stranded: u64,
    /// How many are deleted.
    pub deleted: u64,
    /// How many transactions were cancelled.
    pub cancelled: u64,
    /// Which log it is from here on.
    pub origin: String,
    /// Where the entries are that did not fit.
    pub set_aside: Option<PathBuf>,
}

impl Recovery {
    /// Of a store that this process alone has opened, now.
    pub fn new(store: Store, hsm: Hsm, clock: Arc<WatchedClock>) -> Self {
        let now = clock.now();
        let AtRest { service } = AtRest::new(store.clone(), hsm.clone(), clock);
        Self { service, store, hsm, now }
    }

    /// Does all of it. `survey` is of a moment ago.
    ///
    /// # Errors
    /// It is not complete: it has to be done again.
    pub async fn accept_rollback(&self, survey: &Survey) -> Result<Done, RecoveryError> {
        let mut away = survey.away();
        if let Some(name) = away.next() {
            return Err(RecoveryError(format!(
                "token {name} is away, and would hold its anchor of the old log against the recovered one: bring it back, \
                 or take it out of the configuration for good; nothing was changed"
            )));
        }
        let random = persist(&self.hsm, || self.hsm.random()).await?;
        let origin =
            Origin::from_random(std::array::from_fn(|place| random.get(place).copied().unwrap_or(0)));
        let mut done = Done { origin: origin.to_string(), ..Done::default() };
        match &survey.log {
            None => self.store.begin_log(origin.clone()).await?,
            Some(damage) => done.set_aside = self.cut(damage, origin.clone()).await?,
        }
        self.remove_wrong(&mut done).await?;
        // From here on it knows every row: one that somebody puts back behind this is not what was found.
        let AllRows { sums, inventory, .. } = self.all_rows().await?;
        self.service.take_over(Some((sums, inventory))).await.map_err(RecoveryError)?;
        self.recover_rows(&mut done).await?;

        let was = match &survey.anchor {
            Some(Checkpoint { head, .. }) => {
                format!("anchor was {} of {}, root {}", head.origin, head.size, BASE64.encode(&head.root.0))
            }
            None => format!("no anchor; log was {}", survey.head.origin),
        };
        self.note(Event::Recovered, None, format!("{was}; log is {origin}")).await?;
        let sums = self.all_rows().await?.sums;
        let head = self.store.head().borrow().clone();
        if head.sum != sums.total().digest() {
            return Err(changed_meanwhile());
        }
        let size = head.size;
        let checkpoint = Checkpoint { head, unix_s: self.now.unix_ms / 1_000 };
        let note = persist(&self.hsm, || self.hsm.sign_checkpoint(checkpoint.clone())).await?;
        self.store.keep_checkpoint(size, self.now.unix_ms, note.clone()).await?;
        for token in 0..self.hsm.tokens() {
            persist(&self.hsm, || self.hsm.write_anchor(token, note.clone(), true)).await?;
        }
        Ok(done)
    }

    /// Makes of a log that is damaged one that fits, with an entry that says so. A recovery that is cut off behind it finds
    /// nothing wrong with the log, so this is not for its last entry to tell.
    async fn cut(&self, damage: &Damage, origin: Origin) -> Result<Option<PathBuf>, RecoveryError> {
        let Damage { reason, kept, aside } = damage;
        let (file, detail) = match aside {
            0 => (None, format!("the hashes kept of the log are made anew: {reason}")),
            _ => {
                let file = self.set_aside(damage).await?;
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                let first = kept.saturating_add(1);
                let detail =
                    format!("cut before entry {first} of the log, {aside} entries set aside in {name}");
                (Some(file), detail)
            }
        };
        let detail = detail.chars().take(DETAIL_CHARS_MAX).collect();
        self.store.cut_log(*kept, origin, self.entry(Event::Recovered, None, detail)).await?;
        Ok(file)
    }

    async fn remove_wrong(&self, done: &mut Done) -> Result<(), RecoveryError> {
        let mut after = None;
        loop {
            let page = self.judged(after).await?;
            for row in page.wrong {
                let name = name(&row);
                let detail = format!("removed, its seal is wrong: {name}");
                match row {
                    Found::Readable(row) => self.remove(&row, detail).await?,
                    Found::Unreadable(place) => {
                        self.note(Event::RowTampered, None, detail).await?;
                        self.store.discard(place).await?;
                    }
                }
                done.removed.push(name);
            }
            after = page.last;
            if after.is_none() {
                return Ok(());
            }
        }
    }

    /// All rows are readable and sealed by now.
    async fn recover_rows(&self, done: &mut Done) -> Result<(), RecoveryError> {
        let (mut after, mut batch) = (None, Batch::default());
        loop {
            let (found, last) = self.store.rows_found(after, PAGE).await?;
            for found in found {
                let Found::Readable(row) = found else { continue };
                let Sealed { row, seal } = *row;
                match row {
                    Row::Credential(row) => {
                        self.recover_credential(Sealed { row, seal }, &mut batch, done).await?
                    }
                    Row::Transaction(row) => {
                        self.recover_transaction(Sealed { row: row.into(), seal }, done).await?
                    }
                    row => self.recover_row(Sealed { row, seal }, &mut batch, done).await?,
                }
                if batch.is_full() || batch.rows() >= BATCH_ROWS_MAX {
                    self.write(std::mem::take(&mut batch)).await?;
                }
            }
            after = last;
            if after.is_none() {
                return self.write(batch).await;
            }
        }
    }

    async fn recover_credential(
        &self,
        credential: Sealed<Credential>,
        batch: &mut Batch,
        done: &mut Done,
    ) -> Result<(), RecoveryError> {
        let id = credential.row.id;
        let (state, account) = self.store.limits_found(&credential.row).await?;
        let Some(state) = state else {
            // What it used up nobody knows, not even how often it failed.
            let detail = format!("removed, its state is gone: credential {id}");
            let mut batch = Batch::default();
            batch.remove(credential);
            self.commit(batch, self.entry(Event::RowTampered, Some(id), detail)).await?;
            done.removed.push(format!("credential {id}, whose state is gone"));
            return Ok(());
        };
        if account.is_none() {
            batch.add(recovery::account(&credential.row).into());
        }
        let written = recovery::credential(&credential.row, &state.row, &self.now);
        let status = written.iter().find_map(|row| match row {
            Row::State(state) => Some(state.status),
            _ => None,
        });
        *match status.unwrap_or(state.row.status) {
            Status::Deleted => &mut done.deleted,
            Status::Stranded => &mut done.stranded,
            _ => &mut done.resumable,
        } += 1;
        for row in written {
            match row {
                Row::Credential(_) => batch.replace(credential.clone(), row),
                _ => batch.replace(state.clone(), row),
            }
        }
        Ok(())
    }

    /// Each by itself: the log tells of every transaction's end.
    async fn recover_transaction(&self, before: Sealed<Row>, done: &mut Done) -> Result<(), RecoveryError> {
        let (Row::Transaction(transaction), Fate::Replaced(next)) =
            (&before.row, recovery::row(&before.row, &self.now))
        else {
            return Ok(());
        };
        let audit = AuditEntry {
            credential: transaction.credential(),
            transaction: Some(transaction.id),
            detail: Some("the database was turned back".to_owned()),
            ..AuditEntry::of_appliance(self.now.unix_ms, Event::TransactionCancelled)
        };
        let mut batch = Batch::default();
        batch.replace(before.clone(), *next);
        done.cancelled += 1;
        self.commit(batch, audit).await
    }

    async fn recover_row(
        &self,
        row: Sealed<Row>,
        batch: &mut Batch,
        done: &mut Done,
    ) -> Result<(), RecoveryError> {
        // What a credential left that was removed; what its seed came as may come again.
        if let Row::State(_) | Row::UsedInput(_) | Row::ImportedSeed(_) = &row.row
            && let Some(id) = credential_of(&row.row)
            && !self.store.has(RowKey::Credential(id)).await?
        {
            if let Row::State(_) = &row.row {
                done.removed.push(format!("credential_state {id}, whose credential is gone"));
            }
            batch.remove(row);
            return Ok(());
        }
        match recovery::row(&row.row, &self.now) {
            Fate::Kept => {}
            Fate::Replaced(next) => batch.replace(row, *next),
            Fate::Removed => batch.remove(row),
        }
        Ok(())
    }

    async fn write(&self, batch: Batch) -> Result<(), RecoveryError> {
        if batch.is_empty() {
            return Ok(());
        }
        let audit = AuditEntry {
            detail: Some("the database was turned back".to_owned()),
            ..AuditEntry::of_appliance(self.now.unix_ms, Event::CredentialRecovered)
        };
        self.commit(batch, audit).await
    }

    async fn commit(&self, batch: Batch, audit: AuditEntry) -> Result<(), RecoveryError> {
        let deadline = Instant::now() + PATIENCE;
        let commit = loop {
            match batch.clone().sealed(&self.hsm, audit.clone()).await {
                Ok(commit) => break commit,
                // A row that is not what was sealed stays so; that the HSM does not answer passes.
                Err(Refused::Unavailable { retry_after_s: 0..=2, .. }) if Instant::now() < deadline => {
                    sleep(ASK_AGAIN_AFTER).await;
                }
                Err(Refused::Unavailable { cause, .. }) => return Err(RecoveryError(cause)),
                Err(other) => return Err(RecoveryError(format!("{other:?}"))),
            }
        };
        let _durable = self.store.commit(commit).await?;
        Ok(())
    }

    /// Removes a row whose seal nobody can vouch for. The sums are made anew behind it.
    async fn remove(&self, row: &Sealed<Row>, detail: String) -> Result<(), RecoveryError> {
        let commit = Commit {
            before: vec![Standing::from(row)],
            rows: Vec::new(),
            removed: vec![row.row.key()],
            sum_change: TableSums::default(),
            audit: self.entry(Event::RowTampered, credential_of(&row.row), detail),
        };
        let _durable = self.store.commit(commit).await?;
        Ok(())
    }

    async fn note(
        &self,
        event: Event,
        credential: Option<CredentialId>,
        detail: String,
    ) -> Result<(), RecoveryError> {
        let commit = Commit::of_entry(self.entry(event, credential, detail));
        let _durable = self.store.commit(commit).await?;
        Ok(())
    }

    fn entry(&self, event: Event, credential: Option<CredentialId>, detail: String) -> AuditEntry {
        AuditEntry { credential, detail: Some(detail), ..AuditEntry::of_appliance(self.now.unix_ms, event) }
    }

    /// Every row, with its seal right.
    async fn all_rows(&self) -> Result<AllRows, RecoveryError> {
        let found = over_all_rows(&self.service).await.map_err(RecoveryError)?;
        match found.tampered.is_empty() {
            true => Ok(found),
            false => Err(changed_meanwhile()),
        }
    }

    /// Of rows whose seals are right.
    async fn add_up(&self, rows: Vec<SealedBytes>) -> Result<TableSums, RecoveryError> {
        let mut sums = TableSums::default();
        for portion in portions(rows).into_iter().filter(|portion| !portion.is_empty()) {
            sums.add_all(&persist(&self.hsm, || self.hsm.sum(portion.clone())).await?);
        }
        Ok(sums)
    }
}

fn changed_meanwhile() -> RecoveryError {
    let line =
        "somebody changes the database while it is recovered: find out who, and run the same command again";
    RecoveryError(line.to_owned())
}

fn credential_of(row: &Row) -> Option<CredentialId> {
    match row {
        Row::Credential(row) => Some(row.id),
        Row::State(row) => Some(row.id),
        Row::UsedInput(row) => Some(row.id),
        Row::Binding(row) => Some(row.credential),
        Row::Presentation(row) => Some(row.credential),
        Row::Authorization(row) => Some(row.credential),
        Row::ImportedSeed(row) => Some(row.credential),
        Row::Account(_) | Row::Idempotency(_) | Row::Attestation(_) | Row::Transaction(_) => None,
    }
}
