//! The body of `POST /v1/transactions`, as that route reads it.

use hsm_authd::api::new_transaction;
use hsm_authd::domain::multi_terminal::EntryOrder;
use hsm_authd::domain::presentation::code_hash;
use hsm_authd::service::transactions::Approval;

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
    assert_eq!(said("parent"), wanted.parent.as_deref());
    let (credential, payer) = match &wanted.approval {
        Approval::ChallengeResponse(by) | Approval::DeviceSignature(by) => (by.credential, by.payer.as_ref()),
        Approval::MultiTerminal(by) => (None, Some(&by.payer)),
        Approval::RollingPassword | Approval::PresentedCode { .. } => (None, None),
    };
    assert_eq!(said("payer"), payer.map(|payer| payer.as_str()));
    let id = credential.map(|id| id.to_string());
    assert!(id.is_none() || said("credential") == id.as_deref(), "an id has one spelling");
    match &wanted.approval {
        Approval::PresentedCode { code_hash: hash } => {
            assert_eq!(
                *hash,
                said("presentation").and_then(code_hash),
                "found by what was sent, to the byte"
            );
        }
        _ => assert_eq!(said("presentation"), None),
    }
    if let Approval::MultiTerminal(by) = &wanted.approval {
        let Some(rule) = fields.get("rule") else { panic!("a rule is asked for") };
        let number = |name: &str| rule.get(name).and_then(|value| value.as_u64());
        assert_eq!(rule.get("type"), serde_json::to_value(by.order).ok().as_ref());
        assert_eq!(number("window_seconds"), by.window_s.map(u64::from));
        assert_eq!(number("interval_seconds"), by.interval.map(|interval| interval.interval_s.into()));
        let tolerance = by.interval.map(|interval| interval.tolerance_s.into());
        assert!(number("tolerance_seconds").is_none_or(|seconds| tolerance == Some(seconds)));
        let digits = fields.get("digits").and_then(|value| value.as_u64());
        assert!(digits.is_none_or(|digits| digits == u64::from(u8::from(by.digits))));
        let count = rule.get("order").and_then(|order| order.as_array()).map(Vec::len);
        assert!(by.terminals.is_some() == count.is_some());
        assert!(by.window_s.is_none_or(|seconds| (1..=3_600).contains(&seconds)));
        assert!(by.interval.is_none_or(|interval| (1..=interval.interval_s).contains(&interval.tolerance_s)));
        assert!(by.order != EntryOrder::Target || (by.interval.is_none() && u8::from(by.digits) >= 8));
    }
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
