//! Reads which limit a refusal is about: the model and the resource that its message names, and the
//! headroom that its headers state beside it. Pure.

use http::HeaderMap;

use crate::limit::count;

/// Resources whose limits belong to a project's use of a model.
const OF_MODEL: [&str; 2] = ["requests", "tokens"];

/// The limit that a message names: `Rate limit reached for MODEL in organization ORG on tokens per
/// min (TPM): Limit 30000, Used 22999, Requested 12528.`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamedLimit {
    pub model: Option<String>,
    /// The resource, in lower case: `tokens`, `requests`, `input-images`.
    pub resource: Option<String>,
    pub requested: Option<u64>,
}

/// The quotes around a name.
const QUOTES: [char; 3] = ['`', '\'', '"'];
/// Words that stand where a model's name may stand.
const NO_MODELS: [&str; 9] =
    ["requests", "tokens", "images", "organization", "project", "user", "this", "your", "the"];

impl NamedLimit {
    pub fn read(message: &str) -> Self {
        let model = message.split_once("ate limit reached for ").and_then(|(_, rest)| {
            // Groq writes "for model `llama`", others "for requests" or "for organization org-x".
            let (found, _) = rest.strip_prefix("model ").unwrap_or(rest).split_once(' ')?;
            let found = found.trim_end_matches(['.', ',', ':']).trim_matches(QUOTES);
            let is_name = !found.is_empty() && found.len() <= 128 && !NO_MODELS.contains(&found);
            is_name.then(|| found.to_owned())
        });
        let resource = message
            .split(" on ")
            .skip(1)
            .find_map(|rest| rest.split_once(" per ").map(|(found, _)| found))
            .filter(|found| !found.is_empty() && found.len() <= 64)
            .map(str::to_ascii_lowercase);
        let requested = message.split_once("Requested ").and_then(|(_, rest)| {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != ',').unwrap_or(rest.len());
            count(rest[..end].trim_end_matches(','))
        });
        Self { model, resource, requested }
    }

    /// Whether the limit is another one than that of a project's use of `asked`.
    pub fn is_of_another(&self, asked: &str) -> bool {
        let is_model = self
            .model
            .as_deref()
            .is_none_or(|named| asked.is_empty() || is_same_model(named, asked));
        !is_model || self.resource.as_deref().is_some_and(|resource| !is_of_model(resource))
    }

    /// Whether `headers` state that the limit still has room for this request, so that the limit
    /// cannot be what refused it. `class`: the error's type, which may name the resource.
    pub fn has_headroom(&self, class: &str, headers: &HeaderMap) -> bool {
        let left = |limit: &str| {
            let name = format!("x-ratelimit-remaining-{limit}");
            headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim).and_then(count)
        };
        let (requests, tokens) = (
            left("requests"),
            [left("tokens"), left("project-tokens")].into_iter().flatten().min(),
        );
        let named = self.resource.as_deref().unwrap_or(class);
        let requests = requests.map(|left| left > 0);
        let tokens = tokens.map(|left| left > 0 && self.requested.is_none_or(|all| all <= left));
        match named {
            _ if named.ends_with("requests") => requests == Some(true),
            _ if named.ends_with("tokens") => tokens == Some(true),
            _ => {
                (requests.is_some() || tokens.is_some())
                    && requests != Some(false)
                    && tokens != Some(false)
            }
        }
    }
}

/// `tokens`, `requests`, and their like: `input tokens`.
pub fn is_of_model(resource: &str) -> bool {
    let (kind, last) = resource.rsplit_once([' ', '-', '_']).unwrap_or(("", resource));
    OF_MODEL.contains(&last) && matches!(kind, "" | "input" | "output" | "project" | "total")
}

/// The first model that a message names: `The model 'gpt-5' does not exist`, or `Model not found:
/// gpt-5`. Without quotes, a name has a letter and a digit: `Model rate-limit exceeded` names none.
pub fn named_model(message: &str) -> Option<String> {
    let lower = message.to_ascii_lowercase();
    let behind = lower.match_indices("model ").map(|(at, word)| at + word.len());
    let colon = lower.find("model").and_then(|at| Some(at + lower[at..].find(':')? + 1));
    behind.chain(colon).find_map(|at| {
        let rest = message[at..].trim_start();
        let found = match rest.chars().next().filter(|first| QUOTES.contains(first)) {
            Some(quote) => rest[1..].split_once(quote)?.0,
            None => {
                rest.split_whitespace().next()?.trim_matches(|c: char| !c.is_ascii_alphanumeric())
            }
        };
        let is_name = rest.starts_with(QUOTES)
            || found.contains(|c: char| c.is_ascii_digit())
                && found.contains(|c: char| c.is_ascii_alphabetic());
        (is_name && !found.is_empty() && found.len() <= 128).then(|| found.to_owned())
    })
}

/// Whether two names are those of one model, perhaps of another of its snapshots.
pub fn is_same_model(one: &str, other: &str) -> bool {
    family(one) == family(other)
}

