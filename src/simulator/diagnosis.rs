//! Explains why a turn missed the cache, in `prompt_cache_diagnostics` of GPT-5.6 and later.
//!
//! A request is compared with an earlier one of its organization: the one that it names, or
//! otherwise the last one of its `prompt_cache_key`. The diagnosis only explains: if the earlier
//! request is gone, the turn is served all the same.

use std::collections::{HashMap, VecDeque};

use serde_json::{Value, json};

use super::prefix::{Digest, Prefix, digest, shaping};
use super::request::Ask;

/// Requests remembered for comparison.
const MOST_TRACES: usize = 20_000;

/// The parts of a request that the diagnosis keeps, to compare a later request with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    model: String,
    cache_key: Option<String>,
    tier: String,
    tools: Digest,
    shaping: [Digest; 3],
    compacted: bool,
    ends: Vec<(Digest, u64)>,
}

impl Trace {
    pub fn new(ask: &Ask<'_>, prefix: &Prefix, compacted: bool) -> Self {
        Self {
            model: ask.model.to_string(),
            cache_key: ask.cache_key.as_deref().map(str::to_owned),
            tier: ask.tier.to_string(),
            tools: digest(&[ask.tools.map_or(&b""[..], |tools| tools.raw())]),
            shaping: shaping(ask).map(|raw| digest(&[raw])),
            compacted,
            ends: prefix.ends.iter().map(|end| (end.digest, end.tokens)).collect(),
        }
    }

    /// Returns the first reason why `self` cannot read what `earlier` left. Reasons come in the
    /// service's own order.
    fn reason(&self, earlier: &Self) -> Option<&'static str> {
        let reasons = [
            (self.model != earlier.model, "model_changed"),
            (self.cache_key != earlier.cache_key, "prompt_cache_key_changed"),
            (self.tier != earlier.tier, "service_tier_changed"),
            (self.tools != earlier.tools, "tools_changed"),
            (self.shaping[0] != earlier.shaping[0], "text_format_changed"),
            (self.shaping[1] != earlier.shaping[1], "reasoning_effort_changed"),
            (self.shaping[2] != earlier.shaping[2], "verbosity_changed"),
            (self.compacted && !earlier.compacted, "context_compacted"),
            (self.reusable(earlier) == 0, "input_changed"),
        ];
        reasons.into_iter().find(|(changed, _)| *changed).map(|(_, reason)| reason)
    }

    /// Returns the tokens up to the last end that both requests have.
    fn reusable(&self, earlier: &Self) -> u64 {
        let common = self
            .ends
            .iter()
            .filter(|(digest, _)| earlier.ends.iter().any(|(other, _)| other == digest));
        common.map(|(_, tokens)| *tokens).max().unwrap_or(0)
    }
}

/// The remembered requests of all organizations.
#[derive(Debug, Default)]
pub struct Traces {
    by_response: HashMap<(String, String), Trace>,
    latest: HashMap<(String, String), String>,
    oldest_first: VecDeque<(String, String)>,
}

impl Traces {
    /// Diagnoses a request that read `cached` tokens, in the service's own form, then remembers
    /// that request.
    pub fn diagnose(
        &mut self,
        organization: &str,
        response: &str,
        trace: Trace,
        compared: Option<&str>,
        cached: u64,
        tokens: u64,
    ) -> Value {
        let key = trace.cache_key.clone().map(|key| (organization.to_owned(), key));
        let earlier = match compared {
            Some(id) => Some(id.to_owned()),
            None => key.as_ref().and_then(|key| self.latest.get(key).cloned()),
        };
        let earlier = earlier.and_then(|id| self.by_response.get(&(organization.to_owned(), id)));
        let diagnosis = match (earlier, compared) {
            _ if cached > 0 => json!({"type": "cache_hit"}),
            (None, Some(_)) => json!({"type": "comparison_response_not_found"}),
            (None, None) => json!({"type": "unavailable"}),
            (Some(earlier), _) => match trace.reason(earlier) {
                Some(reason) => json!({
                    "type": "cache_miss",
                    "reason": reason,
                    "cache_missed_tokens": tokens,
                    "comparison_reusable_tokens": trace.reusable(earlier),
                }),
                // The requests agree, so the cache has dropped the prefix, or another machine holds
                // it.
                None => json!({"type": "unavailable"}),
            },
        };
        self.remember(organization, response, trace, key);
        diagnosis
    }

    fn remember(
        &mut self,
        organization: &str,
        response: &str,
        trace: Trace,
        key: Option<(String, String)>,
    ) {
        if let Some(key) = key {
            self.latest.insert(key, response.to_owned());
        }
        let id = (organization.to_owned(), response.to_owned());
        self.by_response.insert(id.clone(), trace);
        self.oldest_first.push_back(id);
        if self.oldest_first.len() > MOST_TRACES
            && let Some(oldest) = self.oldest_first.pop_front()
        {
            self.by_response.remove(&oldest);
            if self.latest.len() > 2 * MOST_TRACES {
                let known = &self.by_response;
                self.latest.retain(|(organization, _), id| {
                    known.contains_key(&(organization.clone(), id.clone()))
                });
            }
        }
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        Trace {
            model: "gpt-6-sol".into(),
            cache_key: Some("k".into()),
            tier: "default".into(),
            tools: [0; 16],
            shaping: [[0; 16]; 3],
            compacted: false,
            ends: vec![([1; 16], 2000)],
        }
    }

    #[test]
    fn miss_names_the_first_thing_that_changed() {
        let diagnose = |later: Trace, compared| {
            let mut traces = Traces::default();
            traces.diagnose("org", "resp_1", trace(), None, 0, 2000);
            traces.diagnose("org", "resp_2", later, compared, 0, 2500)
        };
        let reason = |later| {
            diagnose(later, Some("resp_1"))["reason"]
                .as_str()
                .map(str::to_owned)
                .unwrap_or_default()
        };
        assert_eq!(
            reason(Trace { model: "gpt-6-luna".into(), tools: [1; 16], ..trace() }),
            "model_changed"
        );
        assert_eq!(reason(Trace { cache_key: None, ..trace() }), "prompt_cache_key_changed");
        assert_eq!(reason(Trace { tier: "flex".into(), ..trace() }), "service_tier_changed");
        assert_eq!(reason(Trace { tools: [1; 16], ..trace() }), "tools_changed");
        assert_eq!(
            reason(Trace { shaping: [[0; 16], [1; 16], [0; 16]], ..trace() }),
            "reasoning_effort_changed"
        );
        assert_eq!(reason(Trace { compacted: true, ends: vec![], ..trace() }), "context_compacted");
        assert_eq!(reason(Trace { ends: vec![([2; 16], 2100)], ..trace() }), "input_changed");
        assert_eq!(diagnose(trace(), None)["type"], "unavailable");
        assert_eq!(diagnose(trace(), Some("resp_9"))["type"], "comparison_response_not_found");
    }

    #[test]
    fn hit_needs_no_comparison_and_organizations_share_nothing() {
        let mut traces = Traces::default();
        traces.diagnose("org", "resp_1", trace(), None, 0, 2000);
        assert_eq!(
            traces.diagnose("org", "resp_2", trace(), None, 2000, 2000)["type"],
            "cache_hit"
        );
        assert_eq!(
            traces.diagnose("other", "resp_3", trace(), Some("resp_1"), 0, 2000)["type"],
            "comparison_response_not_found"
        );
    }
}
