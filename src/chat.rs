//! Chat Completions for upstreams of either dialect. An upstream that speaks chat gets the client's
//! own bytes, with a `prompt_cache_key` spliced in if the client sent none. For an upstream that
//! speaks only Responses, the request and its answer are translated. Pure.
//!
//! A translation copies values as the client or the upstream wrote them, and renders each message
//! by itself. The same conversation therefore always begins with the same bytes, and a prompt cache
//! finds them. A field without an equivalent is refused by its name, never left out.
//! `docs/chat.md` lists every field.

pub mod cache_key;
mod json;
pub mod request;
pub mod answer;
pub mod stream;
pub mod body;
