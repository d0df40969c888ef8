//! What is told to other replicas of the health of keys, and what is heard of them.
//!
//! What the store has lost it is told again, with the time it was first told at. Silence ends what
//! was met of a key, but never an operator's word: only another word does.

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

    /// The others have been told `notes`, and this is what the board says then. Returns whether
    /// anything is new.
    pub fn heard(&self, told: &[Note], board: &Board) -> bool {
        let now = Instant::now();
        let mut known = self.write();
        for note in told {
            if let Some(place) = Place::parse(&note.name)
                .filter(|place| known.untold.get(place).is_some_and(|(told, _)| told == note))
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
            let Some((place, condition)) =
                Place::parse(&note.name).zip(Condition::parse(&note.value))
            else {
                continue;
            };
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
                None => Entry {
                    condition,
                    since,
                    until,
                    stamp: note.stamp,
                    asked: None,
                    has_ticket: false,
                },
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
            (
                *place,
                (
                    Note {
                        name: place.to_string(),
                        value: entry.condition.name().into(),
                        life,
                        stamp: entry.stamp,
                    },
                    now,
                ),
            )
        };
        let lost: Vec<_> = lost.map(again).collect();
        if !lost.is_empty() {
            self.news.notify_one();
        }
        known.untold.extend(lost);
        known.entries.retain(|place, entry| {
            may_be_lost(place) || entry.stamp == 0 || said.contains_key(place)
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::condition::Subject;
    use crate::key::Tag;
    use crate::store::board::{BoardReport, LocalBoard};

    fn subject() -> Subject {
        Subject::Key(Tag::of("key", b"a"))
    }

    /// What a beat does.
    fn beat(one: &Conditions, board: &mut LocalBoard) {
        let (seen, notes) = one.word();
        let word = BoardReport {
            replica: "r",
            life: Duration::from_secs(5),
            load: "",
            seen,
            notes: &notes,
        };
        one.heard(&notes, &board.hear(&word));
    }

    /// What only listens. Returns whether anything is new.
    fn heard_by(one: &Conditions, board: &mut LocalBoard) -> bool {
        let word = BoardReport {
            replica: "r",
            life: Duration::from_secs(5),
            load: "",
            seen: one.word().0,
            notes: &[],
        };
        one.heard(&[], &board.hear(&word))
    }

    fn say(one: &Conditions, condition: Condition) {
        one.note(subject(), condition, condition.life());
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_has_lost_an_operators_word_hears_it_again_whatever_else_it_hears() {
        let (one, two) = (Conditions::default(), Conditions::default());
        let mut board = LocalBoard::default();
        say(&one, Condition::Disabled);
        beat(&one, &mut board);
        beat(&two, &mut board);
        assert!(one.is_told() && two.is(subject(), Condition::Disabled));
        // Another word comes before anybody has seen that the board is empty: its version does not
        // fall.
        board.forget();
        tokio::time::advance(Duration::from_secs(60)).await;
        two.note(
            Subject::Key(Tag::of("key", b"b")),
            Condition::Limited,
            Some(Duration::from_secs(9)),
        );
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
        let mut board = LocalBoard::default();
        one.note(subject(), Condition::Limited, Some(Duration::from_secs(90)));
        one.note(
            Subject::Key(Tag::of("key", b"b")),
            Condition::Limited,
            Some(Duration::from_secs(20)),
        );
        // The store is away.
        for _ in 0..60 {
            one.word();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        beat(&one, &mut board);
        beat(&two, &mut board);
        assert!(
            two.is(subject(), Condition::Limited)
                && !two.is(Subject::Key(Tag::of("key", b"b")), Condition::Limited)
        );
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(!one.is(subject(), Condition::Limited) && !two.is(subject(), Condition::Limited));
    }

    #[tokio::test(start_paused = true)]
    async fn the_longer_of_two_limits_holds_for_all_whoever_met_it_first() {
        for (first, second) in [(60, 10), (10, 60)] {
            let (one, two) = (Conditions::default(), Conditions::default());
            let mut board = LocalBoard::default();
            let limit = |which: &Conditions, seconds| {
                which.note(subject(), Condition::Limited, Some(Duration::from_secs(seconds)));
            };
            limit(&one, first);
            beat(&one, &mut board);
            limit(&two, second);
            for each in [&two, &one] {
                beat(each, &mut board);
            }
            tokio::time::advance(Duration::from_secs(59)).await;
            assert!(
                [&one, &two].iter().all(|each| each.is(subject(), Condition::Limited)),
                "{first} and {second}"
            );
            tokio::time::advance(Duration::from_secs(1)).await;
            assert!(
                ![&one, &two].iter().any(|each| each.is(subject(), Condition::Limited)),
                "{first} and {second}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_said_while_it_was_told_is_yet_to_be_told() {
        let (one, two) = (Conditions::default(), Conditions::default());
        let mut board = LocalBoard::default();
        say(&one, Condition::Disabled);
        let (seen, notes) = one.word();
        say(&one, Condition::Drained);
        let word = BoardReport {
            replica: "r",
            life: Duration::from_secs(5),
            load: "",
            seen,
            notes: &notes,
        };
        one.heard(&notes, &board.hear(&word));
        assert!(!one.is_told() && one.is(subject(), Condition::Drained));
        beat(&one, &mut board);
        beat(&two, &mut board);
        assert!(one.is_told() && two.is(subject(), Condition::Drained));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_heard_late_is_as_old_as_it_is_and_what_is_heard_again_is_not_new() {
        let (one, two) = (Conditions::default(), Conditions::default());
        let mut board = LocalBoard::default();
        let exhausted = Subject::Organization(Tag::of("organization", b"o"));
        one.note(exhausted, Condition::Exhausted, Condition::Exhausted.life());
        beat(&one, &mut board);
        tokio::time::advance(Duration::from_secs(500)).await;
        let before = Instant::now();
        assert!(
            heard_by(&two, &mut board)
                && two.is_older(exhausted, before.checked_sub(Duration::from_secs(499)).unwrap())
        );
        assert!(!heard_by(&two, &mut board), "nothing is new");
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(two.due().len(), 1, "for ten minutes it has been the case");
        two.grant(exhausted);
        // Half of its life later it is met once more.
        tokio::time::advance(Duration::from_secs(13 * 3_600)).await;
        two.due();
        one.note(exhausted, Condition::Exhausted, Condition::Exhausted.life());
        beat(&one, &mut board);
        assert!(heard_by(&two, &mut board) && two.due().is_empty(), "it was asked just now");
        let known = two.read();
        let entry = known.entries.values().next().unwrap();
        assert!(
            entry.has_ticket
                && entry.until.unwrap() - Instant::now() == Duration::from_secs(24 * 3_600),
            "{entry:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_store_has_lost_it_hears_again_with_what_is_left_of_its_life() {
        let (one, two, fresh) =
            (Conditions::default(), Conditions::default(), Conditions::default());
        let mut board = LocalBoard::default();
        one.note(subject(), Condition::Limited, Some(Duration::from_secs(60)));
        for each in [&one, &two] {
            beat(each, &mut board);
        }
        tokio::time::advance(Duration::from_secs(40)).await;
        board.forget();
        for each in [&two, &two, &fresh, &one] {
            beat(each, &mut board);
        }
        tokio::time::advance(Duration::from_secs(19)).await;
        assert!([&one, &two, &fresh].iter().all(|each| each.is(subject(), Condition::Limited)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(![&one, &two, &fresh].iter().any(|each| each.is(subject(), Condition::Limited)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_newer_version_says_is_passed_over() {
        let (one, two) = (Conditions::default(), Conditions::default());
        let mut board = LocalBoard::default();
        let note = |name: &str, value: &str| Note {
            name: name.into(),
            value: value.into(),
            life: None,
            stamp: 0,
        };
        let newer = [note("xyz", "suspected"), note(&subject().name(), "frozen solid")];
        let word = BoardReport {
            replica: "new",
            life: Duration::from_secs(5),
            load: "",
            seen: 0,
            notes: &newer,
        };
        board.hear(&word);
        one.note(
            Subject::Key(Tag::of("key", b"b")),
            Condition::Limited,
            Some(Duration::from_secs(9)),
        );
        for each in [&one, &two] {
            beat(each, &mut board);
        }
        assert!(
            two.is(Subject::Key(Tag::of("key", b"b")), Condition::Limited)
                && !two.is(subject(), Condition::Suspected)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_word_does_not_come_back() {
        let (one, two, away) =
            (Conditions::default(), Conditions::default(), Conditions::default());
        let mut board = LocalBoard::default();
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
        let mut board = LocalBoard::default();
        say(&one, Condition::Rejected);
        beat(&one, &mut board);
        beat(&two, &mut board);
        assert_eq!(two.forget(|about| about == subject()), [Condition::Rejected]);
        beat(&two, &mut board);
        beat(&one, &mut board);
        assert!(one.is_empty() && two.is_empty());
    }
}
