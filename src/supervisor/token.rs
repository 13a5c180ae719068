//! One of the configured tokens: how its custodians are started.

use std::time::{Duration, Instant};

use super::pin::{self, PinRule};
use super::recycling::Spares;
use super::refused_pin::RefusedPin;
use crate::config::HsmConfig;
use crate::custodian::EXIT_PIN_REFUSED;
use crate::hsm::messages::PinFile;

/// How often a PIN file is looked at that has to be another one.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A token. One of its custodians is started at a time: should the PIN be wrong, it is tried once and not by all of them.
pub(super) struct Token {
    /// The configuration, with this token alone.
    pub hsm: HsmConfig,
    /// What an operator calls it.
    pub name: String,
    /// Whether any of them has ever come up.
    pub ever_up: bool,
    pub spares: Spares,
    pub pin: PinRule,
    mark: RefusedPin,
    look_at: Instant,
}

impl Token {
    pub(super) fn new((name, hsm): (String, HsmConfig), now: Instant) -> Self {
        let mark = RefusedPin::of(&name, &hsm);
        let (pin, spares) = (PinRule::marked(mark.read()), Spares::new(now));
        Self { hsm, name, ever_up: false, spares, pin, mark, look_at: now }
    }

    /// What keeps its PIN from being tried: an earlier start was refused. One line for the operator.
    pub(super) fn barred(&self) -> Option<String> {
        let is_barred = !self.pin.allows(pin::look(&self.hsm.pin_file));
        is_barred.then(|| {
            format!(
                "token {} has refused the PIN at an earlier start, and it is not tried again: put the right one into its file \
                 and run `hsm-authd check`, which removes {} once the token accepts it",
                self.name,
                self.mark.path().display()
            )
        })
    }

    /// Which PIN a start would try now; `None`: it must not, or there is none and it would say so.
    pub(super) fn may_start(&mut self, now: Instant) -> Option<Attempt> {
        if self.pin.needs_another() && self.look_at > now {
            return None;
        }
        self.look_at = now + LOOK_EVERY;
        let pin_file = pin::look(&self.hsm.pin_file);
        self.pin.allows(pin_file).then_some(Attempt { pin_file })
    }

    /// Not before this, for its PIN's sake.
    pub(super) fn not_before(&self) -> Option<Instant> {
        self.pin.needs_another().then_some(self.look_at)
    }

    /// An operator asks for other custodians, and may have mended what was wrong.
    pub(super) fn asked_for(&mut self, now: Instant) {
        self.spares = Spares::new(now);
        self.look_at = now;
    }

    /// One has come up.
    pub(super) fn came_up(&mut self) {
        self.ever_up = true;
        self.spares.went_well();
        if self.pin.is_refused()
            && let Err(error) = self.mark.clear()
        {
            tracing::error!(token = self.name, error, "the next start will take its PIN for a refused one");
        }
        self.pin.accepted();
    }

    pub(super) fn refused(&mut self, file: Option<PinFile>) {
        self.pin.refused(file);
        if let Err(error) = self.mark.leave(&self.hsm.pin_file, file) {
            let path = self.mark.path().display();
            tracing::error!(token = self.name, %path, %error, "not written down: the next start will try the refused PIN");
        }
        tracing::error!(
            token = self.name,
            "the token refuses the PIN: no custodian of it is started before its PIN file is another one; the others go on"
        );
    }

    pub(super) fn doubted(&mut self, file: PinFile) {
        if self.pin.doubted(file) {
            tracing::error!(
                token = self.name,
                "nobody came back who tried this PIN, and it may be wrong: no custodian is started before its PIN file is \
                 another one; the others go on"
            );
        }
    }
}

/// What a start tries.
pub(super) struct Attempt {
    pub pin_file: Option<PinFile>,
}

/// The exit codes that a custodian says the reason of on standard error: the service ends with a refused PIN if no other
/// token is left. Whatever else keeps one from starting is tried again, and the front tells of it.
pub(super) const FINALS: [u8; 1] = [EXIT_PIN_REFUSED];
