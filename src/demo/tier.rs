//! Replicas of Warmkey behind a balancer. All of them can be restarted at once.

use std::net::SocketAddr;
use std::sync::Arc;

use super::balance;
use crate::app::Replica;
use crate::config::Config;
use crate::current::Current;
use crate::store::memory::Memory;
use crate::task::Tasks;
use crate::telemetry::work::WorkSpans;

const MOST_ENTRIES: usize = 10_000;

/// Replicas that share their store, and the balancer before them.
pub struct Tier {
    pub address: SocketAddr,
    config: String,
    /// The store outlives the replicas.
    memory: Arc<Memory>,
    replicas: Vec<Replica>,
    /// Where the balancer finds the replicas.
    addresses: Arc<Current<Vec<SocketAddr>>>,
}

impl Tier {
    /// Starts `count` replicas, with no session yet.
    pub async fn start(count: usize, config: String, tasks: &Tasks) -> Result<Self, String> {
        let memory = Arc::new(Memory::new(MOST_ENTRIES));
        let replicas = started(count, &config, &memory).await?;
        let addresses = Arc::new(Current::new(Arc::new(addresses(&replicas))));
        let address = balance::start(Arc::clone(&addresses), tasks);
        let address = address.map_err(|error| error.to_string())?;
        Ok(Self { address, config, memory, replicas, addresses })
    }

    /// Stops every replica, and only then starts others, which know nothing but the store.
    pub async fn restart(&mut self) -> Result<(), String> {
        let replicas = std::mem::take(&mut self.replicas);
        let count = replicas.len();
        let stopping = replicas.into_iter().map(|replica| replica.stop(std::future::pending()));
        futures_util::future::join_all(stopping).await;
        self.replicas = started(count, &self.config, &self.memory).await?;
        self.addresses.set(Arc::new(addresses(&self.replicas)));
        Ok(())
    }
}

async fn started(count: usize, config: &str, memory: &Arc<Memory>) -> Result<Vec<Replica>, String> {
    let mut replicas = Vec::new();
    for _ in 0..count {
        let plan = Config::parse(config)?.plan().map_err(|faults| faults.join("; "))?;
        let spans = WorkSpans::default();
        replicas.push(Replica::start(plan, Some(Arc::clone(memory)), &spans).await?);
    }
    Ok(replicas)
}

fn addresses(replicas: &[Replica]) -> Vec<SocketAddr> {
    replicas.iter().map(|replica| replica.client_address).collect()
}
