//! Operators' commands that root starts are the service's user's: what they leave, and what they are while they run.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::machine::{Machine, SERVICE, is_root, lines, refused};
use crate::served::Served;
use crate::token::BINARY;

fn passed_over() -> bool {
    if !is_root() {
        println!("passed over: only root can become somebody else");
    }
    !is_root()
}

fn done(machine: &Machine, arguments: &[&str]) -> String {
    let output = machine.run(arguments);
    assert!(
        output.status.success(),
        "{arguments:?}: {:?} {:?}",
        lines(&output.stdout),
        lines(&output.stderr)
    );
    machine.assert_owned(&arguments.join(" "));
    String::from_utf8(output.stdout).unwrap()
}

/// Where listeners of no other test are.
fn with_ports(machine: &Machine) {
    for from in ["0.0.0.0:8443", "127.0.0.1:8444"] {
        let port = crate::served::free_port();
        machine.configure(&format!("\"{from}\""), &format!("\"127.0.0.1:{port}\""));
    }
}

/// The service, as whose it is. Without systemd it reads its PIN itself.
fn serve(machine: &Machine) -> Served {
    let mut command = Command::new(BINARY);
    command.args(["serve", "--config"]).arg(machine.config()).uid(SERVICE).gid(SERVICE).current_dir("/");
    Served::start_by(command, &machine.config())
}

#[test]
fn what_commands_of_roots_leave_is_the_services_users() {
    if passed_over() {
        return;
    }
    let machine = Machine::complete();
    with_ports(&machine);
    // Root's alone: nobody below opens it.
    assert_eq!(fs::metadata(machine.etc("pin")).unwrap().mode() & 0o7777, 0o600);
    done(&machine, &["keys", "list"]);
    done(&machine, &["keys", "rotate", "attest"]);
    done(&machine, &["init"]);

    // The service itself cannot read that PIN: systemd hands it one.
    let handed = machine.var("credentials");
    fs::create_dir(&handed).unwrap();
    fs::copy(machine.etc("pin"), handed.join("pin")).unwrap();
    for path in [&handed, &handed.join("pin")] {
        chown(path, Some(SERVICE), Some(SERVICE)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).unwrap();
    }
    let mut command = Command::new(BINARY);
    command.args(["serve", "--config"]).arg(machine.config()).env("CREDENTIALS_DIRECTORY", &handed);
    let served = Served::start_by(
        {
            command.uid(SERVICE).gid(SERVICE).current_dir("/");
            command
        },
        &machine.config(),
    );
    assert!(done(&machine, &["keys", "rotate", "attest"]).contains("the service uses it"));
    assert!(done(&machine, &["keys", "rewrap"]).contains("finished"));
    let copy = machine.var("copy.db");
    done(&machine, &["backup", "--to", copy.to_str().unwrap()]);
    assert_eq!(served.stop().code(), Some(0));
    fs::remove_dir_all(&handed).unwrap();

    done(&machine, &["keys", "rotate", "audit"]);
    done(&machine, &["keys", "retire", "attest", "1"]);
    done(&machine, &["recover"]);
    let database = machine.database();
    done(&machine, &["audit", "verify", "--store", database.to_str().unwrap()]);
    let export =
        |store: &Path| Command::new(BINARY).args(["audit", "export", "--store"]).arg(store).output().unwrap();
    assert!(export(&database).status.success());
    machine.assert_owned("audit export");
    // What only root may read is put back all the same.
    let (etc, manifest) = (machine.etc("copy.db"), "copy.db.manifest.json");
    fs::rename(&copy, &etc).unwrap();
    fs::rename(machine.var(manifest), machine.etc(manifest)).unwrap();
    for path in [&etc, &machine.etc(manifest)] {
        chown(path, Some(0), Some(0)).unwrap();
    }
    let said = done_or_said(&machine, &["restore", "--from", etc.to_str().unwrap()]);
    assert!(said.contains("is the copy"), "{said}");
    machine.assert_owned("restore");
}

