//! Several tokens with the same keys, and secrets that are in the first one alone.

use super::*;
use crate::domain::account::AccountRef;
use crate::domain::caller::Tenant;
use crate::domain::credential::{Credential, Kind, OtpToken};
use crate::domain::otp::{Digits, MovingFactor};
use crate::domain::row::{Row, Seal, SealedBytes};

impl Fixture {
    /// Of tokens with so many custodians each.
    fn tokens(custodians: &[u16], keeping: Keeping) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        Self { hsm: Hsm::new(custodians, (keeping, 100), sender), events }
    }
}

#[tokio::test]
async fn slots_are_numbered_through_and_a_token_is_up_with_any_of_its_custodians() {
    let mut fixture = Fixture::tokens(&[1, 2], Keeping::Wrapped);
    let up = |fixture: &Fixture| [0, 1, 2].map(|token| fixture.hsm.is_token_up(token));
    assert_eq!((fixture.hsm.tokens(), fixture.hsm.custodians(), up(&fixture)), (2, 3, [false; 3]));
    let second = fixture.custodian(2, 1, |_| Act::Answer).await;
    assert_eq!(up(&fixture), [false, true, false]);
    assert_eq!(fixture.ask().await, Ok(()), "the first token is not needed");
    let first = fixture.custodian(0, 1, |_| Act::Answer).await;
    assert_eq!(up(&fixture), [true, true, false]);
    for (token, route) in
        [(0, Route::Writer), (0, Route::Token(0)), (1, Route::Token(1)), (1, Route::WriterOf(1))]
    {
        let before = [&first, &second].map(|read| read.load(Ordering::SeqCst));
        let request = Request::Seal(SealRows { standing: Vec::new(), outcome: Outcome::default() });
        assert!(fixture.hsm.call(route, request).await.is_ok());
        let after = [&first, &second].map(|read| read.load(Ordering::SeqCst));
        assert_eq!([after[0] - before[0], after[1] - before[1]], [[1, 0], [0, 1]][token]);
    }
}

#[tokio::test]
async fn secrets_that_are_objects_are_made_and_looked_for_in_the_first_token_alone() {
    let mut fixture = Fixture::tokens(&[1, 1], Keeping::Resident);
    let second = fixture.custodian(1, 1, |_| Act::Make).await;
    let hsm = fixture.hsm.clone();
    let waiting = tokio::spawn(async move { hsm.generate(Algorithm::Sha1, false).await.is_ok() });
    while fixture.hsm.inner.metrics.residents.get() == 0 {
        tokio::task::yield_now().await;
    }
    let first = fixture.custodian(0, 1, |_| Act::Make).await;
    assert!(waiting.await.unwrap());
    assert_eq!([&first, &second].map(|read| read.load(Ordering::SeqCst)), [1, 0]);
}

fn row_of(secret: StoredSecret) -> SealedBytes {
    let otp = OtpToken {
        algorithm: Algorithm::Sha1,
        digits: Digits::default(),
        moving_factor: MovingFactor::Hotp { look_ahead: 10 },
        secret: Some(secret),
    };
    let credential = Credential {
        id: CredentialId::from_random([1; 16]),
        tenant: Tenant::try_from("bank".to_owned()).unwrap(),
        account: AccountRef::try_from("acct-1".to_owned()).unwrap(),
        version: 1,
        created_unix_ms: 0,
        kind: Kind::Otp(otp),
        deleted_unix_ms: None,
    };
    let seal = Seal { key_version: 1, mac: [0; 32] };
    SealedBytes { bytes: Row::Credential(credential).encode(), seal }
}

#[tokio::test]
async fn whoever_opens_a_secret_that_is_an_object_asks_the_first_token() {
    let mut fixture = Fixture::tokens(&[1, 3], Keeping::Wrapped);
    let first = fixture.custodian(0, 1, |_| Act::Answer).await;
    for slot in 1..4 {
        fixture.custodian(slot, 1, |_| Act::Answer).await;
    }
    let ask = async |request| fixture.hsm.call(Route::Any, request).await.map(drop);
    let resident = || vec![row_of(StoredSecret::Resident(OBJECT))];
    for _ in 0..4 {
        assert_eq!(ask(Request::OpenEpoch { standing: resident() }).await, Ok(()));
    }
    assert_eq!(first.load(Ordering::SeqCst), 4, "whose turn it is besides");
    // Anybody can tell whether its row was changed.
    for _ in 0..4 {
        let rows = SealRows { standing: resident(), outcome: Outcome::default() };
        assert_eq!(ask(Request::Seal(rows)).await, Ok(()));
        let wrapped = vec![row_of(StoredSecret::Wrapped { kek_version: 1, blob: vec![0; 28] })];
        assert_eq!(ask(Request::OpenEpoch { standing: wrapped }).await, Ok(()));
    }
    assert_eq!(first.load(Ordering::SeqCst), 6, "one in four");
}

