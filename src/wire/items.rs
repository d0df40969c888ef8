//! The ids of items that upstreams store with their responses: those that a request refers to, and
//! those that an answer makes. Pure.
//!
//! A request may name a stored item instead of sending it: by an `item_reference`, or by the id of
//! an image that an answer has made. The upstream then reads the item's content.

use std::collections::BTreeSet;

use memchr::memmem;

use crate::wire::event::first_type;
use crate::wire::peek::{Field, fields, inner};
use crate::wire::quotes::unescaped;
use crate::wire::references::References;
use crate::wire::scan::{NotJson, Scanner};

/// Most different items of one request or answer.
pub const MOST: usize = 4096;

/// The ids of the stored items that `input`, a request's input, refers to. An id that cannot be
/// read is an empty one, which no upstream ever issued. So is one beyond [`MOST`].
pub fn referred(input: &[u8]) -> Vec<String> {
    let mut ids = BTreeSet::new();
    for item in elements(input) {
        if let Ok(found) = Item::read(item)
            && found.is_reference()
        {
            ids.extend(found.ids);
        }
        if ids.len() > MOST {
            return vec![String::new()];
        }
    }
    ids.into_iter().collect()
}

/// The ids of the stored items that `body` refers to. `references`: what a scan has found in it.
pub fn referred_in(body: &[u8], references: References) -> Vec<String> {
    // Few bodies refer to any, and no other body is read once more.
    let input = references.name_items.then(|| fields(body, ["input"]).ok()).flatten();
    input.and_then(|[input]| input.map(referred)).unwrap_or_default()
}

/// The ids of the items in `document`, a response. `None`: the document is not whole, or no JSON.
pub fn listed(document: &[u8]) -> Option<Vec<String>> {
    let [output] = fields(document, ["output"]).ok()?;
    let items = elements(output.unwrap_or_default());
    Some(items.filter_map(id).take(MOST).collect())
}

/// The id of the item that an event adds to its response. `data` is the event.
pub fn added(data: &[u8]) -> Option<String> {
    const ADDED: &[u8] = b"response.output_item.added";
    match first_type(data) {
        Some(kind) => (kind == ADDED).then_some(())?,
        // The type may stand anywhere in a small event.
        None => _ = memmem::find(data, b"output_item")?,
    }
    let [kind, item] = fields(data, ["type", "item"]).ok()?;
    (Field::of(kind).text()?.as_bytes() == ADDED).then_some(())?;
    id(item?)
}

fn id(item: &[u8]) -> Option<String> {
    inner(Some(item), "id")?.into_text()
}

/// The elements of `list`, which is part of a JSON text, one after the other: a list of them could
/// take many times its memory. What is no list has none.
fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut scanner = Scanner::new(list);
    let mut has_more = scanner.take(b'[') && !scanner.take(b']');
    std::iter::from_fn(move || {
        let element = has_more.then(|| scanner.value().ok()).flatten();
        has_more = element.is_some() && scanner.take(b',');
        element
    })
}

/// What an upstream might read in an item. Of duplicate fields, each counts.
#[derive(Default)]
struct Item {
    ids: Vec<String>,
    names_reference: bool,
    names_image: bool,
    names_reasoning: bool,
    kind: Stated,
    role: Stated,
    result: Stated,
    sealed: Stated,
}

/// Whether an item states a field.
#[derive(Default)]
struct Stated {
    once: bool,
    /// A field of the name is null, empty or no text.
    is_void: bool,
}

impl Stated {
    fn note(&mut self, value: &[u8]) {
        let is_text = value.len() > 2 && value.starts_with(b"\"");
        self.once |= is_text;
        self.is_void |= !is_text;
    }

    const fn may_be_absent(&self) -> bool {
        !self.once || self.is_void
    }
}

impl Item {
    fn read(item: &[u8]) -> Result<Self, NotJson> {
        let (mut scanner, mut found) = (Scanner::new(item), Self::default());
        if !scanner.take(b'{') || scanner.take(b'}') {
            return Ok(found);
        }
        loop {
            let name = unescaped(scanner.string()?);
            scanner.expect(b':')?;
            found.note(&name, scanner.value()?);
            if !scanner.take(b',') {
                return Ok(found);
            }
        }
    }

    fn note(&mut self, name: &[u8], value: &[u8]) {
        match name {
            b"id" => self.ids.extend(Field::of(Some(value)).id().map(str::to_owned)),
            b"type" => {
                self.kind.note(value);
                match Field::of(Some(value)) {
                    Field::Text(kind) => {
                        self.names_reference |= kind == "item_reference";
                        self.names_image |= kind == "image_generation_call";
                        self.names_reasoning |= kind == "reasoning";
                    }
                    // An upstream might read it in its own way.
                    Field::Malformed => self.names_reference = true,
                    Field::Absent => {}
                }
            }
            b"role" => self.role.note(value),
            b"result" => self.result.note(value),
            b"encrypted_content" => self.sealed.note(value),
            _ => {}
        }
    }

