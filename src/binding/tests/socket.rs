//! Tests of a connection with one key for life: whether another connection would use another key,
//! and which error its client receives.

use super::*;
use crate::binding::demand::Sealed;
use crate::binding::select::Reach;

/// `org-a` has two keys of two projects, the other organizations have one key each.
const KEYS: &str =
    "a-1 org-a one 1, a-2 org-a two 1, b-1 org-b one 1, c-1 org-c one 1, d-1 org-d one 1";

/// Whether a connection under a stored binding to `id` would be left. `is_sealed` is the binding's
/// seal, and `is_shown` says that the turn carries sealed content.
fn leaves(replica: &Replica, id: &str, is_sealed: bool, is_shown: bool) -> bool {
    let record = BindingRecord { sealed: is_sealed, ..replica.record(id, 1) };
    let binding = Binding::stored(&replica.key(id), &session(1), record, BindingResult::Existing);
    let turn = replica.turn().with(|turn| turn.demand.carries_sealed = Sealed::Known(is_shown));
    replica.bindings.would_leave(turn.placing(), &binding)
}

/// Returns the result for nothing sealed, for sealed content in the turn, and for a sealed session.
fn all(replica: &Replica, id: &str) -> [bool; 3] {
    [(false, false), (false, true), (true, false)]
        .map(|(is_sealed, is_shown)| leaves(replica, id, is_sealed, is_shown))
}

#[tokio::test(start_paused = true)]
async fn connection_is_left_if_another_key_would_serve() {
    let [replica] = replicas(KEYS);
    assert_eq!(
        (all(&replica, "a-1"), all(&replica, "b-1")),
        ([false; 3], [false; 3]),
        "all keys are ready"
    );
    // Limited: a sibling serves, and a session that may leave its organization does.
    replica.limits("a-1");
    replica.limits("b-1");
    assert_eq!((all(&replica, "a-1"), all(&replica, "b-1")), ([true; 3], [true, false, false]));
    // The sibling is limited, too.
    replica.limits("a-2");
    assert_eq!(all(&replica, "a-1"), [true, false, false]);
    // All other keys are limited, too.
    replica.limits("c-1");
    replica.limits("d-1");
    assert_eq!((all(&replica, "a-1"), all(&replica, "b-1")), ([false; 3], [false; 3]));

    // Dead: the session moves, at least within its organization.
    let [replica] = replicas(KEYS);
    replica.rejects("a-1");
    replica.rejects("b-1");
    assert_eq!((all(&replica, "a-1"), all(&replica, "b-1")), ([true; 3], [true, true, false]));

    // Denied for this model.
    let [replica] = replicas(KEYS);
    replica.registry.deny(&replica.key("b-1"), MODEL);
    assert_eq!(all(&replica, "b-1"), [false; 3]);
    replica.registry.deny(&replica.key("a-1"), MODEL);
    assert_eq!(all(&replica, "a-1"), [true; 3]);
}

/// A turn may test whether an exhausted key is still exhausted; `would_leave` tests nothing.
#[tokio::test(start_paused = true)]
async fn judging_a_connection_tests_no_exhausted_key() {
    let [replica] = replicas(KEYS);
    replica.exhausts("b-1", Scope::Organization);
    let subject = Subject::of(&replica.key("b-1"), Scope::Organization);
    replica.registry.conditions.grant(subject);
    assert!(leaves(&replica, "b-1", false, false) && !leaves(&replica, "b-1", true, false));
    assert!(
        replica.registry.conditions.take_ticket(&replica.key("b-1")),
        "one turn may still find out"
    );
}

/// Another replica has moved the session to a key that only this replica considers out of use. One
/// turn tries the key; `would_leave` does not.
#[tokio::test(start_paused = true)]
async fn judging_a_connection_tests_no_key_that_the_session_was_moved_to() {
    let [replica] = replicas(KEYS);
    replica.rejects("a-1");
    let record = replica.record("a-1", 2).sealed();
    let binding =
        Binding::stored(&replica.key("a-1"), &session(1), record.clone(), BindingResult::Existing);
    assert!(replica.bindings.would_leave(replica.turn().placing(), &binding));
    replica.put(&record).await;
    assert_eq!(replica.goes(replica.turn()).await.as_deref(), Ok("a-1"), "it is tried once");
    assert_eq!(replica.goes(replica.turn()).await.as_deref(), Ok("a-2"));
}

