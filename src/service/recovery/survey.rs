//! What is found before anything is changed.

use std::collections::BTreeMap;

use super::{ASK_AGAIN_AFTER, PAGE, PATIENCE, Recovery, RecoveryError, persist};
use crate::clock::STEP_MS_MAX;
use crate::domain::anchors::Seen;
use crate::domain::checkpoint::{Checkpoint, Head};
use crate::domain::row::{Row, RowKey, Sealed, Table, TableSums};
use crate::domain::time::rfc3339;
use crate::service::log::of_token;
use crate::service::patience::Patience;
use crate::store::{Damage, Found, JudgedLog, Place};

/// From how many rows of one key on it is told from rows that were tampered with that the key is missing.
const OF_ONE_KEY: u64 = 10;

/// So far ahead of all that log and token know of the wall clock is not believed without a word of the operator: all time
/// marks are made of it, and none comes back. In milliseconds: longer than appliances are away for, mostly.
const AHEAD_MS_MAX: u64 = 30 * DAY_MS;
const DAY_MS: u64 = 86_400_000;

/// What is found before anything is changed.
#[derive(Clone, Debug)]
pub struct Survey {
    /// What the token knows; of several, what the one does that knows most. `None`: it has no anchor.
    pub anchor: Option<Checkpoint>,
    /// What each token says, by its name.
    pub tokens: Vec<(String, Seen)>,
    /// What the database has, as far as its log fits.
    pub head: Head,
    /// What does not fit of its log itself; `None`: all of it does.
    pub log: Option<Damage>,
    /// Why its log, as far as it fits, is not the one that the token knows; `None`: it is.
    pub turned_back: Option<String>,
    /// What is wrong with its log or its rows, whatever log it is; `None`: nothing.
    pub damaged: Option<String>,
    /// How many rows are right.
    pub rows: u64,
    /// Those that are not, by name.
    pub wrong: Vec<String>,
    /// Why the wall clock may be wrong; `None`: nothing says so.
    pub clock_doubt: Option<String>,
}

impl Survey {
    /// The tokens that were not asked.
    pub fn away(&self) -> impl Iterator<Item = &str> {
        let is_away = |(_, seen): &&(String, Seen)| *seen == Seen::Away;
        self.tokens.iter().filter(is_away).map(|(name, _)| name.as_str())
    }

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
        let seen = self.seen().await?;
        let anchors = || {
            seen.iter().filter_map(|seen| match seen {
                Seen::Anchor(anchor) => Some(anchor),
                Seen::Away | Seen::Nothing => None,
            })
        };
        let anchor = anchors().max_by_key(|anchor| (anchor.head.size, anchor.unix_s)).cloned();
        let sizes = anchors().map(|anchor| anchor.head.size).collect();
        let JudgedLog { head, roots, last_unix_ms, clock_stepped, damage: log } =
            self.store.judged_log(sizes).await?;
        let objections = anchors().zip(roots).map(|(anchor, root)| {
            // That it is too short is because it was damaged.
            anchor.objection(&head, root).filter(|_| log.is_none() || root.is_some())
        });
        let mut objections = objections.collect::<Vec<_>>().into_iter();
        let mut turned_back = None;
        for (token, seen) in seen.iter().enumerate() {
            let reason = match seen {
                Seen::Away => None,
                Seen::Nothing => Some("the token has no anchor of the log: it was removed".to_owned()),
                Seen::Anchor(_) => objections.next().flatten(),
            };
            turned_back = turned_back.or(reason.map(|reason| of_token(&self.hsm, token, reason)));
        }
        let known_ms = anchor.as_ref().map(|anchor| anchor.unix_s.saturating_mul(1_000)).max(last_unix_ms);
        self.check_clock(known_ms.unwrap_or(0))?;
        let clock_doubt = self.clock_doubt(known_ms, clock_stepped);

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
        let is_summed = self.store.left().0.differing(&sums).is_none();
        let damaged = match (wrong.is_empty(), is_summed) {
            _ if log.is_some() => log.as_ref().map(|damage| damage.reason.clone()),
            (false, _) => Some("rows are not what was sealed".to_owned()),
            (true, false) => Some("rows are missing, doubled or old: their sum is wrong".to_owned()),
            (true, true) if turned_back.is_some() => None,
            // What else a start holds against it: a sum can be made to fit.
            (true, true) => self.service.objection().await,
        };
        let named = |(token, seen)| (self.hsm.token_name(token), seen);
        let tokens = seen.into_iter().enumerate().map(named).collect();
        Ok(Survey { anchor, tokens, head, log, turned_back, damaged, rows, wrong, clock_doubt })
    }

    /// What the tokens say that are there.
    async fn seen(&self) -> Result<Vec<Seen>, RecoveryError> {
        let mut patience = Patience::new(&self.hsm, PATIENCE);
        loop {
            let (seen, failure) = self.service.see_anchors().await.map_err(RecoveryError)?;
            let Some(failure) = failure.filter(|_| seen.iter().all(|seen| *seen == Seen::Away)) else {
                return Ok(seen);
            };
            if !patience.again(ASK_AGAIN_AFTER).await {
                return Err(failure.into());
            }
        }
    }

    /// Time marks are made of this clock: one that is behind would leave codes that were used within reach.
    fn check_clock(&self, known_ms: u64) -> Result<(), RecoveryError> {
        match self.now.unix_ms.saturating_add(STEP_MS_MAX) < known_ms {
            false => Ok(()),
            true => Err(RecoveryError(format!(
                "the wall clock says {}, and {} has passed already: set it right first",
                rfc3339(self.now.unix_ms),
                rfc3339(known_ms)
            ))),
        }
    }

    /// One that is ahead would lock users out for as long, and its marks stay when it is set right.
    fn clock_doubt(&self, known_ms: Option<u64>, clock_stepped: bool) -> Option<String> {
        let now = rfc3339(self.now.unix_ms);
        let known_ms = known_ms?;
        let ahead_ms = self.now.unix_ms.saturating_sub(known_ms);
        if ahead_ms > AHEAD_MS_MAX {
            return Some(format!(
                "the wall clock says {now}, which is {} days after {}, the last that log and token know of",
                ahead_ms / DAY_MS,
                rfc3339(known_ms)
            ));
        }
        clock_stepped.then(|| {
            format!(
                "the log says that the wall clock stepped, and no operator accepted it since; it says {now}"
            )
        })
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
        let tampered =
            persist(&self.hsm, || self.hsm.tampered(rows.iter().map(Sealed::to_bytes).collect())).await?;
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
