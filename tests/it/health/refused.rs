//! Tests 401, 403 and 404 answers: a key that has lost a right, or never had it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{pool, three};
use crate::world::cluster::{ALICE, BOB, Running};
use crate::world::codex::Codex;
use crate::world::sessions::{
    all_know, attempts, begin, begin_on, first_keys, go_on, last_turn, path,
};
use crate::world::simulator::{Fault, path_of, siblings};
use crate::world::waiting::{SOON, eventually, within};
use crate::world::wire::{Request, ask};

/// C8: one refusal and one probe, and within a second no replica uses the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_that_died_on_one_replica_is_unused_on_all() {
    let cluster = three().keys(pool()).start().await;
    let mut all = begin(&cluster, 24).await;
    let mut first_keys = first_keys(&cluster, &all).await;
    let count = |key: &String| first_keys.iter().filter(|own| *own == key).count();
    let dead = first_keys
        .iter()
        .filter(|own| own.starts_with("org-a"))
        .max_by_key(|own| count(own))
        .cloned();
    let dead = dead.expect("some begin in org-a");
    let at = first_keys.iter().position(|own| *own == dead).expect("one is on it");
    let (mut first, _) = (all.remove(at), first_keys.remove(at));
    assert!(first_keys.contains(&dead), "others are on it: {first_keys:?}");
    cluster.upstream().revoke(&dead).await;
    let ended = first.turn("meets it").await.served();
    assert!(!ended.answer.text().contains("Incorrect API key"));
    within(Duration::from_secs(1), "all replicas know", all_know(&cluster, &dead, "disabled"))
        .await;
    let before = cluster.turns().await.len();
    for codex in &mut all {
        go_on(&cluster, codex, 2).await;
    }
    let turns = cluster.turns().await;
    assert!(turns[before..].iter().all(|turn| turn.key != dead), "no turn tried the key again");
    for (codex, first_key) in all.iter().zip(&first_keys) {
        let path = path_of(&turns, &codex.session);
        match *first_key == dead {
            true => assert!(
                path.len() == 2 && path[1].starts_with("org-a"),
                "one move, at its first key: {path:?}"
            ),
            false => assert_eq!(path.len(), 1, "{path:?}"),
        }
    }
    let probes = cluster.upstream().probes().await;
    assert!(
        probes.iter().any(|probe| probe.key == dead && probe.status == 401),
        "the key was probed: {probes:?}"
    );
}

/// B7: a key that is accepted again takes new sessions, and no session that has left comes back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b7_no_fail_back() {
    let cluster = three().keys(pool()).start().await;
    let mut all = begin(&cluster, 24).await;
    let first_keys = first_keys(&cluster, &all).await;
    let dead = first_keys[0].clone();
    cluster.upstream().revoke(&dead).await;
    for codex in &mut all {
        go_on(&cluster, codex, 1).await;
    }
    all_know(&cluster, &dead, "disabled").await;
    cluster.upstream().heal().await;
    cluster.replicas[1].command("probe", &dead).await;
    all_know(&cluster, &dead, "ready").await;
    let recovered = cluster.turns().await.len();
    for codex in &mut all {
        go_on(&cluster, codex, 3).await;
    }
    begin(&cluster, 40).await;
    let turns = cluster.turns().await;
    let (before, after) = turns.split_at(recovered);
    for (codex, first_key) in all.iter().zip(&first_keys) {
        let moved_to = path_of(before, &codex.session).pop();
        assert_eq!(
            moved_to.as_ref() == Some(first_key),
            *first_key != dead,
            "{first_key} is dead, or not: {moved_to:?}"
        );
        assert_eq!(
            path_of(after, &codex.session).first(),
            moved_to.as_ref(),
            "the session stays where it went"
        );
        assert_eq!(path_of(after, &codex.session).len(), 1);
    }
    assert!(after.iter().any(|turn| turn.key == dead), "new sessions come to it");
}

