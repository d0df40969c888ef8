//! Turns the record of a turn into one row of plain columns. Pure.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::client::ClientId;
use crate::database::row::{Tokens, TurnRow};
use crate::metrics::Ending;
use crate::session::SessionId;
use crate::usage::price::{Cost, Prices, Sale};
use crate::usage::record::Record;
use crate::wire::terminal::Usage;

/// Maximum bytes of a name. Names come from clients and upstreams; longer ones are cut.
const LONGEST: usize = 128;
/// Maximum tokens of a turn, so that sums do not overflow.
const MOST: u64 = 1 << 40;

/// The cost of a turn. `None`: its usage or its price is unknown.
pub fn cost(record: &Record, prices: &Prices, began: i64) -> Option<Cost> {
    let (service, usage) = (record.service.as_ref()?, record.usage.as_ref()?);
    let day = Timestamp::from_microsecond(began).ok()?.to_zoned_datetime(TimeZone::UTC).date();
    prices.cost(&Sale {
        // A response may be of another model than the one that was asked for.
        model: record.answering_model(),
        tier: usage.tier.as_deref(),
        region: &service.key.region,
        day,
        usage,
    })
}

/// Makes the row of a turn that began at `began`, in microseconds since 1970. `id` is unique to
/// this turn. `None`: the turn's client is unknown.
pub fn row(record: &Record, cost: Option<Cost>, began: i64, id: i64) -> Option<TurnRow> {
    let client = record.client.as_ref()?;
    let (service, usage) = (record.service.as_ref(), record.usage.as_ref());
    let key = service.map(|service| &*service.key);
    let is_unpriced = cost.is_none() && may_be_billed(record);
    let (cost_nano, price_id) =
        cost.map(|cost| (i64::try_from(cost.nano_usd).ok(), cost.price_id)).unzip();
    Some(TurnRow {
        at: began,
        id,
        client: clean(ClientId::as_str(client)),
        session: record.session.as_ref().map(|session| SessionId::as_str(session).to_owned()),
        key: key.map(|key| clean(&key.id)),
        organization: key.map(|key| clean(&key.organization)),
        project: key.map(|key| clean(&key.project)).filter(|project| !project.is_empty()),
        model: clean(&record.model),
        transport: record.transport.name().into(),
        kind: Some(record.kind.name().into()),
        outcome: record.ending.name().into(),
        status: record.status.map(|status| i64::from(status.as_u16())),
        binding: service.map(|service| service.result.name().into()),
        attempts: service.and_then(|_| i64::try_from(record.timeline.sendings().count()).ok()),
        tokens: usage.map(tokens),
        tier: usage.and_then(|usage| usage.tier.as_deref()).map(clean),
        cost_nano: cost_nano.flatten(),
        price_id,
        cold_reason: record.warmth.cold.map(|reason| reason.name().into()),
        expected_cached_tokens: record.warmth.expected.map(count),
        diagnostic: usage.and_then(|usage| usage.miss.as_deref()).map(clean),
        first_byte_us: record.timeline.to_first_byte().map(micros),
        overhead_us: record.timeline.overhead(record.transport).map(micros),
        duration_us: micros(record.duration),
        trace: record.id.to_string(),
        used_hosted_tools: usage
            .filter(|usage| !usage.has_unread_items)
            .map(|usage| usage.used_hosted_tools),
        is_unpriced,
    })
}

/// Whether the upstream may have billed a turn. A failed turn without usage is not billed, unless
/// its answer stated success and could not be decoded.
fn may_be_billed(record: &Record) -> bool {
    let is_served = match record.ending {
        Ending::Completed
        | Ending::Incomplete
        | Ending::Cut
        | Ending::TimedOut
        | Ending::ClientLeft => true,
        Ending::Failed | Ending::UpstreamError | Ending::Refused | Ending::Unserved => {
            record.usage.is_some()
        }
    };
    record.service.is_some() && (is_served || record.is_unreadable)
}

fn count(tokens: u64) -> i64 {
    i64::try_from(tokens.min(MOST)).unwrap_or(i64::MAX)
}

fn tokens(usage: &Usage) -> Tokens {
    Tokens {
        input: count(usage.input),
        cached: count(usage.cached),
        written: count(usage.written),
        output: count(usage.output),
        reasoning: count(usage.reasoning),
    }
}

/// A text that every database takes: PostgreSQL has no NUL.
fn clean(text: &str) -> String {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', "\u{fffd}")
}

fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;
    use crate::key::Key;
    use crate::key::table::Table;
    use crate::metrics::ColdReason;
    use crate::usage::record::Warmth;
    use crate::usage::timeline::Timeline;

    /// 2026-12-01, noon.
    const NOON: i64 = 1_796_126_400_000_000;

    fn record(usage: Option<Usage>, ending: Ending) -> Record {
        let table = Table::sketch("a org-a 1 sk-a");
        let key = &table.keys()[0];
        Record { ending, timeline: timeline(key), ..Record::sketch(key, usage) }
    }

    /// Two attempts. The first byte arrived after a second, and the gateway took 3 ms.
    fn timeline(key: &Arc<Key>) -> Timeline {
        let (began, millisecond) = (Instant::now(), Duration::from_millis(1));
        let mut timeline = Timeline::from(began);
        timeline.received = Some(began + millisecond);
        timeline.bound = Some(began + 4 * millisecond);
        timeline.sends(Arc::clone(key), began + 4 * millisecond);
        timeline.sends(Arc::clone(key), began + 5 * millisecond);
        timeline.first_byte = Some(began + 1_000 * millisecond);
        timeline
    }

    fn made(record: &Record) -> TurnRow {
        row(record, cost(record, &Prices::default(), NOON), NOON, 7).expect("a client")
    }

    fn usage(input: u64) -> Usage {
        Usage {
            input,
            cached: 8_832,
            output: 7,
            reasoning: 1,
            tier: Some("default".into()),
            ..Usage::default()
        }
    }

    #[test]
    fn row_holds_what_the_record_says() {
        let record = record(Some(usage(9_000)), Ending::Completed);
        let row = made(&record);
        let expected = TurnRow {
            at: NOON,
            id: 7,
            client: "alice".into(),
            session: Some("FVm43fzVIvXqRQ8foYWp-_".into()),
            key: Some("a".into()),
            organization: Some("org-a".into()),
            project: row.project.clone(),
            model: "gpt-5.4".into(),
            transport: "http".into(),
            kind: Some("turn".into()),
            used_hosted_tools: Some(false),
            outcome: "completed".into(),
            status: Some(200),
            binding: Some("existing".into()),
            attempts: Some(2),
            first_byte_us: Some(1_000_000),
            overhead_us: Some(3_000),
            tokens: Some(Tokens {
                input: 9_000,
                cached: 8_832,
                written: 0,
                output: 7,
                reasoning: 1,
            }),
            tier: Some("default".into()),
            cost_nano: Some(168 * 2_500 + 8_832 * 250 + 7 * 15_000),
            price_id: Some("gpt-5.4/default".into()),
            duration_us: 1_500_000,
            trace: record.id.to_string(),
            ..TurnRow::default()
        };
        assert_eq!(row, expected);
    }

    #[test]
    fn missing_is_not_zero() {
        for (ending, usage, is_unpriced) in [
            (Ending::Completed, None, true),
            (Ending::ClientLeft, None, true),
            (Ending::Failed, None, false),
            (Ending::UpstreamError, None, false),
            (Ending::Unserved, None, false),
            (Ending::Failed, Some(Usage { tier: Some("auto".into()), ..Usage::default() }), true),
        ] {
            let row = made(&record(usage.clone(), ending));
            assert_eq!((row.cost_nano, row.price_id.clone()), (None, None), "{ending:?}");
            assert_eq!(
                (row.is_unpriced, row.tokens.is_some()),
                (is_unpriced, usage.is_some()),
                "{ending:?}"
            );
        }
        let unreadable = Record { is_unreadable: true, ..record(None, Ending::Unserved) };
        assert!(made(&unreadable).is_unpriced, "it was served, and nobody can read its usage");
        let nowhere = Record { service: None, ..record(None, Ending::ClientLeft) };
        let row = made(&nowhere);
        assert!(!row.is_unpriced && row.key.is_none() && row.binding.is_none());
        assert_eq!(row.attempts, None, "no key was chosen");
    }

    #[test]
    fn row_tells_why_a_turn_was_cold() {
        let warmth = Warmth { expected: Some(10_000), cold: Some(ColdReason::Expired) };
        let row = made(&Record { warmth, ..record(Some(usage(9_000)), Ending::Completed) });
        assert_eq!(
            (row.expected_cached_tokens, row.cold_reason.as_deref()),
            (Some(10_000), Some("expired"))
        );
    }

    /// The model that answered has the price; the row is of the one that was asked for.
    #[test]
    fn price_is_that_of_the_model_that_answered() {
        let answered = |model: &str| {
            let usage = Usage { model: Some(model.into()), ..usage(9_000) };
            made(&record(Some(usage), Ending::Completed))
        };
        let dated = answered("gpt-5.4-2026-03-05");
        assert_eq!(
            (dated.price_id.as_deref(), dated.model.as_str()),
            (Some("gpt-5.4/default"), "gpt-5.4")
        );
        let other = answered("gpt-5.4-mini");
        assert_eq!(other.price_id.as_deref(), Some("gpt-5.4-mini/default"));
        let unknown = answered("gpt-5.4-unheard-of");
        assert!(unknown.price_id.is_none() && unknown.is_unpriced);
    }

    #[test]
    fn row_flags_tools_that_the_upstream_ran() {
        let used = Usage { used_hosted_tools: true, ..usage(9_000) };
        assert_eq!(made(&record(Some(used), Ending::Completed)).used_hosted_tools, Some(true));
        let unread = Usage { has_unread_items: true, ..usage(9_000) };
        assert_eq!(made(&record(Some(unread), Ending::Completed)).used_hosted_tools, None);
        assert_eq!(made(&record(None, Ending::Completed)).used_hosted_tools, None);
    }

    #[test]
    fn turn_of_nobody_is_no_row() {
        let stranger = Record { client: None, ..record(None, Ending::Refused) };
        assert_eq!(row(&stranger, None, NOON, 7), None);
    }

    #[test]
    fn text_is_what_every_database_takes() {
        let odd = Record {
            model: format!("a\0{}", "\u{e9}".repeat(LONGEST)),
            ..record(None, Ending::Completed)
        };
        let row = made(&odd);
        assert!(
            row.model.starts_with("a\u{fffd}\u{e9}") && row.model.chars().count() == 65,
            "{}",
            row.model
        );
        let large =
            made(&record(Some(Usage { input: u64::MAX, ..Usage::default() }), Ending::Completed));
        assert_eq!(large.tokens.map(|tokens| tokens.input), Some(1 << 40));
    }
}
