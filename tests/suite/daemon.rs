//! A daemon of a test's own: `hsm-authd dev` on its own folder, with its own token, database and port.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::client::{Connection, Http, Identity, Response};
use crate::modules::TestModule;
use crate::scratch::Scratch;

/// RFC 4226's seed, hex.
pub const SEED_HEX: &str = "3132333435363738393031323334353637383930";

/// What the log says of a reload that counts.
pub const RELOADED: &str = "certificates, revocation lists and clients reloaded";

/// Running, or stopped and to be started again on the same folder. Killed on drop.
pub struct Daemon {
    scratch: Scratch,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    child: Option<Child>,
    /// `dev.json`.
    pub info: Value,
}

impl Daemon {
    /// Starts one with two custodians.
    pub fn start() -> Self {
        Self::start_with(&["--custodians", "2"], &[])
    }

    /// Starts one whose wall clock and time since boot are what [`Daemon::set_clock`] says.
    pub fn start_at(unix_s: u64) -> Self {
        let scratch = Scratch::new();
        // In a folder of its own: the front may read what is beside it.
        let clock = scratch.path().join("time").join("clock");
        fs::create_dir(scratch.path().join("time")).unwrap();
        set_clock(&clock, unix_s * 1_000, 1_000_000);
        let arguments = ["--custodians", "1", "--clock-file", clock.to_str().unwrap()];
        Self::start_in(scratch, &arguments, &[])
    }

    /// Starts one with these arguments to `dev`, besides folder and port, and these variables.
    pub fn start_with(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::start_in(Scratch::new(), arguments, environment)
    }

    /// Starts one with two custodians on a token that it makes itself: no other daemon has its keys.
    pub fn start_with_own_keys() -> Self {
        let mut daemon = Self::new(Scratch::new(), &["--custodians", "2"], &[]);
        crate::prepared::write_own_dev(&daemon.dir());
        daemon.resume();
        daemon
    }

    /// Starts one with two custodians on a token of its own with these PINs.
    pub fn start_with_pins(pin: &str, so_pin: &str) -> Self {
        let mut daemon = Self::new(Scratch::new(), &["--custodians", "2", "--custody", "wrapped"], &[]);
        crate::prepared::write_dev_with_pins(&daemon.dir(), pin, so_pin);
        daemon.resume();
        daemon
    }

    fn start_in(scratch: Scratch, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut daemon = Self::unstarted_in(scratch, arguments, environment);
        daemon.resume();
        daemon
    }

    /// The same as [`Daemon::start_with`], not yet started.
    pub fn unstarted(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self::unstarted_in(Scratch::new(), arguments, environment)
    }

    fn unstarted_in(scratch: Scratch, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let daemon = Self::new(scratch, arguments, environment);
        crate::prepared::write_dev(&daemon.dir());
        daemon
    }

    fn new(scratch: Scratch, arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        Self {
            scratch,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            environment: environment.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
            child: None,
            info: Value::Null,
        }
    }

    /// Starts it again, and waits until it is ready.
    pub fn resume(&mut self) {
        assert!(self.try_to_resume(), "not ready: {}", self.log());
    }

    /// Starts it again; whether it became ready. If not, it has ended.
    pub fn try_to_resume(&mut self) -> bool {
        let mut child = self.spawn();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        if !line.starts_with("ready on ") {
            crate::processes::ended(&mut child);
            return false;
        }
        self.child = Some(child);
        self.info = serde_json::from_slice(&fs::read(self.dir().join("dev.json")).unwrap()).unwrap();
        true
    }

    /// Starts it again, which has to fail: what it says that it is because of.
    pub fn refused(&mut self) -> String {
        let before = self.log().len();
        let mut child = self.spawn();
        let status = crate::processes::ended(&mut child);
        let said = self.log().split_off(before);
        assert!(!status.success(), "{said}");
        let lines: Vec<_> = said.lines().filter(|line| line.starts_with("hsm-authd: ")).collect();
        assert_eq!(lines.len(), 1, "{said}");
        lines[0].to_owned()
    }

