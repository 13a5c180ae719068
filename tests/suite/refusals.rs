//! Requests that have to be refused, as rows of a table.

use serde_json::Value;

use crate::bank::{credentials, refused};
use crate::client::{Connection, Http};
use crate::daemon::{Daemon, text};

/// In the fields of requests; no answer may repeat it.
pub const MARK: &str = "unmistakable";

/// A request that is refused, and how.
pub struct Case {
    pub what: String,
    pub method: &'static str,
    pub path: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub status: u16,
    pub name: &'static str,
    pub field: Option<&'static str>,
}

impl Case {
    /// A JSON body that is refused.
    pub fn post(what: impl Into<String>, path: &str, body: impl Into<Vec<u8>>, status: u16) -> Self {
        let name = if status == 404 { "not-found" } else { "invalid" };
        let headers = vec![("content-type", "application/json".to_owned())];
        Self {
            what: what.into(),
            method: "POST",
            path: path.to_owned(),
            headers,
            body: body.into(),
            status,
            name,
            field: None,
        }
    }

    /// A request without a body.
    pub fn bare(method: &'static str, path: &str, status: u16, name: &'static str) -> Self {
        let what = format!("{method} {path}");
        Self { method, headers: Vec::new(), name, ..Self::post(what, path, "", status) }
    }

    /// The field that the answer is to name.
    pub fn about(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }

    async fn is_refused(&self, bank: &Connection) {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let answer = bank.request(self.method, &self.path, &headers, self.body.clone()).await;
        let answer = answer.unwrap_or_else(|failure| panic!("{}: {failure}", self.what));
        assert_eq!(answer.status, self.status, "{}: {}", self.what, text(&answer));
        if self.method != "HEAD" {
            let document = refused(&answer, self.status, self.name);
            let field = document.get("field").and_then(Value::as_str);
            assert!(self.field.is_none() || field == self.field, "{}: {document}", self.what);
        }
        assert!(!text(&answer).contains(MARK), "{}: {}", self.what, text(&answer));
    }
}

/// Each is refused over both HTTPs, and nothing has changed then.
pub async fn all_refused(daemon: &Daemon, bank: &Connection, cases: Vec<Case>) {
    let before = credentials(bank).await;
    for http in [Http::One, Http::Two] {
        let connection = daemon.connect_over("bank-a", http).await;
        for case in &cases {
            case.is_refused(&connection).await;
        }
    }
    assert_eq!(credentials(bank).await, before);
}
