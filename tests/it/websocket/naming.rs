//! Tests the header by which an upstream knows sessions, on the handshake of a WebSocket.

use crate::world::cluster::{ALICE, BOB, Cluster};
use crate::world::codex::uuid;
use crate::world::socket::{self, Upstream};
use crate::world::wire::values;

const NAME: &str = "x-session-affinity";

#[tokio::test]
async fn session_header_of_a_handshake_is_derived_and_never_replaced() {
    let upstream = Upstream::start().await;
    let cluster = Cluster::new()
        .upstream(&format!("session_header = {NAME:?}"))
        .upstream_at(&upstream.url())
        .replicas(2)
        .redis()
        .start()
        .await;
    // Returns the values of the header in the upstream's handshake, after which one whole turn is
    // played.
    let told = async |replica: usize, token: &str, own: &[(&str, &str)]| {
        let address = cluster.replicas[replica].address();
        let answered = async {
            let asked = upstream.asked().await;
            let told: Vec<_> =
                values(&asked.headers, NAME).into_iter().map(str::to_owned).collect();
            (told, asked.accept("").await)
        };
        let (opened, (told, mut upstream)) =
            tokio::join!(socket::open(address, token, own), answered);
        let (mut client, _) = opened.unwrap_or_else(|refused| panic!("{refused:?}"));
        socket::turn(&mut client, &mut upstream, "resp_1").await;
        told
    };
    let (session, other) = (uuid(), uuid());
    let derived = told(0, ALICE, &[("session-id", &session)]).await;
    let [name] = &derived[..] else { panic!("one header: {derived:?}") };
    assert!(name.starts_with("warmkey-") && !name.contains(&session), "{name}");
    assert_eq!(told(0, ALICE, &[("session-id", &session)]).await, derived, "connected again");
    assert_eq!(told(1, ALICE, &[("session-id", &session)]).await, derived, "by another replica");
    assert_eq!(told(1, ALICE, &[("thread-id", "t"), ("session-id", &session)]).await, derived);
    for (token, session) in [(ALICE, &other), (BOB, &session)] {
        let another = told(1, token, &[("session-id", session)]).await;
        assert!(another.len() == 1 && another != derived, "another session: {another:?}");
    }
    // A client's own header passes byte for byte, however often it was sent.
    for own in [vec!["Own/=+; \"v\""], vec!["", "second, with a comma"]] {
        let mut sent: Vec<_> = own.iter().map(|value| (NAME, *value)).collect();
        sent.push(("session-id", &session));
        assert_eq!(told(0, ALICE, &sent).await, own);
    }
    // No header names a session here, and the messages come after the handshake.
    assert_eq!(told(0, ALICE, &[]).await, [""; 0], "nothing is made up");
}
