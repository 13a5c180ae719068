//! `/v1/credentials`: the JSON of each request, and which use case it goes to.

use std::ops::RangeInclusive;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use data_encoding::{BASE32_NOPAD, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Deserializer, Serialize};
use zeroize::Zeroizing;

use crate::domain::account::AccountRef;
use crate::domain::caller::Permission;
use crate::domain::id::CredentialId;
use crate::domain::otp::{Algorithm, COUNTER_END, Digits, MovingFactor, Otp};
use crate::secret::SecretBytes;
use crate::service::Answer;
use crate::service::credential_view::CredentialView;
use crate::service::enrolment::{Enrolled, Enrolment};
use crate::service::management::Action;
use crate::store::Page;

use super::Api;
use super::answer::json_response;
use super::call::Call;
use super::problem::Problem;

/// `POST /v1/credentials`
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum EnrolBody {
    Hotp(HotpBody),
    Totp(TotpBody),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HotpBody {
    account: AccountRef,
    #[serde(default)]
    algorithm: Algorithm,
    #[serde(default)]
    digits: Digits,
    #[serde(default)]
    counter: u64,
    #[serde(default = "default_look_ahead")]
    look_ahead: u64,
    #[serde(default, deserialize_with = "not_null")]
    seed_hex: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "not_null")]
    seed_base32: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "not_null")]
    export: Option<Export>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TotpBody {
    account: AccountRef,
    #[serde(default)]
    algorithm: Algorithm,
    #[serde(default)]
    digits: Digits,
    #[serde(default = "default_period")]
    period: u64,
    #[serde(default = "default_skew_steps")]
    skew_steps: u64,
    #[serde(default, deserialize_with = "not_null")]
    seed_hex: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "not_null")]
    seed_base32: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "not_null")]
    export: Option<Export>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Export {
    Otpauth,
}

/// A seed of `null` is a mistake, not the wish for a generated one that fits no token.
fn not_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

fn default_look_ahead() -> u64 {
    10
}

fn default_period() -> u64 {
    30
}

fn default_skew_steps() -> u64 {
    1
}

impl TryFrom<EnrolBody> for Enrolment {
    type Error = Problem;

    fn try_from(body: EnrolBody) -> Result<Self, Problem> {
        match body {
            EnrolBody::Hotp(body) => {
                if body.counter >= COUNTER_END {
                    return Err(Problem::Invalid { field: "counter", reason: "must be below 2^63" });
                }
                let look_ahead = within(body.look_ahead, 0..=100)
                    .ok_or(Problem::Invalid { field: "look_ahead", reason: "must be 0 to 100" })?;
                Ok(Self {
                    account: body.account,
                    algorithm: body.algorithm,
                    digits: body.digits,
                    moving_factor: MovingFactor::Hotp { look_ahead },
                    counter: body.counter,
                    seed: seed(body.seed_hex, body.seed_base32)?,
                    export: body.export.is_some(),
                })
            }
            EnrolBody::Totp(body) => {
                let period_s = within(body.period, 5..=600)
                    .ok_or(Problem::Invalid { field: "period", reason: "must be 5 to 600 seconds" })?;
                let skew_steps = within(body.skew_steps, 0..=2)
                    .ok_or(Problem::Invalid { field: "skew_steps", reason: "must be 0 to 2" })?;
                Ok(Self {
                    account: body.account,
                    algorithm: body.algorithm,
                    digits: body.digits,
                    moving_factor: MovingFactor::Totp { period_s, skew_steps },
                    counter: 0,
                    seed: seed(body.seed_hex, body.seed_base32)?,
                    export: body.export.is_some(),
                })
            }
        }
    }
}

/// A number of its own type, if it is one of these.
fn within<T: TryFrom<u64>>(number: u64, allowed: RangeInclusive<u64>) -> Option<T> {
    if allowed.contains(&number) { number.try_into().ok() } else { None }
}

/// The seed, given in one way or in none.
fn seed(
    hex: Option<Zeroizing<String>>,
    base32: Option<Zeroizing<String>>,
) -> Result<Option<SecretBytes>, Problem> {
    let invalid = |field, reason| Problem::Invalid { field, reason };
    let (field, decoded) = match (hex, base32) {
        (None, None) => return Ok(None),
        (Some(_), Some(_)) => return Err(invalid("seed_hex", "give seed_hex or seed_base32, not both")),
        (Some(hex), None) => ("seed_hex", HEXLOWER_PERMISSIVE.decode(hex.as_bytes())),
        (None, Some(base32)) => {
            let upper = Zeroizing::new(base32.trim_end_matches('=').to_ascii_uppercase());
            ("seed_base32", BASE32_NOPAD.decode(upper.as_bytes()))
        }
    };
    let seed = decoded.map(SecretBytes::new).map_err(|_| invalid(field, "is not of that encoding"))?;
    if (16..=64).contains(&seed.len()) {
        Ok(Some(seed))
    } else {
        Err(invalid(field, "must be 16 to 64 bytes"))
    }
}

