//! Tests the rest of the Responses API. Stored responses go to the project that owns them, for
//! their own client alone. Compaction and counts go to their session's key.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::world::chain::{Chain, asked_of_the_store, id_of, keys, made, project_of, stored_by};
use crate::world::cluster::{ALICE, BOB, Cluster, Running};
use crate::world::codex::uuid;
use crate::world::simulator::{Key, siblings};
use crate::world::socket::{plain, session};
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Answer, Request, ask};

/// The requests about a response: the method, and the path after the response's id.
const ABOUT: [(&str, &str); 5] = [
    ("GET", ""),
    ("GET", "?stream=true&starting_after=3"),
    ("GET", "/input_items"),
    ("POST", "/cancel"),
    ("DELETE", ""),
];

async fn about(address: SocketAddr, token: &str, method: &str, id: &str, behind: &str) -> Answer {
    let request = Request::new(method, &format!("/v1/responses/{id}{behind}")).bearer(token);
    let request = if method == "POST" { request.body("") } else { request };
    ask(address, &request).await
}

async fn retrieved(address: SocketAddr, id: &str) -> Answer {
    about(address, ALICE, "GET", id, "").await
}

/// Two replicas, each with weights that send nearly all sessions to another project.
async fn two() -> Running {
    let mut cluster = Cluster::new().keys(keys(0)).replicas(2).redis().start().await;
    cluster.change(|cluster| cluster.keys(keys(1)));
    cluster.replace(1).await;
    cluster
}

