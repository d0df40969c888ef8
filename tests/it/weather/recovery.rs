//! Tests recovery: one replica has seen or done something without the others, and then all agree
//! again.

use super::*;
use crate::world::cable::{Cable, Weather};
use crate::world::process::Folder;
use crate::world::redis::Redis;
use crate::world::simulator::path_of;

const UP: &str = "warmkey_store_up";

/// Two replicas. The first one reaches Redis by a cable that a test can silence.
async fn divided(folder: &Folder) -> (Redis, Cable, Running) {
    let redis = Redis::start(folder.path()).await;
    let cable = Cable::to(redis.address()).await;
    let urls = [cable.url(), redis.url()];
    let cluster = Cluster::new()
        .keys(siblings("org-a", 5))
        .replicas(2)
        .stores_at(&urls)
        .store("")
        .start()
        .await;
    for replica in &cluster.replicas {
        replica.shows(UP, 1.0).await;
    }
    (redis, cable, cluster)
}

/// Plays one turn at replica `number`. Returns the key that served it.
async fn by(cluster: &Running, number: usize, codex: &mut Codex) -> String {
    codex.moves_to(cluster.replicas[number].address());
    codex.turn("one more").await.served();
    path_of(&cluster.turns().await, &codex.session).pop().expect("the session has a key")
}

/// Silences the cable, and waits until the replica acts without the store.
async fn away(cluster: &Running, cable: &Cable) {
    cable.set(Weather::Silent);
    let mut nobody = Codex::new(cluster.replicas[0].address(), ALICE);
    eventually(SOON, "the replica has noticed", async || {
        nobody.turn("a turn without the store").await.served();
        let metrics = cluster.replicas[0].metrics().await;
        (metrics.get(UP).abs() < f64::EPSILON).then_some(())
    })
    .await;
}

async fn back(cluster: &Running, cable: &Cable) {
    cable.set(Weather::Fair);
    cluster.replicas[0].shows(UP, 1.0).await;
}

fn epoch(value: &str) -> u32 {
    value
        .split(' ')
        .nth(1)
        .and_then(|epoch| epoch.parse().ok())
        .unwrap_or_else(|| panic!("an epoch in {value:?}"))
}

/// B4: a replica that has seen a session's second key uses it further, whatever the store says
/// later, and tells the store.
#[tokio::test]
async fn b4_monotone_epoch() {
    let folder = Folder::new();
    let (redis, _cable, cluster) = divided(&folder).await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    let first = by(&cluster, 0, &mut codex).await;
    let (name, old) = redis.binding().await;
    cluster.upstream().revoke(&first).await;
    let second = by(&cluster, 0, &mut codex).await;
    cluster.upstream().heal().await;
    assert_ne!(first, second);
    // The other replica knows the move only by announcement. By its own knowledge, the first key
    // would serve.
    assert_eq!(by(&cluster, 1, &mut codex).await, second);
    let (_, new) = redis.binding().await;
    assert_eq!((epoch(&old), epoch(&new)), (1, 2));
    for (what, words) in
        [("an older one", &["SET", &name, &old, "PX", "600000"][..]), ("none", &["DEL", &name])]
    {
        redis.run(words).await;
        assert_eq!(by(&cluster, 1, &mut codex).await, second, "the store has {what}");
        let is_told = async || {
            let value: Option<String> = redis.ask(&["GET", &name]).await;
            value.filter(|value| epoch(value) >= 2)
        };
        eventually(SOON, "the second epoch in the store again", is_told).await;
        assert_eq!(by(&cluster, 0, &mut codex).await, second, "the store had {what}");
    }
}

/// B11: a binding made without the store is written if the store has nothing, or a lower epoch.
/// Otherwise the stored binding wins.
#[tokio::test]
async fn b11_recovery() {
    let folder = Folder::new();
    let (redis, cable, cluster) = divided(&folder).await;
    let new_session = || Codex::new(cluster.address(), ALICE);
    let mut moved_here = new_session();
    let first_key = by(&cluster, 0, &mut moved_here).await;
    // A second session has the same key, so that one revocation moves both.
    let mut moved_there = found("a second session on its key", async || {
        let mut codex = new_session();
        (by(&cluster, 0, &mut codex).await == first_key).then_some(codex)
    })
    .await;
    for codex in [&mut moved_here, &mut moved_there] {
        assert_eq!(by(&cluster, 1, codex).await, first_key);
    }
    away(&cluster, &cable).await;

    // This session moves without the store.
    cluster.upstream().revoke(&first_key).await;
    let here = by(&cluster, 0, &mut moved_here).await;
    // This session moves once without the store, and twice with it.
    assert_ne!(by(&cluster, 0, &mut moved_there).await, first_key);
    let once = by(&cluster, 1, &mut moved_there).await;
    cluster.upstream().revoke(&once).await;
    let there = by(&cluster, 1, &mut moved_there).await;
    assert!(there != once && once != first_key && here != first_key);
    cluster.upstream().heal().await;
    // This session begins without the store, on a key without any report.
    let mut known = redis.bindings().await.len();
    let (mut begun_here, begun) = found("a session on another key", async || {
        known += 1;
        let mut codex = new_session();
        let key = by(&cluster, 0, &mut codex).await;
        (![&first_key, &once].contains(&&key)).then_some((codex, key))
    })
    .await;

    back(&cluster, &cable).await;
    // The keys work again, so only the bindings decide now.
    for key in [&first_key, &once] {
        cluster.replicas[0].command("probe", key).await;
        for replica in &cluster.replicas {
            replica
                .shows(&format!("warmkey_key_state{{key=\"{key}\",state=\"disabled\"}}"), 0.0)
                .await;
        }
    }
    eventually(SOON, "what began is stored", async || {
        (redis.bindings().await.len() >= known).then_some(())
    })
    .await;
    assert_eq!(by(&cluster, 1, &mut begun_here).await, begun, "where nothing was stored");
    let merged = async || {
        let mut epochs = Vec::new();
        for name in redis.bindings().await {
            epochs.push(epoch(&redis.ask::<String>(&["GET", &name]).await));
        }
        epochs.sort_unstable();
        epochs.ends_with(&[1, 2, 3]).then_some(())
    };
    eventually(SOON, "one session in its second epoch and one in its third", merged).await;
    assert_eq!(by(&cluster, 1, &mut moved_here).await, here, "where a lower epoch was stored");
    for number in [0, 1, 0] {
        assert_eq!(
            by(&cluster, number, &mut moved_there).await,
            there,
            "where a higher epoch was stored"
        );
    }
}

