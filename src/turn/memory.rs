//! Limits the memory for bodies, messages and answers, by one count for the whole replica.
//!
//! Clients may fill the memory up to its limit, and several bodies of one client half of it, so
//! that no client takes it from all others. An answer that the gateway must hold is already billed,
//! so answers may take a quarter more, and short ones always find memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::client::ClientId;
use crate::error::{Error, ErrorKind};
use crate::setting::Size;

/// The longest text that is read, edited or translated on the thread of turns: less than a
/// millisecond.
pub const LIGHT: usize = 256 * 1024;

/// The unit in bytes that memory is counted in.
const UNIT: usize = 4 * 1024;
/// `Retry-After` when the memory is full.
const SOON: Duration = Duration::from_secs(1);
/// Longest wait of an answer for memory, before the head of the answer has gone.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// The memory of one replica: `server.replay_total`.
#[derive(Clone)]
pub struct BodyMemory {
    count: Arc<Count>,
    /// The share of the client whose bodies are counted.
    share: Option<Arc<Share>>,
}

struct Count {
    /// Units in use, and the units that clients may take.
    used: AtomicUsize,
    units: usize,
    /// Notified when units are given back.
    freed: Notify,
    /// The shares of the clients that hold bodies, or may.
    shares: Mutex<HashMap<ClientId, Weak<Share>>>,
}

/// The units that the bodies of one client take.
type Share = AtomicUsize;

/// Counts what the gateway holds of one answer only to read it. If there is no memory for that, the
/// answer passes unread.
pub struct ReadingMemory {
    memory: BodyMemory,
    place: MemoryPlace,
}

impl ReadingMemory {
    /// Up to this many bytes count nothing. Most answers never hold more.
    pub const FREE: usize = UNIT;

    pub fn of(memory: &BodyMemory) -> Self {
        Self { memory: memory.clone(), place: MemoryPlace::default() }
    }

    /// Counts `held` bytes, which may be less than before. Returns false if there is no memory for
    /// them.
    pub fn has_room_for(&mut self, held: usize) -> bool {
        let units = held / UNIT;
        self.place.shrink(units);
        self.memory.grow(&mut self.place, units, self.memory.most()).is_ok()
    }

    pub const fn is_empty(&self) -> bool {
        self.place.units == 0
    }

    /// Takes the place that was counted so far, because the caller holds the bytes now.
    pub fn take(&mut self) -> MemoryPlace {
        std::mem::take(&mut self.place)
    }
}

/// A part of the memory, given back when dropped.
#[derive(Default)]
pub struct MemoryPlace {
    count: Option<Arc<Count>>,
    share: Option<Arc<Share>>,
    units: usize,
}

impl BodyMemory {
    pub fn new(total: Size) -> Self {
        let (used, units) = (AtomicUsize::new(0), (total.bytes() / UNIT).max(1));
        let (freed, shares) = (Notify::new(), Mutex::default());
        Self { count: Arc::new(Count { used, units, freed, shares }), share: None }
    }

    /// The same memory for the bodies and messages of `client`, which count in its share.
    pub fn of(&self, client: &ClientId) -> Self {
        let mut shares = self.count.shares.lock().unwrap_or_else(PoisonError::into_inner);
        let known = shares.get(client).and_then(Weak::upgrade);
        let share = known.unwrap_or_else(|| {
            if shares.len() == shares.capacity() {
                // Those of clients that hold nothing.
                shares.retain(|_, share| share.strong_count() > 0);
            }
            let share = Arc::default();
            shares.insert(client.clone(), Arc::downgrade(&share));
            share
        });
        Self { count: Arc::clone(&self.count), share: Some(share) }
    }

    /// The most bytes that this memory holds, without the additional part for answers.
    pub fn limit(&self) -> usize {
        self.count.units * UNIT
    }

    /// The bytes that are in use, in whole units.
    pub fn used(&self) -> usize {
        self.count.used.load(Ordering::Acquire) * UNIT
    }

    /// Makes `place` cover `length` bytes of a body or a client's message.
    pub fn extend(&self, place: &mut MemoryPlace, length: usize) -> Result<(), Error> {
        self.grow_body(place, length.div_ceil(UNIT))
    }

    /// Makes `place` follow `length`, which may have fallen. A part of a unit counts nothing, so
    /// that an idle connection takes no memory.
    pub fn follow(&self, place: &mut MemoryPlace, length: usize) -> Result<(), Error> {
        place.shrink(length / UNIT);
        self.grow_body(place, length / UNIT)
    }

    fn grow_body(&self, place: &mut MemoryPlace, wanted: usize) -> Result<(), Error> {
        if place.units == 0 {
            place.share.clone_from(&self.share);
        }
        self.grow(place, wanted, self.count.units)
    }

    /// As [`Self::follow`], for an answer. A short answer counts but is never refused, so that the
    /// long answers of others do not end it.
    pub fn follow_answer(&self, place: &mut MemoryPlace, length: usize) -> Result<(), Error> {
        place.shrink(length / UNIT);
        let most = if length <= LIGHT { usize::MAX } else { self.most() };
        self.grow(place, length / UNIT, most)
    }

