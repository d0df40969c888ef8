//! Whether an upstream says the secret that it was shown, in the bytes of an answer as they pass.
//! Pure.
//!
//! Changes nothing of what passes. Opens nothing either: a secret in a compressed body, or one that
//! is escaped, is not found.

use std::fmt;
use std::sync::Arc;

use memchr::memchr_iter;
use memchr::memmem::Finder;

use crate::setting::Secret;

/// What one key's secret is found with: built once, for all answers.
#[derive(Clone)]
pub struct Leak(Arc<Finder<'static>>);

/// An ear for one answer.
pub struct LeakScan {
    finder: Arc<Finder<'static>>,
    /// The end of what has passed, where the secret begins with it: what follows may complete it.
    end: Vec<u8>,
    has_found: bool,
}

impl Leak {
    pub fn of(secret: &Secret) -> Self {
        Self(Arc::new(Finder::new(secret.expose()).into_owned()))
    }

    pub fn scan(&self) -> LeakScan {
        // Nothing is everywhere.
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
    /// Whether the secret is said here for the first time, be it only that its last byte is.
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

    /// The longest end of `text` that the secret begins with.
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

    fn heard(secret: &str, pieces: &[&[u8]]) -> usize {
        let mut ear = Leak::of(&Secret::new(secret)).scan();
        pieces.iter().filter(|piece| ear.finds(piece)).count()
    }

    #[test]
    fn a_secret_is_heard_once_wherever_it_is_split() {
        let said = b"data: {\"authorization\":\"Bearer sk-ab-abc\"}\n\n";
        for secret in ["sk-ab-abc", "c", "data", "\n\n"] {
            for at in 0..=said.len() {
                assert_eq!(heard(secret, &[&said[..at], &said[at..]]), 1, "{secret} at {at}");
                assert_eq!(
                    heard(secret, &[&said[..at], b"", &said[at..], said]),
                    1,
                    "{secret} at {at}"
                );
            }
            assert_eq!(
                heard(secret, &said.chunks(1).collect::<Vec<_>>()),
                1,
                "{secret} byte by byte"
            );
            assert_eq!(heard(secret, &said.chunks(4).collect::<Vec<_>>()), 1, "{secret} in fours");
        }
    }

    proptest! {
        /// A secret of few letters begins and breaks off again and again.
        #[test]
        fn it_hears_what_the_whole_text_holds(secret in "[ab]{1,5}", pieces in prop::collection::vec("[ab]{0,7}", 0..12)) {
            let pieces: Vec<_> = pieces.iter().map(String::as_bytes).collect();
            let is_said = String::from_utf8(pieces.concat()).unwrap().contains(&secret);
            prop_assert_eq!(heard(&secret, &pieces), usize::from(is_said));
        }
    }

    #[test]
    fn what_is_not_said_is_not_heard() {
        assert_eq!(heard("sk-abc", &[b"sk-ab", b"sk-ab", b"", b"x", b"c sk-ab", b"-c"]), 0);
        assert_eq!(heard("", &[b"anything"]), 0);
    }

    #[test]
    fn it_does_not_say_the_secret_itself() {
        assert_eq!(format!("{:?}", Leak::of(&Secret::new("sk-canary"))), "Leak");
    }
}
