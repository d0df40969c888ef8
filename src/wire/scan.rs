//! Steps over JSON text: finds the end of each value, or that the text is not JSON. Builds nothing.
//! Pure.
//!
//! Every turn's body is scanned once. Bodies are mostly strings full of escapes. The scanner
//! therefore finds all unescaped quotes first, 64 bytes at a time and without a branch for each
//! byte. Then it steps from quote to quote. It accepts RFC 8259 at any depth. It also accepts
//! strings with invalid Unicode, as long as no code reads them.

use crate::wire::quotes::Quotes;
use crate::wire::references::{ITEM, References};

/// The byte at which the text stops being JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {0}")]
pub struct NotJson(pub usize);

/// A position in JSON text.
pub struct Scanner<'t> {
    text: &'t [u8],
    at: usize,
    quotes: Quotes,
    /// The references in the values that were skipped so far. `None`: the caller does not ask for
    /// them.
    references: Option<References>,
}

/// The open brackets, innermost last. Each takes one bit, because a body may consist of brackets
/// only.
#[derive(Default)]
struct Brackets {
    words: Vec<u64>,
    depth: usize,
}

impl Brackets {
    fn push(&mut self, is_object: bool) {
        let (word, bit) = (self.depth / 64, self.depth % 64);
        if bit == 0 {
            self.words.truncate(word);
            self.words.push(0);
        }
        self.words[word] |= u64::from(is_object) << bit;
        self.depth += 1;
    }

    /// Closes the innermost bracket. Returns whether the bracket around it is an object, or `None`
    /// if none is open.
    fn pop(&mut self) -> Option<bool> {
        self.depth -= 1;
        let (word, bit) = (self.depth / 64, self.depth % 64);
        self.words[word] &= !(1 << bit);
        self.innermost()
    }

    fn innermost(&self) -> Option<bool> {
        let last = self.depth.checked_sub(1)?;
        Some(self.words[last / 64] >> (last % 64) & 1 == 1)
    }
}

impl<'t> Scanner<'t> {
    pub fn new(text: &'t [u8]) -> Self {
        Self { text, at: 0, quotes: Quotes::of(text), references: None }
    }

    /// Returns a scanner that notes references on its way.
    pub fn with_references(text: &'t [u8]) -> Self {
        Self { references: Some(References::default()), ..Self::new(text) }
    }

