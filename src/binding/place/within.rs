//! Tests of turns that continue from content that one project stores.

use super::*;
use crate::binding::demand::Turn;
use crate::client::Client;
use crate::health::diagnose::{Ailment, Scope};
use crate::key::table::Table;
use crate::key::{KeySettings, UpstreamSettings};
use crate::metrics::Metrics;

/// Each key is `(id, organization, project, weight)`.
const KEYS: [(&str, &str, &str, u32); 5] = [
    ("a-1", "org-a", "one", 1),
    ("a-2", "org-a", "one", 1),
    ("a-3", "org-a", "two", 1),
    ("a-4", "org-a", "idle", 0),
    ("b-1", "org-b", "one", 1),
];

fn places() -> (Places, Arc<Registry>) {
    let upstream: UpstreamSettings =
        serde_json::from_str(r#"{"name":"u","base_url":"http://127.0.0.1:1"}"#).unwrap();
    let settings = KEYS.map(|(id, organization, project, weight)| {
        let key = serde_json::json!({ "id": id, "upstream": "u", "organization": organization, "project": project,
            "weight": weight, "secret": "sk" });
        serde_json::from_value::<KeySettings>(key).unwrap()
    });
    let registry = Arc::new(Registry::new(
        Table::new(&[upstream], &settings).unwrap(),
        Arc::new(Metrics::new()),
    ));
    (Places::new(Arc::clone(&registry)), registry)
}

fn key(registry: &Registry, id: &str) -> Arc<Key> {
    registry.loaded().table.by_tag(Tag::of("key", id.as_bytes())).cloned().unwrap()
}

fn project(organization: &str, project: &str) -> Reach {
    let project = Tag::of_project(organization, project);
    Reach::Project { organization: Tag::of_organization(organization), project }
}

fn turn(client: &Client, within: Reach) -> Turn<'_> {
    Turn::of(client).with(|turn| turn.within = within)
}

fn session(number: u32) -> SessionId {
    SessionId::parse(&format!("{number:022}")).unwrap()
}

#[test]
fn turn_that_continues_from_a_project_stays_in_it() {
    let (places, registry) = places();
    let client = Client::unrestricted("alice");
    for (within, expected) in [
        (project("org-a", "one"), &["a-1", "a-2"][..]),
        (project("org-a", "two"), &["a-3"]),
        (project("org-a", "idle"), &["a-4"]),
        (project("org-b", "one"), &["b-1"]),
    ] {
        let turn = turn(&client, within);
        let mut used: Vec<_> = (0..40)
            .map(|number| {
                places.choose(turn.placing(), &session(number), Reach::Anywhere).unwrap().id.clone()
            })
            .collect();
        used.extend(
            (0..40).map(|number| {
                places.default_of(turn.placing(), &session(number)).unwrap().id.clone()
            }),
        );
        used.push(places.by_load(turn.placing()).unwrap().id.clone());
        used.sort_unstable();
        used.dedup();
        assert_eq!(used, expected);
        assert!(
            places
                .choose_outside(
                    turn.placing(),
                    &session(1),
                    &[key(&registry, expected[0]).organization_tag]
                )
                .is_none()
        );
    }
}

#[test]
fn binding_to_another_project_stays() {
    let (places, registry) = places();
    let client = Client::unrestricted("alice");
    let standing = |record: &BindingRecord, within| match places
        .standing(turn(&client, within).placing(), record)
    {
        Standing::Ready(key) => key.id.clone(),
        Standing::OtherProject => "other project".into(),
        Standing::Dead(_) => "dead".into(),
        Standing::Bypassed(_) => "not loaded".into(),
    };
    let (one, two) = (project("org-a", "one"), project("org-a", "two"));
    let bound = BindingRecord::first(&key(&registry, "a-1"), 1);
    assert_eq!(
        [Reach::Anywhere, one, two].map(|within| standing(&bound, within)),
        ["a-1", "a-1", "other project"]
    );
    // The session's other turns react to the state of its key; this turn does not.
    registry.condemn(&key(&registry, "a-1"), Ailment::Rejected(Scope::Key));
    assert_eq!(
        [Reach::Anywhere, one, two].map(|within| standing(&bound, within)),
        ["dead", "dead", "other project"]
    );
    let unknown = BindingRecord { key: Tag::of("key", b"new"), generation: 9, ..bound };
    let other = project("org-b", "one");
    assert_eq!(
        [Reach::Anywhere, two, other].map(|within| standing(&unknown, within)),
        ["not loaded", "not loaded", "other project"]
    );
}

