//! Judges a stored binding for one turn: its key serves, is bypassed, is dead, or belongs to a
//! project that the turn may not use.

use std::sync::Arc;

use crate::binding::demand::Placing;
use crate::binding::record::BindingRecord;
use crate::binding::select::Reach;
use crate::health::conditions::{Fitness, Why};
use crate::key::Key;
use crate::metrics::Reason;

use super::{Places, is_allowed};

/// How this replica judges a stored binding.
pub enum Standing {
    Ready(Arc<Key>),
    /// The key cannot serve this turn; the session stays bound to it.
    Bypassed(Reason),
    /// The key can serve no more.
    Dead(Reason),
    /// The key belongs to a project that this turn may not use.
    OtherProject,
}

impl From<Why> for Reason {
    fn from(why: Why) -> Self {
        match why {
            Why::Disabled => Self::Disabled,
            Why::Drained => Self::Drained,
            Why::Suspected => Self::Suspected,
            Why::Rejected => Self::Rejected,
            Why::Incident => Self::Incident,
            Why::ExhaustedProject | Why::ExhaustedOrganization => Self::Exhausted,
            Why::NoAccess => Self::NoAccess,
        }
    }
}

impl Places {
    pub fn standing(&self, placing: Placing<'_>, record: &BindingRecord) -> Standing {
        self.judge(placing, record, |key| self.may_try(placing, record, key))
    }

    /// Judges the binding for a later turn, which tests no key now.
    pub fn standing_later(&self, placing: Placing<'_>, record: &BindingRecord) -> Standing {
        self.judge(placing, record, |_| false)
    }

    /// `tries` says whether the turn tests a dead key.
    fn judge(
        &self,
        placing: Placing<'_>,
        record: &BindingRecord,
        tries: impl FnOnce(&Key) -> bool,
    ) -> Standing {
        let (generation, key) = (self.generation(), self.key_of(record));
        if !key
            .as_ref()
            .map_or(placing.within.touches(record.organization), |key| placing.within.includes(key))
        {
            return Standing::OtherProject;
        }
        match key {
            Some(key) if !is_allowed(placing, &key) => Standing::Dead(Reason::NotAllowed),
            Some(key) if placing.tried.failed.contains(&key.tag) => {
                Standing::Bypassed(Reason::Failed)
            }
            Some(key) => self.standing_of(placing, record, key, tries),
            // Only a replica of the same or a newer generation may call a key removed. Generation 0
            // is unknown and says neither.
            None if generation == 0 || record.generation == 0 || record.generation > generation => {
                self.registry.wants_reload();
                Standing::Bypassed(Reason::NotLoaded)
            }
            None => Standing::Dead(Reason::Removed),
        }
    }

    /// Returns the reason why no key serves the turn in place of `record`'s key.
    pub fn reason(&self, placing: Placing<'_>, record: &BindingRecord) -> Reason {
        match self.key_of(record) {
            None => Reason::NotLoaded,
            Some(key) if !is_allowed(placing, &key) => Reason::NotAllowed,
            Some(key) => match self.registry.fitness(&key, placing.demand.model_use()) {
                Fitness::Bypassed(why) | Fitness::Dead(why) => why.into(),
                Fitness::Limited(_) => Reason::Limited,
                Fitness::Ready => Reason::Failed,
            },
        }
    }

    fn standing_of(
        &self,
        placing: Placing<'_>,
        record: &BindingRecord,
        key: Arc<Key>,
        tries: impl FnOnce(&Key) -> bool,
    ) -> Standing {
        match self.registry.fitness(&key, placing.demand.model_use()) {
            // The binding stays, and siblings of the same cache serve until the key is well.
            Fitness::Ready | Fitness::Limited(_) if self.is_relieved(placing, &key) => {
                Standing::Bypassed(Reason::Limited)
            }
            Fitness::Ready => Standing::Ready(key),
            Fitness::Limited(wait) if wait <= placing.tried.wait_left => Standing::Ready(key),
            Fitness::Limited(_) => Standing::Bypassed(Reason::Limited),
            // If no key has access, the client receives the upstream's own answer.
            Fitness::Bypassed(why) => Standing::Bypassed(why.into()),
            Fitness::Dead(_) if tries(&key) => Standing::Ready(key),
            // For a sealed session, an exhausted project is only a shortage: its organization can
            // still serve the session, and its key will later.
            Fitness::Dead(why @ Why::ExhaustedProject)
                if placing.reach(record) != Reach::Anywhere =>
            {
                Standing::Bypassed(why.into())
            }
            Fitness::Dead(why) => Standing::Dead(why.into()),
        }
    }

    /// Whether the turn may test if the dead `key` is still out of use. A turn tests it if it holds
    /// the ticket for all turns, or if another replica moved the session to it.
    fn may_try(&self, placing: Placing<'_>, record: &BindingRecord, key: &Key) -> bool {
        let is_fresh = !placing.tried.refused.contains(&key.tag);
        is_fresh
            && (self.registry.conditions.take_ticket(key)
                || record.epoch > 1 && self.registry.conditions.may_try(key))
    }
}
