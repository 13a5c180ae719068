//! What a start finds out before anybody is answered: whether the database is what the service left, or may have been
//! turned back or changed.
//!
//! The anchor in the token tells the least that the log must have; the sums tell whether every row is there once, as it
//! was sealed. What the log says of each row's version is asked only when something is wrong, to say which row it is.

mod diagnosis;
mod history;
mod sums;

use std::time::Duration;

use tokio::time::{Instant, sleep};

use self::history::History;
use super::Service;
use crate::domain::audit::{AuditEntry, Event, Logged};
use crate::domain::checkpoint::{Checkpoint, Head, Note};
use crate::domain::row::RowSum;
use crate::domain::time::{Floor, rfc3339};
use crate::hsm::HsmError;

/// How long a start waits for the HSM, whatever it asks.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How long after no answer it asks again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// A loss that is so far in the future was written down by a clock that was wrong: it does not lock anybody out until
/// then. In milliseconds.
const AHEAD_MS_MAX: u64 = 86_400_000;

const REMEDY: &str = "put the newest database back, or run \
    `hsm-authd recover --config FILE --accept-rollback` (docs/integrity.md)";

impl Service {
    /// Checks the database, and writes down that the service begins.
    ///
    /// # Errors
    /// One line for the operator: nothing may be answered from this database.
    pub async fn begin(&self) -> Result<(), String> {
        let begun = Instant::now();
        let anchor = self.read_anchor().await?;
        let head = self.store.head().borrow().clone();
        self.extends(&anchor, &head).await?;
        let rows = self.check_rows(&anchor, &head).await?;
        tracing::info!(
            rows,
            entries = head.size,
            anchored = anchor.head.size,
            ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
            "the database is what was left"
        );
        self.note_start(&anchor, &head).await
    }

    /// Why a start would refuse the database; `None`: it would not. Writes nothing down.
    pub(super) async fn objection(&self) -> Option<String> {
        let look = async {
            let anchor = self.read_anchor().await?;
            let head = self.store.head().borrow().clone();
            self.extends(&anchor, &head).await?;
            self.check_rows(&anchor, &head).await.map(drop)
        };
        let line: String = look.await.err()?;
        Some(line.strip_suffix(&format!("; {REMEDY}")).unwrap_or(&line).to_owned())
    }

    async fn read_anchor(&self) -> Result<Checkpoint, String> {
        let note = self.persist(|| self.hsm.read_anchor()).await?;
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

    /// Whether the log is that of the anchor, and has everything that the anchor covers.
    async fn extends(&self, anchor: &Checkpoint, head: &Head) -> Result<(), String> {
        let since = rfc3339(anchor.unix_s.saturating_mul(1_000));
        let known = &anchor.head;
        let is_first = known.origin.is_unclaimed() && known.size == 0;
        if known.origin != head.origin && !is_first {
            return Err(format!(
                "the database is another one than the token's: its log is {}, and the token knows {} since {since}; {REMEDY}",
                head.origin, known.origin
            ));
        }
        if head.size < known.size {
            return Err(format!(
                "the database was turned back: its log has {} entries, and the token knows of {} since {since}; {REMEDY}",
                head.size, known.size
            ));
        }
        let root = self.store.root_at(known.size).await.map_err(|error| error.to_string())?;
        if root != Some(known.root) {
            return Err(format!(
                "the database was turned back or its log changed: the first {} entries are not those that the token \
                 knows since {since}; {REMEDY}",
                known.size
            ));
        }
        Ok(())
    }

    /// How many rows there are, if all of them are what was left.
    ///
    /// The anchor's sum is believed; that in the database is not, since who changes rows can change it too, having seen
    /// how it changed before. So where the anchor is not of the last entry, the log's word on each row counts: up to the
    /// anchor nobody else can have written it, and behind it versions only go up.
    async fn check_rows(&self, anchor: &Checkpoint, head: &Head) -> Result<u64, String> {
        let (found, damage) = tokio::join!(sums::over_all_rows(self), self.store.damage());
        let found = match found {
            Ok(found) => found,
            Err(error) => return Err(self.unreadable().await?.unwrap_or(error)),
        };
        let (kept, unsplit) = self.store.table_sums().await.map_err(|error| error.to_string())?;
        let is_split = unsplit == RowSum::default();
        let tables = if is_split { found.differing(&kept) } else { Vec::new() };
        let adds_up = found.tampered.is_empty() && tables.is_empty() && found.sums.total() == head.sum;
        let known = &anchor.head;
        let is_anchored = known.size == head.size && !known.origin.is_unclaimed();
        if !adds_up || !is_anchored || known.sum != head.sum {
            let history = History::read(self, known).await?;
            let wrong = diagnosis::name(self, history, &tables, &found).await?;
            let wrong = match wrong {
                None if !adds_up => Some("its rows do not add up".to_owned()),
                None if is_anchored => Some("its rows do not add up to what the anchor knows".to_owned()),
                wrong => wrong,
            };
            if let Some(wrong) = wrong {
                return Err(format!("the database is not what the service left: {wrong}; {REMEDY}"));
            }
        }
        // Rows that are right, and an index that hides some of them.
        if let Some(damage) = damage.map_err(|error| error.to_string())? {
            return Err(format!("the database is not what the service left: {damage}; {REMEDY}"));
        }
        if !is_split {
            self.store.set_sums(found.sums).await.map_err(|error| error.to_string())?;
            tracing::info!("the sum of an earlier release is kept by table from here on");
        }
        Ok(found.rows)
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
    async fn note_start(&self, anchor: &Checkpoint, head: &Head) -> Result<(), String> {
        let last = self.store.last_entry().await.map_err(|error| error.to_string())?;
        let was_ended = last.is_none_or(|last| last.entry.event == Event::Stopped);
        let is_clean = was_ended && anchor.head.size == head.size;
        let event = if is_clean { Event::Started } else { Event::StartedUnclean };
        if !is_clean {
            tracing::warn!(
                "the service did not end as it should have: codes of the time steps up to now are not accepted"
            );
        }
        let now = self.now();
        let entry = AuditEntry::of_appliance(now.unix_ms, event);
        let _durable = self.log.note(entry).await.map_err(|error| error.to_string())?;
        let losses = self.store.losses().await.map_err(|error| error.to_string())?;
        self.clock.set_floor(floor(&losses, now.unix_ms));

        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.log.anchor(true).await {
                Ok(_) => return Ok(()),
                Err(error) if Instant::now() >= deadline => {
                    return Err(format!("the token takes no anchor of the log: {error}"));
                }
                Err(error) => {
                    tracing::warn!(%error, "no anchor of the log yet");
                    sleep(ASK_AGAIN_AFTER).await;
                }
            }
        }
    }

    /// Asks the HSM again as long as it does not answer: a custodian may still be coming up.
    async fn persist<T, A: Future<Output = Result<T, HsmError>>>(
        &self,
        mut ask: impl FnMut() -> A,
    ) -> Result<T, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match ask().await {
                Ok(answer) => return Ok(answer),
                Err(error) if Instant::now() >= deadline => return Err(error.to_string()),
                Err(_) => sleep(ASK_AGAIN_AFTER).await,
            }
        }
    }
}

