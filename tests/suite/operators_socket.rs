//! The control socket: who reaches it, at every moment of its making; and a service that has none.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::daemon::Daemon;
use crate::last_step::LastStep;
use crate::operator::{done, entries, keys_by, refused};
use crate::served::{Served, configuration, section};

/// Nobody's.
const OTHER: u32 = 65_534;
const STEPS_MAX: usize = 50;

fn socket(daemon: &Daemon) -> PathBuf {
    daemon.database().with_added_extension("control")
}

fn ask_as(user: u32, socket: &Path) -> Output {
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--max-time", "10", "--unix-socket"]).arg(socket);
    curl.arg("http://localhost/keys/rewrap").uid(user).gid(user).current_dir("/").output().unwrap()
}

/// What another user may pass through, up to the temporary folder.
fn open_folders(daemon: &Daemon) {
    let (dir, database) = (daemon.dir(), daemon.database());
    for folder in [dir.parent().unwrap(), &dir, database.parent().unwrap()] {
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn another_user_does_not_reach_it() {
    let daemon = Daemon::start();
    let socket = socket(&daemon);
    open_folders(&daemon);
    let ours = fs::metadata("/proc/self").unwrap().uid();
    assert!(ask_as(ours, &socket).status.success());
    if ours != 0 {
        // Only root can be somebody else.
        return;
    }
    let refused = ask_as(OTHER, &socket);
    let said = String::from_utf8_lossy(&refused.stderr);
    // CURLE_COULDNT_CONNECT
    assert_eq!(refused.status.code(), Some(7), "{said}");
    // Nothing but its mode kept it away.
    fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
    assert!(ask_as(OTHER, &socket).status.success());
}

/// The sockets below a folder that somebody else could reach, with the modes that let it.
fn reachable(folder: &Path, found: &mut Vec<String>) -> usize {
    let mut sockets = 0;
    for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let metadata = entry.metadata().unwrap();
        let mode = metadata.permissions().mode() & 0o777;
        let is_open = mode & 0o077 != 0;
        if metadata.is_dir() {
            let mut below = Vec::new();
            sockets += reachable(&entry.path(), &mut below);
            if is_open {
                found.extend(below);
            }
        } else if metadata.file_type().is_socket() {
            sockets += 1;
            if is_open {
                found.push(format!("{}: {mode:o}", entry.path().display()));
            }
        }
    }
    sockets
}

/// Without a mask that would take the others' rights away from whatever is made.
#[test]
fn nobody_else_reaches_it_at_any_step_of_its_making() {
    let steps = LastStep::of(".db.control");
    let mut sockets = 0;
    for step in 1..STEPS_MAX {
        let environment = steps.environment(step);
        let environment: Vec<_> = environment.iter().map(|(name, value)| (*name, &**value)).collect();
        let mut daemon = Daemon::unstarted(&["--custodians", "1"], &environment);
        let is_ready = daemon.try_to_resume();
        let mut found = Vec::new();
        sockets += reachable(&daemon.dir(), &mut found);
        assert_eq!(found, [""; 0], "step {step}");
        if is_ready {
            assert!(step > 4, "{step} steps");
            assert!(fs::metadata(socket(&daemon)).unwrap().file_type().is_socket());
            assert!(!socket(&daemon).with_added_extension("new").exists());
            assert!(sockets > 2, "one before it was complete, too: {sockets}");
            // What an interrupted one leaves stops nobody.
            return;
        }
    }
    panic!("it never comes up");
}

/// The path of a unix socket ends at 107 bytes; a service whose database has a longer one does without.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_is_too_long_for_a_socket_is_said_and_stops_nobody() {
    let mut daemon = Daemon::start();
    daemon.stop();
    let folder = daemon.dir().join("a".repeat(110));
    fs::create_dir(&folder).unwrap();
    let store = folder.join("hsm-authd.db");
    fs::rename(daemon.database(), &store).unwrap();
    let config = configuration(&daemon, "long.toml", |config| {
        section(config, "store").insert("path".into(), store.to_str().unwrap().into());
    });
    let served = Served::start(&config);
    assert!(served.heard().contains("`hsm-authd keys` cannot reach this service"), "{}", served.heard());
    let said = refused(&keys_by(&config, &["rewrap"]));
    assert!(said.contains("is too long for a socket: no service can be told"), "{said}");
    // It would use the key from some moment on that no log tells of.
    let said = refused(&keys_by(&config, &["rotate", "kek"]));
    assert!(said.contains("another instance is running"), "{said}");
    assert!(said.contains("is too long for a socket: no service can be told"), "{said}");
    assert!(served.stop().success());

    let said = done(&keys_by(&config, &["rotate", "kek"]));
    assert!(
        said.contains("key hsm-authd/kek/v2: made\nno service is running; the next start uses it\n"),
        "{said}"
    );
    fs::rename(&store, daemon.database()).unwrap();
    assert_eq!(entries(&daemon, "keys.rotated"), ["kek v2"]);
}
