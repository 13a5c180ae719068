//! How long whoever can wait waits for the HSM: a start, a recovery. A custodian may still be coming up.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::hsm::HsmError;

/// How long, whatever is asked.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long after no answer it is asked again.
pub const ASK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// Asks the HSM again as long as it does not answer: what it says of a row is final, that it says nothing is not.
///
/// # Errors
/// What it says in the end.
pub async fn persist<T, A: Future<Output = Result<T, HsmError>>>(
    mut ask: impl FnMut() -> A,
) -> Result<T, HsmError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Err(HsmError::Busy | HsmError::Unavailable(_)) if Instant::now() < deadline => {
                sleep(ASK_AGAIN_AFTER).await;
            }
            answer => return answer,
        }
    }
}
