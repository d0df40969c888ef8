//! A tolerant JSON reader that copies nothing: it passes over the bytes once, and notes on a flat
//! tape where each value lies.
//!
//! The reader accepts all that JSON allows: any depth, any spelling of a number, duplicate names
//! (the last one wins), lone surrogates. It never recurses, and never copies or changes a value,
//! because the simulated cache matches prefixes by their bytes.

use std::borrow::Cow;

use memchr::memchr2;

/// Most values of one document. Without this limit, a body of brackets alone would need sixteen
/// times its size in memory.
const MOST_NODES: usize = 8_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Null,
    Bool,
    Number,
    String,
    Array,
    Object,
}

#[derive(Clone, Copy)]
struct Node {
    kind: Kind,
    start: u32,
    end: u32,
    /// The number of the node after this one and everything inside it.
    next: u32,
}

/// A whole document. An object's children are its names and values in turn.
pub struct Document<'a> {
    text: &'a [u8],
    nodes: Vec<Node>,
}

/// One value of a document.
#[derive(Clone, Copy)]
pub struct Value<'d> {
    document: &'d Document<'d>,
    index: usize,
}

/// Tokens that the grammar allows next, between values.
enum Expect {
    Value,
    ValueOrEnd,
    Name,
    NameOrEnd,
    Separator,
}

impl<'a> Document<'a> {
    /// Reads `text`, or returns the byte at which `text` stops being JSON.
    pub fn read(text: &'a [u8]) -> Result<Self, usize> {
        std::str::from_utf8(text).map_err(|error| error.valid_up_to())?;
        if u32::try_from(text.len()).is_err() {
            return Err(0);
        }
        let mut document = Self { text, nodes: Vec::with_capacity(256) };
        document.scan()?;
        Ok(document)
    }

    pub fn root(&self) -> Value<'_> {
        Value { document: self, index: 0 }
    }

    fn scan(&mut self) -> Result<(), usize> {
        let text = self.text;
        let mut open: Vec<usize> = Vec::new();
        let mut expect = Expect::Value;
        let mut at = 0;
        loop {
            at = skip_space(text, at);
            let Some(&byte) = text.get(at) else { return Err(at) };
            let ends = matches!(expect, Expect::ValueOrEnd | Expect::NameOrEnd | Expect::Separator);
            match (byte, &expect) {
                (b']' | b'}', _) if ends => {
                    let Some(index) = open.pop() else { return Err(at) };
                    let wanted = if byte == b']' { Kind::Array } else { Kind::Object };
                    let next = self.nodes.len() as u32;
                    let node = &mut self.nodes[index];
                    if node.kind != wanted {
                        return Err(at);
                    }
                    at += 1;
                    (node.end, node.next) = (at as u32, next);
                    expect = Expect::Separator;
                }
                (b',', Expect::Separator) => {
                    let Some(&index) = open.last() else { return Err(at) };
                    expect = if self.nodes[index].kind == Kind::Array {
                        Expect::Value
                    } else {
                        Expect::Name
                    };
                    at += 1;
                }
                (b'"', Expect::Name | Expect::NameOrEnd) => {
                    let end = string_end(text, at)?;
                    self.push(Kind::String, at, end)?;
                    at = skip_space(text, end);
                    if text.get(at) != Some(&b':') {
                        return Err(at);
                    }
                    at += 1;
                    expect = Expect::Value;
                }
                (b'[' | b'{', Expect::Value | Expect::ValueOrEnd) => {
                    open.push(self.nodes.len());
                    let array = byte == b'[';
                    self.push(if array { Kind::Array } else { Kind::Object }, at, at)?;
                    at += 1;
                    expect = if array { Expect::ValueOrEnd } else { Expect::NameOrEnd };
                }
                (_, Expect::Value | Expect::ValueOrEnd) => {
                    let (kind, end) = scalar_end(text, at)?;
                    self.push(kind, at, end)?;
                    at = end;
                    expect = Expect::Separator;
                }
                _ => return Err(at),
            }
            if open.is_empty() {
                at = skip_space(text, at);
                return if at == text.len() { Ok(()) } else { Err(at) };
            }
        }
    }

    fn push(&mut self, kind: Kind, start: usize, end: usize) -> Result<(), usize> {
        if self.nodes.len() == MOST_NODES {
            return Err(start);
        }
        let next = self.nodes.len() as u32 + 1;
        self.nodes.push(Node { kind, start: start as u32, end: end as u32, next });
        Ok(())
    }
}

fn skip_space(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
        at += 1;
    }
    at
}

/// Returns the position after the string that opens at `at`.
fn string_end(text: &[u8], at: usize) -> Result<usize, usize> {
    let mut from = at + 1;
    let end = loop {
        let Some(run) = memchr2(b'"', b'\\', &text[from..]) else { return Err(text.len()) };
        let stop = from + run;
        if text[stop] == b'"' {
            break stop;
        }
        from = match text.get(stop + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => stop + 2,
            Some(b'u')
                if text
                    .get(stop + 2..stop + 6)
                    .is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) =>
            {
                stop + 6
            }
            _ => return Err(stop),
        };
    };
    // Checked for the whole string at once: a body of escapes has short runs.
    if has_control(&text[at..end]) { Err(at) } else { Ok(end + 1) }
}

/// Whether `run` holds a byte below 0x20. Checks eight bytes at a time, since strings are most of a
/// body and this code is built without optimization.
fn has_control(run: &[u8]) -> bool {
    const ONES: u64 = u64::MAX / 255;
    let (words, rest) = run.as_chunks::<8>();
    words.iter().any(|word| {
        let word = u64::from_ne_bytes(*word);
        word.wrapping_sub(ONES * 0x20) & !word & (ONES * 0x80) != 0
    }) || rest.iter().any(|byte| *byte < 0x20)
}

