//! How every body is read: strictly, and a refusal says nothing of what was sent.

use serde::de::IgnoredAny;
use serde_json::{Map, Value};

/// Status, field and reason of a refusal.
pub type Refusal = (u16, Option<&'static str>, &'static str);

/// Reads the input as a route does. What it takes is an object that says the same in other white space, order and
/// escapes, and is refused with anything added to it; its fields and what was understood are returned.
pub fn read<T>(input: &[u8], parse: impl Fn(&[u8]) -> Result<T, Refusal>) -> Option<(Map<String, Value>, T)> {
    let is_json =
        std::str::from_utf8(input).is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
    let understood = match parse(input) {
        Ok(understood) => understood,
        // All that is said of a refusal is a constant of the program: nothing of the input can be in it.
        Err((status, field, reason)) => {
            assert_eq!(status, if is_json { 422 } else { 400 }, "{reason}");
            assert!(!reason.is_empty() && field != Some(""), "a refusal says why");
            return None;
        }
    };
    let Ok(Value::Object(fields)) = serde_json::from_slice(input) else { panic!("only objects are taken") };
    let text = Value::Object(fields.clone()).to_string();
    assert!(parse(text.as_bytes()).is_ok(), "white space, order and escapes mean nothing");
    let refused =
        |body: String, why: &str| assert!(matches!(parse(body.as_bytes()), Err((422, ..))), "{why}");
    refused(format!(r#"{{"unmistakable":0,{}"#, &text[1..]), "an unknown field");
    refused(format!("[{text}]"), "an array");
    assert!(matches!(parse(format!("{text}{{}}").as_bytes()), Err((400, ..))), "one object, no more");
    for (name, value) in &fields {
        refused(format!(r#"{{"{name}":{value},{}"#, &text[1..]), "a field twice");
        let mut without = fields.clone();
        without.insert(name.clone(), Value::Null);
        refused(Value::Object(without).to_string(), "null");
    }
    Some((fields, understood))
}
