//! Two tiers: an edge tells the Warmkey behind it which session a turn belongs to, and the inner
//! Warmkey believes only its edge. Each tier has several replicas behind a load balancer without
//! affinity.

use std::collections::BTreeSet;

use serde_json::json;

use crate::world::chain::{Chain, id_of, made};
use crate::world::chat::Chat;
use crate::world::cluster::{ALICE, BOB, Cluster, Running};
use crate::world::codex::{Codex, uuid};
use crate::world::simulator::{Key, Turn, keys_by_session, siblings};
use crate::world::socket;
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, ask};

mod chat;
mod stored;

const HOP: &str = "hop-canary-0123456789";
const SESSIONS: usize = 8;

/// An edge of two replicas, and the two behind it. Fields drop in order: the edge goes first.
struct Tiers {
    edge: Running,
    inner: Running,
}

impl Tiers {
    /// Starts both tiers. `shown`: the hop secret that the edge sends.
    async fn start(shown: &str, keys: Vec<Key>) -> Self {
        Self::speaking(shown, keys, "", "").await
    }

    /// As [`Self::start`], with these options of the upstream of each tier.
    async fn speaking(shown: &str, keys: Vec<Key>, at_edge: &str, at_inner: &str) -> Self {
        let token = Key::new("edge", "inner").secret();
        let inner = Cluster::new()
            .keys(keys)
            .upstream(at_inner)
            .clients(&format!(
                "[hop]\nsecret = {HOP:?}\n[[client]]\nid = \"edge\"\ntoken = {token:?}\n\
                 [[client]]\nid = \"alice\"\ntoken = {ALICE:?}\n"
            ))
            .replicas(2)
            .redis()
            .balanced()
            .start()
            .await;
        let edge = Cluster::new()
            .keys(vec![Key::new("edge", "inner")])
            .upstream_at(&format!("http://{}/v1", inner.address()))
            .upstream(&format!("kind = \"gateway\"\n{at_edge}\n"))
            .clients(&format!(
                "[hop]\nsecret = {shown:?}\n[[client]]\nid = \"alice\"\ntoken = {ALICE:?}\n\
                 [[client]]\nid = \"bob\"\ntoken = {BOB:?}\n"
            ))
            .replicas(2)
            .redis()
            .balanced()
            .start()
            .await;
        Self { edge, inner }
    }

    async fn turns(&self) -> Vec<Turn> {
        self.inner.turns().await
    }

    /// Checks the upstream's record: each session has met one key, and no header of a hop.
    async fn judge(&self) -> Vec<Turn> {
        let turns = self.turns().await;
        // The upstream cannot distinguish sessions that no field names.
        let drift: Vec<_> = keys_by_session(&turns)
            .into_iter()
            .filter(|(session, keys)| !session.is_empty() && keys.len() > 1)
            .collect();
        assert!(drift.is_empty(), "{drift:?}");
        for turn in &turns {
            assert!(turn.is_served(), "{turn:?}");
            let is_told = |name: &String| name.contains("warmkey") || name.contains("yai-");
            assert!(!turn.headers.iter().any(is_told), "{:?}", turn.headers);
        }
        turns
    }
}

fn keys() -> Vec<Key> {
    [siblings("org-a", 2), siblings("org-b", 2)].concat()
}

