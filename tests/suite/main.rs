//! The integration tests, one binary of them all: real SoftHSM, real sockets, real processes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "what a test's own set-up lacks fails the test"
)]

mod bad_input;
mod bank;
mod certificates;
mod client;
mod clock;
mod commit_errors;
mod credentials;
mod custodian;
mod custodian_ocra;
mod custodian_process;
mod custodian_signatures;
mod custodians;
mod daemon;
mod documented;
mod failing_disk;
mod fuzz;
mod guesses;
mod idempotency;
mod intruder;
mod layers;
mod load;
mod lockout;
mod logs;
mod metrics;
mod migration;
mod mutations;
mod ocra;
mod ocra_once;
mod ocra_refusals;
mod ocra_token;
mod once_only;
mod openapi;
mod openapi_live;
mod overload;
mod patience;
mod permissions;
mod pki;
mod processes;
mod pruning;
mod refusals;
mod resync;
mod scrape;
mod scratch;
mod served;
mod setup;
mod signatures;
mod signer_keys;
mod signers;
mod slow_request;
mod softhsm_setup;
mod starts;
mod store_contract;
mod store_faults;
mod store_samples;
mod store_sqlite;
mod submissions;
mod tls;
mod token;
mod vectors;
mod wire;
mod wrong_signatures;
