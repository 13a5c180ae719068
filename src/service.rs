//! The use cases, one a file: caller -> load -> begin (pure) -> HSM -> verdict (pure) -> commit.
//!
//! Nothing here knows HTTP. An [`Answer`] leaves this module only after the commit it tells of is
//! durable; everything else is a [`Refused`], and charged nothing.

use std::sync::Arc;

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use crate::clock::WatchedClock;
use crate::config::{AttestationPolicy, AuditPolicy, CredentialPolicy, TransactionPolicy};
use crate::domain::audit::{Actor, AuditEntry, Event};
use crate::domain::caller::Caller;
use crate::domain::certificate::{CertificateChain, ChainFault, Trust};
use crate::domain::credential::ObjectId;
use crate::domain::id::CredentialId;
use crate::domain::idempotency::IdempotencyKey;
use crate::domain::lockout::Locked;
use crate::domain::row::{Row, RowKey, Sealed};
use crate::domain::time::Now;
use crate::domain::transaction::{State, Transaction};
use crate::domain::verification::Refusal;
use crate::hsm::messages::SealedRows;
use crate::hsm::{Claim, Hsm, HsmError};
use crate::lifeline::Lifeline;
use crate::secret::SecretBytes;
use crate::store::{Commit, CommitError, Committed, ReadError, Store};

pub mod at_rest;
pub mod audit;
pub mod audit_view;
pub mod authorization_view;
pub mod authorizations;
pub mod computing;
pub mod credential_view;
pub mod enrolment;
pub mod integrity;
mod locks;
mod log;
pub mod management;
mod memory;
mod patience;
pub mod presentation_view;
pub mod presentations;
pub mod pruning;
mod rates;
pub mod recovery;
mod residents;
pub mod rewrapping;
pub mod rolling;
mod tampering;
pub mod transaction_view;
pub mod transactions;
pub mod verification;

use authorization_view::AuthorizationView;
use computing::Computing;
use credential_view::CredentialView;
use locks::AccountLocks;
use log::LogKeeper;
use memory::InFlight;
use rates::Rates;
use rewrapping::Rewrapping;
use rolling::HandedOut;
use transaction_view::TransactionView;

/// How often the loser of a race starts over before the caller is told to come back.
const RACES_MAX: usize = 8;

/// What somebody has to look at is worth asking again after so many seconds.
const STAYS_S: u32 = 60;

/// What every use case needs; one for the whole process.
pub struct Service {
    store: Store,
    hsm: Hsm,
    clock: Arc<WatchedClock>,
    policies: Policies,
    trust: ArcSwap<Trust>,
    chains: Computing,
    log: LogKeeper,
    locks: AccountLocks,
    in_flight: InFlight,
    /// Of passwords that are nobody's.
    unknown_passwords: Rates,
    rewrapping: Rewrapping,
}

/// What the configuration says of the use cases.
#[derive(Clone, Debug)]
pub struct Policies {
    /// Credentials.
    pub credentials: CredentialPolicy,
    /// Transactions.
    pub transactions: TransactionPolicy,
    /// Their attestations.
    pub attestations: AttestationPolicy,
    /// The log.
    pub audit: AuditPolicy,
}

/// A request as the use cases see it: who, and how it is remembered.
pub struct Ask {
    /// The authenticated client, already found to have the permission.
    pub caller: Caller,
    /// The request's id, for the audit log.
    pub request_id: String,
    /// The request to remember the answer of, if the client wants that.
    pub idempotency: Option<Idempotency>,
}

/// An `Idempotency-Key` and what it is bound to.
pub struct Idempotency {
    /// The client's key.
    pub key: IdempotencyKey,
    /// Tenant, method, path with query, and body, hashed; a body holds codes.
    pub request: SecretBytes,
}

