//! Messages that are longer than one may be, either way.

use super::messages::FRAME_BYTES_MAX;
use super::*;
use crate::metrics::Loss;

#[tokio::test]
async fn a_request_that_is_too_long_is_refused_before_a_custodian_sees_it() {
    let mut fixture = Fixture::new(1);
    let read = fixture.custodian(0, 1, |_| Act::Answer).await;
    let long = Request::Fingerprint(SecretBytes::new(vec![0; FRAME_BYTES_MAX]));
    match fixture.hsm.call(Route::Any, long).await {
        Err(HsmError::Unavailable(reason)) => {
            assert!(reason.ends_with("bytes is longer than a frame may be"), "{reason}");
        }
        other => panic!("{:?}", other.err()),
    }
    assert_eq!(fixture.ask().await, Ok(()));
    assert_eq!(read.load(Ordering::SeqCst), 1, "it was asked nothing else");
    assert!(fixture.events.try_recv().is_err(), "and was not given up");
}

#[tokio::test]
async fn a_custodian_that_announces_more_than_a_frame_is_given_up_at_once() {
    let mut fixture = Fixture::new(2);
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let liar = tokio::spawn(async move {
        let hello = Hello {
            build_id: BUILD_ID.to_owned(),
            token: "a test's".to_owned(),
            newest: NewestKeys::default(),
            shared: Vec::new(),
            tls: Vec::new(),
        };
        theirs.write_all(&encode(&Greeting::Up(hello)).unwrap()).await.unwrap();
        theirs.read_u8().await.unwrap();
        theirs.write_all(&(FRAME_BYTES_MAX as u32 + 1).to_be_bytes()).await.unwrap();
        // It keeps the socket: whoever believes it waits for the rest.
        std::future::pending::<()>().await;
    });
    tokio::spawn(fixture.hsm.clone().adopt(0, 1, ours));
    assert_eq!(fixture.event().await, (CustodianEvent::Up { slot: 0, generation: 1 }));
    fixture.custodian(1, 1, |_| Act::Answer).await;
    // The other one answers in its place.
    let route = Route::Credential(CredentialId::from_random([0; 16]));
    assert!(fixture.hsm.call(route, Request::Health).await.is_ok());
    assert_eq!(fixture.event().await, (CustodianEvent::Lost { slot: 0, generation: 1 }));
    assert_eq!(fixture.hsm.metrics().losses.get_or_create(&Loss::Protocol).get(), 1);
    liar.abort();
}
