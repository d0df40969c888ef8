//! Delays the refusals of wrong tokens. Within a minute, each refusal to one address waits longer
//! than the last, up to a limit. Addresses beyond those that are remembered count together, as one.
//!
//! A request with a valid token never waits, even after wrong tokens from its address: behind a
//! load balancer, all clients have one address. No token and no hash of a token is kept.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{Extensions, Request};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::error::ErrorKind;
use crate::metrics::Metrics;
use crate::server::connection::PeerAddress;

/// Refusals of an address within a minute that wait for nothing.
const FREE: u32 = 10;
/// The first delay. Each further one is twice as long, up to the longest.
const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);
/// Time after its first wrong token in which the refusals of an address are counted.
const MINUTE: Duration = Duration::from_secs(60);
/// Most addresses that are remembered.
const MOST: usize = 4_096;
/// Most refusals that are delayed at the same time. Further ones are sent at once, so that they do
/// not hold all connections. A small listener delays at most a quarter of its connections.
const WAITING: usize = 256;

pub struct Slowing {
    metrics: Arc<Metrics>,
    seen: Mutex<Callers>,
    places: Semaphore,
}

/// The callers that have shown wrong tokens.
#[derive(Default)]
struct Callers {
    known: HashMap<IpAddr, Seen>,
    /// All callers for which `known` has no place.
    others: Option<Seen>,
}

struct Seen {
    count: u32,
    /// When the first of them came.
    since: Instant,
}

impl Seen {
    const fn new(now: Instant) -> Self {
        Self { count: 0, since: now }
    }

    fn is_over(&self, now: Instant) -> bool {
        now - self.since >= MINUTE
    }

    /// Counts one more wrong token. Returns the delay of its refusal.
    fn note(&mut self, now: Instant) -> Duration {
        if self.is_over(now) {
            *self = Self::new(now);
        }
        self.count = self.count.saturating_add(1);
        match self.count.checked_sub(FREE + 1) {
            None => Duration::ZERO,
            Some(over) => LONGEST.min(FIRST * 2_u32.pow(over.min(8))),
        }
    }
}

impl Slowing {
    /// Returns the delays of a listener with at most `most` connections.
    pub fn new(metrics: Arc<Metrics>, most: usize) -> Self {
        let places = Semaphore::new(WAITING.min(most / 4));
        Self { metrics, seen: Mutex::default(), places }
    }

    /// Returns the caller of a request, with its address if the request shows a token.
    pub fn caller<B>(self: &Arc<Self>, request: &Request<B>) -> TokenCaller {
        let shows = request.headers().contains_key(AUTHORIZATION);
        let peer = request.extensions().get::<PeerAddress>().filter(|_| shows);
        TokenCaller { slowing: Arc::clone(self), peer: peer.map(|PeerAddress(peer)| *peer) }
    }

    /// Notes a wrong token of `peer`, and waits until its refusal may be sent.
    async fn wait(&self, peer: IpAddr) {
        let wait = self.note(network(peer), Instant::now());
        if wait.is_zero() {
            return;
        }
        if let Ok(_place) = self.places.try_acquire() {
            self.metrics.refusal_slowed();
            sleep(wait).await;
        }
    }

    fn note(&self, peer: IpAddr, now: Instant) -> Duration {
        let Callers { known, others } =
            &mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST && !known.contains_key(&peer) {
            known.retain(|_, seen| !seen.is_over(now));
            if known.len() >= MOST {
                // There are too many addresses to count each by itself.
                return others.get_or_insert_with(|| Seen::new(now)).note(now);
            }
        }
        known.entry(peer).or_insert_with(|| Seen::new(now)).note(now)
    }
}

/// The caller of a request, and the caller's address if the request shows a token.
pub struct TokenCaller {
    slowing: Arc<Slowing>,
    /// The caller's address. `None`: the request showed no token, like the health checks of load
    /// balancers.
    peer: Option<IpAddr>,
}

impl TokenCaller {
    /// Waits until the caller may receive the response with these extensions.
    pub async fn delay_refusal(self, response: &Extensions) {
        if let (Some(ErrorKind::InvalidApiKey), Some(peer)) = (response.get(), self.peer) {
            self.slowing.wait(peer).await;
        }
    }
}

/// Returns the network of an address, because one caller may have all addresses of an IPv6 network.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn wrong_tokens_of_one_address_wait_longer_and_longer() {
        let slowing = Slowing::new(Arc::new(Metrics::new()), 4);
        let [one, other]: [IpAddr; 2] = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        let began = Instant::now();
        for _ in 0..FREE {
            slowing.wait(one).await;
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        let waits = [1, 2, 4, 8, 16, 20, 20, 20].map(|fifties| FIRST * fifties);
        for wait in waits {
            let began = Instant::now();
            slowing.wait(one).await;
            assert_eq!(began.elapsed(), wait);
        }
        let began = Instant::now();
        slowing.wait(other).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "another address");
        tokio::time::advance(MINUTE).await;
        let began = Instant::now();
        slowing.wait(one).await;
        assert_eq!(began.elapsed(), Duration::ZERO, "it begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn wrong_tokens_of_more_than_a_minute_do_not_add_up() {
        let slowing = Slowing::new(Arc::new(Metrics::new()), 4);
        let peer = IpAddr::from([10, 0, 0, 1]);
        for number in 0..4 * FREE {
            assert!(slowing.note(peer, Instant::now()).is_zero(), "{number}");
            tokio::time::advance(MINUTE / FREE).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_refusals_hold_a_quarter_of_the_connections_at_most() {
        for (most, waiting) in [(96, 24), (2_000, 256), (3, 0)] {
            let slowing = Slowing::new(Arc::new(Metrics::new()), most);
            let peer = IpAddr::from([10, 0, 0, 1]);
            for _ in 0..FREE {
                slowing.wait(peer).await;
            }
            let all = futures_util::future::join_all((0..300).map(async |_| {
                let began = Instant::now();
                slowing.wait(peer).await;
                began.elapsed() > Duration::ZERO
            }));
            let held = all.await.into_iter().filter(|has_waited| *has_waited).count();
            assert_eq!(held, waiting, "{most}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_beyond_those_that_are_remembered_wait_together() {
        let slowing = Slowing::new(Arc::new(Metrics::new()), 4);
        let peer = |number: u32| IpAddr::from(std::net::Ipv4Addr::from_bits(number));
        let note = |number| slowing.note(peer(number), Instant::now());
        for number in 0..MOST as u32 {
            assert!(note(number).is_zero());
        }
        let beyond: Vec<_> = (0..20).map(|number| note(MOST as u32 + number)).collect();
        assert!(beyond[..FREE as usize].iter().all(Duration::is_zero));
        assert_eq!((beyond[FREE as usize], beyond[19]), (FIRST, LONGEST));
        assert!(note(0).is_zero(), "a known address has its own count");
        tokio::time::advance(MINUTE).await;
        assert!(note(u32::MAX).is_zero(), "there is room again");
    }

    #[test]
    fn memory_of_addresses_is_bounded() {
        let (slowing, now) = (Slowing::new(Arc::new(Metrics::new()), 4), Instant::now());
        for number in 0..MOST as u32 * 2 {
            slowing.note(std::net::Ipv4Addr::from_bits(number).into(), now);
        }
        assert_eq!(slowing.seen.lock().unwrap().known.len(), MOST);
        let [one, two] = ["2001:db8::1", "2001:db8::ffff:2"].map(|it| network(it.parse().unwrap()));
        assert_eq!(one, two);
    }
}
