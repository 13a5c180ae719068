//! The body of `POST /v1/credentials`, as that route reads it.

use data_encoding::BASE64;
use hsm_authd::api::enrolment;
use hsm_authd::domain::otp::{COUNTER_END, MovingFactor};
use hsm_authd::service::enrolment::{Enrolment, NewKind, NewOcraToken, NewOtpToken, NewSeed};
use serde_json::Value;

use super::body;

/// The input is a body.
pub fn run(input: &[u8]) {
    let Some((fields, wanted)) = body::read(input, enrolment) else { return };
    is_right(&wanted, fields.get("seed_wrapped_base64").and_then(Value::as_str));
    let (form, text) = (fields["type"].as_str().expect("a type"), Value::Object(fields.clone()).to_string());
    let other = format!(r#"["{form}",{text}]"#);
    assert!(matches!(enrolment(other.as_bytes()), Err((422, ..))), "serde's other form");
}

/// What was understood is within the limits that `docs/api.md` states.
fn is_right(wanted: &Enrolment, wrapped: Option<&str>) {
    let characters = wanted.account.as_str().chars().count();
    assert!((1..=128).contains(&characters) && !wanted.account.as_str().contains(char::is_control));
    let signs =
        matches!(wanted.kind, NewKind::Signer(_) | NewKind::Authenticator(..) | NewKind::CertifiedSigner(_));
    assert!(signs || !wanted.awaits_authorization, "only a device that signs waits for an authorization");
    match &wanted.kind {
        NewKind::Otp(token) => is_right_otp(token, wrapped),
        NewKind::Ocra(token) => is_right_ocra(token, wrapped),
        NewKind::Rolling => {}
        NewKind::Signer(key) | NewKind::Authenticator(key, _) => super::jwk::is_the_same_in_every_form(key),
        NewKind::CertifiedSigner(chain) => {
            super::jwk::is_the_same_in_every_form(&chain.public_key().expect("checked when it was parsed"));
        }
        NewKind::Terminal(address) => assert!((1..=256).contains(&address.as_str().len())),
    }
}

fn is_right_otp(token: &NewOtpToken, wrapped: Option<&str>) {
    assert!(wrapped.is_none() || !token.export, "a wrapped seed is not handed out");
    assert!((6..=8).contains(&u8::from(token.digits)) && token.counter < COUNTER_END);
    match token.moving_factor {
        MovingFactor::Hotp { look_ahead } => assert!(look_ahead <= 100),
        MovingFactor::Totp { period_s, skew_steps } => {
            assert!((5..=600).contains(&period_s) && skew_steps <= 2 && token.counter == 0);
        }
    }
    is_right_seed(token.seed.as_ref(), wrapped);
}

fn is_right_ocra(token: &NewOcraToken, wrapped: Option<&str>) {
    assert!(token.counter < COUNTER_END && token.look_ahead <= 100 && token.skew_steps <= 2);
    assert!(token.suite.has_counter() || (token.counter, token.look_ahead) == (0, 0), "no C, no counter");
    assert!(token.suite.time_step_s().is_some() || token.skew_steps == 0, "no T, no steps");
    assert_eq!(token.pin.is_some(), token.suite.pin_hash().is_some(), "a PIN where the suite has P");
    assert!(token.pin.as_ref().is_none_or(|pin| (4..=64).contains(&pin.len())));
    is_right_seed(token.seed.as_ref(), wrapped);
}

fn is_right_seed(seed: Option<&NewSeed>, text: Option<&str>) {
    match seed {
        Some(NewSeed::Clear(seed)) => assert!((16..=64).contains(&seed.len()) && text.is_none()),
        Some(NewSeed::Wrapped(seed)) => {
            assert_eq!(Some(&*BASE64.encode(seed.as_bytes())), text, "one spelling")
        }
        None => assert!(text.is_none()),
    }
}
