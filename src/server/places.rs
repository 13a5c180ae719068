//! Places for peers of whom nothing is known yet but their address, and who has to leave when there are no more.
//!
//! Anybody who reaches the port can begin and not go on, a byte at a time if he likes. To refuse whoever comes next would
//! keep everybody out, and a deadline as long as a slow network needs lets ten thousand such peers fill the kernel's backlog.
//! So what counts is for how long a peer has kept the appliance waiting, all its pauses together: with bytes that finish
//! nothing it buys only the time in which the appliance looks at them, for that is not held against it. Once there is no room,
//! those leave who have kept it waiting for longest, of the address that has most of them, and only after the room's patience.
//!
//! What that gives: a peer whose answers take less than that together is never sent away, whatever others do. And while all
//! keep us waiting, a whole room full of new ones is taken each time that the patience passes.

use std::collections::{BinaryHeap, HashMap};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout};

/// How often those who may be sent away are looked for, as long as there is no room.
pub const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Which part of a room is made free at a time, where so many may be sent away: all of it within a quarter of a second.
const PART_FREED: usize = 12;
/// What one who has IPv6 is given at least (RFC 6177): a /64, all of whose addresses are his.
const NETWORK: u128 = !0 << 64;

/// A room of so many places.
pub struct Places {
    free: Arc<Semaphore>,
    /// How long a guest may keep the appliance waiting, all its pauses together, although others need its place.
    patience: Duration,
    /// How many are sent away at a time, where so many may be.
    at_a_time: usize,
    guests: Arc<Mutex<Guests>>,
}

#[derive(Default)]
struct Guests {
    /// Never used twice.
    next_number: u64,
    there: HashMap<u64, Guest>,
    /// How many were sent away, and still have their place.
    leaving: usize,
    /// Not looked through again before this.
    look_at: Option<Instant>,
}

struct Guest {
    from: IpAddr,
    /// For how long it has kept the appliance waiting, before `since`.
    waited: Duration,
    /// Since when it does so again.
    since: Option<Instant>,
    /// Dropped to send it away.
    _stay: oneshot::Sender<Infallible>,
}

impl Guest {
    /// How long it has kept the appliance waiting; `None`: it does not, or not for so long that it may be sent away.
    fn too_long(&self, patience: Duration, now: Instant) -> Option<Duration> {
        let waited = self.waited + now.saturating_duration_since(self.since?);
        (waited >= patience).then_some(waited)
    }
}

/// One of them, until it is dropped.
pub struct Place {
    number: u64,
    guests: Arc<Mutex<Guests>>,
    _room: OwnedSemaphorePermit,
}

/// Resolves when the guest is to leave.
pub struct SentAway(oneshot::Receiver<Infallible>);

fn lock(guests: &Mutex<Guests>) -> MutexGuard<'_, Guests> {
    guests.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whom an address stands for.
fn whose(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V6(from) => Ipv6Addr::from_bits(from.to_bits() & NETWORK).into(),
        from => from,
    }
}

/// The next place of a room that all these guests are in, as [`Places::freed`].
pub async fn freed(
    room: &Arc<Semaphore>,
    guests: &[&Places],
    full: &Counter,
) -> Result<OwnedSemaphorePermit, AcquireError> {
    if let Ok(place) = room.clone().try_acquire_owned() {
        return Ok(place);
    }
    full.inc();
    let mut place = pin!(room.clone().acquire_owned());
    loop {
        guests.iter().for_each(|places| places.send_away());
        if let Ok(place) = timeout(LOOK_EVERY, place.as_mut()).await {
            return place;
        }
    }
}

impl Places {
    /// So many.
    pub fn new(count: usize, patience: Duration) -> Self {
        let at_a_time = count.div_ceil(PART_FREED);
        Self { free: Arc::new(Semaphore::new(count)), patience, at_a_time, guests: Arc::default() }
    }

    /// The next place, in the order in which it was asked for. As long as there is none guests are sent away; `full` counts
    /// that there was none at once.
    pub async fn freed(&self, full: &Counter) -> Result<OwnedSemaphorePermit, AcquireError> {
        freed(&self.free, &[self], full).await
    }

    /// Who is there from now on, and does not keep the appliance waiting yet.
    pub fn take(&self, room: OwnedSemaphorePermit, from: IpAddr) -> (Place, SentAway) {
        let (stay, sent_away) = oneshot::channel();
        let mut guests = lock(&self.guests);
        let number = guests.next_number;
        guests.next_number = number.wrapping_add(1);
        let guest = Guest { from: whose(from), waited: Duration::ZERO, since: None, _stay: stay };
        guests.there.insert(number, guest);
        (Place { number, guests: self.guests.clone(), _room: room }, SentAway(sent_away))
    }

    /// For all who wait, each [`LOOK_EVERY`] once. Of addresses that have as many, the one whose peer has waited longest.
    fn send_away(&self) {
        let now = Instant::now();
        let mut guests = lock(&self.guests);
        if guests.look_at.is_some_and(|look_at| now < look_at) {
            return;
        }
        guests.look_at = Some(now + LOOK_EVERY);
        let mut by_address = HashMap::<IpAddr, Vec<(Duration, u64)>>::new();
        for (number, guest) in &guests.there {
            if let Some(waited) = guest.too_long(self.patience, now) {
                by_address.entry(guest.from).or_default().push((waited, *number));
            }
        }
        let mut addresses: BinaryHeap<_> = by_address
            .into_values()
            .map(|mut theirs| {
                theirs.sort_unstable();
                (theirs.len(), theirs.last().copied(), theirs)
            })
            .collect();
        while guests.leaving < self.at_a_time
            && let Some((_, _, mut theirs)) = addresses.pop()
        {
            if let Some((_, number)) = theirs.pop() {
                guests.there.remove(&number);
                guests.leaving += 1;
                addresses.push((theirs.len(), theirs.last().copied(), theirs));
            }
        }
    }
}

