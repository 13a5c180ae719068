//! Who waits for a custodian, and for how long, while none is up.

use super::*;
use crate::hsm::messages::{Down, DownCause};

impl Fixture {
    /// A custodian that does not come up.
    async fn failed_start(&mut self, slot: u16, generation: u64) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (cause, line) = (DownCause::TokenAway, "no token is labelled bank".to_owned());
        let down = Down { cause, line, exit: 11 };
        theirs.write_all(&encode(&Greeting::Down(down)).unwrap()).await.unwrap();
        self.hsm.clone().adopt(slot, generation, ours).await;
        let failure = StartFailed::Said { exit: 11, pin_file: None };
        // Before it is lost, and killed: how it ends may be worth more than that it does.
        while self.event().await != (CustodianEvent::Down { slot, generation, failure }) {}
        while self.event().await != (CustodianEvent::Lost { slot, generation }) {}
    }

    /// One that is up, and is lost with its first call.
    async fn lose(&mut self, generation: u64) {
        let dies = self.custodian(0, generation, |_| Act::Die).await;
        let hsm = self.hsm.clone();
        let asked = tokio::spawn(async move { hsm.check(Vec::new()).await });
        while self.event().await != (CustodianEvent::Lost { slot: 0, generation }) {}
        asked.abort();
        assert_eq!(dies.load(Ordering::SeqCst), 1);
    }
}

const AWAY: &str = "the HSM cannot be used: no token is labelled bank";

#[tokio::test(start_paused = true)]
async fn until_a_start_has_failed_callers_wait_and_then_they_are_told_at_once() {
    let mut fixture = Fixture::new(1);
    fixture.lose(1).await;
    let begun = Instant::now();
    assert!(matches!(fixture.ask().await, Err(HsmError::Unavailable(_))));
    assert!(begun.elapsed().abs_diff(CALL_MAX) < Duration::from_millis(10), "{:?}", begun.elapsed());

    fixture.failed_start(0, 2).await;
    let begun = Instant::now();
    let error = fixture.ask().await.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.is_passing()), (AWAY, true));
    assert_eq!(begun.elapsed(), Duration::ZERO);

    let answers = fixture.custodian(0, 3, |_| Act::Answer).await;
    assert_eq!(fixture.ask().await, Ok(()));
    assert_eq!(answers.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn who_waits_already_is_told_when_a_start_fails() {
    let mut fixture = Fixture::new(1);
    fixture.lose(1).await;
    let begun = Instant::now();
    let hsm = fixture.hsm.clone();
    let waiting = tokio::spawn(async move { hsm.check(Vec::new()).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!waiting.is_finished());
    fixture.failed_start(0, 2).await;
    assert_eq!(waiting.await.unwrap().unwrap_err().to_string(), AWAY);
    assert_eq!(begun.elapsed().as_millis().abs_diff(1_000) / 10, 0);
}

#[tokio::test(start_paused = true)]
async fn as_long_as_one_is_up_the_failed_starts_of_others_are_nobodys_business() {
    let mut fixture = Fixture::new(2);
    fixture.custodian(0, 1, |_| Act::Answer).await;
    for generation in 1..4 {
        fixture.failed_start(1, generation).await;
        assert_eq!(fixture.ask().await, Ok(()));
    }
    assert_eq!((fixture.hsm.trouble(), fixture.hsm.up()), (None, 1));
}

#[tokio::test(start_paused = true)]
async fn who_can_wait_waits_for_a_custodian_that_is_replaced_and_for_no_other() {
    let mut fixture = Fixture::new(1);
    fixture.failed_start(0, 1).await;
    assert!(!fixture.hsm.await_up().await, "nobody starts another one");
    fixture.hsm.is_served(false);
    let hsm = fixture.hsm.clone();
    let waiting = tokio::spawn(async move { hsm.await_up().await });
    for generation in 2..5 {
        fixture.failed_start(0, generation).await;
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert!(!waiting.is_finished());
    }
    fixture.custodian(0, 5, |_| Act::Answer).await;
    assert!(waiting.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn who_would_wait_for_a_process_that_cannot_be_started_is_told_at_once() {
    let mut fixture = Fixture::new(1);
    fixture.lose(1).await;
    fixture.hsm.not_started(0, 2, "no process can be made");
    let begun = Instant::now();
    let error = fixture.ask().await.unwrap_err();
    assert_eq!(error.to_string(), "the HSM cannot be used: no process can be made");
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let trouble = fixture.hsm.trouble().unwrap();
    assert!(trouble.contains("(no-process)") && trouble.contains("descriptors"), "{trouble}");
}

/// A token that may be back in a moment is waited for, however long another one is away.
#[tokio::test(start_paused = true)]
async fn callers_are_told_at_once_only_if_no_token_may_come_back_soon() {
    let (sender, events) = mpsc::unbounded_channel();
    let mut fixture = Fixture { hsm: Hsm::new(&[1, 1], (Keeping::Wrapped, 1), sender), events };
    fixture.failed_start(1, 1).await;
    fixture.lose(1).await;
    assert!(fixture.hsm.has_token_failed(1) && !fixture.hsm.has_token_failed(0));
    let begun = Instant::now();
    assert!(matches!(fixture.ask().await, Err(HsmError::Unavailable(_))));
    assert!(begun.elapsed().abs_diff(CALL_MAX) < Duration::from_millis(10), "{:?}", begun.elapsed());
    fixture.failed_start(0, 2).await;
    assert!(matches!(fixture.ask().await, Err(HsmError::Away(_))));
    // Who needs the first one does not wait for it because another one is up.
    fixture.custodian(1, 2, |_| Act::Answer).await;
    assert_eq!(fixture.ask().await, Ok(()));
    let request = Request::Seal(SealRows { standing: Vec::new(), outcome: Outcome::default() });
    let begun = Instant::now();
    assert!(matches!(fixture.hsm.call(Route::Token(0), request).await, Err(HsmError::Away(_))));
    assert_eq!(begun.elapsed(), Duration::ZERO);
}
