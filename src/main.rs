//! `hsm-authd`: subcommands, and nothing else.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hsm_authd::{audit, backup, check, custodian, dev, front, keys, offline, recover, restore, supervisor};

/// An HSM-backed authentication appliance: one-time passwords verified inside a PKCS#11 HSM.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole appliance with nothing set up: a SoftHSM token, certificates and a configuration
    /// of its own under one folder. For trying it out; its PIN lies beside its token.
    Dev(dev::Options),
    /// Run the service.
    Serve {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// Accept the wall clock as it is now, after it stepped or was behind the log.
        #[arg(long)]
        accept_clock: bool,
    },
    /// Try a configuration, its files and its HSM, and say what to mend.
    Check {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
    },
    /// Make what is missing of the configured token and its system keys.
    Init {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The file with the security officer's PIN: initialise a token if there is none of that label. Of several tokens
        /// with several PINs: one for each, in the order of the configuration.
        #[arg(long)]
        so_pin_file: Vec<PathBuf>,
    },
    /// Check or write out the audit log of a database, without a service and without an HSM.
    Audit {
        #[command(subcommand)]
        command: audit::Command,
    },
    /// Look at the system keys, and change them.
    Keys {
        #[command(subcommand)]
        command: keys::Command,
    },
    /// Copy the database into one file while the service runs, with a manifest beside it.
    Backup {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The file to make. It must not exist.
        #[arg(long)]
        to: PathBuf,
    },
    /// Check a copy of the database, and put it in the place of the database. The service must be stopped.
    Restore {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// The copy; its manifest is beside it.
        #[arg(long)]
        from: PathBuf,
    },
    /// Make a database usable that was turned back: suspend every credential until its bank has looked at it. The
    /// service must be stopped.
    Recover {
        /// The configuration file.
        #[arg(long)]
        config: PathBuf,
        /// Do it; else it is only said what would be done.
        #[arg(long)]
        accept_rollback: bool,
        /// The wall clock is right, though it is more than 30 days ahead of all that is known, or stepped.
        #[arg(long)]
        clock_is_right: bool,
    },
    /// The process that serves the network.
    #[command(hide = true)]
    Front {
        #[arg(long)]
        supervisor: i32,
    },
    /// A process that holds the HSM.
    #[command(hide = true)]
    Custodian {
        #[arg(long)]
        supervisor: i32,
        /// Exit codes with which the service ends, too.
        #[arg(long = "final")]
        finals: Vec<u8>,
    },
    /// The process that asks the HSM for `keys`.
    #[command(hide = true)]
    KeyTask {
        #[arg(long)]
        supervisor: i32,
    },
    /// The process that makes a token and its keys.
    #[command(hide = true)]
    TokenSetup {
        #[arg(long)]
        supervisor: i32,
    },
}

/// EX_CONFIG of sysexits.h: systemd does not start the service again (`RestartPreventExitStatus=`).
const EXIT_NEEDS_OPERATOR: u8 = 78;

fn main() -> ExitCode {
    let command = Cli::parse().command;
    // An operator's command says in plain words what it does.
    let is_command = matches!(
        command,
        Command::Init { .. }
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
        Command::Init { config, so_pin_file } => keys::init(&config, &so_pin_file),
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
