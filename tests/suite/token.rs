//! A token of a test's own, made by the real `hsm-authd token-setup`, and custodians on it.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use hsm_authd::custodian::token::Setup;
use hsm_authd::domain::system_key::NewestKeys;
use hsm_authd::hsm::messages::{
    BUILD_ID, Boot, Call, Fault, Greeting, Hello, Reply, Request, Response, Tired, decode, encode,
    frame_length,
};
use hsm_authd::sandbox::Reach;
use serde::{Serialize, de::DeserializeOwned};

use crate::daemon::Daemon;
use crate::modules::TestModule;

pub const BINARY: &str = env!("CARGO_BIN_EXE_hsm-authd");
pub const PIN: &str = "user-pin-5501";
pub const SO_PIN: &str = "officer-pin-7702";

/// What tokens of tests are labelled.
pub fn label() -> String {
    TestModule::chosen().label("hsm-authd test")
}

/// A folder with a module's configuration, PIN files and room for tokens; removed on drop.
pub struct TestToken {
    folder: PathBuf,
    tokens: PathBuf,
    pub boot: Boot,
    /// Variables for what is started, besides the one that names the token's configuration.
    pub environment: Vec<(&'static str, String)>,
}

impl TestToken {
    /// The token of a daemon that has ended, and leaves its folder to the test.
    pub fn of(daemon: &Daemon) -> Self {
        let folder = daemon.dir();
        let tokens = folder.join("token");
        Self::within(folder, tokens, crate::prepared::DEV_LABEL)
    }

    fn within(folder: PathBuf, tokens: PathBuf, label: &str) -> Self {
        let module = TestModule::chosen();
        let boot = Boot {
            module: module.library(),
            module_arguments: module.arguments(&tokens),
            token_label: module.label(label),
            pin_file: folder.join("pin"),
            pin_handed: false,
            pin_cut_off: None,
            secrets_cached_max: 100,
            in_use: false,
            unwraps_max: u64::MAX,
            memory_bytes_max: u64::MAX,
            shared_keys: false,
            // Its configuration, its tokens, and what a fault module shares with the test; and the module behind that one.
            reach: Reach {
                writes: vec![folder.clone()],
                reads: vec![TestModule::chosen().library().parent().unwrap().to_owned()],
                ..Reach::default()
            },
        };
        Self { folder, tokens, boot, environment: Vec::new() }
    }

    /// A folder without a token.
    pub fn bare() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // In memory if possible: SoftHSM rewrites its files dozens of times for each key.
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = base.join(format!("hsm-authd-token-{}-{number}", std::process::id()));
        fs::create_dir_all(folder.join("tokens")).unwrap();
        let tokens = folder.join("tokens");
        TestModule::chosen().configure(&folder, &tokens);
        fs::write(folder.join("pin"), format!("{PIN}\n")).unwrap();
        fs::write(folder.join("so-pin"), SO_PIN).unwrap();
        Self::within(folder, tokens, "hsm-authd test")
    }

    /// A token with its system keys, which are those of every other such token.
    pub fn new() -> Self {
        let token = Self::bare();
        crate::prepared::write_token(&token.tokens());
        token
    }

    /// A token with system keys of its own.
    pub fn made() -> Self {
        let token = Self::bare();
        let output = token.set_up(true);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        token
    }

    /// Runs `hsm-authd token-setup`, with the security officer's PIN or without.
    pub fn set_up(&self, with_so_pin: bool) -> Output {
        let so_pin_file = with_so_pin.then(|| self.folder.join("so-pin"));
        self.set_up_with(&Setup {
            boot: self.boot.clone(),
            needed: Vec::new(),
            so_pin_file,
            so_pin_handed: false,
            token_only: false,
            serves_tls: false,
        })
    }

    pub fn set_up_with(&self, setup: &Setup) -> Output {
        self.begin(setup).wait_with_output().unwrap()
    }

    /// The same without the security officer's PIN, under way.
    pub fn begin_set_up(&self) -> Child {
        self.begin(&Setup {
            boot: self.boot.clone(),
            needed: Vec::new(),
            so_pin_file: None,
            so_pin_handed: false,
            token_only: false,
            serves_tls: false,
        })
    }

