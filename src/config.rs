//! Reads every option: the TOML file overrides the defaults, the environment overrides both.
//!
//! Decides what a configuration means and whether it may run. A fault is one line that names the
//! option and never shows a secret.

use std::path::Path;

use ::config::{ConfigBuilder, ConfigError, Environment, File, FileFormat, builder::DefaultState};
use jiff::tz::TimeZone;
use serde::Deserialize;

use crate::client::{self, Clients};
use crate::database::DatabaseAddress;
use crate::key::{self, UpstreamSettings, host::UpstreamKind, table::Table};
use crate::server::tls::Certificate;
use crate::session::HopSettings;
use crate::setting::{Secret, SecretSource};
use crate::store::address::Address;
use crate::telemetry::CollectorAddress;
use crate::usage::price::{Prices, setting::PriceSettings};
use crate::usage::tracer::TraceRule;
use crate::{binding, ledger, server, simulator, store, telemetry, turn};

mod faults;
pub(crate) mod fixed;
pub mod source;

use fixed::{Fixed, FixedOptions};

/// The defaults. The same file is the reference of all options.
const DEFAULT: &str = include_str!("config/default.toml");
/// Read if the command line names no file and this file exists.
const USUAL_FILE: &str = "warmkey.toml";
/// Environment variable that holds `server.secret` if the file does not set it.
const SECRET_VARIABLE: &str = "WARMKEY_SECRET";
const SHORTEST_SECRET: usize = 32;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub server: server::ServerSettings,
    pub store: store::StoreSettings,
    pub ledger: ledger::LedgerSettings,
    pub binding: binding::BindingSettings,
    pub failover: turn::failover::FailoverSettings,
    pub hop: HopSettings,
    pub telemetry: telemetry::TelemetrySettings,
    #[serde(default)]
    pub upstream: Vec<UpstreamSettings>,
    #[serde(default)]
    pub key: Vec<key::KeySettings>,
    #[serde(default)]
    pub client: Vec<client::ClientSettings>,
    #[serde(default)]
    pub price: Vec<PriceSettings>,
    /// The simulated upstream, so that one file may describe both.
    #[serde(default)]
    pub sim: simulator::Config,
    #[serde(skip)]
    options: FixedOptions,
}

/// Where replicas keep their shared state.
#[derive(Clone, Debug)]
pub enum StoreChoice {
    Memory,
    Redis(Address),
}

impl StoreChoice {
    /// Whether several replicas keep their state there.
    pub const fn is_shared(&self) -> bool {
        matches!(self, Self::Redis(_))
    }
}

/// A configuration that may run, with its secrets read. `fixed` stays until a restart; a reload
/// replaces the rest.
pub struct Plan {
    pub fixed: Fixed,
    pub table: Table,
    pub clients: Clients,
    /// The certificate of the clients' listener, if that listener speaks TLS.
    pub certificate: Option<Certificate>,
    pub prices: Prices,
}

impl Config {
    /// Reads the defaults, then `file` (or `warmkey.toml`, if it exists), then the environment.
    pub fn load(file: Option<&Path>) -> Result<Self, String> {
        let mut sources = defaults();
        if let Some(path) =
            file.or_else(|| Some(Path::new(USUAL_FILE)).filter(|path| path.exists()))
        {
            let text = std::fs::read_to_string(path)
                .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
            sources = sources.add_source(
                well_formed(&text).map_err(|why| format!("{}, {why}", path.display()))?,
            );
        }
        build(
            sources.add_source(
                Environment::with_prefix("WARMKEY").prefix_separator("__").separator("__"),
            ),
        )
    }

    /// Reads a configuration from its text alone, without the environment.
    pub fn parse(text: &str) -> Result<Self, String> {
        build(defaults().add_source(well_formed(text)?))
    }

