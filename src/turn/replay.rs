//! Reads a turn's body, whole and once, into memory that is bounded: the same bytes can then be sent again.

use std::borrow::Cow;
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, EXPECT};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::error::{Error, Kind};
use crate::session::peek::Peek;
use crate::setting::Size;

/// What the budget for all bodies is counted in: a semaphore counts no further than 2^29.
const UNIT: usize = 4 * 1024;
/// Reserved at once for a body that announces its length; a longer one earns its memory by arriving.
const RESERVE: usize = 1024 * 1024;
/// A body must come at this rate on the whole (bytes a second), after a grace.
const SLOWEST: u64 = 16 * 1024;
const GRACE: Duration = Duration::from_secs(30);
/// What is still read and thrown away of a body that is refused, so that its sender gets to read why.
const DRAIN: Duration = Duration::from_secs(2);
/// What a client is told when memory is short.
const SOON: Duration = Duration::from_secs(1);

/// The memory for bodies of one replica.
pub struct Replay {
    max_body: usize,
    /// Units left of `server.replay_total`.
    free: Arc<Semaphore>,
}

/// A body and its place in the memory for bodies.
pub struct Replayed {
    pub bytes: Bytes,
    max_body: usize,
    _place: Option<OwnedSemaphorePermit>,
}

impl Replay {
    pub fn new(max_body: Size, replay_total: Size) -> Self {
        let units = (replay_total.bytes() / UNIT).clamp(1, Semaphore::MAX_PERMITS);
        Self { max_body: max_body.bytes(), free: Arc::new(Semaphore::new(units)) }
    }

    pub async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Replayed, Error> {
        let mut body = body;
        match self.collect(&mut body).await {
            // A client that waits for a go-ahead sends nothing that would have to be drained.
            Err(error) if error.kind == Kind::RequestTooLarge && !headers.contains_key(EXPECT) => {
                drain(&mut body, self.max_body).await;
                Err(error)
            }
            result => result,
        }
    }

    async fn collect(&self, body: &mut Body) -> Result<Replayed, Error> {
        let announced = body.size_hint().exact().map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX));
        if announced > self.max_body {
            return Err(self.too_large());
        }
        let mut bytes = BytesMut::with_capacity(announced.min(RESERVE));
        let mut place = None;
        let began = Instant::now();
        loop {
            let patience = GRACE + Duration::from_secs(bytes.len() as u64 / SLOWEST);
            let frame = match tokio::time::timeout_at(began + patience, body.frame()).await {
                Ok(None) => break,
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    return Err(Error::new(Kind::InvalidRequest, "The body could not be read.").because(error.to_string()));
                }
                Err(_) => return Err(Error::new(Kind::RequestTimeout, "The body came too slowly.")),
            };
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > self.max_body {
                return Err(self.too_large());
            }
            self.extend(&mut place, bytes.len() + data.len())?;
            bytes.extend_from_slice(&data);
        }
        Ok(Replayed { bytes: bytes.freeze(), max_body: self.max_body, _place: place })
    }

    /// Takes what `length` bytes need, beyond what is taken already.
    fn extend(&self, place: &mut Option<OwnedSemaphorePermit>, length: usize) -> Result<(), Error> {
        let wanted = length.div_ceil(UNIT);
        let taken = place.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if wanted <= taken {
            return Ok(());
        }
        let more = u32::try_from(wanted - taken).ok().and_then(|units| Arc::clone(&self.free).try_acquire_many_owned(units).ok());
        let Some(more) = more else {
            return Err(Error::new(Kind::NoKeyAvailable, "The gateway holds as many request bodies as it may.").retry_after(SOON));
        };
        match place {
            Some(place) => place.merge(more),
            None => *place = Some(more),
        }
        Ok(())
    }

    fn too_large(&self) -> Error {
        Error::new(Kind::RequestTooLarge, format!("The body is larger than {} bytes.", self.max_body))
    }
}

async fn drain(body: &mut Body, limit: usize) {
    let mut seen = 0;
    let discard = async {
        while let Some(Ok(frame)) = body.frame().await {
            seen += frame.data_ref().map_or(0, Bytes::len);
            if seen > limit {
                return;
            }
        }
    };
    // Bounded in time and bytes; how it ends changes nothing.
    let _ = tokio::time::timeout(DRAIN, discard).await;
}

