//! The routes of `/v1/credentials` as the OpenAPI document says them.

use axum::http::StatusCode;
use utoipa::IntoParams;
use utoipa::openapi::path::{HttpMethod, ParameterIn};

use crate::domain::caller::Permission;
use crate::domain::credential::Status;
use crate::service::credential_view::CredentialView;
use crate::service::management::Action;

use super::super::answer::{DeletedBody, EnrolledBody, ResyncedBody, VerifiedBody};
use super::super::call::NoFields;
use super::super::openapi::operation::{Asked, Operation, named};
use super::super::schema::reference;
use super::enrolment::EnrolBody;
use super::evidence::ResyncBody;
use super::examples::{
    HOTP_ID, activated, activations, enrolled, enrolments, hotp, resyncs, rolling, rotated, rotations,
    verifications, views,
};
use super::rolling::{ActivateBody, ActivatedBody, RotatedBody, RotationBody};
use super::schemas::VerifyForms;
use super::{ListBody, ListQuery};

const ENROL: &str = "\
With one of the three seed fields the seed is imported; with several it is an error; with none the HSM generates it, and \
nobody ever sees it. A seed that is imported in the clear, or exported, passes the front's memory once. One that is \
encrypted to the key of `/v1/import-key` (`seed_wrapped_base64`) passes it closed, and is opened in the HSM. Of one that \
cannot be opened, or is not 64 bytes, it is never said which. A configuration may take no seed in the clear: 422.

409: those very bytes of `seed_wrapped_base64` were taken before in this tenant.

An `ocra` credential's fields have to fit its suite: one for an input that the suite does not have (`counter`, \
`look_ahead`, `skew_steps`, `pin`) is 422. Its `use` is for its life: with `transaction`, `/verify` is 409 whatever \
the code is.

A `signer` has a public key instead, checked before it is kept: on its curve, or of a size and exponent that are safe. \
It comes alone (PEM or JWK), in a certificate with the chain to a configured trust anchor, or as a WebAuthn registration \
told it. A chain that is not trusted now is 422; what trusts it may be configured by the operator alone.

A `rolling` credential is `pending` until its terminal is bound by `/activate`. Its secret is the HSM's.

A `terminal` is where a user receives codes. The appliance sends nothing: a client with the permission `deliver` does. \
A new terminal is asked for no code until it has been there for as long as is configured, a day by default.";

const LIST: &str = "\
In the order of their enrolment, without deleted ones. An unknown, repeated or malformed parameter is an error.";

const VERIFY: &str = "\
A code of a `hotp` or `totp` credential, a code that answers a question of an `ocra` credential with `use` `verify`, \
or a signature of a `signer`.

A code is accepted at most once, ever. With it all earlier counters or time steps are used up. Of an `ocra` token \
without a counter each answered question (with its session and time step) is used up instead. HOTP tries the expected \
counter and `look_ahead` more; TOTP the present step, corrected by the drift, and `skew_steps` on either side.

A wrong code is charged to the credential and to its account. The code accepted last, submitted again, is refused and \
not charged; a code of the wrong length is 422 and not charged. What another type of credential would need is 422.

A signature is neither used up nor charged, and no lock stops it: who must not act twice puts something into the \
payload that happens once, and remembers it.

409: the credential is suspended, or answers transactions' questions only, or is a `terminal`.";

const RESYNC: &str = "\
Finds a token that ran away, by two consecutive codes. With a counter it is looked for among 1000, from the expected \
one on; a TOTP token 120 steps to either side of the present step, and the difference is kept as `drift_steps`. \
Counters and steps that are used up are never accepted. A success uses both codes up. A failure is charged like one \
wrong code; the two codes used last, submitted again, are refused and not charged.

Both codes of an `ocra` token answer the same question; its `use` does not matter here.

409: the credential is suspended, or there is nothing to find (`signer`, `terminal`, `rolling`; `ocra` without a counter).";

const ACTIVATE: &str = "\
Binds a pending `rolling` credential to its terminal (seed B, step 301): after the bank has checked who that is. The \
terminal makes the identity key of the identity code and the credential's `salt`, and is told the first temporary code.

Of one that is bound already, as long as the first temporary code is neither acknowledged nor used: with the same key \
the answer again, with another one 403, charged to the credential and its account. From then on, and while it is \
suspended: 409.";

const ROTATE: &str = "\
The second phase of a rotation (105, 106): the proof is the HMAC-SHA-256 of `enc(\"hsm-authd/rolling/rotate/v1\")` under \
the temporary code of `epoch`. With the consumed epoch, the one before the open one, the open epoch's temporary code is \
handed out again, for a terminal that missed an answer; with the open one it is acknowledged, and handed out no more. \
Both may be repeated.

A wrong proof is charged to the credential and its account. 409: any other epoch; the consumed one, after the open one was \
acknowledged; the credential is not active, or not `rolling`.";

const REBIND: &str = "\
Its terminal is lost, or has lost its temporary code: a new secret and a new `salt`, and `/activate` again. What the \
terminal had is worth nothing from here on. Failures stay. 409: it is suspended and can be resumed, or not `rolling`.";

const RESUME: &str = "\
It verifies again. What `/suspend` suspended takes `enroll`, what a recovery of the database suspended takes `admin`. \
409: it is not suspended, or not `resumable`.";

