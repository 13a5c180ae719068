//! `hsm-authd check`: tries the files, certificates and HSM that `serve` will need, and says what to mend. It
//! changes no database and keeps no port: a service that runs is not disturbed.
//!
//! A line for each thing on standard output, `ok` or, for what keeps no service from running, `--`. What is to be mended is on
//! standard error, one line each, and decides how it ends. Root looks as the service's user ([`crate::operator`]).

mod clock;
mod files;
mod listeners;
mod programs;
mod store;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::unistd::geteuid;

use crate::Ending;
use crate::clock::{Clock, SystemClock};
use crate::config::{Config, HsmConfig};
use crate::files::Files;
use crate::hsm::Hsm;
use crate::hsm::messages::{self, BUILD_ID, Greeting, Hello, KeyCheck};
use crate::offline::QUIET;
use crate::sandbox::{self, Enforced};
use crate::supervisor::refused_pin::RefusedPin;
use crate::tls::{HsmCertificate, no_such_key};
use crate::{init, operator, server, supervisor, trust};

const DAY_S: u64 = 24 * 60 * 60;
/// Whoever has fewer days left is told so, as by the alert.
const DAYS_MIN: u64 = 14;
/// How long the HSM may take to answer.
const HSM_MAX: Duration = Duration::from_secs(30);

/// What was found so far.
#[derive(Debug, Default)]
struct Report {
    /// How much is to be mended.
    wrong: usize,
}

impl Report {
    /// As it should be.
    fn ok(&self, line: std::fmt::Arguments<'_>) {
        let _ = writeln!(io::stdout(), "ok  {line}");
    }

    /// Worth knowing, and nothing that keeps a service from running.
    fn note(&self, line: std::fmt::Arguments<'_>) {
        let _ = writeln!(io::stdout(), "--  {line}");
    }

    /// To be mended.
    fn wrong(&mut self, line: std::fmt::Arguments<'_>) {
        self.wrong = self.wrong.saturating_add(1);
        // In one piece: other processes write there too.
        let _ = io::stderr().write_all(format!("hsm-authd: {line}\n").as_bytes());
    }
}

/// Runs `check` for a configuration file.
///
/// # Errors
/// See [`Ending`]; `None`: what is to be mended was said.
pub fn run(path: &Path) -> Ending {
    let mut config = Config::load(path).map_err(|e| e.to_string())?;
    let mut report = Report::default();
    report.ok(format_args!("configuration: well-formed; clients: {}", config.clients.len()));
    // As root, who may read them all. The service gets what it may not read from systemd.
    let (opened, descriptors) = crate::files::open(config.files_of_front());
    let is_root = geteuid().is_root();
    operator::take_over(&mut config, &[])?;
    let handed = Files::handed(opened, descriptors.into_iter().map(Into::into));

    files::check(&config, path, is_root, &mut report);
    store::check(&config, &mut report);
    let in_hsm = certificates(&config, &handed, &mut report)?;
    clock::check(&config, &mut report);
    listeners::check(&config, &mut report);
    let enforced = Enforced::tried();
    report.ok(format_args!("sandbox: {enforced}"));
    for missing in enforced.missing().into_iter().chain(sandbox::open_at_first()) {
        report.note(format_args!("sandbox: {missing}"));
    }
    tokens(&config, in_hsm, &mut report);
    if report.wrong > 0 { Err(None) } else { Ok(()) }
}

