//! Tests of the choice of keys: for new sessions, for moved sessions, in place of another key, and
//! by load.

use super::*;
use crate::binding::select::Reach;

impl Replica {
    /// Returns the keys that `choice` takes for many sessions, each once.
    fn chosen(&self, mut choice: impl FnMut(&SessionId) -> Option<Arc<Key>>) -> Vec<String> {
        let mut all: Vec<_> = (0..60)
            .map(session)
            .filter_map(|session| choice(&session))
            .map(|key| key.id.clone())
            .collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// The weightless key is the first in the file and has no load.
#[tokio::test(start_paused = true)]
async fn weightless_key_takes_no_new_session_anywhere_in_the_file() {
    let [replica] = replicas(
        "a-0 org-a zero 0, a-1 org-a one 1, b-0 org-b zero 0, b-1 org-b one 1, c-0 org-c one 0",
    );
    let (places, turn) = (&replica.bindings.places, replica.turn());
    let nobody = || replica.turn().with(|turn| turn.demand.session = None);
    let expected = ["a-1", "b-1"];
    assert_eq!(replica.chosen(|session| places.place_new(turn.placing(), session).ok()), expected);
    assert_eq!(
        replica.chosen(|session| places.choose(turn.placing(), session, Reach::Anywhere).ok()),
        expected
    );
    assert_eq!(replica.chosen(|session| places.default_of(turn.placing(), session).ok()), expected);
    assert_eq!(
        replica.chosen(|session| places
            .place_moved(turn.placing(), session, Reach::Anywhere)
            .ok()?
            .ok()),
        expected
    );
    // Turns without a session avoid a weightless key, too, however high the load of the others is.
    let busy: Vec<_> = (0..50).map(|_| replica.registry.loads.enter(&replica.key("a-1"))).collect();
    assert_eq!(replica.goes(nobody()).await.as_deref(), Ok("b-1"));
    let more: Vec<_> = (0..60).map(|_| replica.registry.loads.enter(&replica.key("b-1"))).collect();
    assert_eq!(replica.goes(nobody()).await.as_deref(), Ok("a-1"));
    drop((busy, more));
    replica.limits("a-1");
    replica.limits("b-1");
    assert_eq!(
        replica.goes(nobody()).await,
        Err(ErrorKind::RateLimitExceeded),
        "not even if no other key serves"
    );
    assert!(
        places.choose(turn.placing(), &session(1), Reach::Anywhere).is_err()
            && places.place_new(turn.placing(), &session(1)).is_err()
    );
    assert_eq!(
        replica.goes(nobody().with(|turn| turn.tried.wait_left = LONG)).await.as_deref(),
        Ok("a-1")
    );
    // A weightless key is no sibling, and keeps its own sessions.
    assert!(places.sibling(turn.placing(), &session(1), &replica.record("a-1", 1)).is_none());
    for epoch in [1, 2] {
        replica.put(&replica.record("c-0", epoch)).await;
        assert_eq!(replica.goes(replica.turn()).await.as_deref(), Ok("c-0"));
    }
}

/// A new session that comes by WebSocket begins on an upstream that speaks WebSocket, if there is
/// one.
#[tokio::test(start_paused = true)]
async fn websocket_session_begins_on_an_upstream_that_speaks_it() {
    let [replica] =
        replicas("a-1 org-a plain 5, a-2 org-a two 1, b-1 org-b plain 5, c-1 org-c one 1");
    let places = &replica.bindings.places;
    let http = replica.turn();
    let socket = replica.turn().with(|turn| turn.demand.by_websocket = true);
    let all = ["a-1", "a-2", "b-1", "c-1"];
    let spoken = ["a-2", "c-1"];
    assert_eq!(replica.chosen(|session| places.place_new(http.placing(), session).ok()), all);
    assert_eq!(
        replica.chosen(|session| places.choose(http.placing(), session, Reach::Anywhere).ok()),
        all
    );
    assert_eq!(replica.chosen(|session| places.place_new(socket.placing(), session).ok()), spoken);
    assert_eq!(
        replica.chosen(|session| places.choose(socket.placing(), session, Reach::Anywhere).ok()),
        spoken
    );
    assert_eq!(
        replica.chosen(|session| places
            .place_moved(socket.placing(), session, Reach::Anywhere)
            .ok()?
            .ok()),
        spoken
    );
    let sibling = |turn, id| {
        places.sibling(turn, &session(1), &replica.record(id, 1)).map(|key| key.id.clone())
    };
    assert_eq!(
        (sibling(socket.placing(), "a-2"), sibling(http.placing(), "a-2").as_deref()),
        (None, Some("a-1"))
    );
    // If no key in reach speaks WebSocket, a key that says so is better than none.
    let reach = Reach::Organization(replica.key("b-1").organization_tag);
    assert_eq!(places.choose(socket.placing(), &session(1), reach).unwrap().id, "b-1");
    // The client learns this at once, which is better than waiting for a limited key that speaks
    // WebSocket.
    replica.limits("a-2");
    let waiting = replica.turn().with(|turn| {
        turn.tried.wait_left = LONG;
        turn.demand.by_websocket = true;
    });
    let reach = Reach::Organization(replica.key("a-2").organization_tag);
    assert_eq!(
        replica.chosen(|session| places.choose(waiting.placing(), session, reach).ok()),
        ["a-1"]
    );
}

/// A new chat session begins on an upstream that speaks chat, if there is one. Otherwise its turns
/// are translated.
#[tokio::test(start_paused = true)]
async fn chat_session_begins_on_an_upstream_that_speaks_it() {
    let [replica] =
        replicas("a-1 org-a plain 5, a-2 org-a two 1, b-1 org-b plain 5, c-1 org-c one 1");
    let places = &replica.bindings.places;
    let chat = replica.turn().with(|turn| turn.demand.by_chat = true);
    let chosen = replica.chosen(|session| places.place_new(chat.placing(), session).ok());
    assert_eq!(chosen, ["a-2", "c-1"]);
    let reach = Reach::Organization(replica.key("b-1").organization_tag);
    assert_eq!(places.choose(chat.placing(), &session(1), reach).unwrap().id, "b-1");
    // A turn that is translated spills, and begins anywhere, as any other.
    let [replica] = replicas("a-1 org-a plain 5, a-2 org-a plain 1, b-1 org-b plain 5");
    let places = &replica.bindings.places;
    let chat = replica.turn().with(|turn| turn.demand.by_chat = true);
    let sibling = places.sibling(chat.placing(), &session(1), &replica.record("a-1", 1));
    assert_eq!(sibling.map(|key| key.id.clone()).as_deref(), Some("a-2"));
    let chosen = replica.chosen(|session| places.place_new(chat.placing(), session).ok());
    assert_eq!(chosen, ["a-1", "a-2", "b-1"]);
}

/// A sibling of the same region reads the same cache, so it comes first. Among those, a sibling of
/// the same project comes first, because later turns find its content.
#[tokio::test(start_paused = true)]
async fn sibling_is_of_the_same_region_before_others() {
    let [replica] = replicas(
        "a-1 org-a one 1 eu, a-2 org-a two 1 eu, a-3 org-a one 1 us, a-4 org-a three 1000000 us, a-5 org-a one 1 eu, b-1 org-b one 9 eu",
    );
    let places = &replica.bindings.places;
    let bound = replica.record("a-1", 1);
    let unknown = BindingRecord { key: crate::key::Tag::of("key", b"new"), ..bound.clone() };
    let siblings = |record: &BindingRecord, failed: &[&str]| {
        let failed = failed.iter().map(|id| replica.key(id).tag).collect::<Vec<_>>();
        let turn = replica.turn().with(|turn| turn.tried.failed = failed);
        replica.chosen(|session| places.sibling(turn.placing(), session, record))
    };
    assert_eq!(siblings(&bound, &[]), ["a-5"], "of one project and one region");
    assert_eq!(siblings(&bound, &["a-5"]), ["a-2"], "of one region");
    assert_eq!(
        siblings(&bound, &["a-5", "a-2"]),
        ["a-4"],
        "by the session's order, whatever its project"
    );
    assert_eq!(siblings(&bound, &["a-5", "a-2", "a-4"]), ["a-3"]);
    assert!(siblings(&bound, &["a-5", "a-2", "a-4", "a-3"]).is_empty(), "no other organization");
    assert_eq!(
        siblings(&unknown, &[]),
        ["a-4"],
        "where its key is not known, any region is as good"
    );
    // The turn's own limits and rights apply.
    replica.limits("a-1");
    assert_eq!(siblings(&bound, &[]), ["a-2"], "a-5 is of the limited project");
    let restricted = Client::of_organizations("alice", &["org-b"]);
    let barred = replica.turn().with(|turn| turn.demand.client = &restricted);
    assert!(places.sibling(barred.placing(), &session(1), &bound).is_none());
}

/// A key takes new sessions once all live replicas have loaded it, unless no key is loaded
/// everywhere.
#[tokio::test(start_paused = true)]
async fn key_that_is_not_loaded_everywhere_takes_no_session() {
    let [replica] = replicas("a-1 org-a one 1, a-2 org-a two 5000, b-1 org-b one 5000");
    let (places, turn) = (&replica.bindings.places, replica.turn());
    let others = |ids: &[&str]| {
        let tags: Vec<_> = ids.iter().map(|id| replica.key(id).tag.to_string()).collect();
        replica.registry.take_reply(
            &replica.registry.loaded(),
            &MembershipReply { ordinal: 1, others: vec![tags.join(" ")] },
        );
    };
    others(&["a-1"]);
    assert_eq!(replica.chosen(|session| places.place_new(turn.placing(), session).ok()), ["a-1"]);
    assert_eq!(
        replica.chosen(|session| places.choose(turn.placing(), session, Reach::Anywhere).ok()),
        ["a-1"]
    );
    assert_eq!(replica.chosen(|session| places.default_of(turn.placing(), session).ok()), ["a-1"]);
    // If no allowed key is loaded everywhere, a key that some replicas have not loaded yet is
    // better than none.
    let reach = Reach::Organization(replica.key("b-1").organization_tag);
    assert_eq!(
        replica.chosen(|session| places.choose(turn.placing(), session, reach).ok()),
        ["b-1"]
    );
    // A key that is not loaded everywhere still serves beside a binding, which binds no session to
    // it.
    let sibling = places.sibling(turn.placing(), &session(1), &replica.record("a-1", 1));
    assert_eq!(sibling.map(|key| key.id.clone()).as_deref(), Some("a-2"));
    others(&["a-1", "a-2", "b-1"]);
    assert_eq!(
        replica.chosen(|session| places.place_new(turn.placing(), session).ok()),
        ["a-2", "b-1"]
    );
}

/// A key that failed with the turn, or is limited for longer than the turn may wait, is not chosen.
/// A ready key comes before a limited one.
#[tokio::test(start_paused = true)]
async fn ready_key_comes_before_a_limited_one() {
    let [replica] = replicas("a-1 org-a one 1000000, b-1 org-b one 1");
    let places = &replica.bindings.places;
    let choose = |turn: &Turn<'_>| {
        let [place_new, choose] = [
            places.place_new(turn.placing(), &session(1)),
            places.choose(turn.placing(), &session(1), Reach::Anywhere),
        ]
        .map(|chosen| chosen.map(|key| key.id.clone()).map_err(|error| error.kind));
        assert_eq!(place_new, choose);
        choose
    };
    let failed =
        |id: &str| replica.turn().with(|turn| turn.tried.failed = vec![replica.key(id).tag]);
    let waiting = || replica.turn().with(|turn| turn.tried.wait_left = LONG);
    assert_eq!(choose(&replica.turn()).as_deref(), Ok("a-1"));
    assert_eq!(choose(&failed("a-1")).as_deref(), Ok("b-1"));
    let restricted = Client::of_organizations("alice", &["org-b"]);
    let barred = || replica.turn().with(|turn| turn.demand.client = &restricted);
    assert_eq!(choose(&barred()).as_deref(), Ok("b-1"));
    assert!(
        !places.has_any(barred().placing(), reach_of(&replica, "a-1"))
            && places.has_any(barred().placing(), reach_of(&replica, "b-1"))
    );
    assert_eq!(places.by_load(barred().placing()).unwrap().id, "b-1");
    assert_eq!(places.default_of(barred().placing(), &session(1)).unwrap().id, "b-1");
    assert!(!places.has_any(
        waiting().with(|turn| turn.tried.failed = vec![replica.key("b-1").tag]).placing(),
        reach_of(&replica, "b-1")
    ));
    replica.limits("a-1");
    assert_eq!(choose(&waiting()).as_deref(), Ok("b-1"));
    replica.limits("b-1");
    assert_eq!(choose(&waiting()).as_deref(), Ok("a-1"));
    assert!(
        places.has_any(waiting().placing(), Reach::Anywhere)
            && !places.has_any(replica.turn().placing(), Reach::Anywhere)
    );
    assert_eq!(choose(&replica.turn()), Err(ErrorKind::RateLimitExceeded));
    let by_load = |turn: &Turn<'_>| {
        places.by_load(turn.placing()).map(|key| key.id.clone()).map_err(|error| error.kind)
    };
    assert_eq!(
        by_load(&waiting().with(|turn| turn.tried.failed = vec![replica.key("a-1").tag]))
            .as_deref(),
        Ok("b-1")
    );
}