    /// Makes `place` cover `length` bytes of an answer, and waits for them for a while. A short
    /// answer never waits. An answer that can never fit is refused at once, with an error that asks
    /// for no retry.
    pub async fn await_answer(&self, place: &mut MemoryPlace, length: usize) -> Result<(), Error> {
        self.await_answer_with(place, length, || std::future::ready(Ok(()))).await
    }

    /// As [`Self::await_answer`], together with what `take` waits for. Neither is held while the
    /// other one is awaited, so that no answer waits for an answer that waits itself.
    pub async fn await_answer_with<T, F>(
        &self,
        place: &mut MemoryPlace,
        length: usize,
        take: impl Fn() -> F,
    ) -> Result<T, Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let most = if length <= LIGHT { usize::MAX } else { self.most() };
        if length.div_ceil(UNIT) > most {
            let message = "The upstream's answer needs more memory than server.replay_total has.";
            return Err(Error::new(ErrorKind::UpstreamInterrupted, message));
        }
        let mut until = None;
        loop {
            let taken = take().await?;
            let freed = self.count.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            let Err(full) = self.grow(place, length.div_ceil(UNIT), most) else {
                return Ok(taken);
            };
            drop(taken);
            let until = *until.get_or_insert_with(|| Instant::now() + ANSWER_WAIT);
            if Instant::now() >= until || timeout_at(until, freed).await.is_err() {
                return Err(full);
            }
        }
    }

    /// The units that may be in use if the answers' additional part is included.
    fn most(&self) -> usize {
        self.count.units + self.count.units / 4
    }

    /// Makes `place` have `wanted` units, as long as no more than `most` are in use, and the
    /// client's bodies take no more than its share. A client's only body may be longer: its length
    /// has a limit of its own.
    fn grow(&self, place: &mut MemoryPlace, wanted: usize, most: usize) -> Result<(), Error> {
        let Some(more) = wanted.checked_sub(place.units).filter(|more| *more > 0) else {
            return Ok(());
        };
        let (only, half) = (place.units, (self.count.units / 2).max(1));
        let is_taken = |count: &AtomicUsize, add: &dyn Fn(usize) -> Option<usize>| {
            count.fetch_update(Ordering::AcqRel, Ordering::Acquire, add).is_ok()
        };
        let add = |used: usize| used.checked_add(more);
        let within = |used| add(used).filter(|sum| used == only || *sum <= half);
        if place.share.as_ref().is_some_and(|share| !is_taken(share, &within)) {
            return Err(full());
        }
        if !is_taken(&self.count.used, &|used| add(used).filter(|sum| *sum <= most)) {
            place.give_back_share(more);
            return Err(full());
        }
        place.units = wanted;
        place.count.get_or_insert_with(|| Arc::clone(&self.count));
        Ok(())
    }

    #[cfg(test)]
    pub fn free_units(&self) -> usize {
        self.count.units - self.used() / UNIT
    }
}

impl MemoryPlace {
    fn give_back_share(&self, units: usize) {
        if let Some(share) = &self.share {
            share.fetch_sub(units, Ordering::AcqRel);
        }
    }

    fn shrink(&mut self, units: usize) {
        let surplus = self.units.saturating_sub(units);
        if surplus > 0
            && let Some(count) = &self.count
        {
            self.units = units;
            self.give_back_share(surplus);
            count.used.fetch_sub(surplus, Ordering::AcqRel);
            count.freed.notify_waiters();
        }
    }
}