    /// Reads the secrets and reports every fault that can be found before anything runs.
    pub fn plan(mut self) -> Result<Plan, Vec<String>> {
        let mut faults = Vec::new();
        if self.upstream.is_empty() {
            self.upstream.push(UpstreamSettings::openai());
        }
        let store = keep(&mut faults, self.store_choice());
        let secret = store.as_ref().and_then(|store| keep(&mut faults, self.secret(store)));
        let shown = |name: &str, source: &Option<SecretSource>| {
            let secret = source.as_ref().map(SecretSource::read_shown).transpose();
            secret.map_err(|why| format!("{name}: {why}"))
        };
        let admin_token = keep(&mut faults, shown("server.admin_token", &self.server.admin_token));
        let hop_secret = keep(&mut faults, shown("hop.secret", &self.hop.secret));
        let certificate = keep(
            &mut faults,
            self.server.tls.as_ref().map(server::tls::TlsSettings::read).transpose(),
        );
        let ledger = store
            .as_ref()
            .and_then(|store| keep(&mut faults, self.ledger.address(store.is_shared())));
        let zone = keep(&mut faults, self.ledger.zone());
        let traces = keep(&mut faults, self.traces());
        let prices = keep(&mut faults, Prices::new(&self.price));
        let table = keep(&mut faults, Table::new(&self.upstream, &self.key));
        if matches!(hop_secret, Some(None))
            && let Some(edge) = self.upstream.iter().find(|one| one.kind == UpstreamKind::Gateway)
        {
            let name = &edge.name;
            faults.push(format!(
                "upstream {name}: kind = \"gateway\" needs hop.secret, which both share"
            ));
        }
        let clients = keep(&mut faults, Clients::new(&self.client));
        faults.extend(faults::of_addresses(&self.server));
        faults.extend(faults::of_values(&self));
        if let Some(table) = &table {
            faults.extend(faults::of_keys(table, clients.as_ref()));
        }
        if let (Some(Some(token)), Some(clients)) = (&admin_token, &clients)
            && clients.knows(token)
        {
            faults.push("server.admin_token: is a client's token too".into());
        }
        let shared = store.zip(secret).zip(ledger).zip(zone).zip(traces);
        let replaced = table.zip(clients).zip(certificate).zip(prices);
        match (shared, admin_token, hop_secret, replaced) {
            (Some(shared), Some(admin_token), Some(hop_secret), Some(replaced))
                if faults.is_empty() =>
            {
                let ((((store, secret), ledger), zone), (collector, traced)) = shared;
                let (((table, clients), certificate), prices) = replaced;
                let config = self;
                let fixed = Fixed {
                    config,
                    secret,
                    admin_token,
                    hop_secret,
                    store,
                    ledger,
                    zone,
                    collector,
                    traced,
                };
                Ok(Plan { fixed, table, clients, certificate, prices })
            }
            _ => Err(faults),
        }
    }

    /// All files that the options name, except those of the store and the ledger, which follow
    /// their own files.
    fn files(&self) -> impl Iterator<Item = &Path> {
        let secrets =
            [&self.server.secret, &self.server.admin_token, &self.hop.secret].into_iter().flatten();
        let secrets = secrets
            .chain(self.upstream.iter().filter_map(|upstream| upstream.proxy.as_ref()))
            .chain(self.key.iter().map(|key| &key.secret))
            .chain(self.client.iter().filter_map(|client| client.token.as_ref()));
        secrets
            .filter_map(SecretSource::file)
            .chain(
                self.upstream
                    .iter()
                    .filter_map(|upstream| upstream.ca_file.as_deref().map(Path::new)),
            )
            .chain(self.client.iter().filter_map(|client| client.token_file.as_deref()))
            .chain(
                self.server
                    .tls
                    .iter()
                    .flat_map(|tls| [tls.cert_file.as_path(), tls.key_file.as_path()]),
            )
    }

    fn store_choice(&self) -> Result<StoreChoice, String> {
        let url = self.store.url.read().map_err(|why| format!("store.url: {why}"))?;
        let choice = match url.expose() {
            "memory:" if self.store.ca_file.is_some() => {
                return Err("store.ca_file: is for rediss addresses only".into());
            }
            "memory:" => StoreChoice::Memory,
            _ => {
                self.store.authorities()?;
                StoreChoice::Redis(self.store.address()?)
            }
        };
        if self.store.prefix.is_empty()
            || !self.store.prefix.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err("store.prefix: must be visible ASCII".into());
        }
        Ok(choice)
    }

    /// The ledger's address and time zone, which are all that its commands need.
    pub fn ledger(&self) -> Result<(Option<DatabaseAddress>, TimeZone), String> {
        Ok((self.ledger.address(self.store_choice()?.is_shared())?, self.ledger.zone()?))
    }

    /// Returns the address of the collector, and the rule that selects the turns to trace.
    fn traces(&self) -> Result<(Option<CollectorAddress>, TraceRule), String> {
        let telemetry = &self.telemetry;
        let rule = TraceRule { share: telemetry.share()?, slow: telemetry.slow.0 };
        Ok((telemetry.collector()?, rule))
    }

    fn secret(&self, store: &StoreChoice) -> Result<Secret, String> {
        let secret = match (&self.server.secret, std::env::var(SECRET_VARIABLE), store) {
            (Some(source), _, _) => source.read().map_err(|why| format!("server.secret: {why}"))?,
            (None, Ok(text), _) => Secret::new(text),
            // The memory store ends with the process, and so does every hash under this secret.
            (None, Err(_), StoreChoice::Memory) => return random_secret(),
            (None, Err(_), StoreChoice::Redis(_)) => {
                return Err(format!(
                    "server.secret: replicas that share a store need one; \
                     set it, or {SECRET_VARIABLE}"
                ));
            }
        };
        match secret.expose().len() {
            length if length < SHORTEST_SECRET => {
                Err(format!("server.secret: has {length} bytes, needs at least {SHORTEST_SECRET}"))
            }
            _ => Ok(secret),
        }
    }
}

