//! Translates messages into input items, in their order and each by itself: system text is neither
//! moved nor joined.

use std::borrow::Cow;
use std::collections::HashSet;

use crate::chat::json::{Fields, Object, invalid, list, unsupported, word};
use crate::error::Error;

/// Fields of a content part that both dialects share.
const BREAKPOINT: &str = "prompt_cache_breakpoint";

/// Fields in which OpenAI's Python SDK sends back what it has parsed from a message's content and a
/// call's arguments. The text itself says the same.
const PARSED: &str = "parsed";
const PARSED_ARGUMENTS: &str = "parsed_arguments";

/// Writes the items of `messages`.
pub fn items<'b>(
    out: &mut Vec<u8>,
    messages: impl Iterator<Item = (String, &'b [u8])>,
) -> Result<(), Error> {
    let mut items = Items { out, is_empty: true, custom: HashSet::new() };
    items.out.push(b'[');
    for (place, raw) in messages {
        items.message(&Fields::of(raw, place)?)?;
    }
    items.out.push(b']');
    Ok(())
}

struct Items<'o, 'b> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
    /// The calls of custom tools so far: their outputs are items of another type.
    custom: HashSet<Cow<'b, str>>,
}

/// The parts that a message's content may hold.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Text alone.
    System,
    /// Text, images and files.
    User,
    /// Text and refusals.
    Assistant,
}

impl<'b> Items<'_, 'b> {
    fn message(&mut self, message: &Fields<'b>) -> Result<(), Error> {
        let role = message.word("role")?;
        match role.as_deref() {
            Some(role @ ("system" | "developer")) => {
                message.only(&[&["role", "content"]])?;
                self.write_message(role, message, Side::System)
            }
            Some("user") => {
                message.only(&[&["role", "content"]])?;
                self.write_message("user", message, Side::User)
            }
            Some("assistant") => self.write_answer(message),
            Some("tool") => self.returned(message),
            Some(_) => Err(unsupported(&message.at("role"))),
            None => Err(invalid(&message.at("role"), "is missing")),
        }
    }

    fn item(&mut self, kind: &str) -> Object<'_> {
        if !std::mem::take(&mut self.is_empty) {
            self.out.push(b',');
        }
        let mut item = Object::open(self.out);
        item.plain("type", kind);
        item
    }

    /// Writes the message of a user or of the system.
    fn write_message(&mut self, role: &str, message: &Fields<'_>, side: Side) -> Result<(), Error> {
        message.needed("content")?;
        let mut item = self.item("message");
        item.plain("role", role);
        content(item.begin("content"), message, "content", side)?;
        item.close();
        Ok(())
    }

    /// Writes an assistant's message: its text, then its calls.
    fn write_answer(&mut self, message: &Fields<'b>) -> Result<(), Error> {
        // Clients send answers back as they came; annotations are only of answers.
        const OF_AN_ANSWER: [&str; 2] = ["annotations", PARSED];
        message.only(&[&["role", "content", "refusal", "tool_calls"], &OF_AN_ANSWER])?;
        if message.get(PARSED).is_some() && message.get("content").is_none() {
            return Err(unsupported(&message.at(PARSED)));
        }
        let calls = message.get("tool_calls").map(|_| message.elements("tool_calls"));
        let mut calls = calls.transpose()?.into_iter().flatten().peekable();
        let (refusal, has_calls) = (message.get("refusal"), calls.peek().is_some());
        let text = message.get("content");
        let is_empty = text.is_none_or(|text| text == b"\"\"" || text == b"[]");
        if !is_empty || refusal.is_some() || !has_calls {
            let mut item = self.item("message");
            item.plain("role", "assistant");
            let out = item.begin("content");
            match text.filter(|_| !is_empty || refusal.is_none()) {
                Some(_) => content(out, message, "content", Side::Assistant)?,
                None => out.extend_from_slice(b"[]"),
            }
            if let Some(refusal) = refusal {
                // The refusal follows the parts before it.
                out.pop();
                if !out.ends_with(b"[") {
                    out.push(b',');
                }
                part(out, "refusal", "refusal", refusal);
                out.push(b']');
            }
            item.close();
        }
        for (place, raw) in calls {
            self.call(&Fields::of(raw, place)?)?;
        }
        Ok(())
    }

    fn call(&mut self, call: &Fields<'b>) -> Result<(), Error> {
        let kind = call.word("type")?;
        let (kind, item, text) = match kind.as_deref() {
            Some("function") | None => ("function", "function_call", "arguments"),
            Some("custom") => ("custom", "custom_tool_call", "input"),
            Some(_) => return Err(unsupported(&call.at("type"))),
        };
        // Some clients send the index of a streamed call back.
        call.only(&[&["id", "type", "index", kind]])?;
        let (id, inner) = (call.needed("id")?, call.inner(kind)?);
        inner
            .only(&[&["name", text], if kind == "function" { &[PARSED_ARGUMENTS] } else { &[] }])?;
        if kind == "custom" {
            self.custom.extend(word(id));
        }
        let (name, said) = (inner.needed("name")?, inner.needed(text)?);
        let mut item = self.item(item);
        item.raw("call_id", id).raw("name", name).raw(text, said);
        item.close();
        Ok(())
    }

    /// Writes a tool's output.
    fn returned(&mut self, message: &Fields<'_>) -> Result<(), Error> {
        // Some clients repeat the tool's name, which the call's id already says.
        message.only(&[&["role", "content", "tool_call_id", "name"]])?;
        let (id, said) = (message.needed("tool_call_id")?, message.needed("content")?);
        let is_custom = word(id).is_some_and(|id| self.custom.contains(&id));
        let kind = if is_custom { "custom_tool_call_output" } else { "function_call_output" };
        let mut item = self.item(kind);
        item.raw("call_id", id);
        match said {
            [b'"', ..] => _ = item.raw("output", said),
            _ => content(item.begin("output"), message, "content", Side::System)?,
        }
        item.close();
        Ok(())
    }
}

