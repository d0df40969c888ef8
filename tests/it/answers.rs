//! An answer's bytes reach the client as the upstream sent them, and end as the upstream ended
//! them.

use std::io::Write;

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::sha256;
use crate::world::recorder::{
    COMPLETED, Recorder, Step, answer, chunk, completed, stream, stream_head,
};
use crate::world::simulator::siblings;
use crate::world::waiting::{ANSWER, SOON, eventually, ms, within};
use crate::world::wire::{Answer, Connection, Piece, Request, ask};

const BODY: &str = r#"{"model":"gpt-5.4","prompt_cache_key":"s","stream":true,"input":"hello"}"#;

async fn answered(steps: Vec<Step>) -> (Answer, Recorder, Running) {
    let upstream = Recorder::answering(steps).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let answer = ask(cluster.address(), &Request::turn(ALICE, BODY)).await;
    (answer, upstream, cluster)
}

#[tokio::test]
async fn stream_is_the_same_bytes_however_it_is_written() {
    let wild: Vec<Vec<&[u8]>> = vec![
        vec![b"event: response.created\r\ndata: {}\r\n\r\n", COMPLETED.as_bytes()],
        vec![b"data: {}\r\rdata: {\"type\":\"response.completed\"}\r\r"],
        vec![b"\xef\xbb\xbfdata: {}\n\n", COMPLETED.as_bytes()],
        vec![b": a comment\n\n:\n\n", b"id: 7\nretry: 10\ndata: a\ndata: b\n\n", COMPLETED.as_bytes()],
        vec![b"data: \"\xf0\x9f", b"\x98\x80\"\n\n", COMPLETED.as_bytes()],
        vec![b"da", b"ta: {}\n", b"\n", b"event: never.heard.of\ndata: {\"type\":\"never.heard.of\"}\n\n", COMPLETED.as_bytes()],
        COMPLETED.as_bytes().chunks(1).collect(),
        vec![b"data: \xff\xfe\x00 no text at all\n\n", b"no event either"],
        vec![b"event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"error\":{\"code\":\"server_error\"}}}\n\n"],
        vec![b"event: error\ndata: {\"type\":\"error\",\"code\":\"server_error\",\"message\":\"no\"}\n\n"],
    ];
    let scripts: Vec<Vec<Step>> = wild.iter().map(|pieces| stream(pieces)).collect();
    let upstream = Recorder::start(move |seen| {
        let number: usize = seen
            .header("session-id")
            .and_then(|id| id.parse().ok())
            .expect("the test numbers its sessions");
        scripts[number].clone()
    })
    .await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    for (number, pieces) in wild.iter().enumerate() {
        let request = Request::turn(ALICE, BODY).header("session-id", &number.to_string());
        let answer = ask(cluster.address(), &request).await;
        assert_eq!(answer.header("content-type"), Some("text/event-stream"), "{number}");
        assert_eq!(
            String::from_utf8_lossy(&answer.body),
            String::from_utf8_lossy(&pieces.concat()),
            "{number}"
        );
        assert!(
            answer.body == pieces.concat() && answer.whole,
            "{number}: the same bytes and the same end"
        );
    }
}

/// Returns the bytes of an answer up to `length`, and the number of pieces in which they came.
async fn pieces(connection: &mut Connection, length: usize) -> (Vec<u8>, usize) {
    let (mut bytes, mut count) = (Vec::new(), 0);
    while bytes.len() < length {
        let Piece::Bytes(piece) = within(ANSWER, "what was sent comes", connection.piece()).await
        else {
            panic!("the stream goes on: {}", String::from_utf8_lossy(&bytes))
        };
        bytes.extend(piece);
        count += 1;
    }
    (bytes, count)
}

