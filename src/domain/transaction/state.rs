//! The state machine: a transaction + what happens + now -> its next version.

use serde::{Deserialize, Serialize};

use super::{AuthenticatorReport, Method, Progress, Transaction};
use crate::domain::multi_terminal::Round;
use crate::domain::time::Now;

/// What became of a transaction. All but the first are final. Stored in sealed rows: variants go to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Waits for its response.
    Pending,
    /// What was presented was right.
    Approved,
    /// Its user declined it.
    Rejected,
    /// What was presented was wrong, once too often.
    Failed,
    /// Its time was over first.
    Expired,
    /// Its initiator took it back.
    Cancelled,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Pending, Self::Approved, Self::Rejected, Self::Failed, Self::Expired, Self::Cancelled];

    /// As in JSON and in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Failed => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What can happen to a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// What was presented is right.
    Approve(Option<AuthenticatorReport>),
    /// What was presented is wrong.
    Miss,
    /// One code of several was presented; what it is worth stays open.
    Enter(Round),
    /// Its user says no.
    Decline,
    /// Its initiator takes it back.
    Cancel,
    /// Its time is over.
    Expire,
    /// The time that its rule measures was cut off.
    Interrupt,
}

/// Why a step is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepError {
    /// It is in this final state.
    Ended(State),
    /// Its time is over, which has to be written down before anything else is said of it.
    Overdue,
    /// The time that its rule measures was cut off, which has to be written down likewise.
    Interrupted,
    /// Its time is not over, or not cut off.
    NotDue,
    /// Whether its time is over depends on a clock that stepped.
    ClockUntrusted,
}

impl Transaction {
    /// Whether it is pending, and its time is over by either clock.
    pub fn is_overdue(&self, now: &Now) -> bool {
        self.state == State::Pending && self.expires.left_ms(now) == 0
    }

    /// Whether it is pending, and a window or an interval of its rule was being measured by a run that has ended.
    pub fn is_interrupted(&self, now: &Now) -> bool {
        let cut_off = matches!(&self.progress, Progress::Entry(round) if round.is_interrupted(now));
        self.state == State::Pending && cut_off
    }

    /// Whether a response would be looked at.
    ///
    /// # Errors
    /// Why not.
    pub fn open(&self, now: &Now) -> Result<(), StepError> {
        match self.state {
            State::Pending if !now.trusted => Err(StepError::ClockUntrusted),
            State::Pending if self.is_overdue(now) => Err(StepError::Overdue),
            State::Pending if self.is_interrupted(now) => Err(StepError::Interrupted),
            State::Pending => Ok(()),
            ended => Err(StepError::Ended(ended)),
        }
    }

    /// The next version.
    ///
    /// With a clock that stepped nothing is approved, missed or expired. It may be cancelled: whether its time
    /// is over makes no difference then.
    ///
    /// # Errors
    /// Why there is none.
    pub fn after(&self, step: Step, now: &Now) -> Result<Self, StepError> {
        let mut next = Self { version: self.version.saturating_add(1), ..self.clone() };
        next.state = match (step, self.open(now)) {
            (_, Err(StepError::Ended(state))) => return Err(StepError::Ended(state)),
            (Step::Cancel, Ok(()) | Err(StepError::ClockUntrusted)) => State::Cancelled,
            (Step::Expire, Err(StepError::Overdue)) => State::Expired,
            (Step::Interrupt, Err(StepError::Interrupted)) => State::Failed,
            (Step::Expire | Step::Interrupt, Ok(())) => return Err(StepError::NotDue),
            (_, Err(error)) => return Err(error),
            (Step::Approve(report), Ok(())) => {
                next.authenticator = report;
                State::Approved
            }
            (Step::Decline, Ok(())) => State::Rejected,
            (Step::Enter(round), Ok(())) => {
                next.progress = Progress::Entry(round);
                State::Pending
            }
            (Step::Miss, Ok(())) => {
                next.attempts_left = self.attempts_left.saturating_sub(1);
                next.restart(now);
                if next.attempts_left == 0 { State::Failed } else { State::Pending }
            }
        };
        next.ended_unix_ms = (next.state != State::Pending).then_some(now.unix_ms);
        Ok(next)
    }

