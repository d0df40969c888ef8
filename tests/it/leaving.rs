//! Tests clients that leave, and upstreams that fall silent.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::Instant;

use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::recorder::{COMPLETED, Recorder, Step, chunk, completed, stream_head};
use crate::world::waiting::{ANSWER, Budget, SOON, eventually, ms, within};
use crate::world::wire::{Connection, Piece, Request, ask};

const BODY: &str = r#"{"model":"gpt-5.4","prompt_cache_key":"s","stream":true,"input":"hello"}"#;
const CREATED: &[u8] = b"event: response.created\ndata: {\"type\":\"response.created\"}\n\n";
/// How long the upstream of a slow client may be silent.
const IDLE: Duration = ms(700);

async fn asked(address: SocketAddr) -> Connection {
    let mut client = Connection::open(address).await;
    assert_eq!(
        within(ANSWER, "a head", client.ask(&Request::turn(ALICE, BODY)))
            .await
            .expect("an answer")
            .status,
        200
    );
    client
}

/// Reads until `end` has come.
async fn read_until(client: &mut Connection, end: &[u8]) {
    let mut body = Vec::new();
    within(SOON, "the event", async {
        while !body.ends_with(end) {
            let Piece::Bytes(bytes) = client.piece().await else { panic!("the stream goes on") };
            body.extend_from_slice(&bytes);
        }
    })
    .await;
}

async fn turns(cluster: &Running, outcome: &str) -> f64 {
    cluster
        .replica()
        .metrics()
        .await
        .get(&format!("warmkey_turns_total{{transport=\"http\",outcome=\"{outcome}\"}}"))
}

