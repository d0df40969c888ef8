//! Writes the sessions, in the shape of Codex's, that the demo plays through every way of routing.
//!
//! A body begins with about 40 KB: tools, developer message, environment. Each coding turn appends
//! reasoning that only its organization can open, a tool call, and the tool's output. A few
//! sessions spawn a sub-agent, which shares their session id. A few switch their model, are forked,
//! or are resumed after a restart. Over a WebSocket, each session loses its connection once.

use serde_json::{Value, json};

/// Number of sessions, and of turns in each.
const SESSIONS: usize = 24;
const TURNS: usize = 32;
pub const USERS: usize = 6;
/// Bytes of a tool's output: 32 turns of them make a body of several hundred KB.
const OUTPUT: std::ops::Range<usize> = 3_000..13_000;
/// One session in so many spawns a sub-agent, at this turn and for so many turns.
const SPAWNS: usize = 4;
const SPAWN_AT: usize = 4;
const SUBAGENT_TURNS: usize = 6;
/// The turns before which a session's connection is dropped, one for each session: late enough to
/// lose a history, and not all at once.
const DROPS: std::ops::Range<usize> = 3..28;
/// One model of each cache regime.
const MODELS: [&str; 2] = ["gpt-5.4", "gpt-5.6-sol"];

/// One session in so many asks another model from this turn on.
const SWITCHES: usize = 8;
const SWITCH_AT: usize = 12;
/// One session in so many is forked at its end, for so many turns.
const FORKS: usize = 6;
const FORK_TURNS: usize = 5;
/// One session in so many is resumed after the restart, for so many turns.
const RESUMES: usize = 3;
const RESUMED_TURNS: usize = 5;

/// One session of one user.
pub struct Session {
    pub id: String,
    pub user: usize,
    pub model: &'static str,
    /// The model from turn [`SWITCH_AT`] of the root on.
    pub later: Option<&'static str>,
    /// The session that this one was forked from.
    pub forked_from: Option<String>,
    pub root: Thread,
    /// Starts beside the root's turn [`SPAWN_AT`].
    pub subagent: Option<Thread>,
}

/// One growing history.
pub struct Thread {
    pub id: String,
    pub turns: usize,
    /// Before this turn the WebSocket is dropped, as if a user interrupted the turn before.
    pub drops_at: Option<usize>,
    seed: u64,
}

pub fn sessions() -> Vec<Session> {
    (0..SESSIONS)
        .map(|number| Session {
            id: uuid(number, 0),
            // Some users work more than others.
            user: [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 4][number % 12] + usize::from(number == 23),
            model: MODELS[number % MODELS.len()],
            later: (number % SWITCHES == 5).then_some(MODELS[(number + 1) % MODELS.len()]),
            forked_from: None,
            root: Thread {
                id: uuid(number, 0),
                turns: TURNS,
                drops_at: Some(DROPS.start + number % DROPS.len()),
                seed: number as u64 * 1_000 + 1,
            },
            subagent: (number % SPAWNS == 0).then(|| Thread {
                id: uuid(number, 1),
                turns: SUBAGENT_TURNS,
                drops_at: None,
                seed: number as u64 * 1_000 + 2,
            }),
        })
        .collect()
}

impl Session {
    pub fn turns(&self) -> usize {
        let fork = if self.is_forked() { FORK_TURNS } else { 0 };
        let resumed = if self.is_resumed() { RESUMED_TURNS } else { 0 };
        self.root.turns + self.subagent.as_ref().map_or(0, |thread| thread.turns) + fork + resumed
    }

    const fn number(&self) -> u64 {
        self.root.seed / 1_000
    }

    /// Whether the session goes on after the restart of what it is played through.
    const fn is_resumed(&self) -> bool {
        self.forked_from.is_none() && self.number() % RESUMES as u64 == 1
    }

    /// The same session after the restart, if it goes on.
    pub fn resumed(&self) -> Option<Self> {
        let (id, seed) = (self.id.clone(), self.root.seed + 700);
        self.is_resumed().then(|| Self {
            id: id.clone(),
            user: self.user,
            model: self.later.unwrap_or(self.model),
            later: None,
            forked_from: None,
            root: Thread { id, turns: RESUMED_TURNS, drops_at: None, seed },
            subagent: None,
        })
    }

