//! Clients of the appliance, and what comes back to them.

use serde_json::{Value, json};

use crate::appliance::Appliance;
use crate::client::{self, Connection, Http, Identity};
use crate::narrator::Narrator;
use crate::{Outcome, words};

/// A client of the appliance: the bank's backend, where nothing else is said.
pub struct Bank {
    pub connection: Connection,
    /// What the transcript calls it.
    pub who: &'static str,
}

/// What came back.
pub struct Answer {
    pub status: u16,
    pub text: String,
    pub json: Value,
}

impl Bank {
    pub async fn connect(appliance: &Appliance) -> Outcome<Self> {
        Self::connect_as(appliance, "bank-a", "bank").await
    }

    /// With the certificate of another client.
    pub async fn connect_as(appliance: &Appliance, client: &str, who: &'static str) -> Outcome<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let files = &appliance.info["clients"][client];
        let identity = Identity::new(text(&appliance.info["ca"]), text(&files["cert"]), text(&files["key"]));
        let connection = Connection::open(&text(&appliance.info["url"]), &identity, Http::Two).await;
        Ok(Self { connection: connection.map_err(words)?, who })
    }

    pub async fn get(&self, narrator: &mut Narrator, path: &str) -> Outcome<Answer> {
        narrator.asked(self.who, "GET", path, None)?;
        Answer::read(narrator, self.who, &self.connection.get(path).await.map_err(words)?)
    }

    pub async fn post(&self, narrator: &mut Narrator, path: &str, body: &Value) -> Outcome<Answer> {
        narrator.asked(self.who, "POST", path, Some(body))?;
        Answer::read(narrator, self.who, &self.connection.post(path, body).await.map_err(words)?)
    }

    /// With an `Idempotency-Key`, to be asked again with if no answer comes.
    pub async fn post_once(
        &self,
        narrator: &mut Narrator,
        path: &str,
        body: &Value,
        key: &str,
    ) -> Outcome<Answer> {
        narrator.asked(self.who, "POST", &format!("{path} (Idempotency-Key: {key})"), Some(body))?;
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        let response = self.connection.request("POST", path, &headers, body.to_string()).await;
        Answer::read(narrator, self.who, &response.map_err(words)?)
    }

    pub async fn verify(&self, narrator: &mut Narrator, id: &str, otp: &str) -> Outcome<Answer> {
        self.present(narrator, id, &json!({ "otp": otp })).await
    }

    /// A code, a code to a question, or a signature.
    pub async fn present(&self, narrator: &mut Narrator, id: &str, evidence: &Value) -> Outcome<Answer> {
        self.post(narrator, &format!("/v1/credentials/{id}/verify"), evidence).await
    }
}

impl Answer {
    pub fn read(narrator: &mut Narrator, who: &str, response: &client::Response) -> Outcome<Self> {
        let json: Value = response.json().map_err(words)?;
        let (status, text) = (response.status.as_u16(), String::from_utf8_lossy(&response.body).into_owned());
        narrator.answered(who, status, &json)?;
        Ok(Self { status, text, json })
    }

    pub fn id(&self) -> Outcome<String> {
        self.json["id"].as_str().map(str::to_owned).ok_or_else(|| "the answer holds no id".to_owned())
    }

    pub fn is(&self, narrator: &mut Narrator, status: u16, what: &str) -> Outcome {
        narrator.check(what, self.status == status)
    }

    pub fn is_accepted(&self, narrator: &mut Narrator) -> Outcome {
        narrator.check("accepted", self.status == 200 && self.json["verified"] == true)
    }

    pub fn is_refused(&self, narrator: &mut Narrator, remaining: u32) -> Outcome {
        let refused = self.json["type"] == "urn:hsm-authd:problem:verification-failed";
        let counted = self.json["attempts_remaining"] == remaining;
        let what = format!("refused; attempts left: {remaining}");
        narrator.check(&what, self.status == 403 && refused && counted)
    }
}
