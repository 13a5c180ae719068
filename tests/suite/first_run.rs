//! `hsm-authd init` where there is no configuration: by options, by answers, over what an interruption left.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use hsm_authd::config::Config;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};

use crate::machine::{Machine, is_root, lines, refused, softhsm};
use crate::modules::TestModule;
use crate::token::{PIN, SO_PIN, TestToken, label};

/// Done, without a word of complaint: what it said.
fn done(output: &Output) -> Vec<String> {
    let said = lines(&output.stdout);
    assert!(output.status.success() && output.stderr.is_empty(), "{said:?} {:?}", lines(&output.stderr));
    said
}

fn mode_and_owner(path: &Path) -> (u32, u32, u32) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
}

#[test]
fn options_are_enough_and_a_second_run_changes_nothing() {
    let machine = Machine::new();
    let said = done(&machine.run(&machine.usual()));
    let (made, rest): (Vec<_>, Vec<_>) = said.iter().partition(|line| line.ends_with(": made"));
    assert_eq!(made.len(), 5 + 1 + 7, "four files, a folder, a token and seven keys: {said:?}");
    let rest: Vec<_> = rest.into_iter().map(|line| line.split(':').next().unwrap()).collect();
    assert_eq!(rest, ["token hsm-authd", "missing", "missing", "next"], "{said:?}");
    let config = machine.config();
    let next = format!(
        "next: hsm-authd keys csr --config {} --name \"$(hostname -f)\" > server.csr",
        config.display()
    );
    assert_eq!(*said.last().unwrap(), next);

    let root = if is_root() { 0 } else { machine.service };
    for (name, mode, group) in [
        ("hsm-authd.toml", 0o640, machine.group()),
        ("softhsm2.conf", 0o640, machine.group()),
        ("pin", 0o600, if is_root() { 0 } else { machine.group() }),
        ("so-pin", 0o600, if is_root() { 0 } else { machine.group() }),
    ] {
        assert_eq!(mode_and_owner(&machine.etc(name)), (mode, root, group), "{name}");
    }
    let written = machine.written();
    assert_eq!(written.len(), 4, "nothing is left over: {:?}", written.keys());
    let pins = ["pin", "so-pin"].map(|name| String::from_utf8(written[&machine.etc(name)].clone()).unwrap());
    assert!(pins[0] != pins[1] && pins.iter().all(|pin| pin.len() == 48), "two PINs at random");
    assert!(!said.iter().any(|line| pins.iter().any(|pin| line.contains(pin))), "a PIN was printed");
    machine.assert_owned("init");

    let config = Config::load(&config).unwrap();
    assert_eq!(config.server.listen, "0.0.0.0:8443".parse().unwrap());
    assert_eq!(config.clients[0].san, "urn:hsm-authd:client:bank-a");
    assert_eq!(config.hsm.folders, [machine.var("tokens")]);
    assert_eq!(config.hsm.pin_file, machine.etc("pin"));
    assert!(config.hsm.serves_tls && config.server.key.is_none());
    assert!(String::from_utf8_lossy(&written[&machine.config()]).contains("\npin_file = \"pin\"\n"));

    let state = machine.state();
    for arguments in [machine.usual(), vec!["init".to_owned()]] {
        let again = done(&machine.run(&arguments));
        assert!(
            again.iter().any(|line| line.starts_with("token") && line.ends_with(": already there")),
            "{again:?}"
        );
        assert!(!again.iter().any(|line| line.ends_with(": made")), "{again:?}");
        assert!(machine.written() == written && machine.state() == state, "the second run changed something");
    }
}

/// Also when an interrupted run has left one that is not finished.
#[test]
fn the_folder_of_the_configuration_is_made_too() {
    for is_left in [false, true] {
        let machine = Machine::new();
        fs::remove_dir(machine.etc("")).unwrap();
        let unfinished = machine.etc("").with_file_name("etc.new");
        if is_left {
            fs::create_dir(&unfinished).unwrap();
        }
        let said = done(&machine.run(&machine.usual()));
        assert!(said[0].ends_with("/etc: made") && !unfinished.exists(), "{said:?}");
        let root = if is_root() { 0 } else { machine.service };
        assert_eq!(mode_and_owner(&machine.etc("")), (0o750, root, machine.group()));
    }
}

