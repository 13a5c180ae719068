//! The custodian's hold on its token: opened at the start, and opened again when it is lost, without a new process where
//! that helps (`docs/hsm-faults.md`).

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::attempts::may_log_in;
use super::keys::Keys;
use super::operations::Operations;
use super::pin::UnreadPin;
use super::pkcs11::{Module, Session, Token};
use super::residents::Residents;
use super::staleness::Staleness;
use super::{StartFailure, find_token, load_module, login, probe};
use crate::domain::signer::PublicKey;
use crate::domain::system_key::{KeyKind, NewestKeys};
use crate::hsm::messages::{Boot, DownCause, Failure, Fault, KeyCheck, Remedy, Request, Response, Step};

/// How long the keys may have taken to read, at most, if they are to be read again while a request waits: the front gives a
/// custodian 2 s for one.
const RENEWED_WITHIN: Duration = Duration::from_millis(500);

/// A module, a token in it, and what is done with its keys.
pub struct Connection {
    boot: Boot,
    module: Module,
    token: Token,
    operations: Operations,
    /// How much was unwrapped in sessions that ended.
    unwraps_before: u64,
    /// How long it took to read its keys, the last time.
    load_took: Duration,
    /// What helped against failures since somebody asked for it.
    healed: Vec<Remedy>,
    staleness: Staleness,
}

/// What it takes to go on after a failure.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    /// The same in the session that there is.
    Repeat,
    /// The same in another one.
    Renew,
}

/// How far the remedies for one request have come.
#[derive(Default)]
struct Tried {
    repeated: bool,
    renewed: bool,
}

impl Tried {
    /// What is to be tried next; `None`: only another process can help, or nobody.
    fn next(&mut self, remedy: Remedy) -> Option<Next> {
        match remedy {
            Remedy::Repeat if !self.repeated && !self.renewed => {
                self.repeated = true;
                Some(Next::Repeat)
            }
            // The same did not do: the state of the session is not known.
            Remedy::Repeat if !self.renewed => self.renew(),
            Remedy::Rebuild | Remedy::NewSession if !self.renewed => self.renew(),
            _ => None,
        }
    }

    fn renew(&mut self) -> Option<Next> {
        self.renewed = true;
        Some(Next::Renew)
    }
}

impl Connection {
    /// Everything from the module to the keys; `told` learns of each step before it is taken. `handed`: the PIN's file, if
    /// [`Boot::pin_handed`] says so.
    ///
    /// # Errors
    /// One line for the operator. A PIN that is refused is never tried again.
    pub fn open(boot: &Boot, handed: Option<OwnedFd>, told: &dyn Fn(Step)) -> Result<Self, StartFailure> {
        let pin = UnreadPin::open(&boot.pin_file, boot.pin_handed, handed)?;
        told(Step::Module);
        let module = load_module(boot)?;
        told(Step::Token);
        let label = &boot.token_label;
        let token = find_token(&module, label)?.ok_or_else(|| StartFailure::no_token(boot))?;
        probe::mechanisms(&module, &token, label)?;
        let pin_file = pin.which();
        may_log_in(&module, &token, boot, pin_file)?;
        // Read before it is said that the token has it: who never comes back from reading has spent no attempt.
        let pin = pin.read()?;
        told(Step::Login(pin_file));
        let session = login(&module, &token, &pin, boot)?;
        drop(pin);
        told(Step::Abilities);
        probe::abilities(&session, label)?;
        let begun = Instant::now();
        let operations = operations(boot, session, told)?;
        let load_took = begun.elapsed();
        Ok(Self {
            boot: boot.clone(),
            module,
            token,
            operations,
            unwraps_before: 0,
            load_took,
            healed: Vec::new(),
            staleness: Staleness::default(),
        })
    }

    /// For the log: the token's label, manufacturer and model.
    pub fn description(&self) -> &str {
        &self.token.description
    }

    /// The newest version of each key.
    pub fn newest_keys(&self) -> NewestKeys {
        self.operations.newest_keys()
    }

    /// How many secrets were unwrapped and public keys made in this process.
    pub fn unwraps(&self) -> u64 {
        self.unwraps_before.saturating_add(self.operations.unwraps())
    }

    /// What helped against what the HSM failed in since the last time.
    pub fn healed(&mut self) -> Vec<Remedy> {
        std::mem::take(&mut self.healed)
    }

    /// A check value of each version of the keys that tokens share.
    pub fn key_checks(&self) -> Vec<(KeyKind, u16, KeyCheck)> {
        self.operations.keys.checks().to_vec()
    }

    /// The public halves of its `tls` keys.
    pub fn tls_keys(&self) -> Vec<PublicKey> {
        self.operations.tls_keys()
    }

    /// Looks for keys that others know of and that are not known here.
    pub fn keep_up(&mut self, newest: &NewestKeys) {
        self.operations.keep_up(newest);
        let own = self.operations.newest_keys();
        self.operations.unseen = self.staleness.unseen(newest, &own, Instant::now());
    }

