//! Whatever somebody does to the database of a service that stands still: a start refuses it, or `hsm-authd audit verify`
//! says so. The edits are made from the schema: a table or a column that nobody thought of fails here.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use rusqlite::Connection as Sql;
use tokio::runtime::Handle;

use crate::audit_files::Copy;
use crate::tampered_service::{Bench, Starts};
use crate::tampered_tables::{Column, Content, digest, pair_edits, row_edits};
use crate::tampered_world::World;

const WORKERS: usize = 3;

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
    assert!(indexes.len() > 13);
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
            // The log may be long: who reads all of it looks. A start would succeed, and show the others its anchor.
            if table == "audit" {
                return;
            }
            let _runtime = handle.enter();
            let refusal = match starts.service(&copy.path) {
                Ok(service) => handle.block_on(starts.refusal(&service)),
                Err(line) => Some(line),
            };
            if !refusal.as_ref().is_some_and(|line| line.contains(index.as_str())) {
                faults.lock().unwrap().push(format!("NOT FOUND by a start: {index} is stale: {refusal:?}"));
            }
        },
    );
}
