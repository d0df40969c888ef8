//! Translates a response into a chat completion, and writes the parts that a streamed answer shares
//! with it.
//!
//! Texts and arguments are copied as the upstream wrote them. Reasoning has no place in a chat
//! completion and is left out; its tokens stay in the usage.

use http::StatusCode;

use crate::chat::json::{Object, array, inside, word};
use crate::wire::peek::fields;

/// Maximum bytes of a value that each chunk repeats.
const LONGEST_REPEATED: usize = 512;

/// The fields that every part of an answer repeats. A value that is too long counts as absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The id of the completion, as the inside of a JSON string.
    id: Vec<u8>,
    created: Vec<u8>,
    model: Vec<u8>,
    tier: Option<Vec<u8>>,
}

impl Head {
    pub fn of(response: &[u8]) -> Self {
        let names = ["id", "created_at", "model", "service_tier"];
        let [id, created, model, tier] = fields(response, names)
            .unwrap_or_default()
            .map(|value| value.filter(|value| value.len() <= LONGEST_REPEATED));
        let id = id.and_then(inside).unwrap_or(b"");
        let created = created.unwrap_or(b"0").split(|byte| *byte == b'.').next();
        Self {
            id: id.strip_prefix(b"resp_").unwrap_or(id).to_vec(),
            created: created.filter(|number| is_whole(number)).unwrap_or(b"0").to_vec(),
            model: model.filter(|model| *model != b"null").unwrap_or(b"\"\"").to_vec(),
            tier: tier.filter(|tier| *tier != b"null").map(<[u8]>::to_vec),
        }
    }

    /// Writes the fields with which a completion or a chunk begins.
    pub fn write(&self, object: &mut Object<'_>, kind: &str) {
        object
            .raw("id", &[b"\"chatcmpl-", &self.id[..], b"\""].concat())
            .plain("object", kind)
            .raw("created", &self.created)
            .raw("model", &self.model)
            .maybe("service_tier", self.tier.as_deref());
    }
}

fn is_whole(number: &[u8]) -> bool {
    !number.is_empty() && number.iter().all(u8::is_ascii_digit)
}

/// The error that a response, an event or an error body states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToldFailure {
    pub status: StatusCode,
    /// `{"error":{..}}`
    pub body: Vec<u8>,
}

