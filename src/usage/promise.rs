//! Describes what the last turn of a session has left in the prompt cache. The description is
//! stored beside the session's binding. Pure.
//!
//! `1 <key tag><domain tag><model tag> <time> <since> <tokens> <tools> <settings> <cache key>
//! [<mark number>.<mark digest>] [l]`, usually 80 bytes. Numbers are in base 36, times in seconds.
//! A newer version may append words, which this version skips.

use std::fmt;

use crate::key::{Key, Tag};
use crate::usage::record::Record;
use crate::wire::imprint::InputMark;
use crate::wire::terminal::Usage;

/// The version of the stored form. A form with another version is not read.
const VERSION: &str = "1";
/// The shortest prefix that any model caches, in tokens.
pub const MINIMUM: u64 = 1_024;

/// The tokens that a session's next turn may expect in the cache, and facts that explain why it
/// finds fewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    pub key: Tag,
    /// The organization and region whose cache was filled.
    pub domain: Tag,
    pub model: Tag,
    /// When the turn ended, in seconds since 1970.
    pub at: u64,
    /// When the oldest part of the prefix was written.
    pub since: u64,
    /// Tokens that the cache holds.
    pub tokens: u64,
    pub tools: u32,
    pub settings: u32,
    pub cache_key: u32,
    /// The mark of the input's beginning. `None`: the input is too short, or not known.
    pub mark: Option<InputMark>,
    /// Whether the client asked for half a day in the cache.
    pub is_long: bool,
}

impl Promise {
    /// Returns the promise of a turn that ended at `at`. `None`: nothing is known of what the turn
    /// left.
    pub fn of(record: &Record, at: u64) -> Option<Self> {
        let (service, usage) = (record.service.as_ref()?, record.usage.as_ref()?);
        let imprint = record.imprint.as_ref()?;
        let model = record.answering_model();
        Some(Self {
            key: service.key.tag,
            domain: domain(&service.key),
            model: Tag::of("model", model.as_bytes()),
            at,
            since: at,
            tokens: count_kept_tokens(model, usage),
            tools: imprint.tools,
            settings: imprint.settings,
            cache_key: imprint.cache_key,
            mark: imprint.input.last(),
            is_long: usage.written_half_day > 0,
        })
    }

    /// Returns this promise as it follows `last`, the promise before, if no turn between them was
    /// cold.
    pub fn follow(self, last: &Self, is_continued: bool) -> Self {
        Self {
            since: last.since.min(self.at),
            // A continued request sends only new input, so the mark of the earlier input stays.
            mark: if is_continued { last.mark } else { self.mark },
            is_long: self.is_long || last.is_long,
            ..self
        }
    }

    /// Parses a stored promise. Returns `None` for a text that this version does not understand.
    pub fn parse(text: &str) -> Option<Self> {
        let mut words = text.is_ascii().then_some(text)?.split(' ');
        if words.next()? != VERSION {
            return None;
        }
        let tags = words.next()?;
        let tag = |number: usize| {
            let start = number * Tag::LENGTH;
            Tag::parse(tags.get(start..start + Tag::LENGTH)?)
        };
        let mut number = || u64::from_str_radix(words.next()?, 36).ok();
        let mut promise = Self {
            key: tag(0)?,
            domain: tag(1)?,
            model: tag(2)?,
            at: number()?,
            since: number()?,
            tokens: number()?,
            tools: number()?.try_into().ok()?,
            settings: number()?.try_into().ok()?,
            cache_key: number()?.try_into().ok()?,
            mark: None,
            is_long: false,
        };
        for word in words {
            match word.split_once('.') {
                Some((number, digest)) => promise.mark = mark(number, digest).or(promise.mark),
                None if word == "l" => promise.is_long = true,
                // This is a word of a newer version.
                None => {}
            }
        }
        Some(promise)
    }
}

fn mark(number: &str, digest: &str) -> Option<InputMark> {
    Some(InputMark {
        number: usize::from_str_radix(number, 36).ok()?,
        digest: u32::from_str_radix(digest, 36).ok()?,
    })
}

/// Returns the domain of a key: the cache that it reads.
pub fn domain(key: &Key) -> Tag {
    let name = [key.organization.as_bytes(), key.region.as_bytes()].join(&0);
    Tag::of("domain", &name)
}

/// Returns the tokens that a turn leaves in the cache.
fn count_kept_tokens(model: &str, usage: &Usage) -> u64 {
    if usage.is_diagnosed || usage.written > 0 {
        // The upstream counts the tokens that it writes, so nothing else is kept.
        return usage.cached.saturating_add(usage.written).min(usage.input);
    }
    // GPT-5.5 keeps only whole steps of this length. Steps of other models are too short to matter.
    let kept = if model.starts_with("gpt-5.5") { usage.input / 2_048 * 2_048 } else { usage.input };
    if kept < MINIMUM { 0 } else { kept }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VERSION} {}{}{}", self.key, self.domain, self.model)?;
        let numbers = [self.at, self.since, self.tokens];
        let digests = [self.tools, self.settings, self.cache_key].map(u64::from);
        for number in numbers.into_iter().chain(digests) {
            write!(f, " {}", Base36(number))?;
        }
        if let Some(InputMark { number, digest }) = self.mark {
            write!(f, " {}.{}", Base36(number as u64), Base36(digest.into()))?;
        }
        if self.is_long { f.write_str(" l") } else { Ok(()) }
    }
}

