//! Tests upstreams that cannot be reached or trusted: unknown host names and bad certificates. The
//! fault is the host's, so no key is condemned, and an untrusted server receives nothing.

use crate::world::certificates::Certificates;
use crate::world::cluster::{ALICE, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::process::Folder;
use crate::world::simulator::siblings;
use crate::world::tls_server::TlsServer;

const KEYS: [&str; 2] = ["org-a-1", "org-a-2"];

/// Three replicas with a Redis, in front of the upstream at this URL.
async fn three(upstream: &str, options: &str) -> Running {
    Cluster::new()
        .keys(siblings("org-a", 2))
        .replicas(3)
        .redis()
        .upstream_at(upstream)
        .upstream(options)
        .start()
        .await
}

/// Checks that every replica reports an unreachable upstream, and that all keys stay ready.
async fn is_unreachable(cluster: &Running) {
    for replica in &cluster.replicas {
        let ended = Codex::new(replica.address(), ALICE).turn("nobody").await;
        assert_eq!(
            (ended.answer.status, ended.answer.code().as_str()),
            (502, "upstream_unreachable"),
            "{}",
            ended.answer.text()
        );
        for key in KEYS {
            replica
                .shows(&format!("warmkey_key_state{{key=\"{key}\",state=\"ready\"}}"), 1.0)
                .await;
        }
    }
}

/// C2, for a name that never existed. Whether the fault is an unknown name or a missing answer
/// depends on this machine's name servers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_name_that_resolves_to_nothing_condemns_no_key() {
    is_unreachable(&three("http://upstream.invalid/v1", "connect_timeout = \"2s\"\n").await).await;
}

/// C3: a certificate of another authority, of another host, or an expired one. Such a server
/// receives nothing, least of all without TLS. Each replica connects at most twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_with_an_untrusted_certificate_is_sent_nothing() {
    let folder = Folder::new();
    let (trusted, other) = (
        Certificates::make(folder.path(), "trusted").await,
        Certificates::make(folder.path(), "other").await,
    );
    trusted.server("elsewhere", "DNS:elsewhere.example").await;
    trusted.expired("expired", "IP:127.0.0.1").await;
    let options = format!("ca_file = {:?}\nfirst_byte_timeout = \"1s\"\n", trusted.authority());
    for (certificates, name) in [(&other, "server"), (&trusted, "elsewhere"), (&trusted, "expired")]
    {
        let server = TlsServer::start(&folder, certificates, name).await;
        let cluster = three(&format!("https://{}/v1", server.address()), &options).await;
        is_unreachable(&cluster).await;
        let received = server.received();
        // 22 is the first byte of a TLS handshake. There are two: the first attempt and one retry.
        assert!(
            received.len() == 2 * cluster.replicas.len() && received.iter().all(|byte| *byte == 22),
            "{name}: {received:?}"
        );
    }
    // A good certificate is trusted, so the certificates were the reason for the refusals. This
    // server is no upstream, and does not answer.
    let server = TlsServer::start(&folder, &trusted, "server").await;
    let cluster = three(&format!("https://{}/v1", server.address()), &options).await;
    assert_eq!(
        Codex::new(cluster.address(), ALICE).turn("somebody").await.answer.code(),
        "upstream_timeout"
    );
}
