//! A request on its way to a use case: first its permission, then its id, query and body.

use std::error::Error;
use std::sync::Arc;

use axum::RequestPartsExt;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::request::Parts;
use http_body_util::{BodyExt, Limited};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::config::TenantScope;
use crate::domain::caller::{Caller, Permission};
use crate::domain::id::{CredentialId, PresentationId, TransactionId};
use crate::domain::idempotency::IdempotencyKey;
use crate::secret::SecretBytes;
use crate::service::{Ask, Idempotency};
use crate::tls::Client;

use super::problem::Problem;
use super::{Api, Peer, RequestId};

/// The largest body, in bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
const PAGE_DEFAULT: u16 = 50;
const PAGE_MAX: u16 = 100;
/// What a code looks like.
pub(super) const OTP_FORM: &str = "must be 6 to 10 digits";

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or(Self(None)))
    }
}

/// A request of a known client. [`Call::allowed`] is the only way on, and [`Call::auditing`] to the log;
/// [`Call::any_client`] says that there is nothing to go on to.
pub(super) struct Call {
    parts: Parts,
    body: Body,
    client: Arc<Client>,
    request_id: RequestId,
}

/// A request whose client has the permission.
pub(super) struct AllowedCall {
    parts: Parts,
    body: Body,
    /// Who asks, and for which tenant.
    pub caller: Caller,
    request_id: RequestId,
}

/// A request whose client may read the log. It has no body.
pub(super) struct AuditCall {
    parts: Parts,
    /// Whose entries it sees.
    pub scope: TenantScope,
}

impl<S: Sync> FromRequest<S> for Call {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let client = parts.extensions.get::<Arc<Client>>().cloned().ok_or(Problem::Unauthenticated)?;
        let request_id = parts.extensions.get::<RequestId>().cloned().ok_or(Problem::Unauthenticated)?;
        Ok(Self { parts, body, client, request_id })
    }
}

impl Call {
    /// The choke point: no caller without its permission, and none without one tenant.
    pub fn allowed(self, permission: Permission) -> Result<AllowedCall, Problem> {
        self.allowed_by_any(&[permission])
    }

    /// The same where one of several permissions will do.
    pub fn allowed_by_any(self, permissions: &[Permission]) -> Result<AllowedCall, Problem> {
        let TenantScope::One(tenant) = &self.client.scope else { return Err(Problem::Forbidden) };
        if !permissions.iter().any(|permission| self.client.permissions.contains(permission)) {
            return Err(Problem::Forbidden);
        }
        let has = |permission| self.client.permissions.contains(&permission);
        let caller = Caller {
            client: self.client.name.clone(),
            tenant: tenant.clone(),
            delivers: has(Permission::Deliver),
            enrolls: has(Permission::Enroll),
            administers: has(Permission::Admin),
        };
        Ok(AllowedCall { parts: self.parts, body: self.body, caller, request_id: self.request_id })
    }

    /// The choke point of the log: no client without `audit`, and one of a tenant sees that tenant's entries alone.
    pub fn auditing(self) -> Result<AuditCall, Problem> {
        match self.client.permissions.contains(&Permission::Audit) {
            true => Ok(AuditCall { parts: self.parts, scope: self.client.scope.clone() }),
            false => Err(Problem::Forbidden),
        }
    }

    /// For what is no tenant's: every configured client may, whatever its permissions and its tenant.
    pub fn any_client(self) {}

    /// The same with a JSON body. Nothing changes by it, so there is no answer to remember.
    pub async fn any_client_json<T: DeserializeOwned>(self, api: &Api) -> Result<T, Problem> {
        is_json(&self.parts)?;
        object(&body_of(&self.parts, self.body, api).await?)
    }
}

impl AllowedCall {
    /// The credential that the path names. A malformed id is one that does not exist, and is to be found
    /// missing only when that one would be: after the body, and after the answers that are remembered.
    pub async fn credential_id(&mut self) -> Option<CredentialId> {
        self.id().await.and_then(|text| CredentialId::parse(&text))
    }

    /// The transaction that the path names; likewise.
    pub async fn transaction_id(&mut self) -> Option<TransactionId> {
        self.id().await.and_then(|text| TransactionId::parse(&text))
    }

    /// The presentation that the path names; likewise.
    pub async fn presentation_id(&mut self) -> Option<PresentationId> {
        self.id().await.and_then(|text| PresentationId::parse(&text))
    }

    async fn id(&mut self) -> Option<String> {
        let Path(text) = self.parts.extract::<Path<String>>().await.ok()?;
        Some(text)
    }

