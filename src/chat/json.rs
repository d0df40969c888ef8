//! Reads JSON as it was written: the fields and elements of a value, each a slice of the text.
//! Writes objects.

use std::borrow::Cow;

use crate::error::{Error, ErrorKind};
use crate::wire::quotes::unescaped;
use crate::wire::scan::Scanner;

/// Maximum number of fields of an object, because a list of short fields takes many times the
/// memory of their text.
const MOST_FIELDS: usize = 4096;
/// Maximum characters of a client's field name in an error.
const LONGEST_NAME: usize = 64;

/// The names and values of an object, in order.
type Entries<'b> = Vec<(Cow<'b, [u8]>, &'b [u8])>;

/// The fields of one object of a request.
pub struct Fields<'b> {
    /// Where the object stands, such as `messages[0]`. Empty: the body itself.
    place: String,
    list: Entries<'b>,
}

impl<'b> Fields<'b> {
    pub fn of(raw: &'b [u8], place: String) -> Result<Self, Error> {
        match object(raw) {
            Some(list) if list.len() > MOST_FIELDS => Err(invalid(&place, "has too many fields")),
            Some(list) => Ok(Self { place, list }),
            None => Err(invalid(&place, "is not an object")),
        }
    }

    /// The value of `name`. The last duplicate wins, and null counts as absent.
    pub fn get(&self, name: &str) -> Option<&'b [u8]> {
        let found = self.list.iter().rev().find(|(known, _)| **known == *name.as_bytes());
        found.map(|(_, value)| *value).filter(|value| *value != b"null")
    }

    pub fn needed(&self, name: &str) -> Result<&'b [u8], Error> {
        self.get(name).ok_or_else(|| invalid(&self.at(name), "is missing"))
    }

    /// The text of `name`, for fields whose text decides something.
    pub fn word(&self, name: &str) -> Result<Option<Cow<'b, str>>, Error> {
        let not_text = || invalid(&self.at(name), "is not a string");
        self.get(name).map(|raw| word(raw).ok_or_else(not_text)).transpose()
    }

    /// Where `name` stands.
    pub fn at(&self, name: &str) -> String {
        if self.place.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place) }
    }

    /// The object in the field `name`.
    pub fn inner(&self, name: &str) -> Result<Fields<'b>, Error> {
        Fields::of(self.needed(name)?, self.at(name))
    }

    /// The elements of the array in `name`, each with its place.
    pub fn elements(
        &self,
        name: &str,
    ) -> Result<impl Iterator<Item = (String, &'b [u8])> + use<'b>, Error> {
        let place = self.at(name);
        let list = array(self.needed(name)?).ok_or_else(|| invalid(&place, "is not an array"))?;
        Ok(list.enumerate().map(move |(index, raw)| (format!("{place}[{index}]"), raw)))
    }

    /// Refuses a field that is not in `known`. A null asks for nothing and passes.
    pub fn only(&self, known: &[&[&str]]) -> Result<(), Error> {
        let is_known =
            |name: &[u8]| known.iter().copied().flatten().any(|one| one.as_bytes() == name);
        let odd = self.list.iter().find(|(name, raw)| !is_known(name) && *raw != b"null");
        match odd {
            None => Ok(()),
            Some((name, _)) => {
                let name: String =
                    String::from_utf8_lossy(name).chars().take(LONGEST_NAME).collect();
                Err(unsupported(&self.at(&name)))
            }
        }
    }
}

/// The field or the value at `place` has no equivalent in the Responses API.
pub fn unsupported(place: &str) -> Error {
    let message = format!(
        "Unsupported parameter: '{place}'. The upstream of this session speaks only the Responses API, which has no equivalent."
    );
    Error::new(ErrorKind::UnsupportedParameter, message).about(place)
}

/// The value at `place` is not what the API describes.
pub fn invalid(place: &str, what: &str) -> Error {
    let place = if place.is_empty() { "body" } else { place };
    Error::new(ErrorKind::InvalidRequest, format!("Invalid request: '{place}' {what}."))
        .about(place)
}

