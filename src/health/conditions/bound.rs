//! Bounds the conditions of one project's models, because clients name models freely.
//!
//! An upstream may limit each model that a client invents, for as long as it likes. Every replica
//! keeps each condition, and the board does, too. Beyond the bound, the oldest condition of the
//! project gives way on all replicas: the turns that it would have spared meet the limit by
//! themselves. The oldest one goes, and not the one that ends soonest, since invented models may be
//! limited for longer than real ones.

use std::collections::HashMap;

use tokio::time::Instant;

use crate::health::condition::Place;
use crate::health::conditions::{Entry, Known};
use crate::key::Tag;
use crate::store::board::Note;

/// Most conditions of one project's models and tiers.
pub const MOST: usize = 64;

/// What goes first: what is over, and then the oldest.
fn rank(entry: &Entry, now: Instant) -> (bool, Instant) {
    (!entry.is_over(now), entry.since)
}

impl Known {
    /// Makes room for a condition at `place`, which may be new.
    pub(super) fn make_room(&mut self, place: Place, now: Instant) {
        let Some(project) = place.0.project_of_model() else { return };
        if self.entries.contains_key(&place) {
            return;
        }
        let is_own = |(other, _): &(&Place, &Entry)| other.0.project_of_model() == Some(project);
        let own = self.entries.iter().filter(is_own);
        if own.clone().count() < MOST {
            return;
        }
        let first = own.min_by_key(|(_, entry)| rank(entry, now)).map(|(first, _)| *first);
        if let Some(first) = first {
            self.evict(first);
        }
    }

    /// Drops what is beyond the bound, after other replicas' conditions were learnt. Returns
    /// whether that must be reported.
    pub(super) fn evict_excess(&mut self, now: Instant) -> bool {
        let mut projects: HashMap<Tag, Vec<_>> = HashMap::new();
        for (place, entry) in &self.entries {
            if let Some(project) = place.0.project_of_model() {
                projects.entry(project).or_default().push((rank(entry, now), *place));
            }
        }
        projects.retain(|_, own| own.len() > MOST);
        for own in projects.values_mut() {
            own.sort_unstable_by_key(|(rank, _)| *rank);
            for (_, place) in &own[..own.len() - MOST] {
                self.evict(*place);
            }
        }
        !projects.is_empty()
    }

