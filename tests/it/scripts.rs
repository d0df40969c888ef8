//! The scripts in a real Redis do what the in-process store does, which the state machine of the
//! binding uses.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use warmkey::metrics::Metrics;
use warmkey::store::memory::Memory;
use warmkey::store::name::Name;
use warmkey::store::{Replaced, Store, StoredValue};

use crate::world::store::Real;
use crate::world::waiting::SOON;

mod board;
mod earlier;
mod foreign;

const TTL: Duration = Duration::from_secs(600);
/// Epochs below and above one digit and two digits, because an epoch is a number and no text.
const EPOCHS: [u32; 8] = [1, 2, 8, 9, 10, 11, 99, 100];

#[derive(Clone, Debug)]
enum Operation {
    Get(usize),
    Claim(usize, u32),
    /// A claim of the first epoch.
    Begin(usize),
    /// Expects the value of one epoch, and stores the value of another.
    Replace(usize, u32, u32),
    Merge(usize, u32),
    Extend(usize, u32),
    Append(usize, u32),
    List(usize),
}

fn operation() -> impl Strategy<Value = Operation> {
    let (id, epoch) = (0..3_usize, prop::sample::select(EPOCHS.to_vec()));
    // 0 stands for a value that a newer version might store.
    let any = prop_oneof![4 => epoch.clone(), 1 => Just(0)];
    prop_oneof![
        id.clone().prop_map(Operation::Get),
        (id.clone(), any.clone()).prop_map(|(id, epoch)| Operation::Claim(id, epoch)),
        (id.clone(), any.clone(), any.clone())
            .prop_map(|(id, old, new)| Operation::Replace(id, old, new)),
        (id.clone(), epoch).prop_map(|(id, epoch)| Operation::Merge(id, epoch)),
        (id.clone(), any).prop_map(|(id, epoch)| Operation::Extend(id, epoch)),
        id.clone().prop_map(Operation::Begin),
        // There are so many lines that the oldest ones are dropped.
        (id.clone(), 1..20_u32).prop_map(|(id, lines)| Operation::Append(id, lines)),
        id.prop_map(Operation::List),
    ]
}

fn value(epoch: u32) -> String {
    if epoch == 0 { "newer".into() } else { format!("key {epoch} 1") }
}

/// Performs the operation, and describes its outcome.
async fn perform(store: &Store, round: usize, operation: &Operation) -> String {
    let name = |id: usize| format!("{round}-{id}");
    let budget = &mut store.budget();
    match operation {
        Operation::Get(id) => {
            let minutes =
                |entry: StoredValue| (entry.value, (entry.left.as_secs_f64() / 60.0).round());
            format!(
                "{:?}",
                store.get(Name::Binding(&name(*id)), budget).await.map(|entry| entry.map(minutes))
            )
        }
        Operation::Claim(id, epoch) => format!(
            "{:?}",
            store.claim(Name::Binding(&name(*id)), &value(*epoch), TTL, budget).await
        ),
        Operation::Begin(id) => format!(
            "{:?}",
            store.begin(Name::Binding(&name(*id)), &value(1), false, TTL, budget).await
        ),
        Operation::Replace(id, old, new) => {
            format!(
                "{:?}",
                store
                    .replace(Name::Binding(&name(*id)), &value(*old), &value(*new), TTL, budget)
                    .await
            )
        }
        Operation::Merge(id, epoch) => {
            format!(
                "{:?}",
                store.merge(Name::Binding(&name(*id)), &value(*epoch), *epoch, TTL, budget).await
            )
        }
        Operation::Append(id, lines) => {
            let lines: Vec<String> = (0..*lines).map(|line| format!("{line} of {lines}")).collect();
            format!("{:?}", store.append(&name(*id), &lines, TTL, budget).await)
        }
        Operation::List(id) => format!("{:?}", store.list(&name(*id), budget).await),
        Operation::Extend(id, epoch) => {
            format!(
                "{:?}",
                store.extend(Name::Binding(&name(*id)), &value(*epoch), TTL * 2, budget).await
            )
        }
    }
}

