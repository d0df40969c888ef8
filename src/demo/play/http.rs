//! Plays a turn over HTTP: each request has its own connection and carries the whole history.

use http_body_util::BodyExt;
use tokio::time::Instant;

use super::{Answer, Completed, Player};
use crate::demo::script::token;

pub fn client() -> Result<reqwest::Client, String> {
    let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build();
    client.map_err(|error| error.to_string())
}

pub async fn ask(
    player: Player<'_>,
    turn: usize,
    history: &[String],
    client: &reqwest::Client,
) -> Result<Answer, String> {
    let Player { session, thread, proxy } = player;
    let request = client
        .post(format!("http://{proxy}/v1/responses"))
        .header("authorization", format!("Bearer {}", token(session.user)))
        .header("content-type", "application/json")
        .header("accept", "text/event-stream")
        .header("session-id", &session.id)
        .header("thread-id", &thread.id)
        .body(session.body(player.model(turn), history));
    let request = match session.metadata() {
        Some(metadata) => request.header("x-codex-turn-metadata", metadata),
        None => request,
    };
    // Codex does not wait for the end of the stream behind the terminal event.
    let is_over = |text: &[u8]| {
        text.ends_with(b"\n\n")
            && memchr::memmem::find(text, b"event: response.completed").is_some()
    };
    let Received { status, text, first_token } = receive(request, is_over).await?;
    let completed = if status == 200 { Ok(completed(&text)?) } else { Err((status, text)) };
    Ok(Answer { first_token, completed })
}

/// An answer, and when its first byte came.
pub struct Received {
    pub status: u16,
    pub text: String,
    pub first_token: Instant,
}

/// Sends `request`, and reads the answer to its end or until it `is_over`.
pub async fn receive(
    request: reqwest::RequestBuilder,
    is_over: impl Fn(&[u8]) -> bool,
) -> Result<Received, String> {
    let response = request.send().await.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let mut body = http::Response::<reqwest::Body>::from(response).into_body();
    let (mut text, mut first_token) = (Vec::new(), None);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| error.to_string())?;
        text.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
        first_token.get_or_insert_with(Instant::now);
        if is_over(&text) {
            break;
        }
    }
    let text = String::from_utf8_lossy(&text).into_owned();
    Ok(Received { status, text, first_token: first_token.unwrap_or_else(Instant::now) })
}

/// The response of the stream's terminal event.
fn completed(stream: &str) -> Result<Completed, String> {
    let data = stream
        .split_once("event: response.completed\n")
        .and_then(|(_, rest)| rest.lines().next()?.strip_prefix("data: "))
        .ok_or("an answer ended without response.completed")?;
    serde_json::from_str(data).map_err(|error| error.to_string())
}
