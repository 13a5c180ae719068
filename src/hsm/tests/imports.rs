//! Seeds that were wrapped for one of several tokens.

use super::*;

struct World {
    fixture: Fixture,
    read: [Arc<AtomicUsize>; 2],
}

impl World {
    /// Of two tokens with a custodian each, which do this with a wrapped seed; `None`: it is away.
    async fn new(keeping: Keeping, acts: [Option<Act>; 2]) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        let mut fixture = Fixture { hsm: Hsm::new(&[1, 1], (keeping, 10), sender), events };
        let mut read = [(); 2].map(|()| Arc::default());
        for (slot, act) in (0..).zip(acts) {
            if let Some(act) = act {
                read[usize::from(slot)] = fixture.custodian(slot, 1, move |_| act).await;
            }
        }
        Self { fixture, read }
    }

    async fn import(&self) -> Result<Option<NewSecret>, HsmError> {
        let seed = WrappedSeed::from_base64(&"A".repeat(512)).unwrap();
        self.fixture.hsm.import_wrapped(Algorithm::Sha1, seed).await
    }

    fn read(&self) -> [usize; 2] {
        [0, 1].map(|token: usize| self.read[token].load(Ordering::SeqCst))
    }
}

#[tokio::test]
async fn a_seed_is_opened_by_the_token_that_it_was_wrapped_for() {
    for (acts, read) in [([Act::Open, Act::Refuse], [1, 0]), ([Act::Refuse, Act::Open], [1, 1])] {
        let world = World::new(Keeping::Wrapped, acts.map(Some)).await;
        assert!(matches!(world.import().await, Ok(Some(_))));
        assert_eq!(world.read(), read);
    }
    let world = World::new(Keeping::Wrapped, [None, Some(Act::Open)]).await;
    assert!(matches!(world.import().await, Ok(Some(_))), "the other is not needed");
}

#[tokio::test]
async fn it_is_no_seed_only_if_every_token_says_so() {
    let world = World::new(Keeping::Wrapped, [Some(Act::Refuse), Some(Act::Refuse)]).await;
    assert!(matches!(world.import().await, Ok(None)));
    for acts in [[Some(Act::Refuse), None], [None, Some(Act::Refuse)]] {
        let world = World::new(Keeping::Wrapped, acts).await;
        let begun = Instant::now();
        let error = world.import().await.err().unwrap();
        assert!(matches!(&error, HsmError::Away(reason) if reason.contains("is away")), "{error}");
        assert!(begun.elapsed() < CALL_MAX / 2, "nobody waits for it");
    }
    let world = World::new(Keeping::Wrapped, [Some(Act::FailHsm), Some(Act::Refuse)]).await;
    assert!(matches!(world.import().await, Err(HsmError::Unavailable(_) | HsmError::Away(_))));
}

/// Another token could not make the object.
#[tokio::test]
async fn what_is_to_be_an_object_is_opened_by_the_first_alone() {
    let world = World::new(Keeping::Resident, [Some(Act::Refuse), Some(Act::Open)]).await;
    assert!(matches!(world.import().await, Ok(None)));
    assert_eq!(world.read(), [1, 0]);
}
