//! A client that fills its share of the memory and stays silent takes it from nobody else, and not
//! for long.

use std::time::Duration;

use crate::world::cluster::{ALICE, BOB, Cluster, Running};
use crate::world::recorder::{Recorder, completed};
use crate::world::waiting::{Budget, within};
use crate::world::wire::{Connection, Request, ask};

const MIB: usize = 1 << 20;
const MEMORY: &str = "warmkey_body_memory_bytes";

/// A request of `token` whose body stops coming after 3 of 4 MiB.
async fn stalled(cluster: &Running, token: &str) -> Connection {
    let mut connection = Connection::open(cluster.address()).await;
    let head = format!(
        "POST /responses HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {}\r\n\r\n",
        4 * MIB
    );
    connection.send_raw(head.as_bytes()).await.expect("it is taken");
    connection.send_raw(&vec![b' '; 3 * MIB]).await.expect("it is taken");
    connection
}

fn turn(token: &str, length: usize) -> Request {
    Request::turn(token, format!(r#"{{"model":"gpt-5.4","input":"{}"}}"#, "x".repeat(length)))
}

#[tokio::test]
async fn silent_client_takes_half_of_the_memory_and_not_for_long() {
    let upstream = Recorder::answering(completed()).await;
    let cluster = Cluster::new()
        .recorded_by(&upstream)
        .server("replay_total", "\"16MiB\"")
        .server("max_body", "\"4MiB\"")
        .start()
        .await;
    let (mut held, budget) = (Vec::new(), Budget::begin(Duration::from_secs(45)));
    for number in 1..=2 {
        held.push(stalled(&cluster, ALICE).await);
        cluster.replica().shows(MEMORY, (number * 3 * MIB) as f64).await;
    }
    let refused = ask(cluster.address(), &turn(ALICE, 3 * MIB)).await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "no_key_available"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert!(refused.text().contains("this client's half"), "{}", refused.text());
    // Others have their own half, and the client has what is left of its own.
    for (token, length) in [(BOB, 3 * MIB), (BOB, 3 * MIB), (ALICE, MIB)] {
        let told = ask(cluster.address(), &turn(token, length)).await;
        assert_eq!(told.status, 200, "{token}, {length}: {}", told.text());
    }
    for mut connection in held {
        let told = within(Duration::from_secs(60), "a refusal", connection.head()).await;
        assert_eq!(told.map(|told| told.status), Some(408));
    }
    budget.holds("a body that stops coming ends");
    cluster.replica().shows(MEMORY, 0.0).await;
    assert_eq!(ask(cluster.address(), &turn(ALICE, 3 * MIB)).await.status, 200);
}
