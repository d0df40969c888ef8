//! Finds a body's references to objects that one project stores apart from its responses. No other
//! project can resolve them. Pure.
//!
//! OpenAI's API reference for responses lists where references may stand. The scanner checks names
//! at any depth inside `input`, `messages`, `tools` and `prompt`, in its one pass over the body.

use memchr::memchr;

use crate::wire::quotes::unescaped;

/// The shortest relevant name with an escape in it.
const SHORTEST_ESCAPED: usize = br#""\u0074ype""#.len();

/// The references of one body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// At least one reference that only one project can resolve.
    pub need_project: bool,
    /// At least one reference to a file or vector store. No response creates these, so the id never
    /// passed through this gateway.
    pub are_foreign: bool,
}

impl References {
    /// Records a field. `name` has its quotes, `value` is the text from the value on. `is_first` is
    /// true for the first field of its object.
    #[inline]
    pub fn look(&mut self, name: &[u8], value: &[u8], is_first: bool) {
        match name {
            br#""type""# if value.starts_with(br#""item_reference""#) => self.find_own(),
            // The type is optional: an item with only an id is a reference.
            br#""id""# if is_first && is_alone(value) => self.find_own(),
            br#""file_id""# if value.starts_with(br#""file"#) => self.find_foreign(),
            br#""file_ids""# if list(value).is_some_and(|list| list.starts_with(br#""file"#)) => {
                self.find_foreign()
            }
            br#""vector_store_ids""#
                if list(value).is_some_and(|list| list.starts_with(br#""vs_"#)) =>
            {
                self.find_foreign()
            }
            // Includes container files, which an answer cites.
            br#""file_id""# | br#""container_id""# | br#""container""# | br#""skill_id""#
                if is_text(value) =>
            {
                self.find_own()
            }
            br#""file_ids""# | br#""vector_store_ids""#
                if list(value).is_some_and(|list| !list.starts_with(b"]")) =>
            {
                self.find_own()
            }
            name if name.len() >= SHORTEST_ESCAPED && name.contains(&b'\\') => {
                let plain = unescaped(name);
                if !plain.contains(&b'\\') {
                    self.look(&[b"\"", &plain[..], b"\""].concat(), value, is_first);
                }
            }
            _ => {}
        }
    }

    pub const fn find_own(&mut self) {
        self.need_project = true;
    }

    const fn find_foreign(&mut self) {
        (self.need_project, self.are_foreign) = (true, true);
    }

    pub const fn add(&mut self, other: Self) {
        self.need_project |= other.need_project;
        self.are_foreign |= other.are_foreign;
    }
}

/// Whether `value` begins with a string that is not empty.
fn is_text(value: &[u8]) -> bool {
    matches!(value, [b'"', first, ..] if *first != b'"')
}

/// The inside of an array, from its first element on.
fn list(value: &[u8]) -> Option<&[u8]> {
    value.strip_prefix(b"[").map(<[u8]>::trim_ascii_start)
}

/// Whether `value` is a string at the end of its object.
fn is_alone(value: &[u8]) -> bool {
    let end =
        value.strip_prefix(b"\"").and_then(|text| memchr(b'"', text).map(|end| &text[end + 1..]));
    is_text(value) && end.is_some_and(|rest| rest.trim_ascii_start().starts_with(b"}"))
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
