//! A disk that fails under a verification: never a yes that is not durable, and nothing lost.

use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};

use serde_json::json;
use tokio::task::JoinSet;

use crate::daemon::Daemon;
use crate::failing_disk::FailingDisk;
use crate::served::{Served, configuration, section};
use crate::slow_request::SlowRequest;
use crate::submissions::{Crowd, Outcome, Submission, Tally, Token};
use crate::token::BINARY;

const COPIES: usize = 10;

pub fn start_on(disk: &FailingDisk) -> Daemon {
    let environment = disk.environment();
    let environment: Vec<(&str, &str)> = environment.iter().map(|(name, value)| (*name, &**value)).collect();
    Daemon::start_with(&["--custodians", "1"], &environment)
}

/// The credential's counter, and that nothing was held against it.
async fn counter(token: &Token, crowd: &Crowd) -> u64 {
    let view = token.view(crowd.connection(1)).await;
    assert_eq!(view["failures"], 0, "nothing but right codes was sent: {view}");
    view["counter"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_of_unknown_outcome_is_a_503_and_the_end() {
    let disk = FailingDisk::new();
    let mut daemon = start_on(&disk);
    let mut crowd = Crowd::of(&daemon, "bank-a").await;
    let tokens = crowd.enrol("hotp", None, 4).await;
    for (round, mode) in [(0, "write-eio"), (1, "fsync-eio"), (2, "write-then-eio")] {
        let right: Vec<Submission> = tokens.iter().map(|token| token.submission(round)).collect();
        disk.set(mode);
        let first = right[0].send(crowd.connection(1)).await;
        assert_eq!(first, Outcome::Unavailable, "{mode}");
        // It is ending: there may be nobody any more to answer these.
        for tally in crowd.tally(&right, COPIES).await {
            assert_eq!(tally.unavailable + tally.lost, COPIES, "{mode}: {tally:?}");
        }
        assert_eq!(daemon.ended().code(), Some(1), "{mode}");
        let said = "hsm-authd: the store does not know whether it wrote the last commit";
        assert_eq!(daemon.log().matches(said).count() as u64, round + 1, "{mode}: {}", daemon.log());
        disk.set("none");
        daemon.resume();

        crowd = Crowd::of(&daemon, "bank-a").await;
        let mut unused = Vec::new();
        for token in &tokens {
            let counter = counter(token, &crowd).await;
            assert!(counter == round || counter == round + 1, "{mode}: {counter}");
            unused.push((round + 1 - counter) as usize);
        }
        assert!(unused[1..].iter().all(|unused| *unused == 1), "{mode}: only the first was at the disk");
        for (tally, unused) in crowd.tally(&right, COPIES).await.iter().zip(unused) {
            assert_eq!(*tally, Tally { yes: unused, no: COPIES - unused, ..Tally::default() }, "{mode}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_wait_for_a_failing_commit_are_told() {
    let disk = FailingDisk::new();
    let mut daemon = start_on(&disk);
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let mut slow = Vec::new();
    for token in crowd.enrol("hotp", None, 20).await {
        let (url, identity) = (daemon.url(), daemon.identity("bank-a"));
        slow.push(SlowRequest::verify(&url, &identity, &token.id, &token.code(0)).await);
    }
    disk.set("write-eio");
    let answers: JoinSet<(u16, String)> = slow.into_iter().map(SlowRequest::finish).collect();
    for (status, body) in answers.join_all().await {
        assert_eq!(status, 503, "{body}");
    }
    assert_eq!(daemon.ended().code(), Some(1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_a_503_until_there_is_room() {
    let disk = FailingDisk::new();
    let mut daemon = start_on(&disk);
    let crowd = Crowd::of(&daemon, "bank-a").await;
    let tokens = crowd.enrol("hotp", None, 4).await;
    for token in &tokens {
        assert_eq!(token.submission(0).send(crowd.connection(1)).await, Outcome::Yes);
    }
    let right: Vec<Submission> = tokens.iter().map(|token| token.submission(1)).collect();
    for _ in 0..3 {
        disk.set("write-enospc");
        for tally in crowd.tally(&right, COPIES).await {
            assert_eq!(tally, Tally { unavailable: COPIES, ..Tally::default() });
        }
        let enrolment = json!({ "type": "hotp", "account": "too-many" });
        assert_eq!(crowd.connection(1).post("/v1/credentials", &enrolment).await.unwrap().status, 503);
        disk.set("none");
        for token in &tokens {
            assert_eq!(counter(token, &crowd).await, 1, "a 503 changed nothing");
        }
    }
    for tally in crowd.tally(&right, COPIES).await {
        assert_eq!(tally, Tally { yes: 1, no: COPIES - 1, ..Tally::default() });
    }
    daemon.kill();
    daemon.resume();
    let crowd = Crowd::of(&daemon, "bank-a").await;
    for token in &tokens {
        assert_eq!(counter(token, &crowd).await, 2);
        assert_eq!(token.submission(0).send(crowd.connection(1)).await, Outcome::No, "it was used long ago");
    }
}

/// A small file system of its own, and `serve` with its database on it. It obeys by line: `fill`,
/// `free`, `kill` (and a new start). It ends, and the file system with it, when its input does.
const STAGE: &str = r#"
    mount -t tmpfs -o size=1m tmpfs "$1" || exit 77
    serve() { "$2" serve --config "$3" & daemon=$!; }
    serve "$@"
    while read -r order; do
        case $order in
            fill) cat /dev/zero > "$1/filler" 2> /dev/null ;;
            free) rm "$1/filler" ;;
            kill) kill -KILL $daemon; wait $daemon; serve "$@" ;;
            still-there) kill -0 $daemon || exit 1 ;;
        esac
        echo "$order: done"
    done
    kill -TERM $daemon
    wait $daemon
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_system_without_room_is_a_503_until_there_is_some() {
    let mut daemon = Daemon::start_with(&["--custodians", "1"], &[]);
    daemon.stop();
    // The token of `dev` knows its database.
    std::fs::remove_dir_all(daemon.dir().join("token")).unwrap();
    crate::prepared::write_dev(&daemon.dir());
    let small = daemon.dir().join("small");
    std::fs::create_dir(&small).unwrap();
    let config = configuration(&daemon, "small.toml", |config| {
        let path = small.join("hsm-authd.db");
        section(config, "store").insert("path".into(), path.to_str().unwrap().into());
    });
    let mut command = Command::new("unshare");
    // Only root may mount, except in a user namespace of one's own.
    command.arg(if std::fs::metadata("/proc/self").unwrap().uid() == 0 { "-m" } else { "-rm" });
    command.args(["sh", "-c", STAGE, "stage"]).arg(&small).arg(BINARY).arg(&config);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    // A panic of its own says so where a small file system cannot be mounted.
    let mut served = Served::start_by(command, &config);
    let order = |served: &mut Served, order: &str| {
        served.tell(order);
        assert_eq!(served.hear(), format!("{order}: done"));
    };

    let crowd = Crowd::open(&served.url, &daemon.identity("bank-a")).await;
    let tokens = crowd.enrol("hotp", None, 4).await;
    for token in &tokens {
        assert_eq!(token.submission(0).send(crowd.connection(1)).await, Outcome::Yes);
    }
    order(&mut served, "fill");
    // What room there is in the last page is used up first.
    let mut next = 1;
    while tokens[0].submission(next).send(crowd.connection(1)).await == Outcome::Yes {
        next += 1;
        assert!(next < 100, "the file system has room");
    }
    let waiting: Vec<Submission> = tokens[1..].iter().map(|token| token.submission(1)).collect();
    for tally in crowd.tally(&waiting, COPIES).await {
        assert_eq!(tally, Tally { unavailable: COPIES, ..Tally::default() });
    }
    assert_eq!(counter(&tokens[0], &crowd).await, next, "reading goes on");
    order(&mut served, "still-there");

    order(&mut served, "free");
    for tally in crowd.tally(&waiting, COPIES).await {
        assert_eq!(tally, Tally { yes: 1, no: COPIES - 1, ..Tally::default() });
    }
    assert_eq!(tokens[0].submission(next).send(crowd.connection(1)).await, Outcome::Yes);

    order(&mut served, "kill");
    served.await_ready();
    let crowd = Crowd::open(&served.url, &daemon.identity("bank-a")).await;
    assert_eq!(counter(&tokens[0], &crowd).await, next + 1);
    for token in &tokens[1..] {
        assert_eq!(counter(token, &crowd).await, 2);
        assert_eq!(token.submission(1).send(crowd.connection(1)).await, Outcome::No);
    }
    drop(crowd);
    assert_eq!(served.end_of_input().code(), Some(0));
}
