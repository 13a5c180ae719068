//! The keeper of the log and two tokens, one of which comes and goes.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::super::super::{Policies, Refused, Service};
use super::*;
use crate::clock::{SystemClock, WatchedClock};
use crate::config::{AnchorMode, AuditPolicy};
use crate::domain::audit::{AuditEntry, Event};
use crate::domain::certificate::Trust;
use crate::domain::checkpoint::{Head, Origin};
use crate::domain::credential::ObjectId;
use crate::hsm::messages::{
    BUILD_ID, Call, Fault, Greeting, Hello, Reply, Request, Response, decode, encode, frame_length,
};
use crate::hsm::{CustodianEvent, FIRST};
use crate::store::Commit;

/// What a token holds, whoever asks it.
struct Token {
    anchor: Mutex<Option<String>>,
    takes_anchors: Mutex<bool>,
    /// How many objects it was told to destroy.
    destroyed: Mutex<usize>,
}

impl Token {
    fn new() -> Arc<Self> {
        let anchor = Mutex::new(Some(signed(&Checkpoint::unclaimed(1))));
        Arc::new(Self { anchor, takes_anchors: Mutex::new(true), destroyed: Mutex::default() })
    }

    fn anchor(&self) -> Checkpoint {
        parse(self.anchor.lock().unwrap().as_ref().unwrap()).unwrap()
    }

    fn put(&self, anchor: Option<&Checkpoint>) {
        *self.anchor.lock().unwrap() = anchor.map(signed);
    }

    fn answer(&self, request: Request) -> Result<Response, Fault> {
        match request {
            Request::SignCheckpoint(checkpoint) => Ok(Response::Checkpoint(signed(&checkpoint))),
            Request::ReadAnchor => Ok(Response::Anchor(self.anchor.lock().unwrap().clone())),
            Request::WriteAnchor { .. } if !*self.takes_anchors.lock().unwrap() => {
                Err(Fault::Request("the token is full".to_owned()))
            }
            Request::WriteAnchor { note, .. } => {
                *self.anchor.lock().unwrap() = Some(note);
                Ok(Response::AnchorWritten)
            }
            // One object, which no row names.
            Request::Residents { after } => {
                let ids = if after.is_none() { vec![ObjectId::from_random([7; 16])] } else { Vec::new() };
                Ok(Response::Residents { ids, nameless: 0 })
            }
            Request::DestroyResidents { ids, .. } => {
                *self.destroyed.lock().unwrap() += ids.len();
                Ok(Response::Destroyed { objects: 1 })
            }
            _ => Ok(Response::Healthy),
        }
    }
}

/// By nobody: the custodian is who verifies.
fn signed(checkpoint: &Checkpoint) -> String {
    format!("{checkpoint}\n\u{2014} {} AAAAAAA=\n", checkpoint.head.origin)
}

async fn custodian(mut stream: UnixStream, token: Arc<Token>) {
    let hello = Greeting::Up(Hello {
        build_id: BUILD_ID.to_owned(),
        token: "a test's".to_owned(),
        newest: Default::default(),
        shared: Vec::new(),
        tls: Vec::new(),
    });
    stream.write_all(&encode(&hello).unwrap()).await.unwrap();
    let mut header = [0; 4];
    while stream.read_exact(&mut header).await.is_ok() {
        let mut body = vec![0; frame_length(header).unwrap()];
        stream.read_exact(&mut body).await.unwrap();
        let Call { id, request, .. } = decode(&body).unwrap();
        let result = token.answer(request);
        let reply = Reply { id, busy_ns: 0, newest: None, tired: None, healed: Vec::new(), result };
        stream.write_all(&encode(&reply).unwrap()).await.unwrap();
    }
}

