//! The store of one process: bounded maps with the same operations as Redis.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::backend::{Backend, Change, Merge, Pending};
use super::board::{self, Board, BoardReport};
use super::expiring::Expiring;
use super::name::Name;
use super::trail::LONGEST;
use super::{Budget, MemberReport, MembershipReply, Replaced, StoredValue};

/// Bounded maps of values and trails that expire.
pub struct Memory {
    bindings: Mutex<Expiring<String>>,
    /// Values of threads, responses, items and probes. They may far outnumber bindings, so they
    /// have a map of their own and evict no binding.
    beside: Mutex<Expiring<String>>,
    /// The promises of last turns: as many as bindings. Promises evict nothing but promises.
    promises: Mutex<Expiring<String>>,
    trails: Mutex<Expiring<Vec<String>>>,
    board: Mutex<board::LocalBoard>,
}

impl Memory {
    pub fn new(capacity: usize) -> Self {
        let map = || Mutex::new(Expiring::new(capacity));
        let trails = Mutex::new(Expiring::new(capacity));
        Self {
            bindings: map(),
            beside: map(),
            promises: map(),
            trails,
            board: Mutex::new(board::LocalBoard::default()),
        }
    }

    pub fn get(&self, name: Name<'_>) -> Option<StoredValue> {
        let (entries, id) = self.lock(name);
        let (value, expiry) = entries.get(&id)?;
        Some(StoredValue {
            value: value.clone(),
            left: expiry.saturating_duration_since(Instant::now()),
        })
    }

    pub fn put(&self, name: Name<'_>, value: &str, ttl: Duration) {
        let (mut entries, id) = self.lock(name);
        entries.put(&id, value.to_owned(), ttl);
    }

    pub fn claim(&self, name: Name<'_>, value: &str, ttl: Duration) -> Option<String> {
        let (mut entries, id) = self.lock(name);
        let stored = entries.get(&id).map(|(value, _)| value.clone());
        if stored.is_none() {
            entries.put(&id, value.to_owned(), ttl);
        }
        stored
    }

    pub fn replace(&self, name: Name<'_>, expected: &str, new: &str, ttl: Duration) -> Replaced {
        let (mut entries, id) = self.lock(name);
        match entries.get(&id) {
            Some((stored, _)) if stored != expected => Replaced::Lost(stored.clone()),
            _ => {
                entries.put(&id, new.to_owned(), ttl);
                Replaced::Done
            }
        }
    }

    pub fn merge(&self, name: Name<'_>, value: &str, epoch: u32, ttl: Duration) -> Option<String> {
        let (mut entries, id) = self.lock(name);
        let stored = entries
            .get(&id)
            .filter(|(stored, _)| epoch_of(stored) >= epoch)
            .map(|(stored, _)| stored.clone());
        if stored.is_none() {
            entries.put(&id, value.to_owned(), ttl);
        }
        stored
    }

    pub fn extend(&self, name: Name<'_>, value: &str, ttl: Duration) {
        let (mut entries, id) = self.lock(name);
        let value = entries.get(&id).map_or(value, |(stored, _)| stored).to_owned();
        entries.put(&id, value, ttl);
    }

    pub fn exchange_board(&self, report: &BoardReport<'_>) -> Board {
        // A panic cannot leave a note half written.
        self.board.lock().unwrap_or_else(PoisonError::into_inner).exchange(report)
    }

    pub fn append(&self, session: &str, lines: &[String], ttl: Duration) {
        // A panic cannot leave a trail half written.
        let mut trails = self.trails.lock().unwrap_or_else(PoisonError::into_inner);
        let mut trail = trails.get(session).map(|(trail, _)| trail.clone()).unwrap_or_default();
        trail.extend_from_slice(lines);
        trail.drain(..trail.len().saturating_sub(LONGEST));
        trails.put(session, trail, ttl);
    }

    pub fn list(&self, session: &str) -> Vec<String> {
        let trails = self.trails.lock().unwrap_or_else(PoisonError::into_inner);
        trails.get(session).map(|(trail, _)| trail.clone()).unwrap_or_default()
    }

    #[cfg(test)]
    pub fn forget_board(&self) {
        self.board.lock().unwrap().forget();
    }

    #[cfg(test)]
    pub fn remove(&self, name: Name<'_>) {
        let (mut entries, id) = self.lock(name);
        entries.remove(&id);
    }

