//! What a bank's backend does with a credential, and what it may expect of a refusal.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::client::{Connection, Response};
use crate::daemon::text;

/// Of each problem its name, statuses, title and detail: constant, and nothing of the request in them.
const PROBLEMS: [(&str, &[u16], &str, &str); 15] = [
    ("invalid", &[400, 422], "Invalid request", "The request does not have the form this route asks for."),
    (
        "unauthenticated",
        &[401],
        "Unauthenticated",
        "The client certificate does not name exactly one configured client.",
    ),
    ("forbidden", &[403], "Forbidden", "The client does not have the permission."),
    ("not-found", &[404], "Not found", "There is no such resource."),
    (
        "state-conflict",
        &[409],
        "State conflict",
        "The resource is not in a state that allows this, or the same request is being worked on.",
    ),
    (
        "idempotency-mismatch",
        &[422],
        "Idempotency key reused",
        "The idempotency key was used for another request.",
    ),
    ("verification-failed", &[403], "Verification failed", "What was presented does not verify."),
    ("expired", &[410], "Expired", "The time in which this was possible is over."),
    (
        "not-acceptable",
        &[406],
        "Not acceptable",
        "The resource has none of the media types that are asked for.",
    ),
    ("locked", &[423], "Locked", "Too many failures: no attempt is made until the lock ends or is lifted."),
    ("too-large", &[413], "Too large", "The body is larger than 64 KiB."),
    ("unsupported-media-type", &[415], "Unsupported media type", "The body must be application/json."),
    ("method-not-allowed", &[405], "Method not allowed", "The resource does not know this method."),
    ("rate-limited", &[429], "Rate limited", "Too many requests."),
    ("unavailable", &[503], "Unavailable", "No answer is possible now. Come back later."),
];

/// The document of an answer that is this problem, held against everything a problem promises.
pub fn refused(answer: &Response, status: u16, name: &str) -> Value {
    let document = refused_counting(answer, status, name);
    assert_eq!(document.get("attempts_remaining").is_some(), name == "verification-failed", "{document}");
    document
}

/// A refusal of what nobody counts: an attestation.
pub fn refused_uncounted(answer: &Response) -> Value {
    let document = refused_counting(answer, 403, "verification-failed");
    assert_eq!(document.get("attempts_remaining"), None, "{document}");
    document
}

fn refused_counting(answer: &Response, status: u16, name: &str) -> Value {
    let said = format!("{} {}", answer.status, text(answer));
    assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{said}");
    assert_eq!(answer.header("cache-control"), Some("no-store"), "{said}");
    let document = answer.json().unwrap_or_else(|e| panic!("{e}: {said}"));
    let (_, statuses, title, detail) = PROBLEMS
        .iter()
        .find(|(known, ..)| *known == name)
        .unwrap_or_else(|| panic!("no such problem {name}"));
    assert_eq!(document["type"], format!("urn:hsm-authd:problem:{name}"), "{said}");
    assert_eq!((answer.status.as_u16(), &document["status"]), (status, &json!(status)), "{said}");
    assert!(statuses.contains(&status), "{name} is never a {status}");
    assert_eq!((document["title"].as_str(), document["detail"].as_str()), (Some(*title), Some(*detail)));
    let request_id = document["request_id"].as_str().unwrap_or_else(|| panic!("no request_id: {said}"));
    assert!(request_id.strip_prefix("req_").is_some_and(|rest| rest.len() == 16), "{said}");
    assert_eq!(answer.header("x-request-id"), Some(request_id));

    let retry_after = document.get("retry_after").map(|seconds| seconds.as_u64().unwrap().to_string());
    assert_eq!(answer.header("retry-after"), retry_after.as_deref(), "{said}");
    let mut allowed = BTreeSet::from(["type", "title", "status", "detail", "request_id"]);
    match name {
        "invalid" => allowed.extend(["field", "reason"]),
        "verification-failed" => allowed.extend(["attempts_remaining"]),
        "locked" | "rate-limited" | "unavailable" => allowed.extend(["retry_after"]),
        _ => {}
    }
    let members = document.as_object().unwrap();
    assert!(members.keys().all(|member| allowed.contains(member.as_str())), "{said}");
    document
}

/// A refusal of a wrong (or used) code: how many attempts are left.
pub fn failed(answer: &Response) -> u64 {
    refused(answer, 403, "verification-failed")["attempts_remaining"].as_u64().unwrap()
}

/// The seconds until a lock ends.
pub fn locked(answer: &Response) -> u64 {
    refused(answer, 423, "locked")["retry_after"].as_u64().unwrap()
}

/// A 200 and its JSON.
pub fn done(answer: &Response) -> Value {
    assert_eq!(answer.status, 200, "{}", text(answer));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    answer.json().unwrap()
}

/// A document without what differs from request to request.
pub fn without_request_id(answer: &Response) -> Value {
    let mut document = answer.json().unwrap();
    document.as_object_mut().unwrap().remove("request_id");
    document
}

/// A credential's path, or that of something done to it.
pub fn path(id: &str, action: &str) -> String {
    if action.is_empty() { format!("/v1/credentials/{id}") } else { format!("/v1/credentials/{id}/{action}") }
}

/// The credential as it is now.
pub async fn credential(bank: &Connection, id: &str) -> Value {
    done(&bank.get(&path(id, "")).await.unwrap())
}

/// All credentials of the tenant, as they are now.
pub async fn credentials(bank: &Connection) -> Value {
    let page = done(&bank.get("/v1/credentials?limit=100").await.unwrap());
    assert_eq!(page["next"], Value::Null, "more than one page");
    page["items"].clone()
}

/// `suspend`, `resume` or `unlock`.
pub async fn act(bank: &Connection, id: &str, action: &str) -> Response {
    bank.request("POST", &path(id, action), &[], "").await.unwrap()
}

/// Deletes it.
pub async fn delete(bank: &Connection, id: &str) -> Response {
    bank.request("DELETE", &path(id, ""), &[], "").await.unwrap()
}

/// Submits two consecutive codes.
pub async fn resync(bank: &Connection, id: &str, otps: [String; 2]) -> Response {
    bank.post(&path(id, "resync"), &json!({ "otps": otps })).await.unwrap()
}
