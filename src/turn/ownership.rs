//! Which stored things a turn may refer to, and whose a response is that it makes.

use crate::binding::ownership::Owner;
use crate::binding::place::untold;
use crate::client::ClientId;
use crate::error::{Error, ErrorKind};
use crate::store::Budget;
use crate::turn::entry::{Entry, ForeignIds};
use crate::wire::references::References;

const FOREIGN_FILE: &str = "A file or vector store that did not pass through this gateway is not found here. \
    Its operator can let such ids pass (`server.foreign_ids`).";

impl Entry {
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

    /// Checks that a turn refers to nothing that could be another client's. Upstreams keep
    /// conversations; files and vector stores are made beside the gateway. None of them passes
    /// through here, so none can be told from another client's.
    pub fn may_refer(
        &self,
        conversation: Option<&str>,
        references: References,
    ) -> Result<(), Error> {
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
