//! The configured keys of this replica, found by their place and by their tag.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use sha2::{Digest, Sha256};

use crate::key::host::UpstreamHost;
use crate::key::leak::Leak;
use crate::key::resolve::Resolver;
use crate::key::{
    Http2, Key, KeySettings, Protocol, Tag, Upstream, UpstreamSettings, Wiring, address,
};
use crate::process::Descriptors;

/// All keys, in the order of the configuration.
#[derive(Clone)]
pub struct Table {
    keys: Vec<Arc<Key>>,
    by_tag: HashMap<Tag, Arc<Key>>,
}

impl Table {
    /// Builds all keys. An error names the option and never holds a secret.
    pub fn new(upstreams: &[UpstreamSettings], settings: &[KeySettings]) -> Result<Self, String> {
        let mut known = HashMap::new();
        for upstream in upstreams {
            let prepared =
                prepare(upstream).map_err(|why| format!("upstream {}: {why}", upstream.name))?;
            if known.insert(upstream.name.as_str(), prepared).is_some() {
                return Err(format!("upstream: two are named {}", upstream.name));
            }
        }
        let pools = settings.iter().filter_map(|key| known.get(key.upstream.as_str()));
        let pools = pools.map(|upstream| pools_of(upstream.wiring.http2)).sum();
        let idle = idle_connections(Descriptors::of_process().idle, pools);
        let mut keys: Vec<Arc<Key>> = Vec::new();
        for key in settings {
            let upstream = known
                .get(key.upstream.as_str())
                .ok_or_else(|| format!("key {}: there is no upstream {}", key.id, key.upstream))?;
            let is_elsewhere = |other: &KeySettings| {
                let host = known.get(other.upstream.as_str());
                other.organization == key.organization
                    && host.is_some_and(|other| !other.host.is_same_place(&upstream.host))
            };
            let is_scattered = settings.iter().any(is_elsewhere);
            let key = build(key, Arc::clone(upstream), is_scattered, idle)
                .map_err(|why| format!("key {}: {why}", key.id))?;
            if keys.iter().any(|other| other.tag == key.tag) {
                return Err(format!("key: two have the id {}", key.id));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err("key: there is none: add at least one [[key]]".into());
        }
        Ok(Self::of(keys))
    }

    fn of(keys: Vec<Arc<Key>>) -> Self {
        let by_tag = keys.iter().map(|key| (key.tag, Arc::clone(key))).collect();
        Self { keys, by_tag }
    }

    /// The same keys, but with the objects of `before` for unchanged keys: these go on with their
    /// connections.
    pub fn keeping(self, before: &Self) -> Self {
        let keep = |key: Arc<Key>| match before.by_tag(key.tag) {
            Some(old) if !old.is_shown_like(&key) => key,
            Some(old) if old.is_placed_like(&key) && old.weight == key.weight => Arc::clone(old),
            Some(old) => Arc::new(Key {
                connections: old.connections.clone(),
                upgrades: old.upgrades.clone(),
                ..Key::clone(&key)
            }),
            None => key,
        };
        Self::of(self.keys.into_iter().map(keep).collect())
    }

    /// Whether both tables hold the same key objects, in any order.
    pub fn is_same(&self, other: &Self) -> bool {
        let is_there =
            |key: &Arc<Key>| other.by_tag(key.tag).is_some_and(|own| Arc::ptr_eq(own, key));
        self.keys.len() == other.keys.len() && self.keys.iter().all(is_there)
    }

    /// The same places and weights, so that every session finds the same order of keys, with the
    /// secrets and upstreams of `now`. A key that `now` lacks keeps its place, and must not be
    /// used.
    pub fn renewed(&self, now: &Self) -> Self {
        let renew = |key: &Arc<Key>| match now.by_tag(key.tag) {
            Some(new) if new.organization_tag == key.organization_tag => {
                Arc::new(Key { weight: key.weight, ..Key::clone(new) })
            }
            _ => Arc::clone(key),
        };
        Self::of(self.keys.iter().map(renew).collect())
    }

    pub fn keys(&self) -> &[Arc<Key>] {
        &self.keys
    }

    pub fn by_tag(&self, tag: Tag) -> Option<&Arc<Key>> {
        self.by_tag.get(&tag)
    }

    /// A fingerprint of keys and their places. Order, weights and secrets do not matter.
    pub fn fingerprint(&self) -> String {
        let mut places: Vec<_> = self
            .keys
            .iter()
            .map(|key| {
                let place = key.upstream.host.organization_name(&key.organization);
                [key.id.clone(), place, key.project.clone(), key.region.clone()]
            })
            .collect();
        places.sort_unstable();
        let mut digest = Sha256::new();
        for part in places.iter().flatten() {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        Tag::of("fingerprint", &digest.finalize()).to_string()
    }
}

fn prepare(settings: &UpstreamSettings) -> Result<Arc<Upstream>, String> {
    let host = UpstreamHost::new(settings)?;
    let session_header = session_header(&settings.session_header)?;
    let speaks = |protocol| settings.speaks.as_ref().is_none_or(|all| all.contains(&protocol));
    if settings.speaks.as_ref().is_some_and(|speaks| !speaks.contains(&Protocol::Responses)) {
        return Err("speaks: must have \"responses\": no upstream is served without".into());
    }
    for (option, span) in [
        ("connect_timeout", settings.connect_timeout),
        ("first_byte_timeout", settings.first_byte_timeout),
        ("idle_timeout", settings.idle_timeout),
    ] {
        if span.0.is_zero() {
            return Err(format!("{option}: must be longer than nothing"));
        }
    }
    let proxy = settings
        .proxy
        .as_ref()
        .map(|proxy| {
            let proxy = proxy.read()?;
            address::proxy(proxy.expose())?;
            Ok(proxy)
        })
        .transpose()
        .map_err(|why: String| format!("proxy: {why}"))?;
    let has_tls = host.scheme() == "https";
    let is_tls = has_tls
        || proxy
            .as_ref()
            .is_some_and(|proxy| proxy.expose().to_ascii_lowercase().starts_with("https:"));
    if settings.ca_file.is_some() && !is_tls {
        return Err("ca_file: is for https:// addresses only".into());
    }
    let authorities = settings.ca_file.as_ref().map(|path| {
        let pem = std::fs::read(path).map_err(|error| format!("ca_file {path}: {error}"))?;
        match reqwest::Certificate::from_pem_bundle(&pem) {
            Ok(found) if !found.is_empty() => Ok(pem),
            _ => Err(format!("ca_file {path} holds no PEM certificates")),
        }
    });
    Ok(Arc::new(Upstream {
        name: settings.name.clone(),
        host,
        first_byte_timeout: settings.first_byte_timeout.0,
        idle_timeout: settings.idle_timeout.0,
        speaks_websocket: speaks(Protocol::Websocket),
        speaks_chat: speaks(Protocol::Chat),
        derives_cache_key: settings.cache_key,
        session_header,
        wiring: Wiring {
            connect_timeout: settings.connect_timeout.0,
            http2: match (settings.http2, has_tls) {
                (false, _) => Http2::Never,
                (true, true) => Http2::Offered,
                // Without TLS, there is no way to offer HTTP/2 and HTTP/1.1 at once.
                (true, false) => Http2::Always,
            },
            proxy,
            authorities: authorities.transpose()?,
            resolver: Resolver::new(settings.connect_timeout.0),
        },
    }))
}

/// Headers that no option may name: they frame the message, or say who asks.
const RESERVED: [&str; 29] = [
    "accept",
    "accept-encoding",
    "api-key",
    "authorization",
    "chatgpt-account-id",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "http2-settings",
    "keep-alive",
    "ocp-apim-subscription-key",
    "openai-organization",
    "openai-project",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "via",
    "x-api-key",
    "x-codex-turn-state",
    "x-goog-api-key",
    "yai-sticky-session",
];
const RESERVED_PREFIXES: [&str; 3] = ["sec-websocket-", "x-forwarded-", "x-warmkey-"];

fn session_header(name: &str) -> Result<Option<HeaderName>, String> {
    if name.is_empty() {
        return Ok(None);
    }
    let header =
        HeaderName::try_from(name).map_err(|_| "session_header: is no name of a header")?;
    // Some servers read `_` as `-`.
    let read = header.as_str().replace('_', "-");
    let is_reserved = RESERVED.contains(&&*read)
        || RESERVED_PREFIXES.iter().any(|prefix| read.starts_with(prefix));
    match is_reserved {
        true => Err(format!("session_header: {header} frames the request or says who asks")),
        false => Ok(Some(header)),
    }
}

/// `is_scattered`: keys of the same organization are at another host, too. The tag of an
/// organization at one host comes from its name alone, as in versions that knew no hosts: its
/// sessions survive an upgrade.
fn build(
    settings: &KeySettings,
    upstream: Arc<Upstream>,
    is_scattered: bool,
    idle: usize,
) -> Result<Arc<Key>, String> {
    for (option, name) in [("id", &settings.id), ("organization", &settings.organization)] {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{option} is not visible ASCII"));
        }
    }
    let secret = settings.secret.read_shown().map_err(|why| format!("secret: {why}"))?;
    let project = settings.project.clone().unwrap_or_default();
    let place = match is_scattered {
        true => upstream.host.organization_name(&settings.organization),
        false => settings.organization.clone(),
    };
    let pool = connections(&upstream.wiring, upstream.wiring.http2, idle)?;
    let upgrades = match upstream.wiring.http2 {
        Http2::Never => pool.clone(),
        Http2::Offered | Http2::Always => connections(&upstream.wiring, Http2::Never, idle)?,
    };
    Ok(Arc::new(Key {
        id: settings.id.clone(),
        tag: Tag::of("key", settings.id.as_bytes()),
        organization: settings.organization.clone(),
        organization_tag: Tag::of("organization", place.as_bytes()),
        project_tag: Tag::of("project", format!("{place}\0{project}").as_bytes()),
        project,
        region: settings.region.clone().unwrap_or_default(),
        weight: settings.weight,
        shown_tag: Tag::of("shown", format!("{}\0{}", settings.id, secret.expose()).as_bytes()),
        leak: Leak::of(&secret),
        secret,
        connections: pool,
        upgrades,
        upstream,
    }))
}

/// Maximum number of idle connections of a pool: its turns in flight at a busy time.
const MAX_IDLE: usize = 4096;
/// Idle connections that every pool may keep, however many pools there are.
const MIN_IDLE: usize = 8;
/// Maximum idle time of a connection to an upstream. Servers and balancers close idle connections
/// after 60 s or more, and a request that meets a closing connection is lost.
pub const LONGEST_IDLE: Duration = Duration::from_secs(55);

/// The number of pools that a key has.
const fn pools_of(http2: Http2) -> usize {
    match http2 {
        Http2::Never => 1,
        Http2::Offered | Http2::Always => 2,
    }
}

/// The idle connections of each of `pools`, so that all together stay within what the process keeps
/// for idle ones.
fn idle_connections(kept: usize, pools: usize) -> usize {
    (kept / pools.max(1)).clamp(MIN_IDLE, MAX_IDLE)
}

/// A pool of connections. They follow no redirect and decode nothing, and add only `accept: */*` if
/// the client sent no `accept`.
fn connections(wiring: &Wiring, http2: Http2, idle: usize) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(wiring.connect_timeout)
        .dns_resolver(wiring.resolver.clone())
        .tcp_nodelay(true)
        .pool_max_idle_per_host(idle)
        .pool_idle_timeout(LONGEST_IDLE)
        .no_proxy();
    builder = match http2 {
        Http2::Never => builder.http1_only(),
        Http2::Offered => builder,
        Http2::Always => builder.http2_prior_knowledge(),
    };
    if let Some(address) = &wiring.proxy {
        // The address may hold a password, so the error does not repeat it.
        builder = builder
            .proxy(reqwest::Proxy::all(address.expose()).map_err(|_| "proxy: is no address")?);
    }
    if let Some(pem) = &wiring.authorities {
        let authorities = reqwest::Certificate::from_pem_bundle(pem)
            .map_err(|_| "ca_file: holds no PEM certificates")?;
        builder = builder.tls_certs_merge(authorities);
    }
    // The library's own words would name its types.
    builder.build().map_err(|error| match wiring.authorities {
        Some(_) => "ca_file: holds a certificate that cannot be read".to_owned(),
        None => {
            // For example, the system has no certificates of authorities.
            let source = std::error::Error::source(&error);
            let source = source.map_or_else(String::new, |source| format!(": {source}"));
            format!("no connections can be made with these options{source}")
        }
    })
}

#[cfg(test)]
impl Table {
    /// The keys of `sketch`: each `id organization weight secret`, separated by commas.
    pub fn sketch(sketch: &str) -> Self {
        let upstream: UpstreamSettings =
            serde_json::from_str(r#"{"name":"u","base_url":"http://127.0.0.1:1"}"#).unwrap();
        let key = |words: &str| {
            let words: Vec<_> = words.split_whitespace().collect();
            let [id, organization, weight, secret] = words[..] else { panic!("{words:?}") };
            serde_json::from_value(serde_json::json!({
                "id": id,
                "upstream": "u",
                "organization": organization,
                "weight": weight.parse::<u32>().unwrap(),
                "secret": secret,
            }))
            .unwrap()
        };
        Self::new(&[upstream], &sketch.split(',').map(key).collect::<Vec<_>>()).unwrap()
    }
}

#[cfg(test)]
mod tests;
