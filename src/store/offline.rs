//! A database that no service uses, read from its first entry to its last row: for an auditor, on a copy.
//!
//! Nothing is written, and nothing is held in memory but the row that is looked at.

use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OpenFlags, Row as SqlRow, params};

use super::columns::Fault;
use super::ledger::Ledger;
use super::reads::any;
use super::reads::log::{LoggedLeaf, logged_leaf};
use super::schema::{self, APPLICATION_ID, VERSION};
use super::{OpenError, columns, files, ledger, scan};
use crate::domain::checkpoint::Origin;
use crate::domain::ledger::LedgerState;
use crate::domain::log::TreeHash;
use crate::domain::row::{Row, Sealed, Table};

/// A database that is only read.
pub struct OfflineStore {
    connection: Connection,
    path: PathBuf,
    /// What reading it made beside it, and is removed with it.
    _shared_memory: Option<SharedMemory>,
}

/// The index of a WAL, which SQLite makes beside it and a reader cannot remove.
struct SharedMemory(PathBuf);

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // If it stays, SQLite makes it anew.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// One row of the log, as it stands there.
pub struct Entry {
    /// The number that it stands under.
    pub seq: i64,
    /// What it says; else which column holds nothing that we write.
    pub said: Result<LoggedLeaf, String>,
}

/// A checkpoint as it is kept.
pub struct KeptNote {
    /// The number that it stands under.
    pub size: i64,
    /// The time that it stands under, in milliseconds since 1970.
    pub unix_ms: i64,
    /// Its note.
    pub note: String,
}

