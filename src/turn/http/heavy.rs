//! Decodes, scans and translates long bodies on other threads, a few at a time.
//!
//! A body of a few kilobytes may decode to many megabytes, which takes a tenth of a second with the
//! scan. On a thread that serves turns, every stream of the thread would wait.

use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;

use crate::binding::record::BindingRecord;
use crate::chat::body::ChatBody;
use crate::client::{Client, ClientId};
use crate::error::{Error, ErrorKind};
use crate::session::identify::Identity;
use crate::store::StoredValue;
use crate::turn::http::exchange::{Asking, Glance, HttpTurns};
use crate::turn::http::replay::{LIGHT, Replayed};
use crate::turn::memory::MemoryPlace;

/// `Retry-After` of a turn that gets no place.
const SOON: Duration = Duration::from_secs(5);

impl HttpTurns {
    /// Scans the body's text: a short text here, a long one on another thread, so that no other
    /// turn waits for it.
    pub(super) async fn scan_body(
        self: &Arc<Self>,
        client: &Arc<Client>,
        headers: &HeaderMap,
        by_chat: bool,
        (body, identity): (Replayed, Identity),
    ) -> Result<(Replayed, Glance), Error> {
        let asking = Asking { client, headers, by_chat };
        if let Some(glance) = self.glance(asking, &body, &identity, LIGHT)? {
            return Ok((body, glance));
        }
        let (turns, owned, headers) = (Arc::clone(self), Arc::clone(client), headers.clone());
        let (body, glance) = self
            .on_other_thread(&client.id, move || {
                let asking = Asking { client: &owned, headers: &headers, by_chat };
                let glance = turns.glance(asking, &body, &identity, usize::MAX);
                (body, glance)
            })
            .await?;
        Ok((body, glance?.ok_or_else(failed)?))
    }

    /// Renders a long chat body on another thread, if its turn will need it in the other dialect.
    /// The turn renders a short one itself. Returns the body with a permit for the memory of what
    /// is made of it.
    pub(super) async fn render_chat(
        &self,
        client: &ClientId,
        chat: ChatBody,
        bound: Option<&StoredValue>,
    ) -> Result<(ChatBody, MemoryPlace), Error> {
        let reserved = self.replay.reserve(chat.text().len())?;
        if chat.text().len() <= LIGHT {
            return Ok((chat, reserved));
        }
        let loaded = self.gateway.registry.loaded();
        let keys = loaded.table.keys();
        // A session without a binding begins where chat is spoken, if any upstream speaks it.
        let bound = bound.and_then(|bound| BindingRecord::parse(&bound.value));
        let upstream = match bound.and_then(|bound| keys.iter().find(|key| key.tag == bound.key)) {
            Some(key) => Some(&key.upstream),
            None if keys.iter().any(|key| key.upstream.speaks_chat) => None,
            None => keys.first().map(|key| &key.upstream),
        };
        let Some(upstream) = upstream.filter(|upstream| !upstream.speaks_chat) else {
            return Ok((chat, reserved));
        };
        let derives = upstream.derives_cache_key;
        let render = move || {
            // The attempt finds the result, or the error, in the body.
            let _ = chat.translated(derives);
            chat
        };
        Ok((self.on_other_thread(client, render).await?, reserved))
    }

    /// Does `work` on another thread, as soon as one of the places is free.
    #[expect(
        clippy::disallowed_methods,
        reason = "`heavy` bounds the threads, `max_body` the time"
    )]
    async fn on_other_thread<T: Send + 'static>(
        &self,
        client: &ClientId,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        let Some(place) = self.heavy.take(client).await else {
            let error = Error::new(ErrorKind::NoKeyAvailable, "Too many long bodies come at once.");
            return Err(error.retry_after(SOON));
        };
        let working = tokio::task::spawn_blocking(move || {
            let _place = place;
            work()
        });
        working.await.map_err(|_| failed())
    }
}

fn failed() -> Error {
    Error::new(ErrorKind::Internal, "The gateway failed on this turn.")
}
