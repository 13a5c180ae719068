//! How much of a database is under which version of which key, for an operator. It asks a database that another process
//! may be using, and changes nothing.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{OpenError, files, reader};
use crate::domain::audit::Event;
use crate::domain::row::Table;
use crate::domain::system_key::KeyKind;

/// How many rows need a version of a key, by key and version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyUsage(BTreeMap<(KeyKind, u16), u64>);

impl KeyUsage {
    /// Of a version; a kind whose uses nobody counts has none.
    pub fn of(&self, kind: KeyKind, version: u16) -> u64 {
        self.0.get(&(kind, version)).copied().unwrap_or(0)
    }

    /// Every version that is needed, with how many rows need it.
    pub fn all(&self) -> impl Iterator<Item = (KeyKind, u16, u64)> + '_ {
        self.0.iter().map(|((kind, version), rows)| (*kind, *version, *rows))
    }
}

/// Counted from one snapshot. A secret that is not wrapped (version 0) needs no `kek`.
///
/// # Errors
/// The database cannot be read.
pub fn key_usage(path: &Path) -> Result<KeyUsage, OpenError> {
    let unusable = |error| OpenError(format!("cannot read the database {}: {error}", path.display()));
    let mut connection = reader::open(path).map_err(unusable)?;
    count(&mut connection).map_err(unusable)
}

/// Which versions of keys a database cannot do without, with how many rows need each; the log's head is one of them. Of a
/// database that cannot be read, such as one of an earlier release: none.
pub fn needed(path: &Path) -> KeyUsage {
    let read = || {
        let mut connection = reader::open(path)?;
        let mut usage = count(&mut connection)?;
        if let Some(version) = head_version(&connection)? {
            *usage.0.entry((KeyKind::Row, version)).or_default() += 1;
        }
        Ok::<_, rusqlite::Error>(usage)
    };
    read().unwrap_or_default()
}

/// Whether a service has sealed anything in this database. One that cannot be read is taken for such, and one that a
/// service has open, or has not closed. It leaves no file beside it.
pub fn is_in_use(path: &Path) -> bool {
    let nothing_is_sealed =
        || matches!(closed(path).and_then(|connection| head_version(&connection)), Ok(None));
    path.exists() && (files::beside(path, "-wal").exists() || !nothing_is_sealed())
}

/// A database that nobody has open, as it stands in its one file. To read it otherwise would leave an empty WAL beside it.
fn closed(path: &Path) -> rusqlite::Result<Connection> {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' | b'.' | b'-' | b'_' | b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => {
                uri.push(char::from(*byte))
            }
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri, flags)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}

/// The head of the log is the first that a service seals.
fn head_version(connection: &Connection) -> rusqlite::Result<Option<u16>> {
    let sql = "SELECT seal_key_version FROM log_head WHERE only = 1";
    connection.query_row(sql, [], |row| row.get(0))
}

/// When versions of keys began to be used, milliseconds since 1970, as far as the log tells: what `init` made it does
/// not.
///
/// # Errors
/// The database cannot be read.
pub fn rotations(path: &Path) -> Result<BTreeMap<(KeyKind, u16), u64>, OpenError> {
    let unusable = |error| OpenError(format!("cannot read the database {}: {error}", path.display()));
    let connection = reader::open(path).map_err(unusable)?;
    let read = || {
        let mut found = BTreeMap::new();
        let sql = "SELECT unix_ms, detail FROM audit WHERE event = ?1 ORDER BY seq";
        let mut statement = connection.prepare(sql)?;
        let mut entries = statement.query([Event::KeyRotated.name()])?;
        while let Some(entry) = entries.next()? {
            let (unix_ms, detail): (i64, Option<String>) = (entry.get(0)?, entry.get(1)?);
            if let Some((kind, version)) = detail.as_deref().and_then(|detail| detail.split_once(" v"))
                && let (Some(kind), Ok(version)) = (KeyKind::parse(kind), version.parse())
            {
                found.entry((kind, version)).or_insert(unix_ms.cast_unsigned());
            }
        }
        Ok(found)
    };
    read().map_err(unusable)
}

fn count(connection: &mut Connection) -> rusqlite::Result<KeyUsage> {
    let snapshot = connection.transaction()?;
    let mut usage = KeyUsage::default();
    let sealed = Table::ALL.iter().map(|table| (KeyKind::Row, table.name(), "seal_key_version"));
    let others = [
        (KeyKind::Kek, "credential", "kek_version"),
        (KeyKind::Kek, "credential", "identity_key_version"),
        (KeyKind::Data, "credential", "data_version"),
    ];
    for (kind, table, column) in others.into_iter().chain(sealed) {
        let sql = format!("SELECT {column}, count(*) FROM {table} WHERE {column} > 0 GROUP BY 1");
        let mut statement = snapshot.prepare(&sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let (version, rows): (u16, i64) = (row.get(0)?, row.get(1)?);
            *usage.0.entry((kind, version)).or_default() += rows.cast_unsigned();
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::schema;

    #[test]
    fn every_sealed_table_is_counted() {
        let mut connection = Connection::open_in_memory().unwrap();
        schema::migrate(&mut connection, Path::new("memory")).unwrap();
        assert_eq!(count(&mut connection).unwrap(), KeyUsage::default());
        let sql = "SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c
            WHERE m.type = 'table' AND (c.name LIKE '%kek_version' OR c.name LIKE '%key_version' OR c.name = 'data_version')";
        let mut statement = connection.prepare(sql).unwrap();
        let columns = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        for (table, column) in columns.map(Result::<(String, String), _>::unwrap) {
            let counted = match column.as_str() {
                // Who retires a version has the log's head sealed under the newest one before.
                "seal_key_version" => Table::parse(&table).is_some() || table == "log_head",
                "kek_version" | "identity_key_version" | "data_version" => table == "credential",
                _ => false,
            };
            assert!(counted, "{table}.{column} names a key, and is not counted");
        }
    }
}
