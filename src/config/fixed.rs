//! Keeps the options that only a restart can change, and tells a reload which of them have changed.
//!
//! Options are compared by hash, so that a secret written in the file is not kept for the
//! comparison.

use std::collections::{BTreeMap, BTreeSet};

use ::config::{Value, ValueKind};
use jiff::tz::TimeZone;
use sha2::{Digest, Sha256};

use super::{Config, StoreChoice};
use crate::database::DatabaseAddress;
use crate::setting::Secret;
use crate::telemetry::CollectorAddress;
use crate::usage::tracer::TraceRule;

/// Sections that a reload replaces, or that do not concern a replica.
const OTHERS: [&str; 5] = ["upstream", "key", "client", "price", "sim"];

/// The part of a configuration that stays until a restart.
pub struct Fixed {
    pub config: Config,
    pub secret: Secret,
    pub admin_token: Option<Secret>,
    pub hop_secret: Option<Secret>,
    pub store: StoreChoice,
    /// `None`: there is no ledger.
    pub ledger: Option<DatabaseAddress>,
    /// The time zone of the ledger's hours and days.
    pub zone: TimeZone,
    /// `None`: there are no traces.
    pub collector: Option<CollectorAddress>,
    /// Which turns are traced.
    pub traced: TraceRule,
}

impl Fixed {
    /// The options of `next` that differ and need a restart.
    pub fn differs_from<'n>(&'n self, next: &'n Self) -> BTreeSet<&'n str> {
        let mut names = self.config.options.differ_from(&next.config.options);
        // A secret without a source is a random one each time.
        let is_given = |fixed: &Self| fixed.config.server.secret.is_some();
        if is_given(self) && is_given(next) && self.secret != next.secret {
            names.insert("server.secret");
        }
        if self.admin_token != next.admin_token {
            names.insert("server.admin_token");
        }
        if self.hop_secret != next.hop_secret {
            names.insert("hop.secret");
        }
        names
    }
}

/// The hash of every option's value, by `section.option`, for all sections that a reload leaves
/// alone.
#[derive(Clone, Debug, Default)]
pub struct FixedOptions(BTreeMap<String, [u8; 32]>);

impl FixedOptions {
    pub fn of(root: &Value) -> Self {
        let table = |value: &Value| match &value.kind {
            ValueKind::Table(table) => table.clone(),
            _ => ::config::Map::new(),
        };
        let sections = table(root).into_iter().filter(|(name, _)| !OTHERS.contains(&name.as_str()));
        let options = sections.flat_map(|(section, options)| {
            table(&options)
                .into_iter()
                .map(move |(name, value)| (format!("{section}.{name}"), value))
        });
        Self(
            options.map(|(name, value)| (name, Sha256::digest(value.to_string()).into())).collect(),
        )
    }

