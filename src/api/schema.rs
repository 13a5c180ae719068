//! What the domain's types look like in JSON, for the OpenAPI document; `domain` itself knows of no such thing.

use serde::Serialize;
use serde_json::{Value, json};
use utoipa::openapi::schema::{ArrayBuilder, Object, ObjectBuilder, OneOfBuilder, Schema, Type};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::domain::account::AccountRef;
use crate::domain::attestation::Claims;
use crate::domain::attestation::claims::{ParentLink, TermsText};
use crate::domain::caller::Tenant;
use crate::domain::credential::{OcraUse, Status};
use crate::domain::id::{CredentialId, PresentationId, TransactionId};
use crate::domain::multi_terminal::{Address, EntryOrder};
use crate::domain::ocra::Suite;
use crate::domain::otp::{Algorithm, Digits};
use crate::domain::presentation::PresentationState;
use crate::domain::signer::SignatureAlgorithm;
use crate::domain::signer::jwk::Jwk;
use crate::domain::signer::signature::SignatureFormat;
use crate::domain::transaction::{AuthenticatorReport, State};
use crate::service::authorization_view::MeansName;
use crate::service::transactions::MethodName;

use super::proof::ProofFormat;

/// All that `AccountRef` takes for printable.
const PRINTABLE: &str = r"^[^\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ufffd\u{e0000}-\u{e007f}]+$";
/// RFC 3339 in UTC, whole seconds.
const MOMENT: &str = "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$";
/// All that `Suite` takes.
const SUITE: &str = "^OCRA-1:HOTP-SHA(1|256|512)-([6-9]|10):(C-)?Q[ANH](0[89]|[1-5][0-9]|6[0-4])\
    (-PSHA(1|256|512))?(-S(00[1-9]|0[1-9][0-9]|[1-4][0-9]{2}|50[0-9]|51[0-2]))?\
    (-T(([1-9]|[1-5][0-9])[SM]|([1-9]|[1-3][0-9]|4[0-8])H))?$";

/// What a type is in JSON.
macro_rules! described {
    ($($type:ty => $schema:expr;)*) => {$(
        impl PartialSchema for $type {
            fn schema() -> RefOr<Schema> {
                RefOr::T($schema.into())
            }
        }
        impl ToSchema for $type {}
    )*};
}

