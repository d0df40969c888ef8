//! Runs an operator's commands: asks the admin listener of one replica, and prints the answer in
//! plain words. That replica acts for all replicas.
//!
//! Reads from the configuration only the address and the token of the admin listener. Never prints
//! a secret.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use http::header::AUTHORIZATION;
use http::{HeaderValue, Method};
use reqwest::{Request, Url};
use serde_json::Value;

use crate::config::Config;
use crate::health::operator::OperatorCommand;
use crate::setting::Secret;

pub(crate) mod columns;
pub(crate) mod ledger;
pub mod line;

/// Timeout of a request: the replica may have to ask an upstream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// The columns of the table of keys: the title, and the field of the answer.
const COLUMNS: [(&str, &str); 9] = [
    ("KEY", "id"),
    ("ORGANIZATION", "organization"),
    ("PROJECT", "project"),
    ("REGION", "region"),
    ("WEIGHT", "weight"),
    ("STATE", "state"),
    ("IN FLIGHT", "in_flight"),
    ("UPSTREAM", "upstream"),
    ("FINGERPRINT", "fingerprint"),
];

/// Why there is no answer to show, in one line.
#[derive(Debug)]
pub enum Failure {
    /// The configuration does not say which listener to ask, or how.
    Configuration(String),
    Other(String),
}

/// One replica's admin listener.
pub struct AdminClient {
    url: Url,
    token: Option<Secret>,
    connections: reqwest::Client,
}

impl AdminClient {
    /// The admin listener that the configuration in `file` describes, or the one at `address`.
    pub fn find(file: Option<&Path>, address: Option<&str>) -> Result<Self, Failure> {
        let server = Config::load(file).map_err(Failure::Configuration)?.server;
        let token = server.admin_token.as_ref().map(|source| source.read()).transpose();
        let token =
            token.map_err(|why| Failure::Configuration(format!("server.admin_token: {why}")))?;
        let url = match address {
            Some(address) => parse_address(address),
            None => admin_address(server.admin_listen),
        };
        let connections = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(ANSWER_TIMEOUT)
            .build()
            .map_err(|error| Failure::Other(error.to_string()))?;
        Ok(Self { url: url.map_err(Failure::Configuration)?, token, connections })
    }

    /// A table of all keys.
    pub async fn list(&self) -> Result<String, Failure> {
        let keys = self.ask(Method::GET, &["keys"], &[]).await?;
        Ok(table(keys.as_array().map(Vec::as_slice).unwrap_or_default()))
    }

    /// Gives `command` for `name`. Returns its effect and a table of the keys that it concerns.
    pub async fn give(&self, name: &str, command: OperatorCommand) -> Result<String, Failure> {
        let done = self.ask(Method::POST, &["keys", name, command.name()], &[]).await?;
        let mut text = format!("{name}: {}", effect(command));
        if done["shared"] == false {
            text.push_str("; the store is away, so the other replicas learn of it later");
        }
        text.push_str(".\n");
        for answer in done["answers"].as_array().into_iter().flatten() {
            let said = match (answer["status"].as_u64(), answer["is_accepted"] == true) {
                (Some(status), true) => format!("is accepted ({status})"),
                (Some(status), false) => format!("is answered {status}"),
                (None, _) => "is not answered".into(),
            };
            text.push_str(&format!("{} {said}.\n", format_value(&answer["key"])));
        }
        text.push_str(&table(done["keys"].as_array().map(Vec::as_slice).unwrap_or_default()));
        Ok(text)
    }