    /// Its headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// The query, strictly.
    pub fn query<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        query(&self.parts)
    }

    /// The body as JSON, and the request as its use case sees it.
    pub async fn json<T: DeserializeOwned>(self, api: &Api) -> Result<(Ask, T), Problem> {
        let (ask, body) = self.json_bytes(api).await?;
        Ok((ask, object(&body)?))
    }

    /// A body that is said to be JSON, for the caller to parse.
    pub async fn json_bytes(self, api: &Api) -> Result<(Ask, Bytes), Problem> {
        is_json(&self.parts)?;
        self.read(api).await
    }

    /// A request that says everything by its path: its body is empty or `{}`.
    pub async fn no_json(self, api: &Api) -> Result<Ask, Problem> {
        let is_json = is_json(&self.parts);
        let (ask, body) = self.read(api).await?;
        if !body.is_empty() {
            is_json?;
            let NoFields {} = object(&body)?;
        }
        Ok(ask)
    }

    async fn read(self, api: &Api) -> Result<(Ask, Bytes), Problem> {
        let key = idempotency_key(&self.parts)?;
        let body = body_of(&self.parts, self.body, api).await?;
        let idempotency =
            key.map(|key| Idempotency { key, request: identity(&self.caller, &self.parts, &body) });
        Ok((Ask { caller: self.caller, request_id: self.request_id.0, idempotency }, body))
    }
}

impl AuditCall {
    /// The query, strictly.
    pub fn query<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        query(&self.parts)
    }
}

fn query<T: DeserializeOwned>(parts: &Parts) -> Result<T, Problem> {
    let Query(query) = Query::try_from_uri(&parts.uri).map_err(|_| Problem::Invalid {
        field: "",
        reason: "an unknown, repeated or malformed query parameter",
    })?;
    Ok(query)
}

/// A field of `null` is a mistake: leaving it out says that there is none.
pub(super) fn not_null<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// How many items a page has, as the query asks for it.
pub(super) fn page_limit(asked: Option<u16>) -> Result<u16, Problem> {
    let limit = asked.unwrap_or(PAGE_DEFAULT);
    if (1..=PAGE_MAX).contains(&limit) {
        Ok(limit)
    } else {
        Err(Problem::Invalid { field: "limit", reason: "must be 1 to 100" })
    }
}

/// Whether the body is said to be JSON.
fn is_json(parts: &Parts) -> Result<(), Problem> {
    let content_type = parts.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = content_type.and_then(|value| value.split(';').next()).map(str::trim);
    match media_type {
        Some(value) if value.eq_ignore_ascii_case("application/json") => Ok(()),
        _ => Err(Problem::UnsupportedMediaType),
    }
}

async fn body_of(parts: &Parts, body: Body, api: &Api) -> Result<Bytes, Problem> {
    let announced = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if announced.and_then(|length| length.parse().ok()).is_some_and(|length: usize| length > BODY_BYTES_MAX) {
        return Err(Problem::TooLarge);
    }
    let whole = async {
        let (mut body, mut whole) = (Limited::new(body, BODY_BYTES_MAX), Vec::new());
        while let Some(frame) = body.frame().await {
            // Copied: a frame is a part of the connection's buffer, and keeps all of it. One of a byte keeps 8 KiB.
            if let Ok(bytes) = frame?.into_data() {
                whole.extend_from_slice(&bytes);
            }
        }
        Ok::<_, Box<dyn Error + Send + Sync>>(whole)
    };
    match timeout(api.body_timeout, whole).await {
        Ok(Ok(whole)) => Ok(whole.into()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(Problem::TooLarge),
        Ok(Err(_)) => Err(Problem::Malformed("the body did not arrive whole")),
        Err(_) => Err(Problem::Malformed("the body did not arrive in time")),
    }
}

/// The fields that a caller may be told to mend by name.
pub(super) const FIELDS: [&str; 64] = [
    "type",
    "account",
    "algorithm",
    "digits",
    "counter",
    "look_ahead",
    "period",
    "skew_steps",
    "seed_hex",
    "seed_base32",
    "seed_wrapped_base64",
    "export",
    "otp",
    "otps",
    "suite",
    "use",
    "pin",
    "public_key_pem",
    "jwk",
    "challenge",
    "session",
    "payload_base64",
    "signature_base64",
    "format",
    "certificate_chain_pem",
    "webauthn",
    "credential_id",
    "rp_id",
    "origins",
    "method",
    "credential",
    "payer",
    "payee",
    "amount",
    "currency",
    "order",
    "platform",
    "remark",
    "parent",
    "expires_in",
    "signature",
    "authenticator_data",
    "client_data_json",
    "attestation",
    "rule",
    "window_seconds",
    "interval_seconds",
    "tolerance_seconds",
    "presentation",
    "codes",
    "code",
    "target",
    "address",
    "password",
    "identity_key_hex",
    "evidence",
    "epoch",
    "proof_hex",
    "authorization",
    "terminal",
    "from",
    "downlink_code",
    "issued_at",
    "decision",
];
/// What is not to be sent here at all, whatever the request (seed B, step 301). Where a name is a field's own, such as
/// the `pin` of an OCRA token, it is that.
const REFUSED: [(&[&str], &str); 2] = [
    (
        &[
            "pan",
            "card_number",
            "card_no",
            "primary_account_number",
            "cvv",
            "cvv2",
            "cvc",
            "cvc2",
            "csc",
            "expiry",
            "expiry_date",
            "card_expiry",
            "pin",
            "card_pin",
            "pin_block",
            "track1",
            "track2",
            "id_number",
            "identity_number",
            "national_id",
            "ssn",
            "passport_number",
        ],
        "card data, PINs and identity numbers do not belong here: check them and pass a reference as evidence",
    ),
    (&["identity_code"], "the identity code stays on the terminal: send the identity key"),
];
/// Of each field with a fixed choice of values the first one, as serde lists them.
pub(super) const CHOICES: [(&str, &str); 11] = [
    ("hotp", "type"),
    ("SHA1", "algorithm"),
    ("ES256", "algorithm"),
    ("otpauth", "export"),
    ("transaction", "use"),
    ("der", "format"),
    ("challenge_response", "method"),
    ("preset_order", "rule"),
    ("required", "authorization"),
    ("sms", "method"),
    ("approve", "decision"),
];
/// Why a value is refused, as its type says it.
const REASONS: [(&str, &str); 5] = [
    ("digits", crate::domain::otp::HOTP_DIGITS_RULE),
    ("account", crate::domain::account::ACCOUNT_RULE),
    ("address", crate::domain::multi_terminal::ADDRESS_RULE),
    ("suite", crate::domain::ocra::SUITE_RULE),
    ("amount", crate::domain::money::MoneyError::AMOUNT_RULE),
];

/// What says everything by its path has no fields.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NoFields {}

/// A body as the object that it has to be.
pub(super) fn object<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    match serde_json::from_slice(body) {
        // Serde takes an array as well, and its elements for the fields in their order.
        Ok(parsed) if body.trim_ascii_start().starts_with(b"{") => Ok(parsed),
        Ok(_) => Err(Problem::Invalid { field: "", reason: "the body must be an object" }),
        Err(error) if is_syntax(body) => Err(misfit(&error.to_string())),
        Err(_) => Err(Problem::Malformed("the body is no JSON")),
    }
}

