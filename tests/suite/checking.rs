//! `hsm-authd check` with everything right, and with each thing broken once: what it says of it, and how it ends.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, SystemTime};

use hsm_authd::dev::pki::{AlternativeName, Authority, Purpose, Validity};

use crate::machine::{Machine, SERVICE, is_root, lines};
use crate::served::{Served, free_port};
use crate::token::BINARY;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A whole installation, on a machine whose other programs say what the test says.
struct Checked {
    machine: Machine,
    programs: PathBuf,
}

impl Checked {
    fn new() -> Self {
        let machine = Machine::complete();
        for from in ["0.0.0.0:8443", "127.0.0.1:8444"] {
            machine.configure(&format!("\"{from}\""), &format!("\"127.0.0.1:{}\"", free_port()));
        }
        let programs = machine.var("").parent().unwrap().join("programs");
        fs::create_dir(&programs).unwrap();
        let checked = Self { machine, programs };
        checked.program("timedatectl", "echo yes");
        checked.program("systemctl", "exit 1");
        checked
    }

    /// Another program of the machine.
    fn program(&self, name: &str, script: &str) {
        let path = self.programs.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn check(&self) -> Output {
        let path = format!("{}:{}", self.programs.display(), std::env::var("PATH").unwrap());
        self.machine.command(&["check"]).env("PATH", path).output().unwrap()
    }

    /// What is fine or worth knowing, of a check that found nothing to mend.
    fn fine(&self) -> Vec<String> {
        let output = self.check();
        assert!(output.status.success() && output.stderr.is_empty(), "{:?}", lines(&output.stderr));
        let said = lines(&output.stdout);
        assert!(said.iter().all(|line| line.starts_with("ok  ") || line.starts_with("--  ")), "{said:?}");
        said
    }

    /// The one thing that is to be mended. The rest is looked at as well.
    fn wrong(&self, words: &[&str]) {
        let output = self.check();
        let said = lines(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {said:?}");
        assert_eq!(said.len(), 1, "{words:?}: {said:?}");
        assert!(said[0].starts_with("hsm-authd: "), "{said:?}");
        assert!(words.iter().all(|word| said[0].contains(word)), "{words:?}: {said:?}");
        assert!(lines(&output.stdout).iter().any(|line| line.starts_with("ok  sandbox")), "it ended early");
    }

    fn noted(&self, words: &[&str]) {
        let said = self.fine();
        let is_it = |line: &&String| line.starts_with("--  ") && words.iter().all(|word| line.contains(word));
        assert_eq!(said.iter().filter(is_it).count(), 1, "{words:?}: {said:?}");
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Breaks something, which is to be found, and puts it right again.
fn with_mode(path: &Path, mode: u32, found: impl FnOnce()) {
    let before = fs::metadata(path).unwrap().permissions();
    chmod(path, mode);
    found();
    fs::set_permissions(path, before).unwrap();
}

#[test]
fn everything_that_is_looked_at_is_listed() {
    let checked = Checked::new();
    let said = checked.fine();
    for line in [
        "configuration: well-formed; clients: 1",
        "user: ",
        "private files: ",
        "store: its folder is there",
        "store: ",
        "hsm.folders: ",
        "the server's certificate: usable, days left: ",
        "client authorities: usable, days left: ",
        "signers: ",
        "clock: it is synchronised",
        "server.listen: 127.0.0.1:",
        "ops.listen: 127.0.0.1:",
        "sandbox: ",
        "HSM: ",
    ] {
        assert!(said.iter().any(|found| found.starts_with(&format!("ok  {line}"))), "{line}: {said:?}");
    }
    let hsm: Vec<_> = said.iter().filter(|line| line.starts_with("ok  HSM: ")).collect();
    assert!(hsm.len() == 2 && hsm[0].contains("logged in") && hsm[1].contains("mechanisms"), "{hsm:?}");
    let state = checked.machine.state();
    checked.fine();
    assert_eq!(checked.machine.state(), state, "it leaves nothing behind");
}

#[test]
fn who_may_read_and_change_what_is_said() {
    let checked = Checked::new();
    let (machine, etc) = (&checked.machine, |name: &str| checked.machine.etc(name));
    for name in ["pin", "server.key"] {
        with_mode(&etc(name), 0o644, || checked.wrong(&[name, "everybody may read it", "chmod o="]));
    }
    with_mode(&etc("hsm-authd.toml"), 0o644, || checked.noted(&["hsm-authd.toml", "everybody may read it"]));
    if !is_root() {
        return;
    }
    for name in ["hsm-authd.toml", "pin", "server.pem", "client-ca.pem"] {
        chown(etc(name), Some(SERVICE), Some(SERVICE)).unwrap();
        if name == "hsm-authd.toml" {
            checked.wrong(&[name, "may change it", "chown root"]);
        }
        chown(etc(name), Some(0), Some(SERVICE)).unwrap();
        with_mode(&etc(name), 0o660, || checked.wrong(&[name, "may change it", "chmod go-w"]));
    }
    // Several at once are named each.
    for name in ["hsm-authd.toml", "server.pem"] {
        chown(etc(name), Some(SERVICE), None).unwrap();
    }
    let said = lines(&checked.check().stderr);
    assert!(said.len() == 2 && said.iter().all(|line| line.contains("may change it")), "{said:?}");
    for name in ["hsm-authd.toml", "server.pem"] {
        chown(etc(name), Some(0), None).unwrap();
    }
    with_mode(&etc(""), 0o770, || checked.wrong(&["etc", "may change it"]));
    for name in ["hsm-authd.toml", "server.pem", "client-ca.pem"] {
        with_mode(&etc(name), 0o600, || checked.wrong(&[name, "may not read it", "chmod g+r"]));
    }
    // A private key may come from systemd, as the PIN does.
    with_mode(&etc("server.key"), 0o600, || checked.noted(&["server.key", "LoadCredential=server.key:"]));
    // As whoever else: root alone can be the service's user.
    for path in machine.state().into_iter().chain([machine.var("")]) {
        chown(path, Some(0), Some(0)).unwrap();
    }
    checked.noted(&["user: root owns", "chown -R"]);
}

#[test]
fn whose_the_state_is_and_whether_there_is_room() {
    let checked = Checked::new();
    let machine = &checked.machine;
    with_mode(&machine.var("store"), 0o750, || {
        checked.wrong(&["store", "others may look into it", "chmod 0700"])
    });
    with_mode(&machine.var("tokens"), 0o750, || checked.wrong(&["tokens", "others may look into it"]));
    let keys = machine.database().with_added_extension("keys");
    with_mode(&keys, 0o640, || checked.wrong(&["hsm-authd.db.keys", "others may use it", "chmod go="]));
    if !is_root() {
        return;
    }
    chown(&keys, Some(0), None).unwrap();
    checked.wrong(&["hsm-authd.db.keys", "it is not", "chown 61234"]);
    chown(&keys, Some(SERVICE), None).unwrap();
    // Of the token nobody but its user can read it.
    let token = machine.state().into_iter().find(|path| path.ends_with("generation")).unwrap();
    chown(&token, Some(0), Some(0)).unwrap();
    let output = checked.check();
    let said = lines(&output.stderr);
    assert!(
        !output.status.success() && said[0].contains("generation") && said[0].contains("chown -R 61234"),
        "{said:?}"
    );
    chown(&token, Some(SERVICE), Some(SERVICE)).unwrap();
    machine.configure("folders = [", "folders = [\"/dev/nowhere\", ");
    checked.noted(&["/dev/nowhere", "not there"]);
    machine.configure("/dev/nowhere", "/dev/mem");
    if Path::new("/dev/mem").exists() {
        checked.wrong(&["/dev/mem", "may not use it", "SupplementaryGroups="]);
    }
    machine.configure("\"/dev/mem\", ", "");

    // What is wrong before hides nothing.
    chmod(&machine.etc("pin"), 0o644);
    chmod(&machine.var("store"), 0o750);
    let output = checked.check();
    assert_eq!(lines(&output.stderr).len(), 2);
    assert!(!String::from_utf8_lossy(&output.stdout).contains("store: its folder"), "{output:?}");
    chmod(&machine.etc("pin"), 0o600);
    chmod(&machine.var("store"), 0o700);

    // A small disk, for this command alone.
    for (mebibytes, is_wrong) in [(16, true), (256, false)] {
        let script = "mount -t tmpfs -o size=$1m,mode=0700,uid=$2,gid=$2 tmpfs \"$3\" && exec \"$4\" check --config \"$5\"";
        let output = Command::new("unshare")
            .args(["-m", "sh", "-c", script, "small", &mebibytes.to_string(), &SERVICE.to_string()])
            .args([&machine.var("store"), Path::new(BINARY), &machine.config()])
            .output()
            .unwrap();
        let (said, wrong) = (lines(&output.stdout), lines(&output.stderr));
        match is_wrong {
            true => assert!(wrong.len() == 1 && wrong[0].contains("MiB are free: make room"), "{wrong:?}"),
            false => {
                assert!(wrong.is_empty(), "{wrong:?}");
                assert!(
                    said.iter().any(|line| line.starts_with("--  store: 25") && line.contains("make room")),
                    "{said:?}"
                );
            }
        }
        assert_eq!(output.status.success(), !is_wrong);
    }
}

#[test]
fn certificates_that_end_soon_or_have_ended_are_named() {
    let checked = Checked::new();
    let now = SystemTime::now();
    let authority =
        Authority::generate("an authority", Validity { not_before: now - DAY, not_after: now + 99 * DAY });
    let authority = authority.unwrap();
    let names = [AlternativeName::Dns("localhost".to_owned())];
    let install = |not_after| {
        let life = Validity { not_before: now - 2 * DAY, not_after };
        let issued = authority.issue(Purpose::Server, "server", &names, life).unwrap();
        for (name, text) in [
            ("server.pem", issued.certificate_pem().unwrap()),
            ("server.key", issued.key_pem().unwrap().to_string()),
        ] {
            fs::write(checked.machine.etc(name), text).unwrap();
        }
    };
    install(now + 5 * DAY + DAY / 2);
    checked.noted(&["the server's certificate", "days left: 5", "renew"]);
    install(now - DAY);
    checked.wrong(&["the server's certificate", "out of date"]);
    install(now + 50 * DAY);
    checked.fine();
    fs::remove_file(checked.machine.etc("server.pem")).unwrap();
    checked.wrong(&["server.pem"]);
}

#[test]
fn the_clock_is_held_against_the_kernel_and_the_database() {
    let checked = Checked::new();
    let machine = &checked.machine;
    checked.program("timedatectl", "echo no");
    checked.noted(&["clock: it is not synchronised", "chrony"]);
    checked.program("timedatectl", "exit 1");
    checked.noted(&["clock: whether it is synchronised is not known"]);
    // One that does not answer keeps nobody waiting for long.
    checked.program("timedatectl", "exec sleep 1000");
    checked.noted(&["clock: whether it is synchronised is not known"]);
    checked.program("timedatectl", "echo yes");

    if is_root() {
        chown(machine.etc("pin"), None, Some(SERVICE)).unwrap();
        chmod(&machine.etc("pin"), 0o640);
    }
    serve(machine).stop();
    assert!(checked.fine().contains(&"ok  clock: not behind the newest entry of the database".to_owned()));
    let database = rusqlite::Connection::open(machine.database()).unwrap();
    let later = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() + Duration::from_secs(600);
    let changed =
        database.execute("UPDATE log_head SET last_unix_ms = ?1", [later.as_millis() as i64]).unwrap();
    assert_eq!(changed, 1);
    database.close().unwrap();
    checked.wrong(&["behind the newest entry", "--accept-clock"]);
}

fn serve(machine: &Machine) -> Served {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(BINARY);
    command.args(["serve", "--config"]).arg(machine.config()).current_dir("/");
    if is_root() {
        command.uid(SERVICE).gid(SERVICE);
    }
    Served::start_by(command, &machine.config())
}

#[test]
fn listeners_are_free_or_somebodys() {
    let checked = Checked::new();
    let machine = &checked.machine;
    let said = checked.fine();
    let address =
        said.iter().find_map(|line| line.strip_prefix("ok  server.listen: ")?.strip_suffix(" is free"));
    let address = address.unwrap().to_owned();
    let taken = TcpListener::bind(&address).unwrap();
    checked.wrong(&["server.listen", "another program has", "ss -ltnp"]);
    // It is systemd's, which will hand it over; as `systemctl show` says it.
    let active = format!(
        "case $* in *ops*) exit 1 ;; esac; echo ActiveState=active; echo 'Listen={address} (Stream)'"
    );
    checked.program("systemctl", &active);
    assert!(checked.fine().iter().any(|line| line.contains("hsm-authd.socket listens")));
    drop(taken);
    checked.noted(&["server.listen", "is free", "hsm-authd.socket listens, on"]);
    checked.program("systemctl", &active.replace("=active", "=inactive"));
    checked.fine();

    if is_root() {
        chown(machine.etc("pin"), None, Some(SERVICE)).unwrap();
        chmod(&machine.etc("pin"), 0o640);
    }
    let served = serve(machine);
    assert_eq!(checked.fine().iter().filter(|line| line.contains("the service runs, and has")).count(), 2);
    served.stop();
    machine.configure(&format!("\"{address}\""), "\"192.0.2.1:8443\"");
    checked.wrong(&["server.listen", "192.0.2.1 is no address of this machine"]);
    if is_root() {
        machine.configure("192.0.2.1:8443", "127.0.0.1:443");
        let is_low =
            fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap().trim() != "0";
        if is_low {
            checked.wrong(&["server.listen", "only root opens port 443", "hsm-authd.socket"]);
        }
    }
}

#[test]
fn what_is_wrong_with_the_hsm_is_said_after_the_rest() {
    let checked = Checked::new();
    checked.machine.configure("token_label = \"hsm-authd\"", "token_label = \"another\"");
    checked.wrong(&["no token is labelled another"]);
}
