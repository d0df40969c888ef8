//! Serves the models that a client may ask for, from one key of each project that the client may
//! use.
//!
//! A client that sends `client_version` is Codex. Its list states more about each model, and has a
//! version.

use std::sync::Arc;

use axum::body::Body;
use futures_util::future::join_all;
use http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use http::{HeaderValue, Request, Response, StatusCode};
use sha2::{Digest, Sha256};

use crate::client::Client;
use crate::error::{Error, ErrorKind};
use crate::health::conditions::Fitness;
use crate::key::Key;
use crate::metrics::Transport;
use crate::turn::Gateway;
use crate::turn::account::Account;
use crate::turn::http::exchange::catch_panic;
use crate::turn::http::relay::Outgoing;
use crate::upstream::models::{Listed, ModelLists};
use crate::wire::models::ListForm;

/// Maximum number of projects whose lists are asked for.
const MOST_PROJECTS: usize = 32;
const VERSION: &str = "client_version=";

/// The lists of models.
pub struct ModelRoutes {
    pub gateway: Arc<Gateway>,
    pub lists: ModelLists,
}

/// Serves the whole list, or the model `id`.
pub async fn serve(
    models: Arc<ModelRoutes>,
    id: Option<String>,
    request: Request<Body>,
) -> Response<Outgoing> {
    let books = Arc::clone(&models.gateway.books);
    let account = Account::open(books, Transport::Http, request.headers());
    catch_panic(account.id, answer(&models, account, id, request)).await
}

async fn answer(
    models: &ModelRoutes,
    mut account: Account,
    id: Option<String>,
    request: Request<Body>,
) -> Response<Outgoing> {
    let (head, _) = request.into_parts();
    let answered = async {
        let (client, _) = models.gateway.entry.enter(&mut account, &head)?;
        match id {
            Some(id) => models.serve_model(&client, &id).await,
            None => {
                let seen = head.headers.get(IF_NONE_MATCH);
                models.all(&client, version(head.uri.query()), seen).await
            }
        }
    };
    match answered.await {
        Ok(response) => {
            // The request was no turn, so it gets no record.
            let _ = account.close_handshake();
            response
        }
        Err(error) => {
            account.note_error(&error);
            error.to_response()
        }
    }
}

/// Returns the query with which Codex asks, if the client is Codex. Other parameters do not reach
/// the upstream.
fn version(query: Option<&str>) -> &str {
    let is_version = |pair: &&str| {
        pair.strip_prefix(VERSION).is_some_and(|version| {
            (1..=32).contains(&version.len())
                && version
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b".-+".contains(&byte))
        })
    };
    query.unwrap_or_default().split('&').find(is_version).unwrap_or_default()
}

impl ModelRoutes {
    async fn all(
        &self,
        client: &Client,
        query: &str,
        seen: Option<&HeaderValue>,
    ) -> Result<Response<Outgoing>, Error> {
        let listed = self.list(client, query).await?;
        let etag = etag_for(client, &listed);
        if let Some(etag) = etag.as_ref().filter(|etag| seen == Some(*etag)) {
            let mut response = Response::new(Outgoing::from(String::new()));
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            response.headers_mut().insert(ETAG, etag.clone());
            return Ok(response);
        }
        let body = listed.list.body(|name| client.may_ask_for(Some(name)));
        Ok(json(body, etag))
    }

    async fn serve_model(&self, client: &Client, id: &str) -> Result<Response<Outgoing>, Error> {
        let listed = self.list(client, "").await?;
        let is_it = |(name, _): &&(String, String)| name == id && client.may_ask_for(Some(name));
        match listed.list.entries.iter().find(is_it) {
            Some((_, model)) => Ok(json(model.clone(), None)),
            None => Err(Error::new(
                ErrorKind::ModelNotFound,
                format!("The model '{id}' does not exist"),
            )),
        }
    }

