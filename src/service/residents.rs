//! Secrets that are objects in the HSM, held against the rows.

use std::time::Duration;

use crate::hsm::FIRST;

use super::patience::{PATIENCE, Patience};
use super::{Refused, Service};

/// The pause before it is tried again.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

impl Service {
    /// Destroys the objects that no row names: what failed or killed enrolments left, and what was deleted and could not
    /// be destroyed then. Only before the first request, and only with a database that is known to be the present one:
    /// to an older one the objects of newer credentials are nobody's.
    ///
    /// # Errors
    /// One line for the operator: the rows or the objects could not be read for a minute, or this is not the present
    /// database.
    pub async fn sweep(&self) -> Result<(), String> {
        self.sweep_within(PATIENCE).await
    }

    async fn sweep_within(&self, patience: Duration) -> Result<(), String> {
        let (mut patience, mut told) = (Patience::new(&self.hsm, patience), None);
        loop {
            let cause = match self.sweep_once().await {
                Ok(()) => return Ok(()),
                Err(Refused::Unavailable { cause, .. }) => cause,
                Err(refused) => format!("{refused:?}"),
            };
            if let Some(doubt) = self.log.doubt() {
                return Err(doubt);
            }
            if told.as_ref() != Some(&cause) {
                tracing::warn!(cause, "the secrets in the HSM cannot be held against the rows yet");
                told = Some(cause.clone());
            }
            if !patience.again(AGAIN_AFTER).await {
                return Err(format!("the secrets in the HSM cannot be held against the rows: {cause}"));
            }
        }
    }

    async fn sweep_once(&self) -> Result<(), Refused> {
        let named = self.store.residents().await?;
        if !self.hsm.can_sweep(named.len() as u64).await {
            tracing::warn!(
                named = named.len(),
                "the first token is away: secrets of nobody's that are left in it are removed at the next start"
            );
            return Ok(());
        }
        // It may have come up after the start was decided, and know more than this database does.
        if !self.log.knows(FIRST) {
            self.log.anchor(false).await.map_err(|error| Refused::unavailable(error.to_string()))?;
            if !self.log.knows(FIRST) {
                return Err(Refused::unavailable("the first token has gone"));
            }
        }
        let swept = self.hsm.sweep(&named).await?;
        if swept.destroyed > 0 {
            tracing::info!(objects = swept.destroyed, "removed secrets of nobody's from the HSM");
        }
        for id in &swept.missing {
            tracing::error!(%id, "a credential's row names a secret that is not in the HSM: it cannot be used");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::clock::{SystemClock, WatchedClock};
    use crate::domain::certificate::Trust;
    use crate::hsm::Hsm;
    use crate::service::Policies;
    use crate::store::Store;

    #[tokio::test]
    async fn a_sweep_without_an_hsm_ends_with_one_line() {
        let folder = std::env::temp_dir().join(format!("hsm-authd-sweep-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let service = Service::new(
            Store::open(&folder.join("store.db")).unwrap(),
            Hsm::new(&[1], (Default::default(), 1), tokio::sync::mpsc::unbounded_channel().0),
            Arc::new(WatchedClock::new(Box::new(SystemClock), false).unwrap()),
            Policies {
                credentials: Default::default(),
                transactions: Default::default(),
                attestations: Default::default(),
                audit: Default::default(),
            },
            Trust::none(),
        );
        let swept = tokio::time::timeout(PATIENCE, service.sweep_within(Duration::from_secs(1)));
        let line = swept.await.expect("it goes on for ever").unwrap_err();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(line.contains("cannot be held against the rows") && !line.contains('\n'), "{line}");
    }
}
