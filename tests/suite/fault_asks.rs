//! What is asked in a step of a story, and what it ends in.

use std::fmt;

use serde_json::{Value, json};

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    Bank,
    Gateway,
}

/// A request, and what it may cost.
pub struct Ask {
    pub client: Client,
    pub path: String,
    pub body: Value,
    pub keyed: bool,
    pub once: bool,
    pub killing: bool,
    pub renewing: bool,
    pub watched: Vec<String>,
}

impl Ask {
    /// A `POST` by the bank.
    pub fn post(path: impl Into<String>, body: Value) -> Self {
        let (client, path) = (Client::Bank, path.into());
        Self {
            client,
            path,
            body,
            keyed: true,
            once: false,
            killing: false,
            renewing: false,
            watched: Vec::new(),
        }
    }

    pub fn by_gateway(self) -> Self {
        Self { client: Client::Gateway, ..self }
    }

    /// It takes no `Idempotency-Key`.
    pub fn unkeyed(self) -> Self {
        Self { keyed: false, ..self }
    }

    /// Sent again under another key it ends otherwise, or costs nothing: that is looked at too.
    pub fn once(self) -> Self {
        Self { once: true, ..self }
    }

    /// Sent again it would be another one.
    pub fn repeatable(self) -> Self {
        Self { once: false, ..self }
    }

    /// All custodians are killed before it is sent: it needs new ones.
    pub fn killing(self) -> Self {
        Self { killing: true, ..self }
    }

    /// The sessions are lost when it is worked on, with or without another fault: it needs new ones.
    pub fn renewing(self) -> Self {
        Self { renewing: true, ..self }
    }

    /// What it may change: the path of a credential or a transaction.
    pub fn watching(mut self, path: impl Into<String>) -> Self {
        self.watched.push(path.into());
        self
    }
}

/// What was said to a request: the status, and of a problem its name.
#[derive(Clone, PartialEq, Eq)]
pub struct Verdict(pub u16, pub String);

impl Verdict {
    pub fn of(status: u16, body: &Value) -> Self {
        let problem = body["type"].as_str().filter(|_| status >= 400).unwrap_or_default();
        Self(status, problem.trim_start_matches("urn:hsm-authd:problem:").to_owned())
    }

    pub fn is_unavailable(&self) -> bool {
        self.0 == 503
    }
}

impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.0, self.1)
    }
}

/// What a step ended in.
#[derive(Clone, PartialEq)]
pub struct End {
    pub name: &'static str,
    pub verdict: Verdict,
    /// State and counters of what is watched.
    pub standing: Vec<Value>,
    /// The same after the request was sent again under another key.
    pub again: Option<(Verdict, Vec<Value>)>,
}

impl fmt::Debug for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, verdict, standing, again } = self;
        write!(f, "{name}: {verdict:?} {}", json!(standing))?;
        match again {
            Some((verdict, standing)) => write!(f, ", again: {verdict:?} {}", json!(standing)),
            None => Ok(()),
        }
    }
}