#[tokio::test]
async fn scripts_do_what_the_in_process_store_does() {
    let real = Real::new().await;
    let model = Store::in_memory(Arc::new(Memory::new(10_000)), Arc::new(Metrics::new()));
    let (mut runner, operations) = (TestRunner::default(), prop::collection::vec(operation(), 30));
    for round in 0..100 {
        let operations =
            operations.new_tree(&mut runner).expect("operations can be made").current();
        for (number, operation) in operations.iter().enumerate() {
            let (expected, found) = (
                perform(&model, round, operation).await,
                perform(&real.store, round, operation).await,
            );
            assert_eq!(found, expected, "operation {number} of {operations:#?}");
        }
    }
    real.tasks.join(SOON).await;
}

#[tokio::test]
async fn merge_compares_epochs_as_numbers() {
    let Real { redis: _redis, store, tasks, _folder } = &Real::new().await;
    for old in EPOCHS {
        for new in EPOCHS {
            let (id, budget) = (format!("{old}-{new}"), &mut store.budget());
            assert_eq!(
                store.merge(Name::Binding(&id), &value(old), old, TTL, budget).await.unwrap(),
                None
            );
            let stays = (new <= old).then(|| value(old));
            let other = format!("other {new} 1");
            assert_eq!(
                store.merge(Name::Binding(&id), &other, new, TTL, budget).await.unwrap(),
                stays,
                "{new} over {old}"
            );
        }
    }
    tasks.join(SOON).await;
}

/// Redis pushes each renewed life to all clients that track the name, so renewals must be rare.
#[tokio::test]
async fn life_is_begun_anew_once_a_quarter_of_it_has_passed() {
    let real = Real::new().await;
    let store = &real.store;
    let second = Duration::from_secs(1);
    for (left, is_due) in [(730, true), (770, false), (999, false)] {
        let id = left.to_string();
        store
            .claim(Name::Binding(&id), "key 1 1", second * left, &mut store.budget())
            .await
            .unwrap();
        store
            .extend(Name::Binding(&id), "key 2 1", second * 1_000, &mut store.budget())
            .await
            .unwrap();
        let entry = real.stored(&id).await;
        let life = if is_due { 1_000 } else { left };
        assert_eq!(entry.value, "key 1 1");
        assert!(
            (second * (life - 15)..=second * life).contains(&entry.left),
            "{left}: {:?}",
            entry.left
        );
    }
    // A name that is stored without an expiry gets one, and so does a trail.
    real.redis.run(&["SET", "w:endless", "key 1 1"]).await;
    assert_eq!(real.stored("endless").await.left, Duration::ZERO, "it is due");
    store.extend(Name::Binding("endless"), "key 1 1", TTL, &mut store.budget()).await.unwrap();
    store.append("s", &["a line".into()], TTL, &mut store.budget()).await.unwrap();
    for name in ["w:endless", "w:s.trail"] {
        let left: u64 = real.redis.ask(&["TTL", name]).await;
        assert!((TTL.as_secs() - 15..=TTL.as_secs()).contains(&left), "{name}: {left}");
    }
    real.tasks.join(SOON).await;
}

#[tokio::test]
async fn binding_is_stored_even_where_it_cannot_be_announced() {
    let real = Real::with_user("quiet", &["~*", "resetchannels", "+@all"]).await;
    let (store, budget) = (&real.store, &mut real.store.budget());
    assert_eq!(store.begin(Name::Binding("s"), "key 1 1", false, TTL, budget).await.unwrap(), None);
    assert_eq!(
        store.rebind(Name::Binding("s"), "key 1 1", "key 2 1", TTL, budget).await.unwrap(),
        Replaced::Done
    );
    store.extend(Name::Binding("s"), "key 2 1", TTL * 2, budget).await.unwrap();
    assert!(real.stored("s").await.left > TTL);
    assert_eq!(store.merge(Name::Binding("s"), "key 3 1", 3, TTL, budget).await.unwrap(), None);
    store.extend(Name::Binding("lost"), "key 1 1", TTL, budget).await.unwrap();
    assert_eq!(
        (real.stored("s").await.value, real.stored("lost").await.value),
        ("key 3 1".into(), "key 1 1".into())
    );
    real.tasks.join(SOON).await;
}
