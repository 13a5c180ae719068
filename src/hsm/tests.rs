//! The front's side against custodians that die, hang and lie.

mod breaker;
mod frames;
mod handshakes;
mod imports;
mod recycling;
mod tokens;

use std::sync::atomic::AtomicUsize;

use messages::{BUILD_ID, Greeting, Hello, Reply, decode, encode, frame_length};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use tokio::time::Instant;

use super::asking::CALL_MAX;
use super::messages::{Call, Failure, Outcome, Remedy, SealRows, SealedRows};
use super::*;
use crate::domain::credential::StoredSecret;
use crate::domain::id::CredentialId;
use crate::domain::otp::Algorithm;
use crate::domain::row::TableSums;
use crate::domain::system_key::KeyKind;
use crate::domain::wrapped_seed::WrappedSeed;
use crate::metrics::{self, Replacement};
use crate::secret::SecretBytes;

/// What a custodian of the tests does with a call.
#[derive(Clone, Copy)]
enum Act {
    Answer,
    Die,
    Hang,
    FailHsm,
    /// Nobody is logged in there any more.
    LoggedOut,
    WrongNumber,
    /// Of a secret that is to be in the HSM.
    Miss,
    /// As long as it looks for a key.
    Later,
    /// It has this version of `row`.
    Learn(u16),
    /// Only who knows of this version of `row`, and of no newer one.
    Expect(u16),
    /// Only what is said to be repeated; else it does not know the secret.
    AnswerRepeated,
    /// Of a secret that is to be made in the HSM.
    Make,
    Destroy,
    /// Of one that nobody wrapped for it.
    Refuse,
    /// Of one that was.
    Open,
}

/// A secret in the HSM.
const OBJECT: ObjectId = ObjectId::from_random([6; 16]);

struct Fixture {
    hsm: Hsm,
    events: mpsc::UnboundedReceiver<CustodianEvent>,
}

impl Fixture {
    fn new(custodians: u16) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        Self { hsm: Hsm::new(&[custodians], (Keeping::Wrapped, 1), sender), events }
    }

    /// With so much room for secrets in the HSM.
    fn resident(custodians: u16, objects_max: u32) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        Self { hsm: Hsm::new(&[custodians], (Keeping::Resident, objects_max), sender), events }
    }

    async fn generate(&self) -> Result<NewSecret, HsmError> {
        self.hsm.generate(Algorithm::Sha1, false).await
    }

    /// A custodian that does `act` with its n-th call; returns how many calls it has read.
    async fn custodian(
        &mut self,
        slot: u16,
        generation: u64,
        act: impl Fn(usize) -> Act + Send + 'static,
    ) -> Arc<AtomicUsize> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let read = Arc::new(AtomicUsize::new(0));
        tokio::spawn(custodian(theirs, act, read.clone()));
        tokio::spawn(self.hsm.clone().adopt(slot, generation, ours));
        // Earlier ones may have been lost meanwhile.
        while self.event().await != (CustodianEvent::Up { slot, generation }) {}
        read
    }

    /// The next event; one that does not come fails the test.
    async fn event(&mut self) -> CustodianEvent {
        let event = tokio::time::timeout(Duration::from_secs(20), self.events.recv()).await;
        event.expect("nothing happened").unwrap()
    }

    async fn ask(&self) -> Result<(), HsmError> {
        self.hsm.check(Vec::new()).await
    }
}

fn sealed() -> Response {
    Response::Sealed(SealedRows { seals: Vec::new(), sum_change: TableSums::default() })
}

