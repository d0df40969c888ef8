//! The simulated upstream as a process of its own, and its record: the only judge of where a turn went and what it cost.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::patience::{SOON, eventually};
use crate::process::{Folder, Process, WARMKEY};
use crate::wire::{Request, ask, get};

/// A key of the upstream, as gateway and simulator both know it. Its secret follows from its id.
#[derive(Clone)]
pub struct Key {
    pub id: String,
    pub organization: String,
    pub weight: u32,
    /// Another key, whose secret the gateway shows for this one.
    pub shown: Option<String>,
}

impl Key {
    pub fn new(id: &str, organization: &str) -> Self {
        Self { id: id.into(), organization: organization.into(), weight: 1, shown: None }
    }

    pub fn secret(&self) -> String {
        format!("sk-canary-{}", self.shown.as_ref().unwrap_or(&self.id))
    }

    /// This key with the secret of another one, which is what the upstream will record.
    pub fn shown_as(mut self, other: &str) -> Self {
        self.shown = Some(other.into());
        self
    }
}

/// `count` keys of one organization.
pub fn siblings(organization: &str, count: usize) -> Vec<Key> {
    (1..=count).map(|number| Key::new(&format!("{organization}-{number}"), organization)).collect()
}

/// One line of the record.
#[derive(Clone, Debug, Deserialize)]
pub struct Turn {
    #[serde(default)]
    pub transport: String,
    #[serde(deserialize_with = "or_nothing")]
    pub key: String,
    #[serde(deserialize_with = "or_nothing")]
    pub organization: String,
    pub session: Option<String>,
    pub model: Option<String>,
    pub body_sha256: String,
    #[serde(default)]
    pub input_tokens: u64,
    #[serde(default)]
    pub cached_tokens: u64,
    #[serde(default)]
    pub ideal_cached_tokens: u64,
    pub status: u16,
    /// What became of it; `open` while it is being answered.
    #[serde(default)]
    pub outcome: String,
    #[serde(default)]
    pub headers: Vec<String>,
}

/// Whoever came without a known key is nobody.
fn or_nothing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Option::<String>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Turn {
    pub const fn is_served(&self) -> bool {
        self.status == 200
    }
}

/// The keys that served each session.
pub fn keys_by_session(turns: &[Turn]) -> BTreeMap<String, BTreeSet<String>> {
    let mut keys = BTreeMap::<String, BTreeSet<String>>::new();
    for turn in turns.iter().filter(|turn| turn.is_served()) {
        keys.entry(turn.session.clone().unwrap_or_default()).or_default().insert(turn.key.clone());
    }
    keys
}

/// The keys that served this session, in order of its turns, repeats left out.
pub fn path_of(turns: &[Turn], session: &str) -> Vec<String> {
    let served = turns.iter().filter(|turn| turn.is_served() && turn.session.as_deref() == Some(session));
    let mut path: Vec<String> = served.map(|turn| turn.key.clone()).collect();
    path.dedup();
    path
}

pub struct Simulator {
    address: SocketAddr,
    _process: Process,
}

impl Simulator {
    /// Over `keys`, with these further lines of its `[sim]` section.
    pub async fn start(folder: &Folder, keys: &[Key], options: &str) -> Self {
        let mut text = format!("[sim]\n{options}\n");
        for key in keys {
            text.push_str(&format!(
                "[[sim.key]]\nid = {:?}\nsecret = {:?}\norganization = {:?}\nproject = \"{}-main\"\nregion = \"us\"\n",
                key.id,
                key.secret(),
                key.organization,
                key.organization,
            ));
        }
        let file = folder.write("simulator.toml", &text);
        let mut command = Command::new(WARMKEY);
        command.arg("simulate").arg("--config").arg(file).args(["--listen", "127.0.0.1:0"]);
        let mut process = Process::start("simulator", command, folder.path(), "warmkey");
        let line = process.line().await.expect("the simulator says where it listens");
        let address = line.strip_prefix("simulating on http://").and_then(|address| address.parse().ok());
        Self { address: address.unwrap_or_else(|| panic!("an address in {line:?}")), _process: process }
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub async fn turns(&self) -> Vec<Turn> {
        let answer = get(self.address, "/_sim/turns").await;
        serde_json::from_slice(&answer.body).unwrap_or_else(|error| panic!("the record is readable ({error}): {}", answer.text()))
    }

    /// Waits until the record holds `count` turns.
    pub async fn recorded(&self, count: usize) -> Vec<Turn> {
        eventually(SOON, "turns in the record", async || {
            let turns = self.turns().await;
            (turns.len() >= count).then_some(turns)
        })
        .await
    }

    pub async fn fault(&self, fault: Value) {
        let request = Request::new("POST", "/_sim/fault").header("content-type", "application/json").body(fault.to_string());
        let answer = ask(self.address, &request).await;
        assert!(answer.status < 300, "the simulator takes the fault: {}", answer.text());
    }

    /// From now on the upstream knows nothing of this key.
    pub async fn revoke(&self, key: &str) {
        self.fault(json!({ "key": key, "status": 401, "code": "invalid_api_key" })).await;
    }

    /// The organization's credit is gone.
    pub async fn exhaust(&self, organization: &str) {
        self.fault(json!({ "organization": organization, "status": 429, "code": "credit_balance_exhausted" })).await;
    }

    pub async fn heal(&self) {
        let answer = ask(self.address, &Request::new("DELETE", "/_sim/fault")).await;
        assert!(answer.status < 300, "the simulator clears its faults: {}", answer.text());
    }
}
