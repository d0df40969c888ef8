//! Tests the judge: a client meets each fault of the simulated upstream as its script states, and
//! the record shows the fault.

use std::net::SocketAddr;

use crate::world::cable::Weather;
use crate::world::cluster::{ALICE, Cluster};
use crate::world::codex::Codex;
use crate::world::process::Folder;
use crate::world::simulator::{Fault, Key, Simulator, siblings, statuses};
use crate::world::socket;
use crate::world::waiting::{SOON, eventually, within};
use crate::world::wire::{Answer, Connection, Request, ask};

const MODEL: &str = "gpt-5.4";

fn body(text: &str) -> String {
    format!(r#"{{"model":"{MODEL}","stream":true,"store":false,"input":"{text}"}}"#)
}

/// A turn of this key, without a gateway.
async fn turn(upstream: SocketAddr, key: &Key) -> Answer {
    ask(upstream, &Request::turn(&key.secret(), body("hello")).header("session-id", "s")).await
}

#[tokio::test]
async fn fault_is_met_as_scripted_and_stands_in_the_record() {
    let (folder, keys) = (Folder::new(), siblings("org-a", 2));
    let upstream = Simulator::start(&folder, &keys, "").await;
    let faults = [
        (Fault::revoked(), 401, "invalid_api_key"),
        (Fault::deactivated(), 401, "account_deactivated"),
        (Fault::exhausted(), 429, "credit_balance_exhausted"),
        (Fault::overspent(), 429, "project_spend_limit_exceeded"),
        (Fault::limited(3600), 429, "rate_limit_exceeded"),
        (Fault::too_steep(), 429, "slow_down"),
        (Fault::overloaded(), 503, "server_is_overloaded"),
        (Fault::down(500), 500, "server_error"),
        (Fault::down(504), 504, "server_error"),
        (Fault::forbidden(), 403, "unsupported_country_region_territory"),
        (Fault::withdrawn(), 404, "model_not_found"),
    ];
    for (fault, status, code) in faults.clone() {
        upstream.fails_with(fault.key(&keys[0].id).times(1)).await;
        assert_eq!(turn(upstream.address(), &keys[1]).await.status, 200, "{code}: of one key");
        let refused = turn(upstream.address(), &keys[0]).await;
        assert_eq!((refused.status, refused.code().as_str()), (status, code));
    }
    let turns = upstream.turns().await;
    assert_eq!(
        statuses(&turns).values().sum::<usize>(),
        2 * faults.len(),
        "every attempt, refused or not"
    );
    for (_, status, code) in faults {
        let is_it = |turn: &&crate::world::simulator::Turn| {
            turn.status == status && turn.code.as_deref() == Some(code)
        };
        assert_eq!(turns.iter().filter(is_it).count(), 1, "{code}");
    }
}

#[tokio::test]
async fn retry_time_is_sent_in_every_form() {
    let (folder, keys) = (Folder::new(), siblings("org-a", 1));
    let upstream = Simulator::start(&folder, &keys, "").await;
    for (fault, stated) in [
        (Fault::limited(7), Some("7")),
        (Fault::limited_in_words("soon"), Some("soon")),
        (Fault::limited_in_silence(), None),
        (Fault::limited_in_silence().header("x-ratelimit-reset-requests", "6m0s"), None),
    ] {
        upstream.fails_with(fault.model(MODEL).times(1)).await;
        let limited = turn(upstream.address(), &keys[0]).await;
        assert_eq!((limited.status, limited.header("retry-after")), (429, stated));
    }
    upstream.fails_with(Fault::limited_until(30).session("s").times(1)).await;
    let limited = turn(upstream.address(), &keys[0]).await;
    assert!(limited.header("retry-after").is_some_and(|date| date.ends_with(" GMT")));
    upstream.fails_with(Fault::page(502).project("org-a-main").times(1)).await;
    let page = turn(upstream.address(), &keys[0]).await;
    assert_eq!((page.status, page.header("content-type")), (502, Some("text/html; charset=UTF-8")));
    upstream.fails_with(Fault::failing("rate_limit_exceeded").organization("org-a").times(1)).await;
    let failed = turn(upstream.address(), &keys[0]).await;
    assert!(
        failed.status == 200 && failed.text().contains("event: response.failed"),
        "{}",
        failed.text()
    );
    upstream.fails_with(Fault::breaking().times(1)).await;
    let mut connection = Connection::open(upstream.address()).await;
    assert!(
        connection.ask(&Request::turn(&keys[0].secret(), body("hello"))).await.is_none(),
        "no byte of an answer"
    );
}

#[tokio::test]
async fn project_is_limited_and_its_sibling_is_not() {
    let folder = Folder::new();
    let short = Key::new("short", "org-a").limited(1, 100_000);
    let keys = [short, Key::new("long", "org-a").of_project("other")];
    let upstream = Simulator::start(&folder, &keys, "").await;
    let mut answers = Vec::new();
    for key in [&keys[0], &keys[0], &keys[1], &keys[1]] {
        answers.push(turn(upstream.address(), key).await);
    }
    assert_eq!(
        answers.iter().map(|answer| answer.status).collect::<Vec<_>>(),
        [200, 429, 200, 200]
    );
    assert_eq!(answers[1].header("x-ratelimit-limit-tokens"), Some("100000"));
    assert!(answers[1].header("retry-after").is_some());
}

#[tokio::test]
async fn probe_is_recorded_and_a_key_is_healed_alone() {
    let (folder, keys) = (Folder::new(), siblings("org-a", 2));
    let upstream = Simulator::start(&folder, &keys, "").await;
    let address = upstream.address();
    let probe = async |key: &Key| {
        ask(address, &Request::new("GET", "/v1/models").bearer(&key.secret())).await.status
    };
    for key in &keys {
        upstream.revoke(&key.id).await;
    }
    assert_eq!((probe(&keys[0]).await, probe(&keys[1]).await), (401, 401));
    upstream.heal_key(&keys[0].id).await;
    assert_eq!((probe(&keys[0]).await, probe(&keys[1]).await), (200, 401));
    upstream.heal().await;
    upstream.fails_with(Fault::down(500).at_probes().times(1)).await;
    assert_eq!(
        (turn(address, &keys[1]).await.status, probe(&keys[1]).await, probe(&keys[1]).await),
        (200, 500, 200)
    );
    let probes = upstream.probes().await;
    let of = |key: &Key| {
        probes
            .iter()
            .filter(|probe| probe.key == key.id)
            .map(|probe| probe.status)
            .collect::<Vec<_>>()
    };
    assert_eq!((of(&keys[0]), of(&keys[1])), (vec![401, 200], vec![401, 401, 500, 200]));
    assert_eq!(upstream.turns().await.len(), 1, "a probe is no turn");
}

#[tokio::test]
async fn handshake_that_is_refused_is_an_attempt_like_another() {
    let (folder, keys) = (Folder::new(), siblings("org-a", 1));
    let upstream = Simulator::start(&folder, &keys, "").await;
    upstream.fails_with(Fault::limited(9).at_handshakes().times(1)).await;
    let refused =
        socket::open(upstream.address(), &keys[0].secret(), &[]).await.err().expect("refused");
    assert_eq!((refused.status, refused.retry_after()), (429, 9));
    assert_eq!(statuses(&upstream.turns().await), [(429, 1)].into());
    assert!(socket::open(upstream.address(), &keys[0].secret(), &[]).await.is_ok());
}

#[tokio::test]
async fn turns_in_flight_are_shown_at_any_moment() {
    let (folder, keys) = (Folder::new(), siblings("org-a", 2));
    let upstream = Simulator::start(&folder, &keys, "").await;
    let flies = async |expected: &[(&str, u64)]| {
        eventually(SOON, &format!("{expected:?} in flight"), async || {
            let flying = upstream.in_flight().await;
            flying
                .iter()
                .map(|(key, count)| (key.as_str(), *count))
                .eq(expected.iter().copied())
                .then_some(())
        })
        .await;
    };
    let mut connections = Vec::new();
    for key in [&keys[0], &keys[0], &keys[1]] {
        let mut connection = Connection::open(upstream.address()).await;
        let slow = Request::turn(&key.secret(), body("SLOW:1000x1s"));
        assert_eq!(
            within(SOON, "a head", connection.ask(&slow)).await.expect("an answer").status,
            200
        );
        connections.push(connection);
    }
    flies(&[(&keys[0].id, 2), (&keys[1].id, 1)]).await;
    connections.remove(0);
    flies(&[(&keys[0].id, 1), (&keys[1].id, 1)]).await;
    drop(connections);
    flies(&[]).await;
}

#[tokio::test]
async fn upstream_that_cannot_be_reached_can_be_reached_again() {
    let cluster = Cluster::new().cabled().start().await;
    Codex::new(cluster.address(), ALICE).turn("before").await.served();
    cluster.cable().set(Weather::Refused);
    // An open connection is lost first. Later attempts find no connection at all.
    eventually(SOON, "the upstream is unreachable", async || {
        let lost = ask(cluster.address(), &Request::turn(ALICE, body("meanwhile"))).await;
        (lost.code() == "upstream_unreachable").then_some(())
    })
    .await;
    assert_eq!(cluster.turns().await.len(), 1, "the upstream has seen no request");
    cluster.cable().set(Weather::Fair);
    eventually(SOON, "a turn is served again", async || {
        (ask(cluster.address(), &Request::turn(ALICE, body("after"))).await.status == 200)
            .then_some(())
    })
    .await;
}
