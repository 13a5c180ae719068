//! What this machine can do at most: HMACs in the HSM's library alone, durable commits alone.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::UserType;
use cryptoki::types::AuthPin;
use hsm_authd::dev::SOFTHSM_MODULES;
use hsm_authd::domain::row::{Row, Sealed};
use hsm_authd::store::{Commit, Standing, Store};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use rusqlite::{Connection, OpenFlags};

use crate::{Outcome, samples, words};

/// C_Sign in so many processes at once.
pub struct Hmacs {
    pub processes: usize,
    pub per_second: f64,
    pub cpu_us: f64,
}

/// Commits like those of verifications, of so many callers at once.
pub struct Commits {
    pub callers: usize,
    pub per_second: f64,
    pub cpu_us: f64,
    /// Written to the database's files, a commit.
    pub bytes: f64,
    /// Of the writer's time for a commit, that which hashes and inserts its entry of the log.
    pub log_us: f64,
    /// The writer's time for a commit, its share of the fsync included.
    pub writer_us: f64,
    /// A plain append of what all callers' commits together are, and fdatasync: so many a second.
    pub syncs_per_second: f64,
}

/// HMAC-SHA-1 on session objects of the token in `folder`, as custodians do it.
pub fn hmacs(folder: &Path, processes: usize, time: Duration) -> Outcome<Hmacs> {
    let mut children = (0..processes).map(|_| HmacChild::start(folder, time)).collect::<Outcome<Vec<_>>>()?;
    for child in &mut children {
        child.stdin.write_all(b"go\n").map_err(words)?;
    }
    let (mut per_second, mut count, mut cpu) = (0.0, 0.0, 0.0);
    for child in &mut children {
        let line = child.line()?;
        let numbers: Vec<f64> =
            line.split_whitespace().map(str::parse).collect::<Result<_, _>>().map_err(words)?;
        let [signed, elapsed_s, cpu_s] = numbers[..] else { return Err(format!("a child said {line}")) };
        per_second += signed / elapsed_s;
        count += signed;
        cpu += cpu_s;
    }
    Ok(Hmacs { processes, per_second, cpu_us: cpu * 1e6 / count })
}

/// Killed on drop.
struct HmacChild {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl HmacChild {
    fn start(folder: &Path, time: Duration) -> Outcome<Self> {
        let mut child = Command::new(std::env::current_exe().map_err(words)?)
            .args(["--hmac-ms", &time.as_millis().to_string()])
            .current_dir(folder)
            .env("SOFTHSM2_CONF", folder.join("softhsm2.conf"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(words)?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(stdin), Some(stdout)) => {
                let mut started = Self { child, stdin, stdout: BufReader::new(stdout) };
                // One after the other: SoftHSM does not always survive several that start at once.
                started.line()?;
                Ok(started)
            }
            _ => Err("no pipes".to_owned()),
        }
    }

    fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        match self.stdout.read_line(&mut line) {
            Ok(1..) => Ok(line),
            _ => Err("a child that computes HMACs ended early".to_owned()),
        }
    }
}

impl Drop for HmacChild {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The main of such a child, in the folder of `dev`: says that it is ready, waits for a line, then prints how
/// many it computed, in how many seconds, with how many of CPU.
pub fn hmac_child(time: Duration) -> Outcome {
    let pin = fs::read_to_string("pin").map_err(words)?;
    let module = SOFTHSM_MODULES.iter().map(PathBuf::from).find(|path| path.exists()).ok_or("no SoftHSM")?;
    let context = Pkcs11::new(module).map_err(words)?;
    context.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)).map_err(words)?;
    let slot = *context.get_slots_with_initialized_token().map_err(words)?.first().ok_or("no token")?;
    let session = context.open_rw_session(slot).map_err(words)?;
    session.login(UserType::User, Some(&AuthPin::from(pin.trim()))).map_err(words)?;
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Token(false),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Sign(true),
        Attribute::AllowedMechanisms(vec![MechanismType::SHA1_HMAC]),
        Attribute::Value(vec![7; 24]),
    ];
    let key = session.create_object(&template).map_err(words)?;

    let mut stdout = std::io::stdout();
    writeln!(stdout, "ready").map_err(words)?;
    let mut line = String::new();
    if std::io::stdin().read_line(&mut line).map_err(words)? == 0 {
        return Ok(());
    }
    let (since, cpu, mut count) = (Instant::now(), own_cpu()?, 0u64);
    while since.elapsed() < time {
        for _ in 0..100 {
            count += 1;
            session.sign(&Mechanism::Sha1Hmac, key, &count.to_be_bytes()).map_err(words)?;
        }
    }
    let (elapsed, cpu) = (since.elapsed(), own_cpu()?.saturating_sub(cpu));
    writeln!(stdout, "{count} {} {}", elapsed.as_secs_f64(), cpu.as_secs_f64()).map_err(words)
}

