//! The pure core: state + input + now -> verdict + next state.
//!
//! Nothing here waits, reads a clock, draws a random number or knows a database, a network or an
//! HSM. What a verdict means for the stored rows is decided here and nowhere else.

pub mod account;
pub mod anchors;
pub mod attestation;
pub mod audit;
pub mod authorization;
pub mod caller;
pub mod certificate;
pub mod checkpoint;
pub mod credential;
pub mod enc;
pub mod handshake;
pub mod id;
pub mod idempotency;
pub mod json;
pub mod jws;
pub mod ledger;
pub mod lockout;
pub mod log;
pub mod money;
pub mod multi_terminal;
pub mod ocra;
pub mod otp;
pub mod presentation;
pub mod qr;
pub mod rate;
pub mod recovery;
pub mod resync;
pub mod rolling;
pub mod row;
pub mod signer;
pub mod system_key;
pub mod text;
pub mod time;
pub mod transaction;
pub mod verification;
pub mod webauthn;
pub mod wrapped_seed;
