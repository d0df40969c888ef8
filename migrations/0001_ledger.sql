-- The ledger: turns, their sums, and the tokens of clients.
--
-- One file for SQLite and PostgreSQL: TEXT and BIGINT alone, ids made by Warmkey. Times are microseconds since 1970.
-- A line that begins with `--postgres` or `--sqlite` and a space counts in that dialect.

-- One row a turn. A column is NULL where the value is unknown: that is never the same as 0.
CREATE TABLE turns (
    at BIGINT NOT NULL,
    id BIGINT NOT NULL,
    client TEXT NOT NULL,
    session TEXT,
    key TEXT,
    organization TEXT,
    project TEXT,
    model TEXT NOT NULL,
    transport TEXT NOT NULL,
    kind TEXT,
    outcome TEXT NOT NULL,
    status BIGINT,
    binding TEXT,
    attempts BIGINT,
    input_tokens BIGINT,
    cached_tokens BIGINT,
    written_tokens BIGINT,
    output_tokens BIGINT,
    reasoning_tokens BIGINT,
    tier TEXT,
    cost_nano BIGINT,
    price_id TEXT,
    cold_reason TEXT,
    expected_cached_tokens BIGINT,
    diagnostic TEXT,
    first_byte_us BIGINT,
    overhead_us BIGINT,
    duration_us BIGINT NOT NULL,
    trace TEXT NOT NULL,
    PRIMARY KEY (at, id)
)
--postgres PARTITION BY RANGE (at)
--sqlite WITHOUT ROWID
;

CREATE INDEX turns_by_session ON turns (session, at);
CREATE INDEX turns_by_client ON turns (client, at);

-- Sums over the turns of an hour or a day (`span`), cut in the configured time zone; `start` is in seconds since 1970.
-- Everything that sums reads this table. It outlives the turns.
CREATE TABLE sums (
    span TEXT NOT NULL,
    start BIGINT NOT NULL,
    client TEXT NOT NULL,
    key TEXT NOT NULL,
    organization TEXT NOT NULL,
    model TEXT NOT NULL,
    tier TEXT NOT NULL,
    transport TEXT NOT NULL,
    turns BIGINT NOT NULL,
    input_tokens BIGINT NOT NULL,
    cached_tokens BIGINT NOT NULL,
    written_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    reasoning_tokens BIGINT NOT NULL,
    cost_nano BIGINT NOT NULL,
    unpriced_turns BIGINT NOT NULL,
    cold_turns BIGINT NOT NULL,
    cold_tokens BIGINT NOT NULL,
    PRIMARY KEY (span, start, client, key, organization, model, tier, transport)
)
--sqlite WITHOUT ROWID
;

-- Tokens of clients, by their SHA-256. A revoked token stays, as its own record.
CREATE TABLE client_tokens (
    hash TEXT NOT NULL PRIMARY KEY,
    id TEXT NOT NULL,
    client TEXT NOT NULL,
    added_at BIGINT NOT NULL,
    revoked_at BIGINT
);
