//! An entry of the log as auditors see it: in answers and in exports.

use data_encoding::BASE64URL_NOPAD;
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::audit::RowMark;
use crate::domain::id::{CredentialId, TransactionId};
use crate::domain::log::TreeHash;
use crate::domain::time::rfc3339;
use crate::store::{ConsistencyProof, InclusionProof, LoggedLeaf};

/// The JSON of an entry. Whatever of it the leaf's hash is made of is there as it is hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = AuditEntry, description = "An entry of the audit log. `docs/audit.md` has the bytes of its leaf.")]
pub struct EntryView {
    /// Its number, from 1 and without a gap: it is leaf `seq` - 1.
    #[schema(minimum = 1)]
    pub seq: u64,
    /// When, RFC 3339 in UTC, whole seconds.
    #[schema(format = DateTime)]
    pub time: String,
    /// When, milliseconds since 1970.
    pub unix_ms: u64,
    /// What.
    #[schema(pattern = "^[a-z]+\\.[a-z_]+$")]
    pub event: &'static str,
    /// `accepted` or `refused`, where the event is a verdict.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, pattern = "^(accepted|refused)$")]
    pub verdict: Option<&'static str>,
    /// For which tenant; absent with the two below where the appliance itself acted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub tenant: Option<String>,
    /// Which client asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub client: Option<String>,
    /// In which request.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub request_id: Option<String>,
    /// Which credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = CredentialId)]
    pub credential: Option<String>,
    /// Which transaction.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, value_type = TransactionId)]
    pub transaction: Option<String>,
    /// More of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false, max_length = 256)]
    pub detail: Option<String>,
    /// The rows that it changed: `table:key:version`; version 0: it was removed.
    pub rows: Vec<String>,
    /// The hash of its leaf, base64url without padding.
    #[schema(pattern = "^[A-Za-z0-9_-]{43}$")]
    pub leaf_hash: String,
}

impl EntryView {
    /// Of an entry.
    pub fn of(entry: &LoggedLeaf) -> Self {
        let LoggedLeaf { logged, leaf } = entry;
        let said = &logged.entry;
        let actor = said.actor.as_ref();
        Self {
            seq: logged.seq,
            time: rfc3339(said.unix_ms),
            unix_ms: said.unix_ms,
            event: said.event.name(),
            verdict: said.event.verdict().map(|verdict| verdict.name()),
            tenant: actor.map(|actor| actor.tenant.to_string()),
            client: actor.map(|actor| actor.client.to_string()),
            request_id: actor.map(|actor| actor.request_id.clone()),
            credential: said.credential.map(|id| id.to_string()),
            transaction: said.transaction.map(|id| id.to_string()),
            detail: said.detail.clone(),
            rows: logged.rows.0.iter().map(RowMark::to_string).collect(),
            leaf_hash: spelt(*leaf),
        }
    }
}

/// A hash of the tree as auditors see it: base64url without padding.
pub fn spelt(hash: TreeHash) -> String {
    BASE64URL_NOPAD.encode(&hash.0)
}

/// The JSON of a proof that an entry is in the log (RFC 6962, section 2.1.1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = InclusionProof, description = "That an entry is in the log as it was at this size.")]
pub struct InclusionView {
    /// The entry's number: it is leaf `entry` - 1.
    #[schema(minimum = 1)]
    pub entry: u64,
    /// How many entries the log had.
    #[schema(minimum = 1)]
    pub size: u64,
    /// The hash of the entry's leaf, base64url without padding, as all hashes here.
    #[schema(pattern = "^[A-Za-z0-9_-]{43}$")]
    pub leaf_hash: String,
    /// The root at that size: a checkpoint over as many entries has the same.
    #[schema(pattern = "^[A-Za-z0-9_-]{43}$")]
    pub root: String,
    /// From below.
    #[schema(max_items = 63)]
    pub hashes: Vec<String>,
}

impl InclusionView {
    /// Of a proof.
    pub fn of(entry: u64, size: u64, proof: &InclusionProof) -> Self {
        let InclusionProof { leaf, root, hashes } = proof;
        Self { entry, size, leaf_hash: spelt(*leaf), root: spelt(*root), hashes: all_spelt(hashes) }
    }
}

/// The JSON of a proof that the log goes on from what it was (RFC 6962, section 2.1.2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = ConsistencyProof, description = "That the log at one size goes on from what it was at a smaller one.")]
pub struct ConsistencyView {
    /// The smaller size.
    #[schema(minimum = 1)]
    pub from: u64,
    /// The larger one.
    #[schema(minimum = 1)]
    pub to: u64,
    /// The root at the smaller size, base64url without padding, as all hashes here.
    #[schema(pattern = "^[A-Za-z0-9_-]{43}$")]
    pub from_root: String,
    /// The root at the larger one.
    #[schema(pattern = "^[A-Za-z0-9_-]{43}$")]
    pub to_root: String,
    /// From below.
    #[schema(max_items = 64)]
    pub hashes: Vec<String>,
}

impl ConsistencyView {
    /// Of a proof.
    pub fn of(from: u64, to: u64, proof: &ConsistencyProof) -> Self {
        let ConsistencyProof { from_root, root, hashes } = proof;
        Self { from, to, from_root: spelt(*from_root), to_root: spelt(*root), hashes: all_spelt(hashes) }
    }
}

fn all_spelt(hashes: &[TreeHash]) -> Vec<String> {
    hashes.iter().copied().map(spelt).collect()
}
