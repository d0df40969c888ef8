//! Ports for processes that keep their address over a restart.
//!
//! The ports lie below the kernel's ephemeral range, so that no outgoing connection takes one while
//! its owner is down. Each port is bound once, which shows that it is free. Servers that need no
//! fixed port bind port 0 themselves.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{LazyLock, Mutex};

/// Most ports to try. Of 20,000 ports, tests use a few hundred.
const ATTEMPTS: usize = 1_000;

static TAKEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

pub fn free() -> SocketAddr {
    let mut taken = TAKEN.lock().expect("no holder panics");
    for _ in 0..ATTEMPTS {
        let port = 12_000
            + u16::try_from(getrandom::u32().expect("the system has entropy") % 20_000)
                .expect("below 20,000");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if !taken.contains(&port) && TcpListener::bind(address).is_ok() {
            taken.insert(port);
            return address;
        }
    }
    panic!("no free port in {ATTEMPTS} attempts")
}
