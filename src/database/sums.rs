//! Hourly and daily sums over turns: which sums a turn belongs to, and what it adds to them. Pure.
//!
//! Hours and days are those of one time zone, so that one query reads a day's sums.

use std::collections::{BTreeMap, HashMap, HashSet};

use jiff::tz::TimeZone;
use jiff::{Timestamp, ZonedDateTime};

use super::row::TurnRow;

/// Maximum models with sums of their own in one hour or day, because clients choose the names.
pub const MODELS: usize = 200;
/// The name of all further models.
pub const OTHER: &str = "other";
/// Maximum number of buckets whose models are remembered. Each row belongs to two buckets.
const REMEMBERED: usize = 96;

/// The period of a sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SumPeriod {
    Day,
    Hour,
}

impl SumPeriod {
    pub const ALL: [Self; 2] = [Self::Day, Self::Hour];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Hour => "hour",
        }
    }

    /// Seconds since 1970 at which the span that holds `at` begins.
    fn start(self, at: &ZonedDateTime) -> i64 {
        let seconds = at.timestamp().as_second();
        match self {
            // Counts back on the zone's own clock, because some zones differ from UTC by half an
            // hour.
            Self::Hour => seconds - i64::from(at.minute()) * 60 - i64::from(at.second()),
            Self::Day => at.start_of_day().map_or(seconds, |day| day.timestamp().as_second()),
        }
    }
}

/// One hour or day.
pub type Bucket = (SumPeriod, i64);

/// The key of a sum. Sums are written in the order of their keys: two replicas that write in
/// different orders would deadlock.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SumKey {
    pub span: SumPeriod,
    pub start: i64,
    pub client: String,
    pub key: String,
    pub organization: String,
    pub model: String,
    pub tier: String,
    pub transport: String,
}

/// The totals of a sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub turns: i64,
    pub input_tokens: i64,
    pub cached_tokens: i64,
    pub written_tokens: i64,
    pub output_tokens: i64,
    pub reasoning_tokens: i64,
    pub cost_nano: i64,
    pub unpriced_turns: i64,
    pub cold_turns: i64,
    pub cold_tokens: i64,
}

impl Totals {
    pub const COLUMNS: [&str; 10] = [
        "turns",
        "input_tokens",
        "cached_tokens",
        "written_tokens",
        "output_tokens",
        "reasoning_tokens",
        "cost_nano",
        "unpriced_turns",
        "cold_turns",
        "cold_tokens",
    ];

    /// In the order of [`Self::COLUMNS`].
    pub const fn values(&self) -> [i64; 10] {
        [
            self.turns,
            self.input_tokens,
            self.cached_tokens,
            self.written_tokens,
            self.output_tokens,
            self.reasoning_tokens,
            self.cost_nano,
            self.unpriced_turns,
            self.cold_turns,
            self.cold_tokens,
        ]
    }

    pub const fn of_values(values: [i64; 10]) -> Self {
        let [
            turns,
            input_tokens,
            cached_tokens,
            written_tokens,
            output_tokens,
            reasoning_tokens,
            cost_nano,
            rest @ ..,
        ] = values;
        let [unpriced_turns, cold_turns, cold_tokens] = rest;
        Self {
            turns,
            input_tokens,
            cached_tokens,
            written_tokens,
            output_tokens,
            reasoning_tokens,
            cost_nano,
            unpriced_turns,
            cold_turns,
            cold_tokens,
        }
    }

    pub fn add(&mut self, other: &Self) {
        let (own, other) = (self.values(), other.values());
        *self = Self::of_values(std::array::from_fn(|at| own[at].saturating_add(other[at])));
    }

