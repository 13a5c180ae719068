//! Requests made of their own schema: such that it refuses, and such at the bounds of what it allows.

use serde_json::{Value, json};

use crate::documented::Documented;

/// The form of `schema` that takes `good`: an object with properties.
fn form<'a>(documented: &'a Documented, schema: &'a Value, good: &Value) -> &'a Value {
    let schema = documented.resolve(schema);
    let forms = schema["oneOf"].as_array().into_iter().flatten();
    match forms.into_iter().find(|form| documented.accepts(form, good)) {
        Some(found) => form(documented, found, good),
        None => schema,
    }
}

fn with(good: &Value, field: &str, value: Value) -> Value {
    let mut body = good.clone();
    body[field] = value;
    body
}

/// Bodies that `schema` refuses: `good` with one thing wrong.
pub fn mutations(documented: &Documented, schema: &Value, good: &Value) -> Vec<Value> {
    let form = form(documented, schema, good);
    let mut found = vec![json!(null), json!([]), json!([good]), json!("text"), json!(7)];
    found.push(with(good, "unmistakable", json!(1)));
    found.push(with(good, "", json!(null)));
    let properties = form["properties"].as_object().into_iter().flatten();
    for (field, property) in properties {
        if form["required"].as_array().is_some_and(|all| all.contains(&json!(field))) {
            let mut body = good.clone();
            body.as_object_mut().unwrap().remove(field);
            found.push(body);
        }
        let own = values(documented, property, good.get(field));
        found.extend(own.into_iter().map(|value| with(good, field, value)));
        // The same field by another name.
        found.push(with(good, &field.to_uppercase(), good.get(field).cloned().unwrap_or_default()));
    }
    found.retain(|body| !documented.accepts(schema, body));
    found
}

/// Values that may be wrong for a property; some are right.
fn values(documented: &Documented, property: &Value, good: Option<&Value>) -> Vec<Value> {
    let schema = documented.resolve(property);
    let mut found = vec![json!(null), json!(true), json!([]), json!({}), json!(["a"]), json!(-1), json!(0.5)];
    found.extend([
        json!(1e30),
        json!(""),
        json!("unmistakable !"),
        json!("\u{0}"),
        json!("a\nb"),
        json!("\u{202e}"),
    ]);
    found.extend([json!("0"), json!(7), json!(u64::MAX)]);
    if let Some(minimum) = schema["minimum"].as_u64() {
        found.extend(minimum.checked_sub(1).map(Value::from));
    }
    if let Some(maximum) = schema["maximum"].as_u64() {
        found.extend([json!(maximum + 1), json!(maximum.to_string())]);
    }
    for length in ["minLength", "maxLength"] {
        if let Some(length) = schema[length].as_u64() {
            let length = length as usize;
            for text in ["1", "a"] {
                found.extend([json!(text.repeat(length - 1)), json!(text.repeat(length + 1))]);
            }
        }
    }
    if let Some(text) = good.and_then(Value::as_str) {
        let wrong = [
            format!("{text} "),
            format!(" {text}"),
            format!("{text}\0"),
            format!("{text}-"),
            text[1..].to_owned(),
        ];
        found.extend(wrong.map(Value::from));
        found.extend([json!(text.to_lowercase()), json!(text.to_uppercase())]);
        found.push(json!([text]));
    }
    if let Some(all) = good.and_then(Value::as_array) {
        found.extend([json!(all[..1]), json!([all.clone(), all.clone()].concat()), json!(all[0])]);
        let items = values(documented, &schema["items"], Some(&all[0]));
        found.extend(items.into_iter().map(|item| json!([all[0], item])));
    }
    if good.is_some_and(Value::is_object) {
        found.extend(mutations(documented, property, good.unwrap()));
    }
    found
}

/// Bodies that `schema` allows: `good` with one field at each of its bounds, or each of its values.
pub fn bounds(documented: &Documented, schema: &Value, good: &Value) -> Vec<Value> {
    let form = form(documented, schema, good);
    let mut found = vec![];
    for (field, property) in form["properties"].as_object().unwrap() {
        let all = documented.resolve(property);
        let mut own: Vec<_> = all["enum"].as_array().into_iter().flatten().cloned().collect();
        own.extend(["minimum", "maximum", "default"].iter().filter_map(|bound| all.get(*bound).cloned()));
        own.extend(property.get("default").cloned());
        for length in ["minLength", "maxLength"] {
            own.extend(all[length].as_u64().map(|length| json!("a".repeat(length as usize))));
        }
        let mut bodies: Vec<_> = own.into_iter().map(|value| with(good, field, value)).collect();
        if field == "seed_base32" {
            bodies.clear();
            for seed in [26, 103].map(|length| "A".repeat(length)) {
                let mut body = with(good, field, json!(seed));
                body.as_object_mut().unwrap().remove("seed_hex");
                bodies.push(body);
            }
        }
        // Only the HSM can tell which of those a seed is in.
        if field == "seed_wrapped_base64" {
            bodies.clear();
        }
        // One byte is no PIN: what a byte is the schema cannot say.
        bodies.retain(|body| field != "pin" || body["pin"].as_str().unwrap().len() >= 4);
        found.extend(bodies);
        if !form["required"].as_array().unwrap().contains(&json!(field))
            && good.get(field).is_some()
            && field != "pin"
        {
            let mut without = good.clone();
            without.as_object_mut().unwrap().remove(field);
            found.push(without);
        }
    }
    found
}