described! {
    AccountRef => text("The bank's own reference to an account: 1 to 128 printable characters, which are not control \
        characters and not such that hide or reorder text.")
        .min_length(Some(1)).max_length(Some(128)).pattern(Some(PRINTABLE)).examples([json!("account-1002")]);
    Tenant => text("A tenant's name, as configured.")
        .min_length(Some(1)).max_length(Some(64)).pattern(Some("^[a-z0-9._-]+$")).examples([json!("bank-a")]);
    CredentialId => text("A credential's id: 128 random bits in 26 characters.")
        .pattern(Some("^cred_[0-7][0-9a-hjkmnp-tv-z]{25}$"))
        .examples([json!("cred_26daj92h7tg6acttawtvk6360e")]);
    TransactionId => text("A transaction's id: 128 random bits in 26 characters.")
        .pattern(Some("^txn_[0-7][0-9a-hjkmnp-tv-z]{25}$"))
        .examples([json!("txn_26daj92h7tg6acttawtvk6360e")]);
    PresentationId => text("A presentation's id: 128 random bits in 26 characters.")
        .pattern(Some("^pres_[0-7][0-9a-hjkmnp-tv-z]{25}$"))
        .examples([json!("pres_26daj92h7tg6acttawtvk6360e")]);
    PresentationState => choice("What it is good for: `open`, it waits for its claim; `claimed`, by a transaction, for ever; \
        `expired`, its time was over first.", &PresentationState::ALL);
    MeansName => choice("How the user shows who he is: `sms`, by a message to a terminal and one from it; `password`, by one \
        that the bank has checked.", &[MeansName::Sms, MeansName::Password]);
    State => choice("What became of it. All but `pending` are final.", &State::ALL);
    MethodName => choice("How it is approved: `challenge_response`, by an OCRA token's answer to a question that is \
        derived from all of it; `device_signature`, by a security device that signs all of it, or by an OCRA token; \
        `multi_terminal`, by codes that were sent to several terminals; `rolling_password`, by a password that says whose \
        it is; `presented_code`, by a yes of the device that presented a code.",
        &[MethodName::ChallengeResponse, MethodName::DeviceSignature, MethodName::MultiTerminal,
            MethodName::RollingPassword, MethodName::PresentedCode]);
    ProofFormat => choice("How what a device signed is written. `der` and `p1363` are for ES256, `raw` is for RS256; `jws` is a \
        compact JWS whose payload is the signing input; `webauthn` is an assertion whose challenge is the digest.",
        &[ProofFormat::Der, ProofFormat::P1363, ProofFormat::Raw, ProofFormat::Jws,
            ProofFormat::Webauthn]);
    TermsText => terms();
    AuthenticatorReport => ObjectBuilder::new()
        .description(Some("What a WebAuthn authenticator said of itself (WebAuthn, section 6.1)."))
        .property("sign_count", number("Its signature counter; 0 where it has none.", 0, 0xffff_ffff))
        .required("sign_count")
        .property("backup_eligible", boolean("BE: its key may be backed up.")).required("backup_eligible")
        .property("backed_up", boolean("BS: its key is backed up.")).required("backed_up");
    ParentLink => ObjectBuilder::new()
        .property("jti", reference::<TransactionId>()).required("jti")
        .property("hash", hash("SHA-256 of its attestation's compact JWS, lower hex.")).required("hash");
    Claims => ObjectBuilder::new()
        .description(Some("What an attestation says (RFC 7519)."))
        .property("iss", text("Who says so, as configured.")).required("iss")
        .property("jti", reference::<TransactionId>()).required("jti")
        .property("iat", seconds("When it was approved.")).required("iat")
        .property("exp", seconds("When it is to be relied on no longer.")).required("exp")
        .property("tenant", reference::<Tenant>()).required("tenant")
        .property("method", reference::<MethodName>()).required("method")
        .property("account", reference::<AccountRef>()).required("account")
        .property("digest", hash("SHA-256 of the signing input, lower hex.")).required("digest")
        .property("transaction", reference::<TermsText>()).required("transaction")
        .property("parent", reference::<ParentLink>());
    Status => choice("Whether it may be used: only an active one verifies anything. A rolling credential is pending \
        until it is activated; a signer of which an authorization is required is unauthorized until it has it. Suspended are \
        also all that are found in a database that was turned back.",
        &[Status::Active, Status::Suspended, Status::Pending, Status::Unauthorized]);
    EntryOrder => choice("How codes have to be entered: `preset_order`, in the order of the terminals; `ascending` and \
        `descending`, by their size; `target`, their weighted sum instead of themselves.",
        &[EntryOrder::PresetOrder, EntryOrder::Ascending, EntryOrder::Descending, EntryOrder::Target]);
    Address => text("Where codes are sent to: a phone number, a push id. Printable characters, at most 256 bytes.")
        .min_length(Some(1)).max_length(Some(256));
    Algorithm => choice("The hash under the HMAC.", &[Algorithm::Sha1, Algorithm::Sha256, Algorithm::Sha512]);
    Digits => number("How many digits a code has.", 6, 8);
    OcraUse => choice("What its codes are good for, never both: `transaction`, questions that the appliance \
        derives from a transaction; `verify`, questions that the caller chooses, by `/verify`.",
        &[OcraUse::Transaction, OcraUse::Verify]);
    Suite => text("An OCRASuite (RFC 6287, section 6): hash, digits, and of the data inputs C, Q, P, S and T \
        those that it has. Weaker ones than the pattern has are refused, though the RFC knows them: without \
        truncation or with 4 or 5 digits, and questions shorter than 8.")
        .pattern(Some(SUITE)).examples([json!("OCRA-1:HOTP-SHA256-8:C-QN08-PSHA1")]);
    SignatureAlgorithm => choice("ES256: ECDSA with P-256 and SHA-256. RS256: RSASSA-PKCS1-v1_5 with SHA-256.",
        &[SignatureAlgorithm::Es256, SignatureAlgorithm::Rs256]);
    SignatureFormat => choice("How a signature is written. `der` (r and s in DER) and `p1363` (r and s, 32 bytes \
        each) are for ES256, `raw` (as many bytes as the modulus) is for RS256.",
        &[SignatureFormat::Der, SignatureFormat::P1363, SignatureFormat::Raw]);
}

