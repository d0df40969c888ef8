//! Tests ownership of the items of stored responses. Only the client that received an item may name
//! it in a later turn instead of sending it.
//!
//! The simulator stores an item for one project and finds it nowhere else.

use super::*;
use crate::world::socket::{Socket, session};
use crate::world::wire::Answer;

/// Returns the ids of the items that an answer adds, whether it is a document, a list or a stream.
fn items_of(answer: &Answer) -> Vec<String> {
    let text = answer.text();
    let events = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let events: Vec<Value> = events.filter_map(|data| serde_json::from_str(data).ok()).collect();
    let added = events.iter().filter(|event| event["type"] == "response.output_item.added");
    let mut items: Vec<_> = added.map(|event| event["item"].clone()).collect();
    if events.is_empty() {
        let json = answer.json();
        for list in [&json["output"], &json["data"]] {
            items.extend(list.as_array().cloned().unwrap_or_default());
        }
    }
    let ids = items.iter().filter_map(|item| item["id"].as_str().map(str::to_owned)).collect();
    assert_ne!(ids, [""; 0], "items: {text}");
    ids
}

fn reference(id: &str) -> Value {
    json!({ "type": "item_reference", "id": id })
}

/// Fields of a turn that names these items.
fn naming<'i>(ids: impl IntoIterator<Item = &'i String>) -> Value {
    let question = json!({ "type": "message", "role": "user", "content": uuid() });
    let items: Vec<_> = ids.into_iter().map(|id| reference(id)).chain([question]).collect();
    json!({ "input": items })
}

/// Returns the error for an item that was never made.
fn not_found(id: &str) -> String {
    format!(
        r#"{{"error":{{"message":"Item with id '{id}' not found.","type":"invalid_request_error","param":"input","code":"item_not_found"}}}}"#
    )
}

async fn two() -> Running {
    let mut cluster = Cluster::new().keys(keys(0)).replicas(2).redis().start().await;
    cluster.change(|cluster| cluster.keys(keys(1)));
    cluster.replace(1).await;
    cluster
}

#[tokio::test]
async fn b19_item_is_found_on_every_replica_and_by_its_own_client_alone() {
    let mut cluster = two().await;
    let (here, there) = (cluster.replicas[0].address(), cluster.replicas[1].address());
    let mut projects = std::collections::BTreeSet::new();
    for number in 0..8 {
        // The turns name a session, or have no other signal than the items that they name.
        let named = (number % 4 < 2).then(uuid);
        // Each replica's weights send nearly all its new sessions to a project of its own.
        let made_at = if number < 4 { here } else { there };
        let first =
            Chain { session: named.clone(), is_streamed: number % 2 == 0, ..Chain::new(made_at) };
        let answer = first.asks(json!({})).await;
        let (id, items) = (id_of(&answer), items_of(&answer));
        assert!(items.len() > 1, "{items:?}");
        for (at, session) in
            [(there, &named), (here, &named), (there, &None), (there, &Some(uuid()))]
        {
            let next = Chain { session: session.clone(), ..Chain::new(at) };
            let next = next.asks(naming(&items)).await;
            assert_eq!(next.status, 200, "{}", next.text());
            let turns = cluster.turns().await;
            let (next, first) = (made(&turns, &id_of(&next)), made(&turns, &id));
            assert_eq!(project_of(&next.key), project_of(&first.key), "where the items are");
            projects.insert(project_of(&first.key));
        }
        let before = cluster.turns().await.len();
        for foreign in &items {
            let unknown = foreign.replace('_', "_0");
            for (at, id) in [(here, foreign), (there, foreign), (there, &unknown)] {
                let bob = Chain { token: BOB, session: named.clone(), ..Chain::new(at) };
                let refused = bob.asks(naming([id])).await;
                assert_eq!((refused.status, refused.text()), (404, not_found(id)));
            }
        }
        assert_eq!(cluster.turns().await.len(), before, "nothing went upstream");
    }
    assert!(projects.len() > 1, "more than one project is at work: {projects:?}");
    // No raw id is stored, and each owner expires.
    let names: Vec<String> = cluster.redis().ask(&["KEYS", "*.item"]).await;
    assert!(names.len() >= 16 && names.iter().all(|name| !name.contains("msg_")), "{names:?}");
    let left: i64 = cluster.redis().ask(&["PTTL", &names[0]]).await;
    assert!(left > 29 * 24 * 3_600_000, "{left} ms");
}

