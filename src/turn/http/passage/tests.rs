//! Tests of how an answer passes from its upstream to its client.

use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};

use super::*;
use crate::chat::stream::Stream;
use crate::client::Client;
use crate::metrics::Transport;
use crate::setting::Size;
use crate::task::Tasks;
use crate::turn::account::Account;
use crate::turn::http::form::Document;
use crate::turn::http::heavy_places::HeavyPlaces;
use crate::turn::http::relay::relay;
use crate::turn::http::translation::{AnswerWork, Counted};
use crate::turn::memory::{BodyMemory, MemoryPlace};
use crate::turn::tests::{bound, gateway};

/// hyper may copy at once all bytes that it gets, so the document goes in pieces. The memory counts
/// until the last piece has gone.
#[tokio::test]
async fn long_document_goes_in_pieces_and_counts_until_the_last() {
    let (gateway, client) = (Arc::new(gateway(&[("a", "o", "p")])), Client::unrestricted("alice"));
    let (_, binding, _) = bound(&gateway, &client).await;
    let account = Account::open(Arc::clone(&gateway.books), Transport::Http, &HeaderMap::new());
    let memory = BodyMemory::new(Size(16 << 20));
    let (bytes, mut place) =
        ((0..3_000_000_u32).map(|n| n as u8).collect::<Vec<_>>(), MemoryPlace::default());
    memory.follow_answer(&mut place, bytes.len()).unwrap();
    let whole = bytes.clone();
    let (text, tap) = (Counted { bytes, place }.into(), Tap::new(&HeaderMap::new()));
    let document = Document { text, tap, has_leaked: false };
    let course = Course::new(&gateway, &memory, binding.key, account)
        .in_form(Form::Document(Box::new(document)));
    let (status, headers) = (http::StatusCode::OK, HeaderMap::new());
    let answer = Answer { status, headers, head: Bytes::new(), rest: None, upgrade: None };
    let mut passage = Passage::new(answer, None, course);
    assert!(passage.is_full(), "nothing more is read meanwhile");
    let mut come = Vec::new();
    while let Some(piece) = passage.pop() {
        assert!(piece.len() <= PIECE && memory.used() > 2_000_000);
        come.extend_from_slice(&piece);
    }
    assert!(come == whole && memory.used() == 0);
}

/// The idle timeout is about the upstream: it does not run while the gateway's own work delays the
/// answer.
#[tokio::test(start_paused = true)]
async fn answer_that_waits_for_the_gateway_is_no_silent_one() {
    let (gateway, client) = (Arc::new(gateway(&[("a", "o", "p")])), Client::unrestricted("alice"));
    let (_, binding, _) = bound(&gateway, &client).await;
    let idle_timeout = binding.key.upstream.idle_timeout;
    let account = Account::open(Arc::clone(&gateway.books), Transport::Http, &HeaderMap::new());
    let memory = BodyMemory::new(Size(1 << 20));
    let course = Course::new(&gateway, &memory, binding.key, account);
    let json = http::HeaderValue::from_static("application/json");
    let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, json)]);
    let gate = IdGate::new(&headers, &memory, move |_| tokio::time::sleep(idle_timeout * 2));
    let body = r#"{"id":"resp_1","object":"response","status":"completed","output":[]}"#;
    let rest = reqwest::Response::from(http::Response::new(body)).into();
    let status = http::StatusCode::OK;
    let answer = Answer { status, headers, head: Bytes::new(), rest: Some(rest), upgrade: None };
    let (relay, pump) = relay(answer, Some(gate), course);
    let tasks = Tasks::new();
    let began = tokio::time::Instant::now();
    pump.start(&tasks).await;
    let come = relay.collect().await.expect("the answer is whole").to_bytes();
    assert!(come == body && began.elapsed() >= idle_timeout * 2, "{:?}", began.elapsed());
}