impl PartialSchema for Jwk {
    fn schema() -> RefOr<Schema> {
        let key = |kind: &str, algorithm| {
            ObjectBuilder::new()
                .property("kty", constant(kind))
                .required("kty")
                .property("alg", constant(algorithm))
                .property("use", constant("sig"))
                .property(
                    "key_ops",
                    ArrayBuilder::new()
                        .description(Some("`verify` has to be among them."))
                        .min_items(Some(1)),
                )
        };
        let coordinate = || text("32 bytes, base64url without padding.").pattern(Some("^[A-Za-z0-9_-]{43}$"));
        let number = |description| text(description).pattern(Some("^[A-Za-z0-9_-]{2,}$"));
        let ec = key("EC", "ES256")
            .title(Some("P-256"))
            .property("crv", constant("P-256"))
            .property("x", coordinate())
            .property("y", coordinate());
        let rsa = key("RSA", "RS256")
            .title(Some("RSA"))
            .property("n", number("The modulus: 2048 to 4096 bits, base64url without padding."))
            .property("e", number("The exponent: odd, 65537 or more, below 2^64."));
        OneOfBuilder::new()
            .description(Some(
                "A public key as a JWK (RFC 7517). Members that RFC 7518 does not give to such keys are ignored; one \
                 of a private key is refused.",
            ))
            .item(["crv", "x", "y"].into_iter().fold(ec, ObjectBuilder::required))
            .item(["n", "e"].into_iter().fold(rsa, ObjectBuilder::required))
            .into()
    }
}

impl ToSchema for Jwk {}

/// What is approved, as text.
fn terms() -> ObjectBuilder {
    ObjectBuilder::new()
        .property("payer", reference::<AccountRef>())
        .property("payee", payee())
        .required("payee")
        .property("amount", amount())
        .required("amount")
        .property("currency", currency())
        .required("currency")
        .property("order", order())
        .required("order")
        .property("platform", platform())
        .property("remark", remark())
        .property(
            "expires_at",
            text("Until when it can be approved, RFC 3339 in UTC, whole seconds.").pattern(Some(MOMENT)),
        )
        .required("expires_at")
        .property("nonce", hash("32 bytes of the HSM's, lower hex."))
        .required("nonce")
}

/// 32 bytes in lower-case hexadecimal.
fn hash(description: &str) -> ObjectBuilder {
    text(description).pattern(Some("^[0-9a-f]{64}$"))
}

fn seconds(description: &str) -> ObjectBuilder {
    text(&format!("{description} Seconds since 1970.")).schema_type(Type::Integer).minimum(Some(0))
}

/// Text for a device's display.
fn shown(description: &str, chars_max: usize) -> ObjectBuilder {
    text(&format!(
        "{description} 1 to {chars_max} characters for a device's display: in Unicode's form C, without white space at \
         its ends, without control characters, and without such that hide or reorder text."
    ))
    .min_length(Some(1))
    .max_length(Some(chars_max))
    .pattern(Some(PRINTABLE))
}

/// Who is to have it.
pub(super) fn payee() -> ObjectBuilder {
    shown("Who is to have it.", 128).examples([json!("DE89370400440532013000")])
}