/// A refusal that a probe does not confirm changes nothing.
#[tokio::test]
async fn key_that_is_accepted_when_asked_again_keeps_its_sessions() {
    let cluster = three().keys(pool()).start().await;
    let (mut codex, turn) = begin_on(&cluster, "org-a").await;
    cluster.upstream().fails_with(Fault::revoked().session(&codex.session).times(1)).await;
    assert_eq!(codex.turn("is refused").await.answer.status, 403, "the refusal is the request's");
    go_on(&cluster, &mut codex, 4).await;
    assert_eq!(path(&cluster, &codex).await, [turn.key]);
}

/// B12: the sessions of a dead key spread over its organization, and none leaves it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn b12_spread() {
    let keys = [siblings("org-a", 4), siblings("org-b", 2)].concat();
    let cluster = three().keys(keys).start().await;
    let mut all = begin(&cluster, 120).await;
    let turns = cluster.turns().await;
    cluster.upstream().revoke("org-a-1").await;
    all.retain(|codex| path_of(&turns, &codex.session) == ["org-a-1"]);
    assert!(all.len() >= 10, "{}", all.len());
    for codex in &mut all {
        codex.turn("moves").await.served();
    }
    let turns = cluster.turns().await;
    for survivor in ["org-a-2", "org-a-3", "org-a-4"] {
        let count = all
            .iter()
            .filter(|codex| path_of(&turns, &codex.session).pop().as_deref() == Some(survivor))
            .count();
        assert!(count > 0, "{survivor} takes some of {}", all.len());
    }
    assert!(
        all.iter().all(|codex| path_of(&turns, &codex.session)
            .iter()
            .all(|key| key.starts_with("org-a")))
    );
}

/// During an incident, other keys could serve. Sessions that met the refusal before the incident
/// was known may have moved, but no session moves later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn incident_moves_no_session_that_could_move() {
    let cluster = three().keys([siblings("org-a", 2), siblings("org-b", 3)].concat()).start().await;
    let mut all = begin(&cluster, 30).await;
    let refused = ["org-a-1", "org-b-1", "org-b-2"];
    let first_keys = loop {
        let found = first_keys(&cluster, &all).await;
        if refused.iter().all(|key| found.iter().any(|own| own == key)) {
            break found;
        }
        assert!(all.len() < 300, "each key takes a session in a hundred: {found:?}");
        all.extend(begin(&cluster, 3).await);
    };
    for key in refused {
        cluster.upstream().revoke(key).await;
    }
    for key in refused {
        let first = first_keys.iter().position(|own| own == key).expect("each key has a session");
        all[first].turn("meets it").await.served();
        all_know(&cluster, key, "disabled").await;
    }
    for codex in &mut all {
        go_on(&cluster, codex, 1).await;
    }
    cluster.upstream().heal().await;
    for key in refused {
        for replica in &cluster.replicas {
            replica
                .shows(&format!("warmkey_key_state{{key=\"{key}\",state=\"disabled\"}}"), 0.0)
                .await;
        }
    }
    for codex in &mut all {
        go_on(&cluster, codex, 1).await;
    }
    let turns = cluster.turns().await;
    let ends = all.iter().map(|codex| path_of(&turns, &codex.session).pop());
    let moved = ends.zip(&first_keys).filter(|(end, own)| end.as_ref() != Some(*own)).count();
    assert!(moved <= refused.len(), "{moved} of {} have moved", all.len());
    let concerned = first_keys.iter().filter(|own| refused.contains(&own.as_str())).count();
    assert!(concerned > 2 * refused.len(), "too few to show anything: {concerned}");
}

/// If most keys are refused at once, the fault is the upstream's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn incident_moves_no_session() {
    let cluster = three().keys([siblings("org-a", 2), siblings("org-b", 1)].concat()).start().await;
    let mut all = begin(&cluster, 12).await;
    let before = cluster.turns().await;
    cluster.upstream().fails_with(Fault::revoked()).await;
    for codex in &mut all {
        let ended = codex.turn("incident").await;
        if ended.answer.status != 200 {
            assert_eq!(
                (ended.answer.status, ended.answer.code().as_str()),
                (503, "no_key_available"),
                "{}",
                ended.answer.text()
            );
            assert!(ended.answer.retry_after() >= 1);
        }
    }
    cluster.upstream().heal().await;
    for key in ["org-a-1", "org-a-2", "org-b-1"] {
        cluster.replicas[0]
            .shows(&format!("warmkey_key_state{{key=\"{key}\",state=\"disabled\"}}"), 0.0)
            .await;
    }
    for codex in &mut all {
        eventually(SOON, "served again", async || {
            (codex.turn("over").await.answer.status == 200).then_some(())
        })
        .await;
    }
    let turns = cluster.turns().await;
    let moved = all
        .iter()
        .filter(|codex| path_of(&turns, &codex.session) != path_of(&before, &codex.session))
        .count();
    // The first sessions that were refused moved before the incident was known.
    assert!(moved <= 6, "{moved} of 12 have moved");
}

