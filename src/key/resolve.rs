//! Resolves the names of upstreams and remembers their addresses. While no name server answers, the
//! last address stays in use.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::time::timeout;

mod lookups;

use lookups::Lookups;

/// Maximum time for a name server to answer if a last address is known.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(2);

/// The last addresses of each name: an upstream's, or its proxy's.
#[derive(Clone, Debug)]
pub struct Resolver {
    timeout: Duration,
    known: Arc<Mutex<HashMap<String, Vec<SocketAddr>>>>,
    lookups: Arc<Lookups>,
}

impl PartialEq for Resolver {
    /// Upstreams compare equal whatever their resolvers have found.
    fn eq(&self, other: &Self) -> bool {
        self.timeout == other.timeout
    }
}

impl Resolver {
    /// `connect_timeout` covers the name and the connection together.
    pub fn new(connect_timeout: Duration) -> Self {
        let timeout = LOOKUP_TIMEOUT.min(connect_timeout / 2);
        Self { timeout, known: Arc::default(), lookups: Arc::new(Lookups::new()) }
    }

    /// The addresses that `asked` returns, or the last known ones.
    async fn find(
        &self,
        name: &str,
        asked: impl Future<Output = io::Result<Vec<SocketAddr>>>,
    ) -> io::Result<Vec<SocketAddr>> {
        let Some(before) = self.lock().get(name).cloned() else {
            let found = asked.await?;
            self.remember(name, &found);
            return Ok(found);
        };
        match timeout(self.timeout, asked).await {
            Ok(Ok(found)) if !found.is_empty() => {
                self.remember(name, &found);
                Ok(found)
            }
            _ => {
                tracing::warn!(
                    host = name,
                    "no name server knows the address of an upstream: the last address stays in use"
                );
                Ok(before)
            }
        }
    }

    fn remember(&self, name: &str, found: &[SocketAddr]) {
        if !found.is_empty() {
            self.lock().insert(name.to_owned(), found.to_owned());
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<SocketAddr>>> {
        // A panic leaves no change half made, so a poisoned lock is fit for use.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            let asked = resolver.lookups.find(name.as_str());
            let found = resolver.find(name.as_str(), asked).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn found(addresses: &[&str]) -> io::Result<Vec<SocketAddr>> {
        Ok(addresses.iter().map(|address| address.parse().unwrap()).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn upstream_keeps_its_last_address_while_no_name_server_answers() {
        let resolver = Resolver::new(Duration::from_secs(1));
        let nothing = || async { Err(io::Error::other("no such name")) };
        assert!(
            resolver.find("a", nothing()).await.is_err()
                && resolver.find("a", found(&[])).await.unwrap().is_empty()
        );
        let first = resolver.find("a", found(&["10.0.0.1:0", "10.0.0.2:0"])).await.unwrap();
        assert_eq!(first.len(), 2);
        assert_eq!(resolver.find("a", nothing()).await.unwrap(), first);
        assert_eq!(resolver.find("a", found(&[])).await.unwrap(), first);
        let soon = timeout(Duration::from_millis(501), resolver.find("a", std::future::pending()));
        assert_eq!(soon.await.unwrap().unwrap(), first, "and a turn does not wait for long");
        assert!(resolver.find("b", nothing()).await.is_err(), "another name has no last address");
        let moved = resolver.find("a", found(&["10.0.0.3:0"])).await.unwrap();
        assert_eq!(resolver.find("a", nothing()).await.unwrap(), moved, "it has moved");
    }
}
