//! Tests health over WebSocket: if a connection cannot leave a fault behind, the client's next
//! connection does.

use super::{pool, three};
use crate::world::cluster::{ALICE, Running};
use crate::world::codex::Codex;
use crate::world::sessions::last_turn;
use crate::world::simulator::{Fault, path_of, siblings};
use crate::world::socket::{Refused, open};
use crate::world::waiting::found;

async fn talks(cluster: &Running) -> (crate::world::codex::Talk, String) {
    found("a session in org-a", async || {
        let mut talk = Codex::new(cluster.address(), ALICE).by_websocket();
        talk.turn("first").await;
        let turn = last_turn(cluster, &talk.codex).await;
        (turn.organization == "org-a").then_some((talk, turn.key))
    })
    .await
}

/// A turn that is refused before it begins is served by a sibling, on the next connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_turn_lands_on_a_sibling() {
    for (fault, comes_back) in
        [(Fault::limited(3_000), true), (Fault::revoked(), false), (Fault::overspent(), true)]
    {
        let cluster = three().keys(pool()).start().await;
        let (mut talk, first_key) = talks(&cluster).await;
        let project = if ["org-a-1", "org-a-2"].contains(&first_key.as_str()) {
            "org-a-main"
        } else {
            "side"
        };
        let fault = if comes_back { fault.project(project) } else { fault.key(&first_key) };
        cluster.upstream().fails_with(fault).await;
        talk.turn("elsewhere").await;
        talk.turn("and stays there").await;
        let path = path_of(&cluster.turns().await, &talk.codex.session);
        assert_eq!((path.len(), &path[0]), (2, &first_key), "{path:?}");
        assert!(path[1].starts_with("org-a"), "{path:?}");
        assert_eq!(talk.connections, 2, "one more connection, and no more");
    }
}

/// A handshake waits for a limited key, uses a sibling, or tells the client when to retry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshake_knows_which_key_is_limited() {
    let cluster = three().keys(siblings("org-a", 2)).start().await;
    let (mut talk, first_key) = talks(&cluster).await;
    talk.hang_up();
    cluster.upstream().fails_with(Fault::limited(1).at_handshakes().times(1)).await;
    talk.turn("waits for the connection").await;
    assert_eq!(path_of(&cluster.turns().await, &talk.codex.session), [first_key]);
    talk.hang_up();
    cluster.upstream().fails_with(Fault::limited(3_000).at_handshakes()).await;
    let headers = [("session-id", talk.codex.session.as_str())];
    let refused: Refused =
        open(cluster.address(), ALICE, &headers).await.err().expect("it is refused");
    assert_eq!((refused.status, refused.code().as_str()), (503, "no_key_available"));
    assert!(refused.retry_after() > 2_900);
}
