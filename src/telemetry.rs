//! Logs, traces, and the id of a turn.
//!
//! Each turn logs one line, as JSON or text, on standard error, and gives at most one trace to an
//! OTLP collector. No log level and no span shows bodies, prompts, header values or secrets.
//! Sessions appear only by their stored hash.

use std::fmt;

use http::Uri;
use serde::Deserialize;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, fmt as lines, registry};

use crate::setting::{self, Span};

mod protobuf;
mod collector;
pub mod log;
pub(crate) mod name;
pub(crate) mod pipe;
pub(crate) mod turn_id;
pub mod work;

pub use turn_id::TurnId;

use work::WorkSpans;

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    #[default]
    Json,
    Text,
}

impl<'de> Deserialize<'de> for LogFormat {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        setting::word(deserializer, &[("json", Self::Json), ("text", Self::Text)])
    }
}

/// The options in `[telemetry]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetrySettings {
    /// The address of the collector of traces. Empty: there is no collector.
    pub otlp_endpoint: String,
    /// Whether upstreams receive the gateway's own `traceparent`.
    pub propagate: bool,
    /// The share of ordinary turns that are traced.
    pub sample: f64,
    /// A turn that takes longer is always traced.
    pub slow: Span,
    pub log: LogFormat,
}

impl TelemetrySettings {
    /// Returns the address of the collector. `None`: traces are off. The error names the option.
    pub fn collector(&self) -> Result<Option<CollectorAddress>, String> {
        if self.otlp_endpoint.is_empty() {
            return Ok(None);
        }
        CollectorAddress::parse(&self.otlp_endpoint)
            .map(Some)
            .ok_or_else(|| "telemetry.otlp_endpoint: write \"http://HOST:4317\" (gRPC), or https, without user, path or query".into())
    }

    /// Returns the share of ordinary turns that are traced.
    pub fn share(&self) -> Result<Share, String> {
        Share::of(self.sample).ok_or_else(|| "telemetry.sample: must be from 0 to 1".into())
    }
}

/// The address of an OTLP collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CollectorAddress(String);

impl CollectorAddress {
    fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        let is_bare = uri.path_and_query().is_none_or(|path| path == "/");
        let has_user = uri.authority()?.as_str().contains('@');
        let is_whole = !uri.host()?.is_empty() && !text.contains('#');
        (is_http && is_bare && !has_user && is_whole).then(|| Self(text.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CollectorAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A share of all traces. Whether a trace is in the share depends only on its id. Of the turns in a
/// client's trace, all replicas therefore trace either all or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u64);

impl Share {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(u64::MAX);

    pub fn of(share: f64) -> Option<Self> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "the cast saturates, so that 1 is everything"
        )]
        (0.0..=1.0).contains(&share).then_some(Self((share * u64::MAX as f64) as u64))
    }

    /// Whether the trace of `id` is in the share.
    pub const fn includes(self, id: TurnId) -> bool {
        self.0 == u64::MAX || id.lot() < self.0
    }
}

/// Starts logging for this process, and the spans of background work if a collector is configured.
/// A second call changes nothing. The spans are dropped until [`WorkSpans::connect`].
pub fn start(settings: &TelemetrySettings) -> WorkSpans {
    log::start();
    std::panic::set_hook(Box::new(|panic| {
        // Only a literal message is logged, because a formatted one may hold a secret or a part of
        // a body.
        let message = panic.payload().downcast_ref::<&str>().copied();
        let place = panic.location().map(ToString::to_string);
        tracing::error!(place, message, "the gateway panicked");
    }));
    let work = WorkSpans::default();
    let is_traced = !settings.otlp_endpoint.is_empty();
    // Each log line stands alone, so it shows no spans.
    let own = level(&std::env::var("RUST_LOG").unwrap_or_default());
    let told =
        filter_fn(move |line| line.is_event() && *line.level() <= limit_level(own, line.target()))
            .with_max_level_hint(own);
    let layer =
        lines::layer().with_writer(|| log::LogLine).log_internal_errors(false).with_target(false);
    // The first subscriber of a process stays. Several replicas in one process therefore share it.
    let _ = match settings.log {
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_current_span(false);
            let lines = registry().with(layer.with_span_list(false).with_filter(told));
            let spans = is_traced.then(|| work.layer());
            tracing::subscriber::set_global_default(lines.with(spans))
        }
        LogFormat::Text => {
            let spans = is_traced.then(|| work.layer());
            let lines = registry().with(layer.with_filter(told));
            tracing::subscriber::set_global_default(lines.with(spans))
        }
    };
    work
}

