//! What is told to other replicas of the health of keys, and what is heard of them.
//!
//! What the store has lost it is told again, with the time it was first told at. Silence ends what was met of a key, but never
//! an operator's word: only another word does.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::health::condition::{Class, Condition, Place};
use crate::health::conditions::{Conditions, Entry};
use crate::store::board::{Board, Note};

impl Conditions {
    /// Waits until there is something to tell.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// What to tell, and which version of the board was seen.
    pub fn word(&self) -> (u64, Vec<Note>) {
        if self.is_told() {
            return (self.read().seen, Vec::new());
        }
        let now = Instant::now();
        let mut known = self.write();
        // However long nobody could be told: it holds for no longer than it did here.
        known.untold.retain(|_, (note, at)| {
            let passed = now - std::mem::replace(at, now);
            note.life = note.life.map(|life| life.saturating_sub(passed));
            note.life != Some(Duration::ZERO)
        });
        (known.seen, known.untold.values().map(|(note, _)| note.clone()).collect())
    }

    /// Whether the others have been told everything.
    pub fn is_told(&self) -> bool {
        self.read().untold.is_empty()
    }

    /// The others have been told `notes`, and this is what the board says then. Returns whether anything is new.
    pub fn heard(&self, told: &[Note], board: &Board) -> bool {
        let now = Instant::now();
        let mut known = self.write();
        for note in told {
            if let Some(place) =
                Place::parse(&note.name).filter(|place| known.untold.get(place).is_some_and(|(told, _)| told == note))
            {
                known.untold.remove(&place);
            }
        }
        if board.version == known.seen {
            return false;
        }
        let has_lost = board.version < known.seen;
        known.seen = board.version;
        let mut said = HashMap::new();
        for note in &board.notes {
            let Some((place, condition)) = Place::parse(&note.name).zip(Condition::parse(&note.value)) else { continue };
            said.insert(place, note.stamp);
            let old = known.entries.get(&place);
            // Yet to be told, or told and lost since: what is known here is newer.
            if known.untold.contains_key(&place) || old.is_some_and(|old| old.stamp > note.stamp) {
                continue;
            }
            let age = Duration::from_millis(board.now.saturating_sub(note.stamp));
            let since = now.checked_sub(age).unwrap_or(now);
            let until = note.life.map(|life| now + life);
            let old = old.filter(|old| old.condition == condition).cloned();
            let entry = match old {
                Some(old) => Entry { until, stamp: note.stamp, ..old },
                None => Entry { condition, since, until, stamp: note.stamp, asked: None, has_ticket: false },
            };
            known.entries.insert(place, entry);
        }
        // A store that has lost something may have been told enough since to look as if it had not.
        let may_be_lost = |place: &Place| has_lost || place.1 == Class::Operator;
        let lost = known.entries.iter().filter(|(place, entry)| {
            let is_said = said.get(*place).is_some_and(|stamp| *stamp >= entry.stamp);
            may_be_lost(place) && entry.stamp > 0 && !entry.is_over(now) && !is_said
        });
        let again = |(place, entry): (&Place, &Entry)| {
            let life = entry.until.map(|until| until - now);
            (*place, (Note { name: place.to_string(), value: entry.condition.name().into(), life, stamp: entry.stamp }, now))
        };
        let lost: Vec<_> = lost.map(again).collect();
        if !lost.is_empty() {
            self.news.notify_one();
        }
        known.untold.extend(lost);
        known.entries.retain(|place, entry| may_be_lost(place) || entry.stamp == 0 || said.contains_key(place));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::condition::Subject;
    use crate::key::Tag;
    use crate::store::board::{InProcess, Word};

    fn subject() -> Subject {
        Subject::Key(Tag::of("key", b"a"))
    }

    /// What a beat does.
    fn beat(one: &Conditions, board: &mut InProcess) {
        let (seen, notes) = one.word();
        let word = Word { replica: "r", life: Duration::from_secs(5), load: "", seen, notes: &notes };
        one.heard(&notes, &board.hear(&word));
    }

    fn say(one: &Conditions, condition: Condition) {
        one.note(subject(), condition, condition.life());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_has_lost_an_operators_word_hears_it_again_whatever_else_it_hears() {
        let (one, two) = (Conditions::default(), Conditions::default());
        let mut board = InProcess::default();
        say(&one, Condition::Disabled);
        beat(&one, &mut board);
        beat(&two, &mut board);
        assert!(one.is_told() && two.is(subject(), Condition::Disabled));
        // Another word comes before anybody has seen that the board is empty: its version does not fall.
        board.forget();
        tokio::time::advance(Duration::from_secs(60)).await;
        two.note(Subject::Key(Tag::of("key", b"b")), Condition::Limited, Some(Duration::from_secs(9)));
        for one in [&two, &two, &one] {
            beat(one, &mut board);
        }
        let fresh = Conditions::default();
        beat(&fresh, &mut board);
        assert!([&one, &two, &fresh].iter().all(|one| one.is(subject(), Condition::Disabled)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_told_holds_for_no_longer_for_it() {
        let (one, two) = (Conditions::default(), Conditions::default());
        let mut board = InProcess::default();
        one.note(subject(), Condition::Limited, Some(Duration::from_secs(90)));
        one.note(Subject::Key(Tag::of("key", b"b")), Condition::Limited, Some(Duration::from_secs(20)));
        // The store is away.
        for _ in 0..60 {
            one.word();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        beat(&one, &mut board);
        beat(&two, &mut board);
        assert!(two.is(subject(), Condition::Limited) && !two.is(Subject::Key(Tag::of("key", b"b")), Condition::Limited));
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(!one.is(subject(), Condition::Limited) && !two.is(subject(), Condition::Limited));
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_word_does_not_come_back() {
        let (one, two, away) = (Conditions::default(), Conditions::default(), Conditions::default());
        let mut board = InProcess::default();
        say(&one, Condition::Disabled);
        for each in [&one, &two, &away] {
            beat(each, &mut board);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        say(&one, Condition::Enabled);
        beat(&one, &mut board);
        beat(&two, &mut board);
        // The store is emptied, and the first one to speak was away meanwhile.
        board.forget();
        tokio::time::advance(Duration::from_secs(1)).await;
        for each in [&away, &away, &one, &one, &two, &away] {
            beat(each, &mut board);
        }
        assert!([&one, &two, &away].iter().all(|each| each.is(subject(), Condition::Enabled)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_met_is_over_once_the_board_does_not_say_it_any_more() {
        let (one, two) = (Conditions::default(), Conditions::default());
        let mut board = InProcess::default();
        say(&one, Condition::Rejected);
        beat(&one, &mut board);
        beat(&two, &mut board);
        assert_eq!(two.forget(|about| about == subject()), [Condition::Rejected]);
        beat(&two, &mut board);
        beat(&one, &mut board);
        assert!(one.is_empty() && two.is_empty());
    }
}
