//! Finds the unescaped quotes of JSON text, and the bytes that no string may contain. Pure.
//!
//! Works on blocks of 64 bytes, one bit a byte. All bytes of a block are compared at once, and a
//! few operations on whole words tell which quotes are escaped. The idea is simdjson's (Langdale
//! and Lemire, 2019), in portable Rust that the compiler vectorizes.

use std::borrow::Cow;

const BLOCK: usize = 64;
/// The bits at even places.
const EVEN: u64 = 0x5555_5555_5555_5555;

/// The positions of a text's unescaped quotes.
pub struct Quotes {
    /// One bit for each byte of the text, set for an unescaped quote.
    words: Vec<u64>,
    /// The first byte after a backslash that forms no valid escape.
    bad_escape: Option<usize>,
    /// Whether the text has a control character. A control character may be white space between
    /// values, but a string may not contain one.
    has_control: bool,
}

impl Quotes {
    pub fn of(text: &[u8]) -> Self {
        let mut quotes = Self {
            words: Vec::with_capacity(text.len().div_ceil(BLOCK)),
            bad_escape: None,
            has_control: false,
        };
        // True if the last byte of the block before is a backslash that escapes the first byte of
        // this block.
        let mut carry = false;
        let (blocks, rest) = text.as_chunks::<BLOCK>();
        for block in blocks {
            quotes.take(text, block, &mut carry);
        }
        if !rest.is_empty() {
            let mut block = [b' '; BLOCK];
            block[..rest.len()].copy_from_slice(rest);
            quotes.take(text, &block, &mut carry);
        }
        quotes
    }

    /// The first quote at or after `from`.
    pub fn next(&self, from: usize) -> Option<usize> {
        let mut index = from / BLOCK;
        let mut word = self.words.get(index)? & (u64::MAX << (from % BLOCK));
        while word == 0 {
            index += 1;
            word = *self.words.get(index)?;
        }
        Some(index * BLOCK + word.trailing_zeros() as usize)
    }

    /// The first invalid byte in `start..end`, the inside of a string.
    pub fn fault(&self, text: &[u8], start: usize, end: usize) -> Option<usize> {
        let escape = self.bad_escape.filter(|at| (start..end).contains(at));
        let control = || text[start..end].iter().position(|byte| *byte < b' ').map(|at| start + at);
        let control = if self.has_control { control() } else { None };
        escape.into_iter().chain(control).min()
    }

    fn take(&mut self, text: &[u8], block: &[u8; BLOCK], carry: &mut bool) {
        let base = self.words.len() * BLOCK;
        let backslashes = places(block, |byte| byte == b'\\');
        let escaped = escaped(backslashes, carry);
        self.words.push(places(block, |byte| byte == b'"') & !escaped);
        self.has_control |= block.iter().fold(false, |found, byte| found | (*byte < b' '));
        if self.bad_escape.is_none() {
            self.bad_escape = bits(escaped)
                .map(|bit| base + bit)
                .find(|at| !is_escape(text.get(*at..).unwrap_or_default()));
        }
    }
}

/// A field's name without quotes and escapes. Invalid Unicode gives an empty name, which matches no
/// field.
pub fn unescaped(key: &[u8]) -> Cow<'_, [u8]> {
    match key.contains(&b'\\') {
        false => Cow::Borrowed(&key[1..key.len() - 1]),
        true => Cow::Owned(serde_json::from_slice::<String>(key).unwrap_or_default().into_bytes()),
    }
}

/// Whether `rest`, the text after a backslash, begins with a valid escape.
fn is_escape(rest: &[u8]) -> bool {
    match rest {
        [b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't', ..] => true,
        [b'u', digits @ ..] => digits.len() >= 4 && digits[..4].iter().all(u8::is_ascii_hexdigit),
        _ => false,
    }
}

/// Returns one bit for each byte of the block, set if `is` holds for the byte.
#[inline(always)]
fn places(block: &[u8; BLOCK], is: impl Fn(u8) -> bool) -> u64 {
    let mut found = [0u8; BLOCK];
    for (found, byte) in found.iter_mut().zip(block) {
        *found = u8::from(is(*byte));
    }
    let (words, _) = found.as_chunks::<8>();
    // A multiplication gathers eight bytes of 0 or 1 into one byte of eight bits.
    let gather =
        |word: &[u8; 8]| u64::from_le_bytes(*word).wrapping_mul(0x0102_0408_1020_4080) >> 56;
    words.iter().enumerate().fold(0, |bits, (at, word)| bits | gather(word) << (at * 8))
}

/// Returns the escaped bytes: each byte after an odd number of backslashes.
fn escaped(backslashes: u64, carry: &mut bool) -> u64 {
    if backslashes == 0 {
        return u64::from(std::mem::take(carry));
    }
    // A backslash that is itself escaped escapes nothing.
    let escaping = backslashes & !u64::from(*carry);
    let followers = escaping << 1 | u64::from(*carry);
    // Runs of backslashes that begin at an odd place. The addition carries each run to its end.
    let odd_starts = escaping & !EVEN & !followers;
    let (ends, overflow) = odd_starts.overflowing_add(escaping);
    *carry = overflow;
    (EVEN ^ (ends << 1)) & followers
}

fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros() as usize;
        (word != 0).then(|| {
            word &= word - 1;
            bit
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backslashes_may_cross_the_border_of_a_block() {
        for length in 0..140 {
            for before in 56..72 {
                let text = [vec![b'x'; before], vec![b'\\'; length], vec![b'"']].concat();
                let expected = length.is_multiple_of(2).then_some(before + length);
                assert_eq!(Quotes::of(&text).next(0), expected, "{before} + {length}");
            }
        }
    }
}
