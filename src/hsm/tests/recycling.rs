//! One custodian takes over from another that works.

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::*;
use crate::hsm::messages::Custody;

/// A custodian that answers one call for each permit, and is tired or not.
struct Gated {
    gate: Arc<Semaphore>,
    read: Arc<AtomicUsize>,
    /// Ends when it has hung up: how many it answered.
    answered: JoinHandle<usize>,
}

impl Gated {
    async fn start(fixture: &mut Fixture, slot: u16, generation: u64, tired: Option<Tired>) -> Self {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (gate, read) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
        let (permits, count) = (gate.clone(), read.clone());
        let answered = tokio::spawn(async move {
            let (build_id, token) = (BUILD_ID.to_owned(), "a test's".to_owned());
            let hello = Greeting::Up(Hello {
                build_id,
                token,
                newest: NewestKeys::default(),
                shared: Vec::new(),
                tls: Vec::new(),
            });
            theirs.write_all(&encode(&hello).unwrap()).await.unwrap();
            let mut answered = 0;
            loop {
                let mut header = [0; 4];
                if theirs.read_exact(&mut header).await.is_err() {
                    return answered;
                }
                let mut body = vec![0; frame_length(header).unwrap()];
                theirs.read_exact(&mut body).await.unwrap();
                let Call { id, request, .. } = decode(&body).unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                permits.acquire().await.unwrap().forget();
                let response = match request {
                    Request::Generate { custody: Custody::Resident(id), .. } => {
                        Response::Secret { stored: StoredSecret::Resident(id), exported: None }
                    }
                    _ => sealed(),
                };
                let reply =
                    Reply { id, busy_ns: 0, newest: None, tired, healed: Vec::new(), result: Ok(response) };
                theirs.write_all(&encode(&reply).unwrap()).await.unwrap();
                answered += 1;
            }
        });
        tokio::spawn(fixture.hsm.clone().adopt(slot, generation, ours));
        while fixture.event().await != (CustodianEvent::Up { slot, generation }) {}
        Self { gate, read, answered }
    }

    fn open(&self) {
        self.gate.add_permits(1_000_000);
    }

    fn read(&self) -> usize {
        self.read.load(Ordering::SeqCst)
    }

    /// Waits until it has read so many.
    async fn has_read(&self, count: usize) {
        let reached = async {
            while self.read() < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), reached).await.expect("it reads no more");
    }

    /// How many it had answered when it was let go.
    async fn let_go(self) -> usize {
        tokio::time::timeout(Duration::from_secs(20), self.answered).await.expect("nobody hangs up").unwrap()
    }
}

impl Fixture {
    /// So many requests at once, and all of them in the queue.
    async fn ask_many(&self, count: usize) -> Vec<JoinHandle<Result<(), HsmError>>> {
        let asked = (0..count).map(|_| {
            let hsm = self.hsm.clone();
            tokio::spawn(async move { hsm.seal_nothing().await })
        });
        asked.collect()
    }

    fn replaced(&self, reason: Replacement) -> u64 {
        self.hsm.inner.metrics.replacements.get_or_create(&reason).get()
    }

    fn waiting(&self, slot: u16) -> i64 {
        self.hsm.inner.metrics.queue_depth.get_or_create(&metrics::Custodian { custodian: slot }).get()
    }
}

impl Hsm {
    async fn seal_nothing(&self) -> Result<(), HsmError> {
        let request = Request::Seal(SealRows { standing: Vec::new(), outcome: Outcome::default() });
        self.call(Route::Any, request).await.map(drop)
    }
}

/// More than are handed over ahead of their turn.
const MANY: usize = 40;

#[tokio::test]
async fn a_successor_is_asked_from_then_on_and_the_old_one_answers_what_it_was_asked() {
    let mut fixture = Fixture::new(1);
    let old = Gated::start(&mut fixture, 0, 1, None).await;
    let asks = fixture.ask_many(MANY).await;
    while fixture.waiting(0) < MANY as i64 {
        tokio::task::yield_now().await;
    }
    let new = Gated::start(&mut fixture, 0, 2, None).await;
    new.open();
    assert_eq!(fixture.hsm.seal_nothing().await, Ok(()), "it does not wait for the old one");
    assert_eq!((new.read(), fixture.hsm.up()), (1, 1));
    assert!(asks.iter().all(|ask| !ask.is_finished()));

    old.open();
    for ask in asks {
        assert_eq!(ask.await.unwrap(), Ok(()));
    }
    assert_eq!(old.let_go().await, MANY, "what was in the queue too");
    assert_eq!((fixture.replaced(Replacement::Reload), fixture.waiting(0)), (1, 0));
    assert!(fixture.events.try_recv().is_err(), "nobody was lost");
    assert_eq!(fixture.hsm.seal_nothing().await, Ok(()));
}

