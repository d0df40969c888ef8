//! Asks a running replica from outside, for health checks in an image without a shell and for the
//! chart's test pod.
//!
//! [`Probe`] asks the admin listener. [`Session`] is a client: it plays two turns and asks which
//! key served them. Neither prints a secret or what a model said.

use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::BytesMut;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};
use reqwest::{Request, Url};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::rustls;

use crate::client::{self, ClientId};
use crate::config::{Config, Plan, StoreChoice};
use crate::operate::{AdminClient, Failure, reachable};
use crate::session::identify::Identifier;
use crate::setting::Secret;
use crate::telemetry::TurnId;

/// How long a replica may take to answer a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a turn may take: a model may think for minutes.
const TURN_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the first turn waits for a Service that was made a moment ago.
const CONNECT_WAIT: Duration = Duration::from_secs(30);
const CONNECT_PAUSE: Duration = Duration::from_millis(250);
/// Maximum bytes of an answer. An answer of a few words is far shorter.
const LONGEST_ANSWER: usize = 16 << 20;
/// The model of a probe session, if neither the caller nor the client's rights name one.
const MODEL: &str = "gpt-5.4";
const SESSION_ID: &str = "session-id";

/// The questions that a replica answers without a token.
#[derive(Clone, Copy, Debug)]
pub enum Probe {
    Live,
    Ready,
}

impl Probe {
    /// Asks the replica that the configuration in `file` describes, or the one at `admin`.
    pub async fn run(self, file: Option<&Path>, admin: Option<&str>) -> Result<String, Failure> {
        let path = match self {
            Self::Live => "livez",
            Self::Ready => "readyz",
        };
        let replica = AdminClient::find(file, admin)?;
        match timeout(PROBE_TIMEOUT, replica.read(&[path], &[])).await {
            Ok(answer) => answer.map(|_| "ok\n".to_owned()),
            Err(_) => {
                Err(Failure::Other(format!("no answer within {} s", PROBE_TIMEOUT.as_secs())))
            }
        }
    }
}

/// A session of two turns, as the first client of a configuration.
pub struct Session {
    endpoint: Url,
    admin: Option<AdminClient>,
    stored_id: Option<String>,
    model: String,
    headers: HeaderMap,
    connections: reqwest::Client,
}

/// The client that plays the session, with a token that can be shown.
struct Player {
    id: ClientId,
    token: Secret,
    /// The first model that the client may ask for. `None`: it may ask for every model.
    model: Option<String>,
}

/// The part of a `response.completed` event that the probe reads.
#[derive(Deserialize)]
struct Completed {
    response: Response,
}

#[derive(Deserialize)]
struct Response {
    output: Vec<Box<RawValue>>,
}

impl Session {
    /// `url` is what a client has as its `base_url`. The default is the clients' listener of the
    /// configuration.
    pub fn new(
        file: Option<&Path>,
        url: Option<&str>,
        admin: Option<&str>,
        model: Option<&str>,
    ) -> Result<Self, Failure> {
        let plan =
            Config::load(file).and_then(|config| config.plan().map_err(|faults| faults.join("\n")));
        let Plan { fixed, certificate, .. } = plan.map_err(Failure::Configuration)?;
        let player = player(&fixed.config.client).map_err(Failure::Configuration)?;
        let is_shared =
            fixed.config.server.secret.is_some() || matches!(fixed.store, StoreChoice::Redis(_));
        let admin =
            fixed.admin_token.as_ref().map(|_| AdminClient::find(file, admin)).transpose()?;
        let listen = listener(fixed.config.server.listen, certificate.is_some());
        let endpoint = endpoint(url.unwrap_or(&listen)).map_err(Failure::Configuration)?;
        let headers = headers(&player.token)?;
        let identity = Identifier::new(&fixed.secret, None).by_headers(&player.id, &headers);
        let stored_id = identity.session.filter(|_| is_shared).map(|id| id.to_string());
        let mut connections = reqwest::Client::builder();
        if let Some(certificate) = &certificate {
            connections = connections
                .tls_backend_preconfigured(certificate.pinned().map_err(Failure::Configuration)?);
        }
        let connections = connections
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            // Each turn is a connection, and so another choice of the balancer.
            .pool_max_idle_per_host(0)
            .timeout(TURN_TIMEOUT)
            .build()
            .map_err(|error| Failure::Other(error.to_string()))?;
        let model = model.map(str::to_owned).or(player.model).unwrap_or_else(|| MODEL.to_owned());
        Ok(Self { endpoint, admin, stored_id, model, headers, connections })
    }

    /// Plays both turns. Fails unless both are completed, and by one key as far as that can be
    /// asked.
    pub async fn play(&self) -> Result<String, Failure> {
        let mut history = vec![find_output("Answer in one word. Which colour is the sky?")?];
        let opened = self.turn(&history, Instant::now() + CONNECT_WAIT).await?;
        let first = self.key().await?;
        history.extend(opened.response.output);
        history.push(find_output("And grass?")?);
        self.turn(&history, Instant::now()).await?;
        let second = self.key().await?;
        match (first, second) {
            (Some(first), Some(second)) if first == second => Ok(format!("two turns served by key {first}\n")),
            (Some(first), Some(second)) => {
                Err(Failure::Other(format!("the session moved from key {first} to key {second} between two turns")))
            }
            _ => Ok("two turns served; without server.admin_token and server.secret nobody can say by which key\n".into()),
        }
    }

