//! A bank that has nothing to do with what others do to the appliance: its users' codes are verified one after the other, and
//! each is accepted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::client::{Connection, Http, Identity};
use crate::processes::PATIENCE;
use crate::submissions::{Outcome, Token};

const CONNECTIONS: usize = 4;
const USERS: usize = 8;

pub struct Bystander {
    shared: Arc<Shared>,
    users: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    accepted: AtomicU64,
    slowest_us: AtomicU64,
}

/// How its verifications went for a while.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub per_second: f64,
    pub slowest: Duration,
}

impl Bystander {
    /// Begins, over connections that are kept: half of them HTTP/1.1, half HTTP/2.
    pub async fn begin(url: &str, identity: &Identity) -> Self {
        let (shared, mut users, mut connections) = (Arc::new(Shared::default()), JoinSet::new(), Vec::new());
        for number in 0..CONNECTIONS {
            let http = if number % 2 == 0 { Http::One } else { Http::Two };
            connections.push(Connection::open(url, identity, http).await.unwrap());
        }
        for number in 0..USERS {
            let (connection, shared) = (connections[number % CONNECTIONS].clone(), shared.clone());
            let token = Token::enrol(&connection, "hotp", None).await;
            users.spawn(async move {
                for counter in 0.. {
                    // One in a million looks as the one before: refused, uncharged, and the user asks the token for the next.
                    if counter > 0 && token.code(counter) == token.code(counter - 1) {
                        continue;
                    }
                    let begun = Instant::now();
                    let outcome = token.submission(counter).send(&connection).await;
                    assert_eq!(outcome, Outcome::Yes, "code {counter}, after {:?}", begun.elapsed());
                    shared.accepted.fetch_add(1, Ordering::Relaxed);
                    shared.slowest_us.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
                    if shared.stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        Self { shared, users }
    }

    /// How it goes for so long from now on.
    pub async fn pace(&mut self, time: Duration) -> Pace {
        let (begun, before) = (Instant::now(), self.shared.accepted.load(Ordering::Relaxed));
        self.shared.slowest_us.store(0, Ordering::Relaxed);
        tokio::select! {
            () = sleep(time) => {}
            Some(ended) = self.users.join_next() => panic!("a user gave up: {ended:?}"),
        }
        let accepted = self.shared.accepted.load(Ordering::Relaxed) - before;
        Pace {
            per_second: accepted as f64 / begun.elapsed().as_secs_f64(),
            slowest: Duration::from_micros(self.shared.slowest_us.load(Ordering::Relaxed)),
        }
    }

    /// Ends it; its last codes are accepted, too.
    pub async fn end(mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let all = async {
            while let Some(ended) = self.users.join_next().await {
                ended.unwrap();
            }
        };
        timeout(PATIENCE, all).await.expect("its last codes are not answered");
    }
}
