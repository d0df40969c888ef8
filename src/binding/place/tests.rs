//! Tests that a turn uses only allowed keys, whatever the state of the keys.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::binding::demand::Turn;
use crate::client::Client;
use crate::health::condition::{Condition, Subject};
use crate::health::diagnose::{Ailment, Scope};
use crate::key::table::Table;
use crate::metrics::{Metrics, Reason};

const KEYS: &str = "a-1 org-a 1 sk-1, a-2 org-a 1 sk-2, a-3 org-a 0 sk-3, b-1 org-b 2 sk-4, b-2 org-b 1 sk-5, c-1 org-c 1 sk-6";
const WAIT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug)]
enum Case {
    Rejected(usize),
    Suspected(usize),
    Exhausted(usize, Scope),
    Limited(usize, u64),
    Denied(usize),
    Disabled(usize),
    Drained(usize),
    Enabled(usize),
    Served(usize),
    Failed(usize),
}

fn case() -> impl Strategy<Value = Case> {
    let key = || 0..6_usize;
    let scope = prop_oneof![Just(Scope::Project), Just(Scope::Organization)];
    prop_oneof![
        key().prop_map(Case::Rejected),
        key().prop_map(Case::Suspected),
        (key(), scope).prop_map(|(key, scope)| Case::Exhausted(key, scope)),
        (key(), 1..60_u64).prop_map(|(key, wait)| Case::Limited(key, wait)),
        key().prop_map(Case::Denied),
        key().prop_map(Case::Disabled),
        key().prop_map(Case::Drained),
        key().prop_map(Case::Enabled),
        key().prop_map(Case::Served),
        key().prop_map(Case::Failed),
    ]
}

fn registry(cases: &[Case], failed: &mut Vec<Tag>) -> Arc<Registry> {
    // Each key opens connections of its own, so the table is built once.
    static TABLE: LazyLock<Table> = LazyLock::new(|| Table::sketch(KEYS));
    let registry = Arc::new(Registry::new(TABLE.clone(), Arc::new(Metrics::new())));
    play(&registry, cases, failed);
    registry
}

fn play(registry: &Registry, cases: &[Case], failed: &mut Vec<Tag>) {
    let loaded = registry.loaded();
    let key = |number: usize| &loaded.table.keys()[number];
    for case in cases {
        match *case {
            Case::Rejected(number) => registry.condemn(key(number), Ailment::Rejected(Scope::Key)),
            Case::Suspected(number) => registry.observe(key(number), Ailment::Rejected(Scope::Key)),
            Case::Exhausted(number, scope) => {
                registry.observe(key(number), Ailment::Exhausted(scope))
            }
            Case::Limited(number, wait) => {
                registry.limit(key(number), "m", Duration::from_secs(wait))
            }
            Case::Denied(number) => registry.deny(key(number), "m"),
            Case::Disabled(number) => drop(registry.conditions.note(
                Subject::of_key_id(key(number)),
                Condition::Disabled,
                None,
            )),
            Case::Drained(number) => drop(registry.conditions.note(
                Subject::of_key_id(key(number)),
                Condition::Drained,
                None,
            )),
            Case::Enabled(number) => drop(registry.conditions.note(
                Subject::of_key_id(key(number)),
                Condition::Enabled,
                None,
            )),
            Case::Served(number) => registry.has_served(key(number), tokio::time::Instant::now()),
            Case::Failed(number) => failed.push(key(number).tag),
        }
    }
    registry.has_changed();
}

fn turn<'t>(session: &SessionId, client: &'t Client, failed: Vec<Tag>) -> Turn<'t> {
    Turn::of(client).with(|turn| {
        turn.demand.session = Some(session.clone());
        turn.demand.model = "m";
        turn.tried.wait_left = WAIT;
        turn.tried.failed = failed;
    })
}

