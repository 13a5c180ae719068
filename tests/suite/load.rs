//! Right codes without end, while something happens to the appliance.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::submissions::{Crowd, Outcome, Tally, Token};

/// How many users there are: enough that each custodian has some.
const USERS: usize = 16;
/// How long the next acceptances may take: longer than the longest pause before a custodian is
/// replaced.
const PROGRESS_MAX: Duration = Duration::from_secs(20);

/// Users who each submit one code after the other; each code, once it was accepted, once more. A code
/// that got no verdict is submitted again. A wrong verdict and a lost connection fail the test.
pub struct Load {
    shared: Arc<Shared>,
    users: JoinSet<Report>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    accepted: AtomicUsize,
    accepted_one: Notify,
}

/// What the users saw.
#[derive(Debug, Default)]
pub struct Report {
    pub tally: Tally,
    /// The longest time that an answer took.
    pub slowest: Duration,
}

impl Load {
    pub async fn begin(crowd: &Crowd) -> Self {
        Self::begin_with(crowd.enrol("hotp", None, USERS).await, crowd).await
    }

    /// The same with credentials that are there already, of which no code was used.
    pub async fn begin_with(tokens: Vec<Token>, crowd: &Crowd) -> Self {
        let shared = Arc::new(Shared::default());
        let mut users = JoinSet::new();
        for (number, token) in tokens.into_iter().enumerate() {
            users.spawn(use_token(token, crowd.clone(), number, shared.clone()));
        }
        let mut load = Self { shared, users };
        load.progress().await;
        load
    }

    /// Waits until each user could have had another code accepted.
    pub async fn progress(&mut self) {
        let goal = self.shared.accepted.load(Ordering::Relaxed) + 2 * USERS;
        let reached = async {
            loop {
                let notified = self.shared.accepted_one.notified();
                if self.shared.accepted.load(Ordering::Relaxed) >= goal {
                    return;
                }
                tokio::select! {
                    () = notified => {}
                    Some(ended) = self.users.join_next() => panic!("a user gave up: {ended:?}"),
                }
            }
        };
        timeout(PROGRESS_MAX, reached).await.expect("codes are no longer accepted");
    }

    /// Lets the users finish what they are at.
    pub async fn end(self) -> Report {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut sum = Report::default();
        for report in self.users.join_all().await {
            sum.tally = sum.tally.plus(report.tally);
            sum.slowest = sum.slowest.max(report.slowest);
        }
        assert_eq!(sum.tally.yes, sum.tally.no, "each code was accepted and then refused");
        assert_eq!((sum.tally.locked, sum.tally.lost), (0, 0), "{sum:?}");
        sum
    }
}

async fn use_token(token: Token, crowd: Crowd, number: usize, shared: Arc<Shared>) -> Report {
    let mut report = Report::default();
    let mut requests = number..;
    let mut submit = async |counter, expected| {
        let submission = token.submission(counter);
        loop {
            let connection = crowd.connection(requests.next().unwrap());
            let begun = Instant::now();
            let outcome = submission.send(connection).await;
            report.slowest = report.slowest.max(begun.elapsed());
            report.tally.add(outcome);
            if outcome == expected {
                return;
            }
            assert_eq!(outcome, Outcome::Unavailable, "counter {counter}");
        }
    };
    for counter in 0.. {
        submit(counter, Outcome::Yes).await;
        submit(counter, Outcome::No).await;
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        shared.accepted_one.notify_waiters();
        if shared.stop.load(Ordering::Relaxed) {
            let view = token.view(crowd.connection(1)).await;
            assert_eq!((&view["counter"], &view["failures"]), (&(counter + 1).into(), &0.into()));
            break;
        }
    }
    report
}