struct Base36(u64);

impl fmt::Display for Base36 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut digits, mut rest, mut start) = ([b'0'; 13], self.0, 13);
        loop {
            start -= 1;
            digits[start] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(rest % 36) as usize];
            rest /= 36;
            if rest == 0 {
                break;
            }
        }
        digits[start..].iter().try_for_each(|digit| fmt::Write::write_char(f, char::from(*digit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tag(text: &str) -> Tag {
        Tag::parse(text).expect("eight characters")
    }

    /// A promise of 2026-12-01, noon.
    fn promise() -> Promise {
        Promise {
            key: tag("keykeyke"),
            domain: tag("domaindo"),
            model: tag("modelmod"),
            at: 1_796_126_400,
            since: 1_796_122_800,
            tokens: 200_000,
            tools: u32::MAX,
            settings: 7,
            cache_key: 0,
            mark: Some(InputMark { number: 40, digest: u32::MAX }),
            is_long: true,
        }
    }

    /// Other versions and replicas read this form, so it must not change.
    #[test]
    fn promise_is_written_as_it_always_was() {
        let text = "1 keykeykedomaindomodelmod tpd800 tpd580 4abk 1z141z3 7 0 14.1z141z3 l";
        assert_eq!((promise().to_string().as_str(), Promise::parse(text)), (text, Some(promise())));
        assert!(text.len() <= 84, "{}", text.len());
    }

    #[test]
    fn words_of_a_newer_version_are_passed_over() {
        let newer = format!("{promise} w9 q.! later", promise = promise());
        assert_eq!(Promise::parse(&newer), Some(promise()));
        for other in [
            "",
            "1",
            "2 keykeykedomaindomodelmod 1 1 1 1 1 1",
            "1 keykeykedomaindo 1 1 1 1 1 1",
            "1 keykeykedomaindomodelmod 1 1 1 1 1",
            "1 keykeykedomaindomodelmod 1 1 1 1 1 -",
            "1 keykeykedomaindomodelmod 1 1 1 1z141z4 1 1",
            "1 keykeykedomaindomodel\u{e9}o 1 1 1 1 1 1",
        ] {
            assert_eq!(Promise::parse(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn written_promise_is_read_back(
            tags in "[A-Za-z0-9_-]{24}",
            numbers in any::<[u64; 3]>(),
            digests in any::<[u32; 3]>(),
            mark in proptest::option::of((0..96_usize, any::<u32>())),
            is_long in any::<bool>(),
        ) {
            let promise = Promise {
                key: tag(&tags[..8]), domain: tag(&tags[8..16]), model: tag(&tags[16..]),
                at: numbers[0], since: numbers[1], tokens: numbers[2],
                tools: digests[0], settings: digests[1], cache_key: digests[2],
                mark: mark.map(|(number, digest)| InputMark { number, digest }),
                is_long,
            };
            prop_assert_eq!(Promise::parse(&promise.to_string()), Some(promise));
        }

        #[test]
        fn random_text_is_not_fatal(text in "\\PC{0,40}") {
            prop_assert_eq!(Promise::parse(&text), None);
        }
    }

    #[test]
    fn turn_leaves_what_its_upstream_keeps() {
        let usage = |input, cached, written, is_diagnosed| Usage {
            input,
            cached,
            written,
            is_diagnosed,
            ..Usage::default()
        };
        for (model, usage, expected) in [
            ("gpt-5.4", usage(9_000, 0, 0, false), 9_000),
            ("gpt-5.4", usage(1_023, 0, 0, false), 0),
            ("gpt-5.4", usage(1_024, 0, 0, false), 1_024),
            ("gpt-5.5-pro", usage(9_000, 0, 0, false), 8_192),
            ("gpt-5.5", usage(2_047, 0, 0, false), 0),
            ("gpt-6-sol", usage(9_000, 8_000, 900, true), 8_900),
            ("gpt-6-sol", usage(9_000, 0, 900, false), 900),
            // With explicit breakpoints, a request without one keeps nothing.
            ("gpt-6-sol", usage(9_000, 0, 0, true), 0),
            ("gpt-6-sol", usage(9_000, u64::MAX, 1, true), 9_000),
        ] {
            assert_eq!(count_kept_tokens(model, &usage), expected, "{model} {usage:?}");
        }
    }

    #[test]
    fn promise_goes_on_from_the_last_one() {
        let later = Promise { at: 1_796_126_500, since: 1_796_126_500, mark: None, ..promise() };
        let next = later.clone().follow(&promise(), true);
        assert_eq!((next.since, next.mark), (promise().since, promise().mark));
        assert_eq!(later.clone().follow(&promise(), false).mark, None);
        let short = Promise { is_long: false, ..later };
        assert!(short.clone().follow(&promise(), false).is_long, "its beginning lives on");
        assert!(!short.follow(&Promise { is_long: false, ..promise() }, false).is_long);
    }
}
