//! Of old checkpoints the last one of each hour stays, and what is checked with checkpoints is right all the same.

use std::collections::BTreeSet;

use hsm_authd::domain::checkpoint::Note;
use hsm_authd::store::{Store, Thinned};
use rusqlite::{Connection as Database, params};

use crate::audit_files::{Copy, Notary};
use crate::bank::done;
use crate::daemon::{Daemon, enrol_hotp, rfc_code, text, verify};
use crate::processes::eventually;
use crate::scratch::Scratch;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;
const NOW_MS: u64 = 2_000_000_000_000;

fn sizes(path: &std::path::Path) -> Vec<u64> {
    let database = Database::open(path).unwrap();
    let mut statement = database.prepare("SELECT size FROM checkpoint ORDER BY size").unwrap();
    let sizes = statement.query_map([], |row| row.get::<_, i64>(0)).unwrap();
    sizes.map(|size| size.unwrap() as u64).collect()
}

/// Goes through all of it by pages of so many.
async fn thin(store: &Store, limit: u16) -> (u64, Vec<Thinned>) {
    let (mut removed, mut pages, mut from) = (0, Vec::new(), 0);
    loop {
        let page = store.thin_checkpoints(from, NOW_MS - DAY_MS, limit).await.unwrap();
        removed += page.removed;
        pages.push(page);
        match page.next {
            Some(next) => from = next,
            None => return (removed, pages),
        }
    }
}

#[tokio::test]
async fn the_last_one_of_each_hour_stays_and_all_of_the_last_day() {
    let day_ago = NOW_MS - DAY_MS;
    // By how far each is from a day ago, in minutes: one each ten of them, for two days on either side.
    let offsets: Vec<i64> = (-288..288).map(|number| number * 10 + 5).collect();
    let time = |offset: i64| day_ago.checked_add_signed(offset * 60_000).unwrap();
    let hour = |offset: i64| time(offset) / HOUR_MS;
    let expected: Vec<u64> = offsets
        .iter()
        .enumerate()
        .filter(|(place, offset)| {
            let next = offsets.get(place + 1);
            **offset > 0 || next.is_none_or(|next| hour(*next) != hour(**offset))
        })
        .map(|(place, _)| place as u64 + 10)
        .collect();
    // 48 whole hours, of which 5 of 6 go; one of them may be cut by the day's beginning.
    assert!((240..=245).contains(&(offsets.len() - expected.len())), "{}", expected.len());
    for limit in [1, 2, 7, 100, 1_000] {
        let scratch = Scratch::new();
        let path = scratch.join("store.db");
        let store = Store::open(&path).unwrap();
        for (place, offset) in offsets.iter().enumerate() {
            store.keep_checkpoint(place as u64 + 10, time(*offset), "a note".to_owned()).await.unwrap();
        }
        let (removed, pages) = thin(&store, limit).await;
        assert_eq!(removed, (offsets.len() - expected.len()) as u64, "{limit}");
        assert!(pages.iter().all(|page| page.removed <= u64::from(limit)), "{limit}");
        let first_young = offsets.iter().position(|offset| *offset > 0).unwrap() as u64 + 10;
        assert_eq!(
            pages.iter().map(|page| page.settled_to).find(|size| *size == first_young),
            Some(first_young)
        );
        assert_eq!(thin(&store, limit).await.0, 0, "{limit}");
        drop(store);
        assert_eq!(sizes(&path), expected, "{limit}");
    }
}

