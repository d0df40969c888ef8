//! Whose response a turn goes on from, and whose it makes.

use serde::Deserialize;

use super::Gateway;
use super::frame::Request;
use super::remedy::anew;
use crate::binding::Binding;
use crate::binding::owner::Owner;
use crate::binding::place::untold;
use crate::client::ClientId;
use crate::error::{Error, Kind};
use crate::store::Budget;
use crate::wire::references::References;

const FOREIGN_FILE: &str = "A file or vector store that did not pass through this gateway is not found here. \
    Its operator can let such ids pass (`server.foreign_ids`).";

/// `server.foreign_ids`: what becomes of a turn that goes on from what never passed through here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ForeignIds {
    /// It is answered as if there were no such thing: it may be another client's.
    #[default]
    Refuse,
    /// It goes where its session is. For a gateway that is new before keys that its clients have used.
    Pass,
}

/// A connection that has one key for life.
pub struct Served<'b> {
    pub binding: &'b Binding,
    /// Its session was served on it.
    pub has_served: bool,
}

impl Gateway {
    /// The owner of the response that `client` goes on from and calls `id`. `None`: there is none, or it is nobody's that is known
    /// here, and passes all the same. An id of another client takes the same way to the same end as one that nobody has issued.
    pub async fn origin(&self, client: &ClientId, id: Option<&str>, budget: &mut Budget) -> Result<Option<Owner>, Error> {
        let Some(id) = id else { return Ok(None) };
        let response = self.identifier.response(client, id);
        match (self.owners.find(&response, budget).await, self.foreign_ids) {
            (Ok(Some(owner)), _) => Ok(Some(owner)),
            (_, ForeignIds::Pass) => Ok(None),
            (Ok(None), ForeignIds::Refuse) => Err(not_found(id)),
            // Said to be gone it would be given up; and it may be another client's.
            (Err(away), ForeignIds::Refuse) => Err(untold().because(away.to_string())),
        }
    }

    /// A conversation is kept by an upstream. None passes through here that could be told from another client's.
    pub fn may_converse(&self, conversation: Option<&str>) -> Result<(), Error> {
        match conversation {
            Some(id) if self.foreign_ids == ForeignIds::Refuse => {
                Err(Error::new(Kind::ConversationNotFound, format!("Conversation with id '{id}' not found.")))
            }
            _ => Ok(()),
        }
    }

    /// Files and vector stores are made beside the gateway: none passes through here that could be told from another client's.
    pub fn may_refer(&self, references: References) -> Result<(), Error> {
        match references.are_foreign && self.foreign_ids == ForeignIds::Refuse {
            true => Err(Error::new(Kind::FileNotFound, FOREIGN_FILE)),
            false => Ok(()),
        }
    }

    /// Whether a turn of `client` may ask for this on a connection that has `binding`'s key for life: it goes on only from what it
    /// finds there. `is_own`: what it goes on from was issued on the connection. Returns whether it refers to what nobody but the
    /// project finds that its session is bound to.
    pub async fn may_ask(&self, client: &ClientId, request: &Request, is_own: bool, on: &Served<'_>) -> Result<bool, Error> {
        let previous = request.previous_response_id.as_deref().filter(|_| !is_own);
        let origin = self.origin(client, previous, &mut self.bindings.budget()).await?;
        if let (Some(id), Some(owner)) = (previous, &origin)
            && !owner.reach().includes(&on.binding.key)
        {
            return Err(not_found(id));
        }
        self.may_converse(request.conversation.as_deref())?;
        self.may_refer(request.references)?;
        let is_unknown = previous.is_some() && origin.is_none() || request.conversation.is_some();
        let is_held = is_unknown || request.references.are_held;
        match is_held && !self.bindings.is_home(on.binding, on.has_served) {
            // The next connection finds it.
            true if self.bindings.is_home_well(on.binding, request.model.as_deref().unwrap_or_default()) => Err(anew()),
            true => Err(untold()),
            false => Ok(is_held),
        }
    }

    /// Writes down whose the response is that `client` will call `id`.
    pub async fn own(&self, client: &ClientId, id: &str, owner: Owner, budget: &mut Budget) {
        self.owners.keep(&self.identifier.response(client, id), owner, budget).await;
    }
}

/// What the real service says of an id that it does not know.
fn not_found(id: &str) -> Error {
    Error::new(Kind::PreviousResponseNotFound, format!("Previous response with id '{id}' not found."))
}
