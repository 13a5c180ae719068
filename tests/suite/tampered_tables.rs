//! What a database has in it, and everything that somebody could make of it: from the schema, so that no table and no
//! column is forgotten.

use std::collections::BTreeSet;

use hsm_authd::domain::row::{RowKey, Table};
use hsm_authd::store::offline::OfflineStore;
use rusqlite::Connection as Sql;

use crate::audit_files::Copy;

/// So many rows of a table are deleted, doubled and put back, one by one.
const ROWS_MAX: usize = 6;
/// What has no seals, and what finds an edit in it: for each of them there is an expectation in `tampering::besides_rows`.
const BESIDES_ROWS: [&str; 5] = ["audit", "audit_subtree", "checkpoint", "log_head", "table_sum"];

pub struct Column {
    pub name: String,
    pub declared: String,
    pub in_key: bool,
}

/// A table with its rows, each value as SQL spells it.
pub struct Content {
    pub name: String,
    pub columns: Vec<Column>,
    pub rows: Vec<Vec<String>>,
    /// Of rows under seals, what the log calls each.
    pub digests: Vec<String>,
}

impl Content {
    pub fn of(sql: &Sql, name: &str) -> Self {
        let mut statement = sql.prepare("SELECT name, type, pk > 0 FROM pragma_table_xinfo(?1)").unwrap();
        let columns = statement
            .query_map([name], |row| {
                Ok(Column { name: row.get(0)?, declared: row.get(1)?, in_key: row.get(2)? })
            })
            .unwrap();
        let columns: Vec<Column> = columns.map(Result::unwrap).collect();
        let quoted: Vec<_> = columns.iter().map(|column| format!("quote({})", column.name)).collect();
        // In the order of the key, as everybody reads them.
        let query = format!("SELECT {} FROM (SELECT * FROM {name})", quoted.join(", "));
        let mut statement = sql.prepare(&query).unwrap();
        let rows = statement.query_map([], |row| (0..columns.len()).map(|place| row.get(place)).collect());
        let rows = rows.unwrap().map(Result::unwrap).collect();
        Self { name: name.to_owned(), columns, rows, digests: Vec::new() }
    }

    /// Of all tables, those with seals with what the log calls their rows.
    pub fn all(copy: &Copy) -> Vec<Self> {
        let sql = Sql::open(&copy.path).unwrap();
        let mut statement = sql
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
            .unwrap();
        let names = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        let mut all: Vec<Self> = names.map(|name| Self::of(&sql, &name.unwrap())).collect();
        let store = OfflineStore::open(&copy.path).unwrap();
        store
            .rows(|table, row| {
                let content = all.iter_mut().find(|content| content.name == table.name()).unwrap();
                content.digests.push(digest(&row.unwrap().row.key()));
                std::ops::ControlFlow::<()>::Continue(())
            })
            .unwrap();
        for content in &all {
            let sealed = Table::parse(&content.name).is_some();
            let known = BESIDES_ROWS.contains(&&*content.name);
            assert!(sealed != known, "{}: a table that nothing is known of", content.name);
            assert!(!sealed || content.digests.len() == content.rows.len(), "{}", content.name);
        }
        all
    }

    pub fn condition(&self, row: &[String]) -> String {
        let key = self.columns.iter().zip(row).filter(|(column, _)| column.in_key);
        key.map(|(column, value)| format!("{} IS {value}", column.name)).collect::<Vec<_>>().join(" AND ")
    }

    pub fn set(&self, row: usize, column: usize, value: &str) -> String {
        let condition = self.condition(&self.rows[row]);
        format!("UPDATE {} SET {} = {value} WHERE {condition}", self.name, self.columns[column].name)
    }

    pub fn delete(&self, row: usize) -> String {
        format!("DELETE FROM {} WHERE {}", self.name, self.condition(&self.rows[row]))
    }

