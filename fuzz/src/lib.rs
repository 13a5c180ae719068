//! The fuzz targets: each gives its input to one parser, and states what must hold of the answer.
//!
//! libFuzzer's wrappers are in `fuzz_targets/`. `tests/suite/fuzz.rs` includes this file as well and runs
//! every target over its saved corpus and mutations of it, on the stable toolchain.

pub mod body;
pub mod certificate_chain;
pub mod client_data;
pub mod credential_body;
pub mod frame;
pub mod jwk;
pub mod jws;
mod key_text;
pub mod ocra_suite;
pub mod pem;
pub mod row;
pub mod signature;
pub mod transaction_body;

/// What a target does with an input: it panics if something does not hold.
pub type Target = fn(&[u8]);

/// Every target, and its name, which is that of its corpus.
pub const TARGETS: [(&str, Target); 11] = [
    ("certificate_chain", certificate_chain::run),
    ("client_data", client_data::run),
    ("credential_body", credential_body::run),
    ("frame", frame::run),
    ("jwk", jwk::run),
    ("jws", jws::run),
    ("ocra_suite", ocra_suite::run),
    ("pem", pem::run),
    ("row", row::run),
    ("signature", signature::run),
    ("transaction_body", transaction_body::run),
];