#[tokio::test]
async fn session_stays_on_one_key_end_to_end() {
    let tiers = Tiers::start(HOP, keys()).await;
    let mut sessions: Vec<_> =
        (0..SESSIONS).map(|_| Codex::new(tiers.edge.address(), ALICE)).collect();
    for _ in 0..4 {
        for codex in &mut sessions {
            codex.turn("over HTTP").await.served();
        }
    }
    // If a client names no session, the beginning of its conversation identifies it. Only the edge
    // can do this, and it tells the inner gateway.
    let chains: Vec<_> = (0..SESSIONS).map(|_| Chain::new(tiers.edge.address())).collect();
    let mut pairs = Vec::new();
    for chain in &chains {
        let id = id_of(&chain.asks(json!({})).await);
        let next = Chain::clone(chain).after(&id).asks(json!({})).await;
        assert_eq!(next.status, 200, "{}", next.text());
        pairs.push((id.clone(), id_of(&next)));
        let stored = Request::new("GET", &format!("/responses/{id}")).bearer(ALICE);
        assert_eq!(ask(tiers.edge.address(), &stored).await.status, 200);
        let foreign = Request::new("GET", &format!("/responses/{id}")).bearer(BOB);
        assert_eq!(ask(tiers.edge.address(), &foreign).await.status, 404);
    }
    let mut talks: Vec<_> = sessions.iter().map(|codex| codex.clone().by_websocket()).collect();
    for talk in &mut talks {
        talk.turn("over a WebSocket").await;
        talk.turn("and on").await;
    }
    let mut forks = Vec::new();
    for codex in &sessions {
        let mut fork = codex.fork();
        fork.turn("another way").await.served();
        fork.clone().by_websocket().turn("and on").await;
        forks.push((codex.session.clone(), fork.session.clone()));
    }
    let turns = tiers.judge().await;
    let keys = keys_by_session(&turns);
    for (parent, fork) in &forks {
        assert_eq!(keys[parent], keys[fork], "a fork has its parent's key");
    }
    for (first, next) in &pairs {
        assert_eq!(made(&turns, first).key, made(&turns, next).key, "one key for both");
    }
    let all: BTreeSet<_> = turns.iter().map(|turn| &turn.key).collect();
    assert!(all.len() > 1, "more than one key is at work: {all:?}");
    let inherited = r#"warmkey_bindings_total{result="inherited"}"#;
    eventually(SOON, "forks inherit at both tiers", async || {
        let (edge, inner) = (&tiers.edge, &tiers.inner);
        let mut counts = Vec::new();
        for tier in [edge, inner] {
            let mut sum = 0.0;
            for replica in &tier.replicas {
                sum += replica.metrics().await.get(inherited);
            }
            counts.push(sum);
        }
        counts.iter().all(|count| *count >= SESSIONS as f64).then_some(())
    })
    .await;
}

#[tokio::test]
async fn fork_of_a_sub_agent_begins_on_the_key_of_its_session_behind_an_edge() {
    let mut lopsided = keys();
    lopsided[3].weight = 100;
    let mut tiers = Tiers::start(HOP, lopsided).await;
    let mut agents = Vec::new();
    for _ in 0..SESSIONS {
        let mut codex = Codex::new(tiers.edge.address(), ALICE);
        codex.turn("first").await.served();
        let mut agent = codex.spawn();
        agent.turn("look into it").await.served();
        agents.push(agent);
    }
    let redis = tiers.inner.redis();
    eventually(SOON, "the threads are written down", async || {
        let names: Vec<String> = redis.ask(&["KEYS", "warmkey:*.thread"]).await;
        (names.len() == SESSIONS).then_some(())
    })
    .await;
    // By their own order, most of the forks would now begin on another key.
    tiers.inner.change(|cluster| cluster.keys(keys()));
    for number in 0..2 {
        tiers.inner.replace(number).await;
    }
    let mut forks = Vec::new();
    for agent in agents {
        let mut fork = agent.fork();
        fork.turn("another way").await.served();
        forks.push((agent.session, fork.session));
    }
    let keys = keys_by_session(&tiers.judge().await);
    for (parent, fork) in &forks {
        assert_eq!(keys[parent], keys[fork]);
    }
}

