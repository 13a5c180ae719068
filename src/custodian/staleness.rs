//! Keys that others have and this process does not see.
//!
//! A module may go on showing what a token held before: SoftHSM does in a process that changes the token at the moment at
//! which another one does. Nothing mends that but another process, or the next change.

use std::time::{Duration, Instant};

use crate::domain::system_key::{KeyKind, NewestKeys};

/// How long it may take until a key is seen that others have: the token is looked through at least once more by then, and a
/// network HSM has copied it.
const GRACE: Duration = Duration::from_secs(1);

/// What others told of since this process was first asked. What it had not seen by then may be gone for good, and no other
/// process would see it.
#[derive(Default)]
pub struct Staleness {
    at_first: Option<NewestKeys>,
    since: Option<Instant>,
    is_stale: bool,
}

impl Staleness {
    /// The versions that are there, for others were `told` to have seen them, and that this process, which has looked, does
    /// not see.
    pub fn unseen(&mut self, told: &NewestKeys, own: &NewestKeys, now: Instant) -> Vec<(KeyKind, u16)> {
        let at_first = self.at_first.get_or_insert_with(|| told.clone());
        let mut unseen = told.beyond(own);
        unseen.retain(|(kind, version)| *version > at_first.of(*kind));
        self.since = match unseen.is_empty() {
            true => None,
            false => self.since.or(Some(now)),
        };
        self.is_stale |= self.since.is_some_and(|since| now.saturating_duration_since(since) >= GRACE);
        unseen
    }

    /// Whether another process is to take this one's place.
    pub fn is_stale(&self) -> bool {
        self.is_stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use KeyKind::{Kek, Row};

    fn keys(kek: u16, row: u16) -> NewestKeys {
        NewestKeys::new([(Kek, kek), (Row, row)])
    }

    #[test]
    fn who_does_not_see_for_a_second_what_others_have_is_stale_and_stays_so() {
        let (mut staleness, begun) = (Staleness::default(), Instant::now());
        let mut unseen = |told, own, ms| {
            let unseen = staleness.unseen(&told, &own, begun + Duration::from_millis(ms));
            (unseen, staleness.is_stale())
        };
        assert_eq!(unseen(keys(1, 1), keys(1, 1), 0), (vec![], false));
        assert_eq!(unseen(keys(1, 3), keys(1, 1), 10), (vec![(Row, 2), (Row, 3)], false));
        // Seen in time, and behind once more.
        assert_eq!(unseen(keys(1, 3), keys(1, 3), 900), (vec![], false));
        assert_eq!(unseen(keys(2, 3), keys(1, 3), 950), (vec![(Kek, 2)], false));
        assert_eq!(unseen(keys(2, 3), keys(1, 3), 1_949), (vec![(Kek, 2)], false));
        assert_eq!(unseen(keys(2, 3), keys(1, 3), 1_950), (vec![(Kek, 2)], true));
        assert_eq!(unseen(keys(2, 3), keys(2, 3), 2_000), (vec![], true), "it says so until it is replaced");
    }

    #[test]
    fn what_was_told_of_before_it_began_may_be_gone() {
        let (mut staleness, begun) = (Staleness::default(), Instant::now());
        for ms in [0, 5_000] {
            let now = begun + Duration::from_millis(ms);
            assert_eq!(staleness.unseen(&keys(7, 1), &keys(6, 1), now), []);
        }
        assert!(!staleness.is_stale());
        assert_eq!(staleness.unseen(&keys(8, 1), &keys(6, 1), begun), [(Kek, 8)]);
    }
}
