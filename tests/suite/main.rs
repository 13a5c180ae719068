//! Tests of the real binary, against a real PKCS#11 module (SoftHSM).

// A test ends at the first surprise; clippy knows that of `#[test]` functions, not of their support.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod custodian;
mod intruder;
mod setup;
mod token;