    /// Whether it still does not see what others have, so that only another process will.
    pub fn is_stale(&self) -> bool {
        self.staleness.is_stale()
    }

    /// Answers one request; `repeated`: another custodian may have worked on it before. What the HSM fails in is tried again as
    /// far as this process can.
    ///
    /// # Errors
    /// After [`Fault::Hsm`] this connection is of no use any more.
    pub fn answer(&mut self, request: &Request, repeated: bool) -> Result<Response, Fault> {
        let (mut begun, mut tried) = (false, Tried::default());
        loop {
            self.operations.begun = begun;
            let failure = match self.operations.answer(request, repeated) {
                Err(Fault::Hsm(failure)) => failure,
                other => return other,
            };
            // What failed may have been done.
            begun = true;
            match tried.next(failure.remedy) {
                None => return Err(Fault::Hsm(failure)),
                Some(Next::Repeat) => {
                    tracing::warn!(%failure, "custodian: tried once more");
                    self.healed.push(Remedy::Repeat);
                }
                Some(Next::Renew) => {
                    tracing::warn!(%failure, "custodian: opens another session");
                    if let Err(second) = self.renew() {
                        tracing::error!(reason = %second, "custodian: no other session");
                        return Err(Fault::Hsm(Failure::with(second.remedy, failure.to_string())));
                    }
                    self.healed.push(Remedy::NewSession);
                }
            }
        }
    }

    /// Another session, and every handle found anew in it. Both, whichever of them was named: what a module says does not
    /// tell which one is lost. What was unwrapped goes with the old session, and so does what may leave and was left.
    ///
    /// Nobody is logged in here: others have lost their logins at the same moment, and a PIN that is refused would be
    /// tried by all of them. Starts come one after the other.
    fn renew(&mut self) -> Result<(), Failure> {
        let (boot, label) = (&self.boot, &self.boot.token_label);
        let failed = |error| Failure::new(format!("token {label}: no session ({error})"));
        // Before the old one ends: the login is the process's, and goes with its last session.
        let session = self.module.session(&self.token).map_err(failed)?;
        if !session.is_logged_in().map_err(failed)? {
            return Err(Failure::with(Remedy::LogIn, format!("token {label}: nobody is logged in any more")));
        }
        if self.load_took > RENEWED_WITHIN {
            let ms = self.load_took.as_millis();
            return Err(Failure::new(format!("token {label}: reading its keys took {ms} ms")));
        }
        let begun = Instant::now();
        let session = session.accepting_shared_keys(boot.shared_keys);
        let operations =
            operations(boot, session, &|_| ()).map_err(|failure| Failure::new(failure.to_string()))?;
        // SoftHSM finds nothing where its token is gone, and says so as if it were the truth.
        if let Some(missing) = operations.keys.lacks(&self.operations.keys) {
            return Err(Failure::new(format!("token {label} had {missing} before, and has it no more")));
        }
        self.unwraps_before = self.unwraps();
        self.operations = operations;
        self.load_took = begun.elapsed();
        Ok(())
    }
}

fn operations(boot: &Boot, session: Session, told: &dyn Fn(Step)) -> Result<Operations, StartFailure> {
    let label = &boot.token_label;
    told(Step::Keys);
    let keys = Keys::load(&session).map_err(|error| StartFailure::keys(label, boot.in_use, &error))?;
    told(Step::Secrets);
    let residents = Residents::load(&session, &|| told(Step::Secrets)).map_err(|error| {
        StartFailure::new(format!("token {label}: its secrets cannot be listed ({error})"))
            .of(DownCause::Keys)
    })?;
    told(Step::SelfTest);
    let mut operations = Operations::new(session, keys, residents, boot.secrets_cached_max);
    operations
        .self_test()
        .map_err(|fault| StartFailure::new(format!("token {label} fails the self-test: {fault}")))
        .map_err(|failure| failure.of(DownCause::SelfTest))?;
    Ok(operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mild_is_tried_first_and_each_remedy_once() {
        let run = |remedies: &[Remedy]| {
            let mut tried = Tried::default();
            remedies.iter().map(|remedy| tried.next(*remedy)).collect::<Vec<_>>()
        };
        use Remedy::{GiveUp, LogIn, NewProcess, NewSession, Rebuild, Repeat};
        assert_eq!(run(&[Repeat, Repeat, Repeat]), [Some(Next::Repeat), Some(Next::Renew), None]);
        for remedy in [Rebuild, NewSession] {
            assert_eq!(run(&[remedy, remedy]), [Some(Next::Renew), None]);
            assert_eq!(run(&[Repeat, remedy, Repeat]), [Some(Next::Repeat), Some(Next::Renew), None]);
            assert_eq!(run(&[remedy, Repeat]), [Some(Next::Renew), None], "in a session that is new");
        }
        for remedy in [LogIn, NewProcess, GiveUp] {
            assert_eq!(run(&[remedy]), [None]);
        }
    }
}
