//! TLS handshakes: who may begin one, how many are in progress, and how many of them compute.
//!
//! A handshake costs a signature and the verification of a certificate chain, a thousand times what a record of an
//! established connection costs, and anybody who reaches the port may begin one. So it goes through three bounds:
//!
//! 1. Until its first message (the ClientHello) is whole, a connection waits in a place of its own ([`Places`]), of which
//!    there are many, since it costs no computing, and memory for no more than such a message may have (64 KiB). When there
//!    are no more, those leave who have kept us waiting for longest: peers that say nothing, or a byte at a time, keep nobody
//!    out.
//! 2. Then it is a handshake in progress, of which there are fewer. Those wait for their turn here, who said all that they had
//!    to, and nobody leaves for who comes but those who do not go on when it is their turn to. As long as somebody stands in
//!    line no connection is accepted: further ones wait in the kernel's backlog. They are served in their order when there is
//!    room, which suits a bank whose clients all come back at once, where a refusal would only have them come again.
//!    From the first message on one deadline is for the line and the handshake together.
//! 3. Those in progress compute in turns, so that whoever is ready of the established connections is not behind hundreds of
//!    them. Where the HSM signs, who waits for it keeps his turn: no more threads wait so than there are turns.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::ready;
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::places::{Place, Places, SentAway, freed};
use crate::lifeline::Lifeline;
use crate::metrics::{ConnectionMetrics, Handshake, Held};

/// For how long a peer may keep us waiting for its first message, as long as others have no room: it is as one packet.
const PATIENCE_FOR_HELLO: Duration = Duration::from_millis(250);
/// And for the rest of its handshake: it may sign with a card, and be far away.
const PATIENCE: Duration = Duration::from_secs(1);

/// The room for them.
pub struct Handshakes {
    /// For those whose first message is not whole.
    unannounced: Places,
    in_progress: Places,
    /// Turns of those that compute.
    computing: Semaphore,
    /// Which of them may be of those who begin. Who goes on stands behind no more of them, and so is done: else, where an HSM
    /// takes its time to sign, all would be answered and none let in before it is too late.
    answering: Semaphore,
    timeout: Duration,
}

/// A connection may be accepted.
pub struct Room {
    /// Its place among all connections.
    pub connection: OwnedSemaphorePermit,
    /// The one in which its first message is awaited.
    pub unannounced: OwnedSemaphorePermit,
}

/// A handshake may begin.
pub struct Beginning {
    /// Its place among those in progress.
    place: OwnedSemaphorePermit,
    /// It has to end before this.
    until: Instant,
}

impl Handshakes {
    /// Of so many connections, half of which may be without a first message; so many handshakes in progress. `timeout` is for
    /// the first message, and once more for what follows. Half as many as there are processors compute.
    pub fn new(connections_max: usize, in_progress_max: usize, timeout: Duration) -> Self {
        let turns = available_parallelism().map_or(1, usize::from).div_ceil(2);
        Self {
            unannounced: Places::new(connections_max.div_ceil(2), PATIENCE_FOR_HELLO),
            in_progress: Places::new(in_progress_max, PATIENCE),
            computing: Semaphore::new(turns),
            answering: Semaphore::new(turns),
            timeout,
        }
    }

    /// Room for one more, when there is: one of `connections`, too.
    pub async fn room(
        &self,
        connections: &Arc<Semaphore>,
        metrics: &ConnectionMetrics,
    ) -> Result<Room, AcquireError> {
        let full = &metrics.handshakes_full;
        let connection = freed(connections, &[&self.unannounced, &self.in_progress], full).await?;
        let unannounced = self.unannounced.freed(full).await?;
        // Not for the one that comes: it is behind all who stand in line.
        drop(self.in_progress.freed(full).await?);
        Ok(Room { connection, unannounced })
    }

