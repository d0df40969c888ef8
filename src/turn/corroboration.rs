//! Believes a denied model, or a 401 that no probe has decided, only once two clients have reported
//! it.
//!
//! One client's answers prove nothing: the client may ask for a model that no project has, or for
//! something that no key may do. If the key then serves a turn, earlier reports are void.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::binding::demand::Demand;
use crate::client::ClientId;
use crate::health::condition::Subject;
use crate::health::diagnose::Scope;
use crate::health::registry::Registry;
use crate::key::Key;

/// Time for which one client's report waits for another client's.
const MEMORY: Duration = Duration::from_secs(60);
/// Most reports that are kept. The number is limited because clients name the models.
const MOST: usize = 1_000;

#[derive(Default)]
pub struct Corroboration(Mutex<HashMap<Subject, (ClientId, Instant)>>);

impl Corroboration {
    /// Reports that the client of `demand` was denied the model in the key's project. Once two
    /// clients report it, the project counts as having no access to the model.
    pub fn report(&self, registry: &Registry, key: &Key, demand: &Demand<'_>) {
        if self.is_second(Subject::model(key, demand.model), &demand.client.id, Instant::now()) {
            registry.deny(key, demand.model);
        }
    }

    /// Reports that the client of `demand` met a 401 that no probe has decided. Returns whether
    /// another client has met the same.
    pub fn report_doubt(&self, key: &Key, doubted: Scope, demand: &Demand<'_>) -> bool {
        self.is_second(Subject::of(key, doubted), &demand.client.id, Instant::now())
    }

    /// Notes that `key` has served the turn `demand`, which began at `began`: reports from before
    /// were not about the key.
    pub fn has_served(&self, registry: &Registry, key: &Key, demand: &Demand<'_>, began: Instant) {
        registry.has_served(key, began);
        self.refute(key, demand.model, began);
    }

    fn refute(&self, key: &Key, model: &str, began: Instant) {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if reports.is_empty() {
            return;
        }
        let (own, organization) =
            (Subject::of(key, Scope::Key), Subject::of(key, Scope::Organization));
        for subject in [own, organization, Subject::model(key, model)] {
            if reports.get(&subject).is_some_and(|(_, at)| *at <= began) {
                reports.remove(&subject);
            }
        }
    }

    fn is_second(&self, subject: Subject, client: &ClientId, now: Instant) -> bool {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_second =
            reports.get(&subject).is_some_and(|(first, at)| first != client && now - *at < MEMORY);
        if !is_second {
            if reports.len() >= MOST {
                reports.retain(|_, (_, at)| now - *at < MEMORY);
            }
            if reports.len() < MOST {
                reports.insert(subject, (client.clone(), now));
            }
        }
        is_second
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Client;
    use crate::key::Tag;

    #[test]
    fn denial_counts_once_two_clients_report_it() {
        let (corroboration, now) = (Corroboration::default(), Instant::now());
        let subject =
            |model: &[u8]| Subject::Model(Tag::of("project", b"p"), Tag::of("model", model));
        let [alice, bob] = ["alice", "bob"].map(|id| Client::unrestricted(id).id);
        assert!(
            !corroboration.is_second(subject(b"m"), &alice, now)
                && !corroboration.is_second(subject(b"m"), &alice, now)
        );
        assert!(!corroboration.is_second(subject(b"n"), &bob, now), "a report about another model");
        assert!(corroboration.is_second(subject(b"m"), &bob, now));
        assert!(
            !corroboration.is_second(subject(b"m"), &bob, now + MEMORY),
            "the first report has expired"
        );
    }

    #[test]
    fn reports_are_kept_for_a_while_and_limited() {
        let (corroboration, now) = (Corroboration::default(), Instant::now());
        let subject = |number: usize| {
            Subject::Model(Tag::of("project", b"p"), Tag::of("model", &number.to_be_bytes()))
        };
        let [alice, bob] = ["alice", "bob"].map(|id| Client::unrestricted(id).id);
        for number in 0..=MOST {
            assert!(!corroboration.is_second(subject(number), &alice, now));
        }
        let kept = || corroboration.0.lock().unwrap().len();
        assert_eq!(kept(), MOST);
        assert!(!corroboration.is_second(subject(MOST), &bob, now), "the first report did not fit");
        assert!(corroboration.is_second(subject(MOST - 1), &bob, now + MEMORY - MEMORY / 60));
        assert!(
            !corroboration.is_second(subject(MOST), &alice, now + MEMORY),
            "expired reports are dropped"
        );
        assert!(corroboration.is_second(subject(MOST), &bob, now + MEMORY) && kept() == 1);
    }

    #[test]
    fn service_since_a_report_refutes_it() {
        let gateway = crate::turn::tests::gateway(&[("a", "o", "p"), ("b", "o", "q")]);
        let loaded = gateway.registry.loaded();
        let [key, other] = [0, 1].map(|number| &loaded.table.keys()[number]);
        let [alice, bob] = ["alice", "bob"].map(|id| Client::unrestricted(id).id);
        let (earlier, reported) = (Instant::now(), Instant::now() + MEMORY / 4);
        let later = reported + MEMORY / 4;
        let of_key = Subject::of(key, Scope::Key);
        let of_model = Subject::model(key, "m");
        for (by, model, began, refutes_key, refutes_model) in [
            (key, "m", later, true, true),
            (key, "n", later, true, false),
            (key, "m", earlier, false, false),
            (other, "m", later, false, false),
        ] {
            let corroboration = Corroboration::default();
            for subject in [of_key, of_model] {
                assert!(!corroboration.is_second(subject, &alice, reported));
            }
            corroboration.refute(by, model, began);
            let is_second = |subject| corroboration.is_second(subject, &bob, later);
            assert_eq!(is_second(of_key), !refutes_key, "{} {model}", by.id);
            assert_eq!(is_second(of_model), !refutes_model, "{} {model}", by.id);
        }
    }
}
