//! The command line, in types: what `--help`, the manual pages and the completions of shells are made of
//! (`examples/manual.rs`).

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::DEFAULT_PATH;
use crate::{audit, dev, first_run, keys};

/// An HSM-backed authentication appliance: one-time passwords verified inside a PKCS#11 HSM.
#[derive(Parser)]
#[command(version, about)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands. What stands above a field is its help, its manual page and its completion.
#[derive(Subcommand)]
pub enum Command {
    /// Run the whole appliance with nothing set up: a SoftHSM token, certificates and a configuration
    /// of its own under one folder. For trying it out; its PIN lies beside its token.
    Dev(dev::Options),
    /// Run the service.
    Serve {
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// Accept the wall clock as it is now, after it stepped or was behind the log.
        #[arg(long)]
        accept_clock: bool,
    },
    /// Try a configuration, its files and its HSM, and say what to mend.
    Check {
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Make the configuration, if there is none, and what is missing of the token and its system keys; and say what to do
    /// next.
    ///
    /// Doing it again changes nothing, and completes what an interruption left undone. Run by root, it makes the configuration
    /// as root, and the token as the user who owns the folder of the database; so do all commands that touch either.
    Init(Box<first_run::Options>),
    /// Check or write out the audit log of a database, without a service and without an HSM.
    Audit {
        /// Which of it.
        #[command(subcommand)]
        command: audit::Command,
    },
    /// Look at the system keys, and change them.
    Keys {
        /// Which of it.
        #[command(subcommand)]
        command: keys::Command,
    },
    /// Copy the database into one file while the service runs, with a manifest beside it.
    Backup {
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// The file to make. It must not exist.
        #[arg(long)]
        to: PathBuf,
    },
    /// Check a copy of the database, and put it in the place of the database. The service must be stopped.
    Restore {
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_PATH)]
        config: PathBuf,
        /// The copy; its manifest is beside it.
        #[arg(long)]
        from: PathBuf,
    },
    /// Make a database usable that was turned back: suspend every credential until its bank has looked at it. The
    /// service must be stopped.
    Recover {
        /// The configuration file.
        #[arg(long, default_value = DEFAULT_PATH)]
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
        /// The process that started it.
        #[arg(long)]
        supervisor: i32,
    },
    /// A process that holds the HSM.
    #[command(hide = true)]
    Custodian {
        /// The process that started it.
        #[arg(long)]
        supervisor: i32,
        /// Exit codes with which the service ends, too.
        #[arg(long = "final")]
        finals: Vec<u8>,
    },
    /// The process that asks the HSM for `keys`.
    #[command(hide = true)]
    KeyTask {
        /// The process that started it.
        #[arg(long)]
        supervisor: i32,
    },
    /// The process that makes a token and its keys.
    #[command(hide = true)]
    TokenSetup {
        /// The process that started it.
        #[arg(long)]
        supervisor: i32,
    },
}