    /// Returns the next byte that is not white space, without consuming it.
    pub fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.text.get(self.at) {
            match byte {
                b' ' | b'\n' | b'\r' | b'\t' => self.at += 1,
                byte => return Some(*byte),
            }
        }
        None
    }

    /// Steps over `byte` if `byte` comes next.
    pub fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    pub fn expect(&mut self, byte: u8) -> Result<(), NotJson> {
        if self.take(byte) { Ok(()) } else { self.fail() }
    }

    /// Checks that only white space follows.
    pub fn end(&mut self) -> Result<(), NotJson> {
        if self.peek().is_none() { Ok(()) } else { self.fail() }
    }

    /// Steps over a string. Returns the string as written, with its quotes.
    pub fn string(&mut self) -> Result<&'t [u8], NotJson> {
        if self.peek() != Some(b'"') {
            return self.fail();
        }
        let start = self.at;
        self.skip_string()?;
        Ok(&self.text[start..self.at])
    }

    /// Steps over a value of any kind and depth. Returns the value as written.
    pub fn value(&mut self) -> Result<&'t [u8], NotJson> {
        let mut open = Brackets::default();
        self.peek();
        let start = self.at;
        loop {
            // A value begins here.
            match self.peek() {
                Some(b'{') => {
                    self.at += 1;
                    open.push(true);
                    if self.peek() != Some(b'}') {
                        self.key(true, open.depth)?;
                        continue;
                    }
                }
                Some(b'[') => {
                    self.at += 1;
                    open.push(false);
                    if self.peek() != Some(b']') {
                        continue;
                    }
                }
                Some(b'"') => self.skip_string()?,
                Some(b'-' | b'0'..=b'9') => self.skip_number()?,
                Some(b't') => self.skip_word(b"true")?,
                Some(b'f') => self.skip_word(b"false")?,
                Some(b'n') => self.skip_word(b"null")?,
                _ => return self.fail(),
            }
            // A value ended, or an empty bracket is about to end.
            let mut around = open.innermost();
            loop {
                let Some(is_object) = around else { return Ok(&self.text[start..self.at]) };
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        if is_object {
                            self.key(false, open.depth)?;
                        }
                        break;
                    }
                    Some(b'}') if is_object => self.at += 1,
                    Some(b']') if !is_object => self.at += 1,
                    _ => return self.fail(),
                }
                around = open.pop();
            }
        }
    }

    /// Returns and clears the references in the values that were skipped since the last call.
    pub fn references(&mut self) -> References {
        let Some(references) = &mut self.references else { return References::default() };
        references.end_item();
        std::mem::take(references)
    }

    /// Reads the name of a field. `is_first` is true for the first field of its object. `depth` is
    /// the number of open brackets.
    fn key(&mut self, is_first: bool, depth: usize) -> Result<(), NotJson> {
        let name = self.string()?;
        self.expect(b':')?;
        self.peek();
        if let Some(references) = &mut self.references {
            let value = &self.text[self.at..];
            if depth == ITEM {
                references.record_of_item(name, value, is_first);
            }
            references.record_field(name, value, is_first);
        }
        Ok(())
    }

    /// Steps from the opening quote over the closing quote.
    fn skip_string(&mut self) -> Result<(), NotJson> {
        let start = self.at + 1;
        let end = self.quotes.next(start).unwrap_or(self.text.len());
        if let Some(fault) = self.quotes.fault(self.text, start, end) {
            return Err(NotJson(fault));
        }
        self.at = end;
        if end == self.text.len() {
            return self.fail();
        }
        self.at += 1;
        Ok(())
    }

    fn skip_number(&mut self) -> Result<(), NotJson> {
        self.at += usize::from(self.text[self.at] == b'-');
        if self.text.get(self.at) == Some(&b'0') {
            self.at += 1;
        } else {
            self.skip_digits()?;
        }
        if self.text.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.skip_digits()?;
        }
        if let Some(b'e' | b'E') = self.text.get(self.at) {
            self.at += 1;
            self.at += usize::from(matches!(self.text.get(self.at), Some(b'+' | b'-')));
            self.skip_digits()?;
        }
        Ok(())
    }

    fn skip_digits(&mut self) -> Result<(), NotJson> {
        let count = self.text[self.at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += count;
        if count > 0 { Ok(()) } else { self.fail() }
    }

    fn skip_word(&mut self, word: &[u8]) -> Result<(), NotJson> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(())
        } else {
            self.fail()
        }
    }

    fn fail<T>(&self) -> Result<T, NotJson> {
        Err(NotJson(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_json(text: &[u8]) -> bool {
        let mut scanner = Scanner::new(text);
        scanner.value().and_then(|_| scanner.end()).is_ok()
    }

    #[test]
    fn depth_has_no_limit() {
        let deep = [vec![b'['; 1_000_000], vec![b']'; 1_000_000]].concat();
        assert!(is_json(&deep));
        assert!(!is_json(&deep[1..]) && !is_json(&deep[..deep.len() - 1]));
        let mixed = [r#"{"a":["#.repeat(1_000), "]}".repeat(1_000)].concat();
        assert!(is_json(mixed.as_bytes()));
        assert!(!is_json(mixed.replace("]}", "}]").as_bytes()));
    }

    #[test]
    fn value_is_returned_as_written() {
        let mut scanner = Scanner::new(br#" {"a": [1, "]"]} , 2"#);
        assert_eq!(scanner.value().unwrap(), br#"{"a": [1, "]"]}"#);
        assert!(scanner.take(b','));
        assert_eq!(scanner.value().unwrap(), b"2");
        assert_eq!(Scanner::new(b"[1, x]").value(), Err(NotJson(4)));
    }
}
