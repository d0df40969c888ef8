//! Ownership of stored responses: only the client that made a response continues from it, in the
//! project that stores it.
//!
//! The simulator stores a response for one project and finds it nowhere else. A turn that is served
//! has therefore gone to the right project.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::world::cable::{Cable, Weather};
use crate::world::chain::{
    Chain, asked_of_the_store, id_of, keys, made, owners, project_of, stored_by, two_projects,
};
use crate::world::cluster::{ALICE, BOB, Cluster, Running};
use crate::world::codex::uuid;
use crate::world::process::Folder;
use crate::world::redis::Redis;
use crate::world::simulator::Key;
use crate::world::waiting::{Budget, SOON, eventually, found, ms};
use crate::world::wire::{Connection, Piece, Request, ask};

mod files;
mod ids;
mod items;
mod socket;

const CREATED: &str = r#"warmkey_bindings_total{result="created"}"#;
const SPILLED: &str = r#"warmkey_bindings_total{result="spilled"}"#;

#[tokio::test]
async fn b19_response_ownership() {
    let mut cluster = Cluster::new().keys(keys(0)).replicas(3).redis().balanced().start().await;
    for number in 1..3 {
        cluster.change(|cluster| cluster.keys(keys(number)));
        cluster.replace(number).await;
    }
    let mut chains: Vec<_> = (0..12)
        .map(|number| Chain {
            // Every other chain has no signal of its session except its last response.
            session: (number % 2 == 0).then(uuid),
            is_streamed: number % 3 == 0,
            ..Chain::new(cluster.address())
        })
        .collect();
    for _ in 0..6 {
        for chain in &mut chains {
            chain.turn().await;
        }
    }
    let turns = cluster.turns().await;
    assert_eq!(turns.len(), 72, "each was sent once");
    for turn in turns.iter().filter(|turn| turn.previous_response_id.is_some()) {
        let before = made(&turns, turn.previous_response_id.as_deref().unwrap_or_default());
        assert_eq!(
            (turn.status, &turn.key),
            (200, &before.key),
            "a chain is a session: it has one key"
        );
    }
    let mut projects: Vec<_> = turns.iter().map(|turn| project_of(&turn.key)).collect();
    projects.sort_unstable();
    projects.dedup();
    assert!(projects.len() > 1, "more than one project is at work: {projects:?}");
    cluster.shows(CREATED, 12.0).await;
    // No raw id is stored, and each owner expires.
    let names = owners(cluster.redis()).await;
    assert_eq!(names.len(), 72);
    assert!(names.iter().all(|name| !name.contains("resp_")), "{names:?}");
    let left: i64 = cluster.redis().ask(&["PTTL", &names[0]]).await;
    assert!(left > 29 * 24 * 3_600_000, "{left} ms");
}

/// B19: the id works on every replica, even if the store is slow for the replica that issued it.
#[tokio::test]
async fn id_is_good_on_every_replica_the_moment_it_can_be_read() {
    let folder = Folder::new();
    let redis = Redis::start(folder.path()).await;
    let slow = Cable::to(redis.address()).await;
    let cluster = Cluster::new().keys(keys(0)).replicas(2).stores_at(&[slow.url(), redis.url()]);
    let cluster = cluster.simulator("event_delay = \"100ms\"").start().await;
    slow.set(Weather::Slow(ms(25)));
    for is_streamed in [true, false, true, true] {
        let first = Chain { is_streamed, ..Chain::new(cluster.replicas[0].address()) };
        let mut connection = Connection::open(first.address).await;
        let mut answer = connection.ask(&first.request(&json!({}))).await.expect("an answer");
        let id = found("the id of the response", async || {
            let Piece::Bytes(bytes) = connection.piece().await else {
                panic!("the id comes: {}", answer.text())
            };
            answer.body.extend_from_slice(&bytes);
            let text = answer.text();
            let (_, rest) = text.split_once("\"id\":\"")?;
            rest.split_once('"').map(|(id, _)| id.to_owned())
        })
        .await;
        // The first answer is still in flight.
        Chain::new(cluster.replicas[1].address()).after(&id).turn().await;
        connection.finish(&mut answer).await;
        assert!(answer.whole);
    }
}

