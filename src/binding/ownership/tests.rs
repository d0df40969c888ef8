//! Tests of the owners of stored responses: as text, in memory, and in the store.

use super::*;
use crate::client::ClientId;
use crate::metrics::Metrics;
use crate::session::identify::Identifier;
use crate::setting::Secret;
use crate::store::model::{Flaw, Model, Shared, Weather};
use proptest::prelude::*;

const HOUR: Duration = Duration::from_secs(3600);

struct Replica {
    model: Model,
    owners: Arc<Owners>,
}

impl Replica {
    fn new(shared: &Arc<Mutex<Shared>>, capacity: usize) -> Self {
        let model = Model::new(shared);
        let store = Arc::new(Store::in_model(model.clone(), Arc::new(Metrics::new())));
        Self { model, owners: Arc::new(Owners::new(store, HOUR, capacity)) }
    }

    fn weather(&self, weather: Weather) {
        *self.model.weather.lock().unwrap() = weather;
    }

    async fn keep(&self, id: &str) {
        self.owners.keep(&response(id), owner(), &mut self.owners.store.budget()).await;
    }

    async fn knows(&self, id: &str) -> Option<bool> {
        let found = self.owners.find(&response(id), &mut self.owners.store.budget()).await;
        found.ok().map(|found| found == Some(owner()))
    }
}

fn two() -> (Replica, Replica) {
    let shared = Arc::new(Mutex::new(Shared::new(Flaw::None)));
    (Replica::new(&shared, 8), Replica::new(&shared, 8))
}

fn response(id: &str) -> ResponseId {
    Identifier::new(&Secret::new("secret"), None).response(&ClientId::new("alice"), id)
}

fn owner() -> Owner {
    let session = SessionId::parse("0123456789abcdefghijkl");
    Owner {
        session,
        organization: Tag::of("organization", b"o"),
        project: Tag::of("project", b"p"),
    }
}

#[tokio::test(start_paused = true)]
async fn owner_that_one_replica_writes_is_known_to_all() {
    let (one, two) = two();
    one.keep("r").await;
    assert_eq!((one.knows("r").await, two.knows("r").await), (Some(true), Some(true)));
    assert_eq!(two.knows("never issued").await, Some(false));
    // A known owner answers while the store is away.
    two.weather(Weather::Away);
    assert_eq!((two.knows("r").await, two.knows("never issued").await), (Some(true), None));
}

