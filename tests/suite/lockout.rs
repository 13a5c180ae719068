//! Guessing: what it costs, and what gives attempts back.

use serde_json::json;

use crate::bank::{act, credential, delete, done, failed, locked, path, refused, resync};
use crate::client::Connection;
use crate::daemon::{Daemon, enrol, enrol_hotp, rfc_code, verify};

const NOW: u64 = 1_800_000_000;
/// A counter that no window here reaches, so that its code is wrong.
const FAR: u64 = 500_000;

async fn miss(bank: &Connection, id: &str) -> u64 {
    failed(&verify(bank, id, &rfc_code(FAR)).await)
}

async fn failures(bank: &Connection, id: &str) -> u64 {
    credential(bank, id).await["failures"].as_u64().unwrap()
}

#[tokio::test]
async fn five_failures_lock_and_the_time_doubles() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let mut now = NOW;
    for round in 0..20 {
        for left in (0..5).rev() {
            assert_eq!(miss(&bank, &id).await, left);
        }
        if round == 19 {
            break;
        }
        let seconds = (900u64 << round.min(10)).min(24 * 60 * 60);
        for otp in [rfc_code(0), rfc_code(FAR)] {
            assert_eq!(locked(&verify(&bank, &id, &otp).await), seconds, "round {round}");
            assert_eq!(locked(&resync(&bank, &id, [otp, rfc_code(1)]).await), seconds);
        }
        assert_eq!(failures(&bank, &id).await, (round + 1) * 5, "what is not tried is not charged");
        daemon.set_clock(now + seconds - 1);
        assert_eq!(locked(&verify(&bank, &id, &rfc_code(0)).await), 1);
        now += seconds;
        daemon.set_clock(now);
    }
    // A hundred without a success: now nothing but /unlock helps.
    for wait in [0, 25 * 60 * 60, 365 * 24 * 60 * 60] {
        daemon.set_clock(now + wait);
        let answer = verify(&bank, &id, &rfc_code(0)).await;
        let document = refused(&answer, 423, "locked");
        assert_eq!((document.get("retry_after"), answer.header("retry-after")), (None, None));
    }
    assert_eq!(done(&act(&bank, &id, "unlock").await)["failures"], 0);
    for left in (0..5).rev() {
        assert_eq!(miss(&bank, &id).await, left);
    }
    assert_eq!(locked(&verify(&bank, &id, &rfc_code(0)).await), 900, "and it begins anew");
}

#[tokio::test]
async fn a_lock_that_ended_lets_the_right_code_in() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    for _ in 0..5 {
        miss(&bank, &id).await;
    }
    assert_eq!(locked(&verify(&bank, &id, &rfc_code(0)).await), 900);
    daemon.kill();
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    assert_eq!(locked(&verify(&bank, &id, &rfc_code(0)).await), 900, "a restart opens no lock");
    daemon.set_clock(NOW + 900);
    done(&verify(&bank, &id, &rfc_code(0)).await);
    assert_eq!(failures(&bank, &id).await, 0);
    for left in (0..5).rev() {
        assert_eq!(miss(&bank, &id).await, left);
    }
    assert_eq!(locked(&verify(&bank, &id, &rfc_code(1)).await), 900, "after a success it is a first lock");
}

#[tokio::test]
async fn an_account_is_locked_by_all_its_credentials_together() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(enrol_hotp(&bank, "acct-1").await);
    }
    let elsewhere = enrol_hotp(&bank, "acct-2").await;
    for (id, left) in [(0, 4), (0, 3), (1, 2), (1, 1), (2, 0)] {
        assert_eq!(miss(&bank, &ids[id]).await, left);
    }
    for id in &ids {
        assert!((890..=900).contains(&locked(&verify(&bank, id, &rfc_code(0)).await)));
    }
    let fresh = enrol_hotp(&bank, "acct-1").await;
    locked(&verify(&bank, &fresh, &rfc_code(0)).await);
    done(&verify(&bank, &elsewhere, &rfc_code(0)).await);

    // Unlocking one clears it and the account; the others keep their own.
    assert_eq!(done(&act(&bank, &ids[0], "unlock").await)["failures"], 0);
    assert_eq!((failures(&bank, &ids[1]).await, failures(&bank, &ids[2]).await), (2, 1));
    assert_eq!(miss(&bank, &ids[1]).await, 2, "two of its own, none of the account's");
    for id in &ids {
        done(&verify(&bank, id, &rfc_code(0)).await);
    }
}

#[tokio::test]
async fn a_success_gives_back_its_own_share_alone() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let (a, b) = (enrol_hotp(&bank, "acct-1").await, enrol_hotp(&bank, "acct-1").await);
    for (id, left) in [(&a, 4), (&a, 3), (&b, 2), (&b, 1)] {
        assert_eq!(miss(&bank, id).await, left);
    }
    done(&verify(&bank, &a, &rfc_code(0)).await);
    assert_eq!((failures(&bank, &a).await, failures(&bank, &b).await), (0, 2));
    // The account still counts the other's two.
    assert_eq!(failed(&verify(&bank, &a, &rfc_code(0)).await), 3);
    for left in [2, 1, 0] {
        assert_eq!(miss(&bank, &a).await, left);
    }
    locked(&verify(&bank, &a, &rfc_code(1)).await);
    locked(&verify(&bank, &b, &rfc_code(0)).await);
}

#[tokio::test]
async fn a_deletion_gives_no_guesses_back() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    for left in (0..5).rev() {
        let id = enrol_hotp(&bank, "acct-1").await;
        assert_eq!(miss(&bank, &id).await, left);
        assert_eq!(delete(&bank, &id).await.status, 200);
    }
    let id = enrol_hotp(&bank, "acct-1").await;
    locked(&verify(&bank, &id, &rfc_code(0)).await);
    act(&bank, &id, "unlock").await;
    done(&verify(&bank, &id, &rfc_code(0)).await);
}

#[tokio::test]
async fn unlocking_is_right_also_where_nothing_is_locked() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    let fresh = credential(&bank, &id).await;
    assert_eq!(done(&act(&bank, &id, "unlock").await), fresh);
    miss(&bank, &id).await;
    assert_eq!(done(&act(&bank, &id, "unlock").await), fresh);
    assert_eq!(done(&bank.post(&path(&id, "unlock"), &json!({})).await.unwrap()), fresh);
    // It gives no code back.
    done(&verify(&bank, &id, &rfc_code(0)).await);
    act(&bank, &id, "unlock").await;
    assert_eq!(failed(&verify(&bank, &id, &rfc_code(0)).await), 5);
}

#[tokio::test]
async fn a_repeat_is_never_charged_and_never_right() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let hotp = enrol_hotp(&bank, "acct-1").await;
    let body = json!({ "type": "totp", "account": "acct-2", "seed_hex": crate::daemon::SEED_HEX });
    let totp = enrol(&bank, &body).await;
    for (id, otp) in [(&hotp, rfc_code(0)), (&totp, rfc_code(NOW / 30))] {
        done(&verify(&bank, id, &otp).await);
        for _ in 0..12 {
            assert_eq!(failed(&verify(&bank, id, &otp).await), 5);
        }
        assert_eq!(failures(&bank, id).await, 0);
    }
    // An older one is no repeat but a guess.
    done(&verify(&bank, &hotp, &rfc_code(1)).await);
    assert_eq!(failed(&verify(&bank, &hotp, &rfc_code(0)).await), 4);
    // A repeat gives nothing back either.
    assert_eq!(failed(&verify(&bank, &hotp, &rfc_code(1)).await), 4);
}
