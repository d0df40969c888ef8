//! The stored form of a binding.
//!
//! `<key tag><organization tag> <epoch> <generation>[ s][ ~<state tag>]`, usually 22 bytes.
//!
//! Tags keep the value short for names of any length. Redis keeps a value of at most 28 bytes in
//! its smallest block.

use std::fmt;

use crate::key::{Key, Tag};

/// A stored binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingRecord {
    pub key: Tag,
    pub organization: Tag,
    /// 1 for a session's first key; each move adds 1.
    pub epoch: u32,
    /// The ordinal of the writer's set of keys. 0: not known yet.
    pub generation: u32,
    /// The session's history may hold content that only this organization can open.
    pub sealed: bool,
    /// The tag of the `x-codex-turn-state` that the moved turn carried. The state belongs to the
    /// session's previous key.
    pub stale_state: Option<Tag>,
    /// The words of a newer version. They stay for as long as the session stays on its key, so that
    /// a compare-and-set finds the text that was read.
    pub others: Option<Box<str>>,
}

/// Returns the stored form of an `x-codex-turn-state`.
pub fn state_tag(state: &[u8]) -> Tag {
    Tag::of("state", state)
}

impl BindingRecord {
    /// A session's first binding.
    pub fn first(key: &Key, generation: u32) -> Self {
        Self {
            key: key.tag,
            organization: key.organization_tag,
            epoch: 1,
            generation,
            sealed: false,
            stale_state: None,
            others: None,
        }
    }

    /// Returns the binding after a move to `key`. A sealed binding stays sealed only within its
    /// organization; only unsealed sessions leave their organization.
    pub fn moved_to(&self, key: &Key, generation: u32, stale_state: Option<Tag>) -> Self {
        let sealed = self.sealed && self.organization == key.organization_tag;
        let epoch = self.epoch.saturating_add(1);
        Self {
            key: key.tag,
            organization: key.organization_tag,
            epoch,
            generation,
            sealed,
            stale_state,
            others: None,
        }
    }

    /// Returns the binding after it has served a turn on a replica of `generation`.
    pub fn after_answer(&self, generation: u32) -> Self {
        Self { sealed: true, ..self.of_generation(generation) }
    }

    /// Fills in `generation` if the writer did not know its own. The first replica that has the key
    /// and knows its generation fills it in.
    pub fn of_generation(&self, generation: u32) -> Self {
        Self {
            generation: if self.generation == 0 { generation } else { self.generation },
            ..self.clone()
        }
    }

    /// Whether this is `other` after it has served a turn.
    pub fn is_sealed_form_of(&self, other: &Self) -> bool {
        self.sealed && !other.sealed && (self.key, self.epoch) == (other.key, other.epoch)
    }

    pub fn sealed(&self) -> Self {
        Self { sealed: true, ..self.clone() }
    }

    /// Returns `None` for a text that this version does not understand. Unknown words at its end
    /// are a newer version's, and are passed over.
    pub fn parse(text: &str) -> Option<Self> {
        // Tags are ASCII. A non-ASCII value could not be written back as it was read, so no
        // compare-and-set would find it.
        let mut parts = text.is_ascii().then_some(text)?.split(' ');
        let (key, organization) = parts.next()?.split_at_checked(Tag::LENGTH)?;
        let mut record = Self {
            key: Tag::parse(key)?,
            organization: Tag::parse(organization)?,
            epoch: number(parts.next()?)?,
            generation: number(parts.next()?)?,
            sealed: false,
            stale_state: None,
            others: None,
        };
        let mut others = String::new();
        for part in parts {
            match part.strip_prefix('~').map(Tag::parse) {
                Some(tag) => record.stale_state = Some(tag?),
                None if part == "s" => record.sealed = true,
                // This version never writes a space at the end.
                None if part.is_empty() => return None,
                None => others.extend([" ", part]),
            }
        }
        record.others = (!others.is_empty()).then(|| others.into());
        // Only a text that can be written as it was read can be replaced.
        (record.others.is_none() || record.to_string() == text).then_some(record)
    }
}

/// Parses a number in the only spelling that records use, because a compare-and-set compares texts.
fn number(part: &str) -> Option<u32> {
    let is_plain = part == "0" || !part.starts_with(['0', '+']);
    part.parse().ok().filter(|_| is_plain)
}

