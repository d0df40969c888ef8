//! Detects an upstream that repeats a key's secret in the bytes of an answer as they pass. Pure.
//!
//! The scan changes and decodes nothing: it finds neither a secret in a compressed body nor an
//! escaped secret.

use std::fmt;
use std::sync::Arc;

use memchr::memchr_iter;
use memchr::memmem::Finder;

use crate::setting::Secret;

/// Finds one key's secret. Built once, for all answers.
#[derive(Clone)]
pub struct Leak(Arc<Finder<'static>>);

/// The scan of one answer.
pub struct LeakScan {
    finder: Arc<Finder<'static>>,
    /// The end of the passed bytes if it is a beginning of the secret: the next bytes may complete
    /// it.
    end: Vec<u8>,
    has_found: bool,
}

impl Leak {
    pub fn of(secret: &Secret) -> Self {
        Self(Arc::new(Finder::new(secret.expose()).into_owned()))
    }

    pub fn scan(&self) -> LeakScan {
        // An empty secret would be found everywhere.
        let has_found = self.0.needle().is_empty();
        LeakScan { finder: Arc::clone(&self.0), end: Vec::new(), has_found }
    }
}

impl fmt::Debug for Leak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Leak")
    }
}

impl LeakScan {
    /// Whether the secret appears for the first time, even if `passing` holds only its last byte.
    pub fn finds(&mut self, passing: &[u8]) -> bool {
        if self.has_found {
            return false;
        }
        let kept = self.finder.needle().len() - 1;
        self.has_found = self.finder.find(passing).is_some();
        let has_begun = !self.end.is_empty();
        if has_begun {
            self.end.extend_from_slice(&passing[..passing.len().min(kept)]);
            self.has_found |= self.finder.find(&self.end).is_some();
        }
        if has_begun && passing.len() <= kept {
            let begun = self.begun(&self.end[self.end.len().saturating_sub(kept)..]).len();
            self.end.drain(..self.end.len() - begun);
        } else {
            self.end.clear();
            self.end.extend_from_slice(self.begun(&passing[passing.len().saturating_sub(kept)..]));
        }
        self.has_found
    }

    /// The longest end of `text` that is a beginning of the secret.
    fn begun<'t>(&self, text: &'t [u8]) -> &'t [u8] {
        let needle = self.finder.needle();
        let found =
            memchr_iter(needle[0], text).map(|at| &text[at..]).find(|end| needle.starts_with(end));
        found.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count_found(secret: &str, pieces: &[&[u8]]) -> usize {
        let mut scan = Leak::of(&Secret::new(secret)).scan();
        pieces.iter().filter(|piece| scan.finds(piece)).count()
    }

    #[test]
    fn secret_is_found_once_wherever_it_is_split() {
        let said = b"data: {\"authorization\":\"Bearer sk-ab-abc\"}\n\n";
        for secret in ["sk-ab-abc", "c", "data", "\n\n"] {
            for at in 0..=said.len() {
                assert_eq!(count_found(secret, &[&said[..at], &said[at..]]), 1, "{secret} at {at}");
                assert_eq!(
                    count_found(secret, &[&said[..at], b"", &said[at..], said]),
                    1,
                    "{secret} at {at}"
                );
            }
            assert_eq!(
                count_found(secret, &said.chunks(1).collect::<Vec<_>>()),
                1,
                "{secret} byte by byte"
            );
            assert_eq!(
                count_found(secret, &said.chunks(4).collect::<Vec<_>>()),
                1,
                "{secret} in fours"
            );
        }
    }

    proptest! {
        /// A secret of few letters begins and breaks off again and again.
        #[test]
        fn scan_finds_what_the_whole_text_holds(
            secret in "[ab]{1,5}",
            pieces in prop::collection::vec("[ab]{0,7}", 0..12),
        ) {
            let pieces: Vec<_> = pieces.iter().map(String::as_bytes).collect();
            let is_said = String::from_utf8(pieces.concat()).unwrap().contains(&secret);
            prop_assert_eq!(count_found(&secret, &pieces), usize::from(is_said));
        }
    }

    #[test]
    fn secret_that_is_not_there_is_not_found() {
        assert_eq!(count_found("sk-abc", &[b"sk-ab", b"sk-ab", b"", b"x", b"c sk-ab", b"-c"]), 0);
        assert_eq!(count_found("", &[b"anything"]), 0);
    }

    #[test]
    fn leak_does_not_show_the_secret_itself() {
        assert_eq!(format!("{:?}", Leak::of(&Secret::new("sk-canary"))), "Leak");
    }
}
