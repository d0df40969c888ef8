//! Reads the fields of a request's body that decide how it is served, and checks them as strictly
//! as the real service does.
//!
//! A request is refused for unknown parameters, wrong types, cache fields of the other regime and
//! tool outputs without their calls. Unknown item types pass unread.

use std::borrow::Cow;

use http::StatusCode;

use super::form::{Form, OF_A_FRAME};
use super::json::{Kind, Value};
use super::model::{self, IN_MEMORY, Life, RETAINED_24H, Regime};
use super::refusal::Refusal;

pub use calls::OpenCalls;

mod calls;

/// The lowest limit of output tokens.
const LEAST_TOKENS: f64 = 16.0;

/// How a request came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Http,
    WebSocket,
}

impl Transport {
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::WebSocket => "websocket",
        }
    }
}

/// The minimum life of a breakpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    HalfHour,
    HalfDay,
}

/// How the request wants its prefix cached, by its model's regime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    Steps {
        tokens: u64,
        life: Life,
    },
    /// With `implicit`, the service marks the latest eligible end itself.
    Breakpoints {
        implicit: bool,
        ttl: Ttl,
    },
}

/// A request's body, read.
pub struct Ask<'d> {
    pub body: Value<'d>,
    pub model: Cow<'d, str>,
    pub stream: bool,
    pub store: bool,
    pub obfuscate: bool,
    /// Whether reasoning comes back sealed: the client asked for that, or nothing is stored.
    pub sealed_reasoning: bool,
    pub tools: Option<Value<'d>>,
    pub instructions: Option<Value<'d>>,
    pub input: Value<'d>,
    pub previous: Option<Cow<'d, str>>,
    pub cache_key: Option<Cow<'d, str>>,
    pub caching: Caching,
    /// Whether the request only fills the cache and gets no answer.
    pub prewarm: bool,
    pub comparison: Option<Cow<'d, str>>,
    pub tier: Cow<'d, str>,
    /// The named lane of a WebSocket.
    pub lane: Option<Cow<'d, str>>,
    /// Whether the request, or its last input item, asks for the history to be compacted.
    pub compact: bool,
    /// Whether the answer is made while its client does not wait.
    pub background: bool,
}

impl<'d> Ask<'d> {
    pub fn read(body: Value<'d>, transport: Transport, form: Form) -> Result<Self, Refusal> {
        if body.kind() != Kind::Object {
            return Err(Refusal::invalid(None, None, "The request body must be a JSON object."));
        }
        for (name, _) in body.entries() {
            let framed = if transport == Transport::WebSocket { OF_A_FRAME } else { &[] };
            if !form.parameters().iter().chain(framed).any(|known| name.is_text(known)) {
                let name = name.text().unwrap_or_default();
                return Err(Refusal::invalid(
                    Some("unknown_parameter"),
                    Some(&name),
                    format!("Unknown parameter: '{name}'."),
                ));
            }
        }
        let model = text(body, "model")?.ok_or_else(|| missing("model"))?;
        let regime = model::regime(&model).ok_or_else(|| {
            let message =
                format!("The model `{model}` does not exist or you do not have access to it.");
            Refusal::invalid(Some("model_not_found"), None, message)
                .with_status(StatusCode::NOT_FOUND)
        })?;
        let input = body.get("input").ok_or_else(|| missing("input"))?;
        check_input(input)?;
        let cache_key = cache_key(body)?;
        let previous = text(body, "previous_response_id")?;
        if let Some(conversation) = body.get("conversation") {
            return Err(no_conversation(conversation, previous.is_some()));
        }
        let store = truth(body, "store")?.unwrap_or(true);
        let background = truth(body, "background")?.unwrap_or(false);
        if background && (!store || transport == Transport::WebSocket) {
            return Err(Refusal::invalid(
                Some("unsupported_parameter"),
                Some("background"),
                "Background responses are stored, and created over HTTP.",
            ));
        }
        let options = object(body, "prompt_cache_options")?;
        let stream_options = object(body, "stream_options")?;
        let include = typed(body, "include", &[Kind::Array])?;
        let asked = include.is_some_and(|names| {
            names.items().any(|name| name.is_text("reasoning.encrypted_content"))
        });
        for (name, kind) in [
            ("reasoning", Kind::Object),
            ("text", Kind::Object),
            ("metadata", Kind::Object),
            ("client_metadata", Kind::Object),
        ] {
            typed(body, name, &[kind])?;
        }
        truth(body, "parallel_tool_calls")?;
        least_tokens(body)?;
        Ok(Self {
            caching: caching(body, &model, regime, options)?,
            // `generate` is only known on a WebSocket.
            prewarm: truth(body, "generate")? == Some(false)
                || options
                    .and_then(|options| options.get("prewarm"))
                    .and_then(Value::truth)
                    .unwrap_or(false),
            lane: text(body, "stream_id")?,
            comparison: options
                .map(|options| text(options, "comparison_response_id"))
                .transpose()?
                .flatten(),
            stream: truth(body, "stream")?.unwrap_or(false),
            obfuscate: stream_options
                .and_then(|options| options.get("include_obfuscation"))
                .and_then(Value::truth)
                .unwrap_or(true),
            sealed_reasoning: asked || !store,
            tools: typed(body, "tools", &[Kind::Array])?,
            instructions: typed(body, "instructions", &[Kind::String, Kind::Array])?,
            tier: text(body, "service_tier")?
                .filter(|tier| tier != "auto")
                .unwrap_or(Cow::Borrowed("default")),
            compact: form == Form::Compaction
                || input.items().last().is_some_and(|item| item_type(item) == "compaction_trigger"),
            background,
            body,
            model,
            store,
            input,
            previous,
            cache_key,
        })
    }
}