/// Such as /root.
#[test]
fn a_folder_of_roots_own_is_left_to_it() {
    if !is_root() {
        return println!("passed over: nothing is root's own here");
    }
    let machine = Machine::new();
    fs::remove_dir(machine.etc("")).unwrap();
    fs::create_dir(machine.etc("")).unwrap();
    fs::set_permissions(machine.etc(""), fs::Permissions::from_mode(0o700)).unwrap();
    let said = refused(&machine.run(&machine.usual()));
    assert!(said.contains("could read no configuration there") && said.contains("chgrp"), "{said}");
    assert_eq!(mode_and_owner(&machine.etc("")), (0o700, 0, 0));
    assert_eq!(fs::read_dir(machine.etc("")).unwrap().count(), 0);
}

#[test]
fn what_is_missing_without_a_terminal_is_named_in_one_line() {
    let machine = Machine::new();
    for (arguments, missing) in [
        (&["init"][..], "--module, --token-label, --client"),
        (&["init", "--module", softhsm()], "--client"),
        (&["init", "--module", "/usr/lib/other.so", "--client", "bank-a"], "--token-label"),
    ] {
        let said = refused(&machine.run(arguments));
        assert!(said.contains(&format!("say {missing}, too")), "{said}");
    }
    let other =
        ["init", "--module", "/usr/lib/other.so", "--token-label", "x", "--client", "bank-a", "--store"];
    let store = machine.database();
    let said = refused(&machine.run(&[&other[..], &[store.to_str().unwrap()]].concat()));
    assert!(said.contains("etc/pin: there is no PIN") && said.contains("0600"), "{said}");
    assert!(machine.written().is_empty() && machine.state() == [machine.var("store")], "something was made");
}

#[test]
fn what_makes_no_configuration_makes_nothing() {
    let machine = Machine::new();
    for (option, value, words) in [
        ("--client", "bank-a,san=urn:x", "client bank-a is there twice"),
        ("--folder", "tokens", "must be absolute"),
        ("--store", "/hsm-authd.db", "needs a folder of its own"),
        ("--pin-file", machine.var("store/pin").to_str().unwrap(), "could open"),
    ] {
        let mut arguments = machine.usual();
        if option == "--store" {
            arguments.truncate(arguments.len() - 2);
        }
        arguments.extend([option.to_owned(), value.to_owned()]);
        let said = refused(&machine.run(&arguments));
        assert!(said.contains(words), "{option}: {said}");
        assert!(machine.written().is_empty(), "{option}: {:?}", machine.written().keys());
    }
}

#[test]
fn a_configuration_that_is_there_is_never_changed_and_not_contradicted() {
    let machine = Machine::initialised();
    let written = machine.written();
    for (option, value) in [
        ("--module", "/usr/lib/other.so"),
        ("--token-label", "another"),
        ("--pin-file", "other-pin"),
        ("--client", "bank-b"),
        ("--client", "bank-a,permissions=verify"),
        ("--certificate", "other.pem"),
        ("--key", "other.key"),
        ("--client-ca", "other-ca.pem"),
        ("--store", "/var/lib/other/store.db"),
        ("--listen", "127.0.0.1:1"),
        ("--module-arguments", "configdir='/etc'"),
        ("--environment", "SOFTHSM2_CONF=/etc/softhsm2.conf"),
        ("--folder", "/dev/usb"),
    ] {
        let said = refused(&machine.run(&["init", option, value]));
        assert!(said.contains(option) && said.contains("says otherwise"), "{said}");
    }
    assert!(refused(&machine.run(&["init", "--network"])).contains("--network"));
    // Whatever it says, it is somebody's.
    fs::write(machine.config(), "# somebody's own\n").unwrap();
    refused(&machine.run(&machine.usual()));
    assert_eq!(fs::read(machine.config()).unwrap(), b"# somebody's own\n");
    let mut others = machine.written();
    others.insert(machine.config(), written[&machine.config()].clone());
    assert!(others == written);
}

