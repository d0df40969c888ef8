//! The simulated upstream as a process, and its record: the only judge of a turn's key and cost.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::world::process::{Folder, Process, WARMKEY};
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, ask, get};

mod fault;

pub use fault::Fault;

/// A key as both the gateway and the simulator know it. Its secret follows from its id.
#[derive(Clone)]
pub struct Key {
    pub id: String,
    pub organization: String,
    pub project: String,
    pub weight: u32,
    /// Whether the gateway does not know the key's project.
    pub is_unplaced: bool,
    /// Another key, whose secret the gateway sends instead of this one's.
    pub shown: Option<String>,
    pub region: String,
    /// Lines of the key's `[[sim.key]]`.
    pub limits: String,
}

impl Key {
    pub fn new(id: &str, organization: &str) -> Self {
        let (id, organization, project) =
            (id.into(), organization.into(), format!("{organization}-main"));
        Self {
            id,
            organization,
            project,
            weight: 1,
            is_unplaced: false,
            shown: None,
            region: "us".into(),
            limits: String::new(),
        }
    }

    /// Leaves the key's project out of the gateway's configuration.
    pub const fn unplaced(mut self) -> Self {
        self.is_unplaced = true;
        self
    }

    /// Moves the key to another project than the usual one of its organization.
    pub fn of_project(mut self, project: &str) -> Self {
        self.project = project.into();
        self
    }

    pub fn of_region(mut self, region: &str) -> Self {
        self.region = region.into();
        self
    }

    /// Limits the key's project to so many requests and tokens a minute, of each model.
    pub fn limited(mut self, requests: u64, tokens: u64) -> Self {
        self.limits = format!("requests_per_minute = {requests}\ntokens_per_minute = {tokens}\n");
        self
    }

    pub fn secret(&self) -> String {
        format!("sk-canary-{}", self.shown.as_ref().unwrap_or(&self.id))
    }

    /// Gives this key the secret of `other`, whose id the upstream will record.
    pub fn shown_as(mut self, other: &str) -> Self {
        self.shown = Some(other.into());
        self
    }
}

/// `count` keys of one organization.
pub fn siblings(organization: &str, count: usize) -> Vec<Key> {
    (1..=count).map(|number| Key::new(&format!("{organization}-{number}"), organization)).collect()
}

/// One turn on record.
#[derive(Clone, Debug, Deserialize)]
pub struct Turn {
    #[serde(default)]
    pub transport: String,
    #[serde(default)]
    pub method_path: String,
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
    /// The code of a refusal.
    pub code: Option<String>,
    #[serde(default)]
    pub headers: Vec<String>,
    pub response_id: Option<String>,
    pub previous_response_id: Option<String>,
}

/// One `GET /models`.
#[derive(Clone, Debug, Deserialize)]
pub struct Probe {
    #[serde(deserialize_with = "or_nothing")]
    pub key: String,
    pub status: u16,
}

/// One request that is no turn: about a stored response, or a count of tokens.
#[derive(Clone, Debug, Deserialize)]
pub struct Call {
    pub method_path: String,
    pub query: Option<String>,
    #[serde(deserialize_with = "or_nothing")]
    pub key: String,
    pub status: u16,
    #[serde(default)]
    pub headers: Vec<String>,
}

/// Reads the key of a request with an unknown secret, which is absent, as an empty text.
fn or_nothing<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Option::<String>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Turn {
    pub const fn is_served(&self) -> bool {
        self.status == 200
    }
}

/// How often each status was answered, over every attempt.
pub fn statuses(turns: &[Turn]) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    turns.iter().for_each(|turn| *counts.entry(turn.status).or_default() += 1);
    counts
}

/// The keys that served each session.
pub fn keys_by_session(turns: &[Turn]) -> BTreeMap<String, BTreeSet<String>> {
    let mut keys = BTreeMap::<String, BTreeSet<String>>::new();
    for turn in turns.iter().filter(|turn| turn.is_served()) {
        keys.entry(turn.session.clone().unwrap_or_default()).or_default().insert(turn.key.clone());
    }
    keys
}