    /// One turn with the whole history. A connection that is refused is tried again until `until`.
    async fn turn(&self, history: &[Box<RawValue>], until: Instant) -> Result<Completed, Failure> {
        let body = serde_json::json!({
            "model": self.model, "stream": true, "store": false, "include": ["reasoning.encrypted_content"],
        });
        let mut body = body.to_string();
        body.pop();
        let items: Vec<&str> = history.iter().map(|item| item.get()).collect();
        body.push_str(&format!(",\"input\":[{}]}}", items.join(",")));
        loop {
            let mut request = Request::new(Method::POST, self.endpoint.clone());
            *request.headers_mut() = self.headers.clone();
            *request.body_mut() = Some(body.clone().into());
            match self.connections.execute(request).await {
                Err(error)
                    if Obstacle::of(&error) == Obstacle::Unreachable && Instant::now() < until =>
                {
                    sleep(CONNECT_PAUSE).await
                }
                Err(error) => return Err(self.failed(&error)),
                Ok(answer) => return self.completed(answer).await,
            }
        }
    }

    async fn completed(&self, mut answer: reqwest::Response) -> Result<Completed, Failure> {
        let status = answer.status();
        let mut text = BytesMut::new();
        while let Some(part) = answer.chunk().await.map_err(|error| self.failed(&error))? {
            text.extend_from_slice(&part);
            if text.len() > LONGEST_ANSWER {
                return Err(Failure::Other("the answer does not end".into()));
            }
        }
        if !status.is_success() {
            let error: Value = serde_json::from_slice(&text).unwrap_or_default();
            let why = error["error"]["message"].as_str().unwrap_or("no reason given");
            return Err(Failure::Other(format!("a turn was answered {status}: {why}")));
        }
        last_word(&text)
            .ok_or_else(|| Failure::Other("an answer ended without response.completed".into()))
    }

    /// The key that the session is bound to. `None`: the probe has no admin listener to ask, or no
    /// stored id.
    async fn key(&self) -> Result<Option<String>, Failure> {
        let (Some(admin), Some(id)) = (&self.admin, &self.stored_id) else { return Ok(None) };
        let view = admin.read(&["sessions", id], &[]).await?;
        // A turn that another key has served leaves a mark, even if the session has come back.
        let elsewhere =
            |mark: &&Value| mark["to"].is_string() && mark["to"] != view["binding"]["key"];
        if let Some(mark) = view["trail"].as_array().into_iter().flatten().find(elsewhere) {
            return Err(Failure::Other(format!(
                "the session was served by another key, too: {mark}"
            )));
        }
        match view["binding"]["key"].as_str() {
            Some(key) => Ok(Some(key.to_owned())),
            None => Err(Failure::Other("the session that was served is bound to no key".into())),
        }
    }

    fn failed(&self, error: &reqwest::Error) -> Failure {
        let why = match Obstacle::of(error) {
            Obstacle::Silent => "does not answer in time",
            Obstacle::Unreachable => "cannot be reached",
            Obstacle::Untrusted => "does not speak TLS with the certificate of server.tls",
            Obstacle::Cut => "cut the connection",
        };
        Failure::Other(format!("{} {why}", self.endpoint))
    }
}

/// Why a turn has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Obstacle {
    Silent,
    /// A Service that was made a moment ago is refused, or has no name yet.
    Unreachable,
    Untrusted,
    Cut,
}

impl Obstacle {
    fn of(error: &reqwest::Error) -> Self {
        match (error.is_timeout(), error.is_connect()) {
            (true, _) => Self::Silent,
            (false, true) if fails_in_tls(error) => Self::Untrusted,
            (false, true) => Self::Unreachable,
            (false, false) => Self::Cut,
        }
    }
}

