//! What other programs of the machine know.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long one may take.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// No answer that is asked for is longer, in bytes; a pipe holds as much.
const ANSWER_BYTES_MAX: u64 = 4_096;

/// What one says if it succeeds; `None`: there is no such program, it fails, or it takes too long.
pub fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    command.args(arguments).env("LC_ALL", "C");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let has_succeeded = ended(&mut child);
    if has_succeeded.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    let mut said = String::new();
    child.stdout.take()?.take(ANSWER_BYTES_MAX).read_to_string(&mut said).ok()?;
    has_succeeded?.then(|| said.trim().to_owned())
}

/// Whether it succeeded; `None`: it has not ended in time.
fn ended(child: &mut Child) -> Option<bool> {
    let deadline = Instant::now() + ANSWER_MAX;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status.success()),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(LOOK_EVERY),
            _ => return None,
        }
    }
}
