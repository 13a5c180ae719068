//! Handshakes, begun or whole, as many as come: those who are connected are served meanwhile, and who comes is let in.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use fault_module::{Fault, Function, Kind, Latency};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::ClientConnection;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use toml::Table;

use crate::client::{Connection, Http, Identity, tls_stream, tls_stream_with};
use crate::daemon::Daemon;
use crate::fault_module::FaultModule;
use crate::overload::start;
use crate::processes::{children, eventually};
use crate::scrape::Scrape;
use crate::scratch::Scratch;
use crate::served::{Served, configuration, section};
use crate::submissions::{Outcome, Token};
use crate::tls_key::{World, issue, openssl};

/// Connections that say nothing, and handshakes that are carried through.
const SILENT: usize = 500;
const WHOLE: usize = 2_000;
/// So many at once.
const SILENT_AT_ONCE: usize = 200;
const WHOLE_AT_ONCE: usize = 50;
const HANDSHAKES_MAX: i64 = 16;
/// How long a request of who is connected may take, at worst, on processors that the flood has as well.
const REQUEST_MAX: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_handshakes_stops_nobody() {
    let (daemon, served) = start(&[("handshakes_max", HANDSHAKES_MAX)]);
    flood(&daemon, &served).await;
}

/// Each handshake asks the one custodian that verifies, too.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_does_one_that_the_hsm_signs() {
    let world = World::made(1, |config| {
        let limits = format!("handshakes_max = {HANDSHAKES_MAX}").parse::<Table>().unwrap();
        section(config, "server").insert("limits".into(), limits.into());
    });
    let served = Served::start(&world.config);
    flood(&world.daemon, &served).await;
    let signed = [("operation", "sign-handshake"), ("outcome", "answered")];
    let scrape = Scrape::at(&served.ops_url);
    let signed = scrape.value("hsm_authd_hsm_operations_total", &signed);
    let done = scrape.value("hsm_authd_handshakes_total", &[("outcome", "done")]);
    assert!(signed >= done && done > 100.0, "{signed} signed, {done} done");
}

async fn flood(daemon: &Daemon, served: &Served) {
    let identity = daemon.identity("bank-a");
    let bank = Connection::open(&served.url, &identity, Http::One).await.unwrap();
    let token = Token::enrol(&bank, "hotp", None).await;
    let mut counter = 0;
    let mut verify = async || {
        let begun = Instant::now();
        assert_eq!(token.submission(counter).send(&bank).await, Outcome::Yes);
        counter += 1;
        begun.elapsed()
    };
    let mut alone = Vec::new();
    for _ in 0..50 {
        alone.push(verify().await);
    }

    let (silent, whole) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut flood = JoinSet::new();
    let authority = served.url.strip_prefix("https://").unwrap().to_owned();
    for _ in 0..SILENT_AT_ONCE {
        let (authority, silent) = (authority.clone(), silent.clone());
        flood.spawn(async move {
            while silent.fetch_add(1, Ordering::Relaxed) < SILENT {
                let stream = TcpStream::connect(&authority).await.unwrap();
                // Until the appliance hangs up.
                let _ = stream.readable().await;
            }
        });
    }
    for _ in 0..WHOLE_AT_ONCE {
        let (url, identity, whole) = (served.url.clone(), daemon.identity("bank-b"), whole.clone());
        flood.spawn(async move {
            while whole.fetch_add(1, Ordering::Relaxed) < WHOLE {
                // One that waited too long is one of the flood.
                let _ = tls_stream(&url, &identity, &["h2"]).await;
            }
        });
    }
    let mut beside = Vec::new();
    let mut in_progress_max = 0f64;
    while !flood.is_empty() {
        beside.push(verify().await);
        let scrape = Scrape::at(&served.ops_url);
        in_progress_max = in_progress_max.max(scrape.value("hsm_authd_handshakes_in_progress", &[]));
        while let Some(ended) = flood.try_join_next() {
            ended.unwrap();
        }
    }
    let scrape = Scrape::at(&served.ops_url);
    let handshakes = scrape.counted("hsm_authd_handshakes_total");
    let full = scrape.value("hsm_authd_handshakes_full_total", &[]);
    alone.sort();
    beside.sort();
    let at = |times: &[Duration], part: usize| times[times.len() * part / 100];
    println!(
        "alone: p50 {:?}, p99 {:?}; beside the flood ({} requests): p50 {:?}, p99 {:?}; at most {in_progress_max} handshakes \
         in progress, {full} times full, ended: {handshakes:?}",
        at(&alone, 50),
        at(&alone, 99),
        beside.len(),
        at(&beside, 50),
        at(&beside, 99),
    );
    assert!(in_progress_max <= HANDSHAKES_MAX as f64 && full > 0.0);
    assert!(beside.len() > 10, "{}", beside.len());
    assert!(beside.iter().all(|time| *time < REQUEST_MAX), "{:?}", beside.last());
    let next = Connection::open(&served.url, &identity, Http::Two).await.unwrap();
    assert_eq!(next.get("/v1/credentials").await.unwrap().status, 200);
}