    fn begin(&self, setup: &Setup) -> Child {
        if setup.so_pin_file.is_some() {
            TestModule::chosen().make_database(&self.tokens, &setup.boot.pin_file);
        }
        let mut child = self
            .command(BINARY)
            .args(["token-setup", "--supervisor", &std::process::id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&encode(setup).unwrap()).unwrap();
        child
    }

    /// A command in the environment that names this token's configuration.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.envs(TestModule::chosen().environment(&self.folder));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Writes a file beside the token.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Where the module keeps its tokens.
    pub fn tokens(&self) -> PathBuf {
        self.tokens.clone()
    }

    /// Hides the tokens from the module, as a pulled cable would.
    pub fn pull(&self) {
        fs::rename(&self.tokens, self.folder.join("pulled")).unwrap();
    }

    /// A custodian that has booted; panics with its last words if it did not.
    pub fn custodian(&self) -> Custodian {
        let mut custodian = self.spawn();
        custodian.send(&self.boot);
        match custodian.hello() {
            Some(hello) => {
                assert_eq!(hello.build_id, BUILD_ID);
                assert!(
                    hello.token.contains(&self.boot.token_label)
                        && hello.token.contains(TestModule::chosen().model()),
                    "{}",
                    hello.token
                );
                custodian
            }
            None => panic!("{:?}", custodian.end()),
        }
    }

    /// A custodian process to which nothing was said yet.
    pub fn spawn(&self) -> Custodian {
        let supervisor = std::process::id().to_string();
        self.spawn_as(BINARY, &["custodian", "--supervisor", &supervisor])
    }

    /// The same, started by another program.
    pub fn spawn_as(&self, program: &str, arguments: &[&str]) -> Custodian {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let child = self
            .command(program)
            .args(arguments)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Custodian { child, stream: Some(ours), calls: 0, tired: None }
    }

    /// Boots a custodian that is expected to refuse: its exit code and standard error.
    pub fn refused(&self, boot: &Boot) -> (i32, String) {
        let mut custodian = self.spawn();
        custodian.send(boot);
        assert!(custodian.hello().is_none());
        let (status, words) = custodian.end();
        (status.code().unwrap(), words)
    }
}

impl Drop for TestToken {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A custodian process and our end of its socket.
pub struct Custodian {
    child: Child,
    stream: Option<UnixStream>,
    calls: u64,
    /// Whether it has asked to be replaced, the last time that it answered.
    pub tired: Option<Tired>,
}

impl Custodian {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Our end of the socket, for somebody else to speak; the process lives as long as this. Its words are dropped: of a
    /// pipe that nobody reads there is an end.
    pub fn take_stream(&mut self) -> UnixStream {
        let mut words = self.child.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut words, &mut std::io::sink()));
        self.stream.take().unwrap()
    }

    pub fn send(&mut self, message: &impl Serialize) {
        self.send_bytes(&encode(message).unwrap());
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// The next message; `None` if it hung up.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Option<T> {
        let stream = self.stream.as_mut().unwrap();
        let mut header = [0; 4];
        match stream.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("{error}"),
        }
        let mut body = vec![0; frame_length(header).unwrap()];
        stream.read_exact(&mut body).unwrap();
        Some(decode(&body).unwrap())
    }

    /// What it greets with; `None`: it says why it does not come up, or hangs up.
    pub fn hello(&mut self) -> Option<Hello> {
        loop {
            match self.receive::<Greeting>() {
                Some(Greeting::Starting(_)) => {}
                Some(Greeting::Up(hello)) => return Some(hello),
                Some(Greeting::Down(_)) | None => return None,
            }
        }
    }

    /// Asks, and tells of no keys.
    pub fn call(&mut self, request: Request) -> Result<Response, Fault> {
        self.call_knowing(NewestKeys::default(), request).0
    }

    /// Asks as a front that knows of these keys; with the reply come those that it is told of.
    pub fn call_knowing(
        &mut self,
        newest: NewestKeys,
        request: Request,
    ) -> (Result<Response, Fault>, Option<NewestKeys>) {
        self.calls += 1;
        self.send(&Call { repeated: false, id: self.calls, newest, request });
        let reply: Reply = self.receive().expect("a reply");
        assert_eq!(reply.id, self.calls);
        self.tired = reply.tired;
        (reply.result, reply.newest)
    }

    /// Hangs up and waits: how it ended, and all it wrote to standard error.
    pub fn end(self) -> (ExitStatus, String) {
        let (status, words) = self.end_anyhow();
        assert!(!words.contains("panicked"), "{words}");
        (status, words)
    }

    /// The same of one that may have panicked.
    pub fn end_anyhow(mut self) -> (ExitStatus, String) {
        drop(self.stream.take());
        let mut words = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        let mut output = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut output).unwrap();
        assert_eq!(output, "", "standard output is nobody's");
        (self.child.wait().unwrap(), words)
    }
}

impl Drop for Custodian {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
