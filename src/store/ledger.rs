//! What the store keeps besides rows: the log with its tree, the sums over all rows, and the seal over these.
//!
//! The writer has them in memory. They are changed inside its transaction as a copy, which takes the place of the old
//! one after COMMIT.

use std::sync::Arc;

use rusqlite::{Connection, Row, Rows, params};
use subtle::ConstantTimeEq;

use super::Commit;
use super::columns::{self, Fault};
use super::rows::change;
use crate::domain::audit::{Logged, RowMark, RowMarks};
use crate::domain::checkpoint::{Head, Origin};
use crate::domain::ledger::{Aftermath, LedgerSeal, LedgerState};
use crate::domain::log::{Frontier, LEVELS_A_TILE, Subtree, TreeHash};
use crate::domain::row::{RowSum, SumDigest, Table, TableSums};
use crate::domain::time::{Floor, RunId};
use crate::secret::MacKey;

/// What the sum of an earlier release stands under, until it is split.
const UNSPLIT: &str = "";

/// What seals the ledger during one run.
pub struct RunKey {
    /// The version of `row` that it comes from.
    pub key_version: u16,
    /// The run.
    pub run: RunId,
    /// The key.
    pub key: MacKey,
}

impl RunKey {
    /// The seal of a state.
    pub fn seal(&self, state: &LedgerState) -> LedgerSeal {
        LedgerSeal { key_version: self.key_version, run: self.run, mac: self.key.mac(&state.encode()) }
    }

    /// Whether a seal is that of a state; constant-time in the seal.
    pub fn verify(&self, state: &LedgerState, seal: &LedgerSeal) -> bool {
        self.seal(state).mac.ct_eq(&seal.mac).into()
    }
}

/// The log's right edge and the sums, as of the last commit.
#[derive(Clone)]
pub(super) struct Ledger {
    origin: Origin,
    frontier: Frontier,
    sums: TableSums,
    /// The sum over all tables that an earlier release left.
    unsplit: RowSum,
    /// Whether of each sum only the first number is known.
    is_of_first: bool,
    aftermath: Aftermath,
    /// As it is in the database; right for what it is kept with once there is a key.
    seal: Option<LedgerSeal>,
    key: Option<Arc<RunKey>>,
}

impl Ledger {
    /// As the database has it. The entries behind the last kept subtree are held against their leaves.
    pub fn load(connection: &Connection) -> Result<Self, Fault> {
        let frontier = frontier(connection, size(connection)?)?;
        let (sums, unsplit) = sums(connection)?;
        let (aftermath, seal) = (aftermath(connection)?, seal(connection)?);
        let (origin, is_of_first) = (origin(connection)?, seal.is_none());
        Ok(Self { origin, frontier, sums, unsplit, is_of_first, aftermath, seal, key: None })
    }

    /// Of a log with this right edge, and whatever can be read of the rest: for a recovery, which makes it anew.
    pub fn left(connection: &Connection, frontier: Frontier) -> Self {
        let (sums, unsplit) = sums(connection).unwrap_or_default();
        let (aftermath, seal) = (aftermath(connection).unwrap_or_default(), seal(connection).ok().flatten());
        let origin = origin(connection).unwrap_or_else(|_| Origin::unclaimed());
        let is_of_first = seal.is_none();
        Self { origin, frontier, sums, unsplit, is_of_first, aftermath, seal, key: None }
    }

    /// All of it.
    pub fn state(&self) -> LedgerState {
        LedgerState {
            origin: self.origin.clone(),
            size: self.frontier.size(),
            root: self.frontier.root(),
            sums: self.sums.clone(),
            unsplit: self.unsplit,
            is_of_first: self.is_of_first,
            aftermath: self.aftermath,
        }
    }

    /// The seal that it was loaded with, or that was made last.
    pub fn seal(&self) -> Option<LedgerSeal> {
        self.seal
    }

    /// The head of the log.
    pub fn head(&self) -> Head {
        self.state().head()
    }

    /// From here on it is sealed with each change.
    pub fn set_key(&mut self, key: Arc<RunKey>) {
        self.key = Some(key);
    }

    /// Keeps what has changed besides the log and the sums. Without a key the old seal stays, and is of something else
    /// from now on.
    pub fn settle(&mut self, connection: &Connection) -> rusqlite::Result<()> {
        let seal = self.key.as_ref().map(|key| key.seal(&self.state())).or(self.seal);
        put_aftermath(connection, &self.aftermath)?;
        change(
            connection,
            "UPDATE log_head SET run = ?1, seal_key_version = ?2, seal = ?3",
            params![
                seal.map(|seal| seal.run.0),
                seal.map(|seal| seal.key_version),
                seal.map(|seal| seal.mac)
            ],
        )?;
        self.seal = seal;
        Ok(())
    }