impl fmt::Display for BindingRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} {} {}", self.key, self.organization, self.epoch, self.generation)?;
        if self.sealed {
            f.write_str(" s")?;
        }
        if let Some(tag) = self.stale_state {
            write!(f, " ~{tag}")?;
        }
        f.write_str(self.others.as_deref().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn written_record_is_read_back(record in record()) {
            prop_assert_eq!(BindingRecord::parse(&record.to_string()), Some(record));
        }

        /// A text that is almost a record parses only if it is the written form of the parsed
        /// record.
        #[test]
        fn record_parses_only_from_its_written_form(
            record in record(),
            cut in 0..60_usize,
            length in 0..3_usize,
            insertion in prop_oneof![Just("x"), Just(" "), Just("~"), Just(" s"), Just(" t"), Just("-"), Just("\u{e9}"), Just("")],
        ) {
            let text = record.to_string();
            let (start, end) = (cut.min(text.len()), (cut + length).min(text.len()));
            let other = format!("{}{insertion}{}", &text[..start], &text[end..]);
            if let Some(read) = BindingRecord::parse(&other) {
                // Parts may be repeated, and in any order: a later version may write them so.
                let parts = |text: &str| {
                    text.split(' ').map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
                };
                prop_assert_eq!(parts(&read.to_string()), parts(&other), "{}", other);
            }
        }

        #[test]
        fn random_text_is_neither_fatal_nor_a_record(text in "\\PC{0,40}") {
            prop_assert_eq!(BindingRecord::parse(&text), None);
        }
    }

    fn record() -> impl Strategy<Value = BindingRecord> {
        let tag = || "[A-Za-z0-9_-]{8}".prop_map(|text| Tag::parse(&text).unwrap());
        let parts =
            (tag(), tag(), any::<u32>(), any::<u32>(), any::<bool>(), proptest::option::of(tag()));
        parts.prop_map(|(key, organization, epoch, generation, sealed, stale_state)| {
            let others = None;
            BindingRecord { key, organization, epoch, generation, sealed, stale_state, others }
        })
    }

    /// A record on the first key, with a stale state.
    fn bound(epoch: u32, generation: u32, sealed: bool) -> BindingRecord {
        let stale_state = Some(state_tag(b"older"));
        BindingRecord {
            epoch,
            generation,
            sealed,
            stale_state,
            ..BindingRecord::first(&keys()[0], 1)
        }
    }

    /// Two keys of one organization and one of another.
    fn keys() -> Vec<std::sync::Arc<Key>> {
        crate::key::table::Table::sketch("a-1 org-a 1 sk-1, a-2 org-a 1 sk-2, b-1 org-b 1 sk-3")
            .keys()
            .to_vec()
    }

    #[test]
    fn moved_record_is_of_the_next_epoch_and_sealed_within_its_organization_alone() {
        let keys = keys();
        for epoch in [1, 2, 9, 99] {
            for (key, was_sealed, is_sealed) in [
                (&keys[1], true, true),
                (&keys[1], false, false),
                (&keys[2], true, false),
                (&keys[2], false, false),
            ] {
                let moved = bound(epoch, 7, was_sealed).moved_to(key, 8, None);
                let expected = BindingRecord {
                    epoch: epoch + 1,
                    generation: 8,
                    sealed: is_sealed,
                    ..BindingRecord::first(key, 1)
                };
                assert_eq!(moved, expected, "an older turn's state is dropped");
            }
        }
        let state = Some(state_tag(b"state"));
        assert_eq!(bound(1, 1, true).moved_to(&keys[1], 1, state).stale_state, state);
        assert_eq!(bound(u32::MAX, 1, true).moved_to(&keys[1], 1, None).epoch, u32::MAX);
    }

    #[test]
    fn record_that_has_served_is_sealed_and_has_a_generation() {
        assert_eq!(bound(3, 0, false).after_answer(5), bound(3, 5, true));
        assert_eq!(
            bound(3, 4, false).after_answer(5),
            bound(3, 4, true),
            "the writer's generation stays"
        );
        assert_eq!(bound(3, 4, true).after_answer(5), bound(3, 4, true));
        assert_eq!(
            (bound(3, 0, false).of_generation(5), bound(3, 4, false).of_generation(5)),
            (bound(3, 5, false), bound(3, 4, false))
        );
        assert_eq!(bound(3, 4, false).sealed(), bound(3, 4, true));
        assert_eq!(
            BindingRecord::first(&keys()[1], 6),
            BindingRecord {
                epoch: 1,
                generation: 6,
                stale_state: None,
                ..bound(1, 6, false).moved_to(&keys()[1], 6, None)
            }
        );
    }

    #[test]
    fn sealed_form_is_of_the_same_key_and_epoch() {
        let (free, sealed) = (bound(3, 1, false), bound(3, 1, true));
        assert!(sealed.is_sealed_form_of(&free) && bound(3, 2, true).is_sealed_form_of(&free));
        assert!(
            !free.is_sealed_form_of(&sealed)
                && !sealed.is_sealed_form_of(&sealed)
                && !free.is_sealed_form_of(&free)
        );
        assert!(!bound(4, 1, true).is_sealed_form_of(&free), "another epoch");
        let other = BindingRecord { key: keys()[1].tag, ..sealed };
        assert!(!other.is_sealed_form_of(&free), "another key");
    }

    /// Pins the format that other versions and replicas read.
    #[test]
    fn record_is_written_as_it_always_was() {
        let tag = |text: &str| Tag::parse(text).unwrap();
        let record = |sealed, stale_state: Option<&str>| {
            let (key, organization) = (tag("keykeyke"), tag("orgorgor"));
            BindingRecord {
                key,
                organization,
                epoch: 10,
                generation: 3,
                sealed,
                stale_state: stale_state.map(tag),
                others: None,
            }
        };
        for (record, text) in [
            (record(false, None), "keykeykeorgorgor 10 3"),
            (record(true, None), "keykeykeorgorgor 10 3 s"),
            (record(false, Some("statetag")), "keykeykeorgorgor 10 3 ~statetag"),
            (record(true, Some("statetag")), "keykeykeorgorgor 10 3 s ~statetag"),
            (BindingRecord { generation: 0, ..record(false, None) }, "keykeykeorgorgor 10 0"),
        ] {
            assert_eq!(
                (record.to_string().as_str(), BindingRecord::parse(text)),
                (text, Some(record.clone()))
            );
        }
    }

    #[test]
    fn words_of_a_newer_version_stay_with_the_key() {
        let text = "keykeykeorgorgor 10 0 ~statetag pinned v2=7";
        let record = BindingRecord::parse(text).unwrap();
        assert_eq!((record.epoch, record.to_string().as_str()), (10, text));
        assert_eq!(
            record.after_answer(3).to_string(),
            "keykeykeorgorgor 10 3 s ~statetag pinned v2=7"
        );
        assert_eq!(record.moved_to(&keys()[0], 3, None).others, None);
    }

    #[test]
    fn common_record_fits_the_smallest_block() {
        let tag = Tag::of("key", b"a-very-long-name-of-a-key-in-production");
        let record = BindingRecord {
            key: tag,
            organization: tag,
            epoch: 12,
            generation: 345,
            sealed: true,
            stale_state: None,
            others: None,
        };
        assert!(record.to_string().len() <= 28, "{record}");
    }

    #[test]
    fn text_of_another_version_does_not_parse() {
        for other in [
            "",
            "short",
            "aaaaaaaabbbbbbbb",
            "aaaaaaaabbbbbbbb 1",
            "aaaaaaaabbbbbbbb -1 1",
            "aaaaaaaabbbbbbbbc 1 1",
            "aaaaaaaabbbbbbbb 1 1 ~stat\u{e9}ta",
            "aaaaaaaabbbbbbbb 1 1 x s",
            "aaaaaaaabbbbbbbb 1 1 ~short",
            "aaaaaaaabbbbbbbb 4294967296 1",
            "aaaaaaaabbbbbbbb 01 1",
            "aaaaaaaabbbbbbbb +1 1",
            "aaaaaaaabbbbbbbb 1 00",
            "aaaaaaaabbbbbbbb 1 1 ",
        ] {
            assert_eq!(BindingRecord::parse(other), None, "{other}");
        }
    }
}
