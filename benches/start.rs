//! How long a start takes over a database with many rows: `cargo bench --bench start -- [ROWS] [FOLDER]`.
//!
//! Makes the rows with a custodian's seals, one enrolment a commit, and starts the appliance three times: on what was
//! made behind the anchor's back (as after a crash), after a clean end, and after a kill.
#![allow(clippy::print_stdout, clippy::panic, reason = "a program for a person at a terminal")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use hsm_authd::domain::account::Account;
use hsm_authd::domain::audit::{AuditEntry, Event};
use hsm_authd::domain::caller::Tenant;
use hsm_authd::domain::checkpoint::{Checkpoint, Head, Origin};
use hsm_authd::domain::credential::{Credential, CredentialState, Kind, OtpToken, StoredSecret};
use hsm_authd::domain::id::CredentialId;
use hsm_authd::domain::log::TreeHash;
use hsm_authd::domain::otp::{Algorithm, Digits, MovingFactor};
use hsm_authd::domain::row::{Row, Sealed, SumDigest};
use hsm_authd::hsm::messages::{
    Boot, Call, Greeting, Outcome, Reply, Request, Response, SealRows, SealedRows, decode, encode,
    frame_length,
};
use hsm_authd::sandbox::Reach;
use hsm_authd::store::{Commit, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_hsm-authd");
type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let rows: u64 = arguments.first().map_or(Ok(1_000_000), |rows| rows.parse())?;
    let folder = arguments.get(1).map_or_else(|| std::env::temp_dir().join("hsm-authd-start"), PathBuf::from);
    let folder = folder.join(std::process::id().to_string());
    fs::create_dir_all(&folder)?;
    let measured = measure(rows, &folder);
    fs::remove_dir_all(&folder)?;
    measured
}

fn measure(rows: u64, folder: &Path) -> Result {
    let mut appliance = Appliance::start(folder)?;
    // Behind an end that is written down nobody may write rows.
    appliance.end(Signal::SIGKILL)?;
    let begun = Instant::now();
    fill(rows / 3, folder)?;
    println!("{rows} rows made in {:.1} s", begun.elapsed().as_secs_f64());
    for (what, end) in [
        ("behind the anchor", Signal::SIGTERM),
        ("after a clean end", Signal::SIGKILL),
        ("after a kill", Signal::SIGTERM),
        ("after a clean end", Signal::SIGTERM),
    ] {
        let begun = Instant::now();
        let mut appliance = Appliance::start(folder)?;
        let (ready_s, checked) = (begun.elapsed().as_secs_f64(), checked(folder)?);
        let ms = checked["ms"].as_f64().unwrap_or(f64::NAN);
        let rows = checked["rows"].as_f64().unwrap_or(f64::NAN);
        println!(
            "start {what}: ready after {ready_s:.2} s; {rows} rows and {} entries checked in {:.2} s, {:.0} rows/s",
            checked["entries"],
            ms / 1e3,
            rows / (ms / 1e3)
        );
        appliance.end(end)?;
    }
    indexes(folder)?;
    anchors(folder)
}

/// How long SQLite takes to hold every index against its table, which a start has it do beside the custodians' work.
fn indexes(folder: &Path) -> Result {
    let runtime = tokio::runtime::Runtime::new()?;
    let store = Store::open(&folder.join("dev/store/hsm-authd.db"))?;
    for _ in 0..3 {
        let begun = Instant::now();
        let damage = runtime.block_on(store.damage())?;
        let took = begun.elapsed();
        println!("tables and indexes checked by SQLite alone in {:.2} s: {damage:?}", took.as_secs_f64());
    }
    Ok(())
}

/// How long it takes to sign a checkpoint, and to make it the anchor.
fn anchors(folder: &Path) -> Result {
    let dev = folder.join("dev");
    let config: toml::Table = fs::read_to_string(dev.join("hsm-authd.toml"))?.parse()?;
    let mut custodian = Custodian::start(&dev, &config)?;
    let (mut signing, mut writing) = (Vec::new(), Vec::new());
    for size in 0..200 {
        let head = Head {
            origin: Origin::from_random([7; 16]),
            size,
            root: TreeHash::of_nothing(),
            sum: SumDigest::default(),
        };
        let begun = Instant::now();
        let Response::Checkpoint(note) =
            custodian.ask(Request::SignCheckpoint(Checkpoint { head, unix_s: size }))?
        else {
            return Err("another response".into());
        };
        signing.push(begun.elapsed());
        let begun = Instant::now();
        custodian.ask(Request::WriteAnchor { note, replace: true })?;
        writing.push(begun.elapsed());
    }
    for (what, mut times) in [("signing a checkpoint", signing), ("writing the anchor", writing)] {
        times.sort();
        let at = |share: usize| times.get(times.len() * share / 100).map_or(0, |time| time.as_micros());
        println!("{what}: p50 {} us, p99 {} us", at(50), at(99));
    }
    Ok(())
}

/// What the last start said of its check.
fn checked(folder: &Path) -> Result<Value> {
    let log = fs::read_to_string(folder.join("log"))?;
    let lines = log.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut said = lines.filter(|line| line["message"] == "the database is what was left");
    Ok(said.next().ok_or("it does not say what it checked")?)
}

struct Appliance(Child);

