//! The admin listener as operators use it: commands to a replica, and the pages that it shows.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;

use crate::world::cluster::Running;
use crate::world::replica::Replica;
use crate::world::waiting::eventually;
use crate::world::wire::{Answer, Request, ask};

/// The operators' token in tests.
pub const TOKEN: &str = "token-canary-admin";

/// Time within which every replica must know a command.
const AT_ONCE: Duration = Duration::from_secs(1);

/// Asks with the token, and checks that the answer holds no secret.
pub async fn asked(admin: SocketAddr, method: &str, target: &str) -> Answer {
    let answer = ask(admin, &Request::new(method, target).bearer(TOKEN)).await;
    assert!(!answer.text().contains("canary"), "{target}: {}", answer.text());
    answer
}

impl Replica {
    /// Sends an operator's command on `name`, and returns the answer.
    pub async fn command(&self, command: &str, name: &str) -> Value {
        let answer = asked(self.admin(), "POST", &format!("/keys/{name}/{command}")).await;
        assert_eq!(answer.status, 200, "{command} {name}: {}", answer.text());
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

    /// The page of a session, by its stored id.
    pub async fn session(&self, id: &str) -> Value {
        let answer = asked(self.admin(), "GET", &format!("/sessions/{id}")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }
}

impl Running {
    /// Waits until the metrics of every replica show this key in this state. To read metrics needs
    /// no store.
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
