//! Tests 429 answers: limits for a moment, for a long time, and for good.

use std::time::{Duration, Instant};

use super::{pool, three};
use crate::world::cluster::{ALICE, Cluster};
use crate::world::codex::Codex;
use crate::world::sessions::{
    all_know, attempts, begin, begin_on, decided, first_keys, go_on, last_turn, path,
};
use crate::world::simulator::{Fault, Key, path_of, siblings};
use crate::world::waiting::Budget;

/// C4: a turn waits out a short limit in place.
#[tokio::test]
async fn key_that_is_limited_for_a_moment_is_waited_for() {
    let cluster = three().keys(pool()).start().await;
    for fault in [
        Fault::limited(1),
        Fault::limited_until(2),
        Fault::limited_in_silence().header("retry-after-ms", "900"),
    ] {
        let (mut codex, _) = begin_on(&cluster, "org-a").await;
        let (before, began) = (cluster.turns().await.len(), Instant::now());
        cluster.upstream().fails_with(fault.session(&codex.session).times(1)).await;
        codex.turn("waits").await.served();
        assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
        let tried = path(&cluster, &codex).await;
        assert_eq!(tried.len(), 1, "{tried:?}");
        assert_eq!(
            attempts(&cluster, &codex, before).await,
            [(tried[0].clone(), 429), (tried[0].clone(), 200)]
        );
    }
    assert!(decided(&cluster, "wait", "limited").await >= 3.0);
    assert_eq!(
        decided(&cluster, "spill", "limited").await + decided(&cluster, "move", "limited").await,
        0.0
    );
}

/// A limit keeps coming, each time "for a moment". Another project serves the turns. Without one,
/// the key is asked less often.
#[tokio::test]
async fn moment_that_does_not_end_is_a_limit() {
    let moment = || Fault::limited_in_silence().header("retry-after-ms", "100");
    let cluster = three().keys(pool()).start().await;
    let (mut codex, turn) = begin_on(&cluster, "org-a").await;
    let project =
        if ["org-a-1", "org-a-2"].contains(&turn.key.as_str()) { "org-a-main" } else { "side" };
    let before = cluster.turns().await.len();
    cluster.upstream().fails_with(moment().project(project)).await;
    codex.turn("is served beside").await.served();
    let beside = attempts(&cluster, &codex, before).await;
    assert_eq!(
        (beside.len(), &beside[..2]),
        (3, &[(turn.key.clone(), 429), (turn.key.clone(), 429)][..]),
        "{beside:?}"
    );
    assert!(beside[2].0.starts_with("org-a"), "{beside:?}");

    let cluster = three().keys(siblings("org-a", 1)).start().await;
    let (mut codex, _) = begin_on(&cluster, "org-a").await;
    let (before, began) = (cluster.turns().await.len(), Instant::now());
    cluster.upstream().fails_with(moment().times(2)).await;
    codex.turn("is waited for").await.served();
    assert_eq!(attempts(&cluster, &codex, before).await.len(), 3);
    assert!(began.elapsed() >= Duration::from_millis(1_100), "{:?}", began.elapsed());
}

/// C5: during a longer limit, another project of the organization serves. It is always the same
/// one, and the binding stays.
#[tokio::test]
async fn longer_limit_is_spilled_and_comes_to_its_end() {
    let cluster = three().keys(pool()).start().await;
    let (mut codex, turn) = begin_on(&cluster, "org-a").await;
    cluster.upstream().fails_with(Fault::limited(7).session(&codex.session).times(1)).await;
    let (began, budget) = (Instant::now(), Budget::begin(Duration::from_secs(5)));
    go_on(&cluster, &mut codex, 1).await;
    all_know(&cluster, &turn.key, "cooling").await;
    go_on(&cluster, &mut codex, 3).await;
    let spilled = path(&cluster, &codex).await;
    assert_eq!((spilled.len(), &spilled[0]), (2, &turn.key), "{spilled:?}");
    let sibling = last_turn(&cluster, &codex).await;
    assert_eq!(sibling.organization, "org-a");
    let is_main = |key: &str| ["org-a-1", "org-a-2"].contains(&key);
    assert_ne!(is_main(&sibling.key), is_main(&turn.key), "of the other project");
    budget.holds("turns that do not wait");
    // All replicas know the limit that one replica has met.
    assert_eq!(cluster.turns().await.iter().filter(|turn| turn.status == 429).count(), 1);
    // When the limit is over, the session's own key serves again.
    tokio::time::sleep_until((began + Duration::from_millis(7_300)).into()).await;
    go_on(&cluster, &mut codex, 3).await;
    assert_eq!(
        path(&cluster, &codex).await,
        [turn.key.clone(), spilled[1].clone(), turn.key],
        "the binding was left alone"
    );
}

