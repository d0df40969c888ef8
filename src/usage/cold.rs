//! Decides why a turn read nothing from the cache. Pure.

use crate::metrics::{BindingResult, ColdReason};
use crate::wire::terminal::Usage;

/// The shortest prefix that any model caches, in tokens.
const MINIMUM: u64 = 1_024;

/// Why the turn was cold. `None`: it was warm. `domain_moved`: the turn's key has another cache
/// domain than the key that the turn began with.
pub fn reason(result: BindingResult, domain_moved: bool, usage: &Usage) -> Option<ColdReason> {
    if usage.cached > 0 {
        return None;
    }
    Some(match result {
        _ if usage.input < MINIMUM => ColdReason::BelowMinimum,
        BindingResult::Created => ColdReason::FirstTurn,
        BindingResult::Rebound | BindingResult::Spilled if domain_moved => ColdReason::DomainMoved,
        BindingResult::Rebound | BindingResult::Spilled => ColdReason::KeyMoved,
        _ => match usage.miss.as_deref() {
            Some("model_changed") => ColdReason::ModelChanged,
            Some(_) => ColdReason::PrefixChanged,
            None => ColdReason::Upstream,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(input: u64, cached: u64, miss: Option<&str>) -> Usage {
        Usage { input, cached, miss: miss.map(str::to_owned), ..Usage::default() }
    }

    #[test]
    fn a_turn_is_cold_for_one_reason() {
        use BindingResult::{
            Created, Degraded, Existing, Inherited, None as Nowhere, Rebound, Spilled,
        };
        for (result, moved, usage, expected) in [
            (Existing, false, usage(9_000, 128, None), None),
            (Created, false, usage(9_000, 0, None), Some(ColdReason::FirstTurn)),
            (Existing, false, usage(900, 0, None), Some(ColdReason::BelowMinimum)),
            (Rebound, true, usage(9_000, 0, None), Some(ColdReason::DomainMoved)),
            (Rebound, false, usage(9_000, 0, None), Some(ColdReason::KeyMoved)),
            (
                Existing,
                false,
                usage(9_000, 0, Some("model_changed")),
                Some(ColdReason::ModelChanged),
            ),
            (
                Existing,
                false,
                usage(9_000, 0, Some("tools_changed")),
                Some(ColdReason::PrefixChanged),
            ),
            (Existing, false, usage(9_000, 0, None), Some(ColdReason::Upstream)),
            // A turn that read a single token is warm, even with a prefix that is too short or on
            // another key.
            (Rebound, true, usage(900, 1, None), None),
            (Existing, false, usage(1_023, 0, None), Some(ColdReason::BelowMinimum)),
            (Existing, false, usage(1_024, 0, None), Some(ColdReason::Upstream)),
            // A prefix that is too short for any cache is the reason, wherever the turn went.
            (Rebound, true, usage(1_023, 0, None), Some(ColdReason::BelowMinimum)),
            (Created, false, usage(0, 0, None), Some(ColdReason::BelowMinimum)),
            // A move of the session outweighs the upstream's own diagnosis.
            (Created, false, usage(9_000, 0, Some("model_changed")), Some(ColdReason::FirstTurn)),
            (Spilled, true, usage(9_000, 0, Some("model_changed")), Some(ColdReason::DomainMoved)),
            (Spilled, false, usage(9_000, 0, Some("model_changed")), Some(ColdReason::KeyMoved)),
            // If the key did not change with this turn, only the upstream knows the reason.
            (Inherited, false, usage(9_000, 0, None), Some(ColdReason::Upstream)),
            (
                Degraded,
                false,
                usage(9_000, 0, Some("tools_changed")),
                Some(ColdReason::PrefixChanged),
            ),
            (
                Nowhere,
                false,
                usage(9_000, 0, Some("model_changed")),
                Some(ColdReason::ModelChanged),
            ),
        ] {
            assert_eq!(
                reason(result, moved, &usage),
                expected,
                "{result:?}, moved: {moved}, {usage:?}"
            );
        }
    }
}
