//! The routes of transactions and attestations as the OpenAPI document says them. Steps are those of the documents
//! of the methods: S1 to S11 of `challenge_response`, 101 to 107 of `device_signature`, 1 to 4 of `multi_terminal`.

use axum::http::StatusCode;
use utoipa::IntoParams;
use utoipa::openapi::path::{HttpMethod, ParameterIn};
use utoipa::openapi::schema::OneOfBuilder;

use crate::domain::attestation::Claims;
use crate::domain::caller::Permission;
use crate::metrics::Verdict;
use crate::service::transaction_view::TransactionView;

use super::super::answer::ApprovedBody;
use super::super::attestations::{JwkSetBody, VerifyBody};
use super::super::call::NoFields;
use super::super::openapi::operation::{Answered, Asked, Form, Operation};
use super::super::qr::Picture;
use super::super::schema::reference;
use super::creation::CreateBody;
use super::examples::{
    approved, attestations, cancelled, created, creations, entered, keys, pages, read, rejected, responses,
    verified,
};
use super::schemas::{RejectedTransaction, ResponseForms};
use super::{AttestationBody, ListBody, ListQuery};

const CREATE: &str = "\
What is to be approved, and by which credential (S1 and S7; 101). The answer has what to approve it with (102): for an \
OCRA token a `question` that is derived from the digest of all of it, so the code is good for this transaction and for \
no other; for a device that signs, the `signing_input`; for a WebAuthn authenticator the digest as its challenge. Nonce \
and expiry are in it.

Nothing is known beforehand of who approves a `rolling_password` one: it has neither `credential` nor `payer`. \
`challenge_response` takes an `ocra` credential whose `use` is `transaction`; `device_signature` takes that, or a \
`signer`. `multi_terminal` asks all active terminals of the `payer` (1), 2 to 8 that were enrolled long enough ago: each \
has a code of its own, derived from the digest in the HSM and stored nowhere. A client with the permission `deliver` is \
shown the codes and sends them (2); they are the same whenever it reads the transaction, while it is pending. Which \
terminals are asked does not change any more. `rule` says how the codes have to be entered (4): a rule that nobody could \
keep in the time there is, is 422.

`presented_code` takes the string that the payer presented (3), and claims it in the same commit: whose it is \
the answer does not say. 404: there is no such string. 409: it is claimed. 410: its time is over.

With `parent`, an attestation of the tenant\'s that has not expired, it commits to that one (S7). 404: there is \
no such credential. 409: it is suspended. 422 also: texts so long together that the attestation would fit no QR code.";

const LIST: &str =
    "In the order in which they were made. An unknown, repeated or malformed parameter is an error.";

const RESPOND: &str = "\
What the token or the device made (S3; 104). Right: the transaction is `approved`, and the appliance signs an attestation \
of it, in one commit with it (S4, S5; 106). Which form a response has follows from the transaction: a code for an OCRA \
token; a signature of the signing input\'s bytes, or a compact JWS whose payload they are, for a signer; an assertion for a \
WebAuthn authenticator; for terminals all `codes` in the order of the rule, or one `code` after the other (202 until \
the last), or the `target`. Another form is 422, and costs nothing.

A rolling password says itself whose it is (201 to 203), and the answer tells it: `account`, `credential`, and with \
`next` what the terminal makes its next password of (204). One that is nobody's, or of a used up epoch, is 403 and charged \
to nobody, and the transaction keeps its attempts; of those a client has so many a minute, then it is 429.

Codes of terminals are right if all of them are, in the order and at the times that the rule says. Before the last one \
nothing is told; with it one verdict, which never says what was wrong. A failed round is one wrong response: it is charged \
to each of the terminals and once to the account. All `codes` at once are a round of their own and drop one that was begun. \
A window runs from the transaction\'s beginning, an interval from code to code, by the appliance\'s time: if it is \
restarted meanwhile, the transaction is `failed`, and nobody is charged.

Wrong (107): one attempt less. A `device_signature` transaction has as many as are configured (1), any other one 3; \
with the last it is `failed`. A wrong code or password is also charged to its credential and account, and while those \
are locked it is 423. A signature is not.

A `presented_code` transaction asks for a `decision`, signed by the device that presented the code: `approve` signs the \
signing input\'s bytes; `decline` signs `enc(\"hsm-authd/decline/v1\", digest)`, and the transaction is `rejected` (4). \
The signature of the one is a wrong signature of the other. It has 3 attempts; nothing else is charged.

409: the transaction has ended otherwise, or its credential is suspended or deleted. 410: its time is over.";

