//! How much of a database is under which version of which key, for an operator. It asks a database that another process
//! may be using, and changes nothing.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::sqlite::PATIENCE;
use super::{OpenError, files, reader, schema};
use crate::domain::audit::Event;
use crate::domain::row::Table;
use crate::domain::system_key::KeyKind;

/// After so many steps of SQLite's machine it is asked whether that is enough, and it is after so many times: a look at a few
/// rows takes some hundred steps.
const PORTION: i32 = 1_000;
const PORTIONS_MAX: u64 = 10_000;
/// A look at all rows takes fewer steps for each byte of the file than this. One that takes more goes round: a tree can be
/// written whose branches meet again, and which has no end then.
const STEPS_PER_BYTE: u64 = 4;

/// How many rows need a version of a key, by key and version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyUsage(BTreeMap<(KeyKind, u16), u64>);

impl KeyUsage {
    /// Of a version; a kind whose uses nobody counts has none.
    pub fn of(&self, kind: KeyKind, version: u16) -> u64 {
        self.0.get(&(kind, version)).copied().unwrap_or(0)
    }

    fn add(&mut self, kind: KeyKind, version: u16, rows: u64) {
        let all = self.0.entry((kind, version)).or_default();
        *all = all.saturating_add(rows);
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
    let mut connection = open(path).map_err(unusable)?;
    count(&mut connection).map_err(unusable)
}

/// To look at all of a database, which ends.
fn open(path: &Path) -> rusqlite::Result<Connection> {
    let mut connection = reader::open(path)?;
    bound(&mut connection, portions_of(path))?;
    Ok(connection)
}

/// How much a look at all rows may take.
fn portions_of(path: &Path) -> u64 {
    let bytes = |path: &Path| std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let all = bytes(path).saturating_add(bytes(&files::beside(path, "-wal")));
    PORTIONS_MAX.saturating_add(all.saturating_mul(STEPS_PER_BYTE) / u64::from(PORTION.unsigned_abs()))
}

/// Has whatever this connection is asked end after so many portions in all.
fn bound(connection: &mut Connection, portions: u64) -> rusqlite::Result<()> {
    let mut left = portions;
    connection.progress_handler(
        PORTION,
        Some(move || {
            left = left.saturating_sub(1);
            left == 0
        }),
    )
}

/// Which versions of keys a database cannot do without, with how many rows need each; the log's head is one of them. Each
/// column is asked by itself: one of an earlier release lacks some, and needs what the others say. What cannot be read
/// needs whatever it may need.
pub fn needed(path: &Path) -> KeyUsage {
    let mut usage = KeyUsage::default();
    let connection = distrusted(path);
    for (kind, table, column) in columns().chain([(KeyKind::Row, "log_head", "seal_key_version")]) {
        let counted = connection.as_ref().is_ok_and(|connection| {
            let counted = has_column(connection, table, column).and_then(|is_there| match is_there {
                true => count_column(connection, kind, table, column),
                false => Ok(KeyUsage::default()),
            });
            let is_known = counted.is_ok();
            counted
                .iter()
                .flat_map(KeyUsage::all)
                .for_each(|(kind, version, rows)| usage.add(kind, version, rows));
            is_known
        });
        if !counted {
            // The first stands for any: a key of its kind was there.
            usage.add(kind, 1, 1);
        }
    }
    usage
}

/// Of which nobody has checked yet what stands in it.
fn distrusted(path: &Path) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(PATIENCE)?;
    schema::distrust(&connection)?;
    connection.pragma_update(None, "query_only", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    bound(&mut connection, portions_of(path))?;
    Ok(connection)
}

fn has_column(connection: &Connection, table: &str, column: &str) -> rusqlite::Result<bool> {
    if is_table(connection, table)? == Some(false) {
        return Err(rusqlite::Error::QueryReturnedNoRows);
    }
    let sql = "SELECT EXISTS (SELECT 1 FROM pragma_table_info(?1) WHERE name = ?2)";
    connection.query_row(sql, [table, column], |row| row.get(0))
}

/// Whether what has this name is a table with pages of its own: such a one computes nothing. `None`: nothing has it.
fn is_table(connection: &Connection, name: &str) -> rusqlite::Result<Option<bool>> {
    let sql = "SELECT min(type = 'table' AND rootpage > 0) FROM sqlite_schema WHERE name = ?1 COLLATE NOCASE";
    connection.query_row(sql, [name], |row| row.get(0))
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
    let mut connection = Connection::open_with_flags(uri, flags)?;
    // Nobody has checked yet what stands in it: a view in a table's place could go on for ever.
    schema::distrust(&connection)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    bound(&mut connection, PORTIONS_MAX)?;
    Ok(connection)
}

/// The time of what was written last, in milliseconds since 1970; `None`: there is nothing, or it cannot be read. It leaves no
/// file beside the database.
pub fn newest_unix_ms(path: &Path) -> Option<u64> {
    let connection = match files::beside(path, "-wal").exists() {
        true => open(path),
        false => closed(path),
    };
    let newest: i64 = connection
        .and_then(|connection| {
            let sql = "SELECT max(last_unix_ms, coalesce((SELECT max(unix_ms) FROM audit WHERE seq =
                (SELECT max(seq) FROM audit)), 0)) FROM log_head WHERE only = 1";
            connection.query_row(sql, [], |row| row.get(0))
        })
        .ok()?;
    u64::try_from(newest).ok().filter(|newest| *newest > 0)
}

