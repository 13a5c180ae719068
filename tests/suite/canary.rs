//! The canary test: after thousands of requests of every kind, and what an operator does meanwhile, no secret is anywhere but
//! where docs/threat-model.md says that it passes.
//!
//! `HSM_AUTHD_CANARY_OPERATIONS` says how many requests; `make test-canary` asks for 10,000.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use data_encoding::HEXUPPER;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::canary_life::{Life, random_text};
use crate::client::{Connection, Http, tls_stream};
use crate::daemon::Daemon;
use crate::modules::TestModule;
use crate::needles::{Found, Kind, Needles};
use crate::process_memory::{core_limits, each_part, family, has, is_root, shown};
use crate::processes::{Started, children, eventually};
use crate::scrape::Scrape;
use crate::served::{Served, configuration};
use crate::token::BINARY;
use crate::wrapped_seeds::Wrapper;

const OPERATIONS: f64 = 500.0;
/// Who live beside each other.
const LIVES: usize = 4;
/// What every process of the service has in its environment, or some of them, so that the search has something to find.
const MARK: (&str, &str) = ("HSM_AUTHD_CANARY", "a mark in the environment");

/// A service that runs, all that its commands have said, and what their processes have shown.
struct Scene {
    daemon: Daemon,
    config: PathBuf,
    served: Served,
    needles: Arc<Mutex<Needles>>,
    answers: Arc<Mutex<Vec<u8>>>,
    said: Vec<u8>,
    shown: BTreeSet<Vec<u8>>,
}

impl Scene {
    fn start() -> Self {
        let mut needles = Needles::default();
        let [pin, so_pin] = [48, 48].map(random_text);
        for pin in [&pin, &so_pin] {
            needles.add(Kind::Pin, pin.as_bytes());
        }
        let mut daemon = Daemon::start_with_pins(&pin, &so_pin);
        assert!(daemon.stop().success());
        let config = configuration(&daemon, "canary.toml", |_| {});
        let mut command = Command::new(BINARY);
        command.args(["serve", "--config"]).arg(&config).stdin(Stdio::null()).env(MARK.0, MARK.1);
        let served = Served::start_by(command, &config);
        let (said, shown) = Default::default();
        Self {
            daemon,
            config,
            served,
            needles: Arc::new(Mutex::new(needles)),
            answers: Arc::default(),
            said,
            shown,
        }
    }

    async fn connect(&self, client: &str, http: Http) -> Connection {
        Connection::open(&self.served.url, &self.daemon.identity(client), http).await.unwrap()
    }

    fn requests(&self) -> f64 {
        Scrape::at(&self.served.ops_url).sum("hsm_authd_requests_total")
    }

    async fn await_custodians(&self) {
        eventually("both custodians", async || {
            let up = Scrape::at(&self.served.ops_url).value("hsm_authd_custodians_up", &[]);
            (up == 2.0).then_some(())
        })
        .await;
    }

    /// Banks live until so many requests are answered. Their connections stay open.
    async fn live(&self, part: &str, requests: f64) -> Vec<Arc<Life>> {
        let (mut lives, mut living) = (Vec::new(), JoinSet::new());
        let goal = requests;
        let reached = Arc::new(AtomicBool::new(false));
        for number in 0..LIVES {
            let http = if number % 2 == 0 { Http::One } else { Http::Two };
            let bank = self.connect("bank-a", http).await;
            let life = Arc::new(Life {
                gateway: self.connect("bank-a-gateway", http).await,
                auditor: self.connect("auditor", http).await,
                another: self.connect("bank-a", Http::Two).await,
                wrapper: Wrapper::fetch(&bank).await,
                bank,
                needles: self.needles.clone(),
                answers: self.answers.clone(),
            });
            lives.push(life.clone());
            let (reached, ops_url, part) = (reached.clone(), self.served.ops_url.clone(), part.to_owned());
            living.spawn(async move {
                for round in 0.. {
                    life.go_on(&format!("acct-{part}-{number}-{round}")).await;
                    if Scrape::at(&ops_url).sum("hsm_authd_requests_total") >= goal {
                        reached.store(true, Ordering::Relaxed);
                    }
                    if reached.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        while let Some(ended) = living.join_next().await {
            ended.unwrap();
        }
        lives
    }

    /// What an operator does: each command's words are kept, and what its processes show meanwhile.
    fn command(&mut self, arguments: &[&str]) -> Vec<u8> {
        let mut command = Command::new(BINARY);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.env(MARK.0, MARK.1).process_group(0).spawn().unwrap();
        let (pid, ended) = (child.id() as i32, AtomicBool::new(false));
        let output = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    self.shown.extend(family(pid).into_iter().map(shown));
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let output = child.wait_with_output().unwrap();
            ended.store(true, Ordering::Relaxed);
            output
        });
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        self.said.extend(&output.stdout);
        self.said.extend(&output.stderr);
        output.stdout
    }

    fn operate(&mut self, copy: &Path) {
        let config = self.config.to_str().unwrap().to_owned();
        for kind in crate::operator::KINDS {
            self.command(&["keys", "rotate", kind, "--config", &config]);
        }
        self.command(&["keys", "rewrap", "--config", &config]);
        self.command(&["keys", "list", "--json", "--config", &config]);
        self.command(&["check", "--config", &config]);
        self.command(&["backup", "--config", &config, "--to", copy.to_str().unwrap()]);
        self.command(&["audit", "verify", "--store", copy.to_str().unwrap(), "--config", &config]);
        let export = self.command(&["audit", "export", "--store", copy.to_str().unwrap(), "--after", "0"]);
        fs::write(copy.with_added_extension("export"), export).unwrap();
    }

    /// Supervisor, front, custodians.
    fn processes(&self) -> Vec<(&'static str, i32)> {
        let pid = self.served.pid();
        let of = |role: &'static str| children(pid, role).into_iter().map(move |pid| (role, pid));
        [("supervisor", pid)].into_iter().chain(of("front")).chain(of("custodian")).collect()
    }
}

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let all = entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] });
    // The control socket is none.
    all.filter(|path| path.is_file()).collect()
}