impl Appliance {
    fn start(folder: &Path) -> Result<Self> {
        let log = fs::File::options().create(true).append(true).open(folder.join("log"))?;
        let mut command = Command::new(BINARY);
        command.args(["dev", "--listen", "127.0.0.1:0", "--dir"]).arg(folder.join("dev"));
        let mut appliance = Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?);
        let mut line = String::new();
        BufReader::new(appliance.0.stdout.take().ok_or("no output")?).read_line(&mut line)?;
        if !line.starts_with("ready on ") {
            return Err(fs::read_to_string(folder.join("log"))?.into());
        }
        Ok(appliance)
    }

    fn end(&mut self, signal: Signal) -> Result {
        kill(Pid::from_raw(self.0.id().cast_signed()), signal)?;
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Appliance {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Enrols so many credentials, each of an account of its own, without the appliance.
fn fill(credentials: u64, folder: &Path) -> Result {
    let dev = folder.join("dev");
    let config: toml::Table = fs::read_to_string(dev.join("hsm-authd.toml"))?.parse()?;
    let mut custodian = Custodian::start(&dev, &config)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let store = Store::open(&dev.join("store/hsm-authd.db"))?;
    let mut commits = tokio::task::JoinSet::new();
    for number in 0..credentials {
        let commit = enrolment(&mut custodian, number)?;
        let store = store.clone();
        commits.spawn_on(async move { store.commit(commit).await.map(drop) }, runtime.handle());
        while commits.len() > 256 {
            runtime.block_on(commits.join_next()).ok_or("no commit")???;
        }
    }
    while let Some(done) = runtime.block_on(commits.join_next()) {
        done??;
    }
    Ok(())
}

fn enrolment(custodian: &mut Custodian, number: u64) -> Result<Commit> {
    let tenant = Tenant::try_from("bank-a".to_owned())?;
    let account = format!("account-{number}").try_into()?;
    // Spread like the random ids of real ones.
    let mut random = [0; 16];
    getrandom::fill(&mut random)?;
    let id = CredentialId::from_random(random);
    let token = OtpToken {
        algorithm: Algorithm::Sha1,
        digits: Digits::default(),
        moving_factor: MovingFactor::Totp { period_s: 30, skew_steps: 1 },
        secret: Some(StoredSecret::Wrapped { kek_version: 1, blob: vec![7; 32] }),
    };
    let credential = Credential {
        id,
        tenant: tenant.clone(),
        account: Clone::clone(&account),
        version: 1,
        created_unix_ms: 0,
        kind: Kind::Otp(token),
        deleted_unix_ms: None,
    };
    let rows = vec![
        Row::Credential(credential),
        Row::State(CredentialState::new(id, tenant.clone(), 0, 0)),
        Row::Account(Account::new(tenant, account)),
    ];
    let outcome = Outcome { replaces: Vec::new(), rows: rows.iter().map(Row::encode).collect() };
    let SealedRows { seals, sum_change } = custodian.seal(outcome)?;
    let rows = rows.into_iter().zip(seals).map(|(row, seal)| Sealed { row, seal }).collect();
    let audit = AuditEntry { credential: Some(id), ..AuditEntry::of_appliance(0, Event::Enrolled) };
    Ok(Commit { before: Vec::new(), rows, removed: Vec::new(), sum_change, audit })
}

/// A custodian of this program's own.
struct Custodian {
    child: Child,
    stream: UnixStream,
}

impl Custodian {
    fn start(dev: &Path, config: &toml::Table) -> Result<Self> {
        let hsm = config.get("hsm").and_then(toml::Value::as_table).ok_or("no hsm")?;
        let text = |name: &str| hsm.get(name).and_then(toml::Value::as_str).ok_or(format!("no {name}"));
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(BINARY);
        command.args(["custodian", "--supervisor", &std::process::id().to_string()]);
        for (name, value) in hsm.get("environment").and_then(toml::Value::as_table).into_iter().flatten() {
            command.env(name, value.as_str().unwrap_or_default());
        }
        let child = command.stdin(OwnedFd::from(theirs)).stderr(Stdio::null()).spawn()?;
        let mut custodian = Self { child, stream: ours };
        custodian.stream.write_all(&encode(&Boot {
            module: text("module")?.into(),
            module_arguments: None,
            token_label: text("token_label")?.to_owned(),
            pin_file: dev.join(text("pin_file")?),
            pin_handed: false,
            pin_cut_off: None,
            secrets_cached_max: 100,
            in_use: true,
            unwraps_max: u64::MAX,
            memory_bytes_max: u64::MAX,
            shared_keys: false,
            reach: Reach { writes: vec![dev.join("token")], ..Reach::default() },
        })?)?;
        loop {
            match custodian.receive::<Greeting>()? {
                Greeting::Starting(_) => {}
                Greeting::Up(_) => break,
                Greeting::Down(down) => return Err(down.line.into()),
            }
        }
        Ok(custodian)
    }

    fn receive<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let mut header = [0; 4];
        self.stream.read_exact(&mut header)?;
        let mut body = vec![0; frame_length(header)?];
        self.stream.read_exact(&mut body)?;
        Ok(decode(&body)?)
    }

    fn seal(&mut self, outcome: Outcome) -> Result<SealedRows> {
        match self.ask(Request::Seal(SealRows { standing: Vec::new(), outcome }))? {
            Response::Sealed(sealed) => Ok(sealed),
            _ => Err("another response".into()),
        }
    }

    fn ask(&mut self, request: Request) -> Result<Response> {
        self.stream.write_all(&encode(&Call {
            repeated: false,
            id: 1,
            newest: Default::default(),
            request,
        })?)?;
        Ok(self.receive::<Reply>()?.result?)
    }
}

impl Drop for Custodian {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
