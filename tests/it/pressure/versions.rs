//! A newer version beside this one: what it writes into the shared state is passed over, and stays.

use crate::world::admin::TOKEN;
use crate::world::cluster::{ALICE, Cluster};
use crate::world::codex::Codex;
use crate::world::simulator::siblings;
use crate::world::waiting::{SOON, eventually};

/// Far in the future, in milliseconds since 1970.
const LATER: &str = "9999999999999";

#[tokio::test]
async fn newer_version_beside_it_is_passed_over() {
    let keys = siblings("org-a", 3);
    let cluster = Cluster::new()
        .keys(keys[..2].to_vec())
        .spare(keys[2..].to_vec())
        .redis()
        .replicas(2)
        .server("admin_token", &format!("{TOKEN:?}"));
    let mut cluster = cluster.start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    codex.turn("first").await.served();
    let (name, bound) = cluster.redis().binding().await;
    let own = cluster.upstream().recorded(1).await[0].key.clone();

    // Unknown fields, known fields with unknown values, and known ones with more words.
    let load = format!("{LATER} nonsense more=words");
    for words in [
        ["HSET", "warmkey:board", "x:new", "other"],
        ["HSET", "warmkey:board", "n:new", "no stamp"],
        ["HSET", "warmkey:board", "n:zkunknown", "1 0 strange"],
        ["HSET", "warmkey:board", "r:newer", &load],
        ["HSET", "warmkey:board", "r:odd", "no expiry"],
        ["HSET", "warmkey:board", "odd", ""],
        ["HSET", "warmkey:generations", "x:new", "other"],
        ["HSET", "warmkey:generations", "s:new", "no ordinal"],
        ["HSET", "warmkey:generations", "r:odd", "no expiry"],
        ["HSET", "warmkey:generations", "odd", ""],
    ] {
        let _: u64 = cluster.redis().ask(&words).await;
    }
    for message in ["v2 of another version", "", "v2=7 \u{0} odd"] {
        eventually(SOON, "both replicas listen", async || {
            let heard: u64 = cluster.redis().ask(&["PUBLISH", "warmkey:moved", message]).await;
            (heard == 2).then_some(())
        })
        .await;
    }
    let newer = format!("{bound} v2=7");
    cluster.redis().run(&["SET", &name, &newer, "KEEPTTL"]).await;
    cluster.redis().run(&["RPUSH", &format!("{name}.trail"), "1 move removed a b and more"]).await;

    // Operators' commands count, and a third replica's set is known.
    cluster.replicas[0].command("disable", &own).await;
    cluster.all_have(&own, "disabled").await;
    cluster.replicas[1].command("enable", &own).await;
    cluster.all_have(&own, "ready").await;
    // A session stays on its key, and a newer version's words stay with it.
    for number in [1, 0, 1] {
        codex.moves_to(cluster.replicas[number].address());
        codex.turn("on").await.served();
    }
    let turns = cluster.turns().await;
    assert!(turns.iter().all(|turn| turn.key == own), "{turns:?}");
    assert!(cluster.redis().binding().await.1.ends_with(" v2=7"), "it stays as it was");
    let id = name.strip_prefix("warmkey:").expect("a binding has the prefix");
    let page = cluster.replica().session(id).await;
    assert_eq!(page["trail"][0]["decision"], "move", "{page}");
    // A new key takes sessions.
    cluster.change(|cluster| cluster.keys(keys));
    for number in [0, 1] {
        cluster.reload(number).await;
    }
    for replica in &cluster.replicas {
        replica.shows("warmkey_keys_waiting", 0.0).await;
    }
    // What it does not know is still there.
    for (hash, field) in [("board", "x:new"), ("board", "n:new"), ("generations", "x:new")] {
        let there: u64 = cluster.redis().ask(&["HEXISTS", &format!("warmkey:{hash}"), field]).await;
        assert_eq!(there, 1, "{hash} {field}");
    }
    for replica in &cluster.replicas {
        let faults = r#"warmkey_store_failures_total{reason="other"}"#;
        assert_eq!(replica.metrics().await.get(faults), 0.0);
    }
}
