//! A wall clock that steps: what depends on the time is neither yes nor no until an operator accepts it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::bank::{act, credential, done, failed, locked, refused, resync};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, SEED_HEX, enrol, enrol_hotp, rfc_code, verify};

const NOW: u64 = 1_800_000_000;
/// A counter that no window here reaches, so that its code is wrong.
const FAR: u64 = 500_000;
const ACCEPT: &str = "--accept-clock";

async fn totp(bank: &Connection, account: &str) -> String {
    enrol(bank, &json!({ "type": "totp", "account": account, "seed_hex": SEED_HEX })).await
}

async fn lock(bank: &Connection, id: &str) {
    for _ in 0..5 {
        failed(&verify(bank, id, &rfc_code(FAR)).await);
    }
    assert_eq!(locked(&verify(bank, id, &rfc_code(FAR)).await), 900);
}

/// No answer because of the clock.
fn unknown(answer: &Response) {
    assert_eq!(refused(answer, 503, "unavailable")["retry_after"], 60);
}

/// Waits until a step is in the log for good.
pub fn recorded(daemon: &Daemon) {
    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    database.busy_timeout(Duration::from_secs(10)).unwrap();
    let stepped = || -> bool {
        let sql = "SELECT event = 'clock.stepped' FROM audit
                   WHERE event LIKE 'clock.%' ORDER BY seq DESC LIMIT 1";
        database.query_row(sql, [], |row| row.get(0)).unwrap_or(false)
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while !stepped() {
        assert!(Instant::now() < deadline, "no step in the log: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(5));
    }
}

// Stopping waits for the client's end of its connection, which needs a thread of its own.
#[tokio::test(flavor = "multi_thread")]
async fn a_step_ends_what_depends_on_the_time_until_it_is_accepted() {
    for stepped_to in [NOW + 6, NOW - 6, NOW + 365 * 24 * 60 * 60] {
        let mut daemon = Daemon::start_at(NOW);
        let bank = daemon.connect("bank-a").await;
        let (by_time, by_counter) = (totp(&bank, "acct-1").await, enrol_hotp(&bank, "acct-2").await);
        let (by_lock, other) = (enrol_hotp(&bank, "acct-3").await, totp(&bank, "acct-4").await);
        lock(&bank, &by_lock).await;
        let before = credential(&bank, &by_time).await;
        daemon.step_clock(stepped_to);

        for round in 0..3 {
            let bank = daemon.connect("bank-a").await;
            for unix_s in [NOW, stepped_to] {
                unknown(&verify(&bank, &by_time, &rfc_code(unix_s / 30)).await);
                let otps = [rfc_code(unix_s / 30 - 1), rfc_code(unix_s / 30)];
                unknown(&resync(&bank, &by_time, otps).await);
            }
            unknown(&verify(&bank, &by_time, &rfc_code(FAR)).await);
            unknown(&verify(&bank, &by_lock, &rfc_code(0)).await);
            assert_eq!(credential(&bank, &by_time).await, before, "nothing was charged or used up");
            done(&verify(&bank, &by_counter, &rfc_code(round)).await);
            failed(&verify(&bank, &by_counter, &rfc_code(9_000)).await);
            // What needs no time goes on, and so does the operator's way out of a lock.
            let fresh = totp(&bank, &format!("fresh-{round}")).await;
            done(&act(&bank, &fresh, "suspend").await);
            match round {
                0 => {
                    recorded(&daemon);
                    daemon.kill();
                    daemon.resume();
                }
                // The wall clock back where it belongs: still nobody has accepted it.
                1 => {
                    daemon.step_clock(NOW);
                    assert!(daemon.stop().success());
                    daemon.resume();
                    daemon.step_clock(stepped_to);
                }
                _ => {}
            }
        }
        let bank = daemon.connect("bank-a").await;
        done(&act(&bank, &by_lock, "unlock").await);
        done(&verify(&bank, &by_lock, &rfc_code(0)).await);

        daemon.kill();
        daemon.resume_with(&[ACCEPT]);
        let bank = daemon.connect("bank-a").await;
        // Codes of steps that were within reach when it was killed may have been used up.
        assert_eq!(failed(&verify(&bank, &by_time, &rfc_code(stepped_to / 30)).await), 5);
        let accepted_at = stepped_to + 60;
        daemon.set_clock(accepted_at);
        done(&verify(&bank, &by_time, &rfc_code(accepted_at / 30)).await);
        // Accepted once is accepted: the next start needs no word for it.
        assert!(daemon.stop().success());
        daemon.resume_without(ACCEPT);
        let bank = daemon.connect("bank-a").await;
        assert_eq!(failed(&verify(&bank, &by_time, &rfc_code(accepted_at / 30)).await), 5);
        done(&verify(&bank, &other, &rfc_code(accepted_at / 30)).await);
    }
}

#[tokio::test]
async fn a_lock_outlasts_either_clock_alone() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    lock(&bank, &id).await;
    daemon.kill();
    // Set forward while nothing ran, and accepted: the time since boot still counts.
    daemon.step_clock(NOW + 1_000);
    daemon.resume_with(&[ACCEPT]);
    let bank = daemon.connect("bank-a").await;
    assert_eq!(locked(&verify(&bank, &id, &rfc_code(0)).await), 900);
    daemon.set_clock(NOW + 1_899);
    assert_eq!(locked(&verify(&bank, &id, &rfc_code(0)).await), 1);
    daemon.set_clock(NOW + 1_900);
    done(&verify(&bank, &id, &rfc_code(0)).await);
}

#[tokio::test]
async fn a_start_before_the_log_is_not_believed() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let (id, hotp) = (totp(&bank, "acct-1").await, enrol_hotp(&bank, "acct-2").await);
    done(&verify(&bank, &id, &rfc_code(NOW / 30)).await);
    let earlier = NOW - 60;
    daemon.kill();
    daemon.step_clock(earlier);
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    unknown(&verify(&bank, &id, &rfc_code(earlier / 30)).await);
    unknown(&verify(&bank, &id, &rfc_code(NOW / 30)).await);
    // It writes to the log now, at the earlier time; that makes it no more credible.
    done(&verify(&bank, &hotp, &rfc_code(0)).await);
    recorded(&daemon);
    daemon.kill();
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    unknown(&verify(&bank, &id, &rfc_code(earlier / 30)).await);

    daemon.kill();
    daemon.resume_with(&[ACCEPT]);
    let bank = daemon.connect("bank-a").await;
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(NOW / 30)).await), 5, "used is used, whatever the clock");
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(earlier / 30)).await), 4);
    daemon.set_clock(NOW + 30);
    done(&verify(&bank, &id, &rfc_code(NOW / 30 + 1)).await);
}

#[tokio::test]
async fn a_step_within_five_seconds_is_followed_and_revives_nothing() {
    let start = NOW / 30 * 30 + 30_002;
    let step = start / 30;
    let daemon = Daemon::start_at(start);
    let bank = daemon.connect("bank-a").await;
    let (used, fresh) = (totp(&bank, "acct-1").await, totp(&bank, "acct-2").await);
    done(&verify(&bank, &used, &rfc_code(step)).await);
    daemon.step_clock(start - 5);
    assert_eq!(failed(&verify(&bank, &used, &rfc_code(step)).await), 5, "a repeat");
    assert_eq!(failed(&verify(&bank, &used, &rfc_code(step - 1)).await), 4, "before what was used");
    assert_eq!(failed(&verify(&bank, &used, &rfc_code(step - 2)).await), 3);
    done(&verify(&bank, &fresh, &rfc_code(step - 2)).await);
    daemon.step_clock(start);
    assert_eq!(failed(&verify(&bank, &used, &rfc_code(step)).await), 3);
    done(&verify(&bank, &used, &rfc_code(step + 1)).await);
}
