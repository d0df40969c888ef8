//! The options of the simulated upstream: the `[sim]` table and its `[[sim.key]]` entries.
//!
//! This file decides defaults and refuses settings that make no sense. `key` reads the secrets.

use std::time::Duration;

use serde::Deserialize;

use crate::setting::{SecretSource, Span};

/// The `[sim]` table.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Real time before each event of a streamed answer but the first.
    pub event_delay: Span,
    /// Real time before the first event for each 1,000 input tokens that were not cached.
    pub prefill: Span,
    /// Number of `response.output_text.delta` events of an ordinary answer, 1 to 100,000.
    pub events: u32,
    /// Determines seals, filler text and the choice of machines. Two simulators with one seed can
    /// open each other's seals.
    pub seed: u64,
    /// Cache life, overflow, limits and the 60 minutes of a WebSocket run this many times faster
    /// than real time. At least 1.
    pub time_scale: f64,
    /// Allows an address that is not loopback. The judge shows what a real service never shows.
    pub expose: bool,
    /// Machines behind each cache domain. Traffic beyond 15 requests a minute overflows from one
    /// machine to the next.
    pub machines: u32,
    /// Requests a minute that each (organization, project, model) may make, in simulated time.
    pub requests_per_minute: u64,
    /// Tokens a minute that each (organization, project, model) may use, in simulated time. Cached
    /// tokens count in full.
    pub tokens_per_minute: u64,
    /// Enables WebSocket mode. Without it, an upgrade is answered 404, like any unknown path.
    pub websocket: bool,
    /// Serves Chat Completions. Without it, chat is answered 404, like any unknown path.
    pub chat: bool,
    pub key: Vec<KeyConfig>,
}

/// One simulated API key: `[[sim.key]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyConfig {
    /// The judge's name for the key. Default: `<organization>/<project>#<position in the file, from
    /// 1>`.
    pub id: Option<String>,
    pub secret: SecretSource,
    pub organization: String,
    /// Default: `default`, one project for each organization.
    #[serde(default = "default_project")]
    pub project: String,
    #[serde(default = "default_region")]
    pub region: String,
    /// Limit of the key's project, if it is lower than that of `[sim]`.
    pub requests_per_minute: Option<u64>,
    /// Limit of the key's project, if it is lower than that of `[sim]`.
    pub tokens_per_minute: Option<u64>,
    /// Models that the key's project may use. Empty: all.
    #[serde(default)]
    pub models: Vec<String>,
    /// The header in which the key is shown.
    #[serde(default)]
    pub credential: Credential,
    /// The `api-version` that every request with the key must name.
    pub api_version: Option<String>,
}

/// How a simulated key is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Credential {
    #[default]
    Bearer,
    ApiKey,
}

fn default_project() -> String {
    "default".into()
}

fn default_region() -> String {
    "us".into()
}

impl Default for Config {
    fn default() -> Self {
        Self {
            event_delay: Span(Duration::ZERO),
            prefill: Span(Duration::ZERO),
            events: 8,
            seed: 0,
            time_scale: 1.0,
            expose: false,
            // There are many machines, as in reality. Two sessions seldom meet on one by chance, so
            // only routing earns a cache hit.
            machines: 512,
            // The limits are high enough that no test meets them by accident, and low enough to
            // read as those of a large account.
            requests_per_minute: 120_000,
            tokens_per_minute: 40_000_000_000,
            websocket: true,
            chat: true,
            key: Vec::new(),
        }
    }
}

impl Config {
    /// Says in one line what is wrong with these settings.
    pub fn check(&self) -> Result<(), String> {
        if !(self.time_scale.is_finite() && self.time_scale >= 1.0) {
            return Err("sim.time_scale must be at least 1".into());
        }
        if !(1..=100_000).contains(&self.events) {
            return Err("sim.events must be between 1 and 100000".into());
        }
        if !(1..=1024).contains(&self.machines) {
            return Err("sim.machines must be between 1 and 1024".into());
        }
        let of_keys = self
            .key
            .iter()
            .flat_map(|key| [key.requests_per_minute, key.tokens_per_minute])
            .flatten();
        if [self.requests_per_minute, self.tokens_per_minute]
            .into_iter()
            .chain(of_keys)
            .any(|limit| limit == 0)
        {
            return Err("requests_per_minute and tokens_per_minute, of sim and of a sim.key, must be at least 1".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_is_fine_and_an_unknown_option_is_not() {
        assert_eq!(Config::default().check(), Ok(()));
        let config: Config = serde_json::from_str(
            r#"{"key":[{"secret":"sk-1","organization":"org-a"}],"event_delay":"5ms"}"#,
        )
        .expect("a short table is a whole one");
        assert_eq!(
            (config.key[0].project.as_str(), config.key[0].region.as_str()),
            ("default", "us")
        );
        assert!(serde_json::from_str::<Config>(r#"{"evnts":1}"#).is_err());
    }

    fn key(json: &str) -> KeyConfig {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        for wrong in [
            Config { time_scale: 0.5, ..Config::default() },
            Config { time_scale: f64::NAN, ..Config::default() },
            Config { events: 0, ..Config::default() },
            Config { machines: 0, ..Config::default() },
            Config { tokens_per_minute: 0, ..Config::default() },
            Config {
                key: vec![key(r#"{"secret":"s","organization":"o","requests_per_minute":0}"#)],
                ..Config::default()
            },
        ] {
            assert!(wrong.check().is_err());
        }
    }
}
