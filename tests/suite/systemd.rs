//! What systemd hands over and hears, with the test in its place: sockets, states, signs of life. The real one:
//! `make test-service`.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{Connection, Http};
use crate::daemon::{Daemon, enrol_hotp, rfc_code};
use crate::processes::children;
use crate::scratch::Scratch;
use crate::served::{Served, configuration, ops_get, section};
use crate::token::BINARY;

/// EX_CONFIG, as in the unit's `RestartPreventExitStatus=`.
const NEEDS_OPERATOR: Option<i32> = Some(78);
/// Longer than anything that is waited for takes.
const HEARD_WITHIN: Duration = Duration::from_secs(30);

fn listener(address: &str) -> TcpListener {
    TcpListener::bind((address, 0)).unwrap()
}

/// `serve` with these two sockets, by these names, and whom it is to notify.
fn command(config: &Path, sockets: [&TcpListener; 2], names: &str, notify: Option<&Path>) -> Command {
    let [first, second] = sockets.map(|socket| Stdio::from(OwnedFd::from(socket.try_clone().unwrap())));
    let mut command = Command::new("sh");
    // The process that is handed them has to be the one whose number stands there.
    let script = "exec 3<&0 4<&1 0</dev/null 1>/dev/null; LISTEN_PID=$$; export LISTEN_PID; exec \"$@\"";
    command.args(["-c", script, "sh", BINARY, "serve", "--config"]).arg(config);
    command.stdin(first).stdout(second).env("LISTEN_FDS", "2").env("LISTEN_FDNAMES", names);
    command.envs(notify.map(|path| ("NOTIFY_SOCKET", path)));
    command
}

/// A stopped daemon's folder with a configuration whose addresses nobody can listen on.
fn stopped() -> (Daemon, PathBuf) {
    let mut daemon = Daemon::start();
    assert!(daemon.stop().success());
    let config = configuration(&daemon, "handed-over.toml", |config| {
        section(config, "server").insert("listen".into(), "192.0.2.1:443".into());
        section(config, "ops").insert("listen".into(), "127.0.0.1:1".into());
    });
    (daemon, config)
}

struct Heard {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Heard {
    fn at(daemon: &Daemon) -> Self {
        let path = daemon.dir().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self { socket, path }
    }