impl Replayed {
    /// The body as JSON text: as it is, or decoded. `None`: an encoding that is not read here.
    pub fn text(&self, headers: &HeaderMap) -> Result<Option<Cow<'_, [u8]>>, Error> {
        let encoding = headers.get(CONTENT_ENCODING).map(|value| value.as_bytes());
        match encoding {
            None | Some(b"" | b"identity") => Ok(Some(Cow::Borrowed(&self.bytes))),
            Some(b"zstd") => zstd::stream::read::Decoder::with_buffer(&self.bytes[..])
                .map_err(not_decodable)
                .and_then(|decoder| self.decode(decoder))
                .map(|text| Some(Cow::Owned(text))),
            Some(b"gzip") => {
                self.decode(flate2::bufread::MultiGzDecoder::new(&self.bytes[..])).map(|text| Some(Cow::Owned(text)))
            }
            Some(_) => Ok(None),
        }
    }

    /// At most `max_body` bytes come out: a small body that unfolds without end is too large.
    fn decode(&self, decoder: impl Read) -> Result<Vec<u8>, Error> {
        let mut text = Vec::new();
        decoder.take(self.max_body as u64 + 1).read_to_end(&mut text).map_err(not_decodable)?;
        if text.len() > self.max_body {
            return Err(Error::new(Kind::RequestTooLarge, format!("The body unfolds to more than {} bytes.", self.max_body)));
        }
        Ok(text)
    }
}

fn not_decodable(error: std::io::Error) -> Error {
    Error::new(Kind::InvalidJson, "The body is not what its content-encoding says.").because(error.to_string())
}

/// Looks at a body's JSON text.
pub fn peek(text: &[u8]) -> Result<Peek, Error> {
    Peek::at(text).map_err(|place| Error::new(Kind::InvalidJson, format!("The body stops being JSON at {place}.")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    const KIB: u64 = 1024;

    fn replay(max_body: u64, total: u64) -> Replay {
        Replay::new(Size(max_body), Size(total))
    }

    async fn read(replay: &Replay, body: Vec<u8>) -> Result<Replayed, &'static str> {
        replay.read(&HeaderMap::new(), Body::from(body)).await.map_err(|error| error.code())
    }

    #[tokio::test]
    async fn the_memory_for_bodies_is_bounded_and_given_back() {
        let replay = replay(64 * KIB, 64 * KIB);
        let first = read(&replay, vec![b'x'; 40 * 1024]).await.unwrap();
        assert_eq!(read(&replay, vec![b'x'; 40 * 1024]).await.err(), Some("no_key_available"));
        drop(first);
        assert!(read(&replay, vec![b'x'; 40 * 1024]).await.is_ok());
        assert_eq!(read(&replay, vec![b'x'; 65 * 1024]).await.err(), Some("request_too_large"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_trickles_is_not_waited_for() {
        let silence = Body::new(http_body_util::StreamBody::new(futures_util::stream::pending::<
            Result<http_body::Frame<Bytes>, std::io::Error>,
        >()));
        let error = replay(KIB, KIB).read(&HeaderMap::new(), silence).await.err().unwrap();
        assert_eq!(error.code(), "request_timeout");
    }

    #[tokio::test]
    async fn an_encoded_body_is_read_and_a_bomb_is_not() {
        let replay = replay(64 * KIB, 1024 * KIB);
        let encoded = |encoding: &'static str| HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(encoding))]);
        let body = read(&replay, zstd::encode_all(&b"{\"model\":\"m\"}"[..], 3).unwrap()).await.unwrap();
        assert_eq!(body.text(&encoded("zstd")).unwrap().unwrap().as_ref(), b"{\"model\":\"m\"}");
        let bomb = read(&replay, zstd::encode_all(&vec![b' '; 10 << 20][..], 3).unwrap()).await.unwrap();
        assert_eq!(bomb.text(&encoded("zstd")).err().map(|error| error.code()), Some("request_too_large"));
        assert_eq!(bomb.text(&encoded("gzip")).err().map(|error| error.code()), Some("invalid_json"));
        assert!(bomb.text(&encoded("br")).unwrap().is_none());
    }
}
