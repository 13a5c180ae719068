//! Whatever somebody does to the database of a service that stands still: a start refuses it, or `hsm-authd audit verify`
//! says so. The edits are made from the schema: a table or a column that nobody thought of fails here.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::ManuallyDrop;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hsm_authd::clock::{SystemClock, WatchedClock};
use hsm_authd::domain::row::{RowKey, Table};
use hsm_authd::hsm::Hsm;
use hsm_authd::service::{Policies, Service};
use hsm_authd::store::Store;
use hsm_authd::store::offline::OfflineStore;
use hsm_authd::trust;
use rusqlite::Connection as Sql;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::audit_files::Copy;
use crate::daemon::Daemon;
use crate::tampered_world::World;
use crate::token::{Custodian, TestToken};

const WORKERS: usize = 3;
/// So many rows of a table are deleted, doubled and put back, one by one.
const ROWS_MAX: usize = 6;
/// What has no seals, and what finds an edit in it: for each of them there is an expectation in `besides_rows`.
const BESIDES_ROWS: [&str; 5] = ["audit", "audit_subtree", "checkpoint", "log_head", "table_sum"];

/// What a start finds of a database, by the product's own code in this process.
struct Starts {
    hsm: Hsm,
    anchor: String,
    _custodians: Vec<Custodian>,
}

impl Starts {
    async fn new(daemon: &Daemon) -> Self {
        let (events, mut told) = mpsc::unbounded_channel();
        let hsm = Hsm::new(2, (Default::default(), 100), events);
        // The folder stays the daemon's.
        let token = ManuallyDrop::new(TestToken::of(daemon));
        let mut custodians = Vec::new();
        for slot in 0..2 {
            let mut custodian = token.spawn();
            custodian.send(&token.boot);
            let stream = custodian.take_stream();
            stream.set_nonblocking(true).unwrap();
            tokio::spawn(hsm.clone().adopt(slot, 1, UnixStream::from_std(stream).unwrap()));
            told.recv().await.unwrap();
            custodians.push(custodian);
        }
        let anchor = hsm.read_anchor().await.unwrap().unwrap();
        Self { hsm, anchor, _custodians: custodians }
    }

    fn service(&self, database: &Path) -> Result<Service, String> {
        Store::open(database).map(|store| self.over(store)).map_err(|error| error.to_string())
    }

    fn over(&self, store: Store) -> Service {
        let clock = Arc::new(WatchedClock::new(Box::new(SystemClock), false).unwrap());
        let policies = Policies {
            credentials: Default::default(),
            transactions: Default::default(),
            attestations: Default::default(),
            audit: Default::default(),
        };
        let trust = trust::load(&Default::default()).unwrap();
        Service::new(store, self.hsm.clone(), clock, policies, trust)
    }

    /// The line that it ends with; `None`: it starts, and the anchor is set back.
    async fn refusal(&self, service: &Service) -> Option<String> {
        let line = service.begin().await.err();
        if line.is_none() {
            self.hsm.write_anchor(self.anchor.clone(), true).await.unwrap();
        }
        line
    }
}

struct Column {
    name: String,
    declared: String,
    in_key: bool,
}

/// A table with its rows, each value as SQL spells it.
struct Content {
    name: String,
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
    /// Of rows under seals, what the log calls each.
    digests: Vec<String>,
}