/// Returns the level that `RUST_LOG` asks for: one for everything, or `warmkey=LEVEL`.
fn level(asked: &str) -> LevelFilter {
    let level = |word: &str| word.trim().trim_start_matches("warmkey=").parse().ok();
    // The parser would take an empty word for `error`.
    let words = asked.split(',').filter(|word| !word.trim().is_empty());
    words.filter_map(level).next_back().unwrap_or(LevelFilter::INFO)
}

/// The level of lines from `target`. Libraries say no more than `info`, whatever is asked for,
/// because their lower levels may show headers and bodies.
fn limit_level(own: LevelFilter, target: &str) -> LevelFilter {
    if target.starts_with("warmkey") { own } else { own.min(LevelFilter::INFO) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_is_the_one_that_is_asked_for() {
        for (asked, own, others) in [
            ("", LevelFilter::INFO, LevelFilter::INFO),
            ("trace", LevelFilter::TRACE, LevelFilter::INFO),
            ("warn", LevelFilter::WARN, LevelFilter::WARN),
            ("off", LevelFilter::OFF, LevelFilter::OFF),
            ("warkey=debug,nonsense", LevelFilter::INFO, LevelFilter::INFO),
            ("warmkey=debug", LevelFilter::DEBUG, LevelFilter::INFO),
            ("info,hyper=trace,warmkey=trace", LevelFilter::TRACE, LevelFilter::INFO),
        ] {
            let own_level = level(asked);
            assert_eq!(own_level, own, "{asked}");
            assert_eq!(limit_level(own_level, "warmkey::turn"), own, "{asked}");
            assert_eq!(limit_level(own_level, "hyper::proto"), others, "{asked}");
        }
    }

    #[test]
    fn collector_is_an_address_without_anything_else() {
        for good in
            ["http://localhost:4317", "https://collector.example/", "http://[::1]:4317", "http://h"]
        {
            assert_eq!(CollectorAddress::parse(good).expect(good).as_str(), good);
        }
        for wrong in [
            "localhost:4317",
            "h:p@localhost",
            "http://user:word@h:4317",
            "http://h:4317/v1/traces",
            "http://h:4317?token=x",
            "http://h:4317/#x",
            "grpc://h:4317",
            "unix:///socket",
            "http://",
            "/path",
            "http://h h",
        ] {
            assert_eq!(CollectorAddress::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn share_is_the_same_for_all_turns_of_a_trace() {
        for wrong in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            assert_eq!(Share::of(wrong), None, "{wrong}");
        }
        assert_eq!((Share::of(0.0), Share::of(1.0)), (Some(Share::NONE), Some(Share::ALL)));
        let count =
            |share: Share, ids: &[TurnId]| ids.iter().filter(|id| share.includes(**id)).count();
        // Ids that clients count up are spread as evenly as random ones.
        let counted: Vec<_> = (1..=10_000)
            .map(|number| {
                let text = format!("00-{number:032x}-00f067aa0ba902b7-01");
                TurnId::within(Some(text.as_bytes()))
            })
            .collect();
        let drawn: Vec<_> = (0..10_000).map(|_| TurnId::random()).collect();
        for ids in [counted, drawn] {
            assert_eq!((count(Share::NONE, &ids), count(Share::ALL, &ids)), (0, 10_000));
            let some = count(Share::of(0.25).expect("a share"), &ids);
            assert!((2_200..2_800).contains(&some), "{some} of 10,000 are a quarter");
        }
        let id = |flags: &str| {
            let text = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
            TurnId::within(Some(text.as_bytes()))
        };
        assert_eq!(id("00").lot(), id("01").lot(), "the client's flag decides nothing");
    }
}
