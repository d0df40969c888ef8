//! The board of replicas: what each of them wants the others to know at once, and what each of them
//! is doing.
//!
//! A note is a name and a value, for a time or for good. Each replica speaks several times a
//! second, and hears in the same breath what is new. Nothing depends on it: a replica that hears
//! nothing finds out by itself.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// Something that all replicas should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub name: String,
    /// Nothing: what was noted under this name is over.
    pub value: String,
    /// How much longer it holds. `None`: for good.
    pub life: Option<Duration>,
    /// When it was noted, in milliseconds of the store's clock. 0: now.
    pub stamp: u64,
}

/// One replica's word.
pub struct BoardReport<'w> {
    pub replica: &'w str,
    /// For how long it counts as alive without another word. Nothing: it leaves.
    pub life: Duration,
    /// What it is doing: the others get it as it is.
    pub load: &'w str,
    /// The version of the board that it has seen.
    pub seen: u64,
    pub notes: &'w [Note],
}

/// What a replica hears.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Board {
    /// Milliseconds of the store's clock.
    pub now: u64,
    /// Falls where the store has lost something.
    pub version: u64,
    /// Every note, unless the version is the one that was seen.
    pub notes: Vec<Note>,
    /// What the other live replicas are doing.
    pub loads: Vec<String>,
}

/// The board of one process. Does what `board.lua` does.
pub struct LocalBoard {
    origin: Instant,
    version: u64,
    notes: BTreeMap<String, Kept>,
    /// Expiry and load.
    replicas: BTreeMap<String, (u64, String)>,
}

struct Kept {
    stamp: u64,
    /// 0: none.
    expiry: u64,
    text: String,
}

impl Default for LocalBoard {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            version: 0,
            notes: BTreeMap::new(),
            replicas: BTreeMap::new(),
        }
    }
}

impl LocalBoard {
    /// Loses everything but its clock, as a store does that comes back empty.
    #[cfg(test)]
    pub fn forget(&mut self) {
        *self = Self { origin: self.origin, ..Self::default() };
    }

    pub fn hear(&mut self, word: &BoardReport<'_>) -> Board {
        // From 1 on: no stamp is 0.
        let now = millis(self.origin.elapsed()) + 1;
        let before = self.notes.len();
        self.notes.retain(|_, note| note.expiry == 0 || note.expiry > now);
        let mut is_changed = self.notes.len() != before;
        for note in word.notes {
            is_changed |= self.take(note, now);
        }
        if is_changed {
            self.version = now.max(self.version + 1);
        }
        self.replicas.retain(|name, (expiry, _)| *expiry >= now && name != word.replica);
        let loads = self.replicas.values().map(|(_, load)| load.clone()).collect();
        if !word.life.is_zero() {
            self.replicas.insert(word.replica.into(), (now + millis(word.life), word.load.into()));
        }
        let told = |(name, kept): (&String, &Kept)| Note {
            name: name.clone(),
            value: kept.text.clone(),
            life: (kept.expiry > 0).then(|| Duration::from_millis(kept.expiry - now)),
            stamp: kept.stamp,
        };
        let notes = if self.version == word.seen {
            Vec::new()
        } else {
            self.notes.iter().map(told).collect()
        };
        Board { now, version: self.version, notes, loads }
    }

    /// Whether anything changes.
    fn take(&mut self, note: &Note, now: u64) -> bool {
        let old = self.notes.get(&note.name);
        let mut expiry = note.life.map_or(0, |life| now + millis(life).max(1));
        let stamp = match (note.stamp, old) {
            (0, old) => {
                let longer = old.filter(|old| {
                    old.text == note.value && expiry > 0 && (old.expiry == 0 || old.expiry > expiry)
                });
                expiry = longer.map_or(expiry, |old| old.expiry);
                now.max(old.map_or(0, |old| old.stamp + 1))
            }
            (stamp, Some(old)) if old.stamp >= stamp => return false,
            (stamp, _) => stamp,
        };
        match note.value.is_empty() {
            true => drop(self.notes.remove(&note.name)),
            false => drop(
                self.notes
                    .insert(note.name.clone(), Kept { stamp, expiry, text: note.value.clone() }),
            ),
        }
        true
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &str, value: &str, life: u64) -> Note {
        Note {
            name: name.into(),
            value: value.into(),
            life: (life > 0).then(|| Duration::from_millis(life)),
            stamp: 0,
        }
    }

