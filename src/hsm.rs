//! The front's side of the HSM.
pub mod messages;