/// The fields of an object in their order. Reading stops at one field more than [`MOST_FIELDS`], so
/// that a caller sees that there are too many. `None`: `raw` is not an object.
pub fn object(raw: &[u8]) -> Option<Entries<'_>> {
    let (mut scanner, mut list) = (Scanner::new(raw), Vec::new());
    if !scanner.take(b'{') {
        return None;
    }
    if scanner.take(b'}') {
        return Some(list);
    }
    loop {
        let name = unescaped(scanner.string().ok()?);
        scanner.expect(b':').ok()?;
        list.push((name, scanner.value().ok()?));
        if list.len() > MOST_FIELDS {
            return Some(list);
        }
        if !scanner.take(b',') {
            scanner.expect(b'}').ok()?;
            return Some(list);
        }
    }
}

/// Reads the elements of an array one after the other, because a list of short elements would take
/// many times the memory of their text. `None`: `raw` is not an array.
pub fn array(raw: &[u8]) -> Option<Elements<'_>> {
    let mut scanner = Scanner::new(raw);
    scanner.take(b'[').then(|| Elements { is_over: scanner.take(b']'), scanner })
}

/// The elements of an array. They end at the first one that is not JSON.
pub struct Elements<'b> {
    scanner: Scanner<'b>,
    is_over: bool,
}

impl<'b> Iterator for Elements<'b> {
    type Item = &'b [u8];

    fn next(&mut self) -> Option<&'b [u8]> {
        let next = (!self.is_over).then(|| self.scanner.value().ok()).flatten();
        self.is_over = next.is_none() || !self.scanner.take(b',');
        next
    }
}

/// The text of a JSON string. `None`: `raw` is no string, or its text is no Unicode.
pub fn word(raw: &[u8]) -> Option<Cow<'_, str>> {
    let own = || serde_json::from_slice(raw).ok().map(Cow::Owned);
    serde_json::from_slice(raw).ok().map(Cow::Borrowed).or_else(own)
}

/// The inside of a JSON string, as written. `None`: `raw` is no string.
pub fn inside(raw: &[u8]) -> Option<&[u8]> {
    raw.strip_prefix(b"\"")?.strip_suffix(b"\"")
}

/// Writes one object to a text.
pub struct Object<'o> {
    out: &'o mut Vec<u8>,
    is_empty: bool,
}

impl<'o> Object<'o> {
    pub fn open(out: &'o mut Vec<u8>) -> Self {
        out.push(b'{');
        Self { out, is_empty: true }
    }

    /// Begins the field `name`. The caller writes its value to the returned text.
    pub fn begin(&mut self, name: &str) -> &mut Vec<u8> {
        let comma = if std::mem::take(&mut self.is_empty) { "" } else { "," };
        self.out.extend_from_slice(format!("{comma}\"{name}\":").as_bytes());
        self.out
    }

    pub fn raw(&mut self, name: &str, value: &[u8]) -> &mut Self {
        self.begin(name).extend_from_slice(value);
        self
    }

    /// Writes a field that may be absent.
    pub fn maybe(&mut self, name: &str, value: Option<&[u8]>) -> &mut Self {
        if let Some(value) = value {
            self.raw(name, value);
        }
        self
    }

    /// Writes a string that needs no escape.
    pub fn plain(&mut self, name: &str, text: &str) -> &mut Self {
        self.raw(name, format!("\"{text}\"").as_bytes())
    }

    pub fn close(self) {
        self.out.push(b'}');
    }
}

/// Writes `items` as an array. `write` writes one.
pub fn list<T>(
    out: &mut Vec<u8>,
    items: impl IntoIterator<Item = T>,
    mut write: impl FnMut(&mut Vec<u8>, T) -> Result<(), Error>,
) -> Result<(), Error> {
    out.push(b'[');
    for (index, item) in items.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write(out, item)?;
    }
    out.push(b']');
    Ok(())
}