    fn say(board: &mut LocalBoard, replica: &str, seen: u64, notes: &[Note]) -> Board {
        board.hear(&BoardReport {
            replica,
            life: Duration::from_secs(5),
            load: replica,
            seen,
            notes,
        })
    }

    fn names(board: &Board) -> String {
        board.notes.iter().map(|note| format!("{}={} ", note.name, note.value)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_one_notes_all_hear_once() {
        let mut board = LocalBoard::default();
        let own = say(&mut board, "one", 0, &[note("a", "ill", 1_000), note("b", "off", 0)]);
        assert_eq!(names(&own), "a=ill b=off ");
        let other = say(&mut board, "two", 0, &[]);
        assert_eq!(
            (names(&other).as_str(), &other.loads[..]),
            ("a=ill b=off ", &["one".to_owned()][..])
        );
        assert_eq!(names(&say(&mut board, "two", other.version, &[])), "", "nothing is new");
        tokio::time::advance(Duration::from_millis(1_001)).await;
        let later = say(&mut board, "two", other.version, &[]);
        assert!(later.version > other.version);
        assert_eq!(names(&later), "b=off ");
        assert_eq!(names(&say(&mut board, "one", 0, &[note("b", "", 0)])), "");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_word_replaces_nothing_newer_and_keeps_its_stamp() {
        let mut board = LocalBoard::default();
        say(&mut board, "one", 0, &[note("a", "ill", 9_000)]);
        let again = say(&mut board, "one", 0, &[note("a", "ill", 1_000)]);
        let lost = Note { stamp: again.notes[0].stamp - 1, ..note("a", "well", 0) };
        assert_eq!(names(&say(&mut board, "two", 0, std::slice::from_ref(&lost))), "a=ill ");
        let mut fresh = LocalBoard::default();
        let told = say(&mut fresh, "two", 0, std::slice::from_ref(&lost));
        assert_eq!((names(&told).as_str(), told.notes[0].stamp), ("a=well ", lost.stamp));
    }

    #[tokio::test(start_paused = true)]
    async fn the_longer_of_two_lives_holds_whichever_was_said_first() {
        for (first, second, holds) in [
            (9_000, 1_000, 9_000),
            (1_000, 9_000, 9_000),
            (9_000, 9_000, 9_000),
            (0, 1_000, 0),
            (1_000, 0, 0),
        ] {
            let mut board = LocalBoard::default();
            let before = say(&mut board, "one", 0, &[note("a", "ill", first)]);
            say(&mut board, "two", before.version, &[note("a", "ill", second)]);
            let told = say(&mut board, "one", before.version, &[]);
            let life = note("", "", holds).life;
            let found: Vec<_> =
                told.notes.iter().map(|note| (note.value.as_str(), note.life)).collect();
            assert_eq!(found, [("ill", life)], "{first} and then {second}");
            assert!(told.notes[0].stamp > before.notes[0].stamp, "it is newer");
            // Another value is another matter, however long it holds.
            let other = say(&mut board, "two", told.version, &[note("a", "well", 500)]);
            assert_eq!(
                (other.notes[0].value.as_str(), other.notes[0].life),
                ("well", Some(Duration::from_millis(500)))
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_note_that_a_board_has_lost_replaces_only_what_is_older() {
        let mut board = LocalBoard::default();
        tokio::time::advance(Duration::from_secs(1)).await;
        let stamp = say(&mut board, "one", 0, &[note("a", "ill", 0)]).notes[0].stamp;
        for (offset, expected) in [(-1_i64, "a=ill "), (0, "a=ill "), (1, "a=well ")] {
            let again = Note { stamp: stamp.saturating_add_signed(offset), ..note("a", "well", 0) };
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(names(&say(&mut board, "two", 0, &[again])), expected, "{offset}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_or_is_silent_does_nothing_any_more() {
        let mut board = LocalBoard::default();
        for replica in ["one", "two", "three"] {
            say(&mut board, replica, 0, &[]);
        }
        let leaving =
            BoardReport { replica: "one", life: Duration::ZERO, load: "", seen: 0, notes: &[] };
        assert_eq!(board.hear(&leaving).loads.len(), 2);
        tokio::time::advance(Duration::from_millis(4_000)).await;
        assert_eq!(say(&mut board, "three", 0, &[]).loads, ["two"]);
        tokio::time::advance(Duration::from_millis(1_001)).await;
        assert!(say(&mut board, "three", 0, &[]).loads.is_empty());
    }
}
