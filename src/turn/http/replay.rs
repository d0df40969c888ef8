//! Reads a turn's body once, as a whole, into bounded memory, so that the same bytes can be sent
//! again.

use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::EXPECT;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::error::{Error, ErrorKind};
use crate::setting::Size;
use crate::wire::decoder::Coding;
use crate::wire::peek::Peek;

/// The unit in bytes that the memory for bodies is counted in. A permit is a `u32`, and a body may
/// be larger.
const UNIT: usize = 4 * 1024;
/// Buffer that is reserved at once for a body that announces its length. A longer body gets more as
/// it arrives.
const RESERVE: usize = 1024 * 1024;
/// Bytes that are decoded in one step.
const STEP: usize = 64 * 1024;
/// Lowest average rate of a body in bytes a second, after a grace.
const SLOWEST: u64 = 16 * 1024;
const GRACE: Duration = Duration::from_secs(30);
/// Time for which the rest of a refused body is read and discarded, so that its sender reads the
/// error.
const DRAIN: Duration = Duration::from_secs(2);
/// `Retry-After` when the memory for bodies is full.
const SOON: Duration = Duration::from_secs(1);

/// The memory for bodies of one replica.
pub struct Replay {
    max_body: usize,
    /// Units left of `server.replay_total`.
    free: Arc<Semaphore>,
}

/// A body and its permit for the memory.
pub struct Replayed {
    pub bytes: Bytes,
    _place: Option<OwnedSemaphorePermit>,
}

/// A body's JSON text.
pub enum Text<'b> {
    /// Unencoded, as the client sent it.
    Plain(&'b [u8]),
    /// Decoded, with its own permit for the memory. Dropped right after the scan.
    Decoded(Vec<u8>, Option<OwnedSemaphorePermit>),
    /// In an encoding that the gateway cannot decode.
    Unreadable,
}

impl Text<'_> {
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(text) => Some(text),
            Self::Decoded(text, _) => Some(text),
            Self::Unreadable => None,
        }
    }
}

impl Replay {
    pub fn new(max_body: Size, replay_total: Size) -> Self {
        let units = (replay_total.bytes() / UNIT).clamp(1, Semaphore::MAX_PERMITS);
        Self { max_body: max_body.bytes(), free: Arc::new(Semaphore::new(units)) }
    }

    pub async fn read(&self, headers: &HeaderMap, body: Body) -> Result<Replayed, Error> {
        let mut body = body;
        match self.collect(&mut body).await {
            // A client that waits for `100 Continue` has sent nothing to drain.
            Err(error)
                if error.kind == ErrorKind::RequestTooLarge && !headers.contains_key(EXPECT) =>
            {
                drain(&mut body, self.max_body).await;
                Err(error)
            }
            result => result,
        }
    }

    async fn collect(&self, body: &mut Body) -> Result<Replayed, Error> {
        let announced = body
            .size_hint()
            .exact()
            .map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX));
        if announced > self.max_body {
            return Err(self.too_large());
        }
        let mut bytes = BytesMut::with_capacity(announced.min(RESERVE));
        let mut place = None;
        let began = Instant::now();
        loop {
            let timeout = GRACE + Duration::from_secs(bytes.len() as u64 / SLOWEST);
            let frame = match tokio::time::timeout_at(began + timeout, body.frame()).await {
                Ok(None) => break,
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    return Err(Error::new(
                        ErrorKind::InvalidRequest,
                        "The body could not be read.",
                    )
                    .because(error.to_string()));
                }
                Err(_) => {
                    return Err(Error::new(
                        ErrorKind::RequestTimeout,
                        "The body arrived too slowly.",
                    ));
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > self.max_body {
                return Err(self.too_large());
            }
            self.extend(&mut place, bytes.len() + data.len())?;
            bytes.extend_from_slice(&data);
        }
        Ok(Replayed { bytes: bytes.freeze(), _place: place })
    }

    /// Takes permits until `length` bytes are covered.
    fn extend(&self, place: &mut Option<OwnedSemaphorePermit>, length: usize) -> Result<(), Error> {
        let wanted = length.div_ceil(UNIT);
        let taken = place.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if wanted <= taken {
            return Ok(());
        }
        let more = u32::try_from(wanted - taken)
            .ok()
            .and_then(|units| Arc::clone(&self.free).try_acquire_many_owned(units).ok());
        let Some(more) = more else {
            return Err(Error::new(
                ErrorKind::NoKeyAvailable,
                "The gateway's memory for request bodies is full.",
            )
            .retry_after(SOON));
        };
        match place {
            Some(place) => place.merge(more),
            None => *place = Some(more),
        }
        Ok(())
    }

    fn too_large(&self) -> Error {
        Error::new(
            ErrorKind::RequestTooLarge,
            format!("The body is larger than {} bytes.", self.max_body),
        )
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
    // Limited in time and bytes; the result does not matter.
    let _ = tokio::time::timeout(DRAIN, discard).await;
}

