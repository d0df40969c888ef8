//! The store that replicas share: Redis 7, standalone.
//!
//! One multiplexed connection, cloned for each operation and remade in the background, so that no turn ever waits for a
//! connection; the caller's deadline bounds every wait for an answer. `EVALSHA` first, `EVAL` when the script is not known
//! yet; never `SCRIPT LOAD`, never a `PING`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, ErrorKind, FromRedisValue, RedisError, Script, ServerErrorKind, cmd, pipe};
use tokio::sync::{Notify, watch};

use super::{Held, Replaced, Unavailable};
use crate::task::Tasks;

/// Between attempts to reach a Redis that is away.
const RECONNECT: Duration = Duration::from_millis(250);
/// One attempt, with name resolution and greeting.
const CONNECT: Duration = Duration::from_secs(2);

const REPLACE: &str = include_str!("replace.lua");
const EXTEND: &str = include_str!("extend.lua");
const ORDINAL: &str = include_str!("ordinal.lua");

pub struct Redis {
    link: Arc<Link>,
    replace: (Script, &'static str),
    extend: (Script, &'static str),
    ordinal: (Script, &'static str),
}

/// The connection in use, if there is one, and word to the task that remakes it.
struct Link {
    current: Mutex<Option<MultiplexedConnection>>,
    broken: Notify,
    up: watch::Sender<bool>,
}

impl Link {
    fn set(&self, connection: Option<MultiplexedConnection>) {
        self.up.send_replace(connection.is_some());
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = connection;
    }

    fn get(&self) -> Result<MultiplexedConnection, Unavailable> {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.clone().ok_or_else(|| Unavailable("not connected".into()))
    }
}

impl Redis {
    /// Checks the address and starts connecting; answers as [`Unavailable`] until connected.
    pub fn open(url: &str, tasks: &Tasks) -> Result<Self, String> {
        // The error of a malformed URL would repeat it, password and all.
        let client = Client::open(url).map_err(|_| "store.url is no redis://[USER:PASSWORD@]HOST:PORT[/DB]".to_owned())?;
        let link = Arc::new(Link { current: Mutex::new(None), broken: Notify::new(), up: watch::Sender::new(false) });
        tasks.spawn_until_stopped(keep_connected(client, Arc::clone(&link)));
        let [replace, extend, ordinal] = [REPLACE, EXTEND, ORDINAL].map(|text| (Script::new(text), text));
        Ok(Self { link, replace, extend, ordinal })
    }

    /// Waits until connected.
    pub async fn connected(&self) {
        // The sender lives as long as `self`.
        let _ = self.link.up.subscribe().wait_for(|up| *up).await;
    }

    pub async fn get(&self, name: &str) -> Result<Option<Held>, Unavailable> {
        let mut both = pipe();
        both.get(name).pttl(name);
        let (value, left): (Option<String>, i64) = self.ask(both.query_async(&mut self.link.get()?)).await?;
        // Negative: gone between the two commands (-2), or stored without an end (-1) by a hand that was not ours.
        Ok(value.map(|value| Held { value, left: Duration::from_millis(left.try_into().unwrap_or(0)) }))
    }

    pub async fn claim(&self, name: &str, value: &str, ttl: Duration) -> Result<Option<String>, Unavailable> {
        let mut set = cmd("SET");
        set.arg(name).arg(value).arg("NX").arg("GET").arg("PX").arg(millis(ttl));
        self.ask(set.query_async(&mut self.link.get()?)).await
    }

    pub async fn replace(&self, name: &str, expected: &str, new: &str, ttl: Duration) -> Result<Replaced, Unavailable> {
        let stored: Option<String> = self.run(&self.replace, name, &[expected, new, &millis(ttl).to_string()]).await?;
        Ok(stored.map_or(Replaced::Done, Replaced::Lost))
    }

    pub async fn extend(&self, name: &str, value: &str, ttl: Duration) -> Result<(), Unavailable> {
        self.run(&self.extend, name, &[value, &millis(ttl).to_string(), &millis(ttl / 4 * 3).to_string()]).await
    }

    pub async fn ordinal(&self, name: &str, fingerprint: &str) -> Result<u32, Unavailable> {
        self.run(&self.ordinal, name, &[fingerprint]).await
    }

    async fn run<T: FromRedisValue>(&self, script: &(Script, &str), name: &str, args: &[&str]) -> Result<T, Unavailable> {
        let (known, text) = script;
        let mut connection = self.link.get()?;
        let call = |verb: &str, script: &str| {
            let mut call = cmd(verb);
            call.arg(script).arg(1).arg(name).arg(args);
            call
        };
        match call("EVALSHA", known.get_hash()).query_async(&mut connection).await {
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                self.ask(call("EVAL", text).query_async(&mut connection)).await
            }
            result => self.ask(std::future::ready(result)).await,
        }
    }

    /// Waits for an answer; a connection that broke is given up, so that the next one is made at once.
    async fn ask<T>(&self, answer: impl Future<Output = Result<T, RedisError>>) -> Result<T, Unavailable> {
        answer.await.map_err(|error| {
            if error.is_io_error() || error.is_connection_dropped() || error.is_unrecoverable_error() {
                self.link.set(None);
                self.link.broken.notify_one();
            }
            Unavailable(error.to_string())
        })
    }
}

async fn keep_connected(client: Client, link: Arc<Link>) {
    let settings = AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT)).set_response_timeout(None);
    let mut told = false;
    loop {
        match client.get_multiplexed_async_connection_with_config(&settings).await {
            Ok(connection) => {
                tracing::info!("connected to the store");
                told = false;
                link.set(Some(connection));
                link.broken.notified().await;
            }
            Err(error) if !told => {
                tracing::warn!(%error, "the store is away");
                told = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(RECONNECT).await;
    }
}

/// Redis refuses a life of zero.
fn millis(ttl: Duration) -> u64 {
    u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1)
}
