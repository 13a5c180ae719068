//! TLS handshakes: how many are in progress, and how many of them compute.
//!
//! A handshake costs a signature and the verification of a certificate chain, a thousand times what a record of an
//! established connection costs, and anybody who reaches the port may begin one. So they have bounds of their own. Beyond
//! [`Handshakes::new`]'s, connections wait in the kernel's backlog: they are served in their order when there is room, which
//! suits a bank whose clients all come back at once, where a refusal would only have them come again. And those in progress
//! compute in turns, so that whoever is ready of the established connections is not behind hundreds of them. Where the HSM
//! signs, who waits for it keeps his turn: no more threads wait so than there are turns.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::ready;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::{AcquireError, Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use crate::lifeline::Lifeline;
use crate::metrics::{ConnectionMetrics, Handshake, Held};

/// How long a handshake may take while others wait to begin theirs: a peer that says nothing holds nobody up for longer.
const CROWDED_MAX: Duration = Duration::from_secs(1);
/// How often those that took longer are looked for, as long as there is no room.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The room for them.
pub struct Handshakes {
    room: Arc<Semaphore>,
    /// Turns of those that compute.
    computing: Semaphore,
    /// Tells those that took long enough to end.
    crowded: Notify,
    timeout: Duration,
}

impl Handshakes {
    /// So many in progress, each for so long at most; half as many as there are processors compute.
    pub fn new(in_progress_max: usize, timeout: Duration) -> Self {
        let processors = available_parallelism().map_or(1, usize::from);
        Self {
            room: Arc::new(Semaphore::new(in_progress_max)),
            computing: Semaphore::new(processors.div_ceil(2)),
            crowded: Notify::new(),
            timeout,
        }
    }

    /// Room for one more, when there is.
    pub async fn room(&self, metrics: &ConnectionMetrics) -> Result<OwnedSemaphorePermit, AcquireError> {
        if let Ok(room) = self.room.clone().try_acquire_owned() {
            return Ok(room);
        }
        metrics.handshakes_full.inc();
        loop {
            self.crowded.notify_waiters();
            if let Ok(room) = timeout(LOOK_EVERY, self.room.clone().acquire_owned()).await {
                return room;
            }
        }
    }

    /// Does one, and counts it.
    pub async fn shake<S, E: ToString>(
        &self,
        room: OwnedSemaphorePermit,
        handshake: impl Future<Output = Result<S, E>>,
        metrics: &ConnectionMetrics,
    ) -> Result<S, String> {
        // Counted out before there is room for the next.
        let _in_progress = (Held::new(&metrics.handshaking), room);
        let too_long = async {
            let crowded_out = async {
                sleep(CROWDED_MAX).await;
                self.crowded.notified().await;
            };
            let _ = timeout(self.timeout, crowded_out).await;
        };
        // Whoever waits within it for a signature knows until when.
        let line = Lifeline::until(Instant::now() + self.timeout);
        let (outcome, done) = tokio::select! {
            biased;
            done = line.hold(self.in_turns(handshake)) => match done {
                Ok(stream) => (Handshake::Done, Ok(stream)),
                Err(error) => (Handshake::Refused, Err(error.to_string())),
            },
            () = too_long => (Handshake::TimedOut, Err("the handshake took too long".to_owned())),
        };
        metrics.handshakes.get_or_create(&outcome).inc();
        done
    }

    /// Each step in its turn. Who waits for its peer keeps none.
    async fn in_turns<W: Future>(&self, work: W) -> W::Output {
        let (mut work, mut turn) = (pin!(work), None);
        poll_fn(|context| {
            let turn_of_it = turn.get_or_insert_with(|| Box::pin(self.computing.acquire()));
            // It is never closed: what cannot be had is no reason to wait.
            let held = ready!(turn_of_it.as_mut().poll(context));
            turn = None;
            let done = work.as_mut().poll(context);
            drop(held);
            done
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Poll;

    type Never = Result<(), String>;

    #[tokio::test(start_paused = true)]
    async fn one_that_says_nothing_has_its_time_and_less_while_others_wait() {
        let (shakes, metrics) = (Handshakes::new(1, Duration::from_secs(5)), ConnectionMetrics::default());
        let begun = Instant::now();
        let room = shakes.room(&metrics).await.unwrap();
        assert!(shakes.shake(room, pending::<Never>(), &metrics).await.is_err());
        assert_eq!(begun.elapsed(), Duration::from_secs(5));
        assert_eq!(metrics.handshakes_full.get(), 0);

        let begun = Instant::now();
        let room = shakes.room(&metrics).await.unwrap();
        let silent = async { shakes.shake(room, pending::<Never>(), &metrics).await };
        let next = async {
            let _room = shakes.room(&metrics).await.unwrap();
            begun.elapsed()
        };
        let (silent, waited) = tokio::join!(silent, next);
        assert!(silent.is_err());
        assert!((CROWDED_MAX..CROWDED_MAX + 2 * LOOK_EVERY).contains(&waited), "{waited:?}");
        assert_eq!((metrics.handshakes_full.get(), metrics.handshaking.get()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_signature_knows_until_when() {
        let (shakes, metrics) = (Handshakes::new(1, Duration::from_secs(5)), ConnectionMetrics::default());
        let (begun, far) = (Instant::now(), Instant::now() + Duration::from_secs(60));
        let room = shakes.room(&metrics).await.unwrap();
        let deadline = async { Ok::<_, String>(Lifeline::no_later_than(far)) };
        let deadline = shakes.shake(room, deadline, &metrics).await.unwrap();
        assert_eq!(deadline - begun, Duration::from_secs(5));
    }

    #[tokio::test]
    async fn no_more_compute_than_have_their_turn_and_who_waits_keeps_none() {
        let shakes = Arc::new(Handshakes::new(100, Duration::from_secs(60)));
        let free = shakes.computing.available_permits();
        let held = shakes.computing.acquire_many(free as u32).await.unwrap();
        let steps = Arc::new(AtomicUsize::new(0));
        let (counted, waiting) = (steps.clone(), shakes.clone());
        let task = tokio::spawn(async move {
            waiting
                .in_turns(poll_fn(move |context| match counted.fetch_add(1, Ordering::SeqCst) {
                    0 => {
                        context.waker().wake_by_ref();
                        Poll::Pending
                    }
                    _ => Poll::Ready(()),
                }))
                .await;
        });
        tokio::task::yield_now().await;
        assert_eq!(steps.load(Ordering::SeqCst), 0, "nobody has left it a turn");
        drop(held);
        task.await.unwrap();
        assert_eq!((steps.load(Ordering::SeqCst), shakes.computing.available_permits()), (2, free));
    }
}
