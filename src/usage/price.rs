//! Computes the cost of a turn from dated prices and the usage that the upstream stated. Pure.
//!
//! A price is an integer: micro-USD for a million tokens, which is pico-USD for one token. A cost
//! is rounded once, to nano-USD. An unknown model, tier or rate gives no cost, never 0.

use std::cmp::Reverse;

use jiff::civil::Date;

use crate::usage::price::setting::PriceSettings;
use crate::usage::price::table::{Listing, is_recent, percent_of_standard, scaled};
use crate::wire::terminal::Usage;

pub mod setting;
mod table;

/// Most input tokens at the usual price. A longer request has another price for every token.
const LONG: u64 = 272_000;
/// Hosts of these regions cost a tenth more.
const REGIONAL: [&str; 5] = ["us", "eu", "au", "in", "jp"];
/// The tier of an answer that names none.
const STANDARD: &str = "default";

/// Prices in pico-USD for one token, by its use. `None`: the rate is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    pub input: u64,
    pub cached: Option<u64>,
    /// Price of tokens that are written to the cache for half an hour.
    pub written: Option<u64>,
    /// Price of tokens that are written to the cache for half a day.
    pub written_half_day: Option<u64>,
    pub output: u64,
}

/// The prices in use. Prices of the configuration replace those of the built-in table.
#[derive(Clone, Debug, Default)]
pub struct Prices {
    own: Vec<Own>,
}

/// One `[[price]]` of the configuration.
#[derive(Clone, Debug)]
struct Own {
    model: String,
    tier: String,
    from: Option<Date>,
    until: Option<Date>,
    rates: Rates,
}

/// The facts that decide the price of a turn.
#[derive(Clone, Copy, Debug)]
pub struct Sale<'t> {
    pub model: &'t str,
    /// The tier that the response states. `None`: it states none.
    pub tier: Option<&'t str>,
    /// The region of the key that served the turn.
    pub region: &'t str,
    /// The day on which the turn began, in UTC.
    pub day: Date,
    pub usage: &'t Usage,
}

/// The cost of a turn, and the price that it was computed from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    pub nano_usd: u64,
    /// Names the price: model, tier, first day, and surcharges.
    pub price_id: String,
}

impl Prices {
    /// Returns the prices of the configuration, over those of the built-in table.
    pub fn new(settings: &[PriceSettings]) -> Result<Self, String> {
        let mut own: Vec<Own> = Vec::with_capacity(settings.len());
        for one in settings {
            let one = one.priced()?;
            let is_same = |other: &Own| {
                (&other.model, &other.tier, other.from) == (&one.model, &one.tier, one.from)
            };
            if own.iter().any(is_same) {
                return Err(format!(
                    "price {}: two have the same tier and the same first day",
                    one.model
                ));
            }
            own.push(one);
        }
        // The newest price that has already begun counts.
        own.sort_by_key(|one| Reverse(one.from));
        Ok(Self { own })
    }

    /// Returns the cost of a turn. `None`: the model, the tier or a rate that the turn needs is
    /// unknown.
    pub fn cost(&self, sale: &Sale<'_>) -> Option<Cost> {
        let tier = match sale.tier.unwrap_or(STANDARD) {
            "fast" => "priority",
            tier => tier,
        };
        let (model, found) =
            names(sale.model).find_map(|model| Some((model, self.find(model, tier, sale.day)?)))?;
        let is_long = is_recent(model) && sale.usage.input > LONG;
        let is_regional = is_recent(model) && REGIONAL.contains(&sale.region);
        let nano_usd = nano_usd(&found.rates, sale.usage, is_long, is_regional)?;
        let mut price_id = format!("{}{model}/{tier}", if found.is_own { "own/" } else { "" });
        if let Some(from) = found.from {
            price_id.push_str(&format!("/{from}"));
        }
        if is_long {
            price_id.push_str("+long");
        }
        if is_regional {
            price_id.push('+');
            price_id.push_str(sale.region);
        }
        Some(Cost { nano_usd, price_id })
    }

    fn find(&self, model: &str, tier: &str, day: Date) -> Option<Found> {
        let own = |tier: &str| {
            let is_selected = |one: &&Own| {
                one.model == model && one.tier == tier && is_in_force(one.from, one.until, day)
            };
            self.own.iter().find(is_selected)
        };
        if let Some(one) = own(tier) {
            return Some(Found { rates: one.rates, from: one.from, is_own: true });
        }
        // A configured standard price also counts for the tiers that follow the standard price.
        if let (Some(one), Some(percent)) = (own(STANDARD), percent_of_standard(model, tier)) {
            return Some(Found { rates: scaled(one.rates, percent), from: one.from, is_own: true });
        }
        let listing = Listing::find(model, tier, day)?;
        Some(Found { rates: listing.rates, from: listing.from, is_own: false })
    }
}

struct Found {
    rates: Rates,
    from: Option<Date>,
    is_own: bool,
}

fn is_in_force(from: Option<Date>, until: Option<Date>, day: Date) -> bool {
    from.is_none_or(|from| from <= day) && until.is_none_or(|until| day < until)
}

/// Returns the names under which `model` may have a price: its own, and then the one without its
/// date.
fn names(model: &str) -> impl Iterator<Item = &str> {
    std::iter::once(model).chain(undated(model))
}

/// Returns `gpt-5.4` for `gpt-5.4-2026-03-05`.
fn undated(model: &str) -> Option<&str> {
    let (name, date) = model.split_at_checked(model.len().checked_sub(11)?)?;
    let date = date.strip_prefix('-')?;
    (!name.is_empty() && date.parse::<Date>().is_ok()).then_some(name)
}

/// Returns the cost in nano-USD, rounded half up.
fn nano_usd(rates: &Rates, usage: &Usage, is_long: bool, is_regional: bool) -> Option<u64> {
    let cost = |tokens: u64, rate: Option<u64>| match tokens {
        0 => Some(0),
        _ => rate.map(|rate| u128::from(tokens) * u128::from(rate)),
    };
    let half_day = usage.written_half_day.min(usage.written);
    let uncached = usage.input.saturating_sub(usage.cached.saturating_add(usage.written));
    let input = cost(uncached, Some(rates.input))?
        + cost(usage.cached, rates.cached)?
        + cost(usage.written - half_day, rates.written)?
        + cost(half_day, rates.written_half_day)?;
    let output = cost(usage.output, Some(rates.output))?;
    // The unit is a twentieth of a pico-USD, because a long request adds half to the output's
    // price, and a region adds a tenth.
    let twentieths = match is_long {
        true => input * 4 + output * 3,
        false => (input + output) * 2,
    };
    let twentieths = twentieths * if is_regional { 11 } else { 10 };
    u64::try_from((twentieths + 10_000) / 20_000).ok()
}

#[cfg(test)]
mod tests;