impl Content {
    fn of(sql: &Sql, name: &str) -> Self {
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
    fn all(copy: &Copy) -> Vec<Self> {
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
                content.digests.push(digest(&row.unwrap().key()));
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

    fn condition(&self, row: &[String]) -> String {
        let key = self.columns.iter().zip(row).filter(|(column, _)| column.in_key);
        key.map(|(column, value)| format!("{} IS {value}", column.name)).collect::<Vec<_>>().join(" AND ")
    }

    fn set(&self, row: usize, column: usize, value: &str) -> String {
        let condition = self.condition(&self.rows[row]);
        format!("UPDATE {} SET {} = {value} WHERE {condition}", self.name, self.columns[column].name)
    }

    fn delete(&self, row: usize) -> String {
        format!("DELETE FROM {} WHERE {}", self.name, self.condition(&self.rows[row]))
    }

    fn insert(&self, values: &[String]) -> String {
        let columns: Vec<_> = self.columns.iter().map(|column| &*column.name).collect();
        format!("INSERT INTO {} ({}) VALUES ({})", self.name, columns.join(", "), values.join(", "))
    }

    /// The whole table as it was.
    fn undo(&self) -> String {
        let rows: Vec<_> = self.rows.iter().map(|row| self.insert(row)).collect();
        format!("BEGIN; DELETE FROM {}; {}; COMMIT", self.name, rows.join("; "))
    }

    /// The first row of each shape: which columns are NULL, and what says what it is.
    fn shapes(&self) -> Vec<usize> {
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
    fn others(&self, row: usize, column: usize) -> Vec<String> {
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

    fn pairs(&self) -> Vec<(usize, usize)> {
        let count = self.rows.len();
        (0..count).flat_map(|one| (one + 1..count).map(move |other| (one, other))).collect()
    }

    /// Two rows' contents, each under the other's key.
    fn swapped(&self, one: usize, other: usize) -> String {
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

fn digest(key: &RowKey) -> String {
    format!("{:032x}", u128::from_be_bytes(key.digest()))
}

/// Something that is done, and what has to be said of it.
struct Edit {
    /// Whose tables' rows have to be put back afterwards.
    table: usize,
    what: String,
    sql: String,
    /// Each of them is in the line.
    says: Vec<String>,
    /// `audit verify` has to find it as well, and name this.
    verified: Option<String>,
}

/// Has several threads do this to every item; what they say, in any order.
fn in_parallel<T: Sync, S: Send>(
    items: &[T],
    begin: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, &T) + Sync,
) {
    let next = Mutex::new(items.iter());
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                let mut state = begin();
                loop {
                    let item = next.lock().unwrap().next();
                    let Some(item) = item else { break };
                    work(&mut state, item);
                }
            });
        }
    });
}

/// A copy of the database that a service has open, and somebody else too.
struct Bench {
    copy: Copy,
    sql: Sql,
    store: Store,
    service: Service,
}

impl Bench {
    fn new(newest: &Copy, starts: &Starts) -> Self {
        let copy = Copy::of(&newest.path);
        let store = Store::open(&copy.path).unwrap();
        let service = starts.over(store.clone());
        let sql = Sql::open(&copy.path).unwrap();
        sql.busy_timeout(Duration::from_secs(10)).unwrap();
        sql.pragma_update(None, "ignore_check_constraints", true).unwrap();
        sql.pragma_update(None, "synchronous", "OFF").unwrap();
        Self { copy, sql, store, service }
    }

    /// Whether a row of the table cannot be read, or a custodian refuses it.
    fn is_seen(&self, tables: &[Content], edit: &Edit, starts: &Starts, handle: &Handle) -> bool {
        let Ok(rows) = handle.block_on(self.store.rows_after(None, 10_000)) else { return true };
        let of_table = rows.iter().filter(|row| row.row.key().table().name() == tables[edit.table].name);
        let wrong = handle.block_on(starts.hsm.tampered(of_table.map(|row| row.to_bytes()).collect()));
        wrong.unwrap().len() == 1
    }

    fn apply(&self, sql: &str) -> bool {
        let before = self.sql.total_changes();
        let done = self.sql.execute_batch(&format!("BEGIN; {sql}; COMMIT")).is_ok();
        if !done {
            let _ = self.sql.execute_batch("ROLLBACK");
        }
        done && self.sql.total_changes() > before
    }
}

