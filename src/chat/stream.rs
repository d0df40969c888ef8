//! Translates a streamed response into a stream of chat chunks.
//!
//! Each event yields its chunks as soon as its line has ended, however the bytes arrive. Events
//! without an equivalent, such as those of reasoning, yield nothing. A stream that breaks before
//! its terminal event ends in an error, so that no client takes it for a whole answer.

use std::collections::{HashMap, HashSet};

use crate::chat::answer::{
    Call, Head, ToldFailure, annotation, call_names, finish_reason, write_usage,
};
use crate::chat::json::{Object, array};
use crate::wire::event::{field, line_length};
use crate::wire::peek::fields;

/// Maximum bytes of an event. The last event repeats the whole answer.
const LONGEST: usize = 64 * 1024 * 1024;
/// Bytes that one known part or call takes up at the most.
const KNOWN: usize = 160;
/// Maximum digits of the number of an item or part. Parts are looked up by these numbers.
const LONGEST_NUMBER: usize = 20;

/// The translation of one stream.
pub struct Stream {
    include_usage: bool,
    head: Head,
    /// The first chunk, which names the role, was written.
    is_begun: bool,
    is_over: bool,
    /// The calls that the client knows, by the `output_index` of their items.
    calls: HashMap<Vec<u8>, Known>,
    /// Parts of the answer whose text was written, and those whose annotations were.
    told: HashSet<Vec<u8>>,
    noted: HashSet<Vec<u8>>,
    /// The current line, as far as it has come.
    line: Vec<u8>,
    /// The data lines of the current event.
    data: Vec<u8>,
    /// The last byte was `\r`: a `\n` that follows belongs to it.
    after_return: bool,
    out: Vec<u8>,
}

/// A call that the client knows.
struct Known {
    /// The call's number among the calls of the answer.
    index: usize,
    is_custom: bool,
    /// Some of its arguments were written.
    is_told: bool,
}

impl Stream {
    pub fn new(include_usage: bool) -> Self {
        Self {
            include_usage,
            head: Head::of(b"null"),
            is_begun: false,
            is_over: false,
            calls: HashMap::new(),
            told: HashSet::new(),
            noted: HashSet::new(),
            line: Vec::new(),
            data: Vec::new(),
            after_return: false,
            out: Vec::new(),
        }
    }

    /// The bytes of the event that has not ended yet.
    pub const fn held(&self) -> usize {
        self.line.len() + self.data.len()
    }

    /// The memory that the translation takes up: also what it knows of the parts and calls so far.
    pub fn memory(&self) -> usize {
        let known = self.told.len() + self.noted.len() + self.calls.len();
        self.held() + known * KNOWN
    }

    /// Takes the next bytes of the upstream's stream. Returns the chunks that they complete.
    pub fn push(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        if bytes.is_empty() {
            return Vec::new();
        }
        if std::mem::take(&mut self.after_return) && bytes.first() == Some(&b'\n') {
            bytes = &bytes[1..];
        }
        while let Some(end) = line_length(bytes) {
            self.line.extend_from_slice(&bytes[..end]);
            let line = std::mem::take(&mut self.line);
            self.end_line(&line);
            let width = if bytes[end..].starts_with(b"\r\n") { 2 } else { 1 };
            self.after_return = bytes[end..] == *b"\r";
            bytes = &bytes[end + width..];
        }
        if self.line.len() + bytes.len() > LONGEST {
            self.fail(br#"{"code":"server_error","message":"The upstream's event is too long."}"#);
        }
        if !self.is_over {
            self.line.extend_from_slice(bytes);
        }
        std::mem::take(&mut self.out)
    }

    /// Ends the stream. Returns an error if the upstream has not ended it.
    pub fn end(&mut self) -> Vec<u8> {
        self.fail(
            br#"{"code":"upstream_interrupted","message":"The upstream closed within the answer."}"#,
        );
        std::mem::take(&mut self.out)
    }

    /// Returns the error that ends a stream if the gateway had no memory or thread to translate an
    /// event.
    pub fn untranslated() -> Vec<u8> {
        let mut stream = Self::new(false);
        stream.fail(
            br#"{"code":"upstream_interrupted","message":"The gateway has no memory or thread to translate this answer."}"#,
        );
        stream.out
    }

    fn end_line(&mut self, line: &[u8]) {
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            if !self.is_over && !data.is_empty() {
                self.event(&data);
            }
        } else if let Some(data) = field(line, b"data:")
            && !self.is_over
            && self.data.len() + data.len() <= LONGEST
        {
            if !self.data.is_empty() {
                // A line end between two lines of data is white space of JSON, and would end a
                // line of a chunk.
                self.data.push(b' ');
            }
            self.data.extend_from_slice(data);
        }
    }