#[test]
fn sibling_of_the_same_project_serves_first() {
    let (places, registry) = places();
    let client = Client::unrestricted("alice");
    let turn = turn(&client, Reach::Anywhere);
    let bound = BindingRecord::first(&key(&registry, "a-1"), 1);
    let sibling =
        |number| places.sibling(turn.placing(), &session(number), &bound).map(|key| key.id.clone());
    assert!((0..40).all(|number| sibling(number).as_deref() == Some("a-2")));
    registry.condemn(&key(&registry, "a-2"), Ailment::Rejected(Scope::Key));
    assert!(
        (0..40).all(|number| sibling(number).as_deref() == Some("a-3")),
        "one of another project is better than none"
    );
}

#[test]
fn project_without_a_key_in_use_is_named() {
    let (places, registry) = places();
    let client = Client::unrestricted("alice");
    let refused = |within| {
        let turn = turn(&client, within);
        let error = places.choose(turn.placing(), &session(1), Reach::Anywhere).err().unwrap();
        assert_eq!(
            places.by_load(turn.placing()).err().map(|error| error.message),
            Some(error.message.clone())
        );
        (error.status().as_u16(), error.retry_after.map(|wait| wait.as_secs()), error.message)
    };
    registry.condemn(&key(&registry, "a-1"), Ailment::Rejected(Scope::Key));
    registry.condemn(&key(&registry, "a-2"), Ailment::Rejected(Scope::Key));
    let (status, wait, message) = refused(project("org-a", "one"));
    assert!(
        (status, wait) == (503, Some(30)) && message.contains("org-a/one"),
        "{status} {wait:?} {message}"
    );
    registry.condemn(&key(&registry, "a-3"), Ailment::Exhausted(Scope::Project));
    let (status, wait, message) = refused(project("org-a", "two"));
    assert!(
        (status, wait) == (429, None) && message.contains("org-a/two"),
        "{status} {wait:?} {message}"
    );
    let (status, wait, _) = refused(project("org-a", "later"));
    assert_eq!((status, wait), (503, Some(1)), "another replica may have loaded it");
    let (status, wait, _) = refused(Reach::Nowhere);
    assert_eq!((status, wait), (503, Some(1)), "no other key serves instead");
}

/// In another dialect, a turn would find nothing cached at a sibling.
#[test]
fn chat_turn_goes_to_a_sibling_of_the_same_dialect_first() {
    let upstreams = [("u", ""), ("r", r#","speaks":["responses"]"#)].map(|(name, more)| {
        let text = format!(r#"{{"name":"{name}","base_url":"http://127.0.0.1:1"{more}}}"#);
        serde_json::from_str::<UpstreamSettings>(&text).unwrap()
    });
    let keys = [("a-1", "u"), ("a-2", "r"), ("a-3", "u")].map(|(id, upstream)| {
        let key = serde_json::json!({ "id": id, "upstream": upstream, "organization": "org-a", "secret": "sk" });
        serde_json::from_value::<KeySettings>(key).unwrap()
    });
    let table = Table::new(&upstreams, &keys).unwrap();
    let registry = Arc::new(Registry::new(table, Arc::new(Metrics::new())));
    let places = Places::new(Arc::clone(&registry));
    let client = Client::unrestricted("alice");
    let [plain, chat] = [false, true].map(|by_chat| {
        Turn::of(&client).with(|turn| {
            turn.demand.by_chat = by_chat;
            turn.demand.model = "m";
        })
    });
    let own = key(&registry, "a-1");
    let siblings = |turn: &Turn<'_>, own: &Key| {
        let bound = BindingRecord::first(own, 1);
        let sibling = |number| places.sibling(turn.placing(), &session(number), &bound);
        let mut ids: Vec<_> =
            (0..40).filter_map(|number| Some(sibling(number)?.id.clone())).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    };
    assert_eq!(siblings(&chat, &own), ["a-3"]);
    assert_eq!(siblings(&plain, &own), ["a-2", "a-3"]);
    assert_eq!(siblings(&chat, &key(&registry, "a-2")), ["a-1", "a-3"], "better than none");
    registry.strain(&own, "m".into());
    assert!(places.is_relieved(chat.placing(), &own));
    registry.condemn(&key(&registry, "a-3"), Ailment::Rejected(Scope::Key));
    assert!(places.is_relieved(plain.placing(), &own));
    assert!(!places.is_relieved(chat.placing(), &own), "only another dialect is left");
    assert_eq!(siblings(&chat, &own), ["a-2"], "better than none");
}