#[tokio::test]
async fn replica_without_the_store_goes_by_its_memory_and_stores_it_later() {
    let mut cluster =
        Cluster::new().keys(keys(0)).replicas(2).redis().store("timeout = \"300ms\"").start().await;
    let (here, there) = (cluster.replicas[0].address(), cluster.replicas[1].address());
    let mut chain = Chain::new(here);
    let stored = chain.turn().await;
    cluster.redis().signal("STOP").await;
    for _ in 0..3 {
        let budget = Budget::begin(ms(2_300));
        chain.turn().await;
        budget.holds("a turn that waits at most the timeout");
    }
    let last = chain.previous.clone().expect("it goes on");
    // A replica that cannot know the owner says that, and does not deny that the response exists.
    let never = stored.replace("resp_", "resp_f");
    let mut said = Vec::new();
    for id in [&stored, &never] {
        let answer = Chain::new(there).after(id).asks(json!({})).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (503, "no_key_available"),
            "{}",
            answer.text()
        );
        assert_eq!(answer.header("retry-after"), Some("1"));
        said.push(answer.body);
    }
    assert_eq!(said[0], said[1], "nor whether there is something");
    cluster.redis().signal("CONT").await;
    for id in [&stored, &last] {
        let is_found = async || {
            (Chain::new(there).after(id).asks(json!({})).await.status == 200).then_some(())
        };
        eventually(SOON, "what was made in the outage is found everywhere", is_found).await;
    }
    assert_eq!(Chain::new(there).after(&never).asks(json!({})).await.status, 400);
}

#[tokio::test]
async fn owners_that_a_flush_has_lost_come_back() {
    let mut cluster = Cluster::new().keys(keys(0)).replicas(2).redis().start().await;
    let mut chain = Chain::new(cluster.replicas[0].address());
    let first = chain.turn().await;
    cluster.redis().run(&["FLUSHALL"]).await;
    chain.turn().await;
    // The other replica was asked before, so both find the id again.
    let elsewhere = Chain::new(cluster.replicas[1].address()).after(&first);
    let is_found = async || (elsewhere.asks(json!({})).await.status == 200).then_some(());
    eventually(SOON, "the first id is found", is_found).await;
}

#[tokio::test]
async fn b14_response_ids_of_another_client() {
    // There is one project. Without the check of the client, the upstream would therefore serve any
    // id.
    let mut cluster = Cluster::new().keys(vec![Key::new("a-1", "org-a")]).redis().start().await;
    let foreign = Chain::new(cluster.address()).turn().await;
    let unknown = foreign.chars().rev().collect::<String>().replace("_pser", "resp_");
    assert_eq!(unknown.len(), foreign.len() + 5 - "resp_".len());
    let before = cluster.turns().await.len();
    let address = cluster.address();
    let bob = |id: &str| Chain { token: BOB, ..Chain::new(address) }.of_session("s").after(id);
    let real = json!({ "type": "invalid_request_error", "code": "previous_response_not_found", "param": "previous_response_id",
        "message": format!("Previous response with id '{foreign}' not found.") });
    let mut times = BTreeMap::<bool, Vec<_>>::new();
    for _ in 0..40 {
        for (is_foreign, id) in [(true, &foreign), (false, &unknown)] {
            let began = Instant::now();
            let answer = bob(id).asks(json!({})).await;
            times.entry(is_foreign).or_default().push(began.elapsed());
            assert_eq!(answer.status, 400);
            // The two answers are the same, byte for byte, except for the id.
            assert_eq!(answer.text().replace(id.as_str(), &foreign), json_text(&real));
        }
    }
    // Both kinds take the same time, on any machine: the fastest of each kind is faster than the
    // median of the other.
    times.values_mut().for_each(|times| times.sort_unstable());
    for kind in [true, false] {
        let (fastest, median) = (times[&kind][0], times[&!kind][times[&!kind].len() / 2]);
        assert!(
            fastest < median,
            "foreign {kind}: {fastest:?} at the fastest, and the median of the others is {median:?}"
        );
    }
    // Both kinds need the same number of the store's operations.
    let mut calls = Vec::new();
    for id in [&foreign, &unknown] {
        let (gets, asked) =
            (cluster.redis().calls("get").await, asked_of_the_store(&cluster).await);
        bob(id).asks(json!({})).await;
        calls.push((
            cluster.redis().calls("get").await - gets,
            asked_of_the_store(&cluster).await - asked,
        ));
    }
    assert_eq!(calls[0], calls[1]);
    assert_eq!(cluster.turns().await.len(), before, "no request went upstream");
    assert_eq!(cluster.redis().bindings().await.len(), 1, "nothing of bob's is bound");
    // Bob's attempts have not taken the response from Alice.
    Chain::new(cluster.address()).after(&foreign).turn().await;
}