/// All routes of this folder.
pub(in super::super) fn operations() -> Vec<Operation> {
    let (id, account) = (|| HOTP_ID.to_owned(), || "account-1001".to_owned());
    let changed = |status| CredentialView { state: status, ..hotp() };
    vec![
        operation(HttpMethod::Post, "/v1/credentials", "enrolCredential", "Enrol", ENROL)
            .asks(reference::<EnrolBody>(), enrolments())
            .answers(StatusCode::CREATED, reference::<EnrolledBody<'_>>(), "Enrolled.", enrolled()),
        Operation {
            query: ListQuery::into_params(|| Some(ParameterIn::Query)),
            ..operation(HttpMethod::Get, "/v1/credentials", "listCredentials", "List", LIST)
        }
        .answers(
            StatusCode::OK,
            reference::<ListBody>(),
            "A page.",
            vec![
                named("page", "A page, and there are more", &ListBody { items: vec![hotp()], next: Some(id()) }),
                named("none", "There is none", &ListBody { items: vec![], next: None }),
            ],
        ),
        operation(HttpMethod::Get, "/v1/credentials/{id}", "getCredential", "Read", "A deleted one is not there.")
            .answers(StatusCode::OK, reference::<CredentialView>(), "It.", views()),
        change(HttpMethod::Delete, "/v1/credentials/{id}", "deleteCredential", Action::Delete)
            .said(
                "Delete",
                "The wrapped secret, the PIN's hash or the public key is removed. The id stays taken, and answers 404. \
                 The failures stay with the account: a deletion gives no guesses back.",
            )
            .answers(
                StatusCode::OK,
                reference::<DeletedBody>(),
                "Deleted.",
                vec![named("deleted", "Deleted", &DeletedBody { id: id(), state: Status::Deleted })],
            ),
        Operation {
            guesses: true,
            ..operation(HttpMethod::Post, "/v1/credentials/{id}/verify", "verify", "Verify", VERIFY)
                .permitted(&[Permission::Verify])
        }
        .asks(reference::<VerifyForms>(), verifications())
        .answers(
            StatusCode::OK,
            reference::<VerifiedBody>(),
            "It is right, and a code is used up by it, durably.",
            vec![named("verified", "Right", &VerifiedBody { account: account(), id: id(), verified: true })],
        ),
        Operation {
            guesses: true,
            ..operation(HttpMethod::Post, "/v1/credentials/{id}/resync", "resync", "Resync", RESYNC)
        }
        .asks(reference::<ResyncBody>(), resyncs())
        .answers(
            StatusCode::OK,
            reference::<ResyncedBody>(),
            "The token is found, and both codes are used up, durably.",
            vec![named("resynced", "Found", &ResyncedBody { account: account(), id: id(), resynced: true })],
        ),
        Operation {
            guesses: true,
            ..operation(
                HttpMethod::Post,
                "/v1/credentials/{id}/activate",
                "activate",
                "Bind to a terminal",
                ACTIVATE,
            )
        }
        .asks(reference::<ActivateBody>(), activations())
        .answers(
            StatusCode::OK,
            reference::<ActivatedBody<'_>>(),
            "It is active, durably, and this is its terminal's first temporary code.",
            activated(),
        ),
        Operation {
            guesses: true,
            ..operation(HttpMethod::Post, "/v1/credentials/{id}/rotation", "rotate", "Rotate", ROTATE)
                .permitted(&[Permission::Transact])
        }
        .asks(reference::<RotationBody>(), rotations())
        .answers(
            StatusCode::OK,
            reference::<RotatedBody<'_>>(),
            "The temporary code again; or it is acknowledged, durably.",
            rotated(),
        ),
        Operation {
            asked: Asked::NoFields(reference::<NoFields>()),
            ..operation(HttpMethod::Post, "/v1/credentials/{id}/rebind", "rebind", "Bind anew", REBIND)
        }
        .changes("It waits for its activation.", rolling(None)),
        change(HttpMethod::Post, "/v1/credentials/{id}/suspend", "suspend", Action::Suspend)
            .said("Suspend", "It verifies nothing until it is resumed. 409: it is suspended.")
            .changes("It is suspended.", changed(Status::Suspended)),
        change(HttpMethod::Post, "/v1/credentials/{id}/resume", "resume", Action::Resume)
            .said("Resume", RESUME)
            .changes("It is active.", hotp()),
        change(HttpMethod::Post, "/v1/credentials/{id}/unlock", "unlock", Action::Unlock)
            .said(
                "Unlock",
                "Clears the failures and the lock of the credential and of its account. It is 200 also where nothing \
                 was locked.",
            )
            .changes("Nothing is locked.", hotp()),
    ]
}

/// A route that asks for `enroll`, as most do.
fn operation(
    method: HttpMethod,
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    description: &'static str,
) -> Operation {
    Operation::new(method, path, id).permitted(&[Permission::Enroll]).said(summary, description)
}

/// A route that says everything by its path.
fn change(method: HttpMethod, path: &'static str, id: &'static str, action: Action) -> Operation {
    let asked = Asked::NoFields(reference::<NoFields>());
    Operation { asked, ..Operation::new(method, path, id).permitted(action.permissions()) }
}

impl Operation {
    fn changes(self, description: &'static str, view: CredentialView) -> Self {
        let examples = vec![named("credential", "As it is now", &view)];
        self.answers(StatusCode::OK, reference::<CredentialView>(), description, examples)
    }
}
