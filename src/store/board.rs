//! The board of replicas: notes for all replicas, and the load of each replica.
//!
//! A note is a name and a value, with or without an expiry. Each replica exchanges with the board
//! several times a second: it reports and receives in one operation. No replica depends on the
//! board. If a replica receives nothing, it learns about keys from its own attempts.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// A fact for all replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub name: String,
    /// An empty value removes the note of this name.
    pub value: String,
    /// The remaining life. `None`: the note does not expire.
    pub life: Option<Duration>,
    /// The time of the note in milliseconds of the store's clock. 0: now.
    pub stamp: u64,
}

impl Note {
    /// A new note that removes the note of this `name`.
    pub fn over(name: String) -> Self {
        Self { name, value: String::new(), life: None, stamp: 0 }
    }

    /// Parses what `board.lua` returns of a note: name, value, life and stamp.
    pub(super) fn parse(parts: &[String]) -> Option<Self> {
        let [name, value, life, stamp] = parts else { return None };
        let life = life.parse().ok().filter(|left| *left > 0).map(Duration::from_millis);
        let (name, value, stamp) = (name.clone(), value.clone(), stamp.parse().ok()?);
        Some(Self { name, value, life, stamp })
    }
}

/// One replica's part of an exchange with the board.
pub struct BoardReport<'w> {
    pub replica: &'w str,
    /// Time for which the replica counts as live without another report. 0: the replica leaves.
    pub life: Duration,
    /// The replica's load, which other replicas receive unchanged.
    pub load: &'w str,
    /// The last version of the board that the replica received.
    pub seen: u64,
    pub notes: &'w [Note],
}

/// The board's answer to a [`BoardReport`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Board {
    /// Milliseconds of the store's clock.
    pub now: u64,
    /// The version of the notes. A lower version means that the store has lost data.
    pub version: u64,
    /// Every note. Empty if the replica has already received this version.
    pub notes: Vec<Note>,
    /// The loads of the other live replicas.
    pub loads: Vec<String>,
}

/// The board of one process, with the semantics of `board.lua`.
pub struct LocalBoard {
    origin: Instant,
    version: u64,
    notes: BTreeMap<String, Kept>,
    /// When each replica expires, and its load.
    replicas: BTreeMap<String, (u64, String)>,
}

struct Kept {
    stamp: u64,
    /// When the note expires. 0: never.
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
    /// Loses everything except its clock, like a store that comes back empty.
    #[cfg(test)]
    pub fn forget(&mut self) {
        *self = Self { origin: self.origin, ..Self::default() };
    }

    pub fn exchange(&mut self, report: &BoardReport<'_>) -> Board {
        // Stamps start at 1, because 0 means a new note.
        let now = millis(self.origin.elapsed()) + 1;
        let before = self.notes.len();
        self.notes.retain(|_, note| note.expiry == 0 || note.expiry > now);
        let mut is_changed = self.notes.len() != before;
        for note in report.notes {
            is_changed |= self.take(note, now);
        }
        if is_changed {
            self.version = now.max(self.version + 1);
        }
        self.replicas.retain(|name, (expiry, _)| *expiry >= now && name != report.replica);
        let loads = self.replicas.values().map(|(_, load)| load.clone()).collect();
        if !report.life.is_zero() {
            self.replicas
                .insert(report.replica.into(), (now + millis(report.life), report.load.into()));
        }
        let taken = |(name, kept): (&String, &Kept)| Note {
            name: name.clone(),
            value: kept.text.clone(),
            life: (kept.expiry > 0).then(|| Duration::from_millis(kept.expiry - now)),
            stamp: kept.stamp,
        };
        let notes = if self.version == report.seen {
            Vec::new()
        } else {
            self.notes.iter().map(taken).collect()
        };
        Board { now, version: self.version, notes, loads }
    }

    /// Takes one note. Returns whether the board changed.
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

