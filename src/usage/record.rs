//! What a turn was: plain data, built once when the turn ends. The log line and the metrics are
//! told from this record.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;

use crate::client::ClientId;
use crate::key::Key;
use crate::metrics::{BindingResult, ColdReason, Ending, Transport};
use crate::session::SessionId;
use crate::telemetry::TurnId;
use crate::usage::cold;
use crate::usage::timeline::Timeline;
use crate::wire::terminal::{Terminal, Usage};

/// One turn, after its end.
pub struct Record {
    pub id: TurnId,
    pub transport: Transport,
    /// `None`: the turn was refused before its client was known.
    pub client: Option<ClientId>,
    /// `None`: the turn names no session.
    pub session: Option<SessionId>,
    /// `None`: no key was chosen.
    pub service: Option<Service>,
    /// The model that the client asked for. Empty: the client named none.
    pub model: String,
    /// The status that the client received. `None`: no status was sent.
    pub status: Option<StatusCode>,
    pub ending: Ending,
    /// How the upstream itself said that its answer ended.
    pub terminal: Option<Terminal>,
    /// `None`: the upstream stated no usage, which is not the same as zero.
    pub usage: Option<Usage>,
    /// When the turn began.
    pub at: SystemTime,
    pub duration: Duration,
    pub timeline: Timeline,
}

/// Which key served a turn, and where that key came from.
pub struct Service {
    pub key: Arc<Key>,
    pub result: BindingResult,
    /// The key reads another prompt cache than the key that the turn began with.
    pub domain_moved: bool,
}

impl Record {
    /// Why the turn read nothing from the cache. `None`: it read something, or its usage is not
    /// known.
    pub fn cold_reason(&self) -> Option<ColdReason> {
        let (service, usage) = (self.service.as_ref()?, self.usage.as_ref()?);
        cold::reason(service.result, service.domain_moved, usage)
    }

    /// Whether the client did not get what it asked for. A client that left has had enough.
    pub const fn has_failed(&self) -> bool {
        match self.ending {
            Ending::Completed | Ending::Incomplete | Ending::ClientLeft => false,
            Ending::Failed
            | Ending::UpstreamError
            | Ending::Cut
            | Ending::TimedOut
            | Ending::Refused
            | Ending::Unserved => true,
        }
    }

    /// Whether the upstream answered without the usage that an answer carries.
    pub fn lacks_usage(&self) -> bool {
        let is_answered = matches!(self.ending, Ending::Completed | Ending::Incomplete);
        is_answered && self.service.is_some() && self.usage.is_none()
    }
}