#[tokio::test]
async fn who_is_idle_when_it_is_replaced_is_let_go_at_once() {
    let mut fixture = Fixture::new(2);
    let old = Gated::start(&mut fixture, 1, 1, None).await;
    let _new = Gated::start(&mut fixture, 1, 2, None).await;
    assert_eq!(old.let_go().await, 0);
    assert_eq!(fixture.hsm.up(), 1);
}

#[tokio::test]
async fn who_says_that_it_is_tired_is_reported_once_and_goes_on() {
    for (tired, reason) in [(Tired::Unwraps, Replacement::Unwraps), (Tired::Memory, Replacement::Memory)] {
        let mut fixture = Fixture::new(1);
        let old = Gated::start(&mut fixture, 0, 7, Some(tired)).await;
        old.open();
        for _ in 0..3 {
            assert_eq!(fixture.hsm.seal_nothing().await, Ok(()));
        }
        assert_eq!(fixture.events.try_recv(), Ok(CustodianEvent::Tired { slot: 0, generation: 7 }));
        assert!(fixture.events.try_recv().is_err());
        assert_eq!((fixture.replaced(reason), old.read()), (0, 3), "nobody has its place yet");
        let _new = Gated::start(&mut fixture, 0, 8, None).await;
        assert_eq!(old.let_go().await, 3);
        assert_eq!(fixture.replaced(reason), 1);
    }
}

#[tokio::test]
async fn one_that_hangs_while_it_leaves_is_given_up_and_its_requests_move_on() {
    let mut fixture = Fixture::new(1);
    let old = Gated::start(&mut fixture, 0, 1, None).await;
    let asks = fixture.ask_many(MANY).await;
    old.has_read(1).await;
    let new = Gated::start(&mut fixture, 0, 2, None).await;
    new.open();
    for ask in asks {
        assert_eq!(ask.await.unwrap(), Ok(()));
    }
    assert_eq!(fixture.event().await, (CustodianEvent::Lost { slot: 0, generation: 1 }));
    assert_eq!((fixture.hsm.up(), new.read()), (1, MANY));
}

#[tokio::test]
async fn a_successor_changes_nothing_in_the_token_before_the_old_one_has_answered_its_changes() {
    let mut fixture = Fixture::resident(1, 100);
    let old = Gated::start(&mut fixture, 0, 1, None).await;
    let generate =
        |hsm: Hsm| tokio::spawn(async move { hsm.generate(Algorithm::Sha1, false).await.map(drop) });
    let first = generate(fixture.hsm.clone());
    old.has_read(1).await;
    let new = Gated::start(&mut fixture, 0, 2, None).await;
    new.open();
    let second = generate(fixture.hsm.clone());
    // What changes nothing does not wait.
    for _ in 0..100 {
        assert_eq!(fixture.hsm.seal_nothing().await, Ok(()));
    }
    assert_eq!(new.read(), 100);
    assert!(!second.is_finished());
    old.open();
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (Ok(()), Ok(())));
    assert_eq!((old.let_go().await, new.read()), (1, 101));
}

/// Whoever asked for the change may have gone: it is a change all the same.
#[tokio::test]
async fn a_change_that_nobody_waits_for_is_waited_for() {
    let mut fixture = Fixture::resident(1, 100);
    let old = Gated::start(&mut fixture, 0, 1, None).await;
    let hsm = fixture.hsm.clone();
    let gone = tokio::spawn(async move { hsm.generate(Algorithm::Sha1, false).await.map(drop) });
    old.has_read(1).await;
    gone.abort();
    assert!(gone.await.is_err());
    let new = Gated::start(&mut fixture, 0, 2, None).await;
    new.open();
    let hsm = fixture.hsm.clone();
    let second = tokio::spawn(async move { hsm.generate(Algorithm::Sha1, false).await.map(drop) });
    for _ in 0..100 {
        assert_eq!(fixture.hsm.seal_nothing().await, Ok(()));
    }
    assert!(!second.is_finished() && new.read() == 100);
    old.open();
    assert_eq!(second.await.unwrap(), Ok(()));
}
