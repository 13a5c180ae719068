//! How far the anchor is behind the log, and whether that is so far that nothing more is committed.

use std::time::Duration;

use tokio::time::Instant;

/// How long entries may wait for an anchor: six times the interval of checkpoints, so that a custodian that is replaced,
/// or a token that is slow, closes nothing, and what a database that is turned back can lose stays a minute.
pub(super) const BEHIND_MAX: Duration = Duration::from_secs(60);
/// How many entries may wait for one: ten times as many as there is a checkpoint for, so that no load alone comes so far.
pub(super) const ENTRIES_BEHIND_MAX: u64 = 100_000;

/// The anchor and what lies behind it.
pub(super) struct Lag {
    anchored: u64,
    /// Since when there is an entry that it does not cover.
    behind_since: Option<Instant>,
    /// Why the last attempt made no anchor.
    cause: Option<String>,
    /// Whether it was told that nothing is committed.
    is_closed: bool,
}

/// What is told once.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// From here on nothing is committed, for this reason.
    Closed(String),
    /// From here on it is again.
    Opened,
}

impl Lag {
    /// Of a log of so many entries, of which nothing is known yet: who begins with them looks at the anchor.
    pub fn new(size: u64) -> Self {
        Self { anchored: size, behind_since: None, cause: None, is_closed: false }
    }

    /// The log has so many entries now. What is to be told, if that closes.
    pub fn look(&mut self, size: u64, now: Instant) -> Option<Turn> {
        let behind = size.saturating_sub(self.anchored);
        if behind == 0 {
            return None;
        }
        let since = *self.behind_since.get_or_insert(now);
        let is_late = now.saturating_duration_since(since) >= BEHIND_MAX;
        if self.is_closed || !is_late && behind < ENTRIES_BEHIND_MAX {
            return None;
        }
        self.is_closed = true;
        self.reason().map(Turn::Closed)
    }

    /// An attempt failed; whether it is the first one since the last anchor.
    pub fn failed(&mut self, cause: String) -> bool {
        self.cause.replace(cause).is_none()
    }

    /// The anchor covers so many entries, as they were at `begun`; by now the log has `size`.
    pub fn anchored(&mut self, anchored: u64, begun: Instant, size: u64) -> Option<Turn> {
        self.anchored = anchored;
        self.behind_since = (size > anchored).then_some(begun);
        self.cause = None;
        std::mem::take(&mut self.is_closed).then_some(Turn::Opened)
    }

    /// Why the last attempt made no anchor.
    #[cfg(test)]
    pub fn cause(&self) -> Option<&str> {
        self.cause.as_deref()
    }

    /// Why nothing is committed; `None`: it is.
    pub fn reason(&self) -> Option<String> {
        let cause = self.cause.as_deref().unwrap_or("it does not answer in time");
        self.is_closed.then(|| format!("the token takes no anchor of the log: {cause}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn closed(turn: Option<Turn>) -> bool {
        matches!(turn, Some(Turn::Closed(_)))
    }

    #[test]
    fn it_closes_a_minute_after_the_first_entry_behind_the_anchor_and_tells_once() {
        let (mut lag, begun) = (Lag::new(7), Instant::now());
        assert_eq!(lag.look(7, begun), None);
        assert_eq!(lag.look(7, begun + 9 * BEHIND_MAX), None, "a quiet log waits for nothing");
        let first = begun + 10 * BEHIND_MAX;
        assert_eq!(lag.look(8, first), None);
        assert!(lag.failed("no room".to_owned()));
        assert!(!lag.failed("still no room".to_owned()));
        assert_eq!(lag.look(9, first + BEHIND_MAX - SECOND), None);
        assert_eq!(lag.reason(), None);
        let why = "the token takes no anchor of the log: still no room".to_owned();
        assert_eq!(lag.look(9, first + BEHIND_MAX), Some(Turn::Closed(why.clone())));
        assert_eq!(lag.look(9, first + 2 * BEHIND_MAX), None, "it was told");
        assert_eq!(lag.reason(), Some(why));
        assert_eq!(lag.anchored(9, first + 2 * BEHIND_MAX, 9), Some(Turn::Opened));
        assert_eq!((lag.reason(), lag.look(9, first + 4 * BEHIND_MAX)), (None, None));
    }

    #[test]
    fn what_came_while_an_anchor_was_made_waits_since_then() {
        let (mut lag, begun) = (Lag::new(0), Instant::now());
        assert_eq!(lag.look(1, begun), None);
        let next = begun + BEHIND_MAX - SECOND;
        assert_eq!(lag.anchored(1, next, 2), None);
        assert_eq!(lag.look(2, next + BEHIND_MAX - SECOND), None);
        assert!(closed(lag.look(2, next + BEHIND_MAX)));
    }

    #[test]
    fn it_closes_at_a_hundred_thousand_entries_however_fast_they_came() {
        let (mut lag, now) = (Lag::new(5), Instant::now());
        assert_eq!(lag.look(5 + ENTRIES_BEHIND_MAX - 1, now), None);
        assert!(closed(lag.look(5 + ENTRIES_BEHIND_MAX, now)));
        assert_eq!(lag.anchored(6, now, 5 + ENTRIES_BEHIND_MAX), Some(Turn::Opened));
    }
}
