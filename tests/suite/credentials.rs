//! A credential's life over the API, as a bank's backend sees it.

use serde_json::json;

use crate::daemon::{Daemon, enrol_hotp, problem, rfc_code, verify};

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
