//! What the store keeps besides rows: the log with its tree, and the sums over all rows.
//!
//! The writer has them in memory. They are changed inside its transaction as a copy, which takes the place of the old
//! one after COMMIT.

use rusqlite::{Connection, OptionalExtension, Row, Rows, params};

use super::Commit;
use super::columns::{self, Fault};
use super::rows::change;
use crate::domain::audit::{Logged, RowMark, RowMarks};
use crate::domain::checkpoint::{Head, Origin};
use crate::domain::log::{Frontier, LEVELS_A_TILE, Subtree, TreeHash};
use crate::domain::row::{RowSum, Table, TableSums};

/// What the sum of an earlier release stands under, until it is split.
const UNSPLIT: &str = "";

/// The log's right edge and the sums, as of the last commit.
#[derive(Clone)]
pub(super) struct Ledger {
    origin: Origin,
    frontier: Frontier,
    sums: TableSums,
    /// The sum over all tables that an earlier release left.
    unsplit: RowSum,
}

impl Ledger {
    /// As the database has it. The entries behind the last kept subtree are held against their leaves.
    pub fn load(connection: &Connection) -> Result<Self, Fault> {
        let (sums, unsplit) = sums(connection)?;
        let frontier = frontier(connection, size(connection)?)?;
        Ok(Self { origin: origin(connection)?, frontier, sums, unsplit })
    }

    /// The head of the log.
    pub fn head(&self) -> Head {
        Head {
            origin: self.origin.clone(),
            size: self.frontier.size(),
            root: self.frontier.root(),
            sum: self.sums.total().plus(self.unsplit),
        }
    }

    /// How many entries the log has.
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Appends the entry of a commit that is being written.
    pub fn append(&mut self, connection: &Connection, commit: &Commit) -> rusqlite::Result<()> {
        let written = commit.rows.iter().map(|row| RowMark::written(&row.row.key(), row.row.version()));
        let removed = commit.removed.iter().map(|(key, _)| RowMark::removed(key));
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
        (self.sums, self.unsplit) = (sums, RowSum::default());
        Ok(())
    }

    /// From here on it is another log: its entries stay, and no checkpoint of the old one has to be extended.
    pub fn set_origin(&mut self, connection: &Connection, origin: Origin) -> rusqlite::Result<()> {
        change(connection, "UPDATE log_head SET origin = ?1", params![origin.as_str()])?;
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
        let sum = row.get(1).map(RowSum).map_err(|_| invalid("sum"))?;
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

/// How many entries the log has.
pub(super) fn size(connection: &Connection) -> rusqlite::Result<u64> {
    let size: i64 = connection.query_row("SELECT coalesce(max(seq), 0) FROM audit", [], |row| row.get(0))?;
    Ok(size.cast_unsigned())
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
        true => Ok(frontier),
        false => Err(Fault::Entry(size.saturating_add(1))),
    }
}

/// The tree over all entries, each of which is held against its leaf; `at` sees it before the first and after each.
pub(super) fn whole_tree(connection: &Connection, mut at: impl FnMut(&Frontier)) -> Result<Frontier, Fault> {
    let mut frontier = Frontier::default();
    at(&frontier);
    let mut kept = connection.prepare("SELECT hash FROM audit_subtree WHERE level = ?1 AND place = ?2")?;
    let mut entries = connection.prepare("SELECT * FROM audit ORDER BY seq")?;
    for_each_entry(entries.query([])?, |logged, leaf| {
        let completed = frontier.push(logged.leaf());
        at(&frontier);
        for Subtree { level, place, hash } in completed {
            let same: Option<[u8; 32]> =
                kept.query_row(params![level, place.cast_signed()], |row| row.get(0)).optional()?;
            if same != Some(hash.0) {
                return Err(Fault::Entry(logged.seq));
            }
        }
        match leaf == Some(logged.leaf()) && logged.seq == frontier.size() {
            true => Ok(()),
            false => Err(Fault::Entry(frontier.size())),
        }
    })?;
    Ok(frontier)
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
        each(columns::audit(row)?, leaf(row)?)?;
    }
    Ok(())
}

/// The leaf that a row of `SELECT * FROM audit` has stored.
pub(super) fn leaf(row: &Row<'_>) -> Result<Option<TreeHash>, Fault> {
    Ok(row.get::<_, Option<[u8; 32]>>("leaf")?.map(TreeHash))
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

fn keep(connection: &Connection, subtree: Subtree) -> rusqlite::Result<()> {
    let Subtree { level, place, hash } = subtree;
    change(
        connection,
        "INSERT INTO audit_subtree (level, place, hash) VALUES (?1, ?2, ?3)",
        params![level, place.cast_signed(), hash.0],
    )
}

fn put_sum(connection: &Connection, name: &str, sum: RowSum) -> rusqlite::Result<()> {
    change(connection, "INSERT OR REPLACE INTO table_sum (name, sum) VALUES (?1, ?2)", params![name, sum.0])
}
