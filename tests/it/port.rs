//! Ports for what must keep its address over a restart, and what waits at a port.
//!
//! The first lie below the kernel's ephemeral range, so that no outgoing connection takes one while its owner is down, and each
//! is asked from the kernel by binding it once. Servers that need no fixed port bind port 0 themselves.

use std::collections::HashSet;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::{LazyLock, Mutex};

static TAKEN: LazyLock<Mutex<HashSet<u16>>> = LazyLock::new(Mutex::default);

pub fn free() -> SocketAddr {
    let mut taken = TAKEN.lock().expect("no holder panics");
    loop {
        let port = 12_000 + u16::try_from(getrandom::u32().expect("the system has entropy") % 20_000).expect("below 20,000");
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if !taken.contains(&port) && TcpListener::bind(address).is_ok() {
            taken.insert(port);
            return address;
        }
    }
}

/// How many bytes each connection to this port holds that its owner has not read yet, where there are any.
pub fn unread(port: u16) -> Vec<u64> {
    let peer = format!(":{port:04X}");
    let table = fs::read_to_string("/proc/net/tcp").expect("Linux shows its connections");
    // Number, local address, remote address, state, bytes to send ':' bytes to read, all in hexadecimal digits.
    let rows = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let queues =
        rows.filter(|row| row[2].ends_with(&peer)).filter_map(|row| row[4].rsplit_once(':').map(|(_, unread)| unread.to_owned()));
    queues.map(|unread| u64::from_str_radix(&unread, 16).expect("a number")).filter(|unread| *unread > 0).collect()
}
