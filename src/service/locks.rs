//! One verification at a time for an account: parallel guesses burn no HSM work and lose no races.
//!
//! What must hold does not rest on these locks (the commit's compare-and-set sees to that), so two
//! accounts that happen to share one only wait for each other.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, timeout_at};

use crate::domain::account::AccountRef;
use crate::domain::caller::Tenant;
use crate::lifeline::Lifeline;

use super::Refused;

/// How many locks there are; accounts are spread over them by a keyed hash.
const LOCKS: usize = 16_384;
/// How many may wait for one.
const WAITING_MAX: usize = 256;
/// How long one waits, within its request's time.
const WAIT_MAX: Duration = Duration::from_secs(5);

pub(super) struct AccountLocks {
    locks: Box<[Lock]>,
    hasher: RandomState,
}

#[derive(Default)]
struct Lock {
    mutex: Mutex<()>,
    waiting: AtomicUsize,
}

/// Held while the account's rows are judged.
pub(super) struct AccountGuard<'a> {
    _guard: MutexGuard<'a, ()>,
    /// Whether somebody else held it before: what was read earlier is out of date.
    pub waited: bool,
}

/// Counts one that waits, whichever way its waiting ends.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl AccountLocks {
    pub fn new() -> Self {
        Self { locks: (0..LOCKS).map(|_| Lock::default()).collect(), hasher: RandomState::new() }
    }

    /// Waits for the account's lock.
    ///
    /// # Errors
    /// [`Refused::Unavailable`] if too many wait already, or the wait was too long.
    pub async fn lock(&self, tenant: &Tenant, account: &AccountRef) -> Result<AccountGuard<'_>, Refused> {
        let hash = self.hasher.hash_one((tenant, account)) as usize;
        let Some(lock) = self.locks.get(hash % LOCKS) else {
            return Err(Refused::unavailable("no lock for this account"));
        };
        if let Ok(guard) = lock.mutex.try_lock() {
            return Ok(AccountGuard { _guard: guard, waited: false });
        }
        let waiting = Waiting(&lock.waiting);
        if lock.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            return Err(Refused::unavailable("too many requests for one account"));
        }
        let until = Lifeline::no_later_than(Instant::now() + WAIT_MAX);
        let guard = timeout_at(until, lock.mutex.lock())
            .await
            .map_err(|_| Refused::unavailable("waited too long for an account"))?;
        drop(waiting);
        Ok(AccountGuard { _guard: guard, waited: true })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[tokio::test]
    async fn one_holds_it_some_wait_and_the_rest_are_turned_away() {
        let tenant = Tenant::try_from("bank-a".to_owned()).unwrap();
        let account: AccountRef = "acct-1".to_owned().try_into().unwrap();
        let locks = Arc::new(AccountLocks::new());
        let held = locks.lock(&tenant, &account).await.unwrap();
        assert!(!held.waited);
        let (sender, mut refused) = tokio::sync::mpsc::unbounded_channel();
        let tasks: Vec<_> = (0..WAITING_MAX + 3)
            .map(|_| {
                let (locks, tenant, account) = (locks.clone(), tenant.clone(), account.clone());
                let sender = sender.clone();
                tokio::spawn(async move {
                    let result = locks.lock(&tenant, &account).await.map(|guard| guard.waited);
                    if result.is_err() {
                        sender.send(()).unwrap();
                    }
                    result.is_ok_and(|waited| waited)
                })
            })
            .collect();
        for _ in 0..3 {
            refused.recv().await.unwrap();
        }
        drop(held);
        let mut passed = 0;
        for task in tasks {
            passed += usize::from(task.await.unwrap());
        }
        assert_eq!(passed, WAITING_MAX);
        assert!(!locks.lock(&tenant, &account).await.unwrap().waited, "nobody is left counted as waiting");
    }
}
