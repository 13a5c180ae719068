//! Peers that take their time, say nothing, or come by thousands: another bank's codes are verified meanwhile, what the front
//! holds stays bounded, and afterwards all is as it was.
//!
//! `HSM_AUTHD_ABUSE=full` takes the limits of a service as they are, thousands of peers, and minutes; `make test-abuse` does.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use toml::Table;

use crate::bystander::{Bystander, Pace};
use crate::client::{Connection, Http, Identity, tls_stream_with};
use crate::daemon::{Daemon, RELOADED};
use crate::process_memory::{descriptors, resident_kib};
use crate::processes::children;
use crate::scrape::Scrape;
use crate::served::{Served, configuration, section};
use crate::token::BINARY;

/// `LimitNOFILE=` of systemd/hsm-authd.service.
const DESCRIPTORS: u64 = 16_384;
/// The least that a bystander's verifications may fall to, as a part of what they are alone, on processors that the peers need
/// as well: a debug build spends several times as much on each byte that dribbles.
const PART_MIN: f64 = if cfg!(debug_assertions) { 0.125 } else { 0.25 };
/// Of a flood of handshakes, which costs whoever makes it as much as the service.
const PART_MIN_OF_FLOOD: f64 = 0.125;
/// How long one of its answers may take, at worst.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// What the front may have in memory for each connection, for one whose first message is as long as it may be, for each stream
/// of one that has a hundred, and besides, in KiB.
const KIB_EACH: u64 = 96;
const KIB_LONG_HELLO: u64 = 144;
const KIB_STREAM: u64 = 24;
const KIB_BESIDES: u64 = 40 * 1024;
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long who comes new may need to be let in and answered, at worst: a SYN that the kernel dropped, too, is sent again after
/// one second, after two more, and after four more (RFC 6298).
const NEW_MAX: Duration = Duration::from_secs(8);
/// What an HTTP/2 client begins with (RFC 9113, section 3.4), with empty settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// What is done to the appliance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Abuse {
    /// A request's header, byte by byte.
    Headers,
    /// A request's body, byte by byte.
    Bodies,
    /// An HTTP/2 preface, and then a frame, byte by byte.
    Frames,
    /// A hundred HTTP/2 requests on each connection, whose bodies come byte by byte.
    Streams,
    /// A TLS client's first words, byte by byte.
    Hellos,
    /// First words of nearly as many bytes as they may have, all but the last of them at once.
    LongHellos,
    /// Connections that say nothing.
    Silent,
    /// Handshakes as many as can be: whole ones, broken ones, and what is none.
    Handshakes,
}

