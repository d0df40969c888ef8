//! Decides after a turn's end whether the turn is traced, and sends its trace.
//!
//! Failed turns, slow turns and avoidably cold turns are traced. Of all others, a share is traced.
//! The sampled flag of a client's trace decides nothing.

use std::sync::Arc;
use std::time::Duration;

use crate::metrics::ColdReason;
use crate::telemetry::Share;
use crate::telemetry::pipe::TracePipe;
use crate::usage::record::Record;
use crate::usage::spans::spans;

/// Which turns are traced, and where their traces go.
pub struct Tracer {
    pipe: Arc<TracePipe>,
    rule: TraceRule,
}

/// Which turns are traced.
#[derive(Clone, Copy)]
pub struct TraceRule {
    /// The share of ordinary turns that are traced.
    pub share: Share,
    /// A turn that takes longer is always traced.
    pub slow: Duration,
}

impl Tracer {
    pub const fn new(pipe: Arc<TracePipe>, rule: TraceRule) -> Self {
        Self { pipe, rule }
    }

    /// Sends the trace of a turn, if the turn is to be traced.
    pub fn tell(&self, record: &Record) {
        if self.rule.takes(record) {
            self.pipe.send(spans(record));
        }
    }
}

impl TraceRule {
    /// Whether a turn is traced. A request is no turn if its client is not known.
    pub fn takes(self, record: &Record) -> bool {
        record.client.is_some()
            && (self.share.includes(record.id)
                || record.has_failed()
                || record.duration > self.slow
                || record.cold_reason().is_some_and(is_loss))
    }
}

/// Whether a cold turn could have been warm.
const fn is_loss(reason: ColdReason) -> bool {
    !matches!(reason, ColdReason::FirstTurn | ColdReason::BelowMinimum)
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::metrics::Ending;
    use crate::telemetry::TurnId;
    use crate::usage::record::Warmth;
    use crate::usage::spans::tests::{record, warm};

    const RARE: TraceRule = TraceRule { share: Share::NONE, slow: Duration::from_secs(120) };

    #[test]
    fn ordinary_turn_is_traced_by_its_share() {
        let turn = record(Ending::Completed, Some(warm()));
        assert!(!RARE.takes(&turn) && TraceRule { share: Share::ALL, ..RARE }.takes(&turn));
        let sampled = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let inbound = Record { id: TurnId::within(Some(sampled)), ..turn };
        assert!(!RARE.takes(&inbound), "the client's flag decides nothing");
    }

    #[test]
    fn failed_turn_is_always_traced() {
        for (ending, is_traced) in [
            (Ending::Completed, false),
            (Ending::Incomplete, false),
            (Ending::ClientLeft, false),
            (Ending::Failed, true),
            (Ending::UpstreamError, true),
            (Ending::Cut, true),
            (Ending::TimedOut, true),
            (Ending::Refused, true),
            (Ending::Unserved, true),
        ] {
            assert_eq!(RARE.takes(&record(ending, Some(warm()))), is_traced, "{ending:?}");
        }
    }

    #[test]
    fn slow_turn_is_always_traced() {
        for (seconds, is_traced) in [(120, false), (121, true)] {
            let duration = Duration::from_secs(seconds);
            let turn = Record { duration, ..record(Ending::Completed, Some(warm())) };
            assert_eq!(RARE.takes(&turn), is_traced, "{seconds} s");
        }
    }

    #[test]
    fn cold_turn_is_always_traced_unless_it_had_to_be_cold() {
        for cold in ColdReason::ALL {
            let warmth = Warmth { expected: None, cold: Some(*cold) };
            let turn = Record { warmth, ..record(Ending::Completed, Some(warm())) };
            let is_no_loss = matches!(cold, ColdReason::FirstTurn | ColdReason::BelowMinimum);
            assert_eq!(RARE.takes(&turn), !is_no_loss, "{cold:?}");
        }
    }

    #[test]
    fn request_of_nobody_is_never_traced() {
        let stranger = Record {
            client: None,
            status: Some(StatusCode::UNAUTHORIZED),
            ..record(Ending::Refused, None)
        };
        assert!(!TraceRule { share: Share::ALL, ..RARE }.takes(&stranger));
    }
}
