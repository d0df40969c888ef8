//! The reference table of costs. Each cost was computed by hand from the published prices.

use super::*;
use jiff::civil::date;

const TODAY: Date = date(2026, 12, 1);

fn usage(input: u64, cached: u64, written: u64, output: u64) -> Usage {
    Usage { input, cached, written, output, ..Usage::default() }
}

/// Returns what this turn costs, and by which price.
fn costs(
    model: &str,
    tier: Option<&str>,
    region: &str,
    day: Date,
    usage: &Usage,
) -> Option<(u64, String)> {
    own("")
        .cost(&Sale { model, tier, region, day, usage })
        .map(|cost| (cost.nano_usd, cost.price_id))
}

/// The prices of a configuration.
fn own(sections: &str) -> Prices {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(default)]
        price: Vec<PriceSettings>,
    }
    Prices::new(&toml::from_str::<File>(sections).expect("TOML").price).expect("prices")
}

#[test]
fn cost_is_that_of_the_golden_table() {
    let day = TODAY;
    // Each turn has 1,000 tokens of one kind. Its cost in nano-USD is then the published USD for a
    // million tokens, times 1,000,000.
    for (model, input, cached, written, output) in [
        ("gpt-6.2-sol", 2_000_000, 100_000, Some(2_500_000), 10_000_000),
        ("gpt-6.1-sol", 2_000_000, 100_000, Some(2_500_000), 10_000_000),
        ("gpt-6.1-terra", 1_000_000, 50_000, Some(1_250_000), 5_000_000),
        ("gpt-6-astra", 10_000_000, 1_000_000, Some(12_500_000), 50_000_000),
        ("gpt-6-sol", 2_000_000, 200_000, Some(2_500_000), 10_000_000),
        ("gpt-6-luna", 100_000, 10_000, Some(125_000), 500_000),
        ("gpt-5.6", 5_000_000, 500_000, Some(6_250_000), 30_000_000),
        ("gpt-5.6-sol", 5_000_000, 500_000, Some(6_250_000), 30_000_000),
        ("gpt-5.6-terra", 2_000_000, 200_000, Some(2_500_000), 12_000_000),
        ("gpt-5.6-luna", 200_000, 20_000, Some(250_000), 1_200_000),
        ("gpt-5.5", 5_000_000, 500_000, None, 30_000_000),
        ("gpt-5.5-pro", 30_000_000, 30_000_000, None, 180_000_000),
        ("gpt-5.4-pro", 30_000_000, 30_000_000, None, 180_000_000),
        ("gpt-5.4", 2_500_000, 250_000, None, 15_000_000),
        ("gpt-5.4-mini", 750_000, 75_000, None, 4_500_000),
        ("gpt-5.4-nano", 200_000, 20_000, None, 1_250_000),
        ("gpt-5.3-codex", 1_750_000, 175_000, None, 14_000_000),
        ("gpt-5.2", 1_750_000, 175_000, None, 14_000_000),
        ("gpt-5.2-codex", 1_750_000, 175_000, None, 14_000_000),
        ("gpt-5.2-pro", 21_000_000, 21_000_000, None, 168_000_000),
        ("gpt-5.1", 1_250_000, 125_000, None, 10_000_000),
        ("gpt-5.1-codex", 1_250_000, 125_000, None, 10_000_000),
        ("gpt-5.1-codex-max", 1_250_000, 125_000, None, 10_000_000),
        ("gpt-5", 1_250_000, 125_000, None, 10_000_000),
        ("gpt-5-codex", 1_250_000, 125_000, None, 10_000_000),
        ("gpt-5-pro", 15_000_000, 15_000_000, None, 120_000_000),
        ("gpt-5.1-codex-mini", 250_000, 25_000, None, 2_000_000),
        ("gpt-5-mini", 250_000, 25_000, None, 2_000_000),
        ("gpt-5-nano", 50_000, 5_000, None, 400_000),
        ("gpt-4.1", 2_000_000, 500_000, None, 8_000_000),
        ("gpt-4.1-mini", 400_000, 100_000, None, 1_600_000),
        ("gpt-4.1-nano", 100_000, 25_000, None, 400_000),
        ("gpt-4o", 2_500_000, 1_250_000, None, 10_000_000),
        ("gpt-4o-mini", 150_000, 75_000, None, 600_000),
        ("o3", 2_000_000, 500_000, None, 8_000_000),
        ("o4-mini", 1_100_000, 275_000, None, 4_400_000),
    ] {
        let cost = |usage: Usage| costs(model, None, "", day, &usage).map(|(nano, _)| nano);
        assert_eq!(cost(usage(1_000, 0, 0, 0)), Some(input), "{model}: input");
        assert_eq!(cost(usage(1_000, 1_000, 0, 0)), Some(cached), "{model}: cached");
        // If writes have no price of their own, written tokens cost as much as input.
        assert_eq!(
            cost(usage(1_000, 0, 1_000, 0)),
            Some(written.unwrap_or(input)),
            "{model}: written"
        );
        assert_eq!(cost(usage(0, 0, 0, 1_000)), Some(output), "{model}: output");
        assert_eq!(
            cost(usage(3_000, 1_000, 1_000, 1_000)),
            Some(input + cached + written.unwrap_or(input) + output)
        );
    }
}