struct Fixture {
    folder: PathBuf,
    service: Arc<Service>,
    tokens: [Arc<Token>; 2],
    events: mpsc::UnboundedReceiver<CustodianEvent>,
    custodians: [Option<tokio::task::JoinHandle<()>>; 2],
    generation: u64,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Fixture {
    /// With both tokens there, each of a custodian, and nobody who keeps the log.
    async fn new(mode: AnchorMode) -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("hsm-authd-anchors-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (sender, events) = mpsc::unbounded_channel();
        let hsm = Hsm::new(&[1, 1], (Default::default(), 1), sender);
        hsm.name_tokens(vec!["1".to_owned(), "2".to_owned()]);
        let policies = Policies {
            credentials: Default::default(),
            transactions: Default::default(),
            attestations: Default::default(),
            audit: AuditPolicy { anchor: mode },
        };
        let clock = Arc::new(WatchedClock::new(Box::new(SystemClock), false).unwrap());
        let store = Store::open(&folder.join("store.db")).unwrap();
        let service = Arc::new(Service::new(store, hsm, clock, policies, Trust::none()));
        let tokens = [Token::new(), Token::new()];
        let mut fixture = Self { folder, service, tokens, events, custodians: [None, None], generation: 0 };
        fixture.comes(0).await;
        fixture.comes(1).await;
        fixture
    }

    /// Somebody keeps the log from here on.
    fn kept(&self) {
        let service = self.service.clone();
        tokio::spawn(async move { service.keep_log().await });
    }

    async fn comes(&mut self, token: usize) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.generation += 1;
        self.custodians[token] = Some(tokio::spawn(custodian(theirs, self.tokens[token].clone())));
        tokio::spawn(self.service.hsm.clone().adopt(token as u16, self.generation, ours));
        let up = CustodianEvent::Up { slot: token as u16, generation: self.generation };
        while self.events.recv().await.unwrap() != up {}
    }

    async fn goes(&mut self, token: usize) {
        self.custodians[token].take().unwrap().abort();
        until("it is gone", || !self.service.hsm.is_token_up(token)).await;
    }

    async fn note(&self) -> u64 {
        let entry = AuditEntry::of_appliance(1, Event::Pruned);
        let _durable = self.service.log.note(entry).await.unwrap();
        self.service.store.head().borrow().size
    }

    async fn commit(&self) -> Result<(), Refused> {
        let commit = Commit::of_entry(AuditEntry::of_appliance(1, Event::Pruned));
        self.service.commit(commit).await.map(drop)
    }

    fn sizes(&self) -> [u64; 2] {
        [0, 1].map(|token: usize| self.tokens[token].anchor().head.size)
    }

