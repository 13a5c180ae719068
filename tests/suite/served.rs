//! `hsm-authd serve` on what a stopped `dev` left, with a configuration of the test's own.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{LazyLock, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use toml::Table;

use crate::daemon::Daemon;
use crate::token::BINARY;

/// How long a start may take: the 10 s that it waits for another instance, and then some.
const START_MAX: Duration = Duration::from_secs(30);

/// The configuration that `dev` wrote, with ports that are free and other changes besides, as a new
/// file beside it.
pub fn configuration(daemon: &Daemon, name: &str, change: impl FnOnce(&mut Table)) -> PathBuf {
    let mut config: Table =
        std::fs::read_to_string(daemon.dir().join("hsm-authd.toml")).unwrap().parse().unwrap();
    for listener in ["server", "ops"] {
        let listen = format!("127.0.0.1:{}", free_port());
        section(&mut config, listener).insert("listen".into(), listen.into());
    }
    change(&mut config);
    let path = daemon.dir().join(name);
    std::fs::write(&path, config.to_string()).unwrap();
    path
}

/// A section of a configuration.
pub fn section<'a>(config: &'a mut Table, name: &str) -> &'a mut Table {
    config.get_mut(name).unwrap().as_table_mut().unwrap()
}

/// A port outside the range from which the kernel hands ports out, so that nobody else gets it, and given out once: a
/// service may take it long after it was found free.
pub fn free_port() -> u16 {
    const RANGE: Range<u16> = 10_000..30_000;
    static NEXT: LazyLock<AtomicUsize> =
        LazyLock::new(|| AtomicUsize::new(getrandom::u32().unwrap() as usize));
    loop {
        let port = RANGE.start + (NEXT.fetch_add(1, Ordering::Relaxed) % RANGE.len()) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A running `serve`; killed on drop.
pub struct Served {
    child: Child,
    output: Option<BufReader<ChildStdout>>,
    lines: Mutex<Receiver<String>>,
    heard: Mutex<String>,
    pub url: String,
    pub ops_url: String,
}

impl Served {
    /// Starts it, and waits until it is ready.
    pub fn start(config: &Path) -> Self {
        let mut command = Command::new(BINARY);
        command.args(["serve", "--config"]).arg(config).stdin(Stdio::null());
        Self::start_by(command, config)
    }

    /// Starts it, and waits for nothing.
    pub fn spawn(config: &Path) -> Self {
        let mut command = Command::new(BINARY);
        command.args(["serve", "--config"]).arg(config).stdin(Stdio::null());
        Self::spawn_by(command, config)
    }

    /// The same by a command of the caller's own that ends up in `serve` with this configuration.
    pub fn start_by(command: Command, config: &Path) -> Self {
        let served = Self::spawn_by(command, config);
        served.await_ready();
        served
    }

    fn spawn_by(mut command: Command, config: &Path) -> Self {
        let table: Table = std::fs::read_to_string(config).unwrap().parse().unwrap();
        let address = |name: &str| table[name]["listen"].as_str().unwrap().to_owned();
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        // It ends with the last process that holds the pipe.
        std::thread::spawn(move || {
            errors.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let (url, ops_url) = (format!("https://{}", address("server")), format!("http://{}", address("ops")));
        let output = child.stdout.take().map(BufReader::new);
        let lines = Mutex::new(lines);
        Self { child, output, lines, heard: Mutex::default(), url, ops_url }
    }

    /// Waits until it says that it is ready.
    pub fn await_ready(&self) {
        self.await_line("ready", |line| line["message"] == "ready");
    }

    /// Waits for a line of the log.
    fn await_line(&self, what: &str, is_it: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + START_MAX;
        let mut heard = self.heard.lock().unwrap();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.lock().unwrap().recv_timeout(left) else {
                panic!("no {what}: {heard}")
            };
            *heard += &format!("{line}\n");
            if serde_json::from_str(&line).is_ok_and(|line| is_it(&line)) {
                return;
            }
        }
    }

    /// What it logged up to the last line that was waited for.
    pub fn heard(&self) -> String {
        self.heard.lock().unwrap().clone()
    }

    /// What it said on standard error since it was looked at last.
    pub fn said(&self) -> Vec<String> {
        self.lines.lock().unwrap().try_iter().collect()
    }

    /// The same of one that has ended, to its last word.
    pub fn last_words(&self) -> Vec<String> {
        std::iter::from_fn(|| self.lines.lock().unwrap().recv_timeout(START_MAX).ok()).collect()
    }

    /// Whether it runs.
    pub fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// How it ended by itself.
    pub fn ended(&mut self) -> ExitStatus {
        crate::processes::ended(&mut self.child)
    }

    /// Everything that it has logged and nobody has looked at ([`Served::said`]), and what was waited for.
    pub fn log(&self) -> String {
        let mut heard = self.heard.lock().unwrap();
        while let Ok(line) = self.lines.lock().unwrap().try_recv() {
            *heard += &format!("{line}\n");
        }
        heard.clone()
    }

    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// The standard input of the command, if it has one.
    pub fn tell(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    /// The next line of the command's standard output, if it has one.
    pub fn hear(&mut self) -> String {
        let mut line = String::new();
        self.output.as_mut().unwrap().read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// SIGHUP: it reads its configuration again, and replaces its custodians.
    pub fn reload(&self) {
        kill(Pid::from_raw(self.pid()), Signal::SIGHUP).unwrap();
    }

    /// SIGTERM, and how it ended.
    pub fn stop(mut self) -> ExitStatus {
        crate::processes::terminate(&mut self.child)
    }

    /// Closes the command's standard input, and how it ended.
    pub fn end_of_input(mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        crate::processes::ended(&mut self.child)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if self.child.stdin.take().is_some() {
            // A command of the caller's own ends what it started when its input ends.
            let deadline = Instant::now() + START_MAX;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status and body of a `GET` at the operator's listener.
pub fn ops_get(url: &str, path: &str) -> (u16, String) {
    let authority = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(authority).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}
