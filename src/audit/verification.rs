//! A log held against itself, its checkpoints and its rows: the first entry that does not fit.

use std::ops::ControlFlow;

use super::told::{ROWS_MAX, Told};
use crate::domain::audit::Logged;
use crate::domain::checkpoint::{Checkpoint, Note, Origin};
use crate::domain::ledger::Aftermath;
use crate::domain::log::{Frontier, LEVELS_A_TILE, Subtree, TreeHash};
use crate::domain::row::SumDigest;
use crate::domain::signer::PublicKey;
use crate::domain::time::rfc3339;
use crate::store::OpenError;
use crate::store::offline::{Entry, KeptNote, OfflineStore};

/// Where a checkpoint was found that nobody gave.
const IN_THE_DATABASE: &str = "in the database";

/// What the log is held against, besides what is in the database.
pub struct Evidence {
    /// Checkpoints that were kept elsewhere, and where.
    pub notes: Vec<(String, Note)>,
    /// Who may have signed checkpoints; none: no signature is checked.
    pub keys: Vec<PublicKey>,
}

/// What does not fit.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Misfit {
    /// An entry is not what was written.
    #[error("entry {0} does not fit: {1}")]
    Entry(u64, String),
    /// An entry is not there.
    #[error("entry {0} is missing: {1}")]
    Missing(u64, String),
    /// One of several is not what was written, and nothing says which.
    #[error("one of the entries {first} to {last} does not fit: {reason}")]
    Among {
        /// The first that it can be.
        first: u64,
        /// The last.
        last: u64,
        /// What says so.
        reason: String,
    },
    /// Something besides the entries.
    #[error("{0}")]
    Other(String),
}

impl From<OpenError> for Misfit {
    fn from(error: OpenError) -> Self {
        Self::Other(error.0)
    }
}

/// What a log is that fits.
#[derive(Debug)]
pub struct Report {
    /// Which log.
    pub origin: Origin,
    /// How many entries.
    pub size: u64,
    /// The root over them.
    pub root: TreeHash,
    /// When the first and the last entry were written.
    pub span_unix_ms: Option<(u64, u64)>,
    /// How many checkpoints are kept in the database.
    pub kept_notes: u64,
    /// A checkpoint is over so many entries.
    pub covered: u64,
    /// How many rows have the version that the log says.
    pub rows_told: u64,
    /// How many rows are older than what the log says of rows.
    pub rows_older: u64,
}

impl Report {
    /// How many entries no checkpoint covers.
    pub fn uncovered(&self) -> u64 {
        self.size.saturating_sub(self.covered)
    }
}

impl Report {
    /// Reads the whole database. Memory is bounded, whatever its size.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn of(store: &OfflineStore, evidence: Evidence) -> Result<Self, Misfit> {
        Self::within(store, evidence, ROWS_MAX)
    }

    fn within(store: &OfflineStore, evidence: Evidence, rows_max: usize) -> Result<Self, Misfit> {
        let mut walk = Walk::begin(store, evidence)?;
        let mut told = Told::new(rows_max, walk.believed()?);
        let misfit = store.entries(i64::MIN, |entry| match walk.step(entry, |logged| told.hear(logged)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(misfit) => ControlFlow::Break(misfit),
        })?;
        misfit.map_or(Ok(()), Err)?;
        walk.end()?;
        // Told if no entry is wrong.
        let mut wrong_row = None;
        loop {
            let misfit = store.rows(|_, row| {
                let wrong = row.map_or_else(Some, |row| told.see(&row.row));
                wrong.map_or(ControlFlow::Continue(()), ControlFlow::Break)
            })?;
            wrong_row = wrong_row.or(misfit).or_else(|| told.missing());
            if !told.next_pass() {
                break;
            }
            store.entries(0, |entry| {
                if let Ok(said) = &entry.said {
                    told.hear(&said.logged);
                }
                ControlFlow::<()>::Continue(())
            })?;
        }
        let (rows_told, rows_older) = told.counts();
        if let Some((seq, fault)) = told.first_fault() {
            return Err(Misfit::Entry(seq, fault));
        }
        if let Some(wrong) = wrong_row {
            return Err(Misfit::Other(wrong));
        }
        // Last: what is found above says more.
        if let Some(damage) = store.damage()? {
            return Err(Misfit::Other(format!("the database is damaged: {damage}")));
        }
        if walk.aftermath != store.ledger()?.aftermath {
            return Err(Misfit::Other(
                "what is kept of losses, of the clock and of the end is not what the entries say".to_owned(),
            ));
        }
        let Walk { keys, origin, frontier, span_unix_ms, kept_notes, covered, .. } = walk;
        let (size, root) = (frontier.size(), frontier.root());
        if !keys.is_empty() && covered == 0 {
            return Err(Misfit::Other(format!(
                "nothing signed covers this log: no checkpoint of it is kept or given, so anybody may have written its \
                 {size} entries"
            )));
        }
        Ok(Self { origin, size, root, span_unix_ms, kept_notes, covered, rows_told, rows_older })
    }
}

