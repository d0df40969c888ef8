//! The prefix of a request: its context in the order in which a model reads it, and the ends at
//! which a cache can match.
//!
//! The order is settings (which cost no tokens and yet change the prefix), tools, instructions,
//! then the items of the history. Four rendered bytes are a token.
//!
//! Rendering uses the bytes as sent, which is stricter than the service: another order in a schema,
//! or another spelling, makes another prefix. Fields that a model never sees are left out: item ids
//! and states, Codex's own metadata, marks.

use sha2::{Digest as _, Sha256};

use super::json::{Kind, Value};
use super::request::{Ask, Ttl, item_type, ttl_of};

/// Rendered bytes of one token.
const TOKEN: usize = 4;
/// Tokens by which a request is steered to a machine.
const HEAD: usize = 256;

/// Fields of an item that a model never sees.
const UNSEEN: &[&str] = &["id", "status", "internal_chat_message_metadata_passthrough"];
/// Fields of a content part that a model never sees.
const UNSEEN_IN_PART: &[&str] = &["prompt_cache_breakpoint", "annotations", "logprobs"];

pub type Digest = [u8; 16];

/// The role of an item, as far as caching distinguishes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Developer,
    User,
    ToolOutput,
    Other,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    end: usize,
    role: Role,
}

/// Rendered items of a history.
#[derive(Clone, Debug, Default)]
pub struct History {
    bytes: Vec<u8>,
    items: Vec<Item>,
    /// Explicit marks. A mark without a life of its own has the request's.
    marks: Vec<(usize, Option<Ttl>)>,
    /// Whether some item replaces an earlier history.
    pub compacted: bool,
}

impl History {
    pub fn take(&mut self, item: Value<'_>) {
        let kind = item_type(item);
        let role = match kind.as_ref() {
            "compaction_trigger" => return,
            "message" | "additional_tools" => {
                match item.get("role").and_then(Value::text).as_deref() {
                    Some("user") => Role::User,
                    // A tool's output in chat.
                    Some("tool") => Role::ToolOutput,
                    Some("developer" | "system") => Role::Developer,
                    _ => Role::Other,
                }
            }
            other if other.ends_with("_output") => Role::ToolOutput,
            _ => Role::Other,
        };
        self.compacted |= kind == "compaction";
        self.bytes.push(b'\x1e');
        for (name, value) in
            item.entries().filter(|(name, _)| !UNSEEN.iter().any(|unseen| name.is_text(unseen)))
        {
            self.bytes.extend_from_slice(name.raw());
            if name.is_text("content") && value.kind() == Kind::Array {
                value.items().for_each(|part| self.take_part(part));
            } else {
                self.bytes.extend_from_slice(value.raw());
            }
        }
        self.items.push(Item { end: self.bytes.len(), role });
    }

    /// An `input` that is a string is one user message.
    pub fn take_text(&mut self, text: Value<'_>) {
        self.bytes.push(b'\x1e');
        self.bytes.extend_from_slice(text.raw());
        self.items.push(Item { end: self.bytes.len(), role: Role::User });
    }

    fn take_part(&mut self, part: Value<'_>) {
        if part.kind() != Kind::Object {
            self.bytes.extend_from_slice(part.raw());
            return;
        }
        for (name, value) in part
            .entries()
            .filter(|(name, _)| !UNSEEN_IN_PART.iter().any(|unseen| name.is_text(unseen)))
        {
            self.bytes.extend_from_slice(name.raw());
            self.bytes.extend_from_slice(value.raw());
        }
        if let Some(mark) = part.get("prompt_cache_breakpoint") {
            let ttl = mark.get("ttl").and_then(Value::text);
            self.marks.push((self.bytes.len(), ttl.and_then(|ttl| ttl_of(Some(&ttl)))));
        }
    }

    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the ends that the service may mark by itself. These are the ends of user messages,
    /// of a run's last tool output, and of the first run of developer messages.
    fn eligible(&self) -> impl Iterator<Item = (usize, Stop)> {
        let developers = self.items.iter().take_while(|item| item.role == Role::Developer).count();
        self.items.iter().enumerate().filter_map(move |(index, item)| {
            let next = self.items.get(index + 1).map(|next| next.role);
            match item.role {
                Role::User => Some((item.end, Stop::Turn)),
                Role::ToolOutput if next != Some(Role::ToolOutput) => Some((item.end, Stop::Turn)),
                Role::Developer if index + 1 == developers => Some((item.end, Stop::Developer)),
                _ => None,
            }
        })
    }
}