/// A copy that is older than what the token knows of is put in place, and the rest is said.
fn done_or_said(machine: &Machine, arguments: &[&str]) -> String {
    let output = machine.run(arguments);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn root_does_not_serve_in_its_place() {
    if passed_over() {
        return;
    }
    let machine = Machine::complete();
    with_ports(&machine);
    let output = machine.run(&["serve"]);
    assert_eq!(output.status.code(), Some(78));
    let said = lines(&output.stderr).join("\n");
    assert!(said.contains("and this is root: runuser -u "), "{said}");
    machine.assert_owned("serve");
}

/// What the service's user put there, root opens through nothing.
#[test]
fn a_pin_in_the_services_folder_is_no_way_to_a_file_of_roots() {
    if passed_over() {
        return;
    }
    let machine = Machine::complete();
    with_ports(&machine);
    let (pin, secret) = (machine.var("pin"), machine.etc("secret"));
    fs::copy(machine.etc("pin"), &secret).unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    machine.configure("pin_file = \"pin\"", &format!("pin_file = {:?}", pin.to_str().unwrap()));
    std::os::unix::fs::symlink(&secret, &pin).unwrap();
    let said = refused(&machine.run(&["keys", "list"]));
    assert!(said.contains("cannot be opened"), "{said}");
    fs::remove_file(&pin).unwrap();
    assert!(Command::new("mkfifo").arg(&pin).status().unwrap().success());
    chown(&pin, Some(SERVICE), Some(SERVICE)).unwrap();
    let mut command = machine.command(&["keys", "list"]);
    // It waits for a PIN, if at all, as the service's user.
    let mut child = crate::processes::Started::by(&mut command);
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() && !is_somebody_else(child.id()) {
        assert!(begun.elapsed() < Duration::from_secs(20), "root waits at a pipe");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// By the kernel's word, whoever its files belong to.
fn is_somebody_else(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("Uid:").is_some_and(|uids| !uids.trim().starts_with("0")))
}

#[test]
fn what_the_services_user_may_not_do_is_said_with_its_name() {
    if passed_over() {
        return;
    }
    let machine = Machine::complete();
    with_ports(&machine);
    chown(machine.etc("pin"), None, Some(SERVICE)).unwrap();
    fs::set_permissions(machine.etc("pin"), fs::Permissions::from_mode(0o640)).unwrap();
    serve(&machine).stop();
    let to = machine.etc("copy.db");
    let said = refused(&machine.run(&["backup", "--to", to.to_str().unwrap()]));
    assert!(said.contains("ermission denied") && said.contains(&SERVICE.to_string()), "{said}");
    fs::copy(machine.database(), &to).unwrap();
    fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
    let said = refused(&machine.run(&["audit", "verify", "--store", to.to_str().unwrap()]));
    assert!(said.contains("ermission denied") && said.contains(&SERVICE.to_string()), "{said}");
}

/// The ids of a process, its groups and its capabilities, as the kernel has them.
fn status(pid: u32, name: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// What a process of root's is once it waits for what another one holds, and what its child is.
#[test]
fn nothing_of_root_is_left_in_a_running_command() {
    if passed_over() {
        return;
    }
    let machine = Machine::complete();
    let lock = machine.database().with_added_extension("keys");
    let held = File::options().append(true).open(&lock).unwrap();
    held.lock().unwrap();
    let mut child = machine.command(&["keys", "rotate", "attest"]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    let inode = fs::metadata(&lock).unwrap().ino();
    let holds = |pid: u32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|entry| fs::metadata(entry.path()).ok()).any(|file| file.ino() == inode)
    };
    while !holds(child.id()) {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "it does not wait");
        std::thread::sleep(Duration::from_millis(5));
    }
    let of_it = |name: &str| status(child.id(), name).unwrap();
    let four = [SERVICE; 4].map(|id| id.to_string()).join(" ");
    assert_eq!((of_it("Uid"), of_it("Gid")), (four.clone(), four));
    assert_eq!(of_it("Groups"), SERVICE.to_string());
    for set in ["CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&of_it(set), 16), Ok(0), "{set}");
    }
    assert_eq!((of_it("NoNewPrivs").as_str(), of_it("Umask").as_str()), ("1", "0077"));
    // It has a PIN open: nobody of that user looks into it.
    let environ = fs::metadata(format!("/proc/{}/environ", child.id())).unwrap();
    assert_eq!(environ.uid(), 0, "a debugger of the same user could");
    held.unlock().unwrap();
    assert!(child.wait().unwrap().success());
    machine.assert_owned("keys rotate");
}

#[test]
fn a_folder_of_roots_changes_nothing_and_one_of_roots_group_is_refused() {
    if passed_over() {
        return;
    }
    let machine = Machine::complete();
    chown(machine.var("store"), Some(SERVICE), Some(0)).unwrap();
    let said = refused(&machine.run(&["keys", "list"]));
    assert!(said.contains("root's group") && said.contains("chgrp"), "{said}");
    for path in machine.state().iter().chain([&machine.var("")]) {
        chown(path, Some(0), Some(0)).unwrap();
    }
    let output = machine.run(&["keys", "list"]);
    assert!(output.status.success(), "{:?}", lines(&output.stderr));
    fs::remove_dir_all(machine.var("store")).unwrap();
    let said = refused(&machine.run(&["keys", "list"]));
    assert!(said.contains("the folder of the database"), "{said}");
}
