//! How a binding is written in the store.
//!
//! `<key tag><organization tag> <epoch> <generation>[ s][ ~<state tag>]`, as a rule 22 bytes: names of any length fit, since
//! only their tags are stored, and Redis keeps a value of at most 28 bytes in the smallest block that holds it.

use std::fmt;

use crate::key::{Key, Tag};

/// A stored binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub key: Tag,
    pub organization: Tag,
    /// 1 for the first key of a session, one more for each that follows.
    pub epoch: u32,
    /// The ordinal of the key set that the writer had. 0: not known yet.
    pub generation: u32,
    /// The session's history may hold what only this organization can open.
    pub sealed: bool,
    /// The `x-codex-turn-state` that the moved turn carried: it belongs to the key before this one.
    pub stale_state: Option<Tag>,
}

/// How an `x-codex-turn-state` is remembered.
pub fn state_tag(state: &[u8]) -> Tag {
    Tag::of("state", state)
}

impl Record {
    /// A session's first binding.
    pub fn first(key: &Key, generation: u32) -> Self {
        Self { key: key.tag, organization: key.organization_tag, epoch: 1, generation, sealed: false, stale_state: None }
    }

    /// The binding that follows this one. It stays sealed only while it stays in its organization: leaving it is for sessions
    /// that are not sealed.
    pub fn moved_to(&self, key: &Key, generation: u32, stale_state: Option<Tag>) -> Self {
        let sealed = self.sealed && self.organization == key.organization_tag;
        let epoch = self.epoch.saturating_add(1);
        Self { key: key.tag, organization: key.organization_tag, epoch, generation, sealed, stale_state }
    }

    /// The binding once it has served a turn, as a replica of `generation` has it.
    pub fn confirmed(&self, generation: u32) -> Self {
        Self { sealed: true, ..self.of_generation(generation) }
    }

    /// A writer that did not know its generation is spoken for by the first replica that does and has the key too.
    pub fn of_generation(&self, generation: u32) -> Self {
        Self { generation: if self.generation == 0 { generation } else { self.generation }, ..self.clone() }
    }

    /// Whether this is `other` once it has served a turn.
    pub fn is_sealed_form_of(&self, other: &Self) -> bool {
        self.sealed && !other.sealed && (self.key, self.epoch) == (other.key, other.epoch)
    }

    pub fn sealed(&self) -> Self {
        Self { sealed: true, ..self.clone() }
    }

    /// `None` for what this version does not understand.
    pub fn parse(text: &str) -> Option<Self> {
        // Tags are ASCII: another one could not be written as it was read, and no compare-and-set would find it.
        let mut words = text.is_ascii().then_some(text)?.split(' ');
        let (key, organization) = words.next()?.split_at_checked(Tag::LENGTH)?;
        let mut record = Self {
            key: Tag::parse(key)?,
            organization: Tag::parse(organization)?,
            epoch: words.next()?.parse().ok()?,
            generation: words.next()?.parse().ok()?,
            sealed: false,
            stale_state: None,
        };
        for word in words {
            match word.strip_prefix('~') {
                Some(tag) => record.stale_state = Some(Tag::parse(tag)?),
                None if word == "s" => record.sealed = true,
                None => return None,
            }
        }
        Some(record)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} {} {}", self.key, self.organization, self.epoch, self.generation)?;
        if self.sealed {
            f.write_str(" s")?;
        }
        match self.stale_state {
            Some(tag) => write!(f, " ~{tag}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(key in "[A-Za-z0-9_-]{8}", organization in "[A-Za-z0-9_-]{8}", epoch: u32, generation: u32, sealed: bool, state in proptest::option::of("[A-Za-z0-9_-]{8}")) {
            let record = Record {
                key: Tag::parse(&key).unwrap(),
                organization: Tag::parse(&organization).unwrap(),
                epoch,
                generation,
                sealed,
                stale_state: state.map(|tag| Tag::parse(&tag).unwrap()),
            };
            prop_assert_eq!(Record::parse(&record.to_string()), Some(record));
        }

        #[test]
        fn no_text_is_fatal(text in "\\PC{0,40}") {
            let _ = Record::parse(&text);
        }
    }

    #[test]
    fn a_common_record_fits_the_smallest_block() {
        let tag = Tag::of("key", b"a-very-long-name-of-a-key-in-production");
        let record = Record { key: tag, organization: tag, epoch: 12, generation: 345, sealed: true, stale_state: None };
        assert!(record.to_string().len() <= 28, "{record}");
    }

    #[test]
    fn what_another_version_wrote_is_not_guessed_at() {
        for other in [
            "",
            "short",
            "aaaaaaaabbbbbbbb",
            "aaaaaaaabbbbbbbb 1",
            "aaaaaaaabbbbbbbb 1 1 x",
            "aaaaaaaabbbbbbbb -1 1",
            "aaaaaaaabbbbbbbbc 1 1",
            "aaaaaaaabbbbbbbb 1 1 ~stat\u{e9}ta",
        ] {
            assert_eq!(Record::parse(other), None, "{other}");
        }
    }
}