/// The `prompt_cache_key`, which has a maximum length.
pub fn cache_key(body: Value<'_>) -> Result<Option<Cow<'_, str>>, Refusal> {
    let cache_key = text(body, "prompt_cache_key")?;
    if let Some(key) = cache_key.as_deref().filter(|key| key.chars().count() > 64) {
        let length = key.chars().count();
        let message = format!(
            "Invalid 'prompt_cache_key': string too long. Expected a string with maximum length 64, but got a string with length {length} instead."
        );
        return Err(Refusal::invalid(
            Some("string_above_max_length"),
            Some("prompt_cache_key"),
            message,
        ));
    }
    Ok(cache_key)
}

pub fn missing(name: &str) -> Refusal {
    Refusal::invalid(
        Some("missing_required_parameter"),
        Some(name),
        format!("Missing required parameter: '{name}'."),
    )
}

pub fn typed<'d>(
    object: Value<'d>,
    name: &str,
    kinds: &[Kind],
) -> Result<Option<Value<'d>>, Refusal> {
    match object.get(name) {
        Some(value) if !kinds.contains(&value.kind()) => {
            let wanted = format!("{:?}", kinds[0]).to_lowercase();
            let got = format!("{:?}", value.kind()).to_lowercase();
            let message =
                format!("Invalid type for '{name}': expected a {wanted}, but got a {got} instead.");
            Err(Refusal::invalid(Some("invalid_type"), Some(name), message))
        }
        value => Ok(value),
    }
}

pub fn object<'d>(body: Value<'d>, name: &str) -> Result<Option<Value<'d>>, Refusal> {
    typed(body, name, &[Kind::Object])
}

pub fn text<'d>(object: Value<'d>, name: &str) -> Result<Option<Cow<'d, str>>, Refusal> {
    Ok(typed(object, name, &[Kind::String])?.and_then(Value::text))
}

/// Refuses a limit of output tokens below the lowest one.
fn least_tokens(body: Value<'_>) -> Result<(), Refusal> {
    const NAME: &str = "max_output_tokens";
    let limit = typed(body, NAME, &[Kind::Number])?;
    match limit.map(|limit| serde_json::from_slice::<f64>(limit.raw())) {
        Some(Ok(tokens)) if tokens < LEAST_TOKENS => {
            let message = format!(
                "Invalid '{NAME}': integer below minimum value. Expected a value >= {LEAST_TOKENS}, but got {tokens} instead."
            );
            Err(Refusal::invalid(Some("integer_below_min_value"), Some(NAME), message))
        }
        _ => Ok(()),
    }
}