/// Before, after, and in the middle of each of its files.
#[test]
fn an_interrupted_run_goes_on_where_it_was() {
    let order = ["pin", "so-pin", "softhsm2.conf", "hsm-authd.toml"];
    for there in 0..=order.len() {
        let machine = Machine::new();
        let mut kept = Vec::new();
        for name in &order[..there] {
            let content = match *name {
                "pin" => "pin-that-was-made".to_owned(),
                "so-pin" => "so-pin-that-was-made".to_owned(),
                "softhsm2.conf" => {
                    format!("directories.tokendir = {}\nlog.level = ERROR\n", machine.var("tokens").display())
                }
                _ => {
                    let whole = Machine::initialised();
                    let text = fs::read_to_string(whole.config()).unwrap();
                    let folder =
                        |machine: &Machine| machine.etc("").parent().unwrap().to_str().unwrap().to_owned();
                    text.replace(&folder(&whole), &folder(&machine))
                }
            };
            fs::write(machine.etc(name), &content).unwrap();
            fs::set_permissions(machine.etc(name), fs::Permissions::from_mode(0o600)).unwrap();
            kept.push((machine.etc(name), content.into_bytes()));
        }
        if let Some(next) = order.get(there) {
            // Half of it, with what is in nobody's way.
            fs::write(machine.etc(&format!("{next}.new")), "half").unwrap();
        }
        if is_root() && there == order.len() {
            // The service reads these two.
            for name in ["softhsm2.conf", "hsm-authd.toml"] {
                chown(machine.etc(name), None, Some(machine.service)).unwrap();
                fs::set_permissions(machine.etc(name), fs::Permissions::from_mode(0o640)).unwrap();
            }
        }
        if is_root() && there == 3 {
            chown(machine.etc("softhsm2.conf"), None, Some(machine.service)).unwrap();
            fs::set_permissions(machine.etc("softhsm2.conf"), fs::Permissions::from_mode(0o640)).unwrap();
        }
        done(&machine.run(&machine.usual()));
        let written = machine.written();
        assert_eq!(written.len(), 4, "after {there} files: {:?}", written.keys());
        for (path, content) in kept {
            assert_eq!(written[&path], content, "{}", path.display());
        }
        let listed = machine.run(&["keys", "list"]);
        assert!(listed.status.success(), "{:?}", lines(&listed.stderr));
        machine.assert_owned("an interruption");
    }
}

/// The process is killed when the configuration is there and the token is not: it waits for a PIN that nobody writes.
#[test]
fn a_run_that_is_killed_before_the_token_is_made_goes_on() {
    let machine = Machine::new();
    let fifo = machine.etc("officers");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let usual = machine.usual();
    let mut command = machine.command(&usual);
    let mut child = command.arg("--so-pin-file").arg(&fifo).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while !machine.config().exists() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "no configuration");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    fs::remove_file(&fifo).unwrap();
    let so_pin = machine.etc("officers");
    fs::write(&so_pin, SO_PIN).unwrap();
    let pin = fs::read(machine.etc("pin")).unwrap();
    done(&machine.command(&usual).arg("--so-pin-file").arg(&so_pin).output().unwrap());
    assert_eq!(fs::read(machine.etc("pin")).unwrap(), pin);
    assert!(!machine.etc("so-pin").exists(), "one was given");
    machine.assert_owned("a kill");
}