/// What is found, in words that show none of it.
fn told(found: &[Found]) -> String {
    let mut words = BTreeSet::new();
    for hit in found.iter().take(10_000) {
        words.insert(format!("{:?} ({})", hit.kind, hit.how));
    }
    format!("{words:?}, at first at byte {:?}", found.first().map(|hit| hit.at))
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    let mut places = bytes.iter().enumerate().filter(|(_, byte)| **byte == text[0]);
    places.any(|(place, _)| bytes[place..].starts_with(text))
}

/// Nothing is found in a place, and what is known to be there is.
fn search(needles: &Needles, place: &str, bytes: &[u8], control: &[u8]) {
    println!("  {place}: {} bytes", bytes.len());
    assert!(holds(bytes, control), "{place} has no {:?}", String::from_utf8_lossy(control));
    let found = needles.search_but_for_chance(bytes);
    assert!(found.is_empty(), "{place} has {}", told(&found));
}

/// How many secrets of each kind are where in a process's memory.
#[derive(Debug, Default)]
struct Memory {
    bytes: usize,
    stacks: BTreeMap<Kind, BTreeSet<u32>>,
    elsewhere: BTreeMap<Kind, BTreeSet<u32>>,
}

impl Memory {
    /// Short codes are not looked for: among so many bytes they are by chance.
    fn of(needles: &Needles, pid: i32, seen: &mut BTreeSet<String>) -> Self {
        let (mut stacks, mut elsewhere): (BTreeMap<_, BTreeSet<_>>, BTreeMap<_, BTreeSet<_>>) =
            Default::default();
        let bytes = each_part(pid, |mapping, bytes| {
            // What is mapped of a file and cannot be written is the same in all processes.
            let [_, rights, offset, .., name] = mapping.split_whitespace().collect::<Vec<_>>()[..] else {
                return;
            };
            let is_file = name.starts_with('/') && !rights.contains('w');
            if is_file && !seen.insert(format!("{name} {offset} {}", bytes.len())) {
                return;
            }
            // Rust's threads have 2 MiB each (https://doc.rust-lang.org/std/thread/#stack-size).
            let is_stack = name == "[stack]" || (name == "0" && bytes.len() == 2 << 20);
            let found = if is_stack { &mut stacks } else { &mut elsewhere };
            for hit in needles.search(bytes).into_iter().filter(|hit| !needles.is_short_code(hit)) {
                found.entry(hit.kind).or_default().insert(hit.secret);
            }
        });
        assert!(bytes > 1_000_000, "{bytes} bytes");
        Self { bytes, stacks, elsewhere }
    }

    fn has(&self, kind: Kind) -> bool {
        self.stacks.contains_key(&kind) || self.elsewhere.contains_key(&kind)
    }

    fn told(&self, needles: &Needles) -> String {
        let part = |name: &str, found: &BTreeMap<Kind, BTreeSet<u32>>| {
            let counted = found.iter();
            let counted =
                counted.map(|(kind, found)| format!("{kind:?} {}/{}", found.len(), needles.count(*kind)));
            format!("{name}: {}", counted.collect::<Vec<_>>().join(", "))
        };
        format!(
            "{} MiB; {}; {}",
            self.bytes >> 20,
            part("stacks", &self.stacks),
            part("elsewhere", &self.elsewhere)
        )
    }
}