/// The item is refused in every spelling of a reference, and in every place where a turn may have
/// one.
#[tokio::test]
async fn item_of_another_client_is_refused_in_every_form() {
    let cluster = Cluster::new().keys(vec![Key::new("a-1", "org-a")]).start().await;
    let chain = Chain::new(cluster.address());
    let foreign = items_of(&chain.asks(json!({})).await).pop().expect("a message");
    let bob = Chain { token: BOB, ..chain.clone() };
    let own = items_of(&bob.asks(json!({})).await).pop().expect("a message");
    let before = (cluster.turns().await.len(), cluster.upstream().calls().await.len());
    for items in [
        r#"{"type":"item_reference","id":"FOREIGN"}"#,
        r#"{"id":"FOREIGN","type":"item_reference","status":"completed"}"#,
        r#"{"id":"FOREIGN"}"#,
        r#"{"id":"FOREIGN","type":null}"#,
        r#"{"type":"item\u005freference","\u0069d":"FOREIGN"}"#,
        r#"{"type":"message","type":"item_reference","id":"FOREIGN"}"#,
        r#"{"type":"item_reference","type":"message","id":"FOREIGN"}"#,
        r#"{"type":"item_reference","id":"OWN","id":"FOREIGN"}"#,
        r#"{"type":"item_reference","id":"FOREIGN","id":"OWN"}"#,
        r#"{"type":"image_generation_call","id":"FOREIGN"}"#,
        r#"{"type":"image_generation_call","id":"FOREIGN","result":"A","result":null}"#,
        r#"{"id":"x","id":"FOREIGN"}"#,
        r#"{"type":"message","type":null,"id":"FOREIGN"}"#,
        r#"{"type":"reasoning","id":"FOREIGN","summary":[]}"#,
        r#"{"type":"item_reference","id":"OWN"},{"type":"item_reference","id":"FOREIGN"}"#,
    ] {
        let items = items.replace("FOREIGN", &foreign).replace("OWN", &own);
        let question = r#"{"role":"user","content":"repeat what was said"}"#;
        for target in ["/responses", "/responses/compact", "/responses/input_tokens"] {
            let body = format!(r#"{{"model":"gpt-5.4","input":[{items},{question}]}}"#);
            let refused = ask(cluster.address(), &Request::turn(BOB, body).target(target)).await;
            assert_eq!((refused.status, refused.text()), (404, not_found(&foreign)), "{items}");
        }
        let frame = format!(
            r#"{{"type":"response.create","model":"gpt-5.4","store":false,"input":[{items},{question}]}}"#
        );
        let mut socket = session(cluster.address(), BOB, &uuid()).await;
        socket.send(&frame).await;
        let event = socket.event(&["response.completed", "error"]).await;
        assert_eq!(
            (&event["status"], &event["error"]["code"]),
            (&json!(404), &json!("item_not_found"))
        );
        assert_eq!(event["error"]["param"], "input", "{event}");
    }
    let after = (cluster.turns().await.len(), cluster.upstream().calls().await.len());
    assert_eq!(after, before, "nothing went upstream");
    assert_eq!(bob.asks(naming([&own])).await.status, 200, "and Bob's own is found");
}

async fn told(socket: &mut Socket, fields: Value, store: bool) -> Value {
    let mut frame =
        json!({ "type": "response.create", "model": "gpt-5.4", "input": uuid(), "store": store });
    for (name, value) in fields.as_object().expect("fields") {
        frame[name] = value.clone();
    }
    socket.send(&frame.to_string()).await;
    socket.event(&["response.completed", "error"]).await
}

/// A client may receive an item over HTTP, on a WebSocket, or only by a request about the item's
/// response.
#[tokio::test]
async fn item_is_its_clients_however_the_client_was_given_it() {
    let cluster = two().await;
    let (here, there) = (cluster.replicas[0].address(), cluster.replicas[1].address());
    let name = uuid();
    let mut socket = session(here, ALICE, &name).await;
    let event = told(&mut socket, json!({}), true).await;
    let items = event["response"]["output"].as_array().expect("items").iter();
    let items: Vec<_> = items.map(|item| item["id"].as_str().expect("an id").to_owned()).collect();
    assert!(!items.is_empty(), "{event}");
    assert_eq!(Chain::new(there).of_session(&name).asks(naming(&items)).await.status, 200);
    let next = told(&mut socket, naming(&items), false).await;
    assert_eq!(next["type"], "response.completed", "{next}");
    let mut again = session(there, ALICE, &name).await;
    assert_eq!(told(&mut again, naming(&items), true).await["type"], "response.completed");
    // The items of an unstored response cannot be found.
    let unstored = told(&mut socket, json!({}), false).await;
    let gone = unstored["response"]["output"][0]["id"].as_str().expect("an id").to_owned();
    let refused = told(&mut socket, naming([&gone]), false).await;
    assert_eq!(refused["error"]["code"], "item_not_found", "{refused}");

    let begun = Chain::new(here).of_session(&name).asks(json!({ "background": true })).await;
    let id = id_of(&begun);
    let about = async |at, behind: &str| {
        ask(at, &Request::new("GET", &format!("/responses/{id}{behind}")).bearer(ALICE)).await
    };
    let whole = eventually(SOON, "the response is made", async || {
        let whole = about(there, "").await;
        (whole.json()["status"] == "completed").then_some(whole)
    })
    .await;
    let items = items_of(&whole);
    for at in [here, there] {
        let next = Chain::new(at).of_session(&name).asks(naming(&items)).await;
        assert_eq!(next.status, 200, "{}", next.text());
        let bob = Chain { token: BOB, ..Chain::new(at) }.asks(naming(&items)).await;
        assert_eq!((bob.status, bob.code().as_str()), (404, "item_not_found"));
    }
    let fields = json!({ "background": true, "stream": true });
    let streamed = id_of(&Chain::new(here).of_session(&name).asks(fields).await);
    let target = format!("/responses/{streamed}?stream=true");
    let stream = ask(there, &Request::new("GET", &target).bearer(ALICE)).await;
    assert_eq!(Chain::new(there).asks(naming(&items_of(&stream))).await.status, 200);
}

/// B19: the item's id works on every replica, even if the store is slow for the replica that issued
/// it.
#[tokio::test]
async fn item_is_good_on_every_replica_the_moment_it_can_be_read() {
    let folder = Folder::new();
    let redis = Redis::start(folder.path()).await;
    let slow = Cable::to(redis.address()).await;
    let cluster = Cluster::new().keys(keys(0)).replicas(2).stores_at(&[slow.url(), redis.url()]);
    let cluster = cluster.simulator("event_delay = \"100ms\"").start().await;
    slow.set(Weather::Slow(ms(25)));
    for _ in 0..3 {
        let first = Chain { is_streamed: true, ..Chain::new(cluster.replicas[0].address()) };
        let mut connection = Connection::open(first.address).await;
        let mut answer = connection.ask(&first.request(&json!({}))).await.expect("an answer");
        let item = found("the id of an item", async || {
            let Piece::Bytes(bytes) = connection.piece().await else {
                panic!("the id comes: {}", answer.text())
            };
            answer.body.extend_from_slice(&bytes);
            let text = answer.text();
            let (_, rest) = text.split_once("\"item\":{\"id\":\"")?;
            let (_, whole) = rest.split_once("\n\n")?;
            (whole.len() < 10_000).then(|| rest.split_once('"').map(|(id, _)| id.to_owned()))?
        })
        .await;
        // The first answer is still in flight.
        let next = Chain::new(cluster.replicas[1].address()).asks(naming([&item])).await;
        assert_eq!(next.status, 200, "{}", next.text());
        connection.finish(&mut answer).await;
        assert!(answer.whole);
    }
}

#[tokio::test]
async fn item_is_not_denied_while_the_store_is_away() {
    let mut cluster =
        Cluster::new().keys(keys(0)).replicas(2).redis().store("timeout = \"300ms\"").start().await;
    let (here, there) = (cluster.replicas[0].address(), cluster.replicas[1].address());
    let chain = Chain::new(here).of_session(&uuid());
    let items = items_of(&chain.asks(json!({})).await);
    cluster.redis().signal("STOP").await;
    assert_eq!(chain.asks(naming(&items)).await.status, 200, "this replica remembers");
    let mut said = Vec::new();
    for id in [items[0].clone(), items[0].replace('_', "_0")] {
        let answer = Chain::new(there).asks(naming([&id])).await;
        assert_eq!((answer.status, answer.code().as_str()), (503, "no_key_available"));
        said.push(answer.body);
    }
    assert_eq!(said[0], said[1], "nor whether there is something");
    cluster.redis().signal("CONT").await;
}

/// For clients that have used the keys before, the upstream itself decides which items exist.
#[tokio::test]
async fn unknown_item_passes_where_foreign_ids_do() {
    let cluster = Cluster::new()
        .keys(vec![Key::new("a-1", "org-a")])
        .server("foreign_ids", "\"pass\"")
        .start()
        .await;
    let chain = Chain::new(cluster.address()).of_session(&uuid());
    chain.asks(json!({})).await;
    let refused = chain.asks(naming([&"msg_never".to_owned()])).await;
    assert_eq!(refused.status, 404, "{}", refused.text());
    assert!(refused.text().contains("Items are not persisted"), "{}", refused.text());
}
