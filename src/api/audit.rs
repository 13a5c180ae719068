//! `/v1/audit`: the log, its checkpoints and proofs, for auditors.

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::checkpoint::VerifierKey;
use crate::metrics::Verdict;
use crate::service::audit_view::EntryView;

use super::admission::Entrance;
use super::answer::json_response;
use super::call::{Call, page_limit};
use super::problem::Problem;

pub(super) mod operations;

/// What a checkpoint's note comes as.
pub(super) const NOTE: &str = "text/plain; charset=utf-8";

/// `GET /v1/audit?after=&limit=`
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Begin after the entry of this number.
    #[param(default = 0)]
    after: Option<u64>,
    /// How many a page.
    #[param(minimum = 1, maximum = 100, default = 50)]
    limit: Option<u16>,
}

/// A page, as every list answers.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditPage)]
struct ListBody {
    /// In the order of the commits.
    #[schema(max_items = 100)]
    items: Vec<EntryView>,
    /// `after` of the next page; null on the last one.
    #[schema(required)]
    next: Option<u64>,
}

pub(super) async fn list(api: Entrance, call: Call) -> Result<Response, Problem> {
    let call = call.auditing()?;
    let query: ListQuery = call.query()?;
    let limit = page_limit(query.limit)?;
    let listed = api.turn().await?.audit_entries(&call.scope, query.after.unwrap_or(0), limit).await?;
    Ok(json_response(StatusCode::OK, Verdict::Found, &ListBody { items: listed.items, next: listed.next }))
}

pub(super) async fn checkpoint(api: Entrance, call: Call) -> Result<Response, Problem> {
    call.auditing()?;
    let note = api.turn().await?.audit_checkpoint().await?;
    let mut response = (StatusCode::OK, [(CONTENT_TYPE, NOTE)], note).into_response();
    response.extensions_mut().insert(Verdict::Found);
    Ok(response)
}

/// `GET /v1/audit/proof?entry=&size=` or `?from=&to=`
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ProofQuery {
    /// Of the proof that an entry is in the log: its number.
    #[param(minimum = 1)]
    entry: Option<u64>,
    /// And how many entries the log had.
    #[param(minimum = 1)]
    size: Option<u64>,
    /// Of the proof that the log goes on from what it was: how many entries it had.
    #[param(minimum = 1)]
    from: Option<u64>,
    /// And how many it had later.
    #[param(minimum = 1)]
    to: Option<u64>,
}

pub(super) async fn proof(api: Entrance, call: Call) -> Result<Response, Problem> {
    let call = call.auditing()?;
    let query: ProofQuery = call.query()?;
    match (query.entry, query.size, query.from, query.to) {
        (Some(entry), Some(size), None, None) => {
            let proof = api.turn().await?.audit_inclusion(&call.scope, entry, size).await?;
            Ok(json_response(StatusCode::OK, Verdict::Found, &proof))
        }
        (None, None, Some(from), Some(to)) => {
            let proof = api.turn().await?.audit_consistency(from, to).await?;
            Ok(json_response(StatusCode::OK, Verdict::Found, &proof))
        }
        _ => Err(Problem::Invalid {
            field: "",
            reason: "the query must have `entry` and `size`, or `from` and `to`",
        }),
    }
}

/// A key that signs checkpoints.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditKey)]
struct KeyBody {
    /// The first four bytes of the SHA-256 of its SubjectPublicKeyInfo, hex: what its signatures in notes begin with.
    #[schema(pattern = "^[0-9a-f]{8}$")]
    key_id: String,
    /// Its SubjectPublicKeyInfo.
    #[schema(pattern = "^-----BEGIN PUBLIC KEY-----\n")]
    public_key_pem: String,
    /// The same as C2SP signed notes write a verifier.
    #[schema(pattern = "^hsm-authd\\.log/[0-9a-z]+\\+[0-9a-f]{8}\\+[A-Za-z0-9+/=]+$")]
    note_verifier: String,
}

/// The keys that sign checkpoints.
#[derive(Serialize, ToSchema)]
#[schema(as = AuditKeys)]
struct KeysBody {
    /// The newest first.
    #[schema(min_items = 1)]
    keys: Vec<KeyBody>,
}

pub(super) async fn keys(api: Entrance, call: Call) -> Result<Response, Problem> {
    call.auditing()?;
    let keys = api.turn().await?.audit_keys().await?.into_iter().map(KeyBody::from).collect();
    Ok(json_response(StatusCode::OK, Verdict::Found, &KeysBody { keys }))
}

impl From<VerifierKey> for KeyBody {
    fn from(key: VerifierKey) -> Self {
        let VerifierKey { key_id, pem, note_verifier } = key;
        Self { key_id: HEXLOWER.encode(&key_id), public_key_pem: pem, note_verifier }
    }
}
