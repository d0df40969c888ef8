//! Reports what this replica knows about the health of keys, and learns from the reports of the
//! others.
//!
//! Notes that the store has lost are reported again, with their original time. An observation ends
//! when its note is missing on the board. An operator's command ends only by another command.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::health::condition::{Class, Condition, Place};
use crate::health::conditions::{Conditions, Entry};
use crate::store::board::{Board, Note};

impl Conditions {
    /// Waits until there is something to report.
    pub async fn reportable(&self) {
        self.reportable.notified().await;
    }

    /// The notes to report, and the version of the board that was last received.
    pub fn report(&self) -> (u64, Vec<Note>) {
        if self.is_reported() {
            return (self.read().seen, Vec::new());
        }
        let now = Instant::now();
        let mut known = self.write();
        // A note that waits to be reported gains no life: it holds for no longer than it did here.
        known.unreported.retain(|_, (note, at)| {
            let passed = now - std::mem::replace(at, now);
            note.life = note.life.map(|life| life.saturating_sub(passed));
            note.life != Some(Duration::ZERO)
        });
        (known.seen, known.unreported.values().map(|(note, _)| note.clone()).collect())
    }

    /// Whether the other replicas have received everything.
    pub fn is_reported(&self) -> bool {
        self.read().unreported.is_empty()
    }