#[tokio::test]
async fn events_that_come_one_by_one_go_on_at_once_and_those_that_come_together_are_joined() {
    const BURST: usize = 60;
    let alone = b"data: {\"alone\":true}\n\n";
    let burst = b"data: {}\n\n".repeat(BURST);
    let written: Vec<u8> = (0..BURST).flat_map(|_| chunk(b"data: {}\n\n")).collect();
    let mut steps = vec![Step::Send(stream_head(""))];
    for _ in 0..4 {
        // The upstream sends its next bytes only when the client has these.
        for bytes in [chunk(alone), chunk(alone), written.clone()] {
            steps.extend([Step::Pause(ms(5)), Step::Send(bytes), Step::Hold]);
        }
    }
    steps.extend([Step::Send(chunk(COMPLETED.as_bytes())), Step::Send(b"0\r\n\r\n".to_vec())]);
    let upstream = Recorder::answering(steps).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let mut connection = Connection::open(cluster.address()).await;
    let mut answer = connection.ask(&Request::turn(ALICE, BODY)).await.expect("an answer");
    let mut fewest = BURST;
    for _ in 0..4 {
        for _ in 0..2 {
            assert_eq!(pieces(&mut connection, alone.len()).await.0, alone);
            upstream.release(1);
        }
        let (bytes, count) = pieces(&mut connection, burst.len()).await;
        assert!(bytes == burst);
        fewest = fewest.min(count);
        upstream.release(1);
    }
    // On a busy machine, the gateway may read each event before the next one has come.
    assert!(fewest <= BURST / 4, "{fewest} pieces at least");
    connection.finish(&mut answer).await;
    assert!(answer.whole && answer.body == COMPLETED.as_bytes());
}

