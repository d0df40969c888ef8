//! Number 8: no answer passes that cannot be decoded. If an answer comes in an unrequested coding,
//! or is not in its stated coding, a 502 or a cut replaces it. It says nothing about its key.

use std::io::Write;
use std::time::Duration;

use super::{BODY, turn, two};
use crate::world::cluster::{ALICE, Running};
use crate::world::recorder::{Recorder, Seen, Step, answer, chunk, completed, stream_head};
use crate::world::simulator::siblings;
use crate::world::socket::open;
use crate::world::waiting::Budget;
use crate::world::wire::{Request, ask};

/// Header lines that name a coding which the gateway cannot read.
const UNREADABLE: [&str; 8] = [
    "content-encoding: br\r\n",
    "Content-Encoding: BR\r\n",
    "content-encoding: x-unknown\r\n",
    "content-encoding: gzip, br\r\n",
    "content-encoding: gzip\r\ncontent-encoding: br\r\n",
    "content-encoding: identity\r\ncontent-encoding: deflate\r\n",
    "content-encoding: gzip, gzip\r\n",
    "content-encoding: caf\u{e9}\r\n",
];
/// Statuses of answers whose meaning is in the status, in the body, or in both.
const STATUSES: [&str; 11] = [
    "200 OK",
    "201 Created",
    "302 Found",
    "400 Bad Request",
    "401 Unauthorized",
    "403 Forbidden",
    "404 Not Found",
    "418 x",
    "429 Too Many Requests",
    "500 x",
    "503 x",
];
/// The header in which a request of a test names the answer that it wants.
const WANTED: &str = "x-wanted";

fn script(seen: &Seen) -> Vec<Step> {
    let Some(wanted) = seen.header(WANTED) else { return completed() };
    let (status, lines) = wanted.split_once('/').expect("a status and a coding");
    let number = |text: &str| text.parse::<usize>().expect("a number");
    let (status, lines) = (STATUSES[number(status)], UNREADABLE[number(lines)]);
    let head = format!("content-type: application/json\r\n{lines}");
    vec![Step::Send(answer(status, &head, b"\x0b\x02\x80unreadable\x03"))]
}

/// All numbers of statuses and codings.
fn cases() -> impl Iterator<Item = (usize, usize)> {
    (0..STATUSES.len()).flat_map(|status| (0..UNREADABLE.len()).map(move |lines| (status, lines)))
}

async fn all_are_ready(cluster: &Running) {
    for replica in &cluster.replicas {
        for key in replica.keys().await {
            assert_eq!(key["state"], "ready", "{key}");
        }
    }
}

#[tokio::test]
async fn answer_that_nobody_can_read_is_a_502_in_its_place() {
    let upstream = Recorder::start(script).await;
    let cluster = two().keys(siblings("org-a", 2)).recorded_by(&upstream).start().await;
    // The requests below are about this response.
    assert_eq!(ask(cluster.address(), &turn(BODY)).await.status, 200);
    for (status, lines) in cases() {
        let case = format!("{} {:?}", STATUSES[status], UNREADABLE[lines]);
        let wanted = format!("{status}/{lines}");
        let chat = r#"{"model":"gpt-5.4","messages":[{"role":"user","content":"hello"}]}"#;
        for request in [
            turn(BODY),
            turn(BODY).header("accept-encoding", "br, gzip, zstd"),
            turn(chat).target("/v1/chat/completions"),
            turn(BODY).target("/v1/responses/compact"),
            Request::new("GET", "/v1/responses/resp_1").bearer(ALICE),
        ] {
            let before = upstream.seen().len();
            let budget = Budget::begin(Duration::from_secs(5));
            let told = ask(cluster.address(), &request.header(WANTED, &wanted)).await;
            budget.holds("an answer at once");
            assert_eq!(
                (told.status, told.code().as_str(), told.whole),
                (502, "upstream_unreachable", true),
                "{case}: {}",
                told.text()
            );
            assert_eq!(told.header("content-encoding"), None, "{case}");
            assert_eq!(upstream.seen().len(), before + 1, "asked once, and no probe: {case}");
        }
    }
    all_are_ready(&cluster).await;
    assert_eq!(ask(cluster.address(), &turn(BODY)).await.status, 200, "the key goes on serving");
}

