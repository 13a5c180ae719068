//! How a custodian comes into service, and how it leaves it.

use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::start::Refusal;
use super::*;
use crate::domain::system_key::NewestKeys;
use crate::metrics::{self, Loss, OperationEnd, Replacement};

/// How long one that said that the HSM failed may take to end by itself: it closes its session, of which an HSM has only so
/// many. But a module may hang in the process's last steps.
const END_MAX: Duration = Duration::from_secs(1);
/// At the start of a service, custodians of other tokens wait so long for the first token: if keys differ, it has the right
/// ones.
const PRECEDENCE_MAX: Duration = Duration::from_secs(10);

/// A custodian that is asked. Dropped, it is asked no more, whatever ended who served it.
struct Placed<'a> {
    hsm: &'a Hsm,
    slot: u16,
    generation: u64,
    custodian: Arc<Custodian>,
    /// Why it is lost; `None`: it was replaced, and is not.
    lost: Option<String>,
}

impl Placed<'_> {
    fn withdraw(&self) {
        if let Some(place) = self.hsm.inner.slots.get(usize::from(self.slot)) {
            // A successor may have taken the place already.
            drop(place.compare_and_swap(&self.custodian, None));
        }
    }
}

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        self.withdraw();
        let Some(reason) = &self.lost else { return };
        let (slot, generation) = (self.slot, self.generation);
        self.hsm.inner.state.lost(slot, generation, reason);
        // They wait for another one, if there is one.
        self.hsm.inner.came_up.notify_waiters();
        let _ = self.hsm.inner.events.send(CustodianEvent::Lost { slot, generation });
    }
}

impl Hsm {
    /// Takes a new custodian's socket over and serves it until it is lost.
    pub async fn adopt(self, slot: u16, generation: u64, stream: UnixStream) {
        let token = self.token_of(slot);
        let (Some(place), Some(of)) = (self.inner.slots.get(usize::from(slot)), self.inner.tokens.get(token))
        else {
            return;
        };
        let mut stream = stream;
        let greeted = match of.starts.greet(&mut stream).await {
            Ok(hello) => self.compare(token, hello).await,
            Err(refusal) => Err(refusal),
        };
        let hello = match greeted {
            Ok(hello) => hello,
            Err(refusal) => return self.start_failed(slot, generation, refusal),
        };
        self.inner.state.up(slot, generation, &hello.token);
        let (sender, receiver) = mpsc::channel(QUEUE_MAX);
        let (metrics, label) = (&self.inner.metrics, metrics::Custodian { custodian: slot });
        let queue_depth = metrics.queue_depth.get_or_create_owned(&label);
        let custodian = Arc::new(Custodian {
            number: self.next_id(),
            token,
            jobs: sender,
            queue_depth,
            tired: OnceLock::new(),
            replaced: Notify::new(),
        });
        metrics.starts.get_or_create(&label).inc();
        self.inner.learn(&hello.newest);
        self.learn_tls(token, hello.tls);
        // A key may have been made since it looked. Told before anybody can ask it; or after, if it becomes known just now.
        let mut told = self.catch_up(&custodian, &hello.newest);
        let before = place.swap(Some(custodian.clone()));
        let lost = Some("who asked it failed".to_owned());
        let mut placed = Placed { hsm: &self, slot, generation, custodian: custodian.clone(), lost };
        told = told || self.catch_up(&custodian, &hello.newest);
        if told {
            tracing::info!(slot, generation, "custodian looks for keys that are new");
        }
        self.inner.came_up.notify_waiters();
        let _ = self.inner.events.send(CustodianEvent::Up { slot, generation });
        // Told first, so that the other one's end is expected.
        if let Some(before) = before {
            self.replaced(&before, (slot, generation));
        }
        let probe = tokio::spawn(self.clone().probe(custodian.clone()));

        let withdraw = || placed.withdraw();
        let learn = |newest: &NewestKeys| self.inner.learn(newest);
        let tire = |tired| {
            if custodian.tired.set(tired).is_ok() {
                tracing::info!(slot, generation, ?tired, "custodian is to be replaced");
                let _ = self.inner.events.send(CustodianEvent::Tired { slot, generation });
            }
        };
        let told = (learn, tire, withdraw);
        let end = connection::serve(stream, receiver, &custodian.replaced, (metrics, label), told).await;
        probe.abort();
        let Some(loss) = end.loss else {
            tracing::info!(slot, generation, "custodian has answered everything, and is let go");
            placed.lost = None;
            return;
        };
        self.inner.state.lost(slot, generation, &end.reason);
        metrics.losses.get_or_create(&loss).inc();
        tracing::warn!(slot, generation, reason = end.reason, "custodian is lost");
        if loss == Loss::HsmFailed {
            sleep(END_MAX).await;
        }
        placed.lost = Some(end.reason);
    }

