//! A credential's life over the API, as a bank's backend sees it.

use serde_json::{Value, json};

use crate::bank::{act, credential, credentials, delete, done, failed, path, refused, resync};
use crate::daemon::{Daemon, SEED_HEX, enrol, enrol_hotp, problem, rfc_code, text, verify};

#[tokio::test]
async fn a_right_code_a_repeated_one_and_a_wrong_one() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;

    let right = verify(&bank, &id, &rfc_code(0)).await;
    assert_eq!(right.status, 200);
    assert_eq!(right.json().unwrap(), json!({ "verified": true, "id": id, "account": "acct-1" }));

    let repeated = verify(&bank, &id, &rfc_code(0)).await;
    assert_eq!((repeated.status.as_u16(), problem(&repeated).as_str()), (403, "verification-failed"));
    assert_eq!(repeated.json().unwrap()["attempts_remaining"], 5, "a double click costs nothing");

    let wrong = verify(&bank, &id, &rfc_code(5_000)).await;
    assert_eq!((wrong.status.as_u16(), problem(&wrong).as_str()), (403, "verification-failed"));
    assert_eq!(wrong.json().unwrap()["attempts_remaining"], 4);
}

#[tokio::test]
async fn what_is_enrolled_is_what_is_read() {
    const NOW: u64 = 1_893_456_000;
    let daemon = Daemon::start_at(NOW);
    let bank = daemon.connect("bank-a").await;
    let common = json!({ "account": "acct-1", "tenant": "bank-a", "state": "active", "failures": 0,
        "created_at": "2030-01-01T00:00:00Z" });
    let hotp = json!({ "type": "hotp", "algorithm": "SHA1", "digits": 6, "counter": 0, "look_ahead": 10 });
    let totp = json!({ "type": "totp", "algorithm": "SHA1", "digits": 6, "period": 30, "skew_steps": 1,
        "drift_steps": 0 });
    for (asked, told) in [
        (json!({ "type": "hotp" }), hotp),
        (json!({ "type": "totp" }), totp),
        (
            json!({ "type": "hotp", "algorithm": "SHA256", "digits": 8, "counter": 7, "look_ahead": 0,
                "seed_hex": SEED_HEX }),
            json!({ "type": "hotp", "algorithm": "SHA256", "digits": 8, "counter": 7, "look_ahead": 0 }),
        ),
        (
            json!({ "type": "totp", "algorithm": "SHA512", "digits": 7, "period": 60, "skew_steps": 2,
                "seed_base32": "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ" }),
            json!({ "type": "totp", "algorithm": "SHA512", "digits": 7, "period": 60, "skew_steps": 2,
                "drift_steps": 0 }),
        ),
    ] {
        let merged = |with: &Value| {
            let mut all = with.as_object().unwrap().clone();
            all.extend(common.as_object().unwrap().clone());
            all
        };
        let mut asked = asked;
        asked["account"] = json!("acct-1");
        let answer = bank.post("/v1/credentials", &asked).await.unwrap();
        assert_eq!(answer.status, 201, "{}", text(&answer));
        let document = answer.json().unwrap();
        let id = document["id"].as_str().unwrap();
        assert!(id.strip_prefix("cred_").is_some_and(|rest| rest.len() == 26), "{id}");
        assert_eq!(answer.header("location"), Some(&*path(id, "")));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
        let mut expected = merged(&told);
        expected.insert("id".into(), json!(id));
        assert_eq!(document, Value::Object(expected));
        assert_eq!(credential(&bank, id).await, document);
    }
}

#[tokio::test]
async fn lists_are_paged_in_the_order_of_enrolment() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    assert_eq!(credentials(&bank).await, json!([]));
    let mut all = Vec::new();
    for number in 0..7 {
        all.push(enrol_hotp(&bank, &format!("acct {}&", number % 2)).await);
    }
    let pages = async |limit: usize, account: &str| {
        let mut found = Vec::new();
        let mut after = String::new();
        loop {
            let page = bank.get(&format!("/v1/credentials?limit={limit}{account}{after}")).await.unwrap();
            let page = done(&page);
            assert_eq!(page.as_object().unwrap().len(), 2, "items and next: {page}");
            let ids: Vec<_> =
                page["items"].as_array().unwrap().iter().map(|item| item["id"].clone()).collect();
            assert!((1..=limit).contains(&ids.len()), "{ids:?}");
            found.extend(ids);
            let Some(next) = page["next"].as_str() else { break found };
            after = format!("&after={next}");
        }
    };
    for limit in [1, 2, 3, 6, 7, 8, 100] {
        assert_eq!(pages(limit, "").await, all, "{limit} a page");
        let even: Vec<_> = all.iter().step_by(2).cloned().collect();
        assert_eq!(pages(limit, "&account=acct%200%26").await, even, "{limit} a page");
    }
    // A deleted one is in no list, and the page after it still is.
    assert_eq!(delete(&bank, &all[2]).await.status, 200);
    let after = bank.get(&format!("/v1/credentials?limit=2&after={}", all[1])).await.unwrap();
    let ids: Vec<_> =
        done(&after)["items"].as_array().unwrap().iter().map(|item| item["id"].clone()).collect();
    assert_eq!(ids, all[3..5]);
    all.remove(2);
    assert_eq!(pages(3, "").await, all);
    let none = bank.get("/v1/credentials?account=nobody").await.unwrap();
    assert_eq!(done(&none), json!({ "items": [], "next": null }));
}

