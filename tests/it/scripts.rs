//! The scripts in a real Redis do what the in-process store does, which the state machine of the binding plays with.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use warmkey::metrics::Metrics;
use warmkey::setting::{Secret, SecretSource, Span};
use warmkey::store::memory::Memory;
use warmkey::store::{Settings, Store};
use warmkey::task::Tasks;

use crate::patience::SOON;
use crate::process::Folder;
use crate::redis::Redis;

const TTL: Duration = Duration::from_secs(600);

#[derive(Clone, Debug)]
enum Operation {
    Get(usize),
    Claim(usize, u32),
    /// A claim of the first epoch.
    Begin(usize),
    /// Expects the value of one epoch, and stores another's.
    Replace(usize, u32, u32),
    Merge(usize, u32),
    Extend(usize, u32),
    Append(usize, u32),
    List(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let (id, epoch) = (0..3_usize, 1..5_u32);
    prop_oneof![
        id.clone().prop_map(Operation::Get),
        (id.clone(), epoch.clone()).prop_map(|(id, epoch)| Operation::Claim(id, epoch)),
        (id.clone(), epoch.clone(), epoch.clone()).prop_map(|(id, old, new)| Operation::Replace(id, old, new)),
        (id.clone(), epoch.clone()).prop_map(|(id, epoch)| Operation::Merge(id, epoch)),
        (id.clone(), epoch).prop_map(|(id, epoch)| Operation::Extend(id, epoch)),
        id.clone().prop_map(Operation::Begin),
        // Of so many that the oldest go.
        (id.clone(), 1..20_u32).prop_map(|(id, lines)| Operation::Append(id, lines)),
        id.prop_map(Operation::List),
    ]
}

/// Does it, and tells in words what came of it.
async fn perform(store: &Store, round: usize, operation: &Operation) -> String {
    let name = |id: usize| format!("{round}-{id}");
    let value = |epoch: u32| format!("key {epoch} 1");
    let budget = &mut store.budget();
    match operation {
        Operation::Get(id) => format!("{:?}", store.get(&name(*id), budget).await.map(|held| held.map(|held| held.value))),
        Operation::Claim(id, epoch) => format!("{:?}", store.claim(&name(*id), &value(*epoch), TTL, budget).await),
        Operation::Begin(id) => format!("{:?}", store.begin(&name(*id), &value(1), false, TTL, budget).await),
        Operation::Replace(id, old, new) => {
            format!("{:?}", store.replace(&name(*id), &value(*old), &value(*new), TTL, budget).await)
        }
        Operation::Merge(id, epoch) => {
            format!("{:?}", store.merge(&name(*id), &value(*epoch), *epoch, TTL, budget).await)
        }
        Operation::Append(id, lines) => {
            let lines: Vec<String> = (0..*lines).map(|line| format!("{line} of {lines}")).collect();
            format!("{:?}", store.append(&format!("{}.trail", name(*id)), &lines, TTL, budget).await)
        }
        Operation::List(id) => format!("{:?}", store.list(&format!("{}.trail", name(*id)), budget).await),
        Operation::Extend(id, epoch) => format!("{:?}", store.extend(&name(*id), &value(*epoch), TTL, budget).await),
    }
}

#[tokio::test]
async fn the_scripts_do_what_the_in_process_store_does() {
    let folder = Folder::new();
    let redis = Redis::start(folder.path()).await;
    let (metrics, tasks) = (Arc::new(Metrics::new()), Tasks::new());
    let settings = Settings {
        url: SecretSource::Text(Secret::new(redis.url())),
        prefix: "scripts".into(),
        timeout: Span(SOON),
        ca_file: None,
    };
    let real = Store::in_redis(&settings, Arc::clone(&metrics), &tasks).expect("the address is one");
    assert!(real.ready(SOON).await);
    let model = Store::in_memory(Arc::new(Memory::new(10_000)), metrics);
    let (mut runner, operations) = (TestRunner::default(), prop::collection::vec(operation(), 30));
    for round in 0..100 {
        let operations = operations.new_tree(&mut runner).expect("operations can be made").current();
        for (number, operation) in operations.iter().enumerate() {
            let (expected, found) = (perform(&model, round, operation).await, perform(&real, round, operation).await);
            assert_eq!(found, expected, "operation {number} of {operations:#?}");
        }
    }
    tasks.join(SOON).await;
}
