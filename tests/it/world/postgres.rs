//! A real PostgreSQL of a test's own, on a free port. A test starts and kills it, and starts it
//! again on the same data.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, PgConnection};
use tokio::process::Command;

use crate::world::port;
use crate::world::process::Process;
use crate::world::waiting::{ANSWER, SOON, eventually, within};

pub mod wire;

/// The user that owns its data, because the server refuses to run as root.
const USER: &str = "postgres";

pub struct Postgres {
    folder: PathBuf,
    data: PathBuf,
    address: SocketAddr,
    process: Process,
}

impl Postgres {
    pub async fn start(folder: &Path) -> Self {
        let address = port::free();
        let data = folder.join(format!("postgres-{}", address.port()));
        std::fs::create_dir_all(&data).expect("the temporary folder can be written");
        if is_root().await {
            run(Command::new("chown").arg(USER).arg(&data)).await;
        }
        let mut init = command("initdb").await;
        init.args([
            "--username",
            USER,
            "--auth",
            "trust",
            "--no-sync",
            "--encoding",
            "UTF8",
            "--locale",
            "C",
            "--pgdata",
        ]);
        run(init.arg(&data)).await;
        let process = serve(folder, &data, address).await;
        let postgres = Self { folder: folder.into(), data, address, process };
        postgres.answers().await;
        postgres
    }

    /// The database's URL, as the configuration names it.
    pub fn url(&self) -> String {
        self.url_at(self.address)
    }

    /// The URL of the same database by another address.
    pub fn url_at(&self, address: SocketAddr) -> String {
        format!("postgres://{USER}@{address}/postgres?sslmode=disable")
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Kills it with SIGKILL: no transaction ends in good order.
    pub async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Starts it again on the same data. The process must have ended.
    pub async fn restart(&mut self) {
        assert!(!self.process.is_running(), "PostgreSQL has ended");
        // Its child processes notice the end a moment later, and hold the shared memory until then.
        for _ in 0..50 {
            self.process = serve(&self.folder, &self.data, self.address).await;
            if self.answers_or_ends().await {
                return;
            }
            tokio::time::sleep(crate::world::waiting::ms(100)).await;
        }
        panic!("PostgreSQL starts again");
    }

    pub async fn connect(&self) -> PgConnection {
        self.try_connect().await.expect("PostgreSQL answers")
    }

    async fn try_connect(&self) -> Option<PgConnection> {
        let options: PgConnectOptions = self.url().parse().expect("a URL");
        options.connect().await.ok()
    }

    async fn answers(&self) {
        eventually(SOON, "PostgreSQL answers", async || self.try_connect().await.map(drop)).await;
    }

    /// Whether it answers, and has not ended instead.
    async fn answers_or_ends(&mut self) -> bool {
        eventually(SOON, "PostgreSQL answers", async || {
            if !self.process.is_running() {
                return Some(false);
            }
            self.try_connect().await.map(|_| true)
        })
        .await
    }
}

async fn serve(folder: &Path, data: &Path, address: SocketAddr) -> Process {
    let mut command = command("postgres").await;
    let set = |name: &str, value: &str| format!("{name}={value}");
    command.arg("-D").arg(data).args(["-p", &address.port().to_string()]);
    for option in [
        set("listen_addresses", "127.0.0.1"),
        set("unix_socket_directories", ""),
        set("fsync", "off"),
        set("shared_buffers", "32MB"),
    ] {
        command.args(["-c", &option]);
    }
    Process::start("postgres", command, folder, "postgresql")
}

/// A program of the server, run as the user that it requires.
async fn command(name: &str) -> Command {
    let program = program(name);
    if !is_root().await {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--clear-groups"]).arg(program);
    command
}

/// Debian installs these programs in a folder that is on no path.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<_> = versions
        .map(|version| version.path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found.pop().unwrap_or_else(|| name.into())
}

async fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().await.expect("id runs");
    id.stdout.starts_with(b"0\n")
}

async fn run(command: &mut Command) {
    let output = within(ANSWER, "the end of a command", command.kill_on_drop(true).output()).await;
    let output = output
        .unwrap_or_else(|error| panic!("{command:?} ({error}): install the package postgresql"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