/// What became of a request. It is kept in idempotency records, so it holds no secret and no code,
/// and variants are only ever added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// A credential was enrolled.
    Enrolled(CredentialView),
    /// A credential was changed: suspended, resumed, unlocked, authorized.
    Changed(CredentialView),
    /// A credential was deleted.
    Deleted {
        /// Its id.
        id: String,
    },
    /// The code was right, and is used up.
    Verified {
        /// The credential's id.
        id: String,
        /// The account it speaks for.
        account: String,
    },
    /// Both codes were found, and are used up.
    Resynced {
        /// The credential's id.
        id: String,
        /// The account it speaks for.
        account: String,
    },
    /// The code was wrong, or was the one accepted last.
    VerificationFailed {
        /// Attempts before the next lock or the transaction's end: the smallest of the credential's, the account's
        /// and the transaction's.
        attempts_remaining: u32,
    },
    /// A transaction was made.
    TransactionCreated(Box<TransactionView>),
    /// What was presented was right, and the transaction is approved. Its attestation is read for the answer.
    Approved {
        /// The transaction's id.
        transaction: String,
    },
    /// The transaction was taken back.
    Cancelled {
        /// Its id.
        transaction: String,
    },
    /// The transaction is in this final state already.
    Ended(State),
    /// A code of several was entered; what it is worth is told with the last one.
    Entered(Box<TransactionView>),
    /// A rolling credential was bound to its terminal, or is and its terminal has to be told again.
    Activated {
        /// The credential.
        view: CredentialView,
        /// The first temporary code.
        handed_out: HandedOut,
    },
    /// A terminal is told the open epoch's temporary code again.
    Rotated {
        /// The account that the credential speaks for.
        account: String,
        /// That code.
        handed_out: HandedOut,
    },
    /// A terminal has the open epoch's temporary code.
    Acknowledged {
        /// The credential's id.
        id: String,
        /// The account it speaks for.
        account: String,
        /// The open epoch.
        epoch: u64,
    },
    /// A rolling password was right, and the transaction is approved. Its attestation is read for the answer.
    ApprovedByPassword {
        /// The transaction's id.
        transaction: String,
        /// The next temporary code.
        handed_out: HandedOut,
    },
    /// The user of a presented code declined the transaction.
    Rejected {
        /// Its id.
        transaction: String,
    },
    /// A presentation was made. Its code is derived for the answer.
    Presented {
        /// Its id.
        presentation: String,
        /// Until when it can be claimed, RFC 3339 in UTC.
        expires_at: String,
    },
    /// The authorization of a device was begun. Its codes are derived for the answer.
    AuthorizationBegun(AuthorizationView),
    /// The message from the terminal came, and was right.
    UplinkSeen(AuthorizationView),
}

impl Answer {
    /// The answer, now that what it says is durable.
    fn release(self, _durable: Committed) -> Self {
        self
    }
}

/// Why there is no answer. Nothing was charged and nothing changed, unless the store itself does not
/// know whether it committed: then a caller that asks again finds out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Not there, for this caller.
    Absent,
    /// The client does not have the permission that the state asks for.
    Forbidden,
    /// The state does not allow it.
    Conflict,
    /// The transaction is in this final state.
    Ended(State),
    /// The time in which it was possible is over, or its attempts are used up.
    Expired,
    /// A field that says what cannot be.
    Invalid {
        /// The field.
        field: &'static str,
        /// What it must be.
        reason: &'static str,
    },
    /// The credential or its account is locked.
    Locked(Locked),
    /// The key was used for another request.
    IdempotencyMismatch,
    /// The client has asked for too much of what only has a rate: passwords that are nobody's.
    RateLimited {
        /// When the next one may come, in seconds.
        retry_after_s: u64,
    },
    /// The HSM, the store, the clock or a queue does not allow an answer now.
    Unavailable {
        /// For the operator's log; the caller never sees it.
        cause: String,
        /// When it is worth to come back, in seconds.
        retry_after_s: u32,
    },
}

impl Refused {
    fn unavailable(cause: impl ToString) -> Self {
        Self::Unavailable { cause: cause.to_string(), retry_after_s: 1 }
    }

