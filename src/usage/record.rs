//! What a turn was: plain data, built once when the turn ends. The log line, the metrics, the trace
//! and the row of the ledger are all made from this record.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;

use crate::client::ClientId;
use crate::error::ErrorKind;
use crate::key::Key;
use crate::metrics::{BindingResult, ColdReason, Ending, Transport};
use crate::session::SessionId;
use crate::session::lineage::Lineage;
use crate::session::purpose::TurnKind;
use crate::telemetry::TurnId;
use crate::usage::timeline::Timeline;
use crate::wire::imprint::Imprint;
use crate::wire::terminal::{Terminal, Usage};

/// The kind of request that a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// A turn, which is counted, logged, billed and kept.
    Turn,
    /// The handshake of a WebSocket that opened. Each turn on the WebSocket has its own record.
    Handshake,
    /// A request that is no turn, with its name in the log. It is logged, but neither counted nor
    /// kept.
    Operation(&'static str),
}

/// One turn, after its end.
pub struct Record {
    pub id: TurnId,
    pub request: RequestKind,
    pub transport: Transport,
    pub kind: TurnKind,
    /// `None`: the turn was refused before its client was known.
    pub client: Option<ClientId>,
    /// `None`: the turn names no session.
    pub session: Option<SessionId>,
    pub lineage: Lineage,
    /// The key that served the turn. `None`: no key was chosen.
    pub service: Option<Service>,
    /// The model that the client asked for. Empty: the client named none.
    pub model: String,
    /// The service tier that the client asked for. `None`: it asked for none.
    pub asked_tier: Option<String>,
    /// Whether the client wrote its turn as Chat Completions.
    pub by_chat: bool,
    /// Digests of the parts that the prompt cache matches. `None`: the request was not read.
    pub imprint: Option<Box<Imprint>>,
    /// The status that the client received. `None`: no status was sent.
    pub status: Option<StatusCode>,
    pub ending: Ending,
    /// The gateway's own error that ended the turn.
    pub refusal: Option<ErrorKind>,
    /// Number of session signals that were malformed, and so skipped.
    pub malformed: u64,
    /// Whether the answer held the secret of its key.
    pub has_leaked: bool,
    /// Whether the gateway could not decode an answer of success, and cut or replaced it.
    pub is_unreadable: bool,
    /// The end of the answer, as the upstream itself stated it.
    pub terminal: Option<Terminal>,
    /// Token counts. `None`: the upstream stated none, which is not the same as zero.
    pub usage: Option<Usage>,
    /// How warm the turn was. Filled in once the turn is compared with its session's last one.
    pub warmth: Warmth,
    /// When the turn began.
    pub at: SystemTime,
    pub duration: Duration,
    pub timeline: Timeline,
}

/// Which key served a turn, and where that key came from.
pub struct Service {
    pub key: Arc<Key>,
    pub result: BindingResult,
    /// Whether the key reads another prompt cache than the key that the turn began with.
    pub domain_moved: bool,
}

/// How much a turn could expect to read from the prompt cache, and why it read less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Warmth {
    /// The tokens that the turn could expect to read. `None`: nothing is known of an earlier turn,
    /// or it left nothing.
    pub expected: Option<u64>,
    /// Why the turn was cold. `None`: it was warm, or the gateway cannot tell.
    pub cold: Option<ColdReason>,
}

impl Record {
    /// Returns the model that answered, or otherwise the model that was asked for.
    pub fn answering_model(&self) -> &str {
        self.usage.as_ref().and_then(|usage| usage.model.as_deref()).unwrap_or(&self.model)
    }

    /// Returns why the turn was cold. `None`: it was warm, or the gateway cannot tell.
    pub const fn cold_reason(&self) -> Option<ColdReason> {
        self.warmth.cold
    }

    /// Returns the tokens that a cold turn was expected to read and did not read. 0: the reason is
    /// no loss.
    pub fn missed_tokens(&self) -> u64 {
        let Warmth { expected: Some(expected), cold: Some(_) } = self.warmth else { return 0 };
        expected.saturating_sub(self.usage.as_ref().map_or(0, |usage| usage.cached))
    }

    /// Returns a served turn of `alice` over HTTP, for tests.
    #[cfg(test)]
    pub fn sketch(key: &Arc<Key>, usage: Option<Usage>) -> Self {
        let service =
            Service { key: Arc::clone(key), result: BindingResult::Existing, domain_moved: false };
        Self {
            id: TurnId::random(),
            request: RequestKind::Turn,
            transport: Transport::Http,
            kind: TurnKind::Turn,
            client: Some(ClientId::new("alice")),
            session: SessionId::parse("FVm43fzVIvXqRQ8foYWp-_"),
            lineage: Lineage::default(),
            service: Some(service),
            model: "gpt-5.4".into(),
            asked_tier: None,
            by_chat: false,
            imprint: Some(Box::default()),
            status: Some(StatusCode::OK),
            ending: Ending::Completed,
            refusal: None,
            malformed: 0,
            has_leaked: false,
            is_unreadable: false,
            terminal: None,
            usage,
            warmth: Warmth::default(),
            at: crate::clock::time_of_day(),
            duration: Duration::from_millis(1_500),
            timeline: Timeline::from(tokio::time::Instant::now()),
        }
    }

    /// Whether the client did not get what it asked for. A turn whose client left has not failed.
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

    /// Whether the gateway itself answered with an error.
    pub const fn is_refused(&self) -> bool {
        matches!(self.ending, Ending::Refused | Ending::Unserved)
    }

    /// Whether the upstream answered without the usage that an answer carries.
    pub fn lacks_usage(&self) -> bool {
        let is_answered = matches!(self.ending, Ending::Completed | Ending::Incomplete);
        (is_answered || self.is_unreadable) && self.service.is_some() && self.usage.is_none()
    }
}
