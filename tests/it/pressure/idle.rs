//! An idle connection costs little memory, even after large messages.

use crate::world::cluster::{ALICE, Cluster};
use crate::world::socket::{Upstream, session, turn};
use crate::world::waiting::{SOON, eventually};

const MIB: usize = 1 << 20;
const SOCKETS: usize = 30;

#[tokio::test]
async fn idle_socket_keeps_no_buffers_of_its_largest_message() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new().upstream_at(&upstream.url()).start().await;
    let process = cluster.replica().process();
    let before = process.resident();
    let large = format!("{:?}", "x".repeat(MIB));
    let mut sockets = Vec::new();
    for number in 0..SOCKETS {
        let name = format!("s{number}");
        let (mut client, mut there) =
            tokio::join!(session(cluster.address(), ALICE, &name), upstream.accept());
        let (_, come) = tokio::join!(client.send(&large), there.text());
        assert_eq!(come, large);
        let (_, come) = tokio::join!(there.send(&large), client.text());
        assert_eq!(come, large);
        sockets.push((client, there));
    }
    // Both connections of a socket have read and written a mebibyte.
    eventually(SOON, "memory that comes back", async || {
        let grown = process.resident().saturating_sub(before);
        (grown < (SOCKETS * MIB) as u64).then_some(())
    })
    .await;
    for (number, (client, there)) in sockets.iter_mut().enumerate() {
        turn(client, there, &format!("resp_{number}")).await;
    }
}
