//! The operator's desk: words said to replicas on their admin listener, and what it shows.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::world::cluster::Running;
use crate::world::replica::Replica;
use crate::world::waiting::eventually;
use crate::world::wire::{Answer, Request, ask};

/// What operators show in tests.
pub const TOKEN: &str = "token-canary-admin";

/// A word must have come to all replicas by then.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Asks with the token. No answer has a secret in it.
pub async fn asked(admin: SocketAddr, method: &str, target: &str) -> Answer {
    let answer = ask(admin, &Request::new(method, target).bearer(TOKEN)).await;
    assert!(!answer.text().contains("canary"), "{target}: {}", answer.text());
    answer
}

impl Replica {
    /// An operator's word on `name`, and the answer to it.
    pub async fn word(&self, verb: &str, name: &str) -> Value {
        let answer = asked(self.admin(), "POST", &format!("/keys/{name}/{verb}")).await;
        assert_eq!(answer.status, 200, "{verb} {name}: {}", answer.text());
        answer.json()
    }

    /// All keys as this replica knows them.
    pub async fn keys(&self) -> Vec<Value> {
        let answer = asked(self.admin(), "GET", "/keys").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json().as_array().expect("a list of keys").clone()
    }

    pub async fn key(&self, id: &str) -> Value {
        self.keys().await.into_iter().find(|key| key["id"] == id).expect("the key is shown")
    }

    /// What is told of a session, by its stored id.
    pub async fn session(&self, id: &str) -> Value {
        let answer = asked(self.admin(), "GET", &format!("/sessions/{id}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }
}

impl Running {
    /// Waits until every replica has this key in this state: by its metrics, which ask nobody.
    pub async fn all_have(&self, key: &str, state: &str) {
        let series = format!("warmkey_key_state{{key=\"{key}\",state=\"{state}\"}}");
        for replica in &self.replicas {
            eventually(AT_ONCE, &format!("{key} {state} at {}", replica.admin()), async || {
                (replica.metrics().await.get(&series) > 0.5).then_some(())
            })
            .await;
        }
    }
}
