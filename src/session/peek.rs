//! Finds the few top-level fields that routing needs in a body of any size, without building anything from the rest.
//!
//! Never stricter than an upstream: duplicate fields are last-wins, unknown types and fields pass, depth is unlimited, and
//! text that is not read need not be valid UTF-8. What is not JSON at all is an error, since nothing could be checked.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// A field that should hold text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Field {
    #[default]
    Absent,
    /// Another type, or text that is no Unicode.
    Malformed,
    Text(String),
}

impl Field {
    fn of(raw: Option<&RawValue>) -> Self {
        match raw.map(|raw| (raw.get(), serde_json::from_str(raw.get()))) {
            None | Some(("null", _)) => Self::Absent,
            Some((_, Ok(text))) => Self::Text(text),
            Some((_, Err(_))) => Self::Malformed,
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Absent | Self::Malformed => None,
        }
    }
}

/// What one look at a body finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peek {
    pub model: Field,
    pub prompt_cache_key: Field,
    /// `client_metadata.session_id`
    pub session_id: Field,
    /// `conversation`, as a string or as `conversation.id`
    pub conversation: Field,
}

/// The body is not JSON.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}")]
pub struct NotJson {
    pub line: usize,
    pub column: usize,
}

impl Peek {
    pub fn at(body: &[u8]) -> Result<Self, NotJson> {
        let [model, key, metadata, conversation] = fields(body, ["model", "prompt_cache_key", "client_metadata", "conversation"])
            .map_err(|error| NotJson { line: error.line(), column: error.column() })?;
        Ok(Self {
            model: Field::of(model),
            prompt_cache_key: Field::of(key),
            session_id: inner(metadata, "session_id").unwrap_or_default(),
            conversation: inner(conversation, "id").unwrap_or_else(|| Field::of(conversation)),
        })
    }
}

/// The field `name` of `raw`, if that is an object.
fn inner(raw: Option<&RawValue>, name: &'static str) -> Option<Field> {
    let raw = raw.filter(|raw| raw.get().starts_with('{'))?;
    fields(raw.get().as_bytes(), [name]).ok().map(|[field]| Field::of(field))
}