impl ToldFailure {
    /// Reads an object with `code`, `message` and perhaps `param`.
    pub fn of(error: &[u8]) -> Self {
        let [code, message, param] =
            fields(error, ["code", "message", "param"]).unwrap_or_default();
        let name = code.and_then(word).unwrap_or_default();
        let (status, class) = match &*name {
            "rate_limit_exceeded" => (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error"),
            "insufficient_quota" => (StatusCode::TOO_MANY_REQUESTS, "insufficient_quota"),
            "" | "server_error" | "vector_store_timeout" | "upstream_interrupted" => {
                (StatusCode::INTERNAL_SERVER_ERROR, "server_error")
            }
            _ => (StatusCode::BAD_REQUEST, "invalid_request_error"),
        };
        let mut body = Vec::new();
        let mut outer = Object::open(&mut body);
        let mut inner = Object::open(outer.begin("error"));
        inner
            .raw("message", message.unwrap_or(br#""The upstream failed.""#))
            .plain("type", class)
            .raw("param", param.unwrap_or(b"null"))
            .raw("code", code.unwrap_or(b"null"));
        inner.close();
        outer.close();
        Self { status, body }
    }
}

/// Translates the document of a response.
pub fn translate(document: &[u8]) -> Result<Vec<u8>, ToldFailure> {
    let names = ["status", "error", "output", "usage", "incomplete_details"];
    let [status, error, output, usage, details] = fields(document, names).unwrap_or_default();
    let is_over = matches!(status, Some(br#""completed""# | br#""incomplete""#));
    let Some(output) = output.filter(|_| is_over) else {
        return Err(ToldFailure::of(error.unwrap_or(b"null")));
    };
    let mut said = Said::default();
    array(output).into_iter().flatten().for_each(|item| said.take(item));
    let mut out = Vec::with_capacity(document.len());
    let mut object = Object::open(&mut out);
    Head::of(document).write(&mut object, "chat.completion");
    let choices = object.begin("choices");
    choices.push(b'[');
    let mut choice = Object::open(choices);
    choice.raw("index", b"0");
    said.write(choice.begin("message"));
    let reason = finish_reason(details, !said.calls.is_empty());
    choice.raw("logprobs", b"null").plain("finish_reason", reason);
    choice.close();
    choices.push(b']');
    if let Some(usage) = usage.filter(|usage| *usage != b"null") {
        write_usage(object.begin("usage"), usage);
    }
    object.close();
    Ok(out)
}

/// Why an answer ended. `details` are the `incomplete_details` of the response.
pub fn finish_reason(details: Option<&[u8]>, has_calls: bool) -> &'static str {
    let [reason] = details.and_then(|raw| fields(raw, ["reason"]).ok()).unwrap_or_default();
    match reason {
        Some(br#""max_output_tokens""#) => "length",
        Some(br#""content_filter""#) => "content_filter",
        _ if has_calls => "tool_calls",
        _ => "stop",
    }
}

/// The content of an assistant's message.
#[derive(Default)]
struct Said<'b> {
    /// Insides of JSON strings, which together are one text.
    texts: Vec<&'b [u8]>,
    refusals: Vec<&'b [u8]>,
    /// Objects with commas between them: a list of short ones would take many times their length.
    annotations: Vec<u8>,
    calls: Vec<u8>,
}

impl<'b> Said<'b> {
    fn take(&mut self, item: &'b [u8]) {
        let [kind, content] = fields(item, ["type", "content"]).unwrap_or_default();
        if kind == Some(br#""message""#) {
            let parts = content.and_then(array).into_iter().flatten();
            parts.for_each(|part| self.take_part(part));
        } else if let Some(call) = Call::of(item) {
            separate(&mut self.calls);
            let mut object = Object::open(&mut self.calls);
            call.write(&mut object, call.said);
            object.close();
        }
    }

    fn take_part(&mut self, part: &'b [u8]) {
        let [text, refusal, annotations] =
            fields(part, ["text", "refusal", "annotations"]).unwrap_or_default();
        self.texts.extend(text.and_then(inside));
        self.refusals.extend(refusal.and_then(inside));
        let annotations = annotations.and_then(array).into_iter().flatten();
        for annotation in annotations.filter_map(annotation) {
            separate(&mut self.annotations);
            self.annotations.extend_from_slice(&annotation);
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let joined = |texts: &[&[u8]]| match texts {
            [] => b"null".to_vec(),
            texts => [&[&b"\""[..]], texts, &[b"\""]].concat().concat(),
        };
        let list = |items: &[u8]| [b"[", items, b"]"].concat();
        let mut message = Object::open(out);
        message
            .plain("role", "assistant")
            .raw("content", &joined(&self.texts))
            .raw("refusal", &joined(&self.refusals))
            .raw("annotations", &list(&self.annotations));
        if !self.calls.is_empty() {
            message.raw("tool_calls", &list(&self.calls));
        }
        message.close();
    }
}

/// Writes the comma before the next object.
fn separate(objects: &mut Vec<u8>) {
    if !objects.is_empty() {
        objects.push(b',');
    }
}

/// A tool call of a response.
pub struct Call<'b> {
    id: &'b [u8],
    name: &'b [u8],
    pub is_custom: bool,
    /// The arguments or the input, a JSON string.
    pub said: &'b [u8],
}

impl<'b> Call<'b> {
    /// `None`: the item is no call that a chat client can answer.
    pub fn of(item: &'b [u8]) -> Option<Self> {
        let names = ["type", "call_id", "name", "arguments", "input"];
        let [kind, id, name, arguments, input] = fields(item, names).ok()?;
        let (is_custom, said) = match kind? {
            br#""function_call""# => (false, arguments),
            br#""custom_tool_call""# => (true, input),
            _ => return None,
        };
        Some(Self { id: id?, name: name?, is_custom, said: said.unwrap_or(b"\"\"") })
    }

    /// Writes the call's fields, with `said` as its arguments or input.
    pub fn write(&self, object: &mut Object<'_>, said: &[u8]) {
        let (kind, text) = call_names(self.is_custom);
        object.raw("id", self.id).plain("type", kind);
        let mut inner = Object::open(object.begin(kind));
        inner.raw("name", self.name).raw(text, said);
        inner.close();
    }
}

/// The type of a call, and the field of its text.
pub const fn call_names(is_custom: bool) -> (&'static str, &'static str) {
    if is_custom { ("custom", "input") } else { ("function", "arguments") }
}

/// An annotation as chat writes it. `None`: chat has none of its type.
pub fn annotation(raw: &[u8]) -> Option<Vec<u8>> {
    let names = ["type", "start_index", "end_index", "url", "title"];
    let [kind, start, end, url, title] = fields(raw, names).ok()?;
    if kind != Some(br#""url_citation""#) {
        return None;
    }
    let mut out = Vec::new();
    let mut object = Object::open(&mut out);
    object.plain("type", "url_citation");
    let mut inner = Object::open(object.begin("url_citation"));
    inner.maybe("start_index", start).maybe("end_index", end);
    inner.maybe("url", url).maybe("title", title);
    inner.close();
    object.close();
    Some(out)
}

/// Writes the `usage` of a response as that of a completion.
pub fn write_usage(out: &mut Vec<u8>, usage: &[u8]) {
    let names = [
        "input_tokens",
        "output_tokens",
        "total_tokens",
        "input_tokens_details",
        "output_tokens_details",
    ];
    let [input, output, total, details, outputs] = fields(usage, names).unwrap_or_default();
    let [cached, written] = details
        .and_then(|raw| fields(raw, ["cached_tokens", "cache_write_tokens"]).ok())
        .unwrap_or_default();
    let [reasoning] =
        outputs.and_then(|raw| fields(raw, ["reasoning_tokens"]).ok()).unwrap_or_default();
    let mut object = Object::open(out);
    object
        .raw("prompt_tokens", input.unwrap_or(b"0"))
        .raw("completion_tokens", output.unwrap_or(b"0"))
        .raw("total_tokens", total.unwrap_or(b"0"));
    let mut inner = Object::open(object.begin("prompt_tokens_details"));
    inner.raw("cached_tokens", cached.unwrap_or(b"0"));
    inner.maybe("cache_write_tokens", written).raw("audio_tokens", b"0");
    inner.close();
    let mut inner = Object::open(object.begin("completion_tokens_details"));
    inner.raw("reasoning_tokens", reasoning.unwrap_or(b"0")).raw("audio_tokens", b"0");
    inner.raw("accepted_prediction_tokens", b"0").raw("rejected_prediction_tokens", b"0");
    inner.close();
    object.close();
}

#[cfg(test)]
mod tests;