    fn of(row: &TurnRow) -> Self {
        let tokens = row.tokens.unwrap_or_default();
        // A first turn, or a turn that is too short for any cache, has lost no cached tokens.
        let is_loss = row
            .cold_reason
            .as_deref()
            .is_some_and(|reason| !matches!(reason, "first_turn" | "below_minimum"));
        let missed =
            row.expected_cached_tokens.map_or(0, |expected| (expected - tokens.cached).max(0));
        Self {
            turns: 1,
            input_tokens: tokens.input,
            cached_tokens: tokens.cached,
            written_tokens: tokens.written,
            output_tokens: tokens.output,
            reasoning_tokens: tokens.reasoning,
            cost_nano: row.cost_nano.unwrap_or(0),
            unpriced_turns: i64::from(row.is_unpriced),
            cold_turns: i64::from(row.cold_reason.is_some()),
            cold_tokens: if is_loss { missed } else { 0 },
        }
    }
}

/// The models that have sums of their own in each bucket, as far as this replica knows.
#[derive(Default)]
pub struct Models(HashMap<Bucket, HashSet<String>>);

impl Models {
    pub fn knows(&self, bucket: Bucket) -> bool {
        self.0.contains_key(&bucket)
    }

    /// Notes the models that the database has in `bucket`.
    pub fn learn(&mut self, bucket: Bucket, models: impl IntoIterator<Item = String>) {
        if self.0.len() >= REMEMBERED {
            // Forgets the older half of the buckets. If a late row comes, the database is asked
            // again.
            let mut starts: Vec<i64> = self.0.keys().map(|(_, start)| *start).collect();
            starts.sort_unstable();
            let middle = starts[starts.len() / 2];
            self.0.retain(|(_, start), _| *start > middle);
        }
        self.0.entry(bucket).or_default().extend(models);
    }

    fn name<'m>(&mut self, bucket: Bucket, model: &'m str) -> &'m str {
        let known = self.0.entry(bucket).or_default();
        if known.contains(model) {
            return model;
        }
        if known.len() >= MODELS {
            return OTHER;
        }
        known.insert(model.to_owned());
        model
    }
}

/// The buckets that `rows` lie in.
pub fn buckets(rows: &[&TurnRow], zone: &TimeZone) -> HashSet<Bucket> {
    rows.iter().flat_map(|row| both(row, zone)).collect()
}

fn both(row: &TurnRow, zone: &TimeZone) -> [Bucket; 2] {
    let at = Timestamp::from_microsecond(row.at)
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_zoned_datetime(zone.clone());
    SumPeriod::ALL.map(|span| (span, span.start(&at)))
}