/// Returns those of the server's whose keys are in the HSM.
fn certificates(
    config: &Config,
    files: &Files,
    report: &mut Report,
) -> Result<Vec<HsmCertificate>, Option<String>> {
    let now = SystemClock.read().ok_or_else(|| "the clock cannot be read".to_owned())?;
    let mut in_hsm = Vec::new();
    // Nobody shakes hands here.
    match server::Identities::load(config, files, &Hsm::none()) {
        Err(error) => report.wrong(format_args!("{error}")),
        Ok(identities) => {
            for (what, ends_unix_s) in [
                ("the server's certificate", identities.listener.certificate_ends_unix_s),
                ("client authorities", identities.listener.client_ca_ends_unix_s),
                ("revocation lists of clients", identities.listener.client_crls_end_unix_s),
            ] {
                let Some(ends_unix_s) = ends_unix_s else { continue };
                match ends_unix_s.checked_sub(now.unix_ms / 1_000).map(|left_s| left_s / DAY_S) {
                    None => report.wrong(format_args!(
                        "{what}: out of date; put current ones in their place, and reload"
                    )),
                    Some(days) if days < DAYS_MIN => {
                        report.note(format_args!("{what}: usable, days left: {days}; renew them"));
                    }
                    Some(days) => report.ok(format_args!("{what}: usable, days left: {days}")),
                }
            }
            in_hsm = identities.listener.in_hsm;
        }
    }
    match (trust::check(&config.signers, now.unix_ms), &config.signers.trust_anchors) {
        (Err(error), _) => report.wrong(format_args!("{error}")),
        (Ok(_), Some(_)) => {
            report.ok(format_args!(
                "signers: anchors current; CRLs, all current: {}",
                config.signers.crls.len()
            ));
        }
        (Ok(_), None) => report.ok(format_args!("signers: no trust anchors, so no certificate chains")),
    }
    Ok(in_hsm)
}

/// Each logs in once: no PIN is tried a second time. `certified`: of which one of them has the keys.
fn tokens(config: &Config, mut certified: Vec<HsmCertificate>, report: &mut Report) {
    let wrong_before = report.wrong;
    let mut known: BTreeMap<_, (KeyCheck, String)> = BTreeMap::new();
    for (name, mut token) in config.hsm.token_names().into_iter().zip(config.hsm.tokens()) {
        let mark = RefusedPin::of(&name, &token);
        token.environment.insert(QUIET.to_owned(), "1".to_owned());
        let Hello { token, shared, tls, .. } = match hello(&token) {
            Ok(hello) => hello,
            Err(Some(reason)) => {
                report.wrong(format_args!("{reason}"));
                continue;
            }
            // Its process has said why.
            Err(None) => {
                report.wrong = report.wrong.saturating_add(1);
                continue;
            }
        };
        report.ok(format_args!("HSM: {token}: logged in, keys as they must be"));
        match mark.clear() {
            Ok(true) => report.ok(format_args!("HSM: {token}: the PIN that it refused is another one now")),
            Ok(false) => {}
            Err(reason) => report.wrong(format_args!("{reason}")),
        }
        report.ok(format_args!("HSM: {token}: has the mechanisms, and does what it must be able to do"));
        certified.retain(|HsmCertificate { path, key }| {
            let is_here = tls.contains(key);
            if is_here {
                report.ok(format_args!("{}: its key is in this token", path.display()));
            }
            !is_here
        });
        for (kind, version, check) in shared {
            let (first, of) = known.entry((kind, version)).or_insert_with(|| (check, token.clone()));
            if *first != check {
                let name = format!("hsm-authd/{kind}/v{version}");
                report.wrong(format_args!("token {token} has another key {name} than token {of}"));
            }
        }
    }
    // One that could not be asked may have them.
    if report.wrong == wrong_before {
        for HsmCertificate { path, .. } in &certified {
            report.wrong(format_args!("{}", no_such_key(path)));
        }
    }
}

/// Starts one custodian and lets it go again.
fn hello(hsm: &HsmConfig) -> Result<Hello, Option<String>> {
    let (mut child, mut ours) = supervisor::start_custodian(hsm, &init::boot_of_command(hsm), &[])?;
    let answer = exchange(&mut ours);
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

fn exchange(custodian: &mut UnixStream) -> io::Result<Hello> {
    custodian.set_read_timeout(Some(HSM_MAX))?;
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