/// The head of the log is the first that a service seals.
fn head_version(connection: &Connection) -> rusqlite::Result<Option<u16>> {
    // Nobody has checked the schema.
    if is_table(connection, "log_head")? != Some(true) {
        return Err(rusqlite::Error::QueryReturnedNoRows);
    }
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
    let connection = open(path).map_err(unusable)?;
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

/// Which columns name keys, of which kind, and in which table.
fn columns() -> impl Iterator<Item = (KeyKind, &'static str, &'static str)> {
    let sealed = Table::ALL.iter().map(|table| (KeyKind::Row, table.name(), "seal_key_version"));
    let others = [
        (KeyKind::Kek, "credential", "kek_version"),
        (KeyKind::Kek, "credential", "identity_key_version"),
        (KeyKind::Data, "credential", "data_version"),
    ];
    others.into_iter().chain(sealed)
}

fn count(connection: &mut Connection) -> rusqlite::Result<KeyUsage> {
    let snapshot = connection.transaction()?;
    let mut usage = KeyUsage::default();
    for (kind, table, column) in columns() {
        let counted = count_column(&snapshot, kind, table, column)?;
        counted.all().for_each(|(kind, version, rows)| usage.add(kind, version, rows));
    }
    Ok(usage)
}

fn count_column(
    connection: &Connection,
    kind: KeyKind,
    table: &str,
    column: &str,
) -> rusqlite::Result<KeyUsage> {
    let mut usage = KeyUsage::default();
    let sql = format!("SELECT {column}, count(*) FROM {table} WHERE {column} > 0 GROUP BY 1");
    let mut statement = connection.prepare(&sql)?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        let (version, rows): (u16, i64) = (row.get(0)?, row.get(1)?);
        usage.add(kind, version, rows.cast_unsigned());
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    /// A database file that goes with the test.
    struct File(std::path::PathBuf);

    impl File {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("hsm-authd-usage-{name}-{}", std::process::id())))
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            for name in ["", "-wal", "-shm"] {
                let _ = std::fs::remove_file(files::beside(&self.0, name));
            }
        }
    }

    fn needed_by(file: &File) -> Vec<(KeyKind, u16)> {
        needed(&file.0).all().map(|(kind, version, _)| (kind, version)).collect()
    }

    #[test]
    fn a_database_of_an_earlier_release_needs_what_its_columns_say() {
        for (release, schema) in [
            include_str!("../../tests/schemas/1.sql"),
            include_str!("../../tests/schemas/2.sql"),
            include_str!("../../tests/schemas/3.sql"),
            include_str!("../../tests/schemas/4.sql"),
        ]
        .into_iter()
        .enumerate()
        {
            let file = File::new(&format!("earlier-{release}"));
            let connection = Connection::open(&file.0).unwrap();
            connection.execute_batch(schema).unwrap();
            // What is to be in a row is another test's.
            connection.pragma_update(None, "ignore_check_constraints", true).unwrap();
            connection.execute_batch("PRAGMA foreign_keys = OFF").unwrap();
            let columns = "SELECT group_concat(name), group_concat(CASE WHEN name = 'kek_version' THEN '3'
                WHEN name = 'seal_key_version' THEN '2' WHEN type = 'TEXT' THEN quote('x')
                WHEN type = 'INTEGER' THEN '1' ELSE 'zeroblob(16)' END)
                FROM pragma_table_info('credential') WHERE [notnull] OR name IN ('id', 'kek_version')";
            let (names, values): (String, String) =
                connection.query_row(columns, [], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
            connection.execute(&format!("INSERT INTO credential ({names}) VALUES ({values})"), []).unwrap();
            let needed = needed_by(&file);
            assert!(needed.contains(&(KeyKind::Kek, 3)) && needed.contains(&(KeyKind::Row, 2)), "{needed:?}");
            assert!(!needed.iter().any(|(kind, _)| *kind == KeyKind::Data), "{release}: {needed:?}");
        }
    }

    #[test]
    fn what_stands_in_the_place_of_a_table_is_not_run() {
        let endless = "WITH RECURSIVE more(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more)
            SELECT 1 AS only, count(*) AS seal_key_version FROM more";
        let file = File::new("view");
        Connection::open(&file.0)
            .and_then(|connection| connection.execute_batch(&format!("CREATE VIEW log_head AS {endless}")))
            .unwrap();
        assert!(is_in_use(&file.0), "nobody knows");
        assert_eq!(newest_unix_ms(&file.0), None);
        assert!(needed_by(&file).contains(&(KeyKind::Row, 1)));
        // Also in the place of one whose column is looked for, and what computes and is no view.
        for hostile in [
            format!("VIEW credential AS SELECT 3 AS kek_version, only FROM ({endless})"),
            "VIRTUAL TABLE credential USING fts5(kek_version)".to_owned(),
        ] {
            let file = File::new("others");
            let connection = Connection::open(&file.0).unwrap();
            connection.execute_batch(&format!("CREATE {hostile}")).unwrap();
            drop(connection);
            assert!(needed_by(&file).contains(&(KeyKind::Kek, 1)), "{hostile}");
        }
        // Whatever else somebody finds that does not end.
        assert!(closed(&file.0).unwrap().query_row(endless, [], |_| Ok(())).is_err());
    }

    /// A tree whose branches all meet again has more rows than anybody could count.
    #[test]
    fn a_table_without_an_end_is_given_up() {
        let file = File::new("endless");
        let connection = Connection::open(&file.0).unwrap();
        let sql = "PRAGMA page_size = 512; CREATE TABLE credential (kek_version INTEGER);
            WITH RECURSIVE more(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more LIMIT 1000)
            INSERT INTO credential SELECT 3 FROM more";
        connection.execute_batch(sql).unwrap();
        drop(connection);
        assert!(needed_by(&file).contains(&(KeyKind::Kek, 3)));

        let mut bytes = std::fs::read(&file.0).unwrap();
        let root = 512..1024;
        let number = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]) as usize;
        let mut branch = bytes[root.clone()].to_vec();
        assert_eq!(branch[0], 5, "an interior page of a table (sqlite.org/fileformat2.html, 1.6)");
        let leaf: [u8; 4] = branch[8..12].try_into().unwrap();
        let cells: Vec<_> = (0..number(&branch, 3)).map(|cell| number(&branch, 12 + 2 * cell)).collect();
        let first = u32::try_from(bytes.len() / 512).unwrap() + 1;
        let mut led_to = |page: [u8; 4]| {
            for at in cells.iter().copied().chain([8]) {
                branch[at..at + 4].copy_from_slice(&page);
            }
            branch.clone()
        };
        bytes.splice(root, led_to(first.to_be_bytes()));
        for level in 1..=8 {
            bytes.extend(led_to(if level == 8 { leaf } else { (first + level).to_be_bytes() }));
        }
        bytes[28..32].copy_from_slice(&(first + 7).to_be_bytes());
        std::fs::write(&file.0, bytes).unwrap();
        let needed = needed_by(&file);
        assert!(needed.contains(&(KeyKind::Kek, 1)) && !needed.contains(&(KeyKind::Kek, 3)), "{needed:?}");
        assert!(is_in_use(&file.0), "it has no log_head");
    }

    #[test]
    fn what_cannot_be_read_may_need_every_key() {
        let file = File::new("unreadable");
        let all = [(KeyKind::Kek, 1), (KeyKind::Row, 1), (KeyKind::Data, 1)];
        std::fs::write(&file.0, "no database, but somebody's file for all that").unwrap();
        assert_eq!(needed_by(&file), all);
        std::fs::remove_file(&file.0).unwrap();
        std::fs::create_dir(&file.0).unwrap();
        assert_eq!(needed_by(&file), all);
        std::fs::remove_dir(&file.0).unwrap();
    }
}
