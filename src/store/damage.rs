//! A log that somebody or something damaged: how far it fits, entry by entry from the first, and what a recovery makes of
//! the rest.

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row as SqlRow, params};

use super::columns::{self, Fault};
use super::ledger::{self, Ledger};
use super::reads::all;
use super::reads::log::{LoggedLeaf, logged_leaf};
use super::{Commit, CommitError, ReadError, Store};
use crate::domain::audit::{AuditEntry, Event, Logged};
use crate::domain::checkpoint::{Head, Origin};
use crate::domain::log::{Frontier, LEVELS_A_TILE, Subtree, TreeHash};

/// Entries that no log has, and those behind the last one that stays.
const ASIDE: &str = "(seq < 1 OR seq > ?1)";

/// A log, read from its first entry.
#[derive(Clone, Debug)]
pub struct JudgedLog {
    /// Its head after the last entry that fits.
    pub head: Head,
    /// The roots that it had at the sizes that were asked for; `None`: there are not so many entries that fit.
    pub roots: Vec<Option<TreeHash>>,
    /// When the last entry that fits was made, in milliseconds since 1970.
    pub last_unix_ms: Option<u64>,
    /// Whether the wall clock stepped, and no operator accepted it since.
    pub clock_stepped: bool,
    /// What is wrong with it; `None`: nothing.
    pub damage: Option<Damage>,
}

/// What is wrong with a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What it is, in words for an operator.
    pub reason: String,
    /// The first so many entries fit.
    pub kept: u64,
    /// So many entries are there besides.
    pub aside: u64,
}

/// An entry that is to be set aside.
#[derive(Clone, Debug)]
pub struct EntryAside {
    /// The number that it stands under.
    pub seq: i64,
    /// What it says, else its columns.
    pub said: Result<LoggedLeaf, Vec<RawColumn>>,
}

/// A column as it is.
#[derive(Clone, Debug)]
pub struct RawColumn {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: RawValue,
}

/// A value, whatever it is.
#[derive(Clone, Debug)]
pub enum RawValue {
    /// There is none.
    Nothing,
    /// A number.
    Number(i64),
    /// A text that need not be one, or bytes.
    Bytes(Vec<u8>),
}

impl Store {
    /// Reads the whole log, each leaf computed from its entry, as far as it fits.
    ///
    /// # Errors
    /// SQLite failed.
    pub async fn judged_log(&self, sizes: Vec<u64>) -> Result<JudgedLog, ReadError> {
        self.read(move |tx| judge(tx, &sizes)).await
    }

    /// A page of the entries that are not among the first `kept`, in the order of their numbers: those after `after`.
    ///
    /// # Errors
    /// SQLite failed.
    pub async fn entries_aside(
        &self,
        kept: u64,
        after: i64,
        limit: u16,
    ) -> Result<Vec<EntryAside>, ReadError> {
        let sql = format!("SELECT * FROM audit WHERE {ASIDE} AND seq > ?2 ORDER BY seq LIMIT ?3");
        self.read(move |tx| all(tx, &sql, params![kept.cast_signed(), after, limit], entry_aside)).await
    }

    /// Removes all entries but the first `kept`, makes the kept hashes of the tree anew, and gives the log another origin
    /// and its next entry: all of it or nothing.
    ///
    /// # Errors
    /// As for [`Store::commit`]. Also if the first `kept` entries do not fit.
    pub async fn cut_log(&self, kept: u64, origin: Origin, next: AuditEntry) -> Result<(), CommitError> {
        self.keep_up(Box::new(move |connection, ledger| {
            connection.execute(&format!("DELETE FROM audit WHERE {ASIDE}"), [kept.cast_signed()])?;
            connection.execute("DELETE FROM audit_subtree", [])?;
            let mut subtrees = Vec::new();
            let walked = walk(connection, |_, _, completed| subtrees.extend_from_slice(completed));
            let fitting = match walked {
                Ok((fitting, None)) if fitting.size() == kept => fitting,
                Err(Fault::Sql(error)) => return Err(error),
                // It is another database than was judged.
                Ok(_) | Err(_) => return Err(rusqlite::Error::QueryReturnedNoRows),
            };
            subtrees.into_iter().try_for_each(|subtree| ledger::keep(connection, subtree))?;
            connection.execute("DELETE FROM checkpoint", [])?;
            ledger.cut(fitting);
            ledger.set_origin(connection, origin)?;
            ledger.append(connection, &Commit::of_entry(next))
        }))
        .await
    }
}

/// The ledger of a database whose log may be damaged: up to the last entry that fits. Nothing may be appended before the
/// rest is gone.
pub(super) fn ledger(connection: &Connection) -> Result<Ledger, Fault> {
    Ledger::load(connection).or_else(|_| {
        let (fitting, _) = walk(connection, |_, _, _| ())?;
        Ok(Ledger::left(connection, fitting))
    })
}