/// Reads a whole encoded answer that claims this length, in two pieces.
async fn passed(coding: &str, bytes: &[u8]) -> (usize, bool) {
    let (gateway, client) = (Arc::new(gateway(&[("a", "o", "p")])), Client::unrestricted("alice"));
    let (_, binding, _) = bound(&gateway, &client).await;
    let account = Account::open(Arc::clone(&gateway.books), Transport::Http, &HeaderMap::new());
    let memory = BodyMemory::new(Size(1 << 20));
    let course = Course::new(&gateway, &memory, binding.key, account);
    let headers = HeaderMap::from_iter([
        (http::header::CONTENT_TYPE, "text/event-stream".parse().unwrap()),
        (http::header::CONTENT_ENCODING, coding.parse().unwrap()),
    ]);
    let body = reqwest::Response::from(http::Response::new(bytes.to_vec()));
    let rest = Some(AnswerBody::from(body).in_pieces());
    let status = http::StatusCode::OK;
    let answer = Answer { status, headers, head: Bytes::new(), rest, upgrade: None };
    let (mut relay, pump) = relay(answer, None, course);
    let tasks = Tasks::new();
    pump.start(&tasks).await;
    let mut length = 0;
    loop {
        match relay.frame().await {
            Some(Ok(frame)) => {
                let data = frame.into_data().expect("no trailers");
                assert!(bytes[length..].starts_with(&data), "as it came");
                length += data.len();
            }
            last => return (length, last.is_none()),
        }
    }
}

/// If bytes show that the answer cannot be decoded, they do not pass. A client that knows the
/// length would take the answer for complete.
#[tokio::test]
async fn answer_is_cut_before_what_cannot_be_decoded() {
    use std::io::Write;
    let noise: Vec<u8> =
        (0..40_000_u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&noise).unwrap();
    let mut zstd = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    zstd.include_checksum(true).unwrap();
    zstd.write_all(&noise).unwrap();
    for (coding, whole) in [("gzip", gzip.finish().unwrap()), ("zstd", zstd.finish().unwrap())] {
        assert_eq!(passed(coding, &whole).await, (whole.len(), true), "{coding}");
        let (length, is_whole) = passed(coding, &whole[..whole.len() - 1]).await;
        assert!(length < whole.len() - 1 && length > 0 && !is_whole, "{coding}: truncated");
        let broken = [&whole[..60_000], &[0xff; 9][..], &whole[60_009..]].concat();
        let (length, is_whole) = passed(coding, &broken).await;
        assert!(length < broken.len() && length > 0 && !is_whole, "{coding}: broken");
        assert_eq!(passed(coding, &noise).await, (0, false), "{coding}: not encoded at all");
    }
}

/// A terminal event of half a megabyte.
fn long_end() -> String {
    let text = "x".repeat(400_000);
    format!(
        "data: {{\"type\":\"response.completed\",\"response\":{{\"usage\":{{\"input_tokens\":3}},\"x\":\"{text}\"}}}}\n\n"
    )
}

/// Relays a stream of this body with the memory `memory`. Returns the most memory that was used,
/// and whether the usage was read.
async fn relayed(memory: &BodyMemory, coding: &'static str, body: Vec<u8>) -> (usize, bool) {
    let (gateway, client) = (Arc::new(gateway(&[("a", "o", "p")])), Client::unrestricted("alice"));
    let (_, binding, _) = bound(&gateway, &client).await;
    let mut account = Account::open(Arc::clone(&gateway.books), Transport::Http, &HeaderMap::new());
    account.note_attempt(&binding, false, &gateway.registry.loads);
    account.note_status(http::StatusCode::OK);
    let course = Course::new(&gateway, memory, binding.key, account);
    let headers = [
        (http::header::CONTENT_TYPE, "text/event-stream".parse().unwrap()),
        (http::header::CONTENT_ENCODING, coding.parse().unwrap()),
    ];
    let headers = HeaderMap::from_iter(headers);
    let chunks: Vec<_> = body.chunks(16_000).map(Bytes::copy_from_slice).collect();
    let frames = chunks.into_iter().map(|data| Ok::<_, std::io::Error>(Frame::data(data)));
    let stream = StreamBody::new(futures_util::stream::iter(frames));
    let rest = http::Response::new(reqwest::Body::wrap(stream));
    let rest = Some(reqwest::Response::from(rest).into());
    let answer =
        Answer { status: http::StatusCode::OK, headers, head: Bytes::new(), rest, upgrade: None };
    let mut passage = Passage::new(answer, None, course);
    let (mut come, mut most) = (Vec::new(), 0);
    let missing = |page: String| {
        let line = page.lines().find(|line| line.starts_with("warmkey_usage_missing_total"));
        line.expect("it is on the page").ends_with(" 1")
    };
    std::future::poll_fn(|context| {
        loop {
            let next = passage.poll_next(context);
            most = most.max(memory.used());
            match ready!(next) {
                Next::Alone(data)
                | Next::Large(data)
                | Next::InCompany(data)
                | Next::Last(data) => come.extend_from_slice(&data),
                Next::End(broken) => {
                    passage.end(broken);
                    return Poll::Ready(());
                }
            }
        }
    })
    .await;
    assert!(come == body, "unchanged");
    drop(passage);
    assert_eq!(memory.used(), 0);
    (most, !missing(gateway.books.metrics.render()))
}

