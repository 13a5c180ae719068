//! `hsm-authd check`: tries what `serve` will need, and says what to mend.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use crate::config::{Config, HsmConfig};
use crate::hsm::messages::{self, BUILD_ID, Hello};
use crate::{init, server, supervisor};

/// How long the HSM may take to answer.
const HSM_MAX: Duration = Duration::from_secs(30);

/// Runs `check` for a configuration file: a line for what is right, and one for the first that is not.
pub fn run(path: &Path) -> ExitCode {
    match check(path) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            let _ = writeln!(std::io::stderr(), "hsm-authd: {reason}");
            ExitCode::FAILURE
        }
    }
}

fn check(path: &Path) -> Result<(), String> {
    let config = Config::load(path).map_err(|e| e.to_string())?;
    say(format_args!("configuration: well-formed; clients: {}", config.clients.len()));
    private(&config.server.key)?;
    private(&config.hsm.pin_file)?;
    say(format_args!("private files: readable by their owner and group alone"));
    server::Identities::load(&config).map_err(|e| e.to_string())?;
    say(format_args!("certificates: usable"));
    let folder = config.store.path.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        return Err(format!("{}: the store's folder does not exist", folder.display()));
    }
    say(format_args!("store: its folder is there"));
    let token = hello(&config.hsm)?;
    say(format_args!("HSM: {token}: logged in, keys as they must be"));
    Ok(())
}

fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "ok  {line}");
}

/// A key or PIN that everybody may read is nobody's secret. Owner and group are left alone: how
/// credentials are handed to a service differs between systems.
fn private(path: &Path) -> Result<(), String> {
    let mode = std::fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?.permissions().mode();
    if mode & 0o007 != 0 {
        return Err(format!("{}: everybody may read it; try chmod o= on it", path.display()));
    }
    Ok(())
}

/// Starts one custodian and lets it go again.
fn hello(hsm: &HsmConfig) -> Result<String, String> {
    let (mut ours, theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
    let mut child = supervisor::spawn("custodian", theirs.into(), |command| {
        command.envs(&hsm.environment);
    })?;
    let answer = exchange(&mut ours, hsm);
    drop(ours);
    let status = child.wait().map_err(|e| e.to_string())?;
    match answer {
        Some(hello) if hello.build_id == BUILD_ID => Ok(hello.token),
        Some(_) => Err("the custodian is of another build: install the binary anew".to_owned()),
        None => Err(format!("the HSM cannot be used ({status}); the line above says why")),
    }
}

fn exchange(custodian: &mut UnixStream, hsm: &HsmConfig) -> Option<Hello> {
    custodian.set_read_timeout(Some(HSM_MAX)).ok()?;
    custodian.write_all(&messages::encode(&init::boot(hsm)).ok()?).ok()?;
    let mut header = [0; 4];
    custodian.read_exact(&mut header).ok()?;
    let mut body = vec![0; messages::frame_length(header).ok()?];
    custodian.read_exact(&mut body).ok()?;
    messages::decode(&body).ok()
}
