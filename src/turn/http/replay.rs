//! Reads a turn's body once, as a whole, into bounded memory, so that the same bytes can be sent
//! again.

use std::io::Read;

use axum::body::Body;
use bytes::Bytes;
use http::{HeaderMap, Version};
use http_body::Body as _;
use http_body_util::BodyExt;

use crate::client::ClientId;
use crate::error::{Error, ErrorKind};
use crate::setting::Size;
use crate::turn::http::whole::Whole;
use crate::turn::memory::{BodyMemory, LIGHT, MemoryPlace};
use crate::turn::pace::Pace;
use crate::wire::decoder::{Coding, INPUT, unfold_zstd};
use crate::wire::imprint::Imprint;
use crate::wire::peek::Peek;

/// Bytes that are decoded in one step.
const STEP: usize = 64 * 1024;

/// The memory for bodies of one replica.
pub struct Replay {
    max_body: usize,
    pub memory: BodyMemory,
}

/// A body and its permit for the memory.
pub struct Replayed {
    pub bytes: Bytes,
    _place: MemoryPlace,
    /// The memory of the body's client.
    memory: BodyMemory,
}

/// A body's JSON text.
pub enum Text<'b> {
    /// Unencoded, as the client sent it.
    Plain(&'b [u8]),
    /// Decoded, with its own permit for the memory. Dropped right after the scan.
    Decoded(Vec<u8>, MemoryPlace),
    /// In an encoding that the gateway cannot decode.
    Unreadable,
    /// Longer than the caller's limit for this call.
    TooLong,
}

/// Most times that a text may be as long as its encoded form. Real texts reach thirty times.
const RATIO: usize = 200;
/// Length up to which a text may have any ratio. It exceeds the longest history of a session, which
/// may repeat itself.
const ANY_RATIO: usize = 16 * 1024 * 1024;

impl Text<'_> {
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(text) => Some(text),
            Self::Decoded(text, _) => Some(text),
            Self::Unreadable | Self::TooLong => None,
        }
    }
}

impl Replay {
    pub const fn new(max_body: Size, memory: BodyMemory) -> Self {
        Self { max_body: max_body.bytes(), memory }
    }

    /// Reads the body of a request of `client` in this version of HTTP. If the body is refused, the
    /// listener reads the rest.
    pub async fn read(
        &self,
        client: &ClientId,
        version: Version,
        mut body: Body,
    ) -> Result<Replayed, Error> {
        let announced = body
            .size_hint()
            .exact()
            .map_or(0, |length| usize::try_from(length).unwrap_or(usize::MAX));
        if announced > self.max_body {
            return Err(self.too_large());
        }
        let mut whole = Whole::new(announced, self.max_body);
        let (memory, mut place) = (self.memory.of(client), MemoryPlace::default());
        let mut pace = Pace::begin();
        loop {
            let frame = match tokio::time::timeout_at(pace.deadline(), body.frame()).await {
                // A stream that was reset without an error ends without an end of stream.
                Ok(None) if version >= Version::HTTP_2 && !body.is_end_stream() => {
                    return Err(not_readable("the stream was reset before its end".into()));
                }
                Ok(None) => break,
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => return Err(not_readable(error.to_string())),
                Err(_) => {
                    return Err(Error::new(
                        ErrorKind::RequestTimeout,
                        "The body arrived too slowly.",
                    ));
                }
            };
            let Ok(data) = frame.into_data() else { continue };
            if whole.length() + data.len() > self.max_body {
                return Err(self.too_large());
            }
            memory.extend(&mut place, whole.length() + data.len())?;
            whole.extend(&data)?;
            pace.note(data.len());
        }
        Ok(Replayed { bytes: whole.into_bytes(), _place: place, memory })
    }

    fn too_large(&self) -> Error {
        Error::new(
            ErrorKind::RequestTooLarge,
            format!("The body is larger than {} bytes.", self.max_body),
        )
    }
}