/// Neither a stranger nor a client of the edge can choose another client's session.
#[tokio::test]
async fn forged_hop_changes_nothing() {
    let tiers = Tiers::start(HOP, keys()).await;
    let body = |session: &str| {
        json!({ "model": "gpt-5.4", "input": "x", "prompt_cache_key": session }).to_string()
    };
    // Forty sessions claim to be the same one. If the gateway believed that, they would share its
    // key.
    for at in [tiers.edge.address(), tiers.inner.address()] {
        for secret in [None, Some("guess"), Some("")] {
            let before = tiers.turns().await.len();
            for _ in 0..14 {
                let request = Request::turn(ALICE, body(&uuid()))
                    .header("yai-sticky-session", "abc;parent=def");
                let request = secret.map_or(request.clone(), |secret| {
                    request.clone().header("x-warmkey-hop", secret)
                });
                let answer = ask(at, &request).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
            let turns = tiers.judge().await;
            let keys: BTreeSet<_> = turns[before..].iter().map(|turn| &turn.key).collect();
            assert!(keys.len() > 1, "each session has its own order: {keys:?}");
        }
    }
    // The same holds on a WebSocket, whose handshake makes the same claim.
    for at in [tiers.edge.address(), tiers.inner.address()] {
        let before = tiers.turns().await.len();
        for _ in 0..14 {
            let session = uuid();
            let forged = [
                ("session-id", session.as_str()),
                ("yai-sticky-session", "abc;parent=def"),
                ("x-warmkey-hop", "guess"),
            ];
            let opened = socket::open(at, ALICE, &forged).await;
            let (mut socket, _) = opened.unwrap_or_else(|refused| panic!("{refused:?}"));
            socket.send(&socket::plain("hello")).await;
            socket.event(&["response.completed"]).await;
        }
        let turns = tiers.judge().await;
        let keys: BTreeSet<_> = turns[before..].iter().map(|turn| &turn.key).collect();
        assert!(keys.len() > 1, "each session has its own order: {keys:?}");
    }
    // With the secret, the claim is believed, which shows that this test can fail.
    let before = tiers.turns().await.len();
    for _ in 0..14 {
        let request = Request::turn(ALICE, body(&uuid()))
            .header("yai-sticky-session", "abc")
            .header("x-warmkey-hop", HOP);
        assert_eq!(ask(tiers.inner.address(), &request).await.status, 200);
    }
    let turns = tiers.judge().await;
    let keys: BTreeSet<_> = turns[before..].iter().map(|turn| &turn.key).collect();
    assert_eq!(keys.len(), 1, "{keys:?}");
}

/// A limit that the inner gateway states for one session does not count for the edge's only key.
#[tokio::test]
async fn limit_behind_the_inner_gateway_is_that_sessions_alone() {
    let tiers = Tiers::start(HOP, keys()).await;
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        let mut codex = Codex::new(tiers.edge.address(), ALICE);
        codex.turn("first").await.served();
        sessions.push(codex);
    }
    let turns = tiers.turns().await;
    tiers
        .inner
        .upstream()
        .fault(json!({ "organization": "org-a", "status": 429, "code": "rate_limit_exceeded", "retry_after": 60 }))
        .await;
    let (mut limited, mut served) = (0, 0);
    for codex in &mut sessions {
        let own = turns.iter().find(|turn| turn.session.as_ref() == Some(&codex.session));
        let is_limited = own.expect("it was served").organization == "org-a";
        let answer = codex.turn("second").await.answer;
        if is_limited {
            limited += 1;
            assert_eq!(answer.code(), "rate_limit_exceeded", "{}", answer.text());
            assert!(answer.retry_after() > 5, "{:?}", answer.headers);
        } else {
            served += 1;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
    assert!(limited > 0 && served > 0, "{limited} limited, {served} served");
    for replica in &tiers.edge.replicas {
        replica.shows(r#"warmkey_key_state{key="edge",state="ready"}"#, 1.0).await;
    }
}

/// No field of a chat body names its session. Only the edge can find the session, and tells the
/// inner gateway.
#[tokio::test]
async fn chat_conversation_stays_on_one_key_end_to_end() {
    let tiers = Tiers::start(HOP, keys()).await;
    let mut chats: Vec<_> = (0..SESSIONS).map(|_| Chat::new(tiers.edge.address(), ALICE)).collect();
    for _ in 0..3 {
        for chat in &mut chats {
            chat.turn("a question").await.served();
        }
    }
    let turns = tiers.judge().await;
    assert_eq!(turns.len(), 3 * SESSIONS);
    assert!(turns.iter().all(|turn| turn.method_path.ends_with("/chat/completions")));
    let keys = keys_by_session(&turns);
    assert_eq!(keys.len(), SESSIONS, "each conversation has a name of its own: {keys:?}");
    let all: BTreeSet<_> = turns.iter().map(|turn| &turn.key).collect();
    assert!(all.len() > 1, "more than one key is at work: {all:?}");
}
