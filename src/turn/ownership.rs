//! Checks the stored content that a turn refers to, and records the owners of responses.

use crate::binding::ownership::Owner;
use crate::binding::place::unknown_project;
use crate::client::ClientId;
use crate::error::{Error, ErrorKind};
use crate::store::Budget;
use crate::turn::entry::{Entry, ForeignIds};
use crate::wire::references::References;

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
        let items: Vec<_> = ids.iter().map(|id| self.identifier.item(client, id)).collect();
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
                "`model`, `service_tier` and the `type` of a message must be given once.",
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
        let items: Vec<_> = ids.iter().map(|id| self.identifier.item(client, id)).collect();
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