/// The order or demand.
pub(super) fn order() -> ObjectBuilder {
    shown("The order or demand.", 128).examples([json!("order-77")])
}

/// The trading platform.
pub(super) fn platform() -> ObjectBuilder {
    shown("The trading platform.", 128).examples([json!("market.example")])
}

/// The user's remark.
pub(super) fn remark() -> ObjectBuilder {
    shown("The user's remark.", 256)
}

/// How much.
pub(super) fn amount() -> ObjectBuilder {
    text(
        "How much: a plain decimal number with exactly the currency's fraction digits (ISO 4217), without sign, exponent, \
         grouping or leading zeros; at most 18 digits. It may be zero.",
    )
    .min_length(Some(1))
    .max_length(Some(19))
    .pattern(Some(r"^(0|[1-9][0-9]*)(\.[0-9]+)?$"))
    .examples([json!("1250.00")])
}

/// Of what.
pub(super) fn currency() -> ObjectBuilder {
    text("A currency's code (ISO 4217).").pattern(Some("^[A-Z]{3}$")).examples([json!("EUR")])
}

/// A compact JWS.
pub(super) fn attestation() -> ObjectBuilder {
    text("A compact JWS (RFC 7515): ES256, by a key of `/v1/jwks`; its payload is the schema `Claims`.")
        .pattern(Some(r"^[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+$"))
}

/// What a device made.
pub(super) fn response_signature() -> ObjectBuilder {
    text(
        "The signature, written as `format` says, in base64url without padding; of format `jws` the compact JWS itself. \
         What is signed is the signing input's bytes; of format `webauthn`, the authenticator data and the client data's \
         SHA-256.",
    )
    .pattern(Some("^[A-Za-z0-9_-]+$"))
}

/// What a device made of bytes that the operation names.
pub(super) fn proof_signature() -> ObjectBuilder {
    text("The signature, written as `format` says, in base64url without padding; of format `jws` the compact JWS itself.")
        .pattern(Some("^[A-Za-z0-9_.-]+$"))
}

/// How what a signer signed is written.
pub(super) fn signed_format() -> ObjectBuilder {
    choice(
        "`der` and `p1363` are for ES256, `raw` is for RS256; `jws` is a compact JWS whose payload are the bytes to sign.",
        &[ProofFormat::Der, ProofFormat::P1363, ProofFormat::Raw, ProofFormat::Jws],
    )
}

/// When a device signed.
pub(super) fn issued_at() -> ObjectBuilder {
    text("When the device signed, by its own clock: RFC 3339 in UTC, whole seconds.")
        .pattern(Some(MOMENT))
        .examples([json!("2030-01-01T00:00:00Z")])
}

/// A presented code.
pub(super) fn presentation_code() -> ObjectBuilder {
    text("128 bits that nobody can guess, in base32 (RFC 4648, section 6), upper case, without padding.")
        .pattern(Some("^[A-Z2-7]{26}$"))
}

/// What a WebAuthn authenticator signed.
pub(super) fn authenticator_data() -> ObjectBuilder {
    text("The authenticator data (WebAuthn, section 6.1), base64url without padding.")
        .pattern(Some("^[A-Za-z0-9_-]+$"))
}

/// What a browser had it sign.
pub(super) fn client_data_json() -> ObjectBuilder {
    text("The client data's JSON (WebAuthn, section 5.8.1), base64url without padding. Its challenge is the digest.")
        .pattern(Some("^[A-Za-z0-9_-]+$"))
}

/// The keys of a JWK set.
pub(super) fn attestation_keys() -> ArrayBuilder {
    let coordinate = || text("32 bytes, base64url without padding.").pattern(Some("^[A-Za-z0-9_-]{43}$"));
    let key = ObjectBuilder::new()
        .property("kty", constant("EC"))
        .property("crv", constant("P-256"))
        .property("x", coordinate())
        .property("y", coordinate())
        .property("alg", constant("ES256"))
        .property("use", constant("sig"))
        .property("kid", text("Its RFC 7638 thumbprint, SHA-256.").pattern(Some("^[A-Za-z0-9_-]{43}$")));
    let key = ["kty", "crv", "x", "y", "alg", "use", "kid"].into_iter().fold(key, ObjectBuilder::required);
    ArrayBuilder::new().items(key).min_items(Some(1))
}