/// A turn of 2,000 input, 7,000 cached, 1,000 written and 2,000 output tokens. At the standard
/// price, it costs $0.0331.
#[test]
fn tier_of_the_response_decides() {
    let turn = usage(10_000, 7_000, 1_000, 2_000);
    let cost = |model: &str, tier: &str, day: Date| {
        costs(model, Some(tier), "", day, &turn).map(|(nano, _)| nano)
    };
    let standard = 2 * 2_000_000 + 7 * 200_000 + 2_500_000 + 2 * 10_000_000;
    assert_eq!(costs("gpt-6-sol", None, "", TODAY, &turn).map(|(nano, _)| nano), Some(standard));
    for (tier, expected) in [
        ("default", Some(standard)),
        ("flex", Some(standard / 2)),
        ("batch", Some(standard / 2)),
        ("priority", Some(standard * 2)),
        ("fast", Some(standard * 2)),
        // A tier without any rate.
        ("auto", None),
        ("scale", None),
        ("ultrafast", None),
        ("", None),
    ] {
        assert_eq!(cost("gpt-6-sol", tier, TODAY), expected, "{tier}");
    }
    let sol = 2 * 2_000_000 + 7 * 100_000 + 2_500_000 + 2 * 10_000_000;
    assert_eq!(cost("gpt-6.2-sol", "ultrafast", date(2027, 2, 28)), Some(3 * sol));
    assert_eq!(cost("gpt-6.2-sol", "ultrafast", date(2027, 3, 1)), Some(6 * sol));
    assert_eq!(cost("gpt-6.1-sol", "ultrafast", TODAY), None);
    let with = |input: u64, cached: u64, output: u64| 3 * input + 7 * cached + 2 * output;
    for (model, expected) in [
        ("gpt-5.5", with(12_500_000, 1_250_000, 75_000_000)),
        ("gpt-5-mini", with(450_000, 45_000, 3_600_000)),
        ("gpt-4.1", with(3_500_000, 875_000, 14_000_000)),
        ("gpt-4o", with(4_250_000, 2_125_000, 17_000_000)),
        ("gpt-5.4", with(5_000_000, 500_000, 30_000_000)),
    ] {
        assert_eq!(cost(model, "priority", TODAY), Some(expected), "{model}");
    }
}

#[test]
fn promotion_ends_with_its_last_day() {
    let turn = usage(1_000, 0, 0, 1_000);
    for (model, tier, day, expected) in [
        ("gpt-5.6", "default", date(2026, 8, 20), 35_000_000),
        ("gpt-5.6", "default", date(2026, 8, 21), 24_000_000),
        ("gpt-5.6-sol", "default", date(2026, 11, 21), 24_000_000),
        ("gpt-5.6-sol", "default", date(2026, 11, 22), 35_000_000),
        ("gpt-5.6", "flex", date(2026, 10, 1), 12_000_000),
        // This is twice the list price, even during the promotion.
        ("gpt-5.6", "priority", date(2026, 10, 1), 70_000_000),
        ("gpt-5.6-terra", "default", date(2026, 7, 29), 17_500_000),
        ("gpt-5.6-terra", "default", date(2026, 7, 30), 14_000_000),
        ("gpt-5.6-luna", "default", date(2026, 7, 29), 7_000_000),
        ("gpt-5.6-luna", "default", date(2026, 7, 30), 1_400_000),
    ] {
        let found = costs(model, Some(tier), "", day, &turn).map(|(nano, _)| nano);
        assert_eq!(found, Some(expected), "{model} {tier} {day}");
    }
}

