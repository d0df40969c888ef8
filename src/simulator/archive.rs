//! Stored responses as their clients may ask for them again: the object, its events, its input.
//!
//! A response is stored for its project and found only there. A background answer is made at its
//! own pace, whether its client waits or not. The oldest responses are dropped first.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use axum::body::Body;
use tokio::time::{Instant, sleep_until};

use super::answer::Answer;
use super::json::Value;
use super::refusal::Refusal;

const MOST: usize = 20_000;

/// One stored response.
#[derive(Clone, Debug)]
pub struct Archived {
    pub answer: Answer,
    /// The items of the request's input, as they are listed.
    pub input: Vec<String>,
    /// The response was created as a stream.
    pub streamed: bool,
    began: Instant,
    /// Time for each event. Zero: the client has waited for the answer.
    pause: Duration,
    cancelled: bool,
}

impl Archived {
    pub fn new(answer: Answer, input: Vec<String>, streamed: bool, pause: Duration) -> Self {
        let pause = if answer.background { pause } else { Duration::ZERO };
        Self { answer, input, streamed, began: Instant::now(), pause, cancelled: false }
    }

    fn is_done(&self) -> bool {
        self.began.elapsed() >= self.pause * self.answer.steps().len() as u32
    }

    /// The response object now.
    pub fn object(&self) -> String {
        match (self.cancelled, self.is_done()) {
            (true, _) => self.answer.unfinished("cancelled"),
            (false, true) => self.answer.object(),
            (false, false) if self.began.elapsed() < self.pause => self.answer.unfinished("queued"),
            (false, false) => self.answer.unfinished("in_progress"),
        }
    }

    /// Streams the events after the one with the number `after`, each at its time.
    pub fn stream(self, after: Option<u64>) -> Body {
        let first = after.map_or(0, |after| after + 1);
        let steps: Vec<_> = self.answer.steps().into_iter().zip(0..).collect();
        let rest: VecDeque<_> = steps.into_iter().filter(|(_, number)| *number >= first).collect();
        Body::from_stream(futures_util::stream::unfold((self, rest), async |(stored, mut rest)| {
            let (step, number) = rest.pop_front()?;
            sleep_until(stored.began + stored.pause * number as u32).await;
            let event = stored.answer.event(step, number).sse();
            Some((Ok::<_, std::io::Error>(event), (stored, rest)))
        }))
    }

    /// The list of input items, in this order.
    pub fn items(&self, ascending: bool, limit: usize) -> String {
        let mut items: Vec<&str> = self.input.iter().map(String::as_str).collect();
        if !ascending {
            items.reverse();
        }
        let has_more = items.len() > limit;
        items.truncate(limit);
        format!(
            r#"{{"object":"list","data":[{}],"first_id":"item_0","last_id":"item_{}","has_more":{has_more}}}"#,
            items.join(","),
            items.len().saturating_sub(1)
        )
    }
}