/// A string.
pub(super) fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description))
}

/// A whole number within these bounds.
pub(super) fn number(description: &str, minimum: usize, maximum: usize) -> ObjectBuilder {
    text(description).schema_type(Type::Integer).minimum(Some(minimum)).maximum(Some(maximum))
}

fn boolean(description: &str) -> ObjectBuilder {
    text(description).schema_type(Type::Boolean)
}

/// A seed that is imported.
pub(super) fn seed_hex() -> ObjectBuilder {
    text(
        "The seed, 16 to 64 bytes in hexadecimal. At most one of the three: `seed_hex`, `seed_base32`, \
         `seed_wrapped_base64`; with none the HSM generates one. Not where the configuration allows no seed in the clear.",
    )
        .min_length(Some(32))
        .max_length(Some(128))
        .pattern(Some("^([0-9A-Fa-f]{2})+$"))
}

/// The same in its other form.
pub(super) fn seed_base32() -> ObjectBuilder {
    text("The same in base32 (RFC 4648, section 6), in either case, with its padding or without.")
        .min_length(Some(26))
        .max_length(Some(104))
        .pattern(Some("^[A-Za-z2-7]+={0,6}$"))
}

/// A seed that only the HSM can open.
pub(super) fn seed_wrapped_base64() -> ObjectBuilder {
    text(
        "The seed with zero bytes behind it, 64 bytes together, encrypted to the key of `/v1/import-key` (RSA-OAEP, \
         SHA-1, no label): 384 bytes in base64. The same bytes are taken once in a tenant. Not with `export`.",
    )
    .min_length(Some(512))
    .max_length(Some(512))
    .pattern(Some("^[A-Za-z0-9+/]{512}$"))
}

/// Codes of several terminals.
pub(super) fn response_codes() -> ArrayBuilder {
    let description =
        "All codes, in the order that the rule asks for; not where it says how far apart they come.";
    ArrayBuilder::new()
        .description(Some(description))
        .items(otp("A terminal's code."))
        .min_items(Some(1))
        .max_items(Some(8))
}

/// What a terminal is bound by.
pub(super) fn identity_key_hex() -> ObjectBuilder {
    text(
        "PBKDF2-HMAC-SHA-256 of the identity code, with the credential's salt and 600,000 rounds: 32 bytes in \
         hexadecimal. The identity code itself stays on the terminal.",
    )
    .pattern(Some("^[0-9A-Fa-f]{64}$"))
}

/// What a bank checked before.
pub(super) fn evidence() -> ObjectBuilder {
    text(
        "The bank's own reference of what it has checked: card, identity, person. It is shown with the credential; no \
         card data, no PIN and no identity number belongs here.",
    )
    .min_length(Some(1))
    .max_length(Some(128))
}

/// That a terminal has a temporary code.
pub(super) fn proof_hex() -> ObjectBuilder {
    text("HMAC-SHA-256 under the epoch's temporary code: 32 bytes in hexadecimal.")
        .pattern(Some("^[0-9A-Fa-f]{64}$"))
}

/// A rolling password.
pub(super) fn password() -> ObjectBuilder {
    text("12 bytes that say whose it is, and 16 that prove the identity code: base64url without padding.")
        .pattern(Some("^[A-Za-z0-9_-]{37}[AQgw]$"))
}

/// The digits of a code.
pub(super) fn otp(description: &str) -> ObjectBuilder {
    text(description).min_length(Some(6)).max_length(Some(10)).pattern(Some("^[0-9]+$"))
}

