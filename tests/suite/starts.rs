//! Starts: of two on one folder, of those that cannot succeed, and what `check` says of them before.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::mem::ManuallyDrop;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::client::{Connection, Http, Identity};
use crate::daemon::{Daemon, enrol_hotp, rfc_code};
use crate::device_pki::{Certificate, DAY_S, Kind, List, Party, certificates_pem, lists_pem, party};
use crate::intruder::intrude;
use crate::modules::TestModule;
use crate::processes::{Started, await_gone, children, ended, eventually, terminate};
use crate::scratch::Scratch;
use crate::served::{Served, configuration, ops_get, section};
use crate::slow_request::SlowRequest;
use crate::submissions::{Crowd, Dice, Outcome, Submission};
use crate::token::{BINARY, TestToken};

/// Linux's flag, on every architecture but the oldest.
const O_NONBLOCK: i32 = 0o4000;
/// How long a start waits for another instance to end.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// Starts `dev` on a folder.
fn start_dev(dir: &Path) -> Started {
    let mut command = Command::new(BINARY);
    command.args(["dev", "--listen", "127.0.0.1:0", "--custodians", "3", "--dir"]).arg(dir);
    command.args(TestModule::dev_arguments(dir));
    Started::by(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// Waits until a `dev` says that it is ready.
pub fn await_ready(child: &mut Child) {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("ready on "), "{line}");
}

/// What it said on standard error, without its log.
fn last_words(child: &mut Child) -> Vec<String> {
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    words(&text)
}

fn words(text: &str) -> Vec<String> {
    text.lines().filter(|line| serde_json::from_str::<Value>(line).is_err()).map(str::to_owned).collect()
}

/// The one line that a start that failed left for the operator.
fn failed_start(dir: &Path) -> String {
    let mut child = start_dev(dir);
    let status = ended(&mut child);
    let words = last_words(&mut child);
    assert!(!status.success() && words.len() == 1, "{status}: {words:?}");
    words.into_iter().next().unwrap()
}

fn dev_json(dir: &Path) -> Option<Value> {
    let text = fs::read(dir.join("dev.json")).ok()?;
    Some(serde_json::from_slice(&text).expect("it appears whole"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_start_waits_for_the_first_and_then_gives_up() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let dir = daemon.dir();
    let (line, waited) = tokio::task::spawn_blocking(move || {
        let begun = Instant::now();
        (failed_start(&dir), begun.elapsed())
    })
    .await
    .unwrap();
    assert!(line.contains("another instance is running"), "{line}");
    assert!(line.contains(daemon.dir().to_str().unwrap()), "{line}");
    assert!((LOCK_WAIT..LOCK_WAIT * 2).contains(&waited), "{waited:?}");
    assert_eq!(dev_json(&daemon.dir()).unwrap(), daemon.info, "the first one's is left alone");
    assert_eq!(Submission::new(&id, &rfc_code(0)).send(&bank).await, Outcome::Yes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_while_the_first_is_ending_gets_in() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let slow = SlowRequest::verify(&daemon.url(), &daemon.identity("bank-a"), &id, &rfc_code(0)).await;
    let first = daemon.info["pid"].as_i64().unwrap() as i32;
    kill(Pid::from_raw(first), Signal::SIGTERM).unwrap();
    let mut second = start_dev(&daemon.dir());
    eventually("the second is at the lock", async || {
        let files = fs::read_dir(format!("/proc/{}/fd", second.id())).unwrap();
        let mut names = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        names.any(|name| name.extension().is_some_and(|end| end == "instance")).then_some(())
    })
    .await;

    assert_eq!(slow.finish().await.0, 200);
    assert_eq!(daemon.ended().code(), Some(0));
    await_ready(&mut second);
    daemon.info = dev_json(&daemon.dir()).unwrap();
    assert_eq!(daemon.info["pid"], second.id());
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let outcomes = [
        Submission::new(&id, &rfc_code(0)).send(crowd.connection(1)).await,
        Submission::new(&id, &rfc_code(1)).send(crowd.connection(1)).await,
    ];
    assert_eq!(outcomes, [Outcome::No, Outcome::Yes]);
    assert_eq!(terminate(&mut second).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_json_is_there_when_the_service_is() {
    let mut daemon = Daemon::start();
    daemon.stop();
    let old = dev_json(&daemon.dir()).expect("it was ready");
    let mut child = start_dev(&daemon.dir());
    // The old one, nothing, then the new one, each whole.
    let mut was_absent = false;
    let new = eventually("dev.json appears", async || {
        let found = dev_json(&daemon.dir());
        was_absent |= found.is_none();
        found.filter(|found| *found != old)
    })
    .await;
    assert!(was_absent, "the old one was never removed");
    assert_eq!(new["pid"], child.id());
    daemon.info = new;
    let crowd = Crowd::of(&daemon, "bank-a").await;
    enrol_hotp(crowd.connection(1), "acct-1").await;
    assert_eq!(terminate(&mut child).code(), Some(0));
}

/// The kernel follows links, so a folder of the module's is what it leads to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_the_module_that_leads_to_what_is_hidden_starts_nothing() {
    let mut daemon = Daemon::start();
    daemon.stop();
    let sample = configuration(&daemon, "sample.toml", |_| {});
    let sample: toml::Table = fs::read_to_string(sample).unwrap().parse().unwrap();
    let named = |section: &str, key: &str| daemon.dir().join(sample[section][key].as_str().unwrap());
    for (target, words) in [
        (named("hsm", "pin_file"), "the module could read and change"),
        (named("server", "key"), "the module could read and change"),
        (named("store", "path"), "the front could open"),
        (daemon.dir(), "the module could change the database"),
    ] {
        let link = daemon.dir().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let config = configuration(&daemon, "linked.toml", |config| {
            let hsm = section(config, "hsm");
            let folders = hsm.entry("folders").or_insert_with(|| toml::Value::Array(Vec::new()));
            folders.as_array_mut().unwrap().push(link.to_str().unwrap().into());
        });
        let check = Command::new(BINARY).args(["check", "--config"]).arg(&config).output().unwrap();
        let mut served = Served::spawn(&config);
        assert_eq!((check.status.code(), served.ended().code()), (Some(1), Some(78)), "{target:?}");
        for said in [words_of(&check.stderr), words_of(served.last_words().join("\n").as_bytes())] {
            assert!(said.len() == 1 && said[0].contains(words) && said[0].contains("/link ("), "{said:?}");
        }
        fs::remove_file(link).unwrap();
    }
}

fn words_of(stderr: &[u8]) -> Vec<String> {
    words(&String::from_utf8_lossy(stderr))
}

/// Whoever has the front can write into its folder, and the supervisor is not shut in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_stands_in_the_database_is_run_by_nobody() {
    let mut daemon = Daemon::start();
    daemon.stop();
    let config = configuration(&daemon, "view.toml", |_| {});
    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    let sql = "PRAGMA journal_mode = DELETE; DROP TABLE log_head;
        CREATE VIEW log_head AS WITH RECURSIVE more(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM more)
            SELECT 1 AS only, count(*) AS seal_key_version, count(*) AS last_unix_ms FROM more;";
    database.execute_batch(sql).unwrap();
    drop(database);
    for command in ["serve", "check"] {
        let mut child = Command::new(BINARY);
        let child =
            child.args([command, "--config"]).arg(&config).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        let mut status = None;
        let begun = Instant::now();
        while status.is_none() && begun.elapsed() < Duration::from_secs(60) {
            status = child.try_wait().unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if status.is_none() {
            child.kill().unwrap();
        }
        let said = last_words(&mut child).join("; ");
        // A look from outside says nothing of the schema; it ends.
        let code = if command == "serve" { 1 } else { 0 };
        assert_eq!(status.and_then(|status| status.code()), Some(code), "{command}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_pin_is_tried_once_and_told() {
    let mut daemon = Daemon::start();
    daemon.stop();
    let pin_file = daemon.dir().join("pin");
    let pin = fs::read(&pin_file).unwrap();
    fs::write(&pin_file, "0000").unwrap();
    let line = failed_start(&daemon.dir());
    assert!(line.contains("refuses the user PIN"), "{line}");
    assert!(line.contains(pin_file.to_str().unwrap()), "{line}");
    assert_eq!(dev_json(&daemon.dir()), None, "it was never ready");
    fs::write(&pin_file, pin).unwrap();
    daemon.resume();
}

/// Starts a daemon on a folder that stays the same, and ends each start in the same way at a random
/// moment, many of them before it is ready; then one is let be.
async fn interrupt_starts(mut dice: Dice, end: impl Fn(&mut Child)) {
    let scratch = Scratch::new();
    let dir = scratch.path().join("dev");
    for _ in 0..12 {
        let mut child = start_dev(&dir);
        if dice.below(2) == 0 {
            // The moment is the test.
            tokio::time::sleep(Duration::from_millis(dice.below(300) as u64)).await;
        } else {
            // While it makes the token, if there is none.
            eventually("a token", async || (dir.join("token").is_dir() || makes_token(&dir)).then_some(()))
                .await;
        }
        end(&mut child);
        // The database with them: some starts come far enough to write into it, and then it needs its token.
        if dice.below(2) == 0 {
            fs::remove_dir_all(dir.join("token")).ok();
            fs::remove_dir_all(dir.join("pki")).ok();
            fs::remove_dir_all(dir.join("store")).ok();
        }
    }
    let mut child = start_dev(&dir);
    await_ready(&mut child);
    let info = dev_json(&dir).unwrap();
    let path = |value: &Value| value.as_str().unwrap().to_owned();
    let files = &info["clients"]["bank-a"];
    let identity = Identity::new(path(&info["ca"]), path(&files["cert"]), path(&files["key"]));
    let bank = Connection::open(&path(&info["url"]), &identity, Http::Two).await.unwrap();
    let id = enrol_hotp(&bank, "acct-1").await;
    assert_eq!(Submission::new(&id, &rfc_code(0)).send(&bank).await, Outcome::Yes);
    assert_eq!(terminate(&mut child).code(), Some(0));
}

/// Whether there is the folder of a token that is not finished.
fn makes_token(dir: &Path) -> bool {
    let names = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.into_iter().any(|name| name.to_string_lossy().starts_with("token.unfinished"))
}

/// A process that was killed ends its last call when it comes to it.
#[test]
fn a_setup_that_has_not_quite_ended_is_in_no_starts_way() {
    let scratch = Scratch::new();
    let dir = scratch.path().join("dev");
    let others = dir.join("token.unfinished-1");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0_u64.. {
                if is_over.load(Ordering::Relaxed) {
                    return;
                }
                let _ = fs::create_dir_all(&others);
                let _ = fs::write(others.join(number.to_string()), "");
            }
        });
        let mut child = start_dev(&dir);
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        is_over.store(true, Ordering::Relaxed);
        assert!(line.starts_with("ready on "), "{:?}", last_words(&mut child));
        assert_eq!(terminate(&mut child).code(), Some(0));
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_that_are_killed_anywhere_leave_nothing_in_the_way() {
    let (dice, seed) = Dice::new();
    println!("seed {seed}");
    interrupt_starts(dice, |child| {
        child.kill().unwrap();
        child.wait().unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn starts_that_are_terminated_anywhere_end_in_time() {
    let (dice, seed) = Dice::new();
    println!("seed {seed}");
    interrupt_starts(dice, |child| {
        let begun = Instant::now();
        let status = terminate(child);
        // By the signal itself before there is anything to end in order.
        let is_in_order = status.success() || status.signal() == Some(Signal::SIGTERM as i32);
        assert!(is_in_order, "{status}: {:?}", last_words(child));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_setup_of_a_token_ends_with_who_began_it() {
    let mut daemon = Daemon::start();
    daemon.stop();
    // It waits for a PIN that nobody writes; else it would be over before anybody could look.
    let so_pin = daemon.dir().join("so-pin.fifo");
    assert!(Command::new("mkfifo").arg(&so_pin).status().unwrap().success());
    let mut command = Command::new(BINARY);
    command.args(["init", "--config"]).arg(daemon.dir().join("hsm-authd.toml"));
    let mut init = Started::by(command.arg("--so-pin-file").arg(&so_pin).stdin(Stdio::null()));
    // Opened without waiting, a pipe takes a writer only when there is a reader.
    let mut writer = fs::OpenOptions::new();
    writer.write(true).custom_flags(O_NONBLOCK);
    let _writer = eventually("the setup reads", async || writer.open(&so_pin).ok()).await;
    let setup = children(init.id() as i32, "token-setup")[0];
    init.kill().unwrap();
    init.wait().unwrap();
    await_gone(setup).await;
}

/// A folder that the release before made has no `attest` key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_the_release_before_starts_by_itself() {
    let mut daemon = Daemon::start();
    let id = enrol_hotp(&daemon.connect("bank-a").await, "acct-1").await;
    daemon.stop();
    {
        // The folder stays the daemon's.
        let token = ManuallyDrop::new(TestToken::of(&daemon));
        intrude(&token, "remove hsm-authd/attest/v1");
    }
    let (status, _, said) = check(&daemon.dir().join("hsm-authd.toml"));
    assert!(!status.success() && said.len() == 1, "{said:?}");
    assert!(said[0].contains("there is no key hsm-authd/attest/v1, and there is a database"), "{said:?}");
    assert!(!said[0].contains("run `hsm-authd init`"), "{said:?}");
    daemon.resume();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    assert_eq!(Submission::new(&id, &rfc_code(0)).send(crowd.connection(0)).await, Outcome::Yes);
    assert_eq!(words(&daemon.log()), [""; 0]);
}

/// How `check` ended, its standard output and its last words.
fn check(config: &Path) -> (ExitStatus, String, Vec<String>) {
    let output = Command::new(BINARY).args(["check", "--config"]).arg(config).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    (output.status, String::from_utf8(output.stdout).unwrap(), words(&error))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_and_check_take_the_configuration_that_dev_wrote() {
    let mut daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    daemon.stop();
    let config = configuration(&daemon, "served.toml", |_| {});
    let (status, said, words) = check(&config);
    assert!(status.success() && words.is_empty(), "{status}: {words:?}");
    assert!(said.lines().count() >= 4 && said.contains("ok  sandbox: "), "{said}");
    // What this machine's kernel and limits lack is said, and stops nobody.
    let is_fine = |line: &str| line.starts_with("ok  ") || line.starts_with("--  ");
    assert!(said.lines().all(is_fine), "{said}");

    let served = Served::start(&config);
    assert_eq!(ops_get(&served.ops_url, "/readyz").0, 200);
    let crowd = Crowd::open(&served.url, &daemon.identity("bank-a")).await;
    assert_eq!(Submission::new(&id, &rfc_code(0)).send(crowd.connection(0)).await, Outcome::Yes);
    assert_eq!(check(&config).0.code(), Some(0), "it disturbs nobody that runs");
    served.reload();
    let crowd = Crowd::open(&served.url, &daemon.identity("bank-a")).await;
    assert_eq!(Submission::new(&id, &rfc_code(1)).send(crowd.connection(0)).await, Outcome::Yes);
    drop(crowd);
    assert_eq!(served.stop().code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_says_in_one_line_what_to_mend() {
    let mut daemon = Daemon::start();
    daemon.stop();
    let dir = daemon.dir();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let refused = |config: &Path, mend: &str| {
        let (status, _, words) = check(config);
        assert!(!status.success(), "{}", config.display());
        assert_eq!(words.len(), 1, "one line: {words:?}");
        assert!(words[0].starts_with("hsm-authd: ") && words[0].contains(mend), "{} not in {words:?}", mend);
    };

    refused(&dir.join("absent.toml"), "absent.toml");
    let broken = dir.join("broken.toml");
    for (text, mend) in [("[server\n", "line 1"), ("surprise = 1\n", "surprise")] {
        fs::write(&broken, text).unwrap();
        refused(&broken, "broken.toml");
        refused(&broken, mend);
    }
    let absent_key = configuration(&daemon, "absent-key.toml", |config| {
        section(config, "server").insert("key".into(), path("nowhere.key").into());
    });
    refused(&absent_key, "nowhere.key");
    let label = configuration(&daemon, "label.toml", |config| {
        section(config, "hsm").insert("token_label".into(), "another".into());
    });
    refused(&label, "no token is labelled another");
    fs::write(path("wrong-pin"), "0000").unwrap();
    fs::set_permissions(path("wrong-pin"), fs::Permissions::from_mode(0o600)).unwrap();
    let pin = configuration(&daemon, "pin.toml", |config| {
        section(config, "hsm").insert("pin_file".into(), path("wrong-pin").into());
    });
    refused(&pin, "wrong-pin");
    let readable = configuration(&daemon, "readable.toml", |config| {
        let server = section(config, "server");
        fs::copy(server["key"].as_str().unwrap(), path("readable.key")).unwrap();
        fs::set_permissions(path("readable.key"), fs::Permissions::from_mode(0o644)).unwrap();
        server.insert("key".into(), path("readable.key").into());
    });
    refused(&readable, "readable.key");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn check_names_anchors_and_revocation_lists_that_are_wrong() {
    let mut daemon = Daemon::start();
    daemon.stop();
    let dir = daemon.dir();
    let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let (begin_s, past_s, later_s) = (now_s - 9 * DAY_S, now_s - 3 * DAY_S - 60, now_s + DAY_S);
    let (root, issuing) = (party(Kind::P256, "root"), party(Kind::P256, "issuing"));
    let until = |not_after_s| {
        Certificate { not_before_s: begin_s, not_after_s, ..Certificate::authority(1) }.issue(&root, &root)
    };
    let list = |issuer: &Party, next_update_s| {
        List { revoked: &[], this_update_s: begin_s, next_update_s }.issue(issuer)
    };
    for (name, text) in [
        ("anchors.pem", certificates_pem(&[&until(later_s)])),
        ("expired.pem", certificates_pem(&[&until(past_s)])),
        ("crl.pem", lists_pem(&[&list(&root, later_s)])),
        ("old.pem", lists_pem(&[&list(&root, past_s)])),
        ("elsewhere.pem", lists_pem(&[&list(&issuing, later_s)])),
    ] {
        fs::write(dir.join(name), text).unwrap();
    }
    let checked = |anchors: &str, lists: &[&str]| {
        check(&configuration(&daemon, "signers.toml", |config| {
            let mut signers = toml::Table::new();
            signers.insert("trust_anchors".into(), anchors.into());
            signers.insert("crls".into(), lists.to_vec().into());
            config.insert("signers".into(), signers.into());
        }))
    };
    let (status, said, words) = checked("anchors.pem", &["crl.pem", "elsewhere.pem"]);
    assert!(status.success() && said.contains("CRLs, all current: 2"), "{said}{words:?}");
    for (anchors, lists, file, mend) in [
        ("nowhere.pem", &[][..], "nowhere.pem", "no such file"),
        ("crl.pem", &[], "crl.pem", "no certificate (PEM) in it"),
        ("expired.pem", &[], "expired.pem", "the anchor CN=root expired 3 days ago"),
        ("anchors.pem", &["crl.pem", "anchors.pem"], "anchors.pem", "no CRL (PEM) in it"),
        ("anchors.pem", &["crl.pem", "old.pem"], "old.pem", "the CRL of CN=root is out of date for 3 days"),
        ("anchors.pem", &["elsewhere.pem"], "anchors.pem", "none of the anchor CN=root"),
    ] {
        let (status, _, words) = checked(anchors, lists);
        assert!(!status.success() && words.len() == 1, "{anchors}, {lists:?}: {words:?}");
        assert!(words[0].contains(&format!("{file}: ")) && words[0].contains(mend), "{mend}: {words:?}");
    }
}
