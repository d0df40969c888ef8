//! Trails: lines of which a store keeps the newest for a time. Nobody waits for them, and nothing is decided by them.

use std::time::Duration;

use super::{Backend, Budget, Store, Unavailable};
use crate::metrics::Operation;

/// So many lines a trail has at the most.
pub const LONGEST: usize = 32;

impl Store {
    /// Adds `lines` to the end of a trail, which lives for `ttl` from now on.
    pub async fn append(&self, id: &str, lines: &[String], ttl: Duration, budget: &mut Budget) -> Result<(), Unavailable> {
        match &self.backend {
            Backend::Memory(memory, ..) => {
                memory.append(id, lines, ttl);
                Ok(())
            }
            Backend::Redis(redis) => {
                self.timed(Operation::Append, budget, async |until| redis.append(&self.name(id), lines, ttl, until).await).await
            }
            #[cfg(test)]
            Backend::Model(model) => model.append(id, lines).await,
        }
    }

    /// The lines of a trail, the oldest first.
    pub async fn list(&self, id: &str, budget: &mut Budget) -> Result<Vec<String>, Unavailable> {
        match &self.backend {
            Backend::Memory(memory, ..) => Ok(memory.list(id)),
            Backend::Redis(redis) => {
                self.timed(Operation::List, budget, async |until| redis.list(&self.name(id), until).await).await
            }
            #[cfg(test)]
            Backend::Model(model) => model.list(id).await,
        }
    }
}
