//! A token that takes no anchor for a minute.

use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use crate::anchor::head;
use crate::bank::{done, path};
use crate::daemon::{Daemon, enrol_hotp, rfc_code, verify};
use crate::processes::eventually;
use crate::scrape::Scrape;
use crate::served::ops_get;
use crate::token::TestToken;

const REASON: &str = "the token takes no anchor of the log: ";

fn readiness(daemon: &Daemon) -> (u16, String) {
    ops_get(daemon.info["ops_url"].as_str().unwrap(), "/readyz")
}

/// What the bound is for takes a minute, by the clock of the machine.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_takes_no_anchor_for_a_minute_closes_the_door_until_it_takes_one() {
    let daemon = Daemon::start_with(&["--custodians", "1"], &[]);
    let bank = daemon.connect("bank-a").await;
    // The first entry that waits for an anchor may be this one's.
    let begun = Instant::now();
    let id = enrol_hotp(&bank, "acct-1").await;
    let token = ManuallyDrop::new(TestToken::of(&daemon));
    let mut custodian = token.custodian();
    let own = custodian.anchor().unwrap();
    // Of another log: what the service has does not extend it.
    let other = custodian.checkpoint(&head(9, 1, 1));
    custodian.write(&other, true).unwrap();

    done(&verify(&bank, &id, &rfc_code(0)).await);
    let deadline = begun + Duration::from_secs(90);
    while readiness(&daemon).0 == 200 {
        assert!(Instant::now() < deadline, "it stays open: {}", daemon.log());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(begun.elapsed() >= Duration::from_secs(60), "{:?}", begun.elapsed());
    let (status, says) = readiness(&daemon);
    assert!(status == 503 && says.starts_with(REASON) && says.contains("does not extend"), "{says}");
    for _ in 0..20 {
        assert_eq!(verify(&bank, &id, &rfc_code(1)).await.status, 503);
    }
    assert_eq!(bank.get(&path(&id, "")).await.unwrap().status, 200, "reads go on");
    assert_eq!(Scrape::of(&daemon).value("hsm_authd_log_closed", &[]), 1.0);

    custodian.write(&own, true).unwrap();
    eventually("it opens again", async || (readiness(&daemon).0 == 200).then_some(())).await;
    done(&verify(&bank, &id, &rfc_code(1)).await);
    assert_eq!(Scrape::of(&daemon).value("hsm_authd_log_closed", &[]), 0.0);
    let log = daemon.log();
    for told in [
        "no anchor of the log; it is tried again",
        "nothing is committed until the anchor follows the log",
        "the anchor follows the log again",
    ] {
        let lines = log.lines().filter(|line| line.contains(&format!("\"message\":\"{told}"))).count();
        assert_eq!(lines, 1, "{told}: {log}");
    }
}
