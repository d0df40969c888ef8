//! A client of Chat Completions, as OpenAI's SDKs behave: it sends the whole conversation with each
//! turn, and adds each answer exactly as it came.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::world::codex::uuid;
use crate::world::wire::{Answer, Request, ask};

const WORDS: &str = "the quick brown fox jumps over the lazy dog, and ";

/// One conversation.
#[derive(Clone)]
pub struct Chat {
    address: SocketAddr,
    token: String,
    model: String,
    stream: bool,
    /// Further fields of each body.
    fields: Value,
    pub messages: Vec<Value>,
}

/// The answer to a turn.
#[derive(Debug)]
pub struct Said {
    pub answer: Answer,
    pub text: String,
    pub calls: Vec<Value>,
    pub usage: Value,
    pub reason: Option<String>,
    /// Whether `[DONE]` or a whole document has come.
    pub is_done: bool,
}

impl Said {
    /// Fails the test unless the turn was served to its end.
    pub fn served(self) -> Self {
        let (status, text) = (self.answer.status, self.answer.text());
        assert!(status == 200 && self.is_done && self.answer.whole, "served: {status} {text}");
        self
    }
}

impl Chat {
    /// A new conversation of the client with this token. It has a system text of its own.
    pub fn new(address: SocketAddr, token: &str) -> Self {
        let system = format!("{} {}", uuid(), WORDS.repeat(150));
        Self {
            address,
            token: token.into(),
            model: "gpt-5.4".into(),
            stream: false,
            fields: json!({}),
            messages: vec![json!({ "role": "system", "content": system })],
        }
    }

    pub fn model(mut self, model: &str) -> Self {
        self.model = model.into();
        self
    }

    /// Streams, and asks for the usage.
    pub fn streaming(mut self) -> Self {
        self.stream = true;
        self
    }

    /// Sends this field with each turn.
    pub fn field(mut self, name: &str, value: Value) -> Self {
        self.fields[name] = value;
        self
    }

    /// Offers the one tool that the simulator calls.
    pub fn with_tool(self) -> Self {
        let tool = json!([{ "type": "function", "function": { "name": "exec_command",
            "parameters": { "type": "object", "properties": { "cmd": { "type": "string" } } } } }]);
        self.field("tools", tool)
    }

    pub const fn moves_to(&mut self, address: SocketAddr) {
        self.address = address;
    }

    pub fn body(&self) -> String {
        let mut body = self.fields.clone();
        (body["model"], body["messages"]) = (json!(self.model), json!(self.messages));
        if self.stream {
            body["stream"] = json!(true);
            body["stream_options"] = json!({ "include_usage": true });
        }
        body.to_string()
    }

    /// Plays a turn that begins with a user's text.
    pub async fn turn(&mut self, text: &str) -> Said {
        self.messages
            .push(json!({ "role": "user", "content": format!("{text} {}", WORDS.repeat(20)) }));
        self.go_on().await
    }

    /// Answers each call of the last turn.
    pub async fn output(&mut self, calls: &[Value], text: &str) -> Said {
        for call in calls {
            let (id, content) = (&call["id"], format!("{text} {}", WORDS.repeat(20)));
            self.messages.push(json!({ "role": "tool", "tool_call_id": id, "content": content }));
        }
        self.go_on().await
    }

    async fn go_on(&mut self) -> Said {
        let request = Request::turn(&self.token, self.body()).target("/v1/chat/completions");
        let said = read(ask(self.address, &request).await);
        if said.is_done && said.answer.status == 200 {
            let mut message = json!({ "role": "assistant", "content": said.text });
            if !said.calls.is_empty() {
                message["tool_calls"] = said.calls.clone().into();
            }
            self.messages.push(message);
        }
        said
    }
}

/// Reads an answer of either kind.
pub fn read(answer: Answer) -> Said {
    let is_stream = answer.header("content-type").is_some_and(|kind| kind.contains("event-stream"));
    let mut said = Said {
        answer,
        text: String::new(),
        calls: Vec::new(),
        usage: Value::Null,
        reason: None,
        is_done: !is_stream,
    };
    let text = said.answer.text();
    if !is_stream {
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        let choice = &body["choices"][0];
        said.text = choice["message"]["content"].as_str().unwrap_or_default().into();
        said.calls = choice["message"]["tool_calls"].as_array().cloned().unwrap_or_default();
        said.reason = choice["finish_reason"].as_str().map(str::to_owned);
        said.usage = body["usage"].clone();
        return said;
    }
    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        said.is_done |= data == "[DONE]";
        said.chunk(&serde_json::from_str(data).unwrap_or_default());
    }
    said
}

impl Said {
    fn chunk(&mut self, chunk: &Value) {
        let choice = &chunk["choices"][0];
        self.text.push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.reason = Some(reason.into());
        }
        if chunk["usage"].is_object() {
            self.usage = chunk["usage"].clone();
        }
        for delta in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            let index = delta["index"].as_u64().unwrap_or_default() as usize;
            if index == self.calls.len() {
                let mut call = delta.clone();
                call.as_object_mut().expect("a call is an object").remove("index");
                self.calls.push(call);
            } else {
                let arguments = &mut self.calls[index]["function"]["arguments"];
                let more = delta["function"]["arguments"].as_str().unwrap_or_default();
                *arguments = format!("{}{more}", arguments.as_str().unwrap_or_default()).into();
            }
        }
    }
}