/// The bytes of the gateway's error.
fn json_text(error: &Value) -> String {
    let [message, class, param, code] =
        ["message", "type", "param", "code"].map(|name| &error[name]);
    format!(r#"{{"error":{{"message":{message},"type":{class},"param":{param},"code":{code}}}}}"#)
}

#[tokio::test]
async fn turn_goes_where_its_previous_response_is_and_the_binding_stays() {
    let cluster = Cluster::new().keys(two_projects()).start().await;
    let (one, two) = (stored_by(&cluster, "a-1").await, stored_by(&cluster, "a-3").await);
    let key_of = async |id: &str| made(&cluster.turns().await, id).key.clone();
    for (bound, own, other) in [("a-1", &one, &two), ("a-3", &two, &one)] {
        // A new session that continues from a response begins on that response's key.
        let session = uuid();
        let begun = Chain::new(cluster.address()).of_session(&session).after(own).turn().await;
        assert_eq!(key_of(&begun).await, bound);
        let spilled = cluster.replica().metrics().await.get(SPILLED);
        let away = Chain::new(cluster.address()).of_session(&session).after(other).turn().await;
        assert_ne!(key_of(&away).await, bound, "the response is stored elsewhere");
        // A response that was made with another key is stored there, and the next turn follows it.
        let again = Chain::new(cluster.address()).of_session(&session).after(&away).turn().await;
        assert_eq!(key_of(&again).await, key_of(&away).await);
        cluster.replica().shows(SPILLED, spilled + 2.0).await;
        let own = Chain::new(cluster.address()).of_session(&session).turn().await;
        assert_eq!(key_of(&own).await, bound, "the session has not moved");
    }
    cluster
        .replica()
        .shows(r#"warmkey_decisions_total{decision="spill",reason="stored"}"#, 4.0)
        .await;
}

#[tokio::test]
async fn project_that_cannot_serve_is_named_and_no_other_serves_instead() {
    for (fault, status, code) in [
        (
            json!({ "key": "a-3", "status": 401, "code": "invalid_api_key" }),
            503,
            "no_key_available",
        ),
        (
            json!({ "project": "two", "status": 429, "code": "project_spend_limit_exceeded" }),
            429,
            "insufficient_quota",
        ),
    ] {
        let cluster = Cluster::new().keys(two_projects()).start().await;
        let id = stored_by(&cluster, "a-3").await;
        cluster.upstream().fault(fault).await;
        // The first turn finds out that the quota is used up. Its client may see the upstream's own
        // words about that.
        let session = uuid();
        let found_out =
            Chain::new(cluster.address()).of_session(&session).after(&id).asks(json!({})).await;
        assert_eq!(found_out.status, status, "{}", found_out.text());
        for chain in
            [Chain::new(cluster.address()), Chain::new(cluster.address()).of_session(&session)]
        {
            let answer = chain.after(&id).asks(json!({})).await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (status, code),
                "{}",
                answer.text()
            );
            assert!(answer.text().contains("org-a/two"), "{}", answer.text());
            let wait = answer.header("retry-after").and_then(|wait| wait.parse::<u32>().ok());
            assert!(wait.is_some_and(|wait| wait > 0), "{wait:?}");
        }
        let turns = cluster.turns().await;
        let gone_on = turns.iter().filter(|turn| turn.previous_response_id.is_some());
        assert!(
            gone_on.clone().all(|turn| turn.key == "a-3") && gone_on.count() == 1,
            "no other project is asked"
        );
        // A turn that continues nothing is served by the other project.
        let free = Chain::new(cluster.address()).of_session(&session).turn().await;
        assert_eq!(made(&cluster.turns().await, &free).key, "a-1");
    }
}
