//! What computes for milliseconds: on threads of its own, so much at once.

use std::sync::Arc;
use std::thread::available_parallelism;

use tokio::sync::Semaphore;

use super::Refused;

/// Room for one kind of computation: one a processor. A caller that gives up stops none that has begun, so the
/// room belongs to the computation: else whoever asks and hangs up could begin any number of them.
pub struct Computing(Arc<Semaphore>);

impl Computing {
    /// As much at once as the machine has processors.
    pub fn new() -> Self {
        Self(Arc::new(Semaphore::new(available_parallelism().map_or(1, Into::into))))
    }

    /// What `compute` returns, once there is room for it.
    ///
    /// # Errors
    /// [`Refused::Unavailable`]: it came to no end.
    pub async fn run<T: Send + 'static>(
        &self,
        compute: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refused> {
        let room = self.0.clone().acquire_owned().await.map_err(Refused::unavailable)?;
        let computed = tokio::task::spawn_blocking(move || {
            let _room = room;
            compute()
        });
        computed.await.map_err(Refused::unavailable)
    }
}

impl Default for Computing {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::pin::pin;
    use std::sync::mpsc;
    use std::task::Poll;

    use super::*;

    #[tokio::test]
    async fn what_nobody_waits_for_any_more_keeps_its_room() {
        let computing = Computing(Arc::new(Semaphore::new(1)));
        let (end, ended) = mpsc::channel::<()>();
        {
            let mut begun = pin!(computing.run(move || ended.recv()));
            poll_fn(|context| {
                assert!(begun.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
        }
        assert_eq!(computing.0.available_permits(), 0);
        end.send(()).unwrap();
        assert_eq!(computing.run(|| 2).await, Ok(2));
        assert!(computing.run(|| panic!("as a test")).await.is_err());
        assert_eq!(computing.run(|| 3).await, Ok(3));
    }
}
