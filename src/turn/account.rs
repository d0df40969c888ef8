//! What a turn did, told once however it ends: one log line, its metrics, its place in its key's count.

use std::sync::Arc;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use crate::binding::Binding;
use crate::client::ClientId;
use crate::error::{Error, Fault};
use crate::key::Key;
use crate::key::load::InFlight;
use crate::key::registry::Registry;
use crate::metrics::{BindingResult, Cache, Ending, Metrics, Transport};
use crate::session::SessionId;
use crate::session::identify::Identity;
use crate::telemetry::TurnId;
use crate::usage::cold;
use crate::usage::tap::Reading;
use crate::usage::terminal::Terminal;

/// The books of one turn. Whoever drops it ends the turn: as [`Ending::ClientLeft`] unless something else was said.
pub struct Account {
    pub id: TurnId,
    metrics: Arc<Metrics>,
    transport: Transport,
    began: Instant,
    caller: Caller,
    bound: Option<Bound>,
    status: Option<StatusCode>,
    ending: Option<Ending>,
    reading: Reading,
    /// It turned out to be no turn.
    is_void: bool,
    model: String,
}

/// Whose turn it is: the same for all turns of a WebSocket.
#[derive(Clone, Default)]
pub struct Caller {
    client: Option<ClientId>,
    session: Option<SessionId>,
}

struct Bound {
    key: Arc<Key>,
    registry: Arc<Registry>,
    result: BindingResult,
    /// The key that served reads another cache than the one that the turn began with.
    domain_moved: bool,
    _place: InFlight,
}

impl Account {
    pub fn open(metrics: Arc<Metrics>, transport: Transport, headers: &HeaderMap) -> Self {
        Self::begin(metrics, transport, TurnId::of(headers), Caller::default())
    }

    /// A turn on a WebSocket of `caller`.
    pub fn of(caller: &Caller, metrics: Arc<Metrics>) -> Self {
        Self::begin(metrics, Transport::Websocket, TurnId::random(), caller.clone())
    }

    fn begin(metrics: Arc<Metrics>, transport: Transport, id: TurnId, caller: Caller) -> Self {
        metrics.turn_began();
        Self {
            id,
            metrics,
            transport,
            began: Instant::now(),
            caller,
            bound: None,
            status: None,
            ending: None,
            reading: Reading::default(),
            is_void: false,
            model: String::new(),
        }
    }

    /// What was accounted for is a WebSocket that is open now: the turns come on it, each with an account of its own.
    /// Also returns whether it reads another cache than the one that the session began with.
    pub fn opened(mut self) -> (Caller, bool) {
        self.is_void = true;
        (std::mem::take(&mut self.caller), self.bound.as_ref().is_some_and(|bound| bound.domain_moved))
    }

    pub fn client(&mut self, client: &ClientId) {
        self.caller.client = Some(client.clone());
    }

    pub fn session(&mut self, identity: &Identity) {
        self.caller.session.clone_from(&identity.session);
        if identity.skipped > 0 {
            self.metrics.malformed_signals(identity.skipped);
        }
    }

    /// The turn is about to be sent with `binding`'s key.
    pub fn bound(&mut self, binding: &Binding, domain_moved: bool, registry: &Arc<Registry>) {
        self.bound = Some(Bound {
            key: Arc::clone(&binding.key),
            registry: Arc::clone(registry),
            result: binding.result,
            domain_moved,
            _place: registry.loads.enter(&binding.key),
        });
    }

    /// What the gateway itself added, from the body's last byte to the upstream request.
    pub fn overhead(&self, since: Instant) {
        self.metrics.overhead(since.elapsed().as_secs_f64());
    }

    pub fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    pub fn refused(&mut self, error: &Error) {
        self.status = Some(error.status());
        self.ending = Some(if error.fault() == Fault::Client { Ending::Refused } else { Ending::Unserved });
        if error.fault() != Fault::Client {
            tracing::warn!(turn = %self.id, code = error.code(), cause = error.cause.as_deref(), "{error}");
        }
    }

    /// The answer says the key's secret. It passes as it came; whose upstream does that should hear of it.
    pub fn echoed(&self) {
        self.metrics.credential_echoed();
        let key = self.bound.as_ref().map(|bound| bound.key.id.as_str());
        tracing::warn!(turn = %self.id, key, "the upstream's answer holds the secret of the key that it was shown");
    }

