//! A copy of a database that may be in use, what is in such a copy, and its installation in the place of another.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::columns::Fault;
use super::files::{self, beside, sync_folder};
use super::ledger::Ledger;
use super::log::newest_note;
use super::sqlite::PATIENCE;
use super::{OpenError, ledger, schema};
use crate::domain::checkpoint::Head;
use crate::domain::row::Table;

/// What a copy has in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contents {
    /// The version of its schema.
    pub schema: i64,
    /// The head of its log; the entries behind the last kept subtree were read again.
    pub head: Head,
    /// The note of its newest checkpoint.
    pub checkpoint: Option<String>,
    /// Versions of the HSM's `row` key that its rows are sealed with.
    pub row_keys: Vec<u16>,
    /// Versions of `kek` that wrap its secrets.
    pub keks: Vec<u16>,
    /// Versions of `data` that encrypt its PIN hashes.
    pub data_keys: Vec<u16>,
    /// How many secrets are wrapped in it.
    pub wrapped: u64,
    /// How many are objects in the HSM, and in no copy.
    pub resident: u64,
}

/// Copies the database at `from` into the file `to`, which is there and empty: all pages as of one moment, while another
/// process reads and writes it. Nobody waits for it, but the WAL cannot be cut until it is done. The copy is one file.
///
/// # Errors
/// It is no database of ours, or cannot be read; or `to` cannot be written, for want of room say.
pub fn copy(from: &Path, to: &Path) -> Result<(), OpenError> {
    let unreadable = |error| cannot("read", from, &error);
    let source = open_to_read(from)?;
    check_ours(&source, from)?;
    let mut target =
        Connection::open_with_flags(to, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
            .map_err(|error| cannot("open", to, &error))?;
    let unwritable = |error| cannot("write", to, &error);
    // Nothing of it counts before it is whole, and then it is synced at once.
    target.pragma_update(None, "synchronous", "OFF").map_err(unwritable)?;
    target.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(())).map_err(unwritable)?;
    target.pragma_update_and_check(None, "journal_mode", "OFF", |_| Ok(())).map_err(unwritable)?;
    let backup = Backup::new(&source, &mut target).map_err(unreadable)?;
    // In one step: between two, a commit would make it begin anew.
    match backup.step(-1).map_err(unwritable)? {
        StepResult::Done => {}
        _ => return Err(OpenError(format!("{} is locked; try again", from.display()))),
    }
    drop(backup);
    // What came along says that there is a WAL beside it.
    target.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(())).map_err(unwritable)?;
    target.close().map_err(|(_, error)| unwritable(error))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(|error| cannot("sync", to, &error))
}

/// What is in a copy; its pages are looked at, and the end of its log.
///
/// # Errors
/// It is none of ours, or damaged.
pub fn contents(path: &Path) -> Result<Contents, OpenError> {
    let unreadable = |error| cannot("read", path, &error);
    let connection = open_to_read(path)?;
    check_ours(&connection, path)?;
    let schema = schema_version(&connection).map_err(unreadable)?;
    if !(schema::WITH_A_LOG..=schema::SCHEMA).contains(&schema) {
        return Err(OpenError(format!(
            "{} has schema version {schema}; this release knows {} to {}",
            path.display(),
            schema::WITH_A_LOG,
            schema::SCHEMA
        )));
    }
    let sound: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).map_err(unreadable)?;
    if sound != "ok" {
        return Err(OpenError(format!("{} is damaged: {sound}", path.display())));
    }
    read_contents(&connection).map_err(|fault| OpenError(format!("{}: {fault}", path.display())))
}

fn read_contents(connection: &Connection) -> Result<Contents, Fault> {
    let tables = Table::ALL.iter().filter(|table| has_table(connection, table.name()).unwrap_or(false));
    let seals: Vec<_> =
        tables.map(|table| format!("SELECT seal_key_version FROM {}", table.name())).collect();
    let count = |condition: &str| -> rusqlite::Result<u64> {
        let sql = format!("SELECT count(*) FROM credential WHERE kek_version {condition}");
        connection.query_row(&sql, [], |row| row.get::<_, i64>(0)).map(i64::cast_unsigned)
    };
    Ok(Contents {
        schema: schema_version(connection)?,
        head: match schema_version(connection)? {
            schema::WITH_A_LOG => ledger::head_of_first(connection)?,
            _ => Ledger::load(connection)?.head(),
        },
        checkpoint: newest_note(connection)?,
        row_keys: versions(connection, &seals.join(" UNION "))?,
        keks: versions(
            connection,
            "SELECT kek_version FROM credential WHERE kek_version > 0
             UNION SELECT identity_key_version FROM credential WHERE identity_key_version > 0",
        )?,
        data_keys: versions(
            connection,
            "SELECT DISTINCT data_version FROM credential WHERE data_version IS NOT NULL",
        )?,
        wrapped: count("> 0")?,
        resident: count("= 0")?,
    })
}

