//! Keeps this replica's set of keys known to the others, and takes note of theirs.

use std::sync::Arc;

use tokio::time::MissedTickBehavior;

use crate::health::registry::Registry;
use crate::key::generation::Loaded;
use crate::peers::membership::{INTERVAL, KeySet, Member};

/// The set of keys that this replica is a member with.
pub struct Membership {
    member: Member,
    registry: Arc<Registry>,
}

impl Membership {
    pub fn new(member: Member, registry: Arc<Registry>) -> Self {
        Self { member, registry }
    }

    /// Reports for as long as the replica lives.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut health = self.member.store_health();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = health.changed() => {}
            }
            self.exchange().await;
        }
    }

    /// Reports once, and takes note of what the others have.
    pub async fn exchange(&self) {
        let mut exchange = self.member.begin().await;
        let loaded = self.registry.loaded();
        if let Some(roll) = exchange.report(&told(&loaded)).await {
            self.registry.heard(&loaded, &roll);
        }
    }

    /// Takes `next` into use. The store hears of it first: from its first turn on its ordinal is known, unless the store is away.
    pub async fn introduce(&self, next: Arc<Loaded>) {
        let mut exchange = self.member.begin().await;
        let roll = exchange.report(&told(&next)).await;
        self.registry.adopt(next, roll.as_ref());
    }

    /// Lets the others know that they need not wait for this replica.
    pub async fn leave(&self) {
        self.member.leave(&told(&self.registry.loaded())).await;
    }
}

fn told(loaded: &Arc<Loaded>) -> KeySet {
    KeySet { fingerprint: loaded.fingerprint.clone(), tags: loaded.tags(), ordinal: loaded.ordinal() }
}