#[test]
fn long_request_costs_more_as_a_whole() {
    let cost = |model: &str, input: u64| {
        let turn = usage(input, 200_000, 0, 1_000);
        costs(model, None, "", TODAY, &turn).map(|(nano, _)| nano)
    };
    assert_eq!(cost("gpt-5.4", 272_000), Some(72_000 * 2_500 + 200_000 * 250 + 1_000 * 15_000));
    assert_eq!(cost("gpt-5.4", 272_001), Some(72_001 * 5_000 + 200_000 * 500 + 1_000 * 22_500));
    assert_eq!(
        cost("gpt-5.2", 272_001),
        Some(72_001 * 1_750 + 200_000 * 175 + 1_000 * 14_000),
        "an older one"
    );
    let written = usage(300_000, 0, 100_000, 0);
    let nano = costs("gpt-5.6-terra", Some("flex"), "", TODAY, &written).map(|(nano, _)| nano);
    assert_eq!(nano, Some(200_000 * 2_000 + 100_000 * 2_500), "twice, and half of it");
}

#[test]
fn region_costs_a_tenth_more_and_is_rounded_once() {
    let cost = |model: &str, region: &str, usage: Usage| {
        costs(model, None, region, TODAY, &usage).map(|(nano, _)| nano)
    };
    for region in REGIONAL {
        assert_eq!(
            cost("gpt-5.4", region, usage(1_000, 0, 0, 1_000)),
            Some(19_250_000),
            "{region}"
        );
    }
    for region in ["", "global", "US", "us-east"] {
        assert_eq!(
            cost("gpt-5.4", region, usage(1_000, 0, 0, 1_000)),
            Some(17_500_000),
            "{region}"
        );
    }
    assert_eq!(cost("gpt-5.2", "eu", usage(1_000, 0, 0, 0)), Some(1_750_000), "an older one");
    // Seven tokens at 10 nano-USD each, plus a tenth, cost 77. One cached token of gpt-5-nano costs
    // 5.
    assert_eq!(cost("gpt-6-luna", "us", usage(7, 7, 0, 0)), Some(77));
    assert_eq!(cost("gpt-5-nano", "", usage(1, 1, 0, 0)), Some(5));
    // In a long request, each cached token costs 22 nano-USD, and one of output costs 825.
    assert_eq!(cost("gpt-6-luna", "us", usage(272_001, 272_001, 0, 1)), Some(5_984_022 + 825));
}

#[test]
fn half_a_nano_is_rounded_up() {
    let prices = own("[[price]]\nmodel = \"m\"\ninput = 0.0005\noutput = 0.000499\n");
    let cost = |usage: Usage| {
        prices
            .cost(&Sale { model: "m", tier: None, region: "", day: TODAY, usage: &usage })
            .map(|cost| cost.nano_usd)
    };
    assert_eq!(
        [cost(usage(1, 0, 0, 0)), cost(usage(0, 0, 0, 1)), cost(usage(3, 0, 0, 0))],
        [Some(1), Some(0), Some(2)]
    );
}

#[test]
fn writing_for_half_a_day_has_its_price() {
    let turn = Usage { written_half_day: 1_000, ..usage(3_000, 0, 3_000, 0) };
    assert_eq!(
        costs("gpt-6.1-sol", None, "", TODAY, &turn).map(|(nano, _)| nano),
        Some(2 * 2_500_000 + 5_000_000)
    );
    // At most the written tokens can have been written for half a day.
    let odd = Usage { written_half_day: 9_000, ..usage(3_000, 0, 3_000, 0) };
    assert_eq!(
        costs("gpt-6.1-sol", None, "", TODAY, &odd).map(|(nano, _)| nano),
        Some(3 * 5_000_000)
    );
}

#[test]
fn model_is_found_by_its_whole_name_or_without_its_date() {
    let turn = usage(1_000, 0, 0, 0);
    let cost = |model: &str| costs(model, None, "", TODAY, &turn).map(|(nano, _)| nano);
    assert_eq!(cost("gpt-5.4-2026-03-05"), Some(2_500_000));
    assert_eq!(cost("gpt-5.4-mini-2026-03-17"), Some(750_000));
    for unknown in [
        "",
        "gpt",
        "gpt-5.4-",
        "gpt-5.4-preview",
        "gpt-5.40",
        "GPT-5.4",
        "gpt-5.4-2026-13-05",
        "gpt-5.4-2026-03",
        "gpt-7",
        "-2026-03-05",
        "gpt-5.4-2026-03-05-2026-03-05",
        "gpt-5.4\u{e9}2026-03-05",
        "gpt-5.4-latest",
    ] {
        assert_eq!(cost(unknown), None, "{unknown}");
    }
}

/// An unknown rate is not zero: a turn that needs one has no cost.
#[test]
fn unseen_rate_is_no_price() {
    let cost = |usage: Usage| costs("gpt-6.2-astra", None, "", TODAY, &usage).map(|(nano, _)| nano);
    assert_eq!(cost(usage(1_000, 0, 0, 1_000)), Some(48_000_000));
    assert_eq!((cost(usage(1_000, 1, 0, 0)), cost(usage(1_000, 0, 1, 0))), (None, None));
    assert_eq!(cost(usage(0, 0, 0, 0)), Some(0));
}

