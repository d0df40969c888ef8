//! Chooses the key for one turn. The key must be loaded and in use, and the turn's client and
//! history must allow its organization.

use std::sync::Arc;
use std::time::Duration;

use crate::binding::demand::Placing;
use crate::binding::record::BindingRecord;
use crate::binding::select::{Reach, first, share};
use crate::error::{Error, ErrorKind};
use crate::health::conditions::Fitness;
use crate::health::registry::Registry;
use crate::key::generation::Loaded;
use crate::key::{Key, Tag};
use crate::session::SessionId;

mod rules;
mod shortage;
mod standing;

use rules::{is_alike, is_allowed, speaks, suits};

pub use shortage::{none_in_use, not_loaded, unknown_project};
pub use standing::Standing;

pub struct Places {
    registry: Arc<Registry>,
}

impl Places {
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry }
    }

    /// The ordinal of this replica's set of keys. 0: not known yet.
    pub fn generation(&self) -> u32 {
        self.registry.loaded().ordinal()
    }

    /// The number of loaded keys.
    pub fn count(&self) -> usize {
        self.registry.loaded().table.keys().len()
    }

    /// Returns the key of `record`, if the key is loaded.
    pub fn key_of(&self, record: &BindingRecord) -> Option<Arc<Key>> {
        // The same name in another organization is another key.
        let loaded = self.registry.loaded();
        loaded
            .table
            .by_tag(record.key)
            .filter(|key| key.organization_tag == record.organization)
            .cloned()
    }

    /// Returns the project that stores the content that turns of `record`'s session refer to.
    pub fn project_of(&self, record: &BindingRecord) -> Reach {
        self.key_of(record).map_or(Reach::Nowhere, |key| Reach::project_of(&key))
    }

    /// Whether the key of `record` is loaded and ready.
    pub fn is_key_ready(&self, record: &BindingRecord, model: &str) -> bool {
        self.key_of(record).is_some_and(|key| self.registry.is_ready(&key, model))
    }

    /// Waits briefly until a probe has decided whether the suspected key of `record` is rejected.
    pub async fn wait_for_probe(&self, record: &BindingRecord) {
        if let Some(key) = self.key_of(record) {
            self.registry.wait_for_probe(&key).await;
        }
    }

    /// Returns the name of an organization, if a key of the organization is loaded.
    pub fn organization(&self, tag: Tag) -> Option<String> {
        let loaded = self.registry.loaded();
        loaded
            .table
            .keys()
            .iter()
            .find(|key| key.organization_tag == tag)
            .map(|key| key.organization.clone())
    }

    /// Returns the key that serves the session's turn in place of its own key. It is the next key
    /// in the session's order within the organization. Keys of the same region and the same dialect
    /// come first, because they read the same cache.
    pub fn sibling(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        record: &BindingRecord,
    ) -> Option<Arc<Key>> {
        let loaded = self.registry.loaded();
        let is_open = |key: &&Arc<Key>| {
            key.organization_tag == record.organization
                && key.tag != record.key
                && is_allowed(placing, key)
        };
        let open: Vec<_> = loaded.table.keys().iter().filter(is_open).collect();
        let own = self.key_of(record);
        let is_like = |key: &Key| own.as_ref().is_none_or(|own| is_alike(placing, own, key));
        let is_near =
            |key: &Key| is_like(key) && own.as_ref().is_none_or(|own| own.region == key.region);
        // Later turns of the session find content that the same project has stored.
        let is_next = |key: &Key| {
            is_near(key) && own.as_ref().is_some_and(|own| own.project_tag == key.project_tag)
        };
        let can = |key: &Key| speaks(placing, key) && self.can_serve(placing, key);
        let nearest = |is: &dyn Fn(&Key) -> bool| {
            first(placing.demand.order(session), &open, |key| is(key) && can(key))
        };
        let is_free = |key: &Key| self.is_free(placing, key);
        nearest(&|key| is_next(key) && is_free(key))
            .or_else(|| nearest(&|key| is_near(key) && is_free(key)))
            .or_else(|| nearest(&is_next))
            .or_else(|| nearest(&is_near))
            .or_else(|| nearest(&is_like))
            .or_else(|| nearest(&|_| true))
            .cloned()
    }

    /// Whether `key` can serve the turn at once, and no turn has waited for it in vain.
    fn is_free(&self, placing: Placing<'_>, key: &Key) -> bool {
        self.is_ready(placing, key) && !self.registry.is_strained(key, placing.demand.model_use())
    }

    /// Whether a sibling that reads the same cache must serve in place of `own`. The sibling is
    /// free, and a turn has waited for `own` in vain.
    pub fn is_relieved(&self, placing: Placing<'_>, own: &Key) -> bool {
        let is_sibling = |key: &&Arc<Key>| {
            key.tag != own.tag
                && key.shares_cache_with(own)
                && is_alike(placing, own, key)
                && placing.within.includes(key)
                && is_allowed(placing, key)
                && speaks(placing, key)
                && self.is_free(placing, key)
        };
        self.registry.is_strained(own, placing.demand.model_use())
            && self.registry.loaded().table.keys().iter().any(|key| is_sibling(&key))
    }

    /// Whether `key` can serve the turn now, or within the time that the turn may still wait.
    fn can_serve(&self, placing: Placing<'_>, key: &Key) -> bool {
        if placing.tried.failed.contains(&key.tag) {
            return false;
        }
        match self.registry.fitness(key, placing.demand.model_use()) {
            Fitness::Ready => true,
            Fitness::Limited(wait) => wait <= placing.tried.wait_left,
            Fitness::Bypassed(_) | Fitness::Dead(_) => false,
        }
    }

    /// Chooses the key of a new session: in the first organization that takes new sessions, the
    /// first key that has headroom.
    pub fn place_new(&self, placing: Placing<'_>, session: &SessionId) -> Result<Arc<Key>, Error> {
        let loaded = self.registry.loaded();
        let allowed = self.common(&loaded, placing, Reach::Anywhere);
        let (order, may_take_new) =
            (placing.demand.order(session), self.may_take_new(session, &allowed));
        let suits = suits(placing, &allowed);
        let is_open = |key: &Key| suits(key) && self.is_ready(placing, key) && may_take_new(key);
        let Some(own) = first(order, &allowed, |key| {
            is_open(key) || suits(key) && self.may_retest(placing, key)
        }) else {
            return self.choose(placing, session, Reach::Anywhere);
        };
        if !self.is_ready(placing, own) {
            return match self.registry.conditions.take_ticket(own) {
                true => Ok(Arc::clone(own)),
                false => self.choose(placing, session, Reach::Anywhere),
            };
        }
        let siblings: Vec<_> = allowed
            .iter()
            .copied()
            .filter(|key| key.organization_tag == own.organization_tag)
            .collect();
        let has_headroom = |key: &Key| {
            !self.registry.is_strained(key, placing.demand.model_use())
                && !self.registry.headrooms.is_scarce(key, placing.demand.model)
                && !self.registry.loads.is_above_share(key, &siblings)
        };
        let key = first(order, &siblings, |key| is_open(key) && has_headroom(key)).unwrap_or(own);
        self.registry.herd.count_new_session(key);
        Ok(Arc::clone(key))
    }

    /// Returns the keys within `reach` that all replicas have loaded.
    fn common<'k>(
        &self,
        loaded: &'k Loaded,
        placing: Placing<'_>,
        reach: Reach,
    ) -> Vec<&'k Arc<Key>> {
        let within: Vec<_> = loaded
            .table
            .keys()
            .iter()
            .filter(|key| reach.includes(key) && is_allowed(placing, key))
            .collect();
        let common: Vec<_> = within.iter().copied().filter(|key| loaded.is_common(key)).collect();
        // If every key is new, a key that some replicas have not loaded yet is better than none.
        if common.is_empty() { within } else { common }
    }

    fn is_ready(&self, placing: Placing<'_>, key: &Key) -> bool {
        !placing.tried.failed.contains(&key.tag)
            && self.registry.is_ready(key, placing.demand.model_use())
    }

    /// Whether the turn may test if the exhausted `key` is still exhausted.
    fn may_retest(&self, placing: Placing<'_>, key: &Key) -> bool {
        !placing.tried.refused.contains(&key.tag) && self.registry.conditions.has_ticket(key)
    }

    /// Chooses the key that a session moves to. Works as [`Self::choose`], but skips keys that too
    /// many sessions are moving to. If that skips all keys, the inner error says how long until the
    /// first choice takes one more session.
    pub fn place_moved(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        reach: Reach,
    ) -> Result<Result<Arc<Key>, Duration>, Error> {
        let loaded = self.registry.loaded();
        let mut allowed = self.common(&loaded, placing, reach);
        let mut first_wait = None;
        let suits = suits(placing, &allowed);
        loop {
            let chosen = first(placing.demand.order(session), &allowed, |key| {
                self.is_ready(placing, key) && suits(key)
            });
            let Some(key) = chosen.cloned() else { break };
            match self.registry.herd.admit(&key) {
                Ok(()) => return Ok(Ok(key)),
                Err(wait) => drop(first_wait.get_or_insert(wait)),
            }
            allowed.retain(|other| other.tag != key.tag);
        }
        match first_wait {
            Some(wait) => Ok(Err(wait)),
            None => self.choose(placing, session, reach).map(Ok),
        }
    }

    /// Returns the session's first choice among the keys within `reach`.
    pub fn choose(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        reach: Reach,
    ) -> Result<Arc<Key>, Error> {
        let loaded = self.registry.loaded();
        let allowed = self.common(&loaded, placing, reach);
        let is_ready = |key: &Key| self.is_ready(placing, key);
        let order = placing.demand.order(session);
        let suits = suits(placing, &allowed);
        let chosen = first(order, &allowed, |key| is_ready(key) && suits(key))
            .or_else(|| first(order, &allowed, is_ready))
            .or_else(|| first(order, &allowed, |key| self.can_serve(placing, key)));
        if let Some(key) = chosen {
            return Ok(Arc::clone(key));
        }
        if let Some(key) = allowed
            .iter()
            .find(|key| placing.within != Reach::Anywhere && self.can_serve(placing, key))
        {
            // A weightless key takes no new sessions, but it may serve turns that refer to content
            // of its project.
            return Ok(Arc::clone(key));
        }
        // No key is left, so one turn may test whether an exhausted key is still exhausted.
        let asked = first(order, &allowed, |key| self.may_retest(placing, key));
        match asked.filter(|key| self.registry.conditions.take_ticket(key)) {
            Some(key) => Ok(Arc::clone(key)),
            None => Err(self.shortage(placing, &allowed)),
        }
    }

    /// Returns a filter for keys that may take this new session. A key that has just recovered
    /// takes only a share of new sessions, unless too many keys have just recovered.
    fn may_take_new<'k>(
        &'k self,
        session: &SessionId,
        allowed: &[&'k Arc<Key>],
    ) -> impl Fn(&Key) -> bool + 'k {
        let number = share(session.as_str());
        let is_ramping = move |key: &Key| self.registry.conditions.ramp(key) <= number;
        let ramping = allowed.iter().filter(|key| is_ramping(key)).count();
        let applies = ramping <= (allowed.len() * 3 / 10).max(1);
        move |key: &Key| !(applies && is_ramping(key))
    }

    /// Whether some key within `reach` can serve the turn.
    pub fn has_any(&self, placing: Placing<'_>, reach: Reach) -> bool {
        let loaded = self.registry.loaded();
        let can = |key: &Arc<Key>| {
            reach.includes(key) && is_allowed(placing, key) && self.can_serve(placing, key)
        };
        loaded.table.keys().iter().any(can)
    }

    /// Returns the key that every replica chooses for the session while the store is away. The
    /// session's order decides, over the set of keys at the moment of loss. What this replica has
    /// learned since counts only within the organization found so. There, keys in use come first:
    /// other replicas reach such a key, too, after one refused attempt.
    pub fn default_of(&self, placing: Placing<'_>, session: &SessionId) -> Result<Arc<Key>, Error> {
        let frozen = self.registry.frozen();
        let Some(chosen) = expected(&frozen, placing, session) else {
            // The client may use no key of that set.
            return self.choose(placing, session, Reach::Anywhere);
        };
        let is_sibling = |key: &&Arc<Key>| key.organization_tag == chosen.organization_tag;
        let siblings: Vec<_> = open_of(&frozen, placing).filter(is_sibling).collect();
        match first(placing.demand.order(session), &siblings, |key| {
            !frozen.is_removed(key) && self.can_serve(placing, key)
        }) {
            Some(key) => Ok(Arc::clone(key)),
            // The organization is provisional, so the client must not see a final error.
            None => self
                .choose(placing, session, Reach::Organization(chosen.organization_tag))
                .map_err(|error| {
                    if error.kind == ErrorKind::InsufficientQuota { none_in_use() } else { error }
                }),
        }
    }

    /// Whether every replica would choose `key` for the session while the store is away, if all
    /// keys were ready.
    pub fn is_default(&self, placing: Placing<'_>, session: &SessionId, key: &Key) -> bool {
        expected(&self.registry.frozen(), placing, session)
            .is_some_and(|default| default.tag == key.tag)
    }

    /// Returns a usable key outside the organizations in `tried`: the session's first choice, or a
    /// weightless key, which may have this session's history.
    pub fn choose_outside(
        &self,
        placing: Placing<'_>,
        session: &SessionId,
        tried: &[Tag],
    ) -> Option<Arc<Key>> {
        let loaded = self.registry.loaded();
        let is_open =
            |key: &&Arc<Key>| !tried.contains(&key.organization_tag) && is_allowed(placing, key);
        let allowed: Vec<_> = loaded.table.keys().iter().filter(is_open).collect();
        let can = |key: &Key| self.can_serve(placing, key);
        let chosen = first(placing.demand.order(session), &allowed, can);
        chosen.or_else(|| allowed.iter().copied().find(|key| can(key))).cloned()
    }

    /// Returns the key with the lowest load, for a turn without a session.
    pub fn by_load(&self, placing: Placing<'_>) -> Result<Arc<Key>, Error> {
        let loaded = self.registry.loaded();
        let takes = |key: &Key| {
            (key.weight > 0 || placing.within != Reach::Anywhere) && is_allowed(placing, key)
        };
        let allowed: Vec<_> = loaded.table.keys().iter().filter(|key| takes(key)).collect();
        let candidates = allowed.iter().copied().filter(|key| self.can_serve(placing, key));
        self.registry
            .loads
            .least(candidates)
            .cloned()
            .ok_or_else(|| self.shortage(placing, &allowed))
    }
}

/// Returns the keys of `frozen` that form the order of a session while the store is away.
fn open_of<'f>(frozen: &'f Loaded, placing: Placing<'f>) -> impl Iterator<Item = &'f Arc<Key>> {
    frozen.table.keys().iter().filter(move |key| frozen.is_common(key) && is_allowed(placing, key))
}

/// Returns the first key of [`open_of`] that still exists, healthy or not.
fn expected<'f>(
    frozen: &'f Loaded,
    placing: Placing<'f>,
    session: &SessionId,
) -> Option<&'f Arc<Key>> {
    first(placing.demand.order(session), &open_of(frozen, placing).collect::<Vec<_>>(), |key| {
        !frozen.is_removed(key)
    })
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod within;
