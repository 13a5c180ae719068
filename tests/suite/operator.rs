//! What an operator does with `hsm-authd keys`.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

use crate::daemon::Daemon;
use crate::token::BINARY;

pub const KINDS: [&str; 6] = ["kek", "row", "data", "attest", "audit", "import"];

fn command(daemon: &Daemon, arguments: &[&str]) -> Command {
    command_by(&daemon.dir().join("hsm-authd.toml"), arguments)
}

fn command_by(config: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.arg("keys").args(arguments).arg("--config").arg(config);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

pub fn keys(daemon: &Daemon, arguments: &[&str]) -> Output {
    command(daemon, arguments).output().unwrap()
}

/// By a configuration of the test's own.
pub fn keys_by(config: &Path, arguments: &[&str]) -> Output {
    command_by(config, arguments).output().unwrap()
}

pub fn begin_rewrap(daemon: &Daemon) -> Child {
    command(daemon, &["rewrap"]).spawn().unwrap()
}

/// Done, and what was said.
pub fn done(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    said
}

/// Not done, for one reason.
pub fn refused(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("hsm-authd: ") && said.lines().count() == 1, "{said}");
    said
}

pub fn list(daemon: &Daemon) -> Vec<Value> {
    let said = done(&keys(daemon, &["list", "--json"]));
    serde_json::from_str::<Value>(&said).unwrap().as_array().unwrap().clone()
}

pub fn listed(daemon: &Daemon, label: &str) -> Option<Value> {
    list(daemon).into_iter().find(|key| key["label"] == label)
}

/// How many rows need this version.
pub fn rows(daemon: &Daemon, kind: &str, version: u16) -> u64 {
    listed(daemon, &format!("hsm-authd/{kind}/v{version}")).unwrap()["rows"].as_u64().unwrap()
}

pub fn rotate(daemon: &Daemon, kind: &str) -> String {
    done(&keys(daemon, &["rotate", kind]))
}

/// The log's entries of an event, by what they say more.
pub fn entries(daemon: &Daemon, event: &str) -> Vec<String> {
    let database = rusqlite::Connection::open(daemon.database()).unwrap();
    let mut statement = database.prepare("SELECT detail FROM audit WHERE event = ?1 ORDER BY seq").unwrap();
    let details =
        statement.query_map([event], |row| Ok(row.get::<_, Option<String>>(0)?.unwrap_or_default())).unwrap();
    details.map(Result::unwrap).collect()
}
