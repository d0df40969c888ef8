//! The whole simulator over a real socket, as a gateway meets it.

mod failing;
mod lanes;
mod limited;
mod probed;
mod scripted;
mod serving;
mod socket;
mod striking;
mod talking;

use std::time::Duration;

use serde_json::{Value, json};

use super::judge::Turn;
use super::*;
use crate::setting::{Secret, SecretSource};

struct Upstream {
    simulator: Arc<Simulator>,
    address: SocketAddr,
    client: reqwest::Client,
    closing: CancellationToken,
}

fn key(id: &str, organization: &str, project: &str) -> KeyConfig {
    KeyConfig {
        id: Some(id.into()),
        secret: SecretSource::Text(Secret::new(format!("sk-{id}"))),
        organization: organization.into(),
        project: project.into(),
        region: "us".into(),
        requests_per_minute: None,
        tokens_per_minute: None,
        models: Vec::new(),
        credential: settings::Credential::Bearer,
        api_version: None,
    }
}

fn keys() -> Vec<KeyConfig> {
    let keys = [
        key("a-1", "org-a", "one"),
        key("a-2", "org-a", "two"),
        key("b-1", "org-b", "one"),
        key("eu-1", "org-a", "far"),
    ];
    keys.into_iter()
        .map(
            |key| if key.project == "far" { KeyConfig { region: "eu".into(), ..key } } else { key },
        )
        .collect()
}

/// Starts with the keys of `config`, or with the usual ones if it has none.
async fn upstream_with(config: Config) -> Upstream {
    let key = if config.key.is_empty() { keys() } else { config.key.clone() };
    let simulator = Simulator::new(&Config { key, ..config }).expect("keys");
    let listener = Listener::bind(SocketAddr::from(([127, 0, 0, 1], 0)), Duration::from_secs(5))
        .expect("a port");
    let address = listener.address().expect("bound");
    let (tasks, closing) = (Tasks::new(), CancellationToken::new());
    tasks.spawn(Arc::clone(&simulator).serve(listener, tasks.clone(), closing.clone()));
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    Upstream { simulator, address, client, closing }
}

async fn upstream() -> Upstream {
    upstream_with(Config::default()).await
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

struct Answered {
    status: u16,
    headers: reqwest::header::HeaderMap,
    text: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{}: {error}", self.text))
    }

    fn error(&self) -> String {
        let error = &self.json()["error"];
        error["code"].as_str().or(error["message"].as_str()).unwrap_or_default().to_owned()
    }

    /// The response of the terminal event.
    fn response(&self) -> Value {
        let data =
            self.text.lines().rev().find_map(|line| line.strip_prefix("data: ")).expect("an event");
        serde_json::from_str::<Value>(data).expect("JSON")["response"].take()
    }

    fn cached(&self) -> u64 {
        self.response()["usage"]["input_tokens_details"]["cached_tokens"].as_u64().expect("usage")
    }
}

impl Upstream {
    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Answered {
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Answered { status, headers, text: response.text().await.expect("a body") }
    }

    fn request(&self, key: &str, body: &Value) -> reqwest::RequestBuilder {
        self.client
            .post(self.url("/responses"))
            .bearer_auth(format!("sk-{key}"))
            .body(body.to_string())
    }

    async fn post(&self, key: &str, body: &Value) -> Answered {
        self.send(self.request(key, body)).await
    }

    async fn fault(&self, fault: Value) {
        let answered =
            self.send(self.client.post(self.url("/_sim/fault")).body(fault.to_string())).await;
        assert_eq!(answered.status, 204, "{}", answered.text);
    }

    /// Waits until `span` has passed on the simulator's own clock.
    async fn passes(&self, span: Duration) {
        let clock = &self.simulator.world.clock;
        let until = clock.now() + span;
        for _ in 0..1000 {
            if clock.now() >= until {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("{:?} and not yet {until:?}", clock.now());
    }

    /// The last turn on record, once `ready` holds for it.
    async fn last(&self, ready: impl Fn(&Turn) -> bool) -> Turn {
        for _ in 0..1000 {
            if let Some(turn) = self.simulator.turns().pop().filter(&ready) {
                return turn;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("{:?}", self.simulator.turns().last());
    }
}

fn user(text: &str) -> Value {
    json!({"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]})
}

fn ask(model: &str, input: &[Value]) -> Value {
    json!({
        "model": model, "stream": true, "store": false, "include": ["reasoning.encrypted_content"], "prompt_cache_key": "session-1",
        "input": input, "client_metadata": {"session_id": "session-1"}, "tools": [{"type": "function", "name": "exec_command"}],
    })
}

/// A history of about 5,000 tokens.
fn history() -> Vec<Value> {
    vec![
        json!({"type": "message", "role": "developer", "content": "rule ".repeat(4000)}),
        user("hello"),
    ]
}
