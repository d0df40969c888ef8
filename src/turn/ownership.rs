//! Checks the stored content that a turn refers to, and records the owners of responses.

use crate::binding::ownership::Owner;
use crate::binding::place::unknown_project;
use crate::client::ClientId;
use crate::error::{Error, ErrorKind};
use crate::session::ResponseId;
use crate::store::Budget;
use crate::turn::entry::{Entry, ForeignIds};
use crate::wire::references::References;

/// Bytes of ids that are hashed before other turns come. The hash of an id costs as much as `EACH`
/// further bytes.
const HASHED: usize = 64 * 1024;
const EACH: usize = 256;

const FOREIGN_FILE: &str = "A file or vector store that did not pass through this gateway is not found here. \
    Its operator can let such ids pass (`server.foreign_ids`).";

impl Entry {
    /// Returns the owner of the response `id` from which `client` continues. `None`: the turn names
    /// no response, or `server.foreign_ids` lets an unknown id pass. An id of another client is
    /// treated exactly like an id that was never issued.
    pub async fn origin(
        &self,
        client: &ClientId,
        id: Option<&str>,
        budget: &mut Budget,
    ) -> Result<Option<Owner>, Error> {
        let Some(id) = id else { return Ok(None) };
        let response = self.identifier.response(client, id);
        match (self.owners.find(&response, budget).await, self.foreign_ids) {
            (Ok(Some(owner)), _) => Ok(Some(owner)),
            (_, ForeignIds::Pass) => Ok(None),
            (Ok(None), ForeignIds::Refuse) => Err(not_found(id)),
            // "Not found" would make the client give up its response. If the id passed, another
            // client's response could be exposed.
            (Err(away), ForeignIds::Refuse) => Err(unknown_project().because(away.to_string())),
        }
    }

    /// Returns the owner of the stored response `id`, for a request about that response. Here
    /// `server.foreign_ids` lets nothing pass: an unknown id may be another client's, whose content
    /// the answer would show.
    pub async fn owner(
        &self,
        client: &ClientId,
        id: &str,
        budget: &mut Budget,
    ) -> Result<Owner, Error> {
        let response = self.identifier.response(client, id);
        match self.owners.find(&response, budget).await {
            Ok(Some(owner)) => Ok(owner),
            Ok(None) => Err(Error::new(
                ErrorKind::ResponseNotFound,
                format!("Response with id '{id}' not found."),
            )),
            Err(away) => Err(unknown_project().because(away.to_string())),
        }
    }

    /// Checks that `client` has received each of these stored items, and returns the owner of one.
    /// `None`: there are none, or `server.foreign_ids` lets unknown ids pass. An item of another
    /// client is treated exactly like one that was never made.
    pub async fn items(
        &self,
        client: &ClientId,
        ids: &[String],
        budget: &mut Budget,
    ) -> Result<Option<Owner>, Error> {
        if ids.is_empty() || self.foreign_ids == ForeignIds::Pass {
            return Ok(None);
        }
        // No item has an id that could not be read.
        if ids.iter().any(String::is_empty) {
            return Err(item_not_found(""));
        }
        let items = self.stored_items(client, ids).await;
        let mut owner = None;
        for (id, found) in ids.iter().zip(self.owners.find_items(&items, budget).await) {
            match found {
                Ok(Some(found)) => owner = Some(found),
                Ok(None) => return Err(item_not_found(id)),
                Err(away) => return Err(unknown_project().because(away.to_string())),
            }
        }
        Ok(owner)
    }

    /// Checks that a turn refers to nothing that could be another client's. Upstreams keep
    /// conversations, and clients make files and vector stores outside the gateway. The gateway
    /// does not see how these ids are made, so it cannot tell whose they are. Duplicate fields that
    /// disagree are refused, too: the gateway and the upstream may read different ones.
    pub fn may_refer(
        &self,
        conversation: Option<&str>,
        references: References,
    ) -> Result<(), Error> {
        if references.names_two_kinds {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "`service_tier` and the `type` of a message must be given once.",
            ));
        }
        if references.is_ambiguous && self.foreign_ids == ForeignIds::Refuse {
            return Err(Error::new(
                ErrorKind::InvalidRequest,
                "`previous_response_id` and `conversation` must be given once.",
            ));
        }
        match (self.foreign_ids, conversation) {
            (ForeignIds::Pass, _) => Ok(()),
            (ForeignIds::Refuse, Some(id)) => Err(Error::new(
                ErrorKind::ConversationNotFound,
                format!("Conversation with id '{id}' not found."),
            )),
            (ForeignIds::Refuse, None) if references.are_foreign => {
                Err(Error::new(ErrorKind::FileNotFound, FOREIGN_FILE))
            }
            (ForeignIds::Refuse, None) => Ok(()),
        }
    }

    /// Records `owner` for the response that `client` knows as `id`.
    pub async fn record_owner(
        &self,
        client: &ClientId,
        id: &str,
        owner: Owner,
        budget: &mut Budget,
    ) {
        self.owners.keep(&self.identifier.response(client, id), owner, budget).await;
    }

    /// The stored ids of the items that `client` knows by these `ids`. Megabytes of ids take many
    /// milliseconds, in which other turns have their turn.
    async fn stored_items(&self, client: &ClientId, ids: &[String]) -> Vec<ResponseId> {
        let (mut items, mut hashed) = (Vec::with_capacity(ids.len()), 0);
        for id in ids {
            items.push(self.identifier.item(client, id));
            hashed += EACH + id.len();
            if hashed >= HASHED {
                tokio::task::yield_now().await;
                hashed = 0;
            }
        }
        items
    }

    /// Records `owner` for the items that `client` knows by these `ids`.
    pub async fn own_items(
        &self,
        client: &ClientId,
        ids: &[String],
        owner: &Owner,
        budget: &mut Budget,
    ) {
        if self.foreign_ids == ForeignIds::Pass {
            // No turn asks for the owner of an item then, so none is recorded.
            return;
        }
        let items = self.stored_items(client, ids).await;
        self.owners.keep_items(&items, owner, budget).await;
    }
}

/// The error that OpenAI gives for an unknown item.
pub fn item_not_found(id: &str) -> Error {
    Error::new(ErrorKind::ItemNotFound, format!("Item with id '{id}' not found."))
}

/// The error that OpenAI gives for an unknown response id.
pub fn not_found(id: &str) -> Error {
    Error::new(
        ErrorKind::PreviousResponseNotFound,
        format!("Previous response with id '{id}' not found."),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::turn::tests::gateway;

    /// Megabytes of ids would take a thread of turns tens of milliseconds.
    #[tokio::test]
    async fn long_ids_are_hashed_beside_other_turns() {
        let (gateway, alice) = (gateway(&[("a", "o", "p")]), ClientId::new("alice"));
        for (count, length, least) in [(4096, 2_000, 100), (4096, 10, 10), (100, 60, 0)] {
            let ids: Vec<_> = (0..count).map(|n| format!("{n:x>length$}")).collect();
            let mut turns = 0;
            let others = async {
                loop {
                    tokio::task::yield_now().await;
                    turns += 1;
                }
            };
            let stored = tokio::select! {
                biased;
                stored = gateway.entry.stored_items(&alice, &ids) => stored,
                () = others => unreachable!("they never end"),
            };
            assert_eq!(stored.len(), ids.len());
            assert_eq!(
                stored.last(),
                ids.last().map(|id| gateway.entry.identifier.item(&alice, id)).as_ref()
            );
            assert!(turns >= least && (least > 0 || turns < 2), "{turns} for {count} of {length}");
        }
    }
}
