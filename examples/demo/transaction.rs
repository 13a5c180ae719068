//! Transactions, as the bank's backend makes them and hears of them.

use std::time::Duration;

use data_encoding::HEXLOWER;
use serde_json::{Value, json};

use crate::narrator::Narrator;
use crate::terms::Terms;
use crate::{Answer, Bank, Outcome, words};

/// Between two looks at a transaction that is about to expire.
const GLANCE: Duration = Duration::from_millis(50);
/// So many looks are more than it can take.
const GLANCES_MAX: u32 = 200;

pub struct Transaction {
    pub id: String,
    /// As it was when it was made.
    pub json: Value,
    /// What a device reads of it.
    pub terms: Terms,
}

impl Bank {
    /// Makes a transaction.
    pub async fn open(&self, narrator: &mut Narrator, body: &Value) -> Outcome<Transaction> {
        let answer = self.post(narrator, "/v1/transactions", body).await?;
        answer.is(narrator, 201, "the transaction waits for its user")?;
        let (id, terms) = (answer.id()?, Terms::read(&answer.json["signing_input"])?);
        if answer.json["digest"] != HEXLOWER.encode(&terms.digest()) {
            return Err("NOT as told: the digest is that of the signing input".to_owned());
        }
        Ok(Transaction { id, json: answer.json, terms })
    }

    pub async fn respond(&self, narrator: &mut Narrator, id: &str, response: &Value) -> Outcome<Answer> {
        self.post(narrator, &format!("/v1/transactions/{id}/responses"), response).await
    }

    /// One of several codes.
    pub async fn enter(&self, narrator: &mut Narrator, id: &str, code: &str) -> Outcome<Answer> {
        self.respond(narrator, id, &json!({ "code": code })).await
    }

    pub async fn respond_code(&self, narrator: &mut Narrator, id: &str, code: &str) -> Outcome<Answer> {
        self.respond(narrator, id, &json!({ "otp": code })).await
    }

    /// What the initiator hears of it.
    pub async fn told(
        &self,
        narrator: &mut Narrator,
        transaction: &Transaction,
        state: &str,
    ) -> Outcome<Answer> {
        let answer = self.get(narrator, &format!("/v1/transactions/{}", transaction.id)).await?;
        narrator.check(&format!("the initiator is told: {state}"), answer.json["state"] == state)?;
        Ok(answer)
    }

    /// Looks at it until its time is over.
    pub async fn wait_for_expiry(&self, transaction: &Transaction) -> Outcome {
        for _ in 0..GLANCES_MAX {
            let response =
                self.connection.get(&format!("/v1/transactions/{}", transaction.id)).await.map_err(words)?;
            if response.json().map_err(words)?["state"] == "expired" {
                return Ok(());
            }
            tokio::time::sleep(GLANCE).await;
        }
        Err("the transaction does not expire".to_owned())
    }

    /// The QR code of an approved one.
    pub async fn qr(&self, narrator: &mut Narrator, id: &str, media_type: &str) -> Outcome<Vec<u8>> {
        self.picture(narrator, &format!("/v1/transactions/{id}/qr"), media_type).await
    }

    /// What is at `path`, as a picture.
    pub async fn picture(&self, narrator: &mut Narrator, path: &str, media_type: &str) -> Outcome<Vec<u8>> {
        narrator.asked(self.who, "GET", &format!("{path} (Accept: {media_type})"), None)?;
        let accept = [("accept", media_type)];
        let response = self.connection.request("GET", path, &accept, "").await.map_err(words)?;
        let (status, received) =
            (response.status.as_u16(), response.header("content-type").unwrap_or_default());
        narrator.received(self.who, status, &format!("{received}, {} bytes", response.body.len()))?;
        narrator.check("it is such a picture", response.status == 200 && received == media_type)?;
        Ok(response.body.to_vec())
    }
}

impl Answer {
    /// One of several codes has come; whether it is right, is not said.
    pub fn is_partial(&self, narrator: &mut Narrator, entered: u32) -> Outcome {
        let pending = self.json["state"] == "pending" && self.json["entered"] == entered;
        narrator.check(&format!("entered so far: {entered}"), self.status == 202 && pending)
    }

    /// The attestation of an approval.
    pub fn is_approved(&self, narrator: &mut Narrator) -> Outcome<String> {
        narrator.check("approved", self.status == 200 && self.json["state"] == "approved")?;
        let attestation = self.json["attestation"].as_str().map(str::to_owned);
        attestation.ok_or_else(|| "the answer holds no attestation".to_owned())
    }
}