fn scalar_end(text: &[u8], at: usize) -> Result<(Kind, usize), usize> {
    for (word, kind) in [("null", Kind::Null), ("true", Kind::Bool), ("false", Kind::Bool)] {
        if text[at..].starts_with(word.as_bytes()) {
            return Ok((kind, at + word.len()));
        }
    }
    if text[at] == b'"' {
        string_end(text, at).map(|end| (Kind::String, end))
    } else {
        number_end(text, at)
    }
}

fn number_end(text: &[u8], start: usize) -> Result<(Kind, usize), usize> {
    let digits = |mut at: usize| {
        while text.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    };
    let whole = start + usize::from(text[start] == b'-');
    let mut at = digits(whole);
    if at == whole || (text[whole] == b'0' && at > whole + 1) {
        return Err(start);
    }
    if text.get(at) == Some(&b'.') {
        let end = digits(at + 1);
        if end == at + 1 {
            return Err(at);
        }
        at = end;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(text.get(at + 1), Some(b'+' | b'-')));
        let end = digits(at + 1 + sign);
        if end == at + 1 + sign {
            return Err(at);
        }
        at = end;
    }
    Ok((Kind::Number, at))
}

impl<'d> Value<'d> {
    fn node(self) -> Node {
        self.document.nodes[self.index]
    }

    fn at(self, index: usize) -> Self {
        Self { document: self.document, index }
    }

    pub fn kind(self) -> Kind {
        self.node().kind
    }

    /// The value's bytes as the client sent them.
    pub fn raw(self) -> &'d [u8] {
        let node = self.node();
        &self.document.text[node.start as usize..node.end as usize]
    }

    /// The values of an array; nothing for any other kind.
    pub fn items(self) -> impl Iterator<Item = Self> {
        let end =
            if self.kind() == Kind::Array { self.node().next as usize } else { self.index + 1 };
        let mut index = self.index + 1;
        std::iter::from_fn(move || {
            let item = (index < end).then(|| self.at(index))?;
            index = item.node().next as usize;
            Some(item)
        })
    }

    /// The names and values of an object, in order and with duplicates; nothing for any other kind.
    pub fn entries(self) -> impl Iterator<Item = (Self, Self)> {
        let end =
            if self.kind() == Kind::Object { self.node().next as usize } else { self.index + 1 };
        let mut index = self.index + 1;
        std::iter::from_fn(move || {
            let name = (index < end).then(|| self.at(index))?;
            let value = self.at(index + 1);
            index = value.node().next as usize;
            Some((name, value))
        })
    }

    /// The last value of that name in an object. `null` counts as absent.
    pub fn get(self, name: &str) -> Option<Self> {
        let found = self.entries().filter(|(key, _)| key.is_text(name)).last()?.1;
        (found.kind() != Kind::Null).then_some(found)
    }

    /// Whether the value is the string `text`.
    pub fn is_text(self, text: &str) -> bool {
        let raw = self.raw();
        let inside = &raw[1.min(raw.len())..raw.len().saturating_sub(1).max(1.min(raw.len()))];
        self.kind() == Kind::String
            && (inside == text.as_bytes()
                || (inside.contains(&b'\\') && self.text().is_some_and(|own| own == text)))
    }

    /// The decoded string, with U+FFFD for what a string cannot hold.
    pub fn text(self) -> Option<Cow<'d, str>> {
        if self.kind() != Kind::String {
            return None;
        }
        let raw = self.raw();
        // The document was checked to be UTF-8, and a string starts and ends on a quote.
        let inside = std::str::from_utf8(&raw[1..raw.len() - 1]).ok()?;
        Some(if inside.contains('\\') {
            Cow::Owned(unescape(inside))
        } else {
            Cow::Borrowed(inside)
        })
    }

    pub fn truth(self) -> Option<bool> {
        (self.kind() == Kind::Bool).then(|| self.raw() == b"true")
    }
}

fn unescape(inside: &str) -> String {
    let mut text = String::with_capacity(inside.len());
    let mut rest = inside;
    while let Some(stop) = rest.find('\\') {
        text.push_str(&rest[..stop]);
        let escape = rest.as_bytes().get(stop + 1).copied().unwrap_or(b'\\');
        rest = rest.get(stop + 2..).unwrap_or("");
        match escape {
            b'b' => text.push('\u{8}'),
            b'f' => text.push('\u{c}'),
            b'n' => text.push('\n'),
            b'r' => text.push('\r'),
            b't' => text.push('\t'),
            b'u' => {
                let first = unit(rest);
                rest = rest.get(4..).unwrap_or("");
                let second = rest.strip_prefix("\\u").map(unit);
                let units = [first, second.unwrap_or(0)];
                match char::decode_utf16(units).next() {
                    Some(Ok(character)) => {
                        text.push(character);
                        if character.len_utf16() == 2 {
                            rest = rest.get(6..).unwrap_or("");
                        }
                    }
                    _ => text.push(char::REPLACEMENT_CHARACTER),
                }
            }
            other => text.push(char::from(other)),
        }
    }
    text.push_str(rest);
    text
}

/// The four hexadecimal digits at the start of `text`.
fn unit(text: &str) -> u16 {
    text.get(..4).and_then(|hex| u16::from_str_radix(hex, 16).ok()).unwrap_or(0xFFFD)
}

#[cfg(test)]
mod tests;