fn reach_of(replica: &Replica, id: &str) -> Reach {
    Reach::Organization(replica.key(id).organization_tag)
}

/// The error's `Retry-After` follows from the state of the keys.
#[tokio::test(start_paused = true)]
async fn shortage_says_when_to_retry() {
    let [replica] =
        replicas("a-1 org-a one 1, a-2 org-a two 1, a-3 org-a three 1, a-4 org-a four 1");
    let told = || {
        let error = replica.bindings.places.shortage_of(replica.turn().placing(), Reach::Anywhere);
        (error.kind, error.retry_after.map(|wait| wait.as_secs()))
    };
    let none = |wait| (ErrorKind::NoKeyAvailable, Some(wait));
    for id in ["a-1", "a-2", "a-3", "a-4"] {
        replica.says(id, Condition::Disabled);
    }
    assert_eq!(told(), none(30));
    replica.says("a-1", Condition::Enabled);
    replica.registry.observe(&replica.key("a-1"), Ailment::Rejected(Scope::Key));
    assert_eq!(told(), none(1), "a probe decides in a moment");
    for id in ["a-2", "a-3"] {
        replica.says(id, Condition::Enabled);
        replica.rejects(id);
    }
    assert_eq!(told(), none(5), "most keys are refused at once, which is an incident");
    // The key whose limit ends first determines the wait, for this model.
    replica.says("a-4", Condition::Enabled);
    replica.registry.limit(&replica.key("a-4"), MODEL, Duration::from_secs(40));
    assert_eq!(told(), (ErrorKind::RateLimitExceeded, Some(40)));
    replica.registry.conditions.forget(|_| true);
    replica.registry.has_changed();
    for (id, wait) in [("a-1", 30), ("a-2", 20), ("a-3", 50), ("a-4", 40)] {
        replica.registry.limit(&replica.key(id), MODEL, Duration::from_secs(wait));
    }
    assert_eq!(told(), (ErrorKind::RateLimitExceeded, Some(20)));
}

