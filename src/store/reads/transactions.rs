//! Transactions and their attestations.

use rusqlite::{Row as SqlRow, Transaction as Tx, params};

use super::super::columns::{self, Fault};
use super::super::{Page, ReadError, Store, TransactionRows};
use super::{all, one, place, signed};
use crate::domain::account::AccountRef;
use crate::domain::caller::Tenant;
use crate::domain::id::TransactionId;
use crate::domain::row::Sealed;
use crate::domain::transaction::{State, Transaction};

/// Transactions of one payer, after a place.
pub(super) const PAYMENTS_OF_PAYER: &str = "SELECT id FROM payment
    WHERE tenant = ?1 AND payer = ?2 AND (created_unix_ms, id) > (?3, ?4)
    ORDER BY created_unix_ms, id LIMIT ?5";
/// Transactions of a tenant, after a place.
pub(super) const PAYMENTS_OF_TENANT: &str = "SELECT id FROM payment
    WHERE tenant = ?1 AND (created_unix_ms, id) > (?2, ?3)
    ORDER BY created_unix_ms, id LIMIT ?4";
/// Pending transactions whose time is over by the wall clock. The condition reads as the index's does.
pub(super) const OVERDUE: &str = "SELECT tenant, id FROM payment
    WHERE state = 'pending' AND expires_unix_ms BETWEEN 0 AND ?1 ORDER BY expires_unix_ms LIMIT ?2";
/// Transactions that ended before a moment.
pub(super) const ENDED: &str = "SELECT * FROM payment WHERE ended_unix_ms >= 0 AND ended_unix_ms < ?1
    ORDER BY ended_unix_ms LIMIT ?2";

impl Store {
    /// A tenant's transaction, with its attestation. `None` if there is none or it is another tenant's.
    ///
    /// An approved one whose attestation is gone is an error: somebody removed it. So is an attestation of one that
    /// is not approved: somebody put an old row back.
    pub async fn transaction(
        &self,
        tenant: &Tenant,
        id: TransactionId,
    ) -> Result<Option<TransactionRows>, ReadError> {
        let tenant = tenant.clone();
        self.read(move |tx| {
            let sql = "SELECT * FROM payment WHERE id = ?1 AND tenant = ?2";
            let found = one(tx, sql, params![id.to_bytes(), tenant.as_str()], columns::transaction)?;
            found.map(|transaction| with_attestation(tx, transaction)).transpose()
        })
        .await
    }

    /// A page of a tenant's transactions, or of one payer's, in the order they were made. `None` if the page is
    /// to begin after a transaction that the tenant does not have.
    pub async fn transactions(
        &self,
        tenant: &Tenant,
        payer: Option<&AccountRef>,
        page: Page<TransactionId>,
    ) -> Result<Option<Vec<TransactionId>>, ReadError> {
        let (tenant, payer) = (tenant.clone(), payer.cloned());
        self.read(move |tx| {
            let sql = "SELECT created_unix_ms FROM payment WHERE id = ?1 AND tenant = ?2";
            let after = page.after.map(TransactionId::to_bytes);
            let Some((created, id)) = place(tx, sql, &tenant, after)? else { return Ok(None) };
            let parse = |row: &SqlRow<'_>| Ok(TransactionId::from_random(row.get(0)?));
            let found = match payer {
                Some(payer) => all(
                    tx,
                    PAYMENTS_OF_PAYER,
                    params![tenant.as_str(), payer.as_str(), created, id, page.limit],
                    parse,
                )?,
                None => {
                    all(tx, PAYMENTS_OF_TENANT, params![tenant.as_str(), created, id, page.limit], parse)?
                }
            };
            Ok(Some(found))
        })
        .await
    }

    /// Pending transactions whose time is over by the wall clock at `unix_ms`, the longest over first.
    pub async fn overdue(&self, unix_ms: u64, limit: u16) -> Result<Vec<(Tenant, TransactionId)>, ReadError> {
        self.read(move |tx| {
            all(tx, OVERDUE, params![signed(unix_ms), limit], |row| {
                let invalid = Fault::Invalid { table: "payment", column: "tenant" };
                let tenant = Tenant::try_from(row.get::<_, String>(0)?).map_err(|_| invalid)?;
                Ok((tenant, TransactionId::from_random(row.get(1)?)))
            })
        })
        .await
    }

    /// Transactions that ended before `before_unix_ms`, oldest first. They may be pruned, each with its attestation.
    pub async fn transactions_ended(
        &self,
        before_unix_ms: u64,
        limit: u16,
    ) -> Result<Vec<TransactionRows>, ReadError> {
        self.read(move |tx| {
            let ended = all(tx, ENDED, params![signed(before_unix_ms), limit], columns::transaction)?;
            ended.into_iter().map(|transaction| with_attestation(tx, transaction)).collect()
        })
        .await
    }
}

fn with_attestation(tx: &Tx<'_>, transaction: Sealed<Transaction>) -> Result<TransactionRows, Fault> {
    let id = transaction.row.id;
    let sql = "SELECT * FROM attestation WHERE transaction_id = ?1";
    let attestation = one(tx, sql, params![id.to_bytes()], columns::attestation)?;
    match (transaction.row.state, &attestation) {
        (State::Approved, None) => return Err(Fault::Unattested(id)),
        (State::Approved, Some(_)) | (_, None) => {}
        (_, Some(_)) => return Err(Fault::Unapproved(id)),
    }
    Ok(TransactionRows { transaction, attestation })
}
