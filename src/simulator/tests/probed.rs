//! Probes, by which a gateway learns of a key without asking for an answer, and the judge's count
//! of turns in flight.

use std::collections::BTreeMap;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::socket::{Socket, create};
use super::*;

impl Upstream {
    async fn probe(&self, key: &str) -> u16 {
        self.send(self.client.get(self.url("/v1/models")).bearer_auth(format!("sk-{key}")))
            .await
            .status
    }

    async fn flies(&self, expected: &[(&str, u64)]) {
        let expected: BTreeMap<_, _> =
            expected.iter().map(|(key, count)| ((*key).to_owned(), *count)).collect();
        for _ in 0..1000 {
            if self.simulator.summary().in_flight == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("{:?} and not {expected:?}", self.simulator.summary().in_flight);
    }
}

#[tokio::test]
async fn probe_tells_whether_a_key_lives_and_is_no_turn() {
    let upstream = upstream().await;
    assert_eq!((upstream.probe("a-1").await, upstream.probe("nobody").await), (200, 401));
    // A key without quota, or limited for a while, is not dead.
    for fault in [
        json!({"key": "a-1", "status": 429}),
        json!({"organization": "org-a", "status": 429, "code": "insufficient_quota"}),
    ] {
        upstream.fault(fault).await;
        assert_eq!(upstream.probe("a-1").await, 200);
    }
    upstream.fault(json!({"organization": "org-a", "status": 401, "code": "account_deactivated", "times": 1})).await;
    for _ in 0..2 {
        assert_eq!(
            (upstream.probe("a-2").await, upstream.probe("b-1").await),
            (401, 200),
            "a probe does not revive the key"
        );
    }
    let record = upstream.send(upstream.client.get(upstream.url("/_sim/probes"))).await.json();
    let seen: Vec<_> = record
        .as_array()
        .expect("a list")
        .iter()
        .map(|probe| (probe["key"].clone(), probe["status"].clone()))
        .collect();
    assert_eq!(
        seen[..3],
        [(json!("a-1"), json!(200)), (json!(null), json!(401)), (json!("a-1"), json!(200))]
    );
    assert!(seen.len() == 8 && record[0]["at"].is_u64());
    assert!(upstream.simulator.turns().is_empty());
    upstream.simulator.reset();
    assert!(upstream.simulator.probes().is_empty());
}

#[tokio::test]
async fn probe_fails_as_scripted_and_is_checked_like_any_request() {
    let upstream = upstream().await;
    let body = ask("gpt-5.4", &[user("hi")]);
    upstream.fault(json!({"at": "probe", "key": "a-1", "status": 500, "times": 1})).await;
    assert_eq!((upstream.post("a-1", &body).await.status, upstream.probe("a-2").await), (200, 200));
    assert_eq!((upstream.probe("a-1").await, upstream.probe("a-1").await), (500, 200));
    // A key that is refused for answers only: the probe does not confirm the suspicion.
    upstream.fault(json!({"at": "turn", "key": "a-1", "status": 401})).await;
    assert_eq!((upstream.post("a-1", &body).await.status, upstream.probe("a-1").await), (401, 200));
    upstream.fault(json!({"at": "probe", "reset": true, "times": 1})).await;
    assert!(
        upstream.client.get(upstream.url("/models")).bearer_auth("sk-a-1").send().await.is_err()
    );
    let leaking = upstream
        .client
        .get(upstream.url("/models"))
        .bearer_auth("sk-a-1")
        .header("x-warmkey-hop", "x");
    assert_eq!(upstream.send(leaking).await.error(), "simulator_leak");
    let last: Vec<_> =
        upstream.simulator.probes().iter().rev().take(2).map(|probe| probe.status).collect();
    assert_eq!(last, [400, 0]);
}

#[tokio::test]
async fn turns_in_flight_are_counted_at_their_key_over_either_transport() {
    let upstream = upstream().await;
    upstream.flies(&[]).await;
    let slow = ask("gpt-5.4", &[user("SLOW:1000x1s")]);
    let streamed = upstream.request("a-1", &slow).send().await.expect("a head");
    upstream.flies(&[("a-1", 1)]).await;
    // Two turns on one socket, of which the second waits for the first.
    let mut socket = Socket::open(&upstream, "b-1").await;
    upstream.flies(&[("a-1", 1)]).await;
    for _ in 0..2 {
        socket.say(&create("gpt-5.4", None, &[user("SLOW:1000x1s")])).await;
    }
    upstream.flies(&[("a-1", 1), ("b-1", 2)]).await;
    // A turn is in flight from its headers on.
    let mut begun = TcpStream::connect(upstream.address).await.expect("connected");
    let head = "POST /v1/responses HTTP/1.1\r\nhost: upstream\r\nauthorization: Bearer sk-a-2\r\ncontent-length: 9\r\n\r\n";
    begun.write_all(head.as_bytes()).await.expect("sent");
    upstream.flies(&[("a-1", 1), ("a-2", 1), ("b-1", 2)]).await;
    drop((streamed, socket, begun));
    upstream.flies(&[]).await;
    let summary = upstream.send(upstream.client.get(upstream.url("/_sim/summary"))).await.json();
    assert_eq!(
        (&summary["in_flight"], &summary["keys"]),
        (&json!({}), &json!({"a-1": 1, "a-2": 1, "b-1": 2}))
    );
}
