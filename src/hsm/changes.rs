//! What changes the token, or has to see the last change, is done by one custodian at a time ([`super::Route::Writer`]),
//! also while two have the same place, the one that leaves and its successor.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Who changes the token, and how many changes it has been handed that it has not answered.
#[derive(Default)]
pub(super) struct Changes {
    under_way: Mutex<UnderWay>,
    /// Woken when there is none any more.
    settled: Notify,
}

#[derive(Default)]
struct UnderWay {
    by: u64,
    count: usize,
}

/// One change, until it is answered or its custodian lost.
pub(super) struct Change(Arc<Changes>);

impl Changes {
    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A change by the custodian of this number; `None`: another one is at it.
    pub(super) fn begin(self: &Arc<Self>, by: u64) -> Option<Change> {
        let mut under_way = self.under_way();
        if under_way.count > 0 && under_way.by != by {
            return None;
        }
        *under_way = UnderWay { by, count: under_way.count.saturating_add(1) };
        Some(Change(self.clone()))
    }

    /// Waits for the next moment in which nobody is at it; from now on, however late it is polled.
    pub(super) fn settled(&self) -> Notified<'_> {
        self.settled.notified()
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        let mut under_way = self.0.under_way();
        under_way.count = under_way.count.saturating_sub(1);
        if under_way.count == 0 {
            self.0.settled.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_changes_the_token_at_a_time_and_the_next_is_woken() {
        let changes = Arc::new(Changes::default());
        let first = changes.begin(7).unwrap();
        let second = changes.begin(7).unwrap();
        assert!(changes.begin(8).is_none());
        drop(first);
        let settled = changes.settled();
        assert!(changes.begin(8).is_none(), "it is still at one");
        drop(second);
        settled.await;
        let other = changes.begin(8).unwrap();
        assert!(changes.begin(7).is_none());
        drop(other);
        assert!(changes.begin(7).is_some());
    }
}
