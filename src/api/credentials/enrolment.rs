//! The JSON of an enrolment: one form for each type of credential.

use std::ops::RangeInclusive;

use data_encoding::BASE64URL_NOPAD;
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use utoipa::ToSchema;
use zeroize::Zeroizing;

use crate::domain::account::AccountRef;
use crate::domain::certificate::CertificateChain;
use crate::domain::credential::OcraUse;
use crate::domain::multi_terminal::Address;
use crate::domain::ocra::Suite;
use crate::domain::otp::{Algorithm, COUNTER_END, Digits, MovingFactor};
use crate::domain::signer::jwk::Jwk;
use crate::domain::signer::{KeyError, PublicKey, SignatureAlgorithm};
use crate::domain::webauthn::RelyingParty;
use crate::secret::SecretBytes;
use crate::service::enrolment::{Enrolment, NewKind, NewOcraToken, NewOtpToken};

use super::super::call::not_null;
use super::super::problem::Problem;
use super::super::schema;
use super::seeds::{Export, export, seed};

/// `POST /v1/credentials`
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum EnrolBody {
    Hotp(HotpBody),
    Totp(TotpBody),
    Ocra(OcraBody),
    Signer(SignerBody),
    Terminal(TerminalBody),
    Rolling(RollingBody),
}

/// A token with a counter: RFC 4226.
#[derive(Deserialize, ToSchema)]
#[schema(as = EnrolHotp)]
#[serde(deny_unknown_fields)]
pub(super) struct HotpBody {
    account: AccountRef,
    #[serde(default)]
    #[schema(default = Algorithm::default)]
    algorithm: Algorithm,
    #[serde(default, deserialize_with = "hotp_digits")]
    #[schema(default = Digits::default)]
    digits: Digits,
    /// The first counter expected.
    #[serde(default)]
    #[schema(default = 0, maximum = 9223372036854775807u64)]
    counter: u64,
    /// How many counters beyond the expected one are tried.
    #[serde(default = "default_look_ahead")]
    #[schema(default = default_look_ahead, maximum = 100)]
    look_ahead: u64,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::seed_hex)]
    seed_hex: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::seed_base32)]
    seed_base32: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::seed_wrapped_base64)]
    seed_wrapped_base64: Option<String>,
    /// The answer holds the seed as an `otpauth` URI, once. Only where the configuration allows it.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    export: Option<Export>,
}

/// A token with a clock: RFC 6238.
#[derive(Deserialize, ToSchema)]
#[schema(as = EnrolTotp)]
#[serde(deny_unknown_fields)]
pub(super) struct TotpBody {
    account: AccountRef,
    #[serde(default)]
    #[schema(default = Algorithm::default)]
    algorithm: Algorithm,
    #[serde(default, deserialize_with = "hotp_digits")]
    #[schema(default = Digits::default)]
    digits: Digits,
    /// How long a code lives, in seconds.
    #[serde(default = "default_period")]
    #[schema(default = default_period, minimum = 5, maximum = 600)]
    period: u64,
    /// How many steps are tried on either side of the present one.
    #[serde(default = "default_skew_steps")]
    #[schema(default = default_skew_steps, maximum = 2)]
    skew_steps: u64,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::seed_hex)]
    seed_hex: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::seed_base32)]
    seed_base32: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::seed_wrapped_base64)]
    seed_wrapped_base64: Option<String>,
    /// The answer holds the seed as an `otpauth` URI, once. Only where the configuration allows it.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    export: Option<Export>,
}

/// A token that answers questions: RFC 6287.
#[derive(Deserialize, ToSchema)]
#[schema(as = EnrolOcra)]
#[serde(deny_unknown_fields)]
pub(super) struct OcraBody {
    account: AccountRef,
    suite: Suite,
    #[serde(default)]
    #[schema(default = OcraUse::default)]
    r#use: OcraUse,
    /// The first counter expected. Only for suites with C; 0 by default.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, maximum = 9223372036854775807u64)]
    counter: Option<u64>,
    /// How many counters beyond the expected one are tried. Only for suites with C; 10 by default.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, maximum = 100)]
    look_ahead: Option<u64>,
    /// How many time steps are tried on either side of the present one. Only for suites with T; 1 by default.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false, maximum = 2)]
    skew_steps: Option<u64>,
    /// The text that the token hashes: 4 to 64 bytes of UTF-8 without control characters. Suites with P need it,
    /// others may not have it.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(value_type = String, nullable = false, min_length = 1, max_length = 64, pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$")]
    pin: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::seed_hex)]
    seed_hex: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::seed_base32)]
    seed_base32: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(schema_with = schema::seed_wrapped_base64)]
    seed_wrapped_base64: Option<String>,
}

