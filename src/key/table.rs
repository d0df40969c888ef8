//! The configured keys of this replica, found by their place and by their tag.

use std::collections::HashMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::{Key, Settings, Tag, Upstream, UpstreamSettings};

/// All keys, in the order of the configuration.
pub struct Table {
    keys: Vec<Arc<Key>>,
    by_tag: HashMap<Tag, Arc<Key>>,
}

impl Table {
    /// The error names the option and never holds a secret.
    pub fn new(upstreams: &[UpstreamSettings], settings: &[Settings]) -> Result<Self, String> {
        let mut known = HashMap::new();
        for upstream in upstreams {
            let prepared = prepare(upstream).map_err(|why| format!("upstream {}: {why}", upstream.name))?;
            if known.insert(upstream.name.as_str(), (prepared, upstream)).is_some() {
                return Err(format!("upstream: two are named {}", upstream.name));
            }
        }
        let mut table = Self { keys: Vec::new(), by_tag: HashMap::new() };
        for key in settings {
            let (upstream, described) = known
                .get(key.upstream.as_str())
                .ok_or_else(|| format!("key {}: there is no upstream {}", key.id, key.upstream))?;
            let key = build(key, Arc::clone(upstream), described).map_err(|why| format!("key {}: {why}", key.id))?;
            if let Some(other) = table.by_tag.insert(key.tag, Arc::clone(&key)) {
                return Err(format!("key: two have the id {}", other.id));
            }
            table.keys.push(key);
        }
        if table.keys.is_empty() {
            return Err("key: there is none: add at least one [[key]]".into());
        }
        Ok(table)
    }

    pub fn keys(&self) -> &[Arc<Key>] {
        &self.keys
    }

    pub fn by_tag(&self, tag: Tag) -> Option<&Arc<Key>> {
        self.by_tag.get(&tag)
    }

    /// The same for equal sets of keys in equal places, whatever their order, weights and secrets.
    pub fn fingerprint(&self) -> String {
        let mut places: Vec<_> =
            self.keys.iter().map(|key| [&key.id, &key.organization, &key.project, &key.region].map(String::as_str)).collect();
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
    let responses = reqwest::Url::parse(&format!("{}/responses", settings.base_url.trim_end_matches('/')))
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
        .ok_or_else(|| format!("base_url {} is no http:// or https:// address", settings.base_url))?;
    for (option, span) in [
        ("connect_timeout", settings.connect_timeout),
        ("first_byte_timeout", settings.first_byte_timeout),
        ("idle_timeout", settings.idle_timeout),
    ] {
        if span.0.is_zero() {
            return Err(format!("{option}: must be longer than nothing"));
        }
    }
    Ok(Arc::new(Upstream {
        name: settings.name.clone(),
        responses,
        first_byte_timeout: settings.first_byte_timeout.0,
        idle_timeout: settings.idle_timeout.0,
    }))
}

fn build(settings: &Settings, upstream: Arc<Upstream>, described: &UpstreamSettings) -> Result<Arc<Key>, String> {
    for (option, name) in [("id", &settings.id), ("organization", &settings.organization)] {
        if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(format!("{option} is not visible ASCII"));
        }
    }
    let secret = settings.secret.read().map_err(|why| format!("secret: {why}"))?;
    if http::HeaderValue::from_str(secret.expose()).is_err() {
        return Err("secret: holds what no header can carry".into());
    }
    Ok(Arc::new(Key {
        id: settings.id.clone(),
        tag: Tag::of("key", settings.id.as_bytes()),
        organization: settings.organization.clone(),
        organization_tag: Tag::of("organization", settings.organization.as_bytes()),
        project: settings.project.clone().unwrap_or_default(),
        region: settings.region.clone().unwrap_or_default(),
        weight: settings.weight,
        secret,
        upstream,
        connections: connections(described)?,
    }))
}

/// Idle connections kept a key: as many as its turns in flight at a busy time.
const IDLE_CONNECTIONS: usize = 4096;

/// A pool of connections that adds, follows and decodes nothing.
fn connections(settings: &UpstreamSettings) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .connect_timeout(settings.connect_timeout.0)
        .tcp_nodelay(true)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .no_proxy();
    if !settings.http2 {
        builder = builder.http1_only();
    }
    if let Some(proxy) = &settings.proxy {
        // The address may hold a password: it is not repeated.
        builder = builder.proxy(reqwest::Proxy::all(proxy).map_err(|_| "proxy is no address".to_owned())?);
    }
    if let Some(path) = &settings.ca_file {
        let pem = std::fs::read(path).map_err(|error| format!("ca_file {path}: {error}"))?;
        let authorities =
            reqwest::Certificate::from_pem_bundle(&pem).map_err(|_| format!("ca_file {path} holds no PEM certificates"))?;
        builder = builder.tls_certs_merge(authorities);
    }
    builder.build().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setting::{Secret, SecretSource};

    fn table(ids: &[&str]) -> Result<Table, String> {
        let upstream: UpstreamSettings =
            serde_json::from_str(r#"{"name":"openai","base_url":"https://api.openai.com/v1/"}"#).unwrap();
        let keys: Vec<_> = ids
            .iter()
            .map(|id| Settings {
                id: (*id).into(),
                upstream: "openai".into(),
                organization: "org-a".into(),
                project: None,
                region: None,
                weight: 1,
                secret: SecretSource::Text(Secret::new("sk-1")),
            })
            .collect();
        Table::new(&[upstream], &keys)
    }

    #[test]
    fn a_set_of_keys_has_one_fingerprint_whatever_its_order() {
        let print = |ids: &[&str]| table(ids).unwrap().fingerprint();
        assert_eq!(print(&["a", "b"]), print(&["b", "a"]));
        assert_ne!(print(&["a", "b"]), print(&["a"]));
        assert_ne!(print(&["a", "b"]), print(&["ab"]));
    }

    #[test]
    fn turns_go_to_responses_below_the_base() {
        assert_eq!(table(&["a"]).unwrap().keys()[0].upstream.responses.as_str(), "https://api.openai.com/v1/responses");
    }

    #[test]
    fn no_key_and_two_of_one_id_are_refused() {
        assert!(table(&[]).is_err());
        assert!(table(&["a", "a"]).is_err_and(|why| why.contains("two have the id a")));
    }
}
