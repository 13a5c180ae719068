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

/// The longest status, in bytes: systemd takes no message above 4096, with what else is in it.
const STATUS_BYTES_MAX: usize = 1_024;
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
    /// States that nobody has taken yet, the oldest first; it is not ready before it has heard so.
    unsent: Vec<State>,
}

/// What systemd counts on.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Ready,
    /// With its lines.
    Reloading(String),
    Stopping,
}

impl State {
    fn lines(&self) -> &str {
        match self {
            Self::Ready => "READY=1\n",
            Self::Reloading(lines) => lines,
            Self::Stopping => "STOPPING=1\n",
        }
    }
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
        Self { socket, status: String::new(), unsent: Vec::new() }
    }

    /// Requests are answered from here on; or a reload is over.
    pub fn ready(&mut self) {
        self.become_state(State::Ready, "serving");
    }

    /// The configuration is read again; [`Self::ready`] says when that is over.
    pub fn reloading(&mut self) {
        // systemd 253 and later wants to know since when, in its own clock.
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).ok();
        let now_us = now.map(|now| i128::from(now.tv_sec()) * 1_000_000 + i128::from(now.tv_nsec()) / 1_000);
        let since = now_us.map(|us| format!("MONOTONIC_USEC={us}\n")).unwrap_or_default();
        self.become_state(State::Reloading(format!("RELOADING=1\n{since}")), "reads its configuration again");
    }

    /// It ends on purpose.
    pub fn stopping(&mut self) {
        self.become_state(State::Stopping, "ends: what is there is answered");
    }

    /// It works; what `systemctl status` shows of it.
    pub fn alive(&mut self, status: &str) {
        if self.tell_unsent() {
            self.tell("WATCHDOG=1\n", status);
        }
    }

    /// A state is told once, now or with a later sign of life; of those that wait only what still counts.
    fn become_state(&mut self, state: State, status: &str) {
        match state {
            // Of a reload that nobody has heard of, nobody has to hear the end.
            State::Ready | State::Reloading(_) => {
                self.unsent.retain(|waiting| !matches!(waiting, State::Reloading(_)));
            }
            State::Stopping => self.unsent.clear(),
        }
        if self.unsent.last() != Some(&state) {
            self.unsent.push(state);
        }
        if self.tell_unsent() {
            self.tell("", status);
        }
    }

    /// Whether all of it was taken.
    fn tell_unsent(&mut self) -> bool {
        let Some(socket) = &self.socket else { return false };
        while let Some(state) = self.unsent.first() {
            if socket.send(state.lines().as_bytes()).is_err() {
                return false;
            }
            self.unsent.remove(0);
        }
        true
    }

    fn tell(&mut self, state: &str, status: &str) {
        let Some(socket) = &self.socket else { return };
        // One line, whatever it is made of.
        let status = status.get(..status.floor_char_boundary(STATUS_BYTES_MAX)).unwrap_or_default();
        let status: String = status.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let message = match status == self.status {
            true if state.is_empty() => return,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_that_is_not_taken_is_told_before_the_next_sign_of_life() {
        let path = std::env::temp_dir().join(format!("hsm-authd-notify-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let systemd = UnixDatagram::bind(&path).unwrap();
        systemd.set_nonblocking(true).unwrap();
        let mut notify = Notify {
            socket: Some(connected(path.as_os_str()).unwrap()),
            status: String::new(),
            unsent: Vec::new(),
        };
        let heard = || {
            let mut all = Vec::new();
            let mut message = [0; 256];
            while let Ok(length) = systemd.recv(&mut message) {
                let text = String::from_utf8(message[..length].to_vec()).unwrap();
                all.extend(text.lines().filter(|line| *line != "full").map(str::to_owned));
            }
            all.retain(|line| !line.starts_with("MONOTONIC_USEC="));
            all
        };
        // It hears nothing more until somebody reads.
        let fill = |notify: &Notify| while notify.socket.as_ref().unwrap().send(b"full").is_ok() {};
        fill(&notify);
        notify.ready();
        notify.alive("serving");
        assert_eq!(heard(), [""; 0]);
        notify.alive("serving");
        assert_eq!(heard(), ["READY=1", "WATCHDOG=1", "STATUS=serving"]);
        notify.alive("serving");
        assert_eq!(heard(), ["WATCHDOG=1"], "once");

        // Systemd takes no message above 4096 bytes, a sign of life in it included.
        notify.alive(&"é".repeat(10_000));
        let mut message = [0; 8_192];
        let length = systemd.recv(&mut message).unwrap();
        assert!(length < 4_096 && message.starts_with(b"WATCHDOG=1\nSTATUS="), "{length}");
        notify.alive("serving");
        heard();

        fill(&notify);
        notify.ready();
        for _ in 0..9 {
            notify.reloading();
        }
        assert_eq!(heard(), [""; 0]);
        notify.alive("serving");
        assert_eq!(heard(), ["READY=1", "RELOADING=1", "WATCHDOG=1"]);

        fill(&notify);
        notify.reloading();
        notify.ready();
        notify.stopping();
        assert_eq!(heard(), [""; 0]);
        notify.alive("ends");
        assert_eq!(heard(), ["STOPPING=1", "WATCHDOG=1", "STATUS=ends"]);
        std::fs::remove_file(path).unwrap();
    }
}
