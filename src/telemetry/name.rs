//! The names of spans and their attributes, as literals. The names are literals, because
//! OpenTelemetry's conventions for generative models still change, and the constants of its crates
//! are older.

pub const TURN: &str = "turn";
pub const AUTHENTICATE: &str = "authenticate";
pub const IDENTIFY: &str = "identify";
pub const BIND: &str = "bind";
pub const RELAY: &str = "relay";
/// The name of an attempt: this word, followed by the model.
pub const CHAT: &str = "chat";
/// An event of a turn: it waited in place for a limited key.
pub const WAIT: &str = "wait";
/// An event of a turn: the last byte of its request has arrived.
pub const RECEIVED: &str = "received";

// These are Warmkey's own names.
pub const CLIENT: &str = "warmkey.client";
pub const SESSION: &str = "warmkey.session";
pub const KEY: &str = "warmkey.key";
pub const ORGANIZATION: &str = "warmkey.organization";
pub const BINDING: &str = "warmkey.binding";
pub const COLD_REASON: &str = "warmkey.cold_reason";
pub const TRANSPORT: &str = "warmkey.transport";
pub const OUTCOME: &str = "warmkey.outcome";
pub const ATTEMPTS: &str = "warmkey.attempts";
/// Why the turn did not simply end with this attempt's answer.
pub const REASON: &str = "warmkey.reason";
/// Seconds that a turn waited in place.
pub const WAITED: &str = "warmkey.wait";
/// Seconds that the gateway itself added before the first attempt.
pub const OVERHEAD: &str = "warmkey.overhead";

// These are from OpenTelemetry's conventions for generative models.
pub const OPERATION: &str = "gen_ai.operation.name";
pub const PROVIDER: &str = "gen_ai.provider.name";
pub const REQUEST_MODEL: &str = "gen_ai.request.model";
pub const REQUEST_STREAM: &str = "gen_ai.request.stream";
pub const RESPONSE_ID: &str = "gen_ai.response.id";
pub const RESPONSE_MODEL: &str = "gen_ai.response.model";
pub const FINISH_REASONS: &str = "gen_ai.response.finish_reasons";
/// Seconds from the attempt's begin.
pub const TIME_TO_FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
/// All tokens of the input, with those that were read from the cache.
pub const INPUT_TOKENS: &str = "gen_ai.usage.input_tokens";
pub const OUTPUT_TOKENS: &str = "gen_ai.usage.output_tokens";
pub const CACHE_READ_TOKENS: &str = "gen_ai.usage.cache_read.input_tokens";
pub const CACHE_WRITE_TOKENS: &str = "gen_ai.usage.cache_write.input_tokens";
pub const REASONING_TOKENS: &str = "gen_ai.usage.reasoning.output_tokens";
pub const API_TYPE: &str = "openai.api.type";
pub const REQUEST_TIER: &str = "openai.request.service_tier";
pub const RESPONSE_TIER: &str = "openai.response.service_tier";

// This is from OpenTelemetry's stable conventions.
pub const ERROR_TYPE: &str = "error.type";
pub const SERVER_ADDRESS: &str = "server.address";
pub const SERVER_PORT: &str = "server.port";
pub const STATUS_CODE: &str = "http.response.status_code";
