//! One verdict over several credentials of one account: a code of each is presented, and which was wrong is not told.

use super::{Refusal, Subject, admit, share, succeeded};
use crate::domain::account::Account;
use crate::domain::credential::CredentialState;
use crate::domain::time::Now;

/// What either verdict makes of the rows, decided before the custodian is asked.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The credentials after a success, in their order.
    pub accepted_states: Vec<CredentialState>,
    /// The account after a success; `None` where it stays as it is.
    pub accepted_account: Option<Account>,
    /// The credentials after a failure, in their order.
    pub missed_states: Vec<CredentialState>,
    /// The account after a failure.
    pub missed_account: Account,
    /// Attempts left after a failure: the smallest of all credentials' and the account's.
    pub remaining_if_missed: u32,
}

/// Plans one verdict over all of them. A failure is one of each credential, because any of them may have been guessed
/// at, and one of the account, because one was presented; it is the first one's share.
///
/// # Errors
/// A [`Refusal`] if any of them may not be tried; of several locks, the one that lasts longest.
pub fn begin(subjects: &[Subject<'_>], account: &Account, now: &Now) -> Result<Plan, Refusal> {
    let mut locked = None;
    for subject in subjects {
        match admit(*subject, now) {
            Err(Refusal::Locked(lock)) => {
                locked = Some(locked.map_or(lock, |other| lock.longer(other)));
            }
            admitted => admitted?,
        }
    }
    if let Some(locked) = locked {
        return Err(Refusal::Locked(locked));
    }
    let (mut missed_states, mut shares) = (Vec::with_capacity(subjects.len()), 0_u32);
    for subject in subjects {
        let own = share(*subject);
        shares = shares.saturating_add(own);
        missed_states.push(CredentialState {
            attempts: subject.state.attempts.charge(now),
            account_share: own.saturating_add(u32::from(missed_states.is_empty())),
            account_epoch: account.epoch,
            ..subject.state.next()
        });
    }
    let next = |attempts| Account { version: account.version.saturating_add(1), attempts, ..account.clone() };
    let missed_account = next(account.attempts.charge(now));
    let refunded = account.attempts.refund(shares);
    let left = missed_states.iter().map(|state| state.attempts.remaining(now));
    Ok(Plan {
        accepted_states: subjects.iter().map(|subject| succeeded(*subject)).collect(),
        accepted_account: (refunded != account.attempts).then(|| next(refunded)),
        remaining_if_missed: left.fold(missed_account.attempts.remaining(now), u32::min),
        missed_states,
        missed_account,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tests::{Rows, at};
    use super::*;
    use crate::domain::credential::{Kind, Status, Terminal};
    use crate::domain::id::CredentialId;
    use crate::domain::lockout::{Lock, Locked};

    /// Terminals of one account.
    struct Terminals(Vec<Rows>);

    impl Terminals {
        fn new(count: u8) -> Self {
            let terminal = |number| {
                let address = format!("+{number}").try_into().unwrap();
                let mut rows = Rows::of(Kind::Terminal(Terminal { address, secret: None }), 0);
                let id = CredentialId::from_random([number; 16]);
                (rows.0.id, rows.1.id) = (id, id);
                rows
            };
            Self((1..=count).map(terminal).collect())
        }

        fn account(&self) -> &Account {
            &self.0[0].2
        }

        fn begin(&self, now: &Now) -> Result<Plan, Refusal> {
            let subjects: Vec<_> = self.0.iter().map(Rows::subject).collect();
            begin(&subjects, self.account(), now)
        }

        fn write(&mut self, states: Vec<CredentialState>, account: Option<Account>) {
            let account = account.unwrap_or(self.account().clone());
            for (rows, state) in self.0.iter_mut().zip(states) {
                (rows.1, rows.2) = (state, account.clone());
            }
        }

        fn enter(&mut self, is_right: bool, now: &Now) {
            let plan = self.begin(now).unwrap();
            match is_right {
                true => self.write(plan.accepted_states, plan.accepted_account),
                false => self.write(plan.missed_states, Some(plan.missed_account)),
            }
        }

        /// Each one's failures and share, and the account's failures.
        fn failures(&self) -> (Vec<(u32, u32)>, u32) {
            let of = |rows: &Rows| (rows.1.attempts.failures, rows.1.account_share);
            (self.0.iter().map(of).collect(), self.account().attempts.failures)
        }
    }

    #[test]
    fn a_failure_is_one_of_each_and_one_of_the_account() {
        let mut all = Terminals::new(3);
        assert_eq!(all.begin(&at(0)).unwrap().remaining_if_missed, 4);
        all.enter(false, &at(0));
        all.enter(false, &at(0));
        assert_eq!(all.failures(), (vec![(2, 2), (2, 0), (2, 0)], 2));
        all.enter(true, &at(0));
        assert_eq!(all.failures(), (vec![(0, 0), (0, 0), (0, 0)], 0));
    }

    #[test]
    fn a_success_takes_all_their_shares_back_and_no_others() {
        let mut all = Terminals::new(2);
        all.enter(false, &at(0));
        // In another order the share was another one's; a third credential failed besides.
        all.0.swap(0, 1);
        all.enter(false, &at(0));
        let mut account = all.account().clone();
        account.attempts.failures += 1;
        let states = all.0.iter().map(|rows| rows.1.clone()).collect();
        all.write(states, Some(account));
        assert_eq!(all.failures(), (vec![(2, 1), (2, 1)], 3));
        all.enter(true, &at(0));
        assert_eq!(all.failures(), (vec![(0, 0), (0, 0)], 1));
        let account = all.account().unlocked();
        all.write(all.0.iter().map(|rows| rows.1.clone()).collect(), Some(account));
        all.0[1].1.account_share = 4;
        all.enter(false, &at(0));
        assert_eq!(all.failures(), (vec![(1, 1), (1, 0)], 1), "a share of an earlier epoch is void");
    }

    #[test]
    fn what_stays_as_it_is_is_not_written() {
        assert!(Terminals::new(2).begin(&at(0)).unwrap().accepted_account.is_none());
    }

    #[test]
    fn any_lock_stops_all_of_them_and_the_longest_is_told() {
        let mut all = Terminals::new(3);
        for (number, seconds) in [(1, 60), (2, 30)] {
            let lock = Lock::Until(crate::domain::time::Deadline::after(&at(0), seconds * 1_000));
            all.0[number].1.attempts.lock = Some(lock);
        }
        let locked = |all: &Terminals| all.begin(&at(0)).err();
        assert_eq!(locked(&all), Some(Refusal::Locked(Locked { retry_after_s: Some(60) })));
        all.0[2].1.attempts.lock = Some(Lock::UntilUnlocked);
        assert_eq!(locked(&all), Some(Refusal::Locked(Locked { retry_after_s: None })));
        all.0[0].1.status = Status::Suspended;
        assert_eq!(locked(&all), Some(Refusal::Inactive));
    }

    #[test]
    fn five_failures_lock() {
        let mut all = Terminals::new(2);
        for left in [4, 3, 2, 1, 0] {
            assert_eq!(all.begin(&at(0)).unwrap().remaining_if_missed, left);
            all.enter(false, &at(0));
        }
        assert!(matches!(all.begin(&at(0)), Err(Refusal::Locked(_))));
    }

    proptest! {
        /// The account's failures are the shares of its credentials, in whatever order they come and go.
        #[test]
        fn shares_add_up(steps in prop::collection::vec((any::<bool>(), 0usize..3), 1..60)) {
            let mut all = Terminals::new(3);
            let mut now_s = 0;
            for (is_right, first) in steps {
                now_s += 86_400;
                all.0.rotate_left(first);
                if all.begin(&at(now_s)).is_ok() {
                    all.enter(is_right, &at(now_s));
                }
                let (each, account) = all.failures();
                prop_assert_eq!(each.iter().map(|(_, share)| share).sum::<u32>(), account);
            }
        }
    }
}