const CANCEL: &str = "\
A pending transaction is taken back: nothing can approve it any more. 409: it has ended. 410: its time is over.";

const QR: &str = "\
The attestation of an approved transaction as a QR code (S5, S11), behind the configured prefix: a picture that anybody \
can verify with the keys of `/v1/jwks` and without asking (S6). SVG, or PNG where `Accept` prefers it. 409: it is not \
approved. 410: its time was over first.";

const VERIFY: &str = "\
Whether an attestation is one of this appliance\'s and has not expired, and what it says. Nothing changes, so no \
`Idempotency-Key` is looked at. 403: it is none, or was changed, or has expired; nothing is counted.";

/// All routes of transactions and attestations.
pub(in super::super) fn operations() -> Vec<Operation> {
    let pictures = [Picture::Svg, Picture::Png].map(Picture::media_type);
    vec![
        Operation {
            also: &[Verdict::NotFound, Verdict::Expired],
            ..operation(HttpMethod::Post, "/v1/transactions", "createTransaction").said("Create", CREATE)
        }
        .asks(reference::<CreateBody>(), creations())
        .answers(StatusCode::CREATED, reference::<TransactionView>(), "It waits for its response.", created()),
        Operation {
            query: ListQuery::into_params(|| Some(ParameterIn::Query)),
            ..operation(HttpMethod::Get, "/v1/transactions", "listTransactions").said("List", LIST)
        }
        .answers(StatusCode::OK, reference::<ListBody>(), "A page.", pages()),
        operation(HttpMethod::Get, "/v1/transactions/{id}", "getTransaction")
            .permitted(Permission::READS_CODES)
            .said("Read", "One that has ended is there for as long as is configured, 90 days by default.")
            .answers(StatusCode::OK, reference::<TransactionView>(), "It.", read()),
        Operation {
            guesses: true,
            also: &[Verdict::Expired, Verdict::RateLimited],
            ..operation(HttpMethod::Post, "/v1/transactions/{id}/responses", "respond").said("Respond", RESPOND)
        }
        .asks(reference::<ResponseForms>(), responses())
        .answers(
            StatusCode::OK,
            OneOfBuilder::new()
                .item(reference::<ApprovedBody<'_>>())
                .item(reference::<RejectedTransaction>())
                .into(),
            "It is approved, durably, and this is the attestation; or it is rejected, as its user decided.",
            [approved(), rejected()].concat(),
        )
        .answers_at_first(
            reference::<TransactionView>(),
            "A code of several was entered; what it is worth is told with the last one.",
            entered(),
        ),
        Operation {
            asked: Asked::NoFields(reference::<NoFields>()),
            also: &[Verdict::Expired],
            ..operation(HttpMethod::Post, "/v1/transactions/{id}/cancel", "cancelTransaction")
                .said("Cancel", CANCEL)
        }
        .answers(StatusCode::OK, reference::<TransactionView>(), "It is cancelled.", cancelled()),
        Operation {
            also: &[Verdict::StateConflict, Verdict::Expired],
            ..operation(HttpMethod::Get, "/v1/transactions/{id}/attestation", "getAttestation").said(
                "Read the attestation",
                "The one of its approval, always the same bytes. 409: it is not approved. 410: its time was over \
                 first.",
            )
        }
        .answers(StatusCode::OK, reference::<AttestationBody>(), "It.", attestations()),
        Operation {
            also: &[Verdict::StateConflict, Verdict::Expired, Verdict::NotAcceptable],
            answer: Answered {
                status: StatusCode::OK,
                description: "A picture.",
                form: Form::Picture(pictures.to_vec()),
            },
            ..operation(HttpMethod::Get, "/v1/transactions/{id}/qr", "getQrCode").said("Read as a QR code", QR)
        },
        Operation {
            also: &[Verdict::VerificationFailed],
            ..Operation::new(HttpMethod::Post, "/v1/attestations/verify", "verifyAttestation")
                .said("Verify an attestation", VERIFY)
        }
        .asks(reference::<VerifyBody>(), attestations())
        .answers(StatusCode::OK, reference::<Claims>(), "It holds.", verified()),
        Operation::new(HttpMethod::Get, "/v1/jwks", "getKeys")
            .said(
                "The keys of attestations",
                "Every key that attestations were ever signed with, the newest first, for those who verify without \
                 asking.",
            )
            .answers(StatusCode::OK, reference::<JwkSetBody>(), "A JWK Set.", keys()),
    ]
}

/// A route that asks for `transact`.
fn operation(method: HttpMethod, path: &'static str, id: &'static str) -> Operation {
    Operation::new(method, path, id).permitted(&[Permission::Transact])
}