/// The answer that refuses a handshake is passed on, so it must be decodable, too.
#[tokio::test]
async fn refusal_of_a_handshake_that_nobody_can_read_never_passes() {
    let upstream = Recorder::start(script).await;
    let cluster = two().keys(siblings("org-a", 2)).recorded_by(&upstream).start().await;
    for (status, lines) in cases() {
        let (case, wanted) = (STATUSES[status], format!("{status}/{lines}"));
        let headers = [(WANTED, wanted.as_str()), ("session-id", "s")];
        let refused = open(cluster.address(), ALICE, &headers).await.err().expect("a refusal");
        let is_of_http = ["200", "201", "302", "404"].iter().any(|code| case.starts_with(code));
        // An upstream without WebSocket shows that by its status alone.
        let expected = if is_of_http { 426 } else { 502 };
        assert_eq!(refused.status, expected, "{case}: {}", refused.body);
        assert!(!refused.code().is_empty(), "{case}: an error of ours");
    }
    all_are_ready(&cluster).await;
}

/// The gateway asks for the list of models without a coding, and still reads one that comes
/// encoded.
#[tokio::test]
async fn list_of_models_is_read_in_its_coding_or_not_at_all() {
    let list = br#"{"object":"list","data":[{"id":"gpt-5.4"}]}"#;
    let zstd = zstd::encode_all(&list[..], 1).expect("memory is enough");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(list).expect("memory is enough");
    let gzip = gzip.finish().expect("memory is enough");
    for (coding, body, status) in [
        ("identity", &list[..], 200),
        ("zstd", &zstd[..], 200),
        ("gzip", &gzip[..], 200),
        ("zstd", &zstd[..zstd.len() - 1], 502),
        ("gzip", &gzip[..gzip.len() - 1], 502),
        ("zstd", &list[..], 502),
        ("br", &list[..], 502),
        ("gzip, br", &list[..], 502),
    ] {
        let head = format!("content-type: application/json\r\ncontent-encoding: {coding}\r\n");
        let steps = vec![Step::Send(answer("200 OK", &head, body))];
        let upstream = Recorder::answering(steps).await;
        let cluster = two().recorded_by(&upstream).start().await;
        let request = Request::new("GET", "/models").bearer(ALICE).header("accept-encoding", "br");
        let told = ask(cluster.address(), &request).await;
        assert_eq!((told.status, told.header("content-encoding")), (status, None), "{coding}");
        assert_eq!(told.text().contains("gpt-5.4"), status == 200, "{}", told.text());
        let seen = upstream.seen().pop().expect("it was asked");
        assert_eq!(seen.header("accept-encoding"), Some("identity"));
    }
}

/// Bytes that claim to be in these codings, and cannot be decoded.
fn broken() -> Vec<(&'static str, &'static str, Vec<u8>)> {
    let error = br#"{"error":{"type":"insufficient_quota","code":"insufficient_quota"}}"#;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(error).expect("memory is enough");
    let gzip = gzip.finish().expect("memory is enough");
    let zstd = zstd::encode_all(&error[..], 1).expect("memory is enough");
    let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 3).expect("memory is enough");
    wide.window_log(24).expect("it is allowed");
    wide.write_all(error).expect("memory is enough");
    wide.flush().expect("memory is enough");
    let wide = wide.finish().expect("memory is enough");
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    bomb.write_all(error).expect("memory is enough");
    bomb.write_all(&vec![b' '; 16 << 20]).expect("memory is enough");
    let bomb = bomb.finish().expect("memory is enough");
    let mut wrong_sum = gzip.clone();
    let sum = wrong_sum.len() - 5;
    wrong_sum[sum] ^= 1;
    vec![
        ("not encoded", "gzip", error.to_vec()),
        ("not encoded", "ZSTD", error.to_vec()),
        ("truncated", "x-gzip", gzip[..gzip.len() - 1].to_vec()),
        ("truncated", "zstd", zstd[..zstd.len() - 1].to_vec()),
        ("the wrong sum", "gzip", wrong_sum),
        ("more behind it", "gzip", [&gzip[..], b"and more"].concat()),
        ("the other coding", "zstd", gzip.clone()),
        ("a window of 16 MiB", "zstd", wide),
        ("too much", "gzip", bomb),
    ]
}

