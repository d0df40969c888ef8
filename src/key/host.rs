//! Hosts of OpenAI's API: their addresses, and how they differ in credential header, query and
//! names of models.

use std::collections::BTreeMap;

use reqwest::Url;
use serde::Deserialize;

use crate::key::{UpstreamSettings, address};
use crate::setting;
use crate::wire::endpoint::Endpoint;
use crate::wire::query::name_of;

/// The kind of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamKind {
    #[default]
    OpenAi,
    /// Another Warmkey. It learns each turn's session from this one, which is its edge.
    Gateway,
}

impl<'de> Deserialize<'de> for UpstreamKind {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        setting::word(deserializer, &[("openai", Self::OpenAi), ("gateway", Self::Gateway)])
    }
}

/// The header in which a key is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Credential {
    /// `authorization: Bearer KEY`.
    #[default]
    Bearer,
    /// `api-key: KEY`, as Azure's hosts want it.
    ApiKey,
}

impl<'de> Deserialize<'de> for Credential {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        setting::word(deserializer, &[("bearer", Self::Bearer), ("api-key", Self::ApiKey)])
    }
}

/// The address of an upstream, and what sets its API apart from OpenAI's own.
#[derive(Debug, PartialEq)]
pub struct UpstreamHost {
    pub kind: UpstreamKind,
    pub credential: Credential,
    /// `base_url` without a last slash.
    base: String,
    responses: Url,
    chat: Url,
    models: Url,
    query: String,
    names: BTreeMap<String, String>,
}

