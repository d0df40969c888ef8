//! Lanes, steering, cancelling, and how a WebSocket and its responses end before their time.

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message;

use super::socket::{Socket, code, create, with};
use super::*;
use crate::simulator::judge::Outcome;

/// One request on a lane, with a text of its own.
fn on(lane: &str, text: &str) -> Value {
    with(create("gpt-5.4", None, &[user(text)]), json!({"stream_id": lane}))
}

fn kind(frame: &Value) -> &str {
    frame["type"].as_str().unwrap_or_default()
}

/// Two event delays of this length are time enough for a frame to arrive between them.
fn slow() -> Config {
    Config { event_delay: crate::setting::Span(Duration::from_millis(40)), ..Config::default() }
}

#[tokio::test]
async fn lane_keeps_its_order_while_others_pass_it() {
    let upstream = upstream().await;
    let mut socket = Socket::open(&upstream, "a-1").await;
    socket.say(&on("slow", "SLOW:5x40ms one")).await;
    socket.say(&on("slow", "EVENTS:1 two")).await;
    socket.say(&create("gpt-5.4", None, &[user("EVENTS:1 three")])).await;
    let mut ends = Vec::new();
    while ends.len() < 3 {
        let frame = socket.answer().await;
        ends.push((
            frame["stream_id"].as_str().map(str::to_owned),
            frame["response"]["id"].as_str().map(str::to_owned),
        ));
    }
    let turns = upstream.simulator.turns();
    let said = |index: usize| (turns[index].lane.clone(), turns[index].response_id.clone());
    assert_eq!(ends, [said(2), said(0), said(1)]);
    assert_eq!(
        turns.iter().map(|turn| turn.lane.as_deref()).collect::<Vec<_>>(),
        [Some("slow"), Some("slow"), None]
    );
}

#[tokio::test]
async fn lane_can_continue_from_another_lanes_response() {
    let upstream = upstream().await;
    let mut socket = Socket::open(&upstream, "a-1").await;
    let first = socket.turn(&on("main", "hello")).await;
    let fork = |input: &str| {
        with(create("gpt-5.4", Some(&first), &[user(input)]), json!({"stream_id": "side"}))
    };
    // A refused fork does not cost its source lane the response that it continues from.
    let refused = socket.turn(&with(fork("and?"), json!({"nonsense": 1}))).await;
    assert_eq!(
        (code(&refused), refused["stream_id"].as_str()),
        ((400, "unknown_parameter"), Some("side"))
    );
    assert_eq!(kind(&socket.turn(&fork("and?")).await), "response.completed");
}

#[tokio::test]
async fn thirty_two_lanes_have_names_and_sixteen_speak_at_once() {
    let upstream = upstream().await;
    let mut socket = Socket::open(&upstream, "a-1").await;
    for lane in 0..32 {
        socket.say(&on(&format!("lane-{lane}"), "SLOW:2x100ms")).await;
    }
    let (mut open, mut most, mut ended) = (0, 0, 0);
    while ended < 32 {
        let frame = socket.receive().await.expect("a frame");
        match kind(&frame) {
            "response.created" => open += 1,
            "response.completed" => (open, ended) = (open - 1, ended + 1),
            _ => {}
        }
        most = most.max(open);
    }
    assert_eq!(most, 16);
    let refused = socket.turn(&on("one-more", "hello")).await;
    assert_eq!(code(&refused), (400, "websocket_stream_limit_reached"));
    assert_eq!(code(&socket.turn(&on("no such name", "hello")).await), (400, "invalid_stream_id"));
    assert_eq!(kind(&socket.turn(&on("lane-7", "hello")).await), "response.completed");
    assert_eq!(
        kind(&socket.turn(&create("gpt-5.4", None, &[user("hello")])).await),
        "response.completed"
    );
}