impl Drop for MemoryPlace {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

/// The error of a turn that finds no memory.
pub fn full() -> Error {
    const FULL: &str =
        "The gateway's memory for bodies and answers is full, or this client's half of it.";
    Error::new(ErrorKind::NoKeyAvailable, FULL).retry_after(SOON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn place_follows_what_is_held() {
        let memory = BodyMemory::new(Size(10 * UNIT as u64));
        let (mut one, mut two) = (MemoryPlace::default(), MemoryPlace::default());
        for (length, free) in [(UNIT - 1, 10), (UNIT, 9), (5 * UNIT + 1, 5), (2 * UNIT, 8), (0, 10)]
        {
            memory.follow(&mut one, length).unwrap();
            assert_eq!(memory.free_units(), free, "{length}");
        }
        memory.follow(&mut one, 7 * UNIT).unwrap();
        assert!(memory.follow(&mut two, 4 * UNIT).is_err());
        memory.follow(&mut two, 3 * UNIT).unwrap();
        assert_eq!((memory.used(), memory.limit()), (10 * UNIT, 10 * UNIT));
        drop((one, two));
        assert_eq!((memory.free_units(), memory.used()), (10, 0));
    }

    #[test]
    fn client_with_several_bodies_takes_no_more_than_half() {
        let memory = BodyMemory::new(Size(16 * UNIT as u64));
        let [alice, bob] = ["alice", "bob"].map(|id| memory.of(&ClientId::new(id)));
        let [mut one, mut two, mut other] = [(); 3].map(|()| MemoryPlace::default());
        alice.extend(&mut one, 12 * UNIT).unwrap();
        assert!(alice.extend(&mut two, UNIT).is_err(), "a body beside one beyond the half");
        alice.follow(&mut one, 5 * UNIT).unwrap();
        alice.extend(&mut two, 3 * UNIT).unwrap();
        let again = memory.of(&ClientId::new("alice"));
        for place in [&mut one, &mut two] {
            let refused = again.extend(place, 6 * UNIT).expect_err("more than half");
            assert_eq!((refused.code(), refused.retry_after), ("no_key_available", Some(SOON)));
        }
        assert_eq!(memory.used(), 8 * UNIT, "what is refused counts nothing");
        bob.extend(&mut other, 8 * UNIT).unwrap();
        assert!(bob.extend(&mut other, 9 * UNIT).is_err(), "the memory is full");
        drop(one);
        again.extend(&mut two, 8 * UNIT).unwrap();
        bob.follow(&mut other, 0).unwrap();
        assert!(again.extend(&mut two, 9 * UNIT).is_ok(), "its only body");
        drop((two, other));
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn shares_of_clients_that_hold_nothing_are_forgotten() {
        let memory = BodyMemory::new(Size(16 * UNIT as u64));
        let name = |number: usize| ClientId::new(&format!("client-{number}"));
        let held: Vec<_> = (0..20).map(|number| memory.of(&name(number))).collect();
        for number in 0..10_000 {
            let mut place = MemoryPlace::default();
            memory.of(&name(number)).extend(&mut place, UNIT).unwrap();
        }
        assert!(memory.count.shares.lock().unwrap().len() < 200, "those in use, and few more");
        let mut place = MemoryPlace::default();
        held[7].extend(&mut place, 9 * UNIT).unwrap();
        assert!(memory.of(&name(7)).extend(&mut MemoryPlace::default(), UNIT).is_err());
    }

    #[test]
    fn reading_of_an_answer_finds_no_memory_beyond_that_of_answers() {
        let memory = BodyMemory::new(Size(8 * UNIT as u64));
        let [mut one, mut two] = [(); 2].map(|()| ReadingMemory::of(&memory));
        assert!(one.has_room_for(UNIT - 1) && one.is_empty() && memory.used() == 0);
        assert!(one.has_room_for(9 * UNIT) && two.has_room_for(UNIT));
        assert!(!two.has_room_for(2 * UNIT), "a quarter more, and nothing beyond");
        assert!(one.has_room_for(3 * UNIT) && two.has_room_for(2 * UNIT));
        let place = one.take();
        assert!(one.is_empty() && memory.used() == 5 * UNIT, "it counts on");
        drop((place, two));
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn answer_may_take_more_than_bodies_and_waits_for_its_place() {
        const LONG: usize = LIGHT + UNIT;
        let memory = BodyMemory::new(Size(16 * LONG as u64));
        let mut places: [MemoryPlace; 4] = Default::default();
        let [body, running, whole, late] = &mut places;
        memory.extend(body, 15 * LONG).unwrap();
        memory.follow_answer(running, 4 * LONG).unwrap();
        assert_eq!(memory.used(), 19 * LONG, "beyond the limit");
        assert!(memory.extend(late, 1).is_err());
        memory.await_answer(whole, LONG).await.unwrap();
        let began = Instant::now();
        let mut short = MemoryPlace::default();
        memory.await_answer(&mut short, LIGHT).await.unwrap();
        assert_eq!(memory.used(), 20 * LONG + LIGHT, "a short one waits for nobody");
        drop(short);
        assert!(memory.await_answer(whole, 2 * LONG).await.is_err());
        assert_eq!(began.elapsed(), ANSWER_WAIT);
        let freeing = async {
            tokio::time::sleep(Duration::from_secs(7)).await;
            memory.follow_answer(running, 0).unwrap();
        };
        let (waited, ()) = tokio::join!(memory.await_answer(whole, 5 * LONG), freeing);
        assert!(waited.is_ok() && began.elapsed() == ANSWER_WAIT + Duration::from_secs(7));
        let began = Instant::now();
        let never = memory.await_answer(late, 21 * LONG).await.expect_err("it never fits");
        assert!(never.code() == "upstream_interrupted" && began.elapsed().is_zero());
        drop(places);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn short_answer_finds_memory_beside_long_ones() {
        let memory = BodyMemory::new(Size(8 * LIGHT as u64));
        let (mut long, mut short) = (MemoryPlace::default(), MemoryPlace::default());
        memory.follow_answer(&mut long, 10 * LIGHT).unwrap();
        assert!(memory.follow_answer(&mut short, LIGHT + UNIT).is_err());
        memory.follow_answer(&mut short, LIGHT).unwrap();
        assert_eq!(memory.used(), 11 * LIGHT, "it counts");
        drop((long, short));
        assert_eq!(memory.used(), 0);
    }
}
