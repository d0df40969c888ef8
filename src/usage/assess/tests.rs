//! Tests of the task: what is stored for the next turn, and where it is looked for.

use super::*;
use crate::key::table::Table;
use crate::metrics::{BindingResult, ColdReason};
use crate::store::memory::Memory;
use crate::store::model::{Flaw, Model, Shared, Weather};
use crate::wire::terminal::Usage;

const HOUR: Duration = Duration::from_secs(3_600);

fn assessor() -> (Assessor, Arc<Memory>, Arc<Metrics>) {
    let (memory, metrics) = (Arc::new(Memory::new(64)), Arc::new(Metrics::new()));
    let store = Arc::new(Store::in_memory(Arc::clone(&memory), Arc::clone(&metrics)));
    (Assessor::new(store, HOUR, Arc::clone(&metrics)), memory, metrics)
}

fn id(name: &str) -> SessionId {
    SessionId::parse(&format!("{name:A<22}")).expect("22 characters")
}

fn thread(name: &str) -> ThreadId {
    ThreadId::parse(id(name).as_str()).expect("22 characters")
}

/// A turn of `session` that reads `cached` of `input` tokens.
fn turn(session: &str, input: u64, cached: u64) -> Record {
    let table = Table::sketch("a-1 org-a 1 sk-1");
    let usage = Usage { input, cached, ..Usage::default() };
    Record { session: Some(id(session)), ..Record::sketch(&table.keys()[0], Some(usage)) }
}

/// Assesses records of one session, in this order. Returns the warmth of each.
async fn warmths(
    assessor: &Assessor,
    records: Vec<Record>,
) -> Vec<(Option<u64>, Option<ColdReason>)> {
    let assessed = assessor.assess(records).await;
    assessed.iter().map(|record| (record.warmth.expected, record.warmth.cold)).collect()
}

const FIRST: (Option<u64>, Option<ColdReason>) = (None, Some(ColdReason::FirstTurn));

#[tokio::test]
async fn turn_is_compared_with_the_last_one_of_its_session() {
    let (assessor, _, metrics) = assessor();
    assert_eq!(warmths(&assessor, vec![turn("s", 10_240, 0)]).await, [FIRST]);
    // The records are assessed together, or one by one.
    let more = vec![turn("s", 12_800, 10_240), turn("s", 14_080, 128)];
    let expected = [(Some(10_240), None), (Some(12_800), Some(ColdReason::Upstream))];
    assert_eq!(warmths(&assessor, more).await, expected);
    assert_eq!(warmths(&assessor, vec![turn("other", 10_240, 0)]).await, [FIRST]);
    assert_eq!(warmths(&assessor, vec![turn("s", 15_000, 14_080)]).await, [(Some(14_080), None)]);
    let page = metrics.render();
    for line in [
        r#"warmkey_cold_turns_total{reason="first_turn"} 2"#,
        r#"warmkey_cold_tokens_total{reason="first_turn"} 0"#,
        r#"warmkey_cold_turns_total{reason="upstream"} 1"#,
        r#"warmkey_cold_tokens_total{reason="upstream"} 12672"#,
        "warmkey_expected_turns_total 3",
        "warmkey_expected_tokens_total 37120",
    ] {
        assert!(page.lines().any(|have| have == line), "{line} is not in\n{page}");
    }
}

#[tokio::test]
async fn thread_has_a_prefix_of_its_own() {
    let (assessor, ..) = assessor();
    let agent = |input, cached| {
        let mut turn = turn("s", input, cached);
        turn.lineage.thread = Some(thread("agent"));
        turn
    };
    for (turn, expected) in [
        (turn("s", 102_400, 0), FIRST),
        (agent(10_240, 0), FIRST),
        (turn("s", 102_400, 102_400), (Some(102_400), None)),
        (agent(10_240, 10_240), (Some(10_240), None)),
    ] {
        assert_eq!(warmths(&assessor, vec![turn]).await, [expected]);
    }
}

#[tokio::test]
async fn fork_begins_with_what_its_parent_left() {
    let (assessor, ..) = assessor();
    let fork = |session, root, own| {
        let mut turn = turn(session, 102_400, 0);
        turn.lineage.parent = Some(Parent { root: id(root), thread: thread(own) });
        turn.service.as_mut().expect("served").key =
            Arc::clone(&Table::sketch("b-1 org-b 1 sk-1").keys()[0]);
        turn
    };
    assessor.assess(vec![turn("root", 102_400, 0)]).await;
    let mut agent = turn("root", 51_200, 0);
    agent.lineage.thread = Some(thread("agent"));
    assessor.assess(vec![agent]).await;
    let moved = |tokens| (Some(tokens), Some(ColdReason::DomainMoved));
    assert_eq!(warmths(&assessor, vec![fork("f", "root", "t")]).await, [moved(102_400)]);
    assert_eq!(warmths(&assessor, vec![fork("g", "none", "agent")]).await, [moved(51_200)]);
    assert_eq!(warmths(&assessor, vec![fork("h", "none", "t")]).await, [FIRST]);
    // From its second turn on, the fork is compared with its own turns.
    let (expected, cold) = warmths(&assessor, vec![fork("f", "root", "t")]).await[0];
    assert_eq!((expected, cold), (Some(102_400), Some(ColdReason::Upstream)));
}