    fn differ_from<'n>(&'n self, next: &'n Self) -> BTreeSet<&'n str> {
        let names = self.0.keys().chain(next.0.keys()).map(String::as_str);
        names.filter(|name| self.0.get(*name) != next.0.get(*name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{Config, Plan};

    const KEY: &str = "[[key]]\nid = \"a-1\"\nupstream = \"openai\"\norganization = \"org-a\"\n\
                       secret = \"sk-1\"\n";

    fn plan(text: &str) -> Plan {
        Config::parse(&format!("{text}\n{KEY}"))
            .unwrap()
            .plan()
            .map_err(|faults| faults.join("; "))
            .unwrap()
    }

    #[test]
    fn options_that_need_a_restart_are_named_and_no_others() {
        let differ = |a: &str, b: &str| {
            plan(a).fixed.differs_from(&plan(b).fixed).into_iter().collect::<Vec<_>>().join(" ")
        };
        let secret =
            |text: &str| format!("[server]\nsecret = \"{text}-0123456789abcdef0123456789abcdef\"");
        assert_eq!(differ("", ""), "", "a random secret is no change");
        assert_eq!(differ("", "[[client]]\nid = \"alice\"\ntoken = \"t\"\n[sim]\nseed = 3"), "");
        assert_eq!(
            differ("[server]\ndrain = \"5s\"\nmax_body = \"1MiB\"", "[binding]\nttl = \"1h\""),
            "binding.ttl server.drain server.max_body"
        );
        assert_eq!(differ(&secret("old"), &secret("new")), "server.secret");
        assert_eq!(differ("", &secret("new")), "server.secret");
        assert_eq!(differ("[hop]\nsecret = \"a\"", ""), "hop.secret");
        assert_eq!(differ("", "[server]\nadmin_token = \"a\""), "server.admin_token");
        let shown = format!("{:?}", plan(&secret("canary")).fixed.config);
        assert!(!shown.contains("canary"), "{shown}");
    }

    /// A reload replaces the lists, and names every other option that has changed.
    #[test]
    fn option_that_stays_is_named_for_every_section() {
        let old = plan("");
        let named = |text: &str| {
            let next = plan(text);
            old.fixed.differs_from(&next.fixed).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        for (section, option, value) in [
            ("server", "listen", "\"127.0.0.1:1\""),
            ("server", "admin_listen", "\"127.0.0.1:1\""),
            ("server", "replay_total", "\"1MiB\""),
            ("server", "drain_delay", "\"1s\""),
            ("server", "header_timeout", "\"1s\""),
            ("server", "ping", "\"1s\""),
            ("server", "open", "true"),
            ("server", "foreign_ids", "\"pass\""),
            ("store", "prefix", "\"other\""),
            ("ledger", "url", "\"none:\""),
            ("ledger", "retention", "\"1d\""),
            ("ledger", "rollup_retention", "\"1d\""),
            ("ledger", "time_zone", "\"Europe/Berlin\""),
            ("store", "timeout", "\"1s\""),
            ("binding", "wait", "\"1s\""),
            ("binding", "memory", "5"),
            ("failover", "ambiguous", "true"),
            ("telemetry", "log", "\"text\""),
            ("telemetry", "otlp_endpoint", "\"http://127.0.0.1:4317\""),
            ("telemetry", "propagate", "true"),
            ("telemetry", "sample", "0.5"),
            ("telemetry", "slow", "\"1s\""),
        ] {
            let text = format!("[{section}]\n{option} = {value}");
            assert_eq!(named(&text), [format!("{section}.{option}")], "{text}");
        }
        let key = KEY.replace("a-1", "a-2");
        let upstream = "[[upstream]]\nname = \"openai\"\nbase_url = \"http://h\"";
        assert_eq!(
            named(&format!("{key}{upstream}")),
            Vec::<String>::new(),
            "lists are taken over"
        );
    }

    /// The file stays the same, but a file that it names has changed.
    #[test]
    fn secret_that_changes_behind_its_name_is_noticed() {
        let path = std::env::temp_dir().join(format!("warmkey-fixed-{}", std::process::id()));
        let write =
            |text: &str| std::fs::write(&path, text).expect("the temporary folder can be written");
        for (option, section) in [
            ("server.secret", "[server]\nsecret"),
            ("server.admin_token", "[server]\nadmin_token"),
            ("hop.secret", "[hop]\nsecret"),
        ] {
            let text = format!("{section} = {{ file = {path:?} }}");
            write("0123456789abcdef0123456789abcdef");
            let (old, same) = (plan(&text), plan(&text));
            write("fedcba9876543210fedcba9876543210");
            let new = plan(&text);
            assert_eq!(old.fixed.differs_from(&same.fixed).len(), 0, "{option}");
            assert_eq!(
                old.fixed.differs_from(&new.fixed).into_iter().collect::<Vec<_>>(),
                [option]
            );
        }
        std::fs::remove_file(&path).expect("it is there");
    }
}
