//! The state machine: a transaction + what happens + now -> its next version.

use serde::{Deserialize, Serialize};

use super::{AuthenticatorReport, Transaction};
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
    /// Its initiator takes it back.
    Cancel,
    /// Its time is over.
    Expire,
}

/// Why a step is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepError {
    /// It is in this final state.
    Ended(State),
    /// Its time is over, which has to be written down before anything else is said of it.
    Overdue,
    /// Its time is not over.
    NotDue,
    /// Whether its time is over depends on a clock that stepped.
    ClockUntrusted,
}

impl Transaction {
    /// Whether it is pending, and its time is over by either clock.
    pub fn is_overdue(&self, now: &Now) -> bool {
        self.state == State::Pending && self.expires.left_ms(now) == 0
    }

    /// Whether a response would be looked at.
    ///
    /// # Errors
    /// Why not.
    pub fn open(&self, now: &Now) -> Result<(), StepError> {
        match self.state {
            State::Pending if !now.trusted => Err(StepError::ClockUntrusted),
            State::Pending if self.is_overdue(now) => Err(StepError::Overdue),
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
        let (state, attempts_left, authenticator) = match (step, self.open(now)) {
            (_, Err(StepError::Ended(state))) => return Err(StepError::Ended(state)),
            (Step::Cancel, Ok(()) | Err(StepError::ClockUntrusted)) => {
                (State::Cancelled, self.attempts_left, None)
            }
            (Step::Expire, Err(StepError::Overdue)) => (State::Expired, self.attempts_left, None),
            (Step::Expire, Ok(())) => return Err(StepError::NotDue),
            (_, Err(error)) => return Err(error),
            (Step::Approve(report), Ok(())) => (State::Approved, self.attempts_left, report),
            (Step::Miss, Ok(())) => match self.attempts_left.saturating_sub(1) {
                0 => (State::Failed, 0, None),
                left => (State::Pending, left, None),
            },
        };
        let ended_unix_ms = (state != State::Pending).then_some(now.unix_ms);
        let version = self.version.saturating_add(1);
        Ok(Self { version, state, attempts_left, ended_unix_ms, authenticator, ..self.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, golden};
    use super::*;

    const REPORT: AuthenticatorReport =
        AuthenticatorReport { sign_count: 7, backup_eligible: true, backed_up: false };
    const STEPS: [Step; 4] = [Step::Approve(Some(REPORT)), Step::Miss, Step::Cancel, Step::Expire];

    /// Created at 0, open until 300 s.
    fn pending(attempts_left: u8) -> Transaction {
        let expires = super::super::deadline(&at(0), 300);
        Transaction { attempts_left, expires, created_unix_ms: 0, ..golden() }
    }

    #[test]
    fn each_step_of_a_pending_one_leads_where_it_should() {
        let after = |attempts_left, step, now| {
            let next = pending(attempts_left).after(step, &at(now))?;
            Ok((next.state, next.attempts_left))
        };
        use State::{Approved, Cancelled, Expired, Failed, Pending};
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
                    }
                }
            }
        }
    }

    #[test]
    fn only_what_becomes_of_it_changes() {
        for step in STEPS {
            let now = at(if step == Step::Expire { 300_000 } else { 1_000 });
            let before = pending(3);
            let next = before.after(step, &now).unwrap();
            assert_eq!(next.version, before.version + 1);
            assert_eq!(next.ended_unix_ms, (next.state != State::Pending).then_some(now.unix_ms));
            assert_eq!(next.authenticator, (next.state == State::Approved).then_some(REPORT));
            assert_eq!(next.digest(), before.digest());
            let Transaction { version, state, attempts_left, ended_unix_ms, authenticator, .. } =
                before.clone();
            assert_eq!(
                Transaction { version, state, attempts_left, ended_unix_ms, authenticator, ..next },
                before
            );
        }
    }

    #[test]
    fn a_clock_that_stepped_allows_to_cancel_and_nothing_else() {
        for now in [0, 300_000] {
            let now = Now { trusted: false, ..at(now) };
            for step in [STEPS[0], Step::Miss, Step::Expire] {
                assert_eq!(pending(3).after(step, &now), Err(StepError::ClockUntrusted), "{step:?}");
            }
            assert_eq!(pending(3).after(Step::Cancel, &now).unwrap().state, State::Cancelled);
            assert_eq!(pending(3).open(&now), Err(StepError::ClockUntrusted));
        }
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
