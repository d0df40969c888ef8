//! Collects a body or an answer as a whole, and copies little of it at a time.
//!
//! A buffer that doubles copies everything that has come: 32 MiB take 10 ms, in which every other
//! turn of the thread waits.

use bytes::Bytes;

use crate::error::Error;
use crate::turn::memory::full;

/// Longest text that is copied when its buffer grows. A longer one has room for all that may come:
/// pages that are not written take no memory.
pub const FIRST: usize = 1024 * 1024;

/// The part of a body or an answer that has come.
pub struct Whole {
    bytes: Vec<u8>,
    /// The length that is announced, or the longest that is accepted.
    most: usize,
}

impl Whole {
    /// `announced`: 0 if the length is not known.
    pub fn new(announced: usize, longest: usize) -> Self {
        let most = if announced == 0 { longest } else { announced };
        Self { bytes: Vec::with_capacity(announced.min(FIRST)), most }
    }

    pub const fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Appends the bytes that come next.
    pub fn extend(&mut self, data: &[u8]) -> Result<(), Error> {
        let length = self.bytes.len() + data.len();
        // A shorter buffer doubles at most to `FIRST`.
        if length > (FIRST / 2).max(self.bytes.capacity()) {
            let room = self.most.max(length) - self.bytes.len();
            // A system that counts what is not written may have no more than is needed.
            let reserved = self.bytes.try_reserve_exact(room);
            reserved.or_else(|_| self.bytes.try_reserve(data.len())).map_err(|_| full())?;
        }
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    pub fn into_bytes(self) -> Bytes {
        self.bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A longer copy takes a thread of turns several milliseconds.
    #[test]
    fn long_body_is_collected_without_a_long_copy() {
        const LONGEST: usize = 64 << 20;
        for announced in [0, 100, FIRST, 33 << 20] {
            let length = if announced == 0 { 40 << 20 } else { announced };
            let (mut whole, mut longest) = (Whole::new(announced, LONGEST), 0);
            let part: Vec<u8> = (0..50_000_u32).map(|n| n as u8).collect();
            while whole.length() < length {
                let (before, capacity) = (whole.length(), whole.bytes.capacity());
                whole.extend(&part[..part.len().min(length - before)]).unwrap();
                if whole.bytes.capacity() != capacity {
                    longest = longest.max(before);
                }
            }
            assert!(longest <= FIRST, "{announced}: {longest} bytes copied at once");
            let whole = whole.into_bytes();
            assert_eq!(whole.len(), length);
            assert!(whole.chunks(part.len()).all(|chunk| part.starts_with(chunk)));
        }
    }

    /// What is announced and never comes takes nothing.
    #[test]
    fn short_part_of_a_long_body_has_a_short_buffer() {
        let mut whole = Whole::new(64 << 20, 64 << 20);
        whole.extend(&[0; 1000]).unwrap();
        assert!(whole.bytes.capacity() <= FIRST);
    }
}
