//! Tests Chat Completions through both tiers. Only the edge can find the session of a chat turn,
//! and the tier whose upstream lacks chat translates.

use std::collections::BTreeSet;

use crate::tiers::{HOP, SESSIONS, Tiers, keys};
use crate::world::chat::Chat;
use crate::world::cluster::ALICE;
use crate::world::simulator::keys_by_session;

const RESPONSES: &str = "speaks = [\"responses\"]";

/// Turns of each conversation: every third one is a call of the tool and its output.
const TURNS: usize = 6;

/// Plays conversations, streamed or not, that move to and fro between the replicas of the edge.
/// Returns the number of requests.
async fn talk(tiers: &Tiers) -> usize {
    let mut chats: Vec<_> = (0..SESSIONS)
        .map(|number| {
            let chat = Chat::new(tiers.edge.address(), ALICE).with_tool();
            if number % 2 == 0 { chat } else { chat.streaming() }
        })
        .collect();
    let mut count = 0;
    for number in 0..TURNS {
        for chat in &mut chats {
            chat.moves_to(tiers.edge.replicas[number % 2].address());
            if number % 3 == 2 {
                let said = chat.turn("TOOL").await.served();
                assert_eq!((said.calls.len(), said.reason.as_deref()), (1, Some("tool_calls")));
                chat.moves_to(tiers.edge.replicas[1 - number % 2].address());
                chat.output(&said.calls, "done").await.served();
                count += 1;
            } else {
                let said = chat.turn("a question").await.served();
                assert_eq!((said.text.is_empty(), said.reason.as_deref()), (false, Some("stop")));
                assert!(said.usage["prompt_tokens"].as_u64() > Some(1_000), "{}", said.usage);
            }
            count += 1;
        }
    }
    count
}

/// Whether the edge or the inner gateway translates, the upstream sees each conversation on one
/// key, under the name that the edge has derived.
#[tokio::test]
async fn translated_conversation_stays_on_one_key_end_to_end() {
    for (at_edge, at_inner) in [("", RESPONSES), (RESPONSES, RESPONSES), (RESPONSES, "")] {
        let tiers = Tiers::speaking(HOP, keys(), at_edge, at_inner).await;
        let asked = talk(&tiers).await;
        let turns = tiers.judge().await;
        assert_eq!(turns.len(), asked, "each request is one turn");
        assert!(turns.iter().all(|turn| turn.method_path.ends_with("/responses")));
        let by_session = keys_by_session(&turns);
        assert_eq!(by_session.len(), SESSIONS, "a name for each: {by_session:?}");
        assert!(by_session.keys().all(|name| name.starts_with("warmkey-")), "{by_session:?}");
        assert!(by_session.values().all(|keys| keys.len() == 1), "{by_session:?}");
        let all: BTreeSet<_> = turns.iter().map(|turn| &turn.key).collect();
        assert!(all.len() > 1, "more than one key is at work: {all:?}");
        let sum =
            |of: fn(&crate::world::simulator::Turn) -> u64| -> u64 { turns.iter().map(of).sum() };
        let (read, ideal) = (sum(|turn| turn.cached_tokens), sum(|turn| turn.ideal_cached_tokens));
        assert!(ideal > 0 && read * 100 >= ideal * 99, "{read} of {ideal} tokens from the cache");
    }
}
