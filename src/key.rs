//! What an answer can be had with: upstreams, and the keys shown to them.
//!
//! A key has a place: organization, project, region. The upstream keeps its prompt cache by
//! (organization, region), its sealed content by organization, what it stores by project.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::setting::{self, Secret, SecretSource, Span};
use leak::Leak;
use resolve::Resolver;

pub mod leak;
pub mod resolve;
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
    /// What it can be asked: everything, unless it says so.
    pub speaks: Option<Vec<Protocol>>,
    #[serde(default = "five_seconds")]
    pub connect_timeout: Span,
    #[serde(default = "ten_minutes")]
    pub first_byte_timeout: Span,
    #[serde(default = "five_minutes")]
    pub idle_timeout: Span,
    #[serde(default)]
    pub http2: bool,
    /// Its address may hold a password.
    pub proxy: Option<SecretSource>,
    pub ca_file: Option<String>,
}

impl UpstreamSettings {
    /// What is called where the configuration names nothing.
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
            proxy: None,
            ca_file: None,
        }
    }
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

/// What an upstream is. Nothing asks yet, as there is one kind: naming it is allowed because it is
/// true, and any other is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UpstreamKind {
    #[default]
    OpenAi,
}

/// What an upstream can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Responses,
    Websocket,
    Chat,
}

/// One `[[key]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
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

/// The service that keys are shown to.
#[derive(Debug, PartialEq)]
pub struct Upstream {
    pub name: String,
    /// Where turns are sent: `<base_url>/responses`.
    pub responses: reqwest::Url,
    /// What a key may have: `<base_url>/models`.
    pub models: reqwest::Url,
    pub first_byte_timeout: Duration,
    /// Between two bytes of an answer.
    pub idle_timeout: Duration,
    /// Whether it can be asked for a WebSocket.
    pub speaks_websocket: bool,
    /// How it is connected to.
    wiring: Wiring,
}

/// What connections are made with, as it was read from the configuration and the files that it
/// names.
#[derive(Debug, PartialEq)]
struct Wiring {
    connect_timeout: Duration,
    http2: bool,
    proxy: Option<Secret>,
    /// PEM certificates.
    authorities: Option<Vec<u8>>,
    resolver: Resolver,
}

/// A name in the store: 48 bits of SHA-256, 8 characters, so that a binding's size does not depend
/// on how things are called.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag([u8; 8]);

impl Tag {
    pub const LENGTH: usize = 8;

    pub fn of(kind: &str, name: &[u8]) -> Self {
        let digest =
            Sha256::new().chain_update(kind).chain_update([0]).chain_update(name).finalize();
        let mut tag = [0; Self::LENGTH];
        // 6 bytes are exactly 8 characters.
        let _ = URL_SAFE_NO_PAD.encode_slice(&digest[..6], &mut tag);
        Self(tag)
    }

    pub fn parse(text: &str) -> Option<Self> {
        text.as_bytes().try_into().ok().map(Self)
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

/// What an upstream is shown to serve a turn, and where that places the turn.
#[derive(Clone, Debug)]
pub struct Key {
    pub id: String,
    pub tag: Tag,
    pub organization: String,
    pub organization_tag: Tag,
    pub project: String,
    /// Of the project and its organization.
    pub project_tag: Tag,
    pub region: String,
    /// Its share of new sessions. 0: keeps its sessions, takes no new ones.
    pub weight: u32,
    pub secret: Secret,
    /// Tells whether an answer says the secret.
    pub leak: Leak,
    /// Of the id and the secret: what was learned of another secret says nothing of this one.
    pub shown_tag: Tag,
    pub upstream: Arc<Upstream>,
    /// Connections of its own: a fault on one key's connection must not cut another key's streams.
    pub connections: reqwest::Client,
    /// The same, but of HTTP/1.1 alone: what WebSockets are asked for on.
    pub upgrades: reqwest::Client,
}

impl Key {
    /// Whether both are the same to their upstream: what it thinks of one it thinks of the other,
    /// and connections serve both.
    pub fn is_shown_like(&self, other: &Self) -> bool {
        self.secret == other.secret && self.upstream == other.upstream
    }

    fn is_placed_like(&self, other: &Self) -> bool {
        self.organization == other.organization
            && self.project == other.project
            && self.region == other.region
    }

    /// Whether both read one prompt cache.
    pub fn shares_cache_with(&self, other: &Key) -> bool {
        self.organization == other.organization && self.region == other.region
    }
}
