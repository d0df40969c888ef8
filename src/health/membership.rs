//! Reports this replica's set of keys to the other replicas, and learns their sets.

use std::sync::Arc;

use tokio::time::MissedTickBehavior;

use crate::health::registry::Registry;
use crate::key::generation::Loaded;
use crate::peers::membership::{INTERVAL, KeySet, Member};
use crate::store::Store;
use crate::task::Tasks;

/// This replica as a member, with its set of keys.
pub struct Membership {
    member: Member,
    registry: Arc<Registry>,
}

impl Membership {
    pub fn new(member: Member, registry: Arc<Registry>) -> Self {
        Self { member, registry }
    }

    /// Reports once, then goes on in the background until `tasks` end.
    pub async fn start(
        store: &Arc<Store>,
        registry: &Arc<Registry>,
        name: &str,
        tasks: &Tasks,
    ) -> Arc<Self> {
        let member = Member::new(Arc::clone(store), name.to_owned());
        let membership = Arc::new(Self::new(member, Arc::clone(registry)));
        membership.exchange().await;
        let kept = Arc::clone(&membership);
        tasks.spawn_kept("membership", move || Arc::clone(&kept).run());
        membership
    }

    /// Reports regularly, for as long as the replica lives.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut health = self.member.store_health();
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = health.changed() => {}
            }
            self.exchange().await;
        }
    }

    /// Reports once, and learns the sets of the other replicas.
    pub async fn exchange(&self) {
        let mut exchange = self.member.begin().await;
        let loaded = self.registry.loaded();
        if let Some(reply) = exchange.report(&key_set(&loaded)).await {
            self.registry.take_reply(&loaded, &reply);
        }
    }

    /// Takes `next` into use. The store learns of `next` first: its ordinal is known from the first
    /// turn on, unless the store is away.
    pub async fn introduce(&self, next: Arc<Loaded>) {
        let mut exchange = self.member.begin().await;
        let reply = exchange.report(&key_set(&next)).await;
        self.registry.adopt(next, reply.as_ref());
    }

    /// Tells the other replicas not to wait for this one.
    pub async fn leave(&self) {
        self.member.leave(|| key_set(&self.registry.loaded())).await;
    }
}

fn key_set(loaded: &Arc<Loaded>) -> KeySet {
    KeySet {
        fingerprint: loaded.fingerprint.clone(),
        tags: loaded.tags(),
        ordinal: loaded.ordinal(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex as Lock;

    use std::time::Duration;

    use super::*;
    use crate::key::table::Table;
    use crate::metrics::Metrics;
    use crate::peers::membership::GATHERING;
    use crate::store::model::{Flaw, Model, Shared, Weather};

    const FIRST: &str = "a o 1 sk-a, b o 1 sk-b";
    const SECOND: &str = "a o 1 sk-a, c o 1 sk-c";

    fn store(shared: &Arc<Lock<Shared>>) -> (Model, Arc<Store>) {
        let model = Model::new(shared);
        (model.clone(), Arc::new(Store::in_model(model, Arc::new(Metrics::new()))))
    }

    fn member(store: &Arc<Store>, name: &str) -> Membership {
        let registry = Arc::new(Registry::new(Table::sketch(FIRST), Arc::new(Metrics::new())));
        Membership::new(Member::new(Arc::clone(store), name.into()), registry)
    }

    /// Takes another set into use.
    async fn loads(member: &Membership, sketch: &str) {
        member
            .introduce(member.registry.prepare(Table::sketch(sketch)).expect("it is another set"))
            .await;
    }

    fn ordinal(member: &Membership) -> u32 {
        member.registry.loaded().ordinal()
    }

    #[tokio::test(start_paused = true)]
    async fn replica_that_was_cut_off_renews_nothing_before_others_may_have_answered() {
        let shared = Arc::new(Lock::new(Shared::new(Flaw::None)));
        let (model, store) = store(&shared);
        let member = member(&store, "one");
        member.exchange().await;
        assert_eq!(ordinal(&member), 1);
        loads(&member, SECOND).await;
        assert_eq!(ordinal(&member), 2, "the store learns of the set before it is in use");
        let renewed = || shared.lock().unwrap().ordinal(&member.registry.loaded().fingerprint);
        *model.weather.lock().unwrap() = Weather::Away;
        loads(&member, FIRST).await;
        assert_eq!(ordinal(&member), 0);
        *model.weather.lock().unwrap() = Weather::Fair;
        for pause in [Duration::ZERO, GATHERING - Duration::from_secs(1), Duration::from_secs(1)] {
            tokio::time::advance(pause).await;
            assert_eq!(ordinal(&member), 0, "what is answered so early is not believed");
            member.exchange().await;
            assert_eq!(
                renewed(),
                Some(1),
                "another replica may have the newer set, and answer any moment"
            );
        }
        assert_eq!(ordinal(&member), 1);
        member.exchange().await;
        assert_eq!((ordinal(&member), renewed()), (3, Some(3)), "no other replica is there");
    }

    #[tokio::test(start_paused = true)]
    async fn sets_of_live_replicas_are_received_and_a_replica_that_has_left_reports_none() {
        let shared = Arc::new(Lock::new(Shared::new(Flaw::None)));
        let (_, store) = store(&shared);
        let (one, two) = (member(&store, "one"), member(&store, "two"));
        one.exchange().await;
        two.exchange().await;
        loads(&one, SECOND).await;
        let common = |member: &Membership| {
            let loaded = member.registry.loaded();
            loaded
                .table
                .keys()
                .iter()
                .filter(|key| loaded.is_common(key))
                .map(|key| key.id.as_str())
                .collect::<String>()
        };
        assert_eq!(common(&one), "a", "the other one has not loaded it");
        two.exchange().await;
        assert_eq!(common(&two), "a");
        two.leave().await;
        assert_eq!(shared.lock().unwrap().live(), ["one"]);
        two.exchange().await;
        loads(&two, SECOND).await;
        assert_eq!(shared.lock().unwrap().live(), ["one"], "it says nothing more");
        one.exchange().await;
        assert_eq!(common(&one), "ac");
    }
}