/// So many credentials are in the database, and in turn moved by the callers.
const CREDENTIALS: usize = 8_192;

/// Each caller moves the states of its share of credentials, through the store alone.
pub fn commits(folder: &Path, callers: usize, time: Duration) -> Outcome<Commits> {
    let runtime = tokio::runtime::Builder::new_multi_thread().build().map_err(words)?;
    let store = Store::open(&folder.join(format!("ceiling-{callers}.db"))).map_err(words)?;
    // As far apart in the tables as random ids are.
    let spread = |number: usize| (number as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let enrolment = |number| samples::enrolment(spread(number), "bank-a", &format!("account-{number}"));
    let rows: Vec<_> = (0..CREDENTIALS).map(|number| samples::rows_of(&enrolment(number))).collect();
    runtime.block_on(store.commit(samples::insert(&rows.concat()))).map(drop).map_err(words)?;
    let mut hands: Vec<Vec<_>> = (0..callers).map(|_| Vec::new()).collect();
    for (number, rows) in rows.into_iter().enumerate() {
        hands[number % callers].push(rows);
    }

    let (log_before, writer_before) = (seconds(&store, "group_log")?, seconds(&store, "group")?);
    let (since, cpu, written) = (Instant::now(), own_cpu()?, bytes_written()?);
    let count = runtime.block_on(async {
        let callers: Vec<_> = hands
            .into_iter()
            .map(|rows| {
                let store = store.clone();
                tokio::spawn(async move { caller(&store, rows, since + time).await })
            })
            .collect();
        let mut count = 0;
        for caller in callers {
            count += caller.await.map_err(words)??;
        }
        Outcome::Ok(count)
    })? as f64;
    let (elapsed, cpu, written) = (
        since.elapsed().as_secs_f64(),
        own_cpu()?.saturating_sub(cpu),
        bytes_written()?.saturating_sub(written),
    );
    let bytes = written as f64 / count;
    Ok(Commits {
        callers,
        per_second: count / elapsed,
        cpu_us: cpu.as_secs_f64() * 1e6 / count,
        bytes,
        log_us: (seconds(&store, "group_log")? - log_before) * 1e6 / count,
        writer_us: (seconds(&store, "group")? - writer_before) * 1e6 / count,
        syncs_per_second: syncs(&folder.join("append"), (bytes * callers as f64) as usize, time)?,
    })
}

/// What a store has counted of the writer's time.
fn seconds(store: &Store, of: &str) -> Outcome<f64> {
    let (mut registry, mut text) = (Registry::default(), String::new());
    store.metrics().register(&mut registry);
    encode(&mut text, &registry).map_err(words)?;
    let name = format!("hsm_authd_commit_{of}_seconds_sum ");
    let sum = text.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok());
    sum.ok_or_else(|| format!("no {name}"))
}

/// What an entry of the log takes in a database, with its share of the indices and of kept hashes, in bytes.
pub fn entry_bytes(database: &Path) -> Outcome<f64> {
    let connection =
        Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(words)?;
    let sql = "SELECT (SELECT sum(pgsize) FROM dbstat WHERE name LIKE 'audit%') * 1.0 / count(*) FROM audit";
    connection.query_row(sql, [], |row| row.get(0)).map_err(words)
}

async fn caller(store: &Store, mut credentials: Vec<Vec<Sealed<Row>>>, end: Instant) -> Outcome<u64> {
    let mut count = 0;
    loop {
        for rows in &mut credentials {
            if Instant::now() >= end {
                return Ok(count);
            }
            let [credential, state, account] = &mut rows[..] else { return Err("not three rows".to_owned()) };
            let before = [&*credential, &*state, &*account].map(Standing::from).into();
            let next = samples::next(state, count);
            let change = samples::change(std::slice::from_ref(state), std::slice::from_ref(&next));
            store.commit(Commit { before, ..change }).await.map(drop).map_err(words)?;
            *state = next;
            count += 1;
        }
    }
}

fn syncs(path: &Path, bytes: usize, time: Duration) -> Outcome<f64> {
    let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(words)?;
    let (block, since, mut count) = (vec![7; bytes], Instant::now(), 0u64);
    while since.elapsed() < time {
        file.write_all(&block).and_then(|()| file.sync_data()).map_err(words)?;
        count += 1;
    }
    let per_second = count as f64 / since.elapsed().as_secs_f64();
    drop(file);
    fs::remove_file(path).map_err(words)?;
    Ok(per_second)
}

fn own_cpu() -> Outcome<Duration> {
    let clock = clock_getcpuclockid(Pid::this()).map_err(words)?;
    clock_gettime(clock).map(Duration::from).map_err(words)
}

/// What this process has written so far, to whatever file.
fn bytes_written() -> Outcome<u64> {
    let io = fs::read_to_string("/proc/self/io").map_err(words)?;
    let count = io.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok());
    count.ok_or_else(|| "/proc/self/io is not understood".to_owned())
}