impl Replay {
    /// Returns the body as JSON text of at most `most` bytes, decoded if necessary. A body that may
    /// take long to decode is too long for a light read, however short its text may be.
    pub fn text<'b>(
        &self,
        headers: &HeaderMap,
        body: &'b Replayed,
        most: usize,
    ) -> Result<Text<'b>, Error> {
        let (coding, length) = (Coding::of(headers), body.bytes.len());
        let longest = if coding == Coding::Plain || most > LIGHT { most } else { most.min(INPUT) };
        if length > longest {
            return Ok(Text::TooLong);
        }
        let limits = (ANY_RATIO.max(length.saturating_mul(RATIO)), most);
        match coding {
            Coding::Plain => Ok(Text::Plain(&body.bytes)),
            Coding::Zstd => {
                let decoder = unfold_zstd(&body.bytes).map_err(not_decodable)?;
                self.decode(&body.memory, decoder, limits)
            }
            Coding::Gzip => {
                let decoder = flate2::bufread::MultiGzDecoder::new(&body.bytes[..]);
                self.decode(&body.memory, decoder, limits)
            }
            Coding::Unknown => Ok(Text::Unreadable),
        }
    }

    /// Decodes at most `max_body` and `allowed` bytes, and counts all of them. A small body that
    /// decodes to too many bytes is refused as too large.
    fn decode<'b>(
        &self,
        memory: &BodyMemory,
        mut decoder: impl Read,
        (allowed, most): (usize, usize),
    ) -> Result<Text<'b>, Error> {
        let (mut text, mut place) = (Vec::new(), MemoryPlace::default());
        loop {
            memory.extend(&mut place, text.len() + STEP)?;
            let read =
                decoder.by_ref().take(STEP as u64).read_to_end(&mut text).map_err(not_decodable)?;
            if text.len() > self.max_body.min(allowed) {
                let why = if text.len() > self.max_body {
                    format!("{} bytes", self.max_body)
                } else {
                    format!("{RATIO} times its size")
                };
                return Err(Error::new(
                    ErrorKind::RequestTooLarge,
                    format!("The body decodes to more than {why}."),
                ));
            }
            if text.len() > most {
                return Ok(Text::TooLong);
            }
            if read == 0 {
                return Ok(Text::Decoded(text, place));
            }
        }
    }
}

fn not_readable(cause: String) -> Error {
    Error::new(ErrorKind::InvalidRequest, "The body could not be read.").because(cause)
}

fn not_decodable(error: std::io::Error) -> Error {
    Error::new(ErrorKind::InvalidJson, "The body is not what its content-encoding says.")
        .because(error.to_string())
}