#[tokio::test]
async fn turn_of_another_kind_leaves_what_it_should() {
    let (assessor, memory, _) = assessor();
    let kind = |kind, input| Record { kind, ..turn("s", input, 0) };
    let warm = |tokens| (Some(tokens), None);
    // A prewarm makes a promise only to the first turn of a session.
    assert_eq!(warmths(&assessor, vec![kind(TurnKind::Prewarm, 5_120)]).await, [(None, None)]);
    assert_eq!(warmths(&assessor, vec![turn("s", 10_240, 5_120)]).await, [warm(5_120)]);
    assessor.assess(vec![kind(TurnKind::Prewarm, 5_120)]).await;
    assert_eq!(warmths(&assessor, vec![turn("s", 20_480, 10_240)]).await, [warm(10_240)]);
    // After a compaction, the history is another one.
    assessor.assess(vec![kind(TurnKind::Compaction, 20_480)]).await;
    assert_eq!(warmths(&assessor, vec![turn("s", 7_680, 0)]).await, [(None, None)]);
    assert_eq!(warmths(&assessor, vec![turn("s", 8_960, 7_680)]).await, [warm(7_680)]);
    let title = Record { kind: TurnKind::Title, ..turn("title", 5_120, 0) };
    assert_eq!(warmths(&assessor, vec![title]).await, [(None, None)]);
    assert_eq!(memory.get(Name::Promise(id("title").as_str())), None, "it has one turn");
}

/// Of the turns on a socket that began beside its session's key, only the first counts as moved.
#[tokio::test]
async fn turn_on_a_spilled_socket_has_moved_once() {
    let keys = Table::sketch("a-1 org-a 1 sk-1, a-2 org-a 1 sk-2");
    for region in ["", "eu"] {
        let (assessor, ..) = assessor();
        assessor.assess(vec![turn("s", 10_240, 0)]).await;
        let beside = || {
            let mut turn = turn("s", 10_240, 0);
            let mut key = (*keys.keys()[1]).clone();
            key.region = if region.is_empty() { key.region } else { region.into() };
            let service = turn.service.as_mut().expect("served");
            (service.key, service.result) = (Arc::new(key), BindingResult::Spilled);
            turn
        };
        let moved = match region {
            "" => ColdReason::KeyMoved,
            _ => ColdReason::DomainMoved,
        };
        let expected = [moved, ColdReason::Upstream, ColdReason::Upstream];
        assert_eq!(
            warmths(&assessor, vec![beside(), beside(), beside()]).await,
            expected.map(|reason| (Some(10_240), Some(reason)))
        );
    }
}

#[tokio::test]
async fn turn_without_usage_or_session_says_nothing() {
    let (assessor, ..) = assessor();
    assessor.assess(vec![turn("s", 10_240, 0)]).await;
    let failed = Record { usage: None, ..turn("s", 10_240, 0) };
    assert_eq!(warmths(&assessor, vec![failed]).await, [(None, None)]);
    let nobody = Record { session: None, ..turn("s", 10_240, 0) };
    assert_eq!(warmths(&assessor, vec![nobody]).await, [(None, None)]);
    let unread = Record { imprint: None, ..turn("s", 10_240, 10_240) };
    assert_eq!(warmths(&assessor, vec![unread]).await, [(Some(10_240), None)]);
    assert_eq!(
        warmths(&assessor, vec![turn("s", 10_240, 10_240)]).await,
        [(Some(10_240), None)],
        "what was stored has stayed"
    );
}

#[tokio::test(start_paused = true)]
async fn promise_lives_as_long_as_a_binding() {
    let (assessor, memory, _) = assessor();
    assessor.assess(vec![turn("s", 10_240, 0)]).await;
    let session = id("s");
    let name = Name::Promise(session.as_str());
    assert_eq!(memory.get(name).map(|held| held.left), Some(HOUR));
    tokio::time::advance(HOUR / 2).await;
    assessor.assess(vec![turn("s", 10_240, 10_240)]).await;
    assert_eq!(memory.get(name).map(|held| held.left), Some(HOUR), "each turn renews it");
    tokio::time::advance(HOUR).await;
    assert_eq!(warmths(&assessor, vec![turn("s", 10_240, 0)]).await, [FIRST]);
}

/// If a session's past is not known, the gateway claims nothing about it.
#[tokio::test(start_paused = true)]
async fn turn_is_not_called_cold_while_the_store_is_away() {
    let shared = Arc::new(std::sync::Mutex::new(Shared::new(Flaw::None)));
    let model = Model::new(&shared);
    let weather = Arc::clone(&model.weather);
    let metrics = Arc::new(Metrics::new());
    let store = Arc::new(Store::in_model(model, Arc::clone(&metrics)));
    let assessor = Assessor::new(store, HOUR, metrics);
    assert_eq!(warmths(&assessor, vec![turn("s", 10_240, 0)]).await, [FIRST]);
    *weather.lock().expect("no holder panics") = Weather::Away;
    assert_eq!(warmths(&assessor, vec![turn("s", 20_480, 0)]).await, [(None, None)]);
    assert_eq!(warmths(&assessor, vec![turn("t", 20_480, 0)]).await, [(None, None)]);
    *weather.lock().expect("no holder panics") = Weather::Fair;
    assert_eq!(
        warmths(&assessor, vec![turn("s", 20_480, 0)]).await,
        [(Some(10_240), Some(ColdReason::Upstream))]
    );
}

#[tokio::test]
async fn promise_of_a_newer_version_is_not_read() {
    let (assessor, memory, _) = assessor();
    assessor.assess(vec![turn("s", 10_240, 0)]).await;
    let session = id("s");
    let name = Name::Promise(session.as_str());
    let text = memory.get(name).expect("stored").value;
    memory.put(name, &format!("{text} w7 x.y"), HOUR);
    assert_eq!(
        warmths(&assessor, vec![turn("s", 10_240, 10_240)]).await,
        [(Some(10_240), None)],
        "unknown words are passed over"
    );
    memory.put(name, "2 what a later version writes", HOUR);
    assert_eq!(warmths(&assessor, vec![turn("s", 10_240, 0)]).await, [(None, None)]);
}
