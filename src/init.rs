//! `hsm-authd init`: makes what is missing of a token and its system keys.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use serde::Serialize;

use crate::Ending;
use crate::config::{Config, HsmConfig};
use crate::control;
use crate::custodian::token::Setup;
use crate::hsm::messages::{self, Boot};
use crate::sandbox::Reach;
use crate::store::usage;
use crate::supervisor;

/// Runs `init` for a configuration with one token: says what it did, one line a step.
///
/// # Errors
/// See [`Ending`].
pub fn run(config: &Config, so_pin_file: Option<PathBuf>) -> Ending {
    let _keys = supervisor::lock_keys(&config.store.path)?;
    set_up_token(&config.hsm, so_pin_file, Stdio::inherit())
}

/// Makes the token and its system keys where they are missing, in a process of its own: the module is
/// loaded with the configured environment, and gone afterwards.
///
/// # Errors
/// See [`Ending`].
pub fn set_up_token(hsm: &HsmConfig, so_pin_file: Option<PathBuf>, output: Stdio) -> Ending {
    set_up(&setup(hsm, so_pin_file), hsm, output)
}

/// Makes one of several tokens where it is missing, and no key in it. A new replica beside a database is none that is
/// missing: it has nothing of what is needed.
///
/// # Errors
/// See [`Ending`].
pub fn make_token(hsm: &HsmConfig, so_pin_file: Option<PathBuf>, is_replica: bool) -> Ending {
    let mut setup = Setup { token_only: true, ..setup(hsm, so_pin_file) };
    if is_replica {
        setup.boot.in_use = false;
        setup.needed.clear();
    }
    set_up(&setup, hsm, Stdio::inherit())
}

fn setup(hsm: &HsmConfig, so_pin_file: Option<PathBuf>) -> Setup {
    let boot = boot_of_command(hsm);
    let needed = match boot.in_use {
        true => usage::needed(&hsm.database).all().map(|(kind, version, _)| (kind, version)).collect(),
        false => Vec::new(),
    };
    let so_pin_handed = so_pin_file.as_ref().is_some_and(|path| hsm.opened.contains_key(path));
    Setup { boot, needed, so_pin_file, so_pin_handed, token_only: false, serves_tls: hsm.serves_tls }
}

fn set_up(setup: &Setup, hsm: &HsmConfig, output: Stdio) -> Ending {
    let failed = |e: io::Error| Some(format!("the token cannot be set up: {e}"));
    let mut child = begin("token-setup", hsm, setup, setup.so_pin_file.as_deref(), output).map_err(failed)?;
    match child.wait().map_err(failed)? {
        status if status.success() => Ok(()),
        status => Err(supervisor::killed(hsm, status)),
    }
}

/// Starts a process that loads the module, and tells it what to do, with the PINs that are open already: the token's, and
/// that of its security officer.
///
/// # Errors
/// It cannot be started.
pub fn begin(
    role: &str,
    hsm: &HsmConfig,
    work: &impl Serialize,
    so_pin_file: Option<&Path>,
    output: Stdio,
) -> io::Result<Child> {
    let message = messages::encode(work).map_err(io::Error::other)?;
    let (ours, theirs) = UnixStream::pair()?;
    let child = supervisor::spawn(role, theirs.into(), |command| {
        command.envs(&hsm.environment).stdout(output);
    })
    .map_err(io::Error::other)?;
    let pins = [Some(hsm.pin_file.as_path()), so_pin_file].into_iter().flatten();
    let handed: Vec<_> = pins.filter_map(|path| hsm.opened.get(path)).map(|file| file.as_fd()).collect();
    // A child that ended before it read everything has said why.
    let _ = control::begin(&ours, &message, &handed);
    Ok(child)
}

/// What a custodian needs to know of the configuration; `in_use`: whether there is a database of what its keys sealed.
pub fn boot(hsm: &HsmConfig, in_use: bool) -> Boot {
    Boot {
        module: hsm.module.clone(),
        module_arguments: hsm.module_arguments.text().map(CStr::to_owned),
        token_label: hsm.token_label.clone(),
        pin_file: hsm.pin_file.clone(),
        pin_handed: hsm.opened.contains_key(&hsm.pin_file),
        pin_cut_off: None,
        secrets_cached_max: hsm.secrets_cached_max,
        in_use,
        unwraps_max: hsm.recycle_after_unwraps,
        memory_bytes_max: hsm.recycle_above_mebibytes.saturating_mul(1024 * 1024),
        shared_keys: hsm.shared_keys,
        reach: reach(hsm),
    }
}

/// The same for a command, which asks the database itself.
pub fn boot_of_command(hsm: &HsmConfig) -> Boot {
    boot(hsm, usage::is_in_use(&hsm.database))
}

/// What the module may reach. What its environment names is read by it, mostly.
fn reach(hsm: &HsmConfig) -> Reach {
    let named = hsm.environment.values().flat_map(|value| value.split(':').map(PathBuf::from));
    Reach {
        reads: named.filter(|path| path.is_absolute()).collect(),
        writes: hsm.folders.clone(),
        hides: hsm.hidden.clone(),
        network: hsm.network,
    }
}
