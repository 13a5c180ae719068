//! One code against one credential: which factors to try, and what each outcome makes of the rows.

use serde::{Deserialize, Serialize};

use super::account::Account;
use super::credential::{Credential, CredentialState, Kind, OtpToken, Status, UsedInput};
use super::lockout::Locked;
use super::otp::{COUNTER_END, MovingFactor, time_step};
use super::resync::DRIFT_FOUND_MAX;
use super::time::Now;

pub mod ocra;
pub mod rolling;
pub mod several;

/// The rows a verdict stands on.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    /// Its parameters.
    pub credential: &'a Credential,
    /// What the last code left.
    pub state: &'a CredentialState,
    /// What limits guessing over all the account's credentials.
    pub account: &'a Account,
}

/// Why there is no verdict; nothing is charged, and the HSM is not asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no such credential (any more).
    Absent,
    /// It is suspended, or was never made active.
    Inactive,
    /// It or its account is locked.
    Locked(Locked),
    /// The answer depends on a clock that stepped.
    ClockUntrusted,
}

/// What moves from code to code: the counter, the time step, both (OCRA with C and T) or nothing (OCRA
/// with neither).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Factor {
    /// HOTP's counter; OCRA's C.
    pub counter: Option<u64>,
    /// TOTP's time step; OCRA's T.
    pub time_step: Option<u64>,
}

impl Factor {
    /// HOTP and TOTP: the one number that goes into the HMAC.
    pub fn single(self) -> Option<u64> {
        match (self.counter, self.time_step) {
            (Some(number), None) | (None, Some(number)) => Some(number),
            _ => None,
        }
    }

    /// What the code after this one can be computed from. Between two codes of a token with counter and
    /// clock, the time step may have changed or not.
    pub fn successors(self) -> impl Iterator<Item = Self> {
        let later = self.time_step.and_then(|step| step.checked_add(1));
        let successors = match self.counter {
            Some(counter) => {
                let counter = counter.checked_add(1);
                let same = counter.map(|_| Self { counter, ..self });
                let both = counter.and(later).map(|_| Self { counter, time_step: later });
                [same, both]
            }
            None => [later.map(|_| Self { counter: None, time_step: later }), None],
        };
        successors.into_iter().flatten()
    }
}

/// What one matching factor means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Right.
    Accepted {
        /// The credential's next state.
        state: CredentialState,
        /// OCRA without C: what keeps the code from being accepted again.
        used: Option<Box<UsedInput>>,
    },
    /// Accepted before: refused, nothing charged.
    Repeated,
}

/// A factor to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// What its code is computed from.
    pub factor: Factor,
    /// What it means if it matches.
    pub verdict: Verdict,
}

/// Everything the custodian's answer can mean, decided before it is asked.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In the order in which they are to be tried; the first match decides.
    pub candidates: Vec<Candidate>,
    /// The account after an acceptance; `None` where it stays as it is.
    pub accepted_account: Option<Account>,
    /// The credential after a miss.
    pub missed_state: CredentialState,
    /// The account after a miss.
    pub missed_account: Account,
    /// Attempts left after a miss: the smaller of the credential's and the account's.
    pub remaining_if_missed: u32,
    /// Attempts left now, as after a repeat.
    pub remaining: u32,
}

/// Whether the credential may be used at all: what a signature needs, which nobody can guess.
///
/// # Errors
/// [`Refusal::Absent`], [`Refusal::Inactive`].
pub fn usable(subject: Subject<'_>) -> Result<(), Refusal> {
    match subject.state.status {
        Status::Deleted => Err(Refusal::Absent),
        Status::Suspended | Status::Pending | Status::Unauthorized | Status::Recovered | Status::Stranded => {
            Err(Refusal::Inactive)
        }
        Status::Active => Ok(()),
    }
}

