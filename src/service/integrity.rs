//! What a start finds out before anybody is answered: whether the database is what the service left, or may have been
//! turned back or changed.
//!
//! The anchor in the token tells the least that the log must have; the ledger's seal, that its end and the sums are those
//! of a commit of ours; the sums, whether every row is there once, as it was sealed. What the log says of each row's
//! version is asked only when something is wrong, to say which row it is.

mod diagnosis;
mod history;
pub(super) mod sums;

use tokio::time::Instant;

use self::sums::Found;
use super::Service;
use super::patience::{ASK_AGAIN_AFTER, PATIENCE, Patience, persist};
use crate::domain::audit::{AuditEntry, Event};
use crate::domain::checkpoint::{Checkpoint, Note};
use crate::domain::row::{SumDigest, TableSums};
use crate::store::{Inventory, RunKey};

const REMEDY: &str = "put the newest database back, or run \
    `hsm-authd recover --config FILE --accept-rollback` (docs/integrity.md)";

impl Service {
    /// Checks the database, and writes down that the service begins.
    ///
    /// # Errors
    /// One line for the operator: nothing may be answered from this database.
    pub async fn begin(&self, clock_accepted: bool) -> Result<(), String> {
        let begun = Instant::now();
        let anchor = self.read_anchor().await?;
        let found = self.check_database(&anchor).await?;
        let (left, _) = self.store.left();
        tracing::info!(
            rows = found.inventory.len(),
            entries = left.size,
            anchored = anchor.head.size,
            ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the database is what was left"
        );
        self.take_over(Some((found.sums, found.inventory))).await?;
        self.note_start(&anchor, clock_accepted).await
    }

    /// Why a start would refuse the database; `None`: it would not. Writes nothing down.
    pub(super) async fn objection(&self) -> Option<String> {
        let look = async { self.check_database(&self.read_anchor().await?).await.map(drop) };
        let line: String = look.await.err()?;
        Some(line.strip_suffix(&format!("; {REMEDY}")).unwrap_or(&line).to_owned())
    }

    /// Whether what the database said of itself when it was opened is what a service sealed.
    ///
    /// # Errors
    /// One line: nobody can tell.
    pub(super) async fn is_sealed(&self) -> Result<bool, String> {
        let anchor = self.read_anchor().await?;
        let (_, seal) = self.store.left();
        if seal.is_none() || self.check_extends(&anchor).await.is_err() {
            return Ok(false);
        }
        Ok(self.ledger_fault(&anchor).await?.is_none())
    }

    /// Seals what the database says of itself with this run's key, of the newest `row`, from here on. `found`: the sums that
    /// a start computed, and the rows.
    ///
    /// # Errors
    /// One line: nothing changed.
    pub(super) async fn take_over(&self, found: Option<(TableSums, Inventory)>) -> Result<(), String> {
        let run = self.now().run;
        let key =
            persist(&self.hsm, || self.hsm.ledger_key(run, None)).await.map_err(|error| error.to_string())?;
        let (key_version, key) = key.ok_or("the token has no key row")?;
        let key = RunKey { key_version, run, key };
        self.store.hold(key, found).await.map_err(|error| error.to_string())
    }

    async fn read_anchor(&self) -> Result<Checkpoint, String> {
        let note = persist(&self.hsm, || self.hsm.read_anchor()).await.map_err(|error| error.to_string())?;
        let Some(note) = note else {
            return Err(format!(
                "the token has no anchor of the log: it was removed, so nothing tells whether the database was turned \
                 back; {REMEDY}"
            ));
        };
        let note = Note::parse(&note).ok_or("the anchor in the token is no checkpoint")?;
        // The custodian has verified it.
        Ok(note.unverified().clone())
    }

    /// Every row, if all of them are what was left, and so is the rest.
    async fn check_database(&self, anchor: &Checkpoint) -> Result<Found, String> {
        self.check_extends(anchor).await?;
        let fault = self.ledger_fault(anchor).await?;
        self.check_rows(fault).await
    }

    /// Whether the log is that of the anchor, and has everything that the anchor covers.
    async fn check_extends(&self, anchor: &Checkpoint) -> Result<(), String> {
        let (left, _) = self.store.left();
        let known = &anchor.head;
        if known.origin.is_unclaimed() && known.size == 0 {
            return Ok(());
        }
        // Both roots of one tree: or each could be that of another history.
        let roots = self.store.roots(known.size, left.size).await.map_err(|error| error.to_string())?;
        let root = roots.and_then(|[first, whole]| (whole == left.root).then_some(first));
        anchor.objection(&left.head(), root).map_or(Ok(()), |reason| Err(format!("{reason}; {REMEDY}")))
    }