/// Who has places as long as nobody else wants them: `hello` is what it says, and then nothing.
async fn holds_nobody_up(limits: [(&'static str, i64); 2], hello: impl Fn(&Daemon) -> Vec<u8>) {
    const PEERS: usize = 16;
    let (daemon, served) = start(&limits);
    let authority = served.url.strip_prefix("https://").unwrap().to_owned();
    let mut peers = Vec::new();
    for _ in 0..PEERS {
        let mut peer = TcpStream::connect(&authority).await.unwrap();
        peer.write_all(&hello(&daemon)).await.unwrap();
        peers.push(peer);
    }
    let begun = Instant::now();
    let bank = Connection::open(&served.url, &daemon.identity("bank-a"), Http::Two).await.unwrap();
    assert_eq!(bank.get("/v1/credentials").await.unwrap().status, 200);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    let scrape = Scrape::at(&served.ops_url);
    let sent_away = scrape.value("hsm_authd_handshakes_total", &[("outcome", "timed-out")]);
    // The first eight have room; who is read first of those that come together with it is chance.
    assert!(sent_away >= 1.0, "{sent_away}");
    assert!(scrape.value("hsm_authd_handshakes_full_total", &[]) >= 1.0);
}

/// They have nothing that could be answered first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_do_they_hold_up_a_stop() {
    let (daemon, served) = start(&[("handshake_timeout_ms", 60_000), ("header_timeout_ms", 60_000)]);
    let authority = served.url.strip_prefix("https://").unwrap().to_owned();
    let mut peers = Vec::new();
    for hello in [Vec::new(), client_hello(&daemon)] {
        let mut peer = TcpStream::connect(&authority).await.unwrap();
        peer.write_all(&hello).await.unwrap();
        peers.push(peer);
    }
    peers[1].readable().await.unwrap();
    // These have shaken hands, and say nothing, or half of what HTTP/2 begins with.
    let mut clients = Vec::new();
    for (alpn, words) in [("http/1.1", ""), ("h2", ""), ("h2", "PRI * HTTP/2.0\r\n")] {
        let tls = Arc::new(daemon.identity("bank-a").tls_config(&[alpn]).unwrap());
        let mut client = tls_stream_with(&served.url, tls).await.unwrap();
        client.write_all(words.as_bytes()).await.unwrap();
        client.flush().await.unwrap();
        clients.push(client);
    }
    let scrape = Scrape::at(&served.ops_url);
    let held = ["unannounced", "open"].map(|of| scrape.value(&format!("hsm_authd_connections_{of}"), &[]));
    assert_eq!(held, [1.0, 5.0]);
    let begun = Instant::now();
    assert_eq!(served.stop().code(), Some(0));
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// Behind a socket that stays, a restart fails no request: also not of him whose connection was taken, who is on his way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_came_before_a_stop_shakes_hands_and_is_answered() {
    let (daemon, mut served) = start(&[]);
    let identity = daemon.identity("bank-a");
    let authority = served.url.strip_prefix("https://").unwrap().to_owned();
    let mut banks = Vec::new();
    for http in [Http::One, Http::Two] {
        banks.push(Connection::open(&served.url, &identity, http).await.unwrap());
    }
    // What the service says to his first message reaches him once the stop has begun.
    let on_the_way = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", on_the_way.local_addr().unwrap());
    let (answered, goes_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (answers, go_on) = (answered.clone(), goes_on.clone());
    tokio::spawn(async move {
        let (mut client, _) = on_the_way.accept().await.unwrap();
        let mut service = TcpStream::connect(authority).await.unwrap();
        let ((mut from_client, mut to_client), (mut from_service, mut to_service)) =
            (client.split(), service.split());
        let back = async {
            from_service.readable().await.unwrap();
            answers.notify_one();
            go_on.notified().await;
            tokio::io::copy(&mut from_service, &mut to_client).await
        };
        let _ = tokio::join!(tokio::io::copy(&mut from_client, &mut to_service), back);
    });
    let comes = tokio::spawn(async move { Connection::open(&url, &identity, Http::One).await.unwrap() });
    answered.notified().await;
    kill(Pid::from_raw(served.pid()), Signal::SIGTERM).unwrap();
    eventually("draining", async || served.log().contains("\"draining\"").then_some(())).await;
    goes_on.notify_one();
    banks.push(comes.await.unwrap());
    for bank in &banks {
        assert_eq!(bank.get("/v1/credentials").await.unwrap().status, 200);
    }
    assert!(served.ended().success());
}

/// What a client says first.
fn client_hello(daemon: &Daemon) -> Vec<u8> {
    let tls = Arc::new(daemon.identity("bank-a").tls_config(&["h2"]).unwrap());
    let mut client = ClientConnection::new(tls, "127.0.0.1".try_into().unwrap()).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    hello
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_peers_hold_up_nobody_who_comes() {
    holds_nobody_up([("connections_max", 16), ("handshake_timeout_ms", 60_000)], |_| Vec::new()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_do_those_who_say_half_of_what_they_have_to() {
    let half = |daemon: &Daemon| {
        let hello = client_hello(daemon);
        hello[..hello.len() / 2].to_vec()
    };
    holds_nobody_up([("connections_max", 16), ("handshake_timeout_ms", 60_000)], half).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_do_those_who_begin_a_handshake_and_do_not_go_on() {
    holds_nobody_up([("handshakes_max", 8), ("handshake_timeout_ms", 60_000)], client_hello).await;
}

/// What the appliance says to a first message is signed at once, in the HSM, and a thread waits for it: no more threads than
/// there are turns, however many begin.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_begins_has_no_thread_wait_for_his_signature() {
    const PEERS: usize = 200;
    let world = World::made(1, |_| ());
    let served = Served::start(&world.config);
    let front = children(served.pid(), "front")[0];
    let threads_before = threads(front);
    let authority = served.url.strip_prefix("https://").unwrap();
    let mut peers = Vec::new();
    for _ in 0..PEERS {
        peers.push((TcpStream::connect(authority).await.unwrap(), client_hello(&world.daemon)));
    }
    for (peer, hello) in &mut peers {
        peer.write_all(hello).await.unwrap();
    }
    for (peer, _) in &peers {
        peer.readable().await.unwrap();
    }
    let scrape = Scrape::at(&served.ops_url);
    let signed = [("operation", "sign-handshake"), ("outcome", "answered")];
    assert_eq!(scrape.value("hsm_authd_hsm_operations_total", &signed), PEERS as f64);
    assert_eq!(scrape.value("hsm_authd_handshakes_in_progress", &[]), PEERS as f64);
    // A thread that has waited stays for 10 s, and others took its place meanwhile.
    let turns = available_parallelism().unwrap().get().div_ceil(2);
    let threads = threads(front) - threads_before;
    println!("{threads} more threads than before, {turns} turns");
    assert!(threads <= PEERS / 8, "{threads} more threads than before");
}

fn threads(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

/// A fleet that comes back at once, to an HSM that is slow: who is answered is let in before further ones begin. All in one
/// line, each would be answered, and its time be over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_are_let_in_by_an_hsm_that_takes_its_time() {
    const CLIENTS: usize = 120;
    const SIGNATURE: Duration = Duration::from_millis(60);
    let (scratch, mut faults) = (Scratch::new(), None);
    let world = World::made(1, |config| {
        let hsm = section(config, "hsm");
        let module = FaultModule::new(scratch.path(), hsm["module"].as_str().unwrap().as_ref());
        hsm.insert("module".into(), FaultModule::library().to_str().unwrap().into());
        module.configure(hsm);
        faults = Some(module);
    });
    let served = Served::start(&world.config);
    let slow = Kind::Latency(Latency::Uniform(SIGNATURE, SIGNATURE));
    let _slow = faults.as_ref().unwrap().set(Fault::of(Function::C_Sign, slow));
    let begun = Instant::now();
    let mut fleet = JoinSet::new();
    for _ in 0..CLIENTS {
        let (url, identity) = (served.url.clone(), world.identity());
        fleet.spawn(async move {
            loop {
                // Who is turned away, at whatever moment, comes again at once.
                let Ok(bank) = Connection::open(&url, &identity, Http::Two).await else { continue };
                if bank.get("/v1/credentials").await.is_ok_and(|answer| answer.status == 200) {
                    return;
                }
            }
        });
    }
    let all = timeout(Duration::from_secs(60), fleet.join_all()).await;
    let scrape = Scrape::at(&served.ops_url);
    let handshakes = scrape.counted("hsm_authd_handshakes_total");
    println!("{CLIENTS} clients in {:?}, {handshakes:?}", begun.elapsed());
    assert!(all.is_ok(), "{handshakes:?}");
}

/// How many whole handshakes a second, and how long each takes.
async fn handshakes(url: &str, identity: &Identity, at_once: usize, count: usize) -> (f64, Vec<Duration>) {
    let (begun, left) = (Instant::now(), Arc::new(AtomicUsize::new(count)));
    let mut tasks = JoinSet::new();
    for _ in 0..at_once {
        let (url, config, left) =
            (url.to_owned(), Arc::new(identity.tls_config(&["h2"]).unwrap()), left.clone());
        tasks.spawn(async move {
            let mut took = Vec::new();
            while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
            {
                let begun = Instant::now();
                let stream = tls_stream_with(&url, config.clone()).await;
                took.push(begun.elapsed());
                drop(stream.unwrap());
            }
            took
        });
    }
    let mut took: Vec<_> = tasks.join_all().await.concat();
    took.sort();
    (count as f64 / begun.elapsed().as_secs_f64(), took)
}

/// `cargo test --release --test suite -- --ignored --nocapture handshake_flood::figures`
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
#[ignore = "figures for docs/performance.md, of a release build"]
async fn figures() {
    let world = World::made(4, |_| ());
    // The same folder with a key in a file, of a port of its own: not both at once, for they have one database.
    let pki = world.dir().join("pki");
    openssl(&pki, &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "file.ec"]);
    openssl(&pki, &["pkcs8", "-topk8", "-nocrypt", "-in", "file.ec", "-out", "file.key"]);
    let wish = "[req]\nprompt = no\ndistinguished_name = name\nreq_extensions = san\n[name]\nCN = other\n\
                [san]\nsubjectAltName = IP:127.0.0.1\n";
    std::fs::write(pki.join("san.conf"), wish).unwrap();
    openssl(&pki, &["req", "-new", "-key", "file.key", "-config", "san.conf", "-out", "file.csr"]);
    issue(&pki, &std::fs::read_to_string(pki.join("file.csr")).unwrap(), &pki.join("file.pem"));
    let in_file = configuration(&world.daemon, "in-file.toml", |config| {
        let server = section(config, "server");
        server.insert("certificate".into(), "pki/file.pem".into());
        server.insert("key".into(), "pki/file.key".into());
    });
    let identity = world.identity();
    for round in 0..3 {
        for (name, config) in [("file", &in_file), ("HSM", &world.config)] {
            let served = Served::start(config);
            for at_once in [1, 16, 64] {
                handshakes(&served.url, &identity, at_once, 200).await;
                let (rate, took) = handshakes(&served.url, &identity, at_once, 3_000).await;
                let at = |part: usize| took[took.len() * part / 100];
                println!(
                    "{round}: key in {name}, {at_once} at once: {rate:.0}/s, p50 {:?}, p99 {:?}",
                    at(50),
                    at(99)
                );
            }
            let scrape = Scrape::at(&served.ops_url);
            let signing = [("operation", "sign-handshake")];
            let [sum, count] = ["sum", "count"]
                .map(|what| scrape.value(&format!("hsm_authd_hsm_operation_seconds_{what}"), &signing));
            println!("{round}: signatures {count}, each {:.0} us from front to front", sum / count * 1e6);
            assert!(served.stop().success());
        }
    }
}