    /// Locks the map that holds `name`. Returns the map and the id in it.
    fn lock<'n>(&self, name: Name<'n>) -> (MutexGuard<'_, Expiring<String>>, Cow<'n, str>) {
        let (entries, id) = match name {
            Name::Binding(session) => (&self.bindings, session.into()),
            Name::Promise(id) => (&self.promises, id.into()),
            other => (&self.beside, other.to_string().into()),
        };
        // A panic cannot leave an entry half written, because no write panics between the map and
        // its order.
        (entries.lock().unwrap_or_else(PoisonError::into_inner), id)
    }
}

/// Returns the second word of a value, the epoch. Only a newer version writes a value without an
/// epoch, so that value wins.
fn epoch_of(value: &str) -> u32 {
    value.split(' ').nth(1).and_then(|epoch| epoch.parse().ok()).unwrap_or(u32::MAX)
}

/// The memory of one process as a store, which always answers.
pub struct InProcess {
    memory: Arc<Memory>,
    up: watch::Sender<bool>,
}

impl InProcess {
    pub fn new(memory: Arc<Memory>) -> Self {
        Self { memory, up: watch::Sender::new(true) }
    }
}

/// An immediate answer.
fn at_once<'a, T: Send + 'a>(answer: T) -> Pending<'a, T> {
    Box::pin(std::future::ready(Ok(answer)))
}

