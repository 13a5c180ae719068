//! `hsm-authd init`: makes what is missing of a token and its system keys.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Ending;
use crate::config::{Config, HsmConfig};
use crate::custodian::token::Setup;
use crate::hsm::messages::{self, Boot};
use crate::store::usage;
use crate::supervisor;

/// Runs `init` for a configuration file: says what it did, one line a step.
///
/// # Errors
/// See [`Ending`].
pub fn run(config: &Path, so_pin_file: Option<PathBuf>) -> Ending {
    let config = Config::load(config).map_err(|error| error.to_string())?;
    let _keys = supervisor::lock_keys(&config.store.path)?;
    set_up_token(&config.hsm, so_pin_file, Stdio::inherit())
}

/// Makes the token and its system keys where they are missing, in a process of its own: the module is
/// loaded with the configured environment, and gone afterwards.
///
/// # Errors
/// See [`Ending`].
pub fn set_up_token(hsm: &HsmConfig, so_pin_file: Option<PathBuf>, output: Stdio) -> Ending {
    let boot = boot(hsm);
    let needed = match boot.in_use {
        true => usage::needed(&hsm.database).all().map(|(kind, version, _)| (kind, version)).collect(),
        false => Vec::new(),
    };
    let setup = Setup { boot, needed, so_pin_file };
    let frame = messages::encode(&setup).map_err(|e| Some(e.to_string()))?;
    let failed = |e: std::io::Error| Some(format!("the token cannot be set up: {e}"));
    let mut child = Command::new("/proc/self/exe")
        .args(["token-setup", "--supervisor", &std::process::id().to_string()])
        .envs(&hsm.environment)
        .stdin(Stdio::piped())
        .stdout(output)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that ended before it read everything has said why.
        let _ = stdin.write_all(&frame);
    }
    match child.wait().map_err(failed)? {
        status if status.success() => Ok(()),
        status => Err(supervisor::killed(hsm, status)),
    }
}

/// What a custodian needs to know of the configuration.
pub fn boot(hsm: &HsmConfig) -> Boot {
    Boot {
        module: hsm.module.clone(),
        token_label: hsm.token_label.clone(),
        pin_file: hsm.pin_file.clone(),
        secrets_cached_max: hsm.secrets_cached_max,
        in_use: usage::is_in_use(&hsm.database),
        unwraps_max: hsm.recycle_after_unwraps,
        memory_bytes_max: hsm.recycle_above_mebibytes.saturating_mul(1024 * 1024),
    }
}
