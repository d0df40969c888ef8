//! Decides which headers cross the gateway. Pure.
//!
//! Towards the upstream, every header passes except those of the hop. These are credentials for
//! this gateway, headers of one connection, load balancers' headers about the client, and headers
//! that name another organization, method or address. Unknown headers pass, because new clients
//! need new headers. Towards the client, only listed headers pass, so that no upstream credential
//! leaves.

use std::borrow::Cow;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::chat::cache_key::derive_key;
use crate::client::Client;
use crate::key::Key;
use crate::key::host::Credential;
use crate::session::SessionId;
use crate::session::identify::{HOP, Hop, STICKY};
use crate::setting::Secret;

/// The header for the credential on Azure's hosts.
const API_KEY: HeaderName = HeaderName::from_static("api-key");

/// An upstream's own token for sticky routing. It is opaque, and of no use to another key.
pub const TURN_STATE: &str = "x-codex-turn-state";

/// The version of an upstream's list of models. If it differs from Codex's, Codex asks for the list
/// again.
const MODELS_VERSION: &str = "x-models-etag";

/// Headers of one connection (RFC 9110, section 7.6.1), and headers that the gateway's own HTTP
/// client writes.
const HOP_BY_HOP: [&str; 12] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "proxy-authenticate",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "expect",
    "host",
    "content-length",
];

/// Headers in which a client may send a credential or name an account.
const IDENTITY: [&str; 13] = [
    "authorization",
    "proxy-authorization",
    "x-api-key",
    "api-key",
    "x-goog-api-key",
    "x-amz-security-token",
    "ocp-apim-subscription-key",
    "cookie",
    "cookie2",
    "chatgpt-account-id",
    "openai-organization",
    "openai-project",
    STICKY,
];

/// Headers in which load balancers describe the client, which is not the upstream's business.
const FORWARDED: [&str; 6] =
    ["forwarded", "via", "x-real-ip", "true-client-ip", "cf-connecting-ip", "x-client-ip"];

/// Headers that some servers read in place of the request's method or address. No rule has checked
/// them.
const OVERRIDES: [&str; 9] = [
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-original-method",
    "x-original-uri",
    "x-original-url",
    "x-override-url",
    "x-rewrite-uri",
    "x-rewrite-url",
];

const STRIPPED_PREFIXES: [&str; 3] = ["sec-websocket-", "x-forwarded-", "x-warmkey-"];

/// Headers of an answer that may pass to the client.
const RETURNED: [&str; 24] = [
    "age",
    "cache-control",
    "cf-ray",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-type",
    "date",
    "etag",
    "expires",
    "last-modified",
    "openai-model",
    "openai-processing-ms",
    "openai-version",
    "retry-after",
    "retry-after-ms",
    "vary",
    "x-error-json",
    MODELS_VERSION,
    "x-oai-request-id",
    "x-reasoning-included",
    "x-request-id",
    "x-should-retry",
];

const RETURNED_PREFIXES: [&str; 4] = ["x-codex-", "x-openai-", "x-ratelimit-", "x-stainless-"];

/// Codex reads `x-{limit}-primary-used-percent` and similar headers for any name of a limit.
const RETURNED_SUFFIXES: [&str; 7] = [
    "-used-percent",
    "-window-minutes",
    "-reset-at",
    "-limit-name",
    "-reset-after-seconds",
    "-has-credits",
    "-unlimited",
];

/// Returns the client's headers that may go to the upstream, with room for the credential.
/// `foreign_state`: whether another key issued the turn's `x-codex-turn-state`.
pub fn outgoing(client: &HeaderMap, foreign_state: bool) -> HeaderMap {
    let nominated = nominated(client);
    let mut sent = HeaderMap::with_capacity(client.len() + 1);
    for (name, value) in client {
        // Servers behind CGI cannot tell `x_api_key` from `x-api-key`.
        let text = &*hyphenated(name.as_str());
        let is_odd =
            text != name.as_str() && (text == header::ACCEPT_ENCODING || text == TURN_STATE);
        let is_stripped = is_odd
            || HOP_BY_HOP.contains(&text)
            || IDENTITY.contains(&text)
            || FORWARDED.contains(&text)
            || OVERRIDES.contains(&text)
            || STRIPPED_PREFIXES.iter().any(|prefix| text.starts_with(prefix))
            || nominated.iter().any(|name| hyphenated(name).eq_ignore_ascii_case(text))
            // Only the first state has been compared with its key.
            || text == TURN_STATE && (foreign_state || sent.contains_key(TURN_STATE));
        if !is_stripped {
            sent.append(name.clone(), value.clone());
        }
    }
    keep_readable(&mut sent);
    sent
}

