//! The store that replicas share: Redis 7, standalone.
//!
//! One multiplexed connection, cloned for each operation and remade in the background, so that no turn ever waits for a
//! connection; the caller's deadline bounds every wait for an answer. A connection is given up when it breaks, and when it has
//! left several questions in a row unanswered: a peer that has vanished says nothing. `EVALSHA` first, `EVAL` when the script is
//! not known yet; never `SCRIPT LOAD`, never a `PING`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, IntoConnectionInfo, RedisError, Script, ServerErrorKind, cmd, pipe,
};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, MissedTickBehavior};

use super::{Held, Replaced, Report, Roll, Unavailable};
use crate::metrics::Metrics;
use crate::task::Tasks;

/// From one attempt to connect to the next, at least: the first one after a loss is made at once.
const RECONNECT: Duration = Duration::from_millis(250);
/// One attempt, with name resolution and greeting.
const CONNECT: Duration = Duration::from_secs(2);
/// So many questions in a row without an answer, each asked after the one before was given up, and the connection is given up.
const SILENCES: u32 = 3;
/// How long the kernel believes in a peer that acknowledges nothing, asked or not.
const VANISHED: Duration = Duration::from_secs(5);

const REPLACE: &str = include_str!("replace.lua");
const EXTEND: &str = include_str!("extend.lua");
const MERGE: &str = include_str!("merge.lua");
const ROLL: &str = include_str!("roll.lua");