/// Writes the content in the field `name` as an array of parts.
fn content(out: &mut Vec<u8>, message: &Fields<'_>, name: &str, side: Side) -> Result<(), Error> {
    let kind = if side == Side::Assistant { "output_text" } else { "input_text" };
    let raw = message.needed(name)?;
    if raw.starts_with(b"\"") {
        out.push(b'[');
        part(out, kind, "text", raw);
        out.push(b']');
        return Ok(());
    }
    list(out, message.elements(name)?, |out, (place, raw)| {
        let fields = Fields::of(raw, place)?;
        match (fields.word("type")?.as_deref(), side) {
            (Some("text"), _) => {
                fields.only(&[&["type", "text", BREAKPOINT]])?;
                let mut part = Object::open(out);
                part.plain("type", kind).raw("text", fields.needed("text")?);
                part.maybe(BREAKPOINT, fields.get(BREAKPOINT));
                part.close();
                Ok(())
            }
            (Some("refusal"), Side::Assistant) => {
                fields.only(&[&["type", "refusal"]])?;
                part(out, "refusal", "refusal", fields.needed("refusal")?);
                Ok(())
            }
            (Some("image_url"), Side::User) => image(out, &fields),
            (Some("file"), Side::User) => file(out, &fields),
            (Some(_), _) => Err(unsupported(&fields.at("type"))),
            (None, _) => Err(invalid(&fields.at("type"), "is missing")),
        }
    })
}

fn part(out: &mut Vec<u8>, kind: &str, name: &str, text: &[u8]) {
    let mut part = Object::open(out);
    part.plain("type", kind).raw(name, text);
    part.close();
}

fn image(out: &mut Vec<u8>, fields: &Fields<'_>) -> Result<(), Error> {
    fields.only(&[&["type", "image_url", BREAKPOINT]])?;
    let image = fields.inner("image_url")?;
    image.only(&[&["url", "detail"]])?;
    let mut part = Object::open(out);
    // The Responses API requires `detail`.
    part.plain("type", "input_image")
        .raw("image_url", image.needed("url")?)
        .raw("detail", image.get("detail").unwrap_or(b"\"auto\""))
        .maybe(BREAKPOINT, fields.get(BREAKPOINT));
    part.close();
    Ok(())
}

fn file(out: &mut Vec<u8>, fields: &Fields<'_>) -> Result<(), Error> {
    const NAMES: [&str; 3] = ["file_id", "filename", "file_data"];
    fields.only(&[&["type", "file", BREAKPOINT]])?;
    let file = fields.inner("file")?;
    file.only(&[&NAMES])?;
    let mut part = Object::open(out);
    part.plain("type", "input_file");
    for name in NAMES {
        part.maybe(name, file.get(name));
    }
    part.maybe(BREAKPOINT, fields.get(BREAKPOINT));
    part.close();
    Ok(())
}
