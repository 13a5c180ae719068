//! Custodians that have not seen yet that there is a newer key: they never say that what was made with it is nothing.

use std::mem::ManuallyDrop;
use std::time::{Duration, Instant};

use hsm_authd::domain::id::PresentationId;
use hsm_authd::domain::idempotency::Fingerprint;
use hsm_authd::domain::presentation::PresentationCode;
use hsm_authd::domain::row::SealedBytes;
use hsm_authd::domain::system_key::{KeyKind, NewestKeys};
use hsm_authd::hsm::messages::{Fault, Outcome, Request, Response, SealRows, Tired};
use hsm_authd::secret::SecretBytes;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::custodian::once_it_has_looked;
use crate::daemon::{Daemon, SEED_HEX, enrol_hotp, rfc_code};
use crate::intruder::intrude;
use crate::processes::eventually;
use crate::store_samples;
use crate::token::{Custodian, TestToken};

fn row(version: u16) -> NewestKeys {
    NewestKeys::new([(KeyKind::Row, version)])
}

impl Custodian {
    fn fingerprints(&mut self, newest: NewestKeys) -> Result<Vec<Fingerprint>, Fault> {
        let request = Request::Fingerprint(SecretBytes::new(b"a request".to_vec()));
        match self.call_knowing(newest, request).0? {
            Response::Fingerprints(all) => Ok(all),
            _ => panic!("another response"),
        }
    }

    fn code(&mut self, newest: NewestKeys, hash: Option<[u8; 32]>) -> Result<PresentationCode, Fault> {
        let id = PresentationId::from_random([5; 16]);
        let request = Request::PresentationCode { id, nonce: [6; 32], code_hash: hash };
        match self.call_knowing(newest, request).0? {
            Response::PresentationCode(code) => {
                Ok(PresentationCode::new(code.expose().first_chunk().unwrap()))
            }
            _ => panic!("another response"),
        }
    }

    fn is_right(&mut self, rows: &[SealedBytes]) -> Result<(), Fault> {
        let rows = SealRows { standing: rows.to_vec(), outcome: Outcome::default() };
        self.call(Request::Seal(rows)).map(drop)
    }
}

/// Has it look, so that it looks no more for a second.
fn has_just_looked(custodian: &mut Custodian) {
    let mut forged = custodian.seal(&[store_samples::state(1, "t").into()]);
    forged[0].seal.key_version = 900;
    assert_eq!(custodian.is_right(&forged), Err(Fault::Seal(0)));
}

#[test]
fn who_is_told_of_a_newer_key_looks_for_it_before_it_says_what_is_not_there() {
    for looked in [false, true] {
        let token = TestToken::made();
        let mut stale = token.custodian();
        if looked {
            has_just_looked(&mut stale);
        }
        let before = stale.fingerprints(NewestKeys::default()).unwrap();
        intrude(&token, "right hsm-authd/row/v2");
        let mut fresh = token.custodian();
        let all = fresh.fingerprints(row(2)).unwrap();
        assert_eq!((all.len(), &all[1..]), (2, &before[..]));
        let hash = fresh.code(row(2), None).unwrap().hash();

        let first = stale.fingerprints(row(2));
        match looked {
            false => assert_eq!(first.unwrap(), all),
            true => assert_eq!(first, Err(Fault::Later), "not only those that it knows"),
        }
        if looked {
            assert_eq!(stale.code(row(2), Some(hash)).err(), Some(Fault::Later));
        }
        assert_eq!(once_it_has_looked(|| stale.fingerprints(row(2))).unwrap(), all);
        assert_eq!(stale.code(row(2), Some(hash)).unwrap().hash(), hash);
    }
}

/// The front hears of it with the answer, before anybody has what was made with it.
#[test]
fn who_finds_a_newer_key_tells_of_it_once() {
    let token = TestToken::made();
    let mut stale = token.custodian();
    intrude(&token, "right hsm-authd/row/v2");
    let mut fresh = token.custodian();
    let rows = fresh.seal(&[store_samples::state(1, "t").into()]);
    assert_eq!(rows[0].seal.key_version, 2);
    let standing = || Request::Seal(SealRows { standing: rows.clone(), outcome: Outcome::default() });
    let (result, told) = stale.call_knowing(NewestKeys::default(), standing());
    assert!(result.is_ok());
    assert_eq!(told.unwrap().of(KeyKind::Row), 2);
    assert_eq!(stale.call_knowing(NewestKeys::default(), standing()).1, None);
    assert_eq!(fresh.call_knowing(NewestKeys::default(), standing()).1, None);
}

