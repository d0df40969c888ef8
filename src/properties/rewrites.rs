//! Properties of the code that writes into bodies and reads queries. They hold for arbitrary bytes.

use serde_json::Value;

use crate::wire::peek::fields;
use crate::wire::query::name_of;
use crate::wire::rename::with_model;

/// A name that JSON has to escape.
const NAME: &str = "an\"other\\";

/// A body with another model differs only in its model; every other byte stays.
pub fn rename(text: &[u8]) {
    let own = fields(text, ["model"]).ok().and_then(|[model]| model);
    let renamed = with_model(text, NAME);
    assert_eq!(renamed.is_some(), own.is_some());
    let (Some(renamed), Some(own)) = (renamed, own) else { return };
    let name = Value::from(NAME).to_string();
    let at = own.as_ptr().addr() - text.as_ptr().addr();
    let (before, after) = (&text[..at], &text[at + own.len()..]);
    assert_eq!(renamed, [before, name.as_bytes(), after].concat());
    // serde_json reads nothing that is nested deeper than 128 levels.
    if let Ok(Value::Object(mut body)) = serde_json::from_slice(text) {
        body.insert("model".into(), NAME.into());
        let read: Value = serde_json::from_slice(&renamed).expect("it is still JSON");
        assert_eq!(read, Value::Object(body));
    }
}

/// A parameter's name is the same however its bytes are percent-encoded.
pub fn query(name: &[u8], encoded: &[bool]) {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let mut pair = String::new();
    for (at, byte) in name.iter().enumerate() {
        if plain(*byte) && !encoded.get(at).copied().unwrap_or(true) {
            pair.push(char::from(*byte));
        } else {
            pair.push_str(&format!("%{byte:02X}"));
        }
    }
    let expected = String::from_utf8_lossy(name);
    assert_eq!(name_of(&pair), expected);
    assert_eq!(name_of(&format!("{pair}=value%3D")), expected);
}
