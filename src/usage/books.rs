//! Counts the metrics of a turn from its record, then passes the record to the ledger, whose task
//! writes the log line.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::ClientId;
use crate::error::ErrorKind;
use crate::metrics::{Cache, Metrics, StrangerRefusal};
use crate::session::SessionId;
use crate::usage::record::{Record, RequestKind};
use crate::usage::tracer::TraceRule;

/// Maximum records that wait for the ledger. No turn waits for the ledger.
const QUEUE: usize = 8_192;

/// The readers of every turn's record on this replica.
pub struct Books {
    pub metrics: Arc<Metrics>,
    /// Once cancelled, turns in flight are cut by the gateway, and do not count as left by their
    /// clients.
    pub cutting: CancellationToken,
    /// The ledger's queue of records. `None`: this replica keeps no ledger queue.
    queue: Option<mpsc::Sender<Record>>,
    /// Which records become traces. `None`: no turn is traced.
    traced: Option<TraceRule>,
    /// Whether the queue was full when the last record came.
    is_full: AtomicBool,
    strangers: Mutex<Strangers>,
}

/// Refused requests of callers without a valid token. The log reports many in one line.
struct Strangers {
    untold: u64,
    told: Option<Instant>,
}

/// Least time between two log lines about strangers.
const TELL_STRANGERS: Duration = Duration::from_secs(60);

impl Books {
    pub fn new(metrics: Arc<Metrics>) -> Self {
        let strangers = Mutex::new(Strangers { untold: 0, told: None });
        let (cutting, is_full) = (CancellationToken::new(), AtomicBool::new(false));
        Self { metrics, cutting, queue: None, traced: None, is_full, strangers }
    }

    /// Returns books with a queue for the ledger, and the ledger's end of the queue. `traced`:
    /// which records become traces, too.
    pub fn queued(
        metrics: Arc<Metrics>,
        traced: Option<TraceRule>,
    ) -> (Self, mpsc::Receiver<Record>) {
        let (queue, records) = mpsc::channel(QUEUE);
        (Self { queue: Some(queue), traced, ..Self::new(metrics) }, records)
    }

    /// Notes that a turn has begun. It is in flight until [`Self::close`].
    pub fn open(&self) {
        self.metrics.turn_began();
    }

    /// Notes that a turn, or a request that was opened as one, has ended.
    pub fn close(&self, record: Record) {
        self.count_facts(&record);
        match (record.request, record.refusal) {
            (RequestKind::Handshake, _) => self.metrics.turn_void(),
            (_, Some(kind)) if record.client.is_none() => self.tell_stranger(&record, kind),
            (RequestKind::Operation(name), _) if !record.is_refused() => {
                self.tell_of(name, &record)
            }
            _ => self.close_turn(record),
        }
    }

    /// Queues the record for the ledger's task. That task logs the turn, so that no turn formats a
    /// line or waits for the log's lock. If the queue is full or closed, the turn is logged here,
    /// so that no line is lost.
    fn close_turn(&self, record: Record) {
        self.count(&record);
        let Some(queue) = &self.queue else { return log_turn(&record) };
        match queue.try_send(record) {
            Ok(()) => self.is_full.store(false, Ordering::Relaxed),
            // The ledger has stopped, because the replica leaves.
            Err(TrySendError::Closed(record)) => self.lose(&record),
            Err(TrySendError::Full(record)) => {
                self.lose(&record);
                if !self.is_full.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        "the ledger takes records too slowly: further records are dropped and counted"
                    );
                }
            }
        }
    }

    /// Logs a request that is no turn and was answered. Such a request is neither counted nor kept.
    fn tell_of(&self, operation: &'static str, record: &Record) {
        self.metrics.turn_void();
        tracing::info!(
            turn = %record.id,
            operation,
            client = record.client.as_ref().map(ClientId::as_str),
            session = record.session.as_ref().map(SessionId::as_str),
            key = record.service.as_ref().map(|service| service.key.id.as_str()),
            status = record.status.map(|status| status.as_u16()),
            seconds = record.duration.as_secs_f64(),
            "request"
        );
    }

    /// Counts a record that the ledger does not get. Counts its trace as lost only if the turn
    /// would be traced in any case, because whether it was cold is not known here.
    fn lose(&self, record: &Record) {
        log_turn(record);
        self.metrics.ledger_dropped(1);
        let is_traced = self.traced.is_some_and(|rule| rule.takes(record));
        self.metrics.traces_dropped(is_traced.into());
    }

    /// Counts a request that was refused before its client was known. Anyone can send such
    /// requests, so the log reports many in one line.
    fn tell_stranger(&self, record: &Record, kind: ErrorKind) {
        let seconds = record.duration.as_secs_f64();
        self.metrics.turn_ended(record.transport, record.ending, seconds);
        self.metrics.stranger_refused(match kind {
            ErrorKind::InvalidApiKey => StrangerRefusal::InvalidApiKey,
            ErrorKind::UnknownUrl => StrangerRefusal::UnknownUrl,
            ErrorKind::OriginNotAllowed => StrangerRefusal::OriginNotAllowed,
            ErrorKind::UpgradeRequired => StrangerRefusal::WebsocketNotSupported,
            _ => StrangerRefusal::Other,
        });
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        strangers.untold += 1;
        if strangers.told.is_none_or(|told| told.elapsed() >= TELL_STRANGERS) {
            let requests = std::mem::take(&mut strangers.untold);
            strangers.told = Some(Instant::now());
            drop(strangers);
            tracing::info!(requests, "requests without a valid token or address were refused");
        }
    }

    /// Counts the facts of every request, whether it was a turn or not.
    fn count_facts(&self, record: &Record) {
        if let Some(overhead) = record.timeline.to_binding() {
            self.metrics.overhead(overhead.as_secs_f64());
        }
        if record.malformed > 0 {
            self.metrics.malformed_signals(record.malformed);
        }
        if record.has_leaked {
            self.metrics.credential_leaked();
        }
    }

    fn count(&self, record: &Record) {
        let metrics = &self.metrics;
        metrics.turn_ended(record.transport, record.ending, record.duration.as_secs_f64());
        let Some(service) = &record.service else { return };
        metrics.bound(service.result);
        if record.lacks_usage() {
            metrics.usage_missing();
        }
        let Some(usage) = &record.usage else { return };
        let key = &service.key.id;
        let uncached = usage.input.saturating_sub(usage.cached + usage.written);
        metrics.input_tokens(key, Cache::Read, usage.cached);
        metrics.input_tokens(key, Cache::Written, usage.written);
        metrics.input_tokens(key, Cache::Uncached, uncached);
        metrics.output_tokens(key, usage.output);
    }
}

/// Writes the log line of a turn.
pub fn log_turn(record: &Record) {
    let (service, usage) = (record.service.as_ref(), record.usage.as_ref());
    tracing::info!(
        turn = %record.id,
        transport = record.transport.name(),
        client = record.client.as_ref().map(ClientId::as_str),
        session = record.session.as_ref().map(SessionId::as_str),
        key = service.map(|service| service.key.id.as_str()),
        organization = service.map(|service| service.key.organization.as_str()),
        binding = service.map(|service| service.result.name()),
        status = record.status.map(|status| status.as_u16()),
        outcome = record.ending.name(),
        input_tokens = usage.map(|usage| usage.input),
        cached_tokens = usage.map(|usage| usage.cached),
        output_tokens = usage.map(|usage| usage.output),
        seconds = record.duration.as_secs_f64(),
        "turn"
    );
}