/// Whether TLS caused the error, at any depth. An `io::Error` does not show the error that it wraps
/// as its `source`.
fn fails_in_tls(error: &(dyn Error + 'static)) -> bool {
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    error.is::<rustls::Error>()
        || wrapped.is_some_and(|wrapped| fails_in_tls(wrapped))
        || error.source().is_some_and(fails_in_tls)
}

/// The first client whose token can be shown, and not only checked.
fn player(clients: &[client::ClientSettings]) -> Result<Player, String> {
    for one in clients {
        let model = one.models.first().cloned();
        match (&one.id, &one.token, &one.token_file) {
            (Some(id), Some(token), _) => {
                let token =
                    token.read_shown().map_err(|why| format!("client {id}: token: {why}"))?;
                return Ok(Player { id: ClientId::new(id), token, model });
            }
            (_, _, Some(path)) => {
                let cannot =
                    |error| format!("client: token_file: cannot read {}: {error}", path.display());
                let text = std::fs::read_to_string(path).map_err(cannot)?;
                let mut lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
                if let Some((id, token)) =
                    lines.find_map(|line| line.split_once(char::is_whitespace))
                {
                    return Ok(Player {
                        id: ClientId::new(id),
                        token: Secret::new(token.trim()),
                        model,
                    });
                }
            }
            _ => {}
        }
    }
    Err("client: none has a token that can be read: a probe cannot show a token_sha256".into())
}

fn headers(token: &Secret) -> Result<HeaderMap, Failure> {
    let value = |text: String| {
        HeaderValue::try_from(text).map_err(|_| {
            Failure::Configuration("client: its token holds what no header can carry".into())
        })
    };
    let mut headers = HeaderMap::new();
    let mut bearer = value(format!("Bearer {}", token.expose()))?;
    bearer.set_sensitive(true);
    headers.insert(AUTHORIZATION, bearer);
    headers.insert(SESSION_ID, value(format!("probe-{}", TurnId::random()))?);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
    Ok(headers)
}

/// The `base_url` of clients on the replica's own machine.
fn listener(listen: SocketAddr, speaks_tls: bool) -> String {
    format!("{}://{}", if speaks_tls { "https" } else { "http" }, reachable(listen))
}

/// Where a client with this `base_url` sends its turns.
fn endpoint(url: &str) -> Result<Url, String> {
    let mut url = Url::parse(url)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if let Some(Ok(mut segments)) = url.as_mut().map(Url::path_segments_mut) {
        segments.pop_if_empty().push("responses");
    }
    url.ok_or_else(|| "--url: is no http:// or https:// address".into())
}

fn find_output(text: &str) -> Result<Box<RawValue>, Failure> {
    let item = serde_json::json!({ "type": "message", "role": "user", "content": text });
    RawValue::from_string(item.to_string()).map_err(|error| Failure::Other(error.to_string()))
}

/// The event that completes a stream.
fn last_word(stream: &[u8]) -> Option<Completed> {
    let stream = std::str::from_utf8(stream).ok()?;
    let data = stream.lines().rev().filter_map(|line| line.strip_prefix("data:")).map(str::trim);
    let mut words = data.filter(|data| data.contains("\"response.completed\""));
    words.find_map(|data| serde_json::from_str(data).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Vec<client::ClientSettings> {
        Config::parse(text).unwrap().client
    }

    #[test]
    fn player_is_the_first_client_whose_token_can_be_read() {
        let path = std::env::temp_dir().join(format!("warmkey-probe-{}", std::process::id()));
        std::fs::write(&path, "# who may call\n\ncarol  token-carol \ndave token-dave\n").unwrap();
        let hashed = format!("[[client]]\nid = \"alice\"\ntoken_sha256 = \"{}\"\n", "0".repeat(64));
        let file = format!("[[client]]\ntoken_file = {path:?}\nmodels = [\"m\"]\n");
        let bob = "[[client]]\nid = \"bob\"\ntoken = \"token-bob\"\n";
        for (text, expected) in [
            (format!("{hashed}{bob}{file}"), ("bob", "token-bob", None)),
            (format!("{hashed}{file}{bob}"), ("carol", "token-carol", Some("m"))),
        ] {
            let Player { id, token, model } = player(&settings(&text)).unwrap();
            assert_eq!((id.as_str(), token.expose(), model.as_deref()), expected);
        }
        assert!(player(&settings(&hashed)).is_err());
        std::fs::remove_file(&path).unwrap();
        assert!(player(&settings(&file)).is_err_and(|why| why.contains("cannot read")));
    }

    #[test]
    fn endpoint_is_what_codex_makes_of_a_base_url() {
        let at = |url: &str| endpoint(url).map(String::from);
        let any = "0.0.0.0:8080".parse().unwrap();
        assert_eq!(at(&listener(any, false)).as_deref(), Ok("http://127.0.0.1:8080/responses"));
        assert_eq!(at(&listener(any, true)).as_deref(), Ok("https://127.0.0.1:8080/responses"));
        assert_eq!(at("http://warmkey:80").as_deref(), Ok("http://warmkey/responses"));
        assert_eq!(at("https://host/v1/").as_deref(), Ok("https://host/v1/responses"));
        assert!(at("warmkey:8080").is_err());
    }

    #[test]
    fn last_word_completes_a_stream_and_nothing_else_does() {
        let completed = "event: response.completed\ndata: {\"type\":\"response.completed\",\"response\":{\"output\":[{\"a\":1}]}}\n\n";
        let output = |stream: &str| {
            last_word(stream.as_bytes()).map(|word| {
                word.response.output.iter().map(|item| item.get().to_owned()).collect::<Vec<_>>()
            })
        };
        assert_eq!(
            output(&format!("event: x\ndata: {{}}\n\n{completed}")),
            Some(vec!["{\"a\":1}".to_owned()])
        );
        assert_eq!(
            output(
                "event: response.failed\ndata: {\"type\":\"response.failed\",\"response\":{\"output\":[]}}\n\n"
            ),
            None
        );
        assert_eq!(output(""), None);
    }
}
