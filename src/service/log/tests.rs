//! The keeper of the log against a token that takes no anchor. Time moves only where a test says so.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc as std_mpsc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::advance;

use super::lag::BEHIND_MAX;
use super::*;
use crate::clock::SystemClock;
use crate::domain::certificate::Trust;
use crate::domain::credential::ObjectId;
use crate::hsm::messages::{
    BUILD_ID, Call, Fault, Greeting, Hello, Reply, Request, Response, decode, encode, frame_length,
};
use crate::service::Policies;

/// A custodian whose token takes anchors as long as it is told so.
async fn custodian(mut stream: UnixStream, takes_anchors: Arc<AtomicBool>, destroyed: Arc<AtomicUsize>) {
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
        let result = match request {
            Request::SignCheckpoint(checkpoint) => Ok(Response::Checkpoint(checkpoint.to_string())),
            Request::ReadAnchor => Ok(Response::Anchor(Some(first_anchor()))),
            Request::WriteAnchor { .. } if takes_anchors.load(Ordering::SeqCst) => {
                Ok(Response::AnchorWritten)
            }
            Request::WriteAnchor { .. } => Err(Fault::Request("the token is full".to_owned())),
            Request::DestroyResidents { ids, .. } => {
                destroyed.fetch_add(ids.len(), Ordering::SeqCst);
                Ok(Response::Destroyed { objects: ids.len() as u32 })
            }
            _ => Ok(Response::Healthy),
        };
        stream
            .write_all(
                &encode(&Reply { id, busy_ns: 0, newest: None, tired: None, healed: Vec::new(), result })
                    .unwrap(),
            )
            .await
            .unwrap();
    }
}

/// That of a token that has just been made.
fn first_anchor() -> String {
    format!("{}\n\u{2014} hsm-authd.log/new AAAAAAA=\n", Checkpoint::unclaimed(1))
}

