//! The pure core: state + input + now -> verdict + next state.
//!
//! Nothing here waits, reads a clock, draws a random number or knows a database, a network or an
//! HSM. What a verdict means for the stored rows is decided here and nowhere else.

pub mod account;
pub mod audit;
pub mod caller;
pub mod credential;
pub mod id;
pub mod idempotency;
pub mod lockout;
pub mod ocra;
pub mod otp;
pub mod resync;
pub mod row;
pub mod signer;
pub mod time;
pub mod verification;
