//! Keeps a JSON text. Of a long one, keeps the parts that state its end and its cost: everything
//! except the contents of arrays and long strings. Pure.
//!
//! A generated picture is one string of megabytes, and an output of any length is an array.

use memchr::{memchr2, memchr3};

/// Longest string that is kept, and most bytes that are kept in all.
const LONGEST: usize = 4 * 1024;
const MOST: usize = 256 * 1024;

/// Most memory that stays reserved for the next text.
const SPARE: usize = 4 * 1024;

/// Longest text that is kept whole.
pub const WHOLE: usize = 512 * 1024;

/// A text, or the parts of a long one.
#[derive(Default)]
pub struct Kept {
    whole: Vec<u8>,
    sieve: Option<Box<Sieve>>,
    /// Deepest nesting of arrays whose contents are kept.
    depth: usize,
}

impl Kept {
    /// Returns a text that keeps the contents of its outermost arrays, but not of arrays inside
    /// them.
    pub fn with_arrays() -> Self {
        Self { depth: 1, ..Self::default() }
    }

    pub fn keep(&mut self, bytes: &[u8]) {
        if let Some(sieve) = &mut self.sieve {
            sieve.pass(bytes);
        } else if self.whole.len() + bytes.len() <= WHOLE {
            self.whole.extend_from_slice(bytes);
        } else {
            let sieve =
                self.sieve.insert(Box::new(Sieve { depth: self.depth, ..Sieve::default() }));
            sieve.pass(&std::mem::take(&mut self.whole));
            sieve.pass(bytes);
        }
    }

    /// Returns what is kept. It is JSON if the text is. It is empty if too much would have to be
    /// kept.
    pub fn text(&self) -> &[u8] {
        self.sieve.as_ref().map_or(&self.whole, |sieve| sieve.kept())
    }

    /// Whether only parts of a long text are kept.
    pub const fn is_cut(&self) -> bool {
        self.sieve.is_some()
    }

    pub const fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.sieve.is_none()
    }

    /// Takes what is kept, and begins the next text.
    pub fn take(&mut self) -> Vec<u8> {
        match self.sieve.take() {
            Some(sieve) if sieve.is_too_long => Vec::new(),
            Some(sieve) => sieve.kept,
            None => std::mem::take(&mut self.whole),
        }
    }

    /// Returns the memory that the text takes up.
    pub fn capacity(&self) -> usize {
        self.whole.capacity() + self.sieve.as_ref().map_or(0, |sieve| sieve.kept.capacity())
    }

    /// Drops the text, and begins the next one in the same memory, unless that memory is large.
    pub fn clear(&mut self) {
        self.whole.clear();
        if self.whole.capacity() > SPARE {
            self.whole = Vec::new();
        }
        self.sieve = None;
    }
}

/// The part of a long text that is kept as the text passes.
#[derive(Default)]
pub struct Sieve {
    kept: Vec<u8>,
    /// The number of open arrays. Nothing inside an array deeper than `depth` is kept.
    arrays: usize,
    depth: usize,
    /// Where the current string's content begins in `kept`. `None`: the sieve is outside strings.
    string: Option<usize>,
    /// Whether the last byte of the string was a backslash.
    is_escaped: bool,
    /// Whether the string is too long to be kept.
    is_long: bool,
    is_too_long: bool,
}

