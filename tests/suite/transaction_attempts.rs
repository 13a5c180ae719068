//! What a wrong code for a transaction costs: the transaction, the credential and the account, once each.

use serde_json::{Value, json};

use crate::bank::{act, credential, done, failed, locked, refused};
use crate::client::Connection;
use crate::daemon::{Daemon, enrol_hotp, rfc_code, verify};
use crate::ocra::wrong;
use crate::transactions::{Holder, NOW, PLAIN, attestation, id, order, path, respond, transaction};

/// A counter that no window here reaches.
const FAR: u64 = 500_000;

async fn failures(bank: &Connection, id: &str) -> u64 {
    credential(bank, id).await["failures"].as_u64().unwrap()
}

/// A wrong code.
async fn miss(bank: &Connection, holder: &Holder, view: &Value) -> u64 {
    failed(&respond(bank, &id(view), &wrong(&holder.code(view))).await)
}

#[tokio::test]
async fn three_wrong_codes_end_it() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for (number, suite) in [PLAIN, "OCRA-1:HOTP-SHA1-6:C-QN08-PSHA1", "OCRA-1:HOTP-SHA512-10:QA40-S064-T1M"]
        .into_iter()
        .enumerate()
    {
        let holder = Holder::enrol(&bank, suite, &format!("acct-{number}")).await;
        let view = holder.asked(&bank).await;
        let mut expected = view.clone();
        for left in [2, 1, 0] {
            daemon.set_clock(NOW + 3 - left);
            let code = holder.code_of(view["digest"].as_str().unwrap(), 0, NOW + 3 - left);
            assert_eq!(failed(&respond(&bank, &id(&view), &wrong(&code)).await), left);
            expected["attempts_remaining"] = json!(left);
            if left == 0 {
                expected["state"] = json!("failed");
                expected["ended_at"] = json!("2027-01-15T08:00:03Z");
            }
            assert_eq!(transaction(&bank, &id(&view)).await, expected);
            assert_eq!(failures(&bank, &holder.credential).await, 3 - left);
        }
        // Too late, and it costs nothing more.
        for code in [holder.code(&view), wrong(&holder.code(&view))] {
            refused(&respond(&bank, &id(&view), &code).await, 409, "state-conflict");
        }
        for of in ["attestation", "qr"] {
            refused(&bank.get(&path(&id(&view), of)).await.unwrap(), 409, "state-conflict");
        }
        assert_eq!(failures(&bank, &holder.credential).await, 3);
        assert_eq!(transaction(&bank, &id(&view)).await, expected);
        // The next one is a new one, and its right code gives the credential's share back.
        let next = holder.approved(&bank, &order(&holder.credential)).await;
        assert_eq!(next["attempts_remaining"], 3);
        assert_eq!(failures(&bank, &holder.credential).await, 0);
        daemon.set_clock(NOW);
    }
}

#[tokio::test]
async fn a_right_code_after_wrong_ones_approves_and_clears() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    for misses in 0..3 {
        let view = holder.asked(&bank).await;
        for left in (3 - misses..3).rev() {
            assert_eq!(miss(&bank, &holder, &view).await, left);
        }
        let approved = done(&respond(&bank, &id(&view), &holder.code(&view)).await);
        assert_eq!(approved["state"], "approved");
        assert_eq!(approved["attempts_remaining"], 3 - misses);
        assert_eq!(failures(&bank, &holder.credential).await, 0);
        attestation(&bank, &id(&view)).await;
    }
    // The account's share is given back, too: nine misses so far would have locked it.
    let view = holder.asked(&bank).await;
    for left in [2, 1, 0] {
        assert_eq!(miss(&bank, &holder, &view).await, left);
    }
    let view = holder.asked(&bank).await;
    assert_eq!(miss(&bank, &holder, &view).await, 1, "the credential's fourth");
}

