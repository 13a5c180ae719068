//! What was made for one transaction approves no other: every pair of credentials, accounts, tenants and methods.

use serde_json::{Value, json};

use crate::bank::{act, done, failed, path, refused};
use crate::client::{Connection, Response};
use crate::daemon::{Daemon, enrol, problem, text};
use crate::ocra::{BY_BOTH, BY_COUNTER, BY_TIME, NOW, PLAIN, STEP};
use crate::ocra_token::{Input, OcraToken, question};
use crate::transactions_client::{
    Approver, FULL_QUESTION, FULL_SESSION, Hand, approve, bound, respond, rs256, standing, token, view,
};

const BY_CODE: &str = "challenge_response";
const BY_DEVICE: &str = "device_signature";

/// The same seeds and keys for each of them: only what a response is made for tells them apart.
async fn approvers(bank: &Connection, tenant: &'static str, account: &str) -> Vec<Approver> {
    let mut all = Vec::new();
    for (method, hand) in [
        (BY_CODE, token(PLAIN)),
        (BY_CODE, token(BY_TIME)),
        (BY_CODE, token(FULL_QUESTION)),
        (BY_DEVICE, token(PLAIN)),
        (BY_DEVICE, token(FULL_SESSION)),
        (BY_DEVICE, Hand::Es256(7)),
        (BY_DEVICE, rs256()),
        (BY_DEVICE, Hand::Authenticator(7)),
    ] {
        all.push(Approver::enrol(bank, tenant, account, method, hand).await);
    }
    all
}

/// Whether a response of one in this form is of the form that the other asks for.
fn fits(one: &Approver, form: &str, other: &Approver) -> bool {
    match (&one.hand, &other.hand) {
        (Hand::Token(one), Hand::Token(other)) => {
            let question = Input { step: Some(STEP), session: Some(&[0; 32]), ..question("1") };
            one.code(question).len() == other.code(question).len()
        }
        // Any JWS fits any signer's form: its algorithm is a part of what is judged.
        _ => other.forms().contains(&form),
    }
}

/// Submits a response that was made for another transaction, and has `other` approve by its own.
async fn transplanted(bank: &Connection, response: &Value, fits: bool, other: &Approver, what: &str) {
    let transaction = other.transaction(bank).await;
    let attempts = transaction["attempts_remaining"].as_u64().unwrap();
    let answer = respond(bank, &transaction, response).await;
    let told = format!("{what}: {} {}", answer.status, text(&answer));
    let now = standing(bank, &transaction).await;
    if fits {
        assert_eq!((answer.status.as_u16(), &*problem(&answer)), (403, "verification-failed"), "{told}");
        let state = if attempts == 1 { "failed" } else { "pending" };
        assert_eq!(now, (state.to_owned(), attempts - 1), "{told}");
    } else {
        assert_eq!((answer.status.as_u16(), &*problem(&answer)), (422, "invalid"), "{told}");
        assert_eq!(now, ("pending".to_owned(), attempts), "{told}: what has no form costs nothing");
    }
    let mut own = transaction;
    if now.0 == "failed" {
        refused(&respond(bank, &own, &other.response(&own, 0)).await, 409, "state-conflict");
        own = other.transaction(bank).await;
    }
    approve(bank, &own, &other.response(&own, 0)).await;
}

/// The same for all approvers of an account.
async fn transplanted_to(
    bank: &Connection,
    one: &Approver,
    form: &str,
    response: &Value,
    others: &[Approver],
) {
    let describe = |approver: &Approver| {
        let Approver { tenant, account, method, .. } = approver;
        format!("{tenant} {account} {method} {}", approver.name())
    };
    for other in others {
        let what = format!("{form} of {} for {}", describe(one), describe(other));
        transplanted(bank, response, fits(one, form, other), other, &what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_response_approves_another_transaction() {
    let daemon = Daemon::start_at(NOW);
    let (a, b) = (daemon.connect("bank-a").await, daemon.connect("bank-b").await);
    // Of each account with its bank, and with another one.
    let accounts = [
        (&a, &b, approvers(&a, "bank-a", "alice").await),
        (&a, &b, approvers(&a, "bank-a", "bob").await),
        (&b, &a, approvers(&b, "bank-b", "alice").await),
    ];
    let mut made = 0;
    for (bank, stranger, approvers) in &accounts {
        for one in approvers {
            let first = one.transaction(bank).await;
            for form in one.forms() {
                let response = one.made_for(&bound(one.tenant, &first), form, 0);
                // The accounts at once: they wait for each other nowhere.
                let [alice, bob, other] = accounts
                    .each_ref()
                    .map(|(bank, _, others)| transplanted_to(bank, one, form, &response, others));
                tokio::join!(alice, bob, other);
                refused(&respond(stranger, &first, &response).await, 404, "not-found");
                made += 1;
            }
            assert_eq!(standing(bank, &first).await.0, "pending");
            approve(bank, &first, &one.response(&first, 0)).await;
        }
    }
    assert_eq!(made, 3 * (5 + 3 + 2 + 1));
}

async fn submitted(bank: &Connection, id: &str, otp: &Value, asked: &Value) -> Response {
    bank.post(&path(id, "verify"), &json!({ "otp": otp, "challenge": asked })).await.unwrap()
}

#[tokio::test]
async fn codes_of_verify_and_of_transactions_are_worth_nothing_for_each_other() {
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    for (number, suite) in [PLAIN, BY_TIME, BY_COUNTER, BY_BOTH].into_iter().enumerate() {
        let account = format!("acct-{number}");
        // One seed for both, which nobody should have.
        let asked_by_bank = OcraToken::new(suite);
        let verifying = enrol(&bank, &asked_by_bank.enrolment(&account)).await;
        let approver = Approver::enrol(&bank, "bank-a", &account, BY_CODE, token(suite)).await;
        let mut request = approver.request();
        request["credential"] = json!(verifying);
        let answer = bank.post("/v1/transactions", &request).await.unwrap();
        assert_eq!(refused(&answer, 422, "invalid")["field"], "credential", "{suite}");

        let transaction = approver.transaction(&bank).await;
        let made_up = Input { counter: Some(0), step: Some(STEP), ..question("12345678") };
        let code = asked_by_bank.code(made_up);
        assert_eq!(failed(&respond(&bank, &transaction, &json!({ "otp": code })).await), 2, "{suite}");
        done(&submitted(&bank, &verifying, &json!(code), &json!("12345678")).await);
        assert_eq!(failed(&respond(&bank, &transaction, &json!({ "otp": code })).await), 1, "used or not");

        let right = approver.response(&transaction, 0);
        approve(&bank, &transaction, &right).await;
        let after = view(&bank, &transaction).await;
        // Approved is approved: the code is worth nothing any more, here or elsewhere.
        refused(&respond(&bank, &transaction, &right).await, 409, "state-conflict");
        let other = approver.transaction(&bank).await;
        assert_eq!(failed(&respond(&bank, &other, &right).await), 2, "{suite}");
        let asked = &transaction["challenge"]["question"];
        refused(&submitted(&bank, &approver.id, &right["otp"], asked).await, 409, "state-conflict");
        assert_eq!(view(&bank, &transaction).await, after);
        done(&act(&bank, &approver.id, "unlock").await);
    }
}
