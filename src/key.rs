//! Upstreams, and the keys that Warmkey shows them.
//!
//! A key has a place: organization, project, region. The upstream keeps its prompt cache by
//! (organization, region), its sealed content by organization, and stored objects by project.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderName;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::setting::{self, Secret, SecretSource, Span};
use host::{Credential, UpstreamHost, UpstreamKind};
use leak::Leak;
use resolve::Resolver;

pub mod address;
pub mod leak;
pub mod resolve;
pub mod host;
pub mod table;
pub mod generation;

/// One `[[upstream]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamSettings {
    pub name: String,
    pub base_url: String,
    #[serde(default)]
    pub kind: UpstreamKind,
    /// Protocols that the upstream speaks. `None`: all.
    pub speaks: Option<Vec<Protocol>>,
    #[serde(default = "five_seconds")]
    pub connect_timeout: Span,
    #[serde(default = "ten_minutes")]
    pub first_byte_timeout: Span,
    #[serde(default = "five_minutes")]
    pub idle_timeout: Span,
    #[serde(default)]
    pub http2: bool,
    /// Chat bodies without a `prompt_cache_key` get a derived one.
    #[serde(default = "yes")]
    pub cache_key: bool,
    /// The header by which the upstream knows sessions. Empty: none.
    #[serde(default)]
    pub session_header: String,
    /// Address of a proxy; it may hold a password.
    pub proxy: Option<SecretSource>,
    pub ca_file: Option<String>,
    /// The header in which keys are shown.
    #[serde(default)]
    pub credential: Credential,
    /// Fixed query of every request, such as `api-version=...`.
    #[serde(default)]
    pub query: String,
    /// The upstream's own names of models, by the names that clients ask for.
    #[serde(default)]
    pub models: BTreeMap<String, String>,
}

impl UpstreamSettings {
    /// The upstream of a configuration that names none.
    pub fn openai() -> Self {
        Self {
            name: "openai".into(),
            base_url: "https://api.openai.com/v1".into(),
            kind: UpstreamKind::OpenAi,
            speaks: None,
            connect_timeout: five_seconds(),
            first_byte_timeout: ten_minutes(),
            idle_timeout: five_minutes(),
            http2: false,
            cache_key: true,
            session_header: String::new(),
            proxy: None,
            ca_file: None,
            credential: Credential::Bearer,
            query: String::new(),
            models: BTreeMap::new(),
        }
    }
}

const fn yes() -> bool {
    true
}

const fn five_seconds() -> Span {
    Span(Duration::from_secs(5))
}

/// Long reasoning sends nothing for minutes.
const fn ten_minutes() -> Span {
    Span(Duration::from_secs(600))
}

const fn five_minutes() -> Span {
    Span(Duration::from_secs(300))
}

/// A protocol that an upstream can speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Responses,
    Websocket,
    Chat,
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        setting::word(
            deserializer,
            &[("responses", Self::Responses), ("websocket", Self::Websocket), ("chat", Self::Chat)],
        )
    }
}

/// One `[[key]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySettings {
    pub id: String,
    pub upstream: String,
    pub organization: String,
    pub project: Option<String>,
    pub region: Option<String>,
    #[serde(default = "one", deserialize_with = "setting::count")]
    pub weight: u32,
    pub secret: SecretSource,
}

const fn one() -> u32 {
    1
}

/// A service that accepts keys.
#[derive(Debug, PartialEq)]
pub struct Upstream {
    pub name: String,
    /// The upstream's address, and what sets its API apart from OpenAI's own.
    pub host: UpstreamHost,
    pub first_byte_timeout: Duration,
    /// Maximum time between two bytes of an answer.
    pub idle_timeout: Duration,
    /// Whether the upstream accepts WebSockets.
    pub speaks_websocket: bool,
    /// Whether the upstream accepts chat. Otherwise chat turns are translated for it.
    pub speaks_chat: bool,
    /// Chat bodies without a `prompt_cache_key` get a derived one.
    pub derives_cache_key: bool,
    /// The header by which the upstream knows sessions: derived if a client sends none.
    pub session_header: Option<HeaderName>,
    /// How Warmkey connects to the upstream.
    wiring: Wiring,
}

/// Whether connections speak HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Http2 {
    Never,
    /// Beside HTTP/1.1, by ALPN.
    Offered,
    Always,
}

/// Settings of connections, with the contents of the files that they name.
#[derive(Debug, PartialEq)]
struct Wiring {
    connect_timeout: Duration,
    http2: Http2,
    proxy: Option<Secret>,
    /// PEM certificates.
    authorities: Option<Vec<u8>>,
    resolver: Resolver,
}

/// A short name in the store: 48 bits of SHA-256, 8 characters. The size of a binding therefore
/// does not depend on configured names.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag([u8; 8]);

impl Tag {
    pub const LENGTH: usize = 8;

    pub fn of(kind: &str, name: &[u8]) -> Self {
        let digest =
            Sha256::new().chain_update(kind).chain_update([0]).chain_update(name).finalize();
        let mut tag = [0; Self::LENGTH];
        // 6 bytes encode to exactly 8 characters.
        let _ = URL_SAFE_NO_PAD.encode_slice(&digest[..6], &mut tag);
        Self(tag)
    }

    pub fn parse(text: &str) -> Option<Self> {
        text.is_ascii().then(|| text.as_bytes().try_into().ok().map(Self))?
    }
}

#[cfg(test)]
impl Tag {
    /// The organization of this name in the tests' tables, which have one host.
    pub fn of_organization(name: &str) -> Self {
        Self::of("organization", name.as_bytes())
    }

    /// The project of this name of that organization.
    pub fn of_project(organization: &str, name: &str) -> Self {
        Self::of("project", format!("{organization}\0{name}").as_bytes())
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| fmt::Write::write_char(f, char::from(*byte)))
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A key: its place, its secret and its connections.
#[derive(Clone, Debug)]
pub struct Key {
    pub id: String,
    pub tag: Tag,
    pub organization: String,
    /// Tag of the organization at its host: nothing that is sealed or cached crosses a host.
    pub organization_tag: Tag,
    pub project: String,
    /// Tag of the project together with its organization.
    pub project_tag: Tag,
    pub region: String,
    /// Share of new sessions. A key of weight 0 keeps its sessions and takes no new ones.
    pub weight: u32,
    pub secret: Secret,
    /// Finds the secret in answers.
    pub leak: Leak,
    /// Tag of the id and the secret: an observation about one secret says nothing about another.
    pub shown_tag: Tag,
    pub upstream: Arc<Upstream>,
    /// Connections of this key alone: a fault on one key's connection must not cut another key's
    /// streams.
    pub connections: reqwest::Client,
    /// HTTP/1.1 connections for the handshakes of WebSockets.
    pub upgrades: reqwest::Client,
}

impl Key {
    /// Whether the upstream cannot tell the two keys apart: observations and connections of one
    /// serve the other.
    pub fn is_shown_like(&self, other: &Self) -> bool {
        self.secret == other.secret && self.upstream == other.upstream
    }

    fn is_placed_like(&self, other: &Self) -> bool {
        self.organization == other.organization
            && self.project == other.project
            && self.region == other.region
    }

    /// The tag under which the key's limits are known: its project's. The limits of a key without a
    /// configured project are its own, because it may be of any project.
    pub const fn quota_tag(&self) -> Tag {
        if self.project.is_empty() { self.tag } else { self.project_tag }
    }

    /// Whether both keys read the same prompt cache. Each host has its own.
    pub fn shares_cache_with(&self, other: &Key) -> bool {
        self.organization_tag == other.organization_tag && self.region == other.region
    }
}
