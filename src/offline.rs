//! Commands that work on a database while no service runs, and need the HSM for it: one custodian, for as long as they
//! take.

use std::process::Child;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::config::HsmConfig;
use crate::hsm::{CustodianEvent, Hsm};
use crate::supervisor;

/// How long a custodian may take to come up.
const START_MAX: Duration = Duration::from_secs(35);
/// How long one that failed may take to end.
const END_MAX: Duration = Duration::from_secs(2);

/// Set for a custodian that logs errors alone: an operator reads along.
pub const QUIET: &str = "HSM_AUTHD_QUIET";

/// A custodian of the command's own. It ends with it.
pub struct Offline {
    /// Where work is done that waits.
    pub runtime: Runtime,
    /// What asks the custodian.
    pub hsm: Hsm,
    custodian: Child,
}

impl Offline {
    /// Starts it. To be called by the main thread: a custodian ends with the thread that started it.
    ///
    /// # Errors
    /// As for [`crate::Ending`].
    pub fn start(config: &HsmConfig) -> Result<Self, Option<String>> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| e.to_string())?;
        let (events, mut told) = mpsc::unbounded_channel();
        let hsm = Hsm::new(1, (config.custody, config.resident_capacity), events);
        let mut config = config.clone();
        config.environment.insert(QUIET.to_owned(), "1".to_owned());
        let (custodian, stream) = supervisor::start_custodian(&config, &[])?;
        let mut offline = Self { runtime, hsm, custodian };
        stream.set_nonblocking(true).map_err(|e| e.to_string())?;
        let hsm = offline.hsm.clone();
        let up = offline.runtime.block_on(async {
            let stream = UnixStream::from_std(stream).map_err(|e| e.to_string())?;
            tokio::spawn(hsm.adopt(0, 1, stream));
            let event = timeout(START_MAX, told.recv()).await;
            Ok::<_, String>(matches!(event, Ok(Some(CustodianEvent::Up { .. }))))
        })?;
        if up {
            return Ok(offline);
        }
        // It closes its socket a moment before it is gone; a module that hangs does neither.
        let deadline = Instant::now() + END_MAX;
        while Instant::now() < deadline {
            match offline.custodian.try_wait().map_err(|e| e.to_string())? {
                // It has said why.
                Some(status) if status.code().is_some_and(|code| code != 0) => return Err(None),
                Some(_) => break,
                None => std::thread::sleep(Duration::from_millis(10)),
            }
        }
        Err(Some("the HSM cannot be used: its custodian does not answer".to_owned()))
    }
}

impl Drop for Offline {
    fn drop(&mut self) {
        // It holds nothing that would be lost.
        let _ = self.custodian.kill();
        let _ = self.custodian.wait();
    }
}