/// C5: without another project, an unsealed session moves to another organization. The client of a
/// sealed one learns when to retry.
#[tokio::test]
async fn sealed_session_that_cannot_leave_is_told_when_to_come_again() {
    let cluster = three().keys([siblings("org-a", 2), siblings("org-b", 2)].concat()).start().await;
    let (mut sealed, turn) = begin_on(&cluster, "org-a").await;
    cluster.upstream().fails_with(Fault::limited(3_000).organization("org-a")).await;
    let before = cluster.turns().await.len();
    for number in 0..3 {
        sealed.moves_to(cluster.replicas[number].address());
        let ended = sealed.turn("nowhere to go").await;
        assert_eq!(
            (ended.answer.status, ended.answer.code().as_str()),
            (429, "rate_limit_exceeded")
        );
        all_know(&cluster, &turn.key, "cooling").await;
        let wait = ended.answer.retry_after();
        assert!((2_990..=3_000).contains(&wait), "{wait}");
        let message =
            ended.answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
        assert!(message.ends_with(&format!("Please try again in {wait}s.")), "{message}");
    }
    assert_eq!(
        attempts(&cluster, &sealed, before).await,
        [(turn.key, 429)],
        "the upstream is not asked again"
    );
    for number in 0..6 {
        let mut new = Codex::new(cluster.replicas[number % 3].address(), ALICE);
        new.turn("first").await.served();
        assert_eq!(last_turn(&cluster, &new).await.organization, "org-b");
    }
    assert_eq!(cluster.turns().await.iter().filter(|turn| turn.status == 429).count(), 1);
}

/// Other models of the same project are not limited.
#[tokio::test]
async fn limit_is_of_one_model() {
    let cluster = three().keys(siblings("org-a", 1)).start().await;
    cluster.upstream().fails_with(Fault::limited(3_000).model("gpt-5.4")).await;
    let limited = Codex::new(cluster.address(), ALICE).turn("first").await;
    assert_eq!(limited.answer.status, 429);
    for number in 0..3 {
        Codex::new(cluster.replicas[number].address(), ALICE)
            .model("gpt-5.5")
            .turn("first")
            .await
            .served();
    }
}

/// A limit without a time, or with a meaningless one, lasts for a usual time. The client receives a
/// whole number of seconds.
#[tokio::test]
async fn nonsense_is_clamped() {
    for fault in [
        Fault::limited_in_silence(),
        Fault::limited_in_words("soon"),
        Fault::limited_in_words("-5"),
        Fault::limited_in_words("99999999999"),
        Fault::limited_in_words("1e400"),
        Fault::limited_in_words("0"),
        Fault::limited_in_silence().header("retry-after-ms", "0"),
    ] {
        let cluster = three().replicas(1).keys(siblings("org-a", 1)).start().await;
        cluster.upstream().fails_with(fault.clone()).await;
        let ended = Codex::new(cluster.address(), ALICE).turn("first").await;
        assert_eq!(ended.answer.status, 429, "{fault:?}");
        assert!(
            (1..=3_600).contains(&ended.answer.retry_after()),
            "{fault:?}: {}",
            ended.answer.retry_after()
        );
        assert!(
            cluster.turns().await.len() <= 3,
            "{fault:?}: the key was not asked again and again"
        );
    }
}

