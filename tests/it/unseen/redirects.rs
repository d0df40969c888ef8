//! Number 7: traffic goes where the configuration says, whatever the environment names. `check`
//! tries what the store's user may do.

use super::BODY;
use super::configuration::{run, text, written};
use super::two;
use crate::world::cluster::ALICE;
use crate::world::collector::Collector;
use crate::world::process::Folder;
use crate::world::redis::Redis;
use crate::world::socket::{plain, session};
use crate::world::trap::Trap;
use crate::world::waiting::{ANSWER, SOON, eventually};
use crate::world::wire::{Request, ask};

/// Turns, WebSockets, probes, the store, traces and commands go where the file says, whatever
/// proxies and endpoints the environment names.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn environment_never_redirects_traffic() {
    let trap = Trap::start().await;
    let address = trap.address();
    let collector = Collector::start().await;
    let mut shell = String::new();
    for name in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "GRPC_PROXY",
    ] {
        shell.push_str(&format!("export {name}=http://{address};"));
    }
    for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] {
        shell.push_str(&format!("export {name}=http://{address};"));
    }
    shell.push_str("export NO_PROXY= no_proxy=; export REDIS_URL=redis://");
    shell.push_str(&address.to_string());
    let cluster = two().telemetry(&collector.options()).shell(&shell);
    let cluster = cluster.start().await;
    for replica in &cluster.replicas {
        let answer = ask(replica.address(), &Request::turn(ALICE, BODY)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        replica.shows("warmkey_store_up", 1.0).await;
        let lists = ask(replica.address(), &Request::new("GET", "/models").bearer(ALICE)).await;
        assert_eq!(lists.status, 200);
    }
    let mut socket = session(cluster.address(), ALICE, "s").await;
    socket.send(&plain("over a WebSocket")).await;
    let event = socket.event(&["error", "response.completed"]).await;
    assert_eq!(event["type"], "response.completed", "{event}");
    eventually(ANSWER, "spans arrive at the collector", async || {
        (!collector.spans().is_empty()).then_some(())
    })
    .await;
    assert_eq!(trap.caught(), 0, "nothing went another way");
}

/// A configured proxy is used for everything, `NO_PROXY` or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configured_proxy_is_always_used() {
    let trap = Trap::start().await;
    let address = trap.address();
    let cluster = two()
        .upstream(&format!("proxy = \"http://{address}\"\nconnect_timeout = \"1s\"\n"))
        .shell("export NO_PROXY='*' no_proxy='*'")
        .start()
        .await;
    let address = cluster.address();
    let asking = tokio::spawn(async move { ask(address, &Request::turn(ALICE, BODY)).await });
    eventually(SOON, "the proxy is asked", async || (trap.caught() > 0).then_some(())).await;
    asking.abort();
    assert!(cluster.turns().await.is_empty(), "nothing went past the proxy");
}

/// `check` tries to receive and to send announcements of moved sessions.
#[tokio::test]
async fn check_names_the_right_to_a_channel_that_is_missing() {
    let folder = Folder::new();
    let redis = Redis::start(folder.path()).await;
    let rules = ["ACL", "SETUSER", "gateway", "reset", "on", ">canary", "~*", "+@all"];
    let url = redis.url().replace("redis://", "redis://gateway:canary@");
    for (more, word) in [
        (&["&*", "-publish"][..], "PUBLISH"),
        (&["&*", "-subscribe"], "SUBSCRIBE"),
        (&["&*", "-@pubsub"], "SUBSCRIBE"),
        (&["resetchannels"], "SUBSCRIBE"),
        (&["resetchannels", "&other:*"], "SUBSCRIBE"),
    ] {
        let words = [&rules[..], more].concat();
        assert_eq!(redis.ask::<String>(&words).await, "OK");
        let (code, said) = run("check", &written(&[("store", "url", text(&url))]), &folder).await;
        assert_eq!(code, Some(64), "{more:?}: {said}");
        // What would run is printed first, and the fault last.
        let fault = said.lines().last().unwrap_or_default();
        assert!(fault.contains("store.url") && fault.contains(word), "{more:?}: {said}");
        assert!(!said.contains("canary"), "{said}");
    }
    assert_eq!(redis.ask::<String>(&[&rules[..], &["&*"]].concat()).await, "OK");
    let (code, said) = run("check", &written(&[("store", "url", text(&url))]), &folder).await;
    assert_eq!(code, Some(0), "{said}");
}
