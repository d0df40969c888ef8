//! Decodes, scans and translates long bodies on other threads, a few at a time.
//!
//! A body of a few kilobytes may decode to many megabytes. To decode and scan them takes a tenth of
//! a second, in which all streams of the same thread would wait.

use std::sync::Arc;

use http::HeaderMap;

use crate::binding::record::BindingRecord;
use crate::chat::body::ChatBody;
use crate::client::{Client, ClientId};
use crate::error::{Error, ErrorKind};
use crate::session::identify::Identity;
use crate::store::StoredValue;
use crate::turn::http::exchange::HttpTurns;
use crate::turn::http::glance::{Asking, Glance};
use crate::turn::http::replay::Replayed;
use crate::turn::http::translation::AnswerWork;
use crate::turn::memory::{LIGHT, MemoryPlace};

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
        let (gateway, replay) = (&*self.gateway, &self.replay);
        let asking = Asking { gateway, replay, client, headers, by_chat };
        if let Some(glance) = asking.glance(&body, &identity, LIGHT)? {
            return Ok((body, glance));
        }
        let (turns, owned, headers) = (Arc::clone(self), Arc::clone(client), headers.clone());
        let (body, glance) = self
            .heavy
            .run(&client.id, move || {
                let (gateway, replay) = (&*turns.gateway, &turns.replay);
                let (client, headers) = (&*owned, &headers);
                let asking = Asking { gateway, replay, client, headers, by_chat };
                let glance = asking.glance(&body, &identity, usize::MAX);
                (body, glance)
            })
            .await?;
        Ok((body, glance?.ok_or_else(failed)?))
    }

    /// Renders a long chat body on another thread, in the form that the turn's upstream will need.
    /// The turn itself renders a short one. Returns the body with a permit for the memory of the
    /// result.
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
        let bound = bound.and_then(|bound| BindingRecord::parse(&bound.value));
        let bound = bound.and_then(|bound| keys.iter().find(|key| key.tag == bound.key));
        // A session without a binding begins at an upstream that speaks chat, if there is one.
        let first = || keys.iter().find(|key| key.upstream.speaks_chat).or(keys.first());
        let Some(upstream) = bound.or_else(first).map(|key| &key.upstream) else {
            return Ok((chat, reserved));
        };
        let (speaks_chat, derives) = (upstream.speaks_chat, upstream.derives_cache_key);
        if speaks_chat && !chat.is_spliced(derives) {
            return Ok((chat, reserved));
        }
        let render = move || {
            // `chat` keeps the result or the error, and the attempt finds it there.
            match speaks_chat {
                true => drop(chat.native(derives).clone()),
                false => _ = chat.translated(derives),
            }
            chat
        };
        Ok((self.heavy.run(client, render).await?, reserved))
    }

    /// Returns what the work on an answer to `client` may use.
    pub(super) fn answer_work(&self, client: &ClientId) -> AnswerWork {
        let (heavy, memory) = (Arc::clone(&self.heavy), self.replay.memory.clone());
        AnswerWork { heavy, memory, client: client.clone() }
    }
}

fn failed() -> Error {
    Error::new(ErrorKind::Internal, "The gateway failed on this turn.")
}