/// A model without the date of its snapshot: `gpt-5-2025-08-07` and `gpt-5` share their limits.
fn family(model: &str) -> String {
    let model = model.to_ascii_lowercase();
    let model = model.strip_suffix("-latest").unwrap_or(&model);
    let is_date = |text: &str| {
        text.len() == 11
            && text.bytes().enumerate().all(|(at, byte)| match at {
                0 | 5 | 8 => byte == b'-',
                _ => byte.is_ascii_digit(),
            })
    };
    match model.len().checked_sub(11).and_then(|at| model.split_at_checked(at)) {
        Some((name, date)) if is_date(date) => name.to_owned(),
        _ => model.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderName, HeaderValue};

    const TPM: &str = "Rate limit reached for gpt-5 in organization org-X on tokens per min (TPM): Limit 30000, Used 22999, Requested 12528. Please try again in 11.054s.";

    #[test]
    fn limit_is_read_from_the_services_own_words() {
        let own = |text: &str| text.to_owned();
        let expected = NamedLimit {
            model: Some(own("gpt-5")),
            resource: Some(own("tokens")),
            requested: Some(12_528),
        };
        assert_eq!(NamedLimit::read(TPM), expected);
        assert_eq!(NamedLimit::read("Too many requests."), NamedLimit::default());
        assert_eq!(NamedLimit::read(""), NamedLimit::default());
    }

    #[test]
    fn another_model_or_resource_is_another_limit() {
        let limit = |model: &str, resource: &str| {
            NamedLimit::read(&format!(
                "Rate limit reached for {model} in organization o on {resource} per min (X)."
            ))
        };
        for (model, resource, asked, is_another) in [
            ("gpt-5", "tokens", "gpt-5", false),
            ("gpt-5", "requests", "gpt-5-2025-08-07", false),
            ("gpt-5-2025-08-07", "input tokens", "GPT-5", false),
            ("gpt-5", "tokens", "gpt-5-latest", false),
            ("gpt-5", "tokens", "", false),
            ("gpt-5-mini", "tokens", "gpt-5", true),
            ("gpt-5", "tokens", "gpt-5-mini", true),
            ("gpt-5-long-context", "tokens", "gpt-5", true),
            ("gpt-image-1", "input-images", "gpt-5", true),
            ("gpt-5", "images", "gpt-5", true),
            ("gpt-5", "enqueued tokens", "gpt-5", true),
            ("gpt-5", "file_search requests", "gpt-5", true),
        ] {
            let found = limit(model, resource).is_of_another(asked);
            assert_eq!(found, is_another, "{model} {resource} {asked}");
        }
    }

    /// The texts of other services, each as its own documents and logs have it.
    #[test]
    fn name_in_another_services_words_is_read() {
        for (message, expected) in [
            (
                "Rate limit reached for model `openai/gpt-oss-120b` in organization `o`",
                Some("openai/gpt-oss-120b"),
            ),
            ("Rate limit reached for requests. Limit: 3 / min.", None),
            ("Rate limit reached for organization org-x on tokens per min.", None),
        ] {
            assert_eq!(NamedLimit::read(message).model.as_deref(), expected, "{message}");
        }
        for (message, expected) in [
            ("The model `gpt-5.4` does not exist", Some("gpt-5.4")),
            ("The model 'o' does not exist: see the docs of gpt-4", Some("o")),
            ("Model not found: gpt-image-9", Some("gpt-image-9")),
            ("model_not_found: `gpt-image-9`.", Some("gpt-image-9")),
            ("Model is overloaded: please try again", None),
            ("Rate limit reached: 5rpm", None),
            ("The model codex-mini-2 is busy.", Some("codex-mini-2")),
            ("Busy (model gpt-5.4).", Some("gpt-5.4")),
            ("Model rate-limit exceeded.", None),
            ("This model per-minute limit is 3.", None),
            ("For this model 3 requests per minute are allowed.", None),
        ] {
            assert_eq!(named_model(message).as_deref(), expected, "{message}");
        }
    }

    #[test]
    fn headroom_beside_a_refusal_says_that_the_limit_is_another() {
        let headers = |list: &[(&str, &str)]| -> HeaderMap {
            let pair = |(limit, left): &(&str, &str)| {
                let name = format!("x-ratelimit-remaining-{limit}");
                (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(left).unwrap())
            };
            list.iter().map(pair).collect()
        };
        let (tokens, nothing) = (NamedLimit::read(TPM), NamedLimit::default());
        for (limit, class, left, has_headroom) in [
            (&tokens, "tokens", &[][..], false),
            (&tokens, "tokens", &[("tokens", "29,000")], true),
            (&tokens, "tokens", &[("tokens", "7001")], false),
            (&tokens, "tokens", &[("requests", "499")], false),
            (&tokens, "tokens", &[("tokens", "29000"), ("project-tokens", "0")], false),
            (&nothing, "requests", &[("requests", "499")], true),
            (&nothing, "requests", &[("requests", "0"), ("tokens", "9")], false),
            (&nothing, "", &[("requests", "499"), ("tokens", "9")], true),
            (&nothing, "", &[("requests", "499"), ("tokens", "0")], false),
            (&nothing, "", &[("requests", "soon")], false),
            (&nothing, "", &[], false),
        ] {
            assert_eq!(limit.has_headroom(class, &headers(left)), has_headroom, "{class} {left:?}");
        }
    }
}
