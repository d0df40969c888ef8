//! Limits the memory for bodies, messages and answers, by one count for the whole replica. A body
//! or message must also come at a minimum average rate.
//!
//! Clients may fill the memory up to its limit. An answer that the gateway must hold is already
//! billed, so answers may take a quarter more, and short ones always find memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, ErrorKind};
use crate::setting::Size;

/// The longest text that is read, edited or translated on the thread of turns: less than a
/// millisecond.
pub const LIGHT: usize = 256 * 1024;

/// The unit in bytes that memory is counted in.
const UNIT: usize = 4 * 1024;
/// Lowest average rate of a body or message in bytes a second, after a grace.
pub const SLOWEST: u64 = 16 * 1024;
pub const GRACE: Duration = Duration::from_secs(30);
/// `Retry-After` when the memory is full.
const SOON: Duration = Duration::from_secs(1);
/// Longest wait of an answer for memory, before the head of the answer has gone.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// Longest time that `bytes` may take.
pub fn time_for(bytes: usize) -> Duration {
    GRACE + Duration::from_secs(bytes as u64 / SLOWEST)
}

/// The memory of one replica: `server.replay_total`.
#[derive(Clone)]
pub struct BodyMemory(Arc<Count>);

struct Count {
    /// Units in use, and the units that clients may take.
    used: AtomicUsize,
    units: usize,
    /// Notified when units are given back.
    freed: Notify,
}

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
    units: usize,
}

impl BodyMemory {
    pub fn new(total: Size) -> Self {
        let (used, units) = (AtomicUsize::new(0), (total.bytes() / UNIT).max(1));
        Self(Arc::new(Count { used, units, freed: Notify::new() }))
    }

    /// The most bytes that this memory holds, without the additional part for answers.
    pub fn limit(&self) -> usize {
        self.0.units * UNIT
    }

    /// The bytes that are in use, in whole units.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Acquire) * UNIT
    }

    /// Makes `place` cover `length` bytes of a body or a client's message.
    pub fn extend(&self, place: &mut MemoryPlace, length: usize) -> Result<(), Error> {
        self.grow(place, length.div_ceil(UNIT), self.0.units)
    }

    /// Makes `place` follow `length`, which may have fallen. A part of a unit counts nothing, so
    /// that an idle connection takes no memory.
    pub fn follow(&self, place: &mut MemoryPlace, length: usize) -> Result<(), Error> {
        place.shrink(length / UNIT);
        self.grow(place, length / UNIT, self.0.units)
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
            let freed = self.0.freed.notified();
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
        self.0.units + self.0.units / 4
    }

    /// Makes `place` have `wanted` units, if no more than `most` units are then in use.
    fn grow(&self, place: &mut MemoryPlace, wanted: usize, most: usize) -> Result<(), Error> {
        let Some(more) = wanted.checked_sub(place.units).filter(|more| *more > 0) else {
            return Ok(());
        };
        let add = |used: usize| used.checked_add(more).filter(|sum| *sum <= most);
        let grown = self.0.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        grown.map_err(|_| full())?;
        place.units = wanted;
        place.count.get_or_insert_with(|| Arc::clone(&self.0));
        Ok(())
    }

    #[cfg(test)]
    pub fn free_units(&self) -> usize {
        self.0.units - self.used() / UNIT
    }
}

impl MemoryPlace {
    fn shrink(&mut self, units: usize) {
        let surplus = self.units.saturating_sub(units);
        if surplus > 0
            && let Some(count) = &self.count
        {
            self.units = units;
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
    Error::new(ErrorKind::NoKeyAvailable, "The gateway's memory for bodies and answers is full.")
        .retry_after(SOON)
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
