//! A database that no service uses, and its HSM: for commands that change what belongs to it.

use std::sync::Arc;

use crate::clock::WatchedClock;
use crate::domain::audit::{AuditEntry, Event};
use crate::domain::certificate::Trust;
use crate::hsm::Hsm;
use crate::store::Store;

use super::{Policies, Service};

/// What a start would look at, without a start.
pub struct AtRest {
    pub(super) service: Service,
}

impl AtRest {
    /// Of a store that this process alone has opened.
    pub fn new(store: Store, hsm: Hsm, clock: Arc<WatchedClock>) -> Self {
        let policies = Policies {
            credentials: Default::default(),
            transactions: Default::default(),
            attestations: Default::default(),
            audit: Default::default(),
        };
        Self { service: Service::new(store, hsm, clock, policies, Trust::none()) }
    }

    /// Why nothing may be concluded from the database; `None`: it is what the service left when it ended. It is sealed
    /// under the newest `row` then.
    ///
    /// # Errors
    /// One line: nobody can tell.
    pub async fn doubt(&self) -> Result<Option<String>, String> {
        if let Some(reason) = self.service.objection().await {
            return Ok(Some(reason));
        }
        let unclean = "the service did not end as it should have: start it, and stop it, first".to_owned();
        if !self.was_ended().await? {
            return Ok(Some(unclean));
        }
        self.seal_on().await?;
        Ok(None)
    }

    /// What is sealed goes on to be, under the newest `row`; what is not does not become so.
    async fn seal_on(&self) -> Result<(), String> {
        match self.service.is_sealed().await? {
            true => self.service.take_over(None).await,
            false => Ok(()),
        }
    }

    /// Whether the last entry says that the service ended, and the anchor covers it.
    async fn was_ended(&self) -> Result<bool, String> {
        let anchors = self.service.read_anchors().await?;
        let is_covered = anchors.most.head == *self.service.store.head().borrow();
        Ok(is_covered && self.service.store.left().0.aftermath.ended)
    }

    /// Writes to the log. A database that was ended as it should be stays so, and the next start finds nothing missing;
    /// of any other, what is missing is not covered up.
    ///
    /// # Errors
    /// One line: the entry may or may not be there.
    pub async fn note(&self, event: Event, detail: String) -> Result<(), String> {
        let was_ended = self.was_ended().await?;
        self.seal_on().await?;
        let log = &self.service.log;
        let unix_ms = self.service.now().unix_ms;
        let entry = AuditEntry { detail: Some(detail), ..AuditEntry::of_appliance(unix_ms, event) };
        let _durable = log.note(entry).await.map_err(|error| error.to_string())?;
        if was_ended {
            let stopped = AuditEntry::of_appliance(unix_ms, Event::Stopped);
            let _durable = log.note(stopped).await.map_err(|error| error.to_string())?;
            log.anchor(true).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}
