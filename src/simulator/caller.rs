//! Decides the key of a request, and the headers of every answer to a known key.
//!
//! Only headers decide, for an HTTP request and a WebSocket handshake alike. A request with headers
//! that must not reach an upstream is refused even without a known key.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, header};
use tokio::time::Instant;

use super::judge::Turn;
use super::key::Key;
use super::leak;
use super::refusal::Refusal;
use super::seal::Broken;
use super::world::World;

pub const TURN_STATE: &str = "x-codex-turn-state";
const SEALED_TURN: &str = "turn";

/// Returns the key of a request whose headers are in order. A refusal that the key did not cause
/// comes with the key.
pub fn recognize(
    world: &World,
    headers: &HeaderMap,
    query: Option<&str>,
    is_handshake: bool,
) -> Result<Arc<Key>, (Option<Arc<Key>>, Refusal)> {
    let known = world.keys.authenticate(headers);
    let key = || known.as_ref().map_or_else(|(key, _)| key.clone(), |key| Some(Arc::clone(key)));
    leak::check(headers)
        .and_then(|()| leak::framing(headers, is_handshake))
        .map_err(|refusal| (key(), refusal))?;
    let key = known?;
    key.check_version(query).map_err(|refusal| (Some(Arc::clone(&key)), refusal))?;
    if let Some(state) = headers.get(TURN_STATE) {
        let checked = check_turn_state(world, &key, &String::from_utf8_lossy(state.as_bytes()));
        checked.map_err(|refusal| (Some(Arc::clone(&key)), refusal))?;
    }
    Ok(key)
}

/// Checks that a turn state belongs to the key that the request shows.
pub fn check_turn_state(world: &World, key: &Key, state: &str) -> Result<(), Refusal> {
    let message = match world.sealer.open(SEALED_TURN, &key.id, state) {
        Ok(()) => return Ok(()),
        Err(Broken::Foreign) => "This x-codex-turn-state was issued for another key.",
        Err(Broken::Garbage) => {
            "This x-codex-turn-state was never issued here, or was changed on its way."
        }
    };
    Err(Refusal::invalid(Some("simulator_foreign_turn_state"), None, message))
}

/// Records the turn's key.
pub fn name(turn: &mut Turn, key: &Key) {
    (turn.key, turn.organization) = (Some(key.id.clone()), Some(key.organization.clone()));
}

pub fn turn_state(world: &World, key: &Key) -> String {
    world.seal(SEALED_TURN, &key.id, 8)
}

pub fn put(headers: &mut HeaderMap, name: &'static str, text: &str) {
    if let Ok(value) = HeaderValue::from_str(text) {
        headers.insert(name, value);
    }
}

/// Returns the headers of every answer, with those that only a known key receives.
pub fn describe(
    world: &World,
    began: Instant,
    key: Option<&Key>,
    asked: &HeaderMap,
    headers: &mut HeaderMap,
) {
    headers.insert("openai-processing-ms", HeaderValue::from(began.elapsed().as_millis() as u64));
    // A proxy in front of the real service sets a cookie. A gateway must not pass it on.
    headers.insert(
        header::SET_COOKIE,
        HeaderValue::from_static("__cf_bm=simulated; path=/; HttpOnly; Secure; SameSite=None"),
    );
    if let Some(key) = key {
        put(headers, "openai-organization", &key.organization);
        put(headers, "openai-project", &key.project);
        put(headers, "openai-version", "2020-10-01");
        if !asked.contains_key(TURN_STATE) {
            put(headers, TURN_STATE, &turn_state(world, key));
        }
    }
    put(headers, "x-request-id", &world.id("req"));
}