    /// Waits for what the peer at this address says first, and then for a place among those in progress.
    pub async fn announced<H, E: ToString>(
        &self,
        room: OwnedSemaphorePermit,
        from: IpAddr,
        hello: impl Future<Output = Result<H, E>>,
        metrics: &ConnectionMetrics,
    ) -> Result<(H, Beginning), String> {
        // Counted out before there is room for the next.
        let (unannounced, sent_away) = self.unannounced.take(room, from);
        let _awaited = Held::new(&metrics.unannounced);
        unannounced.wait_for_peer();
        let (outcome, hello) = in_time(Instant::now() + self.timeout, hello, sent_away).await;
        if hello.is_err() {
            metrics.handshakes.get_or_create(&outcome).inc();
        }
        let hello = hello?;
        unannounced.work();
        let until = Instant::now() + self.timeout;
        let place = timeout_at(until, self.in_progress.freed(&metrics.handshakes_full)).await;
        let place = place.map_err(|_| {
            metrics.handshakes.get_or_create(&Handshake::TimedOut).inc();
            "there was no room for the handshake".to_owned()
        })?;
        let place = place.map_err(|error| error.to_string())?;
        Ok((hello, Beginning { place, until }))
    }

    /// Does one, and counts it.
    pub async fn shake<S, E: ToString>(
        &self,
        Beginning { place, until }: Beginning,
        from: IpAddr,
        handshake: impl Future<Output = Result<S, E>>,
        metrics: &ConnectionMetrics,
    ) -> Result<S, String> {
        let (place, sent_away) = self.in_progress.take(place, from);
        let _in_progress = Held::new(&metrics.handshaking);
        // Whoever waits within it for a signature knows until when.
        let line = Lifeline::until(until);
        let (outcome, done) = in_time(until, line.hold(self.in_turns(handshake, &place)), sent_away).await;
        metrics.handshakes.get_or_create(&outcome).inc();
        done
    }

    /// A turn to compute. They are never closed: what cannot be had is no reason to wait.
    async fn turn(&self, begins: bool) -> (Option<SemaphorePermit<'_>>, Option<SemaphorePermit<'_>>) {
        let answers = if begins { self.answering.acquire().await.ok() } else { None };
        (answers, self.computing.acquire().await.ok())
    }

    /// Each step in its turn. Who waits for its peer keeps none.
    async fn in_turns<W: Future>(&self, work: W, place: &Place) -> W::Output {
        let (mut work, mut turn, mut begins) = (pin!(work), None, true);
        poll_fn(|context| {
            place.work();
            let turn_of_it = turn.get_or_insert_with(|| Box::pin(self.turn(begins)));
            let held = ready!(turn_of_it.as_mut().poll(context));
            (turn, begins) = (None, false);
            let done = work.as_mut().poll(context);
            drop(held);
            if done.is_pending() {
                place.wait_for_peer();
            }
            done
        })
        .await
    }
}

