//! The sums of some days, by client, key, organization, model or day: what `/usage` and `warmkey
//! usage` show.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::{NoAnswer, today};
use crate::database::Database;
use crate::database::read::By;
use crate::database::sums::Totals;

/// Sums in the form of the JSON.
#[derive(Debug, Serialize)]
pub struct Report {
    pub time_zone: String,
    pub from: String,
    /// The last day, inclusive.
    pub to: String,
    pub by: &'static str,
    pub rows: Vec<Line>,
    pub total: Line,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    pub name: String,
    pub turns: i64,
    pub input_tokens: i64,
    pub cached_tokens: i64,
    pub written_tokens: i64,
    pub output_tokens: i64,
    pub cost_usd: String,
    /// Turns that may have been billed at an unknown cost.
    pub unpriced_turns: i64,
    pub cold_turns: i64,
    pub cold_tokens: i64,
}

impl Line {
    fn new(name: String, totals: &Totals) -> Self {
        Self {
            name,
            turns: totals.turns,
            input_tokens: totals.input_tokens,
            cached_tokens: totals.cached_tokens,
            written_tokens: totals.written_tokens,
            output_tokens: totals.output_tokens,
            cost_usd: usd(totals.cost_nano),
            unpriced_turns: totals.unpriced_turns,
            cold_turns: totals.cold_turns,
            cold_tokens: totals.cold_tokens,
        }
    }
}

/// USD with nine places, from nano-USD.
pub fn usd(nano: i64) -> String {
    let (sign, nano) = (if nano < 0 { "-" } else { "" }, nano.unsigned_abs());
    format!("{sign}{}.{:09}", nano / 1_000_000_000, nano % 1_000_000_000)
}

/// The days from `from` (default: the first of this month) to `to` (default: today).
pub async fn read(
    database: &Database,
    zone: &TimeZone,
    by: By,
    from: Option<Date>,
    to: Option<Date>,
) -> Result<Report, NoAnswer> {
    let today = today(zone);
    let (from, to) =
        (from.unwrap_or_else(|| to.unwrap_or(today).first_of_month()), to.unwrap_or(today));
    if from > to {
        return Err(NoAnswer::Meaningless(format!("from: {from} lies after {to}")));
    }
    let start = |day: Option<Date>| {
        let start = day.and_then(|day| day.to_zoned_datetime(zone.clone()).ok());
        let start = start.map(|start| start.timestamp().as_second());
        start.ok_or_else(|| NoAnswer::Meaningless("from, to: too far away".into()))
    };
    let range = start(Some(from))?..start(to.tomorrow().ok())?;
    let mut sums = database
        .sums(by, range.start, range.end)
        .await
        .map_err(|failure| NoAnswer::Away(failure.to_string()))?;
    if by == By::Day {
        for (name, _) in &mut sums {
            *name = day(name, zone);
        }
    }
    sums.sort_by(|(one, _), (other, _)| one.cmp(other));
    let mut total = Totals::default();
    sums.iter().for_each(|(_, totals)| total.add(totals));
    Ok(Report {
        time_zone: zone.iana_name().unwrap_or("UTC").to_owned(),
        from: from.to_string(),
        to: to.to_string(),
        by: by.name(),
        rows: sums.into_iter().map(|(name, totals)| Line::new(name, &totals)).collect(),
        total: Line::new("total".into(), &total),
    })
}

/// The date of the day that begins at this second.
fn day(second: &str, zone: &TimeZone) -> String {
    let at = second.parse().ok().and_then(|second| Timestamp::from_second(second).ok());
    at.map_or_else(|| second.to_owned(), |at| at.to_zoned_datetime(zone.clone()).date().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_has_nine_places() {
        for (nano, text) in [
            (0, "0.000000000"),
            (1, "0.000000001"),
            (33_100_000, "0.033100000"),
            (1_000_000_000, "1.000000000"),
            (-1, "-0.000000001"),
            (i64::MAX, "9223372036.854775807"),
            (i64::MIN, "-9223372036.854775808"),
        ] {
            assert_eq!(usd(nano), text);
        }
    }

    #[test]
    fn day_is_named_in_its_zone() {
        let berlin = TimeZone::get("Europe/Berlin").expect("a zone");
        assert_eq!(day("1796079600", &berlin), "2026-12-01");
        assert_eq!(day("1796079599", &berlin), "2026-11-30");
    }
}
