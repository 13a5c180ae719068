//! Which token has the server's key, and how many handshakes are signed at once.

use super::*;
use crate::domain::handshake::TranscriptHash;
use crate::domain::signer::PublicKey;
use crate::domain::signer::tests::key_named;
use crate::hsm::KeyPlace;
use crate::lifeline::Lifeline;
use crate::metrics::Custodian;

fn transcript() -> TranscriptHash {
    TranscriptHash::try_from(vec![1; 32]).unwrap()
}

#[tokio::test]
async fn a_key_is_where_a_token_told_of_it_and_nowhere_only_once_all_have_told() {
    let (sender, events) = mpsc::unbounded_channel();
    let mut fixture = Fixture { hsm: Hsm::new(&[1, 1], (Keeping::Wrapped, 1), sender), events };
    // Any keys do: nobody looks into them.
    let [ours, theirs] = ["p256", "rsa2048"].map(key_named);
    let place = |hsm: &Hsm, key: &PublicKey| hsm.tls_place(key);
    fixture.hsm.learn_tls(1, vec![theirs.clone()]);
    assert_eq!(place(&fixture.hsm, &ours), KeyPlace::Away);
    fixture.custodian(0, 1, |_| Act::Answer).await;
    assert_eq!(place(&fixture.hsm, &ours), KeyPlace::Away, "the other one may have it");
    assert_eq!(place(&fixture.hsm, &theirs), KeyPlace::Away, "it has it, and is not there");
    fixture.custodian(1, 1, |_| Act::Answer).await;
    assert_eq!(place(&fixture.hsm, &ours), KeyPlace::Nowhere);
    assert_eq!(place(&fixture.hsm, &theirs), KeyPlace::Here);
    fixture.hsm.learn_tls(0, vec![ours.clone()]);
    assert_eq!(place(&fixture.hsm, &ours), KeyPlace::Here);
    // One that does not see it takes nothing back; one that is asked for it, and has it not, does.
    fixture.hsm.learn_tls(0, Vec::new());
    assert_eq!(place(&fixture.hsm, &ours), KeyPlace::Here);
    fixture.hsm.forget_tls(0, &ours);
    assert_eq!(place(&fixture.hsm, &ours), KeyPlace::Nowhere);
}

/// What it told before stands, and nobody says that it has no others.
#[tokio::test]
async fn a_token_that_does_not_tell_its_keys_is_none_that_has_not_the_one() {
    let mut fixture = Fixture::new(1);
    fixture.custodian(0, 1, |_| Act::Answer).await;
    let key = key_named("p256");
    fixture.hsm.learn_tls(0, vec![key.clone()]);
    assert!(!fixture.hsm.ask_for_tls().await);
    assert_eq!(fixture.hsm.tls_place(&key), KeyPlace::Here);
}

/// Those of the other token are none of its.
#[tokio::test]
async fn handshakes_wait_for_no_more_than_half_of_the_tokens_custodians() {
    let (sender, events) = mpsc::unbounded_channel();
    let mut fixture = Fixture { hsm: Hsm::new(&[4, 4], (Keeping::Wrapped, 1), sender), events };
    for slot in 0..8 {
        fixture.custodian(slot, 1, |_| Act::Hang).await;
    }
    let key = key_named("p256");
    fixture.hsm.learn_tls(1, vec![key.clone()]);
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (hsm, key) = (fixture.hsm.clone(), key.clone());
            tokio::spawn(async move { hsm.sign_handshake(&key, transcript()).await })
        })
        .collect();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    let waiting: i64 = (0..8)
        .map(|custodian| {
            let label = Custodian { custodian };
            fixture.hsm.metrics().queue_depth.get_or_create_owned(&label).get()
        })
        .sum();
    assert_eq!(waiting, 2);
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn who_waits_for_a_signature_waits_no_longer_than_its_handshake_may_take() {
    let mut fixture = Fixture::new(1);
    let asked = fixture.custodian(0, 1, |_| Act::Hang).await;
    let key = key_named("p256");
    fixture.hsm.learn_tls(0, vec![key.clone()]);
    let first = tokio::spawn({
        let (hsm, key) = (fixture.hsm.clone(), key.clone());
        async move { hsm.sign_handshake(&key, transcript()).await }
    });
    while asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let begun = Instant::now();
    let short = Lifeline::until(begun + Duration::from_millis(50));
    let refused = short.hold(fixture.hsm.sign_handshake(&key, transcript())).await;
    assert!(matches!(refused, Err(HsmError::Unavailable(_))), "{:?}", refused.err());
    assert!(begun.elapsed() < CALL_MAX / 2, "{:?}", begun.elapsed());
    assert!(!first.is_finished());
    first.abort();
}
