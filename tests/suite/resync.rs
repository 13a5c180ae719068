//! Tokens that ran away, found again by two consecutive codes.

use serde_json::json;

use crate::bank::{credential, done, failed, locked, resync};
use crate::client::Connection;
use crate::daemon::{Daemon, SEED_HEX, enrol, enrol_hotp, rfc_code, verify};

const NOW: u64 = 1_800_000_000;
const STEP: u64 = NOW / 30;

fn pair(first: u64) -> [String; 2] {
    [rfc_code(first), rfc_code(first + 1)]
}

async fn totp(bank: &Connection, account: &str, skew_steps: u64) -> String {
    let body = json!({ "type": "totp", "account": account, "seed_hex": SEED_HEX, "skew_steps": skew_steps });
    enrol(bank, &body).await
}

#[tokio::test]
async fn a_counter_far_ahead_is_found_by_two_codes() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(500)).await), 4, "one code is not enough");
    let found = done(&resync(&bank, &id, pair(500)).await);
    assert_eq!(found, json!({ "resynced": true, "id": id, "account": "acct-1" }));
    let now = credential(&bank, &id).await;
    assert_eq!((&now["counter"], &now["failures"]), (&json!(502), &json!(0)), "it is a success");
    // Both are used up; the second is the one accepted last.
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(501)).await), 5);
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(500)).await), 4);
    done(&verify(&bank, &id, &rfc_code(502)).await);

    for (first, found) in [(503 + 1_000, false), (503 + 999, true)] {
        let answer = resync(&bank, &id, pair(first)).await;
        if found {
            done(&answer);
        } else {
            assert_eq!(failed(&answer), 4, "beyond the window");
        }
    }
}

/// The custodian is asked for 64 at a time.
#[tokio::test]
async fn two_codes_are_found_on_either_side_of_a_messages_end() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let mut next = 0;
    let id = enrol_hotp(&bank, "acct-1").await;
    for beyond in [63, 64, 127, 62] {
        done(&resync(&bank, &id, pair(next + beyond)).await);
        next += beyond + 2;
        assert_eq!(credential(&bank, &id).await["counter"], next, "{beyond}");
    }
}

#[tokio::test]
async fn what_does_not_follow_is_charged_like_any_guess() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    done(&resync(&bank, &id, pair(100)).await);
    let wrong = [
        ([rfc_code(200), rfc_code(202)], "one between"),
        ([rfc_code(201), rfc_code(200)], "the wrong way round"),
        ([rfc_code(200), rfc_code(200)], "one code twice"),
        (pair(99), "used up"),
    ];
    for ((otps, what), left) in wrong.into_iter().zip((1..5).rev()) {
        assert_eq!(failed(&resync(&bank, &id, otps).await), left, "{what}");
    }
    assert_eq!(credential(&bank, &id).await["counter"], 102, "no code was burnt");
    assert_eq!(failed(&resync(&bank, &id, pair(70_000)).await), 0);
    locked(&resync(&bank, &id, pair(200)).await);
    locked(&verify(&bank, &id, &rfc_code(102)).await);
}

#[tokio::test]
async fn a_clock_that_is_off_is_found_and_followed() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for drift in [40i64, -40, 120, -119] {
        daemon.set_clock(NOW);
        let id = totp(&bank, &format!("drift {drift}"), 1).await;
        let shown = |after: u64| (STEP + after).checked_add_signed(drift).unwrap();
        assert_eq!(failed(&verify(&bank, &id, &rfc_code(shown(0))).await), 4, "out of the window");
        done(&resync(&bank, &id, pair(shown(0) - 1)).await);
        let now = credential(&bank, &id).await;
        assert_eq!((&now["drift_steps"], &now["failures"]), (&json!(drift), &json!(0)));
        assert_eq!(failed(&verify(&bank, &id, &rfc_code(shown(0))).await), 5, "used up by the resync");
        for later in [1, 1_000] {
            daemon.set_clock(NOW + later * 30);
            assert_eq!(failed(&verify(&bank, &id, &rfc_code(STEP + later)).await), 4, "drift {drift}");
            done(&verify(&bank, &id, &rfc_code(shown(later))).await);
        }
        assert_eq!(credential(&bank, &id).await["drift_steps"], drift);
    }
    daemon.set_clock(NOW);
    for first in [STEP - 121, STEP + 121] {
        let id = totp(&bank, "beyond", 1).await;
        failed(&resync(&bank, &id, pair(first)).await);
        assert_eq!(credential(&bank, &id).await["drift_steps"], 0);
    }
}

#[tokio::test]
async fn the_window_of_a_time_is_as_wide_as_it_was_enrolled() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for skew in 0..=2 {
        for offset in -3i64..=3 {
            let id = totp(&bank, &format!("{skew} {offset}"), skew).await;
            let answer = verify(&bank, &id, &rfc_code(STEP.checked_add_signed(offset).unwrap())).await;
            if offset.unsigned_abs() <= skew {
                done(&answer);
            } else {
                assert_eq!(failed(&answer), 4, "skew {skew}, {offset} off");
            }
        }
    }
    // The edges of a step, to the second.
    let id = totp(&bank, "edges", 0).await;
    let start = (STEP + 10) * 30;
    for (now, right) in [(start - 1, false), (start, true)] {
        daemon.set_clock(now);
        assert_eq!(verify(&bank, &id, &rfc_code(STEP + 10)).await.status == 200, right);
    }
    daemon.set_clock(start + 29);
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(STEP + 10)).await), 5, "still the same step");
    daemon.set_clock(start + 30);
    done(&verify(&bank, &id, &rfc_code(STEP + 11)).await);
}
