//! Redis as a trio: a primary, two replicas, and three Sentinels that promote a replica when the
//! primary is gone.
//!
//! Replicas copy as a user of their own, so that a test can cut them off. Writes that are
//! acknowledged later are then lost with the primary.

use std::net::SocketAddr;
use std::path::Path;

use futures_util::future::join_all;

use super::Redis;
use crate::world::waiting::{SOON, eventually};

/// The Sentinels' name for the primary.
pub const NAME: &str = "main";
const COPIER: [&str; 4] = ["--masteruser", "copier", "--masterauth", "copier"];

pub struct Sentinel {
    nodes: Vec<Redis>,
    sentinels: Vec<Redis>,
}

impl Sentinel {
    pub async fn start(folder: &Path) -> Self {
        let arguments = [&COPIER[..], &NODE].concat();
        let nodes = join_all((0..3).map(|_| Redis::start_with(folder, &arguments))).await;
        let (host, port) = place(nodes[0].address());
        for (number, node) in nodes.iter().enumerate() {
            node.run(&["ACL", "SETUSER", "copier", "on", ">copier", "~*", "&*", "+@all"]).await;
            if number > 0 {
                node.run(&["REPLICAOF", &host, &port]).await;
            }
        }
        nodes[0].reports("replication", &["slave0:", "slave1:"]).await;
        for node in &nodes[1..] {
            node.reports("replication", &["master_link_status:up"]).await;
        }
        let sentinels = join_all((0..3).map(|_| watching(folder, nodes[0].address(), &[]))).await;
        let trio = Self { nodes, sentinels };
        for sentinel in &trio.sentinels {
            trio.introduce(sentinel).await;
        }
        for sentinel in &trio.sentinels {
            trio.knows_all(sentinel).await;
        }
        trio
    }

    pub fn url(&self) -> String {
        let hosts: Vec<String> =
            self.sentinels.iter().map(|sentinel| sentinel.address().to_string()).collect();
        format!("redis-sentinel://{}/{NAME}", hosts.join(","))
    }

    /// The node that the Sentinels call primary.
    pub async fn primary_number(&self) -> usize {
        let address: (String, u16) =
            self.sentinels[0].ask(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]).await;
        let found = self.nodes.iter().position(|node| node.address().port() == address.1);
        found.unwrap_or_else(|| panic!("a node of this trio at {address:?}"))
    }

    pub async fn primary(&self) -> &Redis {
        &self.nodes[self.primary_number().await]
    }

    /// Kills the primary with SIGKILL.
    pub async fn kill_primary(&mut self) -> usize {
        let primary = self.primary_number().await;
        self.nodes[primary].kill().await;
        primary
    }

    pub fn node(&mut self, number: usize) -> &mut Redis {
        &mut self.nodes[number]
    }

    /// Cuts the replicas off, so that later writes are only on the primary.
    pub async fn cut_replicas_off(&self) {
        let primary = self.primary().await;
        primary.run(&["ACL", "SETUSER", "copier", "off"]).await;
        primary.run(&["CLIENT", "KILL", "TYPE", "replica"]).await;
        primary.reports("replication", &["connected_slaves:0"]).await;
    }

    /// Waits until another node than `number` is primary and takes writes.
    pub async fn failed_over(&self, number: usize) {
        eventually(SOON, "a new primary that takes writes", async || {
            let next = self.primary_number().await;
            let info: String = self
                .nodes
                .get(next)
                .filter(|_| next != number)?
                .try_ask(&["INFO", "replication"])
                .await?;
            info.contains("role:master").then_some(())
        })
        .await;
    }

    /// Tells a Sentinel at once what it would learn from the others within two seconds.
    async fn introduce(&self, sentinel: &Redis) {
        for other in &self.sentinels {
            let (host, port) = place(other.address());
            let id: String = other.ask(&["SENTINEL", "MYID"]).await;
            let (master, master_port) = place(self.nodes[0].address());
            let hello =
                [host.as_str(), &port, &id, "0", NAME, &master, &master_port, "0"].join(",");
            if other.address() != sentinel.address() {
                sentinel.run(&["PUBLISH", "__sentinel__:hello", &hello]).await;
            }
        }
    }

    async fn knows_all(&self, sentinel: &Redis) {
        eventually(SOON, "a Sentinel that knows them all", async || {
            let words: Vec<String> = sentinel.try_ask(&["SENTINEL", "MASTER", NAME]).await?;
            let field = |name: &str| {
                words.iter().position(|word| word == name).and_then(|at| words.get(at + 1))
            };
            let is_met = field("num-slaves")? == "2"
                && field("num-other-sentinels")? == "2"
                && field("flags")? == "master";
            is_met.then_some(())
        })
        .await;
    }
}

/// With these, copies begin at once, and a node that answers late is not given up by the others.
const NODE: [&str; 4] = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];

/// A Sentinel that watches the primary at this address. `arguments` follow its own.
pub async fn watching(folder: &Path, primary: SocketAddr, arguments: &[String]) -> Redis {
    let (host, port) = place(primary);
    Redis::launch(folder, |_, data| {
        let file = data.join("sentinel.conf");
        let text = format!(
            "sentinel monitor {NAME} {host} {port} 2\nsentinel down-after-milliseconds {NAME} 1000\n\
             sentinel failover-timeout {NAME} 5000\n"
        );
        std::fs::write(&file, text).expect("the temporary folder can be written");
        [&[file.to_string_lossy().into_owned(), "--sentinel".into()], arguments].concat()
    })
    .await
}

fn place(address: SocketAddr) -> (String, String) {
    (address.ip().to_string(), address.port().to_string())
}