#[tokio::test]
async fn client_that_leaves_in_mid_answer_cancels_upstream() {
    let upstream = Recorder::answering(vec![
        Step::Send(stream_head("")),
        Step::Send(chunk(CREATED)),
        Step::Hold,
    ])
    .await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let mut client = asked(cluster.address()).await;
    read_until(&mut client, CREATED).await;
    cluster.replica().shows("warmkey_active_turns", 1.0).await;
    let budget = Budget::begin(ms(1_000));
    drop(client);
    budget.held_at(upstream.left(0).await, "the end upstream");
    cluster
        .replica()
        .shows(r#"warmkey_turns_total{transport="http",outcome="client_left"}"#, 1.0)
        .await;
    assert_eq!(
        (
            turns(&cluster, "completed").await,
            cluster.replica().metrics().await.get("warmkey_active_turns")
        ),
        (0.0, 0.0)
    );
}

#[tokio::test]
async fn client_that_leaves_before_the_answer_cancels_upstream() {
    let upstream = Recorder::answering(vec![Step::Hold]).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let mut client = Connection::open(cluster.address()).await;
    let request = Request::turn(ALICE, BODY);
    tokio::select! {
        _ = client.ask(&request) => panic!("there is no answer"),
        () = upstream.reached(1) => {}
    }
    let budget = Budget::begin(ms(1_000));
    drop(client);
    budget.held_at(upstream.left(0).await, "the end upstream");
    cluster
        .replica()
        .shows(r#"warmkey_turns_total{transport="http",outcome="client_left"}"#, 1.0)
        .await;
}

#[tokio::test]
async fn client_that_leaves_behind_the_terminal_event_was_served() {
    let upstream = Recorder::answering(vec![
        Step::Send(stream_head("")),
        Step::Send(chunk(CREATED)),
        Step::Send(chunk(COMPLETED.as_bytes())),
        Step::Hold,
        Step::Send(b"0\r\n\r\n".to_vec()),
    ])
    .await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    for turn in 1..=3_u8 {
        let mut client = asked(cluster.address()).await;
        read_until(&mut client, COMPLETED.as_bytes()).await;
        drop(client);
        // The gateway has noticed that the client left, and waits for the end of the stream.
        cluster
            .replica()
            .shows(r#"warmkey_turns_total{transport="http",outcome="completed"}"#, f64::from(turn))
            .await;
        upstream.release(1);
        // Only when the rest of the stream is read is the connection free for the next turn.
        eventually(SOON, "the last chunk", async || {
            upstream.seen()[usize::from(turn) - 1].answered.then_some(())
        })
        .await;
        cluster.replica().shows("warmkey_active_turns", 0.0).await;
    }
    assert!(
        upstream.seen().iter().all(|seen| seen.left.is_none()),
        "the gateway left no connection"
    );
    upstream.release(1);
    assert_eq!(ask(cluster.address(), &Request::turn(ALICE, BODY)).await.status, 200);
    assert!(
        upstream.connections() <= 3,
        "and the next turn finds one that lives on: {}",
        upstream.connections()
    );
    assert_eq!(turns(&cluster, "client_left").await, 0.0);
}

#[tokio::test]
async fn stream_that_never_ends_after_its_terminal_event_is_not_drained_for_long() {
    let upstream = Recorder::answering(vec![
        Step::Send(stream_head("")),
        Step::Send(chunk(COMPLETED.as_bytes())),
        Step::Hold,
    ])
    .await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let mut client = asked(cluster.address()).await;
    read_until(&mut client, COMPLETED.as_bytes()).await;
    let budget = Budget::begin(ms(2_500));
    drop(client);
    budget.held_at(upstream.left(0).await, "a second, and no more");
    cluster
        .replica()
        .shows(r#"warmkey_turns_total{transport="http",outcome="completed"}"#, 1.0)
        .await;
}

#[tokio::test]
async fn stream_that_goes_quiet_is_ended_without_a_false_end() {
    // The client leaves after the first event, or after some that came one by one.
    for events in [1, 4] {
        let some = std::iter::repeat_n([Step::Send(chunk(CREATED)), Step::Pause(ms(30))], events)
            .flatten();
        let upstream = Recorder::answering(
            [Step::Send(stream_head(""))].into_iter().chain(some).chain([Step::Hold]).collect(),
        )
        .await;
        let cluster = Cluster::new()
            .recorded_by(&upstream)
            .upstream("idle_timeout = \"700ms\"")
            .start()
            .await;
        let budget = Budget::begin(ms(2_500));
        let answer =
            within(SOON, "the end", ask(cluster.address(), &Request::turn(ALICE, BODY))).await;
        budget.holds("the end of a quiet stream");
        assert_eq!(
            (answer.status, answer.body, answer.whole),
            (200, CREATED.repeat(events), false),
            "cut, and nothing made up"
        );
        upstream.left(0).await;
        cluster.replica().shows("warmkey_active_turns", 0.0).await;
        assert_eq!(turns(&cluster, "completed").await, 0.0);
    }
}

/// A few events that come one by one fit into the buffers of the client's connection. Bytes beyond
/// the gateway's own limit for a client do not.
#[tokio::test]
async fn client_that_reads_slowly_is_not_silent() {
    let kinds = [("one by one", 7_000, ms(2)), ("large", 300_000, Duration::ZERO)];
    let events = kinds.map(|(_, size, _)| format!("data: {}\n\n", "x".repeat(size)).into_bytes());
    let scripts: Vec<_> = kinds
        .iter()
        .zip(&events)
        .map(|((session, _, pause), event)| {
            let last = [COMPLETED.as_bytes(), b""].map(|bytes| Step::Send(chunk(bytes)));
            let steps = [Step::Send(stream_head("")), Step::Drip(chunk(event), *pause)]
                .into_iter()
                .chain(last);
            (*session, steps.collect::<Vec<_>>())
        })
        .collect();
    let upstream = Recorder::start(move |seen| {
        let session = seen.header("session-id").expect("each turn has one");
        scripts.iter().find(|(name, _)| *name == session).expect("it is one of these").1.clone()
    })
    .await;
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .upstream(&format!("idle_timeout = \"{}ms\"", IDLE.as_millis()))
        .start()
        .await;
    let mut clients = Vec::new();
    for (session, ..) in kinds {
        let request = Request::turn(ALICE, BODY).header("session-id", session);
        let mut client = Connection::narrow(cluster.address()).await.expect("the listener accepts");
        let answer = within(ANSWER, "a head", client.ask(&request)).await.expect("an answer");
        clients.push((client, answer));
    }
    // The upstream sends until all buffers on the way are full.
    upstream.rests(clients.len(), cluster.replica().process()).await;
    // After that, nothing moves for longer than an upstream may be silent, over several checks of
    // the gateway.
    tokio::time::sleep(IDLE * 4).await;
    upstream.release(clients.len());
    let mut come = 0;
    for ((client, answer), event) in clients.iter_mut().zip(&events) {
        within(ANSWER, "the rest", client.finish(answer)).await;
        assert!(
            answer.whole && answer.body.ends_with(COMPLETED.as_bytes()),
            "{}",
            answer.body.len()
        );
        let length = answer.body.len() - COMPLETED.len();
        assert_eq!(length % event.len(), 0);
        come += length / event.len();
    }
    assert_eq!(come as u64, upstream.repeats());
}

#[tokio::test]
async fn stream_that_only_pauses_goes_on() {
    let mut steps = vec![Step::Send(stream_head(""))];
    for _ in 0..4 {
        steps.extend([Step::Send(chunk(CREATED)), Step::Pause(ms(500))]);
    }
    steps.extend([Step::Send(chunk(COMPLETED.as_bytes())), Step::Send(b"0\r\n\r\n".to_vec())]);
    let upstream = Recorder::answering(steps).await;
    // The timeouts are longer than any pause, and shorter than the answer.
    let options = "idle_timeout = \"1500ms\"\nfirst_byte_timeout = \"1500ms\"";
    let cluster = Cluster::new().recorded_by(&upstream).upstream(options).start().await;
    let answer = ask(cluster.address(), &Request::turn(ALICE, BODY)).await;
    assert!(answer.whole && answer.body.ends_with(COMPLETED.as_bytes()), "{}", answer.text());
}

/// C14: long reasoning sends nothing, not even a head. Only `first_byte_timeout` or the client ends
/// such a turn.
#[tokio::test]
async fn upstream_that_thinks_before_its_first_byte_is_waited_for() {
    let thinking = ms(1_500);
    let upstream = Recorder::start(move |seen| match seen.header("session-id") {
        Some("leaves") => vec![Step::Hold],
        _ => [vec![Step::Pause(thinking)], completed()].concat(),
    })
    .await;
    let options =
        "connect_timeout = \"500ms\"\nidle_timeout = \"500ms\"\nfirst_byte_timeout = \"60s\"";
    let cluster = Cluster::new().recorded_by(&upstream).upstream(options).start().await;
    let (began, mut leaving) = (Instant::now(), Connection::open(cluster.address()).await);
    let of = |session: &str| Request::turn(ALICE, BODY).header("session-id", session);
    let (never, later) = (of("leaves"), of("stays"));
    let answer = tokio::select! {
        _ = leaving.ask(&never) => panic!("there is no answer"),
        answer = ask(cluster.address(), &later) => answer,
    };
    assert!(began.elapsed() >= thinking && answer.status == 200 && answer.whole);
    assert!(answer.body.ends_with(COMPLETED.as_bytes()), "{}", answer.text());
    // By now the other turn has waited as long.
    let budget = Budget::begin(ms(1_000));
    drop(leaving);
    let number = upstream
        .seen()
        .iter()
        .position(|seen| seen.header("session-id") == Some("leaves"))
        .expect("it was asked");
    budget.held_at(upstream.left(number).await, "the end upstream");
    cluster.replica().shows("warmkey_active_turns", 0.0).await;
    assert_eq!(
        (turns(&cluster, "completed").await, turns(&cluster, "client_left").await),
        (1.0, 1.0)
    );
    assert_eq!(upstream.seen().len(), 2, "neither was asked for again");
    assert_eq!(cluster.replica().metrics().await.sum("warmkey_decisions_total"), 0.0);
}

#[tokio::test]
async fn events_are_passed_on_as_they_come() {
    let upstream = Recorder::answering(vec![
        Step::Send(stream_head("")),
        Step::Hold,
        Step::Send(chunk(CREATED)),
        Step::Hold,
        Step::Send(chunk(b"data")),
        Step::Hold,
    ])
    .await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    // The head comes before any event, and each event before the next one. Half an event comes
    // before its other half.
    let mut client = asked(cluster.address()).await;
    upstream.release(1);
    read_until(&mut client, CREATED).await;
    upstream.release(1);
    read_until(&mut client, b"data").await;
}

#[tokio::test]
async fn connection_serves_one_turn_after_the_other() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let mut client = Connection::open(cluster.address()).await;
    for number in 0..10 {
        let body = if number % 2 == 0 { BODY } else { "no JSON" };
        let request = Request::turn(ALICE, body);
        let mut answer = within(ANSWER, "an answer", client.ask(&request))
            .await
            .expect("the connection lives on");
        client.finish(&mut answer).await;
        assert!(answer.whole);
    }
    assert_eq!(upstream.seen().len(), 5);
    // There are two connections if a turn came before the last one's connection was free again.
    assert!(
        upstream.connections() <= 2,
        "upstream connections are kept: {}",
        upstream.connections()
    );
}

#[tokio::test]
async fn client_that_leaves_while_sending_reaches_no_upstream() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let head = format!("POST /responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ALICE}\r\n");
    // The body is complete JSON, but incomplete by its framing.
    for start in [
        "content-length: 1000\r\n\r\n{\"input\":\"x\"}",
        "transfer-encoding: chunked\r\n\r\nd\r\n{\"input\":\"x\"}\r\n",
    ] {
        let mut client = Connection::open(cluster.address()).await;
        client.send_raw(format!("{head}{start}").as_bytes()).await.expect("the connection is open");
        cluster.replica().shows("warmkey_active_turns", 1.0).await;
        drop(client);
        cluster.replica().shows("warmkey_active_turns", 0.0).await;
    }
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn turns_leave_no_connection_behind() {
    let upstream = Recorder::start(|seen| match seen.header("session-id") {
        Some("held") => vec![Step::Send(stream_head("")), Step::Send(chunk(CREATED)), Step::Hold],
        _ => [completed(), vec![Step::Close]].concat(),
    })
    .await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    let round = async || {
        for _ in 0..10 {
            assert_eq!(ask(cluster.address(), &Request::turn(ALICE, BODY)).await.status, 200);
            assert_eq!(ask(cluster.address(), &Request::turn(ALICE, "no JSON")).await.status, 400);
            assert_eq!(ask(cluster.address(), &Request::turn("unknown", BODY)).await.status, 401);
            let mut client = Connection::open(cluster.address()).await;
            let held = Request::turn(ALICE, BODY).header("session-id", "held");
            assert_eq!(
                within(ANSWER, "a head", client.ask(&held)).await.expect("an answer").status,
                200
            );
        }
        cluster.replica().shows("warmkey_active_turns", 0.0).await;
    };
    round().await;
    let before = cluster.replica().process().descriptors();
    for _ in 0..5 {
        round().await;
    }
    eventually(SOON, "no connection more than before", async || {
        // A leak in each round would be fifty descriptors. A few files may have been opened
        // meanwhile.
        (cluster.replica().process().descriptors() <= before + 9).then_some(())
    })
    .await;
}
