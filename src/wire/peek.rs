//! Finds the few top-level fields that routing needs in a body of any size. Pure.
//!
//! The scan is never stricter than an upstream: the last of duplicate fields wins, and unknown
//! types and fields pass. A body that is not JSON is an error, because no rule could check it. If
//! duplicates of a field that says whose content a client reaches differ, the scan notes that.

use crate::wire::imprint::{CHAT_SETTINGS, Imprint, Parts, SETTINGS};
use crate::wire::quotes::unescaped;
use crate::wire::references::References;
use crate::wire::scan::{NotJson, Scanner};

/// The longest value that routing needs, as written. Longer values are not copied.
const LONGEST: usize = 2048;

/// Most parts of a prefix: a list of short ones would take many times the memory of their text.
const MOST_PARTS: usize = 4096;

/// A field that should contain text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Field {
    #[default]
    Absent,
    /// The value has another type, or its text is invalid Unicode.
    Malformed,
    Text(String),
}

impl Field {
    pub fn of(raw: Option<&[u8]>) -> Self {
        match raw {
            None | Some(b"null") => Self::Absent,
            Some(raw) if raw.len() > LONGEST => Self::Malformed,
            Some(raw) => serde_json::from_slice(raw).map_or(Self::Malformed, Self::Text),
        }
    }

    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Absent | Self::Malformed => None,
        }
    }

    pub fn into_text(self) -> Option<String> {
        match self {
            Self::Text(text) => Some(text),
            Self::Absent | Self::Malformed => None,
        }
    }

    /// The field as an id. A malformed field gives an id that no upstream ever issued.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Absent => None,
            Self::Malformed => Some(""),
            Self::Text(text) => Some(text),
        }
    }
}

/// The fields and references found in one pass over a body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peek {
    pub model: Field,
    /// Where the value of `model` begins and ends in the body.
    pub model_place: Option<(usize, usize)>,
    pub prompt_cache_key: Field,
    /// Whether the body has a `prompt_cache_key`, even if that is null.
    pub names_cache_key: bool,
    /// `client_metadata.session_id`
    pub session_id: Field,
    /// `conversation`, as a string or as `conversation.id`
    pub conversation: Field,
    pub previous_response_id: Field,
    /// Whether the body has `store: false`, so that the upstream does not keep the response. By
    /// default the upstream keeps it.
    pub is_unstored: bool,
    /// Whether `prompt_cache_options.prewarm` asks for no output, only for a warm cache.
    pub is_warm_up: bool,
    /// `service_tier`
    pub tier: Field,
    pub references: References,
}

impl Peek {
    pub fn at(body: &[u8]) -> Result<Self, NotJson> {
        Self::with_imprint(body).map(|(peek, _)| peek)
    }

    /// Scans a body, and also digests the parts that a prompt cache matches.
    pub fn with_imprint(body: &[u8]) -> Result<(Self, Imprint), NotJson> {
        let [instructions, reasoning, text, parallel, tier] = SETTINGS;
        let [effort, verbosity, format, functions] = CHAT_SETTINGS;
        let names = [
            "model",
            "prompt_cache_key",
            "client_metadata",
            "conversation",
            "previous_response_id",
            "store",
            "prompt_cache_options",
            "tools",
            "input",
            "messages",
            effort,
            verbosity,
            format,
            functions,
            instructions,
            reasoning,
            text,
            parallel,
            tier,
        ];
        let (found, references) = find_fields(body, names)?;
        let [model, key, metadata, conversation, previous, store, options, tools, input, ..] =
            found;
        let [.., messages, effort, verbosity, format, functions, _, _, _, _, _] = found;
        let [.., instructions, reasoning, text, parallel, tier] = found;
        let imprint = Imprint::of(&Parts {
            tools,
            settings: [instructions, reasoning, text, parallel, tier],
            chat_settings: [effort, verbosity, format, functions],
            cache_key: key,
            input: input.or(messages),
            is_continued: previous.is_some_and(|raw| raw != b"null"),
        });
        let peek = Self {
            model: Field::of(model),
            model_place: model.map(|raw| place(body, raw)),
            prompt_cache_key: Field::of(key),
            names_cache_key: key.is_some(),
            session_id: inner(metadata, "session_id").unwrap_or_default(),
            conversation: read_id(conversation),
            previous_response_id: Field::of(previous),
            is_unstored: store == Some(b"false"),
            is_warm_up: asks_for_warm_cache(options),
            tier: Field::of(tier),
            references,
        };
        Ok((peek, imprint))
    }
}

/// Returns where `part`, a slice of `whole`, begins and ends.
pub fn place(whole: &[u8], part: &[u8]) -> (usize, usize) {
    let start = part.as_ptr().addr() - whole.as_ptr().addr();
    (start, start + part.len())
}

/// Whether `prompt_cache_options` ask for no output, only for a warm cache.
pub fn asks_for_warm_cache(options: Option<&[u8]>) -> bool {
    options.is_some_and(|raw| matches!(fields(raw, ["prewarm"]), Ok([Some(b"true")])))
}

/// Reads a field that is either an id or an object with an `id`.
pub fn read_id(raw: Option<&[u8]>) -> Field {
    inner(raw, "id").unwrap_or_else(|| Field::of(raw))
}

/// Reads the field `name` of `raw`, if `raw` is an object.
pub fn inner(raw: Option<&[u8]>, name: &'static str) -> Option<Field> {
    let raw = raw.filter(|raw| raw.starts_with(b"{"))?;
    fields(raw, [name]).ok().map(|[field]| Field::of(field))
}

