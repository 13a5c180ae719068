//! `hsm-authd check`: tries the files, certificates and HSM that `serve` will need, and says what to mend. It
//! opens no database and listens nowhere: a service that runs is not disturbed.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::Ending;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, HsmConfig};
use crate::files::Files;
use crate::hsm::Hsm;
use crate::hsm::messages::{self, BUILD_ID, Greeting, Hello, KeyCheck};
use crate::sandbox::Enforced;
use crate::tls::{HsmCertificate, no_such_key};
use crate::{init, server, supervisor, trust};

const DAY_S: u64 = 24 * 60 * 60;
/// How long the HSM may take to answer.
const HSM_MAX: Duration = Duration::from_secs(30);

/// Runs `check` for a configuration file: a line for what is right, and one for the first that is not.
///
/// # Errors
/// See [`Ending`].
pub fn run(path: &Path) -> Ending {
    let config = Config::load(path).map_err(|e| e.to_string())?;
    say(format_args!("configuration: well-formed; clients: {}", config.clients.len()));
    if let Some(path) = config.exposed_files().first() {
        return Err(Some(format!("{}: everybody may read it; try chmod o= on it", path.display())));
    }
    say(format_args!("private files: readable by their owner and group alone"));
    // Nobody shakes hands here.
    let identities =
        server::Identities::load(&config, &Files::Disk, &Hsm::none()).map_err(|e| e.to_string())?;
    let now = SystemClock.read().ok_or_else(|| "the clock cannot be read".to_owned())?;
    for (what, ends_unix_s) in [
        ("the server's certificate", identities.certificate_ends_unix_s),
        ("client authorities", identities.client_ca_ends_unix_s),
        ("revocation lists of clients", identities.client_crls_end_unix_s),
    ] {
        let Some(ends_unix_s) = ends_unix_s else { continue };
        let Some(left_s) = ends_unix_s.checked_sub(now.unix_ms / 1_000) else {
            return Err(Some(format!("{what}: out of date; put current ones in their place, and reload")));
        };
        say(format_args!("{what}: usable, days left: {}", left_s / DAY_S));
    }
    trust::check(&config.signers, now.unix_ms).map_err(|e| e.to_string())?;
    match &config.signers.trust_anchors {
        Some(_) => {
            say(format_args!("signers: anchors current; CRLs, all current: {}", config.signers.crls.len()))
        }
        None => say(format_args!("signers: no trust anchors, so no certificate chains")),
    }
    let folder = config.store.path.parent().unwrap_or(Path::new("/"));
    if !folder.is_dir() {
        return Err(Some(format!("{}: the store's folder does not exist", folder.display())));
    }
    say(format_args!("store: its folder is there"));
    let enforced = Enforced::tried();
    say(format_args!("sandbox: {enforced}"));
    for missing in enforced.missing() {
        // Nothing that keeps a service from running.
        let _ = writeln!(io::stdout(), "--  sandbox: {missing}");
    }
    let mut known: BTreeMap<_, (KeyCheck, String)> = BTreeMap::new();
    let mut certified = identities.in_hsm;
    for token in config.hsm.tokens() {
        let Hello { token, shared, tls, .. } = hello(&token)?;
        say(format_args!("HSM: {token}: logged in, keys as they must be"));
        certified.retain(|HsmCertificate { path, key }| {
            let is_here = tls.contains(key);
            if is_here {
                say(format_args!("{}: its key is in this token", path.display()));
            }
            !is_here
        });
        for (kind, version, check) in shared {
            let (first, of) = known.entry((kind, version)).or_insert_with(|| (check, token.clone()));
            if *first != check {
                let name = format!("hsm-authd/{kind}/v{version}");
                return Err(Some(format!("token {token} has another key {name} than token {of}")));
            }
        }
    }
    match certified.first() {
        Some(missing) => Err(Some(no_such_key(&missing.path))),
        None => Ok(()),
    }
}

fn say(line: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stdout(), "ok  {line}");
}

/// Starts one custodian and lets it go again.
fn hello(hsm: &HsmConfig) -> Result<Hello, Option<String>> {
    let (mut ours, theirs) = UnixStream::pair().map_err(|e| e.to_string())?;
    let mut child = supervisor::spawn("custodian", theirs.into(), |command| {
        command.envs(&hsm.environment);
    })?;
    let answer = exchange(&mut ours, hsm);
    if answer.as_ref().is_err_and(|error| error.kind() == ErrorKind::WouldBlock) {
        // The module hangs, and would not notice the end of its input.
        child.kill().map_err(|e| e.to_string())?;
    }
    drop(ours);
    let status = child.wait().map_err(|e| e.to_string())?;
    match answer {
        Ok(hello) if hello.build_id == BUILD_ID => Ok(hello),
        Ok(_) => Err(Some("the custodian is of another build: install the binary anew".to_owned())),
        Err(_) if status.code().is_some_and(|code| code != 0) => Err(None),
        Err(error) if error.kind() != ErrorKind::WouldBlock && !status.success() => {
            Err(supervisor::killed(hsm, status))
        }
        Err(error) => {
            Err(Some(format!("the HSM cannot be used: no answer of the custodian ({error}, {status})")))
        }
    }
}

fn exchange(custodian: &mut UnixStream, hsm: &HsmConfig) -> io::Result<Hello> {
    custodian.set_read_timeout(Some(HSM_MAX))?;
    custodian.write_all(&messages::encode(&init::boot(hsm)).map_err(io::Error::other)?)?;
    loop {
        let mut header = [0; 4];
        custodian.read_exact(&mut header)?;
        let mut body = vec![0; messages::frame_length(header).map_err(io::Error::other)?];
        custodian.read_exact(&mut body)?;
        match messages::decode(&body).map_err(io::Error::other)? {
            Greeting::Starting(_) => {}
            Greeting::Up(hello) => return Ok(hello),
            // It has said so itself, where the operator sees it.
            Greeting::Down(down) => return Err(io::Error::other(down.line)),
        }
    }
}