/// Whether a code may be tried.
///
/// # Errors
/// The reason why not, the same for every kind of token and for a resync.
pub fn admit(subject: Subject<'_>, now: &Now) -> Result<(), Refusal> {
    usable(subject)?;
    let by_time = match &subject.credential.kind {
        Kind::Otp(token) => matches!(token.moving_factor, MovingFactor::Totp { .. }),
        Kind::Ocra(token) => token.suite.time_step_s().is_some(),
        Kind::Signer(_)
        | Kind::CertifiedSigner(_)
        | Kind::Authenticator(_)
        | Kind::Terminal(_)
        | Kind::Rolling(_) => false,
    };
    unlocked(subject, by_time, now)
}

/// Whether neither the credential nor its account is locked; `by_time`: whether the verdict needs the clock besides.
///
/// # Errors
/// [`Refusal::Locked`], [`Refusal::ClockUntrusted`].
pub fn unlocked(subject: Subject<'_>, by_time: bool, now: &Now) -> Result<(), Refusal> {
    let (own, account) = (&subject.state.attempts, &subject.account.attempts);
    let locked = match (own.locked(now), account.locked(now)) {
        (Some(a), Some(b)) => Some(a.longer(b)),
        (a, b) => a.or(b),
    };
    let has_lock = own.lock.is_some() || account.lock.is_some();
    match locked {
        Some(locked) if now.trusted || locked.retry_after_s.is_none() => Err(Refusal::Locked(locked)),
        _ if !now.trusted && (by_time || has_lock) => Err(Refusal::ClockUntrusted),
        _ => Ok(()),
    }
}

/// Plans the check of one code of a HOTP or TOTP token.
///
/// The code accepted last is tried first: should the next one happen to look the same, a double
/// submission of it must not be accepted once for each.
///
/// # Errors
/// A [`Refusal`] if the credential may not be tried.
pub fn begin(subject: Subject<'_>, token: &OtpToken, now: &Now) -> Result<Plan, Refusal> {
    admit(subject, now)?;
    let state = subject.state;
    let factor = |number| token.moving_factor.factor(number);
    let repeated =
        state.last_accepted.map(|number| Candidate { factor: factor(number), verdict: Verdict::Repeated });
    let first = first_step(subject, token, now);
    let (maybe_used, fresh): (Vec<_>, Vec<_>) =
        numbers(subject, token, now).into_iter().partition(|number| *number < first);
    let maybe_used =
        maybe_used.into_iter().map(|number| Candidate { factor: factor(number), verdict: Verdict::Repeated });
    let fresh = fresh.into_iter().map(|number| Candidate {
        factor: factor(number),
        verdict: Verdict::Accepted { state: accepted(subject, number), used: None },
    });
    Ok(plan(subject, now, repeated.into_iter().chain(maybe_used).chain(fresh).collect()))
}

/// The first time step of a token whose code cannot have been accepted and forgotten: the steps before it were within
/// reach when the appliance last ended otherwise than it should have. 0 for a counter.
pub fn first_step(subject: Subject<'_>, token: &OtpToken, now: &Now) -> u64 {
    match token.moving_factor {
        MovingFactor::Hotp { .. } => 0,
        MovingFactor::Totp { period_s, skew_steps } => {
            let drift = subject.state.drift_steps;
            beyond_floor(now, period_s.into(), skew_steps, [drift, drift.max(DRIFT_FOUND_MAX)])
        }
    }
}

/// The first time step beyond those that were within reach up to the floors: of a token whose clock was so many steps
/// ahead of ours, as far as that is known for what was lost, and for what was turned back.
pub(super) fn beyond_floor(
    now: &Now,
    period_s: u32,
    skew_steps: u8,
    [lost_drift, recovered_drift]: [i16; 2],
) -> u64 {
    let beyond = |floor_unix_ms: u64, drift: i16| match floor_unix_ms {
        0 => 0,
        floor => time_step(floor, period_s)
            .saturating_add_signed(drift.into())
            .saturating_add(u64::from(skew_steps))
            .saturating_add(1),
    };
    beyond(now.floor.lost_unix_ms, lost_drift).max(beyond(now.floor.recovered_unix_ms, recovered_drift))
}

