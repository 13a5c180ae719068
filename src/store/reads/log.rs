//! What is asked of the log: pages of entries, and proofs. A proof is made from one snapshot.

use rusqlite::{Row as SqlRow, Transaction, params};

use super::super::columns::{self, Fault};
use super::super::ledger;
use super::super::{ReadError, Store};
use super::{all, one, signed};
use crate::domain::audit::Logged;
use crate::domain::caller::Tenant;
use crate::domain::log::{TreeHash, proofs};

/// Entries of a tenant, after a place.
pub(super) const OF_TENANT: &str = "SELECT * FROM audit WHERE tenant = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3";
const OF_ALL: &str = "SELECT * FROM audit WHERE seq > ?1 ORDER BY seq LIMIT ?2";

/// An entry and its leaf's hash, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedLeaf {
    /// The entry.
    pub logged: Logged,
    /// What is stored as the hash of its leaf.
    pub leaf: TreeHash,
}

/// A proof that an entry is in the log as it was at some size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InclusionProof {
    /// The hash of the entry's leaf.
    pub leaf: TreeHash,
    /// The root at that size.
    pub root: TreeHash,
    /// Hashes from below.
    pub hashes: Vec<TreeHash>,
}

/// What is found of an entry that is to be proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inclusion {
    /// There is no such entry, for who asks.
    Absent,
    /// The log never had that size yet, or had not the entry then.
    NotOfThatSize,
    /// It is there.
    Proved(InclusionProof),
}

/// A proof that the log at one size goes on from what it was at another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsistencyProof {
    /// The root at the smaller size.
    pub from_root: TreeHash,
    /// The root at the larger one.
    pub root: TreeHash,
    /// Hashes from below.
    pub hashes: Vec<TreeHash>,
}

impl Store {
    /// A page of the log in the order of the commits: entries after number `after_seq`, of one tenant or of all.
    pub async fn log_page(
        &self,
        tenant: Option<&Tenant>,
        after_seq: u64,
        limit: u16,
    ) -> Result<Vec<LoggedLeaf>, ReadError> {
        let tenant = tenant.cloned();
        self.read(move |tx| {
            let after = signed(after_seq);
            match tenant {
                Some(tenant) => all(tx, OF_TENANT, params![tenant.as_str(), after, limit], logged_leaf),
                None => all(tx, OF_ALL, params![after, limit], logged_leaf),
            }
        })
        .await
    }

    /// The proof that entry `seq` is in the log of `size` entries; for a tenant, only of its own.
    pub async fn inclusion(
        &self,
        tenant: Option<&Tenant>,
        seq: u64,
        size: u64,
    ) -> Result<Inclusion, ReadError> {
        let tenant = tenant.cloned();
        self.read(move |tx| {
            let entry = one(tx, "SELECT * FROM audit WHERE seq = ?1", [signed(seq)], logged_leaf)?;
            let is_visible = |entry: &LoggedLeaf| {
                let actor = entry.logged.entry.actor.as_ref();
                tenant.is_none() || tenant.as_ref() == actor.map(|actor| &actor.tenant)
            };
            let Some(LoggedLeaf { leaf, .. }) = entry.filter(is_visible) else {
                return Ok(Inclusion::Absent);
            };
            if size > ledger::size(tx)? {
                return Ok(Inclusion::NotOfThatSize);
            }
            let hashes = proofs::inclusion(seq.saturating_sub(1), size, |l, place, n| read(tx, l, place, n))?;
            let Some(hashes) = hashes else { return Ok(Inclusion::NotOfThatSize) };
            let root = proofs::root(size, |level, place, count| read(tx, level, place, count))?;
            Ok(Inclusion::Proved(InclusionProof { leaf, root, hashes }))
        })
        .await
    }

    /// The proof that the log of `to` entries goes on from that of `from`. `None` if it never had these sizes yet, or
    /// not in this order, or `from` is zero.
    pub async fn consistency(&self, from: u64, to: u64) -> Result<Option<ConsistencyProof>, ReadError> {
        self.read(move |tx| {
            if to > ledger::size(tx)? {
                return Ok(None);
            }
            let hashes = proofs::consistency(from, to, |level, place, count| read(tx, level, place, count))?;
            let Some(hashes) = hashes else { return Ok(None) };
            let root = |size| proofs::root(size, |level, place, count| read(tx, level, place, count));
            Ok(Some(ConsistencyProof { from_root: root(from)?, root: root(to)?, hashes }))
        })
        .await
    }
}

pub(in super::super) fn logged_leaf(row: &SqlRow<'_>) -> Result<LoggedLeaf, Fault> {
    let logged = columns::audit(row)?;
    let leaf = ledger::leaf(row)?.ok_or(Fault::Entry(logged.seq))?;
    Ok(LoggedLeaf { logged, leaf })
}

/// As [`proofs::ReadHashes`] says.
fn read(tx: &Transaction<'_>, level: u8, place: u64, count: u64) -> Result<Vec<TreeHash>, Fault> {
    let last = place.saturating_add(count).saturating_sub(1);
    let hashes: Vec<Option<[u8; 32]>> = match level {
        0 => {
            let sql = "SELECT leaf FROM audit WHERE seq BETWEEN ?1 + 1 AND ?2 + 1 ORDER BY seq";
            all(tx, sql, params![signed(place), signed(last)], |row| Ok(row.get(0)?))?
        }
        _ => {
            let sql =
                "SELECT hash FROM audit_subtree WHERE level = ?1 AND place BETWEEN ?2 AND ?3 ORDER BY place";
            all(tx, sql, params![level, signed(place), signed(last)], |row| Ok(row.get(0)?))?
        }
    };
    let hashes: Option<Vec<_>> = hashes.into_iter().map(|hash| hash.map(TreeHash)).collect();
    let first_entry = place.checked_shl(level.into()).unwrap_or(0).saturating_add(1);
    hashes.filter(|hashes| hashes.len() as u64 == count).ok_or(Fault::Entry(first_entry))
}
