//! Faults on a WebSocket: refused handshakes, refused or cut turns, and frames that must not come
//! in.

use super::socket::{Socket, code, create, with};
use super::*;
use crate::simulator::judge::Outcome;

#[tokio::test]
async fn handshake_is_checked_like_any_request() {
    let upstream = upstream().await;
    for (headers, expected) in [
        (("x-warmkey-hop", "x"), "simulator_leak"),
        (("cookie", "a=b"), "simulator_leak"),
        (("openai-organization", "org-b"), "mismatched_organization"),
        (("x-codex-turn-state", "made up"), "simulator_foreign_turn_state"),
        (("content-length", "5"), "simulator_framing"),
    ] {
        let (_, body) = Socket::refused(&upstream, "a-1", &[headers]).await;
        assert_eq!(body["error"]["code"], expected, "{headers:?}");
        let turn = upstream.simulator.turns().pop().expect("recorded");
        assert_eq!(
            (turn.outcome, turn.code.as_deref(), turn.key.as_deref()),
            (Outcome::Refused, Some(expected), Some("a-1"))
        );
        assert_eq!((turn.transport.as_str(), turn.frame), ("websocket", None));
    }
    assert_eq!(Socket::refused(&upstream, "nobody", &[]).await.0, 401);
    let record = upstream.simulator.sockets();
    assert_eq!(
        record.iter().map(|socket| socket.status).collect::<Vec<_>>(),
        [400, 400, 401, 400, 400, 401]
    );
}

#[tokio::test]
async fn upstream_may_have_no_websocket() {
    let upstream = upstream_with(Config { websocket: false, ..Config::default() }).await;
    let (status, body) = Socket::refused(&upstream, "a-1", &[]).await;
    assert_eq!(
        (status, body["error"]["message"].as_str()),
        (404, Some("Invalid URL (GET /v1/responses)"))
    );
}

#[tokio::test]
async fn extensions_are_declined_and_the_turn_state_goes_to_clients_that_read_it() {
    let upstream = upstream().await;
    let offered = ("sec-websocket-extensions", "permessage-deflate; client_max_window_bits");
    let headers = [offered, ("openai-beta", "responses_websockets=2026-02-06")];
    let mut socket = Socket::open_with(&upstream, "a-1", &headers).await.expect("accepted");
    assert!(
        !socket.headers.contains_key("sec-websocket-extensions")
            && socket.headers.contains_key("x-request-id")
    );
    socket.say(&create("gpt-5.4", None, &[user("hello")])).await;
    let metadata = socket.receive().await.expect("a frame");
    assert_eq!(metadata["type"], "response.metadata");
    let state = metadata["headers"]["x-codex-turn-state"].as_str().expect("a state").to_owned();
    let first = socket.answer().await;
    let carrying = |state: &str| {
        with(
            create("gpt-5.4", Some(&first), &[user("and?")]),
            json!({"client_metadata": {"x-codex-turn-state": state}}),
        )
    };
    socket.say(&carrying(&state)).await;
    assert_eq!(
        socket.receive().await.expect("a frame")["type"],
        "response.created",
        "stated once a turn"
    );
    socket.answer().await;
    assert_eq!(upstream.simulator.turns()[1].turn_state.as_deref(), Some(state.as_str()));
    let mut other = Socket::open(&upstream, "a-2").await;
    assert_eq!(code(&other.turn(&carrying(&state)).await), (400, "simulator_foreign_turn_state"));
}

#[tokio::test]
async fn handshakes_are_refused_as_scripted() {
    let upstream = upstream().await;
    for (status, code) in [
        (401, "invalid_api_key"),
        (403, ""),
        (404, ""),
        (426, ""),
        (429, ""),
        (500, ""),
        (503, "slow_down"),
    ] {
        let mut fault = json!({"key": "a-1", "status": status, "at": "handshake", "retry_after": 3, "times": 1});
        if !code.is_empty() {
            fault["code"] = code.into();
        }
        upstream.fault(fault).await;
        // The fault strikes no turn, and no other key's handshake.
        assert_eq!(upstream.post("a-1", &ask("gpt-5.4", &[user("hello")])).await.status, 200);
        Socket::open(&upstream, "a-2").await;
        assert_eq!(Socket::refused(&upstream, "a-1", &[]).await.0, status);
        Socket::open(&upstream, "a-1").await;
    }
    upstream.fault(json!({"reset": true, "at": "handshake", "times": 1})).await;
    assert!(Socket::open_with(&upstream, "a-1", &[]).await.is_err());
    assert_eq!(upstream.last(|turn| turn.finished_at.is_some()).await.outcome, Outcome::Cut);
    upstream.fault(json!({"close": 1013, "at": "handshake", "times": 1})).await;
    assert_eq!(Socket::open(&upstream, "a-1").await.receive().await, Err(1013));
    // A dead key is dead for handshakes, too.
    upstream.fault(json!({"key": "a-1", "status": 401})).await;
    assert_eq!(Socket::refused(&upstream, "a-1", &[]).await.0, 401);
}

