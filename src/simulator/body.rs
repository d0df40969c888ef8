//! A request's body: read whole, hashed as it came, and decoded by its `content-encoding`.
//!
//! Both the bytes on the wire and the decoded bytes have a limit. The hash is of the bytes on the
//! wire, which a gateway must not change.

use std::io::Read;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};

use super::refusal::Refusal;

/// Most bytes of a body, before and after decoding.
const MOST_BYTES: usize = 64 << 20;

/// A body as it came over the wire.
pub struct Wire {
    pub bytes: Bytes,
    pub sha256: String,
    /// The body is too large, or ended too early.
    pub fault: Option<WireFault>,
}

pub enum WireFault {
    TooLarge,
    Incomplete,
}

pub async fn read(mut body: Body, headers: &HeaderMap) -> Wire {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok());
    let mut bytes = BytesMut::with_capacity(announced.unwrap_or(0).min(MOST_BYTES));
    let mut hasher = Sha256::new();
    let mut fault = None;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            fault = Some(WireFault::Incomplete);
            break;
        };
        let Ok(data) = frame.into_data() else { continue };
        hasher.update(&data);
        if bytes.len() + data.len() > MOST_BYTES {
            fault = Some(WireFault::TooLarge);
            break;
        }
        bytes.extend_from_slice(&data);
    }
    Wire { bytes: bytes.freeze(), sha256: hex(&hasher.finalize()), fault }
}

pub fn too_large() -> Refusal {
    Refusal::invalid(Some("request_too_large"), None, "The request body is too large.")
        .with_status(StatusCode::PAYLOAD_TOO_LARGE)
}

/// Undoes `content-encoding`.
pub fn decode(bytes: Bytes, headers: &HeaderMap) -> Result<Bytes, Refusal> {
    let encoding = headers
        .get(header::CONTENT_ENCODING)
        .map(|value| value.to_str().unwrap_or("?").to_ascii_lowercase());
    let broken = |what: &str| {
        Refusal::invalid(
            Some("invalid_content_encoding"),
            None,
            format!("The request body is no valid {what}."),
        )
    };
    match encoding.as_deref() {
        None | Some("identity") => Ok(bytes),
        Some("zstd") => {
            let reader = zstd::stream::read::Decoder::with_buffer(bytes.as_ref())
                .map_err(|_| broken("zstd"))?;
            unfold(reader, || broken("zstd"))
        }
        Some("gzip") => unfold(flate2::bufread::GzDecoder::new(bytes.as_ref()), || broken("gzip")),
        Some(other) => {
            let message = format!("Unsupported content encoding: '{other}'.");
            Err(Refusal::invalid(Some("unsupported_content_encoding"), None, message)
                .with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE))
        }
    }
}

fn unfold(reader: impl Read, broken: impl Fn() -> Refusal) -> Result<Bytes, Refusal> {
    let mut whole = Vec::new();
    reader.take(MOST_BYTES as u64 + 1).read_to_end(&mut whole).map_err(|_| broken())?;
    if whole.len() > MOST_BYTES { Err(too_large()) } else { Ok(whole.into()) }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]])
        .map(char::from)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use http::HeaderValue;

    use super::*;

    fn encoded(encoding: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::CONTENT_ENCODING, HeaderValue::from_static(encoding))])
    }

    #[tokio::test]
    async fn hash_is_of_the_bytes_on_the_wire() {
        let wire = read(Body::from("abc"), &HeaderMap::new()).await;
        assert_eq!(wire.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(wire.fault.is_none());
    }

    #[test]
    fn encodings_are_undone_and_a_bomb_is_not() {
        let plain = vec![b'a'; 100_000];
        let packed = zstd::encode_all(plain.as_slice(), 3).expect("packed");
        assert_eq!(decode(packed.into(), &encoded("zstd")).expect("whole"), plain);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).expect("packed");
        assert_eq!(
            decode(gzip.finish().expect("packed").into(), &encoded("gzip")).expect("whole"),
            plain
        );
        let bomb =
            zstd::encode_all(std::io::repeat(0).take(MOST_BYTES as u64 + 1), 1).expect("packed");
        assert_eq!(
            decode(bomb.into(), &encoded("zstd")).expect_err("too large").status.as_u16(),
            413
        );
        assert_eq!(
            decode("plain".into(), &encoded("zstd")).expect_err("no zstd").status.as_u16(),
            400
        );
        assert_eq!(
            decode("plain".into(), &encoded("br")).expect_err("unknown").status.as_u16(),
            415
        );
    }
}
