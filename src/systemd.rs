//! What systemd hands over and is told: sockets (sd_listen_fds(3)), the state of the service (sd_notify(3)) and its signs of
//! life (sd_watchdog_enabled(3)). Without systemd none of it is there, and nothing is missing.

use std::ffi::OsStr;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Command;

use listenfd::ListenFd;
use nix::time::{ClockId, clock_gettime};

/// What the parent alone is to know.
const VARIABLES: [&str; 6] =
    ["LISTEN_FDNAMES", "LISTEN_FDS", "LISTEN_PID", "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"];

/// Listeners that were there before this process (`FileDescriptorName=api` and `ops` of a socket unit).
#[derive(Debug, Default)]
pub struct Inherited {
    /// The API's.
    pub api: Option<TcpListener>,
    /// The operator's, on a loopback address.
    pub ops: Option<TcpListener>,
}

impl Inherited {
    /// Takes what systemd has handed over. No child inherits it.
    ///
    /// # Errors
    /// One line for the operator: a socket that nobody serves would leave its callers waiting.
    pub fn take() -> Result<Self, String> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut sockets = ListenFd::from_env();
        let mut inherited = Self::default();
        for (index, name) in names.split(':').take(sockets.len()).enumerate() {
            let place = match name {
                "api" => &mut inherited.api,
                "ops" => &mut inherited.ops,
                _ => {
                    return Err(format!(
                        "systemd hands over a socket {name:?}: FileDescriptorName= must be api or ops"
                    ));
                }
            };
            let socket = sockets.take_tcp_listener(index).map_err(|e| format!("the socket {name}: {e}"))?;
            if place.replace(socket.ok_or_else(|| format!("the socket {name} is not there"))?).is_some() {
                return Err(format!("systemd hands over two sockets {name}: one ListenStream= is served"));
            }
        }
        if let Some(ops) = &inherited.ops {
            let address = ops.local_addr().map_err(|e| format!("the socket ops: {e}"))?;
            if !address.ip().is_loopback() {
                return Err(format!(
                    "the socket ops listens on {address}: it must be a loopback address, for it is plain HTTP"
                ));
            }
        }
        Ok(inherited)
    }
}

/// Keeps from a child what systemd tells its parent.
pub fn hide(child: &mut Command) {
    for variable in VARIABLES {
        child.env_remove(variable);
    }
}

/// Whoever started the service, if it wants to know how it is.
pub struct Notify {
    socket: Option<UnixDatagram>,
    /// What it was told last.
    status: String,
}

impl Notify {
    /// Reached by `NOTIFY_SOCKET`.
    pub fn from_env() -> Self {
        let socket = std::env::var_os("NOTIFY_SOCKET").and_then(|address| match connected(&address) {
            Ok(socket) => Some(socket),
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET: nobody is told how the service is");
                None
            }
        });
        Self { socket, status: String::new() }
    }

    /// Requests are answered from here on; or a reload is over.
    pub fn ready(&mut self) {
        self.tell("READY=1\n", "serving");
    }

    /// The configuration is read again; [`Self::ready`] says when that is over.
    pub fn reloading(&mut self) {
        // systemd 253 and later wants to know since when, in its own clock.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).ok();
        let now_us = now.map(|now| i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec()) / 1_000);
        let since = now_us.map(|us| format!("MONOTONIC_USEC={us}\n")).unwrap_or_default();
        self.tell(&format!("RELOADING=1\n{since}"), "reads its configuration again");
    }

    /// It ends on purpose.
    pub fn stopping(&mut self) {
        self.tell("STOPPING=1\n", "ends: what is there is answered");
    }

    /// It works; what `systemctl status` shows of it.
    pub fn alive(&mut self, status: &str) {
        self.tell("WATCHDOG=1\n", status);
    }

    fn tell(&mut self, state: &str, status: &str) {
        let Some(socket) = &self.socket else { return };
        // One line, whatever it is made of.
        let status: String = status.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let message = match status == self.status {
            true => state.to_owned(),
            false => format!("{state}STATUS={status}\n"),
        };
        // Whoever does not listen now is told the next time.
        if socket.send(message.as_bytes()).is_ok() {
            self.status = status;
        }
    }
}

fn connected(address: &OsStr) -> std::io::Result<UnixDatagram> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}
