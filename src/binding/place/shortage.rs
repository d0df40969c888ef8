//! Errors for a turn that no key can serve. Each error says whether another try can succeed, and
//! when.

use std::sync::Arc;
use std::time::Duration;

use super::{Places, is_allowed};
use crate::binding::demand::Placing;
use crate::binding::select::Reach;
use crate::error::{Error, ErrorKind};
use crate::health::conditions::{Fitness, Why};
use crate::key::{Key, Tag};

/// `Retry-After` if a key may be loaded in a moment.
const SOON: Duration = Duration::from_secs(1);
/// `Retry-After` if keys are out of use.
const LATER: Duration = Duration::from_secs(30);

impl Places {
    /// Returns the client's error if none of the `allowed` keys can serve.
    pub fn shortage(&self, placing: Placing<'_>, allowed: &[&Arc<Key>]) -> Error {
        let error = self.plain_shortage(placing, allowed);
        match (placing.within, allowed.first()) {
            (Reach::Project { .. } | Reach::Nowhere, None) => {
                self.registry.wants_reload();
                Error::new(
                    ErrorKind::NoKeyAvailable,
                    "No upstream key of the project is known that stores what this turn refers to.",
                )
                .retry_after(SOON)
            }
            // The error names the project, because the client may be able to continue without its
            // content.
            (Reach::Project { .. }, Some(key)) => {
                let project = [key.organization.as_str(), key.project.as_str()].join("/");
                let what = format!(
                    "What this turn refers to is stored by {}.",
                    project.trim_end_matches('/')
                );
                Error { message: format!("{what} {}", error.message), ..error }
            }
            _ => error,
        }
    }

    fn plain_shortage(&self, placing: Placing<'_>, allowed: &[&Arc<Key>]) -> Error {
        let fitness: Vec<_> = allowed
            .iter()
            .map(|key| self.registry.fitness(key, placing.demand.model_use()))
            .collect();
        let is_out = |fitness: &Fitness| {
            matches!(fitness, Fitness::Dead(Why::ExhaustedOrganization | Why::ExhaustedProject))
        };
        // Exhaustion is final even if an operator has also disabled some of the keys.
        let is_final =
            fitness.iter().any(is_out) && allowed.iter().all(|key| self.registry.is_exhausted(key));
        let soonest = fitness
            .iter()
            .filter_map(
                |fitness| if let Fitness::Limited(wait) = fitness { Some(*wait) } else { None },
            )
            .min();
        match soonest {
            Some(wait) => {
                Error::limited("Every upstream key that may serve this session is cooling.", wait)
            }
            // Waiting does not help.
            None if is_final => Error::new(
                ErrorKind::InsufficientQuota,
                "The quota of every organization that may continue this session is exhausted. Add credit, or start a new session with another organization.",
            ),
            None if fitness.contains(&Fitness::Bypassed(Why::Incident)) => {
                none_available(LATER / 6)
            }
            None if fitness.contains(&Fitness::Bypassed(Why::Suspected)) => none_available(SOON),
            None => none_available(LATER),
        }
    }

    /// Returns the client's error for a turn that may use the keys within `reach`.
    pub fn shortage_of(&self, placing: Placing<'_>, reach: Reach) -> Error {
        let loaded = self.registry.loaded();
        let is_open = |key: &&Arc<Key>| reach.includes(key) && is_allowed(placing, key);
        self.shortage(placing, &loaded.table.keys().iter().filter(is_open).collect::<Vec<_>>())
    }

    /// Returns the error for the allowed organizations that were not `tried`, if there are any.
    pub fn shortage_beside(&self, placing: Placing<'_>, tried: &[Tag]) -> Option<Error> {
        let loaded = self.registry.loaded();
        let is_left =
            |key: &&Arc<Key>| !tried.contains(&key.organization_tag) && is_allowed(placing, key);
        let left: Vec<_> = loaded.table.keys().iter().filter(is_left).collect();
        (!left.is_empty()).then(|| self.shortage(placing, &left))
    }
}

/// No allowed key is in use.
pub fn none_in_use() -> Error {
    none_available(LATER)
}

/// The session's key is not loaded here yet, and no other key may serve.
pub fn not_loaded() -> Error {
    none_available(SOON)
}

/// The gateway does not know at the moment which project stores the content that the turn refers
/// to.
pub fn unknown_project() -> Error {
    let message =
        "It cannot be told at the moment which project stores what this turn refers to: try again.";
    Error::new(ErrorKind::NoKeyAvailable, message).retry_after(SOON)
}

fn none_available(wait: Duration) -> Error {
    Error::new(
        ErrorKind::NoKeyAvailable,
        "No upstream key that may serve this session is in use. Its operator has been told; try again later.",
    )
    .retry_after(wait)
}
