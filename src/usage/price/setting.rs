//! The option `[[price]]`: how the configuration states a price, in USD for a million tokens. Pure.

use std::fmt;

use jiff::civil::Date;
use serde::Deserialize;
use serde::de::{self, Deserializer, Visitor};

use super::{Own, Rates, STANDARD};

/// One `[[price]]`, which replaces the built-in price of its model.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceSettings {
    pub model: String,
    /// The tier that a response states. Absent: the standard price, which other tiers follow.
    pub tier: Option<String>,
    /// The first day of the price, in UTC. Absent: the price has always held.
    pub from: Option<Day>,
    /// The first day on which the price no longer holds.
    pub until: Option<Day>,
    pub input: Dollars,
    /// Absent: tokens that are read from the cache cost as much as others.
    pub cached: Option<Dollars>,
    /// Absent: tokens that are written to the cache cost as much as others.
    pub written: Option<Dollars>,
    pub output: Dollars,
}

impl PriceSettings {
    pub(super) fn priced(&self) -> Result<Own, String> {
        let model = &self.model;
        if model.is_empty() {
            return Err("price: model is empty".into());
        }
        let (from, until) = (self.from.map(|day| day.0), self.until.map(|day| day.0));
        if from.zip(until).is_some_and(|(from, until)| until <= from) {
            return Err(format!("price {model}: until: must be later than from"));
        }
        let tier = match self.tier.as_deref() {
            None => STANDARD,
            Some("fast") => "priority",
            Some("" | "auto") => {
                return Err(format!("price {model}: tier: is no tier that a response states"));
            }
            Some(tier) => tier,
        };
        let written = self.written.unwrap_or(self.input).0;
        let rates = Rates {
            input: self.input.0,
            cached: Some(self.cached.unwrap_or(self.input).0),
            written: Some(written),
            // A cache write for half a day costs twice as much as one for half an hour.
            written_half_day: Some(if self.written.is_some() { written * 2 } else { written }),
            output: self.output.0,
        };
        Ok(Own { model: model.clone(), tier: tier.to_owned(), from, until, rates })
    }
}

/// A day, such as `"2026-03-01"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Day(pub Date);

impl<'de> Deserialize<'de> for Day {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        // The parser would also take a date that a time follows.
        let day = text.parse().ok().filter(|_| text.len() == 10).map(Self);
        day.ok_or_else(|| de::Error::custom(format!(r#""{text}" is no day: write "2026-03-01""#)))
    }
}

/// USD for a million tokens, kept as micro-USD. Has at most six decimals, so nothing is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dollars(pub u64);

const DOLLARS: &str =
    "a price in USD for a million tokens, from 0 to 1000000, with at most six decimals";
const MOST: u64 = 1_000_000_000_000;

impl Dollars {
    fn parse(text: &str) -> Option<Self> {
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || part.len() > 6 || !is_number(whole) || !is_number(part) {
            return None;
        }
        let part: u64 = format!("{part:0<6}").parse().ok()?;
        let micro = whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(part)?;
        (micro <= MOST).then_some(Self(micro))
    }
}

impl<'de> Deserialize<'de> for Dollars {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Price;

        impl Visitor<'_> for Price {
            type Value = Dollars;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(DOLLARS)
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Dollars, E> {
                Dollars::parse(text).ok_or_else(|| E::custom(format!("must be {DOLLARS}")))
            }

            // The shortest decimal form of this number is the one that the operator wrote.
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Dollars, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Dollars, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Dollars, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Price)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<PriceSettings, String> {
        toml::from_str(line).map_err(|error: toml::de::Error| error.message().to_owned())
    }

    #[test]
    fn price_is_read_to_the_digit() {
        for (text, micro) in [
            ("2.5", 2_500_000),
            ("0.1", 100_000),
            ("0.005", 5_000),
            ("0.000001", 1),
            ("180", 180_000_000),
            ("0", 0),
            ("1000000", MOST),
            ("\"0.3\"", 300_000),
        ] {
            let settings = read(&format!("model = \"m\"\ninput = {text}\noutput = 1")).unwrap();
            assert_eq!(settings.input, Dollars(micro), "{text}");
        }
        for text in [
            "-1",
            "-0.5",
            "0.0000001",
            "1000001",
            "1e300",
            "true",
            "\"2,5\"",
            "\"\"",
            "\".5\"",
            "nan",
            "inf",
        ] {
            let fault = read(&format!("model = \"m\"\ninput = {text}\noutput = 1"))
                .map(|_| ())
                .expect_err(text);
            assert!(fault.contains("USD for a million tokens"), "{text}: {fault}");
        }
    }

    #[test]
    fn day_is_a_day() {
        let from =
            |text: &str| read(&format!("model = \"m\"\nfrom = \"{text}\"\ninput = 1\noutput = 1"));
        assert_eq!(from("2026-03-01").unwrap().from, Some(Day(jiff::civil::date(2026, 3, 1))));
        for text in ["2026-02-30", "2026-3-1", "March", "", "2026-03-01T00:00", "20260301"] {
            assert!(from(text).map(|_| ()).expect_err(text).contains("is no day"), "{text}");
        }
    }

    #[test]
    fn price_that_cannot_hold_is_refused() {
        for (lines, expected) in [
            ("model = \"\"", "price: model is empty"),
            (
                "model = \"m\"\nfrom = \"2026-03-01\"\nuntil = \"2026-03-01\"",
                "price m: until: must be later than from",
            ),
            ("model = \"m\"\ntier = \"auto\"", "price m: tier: is no tier that a response states"),
            ("model = \"m\"\ntier = \"\"", "price m: tier: is no tier that a response states"),
        ] {
            let settings = read(&format!("{lines}\ninput = 1\noutput = 1")).unwrap();
            assert_eq!(settings.priced().map(|_| ()), Err(expected.into()), "{lines}");
        }
        assert!(read("model = \"m\"\ninput = 1").is_err(), "output is missing");
        assert!(
            read("model = \"m\"\ninput = 1\noutput = 1\nreasoning = 1").is_err(),
            "an unknown option"
        );
    }
}
