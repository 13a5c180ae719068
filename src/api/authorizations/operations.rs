//! The routes of authorizations as the OpenAPI document says them. Steps are those of seed C's document.

use axum::http::StatusCode;
use serde_json::json;
use utoipa::openapi::path::HttpMethod;

use crate::domain::caller::Permission;
use crate::domain::otp::Otp;
use crate::metrics::Verdict;
use crate::service::authorization_view::{AuthorizationView, MeansName};
use crate::service::authorizations::AuthorizationCodes;
use crate::service::credential_view::CredentialView;

use super::super::credentials::examples::{SIGNER_ID, TERMINAL_ID, authorized};
use super::super::openapi::operation::{Named, Operation, example, named};
use super::super::schema::{Schemas, add, reference};
use super::{AuthorizationBody, BeginBody, CompleteBody, UplinkBody, begun};

const BEGIN: &str = "\
Whether this device may speak for the account (S100): of a `signer` that was enrolled with `\"authorization\": \
\"required\"`. By `sms` two codes are made: the downlink code goes to the terminal, and the uplink code is shown on the \
device, for the user to send from the terminal. They are in the answer for a client with `deliver`, and for nobody else. \
By `password` the bank says what it has checked. Either way the device signs, within 5 minutes; 3 wrong attempts end it.

A new one takes the place of the one before, whose codes are good for nothing from then on. 409: the credential does not \
wait for it. 422: the terminal is no active terminal of the same account, or was enrolled too short a time ago. 423: the \
device or its account is locked (by `sms`).";

const READ: &str = "\
With the same codes, for a client with `deliver`. 404: none was begun. 409: the credential does not wait for one, or its \
terminal is suspended or deleted. 410: its time or its attempts are used up.";

const UPLINK: &str = "\
The message that came from the user's terminal. Right is one with the uplink code from the terminal's address, byte for \
byte; a right one may be reported again. Which of the two is wrong is not said. Wrong: one attempt less, and one failure \
of the device's credential and of its account, which lock as codes do.

404: none was begun. 409: it is not by SMS, the credential does not wait for it, or its terminal is suspended or deleted. \
410: its time or its attempts are used up.";

const COMPLETE: &str = "\
The device is active from then on (S200). By `sms` it takes the downlink code and the device's signature, both right, and \
the message from the terminal has to have come: which of them is wrong is not said. By `password` it takes the signature. \
What is signed is `enc(\"hsm-authd/authorization/v1\", tenant, account, credential, terminal, nonce, expires_at)`, the \
terminal empty by `password`; a WebAuthn authenticator's challenge is the SHA-256 of that.

Wrong: one attempt less; by `sms` also one failure of the credential and of its account, as the code may have been guessed.

404: none was begun. 409: the message from the terminal has not come, the credential does not wait for it, or the terminal \
is suspended or deleted. 410: its time or its attempts are used up.";

/// All that these routes refer to, by name.
pub(in super::super) fn schemas() -> Schemas {
    let mut schemas = Vec::new();
    add::<BeginBody>(&mut schemas);
    add::<UplinkBody>(&mut schemas);
    add::<CompleteBody>(&mut schemas);
    add::<AuthorizationBody<'_>>(&mut schemas);
    schemas
}

fn shown() -> Vec<Named> {
    let codes = ["415926", "535897"].map(|code| Otp::parse(code.to_owned()));
    let codes = match codes {
        [Some(downlink), Some(uplink)] => Some(AuthorizationCodes { downlink, uplink }),
        _ => None,
    };
    let (sms, password) = (begun(MeansName::Sms), begun(MeansName::Password));
    vec![
        named("sms", "By SMS, for a client that delivers", &AuthorizationBody::new(&sms, codes.as_ref())),
        named("sms-without-codes", "The same for any other", &AuthorizationBody::new(&sms, None)),
        named("password", "By password", &AuthorizationBody::new(&password, None)),
    ]
}

/// All routes of authorizations.
pub(in super::super) fn operations() -> Vec<Operation> {
    const PATH: &str = "/v1/credentials/{id}/authorization";
    let seen = AuthorizationView { uplink_seen: true, ..begun(MeansName::Sms) };
    let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    vec![
        Operation {
            also: &[Verdict::Locked],
            ..operation(HttpMethod::Post, PATH, "beginAuthorization").said("Begin an authorization", BEGIN)
        }
        .asks(
            reference::<BeginBody>(),
            vec![
                example("sms", "By SMS", json!({ "method": "sms", "terminal": TERMINAL_ID })),
                example(
                    "password",
                    "By a password that the bank has checked",
                    json!({ "method": "password", "evidence": "login-2030-01-01-0042" }),
                ),
            ],
        )
        .answers(StatusCode::CREATED, reference::<AuthorizationBody<'_>>(), "Begun.", shown()),
        Operation {
            also: &[Verdict::StateConflict, Verdict::Expired],
            ..operation(HttpMethod::Get, PATH, "getAuthorization")
                .permitted(Permission::READS_CODES)
                .said("Read an authorization", READ)
        }
        .answers(StatusCode::OK, reference::<AuthorizationBody<'_>>(), "It.", shown()),
        Operation {
            guesses: true,
            also: &[Verdict::Expired],
            ..Operation::new(HttpMethod::Post, "/v1/credentials/{id}/authorization/uplink", "reportUplink")
                .permitted(&[Permission::Deliver])
                .said("Report the message from the terminal", UPLINK)
        }
        .asks(
            reference::<UplinkBody>(),
            vec![example("uplink", "A message", json!({ "code": "535897", "from": "+4915112345678" }))],
        )
        .answers(
            StatusCode::OK,
            reference::<AuthorizationView>(),
            "It has come.",
            vec![named("seen", "Right", &seen)],
        ),
        Operation {
            guesses: true,
            also: &[Verdict::Expired],
            ..operation(
                HttpMethod::Post,
                "/v1/credentials/{id}/authorization/complete",
                "completeAuthorization",
            )
            .said("Complete an authorization", COMPLETE)
        }
        .asks(
            reference::<CompleteBody>(),
            vec![
                example(
                    "sms",
                    "The code that the terminal received, and the device's signature",
                    json!({ "downlink_code": "415926", "format": "p1363", "signature": signature }),
                ),
                example(
                    "password",
                    "The signature alone",
                    json!({ "format": "p1363", "signature": signature }),
                ),
            ],
        )
        .answers(
            StatusCode::OK,
            reference::<CredentialView>(),
            "The device is active.",
            vec![named("active", &format!("{SIGNER_ID} speaks for its account"), &authorized())],
        ),
    ]
}

/// A route that asks for `transact`.
fn operation(method: HttpMethod, path: &'static str, id: &'static str) -> Operation {
    Operation::new(method, path, id).permitted(&[Permission::Transact])
}
