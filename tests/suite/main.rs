//! The integration tests, one binary of them all: real SoftHSM, real sockets, real processes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what a test's own set-up lacks fails the test"
)]

mod bad_input;
mod bank;
mod certificates;
mod client;
mod clock;
mod credentials;
mod custodian;
mod daemon;
mod idempotency;
mod intruder;
mod layers;
mod lockout;
mod logs;
mod permissions;
mod pki;
mod refusals;
mod resync;
mod scratch;
mod setup;
mod softhsm_setup;
mod store_contract;
mod store_faults;
mod store_samples;
mod store_sqlite;
mod tls;
mod token;
mod vectors;
mod wire;
