//! The integration tests, one binary of them all.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what a test's own set-up lacks fails the test"
)]

mod client;
mod pki;
mod scratch;
mod tls;
