//! Tests of conditions: which outweighs which, how long each holds, and which turn or replica may
//! find out whether a condition still holds.

use super::asking::TRY_AGAIN;
use super::*;
use crate::key::table::Table;

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

fn keys(sketch: &str) -> Vec<Arc<Key>> {
    Table::sketch(sketch).keys().to_vec()
}

fn key() -> Arc<Key> {
    keys("a o 1 sk-a").remove(0)
}

/// Conditions of `key`, each with its default life.
fn known(key: &Key, cases: &[(Scope, Condition)]) -> Conditions {
    let conditions = Conditions::default();
    for (scope, condition) in cases {
        let subject = match (scope, condition.class()) {
            (Scope::Key, Class::Operator) => Subject::of_key_id(key),
            _ => Subject::of(key, *scope),
        };
        conditions.note(subject, *condition, condition.life());
    }
    conditions
}

/// The notes that are yet to be reported, as `value=seconds`.
fn unreported(conditions: &Conditions) -> Vec<String> {
    let seconds = |note: &Note| note.life.map_or(-1.0, |life| life.as_secs_f64());
    conditions.report().1.iter().map(|note| format!("{}={}", note.value, seconds(note))).collect()
}

/// Marks all notes as received by the other replicas.
fn mark_received(conditions: &Conditions) {
    let (seen, notes) = conditions.report();
    conditions.learn(&notes, &crate::store::board::Board { version: seen, ..Default::default() });
}

#[tokio::test(start_paused = true)]
async fn operators_command_outweighs_an_observation_and_a_key_its_organization() {
    use Condition::{Disabled, Drained, Enabled, Exhausted, Limited, Rejected, Suspected};
    use Scope::{Key, Organization, Project};
    let key = key();
    for (cases, expected) in [
        (&[(Key, Drained), (Organization, Disabled)][..], Fitness::Dead(Why::Drained)),
        (&[(Key, Disabled), (Organization, Drained)], Fitness::Dead(Why::Drained)),
        (&[(Key, Enabled), (Organization, Disabled)], Fitness::Bypassed(Why::Disabled)),
        (&[(Key, Disabled), (Organization, Enabled)], Fitness::Bypassed(Why::Disabled)),
        (&[(Key, Disabled), (Key, Rejected)], Fitness::Bypassed(Why::Disabled)),
        (&[(Organization, Enabled), (Key, Rejected)], Fitness::Dead(Why::Rejected)),
        (&[(Key, Disabled), (Key, Enabled)], Fitness::Ready),
        (&[(Key, Suspected)], Fitness::Bypassed(Why::Suspected)),
        (&[(Organization, Suspected)], Fitness::Bypassed(Why::Suspected)),
        (&[(Organization, Rejected)], Fitness::Dead(Why::Rejected)),
        (&[(Key, Rejected), (Organization, Exhausted)], Fitness::Dead(Why::Rejected)),
        (&[(Project, Exhausted)], Fitness::Dead(Why::ExhaustedProject)),
        (&[(Organization, Exhausted)], Fitness::Dead(Why::ExhaustedOrganization)),
        (
            &[(Project, Exhausted), (Organization, Exhausted)],
            Fitness::Dead(Why::ExhaustedOrganization),
        ),
        (&[(Key, Suspected), (Key, Rejected)], Fitness::Dead(Why::Rejected)),
    ] {
        assert_eq!(known(&key, cases).fitness(&key, "m"), expected, "{cases:?}");
    }
    // A condition of a model concerns that model alone, and hides no other condition.
    for (condition, expected) in [
        (Condition::NoAccess, Fitness::Bypassed(Why::NoAccess)),
        (Limited, Fitness::Limited(Duration::from_secs(60))),
    ] {
        let conditions = Conditions::default();
        conditions.note(Subject::model(&key, "m"), condition, condition.life());
        assert_eq!(conditions.fitness(&key, "m"), expected);
        assert_eq!(conditions.fitness(&key, "n"), Fitness::Ready);
        conditions.note(Subject::of(&key, Key), Rejected, Rejected.life());
        assert_eq!(conditions.fitness(&key, "m"), Fitness::Dead(Why::Rejected));
    }
}

