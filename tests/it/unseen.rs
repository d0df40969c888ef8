//! No byte passes unseen, and the gateway reads everything rightly: bytes, codings, costs, and
//! broken answers.

use std::time::Duration;

use futures_util::SinkExt;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::recorder::{Recorder, Step, answer, completed, stream};
use crate::world::simulator::{Fault, siblings};
use crate::world::socket::{Upstream, create, open, session};
use crate::world::waiting::within;
use crate::world::wire::{Connection, Request, ask};

mod codings;
mod configuration;
mod heads;
mod http2;
mod http2_answers;
mod http2_siblings;
mod large;
mod nested;
mod overrides;
mod redirects;
mod requests;

const BODY: &str = r#"{"model":"gpt-5.4","stream":true,"input":"hello"}"#;

/// The deployment of most of these tests: two replicas that share a Redis.
fn two() -> Cluster {
    Cluster::new().replicas(2).redis()
}

fn turn(body: &str) -> Request {
    Request::turn(ALICE, body).header("session-id", "s")
}

/// Number 6. A binary message is closed with 1003, whole or in fragments, from either side.
#[tokio::test]
async fn binary_message_never_passes() {
    let upstream = Upstream::start().await;
    let cluster = two().upstream_at(&upstream.url()).start().await;
    let text = create(Some("resp_of_another_client"));
    let whole = vec![Message::binary(text.clone().into_bytes())];
    let (first, second) = text.as_bytes().split_at(20);
    let piece = |bytes: &[u8], code, is_last| {
        Message::Frame(Frame::message(bytes.to_vec(), OpCode::Data(code), is_last))
    };
    let parts = vec![piece(first, Data::Binary, false), piece(second, Data::Continue, true)];
    for messages in [whole, parts, vec![Message::binary(Vec::new())]] {
        let (mut client, mut there) =
            tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
        for message in messages {
            client.0.send(message).await.expect("the connection is open");
        }
        assert_eq!(client.closed().await, 1003);
        assert_eq!(there.closed().await, 1001, "the upstream got no message");
    }
    let (mut client, mut there) =
        tokio::join!(session(cluster.address(), ALICE, "s"), upstream.accept());
    there.0.send(Message::binary(b"{}".to_vec())).await.expect("the connection is open");
    assert_eq!(there.closed().await, 1003);
    assert_eq!(client.closed().await, 1001, "the client connects again");
}

/// Number 6. A body that cannot be read is refused, also where foreign ids may pass.
#[tokio::test]
async fn body_that_cannot_be_read_never_passes() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = two().server("foreign_ids", "\"pass\"").recorded_by(&upstream).start().await;
    for coding in ["br", "deflate", "gzip, zstd", "compress", "x-unknown"] {
        let answer = ask(cluster.address(), &turn(BODY).header("content-encoding", coding)).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_request"), "{coding}");
    }
    assert!(upstream.seen().is_empty());
}

/// Number 8. The gateway asks for no coding that it cannot read: in turns over HTTP, about stored
/// responses, and in a handshake.
#[tokio::test]
async fn codings_are_asked_for_only_if_readable() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = two().recorded_by(&upstream).start().await;
    for (asked, sent) in [
        ("gzip, deflate, br", Some("gzip")),
        ("br;q=1.0, GZIP;q=0.5, *;q=0.1", Some("GZIP;q=0.5")),
        ("br", Some("identity")),
        ("zstd, x-gzip", Some("zstd, x-gzip")),
    ] {
        for body in [BODY.to_owned(), BODY.replacen('{', r#"{"store":false,"#, 1)] {
            let before = upstream.seen().len();
            let request = turn(&body).header("accept-encoding", asked);
            let request = request.header("accept_encoding", "br");
            assert_eq!(ask(cluster.address(), &request).await.status, 200);
            let seen = &upstream.seen()[before];
            assert_eq!(seen.header("accept-encoding"), sent, "{asked}");
            assert_eq!(seen.header("accept_encoding"), None);
        }
    }
    let before = upstream.seen().len();
    let headers = [("accept-encoding", "br, gzip"), ("session-id", "s")];
    let refused = open(cluster.address(), ALICE, &headers).await;
    assert!(refused.is_err(), "the recorder opens no WebSocket");
    assert_eq!(upstream.seen()[before].header("accept-encoding"), Some("gzip"));
}

