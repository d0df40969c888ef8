//! Clients of Chat Completions keep their key and its warm cache, whether the upstream speaks chat
//! or every turn is translated for it.

use std::collections::BTreeSet;

use serde_json::json;

use crate::world::chat::Chat;
use crate::world::cluster::{ALICE, BOB, Cluster, Running};
use crate::world::codex::Codex;
use crate::world::process::Folder;
use crate::world::simulator::{Key, Simulator, Turn, keys_by_session, siblings};
use crate::world::waiting::{SOON, eventually};
use crate::world::wire::{Request, ask};

mod cold;
mod native;
mod translated;

/// An upstream that speaks only Responses.
const RESPONSES: &str = "speaks = [\"responses\"]";
const TURNS: usize = 10;
/// One model of each cache regime.
const MODELS: [&str; 2] = ["gpt-5.4", "gpt-5.6-sol"];
/// Fast enough that no session overflows its machine.
const SIMULATOR: &str = "time_scale = 500\nevents = 4";

fn chats(address: std::net::SocketAddr, token: &str) -> Vec<Chat> {
    let chat = |number: usize| {
        let chat = Chat::new(address, token).model(MODELS[number % 2]).with_tool();
        if number < 2 { chat } else { chat.streaming() }
    };
    (0..4).map(chat).collect()
}

