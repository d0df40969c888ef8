//! One `warmkey serve`: a process, its configuration, its two addresses, its metrics.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use tokio::process::Command;

use crate::world::port;
use crate::world::process::{Process, WARMKEY};
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Answer, get};

pub struct Replica {
    name: String,
    folder: PathBuf,
    listen: SocketAddr,
    admin: SocketAddr,
    process: Process,
    /// Commands of a shell that then becomes the replica. Empty: there are none.
    shell: String,
}

/// Begins each line of a configuration that sets a variable of the environment.
pub const ENVIRONMENT: &str = "# environment: ";

impl Replica {
    /// Starts a replica with `text` as its configuration. `@listen@` and `@admin@` stand for its
    /// addresses.
    pub async fn start(name: &str, folder: &Path, text: &str, shell: &str) -> Self {
        let (listen, admin) = (port::free(), port::free());
        let process = run(name, folder, text, shell, (listen, admin)).await;
        let (name, folder, shell) = (name.into(), folder.into(), shell.into());
        Self { name, folder, listen, admin, process, shell }
    }

    /// Starts the replica again on the same addresses, with the configuration `text`. The process
    /// must have ended.
    pub async fn restart(&mut self, text: &str) {
        assert!(!self.process.is_running(), "{} has ended", self.name);
        let addresses = (self.listen, self.admin);
        self.process = run(&self.name, &self.folder, text, &self.shell, addresses).await;
    }

    pub const fn address(&self) -> SocketAddr {
        self.listen
    }

    pub const fn admin(&self) -> SocketAddr {
        self.admin
    }

    pub const fn process(&self) -> &Process {
        &self.process
    }

    pub async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// The replica's configuration file.
    pub fn file(&self) -> PathBuf {
        self.folder.join(format!("{}.toml", self.name))
    }

    /// Replaces the configuration file atomically.
    pub fn rewrite(&self, text: &str) {
        let new = self.folder.join(format!("{}.new", self.name));
        fs::write(&new, addressed(text, self.listen, self.admin))
            .expect("the temporary folder can be written");
        fs::rename(new, self.file()).expect("the temporary folder can be written");
    }

    /// Makes the replica reload its configuration.
    pub async fn hang_up(&self) {
        self.process.signal("HUP").await;
    }

    /// Waits until the replica has logged this text since its start.
    pub async fn says(&self, text: &str) {
        let what = format!("{} says {text}", self.name);
        eventually(SOON, &what, async || self.process.said().contains(text).then_some(())).await;
    }

    /// Asks the replica to end.
    pub async fn terminate(&self) {
        self.process.signal("TERM").await;
    }

    pub async fn exit(&mut self, limit: Duration) -> ExitStatus {
        self.process.exit(limit).await
    }

    pub async fn probe(&self, target: &str) -> Answer {
        get(self.admin, target).await
    }

    pub async fn metrics(&self) -> Metrics {
        let answer = self.probe("/metrics").await;
        assert_eq!(answer.status, 200, "metrics answer");
        Metrics::read(&answer.text())
    }

    /// Waits until this series has this value.
    pub async fn shows(&self, series: &str, expected: f64) {
        let what = format!("{series} becomes {expected}");
        let is_shown = async || (self.metrics().await.get(series) - expected).abs() < f64::EPSILON;
        eventually(SOON, &what, async || is_shown().await.then_some(())).await;
    }

    /// Waits until this series has at least this value.
    pub async fn shows_at_least(&self, series: &str, least: f64) {
        let what = format!("{series} reaches {least}");
        eventually(SOON, &what, async || (self.metrics().await.get(series) >= least).then_some(()))
            .await;
    }
}

async fn run(
    name: &str,
    folder: &Path,
    text: &str,
    shell: &str,
    (listen, admin): (SocketAddr, SocketAddr),
) -> Process {
    let file = folder.join(format!("{name}.toml"));
    fs::write(&file, addressed(text, listen, admin)).expect("the temporary folder can be written");
    let mut command = match shell {
        "" => Command::new(WARMKEY),
        _ => {
            let mut command = Command::new("sh");
            command.args(["-c", &format!("{shell}\nexec \"$0\" \"$@\""), WARMKEY]);
            command
        }
    };
    command.arg("serve").arg("--config").arg(file);
    let variables = text.lines().filter_map(|line| line.strip_prefix(ENVIRONMENT)?.split_once('='));
    command.envs(variables);
    let mut process = Process::start(name, command, folder, "warmkey");
    let Some(line) = process.line().await else {
        panic!("{name} becomes ready, and not: {}", process.exit(SOON).await);
    };
    assert_eq!(line, format!("listening on http://{listen} (admin http://{admin})"));
    process
}

fn addressed(text: &str, listen: SocketAddr, admin: SocketAddr) -> String {
    text.replace("@listen@", &listen.to_string()).replace("@admin@", &admin.to_string())
}

/// The series of `/metrics` and their values.
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    fn read(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.filter_map(|line| line.rsplit_once(' '));
        Self(
            series
                .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
                .collect(),
        )
    }

    /// The value of a series; 0 if the series does not exist yet.
    pub fn get(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or(0.0)
    }

    pub fn has(&self, series: &str) -> bool {
        self.0.contains_key(series)
    }

    /// The sum over all labels of a name.
    pub fn sum(&self, name: &str) -> f64 {
        let is_one = |series: &str| {
            series == name || series.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
        };
        // The sum of no floats is -0.
        self.0.iter().filter(|(series, _)| is_one(series)).map(|(_, value)| value).sum::<f64>()
            + 0.0
    }
    /// The sum over all series that match.
    pub fn sum_where(&self, is_counted: impl Fn(&str) -> bool) -> f64 {
        self.0.iter().filter(|(series, _)| is_counted(series)).map(|(_, value)| value).sum::<f64>()
            + 0.0
    }
}
