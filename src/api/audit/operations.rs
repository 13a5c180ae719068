//! The routes of the audit log as the OpenAPI document says them.

use axum::http::StatusCode;
use serde_json::json;
use utoipa::IntoParams;
use utoipa::openapi::path::{HttpMethod, ParameterIn};
use utoipa::openapi::schema::OneOfBuilder;

use crate::domain::caller::Permission;
use crate::metrics::Verdict;
use crate::service::audit_view::{ConsistencyView, EntryView, InclusionView};

use super::super::openapi::operation::{Answered, Form, Named, Operation, example};
use super::super::schema::{Schemas, add, reference, text};
use super::{KeyBody, KeysBody, ListBody, ListQuery, NOTE, ProofQuery};

const LIST: &str = "What happened, in the order in which it became durable. A tenant's auditor sees the entries of its \
    tenant; one of the tenant `*` sees all, also what the appliance itself did. `docs/audit.md` says how an entry is \
    hashed and how the log is verified.";
const CHECKPOINT: &str = "The head of the log, signed by an `audit` key in the HSM, as a C2SP `tlog-checkpoint`: origin, \
    number of entries, root in base64, `time`, `sum` over all rows; an empty line; the signature. Keep it outside of \
    the appliance: what it covers cannot be taken back unnoticed. 404: there is none yet.";
const PROOF: &str = "With `entry` and `size`: that the entry is in the log as it was with `size` entries; for a tenant's \
    auditor, of its tenant's entries alone. With `from` and `to`: that the log with `to` entries goes on from what it was \
    with `from`. By RFC 6962, section 2.1; held against the roots of two checkpoints, they need no trust in who answers.";

/// All routes of the audit log.
pub(in super::super) fn operations() -> Vec<Operation> {
    vec![
        Operation {
            query: ListQuery::into_params(|| Some(ParameterIn::Query)),
            ..operation("/v1/audit", "listAuditEntries").said("The audit log", LIST)
        }
        .answers(StatusCode::OK, reference::<ListBody>(), "A page.", pages()),
        Operation {
            also: &[Verdict::NotFound],
            answer: Answered {
                status: StatusCode::OK,
                description: "The note of the newest checkpoint.",
                form: Form::Text {
                    media_type: NOTE,
                    schema: Box::new(
                        text("A signed note.")
                            .max_length(Some(4_096))
                            .pattern(Some("^hsm-authd\\.log/"))
                            .into(),
                    ),
                    examples: notes(),
                },
            },
            ..operation("/v1/audit/checkpoint", "getCheckpoint").said("The newest checkpoint", CHECKPOINT)
        },
        Operation {
            query: ProofQuery::into_params(|| Some(ParameterIn::Query)),
            also: &[Verdict::NotFound],
            ..operation("/v1/audit/proof", "getAuditProof").said("A proof", PROOF)
        }
        .answers(
            StatusCode::OK,
            OneOfBuilder::new()
                .item(reference::<InclusionView>())
                .item(reference::<ConsistencyView>())
                .into(),
            "It.",
            proofs(),
        ),
        operation("/v1/audit/keys", "getAuditKeys")
            .said(
                "The keys of checkpoints",
                "Every key that checkpoints were ever signed with, the newest first.",
            )
            .answers(StatusCode::OK, reference::<KeysBody>(), "They.", keys()),
    ]
}

/// A route that asks for `audit`.
fn operation(path: &'static str, id: &'static str) -> Operation {
    Operation::new(HttpMethod::Get, path, id).permitted(&[Permission::Audit])
}

/// All that these routes refer to, by name.
pub(in super::super) fn schemas() -> Schemas {
    let mut schemas = Vec::new();
    add::<ListBody>(&mut schemas);
    add::<EntryView>(&mut schemas);
    add::<InclusionView>(&mut schemas);
    add::<ConsistencyView>(&mut schemas);
    add::<KeysBody>(&mut schemas);
    add::<KeyBody>(&mut schemas);
    schemas
}

fn pages() -> Vec<Named> {
    let verified = json!({ "seq": 17, "time": "2030-01-01T00:00:00Z", "unix_ms": 1_893_456_000_123_u64,
        "event": "otp.verified", "verdict": "accepted", "tenant": "bank-a", "client": "backend",
        "request_id": "req_fk6lccggb9rl0ruf", "credential": "cred_26daj92h7tg6acttawtvk6360e",
        "rows": ["credential_state:9f86d081884c7d65:4", "account:60303ae22b998861:3"],
        "leaf_hash": "ypeBEsobvcr6wjGzmiPcTaeG7_gUfE5yuYB3ha_uSLs" });
    let started = json!({ "seq": 18, "time": "2030-01-01T00:00:01Z", "unix_ms": 1_893_456_001_000_u64,
        "event": "service.started", "rows": [], "leaf_hash": "PiPoFgA5WUozrrMLyEiRcWnhSM5ePCaw1nb9Sbd3hps" });
    vec![example(
        "page",
        "Two entries, and there are more",
        json!({ "items": [verified, started], "next": 18 }),
    )]
}

fn notes() -> Vec<Named> {
    let note = "hsm-authd.log/0123456789abcdef0123456789abcdef\n20852163\n\
        CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\ntime 2030-01-01T00:00:00Z\n\
        sum 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n\n\
        \u{2014} hsm-authd.log/0123456789abcdef0123456789abcdef Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe\n";
    vec![example("checkpoint", "A checkpoint; the signature is cut short", json!(note))]
}

fn proofs() -> Vec<Named> {
    let hash = "ypeBEsobvcr6wjGzmiPcTaeG7_gUfE5yuYB3ha_uSLs";
    let inclusion = json!({ "entry": 2, "size": 3, "leaf_hash": hash, "root": hash, "hashes": [hash, hash] });
    let consistency = json!({ "from": 2, "to": 3, "from_root": hash, "to_root": hash, "hashes": [hash] });
    vec![
        example("inclusion", "Entry 2 is one of the first 3", inclusion),
        example("consistency", "The log of 3 entries goes on from that of 2", consistency),
    ]
}

fn keys() -> Vec<Named> {
    let info = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84z\
        V2sxXs7LtkBoN79R9Q==";
    let (first, second) = info.split_at(64);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{first}\n{second}\n-----END PUBLIC KEY-----\n");
    let verifier =
        "hsm-authd.log/0123456789abcdef0123456789abcdef+033de0ae+AjBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABA==";
    let key = json!({ "key_id": "033de0ae", "public_key_pem": pem, "note_verifier": verifier });
    vec![example("keys", "One key", json!({ "keys": [key] }))]
}