#[test]
fn a_lost_pin_of_a_token_that_is_there_is_not_replaced() {
    let machine = Machine::initialised();
    for name in ["pin", "hsm-authd.toml"] {
        fs::remove_file(machine.etc(name)).unwrap();
    }
    let said = refused(&machine.run(&machine.usual()));
    assert!(said.contains("etc/pin: it is missing") && said.contains("put it back"), "{said}");
    assert!(!machine.etc("pin").exists() && !machine.config().exists());
    // The officer's is needed no more.
    fs::write(machine.etc("pin"), "0000").unwrap();
    fs::remove_file(machine.etc("so-pin")).unwrap();
    let output = machine.run(&machine.usual());
    assert!(String::from_utf8_lossy(&output.stderr).contains("refuses the user PIN"), "{output:?}");
    assert!(!machine.etc("so-pin").exists());
}

#[test]
fn root_writes_into_no_folder_that_others_can_rearrange() {
    if !is_root() {
        println!("passed over: only root could be led elsewhere");
        return;
    }
    for (owner, mode) in [(65_534, 0o750), (0, 0o770), (0, 0o757)] {
        let machine = Machine::new();
        chown(machine.etc(""), Some(owner), None).unwrap();
        fs::set_permissions(machine.etc(""), fs::Permissions::from_mode(mode)).unwrap();
        let said = refused(&machine.run(&machine.usual()));
        assert!(said.contains("root's alone"), "{said}");
        assert!(machine.written().is_empty(), "{owner} {mode:o}");
    }
    // Nor in the place of a link that leads elsewhere.
    let machine = Machine::new();
    let elsewhere = machine.var("elsewhere");
    symlink(&elsewhere, machine.etc("pin")).unwrap();
    let output = machine.run(&machine.usual());
    assert!(!output.status.success() && !elsewhere.exists());
    let machine = Machine::new();
    fs::remove_dir(machine.var("store")).unwrap();
    let said = refused(&machine.run(&machine.usual()));
    assert!(said.contains("install -d -m 0700 -o hsm-authd") && machine.written().is_empty(), "{said}");
}

/// A process whose standard input and error are a terminal, and who sits there.
struct Asked {
    child: Child,
    terminal: File,
    seen: String,
}

impl Asked {
    fn begin(machine: &Machine, arguments: &[&str]) -> Self {
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        let mut command = machine.command(arguments);
        let input: OwnedFd = slave.try_clone().unwrap();
        let child = command.stdin(input).stderr(Stdio::from(slave)).spawn().unwrap();
        Self { child, terminal: File::from(master), seen: String::new() }
    }

    /// Waits for a question.
    fn question(&mut self, words: &str) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !self.seen.contains(words) {
            assert!(Instant::now() < deadline, "{words} was not asked: {}", self.seen);
            assert!(self.read(), "{words} was not asked: {}", self.seen);
        }
        self.seen = self.seen.split_once(words).unwrap().1.to_owned();
    }

    /// What there is to read within a while; `false`: the other side is gone.
    fn read(&mut self) -> bool {
        use std::os::fd::AsFd;
        let mut watched = [PollFd::new(self.terminal.as_fd(), PollFlags::POLLIN)];
        if poll(&mut watched, PollTimeout::from(1_000_u16)).unwrap() == 0 {
            return true;
        }
        let mut buffer = [0; 4_096];
        match self.terminal.read(&mut buffer) {
            Ok(count) => self.seen += &String::from_utf8_lossy(&buffer[..count]),
            Err(_) => return false,
        }
        true
    }

    fn type_line(&mut self, line: &str) {
        self.terminal.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn shows_what_is_typed(&self) -> bool {
        tcgetattr(&self.terminal).unwrap().local_flags.contains(LocalFlags::ECHO)
    }

    /// How it ended, what it said, and what else was to be seen on the terminal.
    fn end(mut self) -> (Output, String) {
        let output = self.child.wait_with_output().unwrap();
        // Nobody else has the other end: it is read to its end.
        let mut rest = Vec::new();
        let _ = self.terminal.read_to_end(&mut rest);
        self.seen += &String::from_utf8_lossy(&rest);
        (output, self.seen)
    }
}