/// If traffic grows too fast, or the request is too large, the key is not limited, and no other key
/// is asked.
#[tokio::test]
async fn fault_of_the_request_cools_no_key() {
    let cluster = three().keys(pool()).start().await;
    let (mut codex, turn) = begin_on(&cluster, "org-a").await;
    let before = cluster.turns().await.len();
    cluster.upstream().fails_with(Fault::too_steep().session(&codex.session).times(1)).await;
    let ended = codex.turn("too steep").await;
    assert_eq!((ended.answer.status, ended.answer.code().as_str()), (429, "slow_down"));
    assert!(ended.answer.retry_after() >= 1);
    assert_eq!(decided(&cluster, "refuse", "too_steep").await, 1.0);
    cluster
        .upstream()
        .fails_with(
            Fault::limited_in_silence()
                .message("Request too large for gpt-5.4 on tokens per min (TPM): Limit 30000, Requested 40000.")
                .session(&codex.session)
                .times(1),
        )
        .await;
    let ended = codex.turn("too large").await;
    assert_eq!((ended.answer.status, ended.answer.code().as_str()), (429, "rate_limit_exceeded"));
    assert!(
        ended.answer.text().contains("Request too large"),
        "the refusal passes: {}",
        ended.answer.text()
    );
    assert_eq!(
        attempts(&cluster, &codex, before).await,
        [(turn.key.clone(), 429), (turn.key.clone(), 429)]
    );
    go_on(&cluster, &mut codex, 3).await;
    assert_eq!(path(&cluster, &codex).await, [turn.key]);
}

/// C6: while a project has spent its budget, another project serves its sealed sessions. Later they
/// come back.
#[tokio::test]
async fn exhausted_project_is_served_by_its_sibling() {
    let cluster = three().keys(pool()).start().await;
    let (mut codex, turn) = begin_on(&cluster, "org-a").await;
    let project =
        if ["org-a-1", "org-a-2"].contains(&turn.key.as_str()) { "org-a-main" } else { "side" };
    cluster.upstream().fails_with(Fault::overspent().project(project)).await;
    go_on(&cluster, &mut codex, 1).await;
    all_know(&cluster, &turn.key, "disabled").await;
    go_on(&cluster, &mut codex, 3).await;
    let path = path(&cluster, &codex).await;
    assert_eq!((path.len(), &path[0]), (2, &turn.key), "{path:?}");
    assert_eq!(last_turn(&cluster, &codex).await.organization, "org-a");
    assert_eq!(
        cluster.turns().await.iter().filter(|turn| turn.status == 429).count(),
        1,
        "one refusal speaks for all"
    );
}

/// The limits in answers decide where new sessions begin, and move no other session.
#[tokio::test]
async fn new_sessions_prefer_keys_with_headroom() {
    let keys = [
        Key::new("org-a-1", "org-a").limited(400, 40_000_000),
        Key::new("org-a-2", "org-a").of_project("side"),
    ];
    let cluster = Cluster::new().replicas(1).keys(keys.into()).start().await;
    let mut all = begin(&cluster, 30).await;
    let first_keys = first_keys(&cluster, &all).await;
    let count = |first_keys: &[String]| {
        first_keys.iter().filter(|first_key| *first_key == "org-a-1").count()
    };
    assert!((4..=26).contains(&count(&first_keys)), "both take sessions at first: {first_keys:?}");
    let there: Vec<_> = (0..all.len()).filter(|number| first_keys[*number] == "org-a-1").collect();
    // Turns are played until little more than needed is left: a tenth, and a turn for each session.
    let need = there.len() + 3;
    for number in there.into_iter().cycle() {
        let ended = all[number].turn("uses it up").await.served();
        let left = ended
            .answer
            .header("x-ratelimit-remaining-requests")
            .expect("the upstream says what is left");
        if left.parse::<usize>().expect("a number") < need {
            break;
        }
    }
    let scarce = cluster.turns().await.len();
    for codex in &mut all {
        codex.turn("goes on").await.served();
    }
    let new = begin(&cluster, 20).await;
    let turns = cluster.turns().await;
    let fresh: Vec<_> = new.iter().map(|codex| path_of(&turns, &codex.session).remove(0)).collect();
    assert_eq!(count(&fresh), 0, "{fresh:?}");
    for (codex, first_key) in all.iter().zip(&first_keys) {
        assert_eq!(
            path_of(&turns, &codex.session),
            std::slice::from_ref(first_key),
            "bound sessions stay"
        );
        assert_eq!(path_of(&turns[scarce..], &codex.session).len(), 1, "and has gone on");
    }
}
