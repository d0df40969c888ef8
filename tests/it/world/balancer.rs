//! HAProxy in round robin: without affinity, every turn of a session may meet another replica.
//!
//! The load balancer tries another replica only if a connection was refused. Any other answer, or
//! failure to answer, reaches the client.

use std::net::SocketAddr;
use std::path::Path;

use tokio::process::Command;

use crate::world::port;
use crate::world::process::{Folder, Process};
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Connection, get};

pub struct Balancer {
    address: SocketAddr,
    /// The address at which HAProxy shows the state of the replicas.
    state: SocketAddr,
    _process: Process,
}

impl Balancer {
    /// Balances over `replicas`, each with the address of its probes.
    pub async fn start(folder: &Folder, replicas: &[(SocketAddr, SocketAddr)]) -> Self {
        for attempt in 0..5 {
            let (address, state) = (port::free(), port::free());
            let name = format!("haproxy-{attempt}");
            let file =
                folder.write(&format!("{name}.cfg"), &configuration(address, state, replicas));
            // Debian installs HAProxy in a folder that is only on root's path.
            let program = ["/usr/sbin/haproxy", "haproxy"]
                .into_iter()
                .find(|program| Path::new(program).exists());
            let mut command = Command::new(program.unwrap_or("haproxy"));
            command.arg("-db").arg("-f").arg(file);
            let mut process = Process::start(&name, command, folder.path(), "haproxy");
            let is_up = eventually(SOON, "HAProxy listens", async || {
                if !process.is_running() {
                    return Some(false);
                }
                Connection::try_open(address).await.ok().map(|_| true)
            })
            .await;
            if is_up {
                return Self { address, state, _process: process };
            }
        }
        panic!("no port for HAProxy after five attempts");
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until the load balancer sends turns to replica `number` again.
    pub async fn trusts(&self, number: usize) {
        let server = format!("warmkey,r{number},");
        eventually(SOON, "HAProxy finds the replica up", async || {
            let state = get(self.state, "/;csv").await.text();
            let line = state.lines().find(|line| line.starts_with(&server))?;
            line.contains(",UP,").then_some(())
        })
        .await;
    }
}

fn configuration(
    address: SocketAddr,
    state: SocketAddr,
    replicas: &[(SocketAddr, SocketAddr)],
) -> String {
    let servers: String = replicas
        .iter()
        .enumerate()
        .map(|(number, (listen, admin))| {
            format!(
                "  server r{number} {listen} check port {} inter 100ms fall 1 rise 1\n",
                admin.port()
            )
        })
        .collect();
    format!(
        "global\n  maxconn 4000\ndefaults\n  mode http\n  timeout connect 2s\n  timeout check 5s\n  timeout client 10m\n  timeout server 10m\n  \
         option http-no-delay\n  option redispatch 1\n  retries 3\n  retry-on conn-failure\nlisten warmkey\n  bind {address}\n  \
         balance roundrobin\n  option httpchk GET /readyz\n{servers}listen state\n  bind {state}\n  stats enable\n  stats uri /\n"
    )
}
