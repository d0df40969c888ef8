//! Checks that what a message refers to can be reached with its socket's key, which never changes.

use crate::binding::Binding;
use crate::binding::place::untold;
use crate::client::ClientId;
use crate::error::Error;
use crate::turn::Gateway;
use crate::turn::ownership::not_found;
use crate::turn::websocket::frame::Request;
use crate::turn::websocket::replace_error::anew;

/// A connection that has one key for life.
pub struct Served<'b> {
    pub binding: &'b Binding,
    /// Its session was served on it.
    pub has_served: bool,
}

impl Gateway {
    /// Whether a turn of `client` may ask for this on a connection that has `binding`'s key for
    /// life: it goes on only from what it finds there. `is_own`: what it goes on from was issued on
    /// the connection. Returns whether it refers to what nobody but the project finds that its
    /// session is bound to.
    pub async fn may_ask(
        &self,
        client: &ClientId,
        request: &Request,
        is_own: bool,
        on: &Served<'_>,
    ) -> Result<bool, Error> {
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
        match is_held && !self.bindings.is_in_own_project(on.binding, on.has_served) {
            // The next connection finds it.
            true if self
                .bindings
                .is_own_project_ready(on.binding, request.model.as_deref().unwrap_or_default()) =>
            {
                Err(anew())
            }
            true => Err(untold()),
            false => Ok(is_held),
        }
    }
}