#[tokio::test]
async fn steered_response_ends_early_and_has_a_successor() {
    let upstream = upstream_with(slow()).await;
    let mut socket = Socket::open(&upstream, "a-1").await;
    socket.say(&with(create("gpt-6-sol", None, &history()), json!({"stream_id": "main"}))).await;
    let created = socket.receive().await.expect("a frame");
    let steer = json!({"type": "response.steer", "previous_response_id": created["response"]["id"], "input": "shorter"});
    socket.say(&steer).await;
    let mut kinds = Vec::new();
    let incomplete = loop {
        let frame = socket.receive().await.expect("a frame");
        kinds.push(kind(&frame).to_owned());
        if kind(&frame) == "response.incomplete" {
            break frame;
        }
    };
    assert!(kinds.contains(&"response.steer.accepted".to_owned()), "{kinds:?}");
    assert_eq!(incomplete["response"]["incomplete_details"]["reason"], "steered");
    let successor = socket.answer().await;
    assert_eq!(
        (kind(&successor), successor["stream_id"].as_str()),
        ("response.completed", Some("main"))
    );
    assert_eq!(successor["response"]["previous_response_id"], created["response"]["id"]);

    let turns = upstream.simulator.turns();
    assert_eq!(
        turns.iter().map(|turn| turn.outcome).collect::<Vec<_>>(),
        [Outcome::Incomplete, Outcome::Completed]
    );
    assert_eq!(turns[1].frame.as_deref(), Some("response.steer"));
    let hash = <sha2::Sha256 as sha2::Digest>::new_with_prefix(steer.to_string());
    assert_eq!(turns[1].body_sha256, body::hex(&sha2::Digest::finalize(hash)));
    assert!(turns[1].cached_tokens > 4900, "the fork continues from what its parent had read");
    let frames = &upstream.simulator.sockets()[0].frames;
    assert_eq!((frames["response.create"], frames["response.steer"]), (1, 1));
}

#[tokio::test]
async fn steer_waits_for_a_tool_and_fails_where_it_cannot_be_taken_up() {
    let upstream = upstream_with(slow()).await;
    let mut socket = Socket::open(&upstream, "a-1").await;
    let steer = |id: &Value, input: Value| json!({"type": "response.steer", "previous_response_id": id, "input": input});
    socket.say(&create("gpt-6-sol", None, &[user("TOOL please")])).await;
    let mut id = Value::Null;
    let call = loop {
        let frame = socket.receive().await.expect("a frame");
        match kind(&frame) {
            "response.created" => id = frame["response"]["id"].clone(),
            // The response's last item has begun, so nothing interrupts that item any more.
            "response.output_item.added" if frame["item"]["type"] == "function_call" => {
                socket.say(&steer(&id, json!("shorter"))).await;
            }
            "response.completed" => break frame["response"]["output"][1]["call_id"].clone(),
            _ => {}
        }
    };
    let pending = socket.receive().await.expect("a frame");
    assert_eq!(
        (kind(&pending), &pending["required_input"][0]["call_id"]),
        ("response.steer.pending", &call)
    );
    let output = json!({"type": "function_call_output", "call_id": call, "output": "hi"});
    let next = with(create("gpt-6-sol", None, &[output]), json!({"previous_response_id": id}));
    assert_eq!(kind(&socket.turn(&next).await), "response.completed");
    let with_steer = upstream.simulator.turns()[1].input_tokens;

    for (target, input, why) in [
        (&json!("resp_0"), json!("shorter"), "response_not_found"),
        (&json!("resp_0"), json!([]), "invalid_input"),
    ] {
        socket.say(&steer(target, input)).await;
        let failed = socket.receive().await.expect("a frame");
        assert_eq!(
            (kind(&failed), failed["error"]["code"].as_str()),
            ("response.steer.failed", Some(why))
        );
    }
    socket.say(&create("gpt-5.6-sol", None, &[user("hello")])).await;
    let created = socket.receive().await.expect("a frame");
    socket.say(&steer(&created["response"]["id"], json!("shorter"))).await;
    loop {
        let frame = socket.receive().await.expect("a frame");
        if kind(&frame).starts_with("response.steer") {
            assert_eq!(frame["error"]["code"], "steering_not_supported");
            break;
        }
    }
    assert!(with_steer > 0);
}

#[tokio::test]
async fn cancelled_response_ends_at_once_and_nothing_else_can_be_cancelled() {
    let upstream = upstream().await;
    let mut socket = Socket::open(&upstream, "a-1").await;
    let cancel = json!({"type": "response.cancel"});
    assert_eq!(code(&socket.turn(&cancel).await), (400, "response_cancel_not_active"));
    socket.say(&create("gpt-5.4", None, &[user("SLOW:1000x1s")])).await;
    while kind(&socket.receive().await.expect("a frame")) != "response.content_part.added" {}
    let ended = socket.turn(&cancel).await;
    assert_eq!(
        (kind(&ended), ended["response"]["incomplete_details"]["reason"].as_str()),
        ("response.incomplete", Some("cancelled"))
    );
    let turn = upstream.last(|turn| turn.finished_at.is_some()).await;
    assert_eq!((turn.outcome, turn.output_tokens), (Outcome::Incomplete, 64));
}