/// Returns the keys that served this session, in order of its turns, without repeats.
pub fn path_of(turns: &[Turn], session: &str) -> Vec<String> {
    let served =
        turns.iter().filter(|turn| turn.is_served() && turn.session.as_deref() == Some(session));
    let mut path: Vec<String> = served.map(|turn| turn.key.clone()).collect();
    path.dedup();
    path
}

pub struct Simulator {
    address: SocketAddr,
    _process: Process,
}

impl Simulator {
    /// Starts a simulator of `keys`, with these further lines of its `[sim]` section.
    pub async fn start(folder: &Folder, keys: &[Key], options: &str) -> Self {
        let mut text = format!("[sim]\n{options}\n");
        for key in keys {
            text.push_str(&format!(
                "[[sim.key]]\nid = {:?}\nsecret = {:?}\norganization = {:?}\nproject = {:?}\nregion = {:?}\n{}",
                key.id,
                key.secret(),
                key.organization,
                key.project,
                key.region,
                key.limits,
            ));
        }
        let file = folder.write("simulator.toml", &text);
        let mut command = Command::new(WARMKEY);
        command.arg("simulate").arg("--config").arg(file).args(["--listen", "127.0.0.1:0"]);
        let mut process = Process::start("simulator", command, folder.path(), "warmkey");
        let line = process.line().await.expect("the simulator says where it listens");
        let address =
            line.strip_prefix("simulating on http://").and_then(|address| address.parse().ok());
        Self {
            address: address.unwrap_or_else(|| panic!("an address in {line:?}")),
            _process: process,
        }
    }

    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub async fn turns(&self) -> Vec<Turn> {
        self.read("/_sim/turns").await
    }

    /// The probes on record, oldest first.
    pub async fn probes(&self) -> Vec<Probe> {
        self.read("/_sim/probes").await
    }

    /// The requests on record that are no turns, oldest first.
    pub async fn calls(&self) -> Vec<Call> {
        self.read("/_sim/calls").await
    }

    /// How many turns are in flight at each key that has any.
    pub async fn in_flight(&self) -> BTreeMap<String, u64> {
        #[derive(Deserialize)]
        struct Summary {
            in_flight: BTreeMap<String, u64>,
        }
        self.read::<Summary>("/_sim/summary").await.in_flight
    }

    async fn read<T: DeserializeOwned>(&self, page: &str) -> T {
        let answer = get(self.address, page).await;
        serde_json::from_slice(&answer.body)
            .unwrap_or_else(|error| panic!("{page} is readable ({error}): {}", answer.text()))
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
        let request = Request::new("POST", "/_sim/fault")
            .header("content-type", "application/json")
            .body(fault.to_string());
        let answer = ask(self.address, &request).await;
        assert!(answer.status < 300, "the simulator takes the fault: {}", answer.text());
    }

    /// Scripts this fault.
    pub async fn fails_with(&self, fault: Fault) {
        self.fault(fault.0).await;
    }

    /// Lets so much time pass for the upstream's caches and limits.
    pub async fn advance(&self, span: &str) {
        let request =
            Request::new("POST", "/_sim/clock").body(json!({ "advance": span }).to_string());
        let answer = ask(self.address, &request).await;
        assert!(answer.status < 300, "the clock is set: {}", answer.text());
    }

    /// Makes the upstream refuse this key.
    pub async fn revoke(&self, key: &str) {
        self.fails_with(Fault::revoked().key(key)).await;
    }

    /// Takes the organization's credit away.
    pub async fn exhaust(&self, organization: &str) {
        self.fails_with(Fault::exhausted().organization(organization)).await;
    }

    /// Clears all faults.
    pub async fn heal(&self) {
        self.heal_only(json!({})).await;
    }

    /// Clears the faults that name this key. Other faults stay.
    pub async fn heal_key(&self, key: &str) {
        self.heal_only(json!({ "key": key })).await;
    }

    async fn heal_only(&self, scope: Value) {
        let answer =
            ask(self.address, &Request::new("DELETE", "/_sim/fault").body(scope.to_string())).await;
        assert!(answer.status < 300, "the simulator clears its faults: {}", answer.text());
    }
}
