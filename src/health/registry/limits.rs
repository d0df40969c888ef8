//! Records what limits a key's use of a model: rate limits, vain waits for them, and models that
//! the project may not use.

use std::time::Duration;

use super::Registry;
use crate::health::condition::{Condition, Subject};
use crate::health::diagnose::{Judgement, ModelUse, Shortage, judge_failure};
use crate::key::Key;
use crate::limit::wait_or_usual;
use crate::wire::error_body::ErrorBody;

impl Registry {
    /// Whether siblings of the same cache serve in place of `key`, because a turn has waited for a
    /// limit of the key in vain.
    pub fn is_strained<'a>(&self, key: &Key, asked: impl Into<ModelUse<'a>>) -> bool {
        let asked = asked.into();
        !self.conditions.is_empty()
            && [Some(Subject::model(key, asked.model)), Subject::tier(key, asked)]
                .into_iter()
                .flatten()
                .any(|subject| self.conditions.is(subject, Condition::Strained))
    }

    /// Notes that a turn has waited for a limit of `key` in vain.
    pub fn strain(&self, key: &Key, asked: ModelUse<'_>) {
        let (subject, strained) = (Subject::of_use(key, asked), Condition::Strained);
        if self.conditions.note(subject, strained, strained.life()) {
            tracing::info!(key = %key.id, project = %key.project, "limited again after a wait");
            self.has_changed();
        }
    }

    /// Takes the failure of an answer that had begun well. If it limits the key, returns for how
    /// long.
    pub fn observe_failure(
        &self,
        key: &Key,
        asked: ModelUse<'_>,
        failure: &ErrorBody,
    ) -> Option<Duration> {
        if key.upstream.host.is_gateway() {
            // The failure is that of a key behind the other gateway.
            return None;
        }
        let mut failure = failure.clone();
        failure.rename_model(asked.model, key.upstream.host.name_of(asked.model));
        let judgement = judge_failure(asked, &failure);
        match judgement {
            Judgement::Model(Shortage::Limited(wait)) | Judgement::Tier(wait) => {
                let wait = wait_or_usual(wait);
                self.limit(key, asked, wait);
                Some(wait)
            }
            _ => {
                if let Some(ailment) = judgement.ailment() {
                    self.observe(key, ailment);
                }
                None
            }
        }
    }

    /// Notes that the project of `key` is rate-limited for this use of a model, for this long.
    /// Without a configured project the limit is the key's, until a second key of the organization
    /// meets it at the same time.
    pub fn limit<'a>(&self, key: &Key, asked: impl Into<ModelUse<'a>>, wait: Duration) {
        let asked = asked.into();
        let mut is_new =
            self.conditions.note(Subject::of_use(key, asked), Condition::Limited, Some(wait));
        if let Some(shared) = Subject::shared_model(key, asked.model)
            && asked.tier.is_none()
            && self.has_limited_twin(key, asked)
        {
            is_new |= self.conditions.note(shared, Condition::Limited, Some(wait));
        }
        if is_new {
            let seconds = wait.as_secs_f64();
            tracing::info!(key = %key.id, project = %key.project, seconds, "cooling");
            self.has_changed();
        }
    }

    /// Whether another key of the organization that has no project either is limited, too.
    fn has_limited_twin(&self, key: &Key, asked: ModelUse<'_>) -> bool {
        self.loaded().table.keys().iter().any(|other| {
            other.tag != key.tag
                && !other.is_shown_like(key)
                && other.project_tag == key.project_tag
                && self.conditions.is(Subject::model(other, asked.model), Condition::Limited)
        })
    }

    /// Notes that the project of `key` may not use `model`, because a second client has met the
    /// refusal.
    pub fn deny(&self, key: &Key, model: &str) {
        let denied = Condition::NoAccess;
        if self.conditions.note(Subject::model(key, model), denied, denied.life()) {
            tracing::warn!(key = %key.id, project = %key.project, "may not use a model");
            self.has_changed();
        }
    }
}
