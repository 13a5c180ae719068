//! How long whoever can wait waits for the HSM: a start, a recovery. A custodian may still be coming up.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::hsm::{Hsm, HsmError};

/// How long an HSM that is there may fail in whatever is asked.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long after no answer it is asked again.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Somebody's who asks until there is an answer. Where lost custodians are replaced, only time with one of them counts: an
/// HSM that is away may come back after any time, and nobody is answered until then.
pub struct Patience<'a> {
    hsm: &'a Hsm,
    max: Duration,
    deadline: Instant,
}

impl<'a> Patience<'a> {
    /// From now on.
    pub fn new(hsm: &'a Hsm, max: Duration) -> Self {
        Self { hsm, max, deadline: Instant::now() + max }
    }

    /// After a failure: waits until it is worth to ask again, and says whether it still is.
    pub async fn again(&mut self, pause: Duration) -> bool {
        let was_away = !self.hsm.is_up();
        if was_away && self.hsm.await_up().await {
            self.deadline = Instant::now() + self.max;
            return true;
        }
        if Instant::now() >= self.deadline {
            return false;
        }
        sleep(pause).await;
        true
    }
}

/// Asks the HSM again as long as it does not answer: what it says of a row is final, that it says nothing is not.
///
/// # Errors
/// What it says in the end.
pub async fn persist<T, A: Future<Output = Result<T, HsmError>>>(
    hsm: &Hsm,
    mut ask: impl FnMut() -> A,
) -> Result<T, HsmError> {
    let mut patience = Patience::new(hsm, PATIENCE);
    loop {
        match ask().await {
            Err(error @ (HsmError::Busy | HsmError::Unavailable(_) | HsmError::Away(_))) => {
                if !patience.again(ASK_AGAIN_AFTER).await {
                    return Err(error);
                }
            }
            answer => return answer,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    async fn persisted(is_served: bool, within: Duration) -> Option<Result<(), HsmError>> {
        let hsm = Hsm::new(&[1], (Default::default(), 1), unbounded_channel().0);
        if is_served {
            hsm.is_served(true);
        }
        let away = || async { Err(HsmError::Away("no token".to_owned())) };
        tokio::time::timeout(within, persist(&hsm, away)).await.ok()
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_served_waits_for_an_hsm_that_is_away_and_a_command_for_a_minute() {
        assert_eq!(persisted(true, Duration::from_secs(86_400)).await, None);
        let begun = Instant::now();
        assert!(matches!(persisted(false, Duration::from_secs(86_400)).await, Some(Err(HsmError::Away(_)))));
        assert!(begun.elapsed().abs_diff(PATIENCE) < Duration::from_secs(1), "{:?}", begun.elapsed());
    }
}
