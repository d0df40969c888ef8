//! Conversations that their upstream stores: each turn continues from the response before.
//!
//! The simulator stores a response for one project and finds it nowhere else. A turn that is served
//! has therefore gone to the right project.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::world::cluster::{ALICE, Running};
use crate::world::codex::uuid;
use crate::world::redis::Redis;
use crate::world::simulator::{Key, Turn};
use crate::world::wire::{Answer, Request, ask};

/// Keys of three projects. The weights of replica `number` would send nearly all sessions to one
/// project.
pub fn keys(number: usize) -> Vec<Key> {
    let mut keys = vec![
        Key::new("a-1", "org-a").of_project("one"),
        Key::new("a-2", "org-a").of_project("one"),
        Key::new("a-3", "org-a").of_project("two"),
        Key::new("b-1", "org-b").of_project("one"),
    ];
    keys[[0, 2, 3][number]].weight = 50;
    keys
}

pub fn project_of(key: &str) -> String {
    let key = keys(0).into_iter().find(|one| one.id == key).expect("one of the keys");
    format!("{}/{}", key.organization, key.project)
}

/// Two keys of two projects of one organization.
pub fn two_projects() -> Vec<Key> {
    vec![Key::new("a-1", "org-a").of_project("one"), Key::new("a-3", "org-a").of_project("two")]
}

/// A conversation that its upstream keeps: each turn sends the new input, and the id of the
/// response to continue from.
#[derive(Clone)]
pub struct Chain {
    pub address: SocketAddr,
    pub token: &'static str,
    pub session: Option<String>,
    pub is_streamed: bool,
    pub previous: Option<String>,
}

impl Chain {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, token: ALICE, session: None, is_streamed: false, previous: None }
    }

    pub fn of_session(self, session: &str) -> Self {
        Self { session: Some(session.into()), ..self }
    }

    pub fn after(self, id: &str) -> Self {
        Self { previous: Some(id.into()), ..self }
    }

    pub fn request(&self, fields: &Value) -> Request {
        let mut body = json!({ "model": "gpt-5.4", "input": uuid(), "stream": self.is_streamed });
        if let Some(id) = &self.previous {
            body["previous_response_id"] = json!(id);
        }
        for (name, value) in fields.as_object().expect("fields") {
            body[name] = value.clone();
        }
        let request = Request::turn(self.token, body.to_string());
        self.session.iter().fold(request, |request, session| request.header("session-id", session))
    }

    pub async fn asks(&self, fields: Value) -> Answer {
        ask(self.address, &self.request(&fields)).await
    }

    /// Plays a turn that must be served, and continues from its response. Returns that response's
    /// id.
    pub async fn turn(&mut self) -> String {
        let answer = self.asks(json!({})).await;
        assert_eq!(answer.status, 200, "{} after {:?}", answer.text(), self.previous);
        self.previous = Some(id_of(&answer));
        id_of(&answer)
    }
}

/// The id of the response that an answer holds.
pub fn id_of(answer: &Answer) -> String {
    let text = answer.text();
    let data = text.lines().find_map(|line| line.strip_prefix("data: "));
    let json: Value = serde_json::from_str(data.unwrap_or(&text)).expect("an answer is JSON");
    json.pointer("/response/id")
        .unwrap_or(&json["id"])
        .as_str()
        .expect("a response has an id")
        .to_owned()
}

/// Returns the turn on record that made this response.
pub fn made<'t>(turns: &'t [Turn], id: &str) -> &'t Turn {
    turns
        .iter()
        .find(|turn| turn.response_id.as_deref() == Some(id))
        .unwrap_or_else(|| panic!("{id} is on record"))
}

/// Returns a response that `key` has made. Begins sessions until one is bound to that key.
pub async fn stored_by(cluster: &Running, key: &str) -> String {
    for _ in 0..100 {
        let id = Chain::new(cluster.address()).of_session(&uuid()).turn().await;
        if made(&cluster.turns().await, &id).key == key {
            return id;
        }
    }
    panic!("{key} takes a session in a hundred");
}

/// Returns how often turns have made the gateway ask its store.
pub async fn asked_of_the_store(cluster: &Running) -> f64 {
    // Replicas exchange heartbeats all the time, and compare turns after their ends.
    let is_heartbeat = |series: &str| {
        ["roll", "board", "recall", "put"].iter().any(|operation| series.contains(operation))
    };
    let is_turns =
        |series: &str| series.starts_with("warmkey_store_seconds_count{") && !is_heartbeat(series);
    cluster.replica().metrics().await.sum_where(is_turns)
}

/// The names of all stored owners.
pub async fn owners(redis: &Redis) -> Vec<String> {
    redis.ask(&["KEYS", "*.response"]).await
}