    fn spawn(&self) -> Child {
        assert!(self.child.is_none(), "it is running");
        let log = File::options().create(true).append(true).open(self.log_path()).unwrap();
        Command::new(env!("CARGO_BIN_EXE_hsm-authd"))
            .args(["dev", "--listen", "127.0.0.1:0", "--dir"])
            .arg(self.dir())
            .args(&self.arguments)
            .args(self.custody())
            .args(TestModule::dev_arguments(&self.dir()))
            .envs(self.environment.iter().map(|(k, v)| (k, v)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap()
    }

    /// Where secrets are kept, unless the test says it: `HSM_AUTHD_TEST_CUSTODY=resident` runs the suite that way.
    fn custody(&self) -> Vec<String> {
        let told = self.arguments.iter().any(|argument| argument == "--custody");
        let resident = std::env::var("HSM_AUTHD_TEST_CUSTODY").is_ok_and(|custody| custody == "resident");
        match resident && !told {
            true => vec!["--custody".to_owned(), "resident".to_owned()],
            false => Vec::new(),
        }
    }

    /// Starts it again with further arguments from here on.
    pub fn resume_with(&mut self, arguments: &[&str]) {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
        self.resume();
    }

    /// Starts it again without an argument that it had.
    pub fn resume_without(&mut self, argument: &str) {
        self.arguments.retain(|given| given != argument);
        self.resume();
    }

    /// `kill -9` of front and supervisor; the rest dies with them. The front first: it may hear that its supervisor is gone
    /// before the kernel ends it, and end in good order.
    pub fn kill(&mut self) {
        let fronts = self.pids("front");
        for front in &fronts {
            let _ = kill(Pid::from_raw(*front), Signal::SIGKILL);
        }
        let mut child = self.child.take().expect("it is not running");
        child.kill().unwrap();
        child.wait().unwrap();
        fronts.into_iter().for_each(crate::processes::wait_until_gone);
    }

    /// SIGTERM, and how it ended.
    pub fn stop(&mut self) -> ExitStatus {
        let status = crate::processes::terminate(self.child.as_mut().expect("it is not running"));
        self.child = None;
        status
    }

    /// Waits until it ends by itself.
    pub fn ended(&mut self) -> ExitStatus {
        let status = crate::processes::ended(self.child.as_mut().expect("it is not running"));
        self.child = None;
        status
    }

    /// Sets the clock of a daemon of [`Daemon::start_at`]: the wall clock, and the time since boot
    /// along with it, so that it is no step.
    pub fn set_clock(&self, unix_s: u64) {
        let (unix_ms, boot_ms) = self.clock();
        let boot_ms = (i128::from(boot_ms) + i128::from(unix_s) * 1_000 - i128::from(unix_ms)) as u64;
        set_clock(&self.clock_path(), unix_s * 1_000, boot_ms);
    }

    /// Sets the wall clock of a daemon of [`Daemon::start_at`] alone: a step.
    pub fn step_clock(&self, unix_s: u64) {
        set_clock(&self.clock_path(), unix_s * 1_000, self.clock().1);
    }

    fn clock(&self) -> (u64, u64) {
        let text = fs::read_to_string(self.clock_path()).unwrap();
        let mut numbers = text.split_whitespace().map(|number| number.parse().unwrap());
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    fn clock_path(&self) -> PathBuf {
        self.scratch.path().join("time").join("clock")
    }

    /// Everything it keeps.
    pub fn dir(&self) -> PathBuf {
        self.scratch.path().join("dev")
    }

    /// The folder of its database, which holds nothing else.
    pub fn store(&self) -> PathBuf {
        self.dir().join("store")
    }

    /// Its database.
    pub fn database(&self) -> PathBuf {
        self.store().join("hsm-authd.db")
    }

    pub fn log_path(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap()
    }

    /// Its URL.
    pub fn url(&self) -> String {
        self.info["url"].as_str().unwrap().to_owned()
    }

    /// The files of one of its clients.
    pub fn identity(&self, client: &str) -> Identity {
        let files = &self.info["clients"][client];
        let path = |value: &Value| value.as_str().unwrap().to_owned();
        Identity::new(path(&self.info["ca"]), path(&files["cert"]), path(&files["key"]))
    }

    /// A connection as one of its clients.
    pub async fn connect(&self, client: &str) -> Connection {
        self.connect_over(client, Http::Two).await
    }

    /// A connection as one of its clients over one of the two HTTPs.
    pub async fn connect_over(&self, client: &str, http: Http) -> Connection {
        Connection::open(&self.url(), &self.identity(client), http).await.unwrap()
    }

    /// Changes its configuration, and has it read again: what a reload reads holds for connections from here on.
    pub fn reload_with(&self, change: impl FnOnce(&mut Value)) {
        let path = self.dir().join("hsm-authd.toml");
        let mut config: Value = toml::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(&path, toml::to_string(&config).unwrap()).unwrap();
        self.reload(RELOADED);
    }

    /// SIGHUP, until the log has another of these lines.
    pub fn reload(&self, line: &str) {
        let before = self.log().matches(line).count();
        let supervisor = self.info["pid"].as_i64().unwrap();
        kill(Pid::from_raw(supervisor as i32), Signal::SIGHUP).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.log().matches(line).count() == before {
            assert!(Instant::now() < deadline, "no such line: {}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The processes of a role: `front` or `custodian`.
    pub fn pids(&self, role: &str) -> Vec<i32> {
        let supervisor = self.child.as_ref().expect("it is not running").id();
        crate::processes::children(supervisor.cast_signed(), role)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Written whole: the daemon reads it at any moment.
fn set_clock(path: &Path, unix_ms: u64, boot_ms: u64) {
    let temporary = path.with_extension("new");
    fs::write(&temporary, format!("{unix_ms} {boot_ms}")).unwrap();
    fs::rename(&temporary, path).unwrap();
}

/// Enrols a credential and returns its id.
pub async fn enrol(connection: &Connection, body: &Value) -> String {
    let answer = connection.post("/v1/credentials", body).await.unwrap();
    assert_eq!(answer.status, 201, "{}", text(&answer));
    answer.json().unwrap()["id"].as_str().unwrap().to_owned()
}

/// Enrols a HOTP credential with RFC 4226's seed and returns its id.
pub async fn enrol_hotp(connection: &Connection, account: &str) -> String {
    enrol(connection, &json!({ "type": "hotp", "account": account, "seed_hex": SEED_HEX })).await
}

/// Submits a code.
pub async fn verify(connection: &Connection, id: &str, otp: &str) -> Response {
    connection.post(&format!("/v1/credentials/{id}/verify"), &json!({ "otp": otp })).await.unwrap()
}

/// An answer's body as text.
pub fn text(answer: &Response) -> String {
    String::from_utf8_lossy(&answer.body).into_owned()
}

/// The name of the problem that an answer is.
pub fn problem(answer: &Response) -> String {
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{}", text(answer));
    let document = answer.json().unwrap();
    assert_eq!(document["status"], answer.status.as_u16());
    document["type"].as_str().unwrap().strip_prefix("urn:hsm-authd:problem:").unwrap().to_owned()
}

/// The code that a token with `seed` shows for `factor`: an implementation of the tests' own.
pub fn code(seed: &[u8], factor: u64, digits: u32) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<sha1::Sha1>::new_from_slice(seed).unwrap();
    mac.update(&factor.to_be_bytes());
    let mac = mac.finalize().into_bytes();
    let offset = usize::from(mac[19] & 15);
    let word = u32::from_be_bytes(mac[offset..offset + 4].try_into().unwrap()) & 0x7fff_ffff;
    format!("{:0width$}", word % 10u32.pow(digits), width = digits as usize)
}

/// [`code`] with RFC 4226's seed and 6 digits.
pub fn rfc_code(counter: u64) -> String {
    code(b"12345678901234567890", counter, 6)
}
