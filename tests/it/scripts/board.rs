//! The board of replicas in a real Redis equals the board of one process.

use std::collections::BTreeMap;

use warmkey::store::board::{Board, BoardReport, Note};

use super::*;
use crate::world::redis::Redis;
use crate::world::waiting::eventually;

const REPLICAS: [&str; 3] = ["one", "two", "three"];
const NAMES: [&str; 3] = ["a", "b", "c"];
const LONG: Duration = Duration::from_secs(3_600);

/// A report of a replica.
#[derive(Clone, Debug)]
pub struct Said {
    replica: usize,
    leaves: bool,
    /// Whether the replica has read the board up to now.
    is_informed: bool,
    notes: Vec<Noted>,
}

#[derive(Clone, Debug)]
struct Noted {
    name: usize,
    value: &'static str,
    minutes: u64,
    /// If the note was on the board before: how much older or newer it is than the note now.
    again: Option<i64>,
}

pub fn said() -> impl Strategy<Value = Said> {
    let noted = (
        0..NAMES.len(),
        prop::sample::select(vec!["", "ill", "ill", "off", "two words"]),
        // 0 means that the note does not expire.
        prop::sample::select(vec![0, 10, 10, 30, 90]),
        prop_oneof![3 => Just(None), 1 => (-1..2_i64).prop_map(Some)],
    );
    let noted =
        noted.prop_map(|(name, value, minutes, again)| Noted { name, value, minutes, again });
    let notes = prop::collection::vec(noted, 0..3);
    (0..REPLICAS.len(), prop::bool::weighted(0.2), any::<bool>(), notes).prop_map(
        |(replica, leaves, is_informed, notes)| Said { replica, leaves, is_informed, notes },
    )
}

/// One of the two stores, with the last state of its board. Their clocks differ.
pub struct Side<'s> {
    store: &'s Store,
    /// The Redis in which the next exchange runs the earlier version's script.
    pub earlier: Option<&'s Redis>,
    version: u64,
    stamps: BTreeMap<String, u64>,
}

impl<'s> Side<'s> {
    pub const fn new(store: &'s Store) -> Self {
        Self { store, earlier: None, version: 0, stamps: BTreeMap::new() }
    }

    async fn exchange(&self, report: &BoardReport<'_>) -> Board {
        if let Some(redis) = self.earlier {
            return earlier::exchange_board(redis, report).await;
        }
        self.store
            .exchange_board(report, &mut self.store.background_budget())
            .await
            .expect("an answer")
    }

    /// Makes the report. Returns what the replica reads, and what the board then holds.
    pub async fn says(&mut self, said: &Said) -> String {
        let note = |noted: &Noted| Note {
            name: NAMES[noted.name].into(),
            value: noted.value.into(),
            life: (noted.minutes > 0).then(|| Duration::from_secs(noted.minutes * 60)),
            stamp: noted.again.map_or(0, |offset| {
                let now = self.stamps.get(NAMES[noted.name]).copied().unwrap_or(1);
                now.saturating_add_signed(offset).max(1)
            }),
        };
        let notes: Vec<Note> = said.notes.iter().map(note).collect();
        let replica = REPLICAS[said.replica];
        let life = if said.leaves { Duration::ZERO } else { LONG };
        let seen = if said.is_informed { self.version } else { 0 };
        let received = self
            .exchange(&BoardReport {
                replica,
                life,
                load: &format!("load of {replica}"),
                seen,
                notes: &notes,
            })
            .await;
        let all = self
            .exchange(&BoardReport {
                replica: "judge",
                life: Duration::ZERO,
                load: "",
                seen: 0,
                notes: &[],
            })
            .await;
        assert_eq!(received.version, all.version, "a reader changes nothing");
        let answer =
            format!("receives {} {:?}", self.shown(&received.notes), sorted(&received.loads));
        let is_new = (all.version > self.version, all.version == self.version);
        let board = format!("board {is_new:?} {} {:?}", self.shown(&all.notes), sorted(&all.loads));
        self.version = all.version;
        self.stamps = all.notes.into_iter().map(|note| (note.name, note.stamp)).collect();
        format!("{answer}; {board}")
    }

    /// Returns each note, and whether it is newer than the last one of its name.
    fn shown(&self, notes: &[Note]) -> String {
        let mut shown: Vec<_> = notes
            .iter()
            .map(|note| {
                let minutes = note.life.map(|life| (life.as_secs_f64() / 60.0).round());
                let age = self.stamps.get(&note.name).map(|before| note.stamp.cmp(before));
                format!("{}={} for {minutes:?}, {age:?}", note.name, note.value)
            })
            .collect();
        shown.sort();
        shown.join(" ")
    }
}

