//! `GET /v1/import-key`: what seeds are wrapped for.

use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa::openapi::path::HttpMethod;

use crate::domain::signer::PublicKey;
use crate::domain::wrapped_seed::WRAPPED_BYTES;
use crate::metrics::Verdict;

use super::admission::Entrance;
use super::answer::json_response;
use super::call::Call;
use super::openapi::operation::{Operation, named};
use super::problem::Problem;
use super::schema::{Schemas, add, reference};

/// What the document shows: nobody has its private half.
const EXAMPLE: &str = "\
    -----BEGIN PUBLIC KEY-----\n\
    MIIBojANBgkqhkiG9w0BAQEFAAOCAY8AMIIBigKCAYEAtZdBep426sfhbeVe9ZCd\n\
    SKH0yiJYGEn5Xd7R0+BgLfyyeMfCoqS02SnXKwFNNCVGF2NZWP6rth/xh7mhqOSg\n\
    5CtqEqMYZuWy7sTKk9SipJsPCXL2TUycqVljoCMxjOPioc7+gafTT9xAMkLOSeh/\n\
    TyQ0Pxvli8GfIfi59l9wkbowRApjbQ6u1fz51cWRGfSJiIk5NoyZyaJHGUXEHKFu\n\
    pnsig2kEpIwGjn1aicC15bAIMnlnwn1RSDK/SXOgsr/QVWgEWEDkAQCTdmCiqMNL\n\
    NhwusG9eHc/euV/S+I/b31EBstsOoEWYgQh1Buo/RxATseyDo5Zgo6Sdw15/Tue6\n\
    8SQh0NTIezFlGZ8VbfjIDJnN+Hgog+rRePwBmMBSFqnkwjBKL648zguevkiBfqiS\n\
    xgt6fDDtFnQOM39kEUi9A0VJpoVcYPaRck0lDpRkYfesF1CWTQJ32fSPF1nEbaSy\n\
    NgPxcTmAmS+AVmsknUZCpxhLGt/dOKD/QPb8wpNTGy/PAgMBAAE=\n\
    -----END PUBLIC KEY-----\n\
    ";

/// A key, and all that has to be known to encrypt to it.
#[derive(Serialize, ToSchema)]
#[schema(as = ImportKey)]
struct ImportKeyBody {
    /// RSAES-OAEP (RFC 8017, section 7.1), with an empty label.
    #[schema(pattern = "^RSA-OAEP$")]
    algorithm: &'static str,
    /// OAEP's hash.
    #[schema(pattern = "^SHA-1$")]
    hash: &'static str,
    /// OAEP's mask generation function, with its hash.
    #[schema(pattern = "^MGF1 with SHA-1$")]
    mgf: &'static str,
    /// How many bytes are encrypted: the seed, and zero bytes behind it.
    #[schema(minimum = 64, maximum = 64)]
    plaintext_bytes: usize,
    /// The key's RFC 7638 thumbprint: another one after a rotation.
    #[schema(pattern = "^[A-Za-z0-9_-]{43}$")]
    key_id: String,
    /// RSA, 3072 bits, as one `PUBLIC KEY` block.
    #[schema(pattern = "^-----BEGIN PUBLIC KEY-----\n[A-Za-z0-9+/=\n]+-----END PUBLIC KEY-----\n$")]
    public_key_pem: String,
}

impl ImportKeyBody {
    fn of(key: &PublicKey) -> Result<Self, Problem> {
        Ok(Self {
            algorithm: "RSA-OAEP",
            hash: "SHA-1",
            mgf: "MGF1 with SHA-1",
            plaintext_bytes: WRAPPED_BYTES,
            key_id: key.thumbprint(),
            public_key_pem: key.to_pem().map_err(|error| Problem::unavailable(error.reason(), 60))?,
        })
    }
}

pub(super) async fn get(api: Entrance, call: Call) -> Result<Response, Problem> {
    call.any_client();
    let body = ImportKeyBody::of(&api.turn().await?.import_key().await?)?;
    Ok(json_response(StatusCode::OK, Verdict::Found, &body))
}

/// This route as the document says it.
pub(super) fn operations() -> Vec<Operation> {
    let example = PublicKey::from_pem(EXAMPLE).ok().and_then(|key| ImportKeyBody::of(&key).ok());
    vec![
        Operation::new(HttpMethod::Get, "/v1/import-key", "getImportKey")
            .said(
                "The key of wrapped seeds",
                "Whose private half is in the HSM, and does nothing but unwrap. Seeds that are encrypted to it \
                 (`seed_wrapped_base64`) pass the appliance closed. After a rotation it is another one; what was \
                 encrypted to an older one is taken for as long as the HSM has that. Of several tokens each has a key of its \
                 own: this is that of the first which is up.",
            )
            .answers(
                StatusCode::OK,
                reference::<ImportKeyBody>(),
                "The newest one.",
                example.iter().map(|body| named("key", "A key", body)).collect(),
            ),
    ]
}

/// What it refers to, by name.
pub(super) fn schemas() -> Schemas {
    let mut schemas = Vec::new();
    add::<ImportKeyBody>(&mut schemas);
    schemas
}