#[tokio::test(start_paused = true)]
async fn new_session_finds_headroom_in_its_organization_and_another_one_while_that_recovers() {
    let registry = registry(&[], &mut Vec::new());
    let (places, client) = (Places::new(Arc::clone(&registry)), Client::unrestricted("alice"));
    let begin = || {
        let sessions = (0..300).map(|number| SessionId::parse(&format!("{number:022}")).unwrap());
        sessions
            .map(|session| {
                places
                    .place_new(turn(&session, &client, Vec::new()).placing(), &session)
                    .unwrap()
                    .id
                    .clone()
            })
            .collect::<Vec<_>>()
    };
    let keys = registry.loaded().table.keys().to_vec();
    let count =
        |ids: &[String], prefix: &str| ids.iter().filter(|id| id.starts_with(prefix)).count();
    let calm = begin();
    assert!(
        ["a-1", "a-2", "b-1", "b-2", "c-1"].iter().all(|key| count(&calm, key) > 20),
        "{calm:?}"
    );

    // b-1 has more than its share of the load, and the only project of org-c has no headroom.
    registry.loads.replace_others(&[format!("{}=40", keys[3].tag)]);
    let limits = [("limit", "100"), ("remaining", "0"), ("reset", "60s")];
    let named = |(what, value)| {
        let name = format!("x-ratelimit-{what}-requests");
        (http::HeaderName::try_from(name).unwrap(), http::HeaderValue::from_static(value))
    };
    registry.headrooms.observe(&keys[5], "m", &limits.into_iter().map(named).collect());
    let full = begin();
    assert_eq!(count(&full, "b-1"), 0);
    assert!(
        calm.iter().zip(&full).all(|(calm, full)| calm == full || calm == "b-1" && full == "b-2"),
        "{full:?}"
    );

    registry.loads.replace_others(&[]);
    registry.condemn(&keys[5], Ailment::Rejected(Scope::Key));
    assert_eq!(count(&begin(), "c-1"), 0);
    registry.end_illness(Subject::of(&keys[5], Scope::Key), "c-1");
    let mut shares = Vec::new();
    for _ in 0..3 {
        shares.push(count(&begin(), "c-1"));
        tokio::time::advance(Duration::from_secs(30)).await;
    }
    assert!(
        shares[0] == 0
            && shares[1] > 5
            && shares[1] < shares[2]
            && shares[2] == count(&calm, "c-1"),
        "{shares:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn new_sessions_avoid_at_most_three_in_ten_keys() {
    let registry = registry(&[], &mut Vec::new());
    let (places, client) = (Places::new(Arc::clone(&registry)), Client::unrestricted("alice"));
    let keys = registry.loaded().table.keys().to_vec();
    let recover = |number: usize| {
        registry.condemn(&keys[number], Ailment::Rejected(Scope::Key));
        registry.end_illness(Subject::of(&keys[number], Scope::Key), "it");
    };
    let on = |id: &str| {
        let sessions = (0..200).map(|number| SessionId::parse(&format!("{number:022}")).unwrap());
        let chosen = sessions.map(|session| {
            places.place_new(turn(&session, &client, Vec::new()).placing(), &session).unwrap()
        });
        chosen.filter(|key| key.id == id).count()
    };
    recover(5);
    assert_eq!(on("c-1"), 0, "one of five");
    recover(3);
    assert!(on("c-1") > 20 && on("b-1") > 20, "two of five would be too many");
}

#[tokio::test(start_paused = true)]
async fn exhaustion_is_final_only_if_it_is_everywhere() {
    let client = Client::of_organizations("alice", &["org-a", "org-b"]);
    let kind_of = |cases: &[Case], reach: &str| {
        let registry = registry(cases, &mut Vec::new());
        let session = SessionId::parse("0123456789abcdefghijkl").unwrap();
        let reach = if reach.is_empty() {
            Reach::Anywhere
        } else {
            Reach::Organization(Tag::of_organization(reach))
        };
        Places::new(registry).shortage_of(turn(&session, &client, Vec::new()).placing(), reach).kind
    };
    let (a, b) = (Case::Exhausted(0, Scope::Organization), Case::Exhausted(3, Scope::Organization));
    assert_eq!(kind_of(&[a], "org-a"), ErrorKind::InsufficientQuota);
    assert_eq!(kind_of(&[a, b], ""), ErrorKind::InsufficientQuota);
    assert_eq!(
        kind_of(&[a, Case::Disabled(1)], "org-a"),
        ErrorKind::InsufficientQuota,
        "an operator's command on one of them changes nothing"
    );
    assert_eq!(
        kind_of(&[a, Case::Rejected(3), Case::Rejected(4)], ""),
        ErrorKind::NoKeyAvailable,
        "others are only refused"
    );
    assert_eq!(
        kind_of(&[Case::Rejected(0), Case::Rejected(1)], "org-a"),
        ErrorKind::NoKeyAvailable
    );
}

/// Checks every decision about a turn of `session`, which is bound to the key `bound`.
fn check(
    registry: &Arc<Registry>,
    session: &SessionId,
    (bound, is_sealed): (usize, bool),
    organizations: &[&str],
    failed: Vec<Tag>,
) -> Result<(), TestCaseError> {
    let places = Places::new(Arc::clone(registry));
    let client = Client::of_organizations("alice", organizations);
    let turn = turn(session, &client, failed);
    let loaded = registry.loaded();
    let own = &loaded.table.keys()[bound];
    let record = BindingRecord { sealed: is_sealed, generation: 1, ..BindingRecord::first(own, 1) };
    loaded.take_reply(&crate::store::MembershipReply { ordinal: 1, others: Vec::new() });
    let may =
        |key: &Key| organizations.is_empty() || organizations.contains(&key.organization.as_str());
    let can = |key: &Key| {
        let is_limited =
            matches!(registry.fitness(key, "m"), Fitness::Limited(wait) if wait <= WAIT);
        !turn.tried.failed.contains(&key.tag) && (registry.is_ready(key, "m") || is_limited)
    };
    for key in [
        places.place_new(turn.placing(), session).ok(),
        places.choose(turn.placing(), session, Reach::Anywhere).ok(),
    ]
    .iter()
    .flatten()
    {
        prop_assert!(may(key) && can(key) && key.weight > 0, "{} is not for new sessions", key.id);
    }
    let own_reach = Reach::Organization(record.organization);
    for key in [
        places.choose(turn.placing(), session, own_reach).ok(),
        places.sibling(turn.placing(), session, &record),
    ]
    .iter()
    .flatten()
    {
        prop_assert!(
            may(key) && can(key) && key.organization == own.organization,
            "{} is of another organization",
            key.id
        );
    }
    if let Ok(Ok(key)) = places.place_moved(turn.placing(), session, turn.placing().reach(&record))
    {
        prop_assert!(
            may(&key) && can(&key) && (!is_sealed || key.organization == own.organization),
            "{} takes no moved session",
            key.id
        );
    }
    match places.standing(turn.placing(), &record) {
        Standing::Ready(key) => prop_assert!(key.tag == own.tag && may(&key) && can(&key)),
        Standing::Bypassed(_) | Standing::Dead(Reason::NotAllowed) => {}
        Standing::OtherProject => prop_assert!(false, "it may go anywhere"),
        // A session leaves a key for good only for a lasting reason.
        Standing::Dead(reason) => {
            prop_assert!(
                matches!(reason, Reason::Rejected | Reason::Exhausted | Reason::Drained),
                "{reason:?}"
            );
            prop_assert!(!registry.is_ready(own, "m"));
        }
    }
    let shortage = places.shortage_of(turn.placing(), own_reach);
    let is_final = shortage.kind == ErrorKind::InsufficientQuota;
    prop_assert!(
        is_final != shortage.retry_after.is_some_and(|wait| wait >= Duration::from_millis(1)),
        "{shortage:?}"
    );
    Ok(())
}

proptest! {
    #[test]
    fn turn_uses_only_allowed_keys(
        history in prop::collection::vec((prop::collection::vec(case(), 0..4), 0..90_u64), 1..6),
        session in "[a-z]{22}",
        bound in (0..6_usize, any::<bool>()),
        organizations in prop::sample::subsequence(vec!["org-a", "org-b", "org-c"], 0..=3),
    ) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let registry = registry(&[], &mut Vec::new());
            let session = SessionId::parse(&session).unwrap();
            for (cases, seconds) in &history {
                // The next turn forgets where the upstream has failed.
                let mut failed = Vec::new();
                play(&registry, cases, &mut failed);
                check(&registry, &session, bound, &organizations, failed)?;
                tokio::time::advance(Duration::from_secs(*seconds)).await;
                registry.has_changed();
                check(&registry, &session, bound, &organizations, Vec::new())?;
            }
            Ok::<(), TestCaseError>(())
        })?;
    }
}
