//! Tests of related sessions: the binding that a fork inherits, and the project to which a turn
//! with references is restricted.

use super::*;
use crate::binding::record::state_tag;
use crate::binding::select::Reach;
use crate::session::ThreadId;
use crate::session::lineage::{Lineage, Parent};
use crate::store::name::Name;

const ROOT: u32 = 7;
const PARENT: u32 = 8;
const THREAD: u32 = 9;

fn thread(number: u32) -> ThreadId {
    ThreadId::parse(session(number).as_str()).unwrap()
}

/// A fork of thread [`THREAD`], which may be the root thread of session [`ROOT`].
fn fork(replica: &Replica) -> Turn<'_> {
    let parent = Some(Parent { root: session(ROOT), thread: thread(THREAD) });
    replica.turn().with(|turn| turn.demand.lineage = Lineage { parent, thread: None })
}

async fn claims(replica: &Replica, name: Name<'_>, value: &str) {
    replica.store.claim(name, value, TTL, &mut replica.store.budget()).await.unwrap();
}

/// A fork's first binding is a copy of its parent's.
#[tokio::test(start_paused = true)]
async fn fork_inherits_its_parents_binding_as_its_first() {
    for sealed in [false, true] {
        for is_root in [true, false] {
            let [replica] = replicas("a-1 org-a one 1, b-1 org-b one 1, c-1 org-c one 1000");
            let parent = BindingRecord {
                sealed,
                stale_state: Some(state_tag(b"old")),
                ..replica.record("b-1", 5)
            };
            let bound = session(if is_root { ROOT } else { PARENT });
            claims(&replica, Name::Binding(bound.as_str()), &parent.to_string()).await;
            claims(&replica, Name::Thread(thread(THREAD).as_str()), session(PARENT).as_str()).await;
            let begun = replica.bind(&mut fork(&replica)).await.unwrap();
            assert_eq!(seen(&begun), ("b-1", false, BindingResult::Inherited));
            assert!(begun.is_provisional, "its parent may have been forgotten since it was forked");
            let first = BindingRecord { sealed, ..replica.record("b-1", 1) };
            replica.is_stored(&first).await;
            let next = replica.bind(&mut replica.turn()).await.unwrap();
            assert_eq!(
                (seen(&next), next.is_provisional),
                (("b-1", false, BindingResult::Existing), !sealed)
            );
        }
    }
}

/// The parent's key can serve no more, so the fork begins where its parent would move.
#[tokio::test(start_paused = true)]
async fn fork_of_a_dead_keys_session_moves_as_its_parent_would() {
    for sealed in [true, false] {
        let [replica] = replicas("b-1 org-b one 1, b-2 org-b two 1, b-3 org-b three 0");
        let parent = BindingRecord { sealed, ..replica.record("b-1", 5) };
        claims(&replica, Name::Binding(session(ROOT).as_str()), &parent.to_string()).await;
        replica.rejects("b-1");
        assert_eq!(replica.goes(fork(&replica)).await.as_deref(), Ok("b-2"));
        replica.is_stored(&BindingRecord { sealed, ..replica.record("b-2", 2) }).await;
    }
}

/// The store does not answer, so this replica's memory of the parent does.
#[tokio::test(start_paused = true)]
async fn fork_inherits_from_memory_without_the_store() {
    for is_root in [true, false] {
        let [replica] = replicas("a-1 org-a one 1, b-1 org-b one 1, c-1 org-c one 1000");
        let parent = replica.record("b-1", 5).sealed();
        replica.local.confirm(&session(if is_root { ROOT } else { PARENT }), &parent);
        replica.local.note_thread(&thread(THREAD), &session(PARENT));
        replica.weather(Weather::Away);
        let begun = replica.bind(&mut fork(&replica)).await.unwrap();
        assert_eq!((begun.key.id.as_str(), begun.is_provisional), ("b-1", true));
        assert_eq!(begun.written, Written::Here(replica.record("b-1", 1).sealed()));
        // The same holds if the store has lost the parent.
        replica.local.forget(&session(1));
        replica.weather(Weather::Fair);
        assert_eq!(replica.goes(fork(&replica)).await.as_deref(), Ok("b-1"));
    }
}

/// The parent's binding is forgotten, so the fork follows its parent's order.
#[tokio::test(start_paused = true)]
async fn fork_of_a_forgotten_parent_follows_its_parents_order() {
    let [replica] = replicas("a-1 org-a one 1, b-1 org-b one 1, c-1 org-c one 1, d-1 org-d one 1");
    let mut differ = 0;
    for number in 0..40 {
        let parent = Some(Parent { root: session(number + 100), thread: thread(THREAD) });
        let lineage = Lineage { parent, thread: None };
        let own = replica.turn().with(|turn| turn.demand.session = Some(session(number)));
        let fork = replica.turn().with(|turn| {
            turn.demand.session = Some(session(number));
            turn.demand.lineage = lineage;
        });
        let places = &replica.bindings.places;
        let expected = places
            .choose(own.placing(), &session(number + 100), Reach::Anywhere)
            .unwrap()
            .id
            .clone();
        differ += u32::from(
            places.choose(own.placing(), &session(number), Reach::Anywhere).unwrap().id != expected,
        );
        assert_eq!(
            places.choose(fork.placing(), &session(number), Reach::Anywhere).unwrap().id,
            expected
        );
        assert_eq!(places.default_of(fork.placing(), &session(number)).unwrap().id, expected);
        assert_eq!(places.place_new(fork.placing(), &session(number)).unwrap().id, expected);
    }
    assert!(differ > 10, "their own orders are others: {differ}");
}

