//! Renders the body of a chat turn for each upstream: unchanged, with a cache key spliced in, or
//! translated. Each form is made at most once, and counts in the memory for bodies.

use std::sync::OnceLock;

use bytes::Bytes;

use crate::chat::cache_key::{derive_key, splice};
use crate::chat::request::{Translated, translate};
use crate::error::Error;
use crate::session::SessionId;

/// Takes memory for so many bytes that were made of a body, or refuses them.
pub type Room = Box<dyn Fn(usize) -> Result<(), Error> + Send + Sync>;

/// The body of one chat turn. All its attempts share the rendered forms.
pub struct ChatBody {
    /// The bytes as they came.
    own: Bytes,
    /// The body's JSON text, if `own` is encoded.
    decoded: Option<Bytes>,
    /// The key for a body that has none.
    cache_key: Option<String>,
    /// The body has a `prompt_cache_key`, even if that is null.
    names_key: bool,
    spliced: OnceLock<Bytes>,
    /// The translation without the derived key, and the one with it.
    translated: [OnceLock<Result<Translated, Error>>; 2],
    room: Option<Room>,
}

impl ChatBody {
    /// `decoded`: the text of an encoded body. `names_key`: the body has a `prompt_cache_key`, even
    /// if that is null.
    pub fn new(
        own: Bytes,
        decoded: Option<Bytes>,
        session: Option<&SessionId>,
        names_key: bool,
    ) -> Self {
        let cache_key = session.map(derive_key);
        let (spliced, translated) = (OnceLock::new(), [OnceLock::new(), OnceLock::new()]);
        Self { own, decoded, cache_key, names_key, spliced, translated, room: None }
    }

    /// Counts the forms that will be made. A form without room is not kept, and its turn refused.
    pub fn counted(self, room: Room) -> Self {
        Self { room: Some(room), ..self }
    }

    pub const fn is_encoded(&self) -> bool {
        self.decoded.is_some()
    }

    /// Whether `body` is the client's own: the derived key only adds bytes.
    pub fn is_own(&self, body: &Bytes) -> bool {
        body.len() == self.own.len()
    }

    /// The JSON text.
    pub fn text(&self) -> &Bytes {
        self.decoded.as_ref().unwrap_or(&self.own)
    }

    /// Whether [`Self::native`] adds a derived key.
    pub const fn is_spliced(&self, derives: bool) -> bool {
        derives && !self.names_key && self.cache_key.is_some() && self.decoded.is_none()
    }

    /// The body for an upstream that speaks chat. `derives`: a body without a key gets one. An
    /// encoded body passes as it is. So does a body with a null, beside which a key would be a
    /// duplicate.
    pub fn native(&self, derives: bool) -> &Bytes {
        match &self.cache_key {
            Some(key) if self.is_spliced(derives) => self.spliced.get_or_init(|| {
                let spliced = splice(&self.own, key).unwrap_or_else(|| self.own.clone());
                // It is hardly longer than the text, for which there is room from the beginning.
                let _ = self.take_room(spliced.len());
                spliced
            }),
            _ => &self.own,
        }
    }

    /// The body for an upstream that speaks only Responses. A null counts as no key.
    pub fn translated(&self, derives: bool) -> Result<&Translated, Error> {
        let text = self.text();
        let cache_key = self.cache_key.as_deref().filter(|_| derives);
        let translated = self.translated[usize::from(derives)].get_or_init(|| {
            let translated = translate(text, cache_key)?;
            self.take_room(translated.body.len())?;
            Ok(translated)
        });
        translated.as_ref().map_err(Error::clone)
    }

    fn take_room(&self, bytes: usize) -> Result<(), Error> {
        self.room.as_ref().map_or(Ok(()), |room| room(bytes))
    }
}

#[cfg(test)]
mod tests;
