//! The forms of a request that reads a history, and the parameters that each form knows.

/// The kind of the answer to a history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// `POST /responses`, or a frame.
    #[default]
    Response,
    /// `POST /responses/compact`: a shorter history.
    Compaction,
    /// `POST /responses/input_tokens`: the number of its tokens.
    Count,
    /// `POST /chat/completions`: an answer in the older dialect.
    Chat,
}

impl Form {
    pub const fn parameters(self) -> &'static [&'static str] {
        match self {
            Self::Response => OF_A_RESPONSE,
            Self::Compaction => OF_A_COMPACTION,
            Self::Count => OF_A_COUNT,
            // `chat` reads these bodies, and knows their parameters.
            Self::Chat => &[],
        }
    }
}

/// Every documented parameter, and those that Codex sends besides.
const OF_A_RESPONSE: &[&str] = &[
    "background",
    "client_metadata",
    "context_management",
    "conversation",
    "include",
    "input",
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "metadata",
    "model",
    "moderation",
    "parallel_tool_calls",
    "previous_response_id",
    "prompt",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "text",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
];

/// Parameters of a WebSocket frame besides those of a body.
pub const OF_A_FRAME: &[&str] = &["generate", "stream_id", "type"];

const OF_A_COMPACTION: &[&str] = &[
    "input",
    "instructions",
    "model",
    "previous_response_id",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "service_tier",
];

const OF_A_COUNT: &[&str] = &[
    "conversation",
    "input",
    "instructions",
    "model",
    "parallel_tool_calls",
    "personality",
    "previous_response_id",
    "reasoning",
    "text",
    "tool_choice",
    "tools",
    "truncation",
];