#[tokio::test(start_paused = true)]
async fn owner_that_could_not_be_stored_is_stored_later() {
    for weather in [Weather::Away, Weather::Mute] {
        let (one, two) = two();
        one.weather(weather);
        one.keep("r").await;
        assert_eq!((one.knows("r").await, one.knows("other").await), (Some(true), None));
        assert!(!one.owners.catch_up().await);
        one.weather(Weather::Fair);
        assert!(one.owners.catch_up().await);
        assert_eq!(two.knows("r").await, Some(true), "{weather:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn owner_is_stored_later_in_the_background() {
    let (one, two) = two();
    let storing = tokio::spawn(Arc::clone(&one.owners).keep_storing());
    one.weather(Weather::Away);
    one.keep("r").await;
    tokio::time::sleep(RETRY_PAUSE * 3).await;
    assert_eq!(two.knows("r").await, Some(false));
    one.weather(Weather::Fair);
    tokio::time::sleep(RETRY_PAUSE * 2).await;
    assert_eq!(two.knows("r").await, Some(true));
    storing.abort();
}

#[tokio::test(start_paused = true)]
async fn owner_that_the_store_has_lost_is_stored_again() {
    let (one, two) = two();
    one.keep("r").await;
    one.model.shared.lock().unwrap().loses(&Name::Response(response("r").as_str()).to_string());
    assert_eq!(two.knows("r").await, Some(false));
    assert_eq!(one.knows("r").await, Some(true));
    assert!(one.owners.catch_up().await);
    assert_eq!(two.knows("r").await, Some(true));
}

#[tokio::test(start_paused = true)]
async fn queue_of_unstored_owners_is_limited_and_expires() {
    let (one, two) = two();
    one.weather(Weather::Away);
    for number in 0..50 {
        one.keep(&format!("r{number}")).await;
    }
    assert_eq!(one.owners.lock().unstored.len(), 8);
    tokio::time::advance(HOUR).await;
    one.weather(Weather::Fair);
    assert!(one.owners.catch_up().await);
    assert_eq!(two.knows("r49").await, Some(false), "the owner has expired");
}

proptest! {
    #[test]
    fn written_owner_is_read_back(organization in "[A-Za-z0-9_-]{8}", project in "[A-Za-z0-9_-]{8}", session in proptest::option::of("[A-Za-z0-9_-]{22}")) {
        let tag = |text: &str| Tag::parse(text).unwrap();
        let session = session.and_then(|id| SessionId::parse(&id));
        let owner = Owner { session, organization: tag(&organization), project: tag(&project) };
        prop_assert_eq!(Owner::parse(&owner.to_string()), Some(owner));
    }

    #[test]
    fn random_text_is_neither_fatal_nor_an_owner(text in "\\PC{0,50}") {
        // Sixteen random characters that happen to be tags are read and written unchanged.
        let is_written = |owner: Owner| text.starts_with(&owner.to_string());
        prop_assert!(Owner::parse(&text).is_none_or(is_written), "{}", text);
    }

    /// A text that is almost an owner parses only if it begins with the written form of the parsed
    /// owner. A newer version may write more words.
    #[test]
    fn owner_parses_only_from_its_written_form(
        text in "[A-Za-z0-9_-]{16}( [A-Za-z0-9_-]{22})?",
        cut in 0..40_usize,
        length in 0..3_usize,
        insertion in prop_oneof![Just("x"), Just(" "), Just("~"), Just("")],
    ) {
        let (start, end) = (cut.min(text.len()), (cut + length).min(text.len()));
        let other = format!("{}{insertion}{}", &text[..start], &text[end..]);
        let known = other.splitn(3, ' ').take(2).collect::<Vec<_>>().join(" ");
        let is_well_formed =
            [16, 39].contains(&known.len()) && known.find(' ').is_none_or(|at| at == 16);
        let is_well_formed = is_well_formed && (known.len() == 16) != known.contains(' ');
        let is_session = known.get(17..).is_none_or(|session| !session.contains([' ', '~']));
        let read = Owner::parse(&other).map(|owner| owner.to_string());
        prop_assert_eq!(read, (is_well_formed && is_session).then_some(known));
    }
}

/// Pins the format that other versions and replicas read.
#[test]
fn owner_is_written_as_it_always_was() {
    let tag = |text: &str| Tag::parse(text).unwrap();
    let session = SessionId::parse("0123456789abcdefghijkl");
    let owner = Owner { session, organization: tag("orgorgor"), project: tag("projproj") };
    assert_eq!(owner.to_string(), "orgorgorprojproj 0123456789abcdefghijkl");
    let (organization, project) = (owner.organization, owner.project);
    assert_eq!(owner.reach(), Reach::Project { organization, project });
    assert_eq!(Owner { session: None, ..owner }.to_string(), "orgorgorprojproj");
}

#[tokio::test(start_paused = true)]
async fn owner_is_of_the_key_that_has_answered() {
    let table = crate::key::table::Table::sketch("a-1 org-a 1 sk-1, b-1 org-b 1 sk-2");
    let session = SessionId::parse("0123456789abcdefghijkl").unwrap();
    let binding =
        Binding::passing(&table.keys()[1], Some(&session), crate::metrics::BindingResult::Spilled);
    let owner = Owner::of(&binding);
    assert_eq!(
        (owner.session.as_ref(), owner.reach()),
        (Some(&session), Reach::project_of(&table.keys()[1]))
    );
}

/// A remembered owner lives no longer than the stored one.
#[tokio::test(start_paused = true)]
async fn owner_is_forgotten_when_the_stored_one_expires() {
    let memory = Arc::new(crate::store::memory::Memory::new(8));
    let store = Arc::new(Store::in_memory(Arc::clone(&memory), Arc::new(Metrics::new())));
    let owners = Owners::new(Arc::clone(&store), HOUR, 8);
    memory.claim(Name::Response(response("r").as_str()), &owner().to_string(), HOUR / 2);
    let finds =
        async || owners.find(&response("r"), &mut store.budget()).await.ok().flatten().is_some();
    assert!(finds().await);
    memory.remove(Name::Response(response("r").as_str()));
    assert!(finds().await, "the store has lost it");
    tokio::time::advance(HOUR / 2).await;
    assert!(!finds().await);
    owners.keep(&response("s"), owner(), &mut store.budget()).await;
    assert_eq!(
        memory.get(Name::Response(response("s").as_str())).map(|entry| entry.left),
        Some(HOUR)
    );
    // A value of a newer version does not count as missing.
    memory.claim(Name::Response(response("t").as_str()), "of a newer version", HOUR);
    assert!(owners.find(&response("t"), &mut store.budget()).await.is_err());
}

#[test]
fn text_of_another_kind_does_not_parse() {
    for other in [
        "",
        "short",
        "aaaaaaaabbbbbbb",
        "aaaaaaaabbbbbbbbc",
        "aaaaaaaabbbbbb\u{e9}",
        "aaaaaaaabbbbbbbb ",
        "aaaaaaaabbbbbbbb x",
    ] {
        assert_eq!(Owner::parse(other), None, "{other}");
    }
    let newer = Owner::parse("aaaaaaaabbbbbbbb 0123456789abcdefghijkl x:1 y");
    assert_eq!(newer, Owner::parse("aaaaaaaabbbbbbbb 0123456789abcdefghijkl"));
    assert!(newer.is_some(), "a newer version writes more words");
}
