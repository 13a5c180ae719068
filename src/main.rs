//! The one binary.

use std::io::{self, Write};
use std::process::ExitCode;

use hsm_authd::custodian;

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).with_ansi(false).init();
    match std::env::args().nth(1).as_deref() {
        Some("custodian") => custodian::run(),
        Some("token-setup") => custodian::token::run_setup(),
        _ => {
            let _ = writeln!(io::stderr(), "hsm-authd: unknown subcommand");
            ExitCode::from(2)
        }
    }
}
