//! Finds a body's references to objects that one project stores apart from its responses. Another
//! project cannot resolve them. Pure.
//!
//! OpenAI's API reference for responses lists where references may stand. The scanner checks names
//! at any depth inside `input`, `messages`, `tools` and `prompt`, in its one pass over the body.

use memchr::memchr2;

use crate::wire::quotes::unescaped;

/// The shortest relevant name with an escape in it.
const SHORTEST_ESCAPED: usize = br#""\u0074ype""#.len();

/// The number of open brackets around the fields of an item: those of the list and of the item.
pub const ITEM: usize = 2;

/// The references of one body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Whether there is a reference that only one project can resolve.
    pub need_project: bool,
    /// Whether there is a reference to a file or vector store. No response creates these, so the id
    /// never passed through the gateway.
    pub are_foreign: bool,
    /// Whether there is a reference to something other than an item. The owners of items are
    /// recorded by themselves.
    pub need_more: bool,
    /// Whether the input may refer to stored items (`wire::items`).
    pub name_items: bool,
    /// Whether duplicate fields disagree on the content that the turn continues.
    pub is_ambiguous: bool,
    /// Whether duplicate fields disagree on the model.
    pub names_two_models: bool,
    /// Duplicate fields disagree on whether a message asks for a response, or in which tier.
    pub names_two_kinds: bool,
    /// The item that the scan is in.
    item: ItemFields,
}

/// The fields of one item of an input that decide whether an upstream may read the item from its
/// store. If a field has duplicates, each counts, because upstreams differ in which one they read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ItemFields(u16);

impl ItemFields {
    const ID: u16 = 1;
    const TYPE: u16 = 2;
    const NO_TYPE: u16 = 4;
    const ROLE: u16 = 8;
    const NO_ROLE: u16 = 16;
    const RESULT: u16 = 32;
    const NO_RESULT: u16 = 64;
    const SEALED: u16 = 128;
    const NOT_SEALED: u16 = 256;
    const REFERENCE: u16 = 512;
    const IMAGE: u16 = 1024;
    const REASONING: u16 = 2048;

    /// Records a field. `name` has no quotes and no escapes. `value` is the text from the value on.
    pub fn record(&mut self, name: &[u8], value: &[u8]) {
        let stated = |once: u16, void: u16| if is_text(value) { once } else { void };
        self.0 |= match name {
            b"id" if !value.starts_with(b"null") => Self::ID,
            b"type" => stated(Self::TYPE, Self::NO_TYPE) | Self::kind(value),
            b"role" => stated(Self::ROLE, Self::NO_ROLE),
            b"result" => stated(Self::RESULT, Self::NO_RESULT),
            b"encrypted_content" => stated(Self::SEALED, Self::NOT_SEALED),
            _ => 0,
        };
    }

    /// Returns what a type says. Upstreams may differ in how they read a type that is no text, so
    /// such a type counts as a reference.
    fn kind(value: &[u8]) -> u16 {
        let named = |kind: &[u8]| match kind {
            b"item_reference" => Self::REFERENCE,
            b"image_generation_call" => Self::IMAGE,
            b"reasoning" => Self::REASONING,
            _ => 0,
        };
        match string(value) {
            None if value.starts_with(b"null") => 0,
            None => Self::REFERENCE,
            Some((text, _)) if text.contains(&b'\\') => serde_json::from_slice::<String>(text)
                .map_or(Self::REFERENCE, |text| named(text.as_bytes())),
            Some((text, _)) => named(&text[1..text.len() - 1]),
        }
    }

    /// Whether an upstream may read the item from its store. An item without a type but with a role
    /// is a message. OpenAI looks in its store for an image without its result, and for a reasoning
    /// without its content.
    pub const fn may_be_stored(self) -> bool {
        self.has(Self::REFERENCE)
            || self.has(Self::IMAGE) && self.may_lack(Self::RESULT, Self::NO_RESULT)
            || self.has(Self::REASONING) && self.may_lack(Self::SEALED, Self::NOT_SEALED)
            || self.may_lack(Self::TYPE, Self::NO_TYPE) && self.may_lack(Self::ROLE, Self::NO_ROLE)
    }