/// The parts of a body that stay the same for a whole conversation, as written: the model, `instructions`, `tools`, the
/// leading system and developer items, the first user item. `None` where there is no user text to tell conversations apart.
pub fn stable_prefix(body: &[u8]) -> Option<Vec<&[u8]>> {
    let [model, instructions, tools, input] = fields(body, ["model", "instructions", "tools", "input"]).ok()?;
    let mut parts: Vec<&[u8]> = [model, instructions, tools].map(|raw| raw.map_or("", RawValue::get).as_bytes()).into();
    let input = input?.get();
    if input.starts_with('"') {
        parts.push(input.as_bytes());
        return (input.len() > 2).then_some(parts);
    }
    for item in serde_json::from_str::<Vec<&RawValue>>(input).ok()? {
        let [role, content] = fields(item.get().as_bytes(), ["role", "content"]).ok()?;
        parts.push(content.map_or("", RawValue::get).as_bytes());
        match role.map(RawValue::get) {
            // Tools may stand in the input as an item without content of its own.
            Some(r#""system""# | r#""developer""#) if content.is_none() => parts.push(item.get().as_bytes()),
            Some(r#""system""# | r#""developer""#) => {}
            Some(r#""user""#) => return Some(parts),
            _ => return None,
        }
    }
    None
}

/// The top-level fields `names` of `body`, last one wins. No object: none of them.
fn fields<'a, const N: usize>(body: &'a [u8], names: [&'static str; N]) -> Result<[Option<&'a RawValue>; N], serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let found = if body.trim_ascii_start().first() == Some(&b'{') {
        deserializer.deserialize_map(Fields(names))?
    } else {
        IgnoredAny::deserialize(&mut deserializer)?;
        [None; N]
    };
    deserializer.end()?;
    Ok(found)
}

struct Fields<const N: usize>([&'static str; N]);

impl<'de, const N: usize> Visitor<'de> for Fields<N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = [None; N];
        while let Some(place) = map.next_key_seed(NameOf(&self.0))? {
            match place {
                Some(place) => found[place] = Some(map.next_value()?),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(found)
    }
}

/// Which of the wanted names a key is. Keys are read as bytes: a key that is no Unicode is merely none of them.
struct NameOf<'n>(&'n [&'static str]);

impl<'de> DeserializeSeed<'de> for NameOf<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_bytes(self)
    }
}

impl<'de> Visitor<'de> for NameOf<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_bytes<E: Error>(self, key: &[u8]) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|name| name.as_bytes() == key))
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        self.visit_bytes(key.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Field {
        Field::Text(text.into())
    }

    #[test]
    fn it_finds_what_routing_needs() {
        let peek = Peek::at(br#"{"model":"gpt-5.4","input":[{"prompt_cache_key":"inner"}],"prompt_cache_key":"k","client_metadata":{"a":1,"session_id":"s"},"conversation":{"id":"c"}}"#).unwrap();
        assert_eq!(
            peek,
            Peek { model: text("gpt-5.4"), prompt_cache_key: text("k"), session_id: text("s"), conversation: text("c") }
        );
        assert_eq!(Peek::at(br#"{"conversation":"c"}"#).unwrap().conversation, text("c"));
    }

    #[test]
    fn the_last_of_duplicate_fields_wins() {
        assert_eq!(Peek::at(br#"{"model":"a","model":"b"}"#).unwrap().model, text("b"));
        assert_eq!(Peek::at(br#"{"prompt_cache_key":"a","prompt_cache_key":7}"#).unwrap().prompt_cache_key, Field::Malformed);
    }

    #[test]
    fn wrong_types_are_malformed_not_fatal() {
        let peek = Peek::at(br#"{"model":7,"prompt_cache_key":[],"client_metadata":"x","conversation":{"id":{}}}"#).unwrap();
        let malformed = Field::Malformed;
        assert_eq!(
            peek,
            Peek {
                model: malformed.clone(),
                prompt_cache_key: malformed.clone(),
                session_id: Field::Absent,
                conversation: malformed
            }
        );
        assert_eq!(Peek::at(br#"{"prompt_cache_key":null}"#).unwrap(), Peek::default());
    }

    #[test]
    fn whatever_is_json_passes() {
        let deep = format!(r#"{{"input":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let bodies: [&[u8]; 9] = [
            b"[]",
            b" 7 ",
            b"\"text\"",
            b"null",
            b"{}",
            deep.as_bytes(),
            br#"{"n":[-0,1.0e2,123456789012345678901234567890,1E+400],"\ud800":"\udfff\u0000"}"#,
            b"{\"input\":\"\xff\xfe\"}",
            b"\r\n\t{ \"model\" : \"m\" }\n",
        ];
        for body in bodies {
            assert!(Peek::at(body).is_ok(), "{}", String::from_utf8_lossy(&body[..body.len().min(60)]));
        }
    }

    #[test]
    fn what_is_not_json_does_not() {
        for body in
            ["", "{", "{\"a\":1", "{\"a\":1}x", "{'a':1}", "{\"a\":01}", "{\"a\":NaN}", "{\"a\":1,}", "model=gpt", "{1:2}"]
        {
            assert!(Peek::at(body.as_bytes()).is_err(), "{body}");
        }
    }

    #[test]
    fn a_stable_prefix_is_the_same_all_conversation_long() {
        let turn = |rest: &str| {
            format!(
                r#"{{"model":"m","tools":[{{"name":"t"}}],"input":[{{"role":"developer","content":"d"}},{{"role":"user","content":"u"}}{rest}]}}"#
            )
        };
        let (first, later) = (turn(""), turn(r#",{"role":"assistant","content":"a"},{"role":"user","content":"v"}"#));
        assert_eq!(stable_prefix(first.as_bytes()).unwrap(), stable_prefix(later.as_bytes()).unwrap());
        let other = first.replace(r#""u""#, r#""w""#);
        assert_ne!(stable_prefix(first.as_bytes()), stable_prefix(other.as_bytes()));
        for nothing in [r#"{}"#, r#"{"input":""}"#, r#"{"input":[]}"#, r#"{"input":[{"role":"assistant"}]}"#, r#"{"input":7}"#] {
            assert_eq!(stable_prefix(nothing.as_bytes()), None, "{nothing}");
        }
    }
}
