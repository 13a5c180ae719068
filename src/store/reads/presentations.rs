//! Strings that payers show, and the devices that are authorized to ask for one.

use rusqlite::params;

use super::super::columns;
use super::super::{ReadError, Store};
use super::{all, one, signed};
use crate::domain::authorization::Authorization;
use crate::domain::caller::Tenant;
use crate::domain::id::{CredentialId, PresentationId};
use crate::domain::presentation::Presentation;
use crate::domain::row::Sealed;

/// A presentation by its code.
pub(super) const OF_CODE: &str = "SELECT * FROM presentation WHERE tenant = ?1 AND code_hash = ?2";
/// Presentations made before a moment.
pub(super) const MADE_BEFORE: &str = "SELECT * FROM presentation
    WHERE created_unix_ms >= 0 AND created_unix_ms < ?1 ORDER BY created_unix_ms LIMIT ?2";
/// Authorizations past their time.
pub(super) const AUTHORIZATIONS_PAST: &str = "SELECT * FROM device_authorization
    WHERE expires_unix_ms BETWEEN 0 AND ?1 ORDER BY expires_unix_ms LIMIT ?2";

impl Store {
    /// A tenant's presentation.
    pub async fn presentation(
        &self,
        tenant: &Tenant,
        id: PresentationId,
    ) -> Result<Option<Sealed<Presentation>>, ReadError> {
        let tenant = tenant.clone();
        self.read(move |tx| {
            let sql = "SELECT * FROM presentation WHERE id = ?1 AND tenant = ?2";
            one(tx, sql, params![id.to_bytes(), tenant.as_str()], columns::presentation)
        })
        .await
    }

    /// A tenant's presentation by SHA-256 of its code's text.
    pub async fn presented(
        &self,
        tenant: &Tenant,
        code_hash: [u8; 32],
    ) -> Result<Option<Sealed<Presentation>>, ReadError> {
        let tenant = tenant.clone();
        self.read(move |tx| one(tx, OF_CODE, params![tenant.as_str(), code_hash], columns::presentation))
            .await
    }

    /// Presentations made before `before_unix_ms`, oldest first. They may be pruned.
    pub async fn presentations_made_before(
        &self,
        before_unix_ms: u64,
        limit: u16,
    ) -> Result<Vec<Sealed<Presentation>>, ReadError> {
        self.read(move |tx| {
            all(tx, MADE_BEFORE, params![signed(before_unix_ms), limit], columns::presentation)
        })
        .await
    }

    /// The authorization of a device that is under way, or came to nothing.
    pub async fn authorization(&self, id: CredentialId) -> Result<Option<Sealed<Authorization>>, ReadError> {
        self.read(move |tx| {
            let sql = "SELECT * FROM device_authorization WHERE credential = ?1";
            one(tx, sql, params![id.to_bytes()], columns::authorization)
        })
        .await
    }

    /// Authorizations whose time was over at `unix_ms`, oldest first. They may be pruned.
    pub async fn authorizations_past(
        &self,
        unix_ms: u64,
        limit: u16,
    ) -> Result<Vec<Sealed<Authorization>>, ReadError> {
        self.read(move |tx| {
            all(tx, AUTHORIZATIONS_PAST, params![signed(unix_ms), limit], columns::authorization)
        })
        .await
    }
}