/// The items of an input as the real service lists them: each has its type, and its text is in
/// parts.
pub fn input(input: Value<'_>) -> Vec<String> {
    match input.text() {
        Some(_) => vec![message(r#""role":"user""#, "user", input.raw())],
        None => input.items().map(item).collect(),
    }
}

fn item(item: Value<'_>) -> String {
    let Some(content) = item.get("content").filter(|content| content.text().is_some()) else {
        return String::from_utf8_lossy(item.raw()).into_owned();
    };
    let role = item.get("role").and_then(Value::text).unwrap_or_default();
    let others = item.entries().filter_map(|(name, value)| {
        let is_other = !name.is_text("content") && !name.is_text("type");
        let raw = |value: Value<'_>| String::from_utf8_lossy(value.raw()).into_owned();
        is_other.then(|| format!("{}:{}", raw(name), raw(value)))
    });
    message(&others.collect::<Vec<_>>().join(","), &role, content.raw())
}

/// A message with one part of this text. `others` are its other fields.
fn message(others: &str, role: &str, text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let part = match role {
        "assistant" => format!(r#"{{"type":"output_text","text":{text},"annotations":[]}}"#),
        _ => format!(r#"{{"type":"input_text","text":{text}}}"#),
    };
    format!(r#"{{"type":"message",{others},"content":[{part}]}}"#)
}

#[derive(Debug, Default)]
pub struct Archive {
    responses: HashMap<String, (String, Archived)>,
    oldest_first: VecDeque<String>,
}

impl Archive {
    /// Keeps a response. `place` is the name of the organization and of the project together.
    pub fn keep(&mut self, place: &str, archived: Archived) {
        let id = archived.answer.id.clone();
        self.oldest_first.push_back(id.clone());
        self.responses.insert(id, (place.to_owned(), archived));
        if self.oldest_first.len() > MOST
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.responses.remove(&oldest);
        }
    }

    pub fn find(&mut self, id: &str, place: &str) -> Result<&mut Archived, Refusal> {
        match self.responses.get_mut(id) {
            Some((owner, archived)) if owner == place => Ok(archived),
            _ => Err(Refusal::invalid(None, None, format!("Response with id '{id}' not found."))
                .with_status(http::StatusCode::NOT_FOUND)),
        }
    }

    pub fn delete(&mut self, id: &str, place: &str) -> Result<String, Refusal> {
        self.find(id, place)?;
        self.responses.remove(id);
        Ok(format!(r#"{{"id":"{id}","object":"response","deleted":true}}"#))
    }

    /// Cancels a response, which must be in the background and not at its end yet.
    pub fn cancel(&mut self, id: &str, place: &str) -> Result<String, Refusal> {
        let archived = self.find(id, place)?;
        if !archived.answer.background {
            let message = "Cannot cancel a synchronous response.";
            return Err(Refusal::invalid(None, None, message));
        }
        archived.cancelled |= !archived.is_done();
        Ok(archived.object())
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::super::answer::{Item, Text, Usage};
    use super::super::json::Document;
    use super::*;

    fn archived(background: bool) -> Archived {
        let text = Text::Words { events: 2, seed: 0 };
        let answer = Answer {
            id: "resp_1".into(),
            created_at: 0,
            items: vec![Item::Message { id: "msg_1".into(), text }],
            usage: Usage::default(),
            echo: r#""model":"m""#.into(),
            background,
            obfuscate: false,
            lane: None,
        };
        Archived::new(answer, vec!["1".into(), "2".into()], true, Duration::from_secs(1))
    }

    #[tokio::test(start_paused = true)]
    async fn background_answer_is_made_in_its_own_time() {
        let mut archive = Archive::default();
        archive.keep("org/one", archived(true));
        let status = |archive: &mut Archive| {
            let object = archive.find("resp_1", "org/one").expect("it is there").object();
            serde_json::from_str::<serde_json::Value>(&object).unwrap()["status"].clone()
        };
        assert_eq!(status(&mut archive), "queued");
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(status(&mut archive), "in_progress");
        assert!(archive.cancel("resp_1", "org/two").is_err(), "another project");
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(status(&mut archive), "completed");
        archive.cancel("resp_1", "org/one").expect("it is too late, and no fault");
        assert_eq!(status(&mut archive), "completed");
        archive.delete("resp_1", "org/one").expect("it is there");
        assert_eq!(archive.find("resp_1", "org/one").expect_err("gone").status.as_u16(), 404);
        archive.keep("org/one", archived(true));
        archive.cancel("resp_1", "org/one").expect("it runs");
        assert_eq!(status(&mut archive), "cancelled");
        archive.keep("org/one", archived(false));
        assert!(archive.cancel("resp_1", "org/one").is_err(), "nobody waits for it");
    }

    #[tokio::test(start_paused = true)]
    async fn stream_goes_on_behind_the_event_that_was_read_last() {
        let text = async |after| {
            let bytes = archived(false).stream(after).collect().await.expect("a body").to_bytes();
            String::from_utf8(bytes.to_vec()).unwrap()
        };
        let (whole, rest) = (text(None).await, text(Some(3)).await);
        assert!(whole.ends_with(&rest) && whole.contains(r#""sequence_number":3,"#));
        assert!(
            rest.contains(r#""sequence_number":4,"#) && !rest.contains(r#""sequence_number":3,"#)
        );
    }

    #[test]
    fn input_is_listed_newest_first_unless_asked_otherwise() {
        let list = |ascending, limit| {
            let list = archived(false).items(ascending, limit);
            let list: serde_json::Value = serde_json::from_str(&list).unwrap();
            (list["data"].to_string(), list["has_more"].clone())
        };
        assert_eq!(list(false, 20), ("[2,1]".into(), false.into()));
        assert_eq!(list(true, 1), ("[1]".into(), true.into()));
    }

    #[test]
    fn text_of_an_input_is_listed_in_parts() {
        let parts = r#"{"role":"user","content":[{"type":"input_text","text":"d"}]}"#;
        let call = r#"{"type":"function_call_output","call_id":"c","output":"e"}"#;
        for (sent, listed) in [
            (
                r#""\u00e9""#.to_owned(),
                r#"{"type":"message","role":"user","content":[{"type":"input_text","text":"\u00e9"}]}"#,
            ),
            (
                r#"[{"content":"b","role":"developer"}]"#.into(),
                r#"{"type":"message","role":"developer","content":[{"type":"input_text","text":"b"}]}"#,
            ),
            (
                r#"[{"type":"message","role":"assistant","content":"c"}]"#.into(),
                r#"{"type":"message","role":"assistant","content":[{"type":"output_text","text":"c","annotations":[]}]}"#,
            ),
            (format!("[{parts}]"), parts),
            (format!("[{call}]"), call),
        ] {
            let document = Document::read(sent.as_bytes()).expect("JSON");
            assert_eq!(input(document.root()), [listed], "{sent}");
        }
    }
}