/// Plays a turn of a conversation; every third one calls the tool.
async fn turn(chat: &mut Chat, number: usize) {
    if number % 3 != 2 {
        let said = chat.turn("a question").await.served();
        assert_eq!((said.text.is_empty(), said.reason.as_deref()), (false, Some("stop")));
        assert!(said.usage["prompt_tokens"].as_u64() > Some(1_000), "{}", said.usage);
        return;
    }
    let said = chat.turn("TOOL").await.served();
    assert_eq!((said.calls.len(), said.reason.as_deref()), (1, Some("tool_calls")));
    assert_eq!(said.calls[0]["function"]["arguments"], r#"{"cmd":"echo hi"}"#);
    chat.output(&said.calls, "done").await.served();
}

/// Returns the share of cached tokens for each model.
fn shares(turns: &[Turn]) -> [f64; 2] {
    MODELS.map(|model| {
        let own = turns.iter().filter(|turn| turn.model.as_deref() == Some(model));
        let (cached, input) = own.fold((0, 0), |(cached, input), turn| {
            (cached + turn.cached_tokens, input + turn.input_tokens)
        });
        cached as f64 / input as f64
    })
}

async fn single_key() -> [f64; 2] {
    let (folder, key) = (Folder::new(), Key::new("only", "org-a"));
    let simulator = Simulator::start(&folder, std::slice::from_ref(&key), SIMULATOR).await;
    let mut chats = chats(simulator.address(), &key.secret());
    for number in 0..TURNS {
        for (place, chat) in chats.iter_mut().enumerate() {
            *chat = chat.clone().field("prompt_cache_key", json!(format!("single-{place}")));
            turn(chat, number).await;
        }
    }
    shares(&simulator.turns().await)
}

async fn replicas(upstream: &str) -> Running {
    let keys = [siblings("org-a", 2), siblings("org-b", 2)].concat();
    Cluster::new()
        .keys(keys)
        .replicas(2)
        .redis()
        .upstream(upstream)
        .simulator(SIMULATOR)
        .start()
        .await
}

/// Plays growing conversations on two replicas in turn, and checks what the judge saw of them.
async fn stays_warm(upstream: &str, path: &str) {
    let (single, cluster) = (single_key().await, replicas(upstream).await);
    let mut chats = chats(cluster.replicas[0].address(), ALICE);
    for number in 0..TURNS {
        for chat in &mut chats {
            chat.moves_to(cluster.replicas[number % 2].address());
            turn(chat, number).await;
        }
    }
    let turns = cluster.turns().await;
    assert!(turns.iter().all(Turn::is_served), "nothing was refused");
    assert!(turns.iter().all(|turn| turn.method_path == path));
    let keys = keys_by_session(&turns);
    assert_eq!(keys.len(), chats.len(), "a derived key for each conversation");
    assert!(keys.values().all(|keys| keys.len() == 1), "one key each: {keys:?}");
    for (own, single) in shares(&turns).into_iter().zip(single) {
        assert!(own >= 0.99 * single, "cached {own:.4}, by a single key {single:.4}");
    }
    let mut sums = [0.0; 2];
    for replica in &cluster.replicas {
        replica.shows("warmkey_active_turns", 0.0).await;
        let metrics = replica.metrics().await;
        sums[0] += metrics.sum("warmkey_input_tokens_total");
        sums[1] += metrics.get("warmkey_usage_missing_total");
    }
    let recorded = turns.iter().map(|turn| turn.input_tokens).sum::<u64>() as f64;
    assert_eq!(sums, [recorded, 0.0], "each turn's usage is known");
}

#[tokio::test]
async fn chat_stays_on_its_warm_key() {
    stays_warm("", "POST /v1/chat/completions").await;
}

#[tokio::test]
async fn translated_chat_stays_on_its_warm_key() {
    stays_warm(RESPONSES, "POST /v1/responses").await;
}

#[tokio::test]
async fn upstream_without_chat_is_never_asked_for_it() {
    let options = format!("{SIMULATOR}\nchat = false");
    let cluster = Cluster::new().upstream(RESPONSES).simulator(&options).start().await;
    Chat::new(cluster.address(), ALICE).turn("hello").await.served();
    let refusing = Cluster::new().simulator(&options).start().await;
    assert_eq!(Chat::new(refusing.address(), ALICE).turn("hello").await.answer.status, 404);
}

#[tokio::test]
async fn chat_leaves_an_organization_that_can_serve_no_more() {
    for upstream in ["", RESPONSES] {
        let cluster = replicas(upstream).await;
        let mut chat = Chat::new(cluster.replicas[0].address(), ALICE).streaming();
        chat.turn("first").await.served();
        let first = cluster.turns().await.pop().expect("a turn");
        // No chat client holds content that only one organization can open, so the session may
        // leave.
        cluster.upstream().exhaust(&first.organization).await;
        for replica in [1, 0, 1] {
            chat.moves_to(cluster.replicas[replica].address());
            chat.turn("goes on").await.served();
        }
        let mut turns = cluster.turns().await;
        turns.retain(Turn::is_served);
        let moved: BTreeSet<_> = turns[1..].iter().map(|turn| &turn.key).collect();
        assert!(moved.len() == 1 && !moved.contains(&first.key), "{moved:?}");
        assert_ne!(turns[1].organization, first.organization);
        assert!(turns.iter().all(|turn| turn.session == first.session), "the derived key stays");
    }
}

#[tokio::test]
async fn derived_key_is_of_the_conversation_alone() {
    let cluster = replicas("").await;
    let session = async |chat: &mut Chat| {
        chat.turn("again").await.served();
        cluster.turns().await.pop().and_then(|turn| turn.session).expect("a key")
    };
    let mut chat = Chat::new(cluster.replicas[0].address(), ALICE);
    let first = session(&mut chat).await;
    assert!(first.len() <= 64, "{first}");
    chat.moves_to(cluster.replicas[1].address());
    assert_eq!(session(&mut chat).await, first, "on another replica, and longer");
    assert_ne!(session(&mut Chat::new(cluster.replicas[0].address(), ALICE)).await, first);
    let mut same = chat.clone();
    same.messages.truncate(3);
    assert_eq!(session(&mut same).await, first, "its tail is another one");
    let mut other = Chat::new(cluster.replicas[0].address(), BOB);
    other.messages = chat.messages.clone();
    assert_ne!(session(&mut other).await, first, "another client's");
    let mut cluster = cluster;
    cluster.replace(0).await;
    chat.moves_to(cluster.replicas[0].address());
    chat.turn("again").await.served();
    let last = cluster.turns().await.pop().and_then(|turn| turn.session);
    assert_eq!(last, Some(first), "after a restart");
}

#[tokio::test]
async fn chat_turn_is_in_the_ledger_as_any_other() {
    for upstream in ["", RESPONSES] {
        let cluster = Cluster::new()
            .upstream(upstream)
            .ledger("url = \"sqlite:ledger.db\"")
            .server("admin_token", "\"operators show this\"")
            .start()
            .await;
        Chat::new(cluster.address(), ALICE).streaming().turn("hello").await.served();
        let turn = cluster.turns().await.pop().expect("a turn");
        let row = eventually(SOON, "the turn is written down", async || {
            let page = Request::new("GET", "/usage?from=2026-01-01").bearer("operators show this");
            let body = ask(cluster.replica().admin(), &page).await.json();
            (body["total"]["turns"] == 1).then(|| body["total"].clone())
        })
        .await;
        assert_eq!(row["input_tokens"], turn.input_tokens);
        assert!(row["output_tokens"].as_u64() > Some(0) && row["unpriced_turns"] == 0, "{row}");
    }
}

#[tokio::test]
async fn codex_beside_a_chat_client_is_not_touched() {
    let cluster = Cluster::new().upstream("speaks = [\"responses\", \"websocket\"]").start().await;
    let mut codex = Codex::new(cluster.address(), ALICE);
    let ended = codex.turn("hello").await.served();
    Chat::new(cluster.address(), ALICE).turn("hello").await.served();
    assert_eq!(cluster.turns().await[0].body_sha256, ended.sha256);
    let mut talk = Codex::new(cluster.address(), ALICE).by_websocket();
    talk.turn("over a WebSocket").await;
    assert!(
        cluster.turns().await.iter().any(|turn| turn.transport == "websocket" && turn.is_served())
    );
}
