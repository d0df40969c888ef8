//! The form in which an answer reaches the client: as the upstream wrote it, or translated.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;

use crate::chat::answer;
use crate::chat::request::Wish;
use crate::chat::stream::Stream;
use crate::error::{Error, ErrorKind};
use crate::key::Key;
use crate::outcome::Answer;
use crate::turn::http::translation::{AnswerWork, Counted, Translation};
use crate::turn::http::whole::Whole;
use crate::turn::memory::{BodyMemory, MemoryPlace};
use crate::usage::tap::Tap;
use crate::wire::decoder::Coding;
use crate::wire::endpoint::Dialect;
use crate::wire::event::is_stream;

/// Maximum bytes of an answer that is translated as a whole.
const LONGEST: usize = 64 * 1024 * 1024;

/// How an answer is read, and what the client receives of it.
pub enum Form {
    /// The upstream's own bytes, in this dialect.
    Native(Dialect),
    /// A stream of Responses events, translated into chat chunks.
    Stream(Box<Translation>),
    /// A whole response, translated.
    Document(Box<Document>),
}

/// A whole response after its translation, and what the gateway learned from the response.
pub struct Document {
    /// The translated text. It counts in the memory until the client has received it.
    pub text: Bytes,
    pub tap: Tap,
    /// The response repeats the secret of its key.
    pub has_leaked: bool,
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
    key: &Key,
    work: AnswerWork,
) -> Result<Form, Error> {
    if !answer.status.is_success() {
        return Ok(Form::Native(Dialect::Responses));
    }
    answer.headers.remove(CONTENT_LENGTH);
    if is_stream(&answer.headers) {
        let stream = Stream::new(wish.include_usage);
        return Ok(Form::Stream(Box::new(Translation::new(stream, work))));
    }
    // Only the whole document tells whether the response failed.
    let mut place = MemoryPlace::default();
    collect(answer, key.upstream.idle_timeout, (&work.memory, &mut place)).await?;
    let whole = std::mem::take(&mut answer.head);
    let length = whole.len();
    let (mut tap, mut leak_scan) = (Tap::new(&answer.headers), key.leak.scan());
    let translate = move || {
        tap.observe(&whole);
        (answer::translate(&whole), tap, leak_scan.finds(&whole))
    };
    let (translated, tap, has_leaked) = work.translate(length, &mut place, translate).await?;
    let bytes = translated.unwrap_or_else(|failure| {
        answer.status = failure.status;
        failure.body
    });
    answer.headers.insert(CONTENT_LENGTH, bytes.len().into());
    // The translation may be longer than the document and its copies.
    work.memory.follow_answer(&mut place, bytes.capacity())?;
    let text = Counted { bytes, place }.into();
    Ok(Form::Document(Box::new(Document { text, tap, has_leaked })))
}

/// Checks that an answer to a translated turn can be read. No coding was asked for.
pub fn check_coding(answer: &Answer) -> Result<(), Error> {
    match !answer.status.is_success() || Coding::of(&answer.headers) == Coding::Plain {
        true => Ok(()),
        false => Err(Error::new(
            ErrorKind::UpstreamUnreachable,
            "The upstream encoded an answer that has to be translated.",
        )),
    }
}

/// Reads the rest of an answer into `answer.head`, which counts in the memory.
async fn collect(
    answer: &mut Answer,
    idle_timeout: Duration,
    (memory, place): (&BodyMemory, &mut MemoryPlace),
) -> Result<(), Error> {
    let Some(mut rest) = answer.rest.take() else { return Ok(()) };
    let mut whole = Whole::new(0, LONGEST);
    whole.extend(&answer.head)?;
    loop {
        match tokio::time::timeout(idle_timeout, rest.chunk()).await {
            Err(_) => {
                let message = "The upstream's answer stalled.";
                return Err(Error::new(ErrorKind::UpstreamTimeout, message));
            }
            Ok(Err(_)) => return Err(lost("The upstream closed within the answer.")),
            Ok(Ok(Some(data))) if whole.length() + data.len() > LONGEST => {
                return Err(lost("The upstream's answer is too long to be translated."));
            }
            Ok(Ok(Some(data))) => {
                memory.await_answer(place, whole.length() + data.len()).await?;
                whole.extend(&data)?;
            }
            Ok(Ok(None)) => break,
        }
    }
    answer.head = whole.into_bytes();
    Ok(())
}

fn lost(message: &str) -> Error {
    Error::new(ErrorKind::UpstreamInterrupted, message).retry_after(Duration::from_secs(1))
}