/// Number 8. An error is understood in every coding that the gateway asks for, in any spelling of
/// its name.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encoded_error_is_understood() {
    for coding in ["gzip", "GZIP", "x-gzip", "X-GZip", "zstd", "Zstd"] {
        understands_encoded_error(two(), coding).await;
    }
}

/// Checks that an organization's exhausted quota is understood in this coding: all sessions leave
/// its key, and no client notices.
async fn understands_encoded_error(cluster: Cluster, coding: &str) {
    let keys = [siblings("org-a", 1), siblings("org-b", 1)].concat();
    let cluster = cluster.keys(keys).start().await;
    let exhausted = Fault::exhausted().organization("org-a").encoded(coding);
    cluster.upstream().fails_with(exhausted).await;
    for number in 0..20 {
        let request = Request::turn(ALICE, BODY)
            .header("session-id", &format!("s-{number}"))
            .header("accept-encoding", "gzip, deflate, br, zstd");
        let replica = &cluster.replicas[number % 2];
        assert_eq!(ask(replica.address(), &request).await.status, 200, "{coding}");
    }
    cluster.all_have("org-a-1", "disabled").await;
}

/// A response whose output is a picture, with its usage after it.
fn picture(usage: &str) -> String {
    let result = "A".repeat(700_000);
    format!(
        r#"{{"id":"resp_1","object":"response","status":"completed","output":[{{"type":"image_generation_call","result":"{result}"}}],"instructions":"{result}","usage":{usage},"tool_usage":{{"image_gen":{{"input_tokens":77,"output_tokens":99}}}}}}"#
    )
}

async fn counted(cluster: &Running) -> [f64; 4] {
    let metrics = cluster.replica().metrics().await;
    [
        metrics
            .sum_where(|one| one.starts_with("warmkey_input_tokens_total") && one.contains("read")),
        metrics.sum("warmkey_input_tokens_total"),
        metrics.sum("warmkey_output_tokens_total"),
        metrics.sum("warmkey_usage_missing_total"),
    ]
}