pub fn truth(object: Value<'_>, name: &str) -> Result<Option<bool>, Refusal> {
    Ok(typed(object, name, &[Kind::Bool])?.and_then(Value::truth))
}

fn no_conversation(conversation: Value<'_>, chained: bool) -> Refusal {
    if chained {
        let message = "Mutually exclusive parameters: 'previous_response_id' and 'conversation'.";
        return Refusal::invalid(Some("mutually_exclusive_parameters"), None, message);
    }
    let id = conversation
        .text()
        .or_else(|| conversation.get("id").and_then(Value::text))
        .unwrap_or_default();
    Refusal::invalid(None, Some("conversation"), format!("Conversation with id '{id}' not found."))
        .with_status(StatusCode::NOT_FOUND)
}

pub fn caching(
    body: Value<'_>,
    model: &str,
    regime: Regime,
    options: Option<Value<'_>>,
) -> Result<Caching, Refusal> {
    let retention = text(body, "prompt_cache_retention")?;
    let unsupported = |name: &str| {
        let message = format!("Unsupported parameter: '{name}' is not supported with this model.");
        Refusal::invalid(Some("unsupported_parameter"), Some(name), message)
    };
    let invalid = |name: &str, value: &str| {
        Refusal::invalid(
            Some("invalid_value"),
            Some(name),
            format!("Invalid value: '{value}' is not supported for '{name}'."),
        )
    };
    match regime {
        Regime::Steps { .. } if options.is_some() => Err(unsupported("prompt_cache_options")),
        Regime::Breakpoints if retention.is_some() => Err(unsupported("prompt_cache_retention")),
        Regime::Steps { tokens } => {
            let life = match retention.as_deref() {
                None => model::usual_life(model),
                Some("24h") => RETAINED_24H,
                Some("in_memory" | "in-memory") if !model.starts_with("gpt-5.5") => IN_MEMORY,
                Some(other) => return Err(invalid("prompt_cache_retention", other)),
            };
            Ok(Caching::Steps { tokens, life })
        }
        Regime::Breakpoints => {
            let named =
                |name| options.map(|options| text(options, name)).transpose().map(Option::flatten);
            let implicit = match named("mode")?.as_deref() {
                None | Some("implicit") => true,
                Some("explicit") => false,
                Some(other) => return Err(invalid("prompt_cache_options.mode", other)),
            };
            let ttl = named("ttl")?;
            let ttl = ttl_of(ttl.as_deref())
                .ok_or_else(|| invalid("prompt_cache_options.ttl", ttl.as_deref().unwrap_or("")))?;
            Ok(Caching::Breakpoints { implicit, ttl })
        }
    }
}

/// The life that a `ttl` names. An absent one names half an hour.
pub fn ttl_of(text: Option<&str>) -> Option<Ttl> {
    match text {
        None | Some("30m") => Some(Ttl::HalfHour),
        Some("12h") => Some(Ttl::HalfDay),
        Some(_) => None,
    }
}

/// The type of an input item. An item with a role and no type is a message.
pub fn item_type(item: Value<'_>) -> Cow<'_, str> {
    item.get("type").and_then(Value::text).unwrap_or(Cow::Borrowed("message"))
}

fn check_input(input: Value<'_>) -> Result<(), Refusal> {
    let wrong = |index: usize| {
        let place = format!("input[{index}]");
        Refusal::invalid(
            Some("invalid_type"),
            Some(&place),
            format!("Invalid type for '{place}': expected an input item."),
        )
    };
    match input.kind() {
        Kind::String => Ok(()),
        Kind::Array => input.items().enumerate().try_for_each(|(index, item)| {
            let named = item.get("type").is_some_and(|kind| kind.kind() == Kind::String);
            let message = item.get("type").is_none() && item.get("role").is_some();
            if item.kind() == Kind::Object && (named || message) {
                Ok(())
            } else {
                Err(wrong(index))
            }
        }),
        _ => Err(Refusal::invalid(
            Some("invalid_type"),
            Some("input"),
            "Invalid type for 'input': expected a string or an array.",
        )),
    }
}

#[cfg(test)]
mod tests;