#[tokio::test]
async fn what_is_deleted_is_nowhere() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let (id, kept) = (enrol_hotp(&bank, "acct-1").await, enrol_hotp(&bank, "acct-1").await);
    let answer = delete(&bank, &id).await;
    assert_eq!(done(&answer), json!({ "id": id, "state": "deleted" }));

    refused(&delete(&bank, &id).await, 404, "not-found");
    refused(&bank.get(&path(&id, "")).await.unwrap(), 404, "not-found");
    refused(&verify(&bank, &id, &rfc_code(0)).await, 404, "not-found");
    refused(&resync(&bank, &id, [rfc_code(0), rfc_code(1)]).await, 404, "not-found");
    for action in ["suspend", "resume", "unlock"] {
        refused(&act(&bank, &id, action).await, 404, "not-found");
    }
    let left = credentials(&bank).await;
    assert_eq!((left.as_array().unwrap().len(), &left[0]["id"]), (1, &json!(kept)));
    let mut daemon = daemon;
    daemon.kill();
    daemon.resume();
    let bank = daemon.connect("bank-a").await;
    refused(&verify(&bank, &id, &rfc_code(0)).await, 404, "not-found");
    done(&verify(&bank, &kept, &rfc_code(0)).await);
}

#[tokio::test]
async fn suspended_is_refused_until_resumed() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    let id = enrol_hotp(&bank, "acct-1").await;
    refused(&act(&bank, &id, "resume").await, 409, "state-conflict");
    let suspended = done(&act(&bank, &id, "suspend").await);
    assert_eq!(suspended["state"], "suspended");
    assert_eq!(credential(&bank, &id).await, suspended);
    assert_eq!(credentials(&bank).await[0], suspended);
    refused(&act(&bank, &id, "suspend").await, 409, "state-conflict");
    for otp in [rfc_code(0), rfc_code(5_000)] {
        refused(&verify(&bank, &id, &otp).await, 409, "state-conflict");
        refused(&resync(&bank, &id, [otp.clone(), rfc_code(1)]).await, 409, "state-conflict");
    }
    assert_eq!(credential(&bank, &id).await, suspended, "nothing was charged or used up");
    assert_eq!(done(&act(&bank, &id, "unlock").await)["state"], "suspended", "unlocking does not resume");

    let empty_object = bank.post(&path(&id, "resume"), &json!({})).await.unwrap();
    assert_eq!(done(&empty_object)["state"], "active");
    done(&verify(&bank, &id, &rfc_code(0)).await);
    act(&bank, &id, "suspend").await;
    assert_eq!(done(&delete(&bank, &id).await)["state"], "deleted");
}

#[tokio::test]
async fn a_counter_is_looked_for_ahead_and_never_behind() {
    let daemon = Daemon::start();
    let bank = daemon.connect("bank-a").await;
    for look_ahead in [0, 3, 100] {
        let body = json!({ "type": "hotp", "account": format!("la-{look_ahead}"), "seed_hex": SEED_HEX,
            "counter": 20, "look_ahead": look_ahead });
        let id = enrol(&bank, &body).await;
        assert_eq!(failed(&verify(&bank, &id, &rfc_code(19)).await), 4, "behind");
        assert_eq!(failed(&verify(&bank, &id, &rfc_code(20 + look_ahead + 1)).await), 3, "too far ahead");
        assert_eq!(credential(&bank, &id).await["counter"], 20, "a wrong guess moves nothing");
        done(&verify(&bank, &id, &rfc_code(20 + look_ahead)).await);
        let now = credential(&bank, &id).await;
        assert_eq!((&now["counter"], &now["failures"]), (&json!(20 + look_ahead + 1), &json!(0)));
        if look_ahead > 0 {
            assert_eq!(failed(&verify(&bank, &id, &rfc_code(20)).await), 4, "what was skipped is used up");
        }
        done(&verify(&bank, &id, &rfc_code(20 + 2 * look_ahead + 1)).await);
    }
}