/// Rows of a kind, two by two: each with what is the other's, and each with the seal of the other.
fn pair_edits(tables: &[Content]) -> Vec<Edit> {
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

fn row_edits(tables: &[Content], older: &[Content]) -> Vec<Edit> {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn every_edit_is_found() {
    let begun = Instant::now();
    let world = World::new().await;
    println!("a database after {:?}", begun.elapsed());
    let tables = Content::all(&world.newest);
    let older = Content::all(&world.older);
    for content in &tables {
        println!(
            "{}: {} rows, {} columns, {} shapes",
            content.name,
            content.rows.len(),
            content.columns.len(),
            content.shapes().len()
        );
        let least = if ["log_head", "audit_subtree"].contains(&&*content.name) { 1 } else { 2 };
        assert!(content.rows.len() >= least, "{} has too few rows", content.name);
    }
    let starts = Starts::new(&world.daemon).await;
    let handle = Handle::current();
    tokio::task::block_in_place(|| {
        let faults = Mutex::new(Vec::new());
        rows(&world, &tables, &older, &starts, &handle, &faults);
        println!("rows after {:?}", begun.elapsed());
        pairs(&world, &tables, &starts, &handle, &faults);
        println!("pairs after {:?}", begun.elapsed());
        besides_rows(&world, &tables, &starts, &handle, &faults);
        println!("what is besides rows after {:?}", begun.elapsed());
        indexes(&world, &starts, &handle, &faults);
        println!("indexes after {:?}", begun.elapsed());
        // What was not changed starts, also if it was deleted and written again.
        let bench = Bench::new(&world.newest, &starts);
        for content in tables.iter().filter(|content| !content.digests.is_empty()) {
            assert!(bench.apply(&content.undo().replace("BEGIN; ", "").replace("; COMMIT", "")));
        }
        assert_eq!(handle.block_on(starts.refusal(&bench.service)), None);
        let faults = faults.into_inner().unwrap();
        assert!(faults.is_empty(), "{} edits:\n{}", faults.len(), faults.join("\n"));
    });
}

fn rows(
    world: &World,
    tables: &[Content],
    older: &[Content],
    starts: &Starts,
    handle: &Handle,
    faults: &Mutex<Vec<String>>,
) {
    let edits = row_edits(tables, older);
    let applied = Mutex::new(BTreeMap::<String, usize>::new());
    let begin = || {
        let _runtime = handle.enter();
        (Bench::new(&world.newest, starts), BTreeSet::new())
    };
    in_parallel(&edits, begin, |(bench, kinds), edit| {
        // NOT NULL, STRICT and unique indexes refuse some.
        if !bench.apply(&edit.sql) {
            return;
        }
        let kind = edit.what.split([' ', ':']).next().unwrap().to_owned();
        *applied.lock().unwrap().entry(kind.clone()).or_default() += 1;
        if edit.what.contains(" is back") {
            let kind = format!("{} back", tables[edit.table].name);
            *applied.lock().unwrap().entry(kind).or_default() += 1;
        }
        // Another value of the same column is found by the same check: a custodian that is shown the rows.
        let is_new = edit.verified.is_some() || kinds.insert(kind);
        let refusal = match is_new {
            true => handle.block_on(starts.refusal(&bench.service)),
            false => bench.is_seen(tables, edit, starts, handle).then(|| edit.says.concat()),
        };
        match refusal {
            None => {
                faults.lock().unwrap().push(format!("NOT FOUND by a start: {}", edit.what));
                let _runtime = handle.enter();
                *bench = Bench::new(&world.newest, starts);
                return;
            }
            Some(line) if edit.says.iter().all(|says| line.contains(says.as_str())) => {}
            Some(line) => {
                faults.lock().unwrap().push(format!("{}: {:?} not in {line}", edit.what, edit.says));
            }
        }
        if let Some(says) = &edit.verified {
            let (ok, line) = verify(&bench.copy, world);
            if ok || !line.contains(says) {
                faults.lock().unwrap().push(format!("audit verify of {}: {says} not in {line}", edit.what));
            }
        }
        bench.sql.execute_batch(&tables[edit.table].undo()).unwrap();
    });
    let applied = applied.into_inner().unwrap();
    println!("{} edits of rows", applied.values().sum::<usize>());
    for content in tables.iter().filter(|content| !content.digests.is_empty()) {
        let of = |what: &str| applied.get(&format!("{}{what}", content.name)).copied().unwrap_or(0);
        for column in &content.columns {
            assert!(
                of(&format!(".{}", column.name)) > 0,
                "{}.{} was never edited",
                content.name,
                column.name
            );
        }
        assert!(of("") > 0 && of(" back") > 0, "{}: {} and {} put back", content.name, of(""), of(" back"));
    }
}

/// A custodian refuses both rows of every pair, as it does whenever a request needs one of them; a start names them.
fn pairs(world: &World, tables: &[Content], starts: &Starts, handle: &Handle, faults: &Mutex<Vec<String>>) {
    let edits = pair_edits(tables);
    println!("{} edits of pairs", edits.len());
    let begin = || {
        let _runtime = handle.enter();
        (Bench::new(&world.newest, starts), BTreeSet::new())
    };
    in_parallel(&edits, begin, |(bench, seen), edit| {
        assert!(bench.apply(&edit.sql), "{}", edit.what);
        let rows: Vec<_> = handle
            .block_on(bench.store.rows_after(None, 10_000))
            .unwrap()
            .into_iter()
            .filter(|row| row.row.key().table().name() == tables[edit.table].name)
            .filter(|row| edit.says.contains(&digest(&row.row.key())))
            .map(|row| row.to_bytes())
            .collect();
        assert_eq!(rows.len(), 2, "{}", edit.what);
        let wrong = handle.block_on(starts.hsm.tampered(rows)).unwrap();
        if wrong != [0, 1] {
            faults.lock().unwrap().push(format!("NOT FOUND by a custodian: {}: {wrong:?}", edit.what));
        }
        // It is the same check: some of each kind will do.
        if seen.insert((edit.table, edit.what.contains("seals"))) {
            let line = handle.block_on(starts.refusal(&bench.service)).unwrap_or_default();
            if !edit.says.iter().all(|says| line.contains(says.as_str())) {
                faults.lock().unwrap().push(format!("{}: {:?} not in {line}", edit.what, edit.says));
            }
        }
        bench.sql.execute_batch(&tables[edit.table].undo()).unwrap();
    });
}

/// Whether `audit verify` takes it, and what it says.
fn verify(copy: &Copy, world: &World) -> (bool, String) {
    let output = copy.audit(&["verify", "--key", &world.key]);
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

fn besides_rows(
    world: &World,
    tables: &[Content],
    starts: &Starts,
    handle: &Handle,
    faults: &Mutex<Vec<String>>,
) {
    let mut edits: Vec<(String, String)> = Vec::new();
    for content in tables.iter().filter(|content| content.digests.is_empty()) {
        let (name, last) = (&content.name, content.rows.len() - 1);
        let places: Vec<usize> = match &**name {
            // Under both kept subtrees, and behind them.
            "audit" => vec![0, 199, last - 1, last],
            _ => (0..=last).collect(),
        };
        for row in &places {
            for (column, Column { name: of, .. }) in content.columns.iter().enumerate() {
                for value in content.others(*row, column) {
                    edits
                        .push((format!("{name}.{of} = {value} of {row}"), content.set(*row, column, &value)));
                }
            }
            edits.push((format!("{name}: {row} is deleted"), content.delete(*row)));
        }
        for (one, other) in content.pairs() {
            if places.contains(&one) && places.contains(&other) {
                edits.push((format!("{name}: {one} and {other} swapped"), content.swapped(one, other)));
            }
        }
    }
    let found = Mutex::new(BTreeMap::<String, [usize; 4]>::new());
    in_parallel(
        &edits,
        || (),
        |(), (what, sql)| {
            let mut applied = true;
            let copy = world.newest.tampered(|connection| {
                let before = connection.total_changes();
                let done = connection.execute_batch(&format!("BEGIN; {sql}; COMMIT"));
                applied = done.is_ok() && connection.total_changes() > before;
                if done.is_err() {
                    let _ = connection.execute_batch("ROLLBACK");
                }
            });
            if !applied {
                return;
            }
            let (ok, _) = verify(&copy, world);
            let _runtime = handle.enter();
            let refusal = match starts.service(&copy.path) {
                Ok(service) => handle.block_on(starts.refusal(&service)),
                Err(line) => Some(line),
            };
            let kind = what.split([' ', ':']).next().unwrap().to_owned();
            let mut found = found.lock().unwrap();
            let [all, verified, started, neither] = found.entry(kind).or_default();
            *all += 1;
            *verified += usize::from(!ok);
            *started += usize::from(refusal.is_some());
            if ok && refusal.is_none() {
                *neither += 1;
                // What an earlier checkpoint covered, a later one or the anchor covers; what is signed of a time is its second.
                let is_known = (what.starts_with("checkpoint: ") && what.ends_with(" is deleted"))
                    || what.starts_with("checkpoint.unix_ms = ");
                if !is_known {
                    faults.lock().unwrap().push(format!("NOT FOUND at all: {what}"));
                }
            }
        },
    );
    let found = found.into_inner().unwrap();
    for (kind, [all, verified, started, _]) in &found {
        println!("{kind}: {all} edits, {verified} found by verify, {started} by a start");
    }
    for content in tables.iter().filter(|content| content.digests.is_empty()) {
        for column in &content.columns {
            let kind = format!("{}.{}", content.name, column.name);
            assert!(found.contains_key(&kind), "{kind} was never edited");
        }
    }
}

/// An index that lacks a row: the table is as it was.
fn indexes(world: &World, starts: &Starts, handle: &Handle, faults: &Mutex<Vec<String>>) {
    let sql = Sql::open(&world.newest.path).unwrap();
    let mut statement = sql
        .prepare("SELECT name, tbl_name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL")
        .unwrap();
    let indexes = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    let indexes: Vec<(String, String)> = indexes.map(Result::unwrap).collect();
    assert!(indexes.len() > 15);
    in_parallel(
        &indexes,
        || (),
        |(), (index, table)| {
            let content = Content::of(&Sql::open(&world.newest.path).unwrap(), table);
            let stale = (0..content.rows.len()).rev().find_map(|row| {
                let copy = world.newest.tampered(|_| ());
                let hidden = |statement: &str| {
                    let sql = Sql::open(&copy.path).unwrap();
                    sql.pragma_update(None, "writable_schema", true).unwrap();
                    sql.execute_batch(statement).unwrap();
                };
                let kept = format!("CREATE TABLE kept AS SELECT * FROM sqlite_schema WHERE name = '{index}'");
                hidden(&format!(
                    "{}; {kept}; DELETE FROM sqlite_schema WHERE name = '{index}'",
                    content.delete(row)
                ));
                hidden(&format!(
                    "{}; INSERT INTO sqlite_schema SELECT * FROM kept; DROP TABLE kept",
                    content.insert(&content.rows[row])
                ));
                let lines: String = Sql::open(&copy.path)
                    .unwrap()
                    .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
                    .unwrap();
                (lines != "ok").then_some(copy)
            });
            let Some(copy) = stale else {
                faults.lock().unwrap().push(format!("{index}: no row is in it"));
                return;
            };
            let (ok, said) = verify(&copy, world);
            if ok || !said.contains(index.as_str()) {
                faults.lock().unwrap().push(format!("NOT FOUND by audit verify: {index} is stale: {said}"));
            }
            let _runtime = handle.enter();
            let refusal = match starts.service(&copy.path) {
                Ok(service) => handle.block_on(starts.refusal(&service)),
                Err(line) => Some(line),
            };
            // The log may be long: who reads all of it looks.
            if table != "audit" && !refusal.as_ref().is_some_and(|line| line.contains(index.as_str())) {
                faults.lock().unwrap().push(format!("NOT FOUND by a start: {index} is stale: {refusal:?}"));
            }
        },
    );
}
