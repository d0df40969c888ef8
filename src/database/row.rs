//! A turn as the ledger keeps it: one row, made once. Pure.

/// One turn. `None` is unknown, which is not 0. Times are microseconds; `at` counts from 1970.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TurnRow {
    pub at: i64,
    /// Random: with `at` it tells this turn from all others, however often the row is written.
    pub id: i64,
    pub client: String,
    pub session: Option<String>,
    pub key: Option<String>,
    pub organization: Option<String>,
    pub project: Option<String>,
    pub model: String,
    pub transport: String,
    pub kind: Option<String>,
    pub outcome: String,
    pub status: Option<i64>,
    pub binding: Option<String>,
    pub attempts: Option<i64>,
    pub tokens: Option<Tokens>,
    /// The service tier that the response names.
    pub tier: Option<String>,
    pub cost_nano: Option<i64>,
    pub price_id: Option<String>,
    pub cold_reason: Option<String>,
    pub expected_cached_tokens: Option<i64>,
    /// Why nothing was read from the cache, as the upstream says.
    pub diagnostic: Option<String>,
    pub first_byte_us: Option<i64>,
    pub overhead_us: Option<i64>,
    pub duration_us: i64,
    pub trace: String,
    /// The upstream ran a tool itself, whose price is in no usage. `None`: no usage came.
    pub used_hosted_tools: Option<bool>,
    /// The upstream may have billed the turn, and its cost is unknown.
    pub is_unpriced: bool,
}

/// The tokens that the upstream counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    pub input: i64,
    pub cached: i64,
    pub written: i64,
    pub output: i64,
    pub reasoning: i64,
}