/// A device that signs. Its public key comes in one of the four forms.
#[derive(Deserialize, ToSchema)]
#[schema(as = EnrolSigner)]
#[serde(deny_unknown_fields)]
pub(super) struct SignerBody {
    account: AccountRef,
    /// How it signs, if that is to be checked: by default as its key says.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    algorithm: Option<SignatureAlgorithm>,
    /// One `PUBLIC KEY` block (SubjectPublicKeyInfo) with nothing around it: P-256, or RSA of 2048 to 4096 bits.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(
        nullable = false,
        pattern = "^\\s*-----BEGIN PUBLIC KEY-----[A-Za-z0-9+/=\\s]+-----END PUBLIC KEY-----\\s*$"
    )]
    public_key_pem: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    jwk: Option<Jwk>,
    /// The certificate of its key and those between it and one of the configured trust anchors, in that order: 1 to
    /// 4 `CERTIFICATE` blocks with nothing around them, at most 8 KiB of DER. The chain is checked now and whenever
    /// the device signs.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(
        nullable = false,
        pattern = "^\\s*(-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\\s]+-----END CERTIFICATE-----\\s*){1,4}$"
    )]
    certificate_chain_pem: Option<String>,
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    webauthn: Option<WebAuthnBody>,
    /// Whether it may be used only once it is authorized for the account: until then it is `unauthorized`.
    #[serde(default, deserialize_with = "not_null")]
    #[schema(nullable = false)]
    authorization: Option<Authorization>,
}

/// Whether a device has to be authorized.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[schema(as = EnrolAuthorization)]
#[serde(rename_all = "snake_case")]
enum Authorization {
    Required,
}

/// A terminal that codes are sent to, by whoever sends them: a phone, an app. The HSM makes what its codes are derived
/// from.
#[derive(Deserialize, ToSchema)]
#[schema(as = EnrolTerminal)]
#[serde(deny_unknown_fields)]
pub(super) struct TerminalBody {
    account: AccountRef,
    address: Address,
}

/// A WebAuthn authenticator, as its registration told (WebAuthn, section 7.1).
#[derive(Deserialize, ToSchema)]
#[schema(as = EnrolWebAuthn)]
#[serde(deny_unknown_fields)]
pub(super) struct WebAuthnBody {
    /// The credential id, 16 to 1023 bytes, base64url without padding.
    #[schema(pattern = "^[A-Za-z0-9_-]+$")]
    credential_id: String,
    /// As `public_key_pem`.
    #[schema(pattern = "^\\s*-----BEGIN PUBLIC KEY-----[A-Za-z0-9+/=\\s]+-----END PUBLIC KEY-----\\s*$")]
    public_key_pem: String,
    /// The relying party's id: a domain in lower case.
    #[schema(min_length = 1, max_length = 253)]
    rp_id: String,
    /// The origins that may ask it: 1 to 8, each `https://` and the domain or one below it, with its port if that
    /// is another than 443; or an app's.
    #[schema(min_items = 1, max_items = 8)]
    origins: Vec<String>,
}

/// A terminal with a temporary code, whose user knows an identity code (seed B). It waits for its activation.
#[derive(Deserialize, ToSchema)]
#[schema(as = EnrolRolling)]
#[serde(deny_unknown_fields)]
pub(super) struct RollingBody {
    account: AccountRef,
}

fn hotp_digits<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digits, D::Error> {
    Digits::for_hotp(u8::deserialize(deserializer)?).map_err(D::Error::custom)
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

pub(super) fn invalid(field: &'static str, reason: &'static str) -> Problem {
    Problem::Invalid { field, reason }
}

impl TryFrom<EnrolBody> for Enrolment {
    type Error = Problem;

    fn try_from(body: EnrolBody) -> Result<Self, Problem> {
        let mut awaits_authorization = false;
        let (account, kind) = match body {
            EnrolBody::Hotp(body) => (
                body.account,
                NewKind::Otp(NewOtpToken {
                    algorithm: body.algorithm,
                    digits: body.digits,
                    moving_factor: MovingFactor::Hotp { look_ahead: look_ahead(body.look_ahead)? },
                    counter: counter(body.counter)?,
                    export: export(body.export, body.seed_wrapped_base64.is_some())?,
                    seed: seed(body.seed_hex, body.seed_base32, body.seed_wrapped_base64)?,
                }),
            ),
            EnrolBody::Totp(body) => {
                let period_s =
                    within(body.period, 5..=600).ok_or(invalid("period", "must be 5 to 600 seconds"))?;
                (
                    body.account,
                    NewKind::Otp(NewOtpToken {
                        algorithm: body.algorithm,
                        digits: body.digits,
                        moving_factor: MovingFactor::Totp {
                            period_s,
                            skew_steps: skew_steps(body.skew_steps)?,
                        },
                        counter: 0,
                        export: export(body.export, body.seed_wrapped_base64.is_some())?,
                        seed: seed(body.seed_hex, body.seed_base32, body.seed_wrapped_base64)?,
                    }),
                )
            }
            EnrolBody::Ocra(body) => (body.account.clone(), NewKind::Ocra(body.try_into()?)),
            EnrolBody::Signer(body) => {
                awaits_authorization = body.authorization.is_some();
                (body.account.clone(), body.try_into()?)
            }
            EnrolBody::Terminal(body) => (body.account, NewKind::Terminal(body.address)),
            EnrolBody::Rolling(body) => (body.account, NewKind::Rolling),
        };
        Ok(Self { account, kind, awaits_authorization })
    }
}

impl TryFrom<OcraBody> for NewOcraToken {
    type Error = Problem;

    fn try_from(body: OcraBody) -> Result<Self, Problem> {
        let suite = body.suite;
        if !suite.has_counter() && body.counter.is_some() {
            return Err(invalid("counter", "the suite has no counter (C)"));
        }
        if !suite.has_counter() && body.look_ahead.is_some() {
            return Err(invalid("look_ahead", "the suite has no counter (C)"));
        }
        let steps_default = match (suite.time_step_s(), body.skew_steps) {
            (None, Some(_)) => return Err(invalid("skew_steps", "the suite has no time step (T)")),
            (None, None) => 0,
            (Some(_), _) => default_skew_steps(),
        };
        if body.r#use == OcraUse::Transaction && suite.session_bytes().is_some_and(|bytes| bytes < 32) {
            return Err(invalid(
                "suite",
                "the session of a suite for transactions must have 032 bytes or more",
            ));
        }
        let pin = match (suite.pin_hash(), body.pin) {
            (None, None) => None,
            (Some(_), Some(pin)) => Some(pin_text(pin)?),
            (Some(_), None) => return Err(invalid("pin", "must be there: the suite has a PIN (P)")),
            (None, Some(_)) => return Err(invalid("pin", "the suite has no PIN (P)")),
        };
        let look_ahead_default = if suite.has_counter() { default_look_ahead() } else { 0 };
        Ok(Self {
            usage: body.r#use,
            counter: counter(body.counter.unwrap_or(0))?,
            look_ahead: look_ahead(body.look_ahead.unwrap_or(look_ahead_default))?,
            skew_steps: skew_steps(body.skew_steps.unwrap_or(steps_default))?,
            seed: seed(body.seed_hex, body.seed_base32, body.seed_wrapped_base64)?,
            pin,
            suite,
        })
    }
}

