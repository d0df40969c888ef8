//! Sessions of Codex on several replicas: they begin, and continue at one replica after the other.
//! The upstream's record shows which keys served them.

use crate::world::cluster::{ALICE, Running};
use crate::world::codex::Codex;
use crate::world::simulator::{Turn, path_of};
use crate::world::waiting::found;

/// Begins `count` sessions with a turn each, at one replica after the other.
pub async fn begin(cluster: &Running, count: usize) -> Vec<Codex> {
    let mut sessions = Vec::new();
    for number in 0..count {
        let replica = &cluster.replicas[number % cluster.replicas.len()];
        let mut codex = Codex::new(replica.address(), ALICE);
        codex.turn("first").await.served();
        sessions.push(codex);
    }
    sessions
}

/// Begins sessions until one is bound to a key whose id begins with `prefix`. Returns that session
/// and its first turn.
pub async fn begin_on(cluster: &Running, prefix: &str) -> (Codex, Turn) {
    found(&format!("a session on {prefix}"), async || {
        let mut codex = Codex::new(cluster.address(), ALICE);
        codex.turn("first").await.served();
        let turn = last_turn(cluster, &codex).await;
        turn.key.starts_with(prefix).then_some((codex, turn))
    })
    .await
}

/// Plays `turns` turns of one session, at one replica after the other.
pub async fn go_on(cluster: &Running, codex: &mut Codex, turns: usize) {
    for number in 0..turns {
        codex.moves_to(cluster.replicas[number % cluster.replicas.len()].address());
        codex.turn("goes on").await.served();
    }
}

/// Plays a turn of each session. In every `round`, a session is at another replica.
pub async fn turn_each(cluster: &Running, sessions: &mut [Codex], round: usize) {
    for (number, codex) in sessions.iter_mut().enumerate() {
        codex.moves_to(cluster.replicas[(number + round) % cluster.replicas.len()].address());
        codex.turn("again").await.served();
    }
}

/// Returns the keys that served this session, in order of its turns, without repeats.
pub async fn path(cluster: &Running, codex: &Codex) -> Vec<String> {
    path_of(&cluster.turns().await, &codex.session)
}

/// The key that served this session's first turn.
pub fn first_key(turns: &[Turn], codex: &Codex) -> String {
    path_of(turns, &codex.session).remove(0)
}

/// The key that served the first turn of each session.
pub async fn first_keys(cluster: &Running, sessions: &[Codex]) -> Vec<String> {
    let turns = cluster.turns().await;
    sessions.iter().map(|codex| first_key(&turns, codex)).collect()
}

/// The last turn of this session in the record, served or not.
pub async fn last_turn(cluster: &Running, codex: &Codex) -> Turn {
    let mut turns = cluster.turns().await;
    turns.retain(|turn| turn.session.as_deref() == Some(&codex.session));
    turns.pop().expect("the session has a turn")
}

/// Returns the key and the status of each attempt of this session after the first `before` turns of
/// the record.
pub async fn attempts(cluster: &Running, codex: &Codex, before: usize) -> Vec<(String, u16)> {
    let turns = cluster.turns().await;
    let own = turns[before..].iter().filter(|turn| turn.session.as_deref() == Some(&codex.session));
    own.map(|turn| (turn.key.clone(), turn.status)).collect()
}

/// Waits until the metrics of all replicas show this key in this state.
pub async fn all_know(cluster: &Running, key: &str, state: &str) {
    for replica in &cluster.replicas {
        replica.shows(&format!("warmkey_key_state{{key=\"{key}\",state=\"{state}\"}}"), 1.0).await;
    }
}

/// How many decisions of this kind, for this reason, all replicas count.
pub async fn decided(cluster: &Running, decision: &str, reason: &str) -> f64 {
    let mut sum = 0.0;
    for replica in &cluster.replicas {
        let series =
            format!("warmkey_decisions_total{{decision=\"{decision}\",reason=\"{reason}\"}}");
        sum += replica.metrics().await.get(&series);
    }
    sum
}
