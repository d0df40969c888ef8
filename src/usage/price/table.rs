//! The built-in prices: OpenAI's price of each model and tier, with its first day. Pure.
//!
//! Source: developers.openai.com/api/docs/pricing and the pages of the models, checked from
//! 2026-10-12 to 2026-11-29. Past prices stay in the table, because a row of the ledger names its
//! price by model, tier and day.

use jiff::civil::{Date, date};

use super::{Rates, STANDARD, is_in_force};

/// The price of some models in one tier, for the time that it holds.
pub struct Listing {
    models: &'static [&'static str],
    tier: &'static str,
    pub from: Option<Date>,
    until: Option<Date>,
    pub rates: Rates,
}

impl Listing {
    /// Returns the price in force on `day`. A tier without a row of its own follows the standard
    /// price.
    pub fn find(model: &str, tier: &str, day: Date) -> Option<Self> {
        let own = |tier: &str| {
            let is_selected = |one: &&Self| {
                one.tier == tier
                    && one.models.contains(&model)
                    && is_in_force(one.from, one.until, day)
            };
            // The newest row of a model and tier stands first.
            TABLE.iter().find(is_selected)
        };
        let followed = |percent| own(STANDARD).map(|one| (one, scaled(one.rates, percent)));
        let (one, rates) = match own(tier) {
            Some(one) => (one, one.rates),
            None => followed(percent_of_standard(model, tier)?)?,
        };
        Some(Self { rates, ..*one })
    }
}

/// Whether a model has the rules of those released since 2026-03-05: higher prices for long
/// requests and in regions.
pub fn is_recent(model: &str) -> bool {
    RECENT.iter().any(|family| {
        model
            .strip_prefix(family)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
    })
}

const RECENT: [&str; 4] = ["gpt-5.4", "gpt-5.5", "gpt-5.6", "gpt-6"];

/// Returns the price of a tier in percent of the standard price. `None`: the tier has a price of
/// its own, or none.
pub fn percent_of_standard(model: &str, tier: &str) -> Option<u64> {
    match (tier, model) {
        ("flex" | "batch", _) => Some(50),
        ("priority", "gpt-5.5") => Some(250),
        ("priority", _) => Some(200),
        _ => None,
    }
}

/// Returns `percent` of every rate. Prices are written with at most three decimals, so nothing is
/// rounded.
pub fn scaled(rates: Rates, percent: u64) -> Rates {
    let scaled = |rate: u64| rate.saturating_mul(percent) / 100;
    Rates {
        input: scaled(rates.input),
        cached: rates.cached.map(scaled),
        written: rates.written.map(scaled),
        written_half_day: rates.written_half_day.map(scaled),
        output: scaled(rates.output),
    }
}

const fn listing(models: &'static [&'static str], rates: Rates) -> Listing {
    Listing { models, tier: STANDARD, from: None, until: None, rates }
}

impl Listing {
    const fn of(self, tier: &'static str) -> Self {
        Self { tier, ..self }
    }

    const fn from(self, from: Date) -> Self {
        Self { from: Some(from), ..self }
    }

    /// Ends the price: `until` is the first day on which it no longer holds.
    const fn until(self, until: Date) -> Self {
        Self { until: Some(until), ..self }
    }
}

/// Rates of a model that charges for cache writes. Half a day in the cache costs 2.5 times the
/// input.
const fn cached_and_written(input: u64, cached: u64, written: u64, output: u64) -> Rates {
    let half_day = Some(input / 2 * 5);
    Rates {
        input,
        cached: Some(cached),
        written: Some(written),
        written_half_day: half_day,
        output,
    }
}

/// Rates of a model whose cache writes cost no more than the input.
const fn cached(input: u64, cached: u64, output: u64) -> Rates {
    Rates {
        input,
        cached: Some(cached),
        written: Some(input),
        written_half_day: Some(input),
        output,
    }
}

/// Rates of a model whose cache reads cost as much as the input.
const fn plain(input: u64, output: u64) -> Rates {
    cached(input, input, output)
}

/// Rates of a price of which OpenAI's page shows only input and output.
const fn partly_seen(input: u64, output: u64) -> Rates {
    Rates { input, cached: None, written: None, written_half_day: None, output }
}