async fn custodian(mut stream: UnixStream, act: impl Fn(usize) -> Act, read: Arc<AtomicUsize>) {
    let hello = Greeting::Up(Hello {
        build_id: BUILD_ID.to_owned(),
        token: "a test's".to_owned(),
        newest: NewestKeys::default(),
        shared: Vec::new(),
        tls: Vec::new(),
    });
    stream.write_all(&encode(&hello).unwrap()).await.unwrap();
    loop {
        let mut header = [0; 4];
        if stream.read_exact(&mut header).await.is_err() {
            return;
        }
        let mut body = vec![0; frame_length(header).unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        let Call { id, repeated, newest, .. } = decode(&body).unwrap();
        let reply = match act(read.fetch_add(1, Ordering::SeqCst)) {
            Act::Later => Reply {
                id,
                busy_ns: 0,
                newest: None,
                tired: None,
                healed: Vec::new(),
                result: Err(Fault::Later),
            },
            Act::Learn(version) => {
                let newest = Some(NewestKeys::new([(KeyKind::Row, version)]));
                Reply { id, busy_ns: 0, newest, tired: None, healed: Vec::new(), result: Ok(sealed()) }
            }
            Act::Expect(version) if newest.of(KeyKind::Row) != version => Reply {
                id,
                busy_ns: 0,
                newest: None,
                tired: None,
                healed: Vec::new(),
                result: Err(Fault::Request("told of others".to_owned())),
            },
            Act::Expect(_) => {
                Reply { id, busy_ns: 0, newest: None, tired: None, healed: Vec::new(), result: Ok(sealed()) }
            }
            Act::Miss => Reply {
                id,
                busy_ns: 0,
                newest: None,
                tired: None,
                healed: Vec::new(),
                result: Err(Fault::Missing(OBJECT)),
            },
            Act::AnswerRepeated if !repeated => Reply {
                id,
                busy_ns: 0,
                newest: None,
                tired: None,
                healed: Vec::new(),
                result: Err(Fault::Request("it is new".to_owned())),
            },
            Act::Answer | Act::AnswerRepeated => {
                Reply { id, busy_ns: 0, newest: None, tired: None, healed: Vec::new(), result: Ok(sealed()) }
            }
            Act::Make => {
                let made = Response::Secret { stored: StoredSecret::Resident(OBJECT), exported: None };
                Reply { id, busy_ns: 0, newest: None, tired: None, healed: Vec::new(), result: Ok(made) }
            }
            Act::Destroy => Reply {
                id,
                busy_ns: 0,
                newest: None,
                tired: None,
                healed: Vec::new(),
                result: Ok(Response::Destroyed { objects: 1 }),
            },
            Act::Refuse => Reply {
                id,
                busy_ns: 0,
                newest: None,
                tired: None,
                healed: Vec::new(),
                result: Ok(Response::Imported(None)),
            },
            Act::Open => {
                let opened = Response::Imported(Some(StoredSecret::Resident(OBJECT)));
                Reply { id, busy_ns: 0, newest: None, tired: None, healed: Vec::new(), result: Ok(opened) }
            }
            Act::Die => return,
            Act::Hang => std::future::pending().await,
            Act::FailHsm => Reply {
                id,
                busy_ns: 0,
                newest: None,
                tired: None,
                healed: Vec::new(),
                result: Err(Fault::hsm("C_Sign: CKR_DEVICE_ERROR")),
            },
            Act::LoggedOut => {
                let failure = Failure::with(Remedy::LogIn, "C_SignInit: CKR_SESSION_HANDLE_INVALID");
                Reply {
                    id,
                    busy_ns: 0,
                    newest: None,
                    tired: None,
                    healed: Vec::new(),
                    result: Err(Fault::Hsm(failure)),
                }
            }
            Act::WrongNumber => Reply {
                id: id + 1,
                busy_ns: 0,
                newest: None,
                tired: None,
                healed: Vec::new(),
                result: Ok(sealed()),
            },
        };
        if stream.write_all(&encode(&reply).unwrap()).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_request_whose_custodian_dies_is_repeated_on_another() {
    let mut fixture = Fixture::new(2);
    let first = fixture.custodian(0, 1, |_| Act::Die).await;
    let second = fixture.custodian(1, 1, |_| Act::Answer).await;
    assert_eq!(fixture.ask().await, Ok(()));
    assert_eq!(fixture.ask().await, Ok(()));
    assert_eq!((first.load(Ordering::SeqCst), second.load(Ordering::SeqCst)), (1, 2));
}

#[tokio::test]
async fn what_may_have_been_done_is_said_to_be_repeated_and_nothing_else_is() {
    for act in [Act::Die, Act::FailHsm, Act::LoggedOut] {
        let mut fixture = Fixture::new(2);
        fixture.custodian(0, 1, move |_| act).await;
        fixture.custodian(1, 1, |_| Act::AnswerRepeated).await;
        assert_eq!(fixture.ask().await, Ok(()));
    }
    let mut fixture = Fixture::new(1);
    fixture.custodian(0, 1, |_| Act::AnswerRepeated).await;
    assert!(matches!(fixture.ask().await, Err(HsmError::Unavailable(_))), "a new one is not repeated");
}

#[tokio::test]
async fn a_secret_is_missing_if_two_custodians_say_so() {
    for (second, expected) in [(Act::Answer, Ok(())), (Act::Miss, Err(HsmError::Missing(OBJECT)))] {
        let mut fixture = Fixture::new(3);
        let first = fixture.custodian(0, 1, |_| Act::Miss).await;
        let second = fixture.custodian(1, 1, move |_| second).await;
        let third = fixture.custodian(2, 1, |_| Act::Hang).await;
        assert_eq!(fixture.ask().await, expected);
        assert_eq!([first, second, third].map(|count| count.load(Ordering::SeqCst)), [1, 1, 0]);
        assert_eq!(fixture.hsm.up(), 3, "none is given up over it");
    }
    let mut fixture = Fixture::new(1);
    let only = fixture.custodian(0, 1, |_| Act::Miss).await;
    assert_eq!(fixture.ask().await, Err(HsmError::Missing(OBJECT)));
    assert_eq!(only.load(Ordering::SeqCst), 2);
}

/// A custodian looks through its token at most once a second.
#[tokio::test]
async fn who_is_to_be_asked_again_is_until_it_knows() {
    let mut fixture = Fixture::new(1);
    let act = |call| if call < 4 { Act::Later } else { Act::Answer };
    let only = fixture.custodian(0, 1, act).await;
    assert_eq!(fixture.ask().await, Ok(()));
    assert_eq!(only.load(Ordering::SeqCst), 5);

    let mut fixture = Fixture::new(1);
    fixture.custodian(0, 1, |_| Act::Later).await;
    let (begun, error) = (Instant::now(), fixture.ask().await.unwrap_err());
    assert!(matches!(error, HsmError::Unavailable(_)) && error.is_passing(), "{error}");
    assert!(begun.elapsed() >= CALL_MAX && fixture.hsm.up() == 1, "nobody is given up over it");
}

/// What one custodian tells of a key, the others hear with their next call.
#[tokio::test]
async fn whoever_is_asked_is_told_which_keys_are_known_by_then() {
    let mut fixture = Fixture::new(2);
    fixture.custodian(0, 1, |_| Act::Learn(2)).await;
    fixture.custodian(1, 1, |call| Act::Expect([0, 2][call])).await;
    for slot in [1, 0, 1] {
        let request = Request::Seal(SealRows { standing: Vec::new(), outcome: Outcome::default() });
        assert!(fixture.hsm.call(Route::Slot(slot), request).await.is_ok(), "{slot}");
    }
}

/// Whose turn it is besides, one custodian makes all objects, until it is lost; then another one does.
#[tokio::test]
async fn one_custodian_makes_what_is_kept_in_the_hsm() {
    let (sender, events) = mpsc::unbounded_channel();
    let hsm = Hsm::new(&[3], (Keeping::Resident, 100), sender);
    let mut fixture = Fixture { hsm, events };
    fixture.custodian(0, 1, |_| Act::Answer).await;
    fixture.custodian(1, 1, |_| Act::Die).await;
    fixture.custodian(2, 1, |_| Act::Answer).await;
    fixture.hsm.inner.tokens[0].writer.store(1, Ordering::SeqCst);
    let hsm = fixture.hsm.clone();
    let makes = async |turns| {
        for _ in 0..turns {
            // It is answered by something else: what counts is who is asked.
            assert!(hsm.generate(crate::domain::otp::Algorithm::Sha1, false).await.is_err());
        }
        hsm.inner.tokens[0].writer.load(Ordering::SeqCst)
    };
    assert_eq!(makes(1).await, 2, "the first one died over it");
    // One that takes its place is not the one again.
    fixture.custodian(1, 2, |_| Act::Answer).await;
    assert_eq!(makes(5).await, 2);
}

#[tokio::test]
async fn a_poisonous_request_takes_two_custodians_and_no_more() {
    for act in [Act::Die, Act::FailHsm] {
        let mut fixture = Fixture::new(3);
        let mut counts = Vec::new();
        for slot in 0..3 {
            counts.push(fixture.custodian(slot, 1, move |_| act).await);
        }
        assert!(matches!(fixture.ask().await, Err(HsmError::Unavailable(_))));
        let read: usize = counts.iter().map(|count| count.load(Ordering::SeqCst)).sum();
        assert_eq!(read, 2);
        assert!(fixture.hsm.is_up());
    }
}

#[tokio::test]
async fn what_logs_all_of_them_out_is_no_requests_doing() {
    let mut fixture = Fixture::new(3);
    let mut counts = Vec::new();
    for slot in 0..3 {
        counts.push(fixture.custodian(slot, 1, |_| Act::LoggedOut).await);
    }
    let asked = tokio::spawn({
        let hsm = fixture.hsm.clone();
        async move { hsm.check(Vec::new()).await }
    });
    // They end, and the first that comes up again may be lost over it all the same.
    while fixture.hsm.is_up() {
        fixture.event().await;
    }
    counts.push(fixture.custodian(0, 2, |_| Act::Die).await);
    counts.push(fixture.custodian(1, 2, |_| Act::AnswerRepeated).await);
    assert_eq!(asked.await.unwrap(), Ok(()));
    assert_eq!(counts.iter().map(|count| count.load(Ordering::SeqCst)).collect::<Vec<_>>(), [1; 5]);
}

#[tokio::test]
async fn a_request_that_logs_each_of_them_out_is_given_up() {
    let mut fixture = Fixture::new(6);
    let mut counts = Vec::new();
    for slot in 0..6 {
        counts.push(fixture.custodian(slot, 1, |_| Act::LoggedOut).await);
    }
    let asked = tokio::spawn({
        let hsm = fixture.hsm.clone();
        async move { hsm.check(Vec::new()).await }
    });
    while fixture.hsm.is_up() {
        fixture.event().await;
    }
    for slot in 0..3 {
        counts.push(fixture.custodian(slot, 2, |_| Act::LoggedOut).await);
    }
    assert!(matches!(asked.await.unwrap(), Err(HsmError::Unavailable(_))));
    let read: usize = counts.iter().map(|count| count.load(Ordering::SeqCst)).sum();
    assert_eq!(read, 6 + 2, "each once, and then two that are lost over it");
}

/// A custodian that dies once it is asked, and has read nothing.
async fn deaf(mut stream: UnixStream) {
    let hello = Greeting::Up(Hello {
        build_id: BUILD_ID.to_owned(),
        token: "a test's".to_owned(),
        newest: NewestKeys::default(),
        shared: Vec::new(),
        tls: Vec::new(),
    });
    stream.write_all(&encode(&hello).unwrap()).await.unwrap();
    stream.readable().await.unwrap();
}

#[tokio::test]
async fn a_custodian_that_never_read_it_does_not_speak_against_a_request() {
    let mut fixture = Fixture::new(4);
    fixture.custodian(0, 1, |_| Act::Die).await;
    for slot in 1..3 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(deaf(theirs));
        tokio::spawn(fixture.hsm.clone().adopt(slot, 1, ours));
        assert_eq!(fixture.event().await, (CustodianEvent::Up { slot, generation: 1 }));
    }
    fixture.custodian(3, 1, |_| Act::Answer).await;
    assert_eq!(fixture.ask().await, Ok(()), "one was lost over it, and two before it");
}

#[tokio::test]
async fn those_behind_it_are_innocent_and_outlive_two_losses() {
    let mut fixture = Fixture::new(1);
    fixture.custodian(0, 1, |_| Act::Die).await;
    let asks: Vec<_> = (0..8)
        .map(|_| {
            let hsm = fixture.hsm.clone();
            tokio::spawn(async move { hsm.check(Vec::new()).await })
        })
        .collect();
    // Two more die of whatever is at their head; only a head that died twice is given up.
    for generation in 2..4 {
        fixture.custodian(0, generation, |_| Act::Die).await;
    }
    fixture.custodian(0, 4, |_| Act::Answer).await;
    let mut lost = 0;
    for ask in asks {
        lost += usize::from(ask.await.unwrap().is_err());
    }
    assert!(lost <= 1, "{lost} callers were told of three deaths");
}

#[tokio::test]
async fn a_custodian_that_hangs_is_reported_and_its_request_moves_on() {
    let mut fixture = Fixture::new(2);
    fixture.custodian(0, 7, |_| Act::Hang).await;
    fixture.custodian(1, 1, |_| Act::Answer).await;
    assert_eq!(fixture.ask().await, Ok(()));
    assert_eq!(fixture.event().await, (CustodianEvent::Lost { slot: 0, generation: 7 }));
}

#[tokio::test]
async fn an_answer_out_of_turn_is_nobodys() {
    let mut fixture = Fixture::new(2);
    fixture.custodian(0, 1, |_| Act::WrongNumber).await;
    fixture.custodian(1, 1, |_| Act::Answer).await;
    assert_eq!(fixture.ask().await, Ok(()));
    assert_eq!(fixture.event().await, (CustodianEvent::Lost { slot: 0, generation: 1 }));
}

#[tokio::test]
async fn callers_wait_for_a_replacement() {
    let mut fixture = Fixture::new(1);
    let hsm = fixture.hsm.clone();
    let waiting = tokio::spawn(async move { hsm.check(Vec::new()).await });
    fixture.custodian(0, 1, |_| Act::Answer).await;
    assert_eq!(waiting.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_full_queue_turns_away_at_once() {
    let mut fixture = Fixture::new(1);
    fixture.custodian(0, 1, |_| Act::Hang).await;
    let (told, mut busy) = mpsc::unbounded_channel();
    for _ in 0..=QUEUE_MAX + 16 {
        let (hsm, told) = (fixture.hsm.clone(), told.clone());
        tokio::spawn(async move {
            if hsm.check(Vec::new()).await == Err(HsmError::Busy) {
                told.send(()).unwrap();
            }
        });
    }
    tokio::time::timeout(Duration::from_secs(20), busy.recv())
        .await
        .expect("nobody was turned away")
        .unwrap();
}

#[tokio::test]
async fn a_custodian_of_another_build_is_not_asked() {
    let fixture = Fixture::new(1);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let hello = Greeting::Up(Hello {
        build_id: "another".to_owned(),
        token: String::new(),
        newest: NewestKeys::default(),
        shared: Vec::new(),
        tls: Vec::new(),
    });
    theirs.write_all(&encode(&hello).unwrap()).await.unwrap();
    fixture.hsm.clone().adopt(0, 1, ours).await;
    assert!(!fixture.hsm.is_up());
}

#[tokio::test]
async fn a_custodian_that_is_slow_but_steady_is_not_stuck() {
    let mut fixture = Fixture::new(1);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    tokio::spawn(async move {
        let hello = Hello {
            build_id: BUILD_ID.to_owned(),
            token: "a test's".to_owned(),
            newest: NewestKeys::default(),
            shared: Vec::new(),
            tls: Vec::new(),
        };
        theirs.write_all(&encode(&Greeting::Up(hello)).unwrap()).await.unwrap();
        // Each well within its time, all together well beyond the time of one.
        let mut work = tokio::time::interval(Duration::from_millis(700));
        loop {
            let mut header = [0; 4];
            if theirs.read_exact(&mut header).await.is_err() {
                return;
            }
            let mut body = vec![0; frame_length(header).unwrap()];
            theirs.read_exact(&mut body).await.unwrap();
            work.tick().await;
            let Call { id, .. } = decode(&body).unwrap();
            theirs
                .write_all(
                    &encode(&Reply {
                        id,
                        busy_ns: 0,
                        newest: None,
                        tired: None,
                        healed: Vec::new(),
                        result: Ok(sealed()),
                    })
                    .unwrap(),
                )
                .await
                .unwrap();
        }
    });
    tokio::spawn(fixture.hsm.clone().adopt(0, 1, ours));
    assert_eq!(fixture.event().await, (CustodianEvent::Up { slot: 0, generation: 1 }));
    // More than the socket takes at once: some wait to be written for longer than one may take.
    let (told, mut answers) = mpsc::unbounded_channel();
    for _ in 0..12 {
        let (hsm, told) = (fixture.hsm.clone(), told.clone());
        let large = SecretBytes::new(vec![0; 40_000]);
        tokio::spawn(
            async move { told.send(hsm.call(Route::Any, Request::Fingerprint(large)).await.is_ok()) },
        );
    }
    for _ in 0..6 {
        assert_eq!(answers.recv().await, Some(true));
    }
    assert!(fixture.events.try_recv().is_err(), "nobody was lost");
}

#[tokio::test]
async fn one_that_said_the_hsm_failed_is_ended_whether_it_ends_or_not() {
    let mut fixture = Fixture::new(2);
    fixture.custodian(0, 1, |_| Act::FailHsm).await;
    fixture.custodian(1, 1, |_| Act::Answer).await;
    assert_eq!(fixture.ask().await, Ok(()));
    assert_eq!(fixture.event().await, (CustodianEvent::Lost { slot: 0, generation: 1 }));
}

/// A custodian that answers the first call, fails over the second, and is gone with the rest unread.
async fn last_words(mut stream: UnixStream) {
    let hello = Greeting::Up(Hello {
        build_id: BUILD_ID.to_owned(),
        token: "a test's".to_owned(),
        newest: NewestKeys::default(),
        shared: Vec::new(),
        tls: Vec::new(),
    });
    stream.write_all(&encode(&hello).unwrap()).await.unwrap();
    let mut words = Vec::new();
    for result in [Ok(sealed()), Err(Fault::hsm("C_Sign: CKR_DEVICE_ERROR"))] {
        let mut header = [0; 4];
        stream.read_exact(&mut header).await.unwrap();
        let mut body = vec![0; frame_length(header).unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        let Call { id, .. } = decode(&body).unwrap();
        words.extend_from_slice(
            &encode(&Reply { id, busy_ns: 0, newest: None, tired: None, healed: Vec::new(), result })
                .unwrap(),
        );
    }
    stream.write_all(&words).await.unwrap();
}

#[tokio::test]
async fn what_it_said_before_it_went_is_heard_while_more_is_being_written() {
    // Either end of the socket may be found broken first.
    for _ in 0..16 {
        let mut fixture = Fixture::new(2);
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(last_words(theirs));
        tokio::spawn(fixture.hsm.clone().adopt(0, 1, ours));
        assert_eq!(fixture.event().await, (CustodianEvent::Up { slot: 0, generation: 1 }));
        let other = fixture.custodian(1, 1, |_| Act::Answer).await;
        // More than the socket takes at once.
        let asks: Vec<_> = (0..12)
            .map(|_| {
                let hsm = fixture.hsm.clone();
                let large = SecretBytes::new(vec![0; 40_000]);
                let route = Route::Credential(CredentialId::from_random([0; 16]));
                tokio::spawn(async move { hsm.call(route, Request::Fingerprint(large)).await.is_ok() })
            })
            .collect();
        for ask in asks {
            assert!(ask.await.unwrap());
        }
        assert_eq!(other.load(Ordering::SeqCst), 11, "the first was answered, the others go on");
    }
}

#[tokio::test]
async fn what_was_never_asked_for_takes_no_room() {
    let mut fixture = Fixture::resident(1, 3);
    let enrolments = tokio::join!(fixture.generate(), fixture.generate(), fixture.generate());
    let unavailable = |made: Result<NewSecret, HsmError>| matches!(made, Err(HsmError::Unavailable(_)));
    let (first, second, third) = enrolments;
    assert!(unavailable(first) && unavailable(second) && unavailable(third), "nobody is there");
    fixture.custodian(0, 1, |_| Act::Make).await;
    let mut made = Vec::new();
    for _ in 0..3 {
        made.push(fixture.generate().await.unwrap());
    }
    assert_eq!(fixture.generate().await.err(), Some(HsmError::NoRoom { objects_max: 3 }));
}

#[tokio::test]
async fn what_was_refused_takes_no_room_and_nobody_is_asked_to_destroy_it() {
    let mut fixture = Fixture::resident(1, 1);
    let read = fixture.custodian(0, 1, |_| Act::Refuse).await;
    for _ in 0..3 {
        let seed = WrappedSeed::from_base64(&"A".repeat(512)).unwrap();
        assert!(matches!(fixture.hsm.import_wrapped(Algorithm::Sha1, seed).await, Ok(None)));
    }
    assert_eq!(read.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn what_may_have_been_made_takes_room_until_the_hsm_has_destroyed_it() {
    let mut fixture = Fixture::resident(2, 1);
    for slot in [0, 1] {
        fixture.custodian(slot, 1, |_| Act::FailHsm).await;
    }
    assert!(matches!(fixture.generate().await, Err(HsmError::Unavailable(_))));
    let no_room = Some(HsmError::NoRoom { objects_max: 1 });
    assert_eq!(fixture.generate().await.err(), no_room);

    let hsm = fixture.hsm.clone();
    let upkeep = tokio::spawn(async move { hsm.destroy_left().await });
    for slot in [0, 1] {
        fixture.custodian(slot, 2, |_| Act::FailHsm).await;
    }
    for slot in [0, 1] {
        while fixture.event().await != (CustodianEvent::Lost { slot, generation: 2 }) {}
    }
    assert_eq!(fixture.generate().await.err(), no_room, "it was not destroyed");
    let read = fixture.custodian(0, 3, |call| if call == 0 { Act::Destroy } else { Act::Make }).await;
    let made = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match fixture.generate().await {
                Err(HsmError::NoRoom { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
                other => return other,
            }
        }
    });
    assert!(made.await.unwrap().is_ok());
    assert_eq!(read.load(Ordering::SeqCst), 2);
    upkeep.abort();
}

#[tokio::test]
async fn a_custodian_that_started_before_a_key_was_made_looks_for_it_first() {
    let mut fixture = Fixture::new(2);
    fixture.hsm.inner.learn(&NewestKeys::new([(KeyKind::Kek, 2)]));
    let read = fixture.custodian(0, 1, |_| Act::Answer).await;
    assert_eq!(fixture.ask().await, Ok(()));
    assert!(read.load(Ordering::SeqCst) >= 2, "it is told to look before it is asked anything");
}