    /// Until the database is put right: an alarm says which row it is.
    fn altered(error: &CommitError) -> Self {
        Self::Unavailable { cause: error.to_string(), retry_after_s: STAYS_S }
    }

    /// Whether it is for what does not pass by itself, such as a row that is not what was written last.
    fn stays(&self) -> bool {
        matches!(self, Self::Unavailable { retry_after_s: STAYS_S.., .. })
    }

    fn clock_untrusted() -> Self {
        let cause = "the wall clock stepped; accept it by a start with --accept-clock".to_owned();
        Self::Unavailable { cause, retry_after_s: 60 }
    }
}

impl From<HsmError> for Refused {
    fn from(error: HsmError) -> Self {
        let retry_after_s = match error {
            HsmError::Busy | HsmError::Away(_) => 1,
            HsmError::Unavailable(_) => 2,
            HsmError::Tampered(_) | HsmError::Missing(_) | HsmError::NoRoom { .. } => STAYS_S,
        };
        Self::Unavailable { cause: error.to_string(), retry_after_s }
    }
}

impl From<ReadError> for Refused {
    fn from(error: ReadError) -> Self {
        Self::unavailable(error)
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Absent => Self::Absent,
            Refusal::Inactive => Self::Conflict,
            Refusal::Locked(locked) => Self::Locked(locked),
            Refusal::ClockUntrusted => Self::clock_untrusted(),
        }
    }
}

impl Service {
    /// The use cases over these parts.
    pub fn new(store: Store, hsm: Hsm, clock: Arc<WatchedClock>, policies: Policies, trust: Trust) -> Self {
        let unknown_passwords = Rates::new(policies.transactions.unknown_passwords_per_minute);
        let log = LogKeeper::new(store.clone(), hsm.clone(), clock.clone(), policies.audit.anchor);
        Self {
            store,
            hsm,
            clock,
            policies,
            trust: ArcSwap::from_pointee(trust),
            chains: Computing::new(),
            log,
            locks: AccountLocks::new(),
            in_flight: InFlight::default(),
            unknown_passwords,
            rewrapping: Rewrapping::default(),
        }
    }

    /// From here on certificates are held against other anchors and revocation lists.
    pub fn reload(&self, trust: Trust) {
        self.trust.store(Arc::new(trust));
    }

    fn now(&self) -> Now {
        self.clock.now()
    }

