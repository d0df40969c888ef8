//! Tests of a replica's judgment of a stored binding: its key serves, is bypassed, or is dead. Also
//! tests which turn retests a dead key.

use super::*;
use crate::binding::place::Standing;
use crate::binding::select::Reach;
use crate::key::Tag;
use crate::metrics::Reason;

/// Returns the standing as a short text.
fn describe(standing: &Standing) -> String {
    match standing {
        Standing::Ready(key) => key.id.clone(),
        Standing::Bypassed(reason) => format!("bypassed {}", reason.name()),
        Standing::Dead(reason) => format!("dead {}", reason.name()),
        Standing::OtherProject => "other project".into(),
    }
}

impl Replica {
    pub(super) fn stands(&self, turn: &Turn<'_>, record: &BindingRecord) -> String {
        describe(&self.bindings.places.standing(turn.placing(), record))
    }
}

/// A key of another name or another organization is another key. Only a replica of the same or a
/// newer generation may call it removed.
#[tokio::test(start_paused = true)]
async fn unknown_key_is_removed_by_a_newer_set_alone() {
    let replica = one();
    let turn = replica.turn();
    let unknown = BindingRecord { key: Tag::of("key", b"new"), ..replica.record("a-1", 1) };
    let moved =
        BindingRecord { organization: Tag::of_organization("org-b"), ..replica.record("a-1", 1) };
    for record in [unknown, moved] {
        for (own, writers, expected) in [
            (3, 3, "dead removed"),
            (3, 2, "dead removed"),
            (3, 4, "bypassed not_loaded"),
            (3, 0, "bypassed not_loaded"),
            (0, 1, "bypassed not_loaded"),
            (0, 0, "bypassed not_loaded"),
        ] {
            replica.is_of(own);
            let record = BindingRecord { generation: writers, ..record.clone() };
            assert_eq!(
                replica.stands(&turn, &record),
                expected,
                "this replica's {own}, the writer's {writers}"
            );
            let wants =
                tokio::time::timeout(Duration::from_millis(1), replica.registry.reload_requested())
                    .await
                    .is_ok();
            assert_eq!(
                wants,
                expected != "dead removed",
                "a reload is wanted if the key may be new"
            );
        }
    }
}

/// The turn's own failures count beside the key's health.
#[tokio::test(start_paused = true)]
async fn standing_is_by_rights_then_by_the_turn_then_by_health() {
    let replica = one();
    let record = replica.record("a-1", 1);
    let failed = || replica.turn().with(|turn| turn.tried.failed = vec![record.key]);
    assert_eq!(replica.stands(&replica.turn(), &record), "a-1");
    assert_eq!(replica.stands(&failed(), &record), "bypassed failed");
    let restricted = Client::of_organizations("alice", &["org-b"]);
    let barred = failed().with(|turn| turn.demand.client = &restricted);
    assert_eq!(replica.stands(&barred, &record), "dead not_allowed");
    replica.limits("a-1");
    assert_eq!(replica.stands(&replica.turn(), &record), "bypassed limited");
    replica.registry.deny(&replica.key("a-1"), MODEL);
    assert_eq!(replica.stands(&replica.turn(), &record), "bypassed no_access");
    assert_eq!(
        replica.stands(&replica.turn().with(|turn| turn.demand.model = "other"), &record),
        "a-1"
    );
    replica.registry.observe(&replica.key("a-1"), Ailment::Rejected(Scope::Key));
    assert_eq!(replica.stands(&replica.turn(), &record), "bypassed suspected");
    replica.rejects("a-1");
    assert_eq!(replica.stands(&replica.turn(), &record), "dead rejected");
    replica.rejects("a-2");
    assert_eq!(
        replica.stands(&replica.turn(), &record),
        "bypassed incident",
        "most keys are refused, which is an incident"
    );
    for (said, expected) in
        [(Condition::Disabled, "bypassed disabled"), (Condition::Drained, "dead drained")]
    {
        replica.says("a-1", said);
        assert_eq!(replica.stands(&replica.turn(), &record), expected);
    }
}

/// For a session that stays in its organization, a project's exhausted quota is a shortage. A
/// session that may leave its organization leaves its key.
#[tokio::test(start_paused = true)]
async fn exhausted_project_is_left_by_sessions_that_may_leave_its_organization() {
    let replica = one();
    let (free, sealed) = (replica.record("a-1", 1), replica.record("a-1", 1).sealed());
    replica.exhausts("a-1", Scope::Project);
    let within = replica.turn().with(|turn| turn.within = Reach::project_of(&replica.key("a-1")));
    assert_eq!(replica.stands(&replica.turn(), &free), "dead exhausted");
    assert_eq!(replica.stands(&replica.turn(), &sealed), "bypassed exhausted");
    assert_eq!(replica.stands(&within, &free), "bypassed exhausted");
    // The organization's quota is exhausted, too, so its other keys are no better.
    replica.exhausts("a-1", Scope::Organization);
    assert_eq!(replica.stands(&replica.turn(), &sealed), "dead exhausted");
}