struct Fixture {
    folder: PathBuf,
    service: Arc<Service>,
    takes_anchors: Arc<AtomicBool>,
    destroyed: Arc<AtomicUsize>,
    /// As long as it is there, nobody but the test moves the time.
    _still: std_mpsc::Sender<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Fixture {
    /// A service whose first entry is anchored, and whose log is kept.
    async fn new(name: &str, mode: AnchorMode) -> Self {
        let (still, moves) = std_mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || moves.recv().is_ok());
        let folder = std::env::temp_dir().join(format!("hsm-authd-log-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (events, mut told) = mpsc::unbounded_channel();
        let hsm = Hsm::new(&[1], (Default::default(), 1), events);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let takes_anchors = Arc::new(AtomicBool::new(true));
        let destroyed = Arc::new(AtomicUsize::new(0));
        tokio::spawn(custodian(theirs, takes_anchors.clone(), destroyed.clone()));
        tokio::spawn(hsm.clone().adopt(0, 1, ours));
        told.recv().await.unwrap();
        let policies = Policies {
            credentials: Default::default(),
            transactions: Default::default(),
            attestations: Default::default(),
            audit: crate::config::AuditPolicy { anchor: mode },
        };
        let clock = Arc::new(WatchedClock::new(Box::new(SystemClock), false).unwrap());
        let store = Store::open(&folder.join("store.db")).unwrap();
        let service = Arc::new(Service::new(store, hsm, clock, policies, Trust::none()));
        let fixture = Self { folder, service, takes_anchors, destroyed, _still: still };
        fixture.log().note(fixture.entry()).await.map(drop).unwrap();
        fixture.log().anchor(true).await.unwrap();
        let keeper = fixture.service.clone();
        tokio::spawn(async move { keeper.keep_log().await });
        // It looks at the time when it begins.
        yield_now().await;
        fixture
    }

    fn log(&self) -> &LogKeeper {
        &self.service.log
    }

    fn entry(&self) -> AuditEntry {
        AuditEntry::of_appliance(1, Event::Pruned)
    }

    async fn commit(&self) -> Result<(), Refused> {
        let commit = Commit::of_entry(self.entry());
        self.service.commit(commit).await.map(drop)
    }

    /// That it is refused, at once.
    async fn is_refused(&self) {
        let service = self.service.clone();
        let commit = Commit::of_entry(self.entry());
        let asked = tokio::spawn(async move { service.commit(commit).await.map(drop) });
        self.until(|_| asked.is_finished()).await;
        assert!(matches!(asked.await.unwrap(), Err(Refused::Unavailable { .. })));
    }

    fn failures(&self) -> u64 {
        self.log().metrics.checkpoints.get_or_create(&Checkpointing::Failed).get()
    }

    /// Lets the time go by: each second it is tried, and fails, though nobody asks for it.
    async fn fails_until(&self, end: Instant) {
        while Instant::now() < end {
            let failures = self.failures();
            advance(RETRY_AFTER).await;
            self.until(|fixture| fixture.failures() > failures).await;
        }
    }

    /// Returns when it holds, without any time.
    async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let begun = std::time::Instant::now();
        while !holds(self) {
            assert!(begun.elapsed() < Duration::from_secs(30), "it did not come to that");
            yield_now().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_no_anchor_follows_is_not_added_to_for_longer_than_a_minute() {
    let fixture = Fixture::new("interval", AnchorMode::Interval).await;
    fixture.takes_anchors.store(false, Ordering::SeqCst);
    fixture.commit().await.unwrap();
    let begun = Instant::now();
    advance(CHECKPOINT_EVERY).await;
    fixture.until(|fixture| fixture.failures() == 1).await;
    fixture.fails_until(begun + BEHIND_MAX - RETRY_AFTER).await;
    fixture.commit().await.unwrap();
    assert_eq!(fixture.service.commits_nothing(), None);
    assert_eq!(fixture.log().metrics.closed.get(), 0);

    fixture.fails_until(begun + BEHIND_MAX).await;
    let size = fixture.service.store.head().borrow().size;
    for _ in 0..3 {
        fixture.is_refused().await;
    }
    assert_eq!(fixture.service.store.head().borrow().size, size, "nothing was written");
    let reason = fixture.service.commits_nothing().unwrap();
    assert!(reason.contains("takes no anchor") && reason.contains("the token is full"), "{reason}");
    assert_eq!(fixture.log().metrics.closed.get(), 1);
    let read = fixture.service.audit_entries(&crate::config::TenantScope::All, 0, 10).await.unwrap();
    assert_eq!(read.items.len() as u64, size, "reads go on");

    fixture.takes_anchors.store(true, Ordering::SeqCst);
    let failures = fixture.failures();
    advance(RETRY_AFTER).await;
    fixture.until(|fixture| fixture.service.commits_nothing().is_none()).await;
    assert_eq!(fixture.failures(), failures);
    assert_eq!(fixture.log().metrics.closed.get(), 0);
    fixture.commit().await.unwrap();
}

/// Whoever is told that no anchor covers it leaves an entry behind.
#[tokio::test(start_paused = true)]
async fn nor_where_each_answer_waits_for_its_anchor() {
    let fixture = Fixture::new("commits", AnchorMode::EveryCommit).await;
    fixture.commit().await.unwrap();
    fixture.takes_anchors.store(false, Ordering::SeqCst);
    let failed = fixture.failures();
    let waiting = {
        let service = fixture.service.clone();
        let commit = Commit::of_entry(fixture.entry());
        tokio::spawn(async move { service.commit(commit).await.map(drop) })
    };
    fixture.until(|fixture| fixture.failures() > failed).await;
    let begun = Instant::now();
    fixture.fails_until(begun + COVER_MAX).await;
    assert!(matches!(waiting.await.unwrap(), Err(Refused::Unavailable { .. })));
    assert_eq!(fixture.service.commits_nothing(), None);
    fixture.fails_until(begun + BEHIND_MAX).await;
    let size = fixture.service.store.head().borrow().size;
    fixture.is_refused().await;
    assert_eq!(fixture.service.store.head().borrow().size, size, "nothing was written");
    fixture.takes_anchors.store(true, Ordering::SeqCst);
    advance(RETRY_AFTER).await;
    fixture.until(|fixture| fixture.service.commits_nothing().is_none()).await;
    fixture.commit().await.unwrap();
}

/// What hangs on a place that is given back.
struct Flag(Arc<AtomicBool>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_an_anchor_has_destroyed_what_no_row_names_and_holds_nobody_up() {
    let fixture = Fixture::new("objects", AnchorMode::EveryCommit).await;
    let line = || Lifeline::until(Instant::now() + BEHIND_MAX);
    // Where an anchor covers it, nobody waits.
    let (covered, ended) = (line(), Arc::new(AtomicBool::new(false)));
    covered.begin_turn(Flag(ended.clone()));
    covered.clone().hold(fixture.log().covers(1)).await.unwrap();
    assert!(!ended.load(Ordering::SeqCst));

    fixture.takes_anchors.store(false, Ordering::SeqCst);
    let failed = fixture.failures();
    let waiting = line();
    waiting.begin_turn(Flag(ended.clone()));
    let asked = {
        let service = fixture.service.clone();
        let (commit, object) = (Commit::of_entry(fixture.entry()), ObjectId::from_random([7; 16]));
        let work = async move { service.commit_naming(commit, &mut [], vec![object]).await.map(drop) };
        tokio::spawn(waiting.hold(work))
    };
    fixture.until(|fixture| fixture.failures() > failed).await;
    fixture.until(|_| ended.load(Ordering::SeqCst)).await;
    assert_eq!(fixture.destroyed.load(Ordering::SeqCst), 1);
    fixture.fails_until(Instant::now() + COVER_MAX).await;
    assert!(matches!(asked.await.unwrap(), Err(Refused::Unavailable { .. })), "what was committed stays");
}
