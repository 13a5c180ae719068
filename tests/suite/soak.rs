//! Unwraps without end: what the processes keep of each, and that it does not add up.
//!
//! `HSM_AUTHD_SOAK_UNWRAPS` says how many; `make soak` asks for a million.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::client::{Connection, Http};
use crate::daemon::Daemon;
use crate::multi_terminal::{Payer, rule};
use crate::process_memory::resident_kib;
use crate::processes::children;
use crate::scrape::Scrape;
use crate::served::{Served, configuration, section};
use crate::transactions::cancel;

/// Users, each of whom has as many terminals, whose codes are asked for again and again.
const PAYERS: u64 = 16;
const TERMINALS: u64 = 8;
const CUSTODIANS: usize = 4;
/// How often a transaction's codes are asked for before there is another one: well within the time that it has.
const LOOKS: u64 = 200;
/// How much the processes may have together above what they have when it begins, in MiB, whatever they have done: what
/// each custodian may lose before it is replaced (at most 250 bytes an unwrap), one custodian more while another one takes
/// over, and the front's room.
const LOST_BYTES_MAX: u64 = 250;
const BESIDES_MIB: u64 = 64;

/// What supervisor, front and custodians have together.
#[derive(Clone, Copy, Debug, Default)]
struct Memory {
    supervisor_kib: u64,
    front_kib: u64,
    custodians_kib: u64,
    largest_custodian_kib: u64,
}

impl Memory {
    fn of(supervisor: i32) -> Self {
        let of_role = |role| children(supervisor, role).into_iter().map(resident_kib).collect::<Vec<_>>();
        let custodians = of_role("custodian");
        Self {
            supervisor_kib: resident_kib(supervisor),
            front_kib: of_role("front").iter().sum(),
            custodians_kib: custodians.iter().sum(),
            largest_custodian_kib: custodians.into_iter().max().unwrap_or(0),
        }
    }

    fn sum_kib(&self) -> u64 {
        self.supervisor_kib + self.front_kib + self.custodians_kib
    }

    /// The most of each.
    fn or_more(self, other: Self) -> Self {
        let more = if other.sum_kib() > self.sum_kib() { other } else { self };
        let largest_custodian_kib = self.largest_custodian_kib.max(other.largest_custodian_kib);
        Self { largest_custodian_kib, ..more }
    }
}

/// Asks for the codes of its terminals, each of which has to be unwrapped for it; how often it was refused.
async fn look(payer: Payer, bank: Connection, gateway: Connection, left: Arc<AtomicU64>) -> u64 {
    let mut refused = 0;
    loop {
        let asked = payer.asked(&gateway, &rule("preset_order")).await;
        for _ in 0..LOOKS {
            let answer = gateway.get(&format!("/v1/transactions/{}", asked.id)).await.unwrap();
            let codes = answer.json().ok().filter(|view| crate::multi_terminal::codes(view) == asked.codes);
            refused += u64::from(answer.status != 200 || codes.is_none());
            let take = |left: u64| (left > 0).then(|| left.saturating_sub(TERMINALS));
            if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
                return refused;
            }
        }
        assert_eq!(cancel(&bank, &asked.id).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_modules_lose_with_each_unwrap_does_not_add_up() {
    let asked = std::env::var("HSM_AUTHD_SOAK_UNWRAPS").ok();
    let unwraps: u64 = asked.map_or(20_000, |count| count.parse().unwrap());
    let every = (unwraps / 50).max(400);
    let mut daemon = Daemon::start_with(&["--custodians", "2", "--custody", "wrapped"], &[]);
    let bank = daemon.connect("bank-a").await;
    let mut payers = Vec::new();
    for number in 0..PAYERS {
        payers.push(Payer::enrol(&bank, &format!("acct-{number}"), TERMINALS as usize).await);
    }
    drop(bank);
    daemon.stop();
    let config = configuration(&daemon, "soak.toml", |config| {
        let hsm = section(config, "hsm");
        hsm.insert("custodians".into(), (CUSTODIANS as i64).into());
        hsm.insert("secrets_cached_max".into(), 1.into());
        hsm.insert("recycle_after_unwraps".into(), every.cast_signed().into());
    });
    let served = Served::start(&config);
    let open = async |client: &str| {
        Connection::open(&served.url, &daemon.identity(client), Http::Two).await.unwrap()
    };

    let left = Arc::new(AtomicU64::new(unwraps));
    let (begun, mut looks) = (Instant::now(), JoinSet::new());
    for payer in payers {
        looks.spawn(look(payer, open("bank-a").await, open("bank-a-gateway").await, left.clone()));
    }
    let (first, mut most, mut refused, mut told) = (Memory::of(served.pid()), Memory::default(), 0, 0);
    let mut pause = tokio::time::interval(Duration::from_millis(50));
    while !looks.is_empty() {
        tokio::select! {
            ended = looks.join_next() => refused += ended.unwrap().unwrap(),
            _ = pause.tick() => {
                let memory = Memory::of(served.pid());
                most = most.or_more(memory);
                let tenth = 10 - left.load(Ordering::Relaxed) * 10 / unwraps;
                if tenth > told {
                    told = tenth;
                    println!("{}0 % after {:?}: {} MiB, {memory:?}", tenth, begun.elapsed(), memory.sum_kib() / 1024);
                }
            }
        }
    }
    let took = begun.elapsed();
    let replaced =
        Scrape::at(&served.ops_url).counted("hsm_authd_custodian_replacements_total").get("unwraps").copied();
    let last = Memory::of(served.pid());
    println!(
        "{unwraps} unwraps in {took:?}, {:.0} a second; replaced after at most {every}: {replaced:?}; memory of all processes: \
         {} MiB at first, {} MiB at most, {} MiB at last; {first:?}, {most:?}, {last:?}",
        unwraps as f64 / took.as_secs_f64(),
        first.sum_kib() / 1024,
        most.sum_kib() / 1024,
        last.sum_kib() / 1024,
    );
    assert_eq!(refused, 0);
    assert!(replaced.is_some_and(|count| count >= CUSTODIANS as f64), "{replaced:?}");
    let fresh_kib = first.custodians_kib / CUSTODIANS as u64;
    let lost_kib = (CUSTODIANS as u64 + 1) * every * LOST_BYTES_MAX / 1024;
    let bound_kib = first.sum_kib() + fresh_kib + lost_kib + BESIDES_MIB * 1024;
    assert!(most.sum_kib() <= bound_kib, "{} KiB, of {bound_kib} KiB", most.sum_kib());
    assert_eq!(served.stop().code(), Some(0));
}
