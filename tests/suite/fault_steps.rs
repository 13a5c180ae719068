//! A user's story in steps, of which one is told while the HSM fails. What each step ends in is known from a run without a
//! fault: under one it is the same or a 503, and after it the same request ends in the same, with the same costs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fault_module::{Fault, Function, Kind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::client::Connection;
use crate::fault_asks::{Ask, Client, End, Verdict};
use crate::faults_served::World;
use crate::operator::keys_by;

/// No answer takes longer, whatever the HSM does.
const ANSWER_MAX: Duration = Duration::from_secs(12);
/// From the end of a fault to an answer.
pub const RECOVERY_MAX: Duration = Duration::from_secs(5);
/// After so long the test goes on without one.
const GIVE_UP: Duration = Duration::from_secs(20);
/// How long a command of the operator's is left under a fault that lasts.
const COMMAND_UNDER_FAULT: Duration = Duration::from_secs(4);
const LOOK_EVERY: Duration = Duration::from_millis(10);
const CUSTODIANS: u64 = 2;

/// A step, and what it took.
#[derive(Clone, Debug)]
pub struct Seen {
    pub end: End,
    /// How often each function was called, in the order of [`Function::ALL`].
    pub calls: Vec<u64>,
}

/// A fault for one of the steps.
#[derive(Clone, Copy, Debug)]
pub struct Strike {
    pub step: usize,
    pub fault: Fault,
    /// It lasts until it is lifted.
    pub lasts: bool,
}

/// What came of a strike.
#[derive(Clone, Copy, Debug, Default)]
pub struct Met {
    /// How often it was met.
    pub times: u64,
    /// An answer came in spite of it.
    pub answered: bool,
    /// How long after its end an answer came.
    pub recovery: Duration,
    /// How long until all custodians were back.
    pub whole: Duration,
}

/// A story that is being told.
pub struct Run {
    pub world: Arc<World>,
    pub bank: Connection,
    pub gateway: Connection,
    /// Unlike that of any other run.
    pub number: u64,
    strikes: Vec<Strike>,
    expected: Option<Arc<Vec<Seen>>>,
    pub seen: Vec<Seen>,
    /// What came of the strikes so far.
    pub met: Arc<Mutex<Vec<Met>>>,
}

impl Run {
    /// Without a fault: what is expected.
    pub async fn calm(world: Arc<World>) -> Self {
        Self::new(world, Vec::new(), None).await
    }

    /// With faults, each in another step.
    pub async fn struck(world: Arc<World>, strikes: Vec<Strike>, expected: Arc<Vec<Seen>>) -> Self {
        Self::new(world, strikes, Some(expected)).await
    }

