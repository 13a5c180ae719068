//! What an operator and a developer look at: the metrics, and the API's own description.

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::appliance::Appliance;
use crate::narrator::Narrator;
use crate::{Bank, Outcome, Token, words};

const VERIFIED: &str = "hsm_authd_verdicts_total{verdict=\"verified\"}";
const CUSTODIANS_LOST: &str = "hsm_authd_custodian_losses_total{reason=\"ended\"}";

/// `GET /v1/openapi.json`.
pub async fn description(narrator: &mut Narrator, bank: &Bank) -> Outcome {
    narrator.heading("The API describes itself")?;
    narrator.step("any client may ask");
    let answer = bank.get(narrator, "/v1/openapi.json").await?;
    answer.is(narrator, 200, "the description is there")?;
    let version = answer.json["openapi"].as_str().unwrap_or_default();
    narrator.check("it is OpenAPI 3.1", version.starts_with("3.1."))?;
    let verify = &answer.json["paths"]["/v1/credentials/{id}/verify"]["post"];
    narrator.check("it knows the route that was asked all the time", verify.is_object())
}

/// `GET /metrics`, before and after one more code.
pub async fn metrics(
    narrator: &mut Narrator,
    bank: &Bank,
    appliance: &Appliance,
    hotp: &mut Token,
) -> Outcome {
    narrator.heading("The operator watches (Prometheus)")?;
    let before = read(narrator, &appliance.info).await?;
    narrator.row(CUSTODIANS_LOST, &value(&before, CUSTODIANS_LOST)?.to_string())?;
    narrator.check("the custodian that crashed is counted", value(&before, CUSTODIANS_LOST)? == 1)?;
    narrator.check(
        "no account, credential or client is named",
        ["account-1", "cred_", "bank-a"].iter().all(|name| !before.contains(name)),
    )?;
    narrator.step("one more code");
    let code = hotp.next_code()?;
    bank.verify(narrator, &hotp.id, &code).await?.is_accepted(narrator)?;
    let (before, after) =
        (value(&before, VERIFIED)?, value(&read(narrator, &appliance.info).await?, VERIFIED)?);
    narrator.row(VERIFIED, &format!("{before}, then {after}"))?;
    narrator.check("it was counted", after == before + 1)
}

/// The text, over plain HTTP on loopback.
async fn read(narrator: &Narrator, info: &Value) -> Outcome<String> {
    let url = info["ops_url"].as_str().unwrap_or_default();
    narrator.note(&format!("$ curl {url}/metrics"))?;
    let host = url.strip_prefix("http://").ok_or("dev.json has no ops_url")?;
    let mut stream = TcpStream::connect(host).await.map_err(words)?;
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(words)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.map_err(words)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split(' ').nth(1) == Some("200") => Ok(body.to_owned()),
        _ => Err("there are no metrics".to_owned()),
    }
}

/// A counter of this name and these labels.
fn value(metrics: &str, series: &str) -> Outcome<u64> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(series));
    line.and_then(|value| value.trim().parse().ok()).ok_or_else(|| format!("no {series}"))
}
