//! Asking a running service by its control socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::control_socket;

/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// No answer is longer, in bytes.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Why there is no answer.
pub enum Unreachable {
    /// Nobody listens at this path.
    NotRunning(String),
    /// No socket can have this path.
    TooLong(String),
    /// Something else, in words for the operator.
    Failed(String),
}

/// What is wrong with such a path, in words for the operator.
pub fn too_long(path: &str) -> String {
    format!("{path} is too long for a socket: no service can be told")
}

/// What a request is answered with.
pub fn ask<T: DeserializeOwned>(store: &Path, method: &str, target: &str) -> Result<T, Unreachable> {
    let body = exchange(store, method, target)?;
    serde_json::from_slice(&body).map_err(|error| Unreachable::Failed(error.to_string()))
}

/// Sends a request whose answer says nothing.
pub fn tell(store: &Path, method: &str, target: &str) -> Result<(), Unreachable> {
    exchange(store, method, target).map(drop)
}

fn exchange(store: &Path, method: &str, target: &str) -> Result<Vec<u8>, Unreachable> {
    let path = control_socket::path(store);
    let mut stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            Unreachable::NotRunning(path.display().to_string())
        }
        io::ErrorKind::InvalidInput => Unreachable::TooLong(path.display().to_string()),
        _ => Unreachable::Failed(format!("{}: {error}", path.display())),
    })?;
    let failed = |error: io::Error| Unreachable::Failed(format!("{}: {error}", path.display()));
    stream.set_read_timeout(Some(ANSWER_MAX)).map_err(failed)?;
    let request = format!(
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).map_err(failed)?;
    match parse(&answer) {
        Some((200..=299, body)) => Ok(body.to_vec()),
        Some((_, body)) => Err(Unreachable::Failed(String::from_utf8_lossy(body).trim().to_owned())),
        None => Err(Unreachable::Failed(format!("{}: no answer", path.display()))),
    }
}

/// Status and body of an answer that its connection's end ends; the service sends no other.
fn parse(answer: &[u8]) -> Option<(u16, &[u8])> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")?;
    let (head, rest) = answer.split_at(end);
    let status = head.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    Some((std::str::from_utf8(status).ok()?.parse().ok()?, rest.get(4..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_is_too_long_for_a_socket_is_told_apart() {
        let store = Path::new("/tmp").join("a".repeat(120));
        assert!(matches!(tell(&store, "POST", "/keys/reload"), Err(Unreachable::TooLong(_))));
        let store = Path::new("/nowhere/hsm-authd.db");
        assert!(matches!(tell(store, "POST", "/keys/reload"), Err(Unreachable::NotRunning(_))));
    }

    #[test]
    fn an_answer_is_its_status_and_its_body() {
        assert_eq!(parse(b"HTTP/1.1 202 Accepted\r\na: b\r\n\r\nbody"), Some((202, &b"body"[..])));
        assert_eq!(parse(b"HTTP/1.1 200 OK\r\n\r\n"), Some((200, &b""[..])));
        for broken in [&b""[..], b"HTTP/1.1 200 OK\r\n", b"HTTP/1.0 200 OK\r\n\r\n", b"HTTP/1.1 2\r\n\r\n"] {
            assert_eq!(parse(broken), None);
        }
    }
}
