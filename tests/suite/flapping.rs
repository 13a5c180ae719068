//! An HSM that comes and goes, under load: every answer is right or a 503, and nobody is locked by it.
//!
//! Nine seconds; `HSM_AUTHD_FLAPPING_SECONDS=60` for longer.

use std::env;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fault_module::{Fault, Kind, Vanishing};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::faults_served::World;
use crate::submissions::{Crowd, Outcome, Token};

const UP: Duration = Duration::from_secs(2);
const DOWN: Duration = Duration::from_secs(1);
/// No answer takes longer, and the first yes comes as soon after a return.
const ANSWER_MAX: Duration = Duration::from_secs(8);
const RETURN_MAX: Duration = Duration::from_secs(5);
/// HOTP with right codes, TOTP with right codes, and HOTP with wrong ones too.
const RIGHT: usize = 8;
const TIMED: usize = 4;
const WRONG: usize = 4;

/// What the users share.
struct Weather {
    over: AtomicBool,
    begun: Instant,
    /// When the last yes came, in milliseconds since the beginning.
    yes_ms: AtomicU64,
}

impl Weather {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn now_ms(&self) -> u64 {
        self.begun.elapsed().as_millis() as u64
    }
}

#[derive(Debug, Default)]
struct Told {
    yes: usize,
    no: usize,
    unavailable: usize,
    slowest: Duration,
}

/// Who submits codes until they have a verdict.
struct User {
    token: Token,
    crowd: Crowd,
    number: usize,
    weather: Arc<Weather>,
    told: Told,
}

impl User {
    /// Until there is a verdict, which is this one.
    async fn expects(&mut self, code: &str, expected: Outcome) {
        let mut submission = self.token.submission(0);
        // What was carried out in spite of a 503 is told, and not done again.
        self.number += 1;
        submission.idempotency_key = Some(format!("{}-{}", self.token.id, self.number));
        submission.body["otp"] = code.into();
        loop {
            self.number += 1;
            let begun = Instant::now();
            let outcome = submission.send(self.crowd.connection(self.number)).await;
            self.told.slowest = self.told.slowest.max(begun.elapsed());
            match outcome {
                Outcome::Unavailable => self.told.unavailable += 1,
                _ => {
                    assert_eq!(outcome, expected, "{}: {code}", self.token.id);
                    match expected {
                        Outcome::Yes => {
                            self.told.yes += 1;
                            self.weather.yes_ms.fetch_max(self.weather.now_ms(), Ordering::Relaxed);
                        }
                        _ => self.told.no += 1,
                    }
                    return;
                }
            }
            // A client that is told to come back does so, if sooner than it is told.
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn failures(&self) -> u64 {
        let path = format!("/v1/credentials/{}", self.token.id);
        loop {
            let answer = self.crowd.connection(1).get(&path).await.unwrap();
            if answer.status == 200 {
                let view: Value = answer.json().unwrap();
                return view["failures"].as_u64().unwrap();
            }
            assert_eq!(answer.status, 503);
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Each code once, and then again, which is charged nothing.
    async fn counts(mut self) -> Told {
        for counter in 0.. {
            let code = self.token.code(counter);
            self.expects(&code, Outcome::Yes).await;
            self.expects(&code, Outcome::No).await;
            if self.weather.is_over() {
                break;
            }
        }
        assert!(self.failures().await <= 1);
        self.told
    }

    /// As a user of a clock's token: one code, and that again, until the next step.
    async fn watches_the_clock(mut self) -> Told {
        let step = || std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() / 30;
        let mut used = step() - 1;
        while !self.weather.is_over() {
            let now = step();
            let code = self.token.code(now);
            if now > used {
                self.expects(&code, Outcome::Yes).await;
                used = now;
            }
            self.expects(&code, Outcome::No).await;
            sleep(Duration::from_millis(20)).await;
        }
        self.told
    }

    /// Three wrong codes, then a right one; each wrong one is charged once and no more.
    async fn guesses(mut self) -> Told {
        let wrong = self.token.wrong_codes(3);
        for counter in 0.. {
            for (charged, code) in (1..).zip(&wrong) {
                self.expects(code, Outcome::No).await;
                assert_eq!(self.failures().await, charged, "{}", self.token.id);
            }
            let code = self.token.code(counter);
            self.expects(&code, Outcome::Yes).await;
            assert_eq!(self.failures().await, 0, "{}", self.token.id);
            if self.weather.is_over() {
                break;
            }
        }
        self.told
    }
}

async fn users(world: &World, weather: &Arc<Weather>) -> JoinSet<Told> {
    let mut users = JoinSet::new();
    let user = |token, number| {
        let (crowd, weather) = (world.crowd.clone(), weather.clone());
        User { token, crowd, number, weather, told: Told::default() }
    };
    for (number, token) in world.crowd.enrol("hotp", None, RIGHT).await.into_iter().enumerate() {
        users.spawn(user(token, number).counts());
    }
    for (number, token) in world.crowd.enrol("totp", None, TIMED).await.into_iter().enumerate() {
        users.spawn(user(token, number).watches_the_clock());
    }
    for (number, token) in world.crowd.enrol("hotp", None, WRONG).await.into_iter().enumerate() {
        users.spawn(user(token, number).guesses());
    }
    users
}

async fn flaps(how: Vanishing) {
    let seconds = env::var("HSM_AUTHD_FLAPPING_SECONDS").map_or(9, |text| text.parse().unwrap());
    let world = World::start_as(&["--custodians", "2", "--custody", "wrapped"], |_| {}).await;
    let (over, begun, yes_ms) = (AtomicBool::new(false), Instant::now(), AtomicU64::new(0));
    let weather = Arc::new(Weather { over, begun, yes_ms });
    let mut users = users(&world, &weather).await;
    let mut returns = Vec::new();
    while begun.elapsed() < Duration::from_secs(seconds) {
        // The weather changes by the clock: that is what this is about.
        sleep(UP).await;
        let set = world.faults.set(Fault::everywhere(Kind::Vanish(how)));
        sleep(DOWN).await;
        set.lift();
        let back_ms = weather.now_ms();
        while weather.yes_ms.load(Ordering::Relaxed) <= back_ms {
            let waited = weather.now_ms() - back_ms;
            assert!(waited <= RETURN_MAX.as_millis() as u64, "no yes {waited} ms after the return");
            assert!(users.try_join_next().is_none_or(|ended| panic!("a user gave up: {ended:?}")));
            sleep(Duration::from_millis(5)).await;
        }
        returns.push(weather.yes_ms.load(Ordering::Relaxed) - back_ms);
    }
    weather.over.store(true, Ordering::Relaxed);
    let mut sum = Told::default();
    for told in users.join_all().await {
        sum.yes += told.yes;
        sum.no += told.no;
        sum.unavailable += told.unavailable;
        sum.slowest = sum.slowest.max(told.slowest);
    }
    println!("{how:?}: {sum:?}; ms from each return to a yes: {returns:?}");
    assert!(sum.slowest < ANSWER_MAX && sum.yes > 2 * (RIGHT + TIMED + WRONG), "{sum:?}");
    world.await_custodians().await;
    assert_eq!(world.faults.counts().sessions_open(), 2);
    assert!(!world.served.log().contains("panicked"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hsm_that_flaps_loudly_wrongs_nobody() {
    flaps(Vanishing::Removed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hsm_that_flaps_quietly_wrongs_nobody() {
    flaps(Vanishing::Quietly).await;
}