impl Backend for InProcess {
    fn get<'a>(&'a self, name: Name<'a>, _: &'a mut Budget) -> Pending<'a, Option<StoredValue>> {
        at_once(self.memory.get(name))
    }

    fn put<'a>(
        &'a self,
        name: Name<'a>,
        value: &'a str,
        ttl: Duration,
        _: &'a mut Budget,
    ) -> Pending<'a, ()> {
        self.memory.put(name, value, ttl);
        at_once(())
    }

    fn claim<'a>(
        &'a self,
        name: Name<'a>,
        value: &'a str,
        ttl: Duration,
        _: &'a mut Budget,
    ) -> Pending<'a, Option<String>> {
        at_once(self.memory.claim(name, value, ttl))
    }

    fn replace<'a>(
        &'a self,
        name: Name<'a>,
        change: Change<'a>,
        _: &'a mut Budget,
    ) -> Pending<'a, Replaced> {
        at_once(self.memory.replace(name, change.expected, change.new, change.ttl))
    }

    fn extend<'a>(
        &'a self,
        name: Name<'a>,
        value: &'a str,
        ttl: Duration,
        _: &'a mut Budget,
    ) -> Pending<'a, ()> {
        self.memory.extend(name, value, ttl);
        at_once(())
    }

    fn merge<'a>(
        &'a self,
        name: Name<'a>,
        merge: Merge<'a>,
        _: &'a mut Budget,
    ) -> Pending<'a, Option<String>> {
        at_once(self.memory.merge(name, merge.value, merge.epoch, merge.ttl))
    }

    fn begin<'a>(
        &'a self,
        name: Name<'a>,
        merge: Merge<'a>,
        _: &'a mut Budget,
    ) -> Pending<'a, Option<String>> {
        at_once(self.memory.claim(name, merge.value, merge.ttl))
    }

    fn append<'a>(
        &'a self,
        session: &'a str,
        lines: &'a [String],
        ttl: Duration,
        _: &'a mut Budget,
    ) -> Pending<'a, ()> {
        self.memory.append(session, lines, ttl);
        at_once(())
    }

    fn list<'a>(&'a self, session: &'a str, _: &'a mut Budget) -> Pending<'a, Vec<String>> {
        at_once(self.memory.list(session))
    }

    /// All replicas of one process share one configuration, so no other set of keys exists.
    fn exchange_membership<'a>(
        &'a self,
        _: &'a MemberReport<'a>,
        _: bool,
        _: &'a mut Budget,
    ) -> Pending<'a, MembershipReply> {
        at_once(MembershipReply { ordinal: 1, others: Vec::new() })
    }

    fn exchange_board<'a>(
        &'a self,
        report: &'a BoardReport<'a>,
        _: &'a mut Budget,
    ) -> Pending<'a, Board> {
        at_once(self.memory.exchange_board(report))
    }

    fn health(&self) -> watch::Receiver<bool> {
        self.up.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(start_paused = true)]
    async fn claim_has_one_winner_until_it_expires() {
        let memory = Memory::new(8);
        assert_eq!(memory.claim(Name::Binding("s"), "a", HOUR), None);
        assert_eq!(memory.claim(Name::Binding("s"), "b", HOUR), Some("a".into()));
        tokio::time::advance(HOUR).await;
        assert_eq!(memory.get(Name::Binding("s")), None);
        assert_eq!(memory.claim(Name::Binding("s"), "b", HOUR), None);
    }

    #[tokio::test(start_paused = true)]
    async fn values_beside_bindings_evict_no_binding() {
        let memory = Memory::new(8);
        memory.claim(Name::Binding("s"), "a", HOUR);
        (0..50)
            .for_each(|number| drop(memory.claim(Name::Response(&number.to_string()), "b", HOUR)));
        assert_eq!(memory.get(Name::Binding("s")).map(|entry| entry.value), Some("a".into()));
        (0..50).for_each(|number| memory.put(Name::Promise(&number.to_string()), "c", HOUR));
        assert_eq!(memory.get(Name::Binding("s")).map(|entry| entry.value), Some("a".into()));
        memory.put(Name::Promise("49"), "d", HOUR);
        assert_eq!(memory.get(Name::Promise("49")).map(|entry| entry.value), Some("d".into()));
        assert!(
            memory.get(Name::Response("49")).is_some() && memory.get(Name::Response("0")).is_none()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn replacement_names_the_replaced_value() {
        let memory = Memory::new(8);
        memory.claim(Name::Binding("s"), "a", HOUR);
        assert_eq!(memory.replace(Name::Binding("s"), "x", "b", HOUR), Replaced::Lost("a".into()));
        assert_eq!(memory.replace(Name::Binding("s"), "a", "b", HOUR), Replaced::Done);
        assert_eq!(memory.replace(Name::Binding("gone"), "a", "b", HOUR), Replaced::Done);
    }

    #[tokio::test(start_paused = true)]
    async fn merge_lowers_no_epoch() {
        let memory = Memory::new(8);
        assert_eq!(memory.merge(Name::Binding("s"), "a 2 1", 2, HOUR), None);
        assert_eq!(memory.merge(Name::Binding("s"), "b 1 1", 1, HOUR), Some("a 2 1".into()));
        assert_eq!(memory.merge(Name::Binding("s"), "b 2 1", 2, HOUR), Some("a 2 1".into()));
        assert_eq!(memory.merge(Name::Binding("s"), "b 3 1", 3, HOUR), None);
        for newer in ["unknown", "a x 1", "a -1 1", ""] {
            memory.replace(
                Name::Binding("newer"),
                &memory.get(Name::Binding("newer")).map(|entry| entry.value).unwrap_or_default(),
                newer,
                HOUR,
            );
            assert_eq!(
                memory.merge(Name::Binding("newer"), "b 3 1", 3, HOUR),
                Some(newer.into()),
                "a newer version wins"
            );
        }
        for (stored, merged) in [(9, 10), (10, 9), (2, 10), (10, 2), (99, 100), (100, 99), (10, 10)]
        {
            let [old, new] = [stored, merged].map(|epoch| format!("key {epoch} 1"));
            memory.merge(Name::Binding(&old), &old, stored, HOUR);
            let stays = (merged <= stored).then(|| old.clone());
            assert_eq!(
                memory.merge(Name::Binding(&old), &new, merged, HOUR),
                stays,
                "{merged} over {stored}"
            );
            memory.remove(Name::Binding(&old));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn trail_keeps_its_newest_lines_for_a_time() {
        let memory = Memory::new(8);
        let lines = |range: std::ops::Range<usize>| {
            range.map(|number| number.to_string()).collect::<Vec<_>>()
        };
        memory.append("s", &lines(0..3), HOUR);
        memory.append("s", &lines(3..LONGEST + 2), HOUR);
        assert_eq!(memory.list("s"), lines(2..LONGEST + 2));
        assert_eq!(memory.get(Name::Binding("s")), None, "a trail is no binding");
        tokio::time::advance(HOUR).await;
        assert_eq!(memory.list("s"), lines(0..0));
    }

    #[tokio::test(start_paused = true)]
    async fn extension_keeps_the_stored_value_and_restores_a_lost_one() {
        let memory = Memory::new(8);
        memory.claim(Name::Binding("s"), "a", HOUR);
        tokio::time::advance(HOUR / 2).await;
        memory.extend(Name::Binding("s"), "old", HOUR);
        assert_eq!(
            memory.get(Name::Binding("s")),
            Some(StoredValue { value: "a".into(), left: HOUR })
        );
        memory.extend(Name::Binding("t"), "b", HOUR);
        assert_eq!(memory.get(Name::Binding("t")).map(|entry| entry.value), Some("b".into()));
    }
}