    fn exchange(board: &mut LocalBoard, replica: &str, seen: u64, notes: &[Note]) -> Board {
        board.exchange(&BoardReport {
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
    async fn note_reaches_every_replica_once() {
        let mut board = LocalBoard::default();
        let own = exchange(&mut board, "one", 0, &[note("a", "ill", 1_000), note("b", "off", 0)]);
        assert_eq!(names(&own), "a=ill b=off ");
        let other = exchange(&mut board, "two", 0, &[]);
        assert_eq!(
            (names(&other).as_str(), &other.loads[..]),
            ("a=ill b=off ", &["one".to_owned()][..])
        );
        assert_eq!(names(&exchange(&mut board, "two", other.version, &[])), "", "nothing is new");
        tokio::time::advance(Duration::from_millis(1_001)).await;
        let later = exchange(&mut board, "two", other.version, &[]);
        assert!(later.version > other.version);
        assert_eq!(names(&later), "b=off ");
        assert_eq!(names(&exchange(&mut board, "one", 0, &[note("b", "", 0)])), "");
    }

    #[tokio::test(start_paused = true)]
    async fn lost_note_replaces_nothing_newer_and_keeps_its_stamp() {
        let mut board = LocalBoard::default();
        exchange(&mut board, "one", 0, &[note("a", "ill", 9_000)]);
        let again = exchange(&mut board, "one", 0, &[note("a", "ill", 1_000)]);
        let lost = Note { stamp: again.notes[0].stamp - 1, ..note("a", "well", 0) };
        assert_eq!(names(&exchange(&mut board, "two", 0, std::slice::from_ref(&lost))), "a=ill ");
        let mut fresh = LocalBoard::default();
        let taken = exchange(&mut fresh, "two", 0, std::slice::from_ref(&lost));
        assert_eq!((names(&taken).as_str(), taken.notes[0].stamp), ("a=well ", lost.stamp));
    }

    #[tokio::test(start_paused = true)]
    async fn note_keeps_the_longer_of_two_lives_in_any_order() {
        for (first, second, holds) in [
            (9_000, 1_000, 9_000),
            (1_000, 9_000, 9_000),
            (9_000, 9_000, 9_000),
            (0, 1_000, 0),
            (1_000, 0, 0),
        ] {
            let mut board = LocalBoard::default();
            let before = exchange(&mut board, "one", 0, &[note("a", "ill", first)]);
            exchange(&mut board, "two", before.version, &[note("a", "ill", second)]);
            let taken = exchange(&mut board, "one", before.version, &[]);
            let life = note("", "", holds).life;
            let found: Vec<_> =
                taken.notes.iter().map(|note| (note.value.as_str(), note.life)).collect();
            assert_eq!(found, [("ill", life)], "{first} and then {second}");
            assert!(taken.notes[0].stamp > before.notes[0].stamp, "it is newer");
            // A note with another value has a life of its own, shorter or longer.
            let other = exchange(&mut board, "two", taken.version, &[note("a", "well", 500)]);
            assert_eq!(
                (other.notes[0].value.as_str(), other.notes[0].life),
                ("well", Some(Duration::from_millis(500)))
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lost_note_replaces_only_an_older_note() {
        let mut board = LocalBoard::default();
        tokio::time::advance(Duration::from_secs(1)).await;
        let stamp = exchange(&mut board, "one", 0, &[note("a", "ill", 0)]).notes[0].stamp;
        for (offset, expected) in [(-1_i64, "a=ill "), (0, "a=ill "), (1, "a=well ")] {
            let again = Note { stamp: stamp.saturating_add_signed(offset), ..note("a", "well", 0) };
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(names(&exchange(&mut board, "two", 0, &[again])), expected, "{offset}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn load_of_a_replica_ends_when_it_leaves_or_is_silent() {
        let mut board = LocalBoard::default();
        for replica in ["one", "two", "three"] {
            exchange(&mut board, replica, 0, &[]);
        }
        let leaving =
            BoardReport { replica: "one", life: Duration::ZERO, load: "", seen: 0, notes: &[] };
        assert_eq!(board.exchange(&leaving).loads.len(), 2);
        tokio::time::advance(Duration::from_millis(4_000)).await;
        assert_eq!(exchange(&mut board, "three", 0, &[]).loads, ["two"]);
        tokio::time::advance(Duration::from_millis(1_001)).await;
        assert!(exchange(&mut board, "three", 0, &[]).loads.is_empty());
    }
}
