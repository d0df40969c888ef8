//! A client with Codex's behavior on the wire: bodies, headers, a connection for each request, when
//! the client leaves, and when it retries. The recorded requests in `tests/fixtures` verify it.

use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::world::waiting::{ANSWER, ms, within};
use crate::world::wire::{Answer, Connection, Piece, Request};

mod talk;

pub use talk::Talk;

/// The recorded first turn, with which every session begins.
const FIRST_TURN: &str = include_str!("../../fixtures/first-turn.body");

#[derive(Deserialize)]
struct Recorded {
    input: Vec<Box<RawValue>>,
    tools: Vec<Box<RawValue>>,
}

static RECORDED: LazyLock<Recorded> =
    LazyLock::new(|| serde_json::from_str(FIRST_TURN).expect("the fixture is JSON"));

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An id in the shape of Codex's: a UUID of version 7.
pub fn uuid() -> String {
    let random = |mask: u64| getrandom::u64().expect("the system has entropy") & mask;
    let (time, a, b, c) =
        (random(u64::MAX >> 16), random(0xfff), random(0x3fff), random(u64::MAX >> 16));
    format!("{:08x}-{:04x}-7{a:03x}-{:04x}-{c:012x}", time >> 16, time & 0xffff, 0x8000 | b)
}

/// A turn that has ended, as the client saw it.
pub struct Ended {
    pub answer: Answer,
    /// Hash of the body that was sent.
    pub sha256: String,
    /// Whether the terminal event has come.
    pub completed: bool,
}

impl Ended {
    /// Fails the test unless the turn was served to its end.
    pub fn served(self) -> Self {
        assert!(
            self.completed,
            "served: {} {:?} {}",
            self.answer.status,
            self.answer.headers,
            self.answer.text()
        );
        self
    }
}

/// One thread of a session.
#[derive(Clone)]
pub struct Codex {
    address: SocketAddr,
    token: String,
    model: String,
    pub session: String,
    thread: String,
    /// The thread that spawned this one.
    parent: Option<String>,
    /// The thread that this session was forked from.
    forked_from: Option<String>,
    tools: String,
    input: Vec<String>,
    effort: String,
    /// `request_kind` and `thread_source` of the turn metadata.
    purpose: [&'static str; 2],
    /// The next turn asks for a compaction.
    trigger: bool,
    retries: usize,
}

impl Codex {
    /// A new session of the client with this token.
    pub fn new(address: SocketAddr, token: &str) -> Self {
        let session = uuid();
        // Each workspace has tools of its own, so that sessions share no prefix and each pays for
        // its own beginning.
        let own = json!({ "type": "function", "name": format!("workspace_{}", session.replace('-', "_")), "strict": false,
            "description": "this workspace", "parameters": { "type": "object", "properties": {} } });
        let mut tools = vec![own.to_string()];
        tools.extend(RECORDED.tools.iter().map(|tool| tool.get().to_owned()));
        Self {
            address,
            token: token.into(),
            model: "gpt-5.4".into(),
            thread: session.clone(),
            session,
            parent: None,
            forked_from: None,
            tools: format!("[{}]", tools.join(",")),
            input: RECORDED.input[..3].iter().map(|item| item.get().to_owned()).collect(),
            effort: "xhigh".into(),
            purpose: ["turn", "user"],
            trigger: false,
            retries: 0,
        }
    }

    /// Asks for another model from now on.
    pub fn asks(&mut self, model: &str) {
        self.model = model.into();
    }

    /// Has other tools from now on.
    pub fn changes_tools(&mut self) {
        self.tools = self.tools.replacen("this workspace", "another workspace", 1);
    }

    /// Uses another reasoning effort from now on.
    pub fn changes_effort(&mut self) {
        self.effort = "low".into();
    }

    /// Has another history from now on, with an earlier beginning.
    pub fn edits_history(&mut self) {
        let new = json!({ "type": "message", "role": "developer",
            "content": [{ "type": "input_text", "text": "Today is another day." }] });
        self.input.insert(0, new.to_string());
    }

    /// Has few tools and no history, so that its input is shorter than any model caches.
    pub fn says_little(mut self) -> Self {
        let end = self.tools.find("},{").expect("several tools");
        self.tools = format!("{}}}]", &self.tools[..end]);
        self.input.clear();
        self
    }