/// This replica considers a key dead, but another replica has moved the session to it since. One
/// turn at a time tries the key.
#[tokio::test(start_paused = true)]
async fn key_that_a_session_was_moved_to_is_tried_by_one_turn() {
    let replica = one();
    let (first, second) = (replica.record("a-1", 1), replica.record("a-1", 2));
    replica.rejects("a-1");
    let refused = || replica.turn().with(|turn| turn.tried.refused = vec![first.key]);
    let later = |record| {
        describe(&replica.bindings.places.standing_later(replica.turn().placing(), record))
    };
    assert_eq!(
        replica.stands(&replica.turn(), &first),
        "dead rejected",
        "the session was never moved to the key"
    );
    assert_eq!(replica.stands(&refused(), &second), "dead rejected", "the turn has tried it");
    assert_eq!(later(&second), "dead rejected", "a later turn tests nothing");
    assert_eq!(replica.stands(&replica.turn(), &second), "a-1");
    assert_eq!(replica.stands(&replica.turn(), &second), "dead rejected", "one turn is enough");
}

/// One turn tests whether a quota is still exhausted.
#[tokio::test(start_paused = true)]
async fn exhausted_key_is_tried_by_the_turn_with_the_ticket() {
    for (scope, sealed, out) in [
        (Scope::Organization, true, "dead exhausted"),
        (Scope::Project, true, "bypassed exhausted"),
        (Scope::Project, false, "dead exhausted"),
    ] {
        let replica = one();
        let bound = BindingRecord { sealed, ..replica.record("a-1", 1) };
        replica.exhausts("a-1", scope);
        replica.registry.conditions.grant(Subject::of(&replica.key("a-1"), scope));
        let refused = replica.turn().with(|turn| turn.tried.refused = vec![bound.key]);
        assert_eq!(replica.stands(&refused, &bound), out, "this turn was refused");
        assert_eq!(replica.stands(&replica.turn(), &bound), "a-1");
        assert_eq!(replica.stands(&replica.turn(), &bound), out, "the ticket is taken");
    }
}

/// If no key is left, a turn that is not bound to the exhausted key may test it, too.
#[tokio::test(start_paused = true)]
async fn new_session_tests_whether_keys_are_still_exhausted() {
    let [replica] = replicas("a-1 org-a one 1, a-2 org-a two 1");
    let places = &replica.bindings.places;
    let subject = Subject::of(&replica.key("a-1"), Scope::Organization);
    let choose = |refused: &[&str]| {
        let refused = refused.iter().map(|id| replica.key(id).tag).collect();
        let chosen = places.choose(
            replica.turn().with(|turn| turn.tried.refused = refused).placing(),
            &session(1),
            Reach::Anywhere,
        );
        chosen.map(|key| key.id.clone()).map_err(|error| error.kind)
    };
    replica.exhausts("a-1", Scope::Organization);
    assert_eq!(choose(&[]), Err(ErrorKind::InsufficientQuota));
    replica.registry.conditions.grant(subject);
    assert_eq!(choose(&["a-1", "a-2"]), Err(ErrorKind::InsufficientQuota), "this turn has tried");
    assert!(choose(&["a-1"]).is_ok_and(|id| id == "a-2"));
    assert_eq!(choose(&[]), Err(ErrorKind::InsufficientQuota), "one turn is enough");
    // A new session tests its first choice, too, although other keys are ready.
    let [replica] = replicas("a-1 org-a one 1000000, b-1 org-b one 1");
    let place_new = |refused: Vec<Tag>| {
        let turn = replica.turn().with(|turn| turn.tried.refused = refused);
        replica.bindings.places.place_new(turn.placing(), &session(1)).unwrap().id.clone()
    };
    replica.exhausts("a-1", Scope::Organization);
    assert_eq!(place_new(Vec::new()), "b-1");
    replica.registry.conditions.grant(subject);
    assert_eq!(place_new(vec![replica.key("a-1").tag]), "b-1", "this turn has tried");
    assert_eq!((place_new(Vec::new()), place_new(Vec::new())), ("a-1".into(), "b-1".into()));
}

/// A refused turn is counted and logged with its reason.
#[tokio::test(start_paused = true)]
async fn refusal_is_recorded_with_its_reason() {
    type Befalls = dyn Fn(&Replica);
    let cases: [(&Befalls, Reason); 5] = [
        (
            &|replica| ["a-1", "a-2", "b-1"].iter().for_each(|id| replica.limits(id)),
            Reason::Limited,
        ),
        (
            &|replica| {
                ["a-1", "b-1"].iter().for_each(|id| replica.exhausts(id, Scope::Organization))
            },
            Reason::Exhausted,
        ),
        (
            &|replica| {
                ["a-1", "a-2", "b-1"].iter().for_each(|id| replica.says(id, Condition::Disabled))
            },
            Reason::Disabled,
        ),
        (
            &|replica| ["a-1", "a-2", "b-1"].iter().for_each(|id| replica.rejects(id)),
            Reason::Incident,
        ),
        (&|replica| replica.loads("x-1 org-x one 1"), Reason::NotLoaded),
    ];
    for (befalls, reason) in cases {
        for is_bound in [true, false] {
            let replica = one();
            let bound = BindingRecord { generation: 9, ..replica.record("a-1", 1) };
            if is_bound {
                replica.put(&bound).await;
            } else if reason == Reason::NotLoaded {
                continue;
            }
            befalls(&replica);
            assert!(replica.goes(replica.turn()).await.is_err(), "{reason:?}");
            let told = match reason {
                Reason::Limited | Reason::Exhausted => reason,
                _ if is_bound => reason,
                _ => Reason::NoneInUse,
            };
            assert_eq!(replica.decided("refuse", told.name()), 1, "{told:?}");
        }
    }
}
