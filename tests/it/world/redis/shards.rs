//! Redis as a Cluster: three primaries with a replica each, all slots covered.

use std::path::Path;

use futures_util::future::join_all;

use super::Redis;
use crate::world::port;
use crate::world::waiting::{SOON, eventually, found};

const SLOTS: u16 = 16_384;
const SHARDS: usize = 3;

/// Primaries first. Node `n + 3` is the replica of node `n`, until a failover.
pub struct Shards {
    nodes: Vec<Redis>,
    ids: Vec<String>,
}

impl Shards {
    pub async fn start(folder: &Path) -> Self {
        let buses: Vec<String> = (0..2 * SHARDS).map(|_| port::free().port().to_string()).collect();
        let nodes = join_all(buses.iter().map(|bus| {
            let options = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                bus,
                "--cluster-node-timeout",
                "1000",
            ];
            // With these, copies begin at once, and a replica takes over however old its copy is.
            let copies =
                ["--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0"];
            // With this, a dead shard does not end the others.
            let coverage = ["--cluster-require-full-coverage", "no"];
            let arguments = [&options[..], &copies, &coverage].concat();
            async move { Redis::start_with(folder, &arguments).await }
        }))
        .await;
        let ids = join_all(nodes.iter().map(|node| node.ask::<String>(&["CLUSTER", "MYID"]))).await;
        for (number, node) in nodes.iter().enumerate() {
            node.run(&["CLUSTER", "SET-CONFIG-EPOCH", &(number + 1).to_string()]).await;
            if number < SHARDS {
                let (first, last) = range(number);
                node.run(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()])
                    .await;
            }
            let port = node.address().port().to_string();
            nodes[0].run(&["CLUSTER", "MEET", "127.0.0.1", &port, &buses[number]]).await;
        }
        let shards = Self { nodes, ids };
        for node in &shards.nodes {
            shards
                .sees(
                    node,
                    "all nodes",
                    |line| !line.contains("handshake") && !line.contains("noaddr"),
                    2 * SHARDS,
                )
                .await;
        }
        for number in SHARDS..2 * SHARDS {
            shards.nodes[number].run(&["CLUSTER", "REPLICATE", &shards.ids[number - SHARDS]]).await;
        }
        for (number, node) in shards.nodes.iter().enumerate() {
            if number >= SHARDS {
                node.reports("replication", &["master_link_status:up"]).await;
            }
            shards.sees(node, "all replicas", |line| line.contains("slave "), SHARDS).await;
            eventually(SOON, "a Cluster that is well", async || {
                let info: String = node.try_ask(&["CLUSTER", "INFO"]).await?;
                (info.contains("cluster_state:ok") && info.contains("cluster_slots_ok:16384"))
                    .then_some(())
            })
            .await;
        }
        shards
    }

    async fn sees(&self, node: &Redis, what: &str, is_one: impl Fn(&str) -> bool, count: usize) {
        eventually(SOON, &format!("a node that sees {what}"), async || {
            let nodes: String = node.try_ask(&["CLUSTER", "NODES"]).await?;
            (nodes.lines().filter(|line| is_one(line)).count() == count).then_some(())
        })
        .await;
    }

    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes.iter().map(|node| node.address().to_string()).collect();
        format!("redis-cluster://{}", hosts.join(","))
    }

    /// The shard of this name.
    pub fn shard_of(name: &str) -> usize {
        let slot = slot_of(name);
        (0..SHARDS)
            .find(|shard| (range(*shard).0..=range(*shard).1).contains(&slot))
            .expect("all slots are covered")
    }

    /// The running nodes that take writes.
    pub async fn primaries(&self) -> Vec<&Redis> {
        let mut primaries = Vec::new();
        for node in &self.nodes {
            let role: Option<String> = node.try_ask(&["INFO", "replication"]).await;
            if role.is_some_and(|info| info.contains("role:master")) {
                primaries.push(node);
            }
        }
        primaries
    }

    pub fn node(&mut self, number: usize) -> &mut Redis {
        &mut self.nodes[number]
    }

    /// Kills the primary of a shard with SIGKILL.
    pub async fn kill_primary(&mut self, shard: usize) {
        self.nodes[shard].kill().await;
    }

    /// Kills a shard's primary and replica with SIGKILL.
    pub async fn kill_shard(&mut self, shard: usize) {
        self.nodes[shard + SHARDS].kill().await;
        self.nodes[shard].kill().await;
    }

    /// Starts the nodes of a killed shard again, empty.
    pub async fn restart_shard(&mut self, shard: usize) {
        for number in [shard, shard + SHARDS] {
            self.nodes[number].restart().await;
        }
    }

    /// Waits until the replica of a shard has taken over.
    pub async fn failed_over(&self, shard: usize) {
        self.nodes[shard + SHARDS].reports("replication", &["role:master"]).await;
    }

    /// Opens the move of a slot to another shard: from now on, questions for absent names are
    /// redirected there.
    pub async fn open_move(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        self.nodes[to].run(&["CLUSTER", "SETSLOT", &slot, "IMPORTING", &self.ids[from]]).await;
        self.nodes[from].run(&["CLUSTER", "SETSLOT", &slot, "MIGRATING", &self.ids[to]]).await;
    }

    /// Moves the slot's names, and closes the move.
    pub async fn finish_move(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        let port = self.nodes[to].address().port().to_string();
        found("the end of a slot", async || {
            let names: Vec<String> =
                self.nodes[from].ask(&["CLUSTER", "GETKEYSINSLOT", &slot, "100"]).await;
            if names.is_empty() {
                return Some(());
            }
            let mut words = vec!["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            words.extend(names.iter().map(String::as_str));
            self.nodes[from].run(&words).await;
            None
        })
        .await;
        // The receiver learns it first, so that the slot always has an owner.
        for node in
            [to, from].into_iter().chain((0..SHARDS).filter(|node| ![to, from].contains(node)))
        {
            self.nodes[node].run(&["CLUSTER", "SETSLOT", &slot, "NODE", &self.ids[to]]).await;
        }
    }
}

fn range(shard: usize) -> (u16, u16) {
    let bound = |shard: usize| {
        u16::try_from(usize::from(SLOTS) * shard / SHARDS).expect("a slot has a small number")
    };
    (bound(shard), bound(shard + 1) - 1)
}

/// The slot of a name: CRC16 (XMODEM) of the name, or of the text between its first braces.
pub fn slot_of(name: &str) -> u16 {
    let tag = name
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty());
    let mut crc = 0_u16;
    for byte in tag.unwrap_or(name).bytes() {
        crc ^= u16::from(byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 };
        }
    }
    crc % SLOTS
}
