//! A real Redis of a test's own, on a free port, and surely the test's own child. Also the shapes
//! in which operators run Redis.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::world::port;
use crate::world::process::Process;
use crate::world::waiting::{SOON, eventually, within};

pub mod sentinel;
pub mod shape;
pub mod shards;

pub struct Redis {
    process: Process,
    address: SocketAddr,
    folder: PathBuf,
    arguments: Vec<String>,
}

impl Redis {
    pub async fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[]).await
    }

    /// Starts with these arguments after the harness's own.
    pub async fn start_with(folder: &Path, arguments: &[&str]) -> Self {
        Self::launch(folder, |_, _| arguments.iter().map(|word| (*word).to_owned()).collect()).await
    }

    /// Starts with arguments that depend on its address and its folder of data.
    async fn launch(folder: &Path, arguments: impl Fn(SocketAddr, &Path) -> Vec<String>) -> Self {
        for _ in 0..5 {
            let address = port::free();
            let data = folder.join(format!("redis-{}", address.port()));
            fs::create_dir_all(&data).expect("the temporary folder can be written");
            let arguments = arguments(address, &data);
            let process = run(folder, &data, address, &arguments);
            let mut redis = Self { process, address, folder: folder.into(), arguments };
            if redis.is_own().await {
                return redis;
            }
        }
        panic!("no port for Redis after five attempts");
    }

    /// Waits until the port answers. Returns whether this very process answers, because another one
    /// may have taken the port.
    async fn is_own(&mut self) -> bool {
        eventually(SOON, "Redis answers", async || {
            if !self.process.is_running() {
                return Some(false);
            }
            let info: String = self.try_ask(&["INFO", "server"]).await?;
            Some(info.contains(&format!("process_id:{}\r\n", self.process.pid())))
        })
        .await
    }

    /// Starts Redis again on its port. The process must have ended. Redis is then empty, because it
    /// keeps nothing on disk.
    pub async fn restart(&mut self) {
        assert!(!self.process.is_running(), "Redis has ended");
        let data = self.folder.join(format!("redis-{}", self.address.port()));
        self.process = run(&self.folder, &data, self.address, &self.arguments);
        assert!(self.is_own().await, "its port is its own");
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    pub async fn try_ask<T: ::redis::FromRedisValue>(&self, words: &[&str]) -> Option<T> {
        let client = ::redis::Client::open(self.url()).expect("the URL is well formed");
        let asking = async {
            let mut connection = client.get_multiplexed_async_connection().await.ok()?;
            let mut command = ::redis::cmd(words[0]);
            for word in &words[1..] {
                command.arg(*word);
            }
            command.query_async(&mut connection).await.ok()
        };
        within(SOON, "an answer of Redis", asking).await
    }

    pub async fn ask<T: ::redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_ask(words).await.unwrap_or_else(|| panic!("Redis answers {words:?}"))
    }

    /// Asks for an effect, and ignores the answer.
    pub async fn run(&self, words: &[&str]) {
        let _: ::redis::Value = self.ask(words).await;
    }

    /// Asks for an effect, with words that need not be text.
    pub async fn write(&self, words: &[&[u8]]) {
        let client = ::redis::Client::open(self.url()).expect("the URL is well formed");
        let mut command = ::redis::Cmd::new();
        for word in words {
            command.arg(*word);
        }
        let asking = async {
            let mut connection = client.get_multiplexed_async_connection().await?;
            command.exec_async(&mut connection).await
        };
        within(SOON, "an answer of Redis", asking).await.expect("Redis takes the words");
    }

    /// Sends a command that keeps Redis busy for a while, without waiting for the answer.
    pub async fn send(&self, words: &[&str]) {
        let mut stream = TcpStream::connect(self.address).await.expect("Redis listens");
        let mut bytes = format!("*{}\r\n", words.len());
        for word in words {
            bytes.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        stream.write_all(bytes.as_bytes()).await.expect("Redis reads");
        // Redis may drop the command of a client that has gone.
        tokio::spawn(
            async move { while matches!(stream.read_buf(&mut Vec::new()).await, Ok(1..)) {} },
        );
    }

    /// Waits until this section of `INFO` has all these lines.
    pub async fn reports(&self, section: &str, lines: &[&str]) {
        eventually(SOON, &format!("{lines:?} in INFO {section}"), async || {
            let info: String = self.try_ask(&["INFO", section]).await?;
            lines.iter().all(|line| info.contains(line)).then_some(())
        })
        .await;
    }

    /// Waits until the replicas have every write so far. `WAIT` would cover only the writes of its
    /// own connection.
    pub async fn is_copied(&self) {
        let offset = |line: &str, name: &str| {
            line.split([',', ':']).find_map(|part| part.strip_prefix(name)?.parse::<u64>().ok())
        };
        let info: String = self.ask(&["INFO", "replication"]).await;
        let goal = info
            .lines()
            .find_map(|line| line.strip_prefix("master_repl_offset:")?.parse::<u64>().ok());
        eventually(SOON, "all that was written on every replica", async || {
            let info: String = self.try_ask(&["INFO", "replication"]).await?;
            let mut replicas = info.lines().filter_map(|line| offset(line, "offset="));
            replicas
                .clone()
                .next()
                .filter(|_| replicas.all(|offset| Some(offset) >= goal))
                .map(|_| ())
        })
        .await;
    }

    /// The name of every binding: a session's id has 22 characters.
    pub async fn bindings(&self) -> Vec<String> {
        let names: Vec<String> = self.ask(&["KEYS", "warmkey:*"]).await;
        names
            .into_iter()
            .filter(|name| name.rsplit(':').next().is_some_and(|id| id.len() == 22))
            .collect()
    }

    /// The name and the value of the only binding.
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
        line.and_then(|rest| rest.split(',').next())
            .and_then(|calls| calls.parse().ok())
            .unwrap_or(0)
    }

    /// Sends `STOP`, `CONT`, ...
    pub async fn signal(&self, signal: &str) {
        self.process.signal(signal).await;
    }

    pub async fn kill(&mut self) {
        self.process.kill().await;
    }
}

fn run(folder: &Path, data: &Path, address: SocketAddr, arguments: &[String]) -> Process {
    let name = format!("redis-{}", address.port());
    let mut command = Command::new("redis-server");
    // Redis requires the configuration file before all options.
    let (files, options): (Vec<_>, Vec<_>) =
        arguments.iter().partition(|word| word.ends_with(".conf"));
    command.args(files);
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--daemonize", "no"]);
    command.arg("--port").arg(address.port().to_string()).arg("--dir").arg(data);
    // Redis logs to the file that a failed test shows.
    command.arg("--logfile").arg(folder.join(format!("{name}.log"))).args(options);
    Process::start(&name, command, folder, "redis-server")
}