/// C9: the client receives the refusal. Only when a second client reports it, too, does it count
/// for the project.
#[tokio::test]
async fn missing_right_of_a_project_is_believed_of_two_clients() {
    let cluster = three().keys(pool()).start().await;
    let (mut codex, turn) = begin_on(&cluster, "org-a").await;
    for fault in [Fault::withdrawn(), Fault::forbidden()] {
        let before = cluster.turns().await.len();
        cluster.upstream().fails_with(fault.session(&codex.session).times(1)).await;
        let ended = codex.turn("not for you").await;
        assert!(matches!(ended.answer.status, 403 | 404), "{}", ended.answer.status);
        assert_eq!(attempts(&cluster, &codex, before).await.len(), 1, "no other key is asked");
    }
    go_on(&cluster, &mut codex, 3).await;
    assert_eq!(
        path(&cluster, &codex).await,
        std::slice::from_ref(&turn.key),
        "one client's refusal changes nothing"
    );
    let project =
        if ["org-a-1", "org-a-2"].contains(&turn.key.as_str()) { "org-a-main" } else { "side" };
    cluster.upstream().fails_with(Fault::withdrawn().project(project).model("gpt-6")).await;
    let mut refused = BTreeSet::new();
    for number in 0..40 {
        let client = if number % 2 == 0 { ALICE } else { BOB };
        let mut one = Codex::new(cluster.address(), client).model("gpt-6");
        if one.turn("first").await.answer.status == 404 {
            assert!(refused.len() < 2, "two clients were refused: now it is known");
            refused.insert(client);
        }
    }
    assert_eq!(refused.len(), 2);
    // If a session that is bound there asks for the model, a sibling serves the turn, and the
    // session keeps its binding.
    codex.moves_to(cluster.address());
    let mut other = codex.clone().model("gpt-6");
    other.turn("the other model").await.served();
    assert_eq!(last_turn(&cluster, &other).await.organization, "org-a");
    go_on(&cluster, &mut codex, 1).await;
    assert_eq!(last_turn(&cluster, &codex).await.key, turn.key);
}

/// The organization is exhausted for good, and all replicas know it. A sealed session stops at
/// once, with advice for its user.
#[tokio::test]
async fn exhausted_organization_is_asked_once() {
    let cluster = three().keys([siblings("org-a", 2), siblings("org-b", 1)].concat()).start().await;
    let (mut codex, _) = begin_on(&cluster, "org-a").await;
    cluster.upstream().exhaust("org-a").await;
    let before = cluster.turns().await.len();
    for number in 0..3 {
        codex.moves_to(cluster.replicas[number].address());
        let ended = codex.turn("no credit").await;
        assert_eq!(
            (ended.answer.status, ended.answer.code().as_str()),
            (429, "insufficient_quota")
        );
        assert_eq!(
            (ended.answer.header("x-should-retry"), ended.answer.header("retry-after")),
            (Some("false"), Some("600"))
        );
        assert!(ended.answer.text().contains("Add credit"), "{}", ended.answer.text());
        all_know(&cluster, "org-a-1", "disabled").await;
    }
    assert_eq!(attempts(&cluster, &codex, before).await.len(), 1);
}

/// Returns a session that is bound in this organization, but has no answer from it, so that nothing
/// seals it.
async fn one_that_is_not_sealed(cluster: &Running, organization: &str) -> Codex {
    for _ in 0..40 {
        let mut codex = Codex::new(cluster.address(), ALICE);
        cluster.upstream().fails_with(Fault::down(422).session(&codex.session).times(1)).await;
        assert_eq!(codex.turn("first").await.answer.status, 422);
        if last_turn(cluster, &codex).await.organization == organization {
            return codex;
        }
    }
    panic!("some session begins in {organization}");
}

