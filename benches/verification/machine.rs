//! What the numbers were measured on.

use std::fs;
use std::path::Path;
use std::process::Command;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::{Outcome, words};

/// Names and values, for the table and for the JSON.
pub type Description = Vec<(&'static str, String)>;

/// This machine, and the filesystem that `folder` is on.
pub fn describe(folder: &Path) -> Outcome<Description> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo").lines().find_map(|line| {
        line.strip_prefix("model name")?.split_once(':').map(|(_, name)| name.trim().to_owned())
    });
    let second = OffsetDateTime::now_utc().replace_nanosecond(0).map_err(words)?;
    Ok(vec![
        ("date", second.format(&Rfc3339).map_err(words)?),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ("profile", if cfg!(debug_assertions) { "debug: worth nothing" } else { "release" }.to_owned()),
        ("cpu", cpu.unwrap_or_else(|| "unknown".to_owned())),
        ("cores", std::thread::available_parallelism().map_or(0, usize::from).to_string()),
        ("load before", read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned()),
        ("kernel", read("/proc/sys/kernel/osrelease").trim().to_owned()),
        ("filesystem", filesystem(folder, &read("/proc/self/mounts"))),
        ("softhsm", softhsm()),
    ])
}

/// Of the mounts that the folder is under, the deepest; of several on one place, the last.
fn filesystem(folder: &Path, mounts: &str) -> String {
    let mounts = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (device, place, kind) = (fields.next()?, fields.next()?, fields.next()?);
        folder.starts_with(place).then(|| (place.len(), format!("{kind} on {device}")))
    });
    mounts.max_by_key(|(length, _)| *length).map_or_else(|| "unknown".to_owned(), |(_, kind)| kind)
}

fn softhsm() -> String {
    let output = Command::new("softhsm2-util").arg("--version").output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