    pub fn insert(&self, values: &[String]) -> String {
        let columns: Vec<_> = self.columns.iter().map(|column| &*column.name).collect();
        format!("INSERT INTO {} ({}) VALUES ({})", self.name, columns.join(", "), values.join(", "))
    }

    /// The whole table as it was.
    pub fn undo(&self) -> String {
        let rows: Vec<_> = self.rows.iter().map(|row| self.insert(row)).collect();
        format!("BEGIN; DELETE FROM {}; {}; COMMIT", self.name, rows.join("; "))
    }

    /// The first row of each shape: which columns are NULL, and what says what it is.
    pub fn shapes(&self) -> Vec<usize> {
        let (mut seen, mut shapes) = (BTreeSet::new(), Vec::new());
        for (place, row) in self.rows.iter().enumerate() {
            let shape: Vec<_> = self
                .columns
                .iter()
                .zip(row)
                .map(|(column, value)| match &*column.name {
                    "type" | "method_name" | "status" | "state" => value.clone(),
                    _ => (value == "NULL").to_string(),
                })
                .collect();
            if seen.insert(shape) {
                shapes.push(place);
            }
        }
        shapes
    }

    /// What a value can become: something next to it, what another row has there, nothing.
    pub fn others(&self, row: usize, column: usize) -> Vec<String> {
        let value = &self.rows[row][column];
        let mut others = BTreeSet::new();
        let of_rows =
            self.rows.iter().map(|row| &row[column]).find(|other| *other != value && *other != "NULL");
        others.extend(of_rows.cloned());
        match value.as_str() {
            "NULL" => drop(others.insert(match &*self.columns[column].declared {
                "INTEGER" => "0".to_owned(),
                "TEXT" => "'x'".to_owned(),
                _ => "x'00'".to_owned(),
            })),
            text if text.starts_with('\'') => {
                let (rest, last) = text[..text.len() - 1].split_at(text.len() - 2);
                let last = if last == "x" { "y" } else { "x" };
                others.extend([format!("{rest}{last}'"), "NULL".to_owned()]);
            }
            blob if blob.starts_with("X'") => {
                let flip = |hex: &str| if hex == "0" { "1" } else { "0" };
                let end = blob.len() - 1;
                if end > 2 {
                    others.insert(format!("{}{}'", &blob[..end - 1], flip(&blob[end - 1..end])));
                    others.insert(format!("X'{}{}", flip(&blob[2..3]), &blob[3..]));
                }
                others.insert("NULL".to_owned());
            }
            number => {
                let number: i64 = number.parse().unwrap();
                others.extend([(number ^ 1).to_string(), "NULL".to_owned()]);
            }
        }
        // Nothing at all is like any other value.
        if others.len() > 2 {
            others.remove("NULL");
        }
        others.into_iter().take(2).collect()
    }

    pub fn pairs(&self) -> Vec<(usize, usize)> {
        let count = self.rows.len();
        (0..count).flat_map(|one| (one + 1..count).map(move |other| (one, other))).collect()
    }

    /// Two rows' contents, each under the other's key.
    pub fn swapped(&self, one: usize, other: usize) -> String {
        let under = |key: usize, content: usize| {
            let mixed = self.columns.iter().enumerate();
            let mixed: Vec<_> = mixed
                .map(|(place, column)| self.rows[if column.in_key { key } else { content }][place].clone())
                .collect();
            self.insert(&mixed)
        };
        [self.delete(one), self.delete(other), under(one, other), under(other, one)].join("; ")
    }
}

pub fn digest(key: &RowKey) -> String {
    format!("{:032x}", u128::from_be_bytes(key.digest()))
}

/// Something that is done, and what has to be said of it.
pub struct Edit {
    /// Whose tables' rows have to be put back afterwards.
    pub table: usize,
    pub what: String,
    pub sql: String,
    /// Each of them is in the line.
    pub says: Vec<String>,
    /// `audit verify` has to find it as well, and name this.
    pub verified: Option<String>,
}

