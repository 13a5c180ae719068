//! The routes of the audit log by the OpenAPI document.

use serde_json::Value;

use crate::client::Connection;
use crate::daemon::{Daemon, text};
use crate::documented::{Asked, Documented};

const LIST: &str = "/v1/audit";
const CHECKPOINT: &str = "/v1/audit/checkpoint";
const PROOF: &str = "/v1/audit/proof";
const KEYS: &str = "/v1/audit/keys";
/// With its method.
pub const CHECKPOINT_ROUTE: &str = "GET /v1/audit/checkpoint";

async fn read(documented: &Documented, auditor: &Connection, route: &str, query: &str) -> (u16, Value) {
    let answer = documented.ask(auditor, Asked { query, ..Asked::new("GET", route, "") }).await;
    (answer.status.as_u16(), answer.json().unwrap_or_else(|_| text(&answer).into()))
}

/// Every answer and every problem of theirs, of a log with some of everything.
pub async fn audit(daemon: &Daemon, documented: &Documented) {
    let auditor = daemon.connect("auditor").await;
    let read = async |route: &str, query: &str| read(documented, &auditor, route, query).await;
    let mut after = 0;
    loop {
        let (status, page) = read(LIST, &format!("?limit=100&after={after}")).await;
        assert_eq!(status, 200);
        match page["next"].as_u64() {
            Some(next) => after = next,
            None => break,
        }
    }
    for query in ["?limit=0", "?limit=101", "?after=x", "?after=-1", "?x=1", "?after=1&after=2"] {
        assert_eq!(read(LIST, query).await.0, 422, "{query}");
    }
    assert_eq!(read(CHECKPOINT, "").await.0, 200);
    for (query, status) in [
        ("?entry=3&size=9", 200),
        ("?from=3&to=9", 200),
        ("?entry=1000000&size=1000000", 404),
        ("?entry=0&size=3", 404),
        ("?entry=9&size=3", 422),
        ("?entry=9&size=1000000", 422),
        ("?from=9&to=3", 422),
        ("?from=0&to=3", 422),
        ("?from=3&to=1000000", 422),
        ("?entry=3", 422),
        ("?entry=3&size=9&from=3", 422),
        ("?from=3&to=9&to=9", 422),
        ("", 422),
    ] {
        assert_eq!(read(PROOF, query).await.0, status, "{query}");
    }
    assert_eq!(read(KEYS, "").await.0, 200);
}
