//! A PKCS#11 module for tests: it forwards every function to a real module, and fails as a test tells it.
//!
//! Built as a library to be loaded (`libfault_module.so`) and as a crate that tests use: both see one file, mapped into
//! the memory of each ([`Board`]). Faults are written there by a test, and calls counted there by the modules: what a
//! process did is known also after it was killed. The file is made by [`Shared::create`], and the module finds it and
//! the real module by two variables of its environment, [`TARGET`] and [`BOARD`].
//!
//! The functions of PKCS#11 2.40 are there. If the real module has those of 3.0, `C_GetInterface` hands them out too, and
//! what is new in them is the real module's own: no fault is met there. A panic ends the process (`extern "C"`), with its
//! words.
//!
//! By two further variables, [`HOSTILE`] and [`WANTED`], it is one that attacks the process that loads it.

mod board;
mod fault;
mod forward;
mod functions;
mod hostile;
mod interception;
mod outputs;
mod shared;

pub use board::{Board, FaultNumber, ProcessCounts};
pub use cryptoki_sys as sys;
pub use fault::{Fault, Kind, Latency, Length, Vanishing};
pub use functions::{Function, Output, Place};
pub use hostile::{HOSTILE, STAGES, WANTED};
pub use shared::Shared;

/// The variable that names the real module.
pub const TARGET: &str = "HSM_AUTHD_FAULT_MODULE_TARGET";

/// The variable that names the file of a [`Shared`].
pub const BOARD: &str = "HSM_AUTHD_FAULT_MODULE_BOARD";
