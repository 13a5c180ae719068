//! The terminals of a transaction, and the codes that are sent to them: made anew for each answer that shows them.

use crate::domain::caller::{Caller, Tenant};
use crate::domain::credential::Status;
use crate::domain::multi_terminal::MultiTerminal;
use crate::domain::otp::Otp;
use crate::domain::row::SealedBytes;
use crate::domain::transaction::{Method, State, Transaction};
use crate::store::CredentialRows;

use super::{Refused, Service};

impl Service {
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
