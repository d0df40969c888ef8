//! Sends a body in which one value is replaced, and nothing else. A long body is sent in parts.
//! Copying megabytes would take many milliseconds, in which the other turns of the thread would
//! wait.

use std::array::IntoIter;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// The longest text that is copied, so that it goes out in one write.
const SHORT: usize = 64 * 1024;

/// Returns `text` with `value`, as JSON, in place of the value from `start` to `end`.
pub fn with_value(text: &Bytes, (start, end): (usize, usize), value: &str) -> reqwest::Body {
    let value = Bytes::from(serde_json::Value::from(value).to_string());
    let parts = [text.slice(..start), value, text.slice(end..)];
    if text.len() <= SHORT {
        return parts.concat().into();
    }
    let length = parts.iter().map(|part| part.len() as u64).sum();
    reqwest::Body::wrap(Parts { left: parts.into_iter(), length })
}

/// A body of known length, in parts.
struct Parts {
    left: IntoIter<Bytes, 3>,
    /// Bytes of the parts that are not sent yet.
    length: u64,
}

impl Body for Parts {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = self.left.find(|part| !part.is_empty());
        self.length -= next.as_ref().map_or(0, |part| part.len() as u64);
        Poll::Ready(next.map(|part| Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.length == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn value_is_replaced_in_a_body_of_any_length_and_a_long_one_is_not_copied() {
        for length in [0, SHORT, SHORT + 1, 20 * SHORT] {
            let text = format!(r#"{{"model":"m","input":"{}"}}"#, "x".repeat(length));
            let expected = text.replace("\"m\"", r#""a\"b""#);
            let text = Bytes::from(text);
            let body = with_value(&text, (9, 12), "a\"b");
            assert_eq!(Body::size_hint(&body).exact(), Some(expected.len() as u64));
            assert_eq!(body.as_bytes().is_none(), text.len() > SHORT, "{length}");
            let mut body = body;
            let (mut sent, mut is_shared) = (Vec::new(), false);
            while let Some(frame) = body.frame().await {
                let part = frame.unwrap().into_data().unwrap();
                is_shared |= part.as_ptr() == text[12..].as_ptr();
                sent.extend_from_slice(&part);
            }
            assert!(sent == expected.as_bytes(), "{length}");
            assert_eq!(is_shared, text.len() > SHORT, "{length}");
        }
    }
}