/// `POST /v1/credentials/{id}/verify`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VerifyBody {
    otp: String,
}

/// `POST /v1/credentials/{id}/resync`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResyncBody {
    otps: [String; 2],
}

const OTP_FORM: &str = "must be 6 to 8 digits";

pub(super) async fn enrol(State(api): State<Arc<Api>>, call: Call) -> Result<Enrolled, Problem> {
    let call = call.allowed(Permission::Enroll)?;
    let (ask, body) = call.json::<EnrolBody>(&api).await?;
    Ok(api.service.enrol(ask, body.try_into()?).await?)
}

pub(super) async fn verify(State(api): State<Arc<Api>>, call: Call) -> Result<Answer, Problem> {
    let mut call = call.allowed(Permission::Verify)?;
    let id = call.credential_id().await;
    let (ask, body) = call.json::<VerifyBody>(&api).await?;
    let otp = Otp::parse(body.otp).ok_or(Problem::Invalid { field: "otp", reason: OTP_FORM })?;
    Ok(api.service.verify(ask, id, otp).await?)
}

pub(super) async fn resync(State(api): State<Arc<Api>>, call: Call) -> Result<Answer, Problem> {
    let mut call = call.allowed(Permission::Enroll)?;
    let id = call.credential_id().await;
    let (ask, body) = call.json::<ResyncBody>(&api).await?;
    let [first, second] = body.otps.map(Otp::parse);
    let (Some(first), Some(second)) = (first, second) else {
        return Err(Problem::Invalid { field: "otps", reason: OTP_FORM });
    };
    Ok(api.service.resync(ask, id, [first, second]).await?)
}

pub(super) async fn suspend(State(api): State<Arc<Api>>, call: Call) -> Result<Answer, Problem> {
    change(api, call, Action::Suspend).await
}

pub(super) async fn resume(State(api): State<Arc<Api>>, call: Call) -> Result<Answer, Problem> {
    change(api, call, Action::Resume).await
}

pub(super) async fn unlock(State(api): State<Arc<Api>>, call: Call) -> Result<Answer, Problem> {
    change(api, call, Action::Unlock).await
}

pub(super) async fn delete(State(api): State<Arc<Api>>, call: Call) -> Result<Answer, Problem> {
    change(api, call, Action::Delete).await
}

async fn change(api: Arc<Api>, call: Call, action: Action) -> Result<Answer, Problem> {
    let mut call = call.allowed(action.permission())?;
    let id = call.credential_id().await;
    let ask = call.no_json(&api).await?;
    Ok(api.service.change(ask, id, action).await?)
}

pub(super) async fn get(State(api): State<Arc<Api>>, call: Call) -> Result<Response, Problem> {
    let mut call = call.allowed(Permission::Enroll)?;
    let id = call.credential_id().await.ok_or(Problem::NotFound)?;
    let view = api.service.get(&call.caller, id).await?;
    Ok(json_response(StatusCode::OK, "found", &view))
}

/// `GET /v1/credentials?account=&limit=&after=`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    account: Option<AccountRef>,
    limit: Option<u16>,
    after: Option<String>,
}

/// A page, as every list answers.
#[derive(Serialize)]
struct ListBody {
    items: Vec<CredentialView>,
    next: Option<String>,
}

const PAGE_DEFAULT: u16 = 50;
const PAGE_MAX: u16 = 100;

pub(super) async fn list(State(api): State<Arc<Api>>, call: Call) -> Result<Response, Problem> {
    let call = call.allowed(Permission::Enroll)?;
    let query: ListQuery = call.query()?;
    let limit = query.limit.unwrap_or(PAGE_DEFAULT);
    if !(1..=PAGE_MAX).contains(&limit) {
        return Err(Problem::Invalid { field: "limit", reason: "must be 1 to 100" });
    }
    let unknown = Problem::Invalid { field: "after", reason: "must be the `next` of an earlier page" };
    let after = query.after.map(|text| CredentialId::parse(&text).ok_or(unknown)).transpose()?;
    let listed = api.service.list(&call.caller, query.account.as_ref(), Page { after, limit }).await?;
    Ok(json_response(StatusCode::OK, "found", &ListBody { items: listed.items, next: listed.next }))
}
