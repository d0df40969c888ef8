//! Caches the lists of models that projects may use. While an upstream is away, its last good list
//! serves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex as Lock, PoisonError};
use std::time::Duration;

use http::header::{ACCEPT, ACCEPT_ENCODING, ETAG};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use crate::key::{Key, Tag};
use crate::outcome::body::AnswerBody;
use crate::upstream::headers::show;
use crate::wire::decoder::Decoder;
use crate::wire::models::ModelList;

/// How long a list counts as new.
const FRESH: Duration = Duration::from_secs(60);
/// Time after a failure in which the upstream is not asked again.
const PAUSE: Duration = Duration::from_secs(5);
/// Maximum time for an upstream to answer: `LONG` without an older list, `SHORT` with one.
const LONG: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_secs(2);
/// Maximum bytes of a list. Codex's list holds instructions for each model.
const MOST_BYTES: usize = 8 * 1024 * 1024;
/// Lists that are kept. Each Codex version may have its own.
const MOST_LISTS: usize = 256;

/// A list, and the version that its upstream gave it.
#[derive(Clone, Debug)]
pub struct Listed {
    pub list: ModelList,
    pub etag: Option<HeaderValue>,
}

/// A cached list, and when the upstream was asked for it.
#[derive(Default)]
struct Known {
    last_good: Option<Arc<Listed>>,
    /// When the upstream was asked last, and whether it gave the list.
    asked: Option<(Instant, bool)>,
}

impl Known {
    /// Whether the upstream need not be asked again yet.
    fn is_recent(&self) -> bool {
        self.asked.is_some_and(|(at, is_good)| at.elapsed() < if is_good { FRESH } else { PAUSE })
    }
}

/// A project, and the query of the request for its list.
type Name = (Tag, String);

/// All lists of this replica.
#[derive(Default)]
pub struct ModelLists(Lock<HashMap<Name, Arc<Mutex<Known>>>>);

impl ModelLists {
    /// Returns the list of `key`'s project, or the last good one while the upstream is away. If
    /// several callers come at once, one of them asks.
    pub async fn of(&self, key: &Key, query: &str) -> Option<Arc<Listed>> {
        let known = self.entry((key.project_tag, query.to_owned()));
        let mut known = known.lock().await;
        if !known.is_recent() {
            let wait = if known.last_good.is_some() { SHORT } else { LONG };
            let found = timeout(wait, ask(key, query)).await.ok().flatten();
            known.asked = Some((Instant::now(), found.is_some()));
            if let Some(found) = found {
                known.last_good = Some(Arc::new(found));
            }
        }
        known.last_good.clone()
    }

    fn entry(&self, name: Name) -> Arc<Mutex<Known>> {
        // A panic leaves no change half made, so a poisoned lock can still be used.
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lists.len() >= MOST_LISTS && !lists.contains_key(&name) {
            lists.clear();
        }
        Arc::clone(lists.entry(name).or_default())
    }
}

/// Returns the request for `key`'s list.
pub fn request(key: &Key, query: Option<&str>) -> reqwest::Request {
    let mut request = reqwest::Request::new(Method::GET, key.upstream.host.models(query));
    let headers = request.headers_mut();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    // Without this header, an upstream may choose any coding (RFC 9110, section 12.5.3).
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    show(headers, key);
    request
}

/// Reads the list in an answer with these `headers`. `None`: the answer has no list, or one that is
/// too long or in a coding that the gateway cannot read.
pub async fn read_list(headers: &HeaderMap, mut rest: AnswerBody) -> Option<ModelList> {
    let mut body = Decoder::new(headers, Vec::new());
    while let Some(part) = rest.chunk().await.ok()? {
        while !body.step(&part) {
            tokio::task::yield_now().await;
        }
        if body.reader()?.len() > MOST_BYTES {
            return None;
        }
    }
    body.end();
    ModelList::parse(body.reader()?)
}

/// Asks `key`'s upstream for the list. `None`: the upstream gave none.
async fn ask(key: &Key, query: &str) -> Option<Listed> {
    let request = request(key, Some(query).filter(|query| !query.is_empty()));
    let mut answer = key.connections.execute(request).await.ok()?;
    let status = answer.status();
    let headers = std::mem::take(answer.headers_mut());
    let list = match status {
        StatusCode::OK => read_list(&headers, answer.into()).await,
        _ => None,
    };
    let Some(list) = list else {
        let status = status.as_u16();
        tracing::warn!(key = %key.id, status, "an upstream did not list its models");
        return None;
    };
    let list = list.with_names(key.upstream.host.names());
    Some(Listed { list, etag: headers.get(ETAG).cloned() })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::key::table::Table;

    /// Returns the one key of an upstream at this address.
    fn key(address: std::net::SocketAddr) -> Arc<Key> {
        let upstream = serde_json::json!({ "name": "u", "base_url": format!("http://{address}") });
        let upstream = serde_json::from_value(upstream).unwrap();
        let key = r#"{"id":"a","upstream":"u","organization":"o","secret":"sk-1"}"#;
        let table = Table::new(&[upstream], &[serde_json::from_str(key).unwrap()]).unwrap();
        Arc::clone(&table.keys()[0])
    }

    /// Answers one request, and then closes the listener.
    async fn answer_once(listener: TcpListener) {
        let (mut stream, _) = listener.accept().await.unwrap();
        drop(listener);
        let mut seen = [0; 4096];
        let _ = stream.read(&mut seen).await.unwrap();
        let body = r#"{"object":"list","data":[{"id":"m"}]}"#;
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    }

    #[tokio::test]
    async fn last_good_list_is_served_while_its_upstream_is_away() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let key = key(listener.local_addr().unwrap());
        let lists = ModelLists::default();
        let (found, ()) = tokio::join!(lists.of(&key, ""), answer_once(listener));
        assert_eq!(found.expect("a list").list.entries[0].0, "m");
        // The upstream is gone, and is not asked while the list is new.
        assert!(lists.of(&key, "").await.is_some() && lists.of(&key, "x").await.is_none());
        let known = lists.entry((key.project_tag, String::new()));
        let old = Instant::now().checked_sub(FRESH).expect("the clock runs for a minute");
        known.lock().await.asked = Some((old, true));
        assert!(lists.of(&key, "").await.is_some(), "the last good one");
        let (at, is_good) = known.lock().await.asked.expect("it was asked");
        assert!(at > old && !is_good, "it was asked, in vain");
        assert!(lists.of(&key, "").await.is_some(), "and is not asked again at once");
        assert_eq!(known.lock().await.asked.expect("it was asked").0, at);
    }
}
