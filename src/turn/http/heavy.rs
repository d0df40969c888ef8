//! Long bodies: other threads decode and scan them, a few at a time.
//!
//! A body of a few kilobytes may decode to many megabytes, which take a tenth of a second to decode
//! and scan. On the thread of turns, every stream of that thread would wait for it.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::session::identify::Identity;
use crate::turn::http::exchange::{Glance, HttpTurns};
use crate::turn::http::replay::{LIGHT, Replayed};

/// Long texts that are decoded and scanned at once. More would take the cores from other turns.
pub const HEAVY: usize = 2;
/// Longest wait for one of these places, and `Retry-After` of a turn that gets none.
const HEAVY_TIMEOUT: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(5);

impl HttpTurns {
    /// Scans the body's text: a short text here, a long one on another thread, so that no other
    /// turn waits for it.
    #[expect(
        clippy::disallowed_methods,
        reason = "`heavy` bounds the threads, `max_body` the time"
    )]
    pub(super) async fn look(
        self: &Arc<Self>,
        client: &Arc<Client>,
        headers: &HeaderMap,
        body: Replayed,
        identity: Identity,
    ) -> Result<(Replayed, Glance), Error> {
        if let Some(glance) = self.glance(client, headers, &body, &identity, LIGHT)? {
            return Ok((body, glance));
        }
        let place = Arc::clone(&self.heavy).acquire_owned();
        let Ok(Ok(place)) = tokio::time::timeout(HEAVY_TIMEOUT, place).await else {
            let error = Error::new(ErrorKind::NoKeyAvailable, "Too many long bodies come at once.");
            return Err(error.retry_after(SOON));
        };
        let (turns, client, headers) = (Arc::clone(self), Arc::clone(client), headers.clone());
        let glancing = tokio::task::spawn_blocking(move || {
            let _place = place;
            let glance = turns.glance(&client, &headers, &body, &identity, usize::MAX);
            (body, glance)
        });
        let failed = || Error::new(ErrorKind::Internal, "The gateway failed on this turn.");
        let (body, glance) = glancing.await.map_err(|_| failed())?;
        Ok((body, glance?.ok_or_else(failed)?))
    }
}
