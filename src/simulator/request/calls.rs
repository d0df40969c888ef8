//! Tool calls and their outputs: each output needs its call, and each call its output. Pure.

use std::collections::HashSet;

use crate::simulator::json::Value;
use crate::simulator::refusal::Refusal;
use crate::simulator::request::item_type;

/// Tool calls and answered calls of a whole history.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenCalls {
    made: HashSet<String>,
    answered: HashSet<String>,
}

/// Call types, each with its words in error texts. An output's type is the call's with `_output`.
const CALLS: &[(&str, &str)] = &[
    ("function_call", "function call"),
    ("custom_tool_call", "custom tool call"),
    ("local_shell_call", "local shell call"),
    ("shell_call", "shell call"),
    ("apply_patch_call", "apply patch call"),
];

impl OpenCalls {
    /// Adds `item` to the history. An output needs its call before it.
    pub fn take(&mut self, item: Value<'_>) -> Result<(), Refusal> {
        let kind = item_type(item);
        let Some(id) = item.get("call_id").and_then(Value::text) else { return Ok(()) };
        for (call, word) in CALLS {
            if kind == *call {
                self.made.insert(id.into_owned());
                return Ok(());
            }
            if kind.strip_suffix("_output").is_some_and(|of| of == *call) {
                if !self.made.contains(id.as_ref()) {
                    let message =
                        format!("No tool call found for {word} output with call_id {id}.");
                    return Err(Refusal::invalid(None, Some("input"), message));
                }
                self.answered.insert(id.into_owned());
                return Ok(());
            }
        }
        Ok(())
    }

    /// Calls without their output.
    pub fn open(&self) -> impl Iterator<Item = &String> {
        self.made.difference(&self.answered)
    }

    /// Refuses a history with a call that has no output.
    pub fn finish(&self) -> Result<(), Refusal> {
        match self.open().min() {
            Some(id) => Err(Refusal::invalid(
                None,
                Some("input"),
                format!("No tool output found for function call {id}."),
            )),
            None => Ok(()),
        }
    }
}
