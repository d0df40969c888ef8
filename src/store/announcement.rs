//! Hearing of what other replicas have bound, and reading what they bound before.
//!
//! A help to whoever remembers bindings, and nothing more: what is lost here is found in the store
//! by the next turn.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{Pipeline, cmd};
use tokio::sync::{broadcast, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use super::Unavailable;
use super::address::Host;
use super::dial::{Dialer, Shown};
use super::fault::{Faults, StoreFault};
use super::name::Name;

/// So many names a node looks at in one step of a walk: a tenth of a millisecond.
const SCANNED: u32 = 100;
/// From one attempt to the next, at least.
const RETUNE: Duration = Duration::from_millis(250);
/// How often it makes sure that there is still somebody who could speak, and that it is the right
/// one.
const CHECK: Duration = Duration::from_secs(5);

/// A session is bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The session's id, and what is stored under it.
    pub id: String,
    pub value: String,
}

pub struct Subscriber {
    pub dialer: Arc<Dialer>,
    pub faults: Arc<Faults>,
    pub told: broadcast::Sender<Announcement>,
    /// Counts how often it began to listen: what was told before may have been missed.
    pub resubscribed: watch::Sender<u64>,
}

impl Subscriber {
    /// Listens to one of the nodes that `nodes` says answer, for as long as it is polled.
    pub async fn listen(self, nodes: impl Fn() -> Vec<Arc<Host>>) {
        let mut attempts = interval(RETUNE);
        attempts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            attempts.tick().await;
            let Some(host) = nodes().into_iter().next() else { continue };
            let tuning = async {
                let mut heard = self.dialer.subscribe(&host).await?;
                heard.subscribe(self.dialer.name(Name::Announcements)).await?;
                Ok(heard)
            };
            match timeout(self.dialer.patience(), tuning).await.unwrap_or(Err(StoreFault::Silent)) {
                Ok(heard) => {
                    self.resubscribed.send_modify(|count| *count += 1);
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
                    let asking = asking.ping::<redis::Value>();
                    let answer = timeout(self.dialer.patience(), asking).await;
                    if !is_right() || !matches!(answer, Ok(Ok(_))) {
                        return;
                    }
                }
            }
        }
    }

    fn understood(&self, payload: &[u8]) -> Option<Announcement> {
        let (name, value) = std::str::from_utf8(payload).ok()?.split_once(' ')?;
        let id = session(&self.dialer, name)?;
        Some(Announcement { id: id.to_owned(), value: value.to_owned() })
    }
}

/// A walk through all that is bound, on connections of its own: no turn waits behind it.
pub struct Scan {
    reader: Option<Reader>,
    /// The nodes that are left, of which the last is the one that it is at.
    nodes: Vec<Arc<Host>>,
    cursor: u64,
    connection: Option<MultiplexedConnection>,
    /// The steps of a test's walk.
    #[cfg(test)]
    steps: std::collections::VecDeque<Result<Read, Unavailable>>,
}

struct Reader {
    dialer: Arc<Dialer>,
    faults: Arc<Faults>,
    /// What the deployment's names look like.
    pattern: String,
}

/// What was read in one step: each binding and how long it still lives.
pub type Read = Vec<(Announcement, Duration)>;

impl Scan {
    /// Through what `nodes` have.
    pub fn through(dialer: &Arc<Dialer>, faults: &Arc<Faults>, nodes: Vec<Arc<Host>>) -> Self {
        let reader = Reader {
            dialer: Arc::clone(dialer),
            faults: Arc::clone(faults),
            pattern: dialer.pattern(),
        };
        Self { reader: Some(reader), nodes, ..Self::empty() }
    }

    /// Nothing is bound but in this process.
    pub const fn empty() -> Self {
        Self {
            reader: None,
            nodes: Vec::new(),
            cursor: 0,
            connection: None,
            #[cfg(test)]
            steps: std::collections::VecDeque::new(),
        }
    }

    /// A walk that a test has laid out.
    #[cfg(test)]
    pub fn of(steps: Vec<Result<Read, Unavailable>>) -> Self {
        Self { steps: steps.into(), ..Self::empty() }
    }

    /// Some more of it; `None`: that was all. A node that fails is left out from there on.
    pub async fn step(&mut self) -> Option<Result<Read, Unavailable>> {
        #[cfg(test)]
        if let Some(step) = self.steps.pop_front() {
            return Some(step);
        }
        let (reader, node) = (self.reader.as_ref()?, self.nodes.last().cloned()?);
        let reading = reader.read(&node, self.connection.take(), self.cursor);
        let read = timeout(reader.dialer.patience(), reading)
            .await
            .unwrap_or_else(|_| Err(StoreFault::Silent));
        let (result, left) = match read {
            Ok((connection, cursor, some)) => {
                (Ok(some), Some((connection, cursor)).filter(|_| cursor != 0))
            }
            Err(fault) => {
                reader.faults.note(&fault, Some(&node));
                (Err(fault.into()), None)
            }
        };
        match left {
            Some((connection, cursor)) => {
                (self.connection, self.cursor) = (Some(connection), cursor)
            }
            None => {
                self.nodes.pop();
                self.cursor = 0;
            }
        }
        Some(result)
    }
}

impl Reader {
    async fn read(
        &self,
        node: &Host,
        connection: Option<MultiplexedConnection>,
        cursor: u64,
    ) -> Result<(MultiplexedConnection, u64, Read), StoreFault> {
        let mut connection = match connection {
            Some(connection) => connection,
            None => self.dialer.dial(&self.dialer.address()?, node, Shown::Everything).await?,
        };
        let mut scan = cmd("SCAN");
        scan.arg(cursor)
            .arg("MATCH")
            .arg(&self.pattern)
            .arg("COUNT")
            .arg(SCANNED)
            .arg("TYPE")
            .arg("string");
        let (next, mut names): (u64, Vec<String>) = scan.query_async(&mut connection).await?;
        names.retain(|name| session(&self.dialer, name).is_some());
        if names.is_empty() {
            return Ok((connection, next, Vec::new()));
        }
        let mut all = Pipeline::with_capacity(names.len() * 2);
        for name in &names {
            all.get(name).pttl(name);
        }
        let held: Vec<(Option<String>, i64)> = all.query_async(&mut connection).await?;
        let some = names.iter().zip(held).filter_map(|(name, (value, life))| {
            let id = session(&self.dialer, name)?.to_owned();
            // Negative: gone meanwhile, or stored without an end by a hand that was not ours.
            Some((Announcement { id, value: value? }, Duration::from_millis(life.try_into().ok()?)))
        });
        Ok((connection, next, some.collect()))
    }
}

/// The session whose binding is stored under `name`: `None` for a name of another kind, or of
/// another deployment.
fn session<'n>(dialer: &Dialer, name: &'n str) -> Option<&'n str> {
    match Name::of_value(dialer.bare(name)?)? {
        Name::Binding(session) => Some(session),
        _ => None,
    }
}