    const fn has(self, flag: u16) -> bool {
        self.0 & flag != 0
    }

    /// Whether a field is absent, or one of its duplicates is null, empty or no text.
    const fn may_lack(self, once: u16, void: u16) -> bool {
        !self.has(once) || self.has(void)
    }
}

impl References {
    /// Records a field. `name` has its quotes. `value` is the text from the value on. `is_first` is
    /// true for the first field of its object.
    #[inline]
    pub fn record_field(&mut self, name: &[u8], value: &[u8], is_first: bool) {
        match name {
            br#""type""# => self.look_at_type(value),
            // The type is optional: an item with only an id is a reference.
            br#""id""# if is_first && is_alone(value) => self.find_item(),
            // These include container files, which an answer cites.
            br#""file_id""# if is_text(value) => self.find(value, b"file"),
            br#""container_id""# | br#""container""# | br#""skill_id""# if is_text(value) => {
                self.find_own()
            }
            br#""file_ids""# => self.find_all(value, b"file"),
            br#""vector_store_ids""# => self.find_all(value, b"vs_"),
            name if name.len() >= SHORTEST_ESCAPED && name.contains(&b'\\') => {
                let plain = unescaped(name);
                if !plain.contains(&b'\\') {
                    self.record_field(&[b"\"", &plain[..], b"\""].concat(), value, is_first);
                }
            }
            _ => {}
        }
    }

    /// Records a field of an item.
    pub fn record_of_item(&mut self, name: &[u8], value: &[u8], is_first: bool) {
        if is_first {
            self.end_item();
        }
        self.item.record(&unescaped(name), value);
    }

    /// Ends the item that the scan has left.
    pub fn end_item(&mut self) {
        self.name_items |= self.item.has(ItemFields::ID) && self.item.may_be_stored();
        self.item = ItemFields(0);
    }

    fn look_at_type(&mut self, value: &[u8]) {
        self.need_project |= may_say(value, |text| text == b"item_reference");
    }

    /// Records one id. An id that begins with `foreign` was never in an answer.
    fn find(&mut self, value: &[u8], foreign: &[u8]) {
        self.find_own();
        if may_say(value, |text| text.starts_with(foreign)) {
            self.find_foreign();
        }
    }

    /// Records each id of a list.
    fn find_all(&mut self, value: &[u8], foreign: &[u8]) {
        let Some(mut rest) = value.strip_prefix(b"[") else { return };
        loop {
            rest = rest.trim_ascii_start();
            rest = match rest {
                [] | [b']', ..] => return,
                // The value is no list of ids. To search it at each depth would take time without a
                // bound.
                [b'[' | b'{', ..] => return self.find_foreign(),
                [b'"', ..] => {
                    self.find(rest, foreign);
                    string(rest).map_or(&[], |(_, after)| after)
                }
                [b',', after @ ..] => after,
                [_, after @ ..] => {
                    self.find_own();
                    after
                }
            };
        }
    }

    pub const fn find_own(&mut self) {
        (self.need_project, self.need_more) = (true, true);
    }

    const fn find_item(&mut self) {
        (self.need_project, self.name_items) = (true, true);
    }

    const fn find_foreign(&mut self) {
        self.find_own();
        self.are_foreign = true;
    }

    pub const fn add(&mut self, other: Self) {
        self.need_project |= other.need_project;
        self.are_foreign |= other.are_foreign;
        self.need_more |= other.need_more;
        self.name_items |= other.name_items;
        self.is_ambiguous |= other.is_ambiguous;
        self.names_two_models |= other.names_two_models;
        self.names_two_kinds |= other.names_two_kinds;
    }
}

/// Whether `value` begins with a string that is not empty.
fn is_text(value: &[u8]) -> bool {
    matches!(value, [b'"', first, ..] if *first != b'"')
}

/// Returns the string that `value` begins with, with its quotes, and the text after it.
fn string(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut end = value.starts_with(b"\"").then_some(1)?;
    loop {
        end += memchr2(b'"', b'\\', value.get(end..)?)?;
        if value[end] == b'"' {
            return Some(value.split_at(end + 1));
        }
        // Skips the backslash and the escaped byte.
        end += 2;
    }
}