    /// Whether the item may stand for a stored one. Without a type, an item with a role is a
    /// message. OpenAI looks for a reasoning without its content among the stored ones.
    const fn is_reference(&self) -> bool {
        self.names_reference
            || self.names_image && self.result.may_be_absent()
            || self.names_reasoning && self.sealed.may_be_absent()
            || self.kind.may_be_absent() && self.role.may_be_absent()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::peek::Peek;

    #[test]
    fn stored_items_that_an_input_refers_to_are_found() {
        for (input, expected) in [
            (r#"[{"type":"item_reference","id":"msg_1"}]"#, &["msg_1"][..]),
            (r#" [ { "id" : "msg_1" , "type" : "item_reference" , "x" : [ ] } ] "#, &["msg_1"]),
            (r#"[{"id":"msg_1"}]"#, &["msg_1"]),
            (r#"[{"id":"msg_1","type":null,"status":"completed"}]"#, &["msg_1"]),
            (r#"[{"i\u0064":"ms\u0067_1","t\u0079pe":"item\u005freference"}]"#, &["msg_1"]),
            (r#"[{"type":"message","type":"item_reference","id":"a","id":"b"}]"#, &["a", "b"]),
            (r#"[{"type":"item_reference","type":"message","id":"a"}]"#, &["a"]),
            (r#"[{"type":"item_reference","id":7},{"type":7,"id":"a"}]"#, &["", "a"]),
            (r#"[{"type":"item_reference"}]"#, &[]),
            (r#"[{"type":"image_generation_call","id":"ig_1"}]"#, &["ig_1"]),
            (r#"[{"type":"image_generation_call","id":"ig_1","result":null}]"#, &["ig_1"]),
            (r#"[{"type":"image_generation_call","id":"ig_1","result":"AAAA"}]"#, &[]),
            (r#"[{"type":"image_generation_call","id":"a","result":"A","result":null}]"#, &["a"]),
            (r#"[{"type":"image_generation_call","id":"a","result":""}]"#, &["a"]),
            (r#"[{"type":"message","type":null,"id":"a"}]"#, &["a"]),
            (r#"[{"type":"reasoning","id":"a","summary":[]}]"#, &["a"]),
            (r#"[{"type":"reasoning","id":"a","encrypted_content":null}]"#, &["a"]),
            (r#"[{"type":"reasoning","id":"a","encrypted_content":"g"}]"#, &[]),
            // What is sent whole needs no item that is stored.
            (r#"[{"type":"message","id":"msg_1","role":"user","content":"x"}]"#, &[]),
            (r#"[{"id":"msg_1","role":"assistant","content":"item_reference"}]"#, &[]),
            (r#"[{"type":"function_call","id":"fc_1","call_id":"c"}]"#, &[]),
            (r#"[{"type":"message","content":[{"type":"item_reference","id":"m"}]}]"#, &[]),
            (r#""item_reference""#, &[]),
            ("[]", &[]),
            ("[{}, 7, null]", &[]),
            (r#"{"type":"item_reference","id":"msg_1"}"#, &[]),
        ] {
            assert_eq!(referred(input.as_bytes()), expected, "{input}");
        }
        let body = br#"{"input":[{"id":"a"}],"in\u0070ut":[{"id":"b"}],"model":"m"}"#;
        let naming = Peek::at(body).unwrap().references;
        assert_eq!(referred_in(body, naming), ["b"], "the last duplicate wins");
        assert!(
            referred_in(body, References::default()).is_empty()
                && referred_in(b"", naming).is_empty()
        );
        let long = "x".repeat(3_000);
        let input = format!(r#"[{{"type":"item_reference","id":"{long}"}}]"#);
        assert_eq!(referred(input.as_bytes()), [""], "no id is so long");
        let many: Vec<_> = (0..=MOST).map(|number| format!(r#"{{"id":"m{number}"}}"#)).collect();
        assert_eq!(referred(format!("[{}]", many.join(",")).as_bytes()), [""]);
        assert_eq!(referred(format!("[{}]", many[1..].join(",")).as_bytes()).len(), MOST);
    }

    #[test]
    fn items_of_a_document_are_listed_once_it_is_whole() {
        let response = r#"{"id":"resp_1","output":[{"id":"rs_1","summary":[]},{"id":"msg_1"}, {"id":null},{}]}"#;
        assert_eq!(listed(response.as_bytes()).unwrap(), ["rs_1", "msg_1"]);
        for end in 1..response.len() {
            assert_eq!(listed(&response.as_bytes()[..end]), None, "{end}");
        }
        let list = r#"{"object":"list","data":[{"type":"message","id":"msg_2"}],"has_more":false}"#;
        for none in [list, r#"{"output":null}"#, r#"{"error":{}}"#, "[]"] {
            assert_eq!(listed(none.as_bytes()), Some(Vec::new()), "{none}");
        }
    }

    #[test]
    fn event_that_adds_an_item_names_it() {
        for (event, expected) in [
            (
                r#"{"type":"response.output_item.added","output_index":0,"item":{"id":"msg_1","type":"message"}}"#,
                Some("msg_1"),
            ),
            (
                r#"{"item":{"content":[],"id":"msg_1"},"type":"response.output\u005fitem.added","x":"output_item"}"#,
                Some("msg_1"),
            ),
            (r#"{"type":"response.output_item.done","item":{"id":"msg_1"}}"#, None),
            (r#"{"type":"response.output_item.added","item":{}}"#, None),
            (r#"{"type":"response.output_text.delta","delta":"output_item","id":"x"}"#, None),
            (r#"{"type":"response.output_item.added","item":{"id":"#, None),
            ("", None),
        ] {
            assert_eq!(added(event.as_bytes()).as_deref(), expected, "{event}");
        }
    }
}