/// What an OCRA token is asked.
pub(super) fn challenge() -> ObjectBuilder {
    text(
        "The question (RFC 6287: Q), of an ocra credential only: 1 character up to twice the suite's length, as in \
         the mutual mode; decimal digits (QN), letters and digits (QA) or hexadecimal digits (QH). Not every two \
         texts are two questions. A numeric one is an integer, written in hexadecimal and padded on the RIGHT: \
         `00000001` and `00000016` are one question and have one code, and so do all whose integers differ by a \
         power of 16. Hexadecimal ones that differ in zeros at their end or in case are one, too. Numeric \
         questions should not begin with 0, and should all have one length.",
    )
    .min_length(Some(1))
    .max_length(Some(128))
    .pattern(Some("^[0-9A-Za-z]+$"))
    .examples([json!("12345678")])
}

/// The session of an OCRA token's challenge.
pub(super) fn session() -> ObjectBuilder {
    text(
        "The session (RFC 6287: S), where the suite has one: its UTF-8, 1 byte up to the suite's length, padded with \
         zero bytes on the left.",
    )
    .min_length(Some(1))
    .max_length(Some(512))
}

/// Two codes of a resync.
pub(super) fn otps() -> ArrayBuilder {
    ArrayBuilder::new()
        .description(Some("Two consecutive codes, in their order."))
        .items(otp("As many digits as the credential's codes have."))
        .min_items(Some(2))
        .max_items(Some(2))
}

/// What was signed.
pub(super) fn payload() -> ObjectBuilder {
    base64("What was signed, in base64 (RFC 4648, section 4) with padding; not empty.")
}

/// A signature's bytes.
pub(super) fn signature() -> ObjectBuilder {
    base64("The signature, written as `format` says, in the same base64.")
}

fn base64(description: &str) -> ObjectBuilder {
    text(description)
        .min_length(Some(4))
        .pattern(Some("^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=|[A-Za-z0-9+/]{4})$"))
        .content_encoding("base64")
}

/// The one value.
pub(super) fn constant(value: impl Into<Value>) -> ObjectBuilder {
    let value = value.into();
    let kind = match value {
        Value::Bool(_) => Type::Boolean,
        Value::Number(_) => Type::Integer,
        _ => Type::String,
    };
    ObjectBuilder::new().schema_type(kind).enum_values(Some([value]))
}

/// The state of what was deleted.
pub(super) fn deleted() -> ObjectBuilder {
    constant("deleted")
}

/// `true`: whatever else would be a problem.
pub(super) fn yes() -> ObjectBuilder {
    constant(true)
}

/// One of these, by the names that serde gives them.
fn choice<T: Serialize>(description: &str, values: &[T]) -> ObjectBuilder {
    text(description).enum_values(Some(values.iter().filter_map(|value| serde_json::to_value(value).ok())))
}

/// A reference to a type's schema.
pub(super) fn reference<T: ToSchema>() -> RefOr<Schema> {
    Ref::from_schema_name(T::name()).into()
}

/// The schema of a type that is an object with fields of its own.
pub(super) fn object<T: PartialSchema>() -> Object {
    match T::schema() {
        RefOr::T(Schema::Object(object)) => object,
        _ => Object::default(),
    }
}

/// Schemas by name.
pub(super) type Schemas = Vec<(String, RefOr<Schema>)>;

/// A type's schema, and those that it refers to.
pub(super) fn add<T: ToSchema>(schemas: &mut Schemas) {
    schemas.push((T::name().into(), T::schema()));
    T::schemas(schemas);
}

/// The object that has these fields of `all` and no others.
pub(super) fn form(all: &Object, title: &str, fields: &[&str], required: &[&str]) -> Object {
    let mut form = all.clone();
    form.title = Some(title.to_owned());
    form.description = None;
    form.properties.retain(|name, _| fields.contains(&name.as_str()));
    form.required = required.iter().map(ToString::to_string).collect();
    form
}