/// Whether `value` begins with a string for whose text `is` holds. A text that cannot be unescaped
/// may say anything, because upstreams may differ in how they read it.
fn may_say(value: &[u8], is: impl Fn(&[u8]) -> bool) -> bool {
    let Some((text, _)) = string(value) else { return false };
    match text.contains(&b'\\') {
        false => is(&text[1..text.len() - 1]),
        true => serde_json::from_slice::<String>(text).map_or(true, |text| is(text.as_bytes())),
    }
}

/// Whether `value` is a string at the end of its object.
fn is_alone(value: &[u8]) -> bool {
    is_text(value)
        && string(value).is_some_and(|(_, rest)| rest.trim_ascii_start().starts_with(b"}"))
}

#[cfg(test)]
mod tests {
    use crate::wire::peek::Peek;

    fn found(body: &str) -> (bool, bool) {
        let references = Peek::at(body.as_bytes()).unwrap().references;
        (references.need_project, references.are_foreign)
    }

    #[test]
    fn references_of_one_project_are_found() {
        for (body, foreign) in [
            (
                r#"{"input":[{"role":"user","content":[{"type":"input_file","file_id":"file-1"}]}]}"#,
                true,
            ),
            (r#"{"input":[{"content":[{"type":"input_image" , "file_id" : "file_1"}]}]}"#, true),
            (r#"{"input":[{"content":[{"file\u005fid":"file-1"}]}]}"#, true),
            (r#"{"tools":[{"type":"file_search","vector_store_ids":[ "vs_1" ]}]}"#, true),
            (
                r#"{"tools":[{"type":"code_interpreter","container":{"type":"auto","file_ids":["file-1"]}}]}"#,
                true,
            ),
            (r#"{"tools":[{"type":"code_interpreter","container":"cntr_1"}]}"#, false),
            (
                r#"{"input":[{"type":"code_interpreter_call","id":"ci_1","container_id":"cntr_1"}]}"#,
                false,
            ),
            (
                r#"{"input":[{"annotations":[{"container_id":"cntr_1","file_id":"cfile_1"}]}]}"#,
                false,
            ),
            (r#"{"input":[{"type":"item_reference","id":"msg_1"}]}"#, false),
            (r#"{"input":[{"id":"msg_1"}]}"#, false),
            (r#"{"input":[{"role":"user","content":"x"},{ "id" : "msg_1" }]}"#, false),
            (
                r#"{"tools":[{"type":"shell","environment":{"skills":[{"type":"skill_reference","skill_id":"skill_1"}]}}]}"#,
                false,
            ),
            (r#"{"prompt":{"id":"pmpt_1"},"input":"hello"}"#, false),
            (r#"{"prompt":{"id":"pmpt_1","id":null}}"#, false),
            (r#"{"prompt":{"variables":{"x":{"type":"input_file","file_id":"file-1"}}}}"#, true),
            (r#"{"tools":[{"type":"file_search","vector_store_ids":["other"]}]}"#, false),
            (r#"{"in\u0070ut":[{"file_id":"file-1"}],"input":[]}"#, true),
            (
                r#"{"messages":[{"role":"user","content":[{"type":"file","file":{"file_id":"file-1"}}]}]}"#,
                true,
            ),
            (r#"{"messages":[{"role":"assistant","audio":{"id":"audio_1"}}]}"#, false),
        ] {
            assert_eq!(found(body), (true, foreign), "{body}");
        }
    }

    #[test]
    fn body_that_may_name_stored_items_is_read_once_more() {
        for (item, expected) in [
            (r#"{"type":"item_reference","id":"a"}"#, true),
            (r#"{"t\u0079pe":"item\u005freference","id":"a"}"#, true),
            (r#"{"id":"a"}"#, true),
            (r#"{"id":"a","type" : null}"#, true),
            (r#"{"id":"x","id":"a"}"#, true),
            (r#"{"status":"completed","content":[{"type":"x"}],"i\u0064":"a"}"#, true),
            (r#"{"type":"message","type":null,"id":"a"}"#, true),
            (r#"{"role":null,"id":"a"}"#, true),
            (r#"{"type":"reasoning","id":"a","summary":[]}"#, true),
            (
                r#"{"type":"reasoning","id":"a","encrypted_content":"g","encrypted_content":null}"#,
                true,
            ),
            (r#"{"type":"reasoning","id":"a","encrypted_content":"g"}"#, false),
            (r#"{"type":"reasoning","summary":[]}"#, false),
            (r#"{"role":"user","id":"a","content":[{"x":{}}]},{"type":"message","id":"b"}"#, false),
            (r#"{"type":"image_generation_call","id":"a"}"#, true),
            (r#"{"type":"message","id":"a","role":"user","content":"item_reference"}"#, false),
            (r#"{"type":"input_file","file_id":"file-1"}"#, false),
        ] {
            let body = format!(r#"{{"input":[{item}]}}"#);
            let references = Peek::at(body.as_bytes()).unwrap().references;
            assert_eq!(references.name_items, expected, "{item}");
            let is_file = item.contains("file_id");
            assert_eq!((references.need_more, references.are_foreign), (is_file, is_file));
        }
    }

    #[test]
    fn reference_is_found_however_it_is_written() {
        for (body, foreign) in [
            (r#"{"input":[{"file_id":"\u0066ile-OTHER"}]}"#, true),
            (r#"{"input":[{"file_id":"fi\u006Ce-1"}]}"#, true),
            (r#"{"input":[{"file\u005fid":"\u0066ile-1"}]}"#, true),
            (r#"{"tools":[{"vector_store_ids":["\u0076s_x"]}]}"#, true),
            (r#"{"tools":[{"vector_store_ids":["other" , "vs_x"]}]}"#, true),
            (r#"{"tools":[{"file_ids":["cfile_1","file-OTHER"]}]}"#, true),
            (r#"{"tools":[{"file_ids":[null, 1,"a\"]","file-OTHER"]}]}"#, true),
            (r#"{"tools":[{"file_ids":["cfile_1",["file-OTHER"]]}]}"#, true),
            // The text is no Unicode, so it is not known how an upstream reads it.
            (r#"{"input":[{"file_id":"\ud800file-1"}]}"#, true),
            (r#"{"tools":[{"file_ids":["cfile_1","\udc00"]}]}"#, true),
            (r#"{"tools":[{"file_ids":["cfile_1","\u0063file_2"]},{"file_ids":[]}]}"#, false),
            (r#"{"tools":[{"file_ids":["cfile_1"]},{"x":["file-1"]}]}"#, false),
            (r#"{"input":[{"file_id":"\u0063file_1"}]}"#, false),
            (r#"{"input":[{"type":"item\u005freference","id":"msg_1"}]}"#, false),
            (r#"{"input":[{"id":"msg\"_1"}]}"#, false),
        ] {
            assert_eq!(found(body), (true, foreign), "{body}");
        }
        assert_eq!(found(r#"{"input":[{"type":"item\u005freferences"}]}"#), (false, false));
    }

    #[test]
    fn near_misses_are_no_references() {
        for body in [
            r#"{"input":[{"role":"user","content":"\"file_id\":\"file-1\""}]}"#,
            r#"{"input":[{"type":"function_call","arguments":"{\"file_id\":\"file-1\"}"}]}"#,
            r#"{"tools":[{"type":"function","parameters":{"properties":{"file_id":{"type":"string"}}}}]}"#,
            r#"{"tools":[{"type":"code_interpreter","container":{"type":"auto"}},{"vector_store_ids":[ ]}]}"#,
            r#"{"input":[{"file_id":null},{"file_id":""},{"file_ids":[]}]}"#,
            r#"{"metadata":{"file_id":"file-1"},"prompt_cache_key":"file_id"}"#,
            r#"{"prompt":{"id":null}}"#,
            r#"{"input":[{"id":"rs_1","type":"reasoning","summary":[]},{"type":"message","id":"msg_1"},{"id":""}]}"#,
            r#"{"file_id":"file-1"}"#,
        ] {
            assert_eq!(found(body), (false, false), "{body}");
        }
    }
}