async fn in_time<S, E: ToString>(
    until: Instant,
    step: impl Future<Output = Result<S, E>>,
    sent_away: SentAway,
) -> (Handshake, Result<S, String>) {
    let too_long = || (Handshake::TimedOut, Err("the handshake took too long".to_owned()));
    tokio::select! {
        biased;
        done = step => match done {
            Ok(done) => (Handshake::Done, Ok(done)),
            Err(error) => (Handshake::Refused, Err(error.to_string())),
        },
        () = sent_away.wait() => too_long(),
        () = sleep_until(until) => too_long(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::places::LOOK_EVERY;
    use super::*;
    use std::future::pending;
    use std::net::Ipv4Addr;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Poll;

    use prometheus_client::metrics::counter::Counter;

    type Never = Result<(), String>;

    const FROM: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const TIMEOUT: Duration = Duration::from_secs(5);

    /// Two connections, one of them without a first message; one handshake in progress.
    struct Small {
        shakes: Handshakes,
        connections: Arc<Semaphore>,
        metrics: ConnectionMetrics,
        begun: Instant,
    }

    impl Small {
        fn new() -> Self {
            let (shakes, connections) = (Handshakes::new(2, 1, TIMEOUT), Arc::new(Semaphore::new(2)));
            Self { shakes, connections, metrics: ConnectionMetrics::default(), begun: Instant::now() }
        }

        async fn comes(&self) -> Room {
            self.shakes.room(&self.connections, &self.metrics).await.unwrap()
        }

        async fn begins(&self) -> Beginning {
            let said = async { Never::Ok(()) };
            let room = self.comes().await;
            self.shakes.announced(room.unannounced, FROM, said, &self.metrics).await.unwrap().1
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_says_nothing_has_its_time_and_less_while_others_wait() {
        let small = Small::new();
        let silent = async || {
            let room = small.comes().await;
            small.shakes.announced(room.unannounced, FROM, pending::<Never>(), &small.metrics).await.map(drop)
        };
        assert!(silent().await.is_err());
        assert_eq!((small.begun.elapsed(), small.metrics.handshakes_full.get()), (TIMEOUT, 0));
        let next = async {
            let _room = small.comes().await;
            small.begun.elapsed() - TIMEOUT
        };
        let (silent, waited) = tokio::join!(silent(), next);
        assert!(silent.is_err());
        assert!((PATIENCE_FOR_HELLO..PATIENCE_FOR_HELLO + 2 * LOOK_EVERY).contains(&waited), "{waited:?}");
        assert_eq!((small.metrics.handshakes_full.get(), small.metrics.unannounced.get()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nor_does_one_that_begins_and_does_not_go_on_hold_up_who_comes() {
        let small = Small::new();
        let stuck = async {
            let room = small.begins().await;
            small.shakes.shake(room, FROM, pending::<Never>(), &small.metrics).await
        };
        let next = async {
            small.comes().await;
            small.begun.elapsed()
        };
        let (stuck, waited) = tokio::join!(stuck, next);
        assert!(stuck.is_err());
        assert!((PATIENCE..PATIENCE + 2 * LOOK_EVERY).contains(&waited), "{waited:?}");
        assert_eq!((small.metrics.handshakes_full.get(), small.metrics.handshaking.get()), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn nor_those_who_stand_in_line_although_nobody_comes() {
        let small = Small::new();
        let (shakes, metrics) = (&small.shakes, &small.metrics);
        let (first, second) = (small.comes().await, shakes.in_progress.freed(&metrics.handshakes_full).await);
        let beginning = Beginning { place: second.unwrap(), until: small.begun + TIMEOUT };
        let stuck = shakes.shake(beginning, FROM, pending::<Never>(), metrics);
        let next = shakes.announced(first.unannounced, FROM, async { Never::Ok(()) }, metrics);
        let (stuck, next) = tokio::join!(stuck, next);
        assert!(stuck.is_err() && next.is_ok());
        let waited = small.begun.elapsed();
        assert!((PATIENCE..PATIENCE + 2 * LOOK_EVERY).contains(&waited), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_begins_and_does_not_go_on_leaves_where_he_keeps_a_connection_from_others() {
        let shakes = Handshakes::new(2, 2, TIMEOUT);
        let small = Small { shakes, ..Small::new() };
        let stuck = async || {
            let room = small.comes().await;
            let said = async { Never::Ok(()) };
            let (_, begins) = small.shakes.announced(room.unannounced, FROM, said, &small.metrics).await?;
            let stuck = small.shakes.shake(begins, FROM, pending::<Never>(), &small.metrics).await;
            drop(room.connection);
            stuck
        };
        let next = async {
            small.comes().await;
            small.begun.elapsed()
        };
        let (first, second, waited) = tokio::join!(stuck(), stuck(), next);
        assert!(first.is_err() && second.is_err());
        assert!((PATIENCE..PATIENCE + 2 * LOOK_EVERY).contains(&waited), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn the_line_and_the_handshake_have_one_deadline() {
        let small = Small::new();
        let (shakes, metrics) = (&small.shakes, &small.metrics);
        let (room, taken) = (small.comes().await, shakes.in_progress.freed(&metrics.handshakes_full).await);
        let said = async { Never::Ok(()) };
        let in_line = shakes.announced(room.unannounced, FROM, said, metrics);
        let leaves = async {
            tokio::time::sleep(TIMEOUT / 2).await;
            drop(taken);
        };
        let ((_, begins), ()) = tokio::join!(async { in_line.await.unwrap() }, leaves);
        assert!(shakes.shake(begins, FROM, pending::<Never>(), metrics).await.is_err());
        assert_eq!(small.begun.elapsed(), TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_worked_for_has_its_time_while_others_wait() {
        let small = Small::new();
        let _nobody_computes = small.shakes.computing.acquire_many(processors()).await.unwrap();
        let slow = async {
            let room = small.begins().await;
            small.shakes.shake(room, FROM, pending::<Never>(), &small.metrics).await
        };
        let next = async {
            small.comes().await;
            small.begun.elapsed()
        };
        let (slow, waited) = tokio::join!(slow, next);
        assert!(slow.is_err());
        assert!((TIMEOUT..TIMEOUT + 2 * LOOK_EVERY).contains(&waited), "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_signature_knows_until_when() {
        let small = Small::new();
        let far = small.begun + Duration::from_secs(60);
        let room = small.begins().await;
        let deadline = async { Ok::<_, String>(Lifeline::no_later_than(far)) };
        let deadline = small.shakes.shake(room, FROM, deadline, &small.metrics).await.unwrap();
        assert_eq!(deadline - small.begun, TIMEOUT);
    }

    fn processors() -> u32 {
        available_parallelism().map_or(1, usize::from).div_ceil(2) as u32
    }

    #[tokio::test]
    async fn no_more_compute_than_have_their_turn_and_who_waits_keeps_none() {
        let shakes = Arc::new(Handshakes::new(100, 100, Duration::from_secs(60)));
        let free = shakes.computing.available_permits();
        let held = shakes.computing.acquire_many(free as u32).await.unwrap();
        let steps = Arc::new(AtomicUsize::new(0));
        let (counted, waiting) = (steps.clone(), shakes.clone());
        let task = tokio::spawn(async move {
            let (place, _sent_away) =
                waiting.in_progress.take(waiting.in_progress.freed(&Counter::default()).await.unwrap(), FROM);
            let two_steps = poll_fn(move |context| match counted.fetch_add(1, Ordering::SeqCst) {
                0 => {
                    context.waker().wake_by_ref();
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            });
            waiting.in_turns(two_steps, &place).await;
        });
        tokio::task::yield_now().await;
        assert_eq!(steps.load(Ordering::SeqCst), 0, "nobody has left it a turn");
        drop(held);
        task.await.unwrap();
        assert_eq!((steps.load(Ordering::SeqCst), shakes.computing.available_permits()), (2, free));
    }

    /// Of those who wait for a turn when one who has been answered goes on, he is behind no more than compute.
    #[tokio::test]
    async fn who_goes_on_is_not_behind_all_who_begin() {
        let shakes = Arc::new(Handshakes::new(200, 100, Duration::from_secs(60)));
        let turns = shakes.computing.available_permits();
        let order = Arc::new(std::sync::Mutex::new(Vec::new()));
        let (said, answer) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
        let begin = |goes_on: bool| {
            let (shakes, order, said, answer) = (shakes.clone(), order.clone(), said.clone(), answer.clone());
            tokio::spawn(async move {
                let (place, _sent_away) = shakes
                    .in_progress
                    .take(shakes.in_progress.freed(&Counter::default()).await.unwrap(), FROM);
                let work = async {
                    if goes_on {
                        answer.notify_one();
                        said.notified().await;
                    }
                    order.lock().unwrap().push(goes_on);
                };
                shakes.in_turns(work, &place).await;
            })
        };
        let first = begin(true);
        answer.notified().await;
        let held = shakes.computing.acquire_many(turns as u32).await.unwrap();
        let others: Vec<_> = (0..50).map(|_| begin(false)).collect();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        said.notify_one();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        drop(held);
        first.await.unwrap();
        for other in others {
            other.await.unwrap();
        }
        let at = order.lock().unwrap().iter().position(|goes_on| *goes_on).unwrap();
        // Some run beside him.
        assert!(at <= 2 * turns, "behind {at} who begin");
    }
}