/// What does not fit, in words of our own: serde's may repeat what was sent.
fn misfit(words: &str) -> Problem {
    let quoted = words.split('`').nth(1).unwrap_or_default();
    let field = FIELDS.into_iter().find(|field| *field == quoted).unwrap_or_default();
    let (field, reason) = match words {
        _ if words.starts_with("missing field") => (field, "must be there"),
        _ if words.starts_with("duplicate field") => (field, "must be there once"),
        _ if words.starts_with("unknown field") => {
            refused_name(quoted).unwrap_or(("", "there is a field that this request does not have"))
        }
        _ if words.starts_with("unknown variant") => {
            let allowed = words.rsplit_once("expected ").map_or("", |(_, allowed)| allowed);
            let first = allowed.split('`').nth(1).unwrap_or_default();
            let choice = CHOICES.into_iter().find(|(value, _)| *value == first);
            (choice.map_or("", |(_, field)| field), "is none of the values allowed")
        }
        _ => REASONS
            .into_iter()
            .find(|(_, rule)| words.starts_with(rule))
            .unwrap_or(("", "a field has the wrong type, or a number is out of range")),
    };
    Problem::Invalid { field, reason }
}

/// The name on our list that this one is, however it is written, and why it is there.
fn refused_name(name: &str) -> Option<(&'static str, &'static str)> {
    let letters = |name: &str| name.replace(['_', '-'], "").to_ascii_lowercase();
    let name = letters(name);
    REFUSED.into_iter().find_map(|(names, reason)| {
        names.iter().find(|known| letters(known) == name).map(|known| (*known, reason))
    })
}

fn is_syntax(body: &[u8]) -> bool {
    std::str::from_utf8(body).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok())
}

fn idempotency_key(parts: &Parts) -> Result<Option<IdempotencyKey>, Problem> {
    let mut values = parts.headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else { return Ok(None) };
    let key = value.to_str().ok().and_then(IdempotencyKey::parse).filter(|_| values.next().is_none());
    key.map(Some).ok_or(Problem::Invalid {
        field: "Idempotency-Key",
        reason: "must be there once, with 1 to 255 visible ASCII characters",
    })
}

/// Tenant, method, path and body, each with its length before it, so that no two requests look the same; as
/// one SHA-256, so that a body of any size fits a message. It is kept only as an HMAC under a system key.
fn identity(caller: &Caller, parts: &Parts, body: &[u8]) -> SecretBytes {
    let path = parts.uri.path_and_query().map_or("", |path| path.as_str());
    let pieces = [caller.tenant.as_str().as_bytes(), parts.method.as_str().as_bytes(), path.as_bytes(), body];
    let mut hash = Sha256::new();
    for piece in pieces {
        hash.update((piece.len() as u64).to_be_bytes());
        hash.update(piece);
    }
    SecretBytes::new(hash.finalize().to_vec())
}