    /// Whether a device's chain is to be trusted now; the inner error says why not. It is asked when the device is
    /// enrolled, and whenever it signs.
    ///
    /// # Errors
    /// [`Refused::Unavailable`]: nobody can tell.
    async fn check_chain(
        &self,
        chain: CertificateChain,
        now: &Now,
    ) -> Result<Result<(), &'static str>, Refused> {
        if !now.trusted {
            return Err(Refused::clock_untrusted());
        }
        let (trust, unix_ms) = (self.trust.load_full(), now.unix_ms);
        // Off the runtime: a long revocation list is read whole.
        match self.chains.run(move || trust.check(&chain, unix_ms)).await? {
            Ok(()) => Ok(Ok(())),
            Err(ChainFault::Refused(reason)) => Ok(Err(reason)),
            Err(ChainFault::Unknown(reason)) => {
                Err(Refused::Unavailable { cause: reason.to_owned(), retry_after_s: 60 })
            }
        }
    }

    /// The same for rows that name new secrets, or name others no more. Objects of the new ones are destroyed again only
    /// where none of these rows can be there; those that are not named any more, as soon as that is durable, whatever
    /// becomes of the anchor.
    async fn commit_naming(
        &self,
        commit: Commit,
        claims: &mut [Claim],
        unnamed: Vec<ObjectId>,
    ) -> Result<Option<Committed>, Refused> {
        self.may_commit()?;
        // From here on it is this request's to see what becomes of its objects, even if its caller goes before the writer
        // takes the commit.
        if !claims.is_empty() && Lifeline::current().is_some_and(|line| !line.hand_over()) {
            return Err(Refused::unavailable(CommitError::Abandoned));
        }
        claims.iter_mut().for_each(Claim::may_be_named);
        let result = self.store.commit(commit).await;
        if result.as_ref().is_err_and(CommitError::is_unwritten) {
            claims.iter_mut().for_each(Claim::is_unnamed);
        }
        match self.outcome(result)? {
            None => Ok(None),
            Some(durable) => {
                self.hsm.destroy(unnamed).await;
                self.covered(durable).await.map(Some)
            }
        }
    }

    /// `None`: lost a race, start over.
    async fn commit(&self, commit: Commit) -> Result<Option<Committed>, Refused> {
        self.may_commit()?;
        match self.outcome(self.store.commit(commit).await)? {
            None => Ok(None),
            Some(durable) => self.covered(durable).await.map(Some),
        }
    }

    /// Not while the anchor is too far behind the log.
    fn may_commit(&self) -> Result<(), Refused> {
        // The reason is told once, by the keeper of the log.
        match self.log.objection() {
            Some(_) => Err(Refused::unavailable("nothing is committed until the anchor follows the log")),
            None => Ok(()),
        }
    }

    /// The same for who goes on without a row that is not what was written last: the inner error is its key.
    async fn commit_or_name(&self, commit: Commit) -> Result<Result<Option<Committed>, RowKey>, Refused> {
        self.may_commit()?;
        match self.store.commit(commit).await {
            Err(CommitError::Altered(key)) => Ok(Err(key)),
            result => match self.outcome(result)? {
                None => Ok(Ok(None)),
                Some(durable) => self.covered(durable).await.map(|durable| Ok(Some(durable))),
            },
        }
    }

    /// What was committed, when an anchor covers it, if answers wait for that.
    async fn covered(&self, durable: Committed) -> Result<Committed, Refused> {
        self.log.covers(durable.log_size()).await?;
        Ok(durable)
    }

    /// `None`: lost a race, start over.
    fn outcome(&self, result: Result<Committed, CommitError>) -> Result<Option<Committed>, Refused> {
        match result {
            Ok(committed) => {
                // From now on there is an entry that waits for an anchor, if there was none.
                let _ = self.log.objection();
                Ok(Some(committed))
            }
            Err(CommitError::Conflict) => Ok(None),
            Err(error @ CommitError::Altered(_)) => Err(Refused::altered(&error)),
            Err(error @ (CommitError::Busy | CommitError::Abandoned | CommitError::Unavailable)) => {
                Err(Refused::unavailable(error))
            }
        }
    }
}

/// Rows with the seals a custodian made for them.
fn seal(rows: Vec<Row>, sealed: &SealedRows) -> Result<Vec<Sealed<Row>>, Refused> {
    if rows.len() != sealed.seals.len() {
        return Err(Refused::unavailable("the custodian sealed another number of rows"));
    }
    Ok(rows.into_iter().zip(&sealed.seals).map(|(row, seal)| Sealed { row, seal: seal.clone() }).collect())
}

fn audit(ask: &Ask, now: &Now, event: Event, credential: CredentialId) -> AuditEntry {
    AuditEntry {
        unix_ms: now.unix_ms,
        event,
        actor: Some(actor(ask)),
        credential: Some(credential),
        transaction: None,
        detail: None,
    }
}

/// The same of what happened to a transaction; nobody asked where its time was over.
fn audit_transaction(ask: Option<&Ask>, now: &Now, event: Event, transaction: &Transaction) -> AuditEntry {
    AuditEntry {
        unix_ms: now.unix_ms,
        event,
        actor: ask.map(actor),
        credential: transaction.credential(),
        transaction: Some(transaction.id),
        detail: None,
    }
}

fn actor(ask: &Ask) -> Actor {
    Actor {
        tenant: ask.caller.tenant.clone(),
        client: ask.caller.client.clone(),
        request_id: ask.request_id.clone(),
    }
}

fn race_lost() -> Refused {
    Refused::unavailable("lost too many races for the same rows")
}
