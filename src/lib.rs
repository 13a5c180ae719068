//! hsm-authd: an HSM-backed authentication appliance.
#![forbid(unsafe_code)]

pub mod config;
pub mod dev;
pub mod domain;
pub mod hsm;
pub mod secret;
pub mod tls;
