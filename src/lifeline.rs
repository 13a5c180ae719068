//! What the work on a request hangs on: until when, and whether somebody still waits for its answer.
//!
//! Work whose caller has gone, or whose time is over, is dropped where it stands; nothing of it has happened then. That
//! ends where its commit is taken by the store's writer: from there on it is carried out to its end, whoever has gone, so
//! that its answer is remembered and its account is not given to the next one before the verdict is there. Which of the two
//! came first is decided by one atomic word.
//!
//! The request's place among those that are worked on hangs on it too: who waits for what needs neither a custodian nor the
//! store gives it back meanwhile.
//!
//! It is found by the task that works on the request, not handed from function to function: nothing but the places that wait
//! has to know of it. Work of the appliance's own hangs on nothing.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// Nobody waits for the answer.
const LET_GO: u8 = 1;
/// The writer has a commit of it.
const HANDED_OVER: u8 = 2;

tokio::task_local! {
    static CURRENT: Arc<Lifeline>;
}

/// Of one request.
pub struct Lifeline {
    deadline: Instant,
    state: AtomicU8,
    /// Its place among those that are worked on, while it has one. Dropped, that is somebody else's.
    turn: Mutex<Option<Box<dyn Send>>>,
}

impl Lifeline {
    /// Of a request that is to be answered by then.
    pub fn until(deadline: Instant) -> Arc<Self> {
        Arc::new(Self { deadline, state: AtomicU8::new(0), turn: Mutex::default() })
    }

    /// Until when.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// `work`, hanging on this.
    pub async fn hold<W: Future>(self: Arc<Self>, work: W) -> W::Output {
        CURRENT.scope(self, work).await
    }

    /// That of the task that asks; `None`: it works for no request.
    pub fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Its turn has come: `place` is kept until it ends.
    pub fn begin_turn(&self, place: impl Send + 'static) {
        self.put_turn(Some(Box::new(place)));
    }

    /// Its turn has ended, if it had not before: somebody else is worked on.
    pub fn end_turn(&self) {
        self.put_turn(None);
    }

    fn put_turn(&self, turn: Option<Box<dyn Send>>) {
        let before = std::mem::replace(&mut *self.turn.lock().unwrap_or_else(PoisonError::into_inner), turn);
        // Dropping it has somebody else called, which is nothing to be done under a lock.
        drop(before);
    }

    /// Nobody waits any more. Whether the work on it is to be dropped: not what the writer has.
    pub fn let_go(&self) -> bool {
        self.state.fetch_or(LET_GO, Ordering::AcqRel) & HANDED_OVER == 0
    }

    /// The writer takes its commit. Whether it is to be written: not if nobody waits any more.
    pub fn hand_over(&self) -> bool {
        self.state.fetch_or(HANDED_OVER, Ordering::AcqRel) & LET_GO == 0
    }

    /// Nothing is written of it, or nothing that it has to be carried out for. Whether it is worth another attempt: if not,
    /// whoever works on it has to end, for it is not dropped any more. Only for the task that works on it, which is not
    /// dropped before.
    pub fn hand_back(&self) -> bool {
        self.state.fetch_and(!HANDED_OVER, Ordering::AcqRel) & LET_GO == 0
    }

    /// That moment, or the request's deadline if that is earlier. What comes after a commit is not held to it: it tells of
    /// what has happened.
    pub fn no_later_than(moment: Instant) -> Instant {
        match Self::current() {
            Some(line) if line.state.load(Ordering::Acquire) & HANDED_OVER == 0 => moment.min(line.deadline),
            _ => moment,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn line() -> Arc<Lifeline> {
        Lifeline::until(Instant::now() + Duration::from_secs(1))
    }

    #[test]
    fn who_comes_first_decides() {
        let gone = line();
        assert!(gone.let_go());
        assert!(!gone.hand_over(), "nobody waits for it");
        let written = line();
        assert!(written.hand_over());
        assert!(!written.let_go(), "the writer has it");
        assert!(!written.let_go());
    }

    #[test]
    fn what_was_not_written_is_tried_again_for_who_waits() {
        let line = line();
        assert!(line.hand_over() && line.hand_back());
        assert!(line.hand_over() && !line.let_go());
        assert!(!line.hand_back(), "nobody waits any more");
        assert!(!line.hand_over());
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_the_deadline_but_for_what_has_happened() {
        let (line, far) = (line(), Instant::now() + Duration::from_secs(60));
        assert_eq!(Lifeline::no_later_than(far), far, "work of the appliance's own");
        let deadline = line.deadline();
        let early = deadline - Duration::from_millis(1);
        line.clone()
            .hold(async {
                assert_eq!(Lifeline::no_later_than(far), deadline);
                assert_eq!(Lifeline::no_later_than(early), early);
                line.hand_over();
                assert_eq!(Lifeline::no_later_than(far), far);
            })
            .await;
    }
}