impl Place {
    /// It is the peer's turn to say something.
    pub fn wait_for_peer(&self) {
        if let Some(guest) = lock(&self.guests).there.get_mut(&self.number) {
            guest.since.get_or_insert_with(Instant::now);
        }
    }

    /// The peer has said something, and it is the appliance that works.
    pub fn work(&self) {
        if let Some(guest) = lock(&self.guests).there.get_mut(&self.number) {
            let now = Instant::now();
            guest.waited += guest.since.take().map_or(Duration::ZERO, |since| now.duration_since(since));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut guests = lock(&self.guests);
        if guests.there.remove(&self.number).is_none() {
            guests.leaving = guests.leaving.saturating_sub(1);
        }
    }
}

impl SentAway {
    /// Comes back when it is.
    pub async fn wait(self) {
        // Nothing is ever sent.
        let _ = self.0.await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const PATIENCE: Duration = Duration::from_millis(250);
    const A_LITTLE: Duration = Duration::from_millis(1);

    /// In this room, from there: it keeps us waiting from now on.
    fn silent(places: &Places, from: &str) -> (Place, SentAway) {
        let (place, sent_away) =
            places.take(places.free.clone().try_acquire_owned().unwrap(), from.parse().unwrap());
        place.wait_for_peer();
        (place, sent_away)
    }

    fn stays((_, sent_away): &mut (Place, SentAway)) -> bool {
        sent_away.0.try_recv() == Err(oneshot::error::TryRecvError::Empty)
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_kept_us_waiting_longest_leaves_for_who_comes_and_nobody_before_his_time() {
        let (places, full) = (Places::new(2, PATIENCE), Counter::default());
        let first = silent(&places, "192.0.2.1");
        advance(A_LITTLE).await;
        let mut second = silent(&places, "192.0.2.1");
        let begun = Instant::now();
        let come = async {
            let came = places.freed(&full).await.unwrap();
            (came, begun.elapsed())
        };
        let leave = async {
            first.1.wait().await;
            drop(first.0);
        };
        let ((_came, waited), ()) = tokio::join!(come, leave);
        assert!((PATIENCE - A_LITTLE..PATIENCE + LOOK_EVERY).contains(&waited), "{waited:?}");
        assert!(stays(&mut second));
        assert_eq!(full.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_buys_no_time_and_what_we_compute_costs_none() {
        let places = Places::new(2, PATIENCE);
        let (mut dribbles, mut waits_for_us) = (silent(&places, "192.0.2.1"), silent(&places, "192.0.2.2"));
        waits_for_us.0.work();
        for _ in 0..10 {
            advance(PATIENCE / 10).await;
            dribbles.0.work();
            dribbles.0.wait_for_peer();
        }
        places.send_away();
        assert!(!stays(&mut dribbles));
        advance(PATIENCE * 100).await;
        waits_for_us.0.wait_for_peer();
        drop(dribbles);
        places.send_away();
        assert!(stays(&mut waits_for_us));
        advance(PATIENCE).await;
        places.send_away();
        assert!(!stays(&mut waits_for_us));
    }

    #[tokio::test(start_paused = true)]
    async fn the_address_with_most_of_them_leaves_first() {
        let places = Places::new(4, PATIENCE);
        let mut alone = silent(&places, "192.0.2.1");
        advance(A_LITTLE).await;
        let mut many = Vec::new();
        // One network.
        for from in ["2001:db8::1", "2001:db8::2:1", "2001:db8:0:1::1"] {
            many.push(silent(&places, from));
        }
        advance(PATIENCE).await;
        places.send_away();
        let staying: Vec<_> = many.iter_mut().map(stays).collect();
        assert_eq!(staying.iter().filter(|stays| !**stays).count(), 1, "one at a time: {staying:?}");
        assert!(staying[2] && stays(&mut alone), "{staying:?}");
        // Each has one now, and nobody leaves before who was sent away has gone.
        advance(LOOK_EVERY).await;
        places.send_away();
        assert!(stays(&mut alone));
        many.retain_mut(stays);
        advance(LOOK_EVERY).await;
        places.send_away();
        assert!(!stays(&mut alone));
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_addresses_as_many_leave_at_a_time_as_of_one_and_not_twice_for_two_who_come() {
        let places = Places::new(64, PATIENCE);
        let mut many: Vec<_> = (0..64).map(|number| silent(&places, &format!("192.0.2.{number}"))).collect();
        advance(PATIENCE).await;
        places.send_away();
        places.send_away();
        assert_eq!(
            many.iter_mut().filter_map(|guest| (!stays(guest)).then_some(())).count(),
            64_usize.div_ceil(PART_FREED)
        );
    }

    #[tokio::test]
    async fn a_place_is_free_when_it_is_dropped_and_nothing_is_left_of_its_guest() {
        let places = Places::new(1, PATIENCE);
        let place = silent(&places, "192.0.2.1");
        assert_eq!((places.free.available_permits(), lock(&places.guests).there.len()), (0, 1));
        drop(place);
        assert_eq!((places.free.available_permits(), lock(&places.guests).there.len()), (1, 0));
    }
}
