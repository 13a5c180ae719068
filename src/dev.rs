//! The whole appliance with nothing set up, for development and demonstration.

pub mod pki;