/// Looks at every process: none has what it must not have. Connections that are open have buffers; and what stood on a stack
/// stays there until something else does.
fn look_at_memory(scene: &Scene, connected: bool, seen: &mut BTreeSet<String>) {
    let needles = scene.needles.lock().unwrap();
    let control = |role| match role {
        "supervisor" => scene.config.to_str().unwrap().as_bytes(),
        "front" => b"urn:hsm-authd:client:bank-a",
        _ => crate::prepared::DEV_LABEL.as_bytes(),
    };
    let when = if connected { "connected" } else { "without connections" };
    for (role, pid) in scene.processes() {
        assert!(has(pid, control(role)), "{role}: what it has to have is not found");
        let memory = Memory::of(&needles, pid, seen);
        let told = memory.told(&needles);
        println!("  {when}, {role}, {told}");
        let never = match role {
            "supervisor" => Kind::ALL.to_vec(),
            "front" => vec![Kind::Pin, Kind::WrappedSeed, Kind::OcraPinHash],
            _ => vec![Kind::Pin, Kind::WrappedSeed],
        };
        for kind in never {
            assert!(!memory.has(kind), "{when}, {role}: {told}");
        }
        assert!(connected || memory.elsewhere.is_empty(), "{when}, {role}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_secret_is_where_it_must_not_be() {
    if TestModule::chosen() != TestModule::SoftHsm {
        println!("passed over: its token is SoftHSM's");
        return;
    }
    let asked = std::env::var("HSM_AUTHD_CANARY_OPERATIONS").ok();
    let operations = asked.map_or(OPERATIONS, |count| count.parse().unwrap());
    let mut scene = Scene::start();
    let copies = scene.daemon.dir().join("copies");
    fs::create_dir(&copies).unwrap();

    drop(scene.live("first", operations / 2.0).await);
    let custodian = children(scene.served.pid(), "custodian")[0];
    kill(Pid::from_raw(custodian), Signal::SIGKILL).unwrap();
    scene.operate(&copies.join("first.db"));
    scene.served.reload();
    scene.await_custodians().await;
    let lives = scene.live("second", operations).await;

    println!("{} requests, and in the processes' memory:", scene.requests());
    let processes = scene.processes();
    for (role, pid) in &processes {
        assert_eq!(core_limits(*pid), ["0", "0"], "{role}");
        scene.shown.insert(shown(*pid));
    }
    assert_eq!(processes.len(), 4, "{processes:?}");
    if is_root() {
        let mut seen = BTreeSet::new();
        look_at_memory(&scene, true, &mut seen);
        drop(lives);
        eventually("connections are closed", async || {
            let open = Scrape::at(&scene.served.ops_url).value("hsm_authd_connections_open", &[]);
            (open == 0.0).then_some(())
        })
        .await;
        look_at_memory(&scene, false, &mut seen);
    }

    println!("files and words:");
    let running = store_files(&scene.daemon);
    scene.operate(&copies.join("second.db"));
    let metrics = Scrape::at(&scene.served.ops_url).text;
    let bank = scene.connect("bank-a", Http::One).await;
    let last = bank.get("/v1/credentials").await.unwrap();
    drop(bank);
    let Scene { daemon, served, needles, answers, said, shown, .. } = scene;
    kill(Pid::from_raw(served.pid()), Signal::SIGTERM).unwrap();
    let log = served.last_words().join("\n");
    drop(served);

    let needles = needles.lock().unwrap();
    for kind in Kind::ALL {
        assert!(needles.count(kind) >= 2, "there was no {kind:?} to look for");
    }
    for (name, bytes) in &running {
        let control = match name.as_str() {
            // What is there is in the WAL until SQLite has checkpointed it.
            "hsm-authd.db" => b"CREATE TABLE credential".to_vec(),
            "hsm-authd.db-wal" => b"acct-second-0-0".to_vec(),
            // The index of the WAL has nothing of it but its salt (https://www.sqlite.org/walformat.html).
            _ => running["hsm-authd.db-wal"][16..24].to_vec(),
        };
        search(&needles, &format!("{name}, while it runs"), bytes, &control);
    }
    search(&needles, "the log", log.as_bytes(), last.header("x-request-id").unwrap().as_bytes());
    search(&needles, "metrics", metrics.as_bytes(), b"/v1/credentials/{id}/verify");
    search(&needles, "what commands said", &said, b"hsm-authd/kek/v3: made");
    search(&needles, "answers", &answers.lock().unwrap(), b"attempts_remaining");
    let shown = shown.into_iter().collect::<Vec<_>>().concat();
    search(&needles, "command lines and environments", &shown, MARK.1.as_bytes());
    for process in ["key-task", "custodian", "front", "canary.toml", "SOFTHSM2_CONF="] {
        assert!(holds(&shown, process.as_bytes()), "no process with {process} was seen");
    }

    let all = files(&daemon.dir());
    for path in &all {
        let name = path.strip_prefix(daemon.dir()).unwrap().to_str().unwrap();
        let bytes = fs::read(path).unwrap();
        if ["pin", "so-pin"].contains(&name) {
            let found = needles.search(&bytes);
            assert!(
                found.iter().any(|hit| hit.kind == Kind::Pin),
                "the search does not find the PIN in its file"
            );
            continue;
        }
        let control: &[u8] = match name {
            "store/hsm-authd.db" | "copies/second.db" => b"acct-second-0-0",
            "copies/first.db" => b"acct-first-0-0",
            "copies/first.db.export" | "copies/second.db.export" => b"credential.enrolled",
            _ => &bytes[..bytes.len().min(4)],
        };
        if !bytes.is_empty() {
            search(&needles, name, &bytes, control);
        }
    }
    for name in
        ["store/hsm-authd.db", "copies/first.db", "copies/second.db.manifest.json", "copies/first.db.export"]
    {
        assert!(all.contains(&daemon.dir().join(name)), "there is no {name} in {all:?}");
    }
}

/// The database and what is beside it, by name.
fn store_files(daemon: &Daemon) -> BTreeMap<String, Vec<u8>> {
    let names = ["", "-wal", "-shm"].map(|suffix| format!("hsm-authd.db{suffix}"));
    names.into_iter().map(|name| (name.clone(), fs::read(daemon.store().join(name)).unwrap())).collect()
}

/// A seed that is sent in the clear is in the front's memory, which the search finds, while its request is there. When its
/// connection has ended it is not: what is freed is wiped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_in_the_clear_does_not_outlast_its_connection() {
    if !is_root() {
        println!("passed over: nobody but root looks into the front's memory");
        return;
    }
    let daemon = Daemon::start();
    let front = daemon.pids("front")[0];
    let mut needles = Needles::default();
    let (seed, mut seen) = (random_text(48), BTreeSet::new());
    needles.add(Kind::ClearSeed, seed.as_bytes());
    let mut there = || Memory::of(&needles, front, &mut seen);
    assert!(!there().has(Kind::ClearSeed));
    let body = json!({ "type": "hotp", "account": "acct-1", "seed_hex": HEXUPPER.encode(seed.as_bytes()) });
    let (body, identity) = (body.to_string(), daemon.identity("bank-a"));
    let mut stream = tls_stream(&daemon.url(), &identity, &["http/1.1"]).await.unwrap();
    let host = daemon.url().split_off("https://".len());
    let head = format!(
        "POST /v1/credentials HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let (most, last) = body.split_at(body.len() - 1);
    stream.write_all(format!("{head}{most}").as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    eventually("it is there", async || there().has(Kind::ClearSeed).then_some(())).await;
    stream.write_all(last.as_bytes()).await.unwrap();
    let mut answer = [0; 4_096];
    let read = stream.read(&mut answer).await.unwrap();
    assert!(answer[..read].starts_with(b"HTTP/1.1 201 "), "{}", String::from_utf8_lossy(&answer[..read]));
    println!("behind its request, on an open connection: {:?}", there());
    drop(stream);
    eventually("the connection is closed", async || {
        (Scrape::of(&daemon).value("hsm_authd_connections_open", &[]) == 0.0).then_some(())
    })
    .await;
    assert_eq!(there().elsewhere, BTreeMap::new());
}

/// The same search finds, in another process's memory and in a file, what was put there.
#[test]
fn what_is_planted_is_found() {
    let mut needles = Needles::default();
    let seeds: Vec<Vec<u8>> = (0..3).map(|_| random_text(64).into_bytes()).collect();
    for seed in &seeds {
        needles.add(Kind::WrappedSeed, seed);
    }
    if is_root() {
        // One as it is in an argument, one in hex in the environment, and none of the third.
        let mut command = Command::new("sh");
        command.args(["-c", "echo there; read line", "sh"]).arg(String::from_utf8_lossy(&seeds[0]).as_ref());
        command.env("PLANTED", HEXUPPER.encode(&seeds[1])).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Started::by(&mut command);
        let mut said = [0; 6];
        process.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        let found = Memory::of(&needles, process.id() as i32, &mut BTreeSet::new());
        assert_eq!(
            found.stacks[&Kind::WrappedSeed],
            BTreeSet::from([0, 1]),
            "that is where the kernel puts them"
        );
    }
    let page = [vec![0; 1_000], seeds[2].clone(), vec![0; 1_000]].concat();
    assert_eq!(
        needles.search(&page).iter().map(|hit| hit.secret).collect::<BTreeSet<_>>(),
        BTreeSet::from([2])
    );
}
