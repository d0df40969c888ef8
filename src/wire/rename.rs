//! Writes another model's name into a body, where an operator maps names. Pure.
//!
//! All other bytes stay as they are, so that the prefix of a conversation stays the same, too.

use crate::wire::peek::{fields, place};

/// Returns `text` with `name` as its top-level `model`. `None`: the text names no model.
pub fn with_model(text: &[u8], name: &str) -> Option<Vec<u8>> {
    with_field(text, "model", name)
}

/// Returns `text` with `name` as the value of its top-level `field`. `None`: the text has no such
/// field.
pub fn with_field(text: &[u8], field: &'static str, name: &str) -> Option<Vec<u8>> {
    let [model] = fields(text, [field]).ok()?;
    let model = model?;
    let (start, end) = place(text, model);
    let name = serde_json::Value::from(name).to_string();
    Some([&text[..start], name.as_bytes(), &text[end..]].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_alone_is_replaced() {
        let renamed = |text: &str| {
            with_model(text.as_bytes(), "a\"b").map(|text| String::from_utf8(text).unwrap())
        };
        for (text, expected) in [
            (r#"{"model":"m"}"#, Some(r#"{"model":"a\"b"}"#)),
            (
                r#" { "input":{"model":"m"}, "mod\u0065l" : "m" , "x":1 }"#,
                Some(r#" { "input":{"model":"m"}, "mod\u0065l" : "a\"b" , "x":1 }"#),
            ),
            (r#"{"model":"m","model":"n"}"#, Some(r#"{"model":"m","model":"a\"b"}"#)),
            (r#"{"input":"model"}"#, None),
            ("[]", None),
            ("{", None),
        ] {
            assert_eq!(renamed(text).as_deref(), expected, "{text}");
        }
    }
}
