//! Replicas of an earlier version and of this one share a store. `earlier/` holds the code of the
//! scripts as that version (commit b53a3c1) runs them, without its comments.
//!
//! Other tests check the texts that the scripts store: names in `store::name`, bindings in
//! `binding::record`, the fields of board and membership beside their scripts' tests.

use warmkey::store::MemberReport;
use warmkey::store::board::{Board, BoardReport, Note};

use super::board::{Side, said};
use super::*;
use crate::world::redis::Redis;

const BOARD: &str = include_str!("earlier/board.lua");
const MEMBERSHIP: &str = include_str!("earlier/membership.lua");
const REPLICAS: [&str; 3] = ["one", "two", "three"];
const SETS: [&str; 4] = ["first", "second", "third", "fourth"];

/// Runs an earlier script on the name `w:<name>`.
async fn run<T: ::redis::FromRedisValue>(
    redis: &Redis,
    script: &str,
    name: &str,
    args: &[String],
) -> T {
    let name = format!("w:{name}");
    let mut words = vec!["EVAL", script, "1", &name];
    words.extend(args.iter().map(String::as_str));
    redis.ask(&words).await
}

fn millis(life: Duration) -> String {
    life.as_millis().to_string()
}

/// An exchange with the board by a replica of the earlier version.
pub async fn exchange_board(redis: &Redis, report: &BoardReport<'_>) -> Board {
    let BoardReport { replica, life, load, seen, notes } = report;
    let mut args = vec![(*replica).into(), millis(*life), (*load).into(), seen.to_string()];
    for Note { name, value, life, stamp } in *notes {
        let life = millis(life.unwrap_or_default());
        args.extend([name.clone(), value.clone(), life, stamp.to_string()]);
    }
    let (now, version, told, loads): (u64, u64, Vec<String>, Vec<String>) =
        run(redis, BOARD, "board", &args).await;
    let note = |parts: &[String]| Note {
        name: parts[0].clone(),
        value: parts[1].clone(),
        life: Some(parts[2].parse().expect("milliseconds"))
            .filter(|left| *left > 0)
            .map(Duration::from_millis),
        stamp: parts[3].parse().expect("milliseconds"),
    };
    Board { now, version, notes: told.chunks(4).map(note).collect(), loads }
}

/// The lines of a script that are not comments.
fn code(script: &str) -> Vec<&str> {
    script.lines().filter(|line| !line.trim_start().starts_with("--")).collect()
}

#[test]
fn scripts_of_sessions_are_the_code_of_the_earlier_version() {
    for (name, earlier, script) in [
        (
            "extend",
            include_str!("earlier/extend.lua"),
            include_str!("../../../src/store/extend.lua"),
        ),
        ("merge", include_str!("earlier/merge.lua"), include_str!("../../../src/store/merge.lua")),
        (
            "replace",
            include_str!("earlier/replace.lua"),
            include_str!("../../../src/store/replace.lua"),
        ),
        ("trail", include_str!("earlier/trail.lua"), include_str!("../../../src/store/trail.lua")),
    ] {
        assert_eq!(code(script), code(earlier), "{name}");
    }
}

#[tokio::test]
async fn board_is_one_for_replicas_of_both_versions() {
    let real = Real::new().await;
    let model = Store::in_memory(Arc::new(Memory::new(10)), Arc::new(Metrics::new()));
    let (mut one, mut other) = (Side::new(&model), Side::new(&real.store));
    let (mut runner, mut by_earlier) = (TestRunner::default(), 0);
    let story = (said(), any::<bool>());
    for number in 0..300 {
        let (said, is_earlier) = story.new_tree(&mut runner).expect("a report").current();
        // Stamps are in milliseconds, so the clock must go on between two reports.
        tokio::time::sleep(Duration::from_millis(2)).await;
        other.earlier = is_earlier.then_some(&real.redis);
        by_earlier += u32::from(is_earlier);
        let (expected, found) = (one.says(&said).await, other.says(&said).await);
        assert_eq!(found, expected, "report {number}, earlier: {is_earlier}: {said:#?}");
    }
    assert!((50..250).contains(&by_earlier), "{by_earlier}");
    real.tasks.join(SOON).await;
}

/// An exchange of membership by one of the two versions.
async fn exchange_membership(
    real: &Real,
    is_earlier: bool,
    report: &MemberReport<'_>,
    is_early: bool,
) -> (u32, Vec<String>) {
    let MemberReport { replica, fingerprint, keys, ordinal, life } = report;
    let (ordinal, mut others) = if is_earlier {
        let args = [
            (*replica).into(),
            (*fingerprint).into(),
            (*keys).into(),
            ordinal.to_string(),
            millis(*life),
            u8::from(is_early).to_string(),
        ];
        run(&real.redis, MEMBERSHIP, "generations", &args).await
    } else {
        let (store, budget) = (&real.store, &mut real.store.budget());
        let answer = match is_early {
            true => store.exchange_membership_early(report, budget).await,
            false => store.exchange_membership(report, budget).await,
        };
        let answer = answer.expect("an answer");
        (answer.ordinal, answer.others)
    };
    others.sort();
    (ordinal, others)
}

/// Plays one history in two stores: in one by this version alone, in the other by both.
#[tokio::test]
async fn membership_is_one_for_replicas_of_both_versions() {
    let (alone, mixed) = (Real::new().await, Real::new().await);
    let report =
        (0..REPLICAS.len(), 0..SETS.len(), prop::bool::weighted(0.1), prop::bool::weighted(0.1));
    let story = (report, any::<bool>());
    let (mut runner, mut ordinals) = (TestRunner::default(), [0_u32; 3]);
    for number in 0..300 {
        let ((replica, set, leaves, is_early), is_earlier) =
            story.new_tree(&mut runner).expect("a report").current();
        let report = MemberReport {
            replica: REPLICAS[replica],
            fingerprint: SETS[set],
            keys: &format!("tags of {}", SETS[set]),
            // Only now and then does a replica remember the ordinal of its set.
            ordinal: if number % 3 == 0 { ordinals[replica] } else { 0 },
            life: if leaves { Duration::ZERO } else { TTL },
        };
        let expected = exchange_membership(&alone, false, &report, is_early).await;
        let found = exchange_membership(&mixed, is_earlier, &report, is_early).await;
        assert_eq!(found, expected, "report {number}, earlier: {is_earlier}");
        ordinals[replica] = found.0;
    }
    assert!(ordinals.iter().max() > Some(&2), "{ordinals:?}");
    for real in [alone, mixed] {
        real.tasks.join(SOON).await;
    }
}