    async fn new(world: Arc<World>, strikes: Vec<Strike>, expected: Option<Arc<Vec<Seen>>>) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        Self {
            bank: world.connect("bank-a").await,
            gateway: world.connect("bank-a-gateway").await,
            world,
            number: COUNT.fetch_add(1, Ordering::Relaxed),
            strikes,
            expected,
            seen: Vec::new(),
            met: Arc::default(),
        }
    }

    /// An account of its own.
    pub fn account(&self) -> String {
        format!("acct-{}", self.number)
    }

    /// A seed of its own.
    pub fn seed(&self) -> Vec<u8> {
        format!("seed of story {:010}", self.number).into_bytes()
    }

    fn strike(&self) -> Option<Strike> {
        self.strikes.iter().find(|strike| strike.step == self.seen.len()).copied()
    }

    /// The next step: the answer's body.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn step(&mut self, name: &'static str, ask: Ask) -> Result<Value, String> {
        let before = self.calls();
        let key = format!("story-{}-{}", self.number, self.seen.len());
        let lost = ask.renewing.then(|| {
            let fault = Fault::of(Function::C_SignInit, Kind::CloseSessions).once();
            self.world.faults.set(fault)
        });
        let told = match self.strike() {
            Some(strike) => self.under_fault(&ask, &key, strike).await,
            None => self.until_answered(&ask, &key).await,
        };
        if let Some(lost) = lost {
            lost.lift();
        }
        let (verdict, body) = told.map_err(|reason| format!("{name}: {reason}"))?;
        let calls = self.calls().iter().zip(before).map(|(after, before)| after - before).collect();
        let standing = self.standing(&ask).await?;
        let again = match ask.once {
            true => {
                let (verdict, _) = self.send(&ask, &format!("{key}-again")).await?;
                Some((verdict, self.standing(&ask).await?))
            }
            false => None,
        };
        self.ends(End { name, verdict, standing, again }, calls)?;
        Ok(body)
    }

    /// The next step: `hsm-authd keys` with these arguments.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn command(
        &mut self,
        name: &'static str,
        arguments: &'static [&'static str],
    ) -> Result<(), String> {
        let before = self.calls();
        let mut done = false;
        if let Some(strike) = self.strike() {
            let set = self.world.faults.set(strike.fault);
            self.met().push(Met::default());
            let mut under_way = self.keys(arguments);
            let in_time = timeout(COMMAND_UNDER_FAULT, &mut under_way).await;
            let ended = match in_time {
                Ok(ended) => ended,
                Err(_) => {
                    set.lift();
                    under_way.await
                }
            };
            set.lift();
            done = ended.unwrap()?.is_ok();
            self.meet(|met| (met.times, met.answered) = (set.count(), done));
            self.await_whole().await?;
        }
        if !done && let Err(said) = self.keys(arguments).await.unwrap()? {
            return Err(format!("{name}: not done without a fault: {said}"));
        }
        let calls = self.calls().iter().zip(before).map(|(after, before)| after - before).collect();
        let verdict = Verdict(0, String::new());
        self.ends(End { name, verdict, standing: Vec::new(), again: None }, calls)
    }

    /// Whether it was done; if not, the one line that it said.
    fn keys(&self, arguments: &'static [&'static str]) -> JoinHandle<Result<Result<(), String>, String>> {
        let config = self.world.config.clone();
        tokio::task::spawn_blocking(move || {
            let output = keys_by(&config, arguments);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            // In a debug build the standard library tells, at length, of the null that the binding takes for a list of
            // functions; what it ends in is one line all the same.
            let panics = || said.lines().filter(|line| line.contains("panicked"));
            let is_bindings = panics().count() > 0 && panics().all(|line| line.contains("/cryptoki-"));
            let is_told = |_: &&str| said.lines().count() == 1 || is_bindings;
            let line = said.lines().last().filter(|line| line.starts_with("hsm-authd: ") && is_told(line));
            match (output.status.code(), line) {
                (Some(0), _) => Ok(Ok(())),
                (Some(1), Some(line)) => Ok(Err(line.to_owned())),
                _ => Err(format!("keys {}: {}: {said}", arguments.join(" "), output.status)),
            }
        })
    }

    fn ends(&mut self, end: End, calls: Vec<u64>) -> Result<(), String> {
        let expected = self.expected.as_ref().and_then(|expected| expected.get(self.seen.len()));
        match expected.filter(|expected| expected.end != end) {
            Some(expected) => Err(format!("ended in {end:?} instead of {:?}", expected.end)),
            None => {
                self.seen.push(Seen { end, calls });
                Ok(())
            }
        }
    }

    fn calls(&self) -> Vec<u64> {
        let counts = self.world.faults.counts();
        Function::ALL.iter().map(|function| counts.calls(*function)).collect()
    }

    async fn send(&self, ask: &Ask, key: &str) -> Result<(Verdict, Value), String> {
        let connection = match ask.client {
            Client::Bank => &self.bank,
            Client::Gateway => &self.gateway,
        };
        let mut headers = vec![("content-type", "application/json")];
        headers.extend(ask.keyed.then_some(("idempotency-key", key)));
        let answer =
            timeout(ANSWER_MAX, connection.request("POST", &ask.path, &headers, ask.body.to_string())).await;
        let answer = answer.map_err(|_| format!("no answer in {} s", ANSWER_MAX.as_secs()))?;
        let answer = answer.map_err(|failure| failure.to_string())?;
        let body = answer.json().unwrap_or_default();
        let verdict = Verdict::of(answer.status.as_u16(), &body);
        if verdict.is_unavailable() && answer.header("retry-after").is_none() {
            return Err("a 503 that does not say when to come back".to_owned());
        }
        Ok((verdict, body))
    }

    /// Without a fault. Only who needs new custodians may have to wait for them.
    async fn until_answered(&self, ask: &Ask, key: &str) -> Result<(Verdict, Value), String> {
        if !ask.killing {
            return self.send(ask, key).await;
        }
        self.kill_custodians();
        let told = self.answered(ask, key).await?;
        self.whole().await?;
        Ok(told)
    }

    async fn answered(&self, ask: &Ask, key: &str) -> Result<(Verdict, Value), String> {
        let begun = Instant::now();
        loop {
            let (verdict, body) = self.send(ask, key).await?;
            // One that was cut off may still be worked on.
            let passes = verdict.is_unavailable()
                || verdict.1 == "state-conflict" && self.expectation().is_some_and(|it| *it != verdict);
            if !passes {
                return Ok((verdict, body));
            }
            if begun.elapsed() > GIVE_UP {
                return Err(format!("{verdict:?} for {} s after the fault", GIVE_UP.as_secs()));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    fn expectation(&self) -> Option<&Verdict> {
        Some(&self.expected.as_ref()?.get(self.seen.len())?.end.verdict)
    }

    async fn under_fault(
        &mut self,
        ask: &Ask,
        key: &str,
        strike: Strike,
    ) -> Result<(Verdict, Value), String> {
        let set = self.world.faults.set(strike.fault);
        self.met().push(Met::default());
        if ask.killing {
            self.kill_custodians();
        }
        let mut first = None;
        let mut wrong = None;
        // Who gets a 503 comes back while the fault lasts.
        for _ in 0..if strike.lasts { 2 } else { 1 } {
            let told = self.send(ask, key).await;
            match told {
                Ok((verdict, _)) if verdict.is_unavailable() => {}
                Ok(told) => {
                    wrong = self
                        .expectation()
                        .filter(|it| **it != told.0)
                        .map(|it| format!("{:?} instead of {it:?} or a 503 under the fault", told.0));
                    first = Some(told);
                    break;
                }
                Err(reason) => {
                    wrong = Some(format!("{reason} under the fault"));
                    break;
                }
            }
        }
        set.lift();
        let begun = Instant::now();
        self.meet(|met| met.times = set.count());
        if let Some(wrong) = wrong {
            return Err(wrong);
        }
        let second = self.answered(ask, key).await?;
        let recovery = begun.elapsed();
        self.meet(|met| (met.answered, met.recovery) = (first.is_some(), recovery));
        self.await_whole().await?;
        if recovery > RECOVERY_MAX {
            return Err(format!("late: an answer {:.1} s after the fault", recovery.as_secs_f64()));
        }
        match first {
            Some(first) if first.0 != second.0 => {
                Err(format!("{:?} under the fault, {:?} when it is sent again", first.0, second.0))
            }
            first => Ok(first.unwrap_or(second)),
        }
    }

    fn kill_custodians(&self) {
        for pid in self.world.custodians() {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
    }

    async fn await_whole(&mut self) -> Result<(), String> {
        let whole = self.whole().await?;
        self.meet(|met| met.whole = whole);
        Ok(())
    }

    fn meet(&self, of_last: impl FnOnce(&mut Met)) {
        if let Some(met) = self.met().last_mut() {
            of_last(met);
        }
    }

    fn met(&self) -> MutexGuard<'_, Vec<Met>> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All custodians are up, each with one session: how long that took.
    async fn whole(&self) -> Result<Duration, String> {
        let begun = Instant::now();
        loop {
            let open = self.world.faults.counts().sessions_open();
            // The metrics are looked at last: that takes more than all else does.
            if open == CUSTODIANS && self.world.custodians_up() == CUSTODIANS as f64 {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > GIVE_UP {
                let up = self.world.custodians_up();
                return Err(format!("{open} sessions are open, and {up} custodians up, after the fault"));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    async fn standing(&self, ask: &Ask) -> Result<Vec<Value>, String> {
        let mut standing = Vec::new();
        for path in &ask.watched {
            let answer = self.bank.get(path).await.map_err(|failure| failure.to_string())?;
            let view: Value = answer.json().unwrap_or_default();
            if answer.status != 200 {
                return Err(format!("{path}: {:?}", Verdict::of(answer.status.as_u16(), &view)));
            }
            let said = ["state", "failures", "attempts_remaining", "counter", "epoch", "entered"];
            let present = said.iter().filter_map(|name| Some((*name, view.get(name)?.clone())));
            standing.push(present.collect::<Value>());
        }
        Ok(standing)
    }
}

/// A path of a document that was answered.
pub fn id(body: &Value) -> Result<String, String> {
    body["id"].as_str().map(str::to_owned).ok_or_else(|| format!("no id in {}", json!(body)))
}