/// Rows of a kind, two by two: each with what is the other's, and each with the seal of the other.
pub fn pair_edits(tables: &[Content]) -> Vec<Edit> {
    let mut edits = Vec::new();
    for (table, content) in tables.iter().enumerate().filter(|(_, content)| !content.digests.is_empty()) {
        let name = &content.name;
        let seals: Vec<_> = (0..content.columns.len())
            .filter(|place| content.columns[*place].name.starts_with("seal"))
            .collect();
        assert_eq!(seals.len(), 2, "{name}");
        for (one, other) in content.pairs() {
            let says = || [one, other].map(|place| content.digests[place].clone()).to_vec();
            let what = format!("{name}: the contents of {one} and {other}");
            let sql = content.swapped(one, other);
            edits.push(Edit { table, what, sql, says: says(), verified: None });
            let mut swap = Vec::new();
            for (to, from) in [(one, other), (other, one)] {
                swap.extend(seals.iter().map(|seal| content.set(to, *seal, &content.rows[from][*seal])));
            }
            let (what, sql) = (format!("{name}: the seals of {one} and {other}"), swap.join("; "));
            edits.push(Edit { table, what, sql, says: says(), verified: None });
        }
    }
    edits
}

pub fn row_edits(tables: &[Content], older: &[Content]) -> Vec<Edit> {
    let mut edits = Vec::new();
    for (table, content) in tables.iter().enumerate().filter(|(_, content)| !content.digests.is_empty()) {
        let name = &content.name;
        let row_of = |place: usize| format!("row {name} {}", content.digests[place]);
        for row in content.shapes() {
            for (column, Column { name: of, in_key, .. }) in content.columns.iter().enumerate() {
                for value in content.others(row, column) {
                    edits.push(Edit {
                        table,
                        what: format!("{name}.{of} of {} = {value}", content.digests[row]),
                        sql: content.set(row, column, &value),
                        says: if *in_key { vec![format!("row {name} ")] } else { vec![row_of(row)] },
                        verified: None,
                    });
                }
            }
        }
        let marked = |place: usize| format!("{name}:{}", content.digests[place]);
        for row in 0..content.rows.len().min(ROWS_MAX) {
            edits.push(Edit {
                table,
                what: format!("{name}: row {row} is deleted"),
                sql: content.delete(row),
                says: vec![format!("rows of {name} do not add up"), row_of(row), "it is missing".to_owned()],
                verified: Some(marked(row)),
            });
            let mut copy = content.rows[row].clone();
            let key = content.columns.iter().rposition(|column| column.in_key).unwrap();
            copy[key] = content
                .others(row, key)
                .into_iter()
                .find(|value| value != "NULL" && content.rows.iter().all(|other| other[key] != *value))
                .unwrap();
            edits.push(Edit {
                table,
                what: format!("{name}: row {row} once more"),
                sql: content.insert(&copy),
                says: vec![format!("row {name} "), "has a wrong seal".to_owned()],
                verified: Some(format!("{name}:")),
            });
        }
        // Each with its own old seal, which is right.
        let older = older.iter().find(|older| older.name == *name).unwrap();
        let mut taken = 0;
        for (place, row) in older.rows.iter().enumerate() {
            let condition = older.condition(row);
            let there = content.rows.iter().find(|now| content.condition(now) == condition);
            if there == Some(row) || taken == ROWS_MAX {
                continue;
            }
            taken += 1;
            let says = if there.is_some() {
                "is there, and the log says"
            } else {
                "the log says that it was removed"
            };
            let digest = &older.digests[place];
            edits.push(Edit {
                table,
                what: format!("{name}: the old row {place} is back"),
                sql: format!("DELETE FROM {name} WHERE {condition}; {}", older.insert(row)),
                says: vec![
                    format!("rows of {name} do not add up"),
                    format!("row {name} {digest}"),
                    says.to_owned(),
                ],
                verified: Some(format!("{name}:{digest}")),
            });
        }
    }
    edits
}
