//! What a start finds out before anybody is answered: whether the database is what the service left, or may have been
//! turned back or changed.
//!
//! The anchor in the token tells the least that the log must have; the ledger's seal, that its end and the sums are those
//! of a commit of ours; the sums, whether every row is there once, as it was sealed. What the log says of each row's
//! version is asked only when something is wrong, to say which row it is.

mod anchors;
mod diagnosis;
mod history;
pub(super) mod sums;

use std::collections::BTreeMap;

use tokio::time::Instant;

use self::sums::Found;
use super::Service;
use super::log::{KeepError, NoAnchor, REMEDY, of_token};
use super::patience::{ASK_AGAIN_AFTER, PATIENCE, Patience, persist};
use crate::domain::anchors::Anchors;
use crate::domain::audit::{AuditEntry, Event};
use crate::domain::checkpoint::Checkpoint;
use crate::domain::log::TreeHash;
use crate::domain::row::{SumDigest, TableSums};
use crate::store::{Inventory, RunKey};

impl Service {
    /// Checks the database, and writes down that the service begins.
    ///
    /// # Errors
    /// One line for the operator: nothing may be answered from this database.
    pub async fn begin(&self, clock_accepted: bool) -> Result<(), String> {
        let begun = Instant::now();
        let anchors = self.read_anchors().await?;
        let found = self.check_database(&anchors).await?;
        self.log.know(&anchors);
        let (left, _) = self.store.left();
        tracing::info!(
            rows = found.inventory.len(),
            entries = left.size,
            anchored = anchors.most.head.size,
            ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the database is what was left"
        );
        self.take_over(Some((found.sums, found.inventory))).await?;
        self.note_start(&anchors, clock_accepted).await
    }

    /// Why a start would refuse the database; `None`: it would not. Writes nothing down.
    pub(super) async fn objection(&self) -> Option<String> {
        let look = async { self.check_database(&self.read_anchors().await?).await.map(drop) };
        let line: String = look.await.err()?;
        Some(line.strip_suffix(&format!("; {REMEDY}")).unwrap_or(&line).to_owned())
    }

    /// Whether what the database said of itself when it was opened is what a service sealed.
    ///
    /// # Errors
    /// One line: nobody can tell.
    pub(super) async fn is_sealed(&self) -> Result<bool, String> {
        let anchors = self.read_anchors().await?;
        let (_, seal) = self.store.left();
        if seal.is_none() || self.check_extends(&anchors).await.is_err() {
            return Ok(false);
        }
        Ok(self.ledger_fault(&anchors.most).await?.is_none())
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

    /// Every row, if all of them are what was left, and so is the rest.
    async fn check_database(&self, anchors: &Anchors) -> Result<Found, String> {
        self.check_extends(anchors).await?;
        let fault = self.ledger_fault(&anchors.most).await?;
        self.check_rows(fault).await
    }

    /// Whether the log is that of every anchor, and has everything that they cover.
    async fn check_extends(&self, anchors: &Anchors) -> Result<(), String> {
        let (left, _) = self.store.left();
        let mut known: BTreeMap<u64, Option<TreeHash>> = BTreeMap::new();
        for (_, anchor) in &anchors.each {
            let size = anchor.head.size;
            if anchor.is_of_no_log() {
                continue;
            }
            // Both roots of one tree: or each could be that of another history.
            let roots = self.store.roots(size, left.size).await.map_err(|error| error.to_string())?;
            known.insert(size, roots.and_then(|[first, whole]| (whole == left.root).then_some(first)));
        }
        let objection = anchors.objection(&left.head(), |size| known.get(&size).copied().flatten());
        objection
            .map_or(Ok(()), |(token, reason)| Err(of_token(&self.hsm, token, format!("{reason}; {REMEDY}"))))
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
    async fn note_start(&self, anchors: &Anchors, clock_accepted: bool) -> Result<(), String> {
        let (left, _) = self.store.left();
        // By what is sealed, not by what stands in the file now.
        let is_end = left.aftermath.ended && anchors.most.head.size == left.size;
        // A token that is away may know of more.
        let is_clean = is_end && anchors.is_whole;
        if is_end && !is_clean {
            tracing::warn!(
                "a token is away, and may know of a newer database: codes of the time steps up to now are not accepted"
            );
        } else if !is_clean {
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
            if let KeepError::Anchor(NoAnchor::Doubt(reason)) = error {
                return Err(reason);
            }
            if !std::mem::replace(&mut is_told, true) {
                tracing::warn!(%error, "no anchor of the log yet");
            }
            if !patience.again(ASK_AGAIN_AFTER).await {
                return Err(format!("the token takes no anchor of the log: {error}"));
            }
        }
    }
}