    /// Why the log's end, the sums and what events left are not those of a commit of the service. Whoever writes to the
    /// database can make them fit each other, but not their seal.
    async fn ledger_fault(&self, anchor: &Checkpoint) -> Result<Option<String>, String> {
        let (left, seal) = self.store.left();
        let is_first = anchor.head.origin.is_unclaimed();
        let is_end = anchor.head == left.head();
        let Some(seal) = seal else {
            return match (is_first, is_end) {
                // There was no key to seal it with.
                (true, _) => Ok(None),
                (false, true) => self.told_fault().await,
                (false, false) => Ok(Some(
                    "nothing seals what its log has behind the anchor, as after an earlier release was killed"
                        .to_owned(),
                )),
            };
        };
        let key = persist(&self.hsm, || self.hsm.ledger_key(seal.run, Some(seal.key_version))).await;
        let key = key.map_err(|error| error.to_string())?;
        let Some((key_version, key)) = key else {
            let version = seal.key_version;
            return Ok(Some(format!("its log is sealed with row v{version}, which the token has not")));
        };
        let is_sealed = (RunKey { key_version, run: seal.run, key }).verify(left, seal);
        // A first start of this release that ended before its own anchor leaves that of the release before.
        let of_first = SumDigest::First(left.sums.total().first());
        let is_anchored = is_first || is_end || anchor.head.size != left.size || anchor.head.sum == of_first;
        Ok((!is_sealed || !is_anchored).then(|| "its sums or the end of its log were changed".to_owned()))
    }

    /// The same of what an earlier release left, which sealed nothing, and whose end is anchored: the whole log tells.
    async fn told_fault(&self) -> Result<Option<String>, String> {
        let (left, _) = self.store.left();
        let (aftermath, root) = self.store.told().await.map_err(|error| error.to_string())?;
        let is_told = aftermath == left.aftermath && root == left.root;
        Ok((!is_told).then(|| "entries of its log were changed".to_owned()))
    }

    async fn check_rows(&self, fault: Option<String>) -> Result<Found, String> {
        let (left, _) = self.store.left();
        let (found, damage) = tokio::join!(sums::over_all_rows(self), self.store.damage());
        let found = match found {
            Ok(found) => found,
            Err(error) => return Err(self.unreadable().await?.unwrap_or(error)),
        };
        let differing = left.differing(&found.sums);
        if fault.is_some() || differing.is_some() || !found.tampered.is_empty() {
            let wrong = diagnosis::name(self, fault, &differing.unwrap_or_default(), &found).await?;
            return Err(format!("the database is not what the service left: {wrong}; {REMEDY}"));
        }
        // Rows that are right, and an index that hides some of them.
        if let Some(damage) = damage.map_err(|error| error.to_string())? {
            return Err(format!("the database is not what the service left: {damage}; {REMEDY}"));
        }
        Ok(found)
    }

    /// The line for a row that cannot be read, if there is one.
    async fn unreadable(&self) -> Result<Option<String>, String> {
        let row = self.store.unreadable_row().await.map_err(|error| error.to_string())?;
        Ok(row.map(|row| {
            let row = diagnosis::unreadable(&row);
            format!("the database is not what the service left: {row}; {REMEDY}")
        }))
    }

    /// Writes the first entry and its anchor, and says from which time step on codes are believed.
    async fn note_start(&self, anchor: &Checkpoint, clock_accepted: bool) -> Result<(), String> {
        let (left, _) = self.store.left();
        // By what is sealed, not by what stands in the file now.
        let is_clean = left.aftermath.ended && anchor.head.size == left.size;
        if !is_clean {
            tracing::warn!(
                "the service did not end as it should have: codes of the time steps up to now are not accepted"
            );
        }
        let mut aftermath = left.aftermath;
        let start = if is_clean { Event::Started } else { Event::StartedUnclean };
        for event in std::iter::once(start).chain(clock_accepted.then_some(Event::ClockAccepted)) {
            let unix_ms = self.now().unix_ms;
            let entry = AuditEntry::of_appliance(unix_ms, event);
            let _durable = self.log.note(entry).await.map_err(|error| error.to_string())?;
            aftermath.heed(event, unix_ms);
        }
        self.clock.set_floor(aftermath.floor_at(self.now().unix_ms));

        let (mut patience, mut is_told) = (Patience::new(&self.hsm, PATIENCE), false);
        loop {
            let Err(error) = self.log.anchor(true).await else { return Ok(()) };
            if !std::mem::replace(&mut is_told, true) {
                tracing::warn!(%error, "no anchor of the log yet");
            }
            if !patience.again(ASK_AGAIN_AFTER).await {
                return Err(format!("the token takes no anchor of the log: {error}"));
            }
        }
    }
}
