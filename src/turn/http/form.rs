//! The form in which an answer reaches the client: as the upstream wrote it, or translated.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;

use crate::chat::answer;
use crate::chat::request::Wish;
use crate::chat::stream::Stream;
use crate::error::{Error, ErrorKind};
use crate::outcome::Answer;
use crate::usage::tap::Tap;
use crate::wire::decoder::Coding;
use crate::wire::endpoint::Dialect;
use crate::wire::event::is_stream;

/// Maximum bytes of an answer that is translated as a whole.
const LONGEST: usize = 64 * 1024 * 1024;

/// How an answer is read, and what the client receives of it.
pub enum Form {
    /// Its own bytes, in this dialect.
    Native(Dialect),
    /// A stream of Responses events, as chat chunks.
    Stream(Box<Stream>),
    /// A whole response, and its translation.
    Document(Vec<u8>),
}

impl Form {
    /// A tap on an answer of this form.
    pub fn tap(&self, headers: &HeaderMap) -> Tap {
        match self {
            Self::Native(Dialect::Chat) => Tap::on_chat(headers),
            _ => Tap::new(headers),
        }
    }
}

/// Prepares the answer to a turn that was translated for its upstream. Errors pass as they are:
/// both dialects write them alike.
pub async fn prepare_answer(
    answer: &mut Answer,
    wish: Wish,
    idle_timeout: Duration,
) -> Result<Form, Error> {
    if !answer.status.is_success() {
        return Ok(Form::Native(Dialect::Responses));
    }
    if Coding::of(&answer.headers) != Coding::Plain {
        return Err(lost("The upstream encoded an answer that has to be translated."));
    }
    answer.headers.remove(CONTENT_LENGTH);
    if is_stream(&answer.headers) {
        return Ok(Form::Stream(Box::new(Stream::new(wish.include_usage))));
    }
    // Only the whole document tells whether the response failed.
    collect(answer, idle_timeout).await?;
    let document = answer::translate(&answer.head).unwrap_or_else(|failure| {
        answer.status = failure.status;
        failure.body
    });
    answer.headers.insert(CONTENT_LENGTH, document.len().into());
    Ok(Form::Document(document))
}

/// Reads the rest of an answer into its head.
async fn collect(answer: &mut Answer, idle_timeout: Duration) -> Result<(), Error> {
    let Some(mut rest) = answer.rest.take() else { return Ok(()) };
    let mut whole = BytesMut::from(&answer.head[..]);
    loop {
        match tokio::time::timeout(idle_timeout, rest.chunk()).await {
            Err(_) => {
                let message = "The upstream's answer stalled.";
                return Err(Error::new(ErrorKind::UpstreamTimeout, message));
            }
            Ok(Err(_)) => return Err(lost("The upstream closed within the answer.")),
            Ok(Ok(Some(data))) if whole.len() + data.len() > LONGEST => {
                return Err(lost("The upstream's answer is too long to be translated."));
            }
            Ok(Ok(Some(data))) => whole.extend_from_slice(&data),
            Ok(Ok(None)) => break,
        }
    }
    answer.head = Bytes::from(whole);
    Ok(())
}

fn lost(message: &str) -> Error {
    Error::new(ErrorKind::UpstreamInterrupted, message).retry_after(Duration::from_secs(1))
}