/// Somebody who forges a version has the token looked through; a good row of a new one must not be called forged for it.
#[test]
fn a_row_of_a_new_version_is_never_said_to_be_forged() {
    let token = TestToken::made();
    let mut stale = token.custodian();
    has_just_looked(&mut stale);
    intrude(&token, "right hsm-authd/row/v2");
    let rows = token.custodian().seal(&[store_samples::state(1, "t").into()]);
    assert_eq!(stale.is_right(&rows), Err(Fault::Later));
    assert_eq!(once_it_has_looked(|| stale.is_right(&rows)), Ok(()));
    // What was looked for in vain is nothing, at once; what is new to it is looked for.
    let mut forged = rows.clone();
    for version in [900, 901, 900] {
        forged[0].seal.key_version = version;
        assert_eq!(once_it_has_looked(|| stale.is_right(&forged)), Err(Fault::Seal(0)), "{version}");
    }
    // Below the newest there is nothing to look for.
    intrude(&token, "right hsm-authd/row/v4");
    assert_eq!(stale.call(Request::LoadKeys).map(drop), Ok(()));
    forged[0].seal.key_version = 3;
    assert_eq!(stale.is_right(&forged), Err(Fault::Seal(0)));
}

/// As SoftHSM now and then shows a process no more of what others change.
#[test]
fn who_goes_on_not_seeing_what_others_have_asks_to_be_replaced() {
    let token = TestToken::made();
    let mut stale = token.custodian();
    let mut rows = stale.seal(&[store_samples::state(1, "t").into()]);
    rows[0].seal.key_version = 2;
    let is_right = |custodian: &mut Custodian, told| {
        let rows = SealRows { standing: rows.clone(), outcome: Outcome::default() };
        custodian.call_knowing(told, Request::Seal(rows)).0.map(drop)
    };
    // Nobody has told of it: it is forged.
    assert_eq!(once_it_has_looked(|| is_right(&mut stale, row(1))), Err(Fault::Seal(0)));
    let begun = Instant::now();
    while stale.tired.is_none() && begun.elapsed() < Duration::from_secs(30) {
        assert_eq!(is_right(&mut stale, row(2)), Err(Fault::Later), "others have seen it");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(stale.tired, Some(Tired::Stale));
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());

    // Whoever comes next was told before it began, and goes on: it may be gone.
    let mut next = token.custodian();
    assert_eq!(once_it_has_looked(|| is_right(&mut next, row(2))), Err(Fault::Seal(0)));
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(1_500) {
        assert_eq!((is_right(&mut next, row(2)), next.tired), (Err(Fault::Seal(0)), None));
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// One of two custodians is new, and has the newer key; the other one has not seen it.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_finds_its_answer_whichever_custodian_is_asked() {
    let daemon = Daemon::start_with_own_keys();
    let bank = daemon.connect("bank-a").await;
    let hotp = enrol_hotp(&bank, "acct-1").await;
    intrude(&ManuallyDrop::new(TestToken::of(&daemon)), "right hsm-authd/row/v2");
    kill(Pid::from_raw(daemon.pids("custodian")[0]), Signal::SIGKILL).unwrap();
    eventually("there are two custodians again", async || {
        let up = daemon.log().matches("custodian is up").count();
        (up == 3).then_some(())
    })
    .await;
    for number in 0..12_u64 {
        let key = format!("key-{number}");
        let headers = [("content-type", "application/json"), ("idempotency-key", &*key)];
        let body = json!({ "otp": rfc_code(number) }).to_string();
        let path = format!("/v1/credentials/{hotp}/verify");
        let mut answers = Vec::new();
        for _ in 0..4 {
            let answer = bank.request("POST", &path, &headers, body.clone()).await.unwrap();
            assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
            answers.push(answer.body);
        }
        assert!(answers.iter().all(|answer| *answer == answers[0]));
    }
    let enrolment = json!({ "type": "hotp", "account": "acct-2", "seed_hex": SEED_HEX });
    assert_eq!(bank.post("/v1/credentials", &enrolment).await.unwrap().status, 201);
}

/// Keys of one kind may be in one token and not in another for as long as an interrupted command is not run again.
#[test]
fn who_lacks_a_key_of_one_kind_answers_what_is_of_another() {
    let token = TestToken::new();
    let mut custodian = token.custodian();
    has_just_looked(&mut custodian);
    let newest = |kind| NewestKeys::new([(kind, 9)]);
    assert!(custodian.fingerprints(newest(KeyKind::Kek)).is_ok());
    assert_eq!(custodian.fingerprints(newest(KeyKind::Row)).err(), Some(Fault::Later));
    let mut anchor = |kind| custodian.call_knowing(newest(kind), Request::ReadAnchor).0.map(drop);
    assert_eq!(anchor(KeyKind::Row), Ok(()));
    assert_eq!(anchor(KeyKind::Audit), Err(Fault::Later));
}
