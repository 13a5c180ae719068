//! `hsm-authd keys rewrap`: begins it, and shows how far it is.

use std::io::{IsTerminal, Write, stdout};
use std::path::Path;
use std::time::Duration;

use super::socket::{self, Unreachable};
use crate::Ending;
use crate::service::rewrapping::{Progress, RewrapState};

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const BAR_WIDTH: u64 = 40;

/// Begins it, or joins the one that is running, and waits for its end.
///
/// # Errors
/// See [`Ending`].
pub fn run(store: &Path) -> Ending {
    socket::tell(store, "POST", "/keys/rewrap").map_err(explain)?;
    let mut shown = Shown { on_terminal: stdout().is_terminal(), tenths: None };
    loop {
        let progress: Progress = socket::ask(store, "GET", "/keys/rewrap").map_err(explain)?;
        shown.show(&progress);
        match progress.state {
            RewrapState::Running => std::thread::sleep(LOOK_EVERY),
            RewrapState::Finished => {
                shown.line(&format!(
                    "finished: {} rows were renewed; everything stored is under the newest keys",
                    progress.renewed
                ));
                return Ok(());
            }
            RewrapState::Failed(reason) => {
                shown.line("");
                return Err(Some(format!("the rewrap was given up ({reason}); begun again, it goes on")));
            }
            RewrapState::Idle => {
                shown.line("");
                return Err(Some("the service was started anew meanwhile; begun again, it goes on".into()));
            }
        }
    }
}

fn explain(error: Unreachable) -> Option<String> {
    Some(match error {
        Unreachable::NotRunning(path) => {
            format!(
                "no service listens at {path}: a rewrap is done by the running service; begun again, it goes on"
            )
        }
        Unreachable::TooLong(path) => socket::too_long(&path),
        Unreachable::Failed(reason) => format!("the service does not do it ({reason})"),
    })
}

struct Shown {
    on_terminal: bool,
    tenths: Option<u64>,
}

impl Shown {
    /// A bar on a terminal; elsewhere a line for each tenth of the way.
    fn show(&mut self, progress: &Progress) {
        let Progress { done, total, renewed, .. } = progress;
        let part = |of: u64| done.saturating_mul(of).checked_div(*total).unwrap_or(0).min(of);
        if self.on_terminal {
            let full = part(BAR_WIDTH) as usize;
            let bar = format!("{}{}", "#".repeat(full), ".".repeat(BAR_WIDTH as usize - full));
            let _ =
                write!(stdout(), "\r[{bar}] {:3} %, {done} of {total} rows, {renewed} renewed ", part(100));
            let _ = stdout().flush();
        } else if self.tenths.replace(part(10)) != Some(part(10)) {
            let _ = writeln!(stdout(), "{done} of {total} rows, {renewed} renewed");
        }
    }

    fn line(&self, text: &str) {
        let before = if self.on_terminal { "\n" } else { "" };
        if !(before.is_empty() && text.is_empty()) {
            let _ = writeln!(stdout(), "{before}{text}");
        }
    }
}