/// Returns a good value, or adds the fault to `faults`.
fn keep<T>(faults: &mut Vec<String>, result: Result<T, String>) -> Option<T> {
    result.map_err(|fault| faults.push(fault)).ok()
}

fn random_secret() -> Result<Secret, String> {
    let mut bytes = [0; SHORTEST_SECRET];
    getrandom::fill(&mut bytes)
        .map_err(|error| format!("server.secret: no randomness: {error}"))?;
    Ok(Secret::new(bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

fn defaults() -> ConfigBuilder<DefaultState> {
    ::config::Config::builder().add_source(File::from_str(DEFAULT, FileFormat::Toml))
}

fn build(sources: ConfigBuilder<DefaultState>) -> Result<Config, String> {
    let built = sources.build().map_err(describe)?;
    let options = FixedOptions::of(&built.cache);
    let config: Config = built.try_deserialize().map_err(describe)?;
    Ok(Config { options, ..config })
}

/// Checks that the text is TOML and returns it as a source. The parser's own error shows the faulty
/// line, which may hold a secret. This error gives only the position and the message.
fn well_formed(text: &str) -> Result<File<::config::FileSourceString, FileFormat>, String> {
    match toml::from_str::<toml::Table>(text) {
        Ok(_) => Ok(File::from_str(text, FileFormat::Toml)),
        Err(error) => {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            Err(format!("line {line}, column {column}: {}", without_value(error.message())))
        }
    }
}

/// Describes a fault with its option, but without the value: even a value in the wrong place may be
/// a secret.
fn describe(error: ConfigError) -> String {
    let at = |key: Option<String>, origin: Option<String>, why: String| {
        let origin = origin.map(|origin| format!(" (in {origin})")).unwrap_or_default();
        // The `config` crate spells an option of a list's entry `key[0]secret`.
        let key = key.map(|key| {
            key.replace(']', "].").replace("..", ".").trim_end_matches('.').to_owned() + ": "
        });
        key.unwrap_or_default() + &why + &origin
    };
    match error {
        ConfigError::At { error, origin, key } => at(key, origin, describe(*error)),
        ConfigError::Type { origin, expected, key, .. } => {
            at(key, origin, without_types(&format!("must be {expected}")))
        }
        ConfigError::NotFound(key) => format!("{key}: is missing"),
        other => without_value(&other.to_string()),
    }
}

/// Cuts the value out of serde's `invalid type: string "VALUE", expected WHAT`, and joins the
/// lines.
fn without_value(message: &str) -> String {
    let message = match message.rsplit_once(", expected ") {
        Some((invalid, expected)) if invalid.starts_with("invalid ") && invalid.contains(": ") => {
            format!("must be {expected}")
        }
        _ => message.to_owned(),
    };
    let words = message.split_whitespace().collect::<Vec<_>>().join(" ");
    without_types(&words)
}

/// Replaces the names of types, which mean nothing to an operator.
fn without_types(message: &str) -> String {
    for (kind, plain) in
        [("struct ", "a table"), ("enum ", "one of its words"), ("tuple struct ", "a list")]
    {
        let begin = format!("must be {kind}");
        if message.starts_with(&begin) || message.starts_with(&begin.replace("must be", "expected"))
        {
            return format!("must be {plain}");
        }
    }
    message.to_owned()
}

#[cfg(test)]
mod tests;
