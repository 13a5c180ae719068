//! What is found before anything is changed.

use std::collections::BTreeMap;

use super::{PAGE, Recovery, RecoveryError};
use crate::clock::STEP_MS_MAX;
use crate::domain::checkpoint::{Checkpoint, Head, Note};
use crate::domain::log::TreeHash;
use crate::domain::row::{Row, RowKey, Sealed, Table, TableSums};
use crate::domain::time::rfc3339;
use crate::store::{Found, Place};

/// From how many rows of one key on it is told from rows that were tampered with that the key is missing.
const OF_ONE_KEY: u64 = 10;

/// What is found before anything is changed.
#[derive(Clone, Debug)]
pub struct Survey {
    /// What the token knows; `None`: it has no anchor.
    pub anchor: Option<Checkpoint>,
    /// What the database has.
    pub head: Head,
    /// Why its log is not the one that the token knows; `None`: it is.
    pub turned_back: Option<String>,
    /// What is wrong with its rows, whatever its log is; `None`: nothing.
    pub damaged: Option<String>,
    /// How many rows are right.
    pub rows: u64,
    /// Those that are not, by name.
    pub wrong: Vec<String>,
}

impl Survey {
    /// Whether the database is what the service left.
    pub fn is_sound(&self) -> bool {
        self.turned_back.is_none() && self.damaged.is_none()
    }
}

impl Recovery {
    /// Looks at the log, the anchor and every row. Changes nothing.
    ///
    /// # Errors
    /// The database or the HSM cannot be asked, the HSM has not the keys of the rows, or the clock is behind what is known.
    pub async fn survey(&self) -> Result<Survey, RecoveryError> {
        let note = self.hsm.read_anchor().await?;
        let anchor = note.as_deref().and_then(Note::parse).map(|note| note.unverified().clone());
        let size = anchor.as_ref().map_or(0, |anchor| anchor.head.size);
        let (head, roots) = self.store.whole_log(vec![size]).await?;
        self.check_clock(anchor.as_ref()).await?;

        let (mut sums, mut rows, mut wrong) = (TableSums::default(), 0_u64, Vec::new());
        let mut of_keys: BTreeMap<u16, (u64, u64)> = BTreeMap::new();
        let mut after = None;
        loop {
            let page = self.judged(after).await?;
            sums.add_all(&self.add_up(page.right.iter().map(Sealed::to_bytes).collect()).await?);
            for row in &page.right {
                of_keys.entry(row.seal.key_version).or_default().0 += 1;
            }
            for row in &page.wrong {
                if let Found::Readable(row) = row {
                    of_keys.entry(row.seal.key_version).or_default().1 += 1;
                }
                wrong.push(name(row));
            }
            rows = rows.saturating_add(page.right.len() as u64);
            after = page.last;
            if after.is_none() {
                break;
            }
        }
        let missing = of_keys.iter().find(|(_, (right, wrong))| *right == 0 && *wrong > OF_ONE_KEY);
        if let Some((version, (_, count))) =
            missing.or_else(|| of_keys.iter().next().filter(|_| rows == 0 && !wrong.is_empty()))
        {
            return Err(RecoveryError(format!(
                "none of {count} rows is what hsm-authd/row/v{version} sealed: this token is not that of the database, or \
                 has lost the key; nothing was changed"
            )));
        }
        let (kept, unsplit) = self.store.table_sums().await?;
        let is_summed = sums.total() == kept.total().plus(unsplit);
        let turned_back = fault(anchor.as_ref(), &head, roots.first().copied().flatten());
        let damaged = match (wrong.is_empty(), is_summed) {
            (false, _) => Some("rows are not what was sealed".to_owned()),
            (true, false) => Some("rows are missing, doubled or old: their sum is wrong".to_owned()),
            (true, true) if turned_back.is_some() => None,
            // What else a start holds against it: a sum can be made to fit.
            (true, true) => self.service.objection().await,
        };
        Ok(Survey { anchor, head, turned_back, damaged, rows, wrong })
    }

    /// Time marks are made of this clock: one that is behind would leave codes that were used within reach.
    async fn check_clock(&self, anchor: Option<&Checkpoint>) -> Result<(), RecoveryError> {
        let last_ms = self.store.last_audit_unix_ms().await?.unwrap_or(0);
        let known_ms = anchor.map_or(0, |anchor| anchor.unix_s.saturating_mul(1_000)).max(last_ms);
        match self.now.unix_ms.saturating_add(STEP_MS_MAX) < known_ms {
            false => Ok(()),
            true => Err(RecoveryError(format!(
                "the wall clock says {}, and {} has passed already: set it right first",
                rfc3339(self.now.unix_ms),
                rfc3339(known_ms)
            ))),
        }
    }

    /// A page of rows, those apart that are not what was sealed.
    pub(super) async fn judged(&self, after: Option<Place>) -> Result<Judged, RecoveryError> {
        let (found, last) = self.store.rows_found(after, PAGE).await?;
        let (readable, mut wrong): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|found| matches!(found, Found::Readable(_)));
        let rows: Vec<Sealed<Row>> = readable
            .into_iter()
            .filter_map(|found| match found {
                Found::Readable(row) => Some(*row),
                Found::Unreadable(_) => None,
            })
            .collect();
        let tampered = self.hsm.tampered(rows.iter().map(Sealed::to_bytes).collect()).await?;
        let mut right = Vec::with_capacity(rows.len());
        for (place, row) in rows.into_iter().enumerate() {
            match tampered.contains(&place) {
                true => wrong.push(Found::Readable(Box::new(row))),
                false => right.push(row),
            }
        }
        Ok(Judged { right, wrong, last })
    }
}

/// A page of rows.
pub(super) struct Judged {
    pub right: Vec<Sealed<Row>>,
    pub wrong: Vec<Found>,
    pub last: Option<Place>,
}

/// Why a database is not the one that its token knows; `None`: it is. `root` is that of as many entries as the anchor has.
fn fault(anchor: Option<&Checkpoint>, head: &Head, root: Option<TreeHash>) -> Option<String> {
    let Some(Checkpoint { head: known, unix_s }) = anchor else {
        return Some("the token has no anchor of the log: it was removed".to_owned());
    };
    if known.origin.is_unclaimed() && known.size == 0 {
        return None;
    }
    let since = rfc3339(unix_s.saturating_mul(1_000));
    if known.origin != head.origin {
        return Some(format!(
            "its log is {}, and the token knows {} since {since}",
            head.origin, known.origin
        ));
    }
    if head.size < known.size {
        return Some(format!(
            "its log has {} entries, and the token knows of {} since {since}: it was turned back",
            head.size, known.size
        ));
    }
    (root != Some(known.root)).then(|| {
        format!(
            "the first {} entries of its log are not those that the token knows since {since}",
            known.size
        )
    })
}

/// What a row is called, to people and in the log. Not by its account, which is the bank's.
pub(super) fn name(found: &Found) -> String {
    match found {
        Found::Readable(row) => {
            let key = row.row.key();
            let table = key.table().name();
            match &key {
                RowKey::Credential(id)
                | RowKey::State(id)
                | RowKey::Binding(id)
                | RowKey::Authorization(id) => {
                    format!("{table} {id}")
                }
                RowKey::Transaction(id) | RowKey::Attestation(id) => format!("{table} {id}"),
                RowKey::Presentation(id) => format!("{table} {id}"),
                _ => format!("{table} {:032x}", u128::from_be_bytes(key.digest())),
            }
        }
        Found::Unreadable(place) => {
            format!("{}, one that cannot be read", place.table().map_or("", Table::name))
        }
    }
}