#[tokio::test(start_paused = true)]
async fn longer_of_two_limits_holds_and_is_reported() {
    let key = key();
    let subject = Subject::model(&key, "m");
    for (first, second, holds, is_reported) in
        [(60, 10, 60, false), (10, 60, 60, true), (60, 59, 60, false), (60, 61, 61, true)]
    {
        let conditions = Conditions::default();
        let note =
            |seconds: u32| conditions.note(subject, Condition::Limited, Some(SECOND * seconds));
        assert!(note(first), "it is new");
        mark_received(&conditions);
        assert!(!note(second), "it is not new");
        let expected = if is_reported { vec![format!("limited={second}")] } else { Vec::new() };
        assert_eq!(unreported(&conditions), expected, "{first} and then {second}");
        assert_eq!(
            conditions.fitness(&key, "m"),
            Fitness::Limited(SECOND * holds),
            "{first} and then {second}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn condition_that_holds_as_long_anyway_is_not_reported_again() {
    let key = key();
    let subject = Subject::of(&key, Scope::Key);
    for (condition, after, is_reported) in [
        (Condition::Rejected, HOUR * 11, false),
        (Condition::Rejected, HOUR * 13, true),
        (Condition::Suspected, SECOND * 29, false),
        (Condition::Suspected, SECOND * 31, true),
    ] {
        let conditions = known(&key, &[(Scope::Key, condition)]);
        mark_received(&conditions);
        let (began, life) = (Instant::now(), condition.life().unwrap());
        tokio::time::advance(after).await;
        assert!(!conditions.note(subject, condition, condition.life()), "{condition:?} is not new");
        assert_eq!(
            unreported(&conditions).len(),
            usize::from(is_reported),
            "{condition:?} after {after:?}"
        );
        let left = conditions.of(&key)[0].2.unwrap();
        assert_eq!(
            left,
            if is_reported { life } else { life - after },
            "{condition:?} after {after:?}"
        );
        assert!(conditions.is_older(subject, began), "it has held all the time");
    }
    let conditions = known(&key, &[(Scope::Key, Condition::Disabled)]);
    mark_received(&conditions);
    assert!(
        !conditions.note(Subject::of_key_id(&key), Condition::Disabled, None)
            && unreported(&conditions).is_empty()
    );
    assert!(
        conditions.note(Subject::of_key_id(&key), Condition::Drained, None),
        "another command is new"
    );
    assert_eq!(unreported(&conditions), ["drained=-1"]);
}

#[tokio::test(start_paused = true)]
async fn end_of_a_condition_is_reported_once_and_not_after_its_life() {
    let key = key();
    let subject = Subject::of(&key, Scope::Key);
    let conditions = known(&key, &[(Scope::Key, Condition::Suspected)]);
    mark_received(&conditions);
    assert_eq!(conditions.end(subject, Class::Recovery), None);
    assert_eq!(conditions.end(subject, Class::Illness), Some(Condition::Suspected));
    assert_eq!(unreported(&conditions), ["=-1"]);
    assert_eq!(conditions.end(subject, Class::Illness), None);
    conditions.note(subject, Condition::Suspected, Some(SECOND));
    tokio::time::advance(SECOND).await;
    assert!(!conditions.is(subject, Condition::Suspected) && conditions.of(&key).is_empty());
    assert!(conditions.note(subject, Condition::Suspected, Some(SECOND)), "it holds anew");
    tokio::time::advance(SECOND).await;
    assert_eq!(conditions.end(subject, Class::Illness), None);
    conditions.note(subject, Condition::Suspected, Some(SECOND));
    conditions.sweep();
    assert!(!conditions.is_empty());
    tokio::time::advance(SECOND).await;
    conditions.sweep();
    assert!(conditions.is_empty());
}

#[tokio::test(start_paused = true)]
async fn key_that_is_out_of_use_here_alone_may_be_tried_now_and_then() {
    let key = key();
    for scope in [Scope::Key, Scope::Project, Scope::Organization] {
        let conditions = known(&key, &[(scope, Condition::Exhausted)]);
        assert!(conditions.may_try(&key), "{scope:?}");
        tokio::time::advance(TRY_AGAIN - SECOND).await;
        assert!(!conditions.may_try(&key), "it was tried a moment ago");
        tokio::time::advance(SECOND).await;
        assert!(conditions.may_try(&key));
        // A key whose condition is on the board is out of use for all.
        let (_, notes) = conditions.report();
        let board = crate::store::board::Board {
            version: 1,
            now: 1,
            notes: notes.iter().map(|note| Note { stamp: 1, ..note.clone() }).collect(),
            ..Default::default()
        };
        conditions.learn(&notes, &board);
        tokio::time::advance(TRY_AGAIN).await;
        assert!(!conditions.may_try(&key), "{scope:?}");
    }
    for command in [Condition::Disabled, Condition::Drained] {
        assert!(
            !known(&key, &[(Scope::Key, Condition::Rejected), (Scope::Key, command)]).may_try(&key),
            "{command:?}"
        );
    }
    assert!(known(&key, &[(Scope::Key, Condition::Enabled)]).may_try(&key));
}

#[tokio::test(start_paused = true)]
async fn conditions_are_asked_again_each_in_its_own_time() {
    let key = key();
    for (condition, first, pause) in [
        (Condition::Suspected, Duration::ZERO, SECOND * 5),
        (Condition::Rejected, SECOND * 60, SECOND * 60),
        (Condition::Exhausted, SECOND * 600, SECOND * 600),
    ] {
        let conditions = known(&key, &[(Scope::Organization, condition)]);
        let expected = [(Subject::of(&key, Scope::Organization), condition, pause)];
        if !first.is_zero() {
            assert!(conditions.due().is_empty(), "{condition:?} was observed just now");
            tokio::time::advance(first - Duration::from_millis(1)).await;
            assert!(conditions.due().is_empty(), "{condition:?}");
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(conditions.due(), expected);
        assert!(conditions.due().is_empty(), "it counts as asked");
        tokio::time::advance(pause - Duration::from_millis(1)).await;
        assert!(conditions.due().is_empty(), "{condition:?}");
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(conditions.due(), expected);
    }
    let never =
        known(&key, &[(Scope::Key, Condition::Disabled), (Scope::Key, Condition::Recovering)]);
    never.note(Subject::model(&key, "m"), Condition::Limited, Some(HOUR * 48));
    tokio::time::advance(HOUR).await;
    assert!(never.due().is_empty());
    let over = known(&key, &[(Scope::Key, Condition::Suspected)]);
    tokio::time::advance(SECOND * 60).await;
    assert!(over.due().is_empty(), "it does not hold any more");
}

#[tokio::test(start_paused = true)]
async fn ticket_is_for_one_turn_and_for_exhausted_keys() {
    let key = key();
    for scope in [Scope::Project, Scope::Organization] {
        let conditions = known(&key, &[(scope, Condition::Exhausted)]);
        assert!(!conditions.has_ticket(&key) && !conditions.take_ticket(&key));
        conditions.grant(Subject::of(&key, scope));
        assert!(conditions.has_ticket(&key) && conditions.has_ticket(&key));
        assert!(conditions.take_ticket(&key));
        assert!(!conditions.take_ticket(&key) && !conditions.has_ticket(&key), "{scope:?}");
        conditions.grant(Subject::of(&key, scope));
        conditions.note(Subject::of_key_id(&key), Condition::Disabled, None);
        assert!(
            !conditions.has_ticket(&key) && !conditions.take_ticket(&key),
            "the operator keeps turns away"
        );
    }
    let both = known(
        &key,
        &[(Scope::Project, Condition::Exhausted), (Scope::Organization, Condition::Exhausted)],
    );
    both.grant(Subject::of(&key, Scope::Project));
    both.grant(Subject::of(&key, Scope::Organization));
    assert!(both.take_ticket(&key) && !both.take_ticket(&key), "one turn finds out about both");
    let nothing = Conditions::default();
    nothing.grant(Subject::of(&key, Scope::Project));
    assert!(!nothing.has_ticket(&key));
}

#[tokio::test(start_paused = true)]
async fn new_sessions_return_as_slowly_as_the_last_recovery_allows() {
    let key = key();
    let conditions = known(&key, &[(Scope::Organization, Condition::Recovering)]);
    assert!(conditions.ramp(&key) < 0.01);
    tokio::time::advance(RAMP / 4).await;
    conditions.note(Subject::of(&key, Scope::Project), Condition::Recovering, Some(RAMP));
    tokio::time::advance(RAMP / 4).await;
    assert!((conditions.ramp(&key) - 0.25).abs() < 0.01, "{}", conditions.ramp(&key));
    tokio::time::advance(RAMP / 2).await;
    assert!((conditions.ramp(&key) - 0.75).abs() < 0.01, "{}", conditions.ramp(&key));
    tokio::time::advance(RAMP).await;
    assert!((conditions.ramp(&key) - 1.0).abs() < 0.01);
    let other = known(&key, &[(Scope::Key, Condition::Rejected)]);
    assert!((other.ramp(&key) - 1.0).abs() < 0.01, "that is another matter");
}

#[tokio::test(start_paused = true)]
async fn more_than_half_of_all_keys_refused_at_once_are_an_incident() {
    let keys = keys("a o 1 sk-a, b o 1 sk-b, c p 1 sk-c, d q 1 sk-d");
    let refused = |conditions: &Conditions, number: usize, scope: Scope, condition: Condition| {
        conditions.note(Subject::of(&keys[number], scope), condition, condition.life());
        conditions.consider(&keys);
        conditions.fitness(&keys[number], "") == Fitness::Bypassed(Why::Incident)
    };
    let one = Conditions::default();
    assert!(!refused(&one, 0, Scope::Key, Condition::Rejected));
    assert!(!refused(&one, 1, Scope::Key, Condition::Rejected), "half of them");
    assert!(
        !refused(&one, 2, Scope::Organization, Condition::Exhausted),
        "an exhausted quota is no refusal"
    );
    assert_eq!(one.fitness(&keys[2], ""), Fitness::Dead(Why::ExhaustedOrganization));
    assert!(refused(&one, 3, Scope::Key, Condition::Suspected));
    assert_eq!(one.fitness(&keys[0], ""), Fitness::Bypassed(Why::Incident));
    assert_eq!(
        one.fitness(&keys[2], ""),
        Fitness::Dead(Why::ExhaustedOrganization),
        "whatever other condition holds"
    );
    // Keys of an incident are asked soon, since the incident ends for all at once.
    tokio::time::advance(SECOND * 5).await;
    assert_eq!(
        one.due().into_iter().filter(|(_, condition, _)| *condition == Condition::Rejected).count(),
        2
    );
    // A key that was refused later is asked with the others.
    tokio::time::advance(SECOND * 3).await;
    assert!(refused(&one, 3, Scope::Key, Condition::Rejected));
    tokio::time::advance(SECOND * 2).await;
    let rejected = |due: &(Subject, Condition, _)| due.1 == Condition::Rejected;
    assert_eq!(one.due().into_iter().filter(rejected).count(), 3);
    // However long that takes, the incident lasts until most keys are accepted again.
    tokio::time::advance(SECOND * 50).await;
    one.consider(&keys);
    assert_eq!(one.fitness(&keys[0], ""), Fitness::Bypassed(Why::Incident));
    one.end(Subject::of(&keys[3], Scope::Key), Class::Illness);
    one.consider(&keys);
    assert_eq!(one.fitness(&keys[0], ""), Fitness::Dead(Why::Rejected));

    let other = Conditions::default();
    refused(&other, 0, Scope::Organization, Condition::Rejected);
    tokio::time::advance(AT_ONCE).await;
    assert!(
        refused(&other, 3, Scope::Key, Condition::Rejected),
        "an organization is all of its keys"
    );
    let late = Conditions::default();
    refused(&late, 0, Scope::Organization, Condition::Rejected);
    tokio::time::advance(AT_ONCE + SECOND).await;
    assert!(!refused(&late, 3, Scope::Key, Condition::Rejected), "one after the other");
}

#[tokio::test(start_paused = true)]
async fn condition_is_shown_of_every_key_that_it_concerns() {
    let keys = keys("a o 1 sk-a, b o 1 sk-b, c p 1 sk-c");
    let conditions =
        known(&keys[0], &[(Scope::Key, Condition::Rejected), (Scope::Key, Condition::Disabled)]);
    conditions.note(Subject::of(&keys[0], Scope::Organization), Condition::Exhausted, Some(HOUR));
    conditions.note(Subject::of(&keys[0], Scope::Project), Condition::Recovering, Some(RAMP));
    conditions.note(Subject::model(&keys[0], "m"), Condition::Limited, Some(SECOND));
    let shown = |key: &Key| {
        let views = conditions
            .of(key)
            .into_iter()
            .map(|(subject, condition, _)| (subject.scope(), condition.name()));
        views.collect::<Vec<_>>()
    };
    let all = [
        ("key", "disabled"),
        ("organization", "exhausted"),
        ("model", "limited"),
        ("project", "recovering"),
        ("key", "rejected"),
    ];
    assert_eq!(shown(&keys[0]), all);
    // The limits of a key without a project are its own.
    assert_eq!(shown(&keys[1]), &all[1..2]);
    assert!(shown(&keys[2]).is_empty());
}
