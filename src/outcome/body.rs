//! The rest of an answer, as its upstream sends it.
//!
//! An HTTP/2 stream that is reset with `NO_ERROR`, or left by a GOAWAY without an error, reads as
//! an end in the HTTP library. Only a stream that has stated its end is whole (RFC 9113, section
//! 8.1).

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Version;
use http_body::Body;

use crate::wire::decoder::PIECE;

/// The part of an answer's body that was not read yet.
pub struct AnswerBody {
    body: reqwest::Body,
    states_its_end: bool,
    /// The body is encoded. A reader decodes its bytes, so they are returned in small pieces.
    is_encoded: bool,
    /// Bytes that have come and are still to be returned.
    held: Bytes,
}

/// Why an answer was cut before its end.
#[derive(Debug, thiserror::Error)]
pub enum CutAnswer {
    #[error(transparent)]
    Failed(#[from] reqwest::Error),
    #[error("the stream was reset without an error before its end")]
    Unended,
}

impl AnswerBody {
    /// Returns the next bytes, or `None` at the end of a whole answer. Nothing is lost between two
    /// polls.
    pub fn poll_data(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, CutAnswer>> {
        if !self.held.is_empty() {
            return Poll::Ready(Ok(Some(self.next_piece())));
        }
        loop {
            match ready!(Pin::new(&mut self.body).poll_frame(context)).transpose()? {
                // Trailers are no part of the body.
                Some(frame) => match frame.into_data() {
                    Ok(data) => {
                        self.held = data;
                        return Poll::Ready(Ok(Some(self.next_piece())));
                    }
                    Err(_) => continue,
                },
                None if self.states_its_end && !self.body.is_end_stream() => {
                    return Poll::Ready(Err(CutAnswer::Unended));
                }
                None => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// Reads the next bytes, or `None` at the end of a whole answer. Nothing is lost if the caller
    /// stops waiting.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, CutAnswer> {
        poll_fn(|context| self.poll_data(context)).await
    }

    /// Returns the bytes of an encoded body in small pieces.
    pub fn in_pieces(self) -> Self {
        Self { is_encoded: true, ..self }
    }

    /// Takes back bytes that were read and not used: they come once more.
    pub fn take_back(&mut self, data: Bytes) {
        self.held = match self.held.is_empty() {
            true => data,
            false => [&data[..], &self.held].concat().into(),
        };
    }

    fn next_piece(&mut self) -> Bytes {
        match self.is_encoded && self.held.len() > PIECE {
            true => self.held.split_to(PIECE),
            false => std::mem::take(&mut self.held),
        }
    }

    /// Whether all data has been returned, and nothing is left to read. A body that states its end
    /// must be read up to there.
    pub fn is_complete(&self) -> bool {
        self.has_all() && (!self.states_its_end || self.body.is_end_stream())
    }

    /// Whether all data has been returned, as far as the body states its length or its end. A
    /// client that knows the length needs no more.
    pub fn has_all(&self) -> bool {
        let has_come = || self.body.is_end_stream() || self.body.size_hint().exact() == Some(0);
        self.held.is_empty() && has_come()
    }
}

impl From<reqwest::Response> for AnswerBody {
    fn from(response: reqwest::Response) -> Self {
        let states_its_end = response.version() >= Version::HTTP_2;
        Self { body: response.into(), states_its_end, is_encoded: false, held: Bytes::new() }
    }
}