/// A checkpoint that waits for the log to be as long as it says.
struct Waiting {
    checkpoint: Checkpoint,
    /// Where it was found.
    place: String,
}

/// The way through the log.
struct Walk<'a> {
    store: &'a OfflineStore,
    keys: Vec<PublicKey>,
    origin: Origin,
    frontier: Frontier,
    span_unix_ms: Option<(u64, u64)>,
    /// Those that came with the question; the next one is last.
    given: Vec<Waiting>,
    /// The next one of those in the database.
    kept: Option<Waiting>,
    kept_notes: u64,
    /// A checkpoint over so many entries has fitted.
    covered: u64,
    /// What the entries so far leave for a start.
    aftermath: Aftermath,
    /// The sum of the last one that fitted, and its size.
    sum: Option<(u64, SumDigest)>,
    /// What is wrong besides entries: told if none of them is.
    besides: Option<Misfit>,
}

impl<'a> Walk<'a> {
    fn begin(store: &'a OfflineStore, evidence: Evidence) -> Result<Self, Misfit> {
        let mut walk = Self {
            store,
            keys: evidence.keys,
            origin: store.origin()?,
            frontier: Frontier::default(),
            span_unix_ms: None,
            given: Vec::new(),
            kept: None,
            kept_notes: 0,
            covered: 0,
            aftermath: Aftermath::default(),
            sum: None,
            besides: None,
        };
        for (place, note) in evidence.notes {
            let given = walk.credible(&note, place);
            walk.given.extend(given);
        }
        walk.given.sort_by_key(|waiting| std::cmp::Reverse(waiting.checkpoint.head.size));
        walk.read_kept_after(i64::MIN)?;
        walk.compare()?;
        Ok(walk)
    }

    /// Takes the next entry.
    fn step(&mut self, entry: Entry, heard: impl FnOnce(&Logged)) -> Result<(), Misfit> {
        let next = self.frontier.size().saturating_add(1);
        let Ok(seq) = u64::try_from(entry.seq) else { return Err(out_of_place(entry.seq)) };
        if seq > next {
            return Err(Misfit::Missing(next, format!("after entry {} comes entry {seq}", next - 1)));
        }
        if seq < next {
            return Err(out_of_place(entry.seq));
        }
        let said = entry.said.map_err(|fault| Misfit::Entry(seq, fault))?;
        if said.logged.leaf() != said.leaf {
            return Err(Misfit::Entry(seq, "its leaf is not the hash of what it says".to_owned()));
        }
        let unix_ms = said.logged.entry.unix_ms;
        self.span_unix_ms = Some((self.span_unix_ms.map_or(unix_ms, |(first, _)| first), unix_ms));
        self.aftermath.heed(said.logged.entry.event, unix_ms);
        heard(&said.logged);
        for subtree in self.frontier.push(said.leaf) {
            self.compare_subtree(subtree)?;
        }
        self.compare()
    }

    fn compare_subtree(&mut self, subtree: Subtree) -> Result<(), Misfit> {
        let Subtree { level, place, hash } = subtree;
        let last = self.frontier.size();
        let first = last.saturating_sub((1_u64 << level) - 1);
        match self.store.subtree(level, place)? {
            Some(kept) if kept == hash => {}
            Some(_) => {
                let first = first.max(self.covered.saturating_add(1)).min(last);
                return Err(Misfit::Among {
                    first,
                    last,
                    reason: "the hash that is kept of them is another".to_owned(),
                });
            }
            None => self.note_besides(format!("the hash over the entries {first} to {last} is not kept")),
        }
        Ok(())
    }

    /// Compares every checkpoint that is over as many entries as have come.
    fn compare(&mut self) -> Result<(), Misfit> {
        let size = self.frontier.size();
        while let Some(waiting) = self.given.pop_if(|waiting| waiting.checkpoint.head.size == size) {
            self.compare_with(waiting)?;
        }
        while let Some(waiting) = self.kept.take_if(|waiting| waiting.checkpoint.head.size == size) {
            self.compare_with(waiting)?;
            self.read_kept_after(size.cast_signed())?;
        }
        Ok(())
    }

    fn compare_with(&mut self, waiting: Waiting) -> Result<(), Misfit> {
        let Waiting { checkpoint, place } = waiting;
        let (size, unix_s) = (checkpoint.head.size, checkpoint.unix_s);
        let time = rfc3339(unix_s.saturating_mul(1_000));
        if checkpoint.head.root == self.frontier.root() {
            self.covered = size;
            self.sum = Some((size, checkpoint.head.sum));
            return Ok(());
        }
        if self.covered == size {
            return Err(Misfit::Other(format!(
                "the checkpoint of {time} over {size} entries, {place}, is not of this log"
            )));
        }
        Err(Misfit::Among {
            first: self.covered.saturating_add(1),
            last: size,
            reason: format!(
                "the root over the first {size} is not that of the checkpoint of {time}, {place}"
            ),
        })
    }

