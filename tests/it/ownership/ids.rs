//! Tests which ids are stored, what that costs, and what happens with ids that are not stored.

use super::*;
use crate::world::codex::Codex;
use crate::world::recorder::{Recorder, Step, answer, chunk, stream_head};
use crate::world::socket::{plain, session};

#[tokio::test]
async fn unstored_response_costs_nothing_and_is_found_by_no_client() {
    let mut cluster = Cluster::new().keys(keys(0)).redis().start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("first").await.served();
    for text in ["second", "third"] {
        let before = asked_of_the_store(&cluster).await;
        codex.turn(text).await.served();
        assert_eq!(
            asked_of_the_store(&cluster).await - before,
            1.0,
            "its binding is looked up, and that is all"
        );
    }
    let session = Chain::new(cluster.address()).of_session(&codex.session);
    let unstored = session.asks(json!({ "store": false })).await;
    assert_eq!((unstored.status, owners(cluster.redis()).await), (200, Vec::new()));
    let refused = session.clone().after(&id_of(&unstored)).asks(json!({})).await;
    // The refusal equals the upstream's own.
    let fields =
        json!({ "model": "gpt-5.4", "input": "x", "previous_response_id": id_of(&unstored) });
    let request = Request::turn(&keys(0)[0].secret(), fields.to_string()).target("/v1/responses");
    let real = ask(cluster.upstream().address(), &request).await;
    assert_eq!((refused.status, refused.json()), (real.status, real.json()));
    // Storing an id costs one operation. Continuing from an id costs one more. An answer has three
    // ids: its own, and those of two items.
    let before = asked_of_the_store(&cluster).await;
    let id = session.clone().turn().await;
    assert_eq!(asked_of_the_store(&cluster).await - before, 4.0);
    session.after(&id).turn().await;
    assert_eq!(asked_of_the_store(&cluster).await - before, 9.0);
    assert_eq!(owners(cluster.redis()).await.len(), 2);
}

#[tokio::test]
async fn ids_that_never_passed_through_here_pass_where_the_operator_says_so() {
    let keys = vec![Key::new("a-1", "org-a")];
    let secret = keys[0].secret();
    for foreign_ids in ["refuse", "pass"] {
        let cluster = Cluster::new()
            .keys(keys.clone())
            .server("foreign_ids", &format!("{foreign_ids:?}"))
            .start()
            .await;
        // The response was made before there was a gateway.
        let request =
            Request::turn(&secret, r#"{"model":"gpt-5.4","input":"x"}"#).target("/v1/responses");
        let old = id_of(&ask(cluster.upstream().address(), &request).await);
        let known = Chain::new(cluster.address()).after(&old).asks(json!({})).await;
        let unknown = Chain::new(cluster.address()).after("resp_never").asks(json!({})).await;
        let is_passed = foreign_ids == "pass";
        assert_eq!(known.status, if is_passed { 200 } else { 400 }, "{}", known.text());
        assert_eq!((unknown.status, unknown.code().as_str()), (400, "previous_response_not_found"));
        assert_eq!(
            cluster.turns().await.len(),
            if is_passed { 3 } else { 1 },
            "{foreign_ids}: the upstream was asked or not"
        );
        // A body that cannot be read may hold any id.
        let request = Request::turn(ALICE, "unreadable").header("content-encoding", "br");
        let answer = ask(cluster.address(), &request).await;
        assert_eq!(cluster.turns().await.len(), if is_passed { 3 } else { 1 }, "{}", answer.text());
        assert_eq!((answer.status, answer.code().as_str()), (400, "invalid_request"));
    }
}

/// No request through the gateway makes a conversation. The client therefore has the id from
/// elsewhere, or from another client.
#[tokio::test]
async fn conversation_is_unknown_unless_the_operator_says_so() {
    for foreign_ids in ["refuse", "pass"] {
        let cluster = Cluster::new()
            .keys(keys(0))
            .server("foreign_ids", &format!("{foreign_ids:?}"))
            .start()
            .await;
        for conversation in [json!("conv_1"), json!({ "id": "conv_1" })] {
            let answer =
                Chain::new(cluster.address()).asks(json!({ "conversation": conversation })).await;
            assert_eq!(answer.status, 404, "{}", answer.text());
            assert!(
                answer.text().contains("Conversation with id 'conv_1' not found."),
                "{}",
                answer.text()
            );
        }
        let mut socket = session(cluster.address(), ALICE, "s").await;
        socket.send(&plain("x").replacen('{', r#"{"conversation":"conv_1","#, 1)).await;
        let refused = socket.json().await;
        assert_eq!(
            (&refused["type"], &refused["status"]),
            (&json!("error"), &json!(404)),
            "{refused}"
        );
        assert_eq!(
            cluster.turns().await.is_empty(),
            foreign_ids == "refuse",
            "{foreign_ids}: the upstream was asked or not"
        );
    }
}

#[tokio::test]
async fn id_is_read_in_any_form_of_its_answer() {
    let event = b"data: {\"type\":\"response.created\",\"response\":{\"id\":\"resp_ID\",\"status\":\"in_progress\"}}\n\n";
    let document = br#"{"object":"response","output":[{"id":"msg_1"}],"id":"resp_ID"}"#;
    let upstream = Recorder::start(move |seen| {
        let form = seen.header("session-id").unwrap_or_default().to_owned();
        let named = |text: &[u8]| {
            String::from_utf8_lossy(text).replace("resp_ID", &format!("resp_{form}")).into_bytes()
        };
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        std::io::Write::write_all(&mut gzip, &named(event)).expect("memory is enough");
        let mut steps = vec![Step::Send(stream_head(if form == "gzip" {
            "content-encoding: gzip\r\n"
        } else {
            ""
        }))];
        match form.as_str() {
            "document" => {
                return vec![Step::Send(answer(
                    "200 OK",
                    "content-type: application/json\r\n",
                    &named(document),
                ))];
            }
            "gzip" => steps.push(Step::Send(chunk(&gzip.finish().expect("memory is enough")))),
            "bytes" => steps.extend(named(event).chunks(1).map(|byte| Step::Send(chunk(byte)))),
            _ => steps.extend([
                Step::Send(chunk(b": wait\n\ndata: {\"type\":\"x\"}\n\n")),
                Step::Send(chunk(&named(event))),
            ]),
        }
        steps.push(Step::Send(b"0\r\n\r\n".to_vec()));
        steps
    })
    .await;
    let cluster = Cluster::new().recorded_by(&upstream).start().await;
    for form in ["document", "gzip", "bytes", "late"] {
        let chain = Chain::new(cluster.address()).of_session(form);
        let request = chain.request(&json!({})).header("accept-encoding", "br, gzip;q=0.5");
        assert!(ask(cluster.address(), &request).await.whole, "{form}");
        let seen = upstream.seen().pop().expect("it was sent");
        assert_eq!(
            seen.header("accept-encoding"),
            Some("gzip;q=0.5"),
            "{form}: the gateway cannot decode br"
        );
        let answer = chain.after(&format!("resp_{form}")).asks(json!({})).await;
        assert_eq!(answer.status, 200, "{form}: {}", answer.text());
    }
    let unstored =
        Chain::new(cluster.address()).of_session("document").request(&json!({ "store": false }));
    ask(cluster.address(), &unstored.header("accept-encoding", "br, gzip;q=0.5")).await;
    assert_eq!(
        upstream.seen().pop().expect("it was sent").header("accept-encoding"),
        Some("gzip;q=0.5"),
        "its error could not be read either"
    );
}
