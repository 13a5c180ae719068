//! The store's contract: what every backend promises, and nothing of how.
//!
//! * **One commit.** A [`Commit`] is written whole or not at all: all rows, the change of the sums
//!   over all rows, and the log's entry with its place in the tree.
//! * **Compare-and-set.** Before anything is written, EVERY row that the commit replaces, removes or
//!   merely stood on is compared with what was read of it: its version and the beginning of its seal
//!   ([`Standing`]); and what is new must not be there. One mismatch: [`CommitError::Conflict`],
//!   nothing written. The caller then forgets what it computed, reads again and decides anew.
//! * **Nothing unread.** A commit that replaces or removes a row that it does not say it has read is
//!   a bug: [`CommitError::Unavailable`], nothing written.
//! * **Durable before visible.** A [`Committed`] exists only after the commit is durable (fsync), and
//!   only the store can make one. An answer that says yes is built from it.
//! * **Unknown is not yes.** If COMMIT or its fsync failed, nobody knows whether the commit will be
//!   there after a crash. The store then answers [`CommitError::Unavailable`] to this caller and to
//!   every later one, and [`Store::failed`] resolves: the process has to end, and a start reads what
//!   is durable. An error that surely rolled back (a full disk, a constraint) is `Unavailable` for
//!   that commit alone.
//! * **Reads** see every commit that was answered before they began. They are not ordered among
//!   themselves: the versions in the commit make up for it.
//! * **Who retries.** Nobody in here; conflicts go to the use case, which has to look at locks again.
//! * **Apart.** Commits may share one transaction and one fsync, but what is wrong with one of them
//!   (a conflict, a row named twice) is told to it alone.
//! * **Until it is taken.** A commit whose request nobody waits for any more ([`Lifeline`]) when the writer takes it from
//!   the queue is not written: [`CommitError::Abandoned`]. From there on who stops waiting stops nothing.
//! * **Bounded.** At most [`QUEUE_MAX`] commits wait; beyond that [`CommitError::Busy`] at once.
//! * A seal is kept, never checked: only a custodian can. But once a start has looked at every row
//!   ([`Store::hold`]), a row that is not the one written last is not built upon, neither where it is
//!   when the commit comes nor where it was shown before and is gone again: [`CommitError::Altered`].
//!
//! `tests/suite/store_contract.rs` holds a backend against this text.

use crate::domain::account::Account;
use crate::domain::attestation::Attestation;
use crate::domain::audit::AuditEntry;
use crate::domain::credential::{Credential, CredentialState};
use crate::domain::rolling::Binding;
use crate::domain::row::{Row, RowKey, Sealed, SealedBytes, TableSums};
use crate::domain::transaction::Transaction;
use crate::domain::verification::Subject;
#[cfg(doc)]
use crate::lifeline::Lifeline;
use crate::metrics::StoreError;

mod backup;
mod checkpoint;
mod columns;
mod damage;
mod files;
mod inventory;
mod ledger;
mod log;
pub mod offline;
mod reader;
mod reads;
mod rows;
mod scan;
mod schema;
mod sqlite;
mod standing;
pub mod usage;
mod writer;

pub use backup::{Contents, contents, copy, install};
pub use damage::{Damage, EntryAside, JudgedLog, RawColumn, RawValue};
pub use inventory::Inventory;
pub use ledger::RunKey;
pub use log::Thinned;
pub use reads::log::{ConsistencyProof, Inclusion, InclusionProof, LoggedLeaf};
pub use scan::{Found, Place, Unreadable};
pub use schema::SCHEMA;
pub use sqlite::Store;
pub use standing::Standing;

/// How many commits may wait for the writer.
pub const QUEUE_MAX: usize = 1_024;

