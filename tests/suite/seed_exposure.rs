//! Where a seed can be read that came wrapped: nowhere.

use std::fs;

use data_encoding::{BASE32_NOPAD, BASE64, HEXLOWER, HEXUPPER};
use serde_json::{Value, json};

use crate::bank::done;
use crate::client::Connection;
use crate::custodians::await_up;
use crate::daemon::{Daemon, code, enrol, verify};
use crate::process_memory::{each_part, is_root};
use crate::processes::eventually;
use crate::scrape::Scrape;
use crate::wrapped_seeds::Wrapper;

const SEEDS: u32 = 100;

/// What every seed of a test begins with: 15 bytes are whole groups of base32 and of base64, so that every spelling of a
/// seed begins with that spelling of its mark.
type Mark = [u8; 15];

fn seed(mark: &Mark, number: u32) -> Vec<u8> {
    [mark.as_slice(), &number.to_be_bytes()].concat()
}

/// How a mark may be written: as it is, and as whoever is careless writes it.
fn spellings(mark: &Mark) -> Vec<Vec<u8>> {
    let list = format!("{mark:?}");
    vec![
        mark.to_vec(),
        HEXLOWER.encode(mark).into(),
        HEXUPPER.encode(mark).into(),
        BASE32_NOPAD.encode(mark).into(),
        BASE32_NOPAD.encode(mark).to_lowercase().into(),
        BASE64.encode(mark).into(),
        list[1..list.len() - 1].into(),
    ]
}

/// Which spellings of a mark these bytes have, by number.
fn found(bytes: &[u8], mark: &Mark) -> Vec<usize> {
    let spellings = spellings(mark);
    let has = |spelling: &Vec<u8>| {
        let (first, length) = (spelling[0], spelling.len());
        let mut places = bytes.iter().enumerate().filter(|(_, byte)| **byte == first);
        places.any(|(place, _)| bytes.get(place..place + length) == Some(spelling.as_slice()))
    };
    (0..spellings.len()).filter(|number| has(&spellings[*number])).collect()
}

/// All that a process can change in its memory; the rest is as it was on the disk.
fn memory(pid: i32) -> Vec<u8> {
    let mut all = Vec::new();
    each_part(pid, |mapping, bytes| {
        if mapping.split_whitespace().nth(1).is_some_and(|rights| rights.starts_with("rw")) {
            all.extend(bytes);
        }
    });
    all
}

async fn enrol_all(bank: &Connection, mark: &Mark, brought: impl Fn(&[u8]) -> (&'static str, String)) {
    for number in 0..SEEDS {
        let seed = seed(mark, number);
        let (field, value) = brought(&seed);
        let body = json!({ "type": "hotp", "account": format!("acct-{number}"), field: value });
        let id = enrol(bank, &body).await;
        if number % 10 == 0 {
            done(&verify(bank, &id, &code(&seed, 0, 6)).await);
        }
    }
}

/// The front's memory after a hundred imports, while it works; then database, WAL and log, while it runs and after it.
// Stopping waits for the client's end of its connection, which needs a thread of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_wrapped_seed_is_in_no_memory_of_the_front_and_in_no_file() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    await_up(&daemon, 2).await;
    let wrapper = Wrapper::fetch(&bank).await;
    let [mut wrapped, mut clear] = [[0; 15]; 2];
    getrandom::fill(&mut wrapped).unwrap();
    getrandom::fill(&mut clear).unwrap();
    enrol_all(&bank, &wrapped, |seed| ("seed_wrapped_base64", wrapper.wrap(seed))).await;

    let outsiders = [vec![daemon.info["pid"].as_i64().unwrap() as i32], daemon.pids("front")].concat();
    assert_eq!(outsiders.len(), 2);
    // The processes are closed to their own user: only root sees into them.
    let look = is_root();
    if look {
        for pid in &outsiders {
            let memory = memory(*pid);
            assert!(memory.len() > 100_000, "{} bytes", memory.len());
            assert_eq!(found(&memory, &wrapped), [0_usize; 0], "process {pid}");
        }
    }
    // Nor seeds that came in the clear, once their connection has ended: what is freed is wiped. That the search finds them
    // before is canary.rs's to show.
    enrol_all(&bank, &clear, |seed| ("seed_hex", HEXLOWER.encode(seed))).await;
    drop(bank);
    eventually("the connection is closed", async || {
        (Scrape::of(&daemon).value("hsm_authd_connections_open", &[]) == 0.0).then_some(())
    })
    .await;
    if look {
        let memory = memory(outsiders[1]);
        let name = b"urn:hsm-authd:client:bank-a";
        assert!(memory.windows(name.len()).any(|window| window == name));
        for mark in [&wrapped, &clear] {
            assert_eq!(found(&memory, mark), [0_usize; 0]);
        }
    }

    let files = |daemon: &Daemon| -> Vec<(String, Vec<u8>)> {
        let database = daemon.database();
        let beside = ["", "-wal", "-shm"].map(|suffix| format!("{}{suffix}", database.display()));
        let read = |name: String| fs::read(&name).ok().map(|bytes| (name, bytes));
        beside.into_iter().filter_map(read).collect()
    };
    let running = files(&daemon);
    assert!(running.iter().any(|(name, bytes)| name.ends_with("-wal") && !bytes.is_empty()));
    assert!(daemon.stop().success());
    let log = daemon.log().into_bytes();
    assert!(log.windows(8).any(|window| window == b"enrolled"));
    for (name, bytes) in running.into_iter().chain(files(&daemon)).chain([("the log".to_owned(), log)]) {
        for mark in [&wrapped, &clear] {
            assert_eq!(found(&bytes, mark), [0_usize; 0], "{name}");
        }
    }
}

#[test]
fn the_search_finds_every_spelling() {
    let mark = *b"fifteen bytes..";
    for (number, spelling) in spellings(&mark).into_iter().enumerate() {
        let bytes = [b"fi".as_slice(), &spelling, b"behind"].concat();
        assert!(found(&bytes, &mark).contains(&number), "{}", String::from_utf8_lossy(&spelling));
    }
    let seed = seed(&mark, 7);
    for text in
        [HEXLOWER.encode(&seed), BASE32_NOPAD.encode(&seed), BASE64.encode(&seed), format!("{seed:?}")]
    {
        assert!(!found(text.as_bytes(), &mark).is_empty(), "{text}");
    }
    let value: Value = json!({ "seed_hex": HEXUPPER.encode(&seed) });
    assert_eq!(found(value.to_string().as_bytes(), &mark).len(), 1);
    assert!(found(b"fifteen bytes.", &mark).is_empty());
}
