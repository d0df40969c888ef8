//! Tests scans, which find bindings from before a replica subscribed.

use std::collections::BTreeMap;
use warmkey::store::name::Name;

use super::*;

/// A replica that subscribes scans the bindings that were announced before.
#[tokio::test]
async fn scan_finds_every_binding() {
    for shape in [Shape::Standalone, Shape::Sentinel, Shape::Cluster] {
        let folder = Folder::new();
        let redis = shape::Store::start(shape, folder.path(), &[]).await;
        let (opened, other) = (Opened::at(&redis.url()).await, Opened::at(&redis.url()).await);
        let store = &opened.store;
        let expected: BTreeMap<String, String> =
            (0..1_500).map(|n| (format!("{n:022}"), format!("key {n} 1"))).collect();
        for (id, value) in &expected {
            assert_eq!(
                store
                    .begin(Name::Binding(id), value, true, LONG, &mut store.budget())
                    .await
                    .unwrap(),
                None
            );
        }
        // Other names are stored beside the bindings.
        store
            .extend(Name::Thread(&format!("{:022}", 1)), "x", LONG, &mut store.budget())
            .await
            .unwrap();
        store
            .extend(Name::Response(&format!("{:022}", 1)), "x", LONG, &mut store.budget())
            .await
            .unwrap();
        store.claim(Name::Probe("key:a"), "x", LONG, &mut store.budget()).await.unwrap();
        store
            .append(&format!("{:022}", 1), &["x".into()], LONG, &mut store.budget())
            .await
            .unwrap();
        let (mut scan, mut found) = (other.store.scan().unwrap(), BTreeMap::new());
        while let Some(some) = within(SOON, "a step of the scan", scan.step()).await {
            let some = some.unwrap();
            assert!(some.iter().all(|(_, left)| (LONG / 2..=LONG).contains(left)), "{shape:?}");
            found.extend(
                some.into_iter().map(|(announcement, _)| (announcement.id, announcement.value)),
            );
        }
        assert_eq!(found, expected, "{shape:?}");
    }
}