    /// No process, or none that could be asked, came of a start.
    pub fn not_started(&self, slot: u16, generation: u64, reason: &str) {
        self.start_failed(slot, generation, Refusal::new(metrics::Away::NoProcess, reason));
    }

    fn start_failed(&self, slot: u16, generation: u64, refusal: Refusal) {
        if let Some(failure) = refusal.failed {
            let _ = self.inner.events.send(CustodianEvent::Down { slot, generation, failure });
        }
        self.inner.state.start_failed(slot, generation, refusal);
        // They wait in vain, if no other is up.
        self.inner.came_up.notify_waiters();
        self.inner.metrics.losses.get_or_create(&Loss::NoHello).inc();
        let _ = self.inner.events.send(CustodianEvent::Lost { slot, generation });
    }

    /// Holds the keys of one that says hello against those in use.
    async fn compare(&self, token: usize, hello: Hello) -> Result<Hello, Refusal> {
        if token != FIRST && !self.inner.shared().knows_any() {
            let first = async {
                loop {
                    let changed = self.inner.came_up.notified();
                    if self.is_token_up(FIRST) || self.has_token_failed(FIRST) {
                        break;
                    }
                    changed.await;
                }
            };
            let _ = timeout(PRECEDENCE_MAX, first).await;
        }
        let up: Vec<_> = (0..self.tokens()).map(|token| self.is_token_up(token)).collect();
        let newest = self.inner.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let misfit = self.inner.shared().compare(token, (&hello.shared, &hello.newest), (&up, &newest));
        let Some(misfit) = misfit else { return Ok(hello) };
        let line = misfit.line(|token| self.token_name(token));
        Err(Refusal { failed: Some(StartFailed::Unfit), ..Refusal::new(misfit.cause(), line) })
    }

    /// Lets one go whose place another one has taken.
    fn replaced(&self, before: &Custodian, (slot, generation): (u16, u64)) {
        let reason = match before.tired.get() {
            Some(Tired::Unwraps) => Replacement::Unwraps,
            Some(Tired::Memory) => Replacement::Memory,
            Some(Tired::Stale) => Replacement::Stale,
            None => Replacement::Reload,
        };
        self.inner.metrics.replacements.get_or_create(&reason).inc();
        tracing::info!(slot, generation, reason = reason.name(), "custodian takes over");
        before.replaced.notify_one();
    }

    /// Has a custodian look for keys before what it is asked from here on, if there are newer ones than it has.
    fn catch_up(&self, custodian: &Arc<Custodian>, newest: &NewestKeys) -> bool {
        if !self.inner.has_newer(newest) {
            return false;
        }
        let call = self.calling(Request::LoadKeys);
        let Ok((job, answer)) = Job::new(&call) else { return false };
        let told = custodian.try_send(job).is_ok();
        // What nobody waits for is not asked.
        tokio::spawn(async move {
            if let Ok(Ok(Err(fault))) = answer.await {
                tracing::warn!(%fault, "a custodian does not use the newest keys");
            }
        });
        told
    }

    /// Asks one custodian from time to time, so that a loss is noticed before a caller does.
    async fn probe(self, custodian: Arc<Custodian>) {
        let mut pause = tokio::time::interval(PROBE_EVERY);
        pause.tick().await;
        loop {
            pause.tick().await;
            let call = self.calling(Request::Health);
            let Ok((job, answer)) = Job::new(&call) else { return };
            let begun = Instant::now();
            // A full queue is proof enough that somebody else is asking.
            if custodian.try_send(job).is_ok() {
                let end = match answer.await {
                    Ok(Ok(Ok(_))) => OperationEnd::Answered,
                    _ => OperationEnd::Unavailable,
                };
                self.count(Operation::Health, end, Some(begun));
            }
        }
    }
}