#[tokio::test]
async fn the_newest_one_stays_however_old_and_a_clock_that_was_wrong_removes_nothing_that_is_young() {
    let scratch = Scratch::new();
    let path = scratch.join("store.db");
    let store = Store::open(&path).unwrap();
    assert_eq!(thin(&store, 10).await.0, 0, "of none");
    let long_ago = NOW_MS - 300 * DAY_MS;
    for (size, unix_ms) in [
        (1, long_ago),
        (2, long_ago + 1),
        // It was ahead, and was set right.
        (3, NOW_MS + DAY_MS),
        (4, NOW_MS + DAY_MS + 1),
        (5, long_ago + 2 * HOUR_MS),
        (6, long_ago + 2 * HOUR_MS + 1),
        (7, long_ago + 2 * HOUR_MS + 2),
    ] {
        store.keep_checkpoint(size, unix_ms, "a note".to_owned()).await.unwrap();
    }
    let (removed, pages) = thin(&store, 10).await;
    assert_eq!((removed, pages[0].settled_to), (3, 3), "what may go later is not passed over");
    drop(store);
    assert_eq!(sizes(&path), [2, 3, 4, 7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_thins_them_out_and_its_log_verifies() {
    let mut daemon = Daemon::start_at(NOW_MS / 1_000);
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    for counter in 0..40 {
        done(&verify(&bank, &id, &rfc_code(counter)).await);
    }
    let keys = done(&daemon.connect("auditor").await.get("/v1/audit/keys").await.unwrap());
    assert!(daemon.stop().success());
    let copy = Copy::of(&daemon.database());
    let notary = Notary::new(1);
    let database = Database::open(daemon.database()).unwrap();
    let before: BTreeSet<u64> = sizes(&daemon.database()).into_iter().collect();
    let (mut last_of_hour, mut made) = (BTreeSet::new(), 0);
    for size in 5..37 {
        // Three in an hour, ending three hours before they are a day old.
        let unix_ms = NOW_MS - DAY_MS - (3 + (36 - size) / 3) * HOUR_MS + (size % 3) * 60_000;
        let note = notary.note(copy.head(size), unix_ms / 1_000);
        let sql = "INSERT INTO checkpoint (size, unix_ms, note) VALUES (?1, ?2, ?3)";
        made += database.execute(sql, params![size as i64, unix_ms as i64, note]).unwrap();
        if size % 3 == 0 {
            last_of_hour.insert(size);
        }
    }
    drop(database);
    assert_eq!((made, last_of_hour.len()), (32, 11));
    daemon.resume();
    let is_left = async || {
        let left: BTreeSet<u64> = sizes(&daemon.database()).into_iter().collect();
        (left.len() < made).then_some(left)
    };
    let left = eventually("the others are gone", is_left).await;
    assert!(left.is_superset(&last_of_hour) && left.is_superset(&before), "{left:?}");
    assert_eq!(left.intersection(&(5..37).collect()).count(), last_of_hour.len(), "{left:?}");

    let auditor = daemon.connect("auditor").await;
    let note = auditor.get("/v1/audit/checkpoint").await.unwrap();
    let newest = Note::parse(&text(&note)).unwrap().unverified().head.size;
    assert_eq!(Some(newest), left.last().copied());
    for query in
        [format!("from=7&to={newest}"), format!("entry=7&size={newest}"), "entry=3&size=8".to_owned()]
    {
        done(&auditor.get(&format!("/v1/audit/proof?{query}")).await.unwrap());
    }
    drop(auditor);
    assert!(daemon.stop().success());
    let of_daemon =
        keys["keys"].as_array().unwrap().iter().map(|key| key["public_key_pem"].as_str().unwrap());
    let pem: String = of_daemon.map(str::to_owned).chain([notary.pem()]).collect();
    let copy = Copy::of(&daemon.database());
    let pem = copy.scratch.write("keys.pem", &pem);
    let said = copy.verified(&["--key", pem.to_str().unwrap()]);
    assert!(said.ends_with("\nok           every entry fits\n"), "{said}");
}

/// More than are looked at in one transaction, and behind one whose time is still to come.
#[tokio::test(flavor = "multi_thread")]
async fn however_many_there_are_a_service_comes_to_all_of_them() {
    const NOTES: u64 = 3_600;
    let mut daemon = Daemon::start_at(NOW_MS / 1_000);
    assert!(daemon.stop().success());
    let mut database = Database::open(daemon.database()).unwrap();
    let transaction = database.transaction().unwrap();
    for number in 0..NOTES {
        let ago_ms = 10 * DAY_MS - number * 60_000;
        let unix_ms = if number == 70 { NOW_MS + DAY_MS } else { NOW_MS - ago_ms };
        let sql = "INSERT INTO checkpoint (size, unix_ms, note) VALUES (?1, ?2, 'none')";
        transaction.execute(sql, params![1_000_000 + number as i64, unix_ms as i64]).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    daemon.resume();
    // One of each of 60 hours, which begin within one; and that which is still to come, with the one before it.
    let most = NOTES / 60 + 3;
    let left = eventually("one an hour is left", async || {
        let left: Vec<_> = sizes(&daemon.database()).into_iter().filter(|size| *size >= 1_000_000).collect();
        (left.len() as u64 <= most).then_some(left)
    })
    .await;
    assert!(left.len() as u64 >= most - 2, "{left:?}");
    assert!(left.contains(&1_000_070) && left.contains(&(1_000_000 + NOTES - 1)), "{left:?}");
}