impl Sieve {
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let taken = if self.string.is_some() {
                self.pass_string(bytes)
            } else {
                self.pass_structure(bytes)
            };
            bytes = &bytes[taken..];
        }
    }

    /// Returns what was kept. It is JSON if the text was. It is empty if too much would have to be
    /// kept.
    pub fn kept(&self) -> &[u8] {
        if self.is_too_long { b"" } else { &self.kept }
    }

    /// Passes bytes outside strings, up to and including the next quote or bracket of an array.
    fn pass_structure(&mut self, bytes: &[u8]) -> usize {
        let Some(at) = memchr3(b'"', b'[', b']', bytes) else {
            self.keep(bytes);
            return bytes.len();
        };
        self.keep(&bytes[..at]);
        match bytes[at] {
            b'"' => {
                self.keep(b"\"");
                self.string = Some(self.kept.len());
            }
            b'[' => {
                self.keep(b"[");
                self.arrays += 1;
            }
            _ => {
                self.arrays = self.arrays.saturating_sub(1);
                self.keep(b"]");
            }
        }
        at + 1
    }

    /// Passes the content of a string, up to and including its closing quote.
    fn pass_string(&mut self, bytes: &[u8]) -> usize {
        if std::mem::take(&mut self.is_escaped) {
            self.keep_content(&bytes[..1]);
            return 1;
        }
        let Some(at) = memchr2(b'"', b'\\', bytes) else {
            self.keep_content(bytes);
            return bytes.len();
        };
        self.keep_content(&bytes[..at]);
        if bytes[at] == b'\\' {
            self.keep_content(b"\\");
            self.is_escaped = true;
        } else {
            (self.string, self.is_long) = (None, false);
            self.keep(b"\"");
        }
        at + 1
    }

    fn keep_content(&mut self, bytes: &[u8]) {
        let begin = self.string.unwrap_or(self.kept.len());
        if self.arrays > self.depth || self.is_long {
            return;
        }
        if self.kept.len() - begin.min(self.kept.len()) + bytes.len() > LONGEST {
            self.is_long = true;
            self.kept.truncate(begin);
        } else {
            self.keep(bytes);
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.arrays > self.depth || self.is_too_long {
            return;
        }
        if self.kept.len() + bytes.len() > MOST {
            (self.kept, self.is_too_long) = (Vec::new(), true);
        } else {
            self.kept.extend_from_slice(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sieved(text: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut sieve = Sieve::default();
        let mut rest = text;
        for cut in cuts {
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            sieve.pass(piece);
            rest = after;
        }
        sieve.pass(rest);
        sieve.kept().to_vec()
    }

    #[test]
    fn arrays_and_long_strings_lose_their_contents() {
        let long = "x".repeat(LONGEST + 1);
        for (text, kept) in [
            (r#"{"a":[1,[2,"]"],{"b":"["}],"c":3}"#.to_owned(), r#"{"a":[],"c":3}"#),
            (format!(r#"{{"a":"{long}","c":3}}"#), r#"{"a":"","c":3}"#),
            (format!(r#"{{"a":"\"{long}\\","c":"\"]"}}"#), r#"{"a":"","c":"\"]"}"#),
            (r#"{"a":{"b":"c"}}"#.to_owned(), r#"{"a":{"b":"c"}}"#),
        ] {
            assert_eq!(String::from_utf8(sieved(text.as_bytes(), &[])).unwrap(), kept);
        }
        let many = format!("{{{}\"z\":1}}", r#""a":"b","#.repeat(MOST / 4));
        assert!(sieved(many.as_bytes(), &[]).is_empty(), "too much to keep");
    }

    #[test]
    fn long_text_with_arrays_keeps_what_the_outermost_ones_say() {
        let long = "x".repeat(WHOLE);
        let text = format!(r#"{{"a":[{{"b":"{long}","c":[1,2],"d":"stop"}}],"e":3}}"#);
        for size in [text.len(), 100_000, 7] {
            let mut kept = Kept::with_arrays();
            text.as_bytes().chunks(size).for_each(|chunk| kept.keep(chunk));
            assert!(!kept.is_empty());
            assert_eq!(kept.text(), br#"{"a":[{"b":"","c":[],"d":"stop"}],"e":3}"#);
            assert_eq!(kept.take(), br#"{"a":[{"b":"","c":[],"d":"stop"}],"e":3}"#);
            kept.keep(b"{}");
            assert_eq!(kept.take(), b"{}", "the next text");
        }
    }

    proptest! {
        #[test]
        fn sieve_keeps_the_same_however_the_text_is_cut(
            text in r#"[\[\]{}"\\,:a1 ]{0,200}"#,
            cuts in prop::collection::vec(0_usize..20, 0..20),
        ) {
            prop_assert_eq!(sieved(text.as_bytes(), &cuts), sieved(text.as_bytes(), &[]));
        }
    }
}