    /// Gets the JSON at `path`.
    pub async fn read(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, Failure> {
        self.ask(Method::GET, path, query).await
    }

    /// Sends a request for `path` with the admin token. A body that is not JSON counts as `null`.
    pub async fn ask(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<Value, Failure> {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = Request::new(method, url);
        if let Some(token) = &self.token {
            let value = HeaderValue::try_from(format!("Bearer {}", token.expose()));
            let value = value.map_err(|_| {
                Failure::Configuration("server.admin_token: holds what no header can carry".into())
            })?;
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let unreachable = |error: reqwest::Error| {
            let why = if error.is_timeout() { "does not answer" } else { "cannot be reached" };
            Failure::Other(format!(
                "the admin listener at {} {why}: is the replica running there?",
                self.url
            ))
        };
        let answer = self.connections.execute(request).await.map_err(unreachable)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(unreachable)?;
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        match (status.is_success(), body["error"]["message"].as_str()) {
            (true, _) => Ok(body),
            (false, Some(why)) => Err(Failure::Other(why.to_owned())),
            (false, None) => {
                Err(Failure::Other(format!("the admin listener at {} answers {status}", self.url)))
            }
        }
    }
}

const fn effect(command: OperatorCommand) -> &'static str {
    match command {
        OperatorCommand::Disable => {
            "out of use; other keys of its organization serve its sessions, which stay bound to it"
        }
        OperatorCommand::Enable => "in use again, as far as this command goes",
        OperatorCommand::Drain => {
            "takes no sessions; those bound to it move to other keys at their next turn"
        }
        OperatorCommand::Probe => "what was known against it is forgotten",
    }
}

fn parse_address(address: &str) -> Result<Url, String> {
    let text =
        if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
    let url = Url::parse(&text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    // The error does not repeat the address, which may hold a password.
    url.filter(|url| url.username().is_empty() && url.password().is_none())
        .ok_or_else(|| "--admin: is no http:// or https:// address".into())
}

/// The address at which this machine reaches a listener. A listener on all addresses is also
/// reached through loopback.
pub fn reachable(mut listen: SocketAddr) -> SocketAddr {
    match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    listen
}

fn admin_address(listen: SocketAddr) -> Result<Url, String> {
    let listen = reachable(listen);
    match listen.port() {
        0 => Err(
            "server.admin_listen: names no fixed port: give the replica's real address with --admin"
                .into(),
        ),
        _ => Url::parse(&format!("http://{listen}"))
            .map_err(|error| format!("server.admin_listen: {error}")),
    }
}

fn table(keys: &[Value]) -> String {
    let head =
        COLUMNS.iter().map(|(title, _)| (*title).to_owned()).chain(["WHY".to_owned()]).collect();
    let row = |key: &Value| {
        COLUMNS.iter().map(|(_, field)| format_value(&key[*field])).chain([reasons(key)]).collect()
    };
    let rows: Vec<Vec<String>> = std::iter::once(head).chain(keys.iter().map(row)).collect();
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..=COLUMNS.len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}  "));
        cells.collect::<String>().trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

fn reasons(key: &Value) -> String {
    let reason = |one: &Value| {
        let left = one["seconds_left"]
            .as_f64()
            .map(|left| format!(", {left:.0}s left"))
            .unwrap_or_default();
        format!("{} ({}{left})", format_value(&one["reason"]), format_value(&one["scope"]))
    };
    key["conditions"].as_array().into_iter().flatten().map(reason).collect::<Vec<_>>().join(", ")
}

fn format_value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_has_a_line_a_key_and_says_why() {
        let keys = serde_json::json!([
            { "id": "a-1", "organization": "org-a", "project": "", "region": "us", "weight": 1,
              "state": "ready", "conditions": [],
              "in_flight": 12, "upstream": "openai", "fingerprint": "AAAAAAAA" },
            { "id": "a-long-2", "organization": "org-a", "project": "p", "region": "", "weight": 0,
              "state": "disabled", "in_flight": 0,
              "conditions": [{ "reason": "disabled", "scope": "key", "seconds_left": null },
                             { "reason": "exhausted", "scope": "organization",
                               "seconds_left": 599.6 }],
              "upstream": "openai", "fingerprint": "BBBBBBBB" },
        ]);
        let expected = "\
KEY       ORGANIZATION  PROJECT  REGION  WEIGHT  STATE     IN FLIGHT  UPSTREAM  FINGERPRINT  WHY
a-1       org-a                  us      1       ready     12         openai    AAAAAAAA
a-long-2  org-a         p                0       disabled  0          openai    BBBBBBBB     \
          disabled (key), exhausted (organization, 600s left)
";
        assert_eq!(table(keys.as_array().unwrap()), expected);
    }

    #[test]
    fn listener_is_asked_where_it_can_be_reached() {
        let at = |listen: &str| admin_address(listen.parse().unwrap()).map(String::from);
        assert_eq!(at("0.0.0.0:9090").as_deref(), Ok("http://127.0.0.1:9090/"));
        assert_eq!(at("[::]:9090").as_deref(), Ok("http://[::1]:9090/"));
        assert_eq!(at("10.0.0.1:9").as_deref(), Ok("http://10.0.0.1:9/"));
        assert!(at("127.0.0.1:0").is_err());
        let parsed = parse_address("host:9090").map(String::from);
        assert_eq!(parsed.as_deref(), Ok("http://host:9090/"));
        assert_eq!(
            parse_address("https://host/warmkey").map(String::from).as_deref(),
            Ok("https://host/warmkey")
        );
        for wrong in ["", "ftp://host", "http://user:canary@host", "http://"] {
            assert!(parse_address(wrong).is_err_and(|why| !why.contains("canary")), "{wrong}");
        }
    }
}
