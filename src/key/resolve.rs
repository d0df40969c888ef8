//! Where upstreams are: resolves their names, and remembers. While no name server answers, an
//! upstream is where it was.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::time::timeout;

/// How long a name server may take at the most where it is known where the upstream was.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where each name was found last: an upstream's, and its proxy's.
#[derive(Clone, Debug)]
pub struct Resolver {
    patience: Duration,
    known: Arc<Mutex<HashMap<String, Vec<SocketAddr>>>>,
}

impl PartialEq for Resolver {
    /// What was found is nothing that an upstream is told from another by.
    fn eq(&self, other: &Self) -> bool {
        self.patience == other.patience
    }
}

impl Resolver {
    /// `connect_timeout`: for the name and the connection together.
    pub fn new(connect_timeout: Duration) -> Self {
        Self { patience: PATIENCE.min(connect_timeout / 2), known: Arc::default() }
    }

    /// What `asked` finds, or what was found before.
    async fn find(
        &self,
        name: &str,
        asked: impl Future<Output = io::Result<Vec<SocketAddr>>>,
    ) -> io::Result<Vec<SocketAddr>> {
        let Some(before) = self.known().get(name).cloned() else {
            let found = asked.await?;
            self.remember(name, &found);
            return Ok(found);
        };
        match timeout(self.patience, asked).await {
            Ok(Ok(found)) if !found.is_empty() => {
                self.remember(name, &found);
                Ok(found)
            }
            _ => {
                tracing::warn!(
                    host = name,
                    "no name server tells where an upstream is: it is looked for where it was"
                );
                Ok(before)
            }
        }
    }

    fn remember(&self, name: &str, found: &[SocketAddr]) {
        if !found.is_empty() {
            self.known().insert(name.to_owned(), found.to_owned());
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Vec<SocketAddr>>> {
        // Every change is whole before anything can panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move {
            // The port is that of the address that is called.
            let asked = async { Ok(tokio::net::lookup_host((name.as_str(), 0)).await?.collect()) };
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
    async fn while_no_name_server_answers_an_upstream_is_where_it_was() {
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
        assert_eq!(soon.await.unwrap().unwrap(), first, "nor is it waited for long");
        assert!(resolver.find("b", nothing()).await.is_err(), "of another name nothing is known");
        let moved = resolver.find("a", found(&["10.0.0.3:0"])).await.unwrap();
        assert_eq!(resolver.find("a", nothing()).await.unwrap(), moved, "it has moved");
    }
}