impl Replay {
    /// Returns the body as JSON text, decoded if necessary.
    pub fn text<'b>(&self, headers: &HeaderMap, body: &'b Replayed) -> Result<Text<'b>, Error> {
        match Coding::of(headers) {
            Coding::Plain => Ok(Text::Plain(&body.bytes)),
            Coding::Zstd => self.decode(
                zstd::stream::read::Decoder::with_buffer(&body.bytes[..]).map_err(not_decodable)?,
            ),
            Coding::Gzip => self.decode(flate2::bufread::MultiGzDecoder::new(&body.bytes[..])),
            Coding::Unknown => Ok(Text::Unreadable),
        }
    }

    /// Decodes at most `max_body` bytes, and counts all of them. A small body that decodes to too
    /// many bytes is too large.
    fn decode<'b>(&self, mut decoder: impl Read) -> Result<Text<'b>, Error> {
        let (mut text, mut place) = (Vec::new(), None);
        loop {
            self.extend(&mut place, text.len() + STEP)?;
            let read =
                decoder.by_ref().take(STEP as u64).read_to_end(&mut text).map_err(not_decodable)?;
            if text.len() > self.max_body {
                return Err(Error::new(
                    ErrorKind::RequestTooLarge,
                    format!("The body decodes to more than {} bytes.", self.max_body),
                ));
            }
            if read == 0 {
                return Ok(Text::Decoded(text, place));
            }
        }
    }
}

fn not_decodable(error: std::io::Error) -> Error {
    Error::new(ErrorKind::InvalidJson, "The body is not what its content-encoding says.")
        .because(error.to_string())
}

