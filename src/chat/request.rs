//! Translates a chat request into a Responses request.
//!
//! Settings and tools come first in a fixed order, and the messages come last. If a client only
//! adds messages, each body therefore continues the one before it.

use bytes::Bytes;

use crate::chat::json::{Fields, Object, invalid, list, unsupported};
use crate::error::{Error, ErrorKind};

mod messages;
mod tools;

/// Fields that both dialects share, in the order in which they are written.
const SHARED: [&str; 12] = [
    "model",
    "stream",
    "service_tier",
    "user",
    "safety_identifier",
    "metadata",
    "moderation",
    "prompt_cache_retention",
    "prompt_cache_options",
    "temperature",
    "top_p",
    "parallel_tool_calls",
];

/// How each body with a model begins.
const MODEL: &str = r#"{"model":"#;

/// Fields that are written in another form.
const TRANSLATED: [&str; 11] = [
    "messages",
    "max_tokens",
    "max_completion_tokens",
    "reasoning_effort",
    "verbosity",
    "response_format",
    "tools",
    "tool_choice",
    "stream_options",
    "prompt_cache_key",
    "store",
];

/// Fields without an equivalent, each with the values that ask for nothing and therefore pass.
const REFUSED: [(&str, &[&str]); 14] = [
    ("n", &["1"]),
    ("stop", &["[]"]),
    ("seed", &[]),
    ("logit_bias", &["{}"]),
    ("frequency_penalty", &["0"]),
    ("presence_penalty", &["0"]),
    ("prediction", &[]),
    ("audio", &[]),
    ("modalities", &[r#"["text"]"#]),
    ("logprobs", &["false"]),
    ("top_logprobs", &[]),
    ("functions", &["[]"]),
    ("function_call", &["\"none\""]),
    ("web_search_options", &[]),
];

/// Longest value that may ask for nothing. A client's longer one is not parsed, because its parts
/// could take forty times its memory.
const LONGEST_NEUTRAL: usize = 64;

/// The lowest limit of output tokens that the Responses API takes.
const LEAST_TOKENS: f64 = 16.0;

/// The form in which a client wants its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    pub stream: bool,
    /// `stream_options.include_usage`: a last chunk with the usage.
    pub include_usage: bool,
}

/// A translated request.
#[derive(Debug, PartialEq, Eq)]
pub struct Translated {
    pub body: Bytes,
    /// Where the value of `model` begins and ends in the body.
    pub model_place: Option<(usize, usize)>,
    pub wish: Wish,
}

/// Translates `body`, which is JSON. `cache_key` is the `prompt_cache_key` for a body without one.
/// An error names the field that has no equivalent.
pub fn translate(body: &[u8], cache_key: Option<&str>) -> Result<Translated, Error> {
    let fields = Fields::of(body, String::new())?;
    let refused = REFUSED.map(|(name, _)| name);
    fields.only(&[&SHARED, &TRANSLATED, &refused])?;
    for (name, neutral) in REFUSED {
        if fields.get(name).is_some_and(|raw| !neutral.iter().any(|one| is_same(raw, one))) {
            return Err(unsupported(name));
        }
    }
    let wish = wish(&fields)?;
    let mut out = Vec::with_capacity(body.len() + body.len() / 8 + 256);
    let mut object = Object::open(&mut out);
    for name in SHARED {
        object.maybe(name, fields.get(name));
    }
    // Chat does not store by default, and Responses does.
    object.raw("store", b"false");
    match (fields.get("prompt_cache_key"), cache_key) {
        (Some(own), _) => object.raw("prompt_cache_key", own),
        (None, Some(derived)) => object.plain("prompt_cache_key", derived),
        (None, None) => &mut object,
    };
    settings(&fields, &mut object)?;
    if fields.get("tools").is_some() {
        let tools = fields.elements("tools")?;
        list(object.begin("tools"), tools, |out, (place, raw)| tools::tool(out, raw, place))?;
    }
    if let Some(choice) = fields.get("tool_choice") {
        tools::choice(object.begin("tool_choice"), choice, fields.at("tool_choice"))?;
    }
    let messages = fields.elements("messages")?;
    messages::items(object.begin("input"), messages)?;
    object.close();
    // What is kept is what is counted.
    out.shrink_to_fit();
    // The model is the first field.
    let model_place = fields.get("model").map(|raw| (MODEL.len(), MODEL.len() + raw.len()));
    Ok(Translated { body: out.into(), model_place, wish })
}

/// Writes the settings whose form differs.
fn settings(fields: &Fields<'_>, object: &mut Object<'_>) -> Result<(), Error> {
    if fields.get("store").is_some_and(|store| store != b"false") {
        // The upstream would store a response, which no chat client could find.
        return Err(unsupported("store"));
    }
    match (fields.get("max_completion_tokens"), fields.get("max_tokens")) {
        (Some(_), Some(_)) => {
            return Err(invalid("max_tokens", "stands beside 'max_completion_tokens'"));
        }
        (Some(limit), None) => write_token_limit("max_completion_tokens", limit, object)?,
        (None, Some(limit)) => write_token_limit("max_tokens", limit, object)?,
        (None, None) => {}
    }
    if let Some(effort) = fields.get("reasoning_effort") {
        let mut reasoning = Object::open(object.begin("reasoning"));
        reasoning.raw("effort", effort);
        reasoning.close();
    }
    let (format, verbosity) = (fields.get("response_format"), fields.get("verbosity"));
    if format.is_some() || verbosity.is_some() {
        let mut text = Object::open(object.begin("text"));
        if format.is_some() {
            tools::format(text.begin("format"), &fields.inner("response_format")?)?;
        }
        text.maybe("verbosity", verbosity);
        text.close();
    }
    if let Some(padding) =
        stream_options(fields)?.and_then(|options| options.get("include_obfuscation"))
    {
        let mut options = Object::open(object.begin("stream_options"));
        options.raw("include_obfuscation", padding);
        options.close();
    }
    Ok(())
}

/// Writes the limit of output tokens, which the client calls `name`. A limit below [`LEAST_TOKENS`]
/// is refused here, because the Responses API's own error would name a field that the client never
/// sent.
fn write_token_limit(name: &str, limit: &[u8], object: &mut Object<'_>) -> Result<(), Error> {
    match serde_json::from_slice::<f64>(limit) {
        Err(_) => Err(invalid(name, "is not a number")),
        Ok(tokens) if tokens < LEAST_TOKENS => {
            let message = format!(
                "Unsupported value: '{name}' is below {LEAST_TOKENS}. The upstream of this session speaks only the Responses API, which takes no lower limit."
            );
            Err(Error::new(ErrorKind::UnsupportedParameter, message).about(name))
        }
        Ok(_) => {
            object.raw("max_output_tokens", limit);
            Ok(())
        }
    }
}

fn wish(fields: &Fields<'_>) -> Result<Wish, Error> {
    let options = stream_options(fields)?;
    let include_usage = options.and_then(|options| options.get("include_usage"));
    let stream = fields.get("stream") == Some(b"true");
    Ok(Wish { stream, include_usage: include_usage == Some(b"true") })
}

fn stream_options<'b>(fields: &Fields<'b>) -> Result<Option<Fields<'b>>, Error> {
    if fields.get("stream_options").is_none() {
        return Ok(None);
    }
    let options = fields.inner("stream_options")?;
    options.only(&[&["include_usage", "include_obfuscation"]])?;
    Ok(Some(options))
}

/// Whether `raw` means the same as `neutral`, however it is spelled within reason.
fn is_same(raw: &[u8], neutral: &str) -> bool {
    if raw.len() > LONGEST_NEUTRAL {
        return false;
    }
    let read = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).ok();
    let (Some(raw), Some(neutral)) = (read(raw), read(neutral.as_bytes())) else { return false };
    match (raw.as_f64(), neutral.as_f64()) {
        (Some(raw), Some(neutral)) => raw == neutral,
        _ => raw == neutral,
    }
}

#[cfg(test)]
mod tests;
