//! References in a body to what a project stores apart from its responses: no other project finds it. Pure.
//!
//! Where a reference may stand is told by OpenAI's API reference for responses; the names are looked at wherever they stand inside
//! `input` and `tools`, on the scanner's one way through the body.

use super::peek::unescaped;

/// No name that is looked for and has an escape in it is shorter.
const SHORTEST_ESCAPED: usize = br#""\u0074ype""#.len();

/// What a body refers to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// To something that only the project finds which stores it.
    pub any: bool,
    /// To a file or a vector store: neither is made by a response, so it never passed through here.
    pub foreign: bool,
}

impl References {
    /// Takes note of a field, as written: its name in quotes, and the text that begins with its value.
    #[inline]
    pub fn look(&mut self, name: &[u8], value: &[u8]) {
        match name {
            br#""type""# => self.any |= value.starts_with(br#""item_reference""#),
            // A container's own files, which an answer cites, are called otherwise.
            br#""file_id""# if is_text(value) => self.found(!value.starts_with(br#""cfile"#)),
            br#""file_ids""# | br#""vector_store_ids""# if is_list(value) => self.found(true),
            br#""container_id""# | br#""container""# if is_text(value) => self.found(false),
            name if name.len() >= SHORTEST_ESCAPED && name.contains(&b'\\') => {
                let plain = unescaped(name);
                if !plain.contains(&b'\\') {
                    self.look(&[b"\"", &plain[..], b"\""].concat(), value);
                }
            }
            _ => {}
        }
    }

    pub fn found(&mut self, foreign: bool) {
        self.any = true;
        self.foreign |= foreign;
    }

    pub fn add(&mut self, other: Self) {
        self.any |= other.any;
        self.foreign |= other.foreign;
    }
}

/// A string that is not empty.
fn is_text(value: &[u8]) -> bool {
    matches!(value, [b'"', first, ..] if *first != b'"')
}

/// An array that is not empty.
fn is_list(value: &[u8]) -> bool {
    value.strip_prefix(b"[").is_some_and(|rest| !rest.trim_ascii_start().starts_with(b"]"))
}

#[cfg(test)]
mod tests {
    use crate::session::peek::Peek;

    fn found(body: &str) -> (bool, bool) {
        let references = Peek::at(body.as_bytes()).unwrap().references;
        (references.any, references.foreign)
    }

    #[test]
    fn whatever_only_one_project_finds_is_a_reference() {
        for (body, foreign) in [
            (r#"{"input":[{"role":"user","content":[{"type":"input_file","file_id":"file-1"}]}]}"#, true),
            (r#"{"input":[{"content":[{"type":"input_image" , "file_id" : "file_1"}]}]}"#, true),
            (r#"{"input":[{"content":[{"file\u005fid":"file-1"}]}]}"#, true),
            (r#"{"tools":[{"type":"file_search","vector_store_ids":[ "vs_1" ]}]}"#, true),
            (r#"{"tools":[{"type":"code_interpreter","container":{"type":"auto","file_ids":["file-1"]}}]}"#, true),
            (r#"{"tools":[{"type":"code_interpreter","container":"cntr_1"}]}"#, false),
            (r#"{"input":[{"type":"code_interpreter_call","id":"ci_1","container_id":"cntr_1"}]}"#, false),
            (r#"{"input":[{"annotations":[{"container_id":"cntr_1","file_id":"cfile_1"}]}]}"#, false),
            (r#"{"input":[{"type":"item_reference","id":"msg_1"}]}"#, false),
            (r#"{"prompt":{"id":"pmpt_1"},"input":"hello"}"#, false),
            (r#"{"in\u0070ut":[{"file_id":"file-1"}],"input":[]}"#, true),
        ] {
            assert_eq!(found(body), (true, foreign), "{body}");
        }
    }

    #[test]
    fn what_only_looks_like_one_is_none() {
        for body in [
            r#"{"input":[{"role":"user","content":"\"file_id\":\"file-1\""}]}"#,
            r#"{"input":[{"type":"function_call","arguments":"{\"file_id\":\"file-1\"}"}]}"#,
            r#"{"tools":[{"type":"function","parameters":{"properties":{"file_id":{"type":"string"}}}}]}"#,
            r#"{"tools":[{"type":"code_interpreter","container":{"type":"auto"}},{"vector_store_ids":[ ]}]}"#,
            r#"{"input":[{"file_id":null},{"file_id":""},{"file_ids":[]}]}"#,
            r#"{"metadata":{"file_id":"file-1"},"prompt_cache_key":"file_id"}"#,
            r#"{"prompt":{"id":null}}"#,
            r#"{"file_id":"file-1"}"#,
        ] {
            assert_eq!(found(body), (false, false), "{body}");
        }
    }
}