#[tokio::test]
async fn what_is_told_is_the_smallest_of_transaction_credential_and_account() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    // By what came before: (misses of the token itself, of another one of the account) -> what is told.
    for (own, others, told) in [
        (0, 0, &[2, 1, 0][..]),
        (1, 0, &[2, 1, 0]),
        (2, 0, &[2, 1, 0]),
        (3, 0, &[1, 0]),
        (4, 0, &[0]),
        (0, 2, &[2, 1, 0]),
        (0, 3, &[1, 0]),
        (0, 4, &[0]),
        (1, 2, &[1, 0]),
        (2, 2, &[0]),
    ] {
        let account = format!("acct-{own}-{others}");
        let holder = Holder::enrol(&bank, PLAIN, &account).await;
        let other = enrol_hotp(&bank, &account).await;
        for _ in 0..others {
            failed(&verify(&bank, &other, &rfc_code(FAR)).await);
        }
        for number in 0..own {
            // Each of its own transaction: what is left is the credential's.
            let view = holder.asked(&bank).await;
            let left = 2_u64.min(4 - number - others);
            assert_eq!(miss(&bank, &holder, &view).await, left, "{account}");
        }
        let view = holder.asked(&bank).await;
        for left in told {
            assert_eq!(miss(&bank, &holder, &view).await, *left, "{account}");
        }
        let tried = told.len() as u64;
        assert_eq!(failures(&bank, &holder.credential).await, own + tried, "{account}");
        assert_eq!(failures(&bank, &other).await, others);
        let now = transaction(&bank, &id(&view)).await;
        let ended = if tried == 3 { "failed" } else { "pending" };
        assert_eq!(
            (&now["state"], &now["attempts_remaining"]),
            (&json!(ended), &json!(3 - tried)),
            "{account}"
        );
        // Charged to the account once each: it locks with the fifth, and not before.
        if own + others + tried < 5 {
            assert_eq!(failed(&verify(&bank, &other, &rfc_code(FAR)).await), 4 - own - others - tried);
        } else {
            locked(&verify(&bank, &other, &rfc_code(FAR)).await);
        }
    }
}

#[tokio::test]
async fn a_lock_lets_nothing_in_and_changes_nothing() {
    let mut daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let holder = Holder::enrol(&bank, PLAIN, "acct-1").await;
    let other = enrol_hotp(&bank, "acct-1").await;
    let view = holder.asked(&bank).await;
    assert_eq!(miss(&bank, &holder, &view).await, 2);
    for left in [3, 2, 1, 0] {
        assert_eq!(failed(&verify(&bank, &other, &rfc_code(FAR)).await), left);
    }
    let before = transaction(&bank, &id(&view)).await;
    let code = holder.code(&view);
    for round in 0..2 {
        let bank = daemon.connect("bank-a").await;
        for otp in [&*code, &wrong(&code), "123456"] {
            assert_eq!(locked(&respond(&bank, &id(&view), otp).await), 900);
        }
        assert_eq!(transaction(&bank, &id(&view)).await, before);
        assert_eq!(failures(&bank, &holder.credential).await, 1);
        if round == 0 {
            daemon.kill();
            daemon.resume();
        }
    }
    let bank = daemon.connect("bank-a").await;
    // Transactions can be made and taken back meanwhile; that guesses nothing.
    let meanwhile = holder.asked(&bank).await;
    done(&crate::transactions::cancel(&bank, &id(&meanwhile)).await);
    done(&act(&bank, &holder.credential, "unlock").await);
    assert_eq!(transaction(&bank, &id(&view)).await, before, "the transaction's own attempts stay used");
    for left in [1, 0] {
        assert_eq!(miss(&bank, &holder, &view).await, left);
    }
    refused(&respond(&bank, &id(&view), &code).await, 409, "state-conflict");
}

#[tokio::test]
async fn the_code_accepted_last_is_refused_for_another_one_and_not_charged() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for (number, suite) in
        ["OCRA-1:HOTP-SHA1-6:C-QN08", "OCRA-1:HOTP-SHA256-8:C-QH64-PSHA1-T1M"].into_iter().enumerate()
    {
        let holder = Holder::enrol(&bank, suite, &format!("acct-{number}")).await;
        holder.approved(&bank, &order(&holder.credential)).await;
        let view = holder.asked(&bank).await;
        // What the token would have shown for this question with the counter that is used up.
        let stale = holder.code_of(view["digest"].as_str().unwrap(), 0, NOW);
        for _ in 0..7 {
            assert_eq!(failed(&respond(&bank, &id(&view), &stale).await), 3, "{suite}");
        }
        assert_eq!(transaction(&bank, &id(&view)).await, view);
        assert_eq!(failures(&bank, &holder.credential).await, 0);
        let fresh = holder.code_of(view["digest"].as_str().unwrap(), 1, NOW);
        done(&respond(&bank, &id(&view), &fresh).await);
        // An older one is no repeat but a guess.
        let view = holder.asked(&bank).await;
        let older = holder.code_of(view["digest"].as_str().unwrap(), 0, NOW);
        assert_eq!(failed(&respond(&bank, &id(&view), &older).await), 2);
        // Nor does the very code that approved another transaction do for this one.
        assert_eq!(failed(&respond(&bank, &id(&view), &fresh).await), 1);
    }
}