impl UpstreamHost {
    /// No error repeats the address, because the address may hold a password or key.
    pub fn new(settings: &UpstreamSettings) -> Result<Self, String> {
        let base =
            address::base_url(&settings.base_url).map_err(|why| format!("base_url: {why}"))?;
        if !settings.query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err("query: is no query, such as api-version=2026-01-01".into());
        }
        let is_name = |name: &String| !name.is_empty() && name.bytes().all(|byte| byte > b' ');
        if !settings.models.iter().all(|(asked, sent)| is_name(asked) && is_name(sent)) {
            return Err("models: a name of a model is missing".into());
        }
        let below = |path: &str| {
            Url::parse(&format!("{}/{path}", base.as_str().trim_end_matches('/')))
                .map_err(|_| "base_url: is no address that a path can be added to")
        };
        Ok(Self {
            kind: settings.kind,
            credential: settings.credential,
            base: base.as_str().trim_end_matches('/').to_owned(),
            responses: below("responses")?,
            chat: below("chat/completions")?,
            models: below("models")?,
            query: settings.query.trim_start_matches('?').to_owned(),
            names: settings.models.clone(),
        })
    }

    /// Whether the upstream is another Warmkey.
    pub fn is_gateway(&self) -> bool {
        self.kind == UpstreamKind::Gateway
    }

    /// The upstream's name of the model that a client calls `asked`, if it has another one.
    pub fn name_of(&self, asked: &str) -> Option<&str> {
        self.names.get(asked).map(String::as_str)
    }

    /// All names that are mapped, with the upstream's own.
    pub fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        self.names.iter().map(|(asked, sent)| (asked.as_str(), sent.as_str()))
    }

    /// The place of `organization`: its name and its host.
    pub fn organization_name(&self, organization: &str) -> String {
        format!("{organization}\0{}", self.base)
    }

    /// Whether an organization is the same one at both hosts.
    pub fn is_same_place(&self, other: &Self) -> bool {
        self.base == other.base
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &str {
        self.responses.scheme()
    }

    /// The host's name and port.
    pub fn server(&self) -> (&str, Option<u16>) {
        (self.responses.host_str().unwrap_or_default(), self.responses.port_or_known_default())
    }

    /// The URL of an endpoint of turns or responses. `query` is the client's.
    pub fn url(&self, endpoint: Endpoint<'_>, query: Option<&str>) -> Url {
        if endpoint == Endpoint::CreateChatCompletion {
            return self.ask(self.chat.clone(), query);
        }
        let mut url = self.responses.clone();
        let below = endpoint.below();
        if !below.is_empty() {
            url.set_path(&format!("{}{below}", self.responses.path()));
        }
        self.ask(url, query)
    }

    /// The URL of the models that a key may use.
    pub fn models(&self, query: Option<&str>) -> Url {
        self.ask(self.models.clone(), query)
    }

    /// A parameter of the fixed query replaces the client's own of the same name.
    fn ask(&self, mut url: Url, query: Option<&str>) -> Url {
        if self.query.is_empty() {
            url.set_query(query);
            return url;
        }
        let name = |pair: &str| name_of(pair).to_ascii_lowercase();
        let fixed: Vec<String> = self.query.split('&').map(name).collect();
        let own = query.unwrap_or_default().split('&');
        let kept = own.filter(|pair| !pair.is_empty() && !fixed.contains(&name(pair)));
        let all: Vec<&str> = std::iter::once(self.query.as_str()).chain(kept).collect();
        url.set_query(Some(&all.join("&")));
        url
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::endpoint::StoredCall;

    fn host(options: &str) -> Result<UpstreamHost, String> {
        let text = format!(r#"{{"name":"u","base_url":"https://h/openai/v1/"{options}}}"#);
        UpstreamHost::new(&serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn path_lies_below_the_base_and_the_fixed_query_wins() {
        let plain = host("").unwrap();
        let azure = host(r#","query":"api-version=v1&x""#).unwrap();
        let stored = Endpoint::Stored(StoredCall::Cancel, "resp_1");
        for (endpoint, query, of_plain, of_azure) in [
            (Endpoint::CreateResponse, None, "", "?api-version=v1&x"),
            (
                Endpoint::CompactResponse,
                Some("a=b"),
                "/compact?a=b",
                "/compact?api-version=v1&x&a=b",
            ),
            (stored, None, "/resp_1/cancel", "/resp_1/cancel?api-version=v1&x"),
            (
                Endpoint::CreateResponse,
                Some("API-version=v9&stream=true&&X=1"),
                "?API-version=v9&stream=true&&X=1",
                "?api-version=v1&x&stream=true",
            ),
            (
                Endpoint::CreateResponse,
                Some("api%2Dversion=v9&%78=1&b"),
                "?api%2Dversion=v9&%78=1&b",
                "?api-version=v1&x&b",
            ),
        ] {
            let of = |host: &UpstreamHost| host.url(endpoint, query).to_string();
            assert_eq!(of(&plain), format!("https://h/openai/v1/responses{of_plain}"));
            assert_eq!(of(&azure), format!("https://h/openai/v1/responses{of_azure}"));
        }
        assert_eq!(
            azure.url(Endpoint::CreateChatCompletion, Some("a=b")).as_str(),
            "https://h/openai/v1/chat/completions?api-version=v1&x&a=b"
        );
        assert_eq!(azure.models(None).as_str(), "https://h/openai/v1/models?api-version=v1&x");
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        for (options, named) in [
            (r#","query":"a b""#, "query: "),
            (r##","query":"a#b""##, "query: "),
            (r#","models":{"":"x"}"#, "models: "),
            (r#","models":{"x":""}"#, "models: "),
        ] {
            assert!(host(options).unwrap_err().starts_with(named), "{options}");
        }
    }

    #[test]
    fn organization_of_another_host_is_another_one() {
        let one = host("").unwrap();
        let other: UpstreamSettings =
            serde_json::from_str(r#"{"name":"v","base_url":"https://eu.h/openai/v1"}"#).unwrap();
        assert_ne!(
            one.organization_name("org"),
            UpstreamHost::new(&other).unwrap().organization_name("org")
        );
        assert_eq!(
            one.organization_name("org"),
            host(r#","http2":true"#).unwrap().organization_name("org")
        );
    }
}
