//! The ids of items that upstreams store with their responses: those that a request refers to, and
//! those that an answer makes. Pure.
//!
//! A request may name a stored item instead of sending one, by an `item_reference` or the id of an
//! image that an answer has made. The upstream then reads the item's content.

use std::collections::BTreeSet;

use memchr::memmem;

use crate::wire::event::first_type;
use crate::wire::peek::{Field, each, fields, inner};
use crate::wire::quotes::unescaped;
use crate::wire::references::{ItemFields, References};
use crate::wire::scan::{NotJson, Scanner};

/// Most different items of one request or answer.
pub const MOST: usize = 4096;

/// Returns the ids of the stored items that `body` refers to. `references`: what a scan has found
/// in `body`. An id that cannot be read becomes an empty one, which no upstream ever issued. So
/// does an id beyond [`MOST`].
pub fn referred_in(body: &[u8], references: References) -> Vec<String> {
    // Few bodies refer to any, and no other body is read once more.
    match references.name_items {
        true => referred(each(body, "input")),
        false => Vec::new(),
    }
}

/// Returns the ids of the stored items in these inputs. If a body has duplicate inputs, each
/// counts, because upstreams differ in which one they read.
pub fn referred<'b>(inputs: impl Iterator<Item = &'b [u8]>) -> Vec<String> {
    let mut ids = BTreeSet::new();
    for item in inputs.flat_map(elements) {
        if let Ok(found) = Item::read(item)
            && found.fields.may_be_stored()
        {
            ids.extend(found.ids);
        }
        if ids.len() > MOST {
            return vec![String::new()];
        }
    }
    ids.into_iter().collect()
}

/// Returns the ids of the items in the response `document`. `None`: the document is incomplete, or
/// no JSON.
pub fn listed(document: &[u8]) -> Option<Vec<String>> {
    let [output] = fields(document, ["output"]).ok()?;
    let items = elements(output.unwrap_or_default());
    Some(items.filter_map(id).take(MOST).collect())
}

/// Returns the id of the item that the event `data` adds to its response.
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

/// Returns the elements of `list`, a part of a JSON text, one by one: a list of all could take many
/// times the text's memory. A value that is no list has no elements.
fn elements(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut scanner = Scanner::new(list);
    let mut has_more = scanner.take(b'[') && !scanner.take(b']');
    std::iter::from_fn(move || {
        let element = has_more.then(|| scanner.value().ok()).flatten();
        has_more = element.is_some() && scanner.take(b',');
        element
    })
}

/// The ids of an item, and the fields that show whether it stands for a stored one.
#[derive(Default)]
struct Item {
    /// With one beyond [`MOST`] at the most: an item may repeat its id millions of times.
    ids: BTreeSet<String>,
    fields: ItemFields,
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
            let value = scanner.value()?;
            found.fields.record(&name, value);
            if *name == *b"id" && found.ids.len() <= MOST {
                found.ids.extend(Field::of(Some(value)).id().map(str::to_owned));
            }
            if !scanner.take(b',') {
                return Ok(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::peek::Peek;

    fn referred(inputs: &[&[u8]]) -> Vec<String> {
        super::referred(inputs.iter().copied())
    }

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
            // An item that is sent whole refers to no stored one.
            (r#"[{"type":"message","id":"msg_1","role":"user","content":"x"}]"#, &[]),
            (r#"[{"id":"msg_1","role":"assistant","content":"item_reference"}]"#, &[]),
            (r#"[{"type":"function_call","id":"fc_1","call_id":"c"}]"#, &[]),
            (r#"[{"type":"message","content":[{"type":"item_reference","id":"m"}]}]"#, &[]),
            (r#""item_reference""#, &[]),
            ("[]", &[]),
            ("[{}, 7, null]", &[]),
            (r#"{"type":"item_reference","id":"msg_1"}"#, &[]),
        ] {
            assert_eq!(referred(&[input.as_bytes()]), expected, "{input}");
        }
        let body = br#"{"input":[{"id":"a"}],"in\u0070ut":[{"id":"b"}],"model":"m"}"#;
        let naming = Peek::at(body).unwrap().references;
        assert_eq!(referred_in(body, naming), ["a", "b"], "each duplicate counts");
        assert!(
            referred_in(body, References::default()).is_empty()
                && referred_in(b"", naming).is_empty()
        );
        let long = "x".repeat(3_000);
        let input = format!(r#"[{{"type":"item_reference","id":"{long}"}}]"#);
        assert_eq!(referred(&[input.as_bytes()]), [""], "no id is so long");
        let many: Vec<_> = (0..=MOST).map(|number| format!(r#"{{"id":"m{number}"}}"#)).collect();
        let list = |ids: &[String]| format!("[{}]", ids.join(","));
        assert_eq!(referred(&[list(&many).as_bytes()]), [""]);
        assert_eq!(referred(&[list(&many[1..]).as_bytes()]).len(), MOST);
        let (first, second) = (list(&many[1..]), list(&many[..1]));
        assert_eq!(
            referred(&[first.as_bytes(), second.as_bytes()]),
            [""],
            "in all inputs together"
        );
    }

    /// The ids of an item of 64 MiB would take many times its memory.
    #[test]
    fn item_with_many_ids_is_read_up_to_a_bound() {
        let item = |id: &dyn Fn(usize) -> String| {
            let ids: Vec<_> = (0..3 * MOST).map(id).collect();
            format!("{{{}}}", ids.join(","))
        };
        let ids_of = |item: &str| Item::read(item.as_bytes()).unwrap().ids.len();
        let same = item(&|_| r#""id":"a""#.to_owned());
        let others = item(&|number| format!(r#""id":"m{number}""#));
        assert_eq!((ids_of(&same), ids_of(&others)), (1, MOST + 1));
        let all = [same, others].map(|item| referred(&[format!("[{item}]").as_bytes()]));
        assert_eq!(all, [["a"], [""]]);
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
