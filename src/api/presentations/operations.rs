//! The routes of presentations as the OpenAPI document says them. Steps are those of seed C's document.

use axum::http::StatusCode;
use serde_json::json;
use utoipa::openapi::path::HttpMethod;

use crate::domain::caller::Permission;
use crate::domain::id::PresentationId;
use crate::domain::presentation::PresentationState;
use crate::domain::transaction::State;
use crate::metrics::Verdict;
use crate::service::presentation_view::PresentationView;
use crate::service::transaction_view::{ChallengeView, TransactionView};

use super::super::credentials::examples::SIGNER_ID;
use super::super::openapi::operation::{Answered, Form, Named, Operation, example, named};
use super::super::qr::Picture;
use super::super::schema::{Schemas, add, reference};
use super::super::transactions::examples::CODE;
use super::{PresentBody, PresentedBody};

const PRESENT: &str = "\
A code for the user of an authorized device to show (S100, S200): 128 bits in 26 characters, for 60 seconds, for one \
claim. The device signs `enc(\"hsm-authd/presentation/v1\", tenant, account, credential, issued_at)`; a signature is good \
once, as `issued_at` has to be later than this credential's last. The code is derived when it is needed and stored nowhere.

A wrong signature charges nothing. 404: there is no such credential. 409: it is suspended or not authorized, or `issued_at` \
is not later than its last. 422: `issued_at` is more than 30 seconds away, the account is not the credential's, or the \
credential is no signer.";

const READ: &str = "\
For the payer's side. Once it is claimed there is the transaction to decide on: what the device signs, what it shows, and \
what became of it.";

const QR: &str = "\
The code as a QR code, while it can be claimed: SVG, or PNG where `Accept` prefers it. 409: it is claimed. 410: its time is \
over.";

/// All that these routes refer to, by name.
pub(in super::super) fn schemas() -> Schemas {
    let mut schemas = Vec::new();
    add::<PresentBody>(&mut schemas);
    add::<PresentedBody<'_>>(&mut schemas);
    add::<PresentationView>(&mut schemas);
    schemas
}

fn id() -> String {
    PresentationId::from_random([0x44; 16]).to_string()
}

fn open() -> PresentationView {
    PresentationView {
        id: id(),
        account: "account-1004".to_owned(),
        credential: SIGNER_ID.to_owned(),
        state: PresentationState::Open,
        expires_at: "2030-01-01T00:01:00Z".to_owned(),
        transaction: None,
        transaction_state: None,
        signing_input: None,
        display: None,
    }
}

fn views(claiming: Option<TransactionView>) -> Vec<Named> {
    let mut views = vec![named("open", "It waits for its claim", &open())];
    views.extend(claiming.map(|transaction| {
        let display = match transaction.challenge {
            ChallengeView::Signature { display, .. } => Some(display),
            _ => None,
        };
        let claimed = PresentationView {
            state: PresentationState::Claimed,
            transaction: Some(transaction.id),
            transaction_state: Some(State::Pending),
            signing_input: Some(transaction.signing_input),
            display,
            ..open()
        };
        named("claimed", "There is something to decide on", &claimed)
    }));
    views
}

/// All routes of presentations.
pub(in super::super) fn operations() -> Vec<Operation> {
    let pictures = [Picture::Svg, Picture::Png].map(Picture::media_type);
    let asked = json!({ "account": "account-1004", "credential": SIGNER_ID, "issued_at": "2030-01-01T00:00:00Z",
        "format": "p1363",
        "signature": "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q" });
    let made = PresentedBody { id: &id(), code: CODE, expires_at: "2030-01-01T00:01:00Z" };
    vec![
        Operation {
            also: &[Verdict::NotFound, Verdict::VerificationFailed],
            ..operation(HttpMethod::Post, "/v1/presentations", "present").said("Present", PRESENT)
        }
        .asks(reference::<PresentBody>(), vec![example("p1363", "A device asks", asked)])
        .answers(
            StatusCode::CREATED,
            reference::<PresentedBody<'_>>(),
            "A code.",
            vec![named("made", "A code to show", &made)],
        ),
        operation(HttpMethod::Get, "/v1/presentations/{id}", "getPresentation")
            .said("Read a presentation", READ)
            .answers(
                StatusCode::OK,
                reference::<PresentationView>(),
                "It.",
                views(super::super::transactions::examples::claiming()),
            ),
        Operation {
            also: &[Verdict::StateConflict, Verdict::Expired, Verdict::NotAcceptable],
            answer: Answered {
                status: StatusCode::OK,
                description: "A picture.",
                form: Form::Picture(pictures.to_vec()),
            },
            ..operation(HttpMethod::Get, "/v1/presentations/{id}/qr", "getPresentationQrCode")
                .said("Read a code as a QR code", QR)
        },
    ]
}

/// A route that asks for `transact`.
fn operation(method: HttpMethod, path: &'static str, id: &'static str) -> Operation {
    Operation::new(method, path, id).permitted(&[Permission::Transact])
}