    /// How many entries the log has.
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Appends the entry of a commit that is being written.
    pub fn append(&mut self, connection: &Connection, commit: &Commit) -> rusqlite::Result<()> {
        let written = commit.rows.iter().map(|row| RowMark::written(&row.row.key(), row.row.version()));
        let removed = commit.removed.iter().map(RowMark::removed);
        let logged = Logged {
            seq: self.frontier.size().saturating_add(1),
            entry: commit.audit.clone(),
            rows: RowMarks(written.chain(removed).collect()),
        };
        let leaf = logged.leaf();
        insert(connection, &logged, leaf)?;
        for subtree in self.frontier.push(leaf) {
            keep(connection, subtree)?;
        }
        self.aftermath.heed(logged.entry.event, logged.entry.unix_ms);
        Ok(())
    }

    /// Changes the sums by those of a group's commits.
    pub fn add(&mut self, connection: &Connection, changed: &TableSums) -> rusqlite::Result<()> {
        self.sums.add_all(changed);
        changed.tables().try_for_each(|table| put_sum(connection, table.name(), self.sums.of(table)))
    }

    /// Sets the sums to what they were found to be; what an earlier release left is told apart by then.
    pub fn set_sums(&mut self, connection: &Connection, sums: TableSums) -> rusqlite::Result<()> {
        connection.execute("DELETE FROM table_sum", [])?;
        sums.tables().try_for_each(|table| put_sum(connection, table.name(), sums.of(table)))?;
        (self.sums, self.unsplit, self.is_of_first) = (sums, RowSum::default(), false);
        Ok(())
    }

    /// What was behind this edge is gone from the log.
    pub fn cut(&mut self, frontier: Frontier) {
        self.frontier = frontier;
    }

    /// From here on it is another log: its entries stay, and no checkpoint of the old one has to be extended.
    pub fn set_origin(&mut self, connection: &Connection, origin: Origin) -> rusqlite::Result<()> {
        // Whatever stands there; the rest of it is written with the next seal.
        connection.execute("DELETE FROM log_head", [])?;
        change(connection, "INSERT INTO log_head (only, origin) VALUES (1, ?1)", params![origin.as_str()])?;
        self.origin = origin;
        Ok(())
    }
}

/// The sums as kept: one a table, and what an earlier release left.
pub(super) fn sums(connection: &Connection) -> Result<(TableSums, RowSum), Fault> {
    let invalid = |column| Fault::Invalid { table: "table_sum", column };
    let (mut sums, mut unsplit) = (TableSums::default(), RowSum::default());
    let mut statement = connection.prepare_cached("SELECT name, sum FROM table_sum")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let name: String = row.get(0)?;
        let bytes = row.get_ref(1)?.as_blob().map_err(|_| invalid("sum"))?;
        let sum = RowSum::from_bytes(bytes).ok_or(invalid("sum"))?;
        match Table::parse(&name) {
            Some(table) => sums.add(table, sum),
            None if name == UNSPLIT => unsplit = sum,
            None => return Err(invalid("name")),
        }
    }
    Ok((sums, unsplit))
}

/// Which log it is.
pub(super) fn origin(connection: &Connection) -> Result<Origin, Fault> {
    let text: String =
        connection.query_row("SELECT origin FROM log_head WHERE only = 1", [], |row| row.get(0))?;
    Origin::parse(&text).ok_or(Fault::Invalid { table: "log_head", column: "origin" })
}

/// What events left, as kept.
pub(super) fn aftermath(connection: &Connection) -> Result<Aftermath, Fault> {
    let sql = "SELECT lost_unix_ms, recovered_unix_ms, clock_stepped, ended, last_unix_ms FROM log_head WHERE only = 1";
    connection
        .query_row(sql, [], |row| {
            let unsigned = |place| row.get::<_, i64>(place).map(i64::cast_unsigned);
            let floor = Floor { lost_unix_ms: unsigned(0)?, recovered_unix_ms: unsigned(1)? };
            Ok(Aftermath {
                floor,
                clock_stepped: row.get(2)?,
                ended: row.get(3)?,
                last_unix_ms: unsigned(4)?,
            })
        })
        .map_err(Fault::from)
}