fn sorted(loads: &[String]) -> Vec<String> {
    let mut sorted = loads.to_vec();
    sorted.sort();
    sorted
}

#[tokio::test]
async fn board_in_redis_is_the_board_of_one_process() {
    let real = Real::new().await;
    let model = Store::in_memory(Arc::new(Memory::new(10)), Arc::new(Metrics::new()));
    let (mut one, mut other) = (Side::new(&model), Side::new(&real.store));
    let mut runner = TestRunner::default();
    for number in 0..500 {
        let said = said().new_tree(&mut runner).expect("words can be made").current();
        // Stamps are in milliseconds, so the clock must go on between two reports.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let (expected, found) = (one.says(&said).await, other.says(&said).await);
        assert_eq!(found, expected, "report {number}: {said:#?}");
    }
    real.tasks.join(SOON).await;
}

#[tokio::test]
async fn longer_of_two_lives_holds_whichever_came_first() {
    let real = Real::new().await;
    let mut side = Side::new(&real.store);
    for (number, (first, second, holds)) in
        [(90, 10, Some(90.0)), (10, 90, Some(90.0)), (0, 10, None), (10, 0, None)]
            .into_iter()
            .enumerate()
    {
        for minutes in [first, second] {
            let notes = vec![Noted { name: 0, value: "ill", minutes, again: None }];
            side.says(&Said { replica: 0, leaves: false, is_informed: false, notes }).await;
        }
        let said = Said { replica: 1, leaves: false, is_informed: false, notes: Vec::new() };
        let answer = side.says(&said).await;
        assert!(
            answer.contains(&format!("a=ill for {holds:?}, ")),
            "{number}: {first} and then {second}: {answer}"
        );
        let notes = vec![Noted { name: 0, value: "", minutes: 0, again: None }];
        side.says(&Said { replica: 0, leaves: false, is_informed: false, notes }).await;
    }
    real.tasks.join(SOON).await;
}

/// Other versions read these fields, so they must not change.
#[tokio::test]
async fn fields_of_the_board_are_written_as_they_always_were() {
    let real = Real::new().await;
    let note = Note { name: "ikkeykeyke".into(), value: "ill".into(), life: None, stamp: 0 };
    let notes = [note.clone(), Note { life: Some(LONG), name: "rkkeykeyke".into(), ..note }];
    let report =
        BoardReport { replica: "one", life: LONG, load: "keykeyke=2", seen: 0, notes: &notes };
    Side::new(&real.store).exchange(&report).await;
    let fields: BTreeMap<String, String> = real.redis.ask(&["HGETALL", "w:board"]).await;
    // A number of 13 digits is a time in milliseconds.
    let shapes: Vec<_> = fields
        .iter()
        .map(|(name, value)| {
            let is_time =
                |word: &&str| word.len() == 13 && word.bytes().all(|byte| byte.is_ascii_digit());
            let word = |word: &str| if is_time(&word) { "TIME".into() } else { word.to_owned() };
            format!("{name} {}", value.split(' ').map(word).collect::<Vec<_>>().join(" "))
        })
        .collect();
    assert_eq!(
        shapes,
        [
            "n:ikkeykeyke TIME 0 ill",
            "n:rkkeykeyke TIME TIME ill",
            "r:one TIME keykeyke=2",
            "v TIME",
        ]
    );
    real.tasks.join(SOON).await;
}

#[tokio::test]
async fn note_that_is_over_leaves_the_board_by_itself() {
    let real = Real::new().await;
    let side = Side::new(&real.store);
    let short = Duration::from_millis(300);
    let note = |name: &str, life| Note { name: name.into(), value: "ill".into(), life, stamp: 0 };
    let notes = [note("a", Some(short)), note("b", None)];
    let own = side
        .exchange(&BoardReport {
            replica: "one",
            life: short,
            load: "busy",
            seen: 0,
            notes: &notes,
        })
        .await;
    assert_eq!(own.notes.len(), 2);
    eventually(SOON, "the end of both lives", async || {
        let two = side
            .exchange(&BoardReport {
                replica: "two",
                life: LONG,
                load: "",
                seen: own.version,
                notes: &[],
            })
            .await;
        let names: Vec<_> = two.notes.iter().map(|note| note.name.as_str()).collect();
        (two.version > own.version && names == ["b"] && two.loads.is_empty()).then_some(())
    })
    .await;
    let fields: Vec<String> = real.redis.ask(&["HKEYS", "w:board"]).await;
    assert!(
        !fields.iter().any(|field| field == "n:a" || field == "r:one"),
        "no field is left: {fields:?}"
    );
    real.tasks.join(SOON).await;
}
