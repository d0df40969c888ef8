//! Plays sessions as Codex does: a connection a request, the whole history each time, left at the last word.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use serde_json::Value;

use super::script::{Session, Thread, token};

/// Between two turns of a thread, at the least.
const PACE: Duration = Duration::from_millis(100);
/// No turn of the demo takes so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Plays all sessions at once. Returns the mean time to the first token.
pub async fn all(sessions: &[Session], proxy: SocketAddr) -> Result<Duration, String> {
    let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).timeout(PATIENCE).build();
    let client = client.map_err(|error| error.to_string())?;
    let waits = futures_util::future::try_join_all(sessions.iter().map(|session| one(session, &client, proxy))).await?;
    let waits: Vec<Duration> = waits.into_iter().flatten().collect();
    Ok(waits.iter().sum::<Duration>() / u32::try_from(waits.len().max(1)).unwrap_or(u32::MAX))
}

async fn one(session: &Session, client: &reqwest::Client, proxy: SocketAddr) -> Result<Vec<Duration>, String> {
    let root = thread(session, &session.root, client, proxy);
    let subagent = async {
        match &session.subagent {
            Some(subagent) => {
                let turns = (0..session.root.turns).position(Session::spawns_at).unwrap_or(0);
                tokio::time::sleep(PACE * turns as u32).await;
                thread(session, subagent, client, proxy).await
            }
            None => Ok(Vec::new()),
        }
    };
    let (mut root, subagent) = tokio::try_join!(root, subagent)?;
    root.extend(subagent);
    Ok(root)
}

async fn thread(
    session: &Session,
    thread: &Thread,
    client: &reqwest::Client,
    proxy: SocketAddr,
) -> Result<Vec<Duration>, String> {
    let mut history = thread.opening();
    let mut waits = Vec::new();
    let mut pace = tokio::time::interval(PACE);
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for turn in 0..thread.turns {
        pace.tick().await;
        let began = Instant::now();
        let mut answer = ask(session, thread, &history, client, proxy).await?;
        if answer.status == 400 {
            // The session is lost: its reasoning belongs to another organization. Go on without it, as a user would have to.
            history.retain(|item| !item.contains("\"encrypted_content\""));
            answer = ask(session, thread, &history, client, proxy).await?;
        }
        if answer.status != 200 {
            return Err(format!("a turn was answered {}: {}", answer.status, answer.text.chars().take(300).collect::<String>()));
        }
        waits.push(answer.first_token - began);
        let items = output(&answer.text)?;
        let call = items.iter().find_map(|item| item.get("call_id").and_then(Value::as_str)).map(str::to_owned);
        history.extend(items.iter().map(Value::to_string));
        history.push(thread.reply(turn, call.as_deref()));
    }
    Ok(waits)
}

struct Answer {
    status: u16,
    first_token: Instant,
    text: String,
}

async fn ask(
    session: &Session,
    thread: &Thread,
    history: &[String],
    client: &reqwest::Client,
    proxy: SocketAddr,
) -> Result<Answer, String> {
    let request = client
        .post(format!("http://{proxy}/v1/responses"))
        .header("authorization", format!("Bearer {}", token(session.user)))
        .header("content-type", "application/json")
        .header("accept", "text/event-stream")
        .header("session-id", &session.id)
        .header("thread-id", &thread.id)
        .body(session.body(history));
    let response = request.send().await.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let mut body = http::Response::<reqwest::Body>::from(response).into_body();
    let (mut text, mut first_token) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        text.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        first_token.get_or_insert_with(Instant::now);
        // The last word: Codex does not wait for the end behind it.
        if text.ends_with(b"\n\n") && memchr::memmem::find(&text, b"event: response.completed").is_some() {
            break;
        }
    }
    Ok(Answer {
        status,
        first_token: first_token.unwrap_or_else(Instant::now),
        text: String::from_utf8_lossy(&text).into_owned(),
    })
}

/// The items of a completed answer.
fn output(stream: &str) -> Result<Vec<Value>, String> {
    let data = stream
        .split_once("event: response.completed\n")
        .and_then(|(_, rest)| rest.lines().next()?.strip_prefix("data: "))
        .ok_or("an answer ended without response.completed")?;
    let event: Value = serde_json::from_str(data).map_err(|error| error.to_string())?;
    Ok(event["response"]["output"].as_array().cloned().unwrap_or_default())
}
