//! Faults of a configuration that each option by itself does not show.

use std::net::SocketAddr;

use crate::client::Clients;
use crate::config::Config;
use crate::key::table::Table;
use crate::server::ServerSettings;
use crate::setting::Span;

/// Faults of the listeners' addresses.
pub fn of_addresses(server: &ServerSettings) -> Vec<String> {
    let mut faults = Vec::new();
    if server.open && !server.listen.ip().is_loopback() {
        faults.push(format!(
            "server.open: an open gateway may listen on loopback only, not on {}",
            server.listen
        ));
    }
    if overlap(server.listen, server.admin_listen) {
        faults.push(format!(
            "server.admin_listen: {} is server.listen's own address",
            server.admin_listen
        ));
    }
    faults
}

/// A fault for each option that is zero and must not be.
pub fn of_values(config: &Config) -> Vec<String> {
    let spans = [
        ("server.header_timeout", config.server.header_timeout),
        ("server.ping", config.server.ping),
        ("store.timeout", config.store.timeout),
        ("ledger.retention", config.ledger.retention),
        ("ledger.rollup_retention", config.ledger.rollup_retention),
        ("binding.ttl", config.binding.ttl),
        ("telemetry.slow", config.telemetry.slow),
    ];
    let sizes = [
        ("server.max_body", config.server.max_body.0 == 0),
        ("server.replay_total", config.server.replay_total.0 == 0),
        ("binding.memory", config.binding.memory == 0),
    ];
    let short = |(name, span): (&str, Span)| {
        span.0.is_zero().then(|| format!("{name}: must be longer than nothing"))
    };
    let small = |(name, is_zero): (&str, bool)| {
        is_zero.then(|| format!("{name}: must be more than nothing"))
    };
    let spans = spans.into_iter().filter_map(short);
    spans.chain(sizes.into_iter().filter_map(small)).collect()
}

/// Faults of the keys, and of clients that no key may serve.
pub fn of_keys(table: &Table, clients: Option<&Clients>) -> Vec<String> {
    let mut faults = Vec::new();
    if table.keys().iter().all(|key| key.weight == 0) {
        faults.push("key: all have weight 0: none takes a new session".into());
    }
    let organizations: Vec<_> = table.keys().iter().map(|key| key.organization.as_str()).collect();
    if let Some(client) = clients.and_then(|clients| clients.stranded(&organizations)) {
        faults.push(format!("client {}: organizations: no key belongs to any of them", client.id));
    }
    faults
}

/// Whether two listeners cannot have these addresses at once.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    // `[::]` has the addresses of both families.
    let covers = |any: SocketAddr, own: SocketAddr| {
        any.ip().is_unspecified() && (any.is_ipv6() || own.is_ipv4())
    };
    let is_same = one.ip() == other.ip() || covers(one, other) || covers(other, one);
    one.port() == other.port() && one.port() != 0 && is_same
}