/// Scans a body's JSON text.
pub fn peek(text: &[u8]) -> Result<Peek, Error> {
    Peek::at(text).map_err(|place| {
        Error::new(ErrorKind::InvalidJson, format!("The body stops being JSON at {place}."))
    })
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
    async fn memory_for_bodies_is_limited_and_released() {
        let replay = replay(64 * KIB, 64 * KIB);
        let first = read(&replay, vec![b'x'; 40 * 1024]).await.unwrap();
        assert_eq!(read(&replay, vec![b'x'; 40 * 1024]).await.err(), Some("no_key_available"));
        drop(first);
        assert!(read(&replay, vec![b'x'; 40 * 1024]).await.is_ok());
        assert_eq!(read(&replay, vec![b'x'; 65 * 1024]).await.err(), Some("request_too_large"));
    }

    #[tokio::test(start_paused = true)]
    async fn body_that_trickles_times_out() {
        let silence = Body::new(http_body_util::StreamBody::new(futures_util::stream::pending::<
            Result<http_body::Frame<Bytes>, std::io::Error>,
        >()));
        let began = Instant::now();
        let error = replay(KIB, KIB).read(&HeaderMap::new(), silence).await.err().unwrap();
        assert_eq!((error.code(), began.elapsed()), ("request_timeout", GRACE));
    }

    /// A body of `count` chunks of `size` bytes, one a second.
    fn dripping(size: usize, count: usize) -> Body {
        Body::new(http_body_util::StreamBody::new(futures_util::stream::unfold(
            0,
            move |sent| async move {
                if sent == count {
                    return None;
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                Some((
                    Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from(vec![b'x'; size]))),
                    sent + 1,
                ))
            },
        )))
    }

    #[tokio::test(start_paused = true)]
    async fn body_may_take_the_time_that_its_length_allows() {
        let (replay, began) = (replay(4096 * KIB, 4096 * KIB), Instant::now());
        let body = replay.read(&HeaderMap::new(), dripping(16 * 1024, 120)).await.unwrap();
        assert_eq!(
            (body.bytes.len(), began.elapsed()),
            (120 * 16 * 1024, Duration::from_secs(120))
        );
        drop(body);
        let began = Instant::now();
        let error = replay.read(&HeaderMap::new(), dripping(8 * 1024, 120)).await.err().unwrap();
        assert_eq!(error.code(), "request_timeout");
        // By then, the bytes that arrived have extended the time limit by half.
        assert!((59..=61).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn body_that_is_too_large_is_drained_briefly_unless_none_was_sent() {
        let (replay, began) = (replay(16 * KIB, 64 * KIB), Instant::now());
        let refused = replay.read(&HeaderMap::new(), dripping(17 * 1024, 1)).await.err().unwrap();
        assert_eq!(
            (refused.code(), began.elapsed()),
            ("request_too_large", Duration::from_secs(1)),
            "the body was sent completely"
        );
        for (limit, took) in [(64 * 1024, DRAIN), (0, Duration::from_secs(1))] {
            let began = Instant::now();
            drain(&mut dripping(9 * 1024, 100), limit).await;
            assert_eq!(began.elapsed(), took, "{limit}");
        }
        let waiting = HeaderMap::from_iter([(EXPECT, HeaderValue::from_static("100-continue"))]);
        let began = Instant::now();
        let refused = replay.read(&waiting, dripping(17 * 1024, 9)).await.err().unwrap();
        assert_eq!(
            (refused.code(), began.elapsed()),
            ("request_too_large", Duration::from_secs(1)),
            "with the first chunk"
        );
    }

    #[tokio::test]
    async fn encoded_body_is_read_and_counted_and_a_bomb_is_not_decoded() {
        let replay = replay(512 * KIB, 1024 * KIB);
        let encoded = |encoding: &'static str| {
            let encoding = HeaderValue::from_static(encoding);
            HeaderMap::from_iter([(http::header::CONTENT_ENCODING, encoding)])
        };
        let text = |body: &Replayed, encoding| {
            let text = replay.text(&encoded(encoding), body).map_err(|error| error.code())?;
            Ok::<_, &str>((text.bytes().map(<[u8]>::to_vec), replay.free.available_permits()))
        };
        let body =
            read(&replay, zstd::encode_all(&b"{\"model\":\"m\"}"[..], 3).unwrap()).await.unwrap();
        let (decoded, free) = text(&body, "zstd").unwrap();
        assert_eq!(decoded.unwrap(), b"{\"model\":\"m\"}");
        assert!(free < replay.free.available_permits(), "the text has its own permit");
        let bomb =
            read(&replay, zstd::encode_all(&vec![b' '; 10 << 20][..], 3).unwrap()).await.unwrap();
        assert_eq!(text(&bomb, "ZSTD").err(), Some("request_too_large"));
        assert_eq!(text(&bomb, "gzip").err(), Some("invalid_json"));
        assert_eq!(text(&bomb, "br").unwrap().0, None);
        let large = zstd::encode_all(&vec![b' '; 400 * 1024][..], 3).unwrap();
        let (one, two) =
            (read(&replay, large.clone()).await.unwrap(), read(&replay, large).await.unwrap());
        let held = replay.text(&encoded("zstd"), &one).unwrap();
        let second = replay.text(&encoded("zstd"), &two).unwrap();
        assert_eq!(
            text(&one, "zstd").err(),
            Some("no_key_available"),
            "texts share the memory for bodies"
        );
        drop((held, second));
        assert!(text(&one, "zstd").is_ok());
    }
}