#[tokio::test]
async fn hour_is_the_life_of_a_socket() {
    let upstream = upstream_with(Config { time_scale: 18_000.0, ..Config::default() }).await;
    let mut socket = Socket::open(&upstream, "a-1").await;
    socket.say(&create("gpt-5.4", None, &[user("SLOW:1000x1s")])).await;
    let limit = socket.answer().await;
    assert_eq!(code(&limit), (400, "websocket_connection_limit_reached"));
    assert_eq!(
        limit["error"]["message"],
        "Responses websocket connection limit reached (60 minutes). Create a new websocket connection to continue."
    );
    assert_eq!(socket.receive().await, Err(1000));
    assert_eq!(upstream.last(|turn| turn.finished_at.is_some()).await.outcome, Outcome::Cut);
    let record = &upstream.simulator.sockets()[0];
    assert_eq!((record.expired, record.server_close), (true, Some(1000)));
}

#[tokio::test]
async fn client_that_leaves_is_told_from_a_socket_that_is_closed() {
    let upstream = upstream().await;
    for (leaves, outcome) in [(true, Outcome::ClientLeft), (false, Outcome::Cut)] {
        let mut socket = Socket::open(&upstream, "a-1").await;
        socket.say(&create("gpt-5.4", None, &[user("SLOW:1000x1s")])).await;
        socket.receive().await.expect("a frame");
        if leaves {
            drop(socket);
        } else {
            let closed = upstream
                .client
                .post(upstream.url("/_sim/close"))
                .body(r#"{"session":"session-1","code":1012}"#);
            assert_eq!(upstream.send(closed).await.text, r#"{"closed":1}"#);
            while socket.receive().await != Err(1012) {}
        }
        assert_eq!(upstream.last(|turn| turn.finished_at.is_some()).await.outcome, outcome);
    }
}

#[tokio::test]
async fn frames_that_break_the_protocol_are_answered_with_its_close_codes() {
    let upstream = upstream().await;
    let long = Message::text("x".repeat(17 << 20));
    for (message, expected) in [(Message::binary(vec![1]), 1003), (long, 1009)] {
        let mut socket = Socket::open(&upstream, "a-1").await;
        // The simulator may refuse the message before all of it is written.
        let _ = socket.wire.send(message).await;
        let received = socket.receive().await;
        assert!(
            received == Err(expected) || (expected == 1009 && received == Err(1006)),
            "{received:?}"
        );
        drop(socket);
        let closed = || upstream.simulator.sockets().pop().and_then(|socket| socket.server_close);
        assert_eq!(closed(), Some(expected));
    }
    // A masked text frame of one byte that is no UTF-8, and a frame of an opcode that does not
    // exist.
    for (frame, expected) in
        [([0x81, 0x81, 0, 0, 0, 0, 0xff], 1007_u16), ([0x83, 0x81, 0, 0, 0, 0, b'x'], 1002)]
    {
        let mut socket = Socket::open(&upstream, "a-1").await;
        let raw = socket.wire.get_mut();
        raw.write_all(&frame).await.expect("written");
        let mut close = [0; 4];
        raw.read_exact(&mut close).await.expect("a close frame");
        assert_eq!((close[0], u16::from_be_bytes([close[2], close[3]])), (0x88, expected));
    }
    let mut socket = Socket::open(&upstream, "a-1").await;
    socket.wire.send(Message::Ping("are you there".into())).await.expect("sent");
    assert_eq!(
        socket.wire.next().await.expect("a frame").expect("whole"),
        Message::Pong("are you there".into())
    );
    socket.say(&json!({"type": "session.update"})).await;
    assert_eq!(code(&socket.answer().await), (400, "invalid_value"));
    socket.wire.send(Message::text("{")).await.expect("sent");
    assert_eq!(socket.answer().await["status"], 400);
}