    /// Returns the merged list of all keys that `client` may use. Codex's list comes from one
    /// upstream, because a version belongs to one upstream's list.
    async fn list(&self, client: &Client, query: &str) -> Result<Listed, Error> {
        let keys = self.choose_keys(client);
        let found = join_all(keys.iter().map(|key| self.lists.of(key, query))).await;
        let found: Vec<_> = found.into_iter().flatten().collect();
        let of_codex = found.iter().find(|listed| listed.list.form == ListForm::Codex);
        if let Some(listed) = of_codex {
            return Ok(Listed::clone(listed));
        }
        let mut found = found.into_iter();
        let Some(first) = found.next() else {
            let message = "The models could not be listed: no upstream answered.";
            return Err(Error::new(ErrorKind::UpstreamUnreachable, message));
        };
        let mut merged = Listed::clone(&first);
        for other in found {
            merged.list.merge(&other.list);
            merged.etag = None;
        }
        Ok(merged)
    }

    /// Returns a key of each project that `client` may use: a ready key, if the project has one.
    fn choose_keys(&self, client: &Client) -> Vec<Arc<Key>> {
        let registry = &self.gateway.registry;
        let loaded = registry.loaded();
        let mut sources: Vec<Arc<Key>> = Vec::new();
        for key in loaded.table.keys() {
            if !client.may_use_organization(&key.organization) {
                continue;
            }
            let is_ready = |key: &Key| registry.fitness(key, "") == Fitness::Ready;
            match sources.iter().position(|own| own.project_tag == key.project_tag) {
                Some(at) if !is_ready(&sources[at]) && is_ready(key) => {
                    sources[at] = Arc::clone(key);
                }
                Some(_) => {}
                None if sources.len() < MOST_PROJECTS => sources.push(Arc::clone(key)),
                None => {}
            }
        }
        sources
    }
}

/// The version of the list as `client` gets it. A part of the list has a version of its own, which
/// changes with the upstream's version and with the names in the part.
fn etag_for(client: &Client, listed: &Listed) -> Option<HeaderValue> {
    let etag = listed.etag.as_ref()?;
    if !client.has_models() {
        return Some(etag.clone());
    }
    let mut digest = Sha256::new();
    for (name, _) in &listed.list.entries {
        if client.may_ask_for(Some(name)) {
            digest.update((name.len() as u64).to_be_bytes());
            digest.update(name);
        }
    }
    let digest: String =
        digest.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    let text = etag.to_str().ok()?;
    let own = match text.strip_suffix('"') {
        Some(inside) => format!("{inside}-{digest}\""),
        None => format!("{text}-{digest}"),
    };
    HeaderValue::try_from(own).ok()
}

fn json(body: String, etag: Option<HeaderValue>) -> Response<Outgoing> {
    let mut response = Response::new(Outgoing::from(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(etag) = etag {
        headers.insert(ETAG, etag);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_of_codex_alone_reaches_an_upstream() {
        for (query, expected) in [
            (Some("client_version=0.171.0"), "client_version=0.171.0"),
            (Some("a=b&client_version=1.2.3-beta+x&c"), "client_version=1.2.3-beta+x"),
            (Some("client_version="), ""),
            (Some("client_version=%26"), ""),
            (Some("xclient_version=1"), ""),
            (None, ""),
        ] {
            assert_eq!(version(query), expected, "{query:?}");
        }
    }

    #[test]
    fn part_of_a_list_has_a_version_that_changes_with_it() {
        let client = |models: &[&str]| Client::of_models("alice", models);
        let listed = |etag: &'static str| {
            let body = br#"{"models":[{"slug":"a"},{"slug":"b"}]}"#;
            let list = crate::wire::models::ModelList::parse(body).expect("a list");
            Listed { list, etag: Some(HeaderValue::from_static(etag)) }
        };
        let etag = |models: &[&str], upstreams: &'static str| {
            let etag = etag_for(&client(models), &listed(upstreams)).expect("a version");
            etag.to_str().unwrap().to_owned()
        };
        assert_eq!(etag(&[], "W/\"1\""), "W/\"1\"");
        let own = etag(&["a"], "W/\"1\"");
        assert!(own.starts_with("W/\"1-") && own.ends_with('"'), "{own}");
        assert_eq!(etag(&["a", "unknown"], "W/\"1\""), own, "the same part");
        assert_eq!(etag(&["b", "a"], "\"1\""), etag(&["a", "b"], "\"1\""));
        for other in
            [etag(&["b"], "W/\"1\""), etag(&["a", "b"], "W/\"1\""), etag(&["a"], "W/\"2\"")]
        {
            assert_ne!(other, own);
        }
        let without = Listed { etag: None, ..listed("") };
        assert_eq!(etag_for(&client(&["a"]), &without), None);
    }
}