/// See [`Store::judged_log`].
pub(super) fn judge(connection: &Connection, sizes: &[u64]) -> Result<JudgedLog, Fault> {
    let (mut last_unix_ms, mut clock_stepped, mut wrong_hash) = (None, false, None);
    let mut roots: Vec<_> = sizes.iter().map(|size| (*size == 0).then(TreeHash::of_nothing)).collect();
    let mut kept = connection.prepare("SELECT hash FROM audit_subtree WHERE level = ?1 AND place = ?2")?;
    let (fitting, misfit) = walk(connection, |logged, frontier, completed| {
        for (root, size) in roots.iter_mut().zip(sizes) {
            if *size == frontier.size() {
                *root = Some(frontier.root());
            }
        }
        last_unix_ms = Some(logged.entry.unix_ms);
        match logged.entry.event {
            Event::ClockStepped => clock_stepped = true,
            Event::ClockAccepted => clock_stepped = false,
            _ => {}
        }
        for Subtree { level, place, hash } in completed {
            let values = params![level, place.cast_signed()];
            let there = kept.query_row(values, |row| row.get::<_, [u8; 32]>(0));
            if there.ok() != Some(hash.0) {
                let last = frontier.size();
                let count = 1_u64.checked_shl(u32::from(*level)).unwrap_or(last);
                wrong_hash.get_or_insert_with(|| {
                    format!(
                        "the hash that is kept of the {count} entries up to {last} of the log is not theirs"
                    )
                });
            }
        }
    })?;
    let size = fitting.size();
    let count = |sql: &str, values: &[i64]| -> Result<u64, Fault> {
        let count =
            connection.query_row(sql, rusqlite::params_from_iter(values), |row| row.get::<_, i64>(0))?;
        Ok(count.cast_unsigned())
    };
    let aside = count(&format!("SELECT count(*) FROM audit WHERE {ASIDE}"), &[size.cast_signed()])?;
    let levels = (1_u8..8).map(|number| number.saturating_mul(LEVELS_A_TILE));
    let complete: u64 = levels.map(|level| size >> level).sum();
    let hashes = count("SELECT count(*) FROM audit_subtree", &[])?;
    // The first of these says most.
    let reason = misfit
        .or_else(|| (aside > 0).then(|| "entries have numbers that none can have".to_owned()))
        .or(wrong_hash)
        .or_else(|| (hashes != complete).then(|| "hashes are kept of entries that are not there".to_owned()));
    let damage = reason.map(|reason| Damage { reason, kept: size, aside });
    let head = Ledger::left(connection, fitting).head();
    Ok(JudgedLog { head, roots, last_unix_ms, clock_stepped, damage })
}

/// The tree over the first entries that fit, and why the next one does not. `each` sees them with the tree up to there,
/// and the subtrees that they complete.
fn walk(
    connection: &Connection,
    mut each: impl FnMut(&Logged, &Frontier, &[Subtree]),
) -> Result<(Frontier, Option<String>), Fault> {
    let mut frontier = Frontier::default();
    let mut entries = connection.prepare("SELECT * FROM audit WHERE seq > 0 ORDER BY seq")?;
    let mut rows = entries.query([])?;
    while let Some(row) = rows.next()? {
        let next = frontier.size().saturating_add(1);
        let logged = match fitting(row, next)? {
            Ok(logged) => logged,
            Err(misfit) => return Ok((frontier, Some(misfit))),
        };
        let completed = frontier.push(logged.leaf());
        each(&logged, &frontier, &completed);
    }
    Ok((frontier, None))
}

/// The entry that stands there, if it is number `next`.
fn fitting(row: &SqlRow<'_>, next: u64) -> Result<Result<Logged, String>, Fault> {
    if row.get::<_, i64>("seq")? != next.cast_signed() {
        return Ok(Err(format!("entry {next} of the log is missing")));
    }
    let misfit =
        |why: String| Ok(Err(format!("entry {next} of the log is not what was written there: {why}")));
    match (columns::audit(row), ledger::leaf(row)) {
        (Err(fault @ Fault::Invalid { .. }), _) | (_, Err(fault @ Fault::Invalid { .. })) => {
            misfit(fault.to_string())
        }
        (Err(fault), _) | (_, Err(fault)) => Err(fault),
        (Ok(logged), Ok(leaf)) if leaf == Some(logged.leaf()) => Ok(Ok(logged)),
        (Ok(_), Ok(_)) => misfit("its leaf is not the hash of what it says".to_owned()),
    }
}

fn entry_aside(row: &SqlRow<'_>) -> Result<EntryAside, Fault> {
    let seq = row.get("seq")?;
    match logged_leaf(row) {
        Ok(said) if seq > 0 => Ok(EntryAside { seq, said: Ok(said) }),
        Ok(_) | Err(_) => Ok(EntryAside { seq, said: Err(raw(row)?) }),
    }
}

fn raw(row: &SqlRow<'_>) -> Result<Vec<RawColumn>, Fault> {
    let columns = row.as_ref().column_names().enumerate();
    let raw = columns.map(|(place, name)| {
        let value = match row.get_ref(place)? {
            ValueRef::Null => RawValue::Nothing,
            ValueRef::Integer(number) => RawValue::Number(number),
            ValueRef::Real(number) => RawValue::Bytes(number.to_be_bytes().to_vec()),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => RawValue::Bytes(bytes.to_vec()),
        };
        Ok(RawColumn { name: name.to_owned(), value })
    });
    raw.collect()
}