/// The sessions of threads are stored in the background.
#[tokio::test(start_paused = true)]
async fn thread_of_a_turn_leads_to_its_session() {
    let replica = with_clock();
    let shows =
        |thread| replica.turn().with(|turn| turn.demand.lineage = Lineage { parent: None, thread });
    let threads = async || {
        for _ in 0..8 {
            tokio::task::yield_now().await;
        }
        let thread = thread(THREAD);
        replica.store.get(Name::Thread(thread.as_str()), &mut replica.store.budget()).await.unwrap()
    };
    replica.goes(shows(None)).await.unwrap();
    assert_eq!(threads().await, None, "a root thread is its session");
    replica.goes(shows(Some(thread(THREAD)))).await.unwrap();
    let entry = threads().await.unwrap();
    assert_eq!((entry.value.as_str(), entry.left), (session(1).as_str(), TTL));
    // Use renews the stored entry.
    tokio::time::advance(TTL / 4).await;
    replica.goes(shows(Some(thread(THREAD)))).await.unwrap();
    assert_eq!(threads().await.map(|entry| entry.left), Some(TTL));
    assert_eq!(replica.local.session_of(&thread(THREAD)), Some(session(1)));
    assert!(replica.tasks.join(LONG).await);
}

/// A turn that refers to content that only the project of its session finds.
fn referring(turn: Turn<'_>) -> Turn<'_> {
    turn.with(|turn| turn.demand.needs_project = true)
}

#[tokio::test(start_paused = true)]
async fn turn_is_restricted_to_the_project_of_its_session() {
    let replica = one();
    let project = Reach::project_of(&replica.key("a-1"));
    // The session has no answer yet, so its project is not known.
    replica.put(&replica.record("a-1", 1)).await;
    let mut turn = referring(replica.turn());
    replica.bind(&mut turn).await.unwrap();
    assert_eq!(turn.within, Reach::Anywhere);
    replica.put(&replica.record("a-1", 1).sealed()).await;
    replica.limits("a-1");
    let mut free = replica.turn();
    assert_eq!(
        seen(&replica.bind(&mut free).await.unwrap()),
        ("a-2", true, BindingResult::Spilled)
    );
    assert_eq!(free.within, Reach::Anywhere, "it refers to nothing");
    let mut turn = referring(replica.turn());
    let error = replica.bind(&mut turn).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::RateLimitExceeded, "no sibling has it");
    // Without the store, this replica's memory decides. If it has no entry, the client must retry.
    replica.weather(Weather::Away);
    let mut turn = referring(replica.turn()).with(|turn| turn.tried.wait_left = LONG);
    assert_eq!(replica.bind(&mut turn).await.unwrap().key.id, "a-1");
    assert_eq!(turn.within, project);
    replica.local.forget(&session(1));
    let error = replica.bind(&mut referring(replica.turn())).await.unwrap_err();
    assert_eq!(
        (error.kind, error.retry_after),
        (ErrorKind::NoKeyAvailable, Some(Duration::from_secs(1)))
    );
    assert!(error.message.contains("cannot be told at the moment"), "{}", error.message);
}

/// The newest of the stored and the remembered binding counts.
#[tokio::test(start_paused = true)]
async fn turn_is_restricted_by_the_newest_binding_of_its_session() {
    let replica = one();
    let projects = [("a-1", 1, "a-2", 2), ("a-2", 2, "a-1", 1)];
    for (stored, epoch, known, newer) in projects {
        replica.put(&replica.record(stored, epoch).sealed()).await;
        replica.local.forget(&session(1));
        replica.local.note(&session(1), &replica.record(known, newer).sealed(), false);
        let mut turn = referring(replica.turn());
        assert_eq!(replica.bind(&mut turn).await.unwrap().key.id, "a-2");
        assert_eq!(turn.within, Reach::project_of(&replica.key("a-2")));
    }
    // At the same epoch, the sealed one counts.
    let replica = one();
    let bound = replica.record("a-1", 1);
    for (stored, known) in [(bound.sealed(), bound.clone()), (bound.clone(), bound.sealed())] {
        replica.put(&stored).await;
        replica.local.forget(&session(1));
        replica.local.note(&session(1), &known, false);
        let mut turn = referring(replica.turn());
        replica.bind(&mut turn).await.unwrap();
        assert_eq!(turn.within, Reach::project_of(&replica.key("a-1")));
    }
}