    fn is_forked(&self) -> bool {
        self.forked_from.is_none() && self.number() % FORKS as u64 == 2
    }

    /// The session that goes on with this one's history, if one does.
    pub fn fork(&self) -> Option<Self> {
        let seed = self.root.seed + 500;
        let id = uuid(self.number() as usize, 2);
        self.is_forked().then(|| Self {
            id: id.clone(),
            user: self.user,
            model: self.later.unwrap_or(self.model),
            later: None,
            forked_from: Some(self.id.clone()),
            root: Thread { id, turns: FORK_TURNS, drops_at: None, seed },
            subagent: None,
        })
    }

    /// The model of this turn of `thread`.
    pub fn model(&self, thread: &Thread, turn: usize) -> &'static str {
        let is_later = thread.id == self.id && turn >= SWITCH_AT;
        self.later.filter(|_| is_later).unwrap_or(self.model)
    }

    /// The value of the header in which Codex names a fork's parent.
    pub fn metadata(&self) -> Option<String> {
        let parent = self.forked_from.as_ref()?;
        Some(json!({ "session_id": self.id, "forked_from_thread_id": parent }).to_string())
    }

    pub const fn spawns_at(turn: usize) -> bool {
        turn == SPAWN_AT
    }

    /// A turn's body with `history` as its input. Every other field stays the same.
    pub fn body(&self, model: &str, history: &[String]) -> String {
        self.object(model, "", "", history, "")
    }

    /// A turn's body as a client of Chat Completions writes it, with `history` as its messages.
    pub fn chat_body(&self, model: &str, history: &[String]) -> String {
        let messages = history.join(",");
        let tools = chat_tools();
        format!(
            r#"{{"model":"{model}","stream":true,"messages":[{messages}],"tools":{tools},"tool_choice":"auto","parallel_tool_calls":true,"reasoning_effort":"high"}}"#
        )
    }

    /// A turn as a WebSocket's frame, which continues from `previous` with the new items.
    pub fn frame(&self, model: &str, previous: Option<&str>, new: &[String]) -> String {
        let previous =
            previous.map(|id| format!(r#""previous_response_id":"{id}","#)).unwrap_or_default();
        self.object(model, r#""type":"response.create","#, &previous, new, "")
    }

    /// The first frame on a WebSocket: the upstream reads `prefix` into its cache and answers
    /// nothing.
    pub fn prewarm(&self, model: &str, prefix: &[String]) -> String {
        self.object(model, r#""type":"response.create","#, "", prefix, r#""generate":false,"#)
    }

    fn object(
        &self,
        model: &str,
        kind: &str,
        previous: &str,
        input: &[String],
        generate: &str,
    ) -> String {
        let (id, input) = (&self.id, input.join(","));
        format!(
            r#"{{{kind}"model":"{model}","stream":true,{previous}"input":[{input}],"tools":{},"tool_choice":"auto","parallel_tool_calls":true,"reasoning":{{"effort":"high"}},"store":false,"include":["reasoning.encrypted_content"],"prompt_cache_key":"{id}",{generate}"client_metadata":{{"session_id":"{id}"}}}}"#,
            tools()
        )
    }
}

impl Thread {
    /// Opening items that are the same in every session, which a prewarm holds.
    pub const PREFIX: usize = 1;

    /// The items before the first turn.
    pub fn opening(&self) -> Vec<String> {
        vec![
            message("developer", &words(7, 17_000)),
            message(
                "user",
                &format!("<environment_context>{}</environment_context>", words(self.seed, 300)),
            ),
            message("user", &words(self.seed + 1, 200)),
        ]
    }

    /// What the client adds after turn `turn`: the output of the tool that the answer called, or
    /// the user's next message.
    pub fn reply(&self, turn: usize, call: Option<&str>) -> String {
        let seed = self.seed * 31 + turn as u64;
        let text = words(seed, OUTPUT.start + (seed as usize * 7_919) % OUTPUT.len());
        match call {
            Some(call) => {
                json!({ "type": "function_call_output", "call_id": call, "output": text })
                    .to_string()
            }
            None => message("user", &text),
        }
    }
}

/// A user's token.
pub fn token(user: usize) -> String {
    format!("wk-user-{user}")
}

fn message(role: &str, text: &str) -> String {
    json!({ "type": "message", "role": role, "content": [{ "type": "input_text", "text": text }] })
        .to_string()
}

/// About 17 KB of tools, the same in every session.
fn tools() -> String {
    join(|mut tool| {
        tool["type"] = json!("function");
        tool
    })
}

/// The same tools as chat writes them.
fn chat_tools() -> String {
    join(|tool| json!({ "type": "function", "function": tool }))
}

fn join(form: fn(Value) -> Value) -> String {
    let tool = |number: u64| {
        let name = if number == 0 { "exec_command".to_owned() } else { format!("tool_{number}") };
        let parameters = json!({ "type": "object", "properties": { "cmd": { "type": "string", "description": words(number, 300) } }, "required": ["cmd"] });
        form(json!({ "name": name, "description": words(number + 100, 800), "strict": false, "parameters": parameters })).to_string()
    };
    format!("[{}]", (0..13).map(tool).collect::<Vec<_>>().join(","))
}

/// Text of `length` bytes, the same for each seed.
fn words(seed: u64, length: usize) -> String {
    const WORDS: [&str; 16] = [
        "river", "kernel", "amber", "signal", "meadow", "lantern", "copper", "orbit", "harbor",
        "velvet", "thunder", "pebble", "saffron", "glacier", "whisper", "compass",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::with_capacity(length + 8);
    while text.len() < length {
        // Xorshift: any sequence that follows from the seed will do.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        text.push_str(WORDS[(state >> 60) as usize]);
        text.push(' ');
    }
    text.truncate(length);
    text
}

/// An id in the shape of Codex's.
fn uuid(session: usize, thread: usize) -> String {
    format!("01a203d0-d448-7ed2-9bd5-{session:08x}{thread:04x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_have_the_shape_they_claim() {
        let sessions = sessions();
        assert!(
            sessions.len() >= 24
                && sessions.iter().all(|session| session.root.turns >= 30 && session.user < USERS)
        );
        let session = &sessions[0];
        let mut history = session.root.opening();
        assert!((30_000..60_000).contains(&session.body(session.model, &history).len()));
        history.extend((0..TURNS).map(|turn| session.root.reply(turn, None)));
        assert!((200_000..600_000).contains(&session.body(session.model, &history).len()));
        assert!(session.body(session.model, &history).starts_with(
            session.body(session.model, &history[..4]).split_once("],\"tools\"").unwrap().0
        ));
        let drops =
            |thread: &Thread| thread.drops_at.is_some_and(|turn| (1..thread.turns).contains(&turn));
        assert!(sessions.iter().all(|session| drops(&session.root)));
        let resumed: Vec<_> = sessions.iter().filter_map(Session::resumed).collect();
        assert!(resumed.len() >= 6 && resumed.iter().any(|session| session.model == MODELS[0]));
        assert!(resumed.iter().any(|session| session.model == MODELS[1]));
        assert!(sessions.iter().any(|session| session.is_resumed() && session.later.is_some()));
        assert!(sessions.iter().any(|session| session.is_resumed() && session.subagent.is_some()));
        assert!(sessions.iter().any(|session| session.is_forked() && session.later.is_none()));
    }

    #[test]
    fn frame_is_the_body_with_the_response_to_continue_from() {
        let session = &sessions()[0];
        let read = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
        let input = [message("user", "hello")];
        let (body, frame, prewarm) = (
            session.body("m", &input),
            session.frame("m", Some("resp_1"), &input),
            session.prewarm("m", &input),
        );
        let (body, mut frame, mut prewarm) = (read(body), read(frame), read(prewarm));
        for (frame, added) in [(&mut frame, "previous_response_id"), (&mut prewarm, "generate")] {
            let fields = frame.as_object_mut().unwrap();
            assert_eq!(fields.remove("type").unwrap(), "response.create");
            assert!(fields.remove(added).is_some());
            assert_eq!(*frame, body);
        }
    }
}