/// Why a cache can match at this end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The end of a user message or of a run of tool outputs.
    Turn,
    /// The end of the first run of developer messages.
    Developer,
    /// An explicit `prompt_cache_breakpoint`, with its own life if it has one.
    Mark(Option<Ttl>),
}

/// One end at which a cache can match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    pub digest: Digest,
    pub tokens: u64,
    pub stop: Stop,
}

/// The hashes of a request's prefix.
#[derive(Clone, Debug)]
pub struct Prefix {
    pub tokens: u64,
    /// The hash after each step of so many tokens. Empty for a regime without steps.
    pub steps: Vec<Digest>,
    /// In order of length. Empty for a regime without breakpoints.
    pub ends: Vec<End>,
    /// The hash of the first 256 tokens, by which the service steers.
    pub head: Digest,
}

impl Prefix {
    /// Hashes a prefix. `step` is the tokens of one step. `None` asks for breakpoints.
    pub fn new(ask: &Ask<'_>, history: &History, step: Option<u64>) -> Self {
        let settings = settings(ask);
        let mut context = Vec::new();
        for tool in ask.tools.iter().flat_map(|tools| tools.items()) {
            context.push(b'\x1d');
            context.extend_from_slice(tool.raw());
        }
        if let Some(instructions) = ask.instructions {
            context.push(b'\x1c');
            context.extend_from_slice(instructions.raw());
        }
        let tokens = (((context.len() + history.bytes.len()) / TOKEN) as u64).max(1);
        let mut prefix = Self {
            tokens,
            steps: Vec::new(),
            ends: Vec::new(),
            head: head(&context, &history.bytes),
        };
        match step {
            Some(tokens) => {
                context.extend_from_slice(&history.bytes);
                prefix.steps = steps(&settings, &context, tokens as usize * TOKEN);
            }
            None => prefix.ends = ends(&settings, &context, history),
        }
        prefix
    }
}

/// The hash of the first 256 tokens, from whichever parts they come.
fn head(context: &[u8], history: &[u8]) -> Digest {
    let (room, first) = (HEAD * TOKEN, context.len().min(HEAD * TOKEN));
    let second = history.len().min(room - first);
    short(Sha256::new().chain_update(&context[..first]).chain_update(&history[..second]))
}

fn short(hasher: Sha256) -> Digest {
    let mut digest = Digest::default();
    digest.copy_from_slice(&hasher.finalize()[..16]);
    digest
}

/// A digest of named parts, in order.
pub fn digest(parts: &[&[u8]]) -> Digest {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    short(hasher)
}

/// Digests the settings that are no text but are part of the prefix.
fn settings(ask: &Ask<'_>) -> Digest {
    let [format, effort, verbosity] = shaping(ask);
    let raw = |name| ask.body.get(name).map_or(&b""[..], Value::raw);
    digest(&[
        ask.model.as_bytes(),
        ask.tier.as_bytes(),
        format,
        effort,
        verbosity,
        raw("parallel_tool_calls"),
        raw("context_management"),
    ])
}

/// `text.format`, `reasoning.effort` and `text.verbosity`, or what chat calls them, as sent.
pub fn shaping<'d>(ask: &Ask<'d>) -> [&'d [u8]; 3] {
    let raw = |outer, inner, chat| {
        let nested = ask.body.get(outer).and_then(|value| value.get(inner));
        nested.or_else(|| ask.body.get(chat)).map_or(&b""[..], Value::raw)
    };
    [
        raw("text", "format", "response_format"),
        raw("reasoning", "effort", "reasoning_effort"),
        raw("text", "verbosity", "verbosity"),
    ]
}

fn steps(settings: &Digest, context: &[u8], step: usize) -> Vec<Digest> {
    let mut last = *settings;
    context
        .chunks_exact(step)
        .map(|chunk| {
            last = short(Sha256::new().chain_update(last).chain_update(chunk));
            last
        })
        .collect()
}

fn ends(settings: &Digest, context: &[u8], history: &History) -> Vec<End> {
    let mut places: Vec<(usize, Stop)> = history.eligible().collect();
    places.extend(history.marks.iter().map(|(at, ttl)| (*at, Stop::Mark(*ttl))));
    places.sort_by_key(|(at, _)| *at);
    let mut hasher = Sha256::new().chain_update(settings).chain_update(context);
    let mut from = 0;
    places
        .into_iter()
        .map(|(at, stop)| {
            hasher.update(&history.bytes[from..at]);
            from = at;
            End {
                digest: short(hasher.clone()),
                tokens: ((context.len() + at) / TOKEN) as u64,
                stop,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests;
