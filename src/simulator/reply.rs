//! Decides which answer a request gets: a message, a tool call, a compacted history, or nothing for
//! a prewarm.
//!
//! The input's shape and the directives in its last user text decide. Sealed content of another
//! organization is refused in the words of the real service.

use std::borrow::Cow;

use http::StatusCode;

use super::answer::{Item, Text, quoted};
use super::directive::Directive;
use super::json::{Kind, Value};
use super::key::Key;
use super::refusal::Refusal;
use super::request::{Ask, Caching, Ttl, item_type};
use super::seal::Broken;
use super::world::World;

/// The one tool that the simulator calls.
const TOOL: &str = "exec_command";
const ARGUMENTS: &str = r#"{"cmd":"echo hi"}"#;
/// Bytes inside a sealed blob of reasoning, and of a compacted history.
const REASONING: usize = 320;
const COMPACTION: usize = 2048;
pub const CONTENT: &str = "content";

/// The last user text of an input, and what happened since.
pub struct Prompt {
    pub directive: Directive,
    /// Whether a tool has answered since that text.
    answered: bool,
}

impl Prompt {
    pub fn read(input: Value<'_>) -> Self {
        if let Some(text) = input.text() {
            return Self { directive: Directive::read(&text), answered: false };
        }
        let is_prompt = |item: &Value<'_>| {
            item_type(*item) == "message"
                && item.get("role").is_some_and(|role| role.is_text("user"))
        };
        let (mut last, mut answered) = (None, false);
        for item in input.items() {
            if is_prompt(&item) {
                (last, answered) = (Some(item), false);
            } else if item_type(item).ends_with("_output")
                || item.get("role").is_some_and(|role| role.is_text("tool"))
            {
                answered = true;
            }
        }
        let directive = last.map(|item| Directive::read(&message_text(item))).unwrap_or_default();
        Self { directive, answered }
    }
}

fn message_text(item: Value<'_>) -> Cow<'_, str> {
    let Some(content) = item.get("content") else { return Cow::Borrowed("") };
    let parts = || {
        content
            .items()
            .filter_map(|part| part.get("text").and_then(Value::text))
            .collect::<String>()
    };
    content.text().unwrap_or_else(|| Cow::Owned(parts()))
}

/// Returns the namespace in which the request offers the tool, at the top or by an item.
/// `Some(None)`: the tool has no namespace.
fn offered<'d>(ask: &Ask<'d>) -> Option<Option<Cow<'d, str>>> {
    let by_items = ask
        .input
        .items()
        .filter(|item| item_type(*item) == "additional_tools")
        .filter_map(|item| item.get("tools"));
    ask.tools
        .into_iter()
        .chain(by_items)
        .flat_map(|tools| tools.items().collect::<Vec<_>>())
        .find_map(|tool| {
            let is_it = |tool: Value<'_>| {
                let named = tool.get("function").unwrap_or(tool);
                named.get("name").is_some_and(|name| name.is_text(TOOL))
            };
            match tool.get("tools") {
                Some(inner) => {
                    inner.items().any(is_it).then(|| tool.get("name").and_then(Value::text))
                }
                None => is_it(tool).then_some(None),
            }
        })
}

/// The output items of the answer.
pub fn items(world: &World, organization: &str, ask: &Ask<'_>, prompt: &Prompt) -> Vec<Item> {
    if ask.prewarm {
        return Vec::new();
    }
    if ask.compact {
        return vec![Item::Compaction {
            id: world.id("cmp"),
            sealed: world.seal(CONTENT, organization, COMPACTION),
        }];
    }
    let sealed = ask.sealed_reasoning.then(|| world.seal(CONTENT, organization, REASONING));
    let reasoning = Item::Reasoning { id: world.id("rs"), sealed };
    let call = (prompt.directive.tool && !prompt.answered).then(|| offered(ask)).flatten();
    let last = match call {
        Some(namespace) => Item::Call {
            id: world.id("fc"),
            call_id: world.id("call"),
            name: TOOL.into(),
            namespace: namespace.map(Cow::into_owned),
            arguments: ARGUMENTS.into(),
        },
        None => {
            let events = prompt.directive.events.unwrap_or(u64::from(world.config.events));
            let seed = world.config.seed;
            let text = match (prompt.directive.big, structured(ask.body)) {
                (Some(bytes), _) => Text::Big { bytes },
                (None, Some(name)) => Text::Json { name, events, seed },
                (None, None) => Text::Words { events, seed },
            };
            Item::Message { id: world.id("msg"), text }
        }
    };
    vec![reasoning, last]
}

/// Returns the field of a structured output: the first one of its schema. `None`: the answer is a
/// text.
fn structured(body: Value<'_>) -> Option<String> {
    let format = body.get("text").and_then(|text| text.get("format"));
    let format = format.or_else(|| body.get("response_format"))?;
    let kind = format.get("type").and_then(Value::text)?;
    let schema = format.get("json_schema").unwrap_or(format).get("schema");
    let first = schema
        .and_then(|schema| schema.get("properties"))
        .and_then(|properties| properties.entries().next())
        .and_then(|(name, _)| name.text());
    let name = first.map_or_else(|| "text".into(), Cow::into_owned);
    ["json_schema", "json_object"].contains(&&*kind).then_some(name)
}