#[tokio::test]
async fn turns_are_refused_and_cut_as_scripted() {
    let upstream = upstream().await;
    let request = create("gpt-5.4", None, &[user("hello")]);
    let mut socket = Socket::open(&upstream, "a-1").await;
    upstream.fault(json!({"status": 429, "retry_after": 2, "times": 1})).await;
    let limited = socket.turn(&request).await;
    assert_eq!(
        (code(&limited), limited["headers"]["retry-after"].as_str()),
        ((429, "rate_limit_exceeded"), Some("2"))
    );
    assert_eq!(socket.turn(&request).await["type"], "response.completed", "the socket lives on");

    upstream.fault(json!({"status": 503, "cut_after_events": 3, "times": 1})).await;
    let failed = socket.turn(&request).await;
    assert_eq!(code(&failed), (503, "server_is_overloaded"));
    let turn = upstream.last(|turn| turn.finished_at.is_some()).await;
    assert_eq!((turn.outcome, turn.events, turn.status), (Outcome::Failed, 3, 200));
    assert_eq!(turn.code.as_deref(), Some("server_is_overloaded"));

    upstream.fault(json!({"status": 200, "code": "server_error", "times": 1})).await;
    assert_eq!(socket.turn(&request).await["type"], "response.failed");
    upstream
        .fault(json!({"status": 200, "code": "server_error", "error_event": true, "times": 1}))
        .await;
    let bare = socket.turn(&request).await;
    assert_eq!((&bare["status"], &bare["code"]), (&Value::Null, &json!("server_error")));

    upstream.fault(json!({"status": 400, "code": "websocket_connection_limit_reached", "close": 1000, "times": 1})).await;
    assert_eq!(code(&socket.turn(&request).await), (400, "websocket_connection_limit_reached"));
    assert_eq!(socket.receive().await, Err(1000));

    for (fault, events, end) in [
        (json!({"cut_after_events": 3, "close": 1011}), 3, 1011),
        (json!({"cut_after_events": 3}), 3, 1000),
        (json!({"close": 1001}), 0, 1001),
        (json!({"close": 1001, "cut_after_events": 1_000_000}), 18, 1001),
        (json!({"cut_after_events": 4, "reset": true}), 4, 1006),
        (json!({"reset": true}), 0, 1006),
    ] {
        upstream.fault(with(fault.clone(), json!({"times": 1}))).await;
        let mut socket = Socket::open(&upstream, "a-1").await;
        socket.say(&request).await;
        let mut received = 0;
        let ended = loop {
            match socket.receive().await {
                Ok(_) => received += 1,
                Err(code) => break code,
            }
        };
        assert_eq!((received, ended), (events, end), "{fault}");
        let outcome = if events == 18 { Outcome::Completed } else { Outcome::Cut };
        assert_eq!(
            upstream.last(|turn| turn.finished_at.is_some()).await.outcome,
            outcome,
            "{fault}"
        );
    }
}

#[tokio::test]
async fn closing_upstream_finishes_its_answer() {
    let upstream = upstream().await;
    let mut idle = Socket::open(&upstream, "a-1").await;
    let mut busy = Socket::open(&upstream, "a-1").await;
    busy.say(&create("gpt-5.4", None, &[user("SLOW:4x20ms")])).await;
    busy.receive().await.expect("a frame");
    upstream.closing.cancel();
    assert_eq!(idle.receive().await, Err(1001));
    assert_eq!(busy.answer().await["type"], "response.completed");
    assert_eq!(busy.receive().await, Err(1001));
}