    /// Is a session in which Codex makes the title of a conversation.
    pub const fn titles(mut self) -> Self {
        self.purpose = ["turn", "thread_title"];
        self
    }

    /// Replaces the history with a compacted one.
    pub async fn compacts(&mut self) -> Ended {
        self.purpose[0] = "compaction";
        self.trigger = true;
        let known = self.input.len();
        let ended = self.turn("go on").await;
        (self.purpose[0], self.trigger) = ("turn", false);
        let compacted = self.input.split_off(known + 1);
        self.input.truncate(3);
        self.input.extend(compacted);
        ended
    }

    pub fn model(mut self, model: &str) -> Self {
        self.model = model.into();
        self
    }

    /// Tries again as Codex does: after a connection that fails or breaks, after 5xx, and after 429
    /// with a wait, unless that is final.
    pub const fn patient(mut self) -> Self {
        self.retries = 5;
        self
    }

    /// Connects to this address from now on.
    pub const fn at(mut self, address: SocketAddr) -> Self {
        self.address = address;
        self
    }

    pub const fn moves_to(&mut self, address: SocketAddr) {
        self.address = address;
    }

    /// Sends this token from now on.
    pub fn shows(&mut self, token: &str) {
        self.token = token.into();
    }

    /// A sub-agent: a new thread in the same session, without a history.
    pub fn spawn(&self) -> Self {
        let mut agent = self.clone();
        agent.thread = uuid();
        agent.parent = Some(self.thread.clone());
        agent.input.truncate(3);
        agent
    }

    /// A fork: a new session that continues this thread's history.
    pub fn fork(&self) -> Self {
        let session = uuid();
        let forked_from = Some(self.thread.clone());
        Self { thread: session.clone(), session, parent: None, forked_from, ..self.clone() }
    }

    fn metadata(&self, turn: &str) -> String {
        let mut metadata = json!({ "session_id": self.session, "thread_id": self.thread, "agent_name": "/main", "turn_id": turn,
            "window_id": format!("{}:0", self.thread), "request_kind": self.purpose[0], "thread_source": self.purpose[1], "history_initialization": "new",
            "root_turn_id": turn, "sandbox": "none", "model": self.model });
        if let Some(parent) = &self.parent {
            metadata["parent_thread_id"] = json!(parent);
            metadata["thread_source"] = json!("subagent");
        }
        if let Some(parent) = &self.forked_from {
            metadata["forked_from_thread_id"] = json!(parent);
            metadata["history_initialization"] = json!("cold_fork");
        }
        metadata.to_string()
    }