impl OfflineStore {
    /// Opens the database at `path`, with the WAL beside it if there is one, and sees from then on what it is at this
    /// moment.
    ///
    /// # Errors
    /// It cannot be read, is none of ours, or is of another release.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let unusable = |error| OpenError(format!("cannot read {}: {error}", path.display()));
        if !path.is_file() {
            return Err(OpenError(format!("{} is no file", path.display())));
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let has_wal = files::beside(path, "-wal").exists();
        let index = files::beside(path, "-shm");
        let shared_memory = (has_wal && !index.exists()).then_some(SharedMemory(index));
        // Without a WAL nobody writes to it, or SQLite would have made one: it is read as it lies there, from a folder
        // that is read-only too.
        let connection = match has_wal {
            true => Connection::open_with_flags(path, flags),
            false => {
                let uri = immutable_uri(path)?;
                Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)
            }
        };
        let connection = connection.map_err(unusable)?;
        let prepared = || {
            connection.pragma_update(None, "query_only", true)?;
            connection.pragma_update(None, "trusted_schema", false)?;
            schema::distrust(&connection)?;
            // In KiB when negative.
            connection.pragma_update(None, "cache_size", -8 * 1_024)?;
            connection.execute_batch("BEGIN")?;
            let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
            Ok((number("application_id")?, number("user_version")?))
        };
        let (id, version) = prepared().map_err(unusable)?;
        if id != i64::from(APPLICATION_ID) {
            return Err(OpenError(format!("{} is no hsm-authd database", path.display())));
        }
        if version != VERSION {
            return Err(OpenError(format!(
                "{} has schema version {version}, and this release reads {VERSION}: {}",
                path.display(),
                if version < VERSION {
                    "start the service on it once"
                } else {
                    "use the release that made it"
                }
            )));
        }
        Ok(Self { connection, path: path.to_owned(), _shared_memory: shared_memory })
    }

    /// Which log it has.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn origin(&self) -> Result<Origin, OpenError> {
        ledger::origin(&self.connection).map_err(|fault| self.unreadable(&fault))
    }

    /// What the database says of itself besides rows.
    ///
    /// # Errors
    /// It cannot be read, or the last entries are not those of the tree.
    pub fn ledger(&self) -> Result<LedgerState, OpenError> {
        Ledger::load(&self.connection).map(|ledger| ledger.state()).map_err(|fault| self.unreadable(&fault))
    }

    /// Shows every entry after number `after`, in their order, until one breaks off.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn entries<B>(
        &self,
        after: i64,
        mut each: impl FnMut(Entry) -> ControlFlow<B>,
    ) -> Result<Option<B>, OpenError> {
        let sql = "SELECT * FROM audit WHERE seq > ?1 ORDER BY seq";
        self.each(sql, [after], |row| {
            let seq = row.get("seq")?;
            let said = logged_leaf(row).map_err(|fault| fault.to_string());
            Ok(each(Entry { seq, said }))
        })
    }

    /// The hash that is kept of a complete subtree.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn subtree(&self, level: u8, place: u64) -> Result<Option<TreeHash>, OpenError> {
        let sql = "SELECT hash FROM audit_subtree WHERE level = ?1 AND place = ?2";
        self.each(sql, params![level, place.cast_signed()], |row| {
            Ok(ControlFlow::Break(TreeHash(row.get(0)?)))
        })
    }

    /// Shows level and place of every subtree that is kept.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn subtrees<B>(
        &self,
        mut each: impl FnMut(i64, i64) -> ControlFlow<B>,
    ) -> Result<Option<B>, OpenError> {
        self.each("SELECT level, place FROM audit_subtree ORDER BY level, place", [], |row| {
            Ok(each(row.get(0)?, row.get(1)?))
        })
    }

    /// The kept checkpoint with the smallest size above this one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn next_note(&self, above: i64) -> Result<Option<KeptNote>, OpenError> {
        let sql = "SELECT size, unix_ms, note FROM checkpoint WHERE size > ?1 ORDER BY size LIMIT 1";
        self.each(sql, [above], |row| {
            Ok(ControlFlow::Break(KeptNote { size: row.get(0)?, unix_ms: row.get(1)?, note: row.get(2)? }))
        })
    }

    /// The kept checkpoint with the largest size below this one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn last_note(&self, below: i64) -> Result<Option<KeptNote>, OpenError> {
        let sql = "SELECT size, unix_ms, note FROM checkpoint WHERE size < ?1 ORDER BY size DESC LIMIT 1";
        self.each(sql, [below], |row| {
            Ok(ControlFlow::Break(KeptNote { size: row.get(0)?, unix_ms: row.get(1)?, note: row.get(2)? }))
        })
    }

    /// Shows every row of every table, until one breaks off; what is no row of ours by what is wrong with it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn rows<B>(
        &self,
        mut each: impl FnMut(Table, Result<Sealed<Row>, String>) -> ControlFlow<B>,
    ) -> Result<Option<B>, OpenError> {
        for table in Table::ALL {
            let found = self.each(&format!("SELECT * FROM {}", table.name()), [], |row| {
                Ok(each(*table, parsed(*table, row).map_err(|fault| fault.to_string())))
            })?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }

    /// What SQLite finds wrong with the file first: an index that does not fit its table, say.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn damage(&self) -> Result<Option<String>, OpenError> {
        scan::damage(&self.connection, None).map_err(|fault| self.unreadable(&fault))
    }

    fn each<B>(
        &self,
        sql: &str,
        values: impl rusqlite::Params,
        mut each: impl FnMut(&SqlRow<'_>) -> Result<ControlFlow<B>, Fault>,
    ) -> Result<Option<B>, OpenError> {
        let through = || {
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query(values)?;
            while let Some(row) = rows.next()? {
                if let ControlFlow::Break(found) = each(row)? {
                    return Ok(Some(found));
                }
            }
            Ok(None)
        };
        through().map_err(|fault: Fault| self.unreadable(&fault))
    }

    fn unreadable(&self, fault: &Fault) -> OpenError {
        OpenError(format!("{}: {fault}", self.path.display()))
    }
}

fn parsed(table: Table, row: &SqlRow<'_>) -> Result<Sealed<Row>, Fault> {
    match table {
        Table::Credential => columns::credential(row).map(any),
        Table::State => columns::state(row).map(any),
        Table::Account => columns::account(row).map(any),
        Table::Idempotency => columns::idempotency(row).map(any),
        Table::UsedInput => columns::used_input(row).map(any),
        Table::Attestation => columns::attestation(row).map(any),
        Table::Transaction => columns::transaction(row).map(any),
        Table::Binding => columns::binding(row).map(any),
        Table::Presentation => columns::presentation(row).map(any),
        Table::Authorization => columns::authorization(row).map(any),
        Table::ImportedSeed => columns::imported_seed(row).map(any),
    }
}

/// The path as SQLite takes it for a file that nobody changes.
fn immutable_uri(path: &Path) -> Result<String, OpenError> {
    let path = std::path::absolute(path)
        .map_err(|error| OpenError(format!("cannot find {}: {error}", path.display())))?;
    let escaped = path.as_os_str().as_bytes().iter().map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' => char::from(*byte).to_string(),
        other => format!("%{other:02x}"),
    });
    Ok(format!("file:{}?immutable=1", escaped.collect::<String>()))
}
