//! Tests stores behind TLS: which certificate is trusted, and how a fault is named.

use super::*;

#[tokio::test]
async fn certificate_is_trusted_or_the_fault_is_named() {
    let folder = Folder::new();
    let (good, other) = (
        Certificates::make(folder.path(), "good").await,
        Certificates::make(folder.path(), "other").await,
    );
    let encrypted = port::free();
    let arguments = good.arguments(encrypted.port());
    let redis =
        Redis::start_with(folder.path(), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
            .await;
    let at = |scheme: &str, port: u16, authority: Option<String>| StoreSettings {
        ca_file: authority.map(Into::into),
        ..settings(&format!("{scheme}://127.0.0.1:{port}"))
    };
    let opened = Opened::ready(&at("rediss", encrypted.port(), Some(good.authority()))).await;
    assert!(opened.claims("s").await);
    for (wrong, word) in [
        (at("rediss", encrypted.port(), Some(other.authority())), "not trusted"),
        (at("rediss", encrypted.port(), None), "not trusted"),
        (at("rediss", redis.address().port(), Some(good.authority())), "TLS"),
        (at("redis", encrypted.port(), None), "TLS"),
        (at("rediss", port::free().port(), Some(good.authority())), "refused"),
    ] {
        let opened = Opened::of(&wrong);
        let named = async || opened.store.fault().filter(|fault| fault.contains(word));
        eventually(SOON, word, named).await;
        assert!(!*opened.store.health().borrow(), "{word}");
        assert!(
            opened.failures("connection") + opened.failures("timeout") + opened.failures("other")
                > 0,
            "{word}"
        );
    }
}

#[tokio::test]
async fn sentinels_and_a_cluster_are_reached_through_tls() {
    let folder = Folder::new();
    let certificates = Certificates::make(folder.path(), "authority").await;
    let start = async |more: &[&str]| {
        let encrypted = port::free();
        let arguments = certificates.arguments(encrypted.port());
        let arguments: Vec<&str> =
            arguments.iter().map(String::as_str).chain(more.iter().copied()).collect();
        (Redis::start_with(folder.path(), &arguments).await, encrypted)
    };
    let reach = async |url: &str| {
        let ca_file = Some(certificates.authority().into());
        let opened = Opened::ready(&StoreSettings { ca_file, ..settings(url) }).await;
        assert!(opened.claims("s").await);
        assert_eq!(opened.finds("s").await, Some(true), "{url}");
    };
    let (_primary, watched) = start(&[]).await;
    let encrypted = port::free();
    let _sentinel =
        sentinel::watching(folder.path(), watched, &certificates.arguments(encrypted.port())).await;
    reach(&format!("rediss-sentinel://{encrypted}/{}", sentinel::NAME)).await;

    let bus = port::free().port().to_string();
    let (node, encrypted) =
        start(&["--cluster-enabled", "yes", "--tls-cluster", "yes", "--cluster-port", &bus]).await;
    node.run(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
    reach(&format!("rediss-cluster://{encrypted}")).await;
}
