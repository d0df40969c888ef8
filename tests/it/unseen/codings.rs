//! Number 8: an answer in a coding that nobody asked for and nobody can read is a 502 in its place,
//! and says nothing of its key.

use std::time::Duration;

use super::{BODY, turn, two};
use crate::world::cluster::{ALICE, Running};
use crate::world::recorder::{Recorder, Seen, Step, answer, completed};
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
/// Answers whose meaning is in their status, in their body, or in both.
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
/// The header with which a request of a test names the answer that it gets.
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
    // The response that the requests below are about.
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

/// What refuses a handshake is passed on, too.
#[tokio::test]
async fn refusal_of_a_handshake_that_nobody_can_read_never_passes() {
    let upstream = Recorder::start(script).await;
    let cluster = two().keys(siblings("org-a", 2)).recorded_by(&upstream).start().await;
    for (status, lines) in cases() {
        let (case, wanted) = (STATUSES[status], format!("{status}/{lines}"));
        let headers = [(WANTED, wanted.as_str()), ("session-id", "s")];
        let refused = open(cluster.address(), ALICE, &headers).await.err().expect("a refusal");
        let is_of_http = ["200", "201", "302", "404"].iter().any(|code| case.starts_with(code));
        // An upstream without a WebSocket says so by its status alone.
        let expected = if is_of_http { 426 } else { 502 };
        assert_eq!(refused.status, expected, "{case}: {}", refused.body);
        assert!(!refused.code().is_empty(), "{case}: an error of ours");
    }
    all_are_ready(&cluster).await;
}

/// The gateway asks for no coding of a list of models, and reads one that comes all the same.
#[tokio::test]
async fn list_of_models_is_read_in_its_coding_or_not_at_all() {
    let list = br#"{"object":"list","data":[{"id":"gpt-5.4"}]}"#;
    let zstd = zstd::encode_all(&list[..], 1).expect("memory is enough");
    for (coding, body, status) in [
        ("identity", &list[..], 200),
        ("zstd", &zstd[..], 200),
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
