//! `/v1/credentials`: which use case each request goes to. The JSON that a request brings is in the files
//! beside.

use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::account::AccountRef;
use crate::domain::caller::Permission;
use crate::domain::id::CredentialId;
use crate::metrics::Verdict;
use crate::service::Answer;
use crate::service::credential_view::CredentialView;
use crate::service::enrolment::{Enrolled, Enrolment};
use crate::service::management::Action;
use crate::store::Page;

use super::admission::Entrance;
use super::answer::json_response;
use super::call::{Call, object, page_limit};
use super::problem::Problem;

mod enrolment;
mod evidence;
pub(super) mod examples;
pub(super) mod operations;
pub(super) mod rolling;
pub(super) mod schemas;
mod seeds;

use enrolment::EnrolBody;
use evidence::{Evidence, ResyncBody, VerifyBody};
pub(super) use rolling::{activate, rebind, rotate};

pub(super) async fn enrol(api: Entrance, call: Call) -> Result<Enrolled, Problem> {
    let call = call.allowed(Permission::Enroll)?;
    let (ask, body) = call.json_bytes(&api).await?;
    let enrolment = enrolment(&body)?;
    Ok(api.turn().await?.enrol(ask, enrolment).await?)
}

/// What a body asks to be enrolled.
pub(super) fn enrolment(body: &[u8]) -> Result<Enrolment, Problem> {
    object::<EnrolBody>(body)?.try_into()
}

pub(super) async fn verify(api: Entrance, call: Call) -> Result<Answer, Problem> {
    let mut call = call.allowed(Permission::Verify)?;
    let id = call.credential_id().await;
    let (ask, body) = call.json::<VerifyBody>(&api).await?;
    Ok(match body.try_into()? {
        Evidence::Code { otp, question } => api.turn().await?.verify(ask, id, otp, question).await?,
        Evidence::Signature(presented) => api.turn().await?.verify_signature(ask, id, presented).await?,
    })
}

pub(super) async fn resync(api: Entrance, call: Call) -> Result<Answer, Problem> {
    let mut call = call.allowed(Permission::Enroll)?;
    let id = call.credential_id().await;
    let (ask, body) = call.json::<ResyncBody>(&api).await?;
    let (otps, question) = body.parse()?;
    Ok(api.turn().await?.resync(ask, id, otps, question).await?)
}

pub(super) async fn suspend(api: Entrance, call: Call) -> Result<Answer, Problem> {
    change(api, call, Action::Suspend).await
}

pub(super) async fn resume(api: Entrance, call: Call) -> Result<Answer, Problem> {
    change(api, call, Action::Resume).await
}

pub(super) async fn unlock(api: Entrance, call: Call) -> Result<Answer, Problem> {
    change(api, call, Action::Unlock).await
}

pub(super) async fn delete(api: Entrance, call: Call) -> Result<Answer, Problem> {
    change(api, call, Action::Delete).await
}

async fn change(api: Entrance, call: Call, action: Action) -> Result<Answer, Problem> {
    let mut call = call.allowed_by_any(action.permissions())?;
    let id = call.credential_id().await;
    let ask = call.no_json(&api).await?;
    Ok(api.turn().await?.change(ask, id, action).await?)
}

pub(super) async fn get(api: Entrance, call: Call) -> Result<Response, Problem> {
    let mut call = call.allowed(Permission::Enroll)?;
    let id = call.credential_id().await.ok_or(Problem::NotFound)?;
    let view = api.turn().await?.get(&call.caller, id).await?;
    Ok(json_response(StatusCode::OK, Verdict::Found, &view))
}

/// `GET /v1/credentials?account=&limit=&after=`
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Only this account's.
    account: Option<AccountRef>,
    /// How many a page.
    #[param(minimum = 1, maximum = 100, default = 50)]
    limit: Option<u16>,
    /// The `next` of the page before.
    #[param(value_type = Option<CredentialId>)]
    after: Option<String>,
}

/// A page, as every list answers.
#[derive(Serialize, ToSchema)]
#[schema(as = CredentialPage)]
struct ListBody {
    /// In the order of their enrolment; without deleted ones.
    #[schema(max_items = 100)]
    items: Vec<CredentialView>,
    /// `after` of the next page; null on the last one.
    #[schema(required, value_type = Option<CredentialId>)]
    next: Option<String>,
}

pub(super) async fn list(api: Entrance, call: Call) -> Result<Response, Problem> {
    let call = call.allowed(Permission::Enroll)?;
    let query: ListQuery = call.query()?;
    let limit = page_limit(query.limit)?;
    let unknown = Problem::Invalid { field: "after", reason: "must be the `next` of an earlier page" };
    let after = query.after.map(|text| CredentialId::parse(&text).ok_or(unknown)).transpose()?;
    let listed = api.turn().await?.list(&call.caller, query.account.as_ref(), Page { after, limit }).await?;
    Ok(json_response(StatusCode::OK, Verdict::Found, &ListBody { items: listed.items, next: listed.next }))
}