#[tokio::test]
async fn event_of_32_mib_streams_through_in_little_memory() {
    let piece = vec![b'x'; 64 * 1024];
    let mut steps = vec![Step::Send(stream_head("")), Step::Send(chunk(b"event: image\ndata: \""))];
    steps.extend(std::iter::repeat_n(Step::Send(chunk(&piece)), 512));
    steps.extend([
        Step::Send(chunk(b"\"\n\n")),
        Step::Send(chunk(COMPLETED.as_bytes())),
        Step::Send(b"0\r\n\r\n".to_vec()),
    ]);
    let upstream = Recorder::answering(steps).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let before = cluster.replica().process().peak();
    let answer = ask(cluster.address(), &Request::turn(ALICE, BODY)).await;
    let grown = cluster.replica().process().peak().saturating_sub(before);
    let expected =
        [b"event: image\ndata: \"".as_slice(), &piece.repeat(512), b"\"\n\n", COMPLETED.as_bytes()]
            .concat();
    assert_eq!((sha256(&answer.body), answer.whole), (sha256(&expected), true));
    assert!(grown < 12 << 20, "the event is not held: {grown} bytes more");
    cluster
        .replica()
        .shows(r#"warmkey_turns_total{transport="http",outcome="completed"}"#, 1.0)
        .await;
}

#[tokio::test]
async fn json_answer_keeps_its_length() {
    let body =
        br#"{"id":"resp_1","object":"response","status":"completed","n":1.0e2,"usage":{"input_tokens":5,"output_tokens":1}}"#;
    let (got, _upstream, _cluster) =
        answered(vec![Step::Send(answer("200 OK", "content-type: application/json\r\n", body))])
            .await;
    assert_eq!(got.body, body);
    assert_eq!(got.header("content-length"), Some(body.len().to_string().as_str()));
    assert_eq!(
        (got.header("content-type"), got.header("transfer-encoding")),
        (Some("application/json"), None)
    );
}

#[tokio::test]
async fn compressed_answer_stays_compressed() {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    gzip.write_all(COMPLETED.as_bytes()).expect("memory is enough");
    let gzip = gzip.finish().expect("memory is enough");
    let zstd = zstd::encode_all(COMPLETED.as_bytes(), 1).expect("memory is enough");
    for (coding, body) in [("gzip", gzip), ("zstd", zstd)] {
        let headers = format!("content-type: text/event-stream\r\ncontent-encoding: {coding}\r\n");
        let (got, _upstream, _cluster) =
            answered(vec![Step::Send(answer("200 OK", &headers, &body))]).await;
        assert_eq!(
            (got.header("content-encoding"), got.body.as_slice()),
            (Some(coding), body.as_slice())
        );
    }
}

#[tokio::test]
async fn upstreams_refusal_reaches_the_client_as_it_was() {
    for status in [
        "400 Bad Request",
        "404 Not Found",
        "409 Conflict",
        "413 Payload Too Large",
        "422 Unprocessable Entity",
    ] {
        let body =
            br#"{"error": {"message":"its own words","type":"invalid_request_error","param":"input","code":"some_code"} }"#;
        let (got, upstream, _cluster) =
            answered(vec![Step::Send(answer(status, "content-type: application/json\r\n", body))])
                .await;
        assert!(status.starts_with(&got.status.to_string()), "{status}: {}", got.status);
        assert_eq!(got.body, body, "{status}");
        assert_eq!(upstream.seen().len(), 1, "{status}: asked once");
    }
}

/// The gateway inspects the beginning of a refusal and passes all of it.
#[tokio::test]
async fn refusal_of_any_length_passes_whole() {
    let body =
        format!(r#"{{"error":{{"code":"some_code","message":"{}"}}}}"#, "long ".repeat(60_000))
            .into_bytes();
    let head = b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunked =
        [&head[..], &chunk(&body[..70_000]), &chunk(&body[70_000..]), b"0\r\n\r\n"].concat();
    for bytes in [answer("400 Bad Request", "content-type: application/json\r\n", &body), chunked] {
        let (got, _upstream, _cluster) = answered(vec![Step::Send(bytes)]).await;
        assert_eq!((got.status, got.whole, got.body.len()), (400, true, body.len()));
        assert!(got.body == body, "the same bytes");
    }
}

#[tokio::test]
async fn redirect_is_not_followed() {
    let elsewhere = Recorder::answering(completed()).await;
    let headers = format!("location: {}/responses\r\n", elsewhere.url());
    let (got, upstream, _cluster) =
        answered(vec![Step::Send(answer("307 Temporary Redirect", &headers, b""))]).await;
    assert_eq!((got.status, upstream.seen().len(), elsewhere.seen().len()), (307, 1, 0));
}

#[tokio::test]
async fn interim_answer_comes_before_the_real_one() {
    let mut bytes = b"HTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n".to_vec();
    bytes.extend(answer("200 OK", "content-type: application/json\r\n", b"{}"));
    let (got, _upstream, _cluster) = answered(vec![Step::Send(bytes)]).await;
    assert_eq!((got.status, got.body.as_slice()), (200, b"{}".as_slice()));
}

#[tokio::test]
async fn cut_stream_is_seen_cut() {
    let event = b"event: response.created\ndata: {\"type\":\"response.created\"}\n\n";
    for end in [Step::Close, Step::Reset] {
        let steps =
            vec![Step::Send(stream_head("")), Step::Send(chunk(event)), Step::Pause(ms(200)), end];
        let (got, _upstream, cluster) = answered(steps).await;
        assert_eq!((got.status, got.body.as_slice(), got.whole), (200, event.as_slice(), false));
        cluster.replica().shows("warmkey_active_turns", 0.0).await;
        assert_eq!(
            cluster
                .replica()
                .metrics()
                .await
                .get(r#"warmkey_turns_total{transport="http",outcome="completed"}"#),
            0.0
        );
    }
}

/// C29: if an upstream repeats the credential, it is stripped from a header. In a body it passes,
/// because the body's bytes are the client's. The log says so once a turn, without the secret.
#[tokio::test]
async fn secret_in_a_body_is_counted_and_passes() {
    let upstream = Recorder::start(|seen| {
        let echo =
            format!("data: {{\"authorization\":\"Bearer {0}\",\"again\":\"{0}\"}}\n\n", seen.key());
        let (half, other) =
            echo.split_at(echo.find("canary").expect("it is a secret of the tests"));
        match seen.header("session-id") {
            Some("json") => {
                vec![Step::Send(answer(
                    "200 OK",
                    "content-type: application/json\r\n",
                    echo.as_bytes(),
                ))]
            }
            Some("refused") => {
                vec![Step::Send(answer(
                    "400 Bad Request",
                    "content-type: application/json\r\n",
                    echo.as_bytes(),
                ))]
            }
            Some("stream") => {
                stream(&[b"data: {}\n\n", echo.as_bytes(), echo.as_bytes(), COMPLETED.as_bytes()])
            }
            Some("split") => {
                let mut steps = stream(&[half.as_bytes(), other.as_bytes(), COMPLETED.as_bytes()]);
                steps.insert(2, Step::Pause(ms(100)));
                steps
            }
            _ => completed(),
        }
    })
    .await;
    let cluster = Cluster::new().keys(siblings("org-a", 1)).recorded_by(&upstream).start().await;
    let echo = "data: {\"authorization\":\"Bearer sk-canary-org-a-1\",\"again\":\"sk-canary-org-a-1\"}\n\n";
    let whole = |events: &[&str]| events.concat();
    for (count, (session, status, body)) in [
        (
            "silent",
            200,
            whole(&[
                "event: response.created\ndata: {\"type\":\"response.created\"}\n\n",
                COMPLETED,
            ]),
        ),
        ("json", 200, whole(&[echo])),
        ("refused", 400, whole(&[echo])),
        ("stream", 200, whole(&["data: {}\n\n", echo, echo, COMPLETED])),
        ("split", 200, whole(&[echo, COMPLETED])),
    ]
    .into_iter()
    .enumerate()
    {
        let got =
            ask(cluster.address(), &Request::turn(ALICE, BODY).header("session-id", session)).await;
        assert_eq!((got.status, got.text(), got.whole), (status, body, true), "{session}");
        cluster
            .shows(
                "warmkey_credential_echoes_total",
                f64::from(u8::try_from(count).expect("they are few")),
            )
            .await;
    }
    let is_warning = |line: &&str| line.contains("holds the secret");
    eventually(SOON, "the log has all lines", async || {
        (cluster.logs().lines().filter(is_warning).count() == 4).then_some(())
    })
    .await;
    let log = cluster.logs();
    let warnings: Vec<_> = log.lines().filter(is_warning).collect();
    assert!(
        warnings.len() == 4
            && warnings.iter().all(|line| line.contains("org-a-1") && line.contains("WARN")),
        "{log}"
    );
    let page = cluster.replica().probe("/metrics").await.text();
    assert!(!log.contains("canary") && !page.contains("canary"), "and never the secret");
}

/// C30: a 204 or a 304 has no body, even if bytes follow that look like the next turn's answer.
/// Bytes that come after the next turn was sent are that turn's answer (RFC 9112, section 6.3).
#[tokio::test]
async fn body_of_a_bodiless_answer_answers_no_other_request() {
    let forged = answer("200 OK", "content-type: application/json\r\n", b"{\"forged\":true}");
    let chunked =
        [b"transfer-encoding: chunked\r\n\r\n", chunk(&forged).as_slice(), b"0\r\n\r\n"].concat();
    let sized = [format!("content-length: {}\r\n\r\n", forged.len()).as_bytes(), &forged].concat();
    let unannounced = [b"\r\n", forged.as_slice()].concat();
    for status in [204, 304] {
        for rest in [&chunked, &sized, &unannounced] {
            let bodiless = [format!("HTTP/1.1 {status} x\r\n").as_bytes(), rest].concat();
            let upstream = Recorder::start(move |seen| match seen.header("session-id") {
                Some("bodiless") => vec![Step::Send(bodiless.clone())],
                _ => {
                    vec![Step::Send(answer("200 OK", "content-type: application/json\r\n", b"{}"))]
                }
            })
            .await;
            let cluster =
                Cluster::new().keys(siblings("org-a", 1)).recorded_by(&upstream).start().await;
            let mut client = Connection::open(cluster.address()).await;
            for (session, expected) in
                [("bodiless", (status, "")), ("other", (200, "{}"))].repeat(4)
            {
                let request = Request::turn(ALICE, BODY).header("session-id", session);
                let mut got = within(ANSWER, "an answer", client.ask(&request))
                    .await
                    .expect("the connection lives on");
                client.finish(&mut got).await;
                assert_eq!(
                    ((got.status, got.text().as_str()), got.whole),
                    (expected, true),
                    "{session}"
                );
            }
            assert_eq!(upstream.seen().len(), 8, "each was asked for once");
        }
    }
}