/// Up to when what was accepted may be forgotten: the latest that any loss says, whatever its clock said before others,
/// but not beyond what an operator accepted since, nor beyond what can be true.
fn floor(entries: &[Logged], now_unix_ms: u64) -> Floor {
    let mut floor = Floor::default();
    for Logged { entry: AuditEntry { event, unix_ms, .. }, .. } in entries {
        let unix_ms = match *unix_ms <= now_unix_ms.saturating_add(AHEAD_MS_MAX) {
            true => *unix_ms,
            false => now_unix_ms,
        };
        match event {
            Event::StartedUnclean => floor.lost_unix_ms = floor.lost_unix_ms.max(unix_ms),
            Event::Recovered => floor.recovered_unix_ms = floor.recovered_unix_ms.max(unix_ms),
            Event::ClockAccepted => {
                floor.lost_unix_ms = floor.lost_unix_ms.min(unix_ms);
                floor.recovered_unix_ms = floor.recovered_unix_ms.min(unix_ms);
            }
            _ => {}
        }
    }
    floor
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::audit::RowMarks;

    #[test]
    fn the_latest_loss_counts_up_to_what_an_operator_accepted() {
        const NOW: u64 = 1_000_000_000;
        let of = |entries: &[(Event, u64)]| {
            let logged = |(event, unix_ms): &(Event, u64)| {
                let entry = AuditEntry::of_appliance(*unix_ms, *event);
                Logged { seq: 1, entry, rows: RowMarks::default() }
            };
            let Floor { lost_unix_ms, recovered_unix_ms } =
                floor(&entries.iter().map(logged).collect::<Vec<_>>(), NOW);
            (lost_unix_ms, recovered_unix_ms)
        };
        use Event::{ClockAccepted, ClockStepped, Recovered, StartedUnclean};
        assert_eq!(of(&[]), (0, 0));
        assert_eq!(
            of(&[(StartedUnclean, 5), (StartedUnclean, 3), (Recovered, 4)]),
            (5, 4),
            "a clock was behind"
        );
        assert_eq!(of(&[(StartedUnclean, 9), (Recovered, 8), (ClockStepped, 1), (ClockAccepted, 7)]), (7, 7));
        assert_eq!(of(&[(ClockAccepted, 7), (StartedUnclean, 9)]), (9, 0));
        assert_eq!(of(&[(StartedUnclean, NOW + AHEAD_MS_MAX)]), (NOW + AHEAD_MS_MAX, 0));
        assert_eq!(of(&[(StartedUnclean, NOW + AHEAD_MS_MAX + 1)]), (NOW, 0));
    }
}