/// Prices in micro-USD for a million tokens. Of two prices of the same model and tier, the newer
/// one stands first.
static TABLE: &[Listing] = &[
    listing(&["gpt-6.2-astra"], partly_seen(8_000_000, 40_000_000)),
    listing(
        &["gpt-6.2-sol", "gpt-6.1-sol"],
        cached_and_written(2_000_000, 100_000, 2_500_000, 10_000_000),
    ),
    // This is three times the standard price until 2027-02-28, and six times the standard price
    // from then on.
    listing(&["gpt-6.2-sol"], cached_and_written(12_000_000, 600_000, 15_000_000, 60_000_000))
        .of("ultrafast")
        .from(date(2027, 3, 1)),
    listing(&["gpt-6.2-sol"], cached_and_written(6_000_000, 300_000, 7_500_000, 30_000_000))
        .of("ultrafast")
        .until(date(2027, 3, 1)),
    listing(&["gpt-6.1-terra"], cached_and_written(1_000_000, 50_000, 1_250_000, 5_000_000)),
    listing(&["gpt-6-astra"], cached_and_written(10_000_000, 1_000_000, 12_500_000, 50_000_000)),
    listing(&["gpt-6-sol"], cached_and_written(2_000_000, 200_000, 2_500_000, 10_000_000)),
    listing(&["gpt-6-luna"], cached_and_written(100_000, 10_000, 125_000, 500_000)),
    // A promotion holds "at least through 2026-11-21". After its stated end, the list price holds.
    listing(
        &["gpt-5.6", "gpt-5.6-sol"],
        cached_and_written(4_000_000, 400_000, 5_000_000, 20_000_000),
    )
    .from(date(2026, 8, 21))
    .until(date(2026, 11, 22)),
    listing(
        &["gpt-5.6", "gpt-5.6-sol"],
        cached_and_written(5_000_000, 500_000, 6_250_000, 30_000_000),
    ),
    // The fast price follows the list price, also during the promotion.
    listing(
        &["gpt-5.6", "gpt-5.6-sol"],
        cached_and_written(10_000_000, 1_000_000, 12_500_000, 60_000_000),
    )
    .of("priority"),
    listing(&["gpt-5.6-terra"], cached_and_written(2_000_000, 200_000, 2_500_000, 12_000_000))
        .from(date(2026, 7, 30)),
    listing(&["gpt-5.6-terra"], partly_seen(2_500_000, 15_000_000)).until(date(2026, 7, 30)),
    listing(&["gpt-5.6-luna"], cached_and_written(200_000, 20_000, 250_000, 1_200_000))
        .from(date(2026, 7, 30)),
    listing(&["gpt-5.6-luna"], partly_seen(1_000_000, 6_000_000)).until(date(2026, 7, 30)),
    listing(&["gpt-5.5"], cached(5_000_000, 500_000, 30_000_000)),
    listing(&["gpt-5.5-pro", "gpt-5.4-pro"], plain(30_000_000, 180_000_000)),
    listing(&["gpt-5.4"], cached(2_500_000, 250_000, 15_000_000)),
    listing(&["gpt-5.4-mini"], cached(750_000, 75_000, 4_500_000)),
    listing(&["gpt-5.4-nano"], cached(200_000, 20_000, 1_250_000)),
    listing(&["gpt-5.3-codex", "gpt-5.2", "gpt-5.2-codex"], cached(1_750_000, 175_000, 14_000_000)),
    listing(&["gpt-5.2-pro"], plain(21_000_000, 168_000_000)),
    listing(
        &["gpt-5.1", "gpt-5.1-codex", "gpt-5.1-codex-max", "gpt-5", "gpt-5-codex"],
        cached(1_250_000, 125_000, 10_000_000),
    ),
    listing(&["gpt-5-pro"], plain(15_000_000, 120_000_000)),
    listing(&["gpt-5.1-codex-mini", "gpt-5-mini"], cached(250_000, 25_000, 2_000_000)),
    listing(&["gpt-5-mini"], cached(450_000, 45_000, 3_600_000)).of("priority"),
    listing(&["gpt-5-nano"], cached(50_000, 5_000, 400_000)),
    listing(&["gpt-4.1"], cached(2_000_000, 500_000, 8_000_000)),
    listing(&["gpt-4.1"], cached(3_500_000, 875_000, 14_000_000)).of("priority"),
    listing(&["gpt-4.1-mini"], cached(400_000, 100_000, 1_600_000)),
    listing(&["gpt-4.1-nano"], cached(100_000, 25_000, 400_000)),
    listing(&["gpt-4o"], cached(2_500_000, 1_250_000, 10_000_000)),
    listing(&["gpt-4o"], cached(4_250_000, 2_125_000, 17_000_000)).of("priority"),
    listing(&["gpt-4o-mini"], cached(150_000, 75_000, 600_000)),
    listing(&["o3"], cached(2_000_000, 500_000, 8_000_000)),
    listing(&["o4-mini"], cached(1_100_000, 275_000, 4_400_000)),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// A row that no day and no tier finds is a mistake in the table.
    #[test]
    fn price_of_the_table_is_found_on_its_days() {
        for one in TABLE {
            for model in one.models {
                let day = one
                    .from
                    .or(one.until.and_then(|until| until.yesterday().ok()))
                    .unwrap_or(date(2026, 12, 1));
                let found = Listing::find(model, one.tier, day).expect(model);
                assert_eq!(
                    (found.rates, found.from),
                    (one.rates, one.from),
                    "{model} {} {day}",
                    one.tier
                );
            }
        }
    }

    #[test]
    fn recent_model_is_told_by_its_whole_family() {
        for model in
            ["gpt-5.4", "gpt-5.4-mini", "gpt-5.5-pro", "gpt-5.6-sol", "gpt-6-luna", "gpt-6.2-astra"]
        {
            assert!(is_recent(model), "{model}");
        }
        for model in
            ["gpt-5", "gpt-5.3-codex", "gpt-5-mini", "gpt-4.1", "gpt-60", "gpt-5.45", "o3", ""]
        {
            assert!(!is_recent(model), "{model}");
        }
    }
}