pub struct Redis {
    link: Arc<Link>,
    replace: (Script, &'static str),
    extend: (Script, &'static str),
    merge: (Script, &'static str),
    roll: (Script, &'static str),
}

/// The connection in use, if there is one, and word to the task that remakes it.
struct Link {
    current: Mutex<Option<Line>>,
    broken: Notify,
    up: watch::Sender<bool>,
    metrics: Arc<Metrics>,
}

/// One connection. What is learned late about an old one says nothing about the one in use: they are told apart by number.
#[derive(Clone)]
struct Line {
    number: u64,
    connection: MultiplexedConnection,
    /// Questions without an answer since the last answer, and when the last of them was given up.
    silences: u32,
    silent_until: Instant,
}

impl Link {
    fn connected(&self, number: u64, connection: MultiplexedConnection) {
        let mut current = self.lock();
        *current = Some(Line { number, connection, silences: 0, silent_until: Instant::now() });
        self.tell(true);
    }

    fn line(&self) -> Result<Line, Unavailable> {
        self.lock().clone().ok_or_else(|| Unavailable("not connected".into()))
    }

    fn answered(&self, number: u64) {
        if let Some(line) = self.lock().as_mut().filter(|line| line.number == number) {
            line.silences = 0;
        }
    }

    /// Nothing was heard from line `number` since `asked`.
    fn unanswered(&self, number: u64, asked: Instant) {
        let mut current = self.lock();
        // Turns that wait at the same time are one silence: a hiccup is no loss.
        let Some(line) = current.as_mut().filter(|line| line.number == number && line.silent_until <= asked) else { return };
        line.silences += 1;
        line.silent_until = Instant::now();
        if line.silences >= SILENCES {
            drop(current);
            self.give_up(number, "it is silent");
        }
    }

    fn give_up(&self, number: u64, why: &str) {
        let mut current = self.lock();
        if current.take_if(|line| line.number == number).is_some() {
            self.tell(false);
            drop(current);
            tracing::warn!(why, "the connection to the store is given up");
            self.broken.notify_one();
        }
    }

    /// Called under the lock: what is told is the state.
    fn tell(&self, up: bool) {
        self.metrics.store_up(up);
        self.up.send_replace(up);
    }

    fn lock(&self) -> MutexGuard<'_, Option<Line>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A question that waits for its answer: it knows whom it was put to, and when.
pub struct Asked {
    number: Option<u64>,
    at: Instant,
}

impl Redis {
    /// Checks the address and starts connecting; answers as [`Unavailable`] until connected.
    pub fn open(url: &str, metrics: Arc<Metrics>, tasks: &Tasks) -> Result<Self, String> {
        let link = Arc::new(Link { current: Mutex::new(None), broken: Notify::new(), up: watch::Sender::new(false), metrics });
        tasks.spawn_until_stopped(keep_connected(client(url)?, Arc::clone(&link)));
        let [replace, extend, merge, roll] = [REPLACE, EXTEND, MERGE, ROLL].map(|text| (Script::new(text), text));
        Ok(Self { link, replace, extend, merge, roll })
    }

    /// To be called before a question, for [`Self::unanswered`].
    pub fn asking(&self) -> Asked {
        Asked { number: self.link.lock().as_ref().map(|line| line.number), at: Instant::now() }
    }

    /// The caller waits no longer for an answer that should have come by now.
    pub fn unanswered(&self, asked: &Asked) {
        if let Some(number) = asked.number {
            self.link.unanswered(number, asked.at);
        }
    }

    /// Waits until connected.
    pub async fn connected(&self) {
        // The sender lives as long as `self`.
        let _ = self.link.up.subscribe().wait_for(|up| *up).await;
    }

    pub async fn get(&self, name: &str) -> Result<Option<Held>, Unavailable> {
        let mut both = pipe();
        both.get(name).pttl(name);
        let mut line = self.link.line()?;
        let (value, left): (Option<String>, i64) = self.ask(line.number, both.query_async(&mut line.connection)).await?;
        // Negative: gone between the two commands (-2), or stored without an end (-1) by a hand that was not ours.
        Ok(value.map(|value| Held { value, left: Duration::from_millis(left.try_into().unwrap_or(0)) }))
    }

    pub async fn claim(&self, name: &str, value: &str, ttl: Duration) -> Result<Option<String>, Unavailable> {
        let mut set = cmd("SET");
        set.arg(name).arg(value).arg("NX").arg("GET").arg("PX").arg(millis(ttl));
        let mut line = self.link.line()?;
        self.ask(line.number, set.query_async(&mut line.connection)).await
    }

    pub async fn replace(&self, name: &str, expected: &str, new: &str, ttl: Duration) -> Result<Replaced, Unavailable> {
        let stored: Option<String> = self.run(&self.replace, name, &[expected, new, &millis(ttl).to_string()]).await?;
        Ok(stored.map_or(Replaced::Done, Replaced::Lost))
    }

    pub async fn extend(&self, name: &str, value: &str, ttl: Duration) -> Result<(), Unavailable> {
        self.run(&self.extend, name, &[value, &millis(ttl).to_string(), &millis(ttl / 4 * 3).to_string()]).await
    }

    pub async fn merge(&self, name: &str, value: &str, epoch: u32, ttl: Duration) -> Result<Option<String>, Unavailable> {
        self.run(&self.merge, name, &[value, &epoch.to_string(), &millis(ttl).to_string()]).await
    }

    pub async fn call_roll(&self, name: &str, report: &Report<'_>) -> Result<Roll, Unavailable> {
        let Report { replica, fingerprint, keys, ordinal, life } = report;
        let (ordinal, life) = (ordinal.to_string(), life.as_millis().to_string());
        let args = [*replica, *fingerprint, *keys, &ordinal, &life];
        let (ordinal, others) = self.run(&self.roll, name, &args).await?;
        Ok(Roll { ordinal, others })
    }

    /// Whether connected.
    pub fn health(&self) -> watch::Receiver<bool> {
        self.link.up.subscribe()
    }

    async fn run<T: FromRedisValue>(&self, script: &(Script, &str), name: &str, args: &[&str]) -> Result<T, Unavailable> {
        let (known, text) = script;
        let Line { number, mut connection, .. } = self.link.line()?;
        let call = |verb: &str, script: &str| {
            let mut call = cmd(verb);
            call.arg(script).arg(1).arg(name).arg(args);
            call
        };
        match call("EVALSHA", known.get_hash()).query_async(&mut connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.ask(number, call("EVAL", text).query_async(&mut connection)).await
            }
            result => self.ask(number, std::future::ready(result)).await,
        }
    }

    /// Waits for an answer from line `number`, which is given up if it broke.
    async fn ask<T>(&self, number: u64, answer: impl Future<Output = Result<T, RedisError>>) -> Result<T, Unavailable> {
        let result = answer.await;
        match &result {
            Err(error) if error.is_io_error() || error.is_connection_dropped() || error.is_unrecoverable_error() => {
                self.link.give_up(number, &error.to_string());
            }
            // An error that Redis has for one command is an answer.
            _ => self.link.answered(number),
        }
        result.map_err(|error| Unavailable(error.to_string()))
    }
}

fn client(url: &str) -> Result<Client, String> {
    let keepalive = TcpKeepalive::new().with_time(VANISHED / 2).with_interval(Duration::from_secs(1));
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(VANISHED);
    url.into_connection_info()
        .and_then(|info| Client::open(info.set_tcp_settings(tcp)))
        // The error of a malformed URL would repeat it, password and all.
        .map_err(|_| "store.url is no redis://[USER:PASSWORD@]HOST:PORT[/DB]".to_owned())
}

async fn keep_connected(client: Client, link: Arc<Link>) {
    let settings = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(None);
    let mut attempts = tokio::time::interval(RECONNECT);
    attempts.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut number, mut told) = (0, false);
    loop {
        attempts.tick().await;
        match client.get_multiplexed_async_connection_with_config(&settings).await {
            Ok(connection) => {
                tracing::info!("connected to the store");
                told = false;
                number += 1;
                link.connected(number, connection);
                link.broken.notified().await;
            }
            Err(error) if !told => {
                tracing::warn!(%error, "the store is away");
                told = true;
            }
            Err(_) => {}
        }
    }
}

/// Redis refuses a life of zero.
fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_leaves_at_once_and_a_vanished_peer_is_noticed() {
        let client = client("redis://user:password@localhost:6379/1").unwrap();
        let tcp = client.get_connection_info().tcp_settings();
        assert!(tcp.nodelay() && tcp.keepalive().is_some());
        #[cfg(target_os = "linux")]
        assert_eq!(tcp.user_timeout(), Some(VANISHED));
    }
}