/// One change of state: all of it or nothing.
#[derive(Clone, Debug)]
pub struct Commit {
    /// All rows that the decision stood on, as they were read: each must still be that. Those that are replaced or
    /// removed are among them.
    pub before: Vec<Standing>,
    /// Rows to write, each named once. Version 1 is new and must not exist; version n replaces
    /// version n - 1, which is in `before`.
    pub rows: Vec<Sealed<Row>>,
    /// Rows to remove; each is in `before`.
    pub removed: Vec<RowKey>,
    /// Added to the sums over all rows, each number modulo 2^256.
    pub sum_change: TableSums,
    /// What the log keeps of it; which rows it changed the store adds.
    pub audit: AuditEntry,
}

impl Commit {
    /// Of an entry that tells of no row.
    pub fn of_entry(audit: AuditEntry) -> Self {
        let (before, rows, removed) = Default::default();
        Self { before, rows, removed, sum_change: TableSums::default(), audit }
    }
}

/// Proof that a commit is durable. Only a store makes one.
#[derive(Debug)]
#[must_use = "an answer is built from it"]
pub struct Committed {
    log_size: u64,
}

impl Committed {
    /// How many entries the log has with that of this commit.
    pub fn log_size(&self) -> u64 {
        self.log_size
    }
}

/// Why a commit did not happen, or may not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// A row is another one than was read, exists, or does not: read again and decide anew.
    #[error("a row has changed since it was read")]
    Conflict,
    /// This row is not what was written last, or was not when it was read: somebody removed it, put an old one back, or
    /// wrote one. Nothing was written. Its key is for who goes on without it: it may name an account, and is not shown.
    #[error("a row is not what was written last")]
    Altered(RowKey),
    /// The queue is full; nothing was written.
    #[error("too many commits wait")]
    Busy,
    /// Nobody waits for it any more; nothing was written.
    #[error("nobody waits for the commit")]
    Abandoned,
    /// Not written, or not known to be written.
    #[error("the store cannot commit")]
    Unavailable,
}

impl CommitError {
    /// Whether it is sure that nothing was written, or will be.
    pub fn is_unwritten(&self) -> bool {
        match self {
            Self::Conflict | Self::Altered(_) | Self::Busy | Self::Abandoned => true,
            Self::Unavailable => false,
        }
    }
}

/// A read that failed. The cause is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store cannot be read")]
pub struct ReadError;

/// A credential with all the rows its verdicts stand on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialRows {
    /// What never changes.
    pub credential: Sealed<Credential>,
    /// What each code moves.
    pub state: Sealed<CredentialState>,
    /// What limits guessing.
    pub account: Sealed<Account>,
}

impl CredentialRows {
    /// What a verdict stands on.
    pub fn subject(&self) -> Subject<'_> {
        Subject { credential: &self.credential.row, state: &self.state.row, account: &self.account.row }
    }

    /// All three with their seals, in the order in which messages to a custodian have them.
    pub fn to_bytes(&self) -> [SealedBytes; 3] {
        [self.credential.to_bytes(), self.state.to_bytes(), self.account.to_bytes()]
    }
}

/// A rolling credential that is bound, by its password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundRows {
    /// Whose it is.
    pub credential: CredentialRows,
    /// Of which epoch its password has to be.
    pub binding: Sealed<Binding>,
}

/// A transaction, and its attestation if it is approved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionRows {
    /// What is to be approved, and what became of it.
    pub transaction: Sealed<Transaction>,
    /// What the appliance signed of its approval.
    pub attestation: Option<Sealed<Attestation>>,
}

/// Where a page of a list begins and how long it is.
#[derive(Clone, Copy, Debug)]
pub struct Page<Id> {
    /// The last item of the page before.
    pub after: Option<Id>,
    /// At most so many items.
    pub limit: u16,
}

/// A store that cannot be opened, in words an operator can act on.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(pub String);

/// What an error counts as: by its place, except where the disk is full.
fn error_kind(error: &rusqlite::Error, place: StoreError) -> StoreError {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DiskFull) => StoreError::DiskFull,
        _ => place,
    }
}