#[test]
fn on_a_terminal_it_asks_for_what_no_option_says() {
    let machine = Machine::new();
    let store = machine.database();
    let mut asked = Asked::begin(&machine, &["init", "--store", store.to_str().unwrap()]);
    asked.question(&format!("module of the HSM [{}]: ", softhsm()));
    asked.type_line("relative.so");
    asked.question("there is no such file");
    asked.type_line("");
    asked.question("label [hsm-authd]: ");
    asked.type_line("a bank's");
    asked.question("first clients, such as bank-a: ");
    asked.type_line("");
    asked.question("one at least");
    asked.type_line("Bank");
    asked.question("a name is 1 to 64 characters");
    asked.type_line(" bank-a  gateway,tenant=bank-a,permissions=deliver ");
    let (output, seen) = asked.end();
    assert!(output.status.success(), "{seen} {:?}", lines(&output.stdout));
    assert!(lines(&output.stdout).contains(&"token a bank's: made".to_owned()));
    let config = Config::load(&machine.config()).unwrap();
    assert_eq!(config.hsm.token_label, "a bank's");
    let names: Vec<_> = config.clients.iter().map(|client| client.name.as_str()).collect();
    assert_eq!(names, ["bank-a", "gateway"]);
    machine.assert_owned("answers");
}

