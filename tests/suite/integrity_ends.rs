//! How a start tells a clean end from a crash, and what is written down of both; and what anchors cover.

use std::fs;
use std::io::Read;
use std::mem::ManuallyDrop;
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hsm_authd::domain::checkpoint::Note;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::bank::{done, failed};
use crate::client::Connection;
use crate::daemon::{Daemon, SEED_HEX, enrol, rfc_code, verify};
use crate::integrity::{events, on_token, put_back, snapshot, sql};
use crate::processes::{Started, eventually, terminate};
use crate::served::{Served, configuration, ops_get, section};
use crate::submissions::{Crowd, Dice, Outcome};
use crate::token::{BINARY, TestToken};

const NOW: u64 = 1_800_000_000;

async fn totp(bank: &Connection) -> String {
    enrol(bank, &json!({ "type": "totp", "account": "acct-1", "seed_hex": SEED_HEX })).await
}

/// A yes that the database has lost is no second yes.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_kill_a_totp_code_of_the_lost_window_is_not_accepted_again() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let id = totp(&bank).await;
    let code = |steps: u64| rfc_code(NOW / 30 + steps);
    daemon.set_clock(NOW + 90);
    done(&verify(&bank, &id, &code(3)).await);
    // Nothing of it was anchored yet. What came last is missing, as where a disk lied.
    drop(bank);
    daemon.kill();
    let mut kept = snapshot(&daemon);
    forget_last_commit(&daemon, &mut kept);
    put_back(&daemon, &kept);
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    for steps in [3, 2, 4] {
        assert_eq!(failed(&verify(&bank, &id, &code(steps)).await), 5, "{steps}");
    }
    daemon.set_clock(NOW + 150);
    assert_eq!(failed(&verify(&bank, &id, &code(4)).await), 5);
    done(&verify(&bank, &id, &code(5)).await);
    assert_eq!(events(&daemon).iter().filter(|event| *event == "service.started_unclean").count(), 1);

    // After a start on a clean end nothing more is taken away, and what was is not given back.
    drop(bank);
    assert!(daemon.stop().success());
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    assert_eq!(failed(&verify(&bank, &id, &code(5)).await), 5);
    done(&verify(&bank, &id, &code(6)).await);
    assert_eq!(events(&daemon).last().unwrap(), "otp.verified");
}

/// Cuts the last commit off the write-ahead log.
fn forget_last_commit(daemon: &Daemon, files: &mut [(PathBuf, Vec<u8>)]) {
    let (_, wal) = files.iter_mut().find(|(path, _)| path.to_string_lossy().ends_with("-wal")).unwrap();
    let frame_bytes = 24 + 4_096;
    let commits: Vec<usize> = (0..(wal.len() - 32) / frame_bytes)
        .filter(|frame| wal[32 + frame * frame_bytes + 4..][..4] != [0; 4])
        .collect();
    assert!(commits.len() >= 2, "{}", daemon.log());
    wal.truncate(32 + (commits[commits.len() - 2] + 1) * frame_bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_end_is_written_down_and_takes_nothing_away() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let id = totp(&bank).await;
    drop(bank);
    assert!(daemon.stop().success());
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    done(&verify(&bank, &id, &rfc_code(NOW / 30)).await);
    drop(bank);
    assert!(daemon.stop().success());
    let expected = [
        "service.started",
        "credential.enrolled",
        "service.stopped",
        "service.started",
        "otp.verified",
        "service.stopped",
    ];
    assert_eq!(events(&daemon), expected);
    on_token(&daemon, "anchors 1");
    let database = sql(&daemon);
    let sizes: Vec<i64> = database
        .prepare("SELECT size FROM checkpoint ORDER BY size")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    assert_eq!(sizes, [1, 3, 4, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_checks_says_so_answers_nobody_and_ends_when_it_is_told() {
    let mut daemon = Daemon::start();
    assert!(daemon.stop().success());
    // A module that nobody can read to its end: no custodian comes up.
    let module = daemon.dir().join("module");
    assert!(Command::new("mkfifo").arg(&module).status().unwrap().success());
    let config = configuration(&daemon, "held.toml", |config| {
        section(config, "hsm").insert("module".into(), module.to_str().unwrap().into());
    });
    let before = events(&daemon);
    let mut command = Command::new(BINARY);
    command.args(["serve", "--config"]).arg(&config).stdin(Stdio::null()).stderr(Stdio::null());
    let mut child = Started::by(&mut command);
    let text = fs::read_to_string(&config).unwrap();
    let config: toml::Table = text.parse().unwrap();
    let [api, ops] = ["server", "ops"].map(|name| config[name]["listen"].as_str().unwrap().to_owned());
    let ops = format!("http://{ops}");
    eventually("it listens", async || TcpStream::connect(ops.strip_prefix("http://").unwrap()).ok()).await;
    let says = ops_get(&ops, "/readyz");
    assert_eq!((says.0, says.1.as_str()), (503, "checking the database\n"));
    assert_eq!(ops_get(&ops, "/livez").0, 200);
    // The kernel takes connections; nobody shakes hands.
    let mut early = TcpStream::connect(&api).unwrap();
    early.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(early.read(&mut [0]).is_err());
    let begun = Instant::now();
    assert!(terminate(&mut child).success());
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(events(&daemon), before, "nothing was written");
    daemon.resume();
    assert_eq!(events(&daemon).last().unwrap(), "service.started");
}

/// No yes is told before an anchor covers it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_an_anchor_for_every_commit_no_yes_is_beyond_it() {
    let (mut dice, seed) = Dice::new();
    println!("seed {seed}");
    let mut daemon = Daemon::start();
    assert!(daemon.stop().success());
    let config = configuration(&daemon, "every.toml", |config| {
        let audit = toml::Table::from_iter([("anchor".to_owned(), "every_commit".into())]);
        config.insert("audit".into(), audit.into());
    });
    let (mut tokens, mut told) = (Vec::new(), 0);
    for counter in 0..4 {
        let served = Served::start(&config);
        let crowd = Crowd::open(&served.url, &daemon.identity("bank-a")).await;
        if tokens.is_empty() {
            tokens = crowd.enrol("hotp", None, 40).await;
        }
        let all: Vec<_> = tokens.iter().map(|token| token.submission(counter)).collect();
        let mut outcomes = crowd.send(&all, 1);
        let last = dice.below(40);
        let mut yes = 0;
        while let Some((_, outcome)) = outcomes.recv().await {
            yes += usize::from(outcome == Outcome::Yes);
            if yes == last + 1 {
                kill(Pid::from_raw(served.pid()), Signal::SIGKILL).unwrap();
            }
        }
        drop(served);
        told += yes;
        let token = ManuallyDrop::new(TestToken::of(&daemon));
        let note = Note::parse(&token.custodian().anchor().unwrap()).unwrap();
        let anchored = note.unverified().head.size;
        let count = "SELECT count(*) FROM audit WHERE event = 'otp.verified' AND seq <= ?1";
        let covered: i64 = sql(&daemon).query_row(count, [anchored as i64], |row| row.get(0)).unwrap();
        assert!(covered as usize >= told, "seed {seed}, round {counter}: {covered} of {told} are covered");
        on_token(&daemon, "anchors 1");
    }
    assert!(told > 4, "seed {seed}");
}