fn put_aftermath(connection: &Connection, aftermath: &Aftermath) -> rusqlite::Result<()> {
    let Aftermath { floor, clock_stepped, ended, last_unix_ms } = aftermath;
    change(
        connection,
        "UPDATE log_head SET lost_unix_ms = ?1, recovered_unix_ms = ?2, clock_stepped = ?3, ended = ?4,
             last_unix_ms = ?5",
        params![
            floor.lost_unix_ms.cast_signed(),
            floor.recovered_unix_ms.cast_signed(),
            clock_stepped,
            ended,
            last_unix_ms.cast_signed()
        ],
    )
}

/// `None` also for what is no seal.
fn seal(connection: &Connection) -> Result<Option<LedgerSeal>, Fault> {
    let sql = "SELECT seal_key_version, run, seal FROM log_head WHERE only = 1";
    let (key_version, run, mac): (Option<i64>, Option<Vec<u8>>, Option<Vec<u8>>) =
        connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let parsed = || {
        let (run, mac) = (run?.try_into().ok()?, mac?.try_into().ok()?);
        Some(LedgerSeal { key_version: key_version?.try_into().ok()?, run: RunId(run), mac })
    };
    Ok(parsed())
}

/// The head of a database of the schema's fifth step, which kept of each sum the first number.
pub(super) fn head_of_first(connection: &Connection) -> Result<Head, Fault> {
    let edge = frontier(connection, size(connection)?)?;
    let mut statement = connection.prepare("SELECT sum FROM table_sum")?;
    let mut sum = RowSum::default();
    for first in statement.query_map([], |row| row.get(0))? {
        sum = sum.plus(RowSum::of_first(first?));
    }
    let (size, root) = (edge.size(), edge.root());
    Ok(Head { origin: origin(connection)?, size, root, sum: SumDigest::First(sum.first()) })
}

/// What the events of the whole log left, and the root over all entries, by what they say.
pub(super) fn told(connection: &Connection) -> Result<(Aftermath, TreeHash), Fault> {
    let (mut aftermath, mut frontier) = (Aftermath::default(), Frontier::default());
    let mut entries = connection.prepare("SELECT * FROM audit ORDER BY seq")?;
    for_each_entry(entries.query([])?, |logged, _| {
        aftermath.heed(logged.entry.event, logged.entry.unix_ms);
        frontier.push(logged.leaf());
        Ok(())
    })?;
    Ok((aftermath, frontier.root()))
}

/// Puts what an earlier release left where it is kept from here on: what its events say, and its sums, of which each is
/// the first number of ours.
pub(super) fn take_over(connection: &Connection) -> Result<(), Fault> {
    let mut aftermath = Aftermath::default();
    let sql = "SELECT * FROM audit WHERE seq = (SELECT max(seq) FROM audit) OR event IN
        ('service.started_unclean', 'store.recovered', 'clock.stepped', 'clock.accepted') ORDER BY seq";
    let mut entries = connection.prepare(sql)?;
    for_each_entry(entries.query([])?, |logged, _| {
        aftermath.heed(logged.entry.event, logged.entry.unix_ms);
        Ok(())
    })?;
    put_aftermath(connection, &aftermath)?;
    let mut sums = connection.prepare("SELECT name, sum FROM table_sum_of_first")?;
    let sums = sums.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    for sum in sums {
        let (name, first): (String, [u8; 32]) = sum?;
        put_sum(connection, &name, RowSum::of_first(first))?;
    }
    Ok(connection.execute_batch("DROP TABLE table_sum_of_first")?)
}

/// How many entries the log has.
pub(super) fn size(connection: &Connection) -> rusqlite::Result<u64> {
    let size: i64 = connection.query_row("SELECT coalesce(max(seq), 0) FROM audit", [], |row| row.get(0))?;
    // A negative number is none of ours.
    Ok(u64::try_from(size).unwrap_or(0))
}

/// The right edge of the tree over the first `size` entries, put together from the largest kept subtrees on.
pub(super) fn frontier(connection: &Connection, size: u64) -> Result<Frontier, Fault> {
    let mut frontier = Frontier::default();
    let sql = "SELECT hash FROM audit_subtree WHERE level = ?1 AND place >= ?2 AND place < ?3 ORDER BY place";
    let mut subtrees = connection.prepare(sql)?;
    for level in [32_u8, 24, 16, LEVELS_A_TILE] {
        let (from, end) = ((frontier.size() >> level).cast_signed(), (size >> level).cast_signed());
        let hashes = subtrees.query_map(params![level, from, end], |row| row.get(0).map(TreeHash))?;
        for hash in hashes {
            frontier.append(level, hash?);
        }
    }
    grow(connection, &mut frontier, size)?;
    Ok(frontier)
}