    /// The body of a turn. Fields stand in Codex's order; those of `client_metadata` in a random
    /// order.
    fn body(&self, metadata: &str, turn: &str) -> Vec<u8> {
        let mut client = [
            ("x-codex-installation-id", "05c07f78-fc45-4415-bc49-17d50f3e9f69".to_owned()),
            ("session_id", self.session.clone()),
            ("thread_id", self.thread.clone()),
            ("turn_id", turn.to_owned()),
            ("root_turn_id", turn.to_owned()),
            ("x-codex-window-id", format!("{}:0", self.thread)),
            ("x-codex-turn-metadata", metadata.to_owned()),
        ];
        for last in (1..client.len()).rev() {
            client.swap(
                last,
                getrandom::u32().expect("the system has entropy") as usize % (last + 1),
            );
        }
        let client: Vec<String> = client
            .iter()
            .map(|(name, value)| format!("{}:{}", json!(name), json!(value)))
            .collect();
        let trigger = [r#"{"type":"compaction_trigger"}"#.to_owned()];
        let trigger = if self.trigger { trigger.to_vec() } else { Vec::new() };
        format!(
            r#"{{"model":{},"stream":true,"input":[{}],"tools":{},"tool_choice":"auto","parallel_tool_calls":true,"reasoning":{{"effort":{}}},"store":false,"include":["reasoning.encrypted_content"],"prompt_cache_key":{},"client_metadata":{{{}}}}}"#,
            json!(self.model),
            [&self.input[..], &trigger].concat().join(","),
            self.tools,
            json!(self.effort),
            json!(self.session),
            client.join(",")
        )
        .into_bytes()
    }

    /// Appends a user's message, and returns the request of the turn that it begins, with that
    /// request's body.
    pub fn begin(&mut self, text: &str) -> (Request, Vec<u8>) {
        let turn = uuid();
        self.input.push(
            json!({ "type": "message", "id": format!("msg_{}", uuid()), "role": "user",
                "content": [{ "type": "input_text", "text": text }], "internal_chat_message_metadata_passthrough": { "turn_id": turn } })
            .to_string(),
        );
        let metadata = self.metadata(&turn);
        let body = self.body(&metadata, &turn);
        let mut request = Request::new("POST", "/responses")
            .header("x-codex-beta-features", "remote_compaction_v2")
            .header("x-codex-window-id", &format!("{}:0", self.thread))
            .header("x-codex-turn-metadata", &metadata);
        if let Some(parent) = &self.parent {
            request = request
                .header("x-codex-parent-thread-id", parent)
                .header("x-openai-subagent", "collab_spawn");
        }
        let request = request
            .header("x-client-request-id", &self.thread)
            .header("session-id", &self.session)
            .header("thread-id", &self.thread)
            .header("accept", "text/event-stream")
            .header("content-type", "application/json")
            .bearer(&self.token)
            .header("originator", "codex_exec")
            .header(
                "user-agent",
                "codex_exec/0.169.0 (Debian 12.0.0; x86_64) unknown (codex_exec; 0.169.0)",
            )
            .body(body.clone());
        (request, body)
    }

    /// Plays one turn to its end, and appends the answer to the input of the next turn.
    pub async fn turn(&mut self, text: &str) -> Ended {
        self.turn_telling(text, || {}).await
    }

    /// As [`Self::turn`], but calls `begun` whenever an answer begins.
    pub async fn turn_telling(&mut self, text: &str, begun: impl Fn()) -> Ended {
        let (request, body) = self.begin(text);
        let mut attempts = 0;
        let mut pause = ms(100);
        loop {
            attempts += 1;
            let answer = within(ANSWER, "a turn", stream(self.address, &request, &begun)).await;
            let completed = answer.as_ref().is_some_and(|answer| ends(&answer.body));
            let wait = match &answer {
                _ if completed || attempts > self.retries => None,
                None => Some(pause),
                Some(answer) if answer.status == 429 && answer.code() == "insufficient_quota" => {
                    None
                }
                Some(answer) if answer.status == 429 => answer
                    .header("retry-after")
                    .and_then(|wait| wait.parse().ok())
                    .map(Duration::from_secs),
                Some(answer) => (answer.status == 200 || answer.status >= 500).then_some(pause),
            };
            let Some(wait) = wait else {
                let answer = answer.expect("the replica answers");
                let ended = Ended { answer, sha256: sha256(&body), completed };
                self.input.extend(items(&ended.answer.body));
                return ended;
            };
            tokio::time::sleep(wait).await;
            pause *= 2;
        }
    }
}

/// Whether the whole terminal event has come.
fn ends(body: &[u8]) -> bool {
    let terminal = memchr::memmem::rfind(body, b"event: response.completed\n");
    terminal.is_some_and(|at| memchr::memmem::find(&body[at..], b"\n\n").is_some())
}

/// The output item of an event, as it was written.
fn items_of(data: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Done {
        item: Box<RawValue>,
    }
    serde_json::from_str::<Done>(data).ok().map(|done| done.item.get().to_owned())
}

/// The output items of an answer, as they were written.
fn items(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body);
    let done =
        text.split("\n\n").filter(|event| event.starts_with("event: response.output_item.done\n"));
    let data = done.filter_map(|event| event.split_once("data: "));
    data.map(|(_, data)| items_of(data).expect("an output item is JSON")).collect()
}

/// Asks on a new connection, and closes it as soon as the terminal event is there, before the
/// stream has ended.
async fn stream(address: SocketAddr, request: &Request, begun: impl Fn()) -> Option<Answer> {
    let mut connection = Connection::try_open(address).await.ok()?;
    let mut answer = connection.ask(request).await?;
    begun();
    loop {
        match connection.piece().await {
            Piece::Bytes(bytes) => answer.body.extend_from_slice(&bytes),
            Piece::End => answer.whole = true,
            Piece::Cut => return Some(answer),
        }
        if answer.whole || answer.status == 200 && ends(&answer.body) {
            return Some(answer);
        }
    }
}
