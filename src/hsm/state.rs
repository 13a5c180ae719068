//! What is known of the custodians: which are up, since when the others are away and why; and the breaker.
//!
//! A token's breaker is open once no custodian of it is up and a start has failed since the last one was: whoever needs that
//! token is told so at once, for waiting would be in vain; who needs any of them, once all are open. The supervisor's next
//! start is the probe, and a custodian that comes up closes it. Until a start has failed, callers wait: to replace a custodian
//! takes less time than they have.

use std::collections::HashMap;
use std::fmt::Write;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::start::Refusal;
use crate::metrics::{self, Away, HsmMetrics};

/// So many different reasons of one outage are logged.
const TOLD_MAX: usize = 16;
/// How often the same one is.
const TELL_EVERY: Duration = Duration::from_secs(600);

/// What is known. It is told of all that happens to custodians.
pub(super) struct State {
    known: Mutex<Known>,
    open: watch::Sender<bool>,
    metrics: HsmMetrics,
}

struct Known {
    slots: Vec<Slot>,
    tokens: Vec<Token>,
    /// The tokens have been used before: by this process, or by whoever left the database.
    was_used: bool,
}

struct Token {
    /// What an operator calls it; empty as long as there is nothing to tell it from.
    name: String,
    slots: Range<usize>,
    outage: Outage,
    /// What it said when it refused the PIN: no custodian of it is started any more, whoever is up.
    pin_refused: Option<String>,
}

/// As long as no custodian of a token is up.
struct Outage {
    since: Instant,
    /// The last start that failed, and how many did.
    failed: Option<Refusal>,
    starts_failed: u64,
    /// What was logged of it, and when.
    told: HashMap<String, Instant>,
}

impl Outage {
    fn new(since: Instant) -> Self {
        Self { since, failed: None, starts_failed: 0, told: HashMap::new() }
    }
}

impl Outage {
    /// Whether this is logged now.
    fn is_to_be_told(&mut self, line: &str) -> bool {
        let is_due = match self.told.get(line) {
            Some(told) => told.elapsed() >= TELL_EVERY,
            None => self.told.len() < TOLD_MAX,
        };
        if is_due {
            self.told.insert(line.to_owned(), Instant::now());
        }
        is_due
    }
}

enum Slot {
    Up { generation: u64 },
    Away { since: Instant, why: Refusal, is_told: bool },
}

impl Slot {
    fn away(cause: Away, line: &str) -> Self {
        Self::Away { since: Instant::now(), why: Refusal::new(cause, line), is_told: false }
    }
}

impl State {
    /// Of so many custodians of each token, none of them up.
    pub fn new(custodians: &[u16], metrics: HsmMetrics) -> Self {
        let (mut slots, mut tokens) = (Vec::new(), Vec::new());
        for (place, count) in custodians.iter().enumerate() {
            let first = slots.len();
            slots.extend((0..*count).map(|_| Slot::away(Away::Starting, "it is being started")));
            let name = if custodians.len() > 1 { (place + 1).to_string() } else { String::new() };
            let (slots, outage) = (first..slots.len(), Outage::new(Instant::now()));
            tokens.push(Token { name, slots, outage, pin_refused: None });
        }
        let known = Known { slots, tokens, was_used: false };
        let (open, _) = watch::channel(false);
        let state = Self { known: Mutex::new(known), open, metrics };
        state.show(&state.known());
        state
    }