/// Checks that this simulator sealed the content for this organization, and that every reference
/// names a stored item or a file of this project.
pub fn check(world: &World, key: &Key, item: Value<'_>) -> Result<(), Refusal> {
    if item_type(item) == "item_reference" {
        let id = item.get("id").and_then(Value::text).unwrap_or_default();
        let message = format!(
            "Item with id '{id}' not found. Items are not persisted when `store` is set to false. Try again with `store` set to true, or remove this item from your input."
        );
        return Err(
            Refusal::invalid(None, Some("input"), message).with_status(StatusCode::NOT_FOUND)
        );
    }
    let parts = item.get("content").filter(|content| content.kind() == Kind::Array);
    let holders: Vec<_> =
        std::iter::once(item).chain(parts.into_iter().flat_map(Value::items)).collect();
    for id in holders.iter().flat_map(|holder| {
        ["file_id", "container_id"].map(|name| holder.get(name).and_then(Value::text))
    }) {
        id.map_or(Ok(()), |id| find(&id, key))?;
    }
    for content in holders.iter().filter_map(|holder| holder.get("encrypted_content")) {
        let text = content.text().unwrap_or_default();
        let reason = match world.sealer.open(CONTENT, &key.organization, &text) {
            Ok(()) => continue,
            Err(Broken::Foreign) => {
                "Encrypted content organization_id did not match the target organization."
            }
            Err(Broken::Garbage) => "Encrypted content could not be decrypted or parsed.",
        };
        let what = match item.get("id").and_then(Value::text) {
            Some(id) => format!("for item {id}"),
            None => shortened(&text),
        };
        let message =
            format!("The encrypted content {what} could not be verified. Reason: {reason}");
        return Err(Refusal::invalid(Some("invalid_encrypted_content"), None, message));
    }
    Ok(())
}

/// Checks that tools search and work only in what this project stores.
pub fn check_tool(key: &Key, tool: Value<'_>) -> Result<(), Refusal> {
    let stores =
        tool.get("vector_store_ids").into_iter().flat_map(|ids| ids.items().collect::<Vec<_>>());
    let mut ids = stores.chain(tool.get("container")).filter_map(Value::text);
    ids.try_for_each(|id| find(&id, key))
}

/// Checks that this project stores `id`. An id names its project:
/// `<kind>-<organization>-<project>-<name>`.
pub fn find(id: &str, key: &Key) -> Result<(), Refusal> {
    let place = id.find(['-', '_']).map(|at| &id[at + 1..]);
    let is_here = place
        .is_some_and(|place| place.starts_with(&format!("{}-{}-", key.organization, key.project)));
    if is_here {
        return Ok(());
    }
    Err(Refusal::invalid(None, Some("input"), format!("'{id}' not found."))
        .with_status(StatusCode::NOT_FOUND))
}

/// `gAAA...wxyz`: a blob as error texts show it.
fn shortened(text: &str) -> String {
    let last = text.char_indices().rev().nth(3).map_or("", |(at, _)| &text[at..]);
    format!("{}...{last}", text.chars().take(4).collect::<String>())
}

/// The fields of the response object that repeat the request. Only plain words are repeated, so
/// that an odd request cannot make an unreadable answer.
pub fn echo(ask: &Ask<'_>) -> String {
    let word = |value: Option<Value<'_>>, usual: &str| match value
        .filter(|value| !matches!(value.kind(), Kind::Array | Kind::Object))
    {
        Some(value) => String::from_utf8_lossy(value.raw()).into_owned(),
        None => usual.to_owned(),
    };
    let inner = |outer, name, usual: &str| {
        word(ask.body.get(outer).and_then(|outer| outer.get(name)), usual)
    };
    let format = ask
        .body
        .get("text")
        .and_then(|text| text.get("format"))
        .and_then(|format| format.get("type"));
    let tier = if ask.tier == "fast" { "priority" } else { &ask.tier };
    let mut echo = format!(
        r#""model":{},"store":{},"service_tier":{},"previous_response_id":{},"prompt_cache_key":{},"parallel_tool_calls":{},"reasoning":{{"effort":{},"summary":null}},"text":{{"format":{{"type":{}}},"verbosity":{}}},"tool_choice":{},"tools":[],"metadata":{{}}"#,
        quoted(&ask.model),
        ask.store,
        quoted(tier),
        word(ask.body.get("previous_response_id"), "null"),
        word(ask.body.get("prompt_cache_key"), "null"),
        word(ask.body.get("parallel_tool_calls"), "true"),
        inner("reasoning", "effort", r#""medium""#),
        word(format, r#""text""#),
        inner("text", "verbosity", r#""medium""#),
        word(ask.body.get("tool_choice"), r#""auto""#),
    );
    match ask.caching {
        Caching::Steps { .. } => {
            echo.push_str(&format!(
                r#","prompt_cache_retention":{}"#,
                word(ask.body.get("prompt_cache_retention"), "null")
            ));
        }
        Caching::Breakpoints { implicit, ttl } => {
            let mode = if implicit { "implicit" } else { "explicit" };
            let ttl = if ttl == Ttl::HalfHour { "30m" } else { "12h" };
            echo.push_str(&format!(r#","prompt_cache_options":{{"mode":"{mode}","ttl":"{ttl}"}}"#));
        }
    }
    echo
}