/// A fork refers to content of its parent's project.
#[tokio::test(start_paused = true)]
async fn fork_is_restricted_to_the_project_of_its_parent() {
    for weather in [Weather::Fair, Weather::Away] {
        let replica = one();
        let parent = replica.record("a-2", 3).sealed();
        claims(&replica, Name::Binding(session(ROOT).as_str()), &parent.to_string()).await;
        replica.local.confirm(&session(ROOT), &parent);
        replica.weather(weather);
        let mut turn = referring(fork(&replica));
        assert_eq!(replica.bind(&mut turn).await.unwrap().key.id, "a-2");
        assert_eq!(turn.within, Reach::project_of(&replica.key("a-2")));
    }
}

/// Between two attempts of one turn, another turn of its session is answered. From then on, the
/// session's project is known.
#[tokio::test(start_paused = true)]
async fn turn_is_restricted_again_before_its_next_attempt() {
    let replica = one();
    replica.put(&replica.record("a-1", 1)).await;
    let mut turn = referring(replica.turn());
    let early = replica.bind(&mut turn).await.unwrap();
    replica.limits("a-1");
    let beside = replica.rebind(&mut turn, &early).await.unwrap();
    assert_eq!(
        (seen(&beside), turn.within),
        (("a-2", true, BindingResult::Spilled), Reach::Anywhere),
        "nothing was served"
    );
    replica.registry.conditions.forget(|_| true);
    replica.registry.has_changed();
    replica.serves(&replica.bind(&mut replica.turn()).await.unwrap()).await;
    replica.limits("a-1");
    assert_eq!(
        replica.rebind(&mut turn, &early).await.unwrap_err().kind,
        ErrorKind::RateLimitExceeded
    );
    // A turn that continues from a known response already has its project.
    let within = Reach::project_of(&replica.key("a-2"));
    let mut turn = referring(replica.turn()).with(|turn| turn.within = within);
    assert_eq!(replica.bind(&mut turn).await.unwrap().key.id, "a-2");
    assert_eq!(turn.within, within);
}

/// No key of the project is loaded, and no other key has the content.
#[tokio::test(start_paused = true)]
async fn turn_of_a_project_that_is_not_loaded_waits_for_it() {
    let [early, late] = replicas::<2>(KEYS);
    late.loads("a-2 org-a two 1, b-1 org-b one 1");
    late.is_of(1);
    late.put(&BindingRecord { generation: 2, ..early.record("a-1", 1).sealed() }).await;
    let mut turn = referring(late.turn());
    let error = late.bind(&mut turn).await.unwrap_err();
    assert_eq!(error.retry_after, Some(Duration::from_secs(1)));
    assert!(error.message.contains("No upstream key of the project is known"), "{}", error.message);
    assert!(
        tokio::time::timeout(LONG, late.registry.reload_requested()).await.is_ok(),
        "a reload is wanted"
    );
}

/// Whether a connection with `binding`'s key can reach the content of the session's project.
#[tokio::test(start_paused = true)]
async fn connection_is_in_own_project_if_its_key_is_of_the_sessions_project() {
    let replica = one();
    let on = |id: &str, written| {
        Binding::new(&replica.key(id), Some(&session(1)), written, BindingResult::Existing)
    };
    let record = replica.record("a-1", 1);
    let is_in_own_project = |binding: &Binding| {
        [false, true].map(|has_served| replica.bindings.is_in_own_project(binding, has_served))
    };
    assert_eq!(is_in_own_project(&on("a-1", Written::Stored(record.clone()))), [true, true]);
    assert_eq!(is_in_own_project(&on("a-1", Written::Beside(record.clone()))), [true, true]);
    assert_eq!(is_in_own_project(&on("a-2", Written::Beside(record.clone()))), [false, false]);
    assert_eq!(is_in_own_project(&on("a-1", Written::Here(record.clone()))), [false, true]);
    assert_eq!(is_in_own_project(&on("a-1", Written::Here(record.sealed()))), [true, true]);
    assert_eq!(is_in_own_project(&on("a-1", Written::Nowhere)), [false, true]);
    assert_eq!(
        is_in_own_project(&Binding { session: None, ..on("a-1", Written::Nowhere) }),
        [true, true]
    );
    // Whether another connection could.
    let beside = on("a-2", Written::Beside(record.clone()));
    assert!(replica.bindings.is_own_project_ready(&beside, MODEL));
    assert!(
        !replica.bindings.is_own_project_ready(&on("a-2", Written::Stored(record)), MODEL),
        "the stored binding is the session's own"
    );
    replica.limits("a-1");
    assert!(
        !replica.bindings.is_own_project_ready(&beside, MODEL)
            && replica.bindings.is_own_project_ready(&beside, "other")
    );
}
