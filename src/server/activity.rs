//! When a connection was last used: one that nobody uses is ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, SetOnce};
use tokio::time::timeout;

/// The requests of a connection.
#[derive(Default)]
pub struct Activity {
    open: AtomicUsize,
    /// Whether there has been one.
    begun: SetOnce<()>,
    /// Woken when one has ended.
    ended: Notify,
}

/// A request that is being answered, until it is dropped.
pub struct Active(Arc<Activity>);

impl Activity {
    /// One more.
    pub fn begin(self: &Arc<Self>) -> Active {
        self.open.fetch_add(1, Ordering::AcqRel);
        // All but the first find it so.
        let _ = self.begun.set(());
        Active(self.clone())
    }

    /// Returns when there has been one.
    pub async fn begun(&self) {
        self.begun.wait().await;
    }

    /// Returns when there has been none for so long.
    pub async fn idle(&self, limit: Duration) {
        loop {
            let ended = timeout(limit, self.ended.notified()).await.is_ok();
            if !ended && self.open.load(Ordering::Acquire) == 0 {
                return;
            }
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
        self.0.ended.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    #[tokio::test(start_paused = true)]
    async fn it_is_idle_so_long_after_its_last_request_has_ended() {
        const LIMIT: Duration = Duration::from_secs(10);
        let (activity, begun) = (Arc::new(Activity::default()), Instant::now());
        let requests = async {
            // One that takes longer than that, and one that comes in time.
            let first = activity.begin();
            sleep(Duration::from_secs(25)).await;
            drop(first);
            sleep(Duration::from_secs(9)).await;
            drop(activity.begin());
        };
        tokio::join!(requests, activity.idle(LIMIT));
        assert_eq!(begun.elapsed(), Duration::from_secs(44));
        activity.idle(LIMIT).await;
        assert_eq!(begun.elapsed(), Duration::from_secs(54));
    }
}