    /// The next message within this time.
    fn next(&self, within: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(within)).unwrap();
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).ok()?;
        Some(String::from_utf8(message[..length].to_vec()).unwrap())
    }

    /// The next message with this line.
    fn until(&self, line: &str) -> String {
        let deadline = Instant::now() + HEARD_WITHIN;
        while Instant::now() < deadline {
            match self.next(HEARD_WITHIN) {
                Some(message) if message.lines().any(|one| one.starts_with(line)) => return message,
                _ => {}
            }
        }
        panic!("{line} was not heard");
    }

    fn forget(&self) {
        while self.next(Duration::from_millis(1)).is_some() {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sockets_are_taken_over_and_every_state_is_told() {
    let (daemon, config) = stopped();
    let (api, ops) = (listener("127.0.0.1"), listener("127.0.0.1"));
    let heard = Heard::at(&daemon);
    let served = Served::start_by(command(&config, [&ops, &api], "ops:api", Some(&heard.path)), &config);
    heard.until("READY=1");
    heard.until("STATUS=serving");
    let url = format!("https://{}", api.local_addr().unwrap());
    let bank = Connection::open(&url, &daemon.identity("bank-a"), Http::Two).await.unwrap();
    let id = enrol_hotp(&bank, "acct-1").await;
    let verify = async |counter| {
        let body = serde_json::json!({ "otp": rfc_code(counter) });
        bank.post(&format!("/v1/credentials/{id}/verify"), &body).await.unwrap().status.as_u16()
    };
    assert_eq!(verify(0).await, 200);
    assert_eq!(ops_get(&format!("http://{}", ops.local_addr().unwrap()), "/readyz").0, 200);

    let supervisor = served.pid();
    let [front] = children(supervisor, "front")[..] else { panic!() };
    for child in std::iter::once(front).chain(children(supervisor, "custodian")) {
        let environment = std::fs::read_to_string(format!("/proc/{child}/environ")).unwrap();
        for variable in ["LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_"] {
            assert!(!environment.contains(variable), "{child}: {variable}");
        }
        // Whoever keeps a listener open keeps callers waiting when the service has ended.
        let open = std::fs::read_dir(format!("/proc/{child}/fd")).unwrap().count();
        assert!(child == front || open < 16, "{open}");
    }

    // A reload, as systemd wants to hear of it.
    heard.forget();
    kill(Pid::from_raw(supervisor), Signal::SIGHUP).unwrap();
    let reloading = heard.until("RELOADING=1");
    let since_us = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap();
    assert!(since_us.parse::<u64>().unwrap() > 0);
    heard.until("READY=1");

    // Signs of life, as long as it works, and none while it does not.
    heard.until("WATCHDOG=1");
    heard.until("WATCHDOG=1");
    kill(Pid::from_raw(front), Signal::SIGSTOP).unwrap();
    heard.forget();
    // Of the moment before it stopped.
    let silence = Duration::from_secs(3);
    let last = heard.next(silence);
    assert!(last.is_none() || heard.next(silence).is_none(), "of a service that stands still");
    kill(Pid::from_raw(front), Signal::SIGCONT).unwrap();
    heard.until("WATCHDOG=1");
    assert_eq!(verify(1).await, 200);

    assert!(served.stop().success());
    heard.until("STOPPING=1");
}

/// `systemctl reload` while the service waits for its HSM, or ends.
#[test]
fn a_reload_of_what_does_not_serve_tells_systemd_nothing() {
    let (daemon, config) = stopped();
    let token = daemon.dir().join("token");
    let away = daemon.dir().join("away");
    std::fs::rename(&token, &away).unwrap();
    std::fs::create_dir(&token).unwrap();
    let heard = Heard::at(&daemon);
    let (api, ops) = (listener("127.0.0.1"), listener("127.0.0.1"));
    let mut child = command(&config, [&api, &ops], "api:ops", Some(&heard.path)).spawn().unwrap();
    let supervisor = Pid::from_raw(child.id() as i32);
    // It lives, and is not ready.
    heard.until("WATCHDOG=1");
    kill(supervisor, Signal::SIGHUP).unwrap();
    for _ in 0..4 {
        let message = heard.next(HEARD_WITHIN).unwrap();
        assert!(!message.contains("READY=1") && !message.contains("RELOADING=1"), "{message}");
    }
    kill(supervisor, Signal::SIGTERM).unwrap();
    heard.until("STOPPING=1");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    while let Some(message) = heard.next(Duration::from_millis(1)) {
        assert!(!message.contains("READY=1"), "{message}");
    }
}

/// What systemd thinks of the unit, and of it with each of the drop-ins: the figures of the documents.
#[test]
fn the_unit_is_as_closed_as_is_said() {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    let mut exposures = Vec::new();
    for variant in [None, Some("usb-hsm"), Some("pci-hsm"), Some("pcscd"), Some("network-hsm")] {
        let scratch = Scratch::new();
        std::fs::copy(units.join("hsm-authd.service"), scratch.path().join("hsm-authd.service")).unwrap();
        if let Some(variant) = variant {
            let drop_ins = scratch.path().join("hsm-authd.service.d");
            std::fs::create_dir(&drop_ins).unwrap();
            let name = format!("{variant}.conf");
            std::fs::copy(units.join("drop-ins").join(&name), drop_ins.join(&name)).unwrap();
        }
        let mut analyze = Command::new("systemd-analyze");
        analyze
            .args(["security", "--offline=yes", "--no-pager"])
            .arg(scratch.path().join("hsm-authd.service"));
        let output = analyze.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        // A line that systemd does not understand is one that it does not keep to.
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{variant:?}");
        let overall = said.lines().find_map(|line| line.split_once("exposure level for hsm-authd.service: "));
        let exposure = overall.unwrap().1.split(' ').next().unwrap().to_owned();
        println!("{}: {exposure}", variant.unwrap_or("as it is"));
        exposures.push(exposure);
    }
    assert_eq!(exposures, ["0.2", "0.4", "0.4", "0.2", "1.0"]);
}

#[test]
fn the_unit_is_not_started_again_with_what_an_operator_has_to_mend() {
    let unit =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/hsm-authd.service"));
    let unit = unit.unwrap();
    let status = unit.lines().find_map(|line| line.strip_prefix("RestartPreventExitStatus="));
    assert_eq!(status.and_then(|status| status.parse().ok()), NEEDS_OPERATOR);
    // With anything else it is, for as long as it takes.
    for line in ["Restart=on-failure", "StartLimitIntervalSec=0", "TimeoutStartSec=infinity"] {
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
}

#[test]
fn what_is_handed_over_wrongly_is_refused_and_not_tried_again() {
    let (_daemon, config) = stopped();
    let (api, ops) = (listener("127.0.0.1"), listener("127.0.0.1"));
    let anywhere = listener("0.0.0.0");
    for (sockets, names, words) in [
        ([&api, &ops], "api:metrics", "a socket \"metrics\": FileDescriptorName= must be api or ops"),
        ([&api, &ops], "api:api", "two sockets api"),
        ([&api, &anywhere], "api:ops", "it must be a loopback address"),
    ] {
        let output = command(&config, sockets, names, None).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), NEEDS_OPERATOR, "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[test]
fn what_an_operator_has_to_mend_first_is_told_apart() {
    let (daemon, config) = stopped();
    let serve =
        |config: &Path| Command::new(BINARY).args(["serve", "--config"]).arg(config).output().unwrap();
    assert_eq!(serve(Path::new("/nowhere/hsm-authd.toml")).status.code(), NEEDS_OPERATOR);
    // Which may be free the next time.
    assert_eq!(serve(&config).status.code(), Some(1));
    let wrong = configuration(&daemon, "wrong-pin.toml", |config| {
        std::fs::write(daemon.dir().join("wrong-pin"), "98765432").unwrap();
        section(config, "hsm").insert("pin_file".into(), "wrong-pin".into());
    });
    let output = serve(&wrong);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), NEEDS_OPERATOR, "{said}");
    assert!(said.contains("PIN"), "{said}");
}
