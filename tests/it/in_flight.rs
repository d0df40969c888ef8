//! B18: tests how many turns each key has in flight, as every replica counts them. The upstream's
//! own count is the judge.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::world::admin::TOKEN;
use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::simulator::siblings;
use crate::world::socket::{Socket, plain, session};
use crate::world::waiting::{ANSWER, SOON, eventually, ms, within};
use crate::world::wire::Connection;

/// Maximum age of the counts.
const LIVE: Duration = ms(250);
/// Time after which turns of a crashed replica no longer count.
const CRASHED: Duration = Duration::from_secs(10);

type Counts = BTreeMap<String, u64>;

/// Waits until the upstream is answering so many turns.
async fn answering(cluster: &Running, count: u64) -> Counts {
    let what = format!("{count} turns in flight upstream");
    let is_all = |open: &Counts| open.values().sum::<u64>() == count;
    eventually(SOON, &what, async || Some(cluster.upstream().in_flight().await).filter(is_all))
        .await
}

/// Checks that every replica in `numbers` has these counts. The last question is asked after
/// `limit`.
async fn agree(
    cluster: &Running,
    numbers: &[usize],
    expected: &Counts,
    limit: Duration,
    what: &str,
) {
    let began = Instant::now();
    for number in numbers {
        loop {
            let asked = began.elapsed();
            let keys = cluster.replicas[*number].keys().await;
            let count = |key: &serde_json::Value| {
                (
                    key["id"].as_str().expect("an id").to_owned(),
                    key["in_flight"].as_u64().expect("a count"),
                )
            };
            let counts: Counts = keys.iter().map(count).filter(|(_, count)| *count > 0).collect();
            if counts == *expected {
                break;
            }
            assert!(
                asked < limit,
                "{what}: replica {number} counts {counts:?} after {asked:?}, and there are {expected:?}"
            );
        }
    }
}

/// Begins a streamed turn of this pace.
async fn stream(cluster: &Running, number: usize, pace: &str) -> Connection {
    let address = cluster.replicas[number].address();
    let (request, _) = Codex::new(address, ALICE).begin(pace);
    let mut connection = Connection::open(address).await;
    let answer = within(ANSWER, "a head", connection.ask(&request)).await.expect("an answer");
    assert_eq!(answer.status, 200);
    connection
}

/// Begins a turn of this pace on a WebSocket.
async fn talk(cluster: &Running, number: usize, pace: &str) -> Socket {
    let mut socket =
        session(cluster.replicas[number].address(), ALICE, &crate::world::codex::uuid()).await;
    socket.send(&plain(pace)).await;
    socket.event(&["response.created"]).await;
    socket
}

#[tokio::test]
async fn b18_in_flight_counts() {
    const LONG: &str = "SLOW:600x1s";
    let keys = [siblings("org-a", 2), siblings("org-b", 1)].concat();
    let cluster =
        Cluster::new().keys(keys).redis().replicas(3).server("admin_token", &format!("{TOKEN:?}"));
    let mut cluster = cluster.start().await;
    let mut streams = [Vec::new(), Vec::new(), Vec::new()];
    let mut talks = [Vec::new(), Vec::new(), Vec::new()];
    let mut count = 0;
    for number in 0..3 {
        for _ in 0..4 {
            streams[number].push(stream(&cluster, number, LONG).await);
            talks[number].push(talk(&cluster, number, LONG).await);
            count += 2;
        }
        let open = answering(&cluster, count).await;
        agree(&cluster, &[0, 1, 2], &open, LIVE, "turns that have begun").await;
    }
    // A WebSocket without a turn has nothing in flight.
    let quiet = session(cluster.replicas[1].address(), ALICE, "quiet").await;
    agree(&cluster, &[0, 1, 2], &answering(&cluster, count).await, LIVE, "a connection").await;
    drop(quiet);

    // Some clients leave.
    streams[0].truncate(1);
    talks[1].truncate(2);
    count -= 5;
    let open = answering(&cluster, count).await;
    agree(&cluster, &[0, 1, 2], &open, LIVE, "clients that have left").await;

    // The store is flushed, and the replicas report their counts again.
    cluster.redis().run(&["FLUSHALL"]).await;
    agree(&cluster, &[0, 1, 2], &open, LIVE, "after a flush").await;

    // A leaving replica counts until its last turn has ended, and no longer.
    streams[2].clear();
    talks[2].clear();
    count -= 8;
    answering(&cluster, count).await;
    let last = stream(&cluster, 2, "SLOW:4x1s").await;
    cluster.replicas[2].terminate().await;
    cluster.replicas[2].says("waiting for turns in flight").await;
    agree(&cluster, &[0, 1], &answering(&cluster, count + 1).await, LIVE, "a replica that drains")
        .await;
    assert_eq!(cluster.replicas[2].exit(SOON).await.code(), Some(0));
    agree(&cluster, &[0, 1], &answering(&cluster, count).await, LIVE, "a replica that has left")
        .await;
    drop(last);

    // A second signal makes the replica leave its turns behind, and none of them counts.
    cluster.restart(2).await;
    let cut = (stream(&cluster, 2, LONG).await, talk(&cluster, 2, LONG).await);
    agree(
        &cluster,
        &[0, 1, 2],
        &answering(&cluster, count + 2).await,
        LIVE,
        "a replica that is back",
    )
    .await;
    cluster.replicas[2].terminate().await;
    cluster.replicas[2].says("draining").await;
    cluster.replicas[2].terminate().await;
    cluster.replicas[2].exit(SOON).await;
    agree(
        &cluster,
        &[0, 1],
        &answering(&cluster, count).await,
        LIVE,
        "a replica that was stopped twice",
    )
    .await;
    drop(cut);

    // A replica crashes.
    cluster.replicas[1].kill().await;
    count -= 6;
    let open = answering(&cluster, count).await;
    agree(&cluster, &[0], &open, CRASHED, "a replica that has crashed").await;

    // The store crashes: the reports of other replicas expire soon.
    streams[0].clear();
    talks[0].truncate(1);
    agree(&cluster, &[0], &answering(&cluster, 1).await, LIVE, "one is left").await;
    cluster.restart(1).await;
    let _other = stream(&cluster, 1, LONG).await;
    let both = answering(&cluster, 2).await;
    agree(&cluster, &[0, 1], &both, LIVE, "one each").await;
    cluster.redis().kill().await;
    cluster.replicas[1].kill().await;
    agree(&cluster, &[0], &answering(&cluster, 1).await, CRASHED, "without the store").await;
}
