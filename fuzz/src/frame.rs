//! The bodies of the frames between front, custodian and supervisor.

use hsm_authd::hsm::messages::{Boot, Call, Hello, Reply, decode, encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The input is a frame's body, of any kind.
pub fn run(input: &[u8]) {
    survives::<Call>(input);
    survives::<Reply>(input);
    survives::<Boot>(input);
    survives::<Hello>(input);
}

/// A message that is understood is written as one that means the same. That may be shorter, as numbers of
/// postcard have more than one spelling, but not longer.
fn survives<T: Serialize + DeserializeOwned>(input: &[u8]) {
    let Ok(message) = decode::<T>(input) else { return };
    let frame = encode(&message).expect("no longer than it came");
    let (_, body) = frame.split_at(4);
    assert!(body.len() <= input.len());
    let Ok(again) = decode::<T>(body) else { panic!("what was written is read") };
    assert_eq!(encode(&again).expect("the same length")[..], frame[..]);
    assert!(decode::<T>(&[body, &[0]].concat()).is_err(), "a byte too many");
}