#[tokio::test]
async fn reading_of_an_answer_counts_and_is_given_up_without_memory() {
    let events = format!("data: {{}}\n\n{}", long_end()).into_bytes();
    let folded = zstd::encode_all(&events[..], 3).unwrap();
    for (coding, body) in [("identity", events), ("zstd", folded)] {
        let memory = BodyMemory::new(Size(4 << 20));
        let (most, has_usage) = relayed(&memory, coding, body.clone()).await;
        assert!(has_usage && most > 400_000, "{coding}: {most}");
        let little = BodyMemory::new(Size(1 << 18));
        let (most, has_usage) = relayed(&little, coding, body).await;
        assert!(!has_usage && most <= (1 << 18) * 5 / 4, "{coding}: {most}");
    }
}

/// The end of a translation has bytes of its own, also where the relay itself reads the frames.
#[tokio::test(start_paused = true)]
async fn paced_translation_ends_with_its_last_chunks() {
    let (gateway, client) = (Arc::new(gateway(&[("a", "o", "p")])), Client::unrestricted("alice"));
    let (_, binding, _) = bound(&gateway, &client).await;
    let account = Account::open(Arc::clone(&gateway.books), Transport::Http, &HeaderMap::new());
    let memory = BodyMemory::new(Size(1 << 20));
    let work = AnswerWork {
        heavy: Arc::new(HeavyPlaces::new(1)),
        memory: memory.clone(),
        client: client.id.clone(),
    };
    let translation = Translation::new(Stream::new(false), work);
    let course = Course::new(&gateway, &memory, binding.key, account)
        .in_form(Form::Stream(Box::new(translation)));
    let events = [
        r#"{"type":"response.created","response":{"id":"resp_1","model":"m"}}"#,
        r#"{"type":"response.output_text.delta","output_index":0,"content_index":0,"delta":"hi"}"#,
    ];
    // Each event comes alone, and the end, without a terminal event, later still.
    let frames = events.map(|event| format!("data: {event}\n\n"));
    let stream = futures_util::stream::unfold(frames.into_iter(), async |mut frames| {
        tokio::time::sleep(COMPANY * 9).await;
        let frame = Frame::data(Bytes::from(frames.next()?));
        Some((Ok::<_, std::io::Error>(frame), frames))
    });
    let rest = http::Response::new(reqwest::Body::wrap(StreamBody::new(Box::pin(stream))));
    let rest = Some(reqwest::Response::from(rest).into());
    let event_stream = "text/event-stream".parse().unwrap();
    let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, event_stream)]);
    let status = http::StatusCode::OK;
    let answer = Answer { status, headers, head: Bytes::new(), rest, upgrade: None };
    let (relay, pump) = relay(answer, None, course);
    pump.start(&Tasks::new()).await;
    let come = relay.collect().await.expect("the answer is whole").to_bytes();
    let text = String::from_utf8(come.to_vec()).unwrap();
    assert!(text.contains(r#""content":"hi""#), "{text}");
    let last = text.trim_end().rsplit("\n\n").next().unwrap();
    assert!(last.contains("error"), "the upstream has not ended it: {text}");
}