/// An HSM of which nothing is known: the module of this run, SoftHSM by a name that is not its own.
fn unknown_hsm(machine: &Machine) -> (TestToken, Vec<String>) {
    let token = TestToken::bare();
    assert!(token.set_up(true).status.success());
    let chosen = TestModule::chosen();
    let module = match chosen {
        TestModule::SoftHsm => machine.etc("module.so"),
        _ => chosen.library(),
    };
    if chosen == TestModule::SoftHsm {
        fs::copy(softhsm(), &module).unwrap();
        fs::set_permissions(&module, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let folder = token.tokens().parent().unwrap().to_owned();
    let mut all = Vec::new();
    all.push(folder.clone());
    while let Some(path) = all.pop() {
        if is_root() {
            chown(&path, Some(machine.service), Some(machine.service)).unwrap();
        }
        if path.is_dir() {
            all.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (module, label, folder_text) = (text(&module), chosen.label(&label()), text(&folder));
    let store = text(&machine.database());
    let options = [
        ("--module", module),
        ("--token-label", label),
        ("--client", "bank-a".to_owned()),
        ("--store", store),
        ("--folder", folder_text),
    ];
    let mut arguments = vec!["init".to_owned()];
    arguments.extend(options.into_iter().flat_map(|(option, value)| [option.to_owned(), value]));
    if let Some((name, value)) = chosen.environment(&folder) {
        arguments.extend(["--environment".to_owned(), format!("{name}={value}")]);
    }
    if let Some(told) = chosen.arguments(&token.tokens()) {
        arguments.extend(["--module-arguments".to_owned(), told.into_string().unwrap()]);
    }
    (token, arguments)
}

#[test]
fn the_pin_of_another_hsm_is_asked_for_and_not_shown() {
    let machine = Machine::new();
    let (_token, arguments) = unknown_hsm(&machine);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let mut asked = Asked::begin(&machine, &arguments);
    asked.question("User PIN of the token");
    asked.question("(it is not shown): ");
    assert!(!asked.shows_what_is_typed());
    asked.type_line("a-slip");
    asked.question("once more: ");
    asked.type_line(PIN);
    asked.question("they are not the same");
    asked.question("(it is not shown): ");
    asked.type_line(PIN);
    asked.question("once more: ");
    asked.type_line(PIN);
    let (output, seen) = asked.end();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{seen}{said}");
    assert!(!seen.contains(PIN) && !said.contains(PIN) && !seen.contains("a-slip"), "{seen}{said}");
    assert_eq!(fs::read_to_string(machine.etc("pin")).unwrap(), PIN);
    assert_eq!(mode_and_owner(&machine.etc("pin")).0, 0o600);
    assert!(!machine.etc("so-pin").exists() && !machine.etc("softhsm2.conf").exists());
}

#[test]
fn who_leaves_at_a_question_leaves_nothing_behind() {
    let machine = Machine::new();
    let (_token, arguments) = unknown_hsm(&machine);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    // Ctrl-C where the PIN is asked for ends the line; Ctrl-D elsewhere ends the input.
    let mut asked = Asked::begin(&machine, &arguments);
    asked.question("(it is not shown): ");
    asked.terminal.write_all(b"0000\x03").unwrap();
    let status = asked.child.wait().unwrap();
    assert!(asked.shows_what_is_typed(), "the terminal is as it was");
    assert_eq!(status.code(), Some(1));
    asked.question("nothing was made");
    let mut asked = Asked::begin(&machine, &["init"]);
    asked.question("module of the HSM");
    asked.terminal.write_all(b"\x04").unwrap();
    asked.question("nothing was made");
    assert_eq!(asked.child.wait().unwrap().code(), Some(1));
    let module = usize::from(TestModule::chosen() == TestModule::SoftHsm);
    assert_eq!(machine.written().len(), module, "the module alone, where it is a copy");
    assert_eq!(machine.state(), [machine.var("store")]);
}

/// What the sample says with the places of a test is a configuration that `init` takes as it is.
#[test]
fn the_sample_is_ready_but_for_its_certificates() {
    let machine = Machine::new();
    let sample =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("softhsm-setup/hsm-authd.toml"));
    let place = |name: &str| machine.etc("").parent().unwrap().join(name).to_str().unwrap().to_owned();
    let sample = sample.unwrap().replace("/etc/hsm-authd", &place("etc"));
    let sample = sample.replace("/var/lib/hsm-authd", &place("var"));
    let sample = sample.replace("/usr/lib/softhsm/libsofthsm2.so", softhsm());
    let conf = format!("directories.tokendir = {}\nlog.level = ERROR\n", machine.var("tokens").display());
    for (name, text) in
        [("hsm-authd.toml", sample.as_str()), ("softhsm2.conf", &conf), ("pin", "1234"), ("so-pin", "5678")]
    {
        let from = machine.etc("from");
        fs::write(&from, text).unwrap();
        machine.install(&from, name, 0o640);
        fs::remove_file(from).unwrap();
    }
    let written = machine.written();
    let said = done(&machine.run(&["init"]));
    assert!(said.contains(&"key hsm-authd/import/v1: made".to_owned()), "{said:?}");
    assert!(machine.written() == written);
    let checked = machine.run(&["check"]);
    assert!(!checked.status.success(), "there is no certificate");
    let words: Vec<_> =
        lines(&checked.stderr).into_iter().filter(|line| line.starts_with("hsm-authd: ")).collect();
    assert!(words.len() == 1 && words[0].contains("no such file"), "{words:?}");
}

#[test]
fn one_run_at_a_time_makes_files() {
    let machine = Machine::new();
    let folder = File::open(machine.etc("")).unwrap();
    folder.lock().unwrap();
    let said = refused(&machine.run(&machine.usual()));
    assert!(said.contains("another init is at work") && machine.written().is_empty(), "{said}");
    folder.unlock().unwrap();
    done(&machine.run(&machine.usual()));
}

/// A folder of tokens that is gone is made anew only where no database knows of one.
#[test]
fn beside_a_database_no_folder_for_another_token_is_made() {
    let machine = Machine::initialised();
    let tokens = machine.var("tokens");
    fs::rename(&tokens, machine.var("away")).unwrap();
    fs::write(machine.database(), "somebody's").unwrap();
    if is_root() {
        chown(machine.database(), Some(machine.service), Some(machine.service)).unwrap();
    }
    let said = refused(&machine.run(&["init"]));
    assert!(said.contains("move the database away") && said.contains("var/tokens"), "{said}");
    assert!(!tokens.exists());
    fs::remove_file(machine.database()).unwrap();
    done(&machine.run(&["init"]));
    assert!(tokens.is_dir());
    machine.assert_owned("a folder made anew");
}