fn versions(connection: &Connection, sql: &str) -> rusqlite::Result<Vec<u16>> {
    let mut versions: Vec<u16> =
        connection.prepare(sql)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    versions.sort_unstable();
    Ok(versions)
}

fn has_table(connection: &Connection, name: &str) -> rusqlite::Result<bool> {
    connection.prepare("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?1")?.exists([name])
}

fn schema_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Puts the database at `from`, which is in the same folder and closed, in the place of `path`. What is there is kept, as
/// `PATH.before-restore-STAMP`. Gives its name, if there was one.
///
/// Whoever is killed in here leaves one of the two at `path`, whole.
///
/// # Errors
/// A file cannot be moved, or another process uses the database.
pub fn install(from: &Path, path: &Path, stamp: &str) -> Result<Option<PathBuf>, OpenError> {
    let _lock = files::lock(path)?;
    let aside = beside(path, &format!(".before-restore-{stamp}"));
    let failed = |error| cannot("move", path, &error);
    let is_there = path.try_exists().map_err(failed)?;
    if is_there {
        take_in_wal(path)?;
        // A second name, so that there is a database at every moment: a start would make an empty one. Where that cannot
        // be, nothing has changed yet.
        fs::hard_link(path, &aside).map_err(failed)?;
    }
    // What must never be found beside another database: SQLite would write it into that. There is none of it any more,
    // unless it is of a database that cannot be opened.
    for suffix in ["-wal", "-journal"] {
        let left = beside(path, suffix);
        let is_empty = fs::metadata(&left).is_ok_and(|metadata| metadata.len() == 0);
        absent_is_fine(match is_empty {
            true => fs::remove_file(&left),
            false => fs::rename(&left, beside(&aside, suffix)),
        })
        .map_err(failed)?;
    }
    // What only says where in the WAL things are: it is made anew.
    absent_is_fine(fs::remove_file(beside(path, "-shm"))).map_err(failed)?;
    sync_folder(path)?;
    fs::rename(from, path).map_err(failed)?;
    sync_folder(path)?;
    Ok(is_there.then_some(aside))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Writes what is in the WAL into the database, so that it is one file: of two files that are moved one after the other,
/// a start in between would find one, and go on without what was answered last.
fn take_in_wal(path: &Path) -> Result<(), OpenError> {
    let unusable = |error: &rusqlite::Error| {
        matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
    };
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let busy = || {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(PATIENCE)?;
        schema::distrust(&connection)?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
    };
    match busy() {
        Ok(false) => Ok(()),
        Ok(true) => Err(OpenError(format!("another process reads {}; stop it first", path.display()))),
        // No start can use it, with its WAL or without.
        Err(error) if unusable(&error) => Ok(()),
        Err(error) => Err(cannot("read", path, &error)),
    }
}

/// Opens it to read. Where no other process has it open, the files beside it are made and removed again.
fn open_to_read(path: &Path) -> Result<Connection, OpenError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(PATIENCE)?;
        connection.pragma_update(None, "trusted_schema", false)?;
        schema::distrust(&connection)?;
        Ok(connection)
    };
    open().map_err(|error: rusqlite::Error| cannot("open", path, &error))
}

fn check_ours(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let id: i32 = connection
        .pragma_query_value(None, "application_id", |row| row.get(0))
        .map_err(|error| cannot("read", path, &error))?;
    match id == schema::APPLICATION_ID {
        true => Ok(()),
        false => Err(OpenError(format!("{} is no hsm-authd database", path.display()))),
    }
}

fn cannot(what: &str, path: &Path, error: &dyn std::fmt::Display) -> OpenError {
    OpenError(format!("cannot {what} {}: {error}", path.display()))
}