/// The outcomes that `candidates` have in common.
pub(super) fn plan(subject: Subject<'_>, now: &Now, candidates: Vec<Candidate>) -> Plan {
    let (missed_state, missed_account) = charged(subject, now);
    Plan {
        candidates,
        accepted_account: refunded(subject),
        remaining_if_missed: missed_state.attempts.remaining(now).min(missed_account.attempts.remaining(now)),
        remaining: remaining(subject, now),
        missed_state,
        missed_account,
    }
}

/// Attempts left now: the smaller of the credential's and the account's.
pub fn remaining(subject: Subject<'_>, now: &Now) -> u32 {
    subject.state.attempts.remaining(now).min(subject.account.attempts.remaining(now))
}

/// The counters or time steps that could be right now, nearest first, none of them used or skipped before.
fn numbers(subject: Subject<'_>, token: &OtpToken, now: &Now) -> Vec<u64> {
    let next = subject.state.next_factor;
    match token.moving_factor {
        MovingFactor::Hotp { look_ahead } => counters(next, look_ahead).collect(),
        MovingFactor::Totp { period_s, skew_steps } => {
            let present = time_step(now.unix_ms, period_s.into())
                .saturating_add_signed(subject.state.drift_steps.into());
            around(present, u64::from(skew_steps)).filter(|step| *step >= next).collect()
        }
    }
}

/// `next` and so many counters beyond it.
pub(super) fn counters(next: u64, look_ahead: u8) -> impl Iterator<Item = u64> + Clone {
    next..COUNTER_END.min(next.saturating_add(u64::from(look_ahead) + 1))
}

/// `middle`, then its neighbours up to `reach` away, nearest first.
pub(super) fn around(middle: u64, reach: u64) -> impl Iterator<Item = u64> {
    let pairs = (1..=reach).flat_map(move |distance| {
        [middle.checked_sub(distance), middle.checked_add(distance)].into_iter().flatten()
    });
    std::iter::once(middle).chain(pairs)
}

/// After counter or time step `number` was accepted: it and all before it are used up.
pub(super) fn accepted(subject: Subject<'_>, number: u64) -> CredentialState {
    CredentialState {
        next_factor: number.saturating_add(1),
        last_accepted: Some(number),
        ..succeeded(subject)
    }
}

/// After a success: the credential's failures are forgotten.
pub fn succeeded(subject: Subject<'_>) -> CredentialState {
    CredentialState {
        attempts: Default::default(),
        account_share: 0,
        account_epoch: subject.account.epoch,
        ..subject.state.next()
    }
}

/// How many of the account's failures are this credential's.
fn share(subject: Subject<'_>) -> u32 {
    if subject.state.account_epoch == subject.account.epoch { subject.state.account_share } else { 0 }
}

/// The account after a success of the credential; `None` where nothing changes.
pub fn refunded(subject: Subject<'_>) -> Option<Account> {
    let account = subject.account;
    let attempts = account.attempts.refund(share(subject));
    let version = account.version.saturating_add(1);
    (attempts != account.attempts).then(|| Account { version, attempts, ..account.clone() })
}

