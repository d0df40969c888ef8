//! The configured keys of this replica, found by their place and by their tag.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::key::host::UpstreamHost;
use crate::key::leak::Leak;
use crate::key::resolve::Resolver;
use crate::key::{Key, Protocol, Settings, Tag, Upstream, UpstreamSettings, Wiring};

/// All keys, in the order of the configuration.
#[derive(Clone)]
pub struct Table {
    keys: Vec<Arc<Key>>,
    by_tag: HashMap<Tag, Arc<Key>>,
}

impl Table {
    /// Builds all keys. An error names the option and never holds a secret.
    pub fn new(upstreams: &[UpstreamSettings], settings: &[Settings]) -> Result<Self, String> {
        let mut known = HashMap::new();
        for upstream in upstreams {
            let prepared =
                prepare(upstream).map_err(|why| format!("upstream {}: {why}", upstream.name))?;
            if known.insert(upstream.name.as_str(), prepared).is_some() {
                return Err(format!("upstream: two are named {}", upstream.name));
            }
        }
        let mut keys: Vec<Arc<Key>> = Vec::new();
        for key in settings {
            let upstream = known
                .get(key.upstream.as_str())
                .ok_or_else(|| format!("key {}: there is no upstream {}", key.id, key.upstream))?;
            let key =
                build(key, Arc::clone(upstream)).map_err(|why| format!("key {}: {why}", key.id))?;
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
                let place = key.upstream.host.place(&key.organization);
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
        .map(|proxy| proxy.read().map_err(|why| format!("proxy: {why}")))
        .transpose()?;
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
        speaks_websocket: settings
            .speaks
            .as_ref()
            .is_none_or(|speaks| speaks.contains(&Protocol::Websocket)),
        wiring: Wiring {
            connect_timeout: settings.connect_timeout.0,
            http2: settings.http2,
            proxy,
            authorities: authorities.transpose()?,
            resolver: Resolver::new(settings.connect_timeout.0),
        },
    }))
}

fn build(settings: &Settings, upstream: Arc<Upstream>) -> Result<Arc<Key>, String> {
    for (option, name) in [("id", &settings.id), ("organization", &settings.organization)] {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{option} is not visible ASCII"));
        }
    }
    let secret = settings.secret.read_shown().map_err(|why| format!("secret: {why}"))?;
    let project = settings.project.clone().unwrap_or_default();
    let place = upstream.host.place(&settings.organization);
    let pool = connections(&upstream.wiring, upstream.wiring.http2)?;
    let upgrades =
        if upstream.wiring.http2 { connections(&upstream.wiring, false)? } else { pool.clone() };
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

/// Maximum number of idle connections of a key: its turns in flight at a busy time.
const IDLE_CONNECTIONS: usize = 4096;

/// A pool of connections. They follow no redirect and decode nothing, and add only `accept: */*` if
/// the client sent no `accept`.
fn connections(wiring: &Wiring, http2: bool) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(wiring.connect_timeout)
        .dns_resolver(wiring.resolver.clone())
        .tcp_nodelay(true)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .no_proxy();
    if !http2 {
        builder = builder.http1_only();
    }
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
    builder.build().map_err(|error| error.to_string())
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
