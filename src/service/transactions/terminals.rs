//! Terminals: which of them codes may be sent to, those of a transaction, and their codes, which are made anew for each
//! answer that shows them.

use crate::domain::caller::{Caller, Tenant};
use crate::domain::credential::{Kind, Status};
use crate::domain::multi_terminal::MultiTerminal;
use crate::domain::otp::Otp;
use crate::domain::row::SealedBytes;
use crate::domain::time::Now;
use crate::domain::transaction::{Method, State, Transaction};
use crate::store::CredentialRows;

use super::{Refused, Service};

/// Whether it is a terminal, and may be used.
pub(in crate::service) fn is_active_terminal(rows: &CredentialRows) -> bool {
    matches!(rows.credential.row.kind, Kind::Terminal(_)) && rows.state.row.status == Status::Active
}

impl Service {
    /// Whether a terminal has been there long enough to be sent codes: a thief who enrols one is not to be asked at
    /// once.
    pub(in crate::service) fn is_cooled_terminal(&self, rows: &CredentialRows, now: &Now) -> bool {
        let cooling_ms = u64::from(self.policies.credentials.terminal_cooling_seconds) * 1_000;
        now.unix_ms >= rows.credential.row.created_unix_ms.saturating_add(cooling_ms)
    }

    /// The credentials that a transaction asks, in its order. `None` once one of them is pruned.
    pub(super) async fn asked_terminals(
        &self,
        tenant: &Tenant,
        method: &MultiTerminal,
    ) -> Result<Option<Vec<CredentialRows>>, Refused> {
        let ids = method.terminals.iter().map(|frozen| frozen.credential).collect();
        Ok(self.store.all_credentials(tenant, ids).await?)
    }

    /// The codes of a pending transaction, in its order, for a client that sends them; the same ones each time. `None`
    /// for any other client and transaction, and where a terminal is no more. `bytes` are the transaction's own.
    pub(super) async fn codes_to_send(
        &self,
        caller: &Caller,
        transaction: &Transaction,
        bytes: SealedBytes,
    ) -> Result<Option<Vec<Otp>>, Refused> {
        let Method::MultiTerminal(method) = &transaction.method else { return Ok(None) };
        if !caller.delivers || transaction.state != State::Pending {
            return Ok(None);
        }
        let Some(terminals) = self.asked_terminals(&transaction.tenant, method).await? else {
            return Ok(None);
        };
        if terminals.iter().any(|rows| rows.state.row.status == Status::Deleted) {
            return Ok(None);
        }
        let Some(first) = method.terminals.first() else { return Ok(None) };
        let standing = std::iter::once(bytes).chain(terminals.iter().map(|rows| rows.credential.to_bytes()));
        let codes = self.hsm.terminal_codes(first.credential, standing.collect()).await?;
        match codes.len() == method.terminals.len() {
            true => Ok(Some(codes)),
            false => Err(Refused::unavailable("the custodian made another number of codes")),
        }
    }
}