    /// Drops the condition at `place`, here and on the board if it is there.
    fn evict(&mut self, place: Place) {
        let is_on_board = self.entries.remove(&place).is_some_and(|entry| entry.stamp > 0);
        self.unreported.remove(&place);
        if is_on_board {
            self.unreported.insert(place, (Note::over(place.to_string()), Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::condition::{Class, Condition, Subject};
    use crate::health::conditions::{Conditions, Fitness};
    use crate::health::diagnose::{ModelUse, Scope};
    use crate::key::Key;
    use crate::key::table::Table;
    use crate::store::board::{BoardReport, LocalBoard};
    use std::time::Duration;

    const HOUR: Duration = Duration::from_secs(3_600);
    const STEP: Duration = Duration::from_millis(1);

    /// Limits `key`'s use of each of `models`, one after the other.
    async fn limit(on: &Conditions, key: &Key, models: impl Iterator<Item = String>) {
        for model in models {
            tokio::time::advance(STEP).await;
            on.note(Subject::model(key, &model), Condition::Limited, Some(HOUR));
        }
    }

    fn named(range: std::ops::Range<usize>) -> impl Iterator<Item = String> {
        range.map(|number| format!("m{number}"))
    }

    fn is_limited(on: &Conditions, key: &Key, model: &str) -> bool {
        matches!(on.fitness(key, model), Fitness::Limited(_))
    }

    fn sizes(on: &Conditions) -> (usize, usize) {
        let known = on.read();
        (known.entries.len(), known.unreported.len())
    }

    /// Exchanges once. Returns how many notes the board holds then.
    fn exchange(one: &Conditions, board: &mut LocalBoard) -> usize {
        let (seen, notes) = one.report();
        let (life, load) = (Duration::from_secs(5), "");
        let report = BoardReport { replica: "r", life, load, seen, notes: &notes };
        one.learn(&notes, &board.exchange(&report));
        let judge = BoardReport { replica: "r", life, load, seen: 0, notes: &[] };
        board.exchange(&judge).notes.len()
    }

    #[tokio::test(start_paused = true)]
    async fn models_that_a_client_invents_are_bounded_and_spare_all_else() {
        let table = Table::sketch("a o 1 sk-a, b q 1 sk-b");
        let [key, other] = table.keys() else { panic!("two keys") };
        let conditions = Conditions::default();
        let rejected = Condition::Rejected;
        conditions.note(Subject::of(other, Scope::Key), rejected, rejected.life());
        limit(&conditions, other, ["real".to_owned()].into_iter()).await;
        for number in 0..1_000 {
            limit(&conditions, key, named(number..number + 1)).await;
            // The store is away: nothing is reported.
            let (entries, unreported) = sizes(&conditions);
            assert!(entries <= MOST + 2 && unreported <= MOST + 2, "{entries}, {unreported}");
            assert!(is_limited(&conditions, key, &format!("m{number}")), "{number} is known");
        }
        let known = named(0..1_000).filter(|model| is_limited(&conditions, key, model));
        assert_eq!(known.collect::<Vec<_>>(), named(1_000 - MOST..1_000).collect::<Vec<_>>());
        assert!(is_limited(&conditions, key, "m999") && !is_limited(&conditions, key, "n"));
        // A tier counts as a model.
        let tier = Subject::of_use(key, ModelUse::new("m999", Some("priority")));
        conditions.note(tier, Condition::Limited, Some(HOUR));
        assert_eq!(sizes(&conditions).0, MOST + 2);
        assert!(!is_limited(&conditions, key, &format!("m{}", 1_000 - MOST)));
        // A condition that is renewed takes no other's place.
        conditions.note(Subject::model(key, "m999"), Condition::Limited, Some(HOUR * 2));
        assert!(is_limited(&conditions, key, &format!("m{}", 1_001 - MOST)));
        assert!(conditions.is(Subject::of(other, Scope::Key), rejected));
        let real = Subject::model(other, "real");
        assert!(conditions.is(real, Condition::Limited), "another project has its own bound");
    }

    #[tokio::test(start_paused = true)]
    async fn board_stays_bounded_whichever_replica_meets_the_models() {
        let table = Table::sketch("a o 1 sk-a, b q 1 sk-b");
        let [key, other] = table.keys() else { panic!("two keys") };
        let (one, two) = (Conditions::default(), Conditions::default());
        let mut board = LocalBoard::default();
        limit(&one, other, ["real".to_owned()].into_iter()).await;
        for round in 0..20 {
            limit(&one, key, named(round * 20..round * 20 + 10)).await;
            limit(&two, key, named(round * 20 + 10..round * 20 + 20)).await;
            for each in [&one, &two] {
                // What both have met since the last exchange comes on top.
                let notes = exchange(each, &mut board);
                assert!(notes <= MOST + 1 + 20, "{notes} in round {round}");
            }
        }
        for each in [&one, &two, &one] {
            exchange(each, &mut board);
        }
        // Each replica may evict what the other one has kept, so that fewer may be left.
        let notes = exchange(&two, &mut board);
        assert!((MOST / 2..=MOST + 1).contains(&notes), "{notes}");
        for each in [&one, &two] {
            assert_eq!(sizes(each), (notes, 0));
            assert!(is_limited(each, other, "real") && is_limited(each, key, "m399"));
        }
    }

    /// An earlier version has no bound.
    #[tokio::test(start_paused = true)]
    async fn crowded_board_is_learnt_within_the_bound_and_thinned_out() {
        let table = Table::sketch("a o 1 sk-a");
        let key = &table.keys()[0];
        let mut board = LocalBoard::default();
        for model in named(0..1_000) {
            tokio::time::advance(STEP).await;
            let name = Place(Subject::model(key, &model), Class::Illness).to_string();
            let note = Note { name, value: "limited".into(), life: Some(HOUR), stamp: 0 };
            let (life, load) = (Duration::ZERO, "");
            let notes = std::slice::from_ref(&note);
            board.exchange(&BoardReport { replica: "old", life, load, seen: 0, notes });
        }
        let one = Conditions::default();
        assert_eq!(exchange(&one, &mut board), 1_000);
        assert_eq!(sizes(&one), (MOST, 1_000 - MOST));
        assert!(is_limited(&one, key, "m999") && !is_limited(&one, key, "m0"));
        assert_eq!(exchange(&one, &mut board), MOST);
        exchange(&one, &mut board);
        assert_eq!(sizes(&one), (MOST, 0));
    }
}
