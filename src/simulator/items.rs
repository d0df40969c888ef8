//! Items of stored responses, which later requests may name instead of sending them.
//!
//! An item is stored for its project and found only there. Memory has a limit: the oldest items are
//! dropped first.

use std::collections::{HashMap, VecDeque};

use super::answer::Item;
use super::json::{Kind, Value};
use super::request::item_type;

const MOST: usize = 100_000;

#[derive(Debug, Default)]
pub struct Items {
    /// Each item's project, its response and its JSON.
    items: HashMap<String, (String, String, String)>,
    oldest_first: VecDeque<String>,
}

impl Items {
    /// Keeps items. `place` is the name of the organization and of the project together.
    pub fn keep(&mut self, place: &str, response: &str, items: &[Item]) {
        for item in items {
            let id = item.id().to_owned();
            self.oldest_first.push_back(id.clone());
            self.items.insert(id, (place.to_owned(), response.to_owned(), item.json()));
            if self.oldest_first.len() > MOST
                && let Some(oldest) = self.oldest_first.pop_front()
            {
                self.items.remove(&oldest);
            }
        }
    }

    /// Forgets the items of a response that its client has deleted.
    pub fn forget(&mut self, response: &str) {
        self.items.retain(|_, (_, own, _)| own != response);
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Returns the body with each reference to an item of this project replaced by the item. Other
    /// references stay, and are refused later. `None`: nothing is replaced.
    pub fn resolve(&self, body: Value<'_>, place: &str) -> Option<Vec<u8>> {
        let input = body.get("input").filter(|input| input.kind() == Kind::Array)?;
        let found = |item: Value<'_>| {
            let id = reference(item)?;
            let (_, _, json) = self.items.get(&id).filter(|(own, ..)| own == place)?;
            Some(json.as_bytes().to_vec())
        };
        let items: Vec<_> = input.items().map(|item| (item.raw(), found(item))).collect();
        items.iter().any(|(_, found)| found.is_some()).then_some(())?;
        let items: Vec<_> =
            items.into_iter().map(|(raw, found)| found.unwrap_or_else(|| raw.to_vec())).collect();
        let items = [b"[", &items.join(&b","[..])[..], b"]"].concat();
        let fields = body.entries().map(|(name, value)| {
            let value = if name.is_text("input") { &items[..] } else { value.raw() };
            [name.raw(), b":", value].concat()
        });
        Some([b"{", &fields.collect::<Vec<_>>().join(&b","[..])[..], b"}"].concat())
    }
}

/// Returns the id that an item refers to: it is an `item_reference`, or has only an id.
fn reference(item: Value<'_>) -> Option<String> {
    let is_bare = item.get("type").is_none() && item.get("role").is_none();
    let id = item.get("id").and_then(Value::text)?;
    (is_bare || item_type(item) == "item_reference").then(|| id.into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::answer::Text;
    use super::super::json::Document;
    use super::*;

    #[test]
    fn reference_is_replaced_within_its_project_until_its_response_is_deleted() {
        let mut items = Items::default();
        let message =
            Item::Message { id: "msg_1".into(), text: Text::Words { events: 1, seed: 0 } };
        items.keep("org/one", "resp_1", std::slice::from_ref(&message));
        let resolved = |items: &Items, item: &str, place: &str| {
            let body = format!(r#"{{"model":"m","input":["x",{item}],"n":1}}"#);
            let document = Document::read(body.as_bytes()).expect("JSON");
            let found = items.resolve(document.root(), place)?;
            Some(String::from_utf8(found).expect("text"))
        };
        let expected = format!(r#"{{"model":"m","input":["x",{}],"n":1}}"#, message.json());
        for item in [r#"{"type":"item_reference","id":"msg_1"}"#, r#"{ "id": "msg_1" }"#] {
            assert_eq!(resolved(&items, item, "org/one").as_ref(), Some(&expected), "{item}");
            assert_eq!(resolved(&items, item, "org/two"), None, "another project");
        }
        for item in [
            r#"{"type":"item_reference","id":"msg_2"}"#,
            r#"{"type":"message","id":"msg_1","role":"user","content":"x"}"#,
            r#"{"type":"item_reference"}"#,
        ] {
            assert_eq!(resolved(&items, item, "org/one"), None, "{item}");
        }
        items.forget("resp_1");
        assert_eq!(resolved(&items, r#"{"id":"msg_1"}"#, "org/one"), None);
    }
}
