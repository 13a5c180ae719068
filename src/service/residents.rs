//! Secrets that are objects in the HSM, held against the rows.

use super::{Refused, Service};

impl Service {
    /// Destroys the objects that no row names: what failed or killed enrolments left, and what was deleted and could not
    /// be destroyed then. Only before the first request, and only with a database that is known to be the present one:
    /// to an older one the objects of newer credentials are nobody's.
    ///
    /// # Errors
    /// [`Refused::Unavailable`]: the rows or the objects cannot be read.
    pub async fn sweep(&self) -> Result<(), Refused> {
        let swept = self.hsm.sweep(&self.store.residents().await?).await?;
        if swept.destroyed > 0 {
            tracing::info!(objects = swept.destroyed, "removed secrets of nobody's from the HSM");
        }
        for id in &swept.missing {
            tracing::error!(%id, "a credential's row names a secret that is not in the HSM: it cannot be used");
        }
        Ok(())
    }
}
