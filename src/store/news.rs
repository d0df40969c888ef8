//! Hearing of what other replicas have bound, and reading what they bound before.
//!
//! A help to whoever remembers bindings, and nothing more: what is lost here is found in the store by the next turn.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::PubSub;
use tokio::sync::{broadcast, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::address::Host;
use super::dial::Dialer;
use super::fault::{Fault, Faults};
use super::{Backend, Budget, Store, Unavailable};
use crate::metrics::Operation;

/// From one attempt to the next, at least.
const RETUNE: Duration = Duration::from_millis(250);
/// How often it makes sure that there is still somebody who could speak, and that it is the right one.
const CHECK: Duration = Duration::from_secs(5);

/// A session is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The session's id, and what is stored under it.
    pub id: String,
    pub value: String,
}

/// How far a walk through all that is bound has come.
pub struct Walk {
    /// The nodes that are left, of which the last is the next; and where in it.
    pub nodes: Vec<Arc<Host>>,
    pub cursor: u64,
}

pub struct Ear {
    pub dialer: Arc<Dialer>,
    pub faults: Arc<Faults>,
    pub told: broadcast::Sender<News>,
    /// Counts how often it began to listen: what was told before may have been missed.
    pub tuned: watch::Sender<u64>,
}

impl Ear {
    /// Listens to one of the nodes that `nodes` says answer, for as long as it is polled.
    pub async fn listen(self, nodes: impl Fn() -> Vec<Arc<Host>>) {
        let mut attempts = interval(RETUNE);
        attempts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            attempts.tick().await;
            let Some(host) = nodes().into_iter().next() else { continue };
            let tuning = async {
                let mut heard = self.dialer.tune_in(&host).await?;
                heard.subscribe(self.dialer.name("moved")).await?;
                Ok(heard)
            };
            match timeout(self.dialer.patience(), tuning).await.unwrap_or(Err(Fault::Silent)) {
                Ok(heard) => {
                    self.tuned.send_modify(|count| *count += 1);
                    self.hear(heard, || nodes().contains(&host)).await;
                }
                Err(fault) => {
                    self.faults.note(&fault, Some(&host));
                    // A user who may not listen may not the next moment either.
                    sleep(CHECK).await;
                }
            }
        }
    }

    async fn hear(&self, heard: PubSub, is_right: impl Fn() -> bool) {
        let (mut asking, mut heard) = heard.split();
        let mut checks = interval(CHECK);
        loop {
            tokio::select! {
                message = heard.next() => {
                    let Some(message) = message else { return };
                    if let Some(news) = self.understood(message.get_payload_bytes()) {
                        // Nobody need listen.
                        let _ = self.told.send(news);
                    }
                }
                _ = checks.tick() => {
                    let answer = timeout(self.dialer.patience(), asking.ping::<redis::Value>()).await;
                    if !is_right() || !matches!(answer, Ok(Ok(_))) {
                        return;
                    }
                }
            }
        }
    }

    fn understood(&self, payload: &[u8]) -> Option<News> {
        let (name, value) = std::str::from_utf8(payload).ok()?.split_once(' ')?;
        let id = name.strip_prefix(&self.dialer.name(""))?;
        Some(News { id: id.to_owned(), value: value.to_owned() })
    }
}

impl Store {
    /// What replicas tell of their bindings from now on.
    pub fn news(&self) -> broadcast::Receiver<News> {
        match &self.backend {
            Backend::Redis(redis) => redis.news(),
            _ => broadcast::channel(1).1,
        }
    }

    /// Counts how often it began to listen to news: what was told before may have been missed, and is read in a [`Self::walk`].
    pub fn tuned(&self) -> watch::Receiver<u64> {
        match &self.backend {
            Backend::Redis(redis) => redis.tuned(),
            _ => watch::channel(0).1,
        }
    }

    /// A walk through all that is bound on the nodes that answer now.
    pub fn walk(&self) -> Walk {
        let nodes = match &self.backend {
            Backend::Redis(redis) => redis.hosts(),
            _ => Vec::new(),
        };
        Walk { nodes, cursor: 0 }
    }

    /// Some more of it. `None`: that was all.
    pub async fn step(&self, walk: &mut Walk, budget: &mut Budget) -> Result<Option<Vec<News>>, Unavailable> {
        let (Backend::Redis(redis), Some(node)) = (&self.backend, walk.nodes.last().cloned()) else { return Ok(None) };
        let cursor = walk.cursor;
        let (cursor, news) = self.timed(Operation::Scan, budget, async |until| redis.scan(&node, cursor, until).await).await?;
        walk.cursor = cursor;
        if cursor == 0 {
            walk.nodes.pop();
        }
        Ok(Some(news))
    }
}