    fn event(&mut self, data: &[u8]) {
        let names = ["type", "delta", "obfuscation", "output_index", "content_index"];
        let Ok([kind, delta, padding, output, content]) = fields(data, names) else { return };
        let output = number(output);
        let place = [output, b"/", number(content)].concat();
        let text = delta.filter(|delta| delta.starts_with(b"\""));
        match kind.unwrap_or_default() {
            br#""response.created""# => self.created(data),
            br#""response.output_text.delta""# => self.text("content", text, padding, place),
            br#""response.refusal.delta""# => self.text("refusal", text, padding, place),
            br#""response.output_text.done""# => self.whole("content", data, "text", place),
            br#""response.refusal.done""# => self.whole("refusal", data, "refusal", place),
            br#""response.output_text.annotation.added""# => {
                let [annotation] = fields(data, ["annotation"]).unwrap_or_default();
                self.annotated(annotation, place);
            }
            kind @ (br#""response.output_item.added""# | br#""response.output_item.done""#) => {
                let [item] = fields(data, ["item"]).unwrap_or_default();
                let item = item.unwrap_or(b"null");
                match kind.ends_with(b"done\"") {
                    true => self.item(item, output),
                    false => self.call(item, output, false),
                }
            }
            br#""response.function_call_arguments.delta""#
            | br#""response.custom_tool_call_input.delta""# => {
                self.arguments(output, text, padding);
            }
            br#""response.function_call_arguments.done""#
            | br#""response.custom_tool_call_input.done""# => {
                let [function, custom] = fields(data, ["arguments", "input"]).unwrap_or_default();
                self.all_arguments(output, function.or(custom));
            }
            br#""response.completed""# | br#""response.incomplete""# => self.finish(data),
            br#""response.failed""# => {
                let [response] = fields(data, ["response"]).unwrap_or_default();
                let [error] =
                    response.and_then(|raw| fields(raw, ["error"]).ok()).unwrap_or_default();
                self.fail(error.unwrap_or(b"null"));
            }
            br#""error""# => {
                // The error's fields stand in the event itself, or in an object as in a body.
                let [error] = fields(data, ["error"]).unwrap_or_default();
                self.fail(error.filter(|error| error.starts_with(b"{")).unwrap_or(data));
            }
            _ => {}
        }
    }

    fn created(&mut self, data: &[u8]) {
        let [response] = fields(data, ["response"]).unwrap_or_default();
        self.head = Head::of(response.unwrap_or(b"null"));
        self.begin();
    }

    /// Writes the first chunk, once.
    fn begin(&mut self) {
        if !std::mem::replace(&mut self.is_begun, true) {
            self.chunk(br#"{"role":"assistant","content":"","refusal":null}"#, None, None);
        }
    }

    fn text(&mut self, name: &str, text: Option<&[u8]>, padding: Option<&[u8]>, place: Vec<u8>) {
        let Some(text) = text else { return };
        self.told.insert(place);
        let mut delta = Vec::new();
        let mut object = Object::open(&mut delta);
        object.raw(name, text);
        object.close();
        self.delta(&delta, padding);
    }

    /// Writes a text that has not come in pieces.
    fn whole(&mut self, name: &str, data: &[u8], field: &str, place: Vec<u8>) {
        let [text] = fields(data, [field]).unwrap_or_default();
        let text = text.filter(|text| text.starts_with(b"\"") && *text != b"\"\"");
        if !self.told.contains(&place) {
            self.text(name, text, None, place);
        }
    }

    fn annotated(&mut self, found: Option<&[u8]>, place: Vec<u8>) {
        self.noted.insert(place);
        if let Some(annotation) = found.and_then(annotation) {
            self.delta(&[br#"{"annotations":["#, &annotation[..], b"]}"].concat(), None);
        }
    }

    /// Tells the client the parts of a complete item that no event has told yet.
    fn item(&mut self, item: &[u8], output: &[u8]) {
        self.call(item, output, true);
        let [kind, content] = fields(item, ["type", "content"]).unwrap_or_default();
        let parts = content.filter(|_| kind == Some(br#""message""#)).and_then(array);
        for (index, part) in parts.into_iter().flatten().enumerate() {
            if self.is_over {
                break;
            }
            let index = index.to_string();
            let place = [output, b"/", index.as_bytes()].concat();
            if !is_in(&self.told, output, &index) {
                self.whole("content", part, "text", place.clone());
                self.whole("refusal", part, "refusal", place.clone());
            }
            if !is_in(&self.noted, output, &index) {
                let [notes] = fields(part, ["annotations"]).unwrap_or_default();
                for note in notes.and_then(array).into_iter().flatten() {
                    if self.is_over {
                        break;
                    }
                    self.annotated(Some(note), place.clone());
                }
            }
        }
    }

    /// Tells the client of a call, once. `is_done`: the item is complete.
    fn call(&mut self, item: &[u8], place: &[u8], is_done: bool) {
        let Some(call) = Call::of(item) else { return };
        if !self.calls.contains_key(place) {
            let index = self.calls.len();
            let mut delta = Vec::new();
            let mut object = Object::open(&mut delta);
            let calls = object.begin("tool_calls");
            calls.push(b'[');
            let mut inner = Object::open(calls);
            inner.raw("index", index.to_string().as_bytes());
            call.write(&mut inner, b"\"\"");
            inner.close();
            calls.push(b']');
            object.close();
            let known = Known { index, is_custom: call.is_custom, is_told: false };
            self.calls.insert(place.to_vec(), known);
            self.delta(&delta, None);
        }
        if is_done {
            self.all_arguments(place, Some(call.said));
        }
    }

    /// Writes arguments that have not come in pieces.
    fn all_arguments(&mut self, place: &[u8], said: Option<&[u8]>) {
        let said = said.filter(|said| said.starts_with(b"\"") && *said != b"\"\"");
        if self.calls.get(place).is_some_and(|known| !known.is_told) {
            self.arguments(place, said, None);
        }
    }

    fn arguments(&mut self, place: &[u8], text: Option<&[u8]>, padding: Option<&[u8]>) {
        let (Some(known), Some(text)) = (self.calls.get_mut(place), text) else { return };
        known.is_told = true;
        let (index, (kind, name)) = (known.index, call_names(known.is_custom));
        let open = format!(r#"{{"tool_calls":[{{"index":{index},"{kind}":{{"{name}":"#);
        self.delta(&[open.as_bytes(), text, b"}}]}"].concat(), padding);
    }

    fn finish(&mut self, data: &[u8]) {
        let [response] = fields(data, ["response"]).unwrap_or_default();
        let response = response.unwrap_or(b"null");
        let names = ["incomplete_details", "usage", "output"];
        let [details, usage, output] = fields(response, names).unwrap_or_default();
        self.head = Head::of(response);
        self.begin();
        if self.told.is_empty() && self.calls.is_empty() {
            // The items of the terminal event are written only if no earlier event has told
            // anything. Their indexes may differ from those of earlier events, and the client would
            // read a part twice.
            let items = output.and_then(array).into_iter().flatten();
            for (index, item) in items.enumerate() {
                if self.is_over {
                    break;
                }
                self.item(item, index.to_string().as_bytes());
            }
        }
        let reason = finish_reason(details, !self.calls.is_empty());
        self.chunk(b"{}", Some(reason), None);
        if let Some(usage) = usage.filter(|usage| self.include_usage && *usage != b"null") {
            self.open(|head, chunk| {
                head.write(chunk, "chat.completion.chunk");
                chunk.raw("choices", b"[]");
                write_usage(chunk.begin("usage"), usage);
            });
        }
        if !std::mem::replace(&mut self.is_over, true) {
            self.out.extend_from_slice(b"data: [DONE]\n\n");
        }
    }

    fn fail(&mut self, error: &[u8]) {
        if !std::mem::replace(&mut self.is_over, true) {
            let failure = ToldFailure::of(error);
            self.out.extend_from_slice(b"data: ");
            self.out.extend_from_slice(&failure.body);
            self.out.extend_from_slice(b"\n\n");
        }
    }

    fn delta(&mut self, delta: &[u8], padding: Option<&[u8]>) {
        self.begin();
        self.chunk(delta, None, padding);
    }

    fn chunk(&mut self, delta: &[u8], reason: Option<&str>, padding: Option<&[u8]>) {
        let include_usage = self.include_usage;
        self.open(|head, chunk| {
            head.write(chunk, "chat.completion.chunk");
            let choices = chunk.begin("choices");
            choices.extend_from_slice(br#"[{"index":0,"delta":"#);
            choices.extend_from_slice(delta);
            let reason = reason.map_or("null".into(), |reason| format!("\"{reason}\""));
            let end = format!(r#","logprobs":null,"finish_reason":{reason}}}]"#);
            choices.extend_from_slice(end.as_bytes());
            if include_usage {
                chunk.raw("usage", b"null");
            }
            chunk.maybe("obfuscation", padding);
        });
    }

    fn open(&mut self, write: impl FnOnce(&Head, &mut Object<'_>)) {
        if self.out.len() > LONGEST {
            self.fail(br#"{"code":"server_error","message":"The upstream's event is too long."}"#);
        }
        if self.is_over {
            return;
        }
        self.out.extend_from_slice(b"data: ");
        let mut chunk = Object::open(&mut self.out);
        write(&self.head, &mut chunk);
        chunk.close();
        self.out.extend_from_slice(b"\n\n");
    }
}

/// The number of an item or part as written. Any other value counts as absent.
fn number(raw: Option<&[u8]>) -> &[u8] {
    let is_number = |raw: &&[u8]| raw.len() <= LONGEST_NUMBER && raw.iter().all(u8::is_ascii_digit);
    raw.filter(is_number).unwrap_or_default()
}

/// Whether `places` has the part `index` of the item `output`. An event may lack either number.
fn is_in(places: &HashSet<Vec<u8>>, output: &[u8], index: &str) -> bool {
    let (index, none): (&[u8], &[u8]) = (index.as_bytes(), b"");
    [(output, index), (output, none), (none, index), (none, none)]
        .into_iter()
        .any(|(output, index)| places.contains(&[output, b"/", index].concat()))
}

#[cfg(test)]
mod tests;