/// How much of it.
struct Scale {
    full: bool,
    peers: usize,
    window: Duration,
    /// Between two bytes of a peer.
    pause: Duration,
    limits: Vec<(&'static str, i64)>,
    /// How long until the service itself has ended what is left of the peers.
    patience: Duration,
}

impl Scale {
    fn of(abuse: Abuse) -> Self {
        let full = std::env::var("HSM_AUTHD_ABUSE").is_ok_and(|scale| scale == "full");
        if full {
            let peers = match abuse {
                Abuse::Silent | Abuse::Hellos => 10_000,
                Abuse::Streams => 200,
                Abuse::Handshakes => 64,
                // As many as a tenant may have, and more.
                _ => 2_500,
            };
            let (window, pause) = (Duration::from_secs(20), Duration::from_millis(250));
            return Self { full, peers, window, pause, limits: vec![], patience: Duration::from_secs(180) };
        }
        // The bystander has them too, and shares its processors with whatever else this machine does.
        let mut limits: Vec<_> =
            ["header_timeout_ms", "body_timeout_ms", "idle_timeout_ms"].map(|name| (name, 3_000)).into();
        match abuse {
            // Fewer places than peers, and more time than who comes new may need.
            Abuse::Silent | Abuse::Hellos | Abuse::LongHellos => {
                limits.extend([("connections_max", 128), ("handshake_timeout_ms", 8_000)]);
            }
            _ => limits.push(("handshake_timeout_ms", 1_500)),
        }
        let (peers, pause_ms) = match abuse {
            // Often enough that it would be told if each byte kept a buffer.
            Abuse::Bodies => (100, 10),
            Abuse::Streams | Abuse::Handshakes => (8, 50),
            _ => (200, 50),
        };
        Self {
            full,
            peers,
            window: Duration::from_secs(3),
            pause: Duration::from_millis(pause_ms),
            limits,
            patience: Duration::from_secs(60),
        }
    }
}

/// A service, with as many descriptors as its unit has.
fn start(limits: &[(&'static str, i64)]) -> (Daemon, Served) {
    let mut daemon = Daemon::start_with(&["--custodians", "1"], &[]);
    daemon.stop();
    let limits: Table = limits.iter().map(|(name, value)| (name.to_string(), (*value).into())).collect();
    let config = configuration(&daemon, "abused.toml", |config| {
        section(config, "server").insert("limits".into(), limits.into());
    });
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    // The peers are processes of others; here they have to be this one's.
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let descriptors = hard.min(DESCRIPTORS);
    let mut command = Command::new("prlimit");
    command.arg(format!("--nofile={descriptors}:{descriptors}")).arg(BINARY);
    command.args(["serve", "--config"]).arg(&config).stdin(Stdio::null());
    let served = Served::start_by(command, &config);
    (daemon, served)
}

/// What the front holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    connections: f64,
    descriptors: Option<usize>,
    resident_kib: u64,
}

impl Held {
    fn by(served: &Served) -> Self {
        let front = children(served.pid(), "front")[0];
        Self {
            connections: Scrape::at(&served.ops_url).value("hsm_authd_connections_open", &[]),
            descriptors: descriptors(front),
            resident_kib: resident_kib(front),
        }
    }

    fn or_more(self, other: Self) -> Self {
        Self {
            connections: self.connections.max(other.connections),
            descriptors: self.descriptors.max(other.descriptors),
            resident_kib: self.resident_kib.max(other.resident_kib),
        }
    }

    /// No more than its connections account for.
    fn is_bounded(self, before: Self, kib_each: u64) {
        let further = (self.connections - before.connections) as u64;
        if let (Some(at_most), Some(before)) = (self.descriptors, before.descriptors) {
            // One each, and some that are being opened or closed.
            assert!(at_most as u64 <= before as u64 + further + 600, "{self:?}");
        }
        let bound = before.resident_kib + further * kib_each + KIB_BESIDES;
        assert!(self.resident_kib <= bound, "{self:?}: more than {bound} KiB");
    }
}

/// Those who do it.
struct Peers {
    /// Of their own: what they compute is not to keep a bystander's client waiting.
    runtime: Option<Runtime>,
    target: Arc<Target>,
}

struct Target {
    abuse: Abuse,
    url: String,
    authority: String,
    http1: Arc<ClientConfig>,
    http2: Arc<ClientConfig>,
    pause: Duration,
    stop: AtomicBool,
    /// Connections that were begun, and those of them that have ended.
    begun: AtomicUsize,
    ended: AtomicUsize,
}

impl Peers {
    fn begin(abuse: Abuse, count: usize, pause: Duration, served: &Served, daemon: &Daemon) -> Self {
        let tls = |alpn: &str| Arc::new(daemon.identity("bank-b").tls_config(&[alpn]).unwrap());
        let target = Arc::new(Target {
            abuse,
            url: served.url.clone(),
            authority: served.url.strip_prefix("https://").unwrap().to_owned(),
            http1: tls("http/1.1"),
            http2: tls("h2"),
            pause,
            stop: AtomicBool::new(false),
            begun: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
        });
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        for number in 0..count {
            let target = target.clone();
            runtime.spawn(async move {
                // Not all at the same moment.
                sleep(target.pause * (number % 20) as u32 / 20).await;
                while !target.stop.load(Ordering::Relaxed) {
                    target.begun.fetch_add(1, Ordering::Relaxed);
                    let lasted = Instant::now();
                    target.abuse(number).await;
                    target.ended.fetch_add(1, Ordering::Relaxed);
                    // Who is turned away at once does not come back at once, but for the flood.
                    if target.abuse != Abuse::Handshakes && lasted.elapsed() < Duration::from_millis(500) {
                        sleep(Duration::from_millis(500)).await;
                    }
                }
            });
        }
        Self { runtime: Some(runtime), target }
    }

    /// None comes again. Those who are there stay until the service ends them.
    fn come_no_more(&self) {
        self.target.stop.store(true, Ordering::Relaxed);
    }

    fn under_way(&self) -> usize {
        self.target.begun.load(Ordering::Relaxed) - self.target.ended.load(Ordering::Relaxed)
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Target {
    /// One connection, to its end.
    async fn abuse(&self, number: usize) {
        let head = |method: &str, more: &str| {
            format!(
                "{method} /v1/credentials HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n{more}",
                self.authority
            )
        };
        match self.abuse {
            Abuse::Headers => {
                let Ok(stream) = tls_stream_with(&self.url, self.http1.clone()).await else { return };
                self.dribble(stream, head("GET", "X-Slow: ").as_bytes(), &[]).await;
            }
            Abuse::Bodies => {
                let Ok(stream) = tls_stream_with(&self.url, self.http1.clone()).await else { return };
                self.dribble(stream, &[], head("POST", "Content-Length: 60000\r\n\r\n").as_bytes()).await;
            }
            Abuse::Frames => {
                let Ok(stream) = tls_stream_with(&self.url, self.http2.clone()).await else { return };
                // A HEADERS frame of 16,000 bytes.
                let frame = [0, 0x3e, 0x80, 1, 4, 0, 0, 0, 1];
                self.dribble(stream, &[PREFACE, &frame].concat(), &[]).await;
            }
            Abuse::Streams => {
                let Ok(stream) = tls_stream_with(&self.url, self.http2.clone()).await else { return };
                self.dribble_streams(stream).await;
            }
            Abuse::Hellos => {
                let Some(stream) = self.connect().await else { return };
                // A record of 512 bytes, and a ClientHello in it (RFC 8446, sections 5.1 and 4).
                self.dribble(stream, &[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], &[]).await;
            }
            Abuse::LongHellos => {
                let Some(stream) = self.connect().await else { return };
                // A ClientHello of 65,000 bytes in records of 16,384, the last of which does not end.
                let message = [&[1, 0, 0xfd, 0xe8][..], &[3; 65_000]].concat();
                let records = message.chunks(16_384).flat_map(|part| [&[22, 3, 1, 64, 0], part].concat());
                self.dribble(stream, &[], &records.collect::<Vec<_>>()).await;
            }
            Abuse::Silent => {
                let Some(mut stream) = self.connect().await else { return };
                let _ = stream.read(&mut [0]).await;
            }
            Abuse::Handshakes => self.shake(number).await,
        }
    }

    /// Where the backlog is full the kernel would try for two minutes.
    async fn connect(&self) -> Option<TcpStream> {
        timeout(CONNECT_MAX, TcpStream::connect(&self.authority)).await.ok()?.ok()
    }

    /// Sends `at_once`, then `slowly` byte by byte, and then as many bytes more as are taken.
    async fn dribble(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin, slowly: &[u8], at_once: &[u8]) {
        if stream.write_all(at_once).await.is_err() || stream.flush().await.is_err() {
            return;
        }
        for byte in slowly.iter().copied().chain(std::iter::repeat(b'a')) {
            let mut answer = [0; 512];
            tokio::select! {
                read = stream.read(&mut answer) => {
                    // HTTP/2's settings are no end.
                    if read.is_err() || read.is_ok_and(|read| read == 0) {
                        return;
                    }
                }
                () = sleep(self.pause) => {
                    if stream.write_all(&[byte]).await.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn dribble_streams(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        // HPACK (RFC 7541): POST, https, and literals for the rest, of names in the static table.
        let literal = |name: &[u8], value: &str| [name, &[value.len() as u8], value.as_bytes()].concat();
        let block = [
            vec![0x83, 0x87],
            literal(&[0x04], "/v1/credentials"),
            literal(&[0x01], &self.authority),
            literal(&[0x0f, 0x10], "application/json"),
            literal(&[0x0f, 0x0d], "60000"),
        ]
        .concat();
        let frame = |kind: u8, flags: u8, id: u32, payload: &[u8]| {
            [&(payload.len() as u32).to_be_bytes()[1..], &[kind, flags], &id.to_be_bytes(), payload].concat()
        };
        let requests: Vec<u8> = (0..100).flat_map(|number| frame(1, 4, 2 * number + 1, &block)).collect();
        if stream.write_all(&[PREFACE, &requests].concat()).await.is_err() {
            return;
        }
        for number in (0..100u32).cycle() {
            let mut answer = [0; 4_096];
            tokio::select! {
                read = stream.read(&mut answer) => {
                    if read.is_err() || read.is_ok_and(|read| read == 0) {
                        return;
                    }
                }
                () = sleep(self.pause / 10) => {
                    let data = frame(0, 0, 2 * number + 1, b"a");
                    if stream.write_all(&data).await.is_err() || stream.flush().await.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn shake(&self, number: usize) {
        match number % 4 {
            0 | 1 => drop(tls_stream_with(&self.url, self.http2.clone()).await),
            2 => {
                let Ok(mut stream) = TcpStream::connect(&self.authority).await else { return };
                let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await;
                let _ = stream.read(&mut [0; 64]).await;
            }
            _ => {
                // A right hello, and gone.
                let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
                let mut client = rustls::ClientConnection::new(self.http1.clone(), name).unwrap();
                let mut hello = Vec::new();
                client.write_tls(&mut hello).unwrap();
                let Ok(mut stream) = TcpStream::connect(&self.authority).await else { return };
                let _ = stream.write_all(&hello).await;
                let _ = stream.read(&mut [0; 64]).await;
            }
        }
    }
}

/// A bank that connects again and again, one connection after the other.
struct Newcomers {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Vec<Duration>>,
}

impl Newcomers {
    fn begin(url: &str, identity: Identity) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (url, stopped) = (url.to_owned(), stop.clone());
        let task = tokio::spawn(async move {
            let mut took = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let new = Connection::open(&url, &identity, Http::Two).await.unwrap();
                assert_eq!(new.get("/v1/credentials").await.unwrap().status, 200);
                took.push(begun.elapsed());
                sleep(Duration::from_millis(100)).await;
            }
            took
        });
        Self { stop, task }
    }

    /// How long each waited for its first answer, the shortest first.
    async fn end(self) -> Vec<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let mut took = self.task.await.unwrap();
        took.sort();
        took
    }
}

/// Looks until it is so, for as long as the scale says.
async fn within(patience: Duration, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn others_go_on_beside(abuse: Abuse) {
    let scale = Scale::of(abuse);
    let (daemon, served) = start(&scale.limits);
    let identity = daemon.identity("bank-a");
    let mut bystander = Bystander::begin(&served.url, &identity).await;
    let before = Held::by(&served);
    let alone = bystander.pace(scale.window).await;

    let peers = Peers::begin(abuse, scale.peers, scale.pause, &served, &daemon);
    let (mut at_most, mut beside): (_, Vec<Pace>) = (before, Vec::new());
    let begun = Instant::now();
    let newcomers = Newcomers::begin(&served.url, identity);
    while begun.elapsed() < scale.window {
        beside.push(bystander.pace(scale.window / 10).await);
        at_most = at_most.or_more(Held::by(&served));
    }
    let newcomers = newcomers.end().await;
    peers.come_no_more();
    let came = peers.target.begun.load(Ordering::Relaxed);
    within(scale.patience, "the service ends what is left of them", || {
        // Of those who say nothing the kernel may have dropped some that do not know it.
        let gone = abuse == Abuse::Silent || peers.under_way() == 0;
        gone && Held::by(&served).connections == before.connections
    })
    .await;
    let after = Held::by(&served);
    let alone_again = bystander.pace(scale.window).await;
    bystander.end().await;

    let mean = beside.iter().map(|pace| pace.per_second).sum::<f64>() / beside.len() as f64;
    let slowest = beside.iter().map(|pace| pace.slowest).max().unwrap();
    println!(
        "{abuse:?}: {} peers, {came} connections of theirs; alone {:.0} a second (slowest {:?}), beside them {mean:.0} \
         (slowest {slowest:?}), alone again {:.0}; {} came new, in the middle within {:?}, the slowest within {:?}; \
         before {before:?}, at most {at_most:?}, after {after:?}",
        scale.peers,
        alone.per_second,
        alone.slowest,
        alone_again.per_second,
        newcomers.len(),
        newcomers[newcomers.len() / 2],
        newcomers[newcomers.len() - 1],
    );
    assert!(newcomers[newcomers.len() - 1] < NEW_MAX, "{newcomers:?}");
    assert!(came >= scale.peers, "they did not come");
    let part_min = if abuse == Abuse::Handshakes { PART_MIN_OF_FLOOD } else { PART_MIN };
    let least = alone.per_second.min(alone_again.per_second) * part_min;
    assert!(mean >= least, "{mean:.0} a second, and {least:.0} at least");
    assert!(slowest < ANSWER_MAX, "{slowest:?}");
    let kib_each = match abuse {
        Abuse::Streams => KIB_EACH + 100 * KIB_STREAM,
        Abuse::LongHellos => KIB_LONG_HELLO,
        _ => KIB_EACH,
    };
    at_most.is_bounded(before, kib_each);
    assert!(after.descriptors <= before.descriptors.map(|count| count + 8), "{before:?}, {after:?}");
    if scale.full && abuse == Abuse::Headers {
        // Half of the room, and no more.
        assert!(at_most.connections <= 2_048.0 + before.connections + 600.0, "{at_most:?}");
    }
    assert_eq!(served.stop().code(), Some(0));
}

macro_rules! beside {
    ($($name:ident: $abuse:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                others_go_on_beside(Abuse::$abuse).await;
            }
        )*
    };
}

beside! {
    codes_are_verified_beside_headers_that_come_byte_by_byte: Headers,
    codes_are_verified_beside_bodies_that_come_byte_by_byte: Bodies,
    codes_are_verified_beside_frames_that_come_byte_by_byte: Frames,
    codes_are_verified_beside_streams_that_come_byte_by_byte: Streams,
    codes_are_verified_beside_handshakes_that_come_byte_by_byte: Hellos,
    codes_are_verified_beside_handshakes_of_the_longest_first_words: LongHellos,
    codes_are_verified_beside_connections_that_say_nothing: Silent,
    codes_are_verified_beside_a_flood_of_handshakes: Handshakes,
}

/// How it goes for so long from a reload on.
async fn pace_of_a_reload(bystander: &mut Bystander, served: &Served, time: Duration) -> Pace {
    let reloads = || served.log().matches(RELOADED).count();
    let before = reloads();
    served.reload();
    let pace = bystander.pace(time).await;
    assert!(reloads() > before, "not reloaded within {time:?}");
    pace
}

/// Connections of several clients that are let in and not used, as many as the service is told to have room for, and others
/// that do not even begin a handshake. At a reload each of them is held against what was loaded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn codes_are_verified_beside_thousands_of_idle_connections() {
    let scale = Scale::of(Abuse::Silent);
    let (each, silent) = if scale.full { ([5_000, 3_500, 1_500], 2_000) } else { ([250, 175, 75], 100) };
    let idle: usize = each.iter().sum();
    let limits = [
        ("connections_max", 12_000),
        ("connections_per_tenant_max", 5_500),
        ("header_timeout_ms", 600_000),
        ("idle_timeout_ms", 600_000),
    ];
    let (daemon, served) = start(&limits);
    let mut bystander = Bystander::begin(&served.url, &daemon.identity("bank-a")).await;
    let before = Held::by(&served);
    let alone = bystander.pace(scale.window).await;
    let reload_alone = pace_of_a_reload(&mut bystander, &served, scale.window).await;

    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut openings = Vec::new();
    for (client, count) in ["bank-b", "bank-a-gateway", "auditor"].into_iter().zip(each) {
        let tls = Arc::new(daemon.identity(client).tls_config(&["http/1.1"]).unwrap());
        for part in 0..16 {
            let (url, tls) = (served.url.clone(), tls.clone());
            openings.push(runtime.spawn(async move {
                let mut held = Vec::new();
                for _ in (part..count).step_by(16) {
                    held.push(tls_stream_with(&url, tls.clone()).await.unwrap());
                }
                held
            }));
        }
    }
    let begun = Instant::now();
    let mut held = Vec::new();
    for opening in openings {
        held.extend(opening.await.unwrap());
    }
    let opened = begun.elapsed();
    let peers = Peers::begin(Abuse::Silent, silent, scale.pause, &served, &daemon);
    within(scale.patience, "all are there", || Held::by(&served).connections >= idle as f64).await;
    let beside = bystander.pace(scale.window).await;
    let reload_beside = pace_of_a_reload(&mut bystander, &served, scale.window).await;
    let at_most = Held::by(&served);
    assert!(at_most.connections >= idle as f64, "a reload ended some: {at_most:?}");
    peers.come_no_more();
    drop(held);
    within(scale.patience, "they are gone", || Held::by(&served).connections == before.connections).await;
    let (after, alone_again) = (Held::by(&served), bystander.pace(scale.window).await);
    bystander.end().await;
    runtime.shutdown_background();
    let each_kib = at_most.resident_kib.saturating_sub(before.resident_kib) as f64 / at_most.connections;
    println!(
        "{idle} idle connections, opened within {opened:?}, and {silent} without a handshake: alone {alone:?}, beside them \
         {beside:?}, alone again {alone_again:?}; from a reload on alone {reload_alone:?}, \
         beside them {reload_beside:?}; {each_kib:.1} KiB each; before {before:?}, at most {at_most:?}, after {after:?}"
    );
    let least = alone.per_second.min(alone_again.per_second) * PART_MIN;
    for beside in [beside, reload_beside] {
        assert!(
            beside.per_second >= least && beside.slowest < ANSWER_MAX,
            "{beside:?}, and {least:.0} at least"
        );
    }
    at_most.is_bounded(before, KIB_EACH);
    assert!(after.descriptors <= before.descriptors.map(|count| count + 8), "{before:?}, {after:?}");
    assert_eq!(served.stop().code(), Some(0));
}

/// Connections that nobody has accepted yet wait in the kernel, as many as it allows: who comes beside them is not left to chance.
#[test]
fn there_is_room_for_those_who_wait_to_be_accepted() {
    let allowed = std::fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let allowed: usize = allowed.trim().parse().unwrap();
    let listener = hsm_authd::supervisor::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let connect = |_| std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5)).unwrap();
    let waiting: Vec<_> = (0..allowed.min(500)).map(connect).collect();
    assert!(!waiting.is_empty());
}