    /// The answer's body is over, or will not go on: `broken` says why not.
    pub fn relayed(&mut self, reading: Reading, broken: Option<Ending>) {
        let is_error = self.status.is_some_and(|status| status.as_u16() >= 400);
        self.ending = Some(match (reading.terminal, broken) {
            _ if is_error => Ending::UpstreamError,
            // Whatever happens to the connection after the last word changes nothing.
            (Some(Terminal::Completed), _) => Ending::Completed,
            (Some(Terminal::Incomplete), _) => Ending::Incomplete,
            (Some(Terminal::Failed), _) => Ending::Failed,
            (None, Some(broken)) => broken,
            (None, None) => Ending::Cut,
        });
        if let (Some(failure), Some(bound)) = (&reading.failure, &self.bound) {
            bound.registry.observe_failure(&bound.key, &self.model, failure);
        }
        self.reading = reading;
    }

    /// The turn will not be answered to its end, and not because its client left.
    pub fn cut(mut self) {
        self.relayed(Reading::default(), Some(Ending::Cut));
    }

    pub fn asked(&self) -> &str {
        &self.model
    }

    /// What the turn asks for.
    pub fn model(&mut self, model: &str) {
        model.clone_into(&mut self.model);
    }

    fn count_usage(&self, bound: &Bound, ending: Ending) {
        let Some(usage) = &self.reading.usage else {
            if matches!(ending, Ending::Completed | Ending::Incomplete) {
                self.metrics.usage_missing();
            }
            return;
        };
        let uncached = usage.input.saturating_sub(usage.cached + usage.written);
        for (cache, tokens) in [(Cache::Read, usage.cached), (Cache::Written, usage.written), (Cache::Uncached, uncached)] {
            self.metrics.input_tokens(&bound.key.id, cache, tokens);
        }
        self.metrics.output_tokens(&bound.key.id, usage.output);
        if let Some(reason) = cold::reason(bound.result, bound.domain_moved, usage) {
            self.metrics.cold_turn(reason);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.is_void {
            return self.metrics.turn_void();
        }
        let ending = match self.ending {
            Some(ending) => ending,
            None if std::thread::panicking() => Ending::Unserved,
            None => Ending::ClientLeft,
        };
        let seconds = self.began.elapsed().as_secs_f64();
        self.metrics.turn_ended(self.transport, ending, seconds);
        if let Some(bound) = &self.bound {
            self.metrics.bound(bound.result);
            self.count_usage(bound, ending);
        }
        let usage = self.reading.usage.as_ref();
        tracing::info!(
            turn = %self.id,
            transport = self.transport.name(),
            client = self.caller.client.as_ref().map(ClientId::as_str),
            session = self.caller.session.as_ref().map(SessionId::as_str),
            key = self.bound.as_ref().map(|bound| bound.key.id.as_str()),
            organization = self.bound.as_ref().map(|bound| bound.key.organization.as_str()),
            binding = self.bound.as_ref().map(|bound| bound.result.name()),
            status = self.status.map(|status| status.as_u16()),
            outcome = ending.name(),
            input_tokens = usage.map(|usage| usage.input),
            cached_tokens = usage.map(|usage| usage.cached),
            output_tokens = usage.map(|usage| usage.output),
            seconds,
            "turn"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{bound, gateway};
    use super::*;
    use crate::client::Client;
    use crate::error::Kind;
    use crate::outcome::ErrorBody;
    use crate::usage::terminal::Usage;

    fn open(metrics: &Arc<Metrics>) -> Account {
        Account::open(Arc::clone(metrics), Transport::Http, &HeaderMap::new())
    }

    /// The outcomes that were counted.
    fn outcomes(metrics: &Metrics) -> Vec<String> {
        let page = metrics.render();
        assert!(page.contains("warmkey_active_turns 0"), "{page}");
        let lines = page.lines().filter_map(|line| line.strip_prefix("warmkey_turns_total{transport=\"http\",outcome=\""));
        lines.filter_map(|line| line.strip_suffix("\"} 1")).map(str::to_owned).collect()
    }

    #[test]
    fn a_turn_ends_as_the_upstream_said_and_else_as_its_connection_did() {
        let (done, part, failed) = (Some(Terminal::Completed), Some(Terminal::Incomplete), Some(Terminal::Failed));
        for (status, terminal, broken, expected) in [
            (200, done, Some(Ending::ClientLeft), "completed"),
            (200, part, Some(Ending::Cut), "incomplete"),
            (200, failed, Some(Ending::Cut), "failed"),
            (200, None, Some(Ending::ClientLeft), "client_left"),
            (200, None, Some(Ending::TimedOut), "timed_out"),
            (200, None, None, "cut"),
            (307, done, None, "completed"),
            (400, done, None, "upstream_error"),
            (500, None, Some(Ending::Cut), "upstream_error"),
        ] {
            let metrics = Arc::new(Metrics::new());
            let mut account = open(&metrics);
            account.answered(StatusCode::from_u16(status).unwrap());
            account.relayed(Reading { terminal, ..Reading::default() }, broken);
            drop(account);
            assert_eq!(outcomes(&metrics), [expected], "{status} {terminal:?} {broken:?}");
        }
    }

    #[test]
    fn a_turn_without_an_answer_ends_by_whose_doing_that_was() {
        let ended = |end: &dyn Fn(Account)| {
            let metrics = Arc::new(Metrics::new());
            end(open(&metrics));
            outcomes(&metrics)
        };
        let refused = |kind| move |mut account: Account| account.refused(&Error::new(kind, "m"));
        assert_eq!(ended(&refused(Kind::InvalidJson)), ["refused"]);
        assert_eq!(ended(&refused(Kind::NoKeyAvailable)), ["unserved"]);
        assert_eq!(ended(&refused(Kind::UpstreamTimeout)), ["unserved"]);
        assert_eq!(ended(&drop), ["client_left"]);
        assert_eq!(ended(&Account::cut), ["cut"]);
        assert!(ended(&|account| drop(account.opened())).is_empty(), "a handshake is no turn");
        let panics = |account: Account| {
            let turn = std::panic::AssertUnwindSafe(move || {
                let _account = account;
                panic!("a turn of a test")
            });
            assert!(std::panic::catch_unwind(turn).is_err());
        };
        assert_eq!(ended(&panics), ["unserved"]);
    }

    #[tokio::test]
    async fn a_failure_inside_an_answer_is_of_the_model_that_was_asked_for() {
        let (gateway, client) = (gateway(&[("a", "o", "p")]), Client::unrestricted("alice"));
        let (_, binding, _) = bound(&gateway, &client).await;
        let mut account = open(&gateway.metrics);
        account.model("m");
        account.bound(&binding, false, &gateway.registry);
        let failure = Some(ErrorBody { code: Some("rate_limit_exceeded".into()), ..ErrorBody::default() });
        account.relayed(Reading { terminal: Some(Terminal::Failed), failure, ..Reading::default() }, None);
        let is_well = |model| gateway.registry.is_well(&binding.key, model);
        assert!(!is_well("m") && is_well("n") && is_well(""));
    }

    #[tokio::test]
    async fn tokens_are_counted_of_the_key_that_served() {
        let (gateway, client) = (gateway(&[("a", "o", "p"), ("b", "o", "p")]), Client::unrestricted("alice"));
        let (_, binding, _) = bound(&gateway, &client).await;
        let keys = gateway.registry.loaded();
        let [a, b] = keys.table.keys() else { panic!("two keys") };
        let mut account = open(&gateway.metrics);
        account.bound(&Binding { key: Arc::clone(a), ..binding.clone() }, false, &gateway.registry);
        account.bound(&Binding { key: Arc::clone(b), ..binding }, false, &gateway.registry);
        assert_eq!([a, b].map(|key| gateway.registry.loads.of(key)), [0, 1], "it is in flight at the last one");
        // What was read and written is never more than there was.
        let usage = Usage { input: 10, cached: 8, written: 5, output: 3, miss: None };
        account.answered(StatusCode::OK);
        account.relayed(Reading { terminal: Some(Terminal::Completed), usage: Some(usage), failure: None }, None);
        drop(account);
        let page = gateway.metrics.render();
        for (cache, tokens) in [("read", 8), ("written", 5), ("uncached", 0)] {
            assert!(page.contains(&format!("warmkey_input_tokens_total{{key=\"b\",cache=\"{cache}\"}} {tokens}\n")), "{page}");
        }
        assert!(page.contains("warmkey_output_tokens_total{key=\"b\"} 3\n") && !page.contains("key=\"a\",cache"), "{page}");
    }
}
