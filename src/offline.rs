//! Commands that work on a database while no service runs, and need the HSM for it: one custodian of each token, for as long
//! as they take.

use std::process::Child;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

use crate::config::HsmConfig;
use crate::hsm::messages::StartFailed;
use crate::hsm::{CustodianEvent, Hsm};
use crate::init;
use crate::supervisor;

/// How long a custodian may take to come up.
const START_MAX: Duration = Duration::from_secs(35);
/// How long one that failed may take to end.
const END_MAX: Duration = Duration::from_secs(2);

/// Set for a custodian that logs errors alone: an operator reads along.
pub const QUIET: &str = "HSM_AUTHD_QUIET";

/// Custodians of the command's own, one of each token. They end with it.
pub struct Offline {
    /// Where work is done that waits.
    pub runtime: Runtime,
    /// What asks the custodians. A token whose custodian did not come up is away for good.
    pub hsm: Hsm,
    /// Tokens that are there, and not used: they do not have the keys that the others have, or not yet.
    unfit: Vec<usize>,
    custodians: Vec<Child>,
}

impl Offline {
    /// Starts them. To be called by the main thread: a custodian ends with the thread that started it.
    ///
    /// # Errors
    /// As for [`crate::Ending`]: none of them came up.
    pub fn start(config: &HsmConfig) -> Result<Self, Option<String>> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|e| e.to_string())?;
        let (events, told) = mpsc::unbounded_channel();
        let tokens = config.tokens();
        let hsm = Hsm::new(&vec![1; tokens.len()], (config.custody, config.resident_capacity), events);
        hsm.name_tokens(config.token_names());
        let mut offline = Self { runtime, hsm, unfit: Vec::new(), custodians: Vec::new() };
        let mut streams = Vec::new();
        for mut token in tokens {
            token.environment.insert(QUIET.to_owned(), "1".to_owned());
            let (custodian, stream) =
                supervisor::start_custodian(&token, &init::boot_of_command(&token), &[])?;
            offline.custodians.push(custodian);
            stream.set_nonblocking(true).map_err(|e| e.to_string())?;
            streams.push(stream);
        }
        let hsm = offline.hsm.clone();
        let custodians = offline.custodians.len();
        offline.unfit = offline.runtime.block_on(async {
            for (slot, stream) in (0..).zip(streams) {
                let stream = UnixStream::from_std(stream).map_err(|e| e.to_string())?;
                let serving = hsm.clone().adopt(slot, 1, stream);
                match custodians {
                    1 => tokio::spawn(serving),
                    // Of a service's log: here nothing is tried again, and the command says itself what it lacks.
                    _ => tokio::spawn(serving.with_subscriber(NoSubscriber::default())),
                };
            }
            // What is not up by then is away.
            Ok::<_, String>(timeout(START_MAX, settled(custodians, told)).await.unwrap_or_default())
        })?;
        match offline.hsm.is_up() {
            true => Ok(offline),
            false => Err(offline.why_none()),
        }
    }

    /// For work that changes something in every token.
    ///
    /// # Errors
    /// As for [`crate::Ending`]: one of them cannot be asked. One that is not used is not meant.
    pub fn has_all(&self) -> Result<(), Option<String>> {
        let is_away = |token: &usize| !self.hsm.is_token_up(*token) && !self.unfit.contains(token);
        match (0..self.hsm.tokens()).find(is_away) {
            // Its custodian has said why.
            Some(token) => Err(Some(format!("token {} cannot be asked", self.hsm.token_name(token)))),
            None => Ok(()),
        }
    }

    /// Why none came up; `None`: one of them has said so.
    fn why_none(&mut self) -> Option<String> {
        // It closes its socket a moment before it is gone; a module that hangs does neither.
        let deadline = Instant::now() + END_MAX;
        let mut left: Vec<_> = self.custodians.iter_mut().collect();
        let mut has_said = false;
        while !left.is_empty() && Instant::now() < deadline {
            left.retain_mut(|custodian| match custodian.try_wait() {
                Ok(None) => true,
                Ok(Some(status)) => {
                    has_said |= status.code().is_some_and(|code| code != 0);
                    false
                }
                Err(_) => false,
            });
            std::thread::sleep(Duration::from_millis(10));
        }
        (!has_said).then(|| "the HSM cannot be used: its custodian does not answer".to_owned())
    }
}

/// Returns when each of so many custodians is up or lost: those whose token is not used.
async fn settled(custodians: usize, mut told: mpsc::UnboundedReceiver<CustodianEvent>) -> Vec<usize> {
    let mut open: Vec<_> = (0..custodians).collect();
    let mut unfit = Vec::new();
    while !open.is_empty() {
        match told.recv().await {
            Some(CustodianEvent::Up { slot, .. } | CustodianEvent::Lost { slot, .. }) => {
                open.retain(|of| *of != usize::from(slot));
            }
            Some(CustodianEvent::Down { slot, failure: StartFailed::Unfit, .. }) => unfit.push(slot.into()),
            Some(_) => {}
            None => break,
        }
    }
    unfit
}

impl Drop for Offline {
    fn drop(&mut self) {
        for custodian in &mut self.custodians {
            // It holds nothing that would be lost.
            let _ = custodian.kill();
            let _ = custodian.wait();
        }
    }
}
