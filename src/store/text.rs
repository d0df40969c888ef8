//! Reads the texts in Redis's answers, of which another version may have written some.

use redis::{FromRedisValue, ParsingError, Value};

/// A text in an answer. Bytes that are not UTF-8 become U+FFFD, which no version writes. The
/// readers of a text therefore pass over the words with such bytes, as over all unknown words.
pub struct ReplyText(String);

impl ReplyText {
    /// The texts as strings.
    pub fn all(texts: Vec<Self>) -> Vec<String> {
        texts.into_iter().map(String::from).collect()
    }
}

impl From<ReplyText> for String {
    fn from(ReplyText(text): ReplyText) -> Self {
        text
    }
}

impl FromRedisValue for ReplyText {
    fn from_redis_value(value: Value) -> Result<Self, ParsingError> {
        match value {
            Value::BulkString(bytes) => Ok(Self(String::from_utf8_lossy(&bytes).into_owned())),
            value => String::from_redis_value(value).map(Self),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_not_utf8_spoil_no_other_text() {
        let bulk = |bytes: &[u8]| Value::BulkString(bytes.to_vec());
        let answer = Value::Array(vec![
            bulk(b"a 1"),
            bulk(b"\xff"),
            bulk(b"b \xc3( 2"),
            Value::SimpleString("c".into()),
        ]);
        let texts = ReplyText::all(Vec::from_redis_value(answer).unwrap());
        assert_eq!(texts, ["a 1", "\u{fffd}", "b \u{fffd}( 2", "c"]);
        assert!(Option::<ReplyText>::from_redis_value(Value::Nil).unwrap().is_none());
        assert!(ReplyText::from_redis_value(Value::Array(Vec::new())).is_err());
    }
}