/// A project with little headroom takes new sessions only if its siblings have no more headroom. It
/// keeps all its sessions.
#[tokio::test(start_paused = true)]
async fn scarce_project_is_spared_new_sessions() {
    let [replica] = replicas("a-1 org-a one 5, a-2 org-a two 5, b-1 org-b one 1");
    let (places, turn) = (&replica.bindings.places, replica.turn());
    let left = |id: &str, left: &str| {
        let limits = [("limit", "100"), ("remaining", left), ("reset", "60s")];
        let named = |(what, value): (&str, &str)| {
            let name = format!("x-ratelimit-{what}-requests");
            (http::HeaderName::try_from(name).unwrap(), http::HeaderValue::from_str(value).unwrap())
        };
        replica.registry.headrooms.observe(
            &replica.key(id),
            MODEL,
            &limits.into_iter().map(named).collect(),
        );
    };
    let other = replica.turn().with(|turn| turn.demand.model = "other");
    let before = replica.chosen(|session| places.place_new(turn.placing(), session).ok());
    assert_eq!(before, ["a-1", "a-2", "b-1"]);
    left("a-1", "0");
    left("b-1", "0");
    assert_eq!(
        replica.chosen(|session| places.place_new(turn.placing(), session).ok()),
        ["a-2", "b-1"],
        "b-1 has no sibling"
    );
    assert_eq!(
        replica.chosen(|session| places.place_new(other.placing(), session).ok()),
        before,
        "the other model has headroom"
    );
    assert_eq!(replica.stands(&turn, &replica.record("a-1", 1)), "a-1");
    left("a-2", "0");
    assert_eq!(
        replica.chosen(|session| places.place_new(turn.placing(), session).ok()),
        before,
        "no sibling has more headroom"
    );
}

/// Every version of Warmkey gives a session the same order of keys.
#[tokio::test(start_paused = true)]
async fn order_of_keys_is_the_same_in_all_versions() {
    let [replica] = replicas("a-1 org-a one 1, a-2 org-a two 2, b-1 org-b one 1, c-1 org-c one 3");
    let (places, turn) = (&replica.bindings.places, replica.turn());
    let order = (0..16).map(|number| {
        places.choose(turn.placing(), &session(number), Reach::Anywhere).unwrap().id.clone()
    });
    assert_eq!(
        order.collect::<Vec<_>>().join(" "),
        "c-1 a-1 c-1 c-1 c-1 c-1 a-2 a-2 a-1 c-1 a-2 c-1 a-2 a-1 c-1 c-1"
    );
}
