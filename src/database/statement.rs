//! Builds the statements that write many rows at once. Pure.
//!
//! Rows are written in groups whose sizes are powers of two, so that a connection prepares few
//! statements.

use super::sums::Totals;

/// The columns of a turn, in the order in which they are bound.
pub const TURN: [&str; 30] = [
    "at",
    "id",
    "client",
    "session",
    "key",
    "organization",
    "project",
    "model",
    "transport",
    "kind",
    "outcome",
    "status",
    "binding",
    "attempts",
    "input_tokens",
    "cached_tokens",
    "written_tokens",
    "output_tokens",
    "reasoning_tokens",
    "tier",
    "cost_nano",
    "price_id",
    "cold_reason",
    "expected_cached_tokens",
    "diagnostic",
    "first_byte_us",
    "overhead_us",
    "duration_us",
    "trace",
    "hosted_tools",
];
/// The key columns of a sum, in the order in which they are bound. The totals follow.
pub const SUM_KEY: [&str; 8] =
    ["span", "start", "client", "key", "organization", "model", "tier", "transport"];

/// The largest group. SQLite binds at most 32,766 values, PostgreSQL 65,535. A connection prepares
/// and keeps a statement of each size, and a larger one is hardly faster.
const GROUP: usize = 64;

/// The sizes of the groups in which `count` rows are written.
pub fn groups(mut count: usize) -> Vec<usize> {
    let mut sizes = Vec::new();
    while count > 0 {
        // The largest power of two that is at most `count`.
        let size = GROUP.min(1 << count.ilog2());
        sizes.push(size);
        count -= size;
    }
    sizes
}

/// The placeholder of a bound value.
#[derive(Clone, Copy)]
pub enum Placeholder {
    /// `?`, for SQLite, which would look up each `$1` by its name among all others.
    Plain,
    /// `$1`, for PostgreSQL.
    Numbered,
}

/// Writes those of `count` turns that are not there yet.
pub fn insert_turns(count: usize, placeholder: Placeholder) -> String {
    let columns = TURN.join(", ");
    format!(
        "INSERT INTO turns ({columns}) VALUES {} ON CONFLICT DO NOTHING",
        values(count, TURN.len(), placeholder)
    )
}

/// Adds to `count` sums.
pub fn add_sums(count: usize, placeholder: Placeholder) -> String {
    let columns = [&SUM_KEY[..], &Totals::COLUMNS].concat();
    let added: Vec<_> = Totals::COLUMNS
        .iter()
        .map(|name| format!("{name} = sums.{name} + excluded.{name}"))
        .collect();
    format!(
        "INSERT INTO sums ({}) VALUES {} ON CONFLICT ({}) DO UPDATE SET {}",
        columns.join(", "),
        values(count, columns.len(), placeholder),
        SUM_KEY.join(", "),
        added.join(", ")
    )
}

/// `($1, $2), ($3, $4)`.
fn values(rows: usize, columns: usize, placeholder: Placeholder) -> String {
    let row = |number: usize| {
        let names = (1..=columns).map(|column| match placeholder {
            Placeholder::Plain => "?".to_owned(),
            Placeholder::Numbered => format!("${}", number * columns + column),
        });
        format!("({})", names.collect::<Vec<_>>().join(", "))
    };
    let all: Vec<_> = match placeholder {
        // All rows have the same text.
        Placeholder::Plain => vec![row(0); rows],
        Placeholder::Numbered => (0..rows).map(row).collect(),
    };
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_written_in_few_sizes() {
        for (count, expected) in [
            (0, &[][..]),
            (1, &[1]),
            (7, &[4, 2, 1]),
            (64, &[64]),
            (500, &[64, 64, 64, 64, 64, 64, 64, 32, 16, 4]),
        ] {
            assert_eq!(groups(count), expected, "{count}");
        }
        assert!(
            GROUP * TURN.len() <= 32_000
                && GROUP * (SUM_KEY.len() + Totals::COLUMNS.len()) <= 32_000
        );
    }

    #[test]
    fn values_are_numbered_through() {
        assert_eq!(values(2, 3, Placeholder::Numbered), "($1, $2, $3), ($4, $5, $6)");
        assert_eq!(values(2, 3, Placeholder::Plain), "(?, ?, ?), (?, ?, ?)");
        let insert = insert_turns(2, Placeholder::Numbered);
        assert!(insert.contains("$60)") && !insert.contains("$61"));
        assert!(add_sums(1, Placeholder::Plain).contains("turns = sums.turns + excluded.turns"));
    }
}
