//! Whose response a turn goes on from, and whose it makes.

use serde::Deserialize;

use crate::binding::ownership::Owner;
use crate::binding::place::untold;
use crate::client::ClientId;
use crate::error::{Error, ErrorKind};
use crate::store::Budget;
use crate::turn::Gateway;
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
    /// It goes where its session is. For a gateway that is new before keys that its clients have
    /// used.
    Pass,
}

impl Gateway {
    /// The owner of the response that `client` goes on from and calls `id`. `None`: there is none,
    /// or it is nobody's that is known here, and passes all the same. An id of another client takes
    /// the same way to the same end as one that nobody has issued.
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
            // Said to be gone it would be given up; and it may be another client's.
            (Err(away), ForeignIds::Refuse) => Err(untold().because(away.to_string())),
        }
    }

    /// A conversation is kept by an upstream. None passes through here that could be told from
    /// another client's.
    pub fn may_converse(&self, conversation: Option<&str>) -> Result<(), Error> {
        match conversation {
            Some(id) if self.foreign_ids == ForeignIds::Refuse => Err(Error::new(
                ErrorKind::ConversationNotFound,
                format!("Conversation with id '{id}' not found."),
            )),
            _ => Ok(()),
        }
    }

    /// Files and vector stores are made beside the gateway: none passes through here that could be
    /// told from another client's.
    pub fn may_refer(&self, references: References) -> Result<(), Error> {
        match references.are_foreign && self.foreign_ids == ForeignIds::Refuse {
            true => Err(Error::new(ErrorKind::FileNotFound, FOREIGN_FILE)),
            false => Ok(()),
        }
    }

    /// Writes down whose the response is that `client` will call `id`.
    pub async fn own(&self, client: &ClientId, id: &str, owner: Owner, budget: &mut Budget) {
        self.owners.keep(&self.identifier.response(client, id), owner, budget).await;
    }
}

/// What the real service says of an id that it does not know.
pub fn not_found(id: &str) -> Error {
    Error::new(
        ErrorKind::PreviousResponseNotFound,
        format!("Previous response with id '{id}' not found."),
    )
}