/// Number 9. Usage is found in answers of any length, in any order and spelling. It is missing if
/// it cannot be read.
#[tokio::test]
async fn usage_is_found_or_missing() {
    let usage =
        r#"{"output_tokens":7,"input_tokens_details":{"cached_tokens":8.0e3},"input_tokens":9000}"#;
    let event = |response: &str, is_named: bool, is_first: bool| {
        let name = if is_named { "event: response.completed\n" } else { "" };
        let kind = r#""type":"response.completed""#;
        let data = match is_first {
            true => format!("{{{kind},\"response\":{response}}}"),
            false => format!("{{\"sequence_number\":9,\"response\":{response},{kind}}}"),
        };
        format!("{name}data: {data}\n\n")
    };
    let long = picture(usage);
    let short = format!(r#"{{"id":"resp_1","\u0075sage":{usage},"status":"completed"}}"#);
    let odd = picture(r#"{"input_tokens":"many","output_tokens":7}"#);
    let found = [8_000.0, 9_000.0, 7.0, 0.0];
    let missing = [0.0, 0.0, 0.0, 1.0];
    let document = |body: &str| {
        vec![Step::Send(answer("200 OK", "content-type: application/json\r\n", body.as_bytes()))]
    };
    let events = |body: String| stream(&[body.as_bytes()]);
    for (number, (steps, expected)) in [
        (document(&long), found),
        (document(&short), found),
        (document(&odd), missing),
        (events(event(&long, true, true)), found),
        (events(event(&long, false, true)), found),
        (events(event(&long, false, false)), found),
        (events(event(&short, false, false)), found),
        (events(event(&odd, true, true)), missing),
        // This event has several lines of data.
        (
            events(event(&long, true, true).replace(",\"response\":", ",\ndata: \"response\":")),
            found,
        ),
        (
            events(event(&short, false, false).replace(",\"response\":", ",\ndata: \"response\":")),
            found,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let upstream = Recorder::answering(steps).await;
        let cluster = two().recorded_by(&upstream).start().await;
        let told = ask(cluster.address(), &turn(BODY)).await;
        assert!(told.whole && told.status == 200, "{number}");
        cluster.shows("warmkey_active_turns", 0.0).await;
        assert_eq!(counted(&cluster).await, expected, "case {number}");
    }
}

/// Number 9. A long chat answer has its usage, native or translated, as a document or a stream.
#[tokio::test]
async fn usage_of_a_long_chat_answer_is_found() {
    let text = "A".repeat(700_000);
    let native = r#""usage":{"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":8000},"prompt_tokens":9000}"#;
    let own = r#""usage":{"output_tokens":7,"input_tokens_details":{"cached_tokens":8000},"input_tokens":9000}"#;
    let chat = format!(
        r#"{{"id":"c","object":"chat.completion","choices":[{{"index":0,"finish_reason":"stop","message":{{"role":"assistant","content":"{text}"}}}}],{native}}}"#
    );
    let chunk =
        chat.replace("chat.completion", "chat.completion.chunk").replace("message", "delta");
    let response = format!(
        r#"{{"id":"resp_1","status":"completed","output":[{{"type":"message","role":"assistant","content":[{{"type":"output_text","text":"{text}"}}]}}],{own}}}"#
    );
    let completed = format!(
        "event: response.completed\ndata: {{\"type\":\"response.completed\",\"response\":{response}}}\n\n"
    );
    // This chunk has an escaped name. Another has a count that cannot be read.
    let escaped = chunk.replace("\"usage\"", "\"\\u0075sage\"").replace(":9000", ":9.0e3");
    let odd = chat.replace("\"prompt_tokens\":9000", "\"prompt_tokens\":\"many\"");
    let odd_chunk = chunk.replace("\"prompt_tokens\":9000", "\"prompt_tokens\":\"many\"");
    let (found, missing) = ([8_000.0, 9_000.0, 7.0, 0.0], [0.0, 0.0, 0.0, 1.0]);
    let chunks =
        |chunk: &str| stream(&[format!("data: {chunk}\n\n").as_bytes(), b"data: [DONE]\n\n"]);
    let document = |body: &str| {
        vec![Step::Send(answer("200 OK", "content-type: application/json\r\n", body.as_bytes()))]
    };
    let asked = r#"{"model":"gpt-5.4","messages":[{"role":"user","content":"hello"}]}"#;
    let streamed =
        asked.replacen('{', r#"{"stream":true,"stream_options":{"include_usage":true},"#, 1);
    for (speaks, body, steps, expected) in [
        ("\"chat\", \"responses\"", asked, document(&chat), found),
        ("\"chat\", \"responses\"", asked, document(&odd), missing),
        ("\"chat\", \"responses\"", &streamed, chunks(&chunk), found),
        ("\"chat\", \"responses\"", &streamed, chunks(&escaped), found),
        ("\"chat\", \"responses\"", &streamed, chunks(&odd_chunk), missing),
        ("\"responses\"", asked, document(&response), found),
        ("\"responses\"", &streamed, stream(&[completed.as_bytes()]), found),
    ] {
        let upstream = Recorder::answering(steps).await;
        let speaks = format!("speaks = [{speaks}]\n");
        let cluster = two().upstream(&speaks).recorded_by(&upstream).start().await;
        let told = ask(cluster.address(), &turn(body).target("/chat/completions")).await;
        assert!(told.whole && told.status == 200, "{speaks} {body}: {}", told.status);
        cluster.shows("warmkey_active_turns", 0.0).await;
        assert_eq!(counted(&cluster).await, expected, "{speaks} {body}");
    }
}

/// Number 12. An answer that breaks its framing becomes a 502, or a cut that the client notices.
/// Its turn is not sent again.
#[tokio::test]
async fn broken_answer_never_looks_whole() {
    let raw = |text: &str| vec![Step::Send(text.as_bytes().to_vec()), Step::Close];
    let error = r#"{"error":{"code":"server_error"}}"#;
    for (steps, expected) in [
        (raw("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"), 502),
        (raw("HTTP/1.1 101 Switching Protocols\r\n\r\n"), 502),
        (raw("HTTP/1.1 2x0 OK\r\n\r\n"), 502),
        (raw("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello"), 502),
        (raw("HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello"), 502),
        (raw("HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello"), 502),
        (raw(&format!("HTTP/1.1 500 E\r\ncontent-length: 900\r\n\r\n{error}")), 502),
        (raw(&format!("HTTP/1.1 400 E\r\ncontent-length: 900\r\n\r\n{error}")), 502),
        (raw("HTTP/1.1 400 E\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel"), 502),
        (raw("HTTP/1.1 400 E\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nhello"), 502),
        (raw("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 502),
        (
            raw(
                "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            ),
            502,
        ),
        (raw("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello"), 200),
        (raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n"), 200),
        (raw("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"), 200),
    ] {
        let text = format!(
            "{:?}",
            steps.first().map(|step| match step {
                Step::Send(bytes) => String::from_utf8_lossy(bytes).into_owned(),
                _ => String::new(),
            })
        );
        let upstream = Recorder::answering(steps).await;
        let cluster = two().recorded_by(&upstream).start().await;
        let told = ask(cluster.address(), &turn(BODY)).await;
        assert_eq!((told.status, told.whole), (expected, expected == 502), "{text}");
        assert_eq!(upstream.seen().len(), 1, "not sent again: {text}");
    }
}

/// Number 12. If some servers read a header's name as another one's, both headers are stopped.
#[tokio::test]
async fn header_with_underscores_is_stopped_like_its_twin() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = two().recorded_by(&upstream).start().await;
    let names = [
        "openai_organization",
        "openai_project",
        "OpenAI_Organization",
        "x_api_key",
        "api_key",
        "proxy_authorization",
        "chatgpt_account_id",
        "x_forwarded_for",
        "x_warmkey_hop",
        "yai_sticky_session",
        "transfer_encoding",
        "content_length",
        "x_real_ip",
        "x_codex_turn_state",
    ];
    let request = names.iter().fold(turn(BODY), |request, name| request.header(name, "smuggled"));
    let request = request.header("x_kept", "kept");
    assert_eq!(ask(cluster.address(), &request).await.status, 200);
    let seen = upstream.only();
    assert!(
        seen.headers.iter().all(|(_, value)| !value.contains("smuggled")),
        "{:?}",
        seen.headers
    );
    assert_eq!(seen.header("x_kept"), Some("kept"), "a new client's header passes");
}

/// Number 12. A date at which to retry is compared with the answer's own clock.
#[tokio::test]
async fn date_of_a_wait_is_measured_by_the_upstreams_clock() {
    let error = br#"{"error":{"code":"rate_limit_exceeded","type":"tokens"}}"#;
    // The upstream's clock is years behind.
    let headers = "date: Sun, 06 Nov 1994 08:49:37 GMT\r\nretry-after: Sun, 06 Nov 1994 08:59:37 GMT\r\ncontent-type: application/json\r\n";
    let upstream =
        Recorder::answering(vec![Step::Send(answer("429 Too Many Requests", headers, error))])
            .await;
    let cluster = two().keys(siblings("org-a", 1)).recorded_by(&upstream).start().await;
    let answer =
        within(Duration::from_secs(5), "an answer", ask(cluster.address(), &turn(BODY))).await;
    assert_eq!(answer.status, 429);
    assert!((590..=600).contains(&answer.retry_after()), "{}", answer.retry_after());
    assert_eq!(upstream.seen().len(), 1);
}

/// Number 11. Slashes make no difference, and a request has one `Host`.
#[tokio::test]
async fn slash_says_nothing_and_a_request_has_one_host() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = two().recorded_by(&upstream).start().await;
    for target in ["/v1/responses/", "//v1/responses", "/v1//responses", "/responses//"] {
        let request = turn(BODY).target(target);
        assert_eq!(ask(cluster.address(), &request).await.status, 200, "{target}");
    }
    let framed = |hosts: &str| {
        let length = BODY.len();
        format!(
            "POST /v1/responses HTTP/1.1\r\n{hosts}authorization: Bearer {ALICE}\r\ncontent-length: {length}\r\n\r\n{BODY}"
        )
    };
    let before = upstream.seen().len();
    for hosts in [
        "",
        "host: a\r\nhost: b\r\n",
        "host: a\r\nHost: a\r\n",
        "host: a b\r\n",
        "host: a/b\r\n",
        "host: u@a\r\n",
    ] {
        let mut connection = Connection::open(cluster.address()).await;
        connection.send_raw(framed(hosts).as_bytes()).await.expect("the head is taken");
        let answer = connection.head().await.expect("an answer");
        assert_eq!(answer.status, 400, "{hosts:?}");
    }
    assert_eq!(upstream.seen().len(), before);
    for host in ["a", "a.b:80", "[::1]:80", ""] {
        let mut connection = Connection::open(cluster.address()).await;
        connection.send_raw(framed(&format!("host: {host}\r\n")).as_bytes()).await.expect("taken");
        assert_eq!(connection.head().await.expect("an answer").status, 200, "{host:?}");
    }
}