/// The project that stores the content has no other usable key.
#[tokio::test(start_paused = true)]
async fn connection_restricted_to_a_project_is_left_for_no_key_outside() {
    let [replica] = replicas("a-1 org-a one 1, a-2 org-a two 1, a-3 org-a one 1");
    let record = replica.record("a-1", 1).sealed();
    let binding =
        Binding::stored(&replica.key("a-1"), &session(1), record, BindingResult::Existing);
    let within = Reach::project_of(&replica.key("a-1"));
    let turn = replica.turn().with(|turn| turn.within = within);
    replica.rejects("a-1");
    assert!(replica.bindings.would_leave(turn.placing(), &binding), "a-3 has it too");
    replica.says("a-3", Condition::Disabled);
    assert!(!replica.bindings.would_leave(turn.placing(), &binding));
    assert!(
        replica.bindings.would_leave(replica.turn().placing(), &binding),
        "a turn that refers to nothing goes on"
    );
}

/// A sibling that is limited for longer than the turn may wait does not count.
#[tokio::test(start_paused = true)]
async fn sibling_counts_if_it_can_serve_within_the_wait() {
    let (wait, more) = (Duration::from_secs(5), Duration::from_millis(1));
    for (limited_for, counts) in [(wait, true), (wait + more, false)] {
        let [replica] = replicas(KEYS);
        let record = replica.record("a-1", 1).sealed();
        let binding =
            Binding::stored(&replica.key("a-1"), &session(1), record, BindingResult::Existing);
        let turn = replica.turn().with(|turn| turn.tried.wait_left = wait);
        let spent = replica.turn();
        // The own key is limited, too, but only the sibling matters.
        replica.limits("a-1");
        let bindings = &replica.bindings;
        assert!(
            bindings.has_sibling(turn.placing(), &binding)
                && bindings.has_sibling(spent.placing(), &binding)
        );
        replica.registry.limit(&replica.key("a-2"), MODEL, limited_for);
        assert_eq!(bindings.has_sibling(turn.placing(), &binding), counts, "{limited_for:?}");
        assert!(!bindings.has_sibling(spent.placing(), &binding), "no wait is left");
        let other = replica.turn().with(|turn| turn.demand.model = "other");
        assert!(bindings.has_sibling(other.placing(), &binding), "the limit is one model's");
    }
}

/// The client's error is about the keys that might have served.
#[tokio::test(start_paused = true)]
async fn error_is_about_the_keys_that_might_have_served() {
    let [replica] = replicas(KEYS);
    replica.exhausts("a-1", Scope::Organization);
    let told = |is_sealed| {
        let record = BindingRecord { sealed: is_sealed, ..replica.record("a-1", 1) };
        let binding =
            Binding::stored(&replica.key("a-1"), &session(1), record, BindingResult::Existing);
        replica.bindings.shortage(replica.turn().placing(), &binding).kind
    };
    assert_eq!(
        (told(true), told(false)),
        (ErrorKind::InsufficientQuota, ErrorKind::NoKeyAvailable)
    );
    // The sealed content in a turn may belong to another organization, which is ready.
    let binding = Binding::stored(
        &replica.key("a-1"),
        &session(1),
        replica.record("a-1", 1),
        BindingResult::Existing,
    );
    let shows = replica.turn().with(|turn| turn.demand.carries_sealed = Sealed::Known(true));
    assert_eq!(
        replica.bindings.shortage(shows.placing(), &binding).kind,
        ErrorKind::NoKeyAvailable
    );
    replica.limits("c-1");
    assert_eq!(told(false), ErrorKind::RateLimitExceeded);
    let restricted = Client::of_organizations("alice", &["org-b"]);
    let barred = replica.turn().with(|turn| turn.demand.client = &restricted);
    assert_eq!(
        replica.bindings.places.shortage_of(barred.placing(), Reach::Anywhere).kind,
        ErrorKind::NoKeyAvailable,
        "not its own"
    );
    // Only a turn with a session has siblings.
    let binding = Binding::passing(&replica.key("b-1"), None, BindingResult::None);
    assert!(!replica.bindings.has_sibling(replica.turn().placing(), &binding));
}
