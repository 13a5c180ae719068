//! Tests that need more than one module of the crate, in one binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod scratch;
mod store_contract;
mod store_faults;
mod store_samples;
mod store_sqlite;
