//! Finds in the text of a body everything that a turn needs to know, with one scan.

use bytes::Bytes;
use http::HeaderMap;

use crate::binding::demand::Sealed;
use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::session::SessionId;
use crate::session::identify::Identity;
use crate::session::purpose::TurnKind;
use crate::turn::Gateway;
use crate::turn::account::kept_name;
use crate::turn::entry::may_ask_for;
use crate::turn::http::replay::{self, Replay, Replayed, Text};
use crate::turn::memory::{LIGHT, MemoryPlace};
use crate::wire::endpoint::Endpoint;
use crate::wire::imprint::Imprint;
use crate::wire::items::referred_in;

/// The facts that one scan of a body's text finds.
pub struct Glance {
    pub identity: Identity,
    /// The session derived from the text itself, if neither the text nor the headers name one.
    pub derived: Option<SessionId>,
    /// The response from which the turn continues.
    pub previous: Option<String>,
    /// The upstream does not store the answer.
    pub is_unstored: bool,
    /// Whether the text holds sealed content. `None`: the text is the body itself, which can be
    /// searched later.
    pub is_sealed: Option<bool>,
    /// The text refers to content that only the project of its session can find.
    pub needs_project: bool,
    /// The stored items that the text refers to.
    pub items: Vec<String>,
    /// The model that the text names; empty if it names none.
    pub model: String,
    /// Where the text names the model.
    pub model_place: Option<(usize, usize)>,
    pub kind: TurnKind,
    /// Digests of the parts that the prompt cache matches. `None`: the gateway cannot read the
    /// text.
    pub imprint: Option<Box<Imprint>>,
    /// The text has a `prompt_cache_key`.
    pub names_cache_key: bool,
    pub tier: Option<String>,
    /// The text of an encoded body, if an upstream needs it: for another name of its model, or in
    /// another dialect.
    pub decoded: Option<(Bytes, MemoryPlace)>,
}

impl Glance {
    /// Adds the facts that follow from the endpoint.
    pub fn asked_of(mut self, endpoint: Endpoint<'_>) -> Self {
        // Only a created response is stored under its id: no turn continues from another answer.
        self.is_unstored |= endpoint != Endpoint::CreateResponse;
        self.kind = self.kind.with_body(false, endpoint == Endpoint::CompactResponse);
        self
    }
}

/// The client of a turn, and the headers and dialect of its request.
#[derive(Clone, Copy)]
pub struct Asking<'t> {
    pub gateway: &'t Gateway,
    pub replay: &'t Replay,
    pub client: &'t Client,
    pub headers: &'t HeaderMap,
    /// The body is one of Chat Completions.
    pub by_chat: bool,
}

impl Asking<'_> {
    /// Scans the body's text, and keeps it only if the turn needs it decoded. `None`: the text is
    /// longer than `most`.
    pub fn glance(
        self,
        body: &Replayed,
        identity: &Identity,
        most: usize,
    ) -> Result<Option<Glance>, Error> {
        let Self { gateway: Gateway { entry, .. }, replay, client, headers, by_chat } = self;
        let mut identity = identity.clone();
        let text = replay.text(headers, body, most)?;
        if matches!(text, Text::TooLong) {
            return Ok(None);
        }
        // No rule could check the body, which may name another client's response.
        if matches!(text, Text::Unreadable) {
            let message = "The gateway cannot decode a body in this content-encoding: send it unencoded, or as zstd or gzip.";
            return Err(Error::new(ErrorKind::InvalidRequest, message));
        }
        let (peek, imprint) = text.bytes().map(replay::peek).transpose()?.unzip();
        let peek = peek.unwrap_or_default();
        may_ask_for(client, peek.model.text(), peek.references)?;
        entry.may_refer(peek.conversation.id(), peek.references)?;
        let mut derived = None;
        if identity.session.is_none() {
            let by_body = entry.identifier.by_body(&client.id, &peek);
            identity = Identity { skipped: identity.skipped + by_body.skipped, ..by_body };
        }
        if identity.session.is_none() {
            derived =
                entry.identifier.identify_by_prefix(&client.id, text.bytes().unwrap_or_default());
        }
        let is_sealed = match &text {
            // A thread that scans a long text searches it, too.
            Text::Plain(text) if most > LIGHT => Some(Sealed::In(text).is_sealed()),
            Text::Plain(_) => None,
            Text::Decoded(text, _) => Some(Sealed::In(text).is_sealed()),
            Text::Unreadable | Text::TooLong => Some(true),
        };
        let previous = peek.previous_response_id.id().map(str::to_owned);
        // If the body names two models, nobody knows which one its upstream reads.
        let named = peek.model.text().filter(|_| !peek.references.names_two_models);
        let model = kept_name(named.unwrap_or_default()).to_owned();
        let asks_compaction = imprint.as_ref().is_some_and(|imprint| imprint.asks_compaction);
        let kind = TurnKind::stated(headers).with_body(peek.is_warm_up, asks_compaction);
        let tier = peek.tier.text().map(str::to_owned);
        let items = referred_in(text.bytes().unwrap_or_default(), peek.references);
        let of_items_alone = !items.is_empty() && !peek.references.need_more;
        let needs_project =
            peek.references.need_project && !of_items_alone || peek.conversation.id().is_some();
        let is_plain = matches!(text, Text::Plain(_));
        let decoded = match text {
            Text::Decoded(text, place) if by_chat || self.is_renamed(&model) => {
                Some((Bytes::from(text), place))
            }
            _ => None,
        };
        Ok(Some(Glance {
            identity,
            derived,
            previous,
            is_unstored: peek.is_unstored,
            is_sealed,
            needs_project,
            items,
            model,
            // The place is an offset in the text, so it is of use only if the turn keeps the text.
            model_place: peek.model_place.filter(|_| is_plain || decoded.is_some()),
            kind,
            imprint: imprint.map(Box::new),
            names_cache_key: peek.names_cache_key,
            tier,
            decoded,
        }))
    }

    /// Whether an upstream knows `model` by another name.
    fn is_renamed(self, model: &str) -> bool {
        let loaded = self.gateway.registry.loaded();
        loaded.table.keys().iter().any(|key| key.upstream.host.name_of(model).is_some())
    }
}

#[cfg(test)]
mod tests;