/// That one token does not have it says nothing.
#[tokio::test]
async fn a_secret_is_missing_only_if_the_first_token_says_so() {
    for (first, expected) in [(Act::Answer, Ok(())), (Act::Miss, Err(HsmError::Missing(OBJECT)))] {
        let mut fixture = Fixture::tokens(&[1, 2], Keeping::Wrapped);
        let others =
            [fixture.custodian(1, 1, |_| Act::Miss).await, fixture.custodian(2, 1, |_| Act::Miss).await];
        let asked = fixture.custodian(0, 1, move |_| first).await;
        for _ in 0..3 {
            assert_eq!(fixture.ask().await, expected);
        }
        assert!(asked.load(Ordering::SeqCst) >= 3);
        let others: usize = others.iter().map(|read| read.load(Ordering::SeqCst)).sum();
        assert!((1..=3).contains(&others), "{others}: each time once at most, and then the first token");
    }
}

/// Whoever serves a custodian may be ended at any moment, by a mistake of ours too.
#[tokio::test]
async fn one_that_nobody_serves_any_more_is_not_asked_and_is_told_of() {
    let mut fixture = Fixture::new(1);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let act = |_| Act::Answer;
    tokio::spawn(custodian(theirs, act, Arc::default()));
    let serving = tokio::spawn(fixture.hsm.clone().adopt(0, 1, ours));
    assert_eq!(fixture.event().await, CustodianEvent::Up { slot: 0, generation: 1 });
    assert_eq!(fixture.ask().await, Ok(()));
    serving.abort();
    assert_eq!(fixture.event().await, CustodianEvent::Lost { slot: 0, generation: 1 });
    assert_eq!(fixture.hsm.up(), 0);
    fixture.custodian(0, 2, |_| Act::Answer).await;
    assert_eq!(fixture.ask().await, Ok(()));
}

/// At the start, whoever comes first would be right.
#[tokio::test(start_paused = true)]
async fn keys_are_those_of_the_first_token_whoever_is_quicker() {
    let mut fixture = Fixture::tokens(&[1, 1], Keeping::Wrapped);
    let come = |slot: u16, check: u8| {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let hello = Greeting::Up(Hello {
            build_id: BUILD_ID.to_owned(),
            token: "a test's".to_owned(),
            newest: NewestKeys::default(),
            shared: vec![(KeyKind::Kek, 1, [check; 16])],
            tls: Vec::new(),
        });
        let hsm = fixture.hsm.clone();
        tokio::spawn(async move {
            theirs.write_all(&encode(&hello).unwrap()).await.unwrap();
            hsm.adopt(slot, 1, ours).await;
            drop(theirs);
        })
    };
    come(1, 7);
    // Time goes on when there is nothing else to do.
    tokio::time::sleep(Duration::from_secs(1)).await;
    come(0, 8);
    let event = fixture.event().await;
    assert_eq!(event, CustodianEvent::Up { slot: 0, generation: 1 });
    let failure = StartFailed::Unfit;
    assert_eq!(fixture.event().await, CustodianEvent::Down { slot: 1, generation: 1, failure });
    assert_eq!(fixture.event().await, CustodianEvent::Lost { slot: 1, generation: 1 });
    assert!(fixture.hsm.is_token_up(0) && !fixture.hsm.is_token_up(1));
}

/// Where a command was interrupted, one token has a key that another one lacks.
#[tokio::test]
async fn what_one_token_has_no_key_for_is_asked_of_another_once() {
    for lacking in [Act::Later, Act::Expect(9)] {
        let mut fixture = Fixture::tokens(&[1, 1], Keeping::Wrapped);
        let first = fixture.custodian(0, 1, move |_| lacking).await;
        let second = fixture.custodian(1, 1, |_| Act::Answer).await;
        for _ in 0..4 {
            assert_eq!(fixture.ask().await, Ok(()));
        }
        let asked = [&first, &second].map(|read| read.load(Ordering::SeqCst));
        assert!(asked[0] > 0 && asked[1] == 4, "{asked:?}");
    }
    let mut fixture = Fixture::tokens(&[1, 1], Keeping::Wrapped);
    let first = fixture.custodian(0, 1, |_| Act::Expect(9)).await;
    let second = fixture.custodian(1, 1, |_| Act::Expect(9)).await;
    assert!(fixture.ask().await.is_err());
    assert_eq!([&first, &second].map(|read| read.load(Ordering::SeqCst)), [1, 1], "what both say is final");
}
