//! Output items of an answer: text, tool calls, sealed reasoning and compactions. Pure.

use serde_json::Value;

const WORDS: &[&str] = &[
    "the ",
    "cache ",
    "of ",
    "this ",
    "session ",
    "stays ",
    "warm ",
    "and ",
    "nothing ",
    "is ",
    "computed ",
    "twice, ",
];
const REASONING_TOKENS: u64 = 64;

/// The text of an answer, in the pieces in which it is streamed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    Words {
        events: u64,
        seed: u64,
    },
    /// An object with these words in the field `name`: a structured output.
    Json {
        name: String,
        events: u64,
        seed: u64,
    },
    Big {
        bytes: u64,
    },
}

impl Text {
    pub(super) fn events(&self) -> u64 {
        match self {
            Self::Words { events, .. } | Self::Json { events, .. } => *events,
            Self::Big { .. } => 1,
        }
    }

    fn push(&self, event: u64, text: &mut String) {
        match self {
            Self::Words { seed, .. } => {
                text.push_str(WORDS[(seed.wrapping_add(event) % WORDS.len() as u64) as usize])
            }
            Self::Json { name, events, seed } => {
                if event == 0 {
                    text.push_str(&format!("{{{}:\"", quoted(name)));
                }
                Self::Words { events: *events, seed: *seed }.push(event, text);
                if event + 1 == *events {
                    text.push_str("\"}");
                }
            }
            Self::Big { bytes } => {
                text.extend(std::iter::repeat_n("0123456789abcdef", (*bytes / 16) as usize));
                text.extend(std::iter::repeat_n('x', (*bytes % 16) as usize));
            }
        }
    }

    fn whole(&self) -> String {
        let mut text = String::new();
        (0..self.events()).for_each(|event| self.push(event, &mut text));
        text
    }

    /// One piece of the stream, or the whole text, as a JSON string.
    pub(super) fn spelled(&self, event: Option<u64>) -> String {
        let mut text = String::new();
        match event {
            Some(event) => self.push(event, &mut text),
            None => text = self.whole(),
        }
        // No character of the other texts needs escaping.
        if let Self::Json { .. } = self { quoted(&text) } else { format!("\"{text}\"") }
    }

    pub(super) fn tokens(&self) -> u64 {
        if let Self::Big { bytes } = self { bytes / 4 } else { self.events() }
    }
}

/// One output item. Its id carries its prefix already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Without `sealed`, the item has no `encrypted_content`.
    Reasoning {
        id: String,
        sealed: Option<String>,
    },
    Message {
        id: String,
        text: Text,
    },
    Call {
        id: String,
        call_id: String,
        name: String,
        namespace: Option<String>,
        arguments: String,
    },
    Compaction {
        id: String,
        sealed: String,
    },
}

impl Item {
    pub fn id(&self) -> &str {
        match self {
            Self::Reasoning { id, .. }
            | Self::Message { id, .. }
            | Self::Call { id, .. }
            | Self::Compaction { id, .. } => id,
        }
    }

    /// The finished item.
    pub fn json(&self) -> String {
        self.spelled(true)
    }

    pub(super) fn spelled(&self, done: bool) -> String {
        let status = if done { "completed" } else { "in_progress" };
        match self {
            Self::Reasoning { id, sealed } => {
                let content = sealed
                    .as_ref()
                    .map(|text| format!(r#","encrypted_content":"{text}""#))
                    .unwrap_or_default();
                format!(r#"{{"id":"{id}","type":"reasoning","summary":[]{content}}}"#)
            }
            Self::Message { id, text } => {
                let parts = if done { part(&text.spelled(None)) } else { String::new() };
                format!(
                    r#"{{"id":"{id}","type":"message","status":"{status}","role":"assistant","content":[{parts}]}}"#
                )
            }
            Self::Call { id, call_id, name, namespace, arguments } => {
                let arguments = if done { quoted(arguments) } else { "\"\"".into() };
                let space = namespace
                    .as_ref()
                    .map(|space| format!(r#","namespace":{}"#, quoted(space)))
                    .unwrap_or_default();
                format!(
                    r#"{{"id":"{id}","type":"function_call","status":"{status}","name":{}{space},"arguments":{arguments},"call_id":"{call_id}"}}"#,
                    quoted(name)
                )
            }
            Self::Compaction { id, sealed } => {
                format!(r#"{{"id":"{id}","type":"compaction","encrypted_content":"{sealed}"}}"#)
            }
        }
    }

    pub(super) fn tokens(&self) -> u64 {
        match self {
            Self::Reasoning { .. } => REASONING_TOKENS,
            Self::Message { text, .. } => text.tokens(),
            Self::Call { name, arguments, .. } => ((name.len() + arguments.len()) / 4) as u64,
            Self::Compaction { sealed, .. } => (sealed.len() / 4) as u64,
        }
    }
}

pub(super) fn part(text: &str) -> String {
    format!(r#"{{"type":"output_text","text":{text},"annotations":[],"logprobs":[]}}"#)
}

pub fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}
