//! Decodes, scans and translates long bodies on other threads, a few at a time.
//!
//! A body of a few kilobytes may decode to many megabytes. To decode and scan them takes a tenth of
//! a second, in which all streams of the same thread would wait.

use std::sync::{Arc, Mutex, PoisonError};

use http::HeaderMap;

use crate::binding::record::BindingRecord;
use crate::chat::body::{ChatBody, Room};
use crate::client::{Client, ClientId};
use crate::error::{Error, ErrorKind};
use crate::session::identify::Identity;
use crate::store::StoredValue;
use crate::turn::http::exchange::HttpTurns;
use crate::turn::http::glance::{Asking, Glance};
use crate::turn::http::replay::Replayed;
use crate::turn::http::translation::AnswerWork;
use crate::turn::memory::{BodyMemory, LIGHT, MemoryPlace};

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
    /// The turn itself renders a short one. Both results count in the memory.
    pub(super) async fn render_chat(
        &self,
        client: &ClientId,
        chat: ChatBody,
        bound: Option<&StoredValue>,
    ) -> Result<ChatBody, Error> {
        let length = chat.text().len();
        let chat = chat.counted(room_for(self.replay.memory.of(client), length)?);
        if length <= LIGHT {
            return Ok(chat);
        }
        let loaded = self.gateway.registry.loaded();
        let keys = loaded.table.keys();
        let bound = bound.and_then(|bound| BindingRecord::parse(&bound.value));
        let bound = bound.and_then(|bound| keys.iter().find(|key| key.tag == bound.key));
        // A session without a binding begins at an upstream that speaks chat, if there is one.
        let first = || keys.iter().find(|key| key.upstream.speaks_chat).or(keys.first());
        let Some(upstream) = bound.or_else(first).map(|key| &key.upstream) else {
            return Ok(chat);
        };
        let (speaks_chat, derives) = (upstream.speaks_chat, upstream.derives_cache_key);
        if speaks_chat && !chat.is_spliced(derives) {
            return Ok(chat);
        }
        let render = move || {
            // `chat` keeps the result or the error, and the attempt finds it there.
            match speaks_chat {
                true => drop(chat.native(derives).clone()),
                false => _ = chat.translated(derives),
            }
            chat
        };
        self.heavy.run(client, render).await
    }

    /// Returns what the work on an answer to `client` may use.
    pub(super) fn answer_work(&self, client: &ClientId) -> AnswerWork {
        let (heavy, memory) = (Arc::clone(&self.heavy), self.replay.memory.clone());
        AnswerWork { heavy, memory, client: client.clone() }
    }
}

/// The room for what is made of a body of `length` bytes: one copy at first.
fn room_for(memory: BodyMemory, length: usize) -> Result<Room, Error> {
    let mut place = MemoryPlace::default();
    memory.extend(&mut place, length)?;
    let made = Mutex::new((place, 0));
    Ok(Box::new(move |bytes| {
        let (place, sum) = &mut *made.lock().unwrap_or_else(PoisonError::into_inner);
        memory.extend(place, *sum + bytes)?;
        *sum += bytes;
        Ok(())
    }))
}

fn failed() -> Error {
    Error::new(ErrorKind::Internal, "The gateway failed on this turn.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::Size;

    #[test]
    fn body_that_is_rendered_takes_one_copy_at_first_and_then_its_length() {
        let memory = BodyMemory::new(Size(1 << 20));
        let room = room_for(memory.clone(), 100 << 10).unwrap();
        for (made, expected) in [(60, 100), (60, 120), (300, 420)] {
            room(made << 10).unwrap();
            assert_eq!(memory.used() >> 10, expected);
        }
        assert!(room(700 << 10).is_err() && room_for(memory.clone(), 700 << 10).is_err());
        assert_eq!(memory.used() >> 10, 420, "what is refused counts nothing");
        drop(room);
        assert_eq!(memory.used(), 0);
    }
}
