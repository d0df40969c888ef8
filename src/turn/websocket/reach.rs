//! Checks that everything a message refers to can be reached with its socket's key, which never
//! changes.

use crate::binding::Binding;
use crate::binding::place::unknown_project;
use crate::client::ClientId;
use crate::error::Error;
use crate::turn::Gateway;
use crate::turn::ownership::{item_not_found, not_found};
use crate::turn::websocket::frame::ClientMessage;
use crate::turn::websocket::replace_error::reconnect;

/// A connection, which has one key for life.
pub struct Served<'b> {
    pub binding: &'b Binding,
    /// The connection has served turns of its session.
    pub has_served: bool,
}

/// Checks that everything a message of `client` refers to can be reached with the socket's key.
/// `is_own`: the response that the message continues was issued on the socket. Returns whether the
/// message refers to content that only the session's project can find.
pub async fn may_reach(
    gateway: &Gateway,
    client: &ClientId,
    message: &ClientMessage,
    is_own: bool,
    on: &Served<'_>,
) -> Result<bool, Error> {
    let Gateway { entry, bindings, .. } = gateway;
    let previous = message.previous_response_id.as_deref().filter(|_| !is_own);
    let origin = entry.origin(client, previous, &mut bindings.budget()).await?;
    if let (Some(id), Some(owner)) = (previous, &origin)
        && !owner.reach().includes(&on.binding.key)
    {
        return Err(not_found(id));
    }
    entry.may_refer(message.conversation.as_deref(), message.references)?;
    let maker = entry.items(client, &message.items, &mut bindings.budget()).await?;
    if let (Some(id), Some(maker)) = (message.items.first(), &maker)
        && !maker.reach().includes(&on.binding.key)
    {
        return Err(item_not_found(id));
    }
    let is_unknown = previous.is_some() && origin.is_none() || message.conversation.is_some();
    let refers = message.references.need_project || !message.items.is_empty();
    // If the owner of the items is known, their project is known, too.
    let needs_project = is_unknown || refers && (maker.is_none() || message.references.need_more);
    let model = message.model.as_deref().unwrap_or_default();
    match needs_project && !bindings.is_in_own_project(on.binding, on.has_served) {
        // The client's next connection reaches the content.
        true if bindings.is_own_project_ready(on.binding, model) => Err(reconnect()),
        true => Err(unknown_project()),
        false => Ok(needs_project || refers),
    }
}