    /// After the last entry.
    fn end(&mut self) -> Result<(), Misfit> {
        let size = self.frontier.size();
        if let Some(Waiting { checkpoint, place }) = self.given.pop().or(self.kept.take()) {
            let time = rfc3339(checkpoint.unix_s.saturating_mul(1_000));
            let reason = format!(
                "the log ends with entry {size}, and the checkpoint of {time}, {place}, is over {}",
                checkpoint.head.size
            );
            return Err(Misfit::Missing(size.saturating_add(1), reason));
        }
        let strange = self.store.subtrees(|level, place| {
            let is_of_log = || {
                let (level, place) = (u8::try_from(level).ok()?, u64::try_from(place).ok()?);
                let is_kept = level > 0 && level < 64 && level.is_multiple_of(LEVELS_A_TILE);
                (is_kept && place < size >> level).then_some(())
            };
            match is_of_log() {
                Some(()) => ControlFlow::Continue(()),
                None => ControlFlow::Break((level, place)),
            }
        })?;
        if let Some((level, place)) = strange {
            let reason = format!("a hash is kept of subtree {place} of level {level}, which has later ones");
            return Err(Misfit::Missing(size.saturating_add(1), reason));
        }
        if let Some(besides) = self.besides.take() {
            return Err(besides);
        }
        let ledger = self.store.ledger()?;
        match self.sum {
            Some((of, sum)) if of == size && sum != ledger.head().sum => Err(Misfit::Other(
                "the sum over all rows is not that of the checkpoint over the whole log".to_owned(),
            )),
            _ => Ok(()),
        }
    }

    /// Reads the next checkpoint of the database that can be believed.
    fn read_kept_after(&mut self, above: i64) -> Result<(), Misfit> {
        let mut above = above;
        while let Some(kept) = self.store.next_note(above)? {
            self.kept_notes += 1;
            above = kept.size;
            let Some(note) = parsed(&kept) else {
                self.note_besides(format!(
                    "what is kept as the checkpoint over {} entries is none",
                    kept.size
                ));
                continue;
            };
            self.kept = self.credible(&note, IN_THE_DATABASE.to_owned());
            if self.kept.is_some() {
                break;
            }
        }
        Ok(())
    }

    /// How many entries the last checkpoint covers that can be believed, fit or not; all of them, if there is none.
    fn believed(&self) -> Result<u64, Misfit> {
        let mut last = self.given.iter().map(|waiting| waiting.checkpoint.head.size).max();
        let mut below = i64::MAX;
        while let Some(kept) = self.store.last_note(below)? {
            below = kept.size;
            if let Some(note) = parsed(&kept).filter(|note| self.objection(note).is_none()) {
                last = last.max(Some(note.unverified().head.size));
                break;
            }
        }
        Ok(last.unwrap_or(u64::MAX))
    }

    /// A checkpoint of this log, signed as it must be.
    fn credible(&mut self, note: &Note, place: String) -> Option<Waiting> {
        let Checkpoint { head, unix_s } = note.unverified();
        if let Some(objection) = self.objection(note) {
            let time = rfc3339(unix_s.saturating_mul(1_000));
            self.note_besides(format!(
                "the checkpoint of {time} over {} entries, {place}, is {objection}",
                head.size
            ));
            return None;
        }
        Some(Waiting { checkpoint: note.unverified().clone(), place })
    }

    /// Why a checkpoint says nothing of this log.
    fn objection(&self, note: &Note) -> Option<String> {
        let origin = &note.unverified().head.origin;
        if !self.keys.is_empty() && note.verified(&self.keys).is_none() {
            return Some("not signed by a key that was given".to_owned());
        }
        (*origin != self.origin).then(|| format!("of the log {origin}, and this one is {}", self.origin))
    }

    fn note_besides(&mut self, what: String) {
        self.besides.get_or_insert(Misfit::Other(what));
    }
}

/// The note of a checkpoint, if it is the one that it is kept as.
fn parsed(kept: &KeptNote) -> Option<Note> {
    let fits = |note: &Note| {
        let Checkpoint { head, unix_s } = note.unverified();
        head.size.cast_signed() == kept.size && i64::try_from(*unix_s) == Ok(kept.unix_ms.div_euclid(1_000))
    };
    Note::parse(&kept.note).filter(fits)
}

fn out_of_place(seq: i64) -> Misfit {
    Misfit::Other(format!("an entry has the number {seq}, which none can have"))
}