/// Scans a body's JSON text.
pub fn peek(text: &[u8]) -> Result<(Peek, Imprint), Error> {
    Peek::with_imprint(text).map_err(|place| {
        Error::new(ErrorKind::InvalidJson, format!("The body stops being JSON at {place}."))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::pace::GRACE;
    use futures_util::StreamExt;
    use http::HeaderValue;
    use std::time::Duration;
    use tokio::time::Instant;

    const KIB: u64 = 1024;

    fn replay(max_body: u64, total: u64) -> Replay {
        Replay::new(Size(max_body), BodyMemory::new(Size(total)))
    }

    fn alice() -> ClientId {
        ClientId::new("alice")
    }

    async fn read(replay: &Replay, body: Vec<u8>) -> Result<Replayed, &'static str> {
        replay
            .read(&alice(), Version::HTTP_11, Body::from(body))
            .await
            .map_err(|error| error.code())
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
        let error = replay(KIB, KIB).read(&alice(), Version::HTTP_11, silence).await.err().unwrap();
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

    /// `StreamBody` never reports its end, like a stream that was reset.
    #[tokio::test(start_paused = true)]
    async fn body_without_an_end_of_its_own_is_refused() {
        let replay = replay(KIB, KIB);
        for (version, expected) in
            [(Version::HTTP_11, None), (Version::HTTP_2, Some("invalid_request"))]
        {
            let error = replay.read(&alice(), version, dripping(16, 1)).await.err();
            assert_eq!(error.map(|error| error.code()), expected, "{version:?}");
        }
        assert!(replay.read(&alice(), Version::HTTP_2, Body::from("{}")).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn body_may_take_the_time_that_its_length_allows() {
        let (replay, began) = (replay(4096 * KIB, 4096 * KIB), Instant::now());
        let body = replay.read(&alice(), Version::HTTP_11, dripping(16 * 1024, 120)).await.unwrap();
        assert_eq!(
            (body.bytes.len(), began.elapsed()),
            (120 * 16 * 1024, Duration::from_secs(120))
        );
        drop(body);
        let began = Instant::now();
        let error =
            replay.read(&alice(), Version::HTTP_11, dripping(8 * 1024, 120)).await.err().unwrap();
        assert_eq!(error.code(), "request_timeout");
        // By then, the bytes that arrived have extended the time limit by half.
        assert!((59..=61).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    }

    /// What came quickly does not allow silence.
    #[tokio::test(start_paused = true)]
    async fn body_that_stalls_ends_and_frees_its_memory() {
        let (replay, began) = (replay(4096 * KIB, 4096 * KIB), Instant::now());
        let parts = [vec![b'x'; 2 << 20], vec![b'x'; 1 << 20]].map(Bytes::from);
        let stalled = futures_util::stream::iter(parts)
            .map(|part| Ok::<_, std::io::Error>(http_body::Frame::data(part)))
            .chain(futures_util::stream::pending());
        let stalled = Body::new(http_body_util::StreamBody::new(stalled));
        let error = replay.read(&alice(), Version::HTTP_11, stalled).await.err().unwrap();
        assert_eq!((error.code(), began.elapsed()), ("request_timeout", GRACE));
        assert_eq!(replay.memory.used(), 0);
        // 50 KB/s for three minutes.
        let body = replay.read(&alice(), Version::HTTP_11, dripping(20_000, 180)).await;
        assert_eq!(body.unwrap().bytes.len(), 20_000 * 180);
    }

    /// A few kilobytes of empty members or frames take many milliseconds to decode.
    #[tokio::test]
    async fn encoded_body_that_may_take_long_is_no_light_read() {
        let replay = replay(1024 * KIB, 4096 * KIB);
        let empty = |coding: &str| match coding {
            "zstd" => zstd::encode_all(&b""[..], 3).unwrap(),
            _ => {
                let level = flate2::Compression::best();
                flate2::write::GzEncoder::new(Vec::new(), level).finish().unwrap()
            }
        };
        for coding in ["gzip", "zstd"] {
            let headers = HeaderMap::from_iter([(
                http::header::CONTENT_ENCODING,
                HeaderValue::from_static(coding),
            )]);
            let empty = empty(coding);
            for (length, is_light) in [(INPUT, true), (INPUT + 100, false), (LIGHT, false)] {
                let body = read(&replay, empty.repeat(length / empty.len())).await.unwrap();
                let is_read = |most| {
                    let text = replay.text(&headers, &body, most).ok().unwrap();
                    text.bytes().is_some_and(<[u8]>::is_empty)
                };
                assert_eq!(is_read(LIGHT), is_light, "{coding}: {length}");
                assert!(is_read(usize::MAX), "{coding}: {length}");
            }
        }
    }

    #[tokio::test]
    async fn body_that_unfolds_too_far_is_too_large() {
        let replay = replay(64 * KIB * KIB, 256 * KIB * KIB);
        let zstd = HeaderMap::from_iter([(
            http::header::CONTENT_ENCODING,
            HeaderValue::from_static("zstd"),
        )]);
        for (length, expected) in [(15 << 20, None), (20 << 20, Some("request_too_large"))] {
            let encoded = zstd::encode_all(&vec![b' '; length][..], 3).unwrap();
            let body = read(&replay, encoded).await.unwrap();
            let error = replay.text(&zstd, &body, usize::MAX).err().map(|error| error.code());
            assert_eq!(error, expected, "{length}");
        }
    }

    #[tokio::test]
    async fn encoded_body_is_read_and_counted_and_a_bomb_is_not_decoded() {
        let replay = replay(512 * KIB, 1024 * KIB);
        let encoded = |encoding: &'static str| {
            let encoding = HeaderValue::from_static(encoding);
            HeaderMap::from_iter([(http::header::CONTENT_ENCODING, encoding)])
        };
        let text = |body: &Replayed, encoding| {
            let text =
                replay.text(&encoded(encoding), body, usize::MAX).map_err(|error| error.code())?;
            Ok::<_, &str>((text.bytes().map(<[u8]>::to_vec), replay.memory.free_units()))
        };
        let body =
            read(&replay, zstd::encode_all(&b"{\"model\":\"m\"}"[..], 3).unwrap()).await.unwrap();
        let (decoded, free) = text(&body, "zstd").unwrap();
        assert_eq!(decoded.unwrap(), b"{\"model\":\"m\"}");
        assert!(free < replay.memory.free_units(), "the text has its own permit");
        // The half of this memory holds the longest body and its text.
        let roomy = self::replay(512 * KIB, 2048 * KIB);
        let bomb =
            read(&roomy, zstd::encode_all(&vec![b' '; 10 << 20][..], 3).unwrap()).await.unwrap();
        let refused = roomy.text(&encoded("ZSTD"), &bomb, usize::MAX).err();
        assert_eq!(refused.map(|error| error.code()), Some("request_too_large"));
        assert_eq!(text(&bomb, "gzip").err(), Some("invalid_json"));
        assert_eq!(text(&bomb, "br").unwrap().0, None);
        let light = replay.text(&encoded("zstd"), &body, 5).map(|text| text.bytes().is_none());
        assert_eq!(light.ok(), Some(true), "longer than wanted");
        let large = zstd::encode_all(&vec![b' '; 400 * 1024][..], 3).unwrap();
        let bob = ClientId::new("bob");
        let of_bob = replay.read(&bob, Version::HTTP_11, Body::from(large.clone()));
        let (one, two) = (read(&replay, large.clone()).await.unwrap(), of_bob.await.unwrap());
        let held = replay.text(&encoded("zstd"), &one, usize::MAX).unwrap();
        let second = replay.text(&encoded("zstd"), &two, usize::MAX).unwrap();
        assert_eq!(
            text(&one, "zstd").err(),
            Some("no_key_available"),
            "texts share the memory for bodies"
        );
        drop((held, second));
        assert!(text(&one, "zstd").is_ok());
    }
}
