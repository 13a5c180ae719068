//! `/v1/transactions`: which use case each request goes to. The JSON that a request brings is in the files beside.

use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use zeroize::Zeroizing;

use crate::domain::account::AccountRef;
use crate::domain::caller::Permission;
use crate::domain::id::TransactionId;
use crate::metrics::Verdict;
use crate::service::Refused;
use crate::service::transaction_view::TransactionView;
use crate::service::transactions::{NewTransaction, ShownTransaction, TransactionAnswer};
use crate::store::Page;

use super::admission::Entrance;
use super::answer::json_response;
use super::call::{AllowedCall, Call, object, page_limit};
use super::problem::Problem;
use super::qr::{picture, preferred};
use super::schema;

mod creation;
pub(super) mod examples;
pub(super) mod operations;
mod response;
pub(super) mod schemas;
mod shown;

use creation::CreateBody;
use response::ResponseBody;
pub(super) use shown::ShownBody;

pub(super) async fn create(api: Entrance, call: Call) -> Result<TransactionAnswer, Problem> {
    let call = call.allowed(Permission::Transact)?;
    let (ask, body) = call.json_bytes(&api).await?;
    let transaction = new_transaction(&body)?;
    Ok(api.turn().await?.create_transaction(ask, transaction).await?)
}

/// What a body asks to be made.
pub(super) fn new_transaction(body: &[u8]) -> Result<NewTransaction, Problem> {
    object::<CreateBody>(body)?.try_into()
}

pub(super) async fn respond(api: Entrance, call: Call) -> Result<TransactionAnswer, Problem> {
    let mut call = call.allowed(Permission::Transact)?;
    let id = call.transaction_id().await;
    let (ask, body) = call.json::<ResponseBody>(&api).await?;
    let response = body.try_into()?;
    Ok(api.turn().await?.respond(ask, id, response).await?)
}

pub(super) async fn cancel(api: Entrance, call: Call) -> Result<TransactionAnswer, Problem> {
    let mut call = call.allowed(Permission::Transact)?;
    let id = call.transaction_id().await;
    let ask = call.no_json(&api).await?;
    Ok(api.turn().await?.cancel(ask, id).await?)
}

pub(super) async fn get(api: Entrance, call: Call) -> Result<Response, Problem> {
    let mut call = call.allowed_by_any(Permission::READS_CODES)?;
    let id = call.transaction_id().await.ok_or(Problem::NotFound)?;
    let shown = api.turn().await?.transaction_with_codes(&call.caller, id).await?;
    Ok(json_response(StatusCode::OK, Verdict::Found, &ShownBody::of(&shown)))
}

/// What the appliance signed of an approval.
#[derive(Serialize, ToSchema)]
#[schema(as = Attestation)]
pub(super) struct AttestationBody {
    #[schema(schema_with = schema::attestation)]
    pub attestation: String,
}

pub(super) async fn attestation(api: Entrance, call: Call) -> Result<Response, Problem> {
    let mut call = call.allowed(Permission::Transact)?;
    let attestation = attested(shown(&api, &mut call).await?)?;
    Ok(json_response(StatusCode::OK, Verdict::Found, &AttestationBody { attestation }))
}

pub(super) async fn qr(api: Entrance, call: Call) -> Result<Response, Problem> {
    let mut call = call.allowed(Permission::Transact)?;
    let wanted = preferred(call.headers()).ok_or(Problem::NotAcceptable)?;
    let attestation = attested(shown(&api, &mut call).await?)?;
    let text = format!("{}{attestation}", api.qr_url_prefix());
    picture(&api, Zeroizing::new(text), wanted).await
}

async fn shown(api: &Entrance, call: &mut AllowedCall) -> Result<ShownTransaction, Problem> {
    let id = call.transaction_id().await.ok_or(Problem::NotFound)?;
    Ok(api.turn().await?.transaction(&call.caller, id).await?)
}

/// The attestation of what is approved.
fn attested(shown: ShownTransaction) -> Result<String, Problem> {
    shown.attestation.ok_or_else(|| Refused::Ended(shown.view.state).into())
}

/// `GET /v1/transactions?payer=&limit=&after=`
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// Only this payer's.
    payer: Option<AccountRef>,
    /// How many a page.
    #[param(minimum = 1, maximum = 100, default = 50)]
    limit: Option<u16>,
    /// The `next` of the page before.
    #[param(value_type = Option<TransactionId>)]
    after: Option<String>,
}

/// A page, as every list answers.
#[derive(Serialize, ToSchema)]
#[schema(as = TransactionPage)]
struct ListBody {
    /// In the order in which they were made.
    #[schema(max_items = 100)]
    items: Vec<TransactionView>,
    /// `after` of the next page; null on the last one.
    #[schema(required, value_type = Option<TransactionId>)]
    next: Option<String>,
}

pub(super) async fn list(api: Entrance, call: Call) -> Result<Response, Problem> {
    let call = call.allowed(Permission::Transact)?;
    let query: ListQuery = call.query()?;
    let limit = page_limit(query.limit)?;
    let unknown = Problem::Invalid { field: "after", reason: "must be the `next` of an earlier page" };
    let after = query.after.map(|text| TransactionId::parse(&text).ok_or(unknown)).transpose()?;
    let page = Page { after, limit };
    let listed = api.turn().await?.transactions(&call.caller, query.payer.as_ref(), page).await?;
    Ok(json_response(StatusCode::OK, Verdict::Found, &ListBody { items: listed.items, next: listed.next }))
}