    fn lags(&self) -> [i64; 2] {
        self.service.look_at_log();
        let lag =
            |token| self.service.log.metrics.anchor_lag.get_or_create(&crate::metrics::Token { token }).get();
        [lag(0), lag(1)]
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let held = timeout(Duration::from_secs(20), async {
        while !holds() {
            sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(held.await.is_ok(), "{what}");
}

#[tokio::test]
async fn every_token_that_is_there_gets_the_anchor_and_one_that_returns_is_brought_up_to_date() {
    let mut fixture = Fixture::new(AnchorMode::Interval).await;
    let first = fixture.note().await;
    assert_eq!(fixture.service.log.anchor(true).await.unwrap(), first);
    assert_eq!((fixture.sizes(), fixture.lags()), ([first; 2], [0; 2]));

    fixture.goes(1).await;
    let second = fixture.note().await;
    assert_eq!(fixture.service.log.anchor(true).await.unwrap(), second);
    assert_eq!((fixture.sizes(), fixture.lags()), ([second, first], [0, 1]));
    assert_eq!(fixture.service.log.anchors.covered(), Some(second));

    // Nothing happens but that it comes back.
    fixture.comes(1).await;
    assert_eq!(fixture.service.log.anchors.covered(), Some(0), "it was not asked");
    fixture.kept();
    until("it has the anchor", || fixture.sizes() == [second; 2]).await;
    until("it is known to", || fixture.lags() == [0; 2]).await;
    assert_eq!(fixture.service.commits_nothing(), None);
}

#[tokio::test]
async fn an_answer_waits_for_the_tokens_that_are_there_and_for_no_other() {
    let mut fixture = Fixture::new(AnchorMode::EveryCommit).await;
    fixture.note().await;
    fixture.service.log.anchor(true).await.unwrap();
    fixture.kept();
    fixture.commit().await.unwrap();
    assert_eq!(fixture.sizes(), [2; 2]);

    fixture.goes(1).await;
    let begun = tokio::time::Instant::now();
    fixture.commit().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(fixture.sizes(), [3, 2]);

    fixture.comes(1).await;
    until("it is brought up to date", || fixture.sizes()[1] >= 3).await;
    *fixture.tokens[1].takes_anchors.lock().unwrap() = false;
    assert!(matches!(fixture.commit().await, Err(Refused::Unavailable { .. })));
    assert_eq!(fixture.sizes(), [4, 3]);
    // It is no fault of the one that has it.
    let service = fixture.service.clone();
    until("its name", || service.log.lag().cause().is_some_and(|cause| cause.contains("token 2: "))).await;
    fixture.goes(1).await;
    fixture.commit().await.unwrap();
    assert_eq!(fixture.sizes(), [5, 3]);
}

#[tokio::test]
async fn what_a_token_that_comes_later_knows_of_is_held_against_the_database_and_not_written_over() {
    let other = Origin::from_random([9; 16]);
    for case in ["more", "another past", "another log", "nothing"] {
        let mut fixture = Fixture::new(AnchorMode::Interval).await;
        fixture.note().await;
        fixture.note().await;
        fixture.service.log.anchor(true).await.unwrap();
        fixture.goes(1).await;
        fixture.kept();
        let service = fixture.service.clone();
        until("it is missed", || !service.log.anchors.coverage().is_current(1)).await;
        let known = fixture.tokens[0].anchor();
        let head = known.head.clone();
        let (size, root) = (head.size, crate::domain::log::TreeHash([5; 32]));
        let (there, words) = match case {
            "more" => (Some(Head { size: size + 7, ..head }), "has 2 entries, and the token knows of 9"),
            "another past" => {
                (Some(Head { size: size - 1, root, ..head }), "are not those that the token knows")
            }
            "another log" => (Some(Head { origin: other.clone(), ..head }), "another one than the token's"),
            _ => (None, "the token has no anchor of the log: it was removed"),
        };
        let there = there.map(|head| Checkpoint { head, ..known });
        fixture.tokens[1].put(there.as_ref());
        fixture.comes(1).await;
        let reason = timeout(Duration::from_secs(20), fixture.service.doubted()).await.unwrap();
        assert!(reason.starts_with("token 2: ") && reason.contains(words), "{case}: {reason}");
        assert!(reason.contains("hsm-authd recover"), "{reason}");
        assert_eq!(fixture.service.commits_nothing(), Some(reason), "{case}");
        assert!(matches!(fixture.commit().await, Err(Refused::Unavailable { .. })), "{case}");
        assert_eq!(fixture.service.store.head().borrow().size, size, "nothing was written");
        fixture.service.end().await;
        let left = fixture.tokens[1].anchor.lock().unwrap().clone();
        assert_eq!(left, there.as_ref().map(signed), "{case}: it stays what it was");
    }
}

/// To an older database what newer credentials have is nobody's.
#[tokio::test]
async fn nothing_is_destroyed_in_a_first_token_that_came_after_the_start_and_knows_more() {
    for newer_entries in [0, 7] {
        let mut fixture = Fixture::new(AnchorMode::Interval).await;
        fixture.goes(FIRST).await;
        fixture.note().await;
        fixture.service.log.anchor(true).await.unwrap();
        let known = fixture.tokens[1].anchor();
        let head = Head { size: known.head.size + newer_entries, ..known.head };
        fixture.tokens[FIRST].put(Some(&Checkpoint { head, ..known }));
        fixture.comes(FIRST).await;
        let swept =
            timeout(Duration::from_secs(20), fixture.service.sweep()).await.expect("it goes on for ever");
        let destroyed = *fixture.tokens[FIRST].destroyed.lock().unwrap();
        match newer_entries {
            0 => assert_eq!((swept, destroyed), (Ok(()), 1)),
            _ => {
                let reason = swept.unwrap_err();
                assert!(reason.contains("and the token knows of 8"), "{reason}");
                assert_eq!(destroyed, 0);
            }
        }
    }
}