/// The root over the first `from` entries, and that over the first `size`: as one tree, which the first is part of.
/// Each entry behind the last kept subtree of the first is held against its leaf.
pub(super) fn roots(connection: &Connection, from: u64, size: u64) -> Result<[TreeHash; 2], Fault> {
    let mut frontier = frontier(connection, from)?;
    let first = frontier.root();
    grow(connection, &mut frontier, size)?;
    Ok([first, frontier.root()])
}

/// Appends the entries up to number `size`.
fn grow(connection: &Connection, frontier: &mut Frontier, size: u64) -> Result<(), Fault> {
    let sql = "SELECT * FROM audit WHERE seq > ?1 AND seq <= ?2 ORDER BY seq";
    let mut entries = connection.prepare(sql)?;
    let behind = params![frontier.size().cast_signed(), size.cast_signed()];
    for_each_entry(entries.query(behind)?, |logged, leaf| {
        let leaf = leaf.ok_or(Fault::Entry(logged.seq))?;
        frontier.push(leaf);
        match logged.leaf() == leaf && logged.seq == frontier.size() {
            true => Ok(()),
            false => Err(Fault::Entry(frontier.size())),
        }
    })?;
    match frontier.size() == size {
        true => Ok(()),
        false => Err(Fault::Entry(size.saturating_add(1))),
    }
}

/// Gives the entries of an earlier release their leaves.
pub(super) fn hash_old_entries(connection: &Connection) -> Result<(), Fault> {
    let mut frontier = Frontier::default();
    let mut update = connection.prepare("UPDATE audit SET leaf = ?2 WHERE seq = ?1")?;
    let mut entries = connection.prepare("SELECT * FROM audit WHERE seq > ?1 ORDER BY seq LIMIT 1000")?;
    // A page at a time: a statement that reads what another one changes may meet it twice.
    loop {
        let mut page = Vec::new();
        for_each_entry(entries.query([frontier.size().cast_signed()])?, |logged, _| {
            page.push(logged);
            Ok(())
        })?;
        if page.is_empty() {
            return Ok(());
        }
        for logged in page {
            let leaf = logged.leaf();
            for subtree in frontier.push(leaf) {
                keep(connection, subtree)?;
            }
            if logged.seq != frontier.size() {
                return Err(Fault::Entry(frontier.size()));
            }
            update.execute(params![logged.seq.cast_signed(), leaf.0])?;
        }
    }
}

fn for_each_entry(
    mut rows: Rows<'_>,
    mut each: impl FnMut(Logged, Option<TreeHash>) -> Result<(), Fault>,
) -> Result<(), Fault> {
    while let Some(row) = rows.next()? {
        let seq: i64 = row.get("seq")?;
        let named = |fault| match fault {
            Fault::Invalid { .. } => Fault::Entry(seq.cast_unsigned()),
            other => other,
        };
        each(columns::audit(row).map_err(named)?, leaf(row).map_err(named)?)?;
    }
    Ok(())
}

/// The leaf that a row of `SELECT * FROM audit` has stored.
pub(super) fn leaf(row: &Row<'_>) -> Result<Option<TreeHash>, Fault> {
    let leaf = row.get::<_, Option<[u8; 32]>>("leaf");
    leaf.map(|leaf| leaf.map(TreeHash)).map_err(|_| Fault::Invalid { table: "audit", column: "leaf" })
}

fn insert(connection: &Connection, logged: &Logged, leaf: TreeHash) -> rusqlite::Result<()> {
    let Logged { seq, entry, rows } = logged;
    let actor = entry.actor.as_ref();
    change(
        connection,
        "INSERT INTO audit
             (seq, unix_ms, event, tenant, client, request_id, credential, transaction_id, detail, rows, leaf)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        params![
            seq.cast_signed(),
            entry.unix_ms.cast_signed(),
            entry.event.name(),
            actor.map(|actor| actor.tenant.as_str()),
            actor.map(|actor| actor.client.as_str()),
            actor.map(|actor| actor.request_id.as_str()),
            entry.credential.map(|id| id.to_bytes()),
            entry.transaction.map(|id| id.to_bytes()),
            entry.detail,
            rows.to_string(),
            leaf.0,
        ],
    )
}

pub(super) fn keep(connection: &Connection, subtree: Subtree) -> rusqlite::Result<()> {
    let Subtree { level, place, hash } = subtree;
    change(
        connection,
        "INSERT INTO audit_subtree (level, place, hash) VALUES (?1, ?2, ?3)",
        params![level, place.cast_signed(), hash.0],
    )
}

fn put_sum(connection: &Connection, name: &str, sum: RowSum) -> rusqlite::Result<()> {
    change(
        connection,
        "INSERT OR REPLACE INTO table_sum (name, sum) VALUES (?1, ?2)",
        params![name, sum.as_bytes()],
    )
}