/// The amounts that `rows` add to the sums, in the order in which they are written.
pub fn roll_up(
    rows: &[&TurnRow],
    zone: &TimeZone,
    models: &mut Models,
) -> BTreeMap<SumKey, Totals> {
    let mut sums = BTreeMap::<SumKey, Totals>::new();
    for row in rows {
        let totals = Totals::of(row);
        for bucket in both(row, zone) {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            let key = SumKey {
                span: bucket.0,
                start: bucket.1,
                client: row.client.clone(),
                key: text(&row.key),
                organization: text(&row.organization),
                model: models.name(bucket, &row.model).to_owned(),
                tier: text(&row.tier),
                transport: row.transport.clone(),
            };
            sums.entry(key).or_default().add(&totals);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::database::row::Tokens;

    fn zone(name: &str) -> TimeZone {
        TimeZone::get(name).expect("a zone")
    }

    fn at(text: &str) -> i64 {
        text.parse::<Timestamp>().expect("a time").as_microsecond()
    }

    fn row(time: &str, model: &str) -> TurnRow {
        TurnRow { at: at(time), client: "alice".into(), model: model.into(), ..TurnRow::default() }
    }

    #[test]
    fn bucket_is_cut_in_the_zone() {
        for (name, time, hour, day) in [
            ("UTC", "2026-12-01T10:59:59.999999Z", "2026-12-01T10:00:00Z", "2026-12-01T00:00:00Z"),
            (
                "Asia/Kolkata",
                "2026-12-01T10:29:59Z",
                "2026-12-01T09:30:00Z",
                "2026-11-30T18:30:00Z",
            ),
            (
                "Asia/Kolkata",
                "2026-12-01T10:30:00Z",
                "2026-12-01T10:30:00Z",
                "2026-11-30T18:30:00Z",
            ),
            (
                "Europe/Berlin",
                "2026-12-01T22:59:59Z",
                "2026-12-01T22:00:00Z",
                "2026-11-30T23:00:00Z",
            ),
            (
                "Europe/Berlin",
                "2026-12-01T23:00:00Z",
                "2026-12-01T23:00:00Z",
                "2026-12-01T23:00:00Z",
            ),
            // The hour that a clock shows twice is two hours of one day.
            (
                "Europe/Berlin",
                "2026-10-25T00:30:00Z",
                "2026-10-25T00:00:00Z",
                "2026-10-24T22:00:00Z",
            ),
            (
                "Europe/Berlin",
                "2026-10-25T01:30:00Z",
                "2026-10-25T01:00:00Z",
                "2026-10-24T22:00:00Z",
            ),
        ] {
            let seconds = |text: &str| at(text) / 1_000_000;
            let expected = [(SumPeriod::Day, seconds(day)), (SumPeriod::Hour, seconds(hour))];
            assert_eq!(both(&row(time, "m"), &zone(name)), expected, "{name} {time}");
        }
    }

    #[test]
    fn sums_are_those_of_their_rows() {
        let tokens = Some(Tokens { input: 10, cached: 4, written: 2, output: 3, reasoning: 1 });
        let full = TurnRow {
            key: Some("k".into()),
            tokens,
            cost_nano: Some(7),
            cold_reason: Some("expired".into()),
            expected_cached_tokens: Some(9),
            ..row("2026-12-01T10:00:00Z", "m")
        };
        let first = TurnRow { cold_reason: Some("first_turn".into()), ..full.clone() };
        let unknown = TurnRow {
            tokens: None,
            cost_nano: None,
            cold_reason: None,
            is_unpriced: true,
            ..full.clone()
        };
        let later = TurnRow {
            at: at("2026-12-01T11:00:00Z"),
            expected_cached_tokens: Some(3),
            ..full.clone()
        };
        let rows = [&full, &first, &unknown, &later];
        let sums = roll_up(&rows, &TimeZone::UTC, &mut Models::default());
        let told: Vec<_> = sums
            .iter()
            .map(|(key, totals)| (key.span, key.key.as_str(), totals.values()))
            .collect();
        assert_eq!(
            told,
            [
                (SumPeriod::Day, "k", [4, 30, 12, 6, 9, 3, 21, 1, 3, 5]),
                (SumPeriod::Hour, "k", [3, 20, 8, 4, 6, 2, 14, 1, 2, 5]),
                (SumPeriod::Hour, "k", [1, 10, 4, 2, 3, 1, 7, 0, 1, 0]),
            ]
        );
        assert_eq!(Totals::of_values(full_values()).values(), full_values());
    }

    const fn full_values() -> [i64; 10] {
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    }

    #[test]
    fn models_beyond_the_bound_are_counted_together() {
        let mut models = Models::default();
        let bucket = (SumPeriod::Hour, at("2026-12-01T10:00:00Z") / 1_000_000);
        models.learn(bucket, (1..MODELS).map(|number| format!("known-{number}")));
        let rows: Vec<_> =
            ["new-1", "new-2", "known-1"].map(|model| row("2026-12-01T10:00:00Z", model)).into();
        let sums = roll_up(&rows.iter().collect::<Vec<_>>(), &TimeZone::UTC, &mut models);
        let of =
            |span| sums.keys().filter(move |key| key.span == span).map(|key| key.model.as_str());
        assert_eq!(of(SumPeriod::Hour).collect::<Vec<_>>(), ["known-1", "new-1", "other"]);
        assert_eq!(
            of(SumPeriod::Day).collect::<Vec<_>>(),
            ["known-1", "new-1", "new-2"],
            "the day has room"
        );
    }

    #[test]
    fn buckets_that_are_remembered_are_bounded() {
        let mut models = Models::default();
        for hour in 0..1_000 {
            models.learn((SumPeriod::Hour, hour * 3_600), ["m".to_owned()]);
            assert!(models.knows((SumPeriod::Hour, hour * 3_600)) && models.0.len() <= REMEMBERED);
        }
    }
}
