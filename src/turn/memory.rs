//! Limits the memory for request bodies and WebSocket messages, by one count for the whole replica.
//! A body or message must also come at a minimum average rate.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{Error, ErrorKind};
use crate::setting::Size;

/// The unit in bytes that memory is counted in. A permit is a `u32`, and a body may be larger.
const UNIT: usize = 4 * 1024;
/// Lowest average rate of a body or message in bytes a second, after a grace.
pub const SLOWEST: u64 = 16 * 1024;
pub const GRACE: Duration = Duration::from_secs(30);
/// `Retry-After` when the memory is full.
const SOON: Duration = Duration::from_secs(1);

/// Longest time that `bytes` may take.
pub fn time_for(bytes: usize) -> Duration {
    GRACE + Duration::from_secs(bytes as u64 / SLOWEST)
}

/// The memory of one replica: `server.replay_total`.
#[derive(Clone)]
pub struct BodyMemory {
    free: Arc<Semaphore>,
    units: usize,
}

/// A part of the memory, given back when dropped.
#[derive(Default)]
pub struct MemoryPlace(Option<OwnedSemaphorePermit>);

impl BodyMemory {
    pub fn new(total: Size) -> Self {
        let units = (total.bytes() / UNIT).clamp(1, Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(units)), units }
    }

    /// The bytes that this memory holds at the most.
    pub const fn limit(&self) -> usize {
        self.units * UNIT
    }

    /// The bytes that are in use, in whole units.
    pub fn used(&self) -> usize {
        (self.units - self.free.available_permits()) * UNIT
    }

    /// Makes `place` cover `length` bytes.
    pub fn extend(&self, place: &mut MemoryPlace, length: usize) -> Result<(), Error> {
        let wanted = length.div_ceil(UNIT);
        if wanted <= place.units() {
            return Ok(());
        }
        let more = u32::try_from(wanted - place.units())
            .ok()
            .and_then(|units| Arc::clone(&self.free).try_acquire_many_owned(units).ok());
        let Some(more) = more else { return Err(full()) };
        match &mut place.0 {
            Some(place) => place.merge(more),
            None => place.0 = Some(more),
        }
        Ok(())
    }

    /// Makes `place` follow `length`, which may have fallen. A part of a unit counts nothing, so
    /// that an idle connection has no part of the memory.
    pub fn follow(&self, place: &mut MemoryPlace, length: usize) -> Result<(), Error> {
        let wanted = length / UNIT;
        if wanted < place.units() {
            place.shrink(wanted);
        }
        self.extend(place, wanted * UNIT)
    }

    #[cfg(test)]
    pub fn free_units(&self) -> usize {
        self.free.available_permits()
    }
}

impl MemoryPlace {
    fn units(&self) -> usize {
        self.0.as_ref().map_or(0, OwnedSemaphorePermit::num_permits)
    }

    fn shrink(&mut self, units: usize) {
        let surplus = self.units() - units;
        drop(self.0.as_mut().and_then(|place| place.split(surplus)));
        if units == 0 {
            self.0 = None;
        }
    }
}

/// The error of a turn that finds no memory.
pub fn full() -> Error {
    Error::new(ErrorKind::NoKeyAvailable, "The gateway's memory for request bodies is full.")
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
}