/// A 401 about an organization counts for all its keys on all replicas. Unsealed sessions leave.
/// Clients of sealed ones learn when to retry.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn organization_that_is_refused_is_unused_until_it_is_accepted() {
    let cluster = three().keys([siblings("org-a", 2), siblings("org-b", 3)].concat()).start().await;
    let (mut sealed, turn) = begin_on(&cluster, "org-a").await;
    let mut unsealed = one_that_is_not_sealed(&cluster, "org-a").await;
    cluster.upstream().fails_with(Fault::deactivated().organization("org-a")).await;
    let refusal = async |sealed: &mut Codex| {
        let ended = sealed.turn("nowhere to go").await;
        assert_eq!(
            (ended.answer.status, ended.answer.code().as_str()),
            (503, "no_key_available"),
            "{}",
            ended.answer.text()
        );
        assert!(
            ended.answer.retry_after() >= 1 && !ended.answer.text().contains("deactivated"),
            "{}",
            ended.answer.text()
        );
    };
    refusal(&mut sealed).await;
    for key in ["org-a-1", "org-a-2"] {
        all_know(&cluster, key, "disabled").await;
    }
    let known = cluster.turns().await.len();
    for replica in &cluster.replicas {
        sealed.moves_to(replica.address());
        refusal(&mut sealed).await;
        unsealed.moves_to(replica.address());
        unsealed.turn("elsewhere").await.served();
    }
    begin(&cluster, 12).await;
    let turns = cluster.turns().await;
    assert!(
        turns[known..].iter().all(|turn| turn.organization == "org-b"),
        "no turn tried the key again"
    );
    let moved_to = path_of(&turns, &unsealed.session);
    assert_eq!(moved_to.len(), 1, "one move: {moved_to:?}");
    // The organization is accepted again.
    cluster.upstream().heal().await;
    cluster.replicas[1].command("probe", "org:org-a").await;
    for key in ["org-a-1", "org-a-2"] {
        all_know(&cluster, key, "ready").await;
    }
    go_on(&cluster, &mut sealed, 3).await;
    assert_eq!(path(&cluster, &sealed).await, [turn.key], "as if nothing had been");
    go_on(&cluster, &mut unsealed, 3).await;
    assert_eq!(path(&cluster, &unsealed).await, moved_to, "and sessions that have left stay away");
}

/// A key that is in doubt stays out of use until its upstream accepts it. A page in front of the
/// upstream checks no credential.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_in_doubt_is_not_accepted_by_a_page() {
    let cluster = three().keys([siblings("org-a", 2), siblings("org-b", 1)].concat()).start().await;
    let (codex, turn) = begin_on(&cluster, "org-a").await;
    let upstream = cluster.upstream();
    upstream.revoke(&turn.key).await;
    upstream.fails_with(Fault::page(403).key(&turn.key).at_probes()).await;
    // Two clients receive a 401 that no probe decides.
    let mut alice = codex;
    alice.turn("in doubt").await;
    let bob = Request::turn(BOB, r#"{"model":"gpt-5.4","input":"x"}"#);
    eventually(SOON, "the key is in doubt", async || {
        for number in 0..6 {
            let request = bob.clone().header("session-id", &format!("bob-{number}"));
            ask(cluster.address(), &request).await;
        }
        (cluster.replica().key(&turn.key).await["state"] == "disabled").then_some(())
    })
    .await;
    let probes = async || {
        let probes = upstream.probes().await;
        probes.iter().filter(|probe| probe.key == turn.key && probe.status == 403).count()
    };
    let before = probes().await;
    eventually(SOON, "the key is asked about again", async || {
        let state = cluster.replica().key(&turn.key).await["state"].clone();
        assert_eq!(state, "disabled", "a page decides nothing");
        (probes().await > before + 3).then_some(())
    })
    .await;
    upstream.heal().await;
    eventually(SOON, "the key takes sessions again", async || {
        let state = cluster.replica().key(&turn.key).await["state"].clone();
        (state != "disabled").then_some(())
    })
    .await;
}
