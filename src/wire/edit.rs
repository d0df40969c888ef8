//! The only edits of an upstream's error frame: its status and its `retry-after`, which an HTTP
//! answer would carry in its head. Every other byte stays as it is. Pure.

use crate::wire::peek::{fields, place};
use crate::wire::quotes::unescaped;
use crate::wire::scan::{NotJson, Scanner};

/// Returns the frame with its status replaced. `None`: the frame states no status.
pub fn with_status(frame: &str, status: u16) -> Option<String> {
    let [status_raw, code_raw] = fields(frame.as_bytes(), ["status", "status_code"]).ok()?;
    let mut places: Vec<_> = [status_raw, code_raw]
        .into_iter()
        .flatten()
        .map(|raw| place(frame.as_bytes(), raw))
        .collect();
    places.sort_unstable();
    let mut edited = frame.to_owned();
    for (start, end) in places.iter().rev() {
        edited.replace_range(start..end, &status.to_string());
    }
    (!places.is_empty()).then_some(edited)
}

/// Returns the frame with one `retry-after` among its headers, which replaces all others. `None`:
/// the frame is not an object.
pub fn with_retry_after(frame: &str, seconds: u64) -> Option<String> {
    let [headers] = fields(frame.as_bytes(), ["headers"]).ok()?;
    let told = format!(r#""retry-after":"{seconds}""#);
    let mut edited = frame.to_owned();
    match headers {
        Some(raw) if raw.starts_with(b"{") => {
            let there = find_waits(raw).ok()?;
            for value in there.iter().rev() {
                let (start, end) = place(frame.as_bytes(), value);
                edited.replace_range(start..end, &format!(r#""{seconds}""#));
            }
            if !there.is_empty() {
                return Some(edited);
            }
            let (start, _) = place(frame.as_bytes(), raw);
            let is_empty = raw[1..raw.len() - 1].trim_ascii().is_empty();
            edited.insert_str(start + 1, &format!("{told}{}", if is_empty { "" } else { "," }));
        }
        Some(raw) => {
            let (start, end) = place(frame.as_bytes(), raw);
            edited.replace_range(start..end, &format!("{{{told}}}"));
        }
        None => {
            let start = frame.find('{')?;
            let is_empty = frame[start + 1..].trim_start().starts_with('}');
            let comma = if is_empty { "" } else { "," };
            edited.insert_str(start + 1, &format!(r#""headers":{{{told}}}{comma}"#));
        }
    }
    Some(edited)
}

/// Returns the value of each `retry-after` in the object `headers`, in order.
fn find_waits(headers: &[u8]) -> Result<Vec<&[u8]>, NotJson> {
    let (mut scanner, mut found) = (Scanner::new(headers), Vec::new());
    if !scanner.take(b'{') || scanner.take(b'}') {
        return Ok(found);
    }
    loop {
        let name = unescaped(scanner.string()?);
        scanner.expect(b':')?;
        let value = scanner.value()?;
        if name.eq_ignore_ascii_case(b"retry-after") {
            found.push(value);
        }
        if !scanner.take(b',') {
            return Ok(found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_replaced_and_nothing_else() {
        for (frame, expected) in [
            (
                r#"{"type":"error","status":401,"error":{"status":401}}"#,
                Some(r#"{"type":"error","status":403,"error":{"status":401}}"#),
            ),
            (
                r#"{"status_code": 401 ,"status":401}"#,
                Some(r#"{"status_code": 403 ,"status":403}"#),
            ),
            (r#"{"type":"error"}"#, None),
            ("x", None),
        ] {
            assert_eq!(with_status(frame, 403).as_deref(), expected, "{frame}");
        }
    }

    #[test]
    fn wait_is_added_where_the_headers_are() {
        for (frame, expected) in [
            (r#"{"type":"error"}"#, r#"{"headers":{"retry-after":"20"},"type":"error"}"#),
            (" { }", r#" {"headers":{"retry-after":"20"} }"#),
            (r#"{"headers":{"a":"b"}}"#, r#"{"headers":{"retry-after":"20","a":"b"}}"#),
            (r#"{"headers":{ }}"#, r#"{"headers":{"retry-after":"20" }}"#),
            (
                r#"{"headers":null,"type":"error"}"#,
                r#"{"headers":{"retry-after":"20"},"type":"error"}"#,
            ),
            (
                r#"{"headers":{"a":"b","Retry-After" : "soon"}}"#,
                r#"{"headers":{"a":"b","Retry-After" : "20"}}"#,
            ),
            (
                r#"{"headers":{"retry\u002dafter":{"x":[1]},"RETRY-AFTER":-1.5,"z":"retry-after"}}"#,
                r#"{"headers":{"retry\u002dafter":"20","RETRY-AFTER":"20","z":"retry-after"}}"#,
            ),
        ] {
            let edited = with_retry_after(frame, 20).unwrap();
            assert_eq!(edited, expected);
            assert!(serde_json::from_str::<serde_json::Value>(&edited).is_ok(), "{edited}");
        }
        assert_eq!(with_retry_after("x", 20), None);
    }
}