#[tokio::test]
async fn b19_stored_response_is_reached_in_its_project_from_every_replica() {
    let cluster = two().await;
    let (here, there) = (cluster.replicas[0].address(), cluster.replicas[1].address());
    let mut projects = BTreeMap::<String, usize>::new();
    for number in 0..12 {
        let session = (number % 2 == 0).then(uuid);
        let at = if number % 4 < 2 { here } else { there };
        let mut chain = Chain { session, is_streamed: number % 3 == 0, ..Chain::new(at) };
        let id = chain.turn().await;
        let project = project_of(&made(&cluster.turns().await, &id).key);
        *projects.entry(project.clone()).or_default() += 1;
        for address in [here, there] {
            let answer = retrieved(address, &id).await;
            assert_eq!((answer.status, id_of(&answer)), (200, id.clone()), "{}", answer.text());
            let items = about(address, ALICE, "GET", &id, "/input_items?limit=1").await.json();
            assert_eq!(items["data"][0]["role"], "user", "{items}");
            let stream = about(address, ALICE, "GET", &id, "?stream=true&starting_after=3").await;
            if chain.is_streamed {
                let text = stream.text();
                assert!(text.contains("event: response.completed"), "{text}");
                assert!(text.contains(r#""sequence_number":4,"#), "{text}");
                assert!(!text.contains(r#""sequence_number":3,"#), "{text}");
            } else {
                assert_eq!(stream.status, 400, "the upstream's own word: {}", stream.text());
            }
            assert_eq!(about(address, ALICE, "POST", &id, "/cancel").await.status, 400);
        }
        let deleted = about(there, ALICE, "DELETE", &id, "").await;
        assert_eq!(deleted.json()["deleted"], json!(true), "{}", deleted.text());
        assert_eq!(retrieved(here, &id).await.status, 404, "the upstream has deleted it");
        let calls = cluster.upstream().calls().await;
        let own = calls.iter().filter(|call| call.method_path.contains(&id));
        let asked: Vec<_> = own.map(|call| project_of(&call.key)).collect();
        assert!(asked.len() == 10 && asked.iter().all(|own| *own == project), "{asked:?}");
    }
    assert!(projects.len() > 1, "more than one project is at work: {projects:?}");
    // None of these requests is a turn.
    cluster.shows(r#"warmkey_turns_total{transport="http",outcome="completed"}"#, 12.0).await;
    assert_eq!(cluster.turns().await.len(), 12);
    cluster.shows("warmkey_active_turns", 0.0).await;
}

#[tokio::test]
async fn b14_stored_response_of_another_client_does_not_exist() {
    // There is one project. Without the check of the client, the upstream would therefore show any
    // response.
    let mut cluster = Cluster::new().keys(vec![Key::new("a-1", "org-a")]).redis().start().await;
    let address = cluster.address();
    let chain = Chain { is_streamed: true, ..Chain::new(address) };
    let foreign = id_of(&chain.asks(json!({ "background": true })).await);
    let unknown = foreign.chars().rev().collect::<String>().replace("_pser", "resp_");
    let unknown = &unknown[unknown.len() - foreign.len()..];
    let expected = format!(
        r#"{{"error":{{"message":"Response with id '{foreign}' not found.","type":"invalid_request_error","param":null,"code":"response_not_found"}}}}"#
    );
    for (method, behind) in ABOUT {
        let mut times = BTreeMap::<bool, Vec<_>>::new();
        let mut costs = BTreeMap::<bool, Vec<_>>::new();
        for _ in 0..20 {
            for (is_foreign, id) in [(true, &foreign[..]), (false, unknown)] {
                let gets = cluster.redis().calls("get").await;
                let asked = asked_of_the_store(&cluster).await;
                let began = Instant::now();
                let answer = about(address, BOB, method, id, behind).await;
                times.entry(is_foreign).or_default().push(began.elapsed());
                assert_eq!(answer.status, 404, "{method} {behind}: {}", answer.text());
                assert_eq!(answer.text().replace(id, &foreign), expected, "{method} {behind}");
                let names: Vec<_> = answer.headers.iter().map(|(name, _)| name.clone()).collect();
                let gets = cluster.redis().calls("get").await - gets;
                let asked = asked_of_the_store(&cluster).await - asked;
                costs.entry(is_foreign).or_default().push((gets, asked as u64, names));
            }
        }
        // Work that an earlier turn has left may ask the store meanwhile.
        let least = |kind| costs[&kind].iter().min();
        assert_eq!(least(true), least(false), "{method} {behind}: both cost the same");
        times.values_mut().for_each(|times| times.sort_unstable());
        for kind in [true, false] {
            let (fastest, median) = (times[&kind][0], times[&!kind][times[&!kind].len() / 2]);
            assert!(fastest < median, "foreign {kind}: {fastest:?}, and others {median:?}");
        }
    }
    assert!(cluster.upstream().calls().await.is_empty(), "no request went upstream");
    assert_eq!(retrieved(address, &foreign).await.status, 200, "and it is still Alice's");
    let stranger = ask(address, &Request::new("GET", &format!("/responses/{foreign}"))).await;
    assert_eq!((stranger.status, stranger.code().as_str()), (401, "invalid_api_key"));
}

#[tokio::test]
async fn response_of_a_websocket_is_retrieved_over_http_on_any_replica() {
    let cluster = two().await;
    let (here, there) = (cluster.replicas[0].address(), cluster.replicas[1].address());
    let mut socket = session(here, ALICE, &uuid()).await;
    socket.send(&plain("x").replace("\"store\":false", "\"store\":true")).await;
    let event = socket.event(&["response.completed"]).await;
    let id = event["response"]["id"].as_str().expect("an id").to_owned();
    let answer = retrieved(there, &id).await;
    assert_eq!((answer.status, id_of(&answer)), (200, id.clone()), "{}", answer.text());
    assert_eq!(about(there, BOB, "GET", &id, "").await.status, 404);
    let deleted = about(there, ALICE, "DELETE", &id, "").await;
    assert_eq!(deleted.status, 200, "{}", deleted.text());
}

/// `server.foreign_ids = "pass"` counts only for turns. An answer to the requests here would show
/// the content.
#[tokio::test]
async fn stored_response_that_is_not_known_is_refused_whatever_passes_elsewhere() {
    let cluster =
        Cluster::new().keys(siblings("org-a", 1)).server("foreign_ids", "\"pass\"").start().await;
    let id = Chain::new(cluster.address()).turn().await;
    for (method, behind) in ABOUT {
        assert_eq!(about(cluster.address(), BOB, method, &id, behind).await.status, 404);
    }
    assert!(cluster.upstream().calls().await.is_empty());
}

#[tokio::test]
async fn response_in_the_background_is_polled_and_canceled_on_any_replica() {
    let cluster = Cluster::new()
        .keys(keys(0))
        .replicas(2)
        .redis()
        .simulator("event_delay = \"60ms\"")
        .start()
        .await;
    let (here, there) = (cluster.replicas[0].address(), cluster.replicas[1].address());
    let begin = async |fields: Value| {
        let answer = Chain::new(here).asks(fields).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        (id_of(&answer), answer.json()["status"].clone())
    };
    let (id, status) = begin(json!({ "background": true })).await;
    assert_eq!(status, "queued");
    let mut seen = Vec::new();
    eventually(SOON, "the response is made", async || {
        let status = retrieved(there, &id).await.json()["status"].clone();
        if !seen.contains(&status) {
            seen.push(status.clone());
        }
        (status == "completed").then_some(())
    })
    .await;
    assert!(seen.contains(&json!("in_progress")), "{seen:?}");
    // The session of the response is found on any replica.
    let next = Chain::new(there).after(&id).turn().await;
    let turns = cluster.turns().await;
    assert_eq!(made(&turns, &next).key, made(&turns, &id).key);

    let (id, _) = begin(json!({ "background": true })).await;
    let canceled = about(there, ALICE, "POST", &id, "/cancel").await;
    assert_eq!(canceled.json()["status"], "cancelled", "{}", canceled.text());
    assert_eq!(retrieved(here, &id).await.json()["status"], "cancelled");

    // A client that has lost the stream of its response continues it at another replica.
    let fields = json!({ "background": true, "stream": true });
    let answer = Chain::new(here).asks(fields).await;
    let id = id_of(&answer);
    let stream = about(there, ALICE, "GET", &id, "?stream=true&starting_after=2").await;
    let (_, rest) = answer.text().split_once(r#""sequence_number":3,"#).map_or_else(
        || panic!("{}", answer.text()),
        |(before, rest)| (before.to_owned(), rest.to_owned()),
    );
    assert!(stream.text().ends_with(&rest), "{}", stream.text());
}

#[tokio::test]
async fn compaction_and_count_go_to_the_key_of_their_session() {
    let cluster = two().await;
    let addresses = [0, 1].map(|number: usize| cluster.replicas[number].address());
    let here = addresses[0];
    let mut keys = BTreeMap::<String, usize>::new();
    for number in 0..12 {
        // Each replica's weights send nearly all its new sessions to a key of its own.
        let (here, there) = (addresses[number % 2], addresses[(number + 1) % 2]);
        let session = uuid();
        let mut chain = Chain::new(here).of_session(&session);
        let id = chain.turn().await;
        let key = made(&cluster.turns().await, &id).key.clone();
        *keys.entry(key.clone()).or_default() += 1;
        let before = cluster.turns().await.len();
        let body = json!({ "model": "gpt-5.4", "input": "a long story" });
        let posted = |path: &str, body: &Value| {
            Request::turn(ALICE, body.to_string()).target(path).header("session-id", &session)
        };
        for (at, prefix) in [(there, "/v1"), (here, "")] {
            let path = format!("{prefix}/responses/compact");
            let compacted = ask(at, &posted(&path, &body)).await.json();
            assert_eq!(compacted["object"], "response.compaction", "{compacted}");
            assert_eq!(compacted["output"][0]["type"], "compaction", "{compacted}");
            let path = format!("{prefix}/responses/input_tokens");
            let counted = ask(at, &posted(&path, &body)).await.json();
            assert_eq!(counted["object"], "response.input_tokens", "{counted}");
            assert!(counted["input_tokens"].as_u64().is_some_and(|tokens| tokens > 0));
        }
        // The session is also found by the response before, without another signal.
        let after = json!({ "model": "gpt-5.4", "input": "x", "previous_response_id": id });
        for path in ["/responses/compact", "/responses/input_tokens"] {
            let request = Request::turn(ALICE, after.to_string()).target(path);
            assert_eq!(ask(there, &request).await.status, 200, "{path}");
            let request = Request::turn(BOB, after.to_string()).target(path);
            let refused = ask(there, &request).await;
            assert_eq!(refused.code(), "previous_response_not_found", "{path}");
        }
        let turns = cluster.turns().await;
        assert!(
            turns.len() == before + 3 && turns[before..].iter().all(|turn| turn.key == key),
            "{:?}",
            &turns[before..]
        );
        assert!(turns[before..].iter().all(|turn| turn.method_path.ends_with("/compact")));
    }
    let (calls, turns) = (cluster.upstream().calls().await, cluster.turns().await);
    assert!(calls.len() == 36 && calls.iter().all(|call| call.status == 200), "{calls:?}");
    for (number, calls) in calls.chunks(3).enumerate() {
        // Each session is one turn and three compactions.
        assert!(calls.iter().all(|call| call.key == turns[4 * number].key), "{calls:?}");
    }
    assert!(keys.len() > 1, "more than one key is at work: {keys:?}");
    // A compaction is a turn and has a cost. A count of tokens is no turn and has none.
    let series = r#"warmkey_turns_total{transport="http",outcome="completed"}"#;
    cluster.shows(series, (12 * 4) as f64).await;
    let body = json!({ "model": "gpt-5.4", "input": "x", "stream": true });
    let request = Request::turn(ALICE, body.to_string()).target("/responses/compact");
    let refused = ask(here, &request).await;
    assert_eq!(refused.code(), "unknown_parameter", "the upstream's own word");
}

#[tokio::test]
async fn stored_response_stays_within_reach_while_a_sibling_serves() {
    let cluster = Cluster::new().keys(keys(0)).start().await;
    let (address, id) = (cluster.address(), stored_by(&cluster, "a-1").await);
    cluster.upstream().revoke("a-1").await;
    assert_eq!(retrieved(address, &id).await.status, 200, "a-2 is of the same project");
    let last = cluster.upstream().calls().await.pop().expect("it was asked");
    assert_eq!((last.key.as_str(), last.status), ("a-2", 200));
    cluster.upstream().revoke("a-2").await;
    let lost = retrieved(address, &id).await;
    assert_eq!((lost.status, lost.code().as_str()), (503, "no_key_available"), "{}", lost.text());
    assert!(lost.text().contains("org-a/one"), "{}", lost.text());
    let calls = cluster.upstream().calls().await;
    assert!(calls.iter().all(|call| call.key != "a-3" && call.key != "b-1"), "{calls:?}");
}

/// A replica that cannot know the owner says that, and does not deny that the response exists.
#[tokio::test]
async fn stored_response_is_not_denied_while_the_store_is_away() {
    let mut cluster =
        Cluster::new().keys(keys(0)).replicas(2).redis().store("timeout = \"300ms\"").start().await;
    let (here, there) = (cluster.replicas[0].address(), cluster.replicas[1].address());
    let id = Chain::new(here).turn().await;
    cluster.redis().signal("STOP").await;
    assert_eq!(retrieved(here, &id).await.status, 200, "this replica remembers");
    let mut said = Vec::new();
    for id in [&id[..], &id.replace("resp_", "resp_f")] {
        let answer = retrieved(there, id).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "no_key_available"));
        said.push(answer.body);
    }
    assert_eq!(said[0], said[1], "nor whether there is something");
    cluster.redis().signal("CONT").await;
}

/// If a free request succeeds, that says nothing about the quota.
#[tokio::test]
async fn exhausted_organization_stays_out_of_use_though_its_responses_are_read() {
    let cluster = Cluster::new().keys(siblings("org-a", 1)).start().await;
    let (address, id) = (cluster.address(), Chain::new(cluster.address()).turn().await);
    assert_eq!(retrieved(address, &id).await.status, 200);
    cluster.upstream().exhaust("org-a").await;
    assert_eq!(Chain::new(address).asks(json!({})).await.code(), "insufficient_quota");
    let before = cluster.turns().await.len();
    retrieved(address, &id).await;
    assert_eq!(Chain::new(address).asks(json!({})).await.code(), "insufficient_quota");
    assert_eq!(cluster.turns().await.len(), before, "it was not asked for a turn");
}