/// Both rows after a failure.
pub fn charged(subject: Subject<'_>, now: &Now) -> (CredentialState, Account) {
    let (state, account) = (subject.state, subject.account);
    let state = CredentialState {
        attempts: state.attempts.charge(now),
        account_share: share(subject).saturating_add(1),
        account_epoch: account.epoch,
        ..state.next()
    };
    let account = Account {
        version: account.version.saturating_add(1),
        attempts: account.attempts.charge(now),
        ..account.clone()
    };
    (state, account)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::domain::caller::Tenant;
    use crate::domain::id::CredentialId;
    use crate::domain::lockout::Lock;
    use crate::domain::otp::{Algorithm, Digits};
    use crate::domain::time::{BootId, Deadline, Floor, RunId};
    use proptest::prelude::*;

    pub fn at(unix_s: u64) -> Now {
        Now {
            unix_ms: unix_s * 1_000,
            boot_ms: unix_s * 1_000,
            boot_id: BootId([1; 16]),
            run: RunId([0; 16]),
            trusted: true,
            floor: Default::default(),
        }
    }

    pub struct Rows(pub Credential, pub CredentialState, pub Account);

    impl Rows {
        pub fn new(moving_factor: MovingFactor, next_factor: u64) -> Self {
            let token = OtpToken {
                algorithm: Algorithm::Sha1,
                digits: Digits::default(),
                moving_factor,
                secret: None,
            };
            Self::of(Kind::Otp(token), next_factor)
        }

        pub fn of(kind: Kind, next_factor: u64) -> Self {
            let tenant = Tenant::try_from("bank-a".to_owned()).unwrap();
            let account = Account::new(tenant.clone(), "acct-1".to_owned().try_into().unwrap());
            let id = CredentialId::from_random([1; 16]);
            let credential = Credential {
                id,
                tenant: tenant.clone(),
                account: account.account.clone(),
                version: 1,
                created_unix_ms: 0,
                kind,
                deleted_unix_ms: None,
            };
            Self(credential, CredentialState::new(id, tenant, next_factor, 0), account)
        }

        pub fn subject(&self) -> Subject<'_> {
            Subject { credential: &self.0, state: &self.1, account: &self.2 }
        }

        fn token(&self) -> &OtpToken {
            let Kind::Otp(token) = &self.0.kind else { panic!("no OTP token") };
            token
        }

        fn begin(&self, now: &Now) -> Result<Plan, Refusal> {
            begin(self.subject(), self.token(), now)
        }

        fn factors(&self, now: &Now) -> Vec<u64> {
            self.begin(now).unwrap().candidates.iter().map(|c| c.factor.single().unwrap()).collect()
        }

        /// Submits the code of `factor`, or a wrong one.
        fn submit(&mut self, factor: Option<u64>, now: &Now) -> bool {
            let plan = self.begin(now).unwrap();
            let found = plan.candidates.into_iter().find(|c| factor.is_some() && c.factor.single() == factor);
            match found.map(|c| c.verdict) {
                Some(Verdict::Accepted { state, .. }) => {
                    self.1 = state;
                    self.2 = plan.accepted_account.unwrap_or(self.2.clone());
                    true
                }
                Some(Verdict::Repeated) => false,
                None => {
                    (self.1, self.2) = (plan.missed_state, plan.missed_account);
                    false
                }
            }
        }
    }

    const HOTP: MovingFactor = MovingFactor::Hotp { look_ahead: 3 };
    const TOTP: MovingFactor = MovingFactor::Totp { period_s: 30, skew_steps: 1 };

    #[test]
    fn hotp_looks_ahead_and_never_back() {
        let mut rows = Rows::new(HOTP, 5);
        assert_eq!(rows.factors(&at(0)), [5, 6, 7, 8]);
        assert!(rows.submit(Some(7), &at(0)));
        assert_eq!(rows.factors(&at(0)), [7, 8, 9, 10, 11], "the last one is tried first, as a repeat");
        let plan = rows.begin(&at(0)).unwrap();
        assert_eq!(plan.candidates[0].verdict, Verdict::Repeated);
    }

    #[test]
    fn a_step_whose_acceptance_may_be_forgotten_counts_as_used_and_is_not_charged() {
        let mut rows = Rows::new(TOTP, 0);
        let now = |unix_s, floor_s: u64| Now {
            floor: Floor { lost_unix_ms: floor_s * 1_000, ..Floor::default() },
            ..at(unix_s)
        };
        let verdicts = |rows: &Rows, now: &Now| -> Vec<_> {
            let is_fresh = |c: &Candidate| matches!(c.verdict, Verdict::Accepted { .. });
            let plan = rows.begin(now).unwrap();
            plan.candidates.iter().map(|c| (c.factor.single().unwrap(), is_fresh(c))).collect()
        };
        assert_eq!(verdicts(&rows, &now(3_000, 0)), [(100, true), (99, true), (101, true)]);
        // The floor lies in step 100: 101 was within reach then.
        assert_eq!(verdicts(&rows, &now(3_000, 3_000)), [(100, false), (99, false), (101, false)]);
        assert_eq!(verdicts(&rows, &now(3_030, 3_029)), [(101, false), (100, false), (102, true)]);
        assert_eq!(verdicts(&rows, &now(3_090, 3_029)), [(103, true), (102, true), (104, true)]);
        // By its own clock.
        rows.1.drift_steps = 4;
        assert_eq!(verdicts(&rows, &now(3_030, 3_029)), [(105, false), (104, false), (106, true)]);
        rows.1.drift_steps = -4;
        assert_eq!(verdicts(&rows, &now(3_030, 3_029)), [(97, false), (96, false), (98, true)]);
        // After a recovery no more is known of its clock than a resync could have found: 121 steps and the skew.
        let recovered =
            |unix_s| Now { floor: Floor { recovered_unix_ms: 3_029_000, ..Floor::default() }, ..at(unix_s) };
        rows.1.drift_steps = 0;
        assert_eq!(verdicts(&rows, &recovered(6_660)), [(222, false), (221, false), (223, true)]);
        assert_eq!(verdicts(&rows, &recovered(6_720)), [(224, true), (223, true), (225, true)]);
        // Counters know no time.
        let rows = Rows::new(HOTP, 5);
        assert_eq!(verdicts(&rows, &now(0, u64::MAX / 1_000)).len(), 4);
        assert!(verdicts(&rows, &now(0, u64::MAX / 1_000)).iter().all(|(_, is_fresh)| *is_fresh));
    }

    #[test]
    fn hotp_ends_with_its_counters() {
        assert_eq!(Rows::new(HOTP, COUNTER_END - 2).factors(&at(0)), [COUNTER_END - 2, COUNTER_END - 1]);
        assert!(Rows::new(HOTP, COUNTER_END).factors(&at(0)).is_empty());
    }

    #[test]
    fn totp_tries_the_present_first_and_no_step_twice() {
        let mut rows = Rows::new(TOTP, 0);
        assert_eq!(rows.factors(&at(3_000)), [100, 99, 101]);
        assert!(rows.submit(Some(99), &at(3_000)));
        assert_eq!(rows.factors(&at(3_000)), [99, 100, 101]);
        assert!(rows.submit(Some(101), &at(3_000)));
        assert_eq!(rows.factors(&at(3_000)), [101], "100 was skipped: used up");
        assert!(!rows.submit(Some(100), &at(3_000)));
        rows.1.drift_steps = 2;
        assert_eq!(rows.factors(&at(3_000)), [101, 102, 103]);
        assert_eq!(rows.factors(&at(0)), [101], "a clock set back revives nothing");
    }

    #[test]
    fn a_repeat_costs_nothing_and_a_miss_is_charged_twice_over() {
        let mut rows = Rows::new(HOTP, 0);
        assert!(rows.submit(Some(0), &at(0)));
        for _ in 0..20 {
            assert!(!rows.submit(Some(0), &at(0)));
        }
        assert_eq!((rows.1.attempts.failures, rows.2.attempts.failures), (0, 0));
        rows.submit(None, &at(0));
        assert_eq!((rows.1.attempts.failures, rows.2.attempts.failures), (1, 1));
        assert_eq!(rows.begin(&at(0)).unwrap().remaining_if_missed, 3);
    }

    #[test]
    fn the_fifth_miss_locks_and_a_lock_asks_nobody() {
        let mut rows = Rows::new(HOTP, 0);
        for _ in 0..4 {
            rows.submit(None, &at(0));
        }
        assert_eq!(rows.begin(&at(0)).unwrap().remaining_if_missed, 0);
        rows.submit(None, &at(0));
        let locked = Refusal::Locked(Locked { retry_after_s: Some(900) });
        assert_eq!(rows.begin(&at(0)).err(), Some(locked));
        assert!(rows.submit(Some(0), &at(900)), "it ends by itself");
        assert_eq!(rows.2.attempts, Default::default());
    }

    #[test]
    fn a_success_clears_its_own_share_of_the_account_alone() {
        let (mut first, mut second) = (Rows::new(HOTP, 0), Rows::new(HOTP, 0));
        first.submit(None, &at(0));
        first.submit(None, &at(0));
        second.2 = first.2.clone();
        second.submit(None, &at(0));
        assert_eq!(second.2.attempts.failures, 3);
        assert!(second.submit(Some(0), &at(0)));
        assert_eq!(second.2.attempts.failures, 2);
        first.2 = second.2.unlocked();
        assert!(first.submit(Some(0), &at(0)), "its share is of an earlier epoch");
        assert_eq!(first.2.attempts.failures, 0);
        first.submit(None, &at(0));
        assert_eq!((first.1.account_share, first.2.attempts.failures), (1, 1));
    }

    #[test]
    fn the_account_locks_over_all_its_credentials() {
        let mut account = Rows::new(HOTP, 0).2;
        for n in 0..5 {
            let mut rows = Rows::new(HOTP, 0);
            rows.2 = account;
            assert_eq!(rows.begin(&at(0)).unwrap().remaining, 5 - n);
            rows.submit(None, &at(0));
            account = rows.2;
        }
        let mut rows = Rows::new(HOTP, 0);
        rows.2 = account;
        assert!(matches!(rows.begin(&at(0)), Err(Refusal::Locked(_))));
    }

    #[test]
    fn a_stepped_clock_stops_what_depends_on_it() {
        let stepped = Now { trusted: false, ..at(1_000) };
        assert_eq!(Rows::new(TOTP, 0).begin(&stepped).err(), Some(Refusal::ClockUntrusted));
        let mut hotp = Rows::new(HOTP, 0);
        assert!(hotp.begin(&stepped).is_ok());
        hotp.2.attempts.lock = Some(Lock::Until(Deadline::after(&at(0), 1)));
        assert_eq!(hotp.begin(&stepped).err(), Some(Refusal::ClockUntrusted));
    }

    #[test]
    fn suspended_and_deleted_are_refused() {
        let mut rows = Rows::new(HOTP, 0);
        rows.1 = rows.1.with_status(Status::Suspended);
        assert_eq!(rows.begin(&at(0)).err(), Some(Refusal::Inactive));
        rows.1 = rows.1.with_status(Status::Deleted);
        assert_eq!(rows.begin(&at(0)).err(), Some(Refusal::Absent));
    }

    proptest! {
        /// However codes, misses, waits and clock changes follow each other: no factor twice.
        #[test]
        fn no_factor_is_ever_accepted_twice(
            totp: bool,
            steps in prop::collection::vec((0u64..12, -40i64..400), 1..200),
        ) {
            let mut rows = Rows::new(if totp { TOTP } else { HOTP }, 0);
            let mut used = std::collections::HashSet::new();
            let mut unix_s = 3_000u64;
            for (pick, wait_s) in steps {
                unix_s = unix_s.saturating_add_signed(wait_s);
                let Ok(plan) = rows.begin(&at(unix_s)) else { continue };
                let factor = plan.candidates.get(pick as usize).and_then(|c| c.factor.single());
                let before = rows.1.next_factor;
                if rows.submit(factor, &at(unix_s)) {
                    prop_assert!(used.insert(factor));
                }
                prop_assert!(rows.1.next_factor >= before);
            }
        }
    }
}
