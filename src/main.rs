//! `hsm-authd`: subcommands, and nothing else.

use std::alloc::System;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use hsm_authd::cli::{Cli, Command};
use hsm_authd::{
    audit, backup, check, custodian, dev, first_run, front, keys, offline, recover, restore, supervisor,
};
use zeroizing_alloc::ZeroAlloc;

/// What is freed is wiped: a seed, a code or a PIN passes buffers of TLS, HTTP and JSON, which nobody else wipes.
#[global_allocator]
static WIPING: ZeroAlloc<System> = ZeroAlloc(System);

/// EX_CONFIG of sysexits.h: systemd does not start the service again (`RestartPreventExitStatus=`).
const EXIT_NEEDS_OPERATOR: u8 = 78;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    // An operator's command says in plain words what it does.
    let is_command = matches!(
        command,
        Command::Init(_)
            | Command::Keys { .. }
            | Command::Backup { .. }
            | Command::Restore { .. }
            | Command::Recover { .. }
            | Command::Audit { .. }
    );
    let level = match is_command || std::env::var_os(offline::QUIET).is_some() {
        true => tracing::Level::ERROR,
        false => tracing::Level::INFO,
    };
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .init();
    let mut needs_operator = false;
    let ending = match command {
        Command::Dev(options) => dev::run(options),
        Command::Serve { config, accept_clock } => {
            supervisor::serve(&config, accept_clock).map_err(|failure| {
                needs_operator = failure.needs_operator;
                failure.reason
            })
        }
        Command::Check { config } => check::run(&config),
        Command::Init(options) => first_run::run(&options),
        Command::Audit { command } => audit::run(command),
        Command::Keys { command } => keys::run(command),
        Command::KeyTask { supervisor } => return custodian::key_task::run_key_task(supervisor),
        Command::Backup { config, to } => backup::run(&config, &to),
        Command::Restore { config, from } => restore::run(&config, &from),
        Command::Recover { config, accept_rollback, clock_is_right } => {
            recover::run(&config, accept_rollback, clock_is_right)
        }
        Command::Front { supervisor } => front::run(supervisor).map_err(Some),
        Command::Custodian { supervisor, finals } => return custodian::run(supervisor, &finals),
        Command::TokenSetup { supervisor } => return custodian::token::run_setup(supervisor),
    };
    let Err(reason) = ending else { return ExitCode::SUCCESS };
    if let Some(reason) = reason {
        // There is nobody left to tell if standard error is gone.
        // In one piece: other processes write there too.
        let _ = std::io::stderr().write_all(format!("hsm-authd: {reason}\n").as_bytes());
    }
    if needs_operator { ExitCode::from(EXIT_NEEDS_OPERATOR) } else { ExitCode::FAILURE }
}