    /// Nothing of what was entered counts any more.
    fn restart(&mut self, now: &Now) {
        if let Method::MultiTerminal(method) = &self.method {
            self.progress = Progress::Entry(method.begin(now.run));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, golden};
    use super::*;
    use crate::domain::id::CredentialId;
    use crate::domain::multi_terminal::{EntryOrder, EntryRule, FrozenTerminal, Interval, MultiTerminal};
    use crate::domain::otp::Digits;
    use crate::domain::time::{Deadline, RunId};

    const REPORT: AuthenticatorReport =
        AuthenticatorReport { sign_count: 7, backup_eligible: true, backed_up: false };
    const ROUND: Round = Round { entered: 1, wrong: true, arrived_boot_ms: 7, run: None };
    const STEPS: [Step; 7] = [
        Step::Approve(Some(REPORT)),
        Step::Miss,
        Step::Cancel,
        Step::Expire,
        Step::Enter(ROUND),
        Step::Decline,
        Step::Interrupt,
    ];
    /// The run of the times that [`at`] reads, and another one.
    const RUNS: [RunId; 2] = [RunId([0; 16]), RunId([1; 16])];

    /// Created at 0, open until 300 s.
    fn pending(attempts_left: u8) -> Transaction {
        let expires = super::super::deadline(&at(0), 300);
        Transaction { attempts_left, expires, created_unix_ms: 0, ..golden() }
    }

    /// The same for two terminals, at this point of the entry.
    fn entered(window: Option<Deadline>, round: Round) -> Transaction {
        let terminal = |byte| FrozenTerminal {
            credential: CredentialId::from_random([byte; 16]),
            address: format!("+{byte}").try_into().unwrap(),
        };
        let interval = Some(Interval { interval_s: 10, tolerance_s: 2 });
        let method = MultiTerminal {
            terminals: vec![terminal(1), terminal(2)],
            rule: EntryRule { order: EntryOrder::PresetOrder, interval },
            digits: Digits::default(),
            generation: 1,
            window,
        };
        let (method, progress) = (Method::MultiTerminal(method), Progress::Entry(round));
        Transaction { method, progress, ..pending(3) }
    }

    /// One whose time was being measured by a run that has ended.
    fn interrupted() -> Transaction {
        entered(None, Round { run: Some(RUNS[1]), ..ROUND })
    }

    #[test]
    fn each_step_of_a_pending_one_leads_where_it_should() {
        let after = |attempts_left, step, now| {
            let next = pending(attempts_left).after(step, &at(now))?;
            Ok((next.state, next.attempts_left))
        };
        use State::{Approved, Cancelled, Expired, Failed, Pending, Rejected};
        use StepError::{NotDue, Overdue};
        for (attempts_left, step, now, expected) in [
            (3, STEPS[0], 0, Ok((Approved, 3))),
            (1, STEPS[0], 299_999, Ok((Approved, 1))),
            (3, STEPS[0], 300_000, Err(Overdue)),
            (3, Step::Miss, 0, Ok((Pending, 2))),
            (2, Step::Miss, 0, Ok((Pending, 1))),
            (1, Step::Miss, 0, Ok((Failed, 0))),
            (0, Step::Miss, 0, Ok((Failed, 0))),
            (3, Step::Miss, 300_000, Err(Overdue)),
            (3, Step::Cancel, 0, Ok((Cancelled, 3))),
            (3, Step::Cancel, 300_000, Err(Overdue)),
            (3, Step::Expire, 299_999, Err(NotDue)),
            (3, Step::Expire, 300_000, Ok((Expired, 3))),
            (3, Step::Enter(ROUND), 0, Ok((Pending, 3))),
            (1, Step::Enter(ROUND), 299_999, Ok((Pending, 1))),
            (3, Step::Enter(ROUND), 300_000, Err(Overdue)),
            (3, Step::Decline, 0, Ok((Rejected, 3))),
            (1, Step::Decline, 299_999, Ok((Rejected, 1))),
            (3, Step::Decline, 300_000, Err(Overdue)),
            (3, Step::Interrupt, 0, Err(NotDue)),
            (3, Step::Interrupt, 300_000, Err(Overdue)),
        ] {
            assert_eq!(after(attempts_left, step, now), expected, "{step:?} at {now} with {attempts_left}");
        }
    }

    #[test]
    fn what_is_final_stays() {
        for state in State::ALL.into_iter().filter(|state| *state != State::Pending) {
            for step in STEPS {
                for now in [0, 299_999, 300_000, u64::MAX] {
                    for trusted in [true, false] {
                        let now = Now { trusted, ..at(now) };
                        let ended = Transaction { state, ..pending(3) };
                        assert_eq!(ended.after(step, &now), Err(StepError::Ended(state)), "{step:?}");
                        assert_eq!(ended.open(&now), Err(StepError::Ended(state)));
                        assert!(!ended.is_overdue(&now));
                        let ended = Transaction { state, ..interrupted() };
                        assert_eq!(ended.after(step, &now), Err(StepError::Ended(state)), "{step:?}");
                        assert!(!ended.is_interrupted(&now));
                    }
                }
            }
        }
    }

    #[test]
    fn only_what_becomes_of_it_changes() {
        for step in STEPS {
            let now = at(if step == Step::Expire { 300_000 } else { 1_000 });
            let before = if step == Step::Interrupt { interrupted() } else { pending(3) };
            let next = before.after(step, &now).unwrap();
            assert_eq!(next.version, before.version + 1);
            assert_eq!(next.ended_unix_ms, (next.state != State::Pending).then_some(now.unix_ms));
            assert_eq!(next.authenticator, (next.state == State::Approved).then_some(REPORT));
            assert_eq!(next.digest(), before.digest());
            let entered = Progress::Entry(ROUND);
            assert_eq!(
                next.progress,
                if step == Step::Enter(ROUND) { entered } else { before.progress.clone() }
            );
            let Transaction { version, state, attempts_left, ended_unix_ms, authenticator, progress, .. } =
                before.clone();
            assert_eq!(
                Transaction { version, state, attempts_left, ended_unix_ms, authenticator, progress, ..next },
                before
            );
        }
    }

    #[test]
    fn a_clock_that_stepped_allows_to_cancel_and_nothing_else() {
        for now in [0, 300_000] {
            let now = Now { trusted: false, ..at(now) };
            for transaction in [pending(3), interrupted()] {
                for step in STEPS.into_iter().filter(|step| *step != Step::Cancel) {
                    assert_eq!(transaction.after(step, &now), Err(StepError::ClockUntrusted), "{step:?}");
                }
                assert_eq!(transaction.after(Step::Cancel, &now).unwrap().state, State::Cancelled);
                assert_eq!(transaction.open(&now), Err(StepError::ClockUntrusted));
            }
        }
    }

    #[test]
    fn a_miss_begins_the_entry_anew() {
        let window = Deadline::after(&at(0), 60_000);
        for (window, run) in [(None, None), (Some(window), Some(RUNS[0]))] {
            let before = entered(window, Round { run: Some(RUNS[0]), ..ROUND });
            let next = before.after(Step::Miss, &at(1_000)).unwrap();
            // A window's time goes on; an interval's begins with the first code.
            assert_eq!(next.progress, Progress::Entry(Round { run, ..Round::default() }));
            assert_eq!((next.state, next.attempts_left), (State::Pending, 2));
            assert_eq!(next.method, before.method);
            let last = Transaction { attempts_left: 1, ..before };
            assert_eq!(last.after(Step::Miss, &at(1_000)).unwrap().state, State::Failed);
        }
        // Where nothing is entered bit by bit, nothing begins.
        for method in [pending(3).method, Method::RollingPassword] {
            let next = Transaction { method, ..pending(3) }.after(Step::Miss, &at(1_000)).unwrap();
            assert_eq!(next.progress, Progress::None);
        }
    }

    #[test]
    fn what_was_cut_off_fails_before_anything_else_is_said_of_it() {
        let cut_off = interrupted();
        for step in STEPS.into_iter().filter(|step| *step != Step::Interrupt) {
            assert_eq!(cut_off.after(step, &at(1_000)), Err(StepError::Interrupted), "{step:?}");
        }
        assert_eq!(cut_off.open(&at(1_000)), Err(StepError::Interrupted));
        let failed = cut_off.after(Step::Interrupt, &at(1_000)).unwrap();
        assert_eq!((failed.state, failed.ended_unix_ms), (State::Failed, Some(1_000)));
        assert_eq!(failed.attempts_left, 3, "nobody is charged");
        // But that its time is over comes first.
        for step in STEPS.into_iter().filter(|step| *step != Step::Expire) {
            assert_eq!(cut_off.after(step, &at(300_000)), Err(StepError::Overdue), "{step:?}");
        }
        assert_eq!(cut_off.after(Step::Expire, &at(300_000)).unwrap().state, State::Expired);

        // In its own run it goes on, and so does what no run measures.
        let own_run = Now { run: RUNS[1], ..at(1_000) };
        let measured_by_none = entered(None, ROUND);
        for (transaction, now) in
            [(&cut_off, own_run), (&measured_by_none, at(1_000)), (&measured_by_none, own_run)]
        {
            assert!(!transaction.is_interrupted(&now));
            assert_eq!(transaction.open(&now), Ok(()));
            assert_eq!(transaction.after(Step::Interrupt, &now), Err(StepError::NotDue));
            assert_eq!(transaction.after(Step::Enter(ROUND), &now).unwrap().progress, Progress::Entry(ROUND));
        }
        // A window is measured from the transaction's beginning.
        let Method::MultiTerminal(method) = entered(Some(Deadline::after(&at(0), 60_000)), ROUND).method
        else {
            panic!()
        };
        let begun = entered(method.window, method.begin(RUNS[0]));
        assert_eq!(begun.open(&at(1_000)), Ok(()));
        assert_eq!(begun.open(&own_run), Err(StepError::Interrupted));
    }

    #[test]
    fn either_clock_ends_it() {
        let set_back = Now { unix_ms: 0, ..at(300_000) };
        let set_forward = Now { boot_ms: 0, ..at(300_000) };
        for now in [set_back, set_forward] {
            assert_eq!(pending(3).open(&now), Err(StepError::Overdue));
        }
    }

    #[test]
    fn states_are_named_in_json_as_in_the_database() {
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }
}