    /// Takes the result of an exchange: the other replicas have received `reported`, and `board` is
    /// what the store holds now. Returns true if anything is new.
    pub fn learn(&self, reported: &[Note], board: &Board) -> bool {
        let now = Instant::now();
        let mut known = self.write();
        for note in reported {
            if let Some(place) = Place::parse(&note.name)
                .filter(|place| known.unreported.get(place).is_some_and(|(own, _)| own == note))
            {
                known.unreported.remove(&place);
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
                Place::parse(&note.name).zip(Condition::parse(first_word(&note.value)))
            else {
                continue;
            };
            said.insert(place, note.stamp);
            let old = known.entries.get(&place);
            // A note of this replica is newer if it is yet to be reported, or was reported and lost
            // since.
            if known.unreported.contains_key(&place)
                || old.is_some_and(|old| old.stamp > note.stamp)
            {
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
        // A store that has lost notes may have received so many since that its version shows no
        // loss.
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
            self.reportable.notify_one();
        }
        known.unreported.extend(lost);
        known.entries.retain(|place, entry| {
            may_be_lost(place) || entry.stamp == 0 || said.contains_key(place)
        });
        if known.evict_excess(now) {
            self.reportable.notify_one();
        }
        true
    }
}

/// A newer version may write more words behind a condition.
fn first_word(value: &str) -> &str {
    value.split(' ').next().unwrap_or_default()
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

    /// Exchanges once, as a heartbeat does.
    fn exchange(one: &Conditions, board: &mut LocalBoard) {
        let (seen, notes) = one.report();
        let report = BoardReport {
            replica: "r",
            life: Duration::from_secs(5),
            load: "",
            seen,
            notes: &notes,
        };
        one.learn(&notes, &board.exchange(&report));
    }

    /// Receives the board without reporting anything. Returns true if anything is new.
    fn receive(one: &Conditions, board: &mut LocalBoard) -> bool {
        let report = BoardReport {
            replica: "r",
            life: Duration::from_secs(5),
            load: "",
            seen: one.report().0,
            notes: &[],
        };
        one.learn(&[], &board.exchange(&report))
    }

    fn say(one: &Conditions, condition: Condition) {
        one.note(subject(), condition, condition.life());
    }

    #[tokio::test(start_paused = true)]
    async fn operators_command_that_the_store_has_lost_is_reported_again_whatever_else_is_reported()
    {
        let (one, two) = (Conditions::default(), Conditions::default());
        let mut board = LocalBoard::default();
        say(&one, Condition::Disabled);
        exchange(&one, &mut board);
        exchange(&two, &mut board);
        assert!(one.is_reported() && two.is(subject(), Condition::Disabled));
        // Another command comes before any replica has seen that the board is empty: its version
        // does not fall.
        board.forget();
        tokio::time::advance(Duration::from_secs(60)).await;
        two.note(
            Subject::Key(Tag::of("key", b"b")),
            Condition::Limited,
            Some(Duration::from_secs(9)),
        );
        for one in [&two, &two, &one] {
            exchange(one, &mut board);
        }
        let fresh = Conditions::default();
        exchange(&fresh, &mut board);
        assert!([&one, &two, &fresh].iter().all(|one| one.is(subject(), Condition::Disabled)));
    }

    #[tokio::test(start_paused = true)]
    async fn condition_that_could_not_be_reported_holds_for_no_longer() {
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
            one.report();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        exchange(&one, &mut board);
        exchange(&two, &mut board);
        assert!(
            two.is(subject(), Condition::Limited)
                && !two.is(Subject::Key(Tag::of("key", b"b")), Condition::Limited)
        );
        tokio::time::advance(Duration::from_secs(31)).await;
        assert!(!one.is(subject(), Condition::Limited) && !two.is(subject(), Condition::Limited));
    }

    #[tokio::test(start_paused = true)]
    async fn longer_of_two_limits_holds_for_all_whichever_came_first() {
        for (first, second) in [(60, 10), (10, 60)] {
            let (one, two) = (Conditions::default(), Conditions::default());
            let mut board = LocalBoard::default();
            let limit = |which: &Conditions, seconds| {
                which.note(subject(), Condition::Limited, Some(Duration::from_secs(seconds)));
            };
            limit(&one, first);
            exchange(&one, &mut board);
            limit(&two, second);
            for each in [&two, &one] {
                exchange(each, &mut board);
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
    async fn change_during_an_exchange_is_yet_to_be_reported() {
        let (one, two) = (Conditions::default(), Conditions::default());
        let mut board = LocalBoard::default();
        say(&one, Condition::Disabled);
        let (seen, notes) = one.report();
        say(&one, Condition::Drained);
        let report = BoardReport {
            replica: "r",
            life: Duration::from_secs(5),
            load: "",
            seen,
            notes: &notes,
        };
        one.learn(&notes, &board.exchange(&report));
        assert!(!one.is_reported() && one.is(subject(), Condition::Drained));
        exchange(&one, &mut board);
        exchange(&two, &mut board);
        assert!(one.is_reported() && two.is(subject(), Condition::Drained));
    }

    #[tokio::test(start_paused = true)]
    async fn condition_received_late_keeps_its_age_and_received_again_is_not_new() {
        let (one, two) = (Conditions::default(), Conditions::default());
        let mut board = LocalBoard::default();
        let exhausted = Subject::Organization(Tag::of("organization", b"o"));
        one.note(exhausted, Condition::Exhausted, Condition::Exhausted.life());
        exchange(&one, &mut board);
        tokio::time::advance(Duration::from_secs(500)).await;
        let before = Instant::now();
        assert!(
            receive(&two, &mut board)
                && two.is_older(exhausted, before.checked_sub(Duration::from_secs(499)).unwrap())
        );
        assert!(!receive(&two, &mut board), "nothing is new");
        tokio::time::advance(Duration::from_secs(100)).await;
        assert_eq!(two.due().len(), 1, "it has held for ten minutes");
        two.grant(exhausted);
        // The replica observes the condition once more, half of its life later.
        tokio::time::advance(Duration::from_secs(13 * 3_600)).await;
        two.due();
        one.note(exhausted, Condition::Exhausted, Condition::Exhausted.life());
        exchange(&one, &mut board);
        assert!(receive(&two, &mut board) && two.due().is_empty(), "it was asked just now");
        let known = two.read();
        let entry = known.entries.values().next().unwrap();
        assert!(
            entry.has_ticket
                && entry.until.unwrap() - Instant::now() == Duration::from_secs(24 * 3_600),
            "{entry:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn lost_note_is_reported_again_with_the_rest_of_its_life() {
        let (one, two, fresh) =
            (Conditions::default(), Conditions::default(), Conditions::default());
        let mut board = LocalBoard::default();
        one.note(subject(), Condition::Limited, Some(Duration::from_secs(60)));
        for each in [&one, &two] {
            exchange(each, &mut board);
        }
        tokio::time::advance(Duration::from_secs(40)).await;
        board.forget();
        for each in [&two, &two, &fresh, &one] {
            exchange(each, &mut board);
        }
        tokio::time::advance(Duration::from_secs(19)).await;
        assert!([&one, &two, &fresh].iter().all(|each| each.is(subject(), Condition::Limited)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(![&one, &two, &fresh].iter().any(|each| each.is(subject(), Condition::Limited)));
    }

    #[tokio::test(start_paused = true)]
    async fn note_of_a_newer_version_is_ignored() {
        let (one, two) = (Conditions::default(), Conditions::default());
        let mut board = LocalBoard::default();
        let note = |name: &str, value: &str| Note {
            name: name.into(),
            value: value.into(),
            life: None,
            stamp: 0,
        };
        let newer = [note("xyz", "suspected"), note(&subject().name(), "frozen solid")];
        let report = BoardReport {
            replica: "new",
            life: Duration::from_secs(5),
            load: "",
            seen: 0,
            notes: &newer,
        };
        board.exchange(&report);
        one.note(
            Subject::Key(Tag::of("key", b"b")),
            Condition::Limited,
            Some(Duration::from_secs(9)),
        );
        for each in [&one, &two] {
            exchange(each, &mut board);
        }
        assert!(
            two.is(Subject::Key(Tag::of("key", b"b")), Condition::Limited)
                && !two.is(subject(), Condition::Suspected)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn old_command_does_not_come_back() {
        let (one, two, away) =
            (Conditions::default(), Conditions::default(), Conditions::default());
        let mut board = LocalBoard::default();
        say(&one, Condition::Disabled);
        for each in [&one, &two, &away] {
            exchange(each, &mut board);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        say(&one, Condition::Enabled);
        exchange(&one, &mut board);
        exchange(&two, &mut board);
        // The store is emptied, and the first replica to report was away meanwhile.
        board.forget();
        tokio::time::advance(Duration::from_secs(1)).await;
        for each in [&away, &away, &one, &one, &two, &away] {
            exchange(each, &mut board);
        }
        assert!([&one, &two, &away].iter().all(|each| each.is(subject(), Condition::Enabled)));
    }

    #[tokio::test(start_paused = true)]
    async fn observation_is_over_once_it_is_no_longer_on_the_board() {
        let (one, two) = (Conditions::default(), Conditions::default());
        let mut board = LocalBoard::default();
        say(&one, Condition::Rejected);
        exchange(&one, &mut board);
        exchange(&two, &mut board);
        assert_eq!(two.forget(|about| about == subject()), [Condition::Rejected]);
        exchange(&two, &mut board);
        exchange(&one, &mut board);
        assert!(one.is_empty() && two.is_empty());
    }
}
