//! When the token is looked through for keys that are not known, and what was looked for in vain.
//!
//! Rows can be made to name any version by whoever edits the database: they cost a look each second, and not more.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::keys::{KeyName, Missed};

/// How often the token is looked through at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a version that was not there is not looked for again, and how many of them are remembered.
const IN_VAIN: Duration = Duration::from_secs(60);
const IN_VAIN_MAX: usize = 64;

/// What is known of versions that are not known.
#[derive(Default)]
pub struct Looks {
    last: Option<Instant>,
    /// Versions that were not there, the oldest first, and when that was.
    in_vain: VecDeque<(KeyName, Instant)>,
    /// Versions that wait for the next look.
    wanted: BTreeSet<KeyName>,
}

impl Looks {
    /// Whether a look may be taken now; it is then.
    pub fn begin(&mut self, now: Instant) -> bool {
        let is_due = self.last.is_none_or(|last| now.saturating_duration_since(last) >= LOOK_EVERY);
        if is_due {
            self.last = Some(now);
        }
        is_due
    }

    /// Whether all that is missed was looked for a short time ago, and was not there.
    pub fn was_in_vain(&mut self, missed: &Missed, now: Instant) -> bool {
        while self.in_vain.front().is_some_and(|(_, at)| now.saturating_duration_since(*at) >= IN_VAIN) {
            self.in_vain.pop_front();
        }
        let is_known = |name: &KeyName| self.in_vain.iter().any(|(known, _)| known == name);
        !missed.others && missed.versions.iter().all(is_known)
    }

    /// They will have been looked for with the next look, whoever takes it.
    pub fn want(&mut self, missed: &Missed) {
        let room = IN_VAIN_MAX.saturating_sub(self.wanted.len());
        self.wanted.extend(missed.versions.iter().take(room));
    }

    /// The token was looked through, also for these: which of them is there, is for the caller to say.
    pub fn looked(&mut self, missed: &Missed, now: Instant, is_there: impl Fn(KeyName) -> bool) {
        self.want(missed);
        for name in std::mem::take(&mut self.wanted).into_iter().filter(|name| !is_there(*name)) {
            if self.in_vain.len() == IN_VAIN_MAX {
                self.in_vain.pop_front();
            }
            self.in_vain.push_back((name, now));
        }
    }

    /// Keys were made: all of them are looked for anew.
    pub fn forget(&mut self) {
        self.in_vain.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::Kind;
    use super::*;

    fn row(version: u16) -> Missed {
        Missed { versions: BTreeSet::from([KeyName { kind: Kind::Row, version }]), others: false }
    }

    #[test]
    fn one_look_a_second_and_none_for_what_was_not_there() {
        let (mut looks, begun) = (Looks::default(), Instant::now());
        assert!(!looks.was_in_vain(&row(2), begun));
        assert!(looks.begin(begun));
        looks.looked(&row(2), begun, |_| false);
        assert!(looks.was_in_vain(&row(2), begun));
        assert!(!looks.was_in_vain(&row(3), begun));
        assert!(!looks.begin(begun + LOOK_EVERY - Duration::from_millis(1)));
        // What comes meanwhile is looked for with the next one's.
        looks.want(&row(3));
        assert!(looks.begin(begun + LOOK_EVERY));
        looks.looked(&row(4), begun + LOOK_EVERY, |name| name.version == 4);
        assert!(looks.was_in_vain(&row(3), begun + LOOK_EVERY));
        assert!(!looks.was_in_vain(&row(4), begun + LOOK_EVERY), "it was there");
        // Not for ever, and not once there are new keys.
        assert!(!looks.was_in_vain(&row(2), begun + IN_VAIN));
        assert!(looks.was_in_vain(&row(3), begun + IN_VAIN));
        looks.forget();
        assert!(!looks.was_in_vain(&row(3), begun + IN_VAIN));
        let other = Missed { versions: BTreeSet::new(), others: true };
        assert!(!looks.was_in_vain(&other, begun), "of what has no name nothing is remembered");
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let (mut looks, now) = (Looks::default(), Instant::now());
        for version in 1..=1_000 {
            looks.want(&row(version));
            looks.looked(&row(version), now, |_| false);
            assert!(looks.in_vain.len() <= IN_VAIN_MAX && looks.wanted.is_empty());
        }
        assert!(looks.was_in_vain(&row(1_000), now) && !looks.was_in_vain(&row(1), now));
        for version in 1..=1_000 {
            looks.want(&row(version));
        }
        assert_eq!(looks.wanted.len(), IN_VAIN_MAX);
    }
}