/// Returns the parts of a body that stay the same for a whole conversation, as written. They are
/// the model, `instructions`, `tools`, the first user item, and the system, developer and assistant
/// items before it, such as a greeting. A chat body has the same parts in its `messages`. `None`:
/// no user text distinguishes the conversation, or thousands of items stand before that text.
pub fn stable_prefix(body: &[u8]) -> Option<Vec<&[u8]>> {
    let [model, instructions, tools, input, messages] =
        fields(body, ["model", "instructions", "tools", "input", "messages"]).ok()?;
    let mut parts: Vec<&[u8]> = [model, instructions, tools].map(Option::unwrap_or_default).into();
    let input = input.or(messages)?;
    if input.starts_with(b"\"") {
        parts.push(input);
        return (input.len() > 2).then_some(parts);
    }
    let mut items = Scanner::new(input);
    if !items.take(b'[') {
        return None;
    }
    loop {
        let item = items.value().ok()?;
        let [role, content] = fields(item, ["role", "content"]).ok()?;
        if parts.len() > MOST_PARTS {
            return None;
        }
        // Tools may stand in the input as an item without content.
        parts.push(content.unwrap_or(item));
        match role? {
            br#""system""# | br#""developer""# | br#""assistant""# => {}
            br#""user""# => return Some(parts),
            _ => return None,
        }
        if !items.take(b',') {
            return None;
        }
    }
}

/// Raw values, in the order of the requested names.
type Fields<'b, const N: usize> = [Option<&'b [u8]>; N];

/// Returns the raw top-level fields `names` of `body`. The last duplicate wins. A body that is not
/// an object has no fields.
pub fn fields<'b, const N: usize>(
    body: &'b [u8],
    names: [&str; N],
) -> Result<Fields<'b, N>, NotJson> {
    find(Scanner::new(body), names).map(|(found, _)| found)
}

/// Returns the raw top-level fields `names` of `body`, and the body's references.
pub fn find_fields<'b, const N: usize>(
    body: &'b [u8],
    names: [&str; N],
) -> Result<(Fields<'b, N>, References), NotJson> {
    find(Scanner::with_references(body), names)
}

fn find<'b, const N: usize>(
    mut scanner: Scanner<'b>,
    names: [&str; N],
) -> Result<(Fields<'b, N>, References), NotJson> {
    let (mut found, mut references) = ([None; N], References::default());
    if scanner.peek() != Some(b'{') {
        scanner.value()?;
    } else if scanner.take(b'{') && !scanner.take(b'}') {
        loop {
            let key = unescaped(scanner.string()?);
            scanner.expect(b':')?;
            let value = scanner.value()?;
            if let Some(place) = names.iter().position(|name| name.as_bytes() == &*key) {
                let earlier = found[place].replace(value);
                references.names_two_models |= *key == *b"model" && differs(value, earlier);
                references.names_two_kinds |= is_of_two_kinds(&key, value, earlier);
                references.is_ambiguous |= is_unsure(&key, value, earlier);
            }
            let inside = scanner.references();
            if let b"input" | b"messages" | b"tools" | b"prompt" = &*key {
                references.add(inside);
            }
            if *key == *b"prompt" && names_template(value) {
                references.find_own();
            }
            if !scanner.take(b',') {
                scanner.expect(b'}')?;
                break;
            }
        }
    }
    scanner.end()?;
    Ok((found, references))
}

/// Whether one of the duplicate ids of a `prompt` names a stored one.
fn names_template(prompt: &[u8]) -> bool {
    each(prompt, "id").any(|id| *id != *b"null")
}

/// Whether duplicates of the field `name` disagree on what the turn continues. Upstreams differ in
/// which duplicate they read. `earlier`: the value of the duplicate before.
fn is_unsure(name: &[u8], value: &[u8], earlier: Option<&[u8]>) -> bool {
    match name {
        b"previous_response_id" => differs(value, earlier),
        b"conversation" => {
            let mut ids = each(value, "id");
            let first = ids.next();
            differs(value, earlier) || ids.any(|id| Some(id) != first)
        }
        _ => false,
    }
}

/// Whether duplicates disagree on whether a message asks for a response, or in which tier.
fn is_of_two_kinds(name: &[u8], value: &[u8], earlier: Option<&[u8]>) -> bool {
    let asks = |value| Field::of(Some(value)).text() == Some("response.create");
    match name {
        b"service_tier" => differs(value, earlier),
        b"type" => earlier.is_some_and(|earlier| asks(earlier) != asks(value)),
        _ => false,
    }
}

fn differs(value: &[u8], earlier: Option<&[u8]>) -> bool {
    earlier.is_some_and(|earlier| earlier != value)
}

/// Iterates over the raw values of all top-level fields `name` of `body`, which is JSON. A list of
/// short duplicates could take many times their memory.
pub fn each<'b>(body: &'b [u8], name: &'static str) -> impl Iterator<Item = &'b [u8]> {
    let mut scanner = Scanner::new(body);
    let mut has_more = scanner.take(b'{') && !scanner.take(b'}');
    let next = move || {
        let key = unescaped(has_more.then(|| scanner.string().ok()).flatten()?);
        scanner.expect(b':').ok()?;
        let value = scanner.value().ok()?;
        has_more = scanner.take(b',');
        Some((*key == *name.as_bytes(), value))
    };
    std::iter::from_fn(next).filter_map(|(is_it, value)| is_it.then_some(value))
}

#[cfg(test)]
mod tests;
