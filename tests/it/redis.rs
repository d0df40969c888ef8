//! A real Redis of a test's own, on a port that was free, and known to be its own child.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use tokio::process::Command;

use crate::patience::{SOON, eventually};
use crate::port;
use crate::process::Process;

pub struct Redis {
    process: Process,
    address: SocketAddr,
}

impl Redis {
    pub async fn start(folder: &Path) -> Self {
        for attempt in 0..5 {
            let address = port::free();
            let name = format!("redis-{attempt}");
            let data = folder.join(&name);
            fs::create_dir_all(&data).expect("the temporary folder can be written");
            let mut command = Command::new("redis-server");
            command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]);
            command.arg("--port").arg(address.port().to_string()).arg("--dir").arg(&data);
            let mut redis = Self { process: Process::start(&name, command, folder, "redis-server"), address };
            let is_own = eventually(SOON, "Redis answers", async || {
                if !redis.process.is_running() {
                    return Some(false);
                }
                let info: String = redis.try_ask(&["INFO", "server"]).await?;
                Some(info.contains(&format!("process_id:{}\r\n", redis.process.pid())))
            })
            .await;
            if is_own {
                return redis;
            }
        }
        panic!("no port for Redis after five attempts");
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    async fn try_ask<T: ::redis::FromRedisValue>(&self, words: &[&str]) -> Option<T> {
        let client = ::redis::Client::open(self.url()).expect("the URL is well formed");
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        let mut command = ::redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command.query_async(&mut connection).await.ok()
    }

    pub async fn ask<T: ::redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_ask(words).await.unwrap_or_else(|| panic!("Redis answers {words:?}"))
    }

    /// The name of every binding it holds: a session's id has 22 characters.
    pub async fn bindings(&self) -> Vec<String> {
        let names: Vec<String> = self.ask(&["KEYS", "warmkey:*"]).await;
        names.into_iter().filter(|name| name.rsplit(':').next().is_some_and(|id| id.len() == 22)).collect()
    }

    /// The one binding it holds: its name and its value.
    pub async fn binding(&self) -> (String, String) {
        let mut names = self.bindings().await;
        assert_eq!(names.len(), 1, "one session: {names:?}");
        let name = names.remove(0);
        let value = self.ask(&["GET", &name]).await;
        (name, value)
    }

    /// How often this command was called.
    pub async fn calls(&self, command: &str) -> u64 {
        let info: String = self.ask(&["INFO", "commandstats"]).await;
        let prefix = format!("cmdstat_{command}:calls=");
        let line = info.lines().find_map(|line| line.strip_prefix(&prefix));
        line.and_then(|rest| rest.split(',').next()).and_then(|calls| calls.parse().ok()).unwrap_or(0)
    }

    /// Sends it `STOP`, `CONT`, ...
    pub async fn signal(&self, signal: &str) {
        self.process.signal(signal).await;
    }

    pub async fn kill(&mut self) {
        self.process.kill().await;
    }
}