#[test]
fn usage_that_cannot_be_is_priced_as_it_is_stated() {
    let cost = |usage: Usage| costs("gpt-5.4", None, "", TODAY, &usage).map(|(nano, _)| nano);
    assert_eq!(cost(usage(10, 8, 5, 0)), Some(8 * 250 + 5 * 2_500), "more than there was");
    assert_eq!(
        cost(usage(u64::MAX, u64::MAX, u64::MAX, u64::MAX)),
        None,
        "more than a number holds"
    );
}

#[test]
fn configured_price_goes_before_the_built_in_one() {
    let prices = own(
        "[[price]]\nmodel = \"gpt-5.4\"\nfrom = \"2026-12-01\"\nuntil = \"2027-01-01\"\ninput = 1\ncached = 0.1\nwritten = 0\noutput = 5\n\
         [[price]]\nmodel = \"gpt-5.4\"\nfrom = \"2026-12-15\"\ninput = 3\noutput = 5\n\
         [[price]]\nmodel = \"gpt-5.4\"\ntier = \"fast\"\ninput = 7\noutput = 5\n\
         [[price]]\nmodel = \"ours\"\ninput = 9\noutput = 9\n",
    );
    let turn = usage(1_000, 0, 0, 0);
    let cost = |model: &str, tier: &str, day: Date| {
        let sale = Sale { model, tier: Some(tier), region: "", day, usage: &turn };
        prices.cost(&sale).map(|cost| (cost.nano_usd, cost.price_id))
    };
    let is = |nano: u64, id: &str| Some((nano, id.to_owned()));
    assert_eq!(cost("gpt-5.4", "default", date(2026, 11, 30)), is(2_500_000, "gpt-5.4/default"));
    assert_eq!(
        cost("gpt-5.4", "default", date(2026, 12, 1)),
        is(1_000_000, "own/gpt-5.4/default/2026-12-01")
    );
    assert_eq!(
        cost("gpt-5.4", "default", date(2026, 12, 31)),
        is(3_000_000, "own/gpt-5.4/default/2026-12-15")
    );
    assert_eq!(
        cost("gpt-5.4", "flex", date(2026, 12, 1)),
        is(500_000, "own/gpt-5.4/flex/2026-12-01")
    );
    assert_eq!(
        cost("gpt-5.4", "priority", date(2026, 12, 1)),
        is(7_000_000, "own/gpt-5.4/priority")
    );
    assert_eq!(
        cost("gpt-5.4-2026-03-05", "default", date(2026, 12, 1)),
        is(1_000_000, "own/gpt-5.4/default/2026-12-01")
    );
    assert_eq!(cost("ours", "default", TODAY), is(9_000_000, "own/ours/default"));
    assert_eq!(cost("gpt-5.5", "default", TODAY), is(5_000_000, "gpt-5.5/default"));
    // Writes cost nothing if the configuration says so.
    let written = usage(1_000, 0, 1_000, 0);
    let free = Sale { model: "gpt-5.4", tier: None, region: "", day: TODAY, usage: &written };
    assert_eq!(prices.cost(&free).map(|cost| cost.nano_usd), Some(0));
}

#[test]
fn prices_of_one_day_are_refused_if_there_are_two() {
    let one = |from: &str| format!("model = \"m\"\nfrom = \"{from}\"\ninput = 1\noutput = 1");
    let read = |text: &str| toml::from_str::<PriceSettings>(text).expect("TOML");
    let new = |days: [&str; 2]| Prices::new(&days.map(|day| read(&one(day)))).map(|_| ());
    assert_eq!(new(["2026-12-01", "2026-12-02"]), Ok(()));
    assert_eq!(
        new(["2026-12-01", "2026-12-01"]),
        Err("price m: two have the same tier and the same first day".into())
    );
}

#[test]
fn price_id_names_what_was_added() {
    let long = usage(300_000, 0, 0, 0);
    let id = |model: &str, region: &str, usage: &Usage| {
        costs(model, Some("fast"), region, TODAY, usage).map(|(_, id)| id)
    };
    assert_eq!(id("gpt-5.4-2026-03-05", "us", &long).as_deref(), Some("gpt-5.4/priority+long+us"));
    assert_eq!(id("gpt-5.2", "us", &long).as_deref(), Some("gpt-5.2/priority"));
    let day = date(2026, 9, 1);
    let promoted = costs("gpt-5.6-sol", None, "", day, &long).map(|(_, id)| id);
    assert_eq!(promoted.as_deref(), Some("gpt-5.6-sol/default/2026-08-21+long"));
}