/// Names `session` in the header by which this upstream knows sessions, unless the client has set
/// that header.
pub fn name_session(sent: &mut HeaderMap, name: &HeaderName, session: &SessionId) {
    if !sent.contains_key(name)
        && let Ok(value) = HeaderValue::try_from(derive_key(session))
    {
        sent.insert(name.clone(), value);
    }
}

/// Returns a header's name as a server may read it that takes `_` for `-`.
fn hyphenated(name: &str) -> Cow<'_, str> {
    if name.contains('_') { Cow::Owned(name.replace('_', "-")) } else { Cow::Borrowed(name) }
}

/// Puts `key`'s secret into the header that its host expects. This is done last, so that no header
/// of the client can replace the secret.
pub fn show(headers: &mut HeaderMap, key: &Key) {
    let (name, prefix) = match key.upstream.host.credential {
        Credential::Bearer => (header::AUTHORIZATION, "Bearer "),
        Credential::ApiKey => (API_KEY, ""),
    };
    if let Some(value) = secret_value(prefix, &key.secret) {
        headers.insert(name, value);
    }
}

/// Tells another Warmkey the turn's session, and that this gateway is one of its edges.
pub fn tell_hop(headers: &mut HeaderMap, hop: &Hop<'_>) {
    if let (Ok(session), Some(secret)) =
        (HeaderValue::try_from(hop.session.as_str()), secret_value("", hop.secret))
    {
        headers.insert(STICKY, session);
        headers.insert(HOP, secret);
    }
}

fn secret_value(prefix: &str, secret: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("{prefix}{}", secret.expose())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Removes codings that the gateway cannot read from the client's `accept-encoding`. Also removes
/// values that are not text, because an upstream might find a coding in them. The rest stays as the
/// client wrote it. Reading every coding would need a decoder for each; without one of them, a
/// client gets the same bytes in another coding that it accepts.
fn keep_readable(client: &mut HeaderMap) {
    let is_readable = |coding: &&str| {
        let name = coding.split(';').next().unwrap_or_default().trim();
        ["identity", "gzip", "x-gzip", "zstd"]
            .iter()
            .any(|readable| name.eq_ignore_ascii_case(readable))
    };
    let values: Vec<_> =
        client.get_all(header::ACCEPT_ENCODING).into_iter().map(HeaderValue::to_str).collect();
    let is_text = values.iter().all(Result::is_ok);
    let (kept, taken): (Vec<_>, Vec<_>) = values
        .into_iter()
        .flatten()
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|coding| !coding.is_empty())
        .partition(is_readable);
    if !taken.is_empty() || !is_text {
        let kept = if kept.is_empty() { "identity".to_owned() } else { kept.join(", ") };
        client.insert(
            header::ACCEPT_ENCODING,
            HeaderValue::try_from(kept).expect("it was part of a header"),
        );
    }
}

/// Adds the headers of a handshake for a WebSocket without extensions or subprotocols.
pub fn upgrading(mut headers: HeaderMap, nonce: &str) -> HeaderMap {
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    if let Ok(nonce) = HeaderValue::try_from(nonce) {
        headers.insert(header::SEC_WEBSOCKET_KEY, nonce);
    }
    headers
}

/// Returns the headers of an answer that the client may see.
pub fn returned(upstream: &HeaderMap, secret: &Secret) -> HeaderMap {
    let mut passed = HeaderMap::with_capacity(upstream.len() + 2);
    for (name, value) in upstream {
        if is_returned(name) && !contains(value.as_bytes(), secret.expose().as_bytes()) {
            passed.append(name.clone(), value.clone());
        }
    }
    passed
}

/// Removes the version of the upstream's list of models from an answer, if `client` receives only a
/// part of that list. The part has a version of its own.
pub fn hide_models_version(answer: &mut HeaderMap, client: &Client) {
    if client.has_models() {
        answer.remove(MODELS_VERSION);
    }
}

fn is_returned(name: &HeaderName) -> bool {
    let name = name.as_str();
    RETURNED.contains(&name)
        || RETURNED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || (name.starts_with("x-") && RETURNED_SUFFIXES.iter().any(|suffix| name.ends_with(suffix)))
}

/// Whether a header's value repeats the secret, which the client must not see.
fn contains(value: &[u8], secret: &[u8]) -> bool {
    !secret.is_empty() && memchr::memmem::find(value, secret).is_some()
}

/// Returns the names that `Connection` declares as headers of the connection.
fn nominated(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(header::CONNECTION).iter().map(HeaderValue::as_bytes);
    let names = values.flat_map(|value| value.split(|byte| *byte == b','));
    // A value that is not text names no header.
    names.filter_map(|name| std::str::from_utf8(name).ok()).map(str::trim).collect()
}

#[cfg(test)]
mod tests;
