//! Hearing of rebinds that other replicas made.
//!
//! A help to whoever remembers bindings, and nothing more: what is lost here is found in the store by the next turn.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::PubSub;
use tokio::sync::broadcast;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::address::Host;
use super::dial::Dialer;
use super::fault::{Fault, Faults};

/// From one attempt to the next, at least.
const RETUNE: Duration = Duration::from_millis(250);
/// How often it makes sure that there is still somebody who could speak, and that it is the right one.
const CHECK: Duration = Duration::from_secs(5);

/// A session has moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// The session's id, and what is stored under it.
    pub id: String,
    pub value: String,
}

pub struct Ear {
    pub dialer: Arc<Dialer>,
    pub faults: Arc<Faults>,
    pub told: broadcast::Sender<Moved>,
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
                Ok(heard) => self.hear(heard, || nodes().contains(&host)).await,
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
                    if let Some(moved) = self.understood(message.get_payload_bytes()) {
                        // Nobody need listen.
                        let _ = self.told.send(moved);
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

    fn understood(&self, payload: &[u8]) -> Option<Moved> {
        let (name, value) = std::str::from_utf8(payload).ok()?.split_once(' ')?;
        let id = name.strip_prefix(&self.dialer.name(""))?;
        Some(Moved { id: id.to_owned(), value: value.to_owned() })
    }
}
