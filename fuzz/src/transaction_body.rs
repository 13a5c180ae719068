//! The body of `POST /v1/transactions`, as that route reads it.

use hsm_authd::api::new_transaction;

use super::body;

/// The input is a body.
pub fn run(input: &[u8]) {
    let Some((fields, wanted)) = body::read(input, new_transaction) else { return };
    let said = |name: &str| fields.get(name).and_then(|value| value.as_str());
    // What will be signed is what was sent, to the byte.
    assert_eq!(said("payee"), Some(wanted.payee.as_str()));
    assert_eq!(said("order"), Some(wanted.order.as_str()));
    assert_eq!(said("platform"), wanted.platform.as_ref().map(|text| text.as_str()));
    assert_eq!(said("remark"), wanted.remark.as_ref().map(|text| text.as_str()));
    assert_eq!(said("amount"), Some(wanted.money.amount()));
    assert_eq!(said("currency"), Some(wanted.money.currency()));
    assert_eq!(said("payer"), wanted.payer.as_ref().map(|payer| payer.as_str()));
    assert_eq!(said("parent"), wanted.parent.as_deref());
    let id = wanted.credential.map(|id| id.to_string());
    assert!(id.is_none() || said("credential") == id.as_deref(), "an id has one spelling");
    assert!((1..=3_600).contains(&wanted.lifetime_s));

    for (text, characters_max) in [
        (Some(wanted.payee.as_str()), 128),
        (Some(wanted.order.as_str()), 128),
        (wanted.platform.as_ref().map(|text| text.as_str()), 128),
        (wanted.remark.as_ref().map(|text| text.as_str()), 256),
    ] {
        let Some(text) = text else { continue };
        assert!((1..=characters_max).contains(&text.chars().count()) && text.trim() == text);
        let is_hidden =
            |c: char| c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}');
        assert!(!text.contains(is_hidden), "people read it");
    }
    let (whole, fraction) = wanted.money.amount().split_once('.').unwrap_or((wanted.money.amount(), ""));
    assert!(whole.len() + fraction.len() <= 18);
    assert!([whole, fraction].concat().bytes().all(|byte| byte.is_ascii_digit()), "no float, no sign");
}
