//! Whether the service will have its listeners.

use std::fs::File;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use super::Report;
use super::programs::output;
use crate::config::Config;

/// Tries to listen, for a moment.
pub fn check(config: &Config, report: &mut Report) {
    let listeners = [
        ("server.listen", config.server.listen, "hsm-authd.socket"),
        ("ops.listen", config.ops.listen, "hsm-authd-ops.socket"),
    ];
    for (key, address, unit) in listeners {
        let of_unit = listens(unit);
        let is_units = |listens: &str| listens.contains(&format!(":{} ", address.port()));
        match (TcpListener::bind(address), of_unit) {
            (Ok(_), None) => report.ok(format_args!("{key}: {address} is free")),
            (Ok(_), Some(listens)) => report.note(format_args!(
                "{key}: {address} is free; of the package's service {unit} listens, on {listens}"
            )),
            (Err(_), Some(listens)) if is_units(&listens) => {
                report.ok(format_args!("{key}: {unit} listens, on {listens}"));
            }
            (Err(error), _) if error.kind() == ErrorKind::AddrInUse && runs(&config.store.path) => {
                report.ok(format_args!("{key}: the service runs, and has {address}"));
            }
            (Err(error), _) => wrong(key, address, unit, &error, report),
        }
    }
}

fn wrong(key: &str, address: SocketAddr, unit: &str, error: &std::io::Error, report: &mut Report) {
    let port = address.port();
    match error.kind() {
        ErrorKind::AddrInUse => report.wrong(format_args!(
            "{key}: another program has {address}; `ss -ltnp sport = :{port}` says which"
        )),
        ErrorKind::AddrNotAvailable => {
            report.wrong(format_args!("{key}: {} is no address of this machine", address.ip()));
        }
        ErrorKind::PermissionDenied => report.wrong(format_args!(
            "{key}: only root opens port {port}; have systemd do so ({unit}), or take one from 1024 on"
        )),
        _ => report.wrong(format_args!("{key}: {address} cannot be listened on: {error}")),
    }
}

/// What a socket unit of the package listens on; `None`: it does not.
fn listens(unit: &str) -> Option<String> {
    let said = output("systemctl", &["show", "--property=ActiveState", "--property=Listen", unit])?;
    let value = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value("Listen").filter(|_| value("ActiveState") == Some("active")).map(str::to_owned)
}

/// Whether an instance has the lock beside the database.
fn runs(store: &Path) -> bool {
    let lock = File::open(store.with_added_extension("instance"));
    lock.is_ok_and(|file| matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)))
}