/// B-20: a key dies, and the replica without a store learns of it by one failed attempt of its own.
#[tokio::test]
async fn replica_on_its_own_learns_that_a_key_is_dead() {
    let folder = Folder::new();
    let (_redis, cable, cluster) = divided(&folder).await;
    let mut sessions: Vec<Codex> = (0..20).map(|_| Codex::new(cluster.address(), ALICE)).collect();
    for number in [0, 1] {
        sessions
            .iter_mut()
            .for_each(|session| session.moves_to(cluster.replicas[number].address()));
        sessions = turn_each(sessions).await;
    }
    away(&cluster, &cable).await;
    let dead = path_of(&cluster.turns().await, &sessions[0].session).remove(0);
    cluster.upstream().revoke(&dead).await;
    let before = cluster.turns().await.len();
    for codex in &mut sessions {
        let there = by(&cluster, 1, codex).await;
        assert_eq!(by(&cluster, 0, codex).await, there, "both find the same next one");
    }
    let refused =
        async || cluster.turns().await[before..].iter().filter(|turn| turn.status == 401).count();
    assert_eq!(refused().await, 2, "one failed attempt of each");
    back(&cluster, &cable).await;
    for codex in &mut sessions {
        let there = by(&cluster, 1, codex).await;
        assert_eq!(by(&cluster, 0, codex).await, there);
        assert!(
            path_of(&cluster.turns().await, &codex.session).len() <= 2,
            "each moved once at the most"
        );
    }
    assert_eq!(refused().await, 2);
}

/// B8: without the store a session stays on the key that the replica remembers, or otherwise on the
/// first key of its own order. A session that moves stays in its organization, and no turn is
/// refused.
#[tokio::test]
async fn b8_store_outage() {
    let mut cluster = Cluster::new().keys(lopsided()).replicas(3).redis().start().await;
    for replica in &cluster.replicas {
        replica.shows(UP, 1.0).await;
    }
    let mut sessions =
        turn_each((0..40).map(|_| Codex::new(cluster.address(), ALICE)).collect()).await;
    cluster.change(|cluster| cluster.keys(keys()).store(""));
    cluster.redis().run(&["FLUSHALL"]).await;
    for number in 0..3 {
        cluster.replace(number).await;
        cluster.replicas[number].says("what is bound in the store is known").await;
    }
    let mut strangers = sessions.split_off(20);
    // The first replica serves half of the sessions again, and the others learn that by
    // announcement.
    sessions = introduce(&cluster, 0, sessions).await;
    let placed = |turns: &[crate::world::simulator::Turn]| -> BTreeMap<String, (String, String)> {
        let served = turns.iter().filter(|turn| turn.is_served());
        served
            .map(|turn| {
                (
                    turn.session.clone().unwrap_or_default(),
                    (turn.key.clone(), turn.organization.clone()),
                )
            })
            .collect()
    };
    let before = placed(&cluster.turns().await);
    cluster.redis().signal("STOP").await;
    for number in 0..3 {
        sessions
            .iter_mut()
            .for_each(|session| session.moves_to(cluster.replicas[number].address()));
        sessions = turn_each(sessions).await;
        let during = placed(&cluster.turns().await);
        assert!(
            sessions.iter().all(|codex| during[&codex.session] == before[&codex.session]),
            "a remembered session stays"
        );
    }
    // No replica remembers the strangers. Both replicas still agree on their keys, and leave no
    // organization.
    let mut placements = Vec::new();
    for number in [1, 2] {
        strangers
            .iter_mut()
            .for_each(|session| session.moves_to(cluster.replicas[number].address()));
        strangers = turn_each(strangers).await;
        placements.push(placed(&cluster.turns().await));
    }
    for codex in &strangers {
        let [there, elsewhere] = [&placements[0][&codex.session], &placements[1][&codex.session]];
        assert_eq!(there, elsewhere, "one order for all replicas");
        assert_eq!(there.1, before[&codex.session].1, "the organization that can open its history");
    }
    cluster.redis().signal("CONT").await;
    for replica in &cluster.replicas {
        replica.shows(UP, 1.0).await;
    }
}

/// If the store refuses a scan, the replica scans once the store allows it. Until then it knows
/// only the announced bindings.
#[tokio::test]
async fn binding_is_read_as_soon_as_it_can_be() {
    let mut cluster =
        Cluster::new().keys(siblings("org-a", 2)).replicas(2).redis().store("").start().await;
    for replica in &cluster.replicas {
        replica.says("what is bound in the store is known").await;
    }
    cluster.redis().run(&["ACL", "SETUSER", "default", "-scan"]).await;
    cluster.replace(1).await;
    cluster.replicas[1].says("what is bound in the store is not all known here").await;
    cluster.redis().run(&["ACL", "SETUSER", "default", "+scan"]).await;
    cluster.replicas[1].says("what is bound in the store is known").await;
}