/// Answers a request with the broken bytes and the form that it asks for by two numbers.
fn script_of_broken(seen: &Seen, forms: &[(&str, &str)]) -> Vec<Step> {
    let Some(wanted) = seen.header(WANTED) else { return completed() };
    let (case, form) = wanted.split_once('/').expect("two numbers");
    let number = |text: &str| text.parse::<usize>().expect("a number");
    let (_, coding, body) = broken().swap_remove(number(case));
    let (status, kind) = forms[number(form)];
    if kind == "chunked" {
        let head = stream_head(&format!("content-encoding: {coding}\r\n"));
        let pieces = [head, chunk(&body), b"0\r\n\r\n".to_vec()];
        return pieces.into_iter().map(Step::Send).collect();
    }
    let head = format!("content-type: {kind}\r\ncontent-encoding: {coding}\r\n");
    vec![Step::Send(answer(status, &head, &body))]
}

const JSON: &str = "application/json";

/// An error that cannot be decoded says nothing about a key. The client receives a 502, and the key
/// still serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn error_that_cannot_be_decoded_is_a_502_and_no_keys() {
    let errors = STATUSES.into_iter().filter(|status| !status.starts_with(['2', '3']));
    let forms: Vec<_> = errors.map(|status| (status, JSON)).collect();
    let own = forms.clone();
    let upstream = Recorder::start(move |seen| script_of_broken(seen, &own)).await;
    let cluster = two().keys(siblings("org-a", 2)).recorded_by(&upstream).start().await;
    for (number, (what, coding, _)) in broken().into_iter().enumerate() {
        for (form, (status, _)) in forms.iter().enumerate() {
            let before = upstream.seen().len();
            let request = turn(BODY).header("accept-encoding", "gzip, zstd");
            let request = request.header(WANTED, &format!("{number}/{form}"));
            let told = ask(cluster.address(), &request).await;
            let case = format!("{what} {coding} {status}: {}", told.text());
            assert_eq!((told.status, told.whole), (502, true), "{case}");
            assert_eq!(told.code(), "upstream_unreachable", "{case}");
            assert_eq!(told.header("content-encoding"), None, "{case}");
            assert_eq!(upstream.seen().len(), before + 1, "asked once, and no probe: {case}");
        }
        all_are_ready(&cluster).await;
        assert_eq!(ask(cluster.address(), &turn(BODY)).await.status, 200, "{what}");
    }
}

/// An answer that cannot be decoded never counts as complete. Its turn was served, so its usage is
/// missing, whether the client has received a part of the answer or a 502.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_that_cannot_be_decoded_is_never_whole() {
    let forms = [("200 OK", JSON), ("200 OK", "text/event-stream"), ("200 OK", "chunked")];
    let upstream = Recorder::start(move |seen| script_of_broken(seen, &forms)).await;
    let cluster = two().recorded_by(&upstream).start().await;
    let (mut cut, mut sent) = (0, 0.0);
    for (number, (what, coding, body)) in broken().into_iter().enumerate() {
        for (form, (_, kind)) in forms.iter().enumerate() {
            let before = upstream.seen().len();
            let request = turn(BODY).header("accept-encoding", "gzip, zstd");
            let request = request.header(WANTED, &format!("{number}/{form}"));
            let told = ask(cluster.address(), &request).await;
            let case = format!("{what} {coding} {kind}: {} {}", told.status, told.whole);
            match told.status {
                200 => {
                    assert!(!told.whole && body.starts_with(&told.body), "{case}");
                    cut += 1;
                }
                status => assert_eq!((status, told.whole), (502, true), "{case}"),
            }
            assert_eq!(upstream.seen().len(), before + 1, "{case}: sent once");
            sent += 1.0;
        }
    }
    assert!(cut > 8, "at least each stream was cut: {cut}");
    cluster.shows("warmkey_active_turns", 0.0).await;
    let metrics = cluster.replica().metrics().await;
    let completed = r#"warmkey_turns_total{transport="http",outcome="completed"}"#;
    assert!(metrics.get(completed).abs() < f64::EPSILON);
    let missing = metrics.sum("warmkey_usage_missing_total");
    assert!((missing - sent).abs() < 0.5, "{missing} of {sent}");
}
