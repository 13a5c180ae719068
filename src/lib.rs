//! hsm-authd: an HSM-backed authentication appliance.
//!
//! One binary, three kinds of process (`docs/architecture.md`):
//!
//! * [`supervisor`]: starts and restarts the others and hands sockets over;
//! * [`front`]: TLS, HTTP, identity, decisions and the store; it never loads a PKCS#11 module;
//! * [`custodian`]: the HSM's side of a socketpair: PKCS#11, nothing else.
//!
//! # The map
//!
//! ```text
//! domain, files, sandbox  <-  clock, lifeline, metrics  <-  hsm, store  <-  tls, service  <-  api  <-  server  <-  ops, control_socket  <-  front
//! custodian knows only `domain`, `secret`, `sandbox`, `hsm::messages` and `control`
//! supervisor knows no more of the others than how to start them and what their ends mean; systemd is whom it tells
//! init, check, dev, audit, keys, backup, restore, recover: commands over the above; offline is their custodian, operator
//! makes root the service's user for them; first_run is what `init` does without a configuration
//! cli: the command line, of which the manual is made; nothing but main uses it
//! ```
//!
//! A module may use what stands left of it, never what stands right of it. `domain` is pure: no
//! async, no SQL, no PKCS#11, no HTTP, no system clock. `tests/suite/layers.rs` holds the code to that.

pub mod api;
pub mod audit;
pub mod backup;
pub mod check;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod control_socket;
pub mod custodian;
pub mod dev;
pub mod domain;
pub mod files;
pub mod first_run;
pub mod front;
pub mod hsm;
pub mod init;
pub mod keys;
pub mod lifeline;
pub mod metrics;
pub mod offline;
pub mod operator;
pub mod ops;
pub mod recover;
pub mod restore;
pub mod sandbox;
pub mod secret;
pub mod server;
pub mod service;
pub mod store;
pub mod supervisor;
pub mod systemd;
pub mod tls;
pub mod trust;

/// How a command ends: well, or with one line that says what to mend; `None`: the process that failed
/// has said it already.
pub type Ending = Result<(), Option<String>>;