const ONE_KEY: &str = "give one of public_key_pem, jwk, certificate_chain_pem and webauthn";

impl TryFrom<SignerBody> for NewKind {
    type Error = Problem;

    fn try_from(body: SignerBody) -> Result<Self, Problem> {
        let refused = |field| move |error: KeyError| invalid(field, error.reason());
        let SignerBody { algorithm, public_key_pem, jwk, certificate_chain_pem, webauthn, .. } = body;
        let (key, kind) = match (public_key_pem, jwk, certificate_chain_pem, webauthn) {
            (Some(pem), None, None, None) => {
                let key = PublicKey::from_pem(&pem).map_err(refused("public_key_pem"))?;
                (key.clone(), Self::Signer(key))
            }
            (None, Some(jwk), None, None) => {
                let key = PublicKey::from_jwk(&jwk).map_err(refused("jwk"))?;
                (key.clone(), Self::Signer(key))
            }
            (None, None, Some(pem), None) => {
                let refused = refused("certificate_chain_pem");
                let chain = CertificateChain::from_pem(&pem).map_err(refused)?;
                (chain.public_key().map_err(refused)?, Self::CertifiedSigner(chain))
            }
            (None, None, None, Some(body)) => {
                let key = PublicKey::from_pem(&body.public_key_pem).map_err(refused("public_key_pem"))?;
                let credential_id = BASE64URL_NOPAD
                    .decode(body.credential_id.as_bytes())
                    .map_err(|_| invalid("credential_id", "must be base64url without padding"))?;
                let party = RelyingParty::new(credential_id, body.rp_id, body.origins)
                    .map_err(|(field, reason)| invalid(field, reason))?;
                (key.clone(), Self::Authenticator(key, party))
            }
            _ => return Err(invalid("public_key_pem", ONE_KEY)),
        };
        match algorithm {
            Some(algorithm) if algorithm != key.algorithm() => {
                Err(invalid("algorithm", "must be the key's: ES256 for P-256, RS256 for RSA"))
            }
            _ => Ok(kind),
        }
    }
}

fn counter(counter: u64) -> Result<u64, Problem> {
    if counter < COUNTER_END { Ok(counter) } else { Err(invalid("counter", "must be below 2^63")) }
}

fn look_ahead(codes: u64) -> Result<u8, Problem> {
    within(codes, 0..=100).ok_or(invalid("look_ahead", "must be 0 to 100"))
}

fn skew_steps(steps: u64) -> Result<u8, Problem> {
    within(steps, 0..=2).ok_or(invalid("skew_steps", "must be 0 to 2"))
}

/// A number of its own type, if it is one of these.
fn within<T: TryFrom<u64>>(number: u64, allowed: RangeInclusive<u64>) -> Option<T> {
    if allowed.contains(&number) { number.try_into().ok() } else { None }
}

/// The text that the token hashes, byte for byte.
fn pin_text(pin: Zeroizing<String>) -> Result<SecretBytes, Problem> {
    if (4..=64).contains(&pin.len()) && !pin.chars().any(char::is_control) {
        Ok(SecretBytes::new(pin.as_bytes().to_vec()))
    } else {
        Err(invalid("pin", "must be 4 to 64 bytes without control characters"))
    }
}
