//! Listeners, and what is served on them.

use std::net::SocketAddr;

use serde::Deserialize;

use crate::setting::{SecretSource, Size, Span};
use crate::turn::ownership::ForeignIds;

pub mod operator;
pub mod admin;
pub mod drain;
pub mod listener;
pub mod routes;

/// `[server]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
    /// What operators show there. Needed where strangers could.
    pub admin_token: Option<SecretSource>,
    /// Keys the session hashes. Needed as soon as replicas share a store.
    pub secret: Option<SecretSource>,
    pub max_body: Size,
    pub replay_total: Size,
    pub drain_delay: Span,
    pub drain: Span,
    pub header_timeout: Span,
    pub open: bool,
    /// A WebSocket's silent peer is asked after this time whether it is there.
    pub ping: Span,
    /// What becomes of ids of stored things that never passed through here.
    pub foreign_ids: ForeignIds,
}
