//! Receives announcements of bindings by other replicas, and scans the bindings that were stored
//! before.
//!
//! Announcements only help this replica's memory. If one is lost, the session's next turn finds the
//! binding in the store.

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
use super::text::ReplyText;

/// Names that a node examines in one step of a scan, in a tenth of a millisecond.
const SCANNED: u32 = 100;
/// Minimum time between two attempts to subscribe.
const RESUBSCRIBE: Duration = Duration::from_millis(250);
/// Interval of checks whether the node still answers and is still the right one.
const CHECK: Duration = Duration::from_secs(5);

/// An announced binding of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The session's id and the stored binding.
    pub id: String,
    pub value: String,
}

/// Subscribes to the announcements of one node.
pub struct Subscriber {
    pub dialer: Arc<Dialer>,
    pub faults: Arc<Faults>,
    pub sender: broadcast::Sender<Announcement>,
    /// Counts the subscriptions. A new one may have missed earlier announcements.
    pub resubscribed: watch::Sender<u64>,
}

impl Subscriber {
    /// Listens to one of the connected nodes in `nodes`, for as long as the future is polled.
    pub async fn listen(self: Arc<Self>, nodes: impl Fn() -> Vec<Arc<Host>>) {
        let mut attempts = interval(RESUBSCRIBE);
        attempts.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            attempts.tick().await;
            let Some(host) = nodes().into_iter().next() else { continue };
            let subscribing = async {
                let mut channel = self.dialer.subscribe(&host).await?;
                channel.subscribe(self.dialer.name(Name::Announcements)).await?;
                Ok(channel)
            };
            match timeout(self.dialer.connect_timeout(), subscribing)
                .await
                .unwrap_or(Err(StoreFault::Silent))
            {
                Ok(channel) => {
                    self.resubscribed.send_modify(|count| *count += 1);
                    self.receive(channel, || nodes().contains(&host)).await;
                }
                Err(fault) => {
                    self.faults.note(&fault, Some(&host));
                    // A user that may not subscribe will lack the permission for a while, so the
                    // next attempt waits.
                    sleep(CHECK).await;
                }
            }
        }
    }

    async fn receive(&self, channel: PubSub, is_right: impl Fn() -> bool) {
        let (mut asking, mut messages) = channel.split();
        let mut checks = interval(CHECK);
        loop {
            tokio::select! {
                message = messages.next() => {
                    let Some(message) = message else { return };
                    if let Some(announcement) = self.parse(message.get_payload_bytes()) {
                        // Sending fails only if there is no receiver, which does no harm.
                        let _ = self.sender.send(announcement);
                    }
                }
                _ = checks.tick() => {
                    let ping = asking.ping::<redis::Value>();
                    let answer = timeout(self.dialer.connect_timeout(), ping).await;
                    if !is_right() || !matches!(answer, Ok(Ok(_))) {
                        return;
                    }
                }
            }
        }
    }

    fn parse(&self, payload: &[u8]) -> Option<Announcement> {
        let (name, value) = std::str::from_utf8(payload).ok()?.split_once(' ')?;
        let id = session(&self.dialer, name)?;
        Some(Announcement { id: id.to_owned(), value: value.to_owned() })
    }
}

/// A scan of all stored bindings, on connections of its own, so that no turn waits behind it.
pub struct Scan {
    reader: Option<Reader>,
    /// The nodes that remain. The scan reads the last one first.
    nodes: Vec<Arc<Host>>,
    cursor: u64,
    connection: Option<MultiplexedConnection>,
    /// The steps of a test's scan.
    #[cfg(test)]
    steps: std::collections::VecDeque<Result<Read, Unavailable>>,
}

struct Reader {
    dialer: Arc<Dialer>,
    faults: Arc<Faults>,
    /// The pattern that matches the deployment's names.
    pattern: String,
}

/// The bindings that one step read, each with the time until it expires.
pub type Read = Vec<(Announcement, Duration)>;

impl Scan {
    /// A scan of `nodes`.
    pub fn through(dialer: &Arc<Dialer>, faults: &Arc<Faults>, nodes: Vec<Arc<Host>>) -> Self {
        let reader = Reader {
            dialer: Arc::clone(dialer),
            faults: Arc::clone(faults),
            pattern: dialer.pattern(),
        };
        Self { reader: Some(reader), nodes, ..Self::empty() }
    }

    /// An empty scan, for a store that only this process uses.
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

    /// A scan with the steps of a test.
    #[cfg(test)]
    pub fn of(steps: Vec<Result<Read, Unavailable>>) -> Self {
        Self { steps: steps.into(), ..Self::empty() }
    }

    /// Reads one more step. Returns `None` at the end. If a node fails, the scan skips the rest of
    /// its names.
    pub async fn step(&mut self) -> Option<Result<Read, Unavailable>> {
        #[cfg(test)]
        if let Some(step) = self.steps.pop_front() {
            return Some(step);
        }
        let (reader, node) = (self.reader.as_ref()?, self.nodes.last().cloned()?);
        let reading = reader.read(&node, self.connection.take(), self.cursor);
        let read = timeout(reader.dialer.connect_timeout(), reading)
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
        let (next, names): (u64, Vec<Vec<u8>>) = scan.query_async(&mut connection).await?;
        // Another version may write names that are no text.
        let mut names: Vec<_> =
            names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect();
        names.retain(|name| session(&self.dialer, name).is_some());
        if names.is_empty() {
            return Ok((connection, next, Vec::new()));
        }
        let mut all = Pipeline::with_capacity(names.len() * 2);
        for name in &names {
            all.get(name).pttl(name);
        }
        let values: Vec<(Option<ReplyText>, i64)> = all.query_async(&mut connection).await?;
        let some = names.iter().zip(values).filter_map(|(name, (value, life))| {
            let id = session(&self.dialer, name)?.to_owned();
            // A negative life means that the value has expired meanwhile, or that a foreign writer
            // stored it without an expiry.
            let value = value?.into();
            Some((Announcement { id, value }, Duration::from_millis(life.try_into().ok()?)))
        });
        Ok((connection, next, some.collect()))
    }
}

/// Returns the session whose binding has this stored `name`. `None`: the name is of another kind or
/// another deployment.
fn session<'n>(dialer: &Dialer, name: &'n str) -> Option<&'n str> {
    match Name::of_value(dialer.bare(name)?)? {
        Name::Binding(session) => Some(session),
        _ => None,
    }
}