    /// What an operator calls each of several tokens.
    pub fn name_tokens(&self, names: &[String]) {
        let mut known = self.known();
        if known.tokens.len() > 1 {
            for (token, name) in known.tokens.iter_mut().zip(names) {
                token.name.clone_from(name);
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The database has been used with this token: no operator is to make another one in its place.
    pub fn was_used(&self) {
        self.known().was_used = true;
    }

    /// A custodian is up.
    pub fn up(&self, slot: u16, generation: u64, token: &str) {
        let mut known = self.known();
        let Some(place) = known.slots.get_mut(usize::from(slot)) else { return };
        *place = Slot::Up { generation };
        known.was_used = true;
        tracing::info!(slot, generation, token, "custodian is up");
        if let Some(of) = known.token_of(slot) {
            let outage = std::mem::replace(&mut of.outage, Outage::new(Instant::now()));
            of.pin_refused = None;
            if !outage.told.is_empty() {
                let (seconds, starts_failed) = (outage.since.elapsed().as_secs_f32(), outage.starts_failed);
                tracing::info!(seconds, starts_failed, token, "the HSM can be used again");
            }
        }
        self.show(&known);
    }

    /// A custodian that was up is no more.
    pub fn lost(&self, slot: u16, generation: u64, reason: &str) {
        let mut known = self.known();
        match known.slots.get_mut(usize::from(slot)) {
            // Its successor may be up already.
            Some(place @ Slot::Up { .. }) if place.is(generation) => *place = Slot::away(Away::Lost, reason),
            _ => return,
        }
        let was_last = !known.is_up(known.token_at(slot));
        if let Some(token) = known.token_of(slot).filter(|_| was_last) {
            token.outage = Outage::new(Instant::now());
            // A successor was refused already, and none is started: nobody is to wait for one.
            token.outage.failed =
                token.pin_refused.as_ref().map(|line| Refusal::new(Away::PinRefused, line.as_str()));
        }
        self.show(&known);
    }

    /// A custodian did not come up.
    pub fn start_failed(&self, slot: u16, generation: u64, why: Refusal) {
        self.metrics.start_failures.get_or_create(&why.cause).inc();
        let mut known = self.known();
        let (is_up, was_used) = (known.is_up(known.token_at(slot)), known.was_used);
        if let Some(token) = known.token_of(slot) {
            if why.cause == Away::PinRefused {
                token.pin_refused = Some(why.line.clone());
            }
            let outage = &mut token.outage;
            if !is_up {
                outage.starts_failed += 1;
                outage.failed = Some(why.clone());
                // A custodian whose PIN is refused says so itself.
                if why.cause != Away::PinRefused && outage.is_to_be_told(&why.line) {
                    let (cause, todo) = (why.cause.name(), todo(why.cause, was_used));
                    tracing::error!(
                        cause,
                        reason = why.line,
                        todo,
                        token = token.name,
                        "the HSM cannot be used; it is tried again"
                    );
                }
            }
        }
        match known.slots.get_mut(usize::from(slot)) {
            Some(Slot::Away { why: before, is_told, .. }) => {
                let is_new = !*is_told || *before != why;
                if is_up && is_new && why.cause != Away::PinRefused {
                    let (cause, reason) = (why.cause.name(), &why.line);
                    tracing::warn!(slot, generation, cause, reason, "custodian did not come up");
                }
                (*before, *is_told) = (why, is_up);
            }
            // A successor that was to take the place of one that is well.
            Some(Slot::Up { .. }) if why.cause != Away::PinRefused => {
                let (cause, reason) = (why.cause.name(), &why.line);
                tracing::warn!(slot, generation, cause, reason, "no successor of a custodian came up");
            }
            _ => {}
        }
        self.show(&known);
    }

    /// Whether the breaker is open, as it changes.
    pub fn breaker(&self) -> watch::Receiver<bool> {
        self.open.subscribe()
    }

    /// Why callers wait in vain who need this token, or any; `None`: they do not.
    pub fn objection(&self, token: Option<usize>) -> Option<String> {
        let known = self.known();
        let is_it = |place: usize| token.is_none_or(|token| token == place);
        let mut reasons = Vec::new();
        for (_, of) in known.tokens.iter().enumerate().filter(|(place, _)| is_it(*place)) {
            reasons.push(of.named(&known.failed(of)?.line));
        }
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Why no custodian is up, since when, and what is to be done, in a line for the operator; `None`: one is, or nothing
    /// has gone wrong yet. With `needs_first` the first token has to be there, whatever others are.
    pub fn trouble(&self, needs_first: bool) -> Option<String> {
        let known = self.known();
        let needed = match needs_first && known.is_any_up() {
            true => known.tokens.get(..1).unwrap_or_default(),
            false => &known.tokens,
        };
        if needed.iter().any(|token| known.is_up(Some(token))) {
            return None;
        }
        let lines: Vec<_> = needed.iter().filter_map(|token| known.trouble(token)).collect();
        (!lines.is_empty()).then(|| lines.join("; "))
    }

    /// Those that are away while others are up, a line each; and tokens that refuse their PIN although some are up.
    pub fn missing(&self) -> String {
        let known = self.known();
        let mut lines = String::new();
        for token in &known.tokens {
            for number in token.slots.clone() {
                if let Some(Slot::Away { since, why: Refusal { cause, line, .. }, .. }) =
                    known.slots.get(number)
                {
                    let (seconds, name) = (since.elapsed().as_secs(), cause.name());
                    let line = token.named(line);
                    let _ = writeln!(lines, "custodian {number} is away for {seconds} s ({name}): {line}");
                }
            }
            if let Some(line) = token.pin_refused.as_ref().filter(|_| known.is_up(Some(token))) {
                let line = token.named(line);
                let _ =
                    writeln!(lines, "the next custodian that is lost is not replaced (pin-refused): {line}");
            }
        }
        lines
    }

    /// Since when no custodian is up; `None`: one is.
    pub fn away_for(&self) -> Option<Duration> {
        let known = self.known();
        let since = known.tokens.iter().map(|token| token.outage.since).max();
        since.filter(|_| !known.is_any_up()).map(|since| since.elapsed())
    }

    /// Brings gauges and breaker up to date.
    fn show(&self, known: &Known) {
        for cause in Away::all() {
            let is_it = |slot: &&Slot| matches!(slot, Slot::Away { why, .. } if why.cause == cause);
            let count = i64::try_from(known.slots.iter().filter(is_it).count()).unwrap_or(i64::MAX);
            self.metrics.away.get_or_create(&cause).set(count);
        }
        for (place, token) in known.tokens.iter().enumerate() {
            let label = metrics::Token { token: place };
            let up = i64::try_from(known.up(token)).unwrap_or(i64::MAX);
            self.metrics.token_custodians_up.get_or_create(&label).set(up);
            let refused = i64::from(token.pin_refused.is_some());
            self.metrics.token_pin_refused.get_or_create(&label).set(refused);
        }
        let is_open = known.tokens.iter().all(|token| known.failed(token).is_some());
        self.metrics.breaker_open.set(i64::from(is_open));
        self.open.send_if_modified(|open| std::mem::replace(open, is_open) != is_open);
    }
}

impl Slot {
    fn is(&self, wanted: u64) -> bool {
        matches!(self, Self::Up { generation } if *generation == wanted)
    }
}

impl Token {
    fn named(&self, line: &str) -> String {
        // Most lines name it anyway.
        match self.name.is_empty() || line.contains(&self.name) {
            true => line.to_owned(),
            false => format!("token {}: {line}", self.name),
        }
    }
}

impl Known {
    fn is_any_up(&self) -> bool {
        self.tokens.iter().any(|token| self.is_up(Some(token)))
    }

    fn is_up(&self, token: Option<&Token>) -> bool {
        token.is_some_and(|token| self.up(token) > 0)
    }

    fn up(&self, token: &Token) -> usize {
        self.slots_of(token).filter(|slot| matches!(slot, Slot::Up { .. })).count()
    }

    fn slots_of(&self, token: &Token) -> impl Iterator<Item = &Slot> {
        self.slots.get(token.slots.clone()).unwrap_or_default().iter()
    }

    fn token_at(&self, slot: u16) -> Option<&Token> {
        self.tokens.iter().find(|token| token.slots.contains(&usize::from(slot)))
    }

    fn token_of(&mut self, slot: u16) -> Option<&mut Token> {
        self.tokens.iter_mut().find(|token| token.slots.contains(&usize::from(slot)))
    }

    /// Why who needs this token waits in vain.
    fn failed<'a>(&self, token: &'a Token) -> Option<&'a Refusal> {
        token.outage.failed.as_ref().filter(|_| !self.is_up(Some(token)))
    }

    fn trouble(&self, token: &Token) -> Option<String> {
        let seconds = token.outage.since.elapsed().as_secs();
        match &token.outage.failed {
            Some(Refusal { cause, line, .. }) => {
                let (name, todo, line) = (cause.name(), todo(*cause, self.was_used), token.named(line));
                Some(format!("the HSM cannot be used for {seconds} s ({name}): {line}; {todo}"))
            }
            None => self.lost_last(token).map(|why| {
                let why = token.named(why);
                format!(
                    "no custodian is up for {seconds} s: the last was lost ({why}); others are being started"
                )
            }),
        }
    }

    /// Why the last was lost of those that were up.
    fn lost_last(&self, token: &Token) -> Option<&str> {
        let lost = self.slots_of(token).filter_map(|slot| match slot {
            Slot::Away { since, why, .. } if why.cause == Away::Lost => Some((since, why)),
            _ => None,
        });
        lost.max_by_key(|(since, _)| **since).map(|(_, why)| why.line.as_str())
    }
}

/// What an operator can do, and what happens by itself.
fn todo(cause: Away, was_used: bool) -> &'static str {
    match cause {
        Away::TokenAway | Away::Keys if was_used => {
            "this token was here and had its keys: bring it back, and make no other (do not run `hsm-authd init`); it is \
             tried again by itself each second"
        }
        Away::TokenAway => {
            "see that the HSM is connected and has this token; it is tried again by itself each second"
        }
        Away::Keys => {
            "see that it is the right token, with all its keys; it is tried again by itself each second"
        }
        Away::Configuration => "mend that; it is tried again by itself each second",
        Away::Module => {
            "see that the HSM can be reached, and that its module is set up as its vendor says; it is tried again by itself \
             each second"
        }
        Away::Login => "see what the HSM says of this user; it is tried again by itself each second",
        Away::PinRefused => {
            "correct the PIN file; this one is not tried again, another one is within a second"
        }
        Away::OtherKeys => {
            "configure the right token, or have it set up anew as `docs/several-hsms.md` says; it is looked at again each 5 s"
        }
        Away::LacksKeys => {
            "bring it up to date as `docs/several-hsms.md` says: `hsm-authd init` or `keys rotate`, `keys rewrap`, and `keys \
             retire` for versions that nothing needs; it is looked at again each 5 s"
        }
        Away::NoProcess => {
            "see how many processes, descriptors and how much memory the service may have; it is tried again by itself each \
             second"
        }
        Away::SelfTest => {
            "the HSM does not work as it should, see what it says of itself; it is tried again by itself each second"
        }
        Away::Hangs => {
            "see that the HSM can be reached and is not overloaded; it is tried again by itself each second"
        }
        Away::Died => {
            "its module may have crashed, see the system's log; it is tried again by itself each second"
        }
        Away::Starting | Away::Lost => "it is being started again by itself",
    }
}

#[cfg(test)]
mod tests;
