//! Lists of models: OpenAI's, and the one that Codex asks for. Pure.
//!
//! Each entry stays as the upstream wrote it, because clients read fields that the gateway does not
//! know.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::wire::rename::with_field;

/// Most models of a list. Upstreams have some hundreds; further ones are left out.
const MOST: usize = 4096;

/// The form of a list of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListForm {
    /// `{"object":"list","data":[{"id",..}]}`
    OpenAi,
    /// `{"models":[{"slug",..}]}`
    Codex,
}

/// An upstream's list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelList {
    pub form: ListForm,
    /// Each model's name and its whole entry.
    pub entries: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Body<'b> {
    #[serde(borrow)]
    models: Option<Vec<&'b RawValue>>,
    #[serde(borrow)]
    data: Option<Vec<&'b RawValue>>,
}

#[derive(Deserialize)]
struct Named {
    slug: Option<String>,
    id: Option<String>,
}

impl ModelList {
    /// `None`: the body is no list of models.
    pub fn parse(body: &[u8]) -> Option<Self> {
        let body: Body<'_> = serde_json::from_slice(body).ok()?;
        let (form, entries) = match (body.models, body.data) {
            (Some(models), _) => (ListForm::Codex, models),
            (None, Some(data)) => (ListForm::OpenAi, data),
            (None, None) => return None,
        };
        let named = |raw: &RawValue| {
            let named: Named = serde_json::from_str(raw.get()).ok()?;
            let name = if form == ListForm::Codex { named.slug } else { named.id }?;
            Some((name, raw.get().to_owned()))
        };
        Some(Self { form, entries: entries.into_iter().filter_map(named).take(MOST).collect() })
    }

    /// Adds entries under the names by which clients ask, for models that the upstream calls
    /// otherwise.
    pub fn with_names<'n>(mut self, names: impl Iterator<Item = (&'n str, &'n str)>) -> Self {
        let field = if self.form == ListForm::Codex { "slug" } else { "id" };
        for (asked, sent) in names {
            if self.entries.iter().any(|(name, _)| name == asked) {
                continue;
            }
            let own = self.entries.iter().find(|(name, _)| name == sent);
            let renamed = own.and_then(|(_, raw)| with_field(raw.as_bytes(), field, asked));
            if let Some(text) = renamed.and_then(|text| String::from_utf8(text).ok()) {
                self.entries.push((asked.to_owned(), text));
            }
        }
        self
    }

    /// Adds the models that only `other` has.
    pub fn merge(&mut self, other: &Self) {
        let own: HashSet<&str> = self.entries.iter().map(|(name, _)| name.as_str()).collect();
        let is_new = |(name, _): &&(String, String)| !own.contains(name.as_str());
        let more: Vec<_> = other.entries.iter().filter(is_new).cloned().collect();
        self.entries.extend(more);
    }

    /// Returns the body for a client that may ask only for the models that `may_ask_for` accepts.
    pub fn body(&self, may_ask_for: impl Fn(&str) -> bool) -> String {
        let kept = self.entries.iter().filter(|(name, _)| may_ask_for(name));
        let kept: Vec<&str> = kept.map(|(_, raw)| raw.as_str()).collect();
        let list = kept.join(",");
        match self.form {
            ListForm::OpenAi => format!(r#"{{"object":"list","data":[{list}]}}"#),
            ListForm::Codex => format!(r#"{{"models":[{list}]}}"#),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_keeps_what_its_upstream_says_of_each_model() {
        let text = r#"{"object":"list","data":[{"id":"a","x": 1 },{"owned_by":"o","id":"b"}]}"#;
        let list = ModelList::parse(text.as_bytes()).unwrap();
        assert_eq!(list.body(|_| true), text);
        assert_eq!(
            list.body(|name| name == "a"),
            r#"{"object":"list","data":[{"id":"a","x": 1 }]}"#
        );
        let text = r#"{"models":[{"slug":"a","display_name":"A"}]}"#;
        let list = ModelList::parse(text.as_bytes()).unwrap();
        assert_eq!((list.form, list.body(|_| true)), (ListForm::Codex, text.into()));
        for none in ["{", "{}", "[]", r#"{"data":{}}"#] {
            assert_eq!(ModelList::parse(none.as_bytes()), None, "{none}");
        }
    }

    /// A search from model to model would take hours for lists of some megabytes.
    #[test]
    fn long_list_is_cut() {
        let list = |letter: char| {
            let models: Vec<_> =
                (0..100_000).map(|number| format!(r#"{{"id":"{letter}{number}"}}"#)).collect();
            ModelList::parse(format!(r#"{{"data":[{}]}}"#, models.join(",")).as_bytes()).unwrap()
        };
        let mut all = list('a');
        assert_eq!(all.entries.len(), MOST);
        for letter in ['b', 'a'] {
            all.merge(&list(letter));
            assert_eq!(all.entries.len(), 2 * MOST);
        }
    }

    #[test]
    fn mapped_name_is_listed_where_its_model_is() {
        let list = |text: &str| ModelList::parse(text.as_bytes()).unwrap();
        let names = [("ours", "a"), ("gone", "z"), ("b", "a")];
        let own = list(r#"{"data":[{"id":"a","x":1},{"id":"b"}]}"#);
        let mut own = own.with_names(names.into_iter());
        let expected =
            r#"{"object":"list","data":[{"id":"a","x":1},{"id":"b"},{"id":"ours","x":1}]}"#;
        assert_eq!(own.body(|_| true), expected);
        own.merge(&list(r#"{"data":[{"id":"a","y":2},{"id":"c"}]}"#));
        assert!(own.body(|_| true).ends_with(r#"{"id":"ours","x":1},{"id":"c"}]}"#));
    }
}
