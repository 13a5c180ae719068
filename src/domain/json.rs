//! JSON objects from outside, in which nothing is there twice.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// The object that a JSON text is (RFC 8259, UTF-8).
///
/// `None` for anything else, and for an object that has a member twice, at any depth and however its name is
/// escaped: of two members one reader sees the first and another the last. `None` as well for half a
/// surrogate pair, for a number beyond every float, and for what is nested deeper than 127 levels.
pub fn object(text: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_str(std::str::from_utf8(text).ok()?).ok()? {
        Strict(Value::Object(members)) => Some(members),
        Strict(_) => None,
    }
}

/// A value in which no object has a member twice. [`Value`] itself would keep the last one.
struct Strict(Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue).map(Self)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            // Before its value is read: a text of nothing but repetitions is given up at the second.
            if object.contains_key(&name) {
                return Err(A::Error::custom("a member twice"));
            }
            let Strict(value) = members.next_value()?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_object_is_read_as_serde_reads_it() {
        for text in [
            "{}",
            r#" { "a" : [ 1 , -1 , 1.5 , true , null , "x" , { "a" : { "a" : [ ] } } ] } "#,
            r#"{"a":1,"A":1,"":1,"\u0000":1,"a\u0000":1,"\u00e4":"\ud83d\ude00"}"#,
            r#"{"n":18446744073709551615,"m":-9223372036854775808,"e":1e308,"z":-0}"#,
            // The same name at two places is two members.
            r#"[{"a":1},{"a":1}]"#.replace('[', "{\"a\":[").replacen(']', "]}", 1).as_str(),
        ] {
            let value: Value = serde_json::from_str(text).unwrap();
            assert_eq!(object(text.as_bytes()).map(Value::Object), Some(value), "{text}");
        }
    }

    #[test]
    fn nothing_is_there_twice() {
        for text in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"b":2,"a":1}"#,
            r#"{"a":1,"\u0061":1}"#,
            r#"{"\u0061":1,"a":1}"#,
            r#"{"/":1,"\/":1}"#,
            r#"{"\u00e4":1,"ä":1}"#,
            r#"{"\ud83d\ude00":1,"😀":1}"#,
            r#"{"":1,"":1}"#,
            r#"{"a":{"b":1,"b":1}}"#,
            r#"{"a":[1,[{"b":{"c":1,"d":2,"\u0063":1}}]]}"#,
        ] {
            assert!(serde_json::from_str::<Value>(text).is_ok(), "it is no other fault: {text}");
            assert_eq!(object(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in [
            "",
            " ",
            "null",
            "true",
            "1",
            r#""a""#,
            "[]",
            "[{}]",
            "{",
            "}",
            "{}}",
            "{}{}",
            "{},",
            "{a:1}",
            r#"{"a"}"#,
            r#"{"a":1,}"#,
            r#"{"a":01}"#,
            r#"{"a":NaN}"#,
            r#"{'a':1}"#,
            "{}//",
            "{}\0",
            "\u{feff}{}",
            "{\u{a0}}",
            "{\"a\":\"\n\"}",
            r#"{"a":"\ud800"}"#,
            r#"{"\ud800":1}"#,
            r#"{"a":1e999}"#,
        ] {
            assert_eq!(object(text.as_bytes()), None, "{text:?}");
        }
        assert_eq!(object(b"{\"a\":\"\xff\"}"), None);
        assert_eq!(object(b"{\"a\":\"\xed\xa0\x80\"}"), None, "a surrogate is no UTF-8");
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |levels: usize| format!("{{\"a\":{}{}}}", "[".repeat(levels), "]".repeat(levels));
        assert!(object(nested(126).as_bytes()).is_some());
        assert!(object(nested(127).as_bytes()).is_none());
        assert!(object(nested(500_000).as_bytes()).is_none(), "no stack overflows");
        assert!(object("{\"a\":".repeat(500_000).as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn never_panics(bytes: Vec<u8>, text in r#"[{}\[\]",:\\u0-9a-f]{0,60}"#) {
            let _ = object(&bytes);
            let read = object(text.as_bytes());
            if let Some(members) = read {
                prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), Value::Object(members));
            }
        }

        #[test]
        fn a_member_put_twice_is_seen(names in prop::collection::hash_set(".{0,8}", 1..6), at: prop::sample::Index) {
            let names: Vec<_> = names.into_iter().collect();
            let spelled = |names: &[String]| {
                let members: Vec<_> =
                    names.iter().map(|name| format!("{}:0", Value::from(name.as_str()))).collect();
                format!("{{{}}}", members.join(","))
            };
            prop_assert!(object(spelled(&names).as_bytes()).is_some());
            let again = [names.clone(), vec![at.get(&names).clone()]].concat();
            prop_assert!(object(spelled(&again).as_bytes()).is_none());
        }
    }
}
