//! Holds everything that lives as long as the simulator: keys, clock, seals, the judge, and one
//! memory behind one lock.
//!
//! This file decides how ids look and what a reset forgets.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::archive::Archive;
use super::body::hex;
use super::cache::{Cache, Served};
use super::calls::Calls;
use super::clock::Clock;
use super::diagnosis::Traces;
use super::fault::Scope;
use super::faults::Faults;
use super::items::Items;
use super::judge::Judge;
use super::key::{Key, Keys};
use super::limits::Limits;
use super::machine::Machines;
use super::prefix::{Prefix, digest};
use super::probes::Probes;
use super::request::{Ask, Caching};
use super::seal::Sealer;
use super::settings::Config;
use super::sockets::Sockets;
use super::stored::Stored;

/// State that turns leave behind for later turns.
pub struct Memory {
    pub faults: Faults,
    pub limits: Limits,
    pub stored: Stored,
    pub items: Items,
    pub archive: Archive,
    pub traces: Traces,
    machines: Machines,
    cache: Cache,
    /// The ideal cache: what the same turns would read if all had gone to one organization and
    /// region whose machines never overflow. There each beginning has a machine of its own, because
    /// sessions that share a beginning by chance lose nothing apart.
    ideal: Cache,
}

/// Cache hits and writes of one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    pub served: Served,
    pub ideal: u64,
}

impl Memory {
    /// Serves a prefix from the machine that the prefix is steered to, and from the ideal upstream.
    pub fn serve(
        &mut self,
        now: Duration,
        machines: u32,
        key: &Key,
        ask: &Ask<'_>,
        prefix: &Prefix,
    ) -> Reading {
        let named = ask.cache_key.as_deref().unwrap_or("").as_bytes();
        let beginning = digest(&[b"own", &prefix.head, named]);
        let own =
            u32::from_be_bytes([beginning[0], beginning[1], beginning[2], beginning[3]]) % machines;
        let place: [&[u8]; 3] =
            [key.organization.as_bytes(), key.region.as_bytes(), ask.model.as_bytes()];
        // All prefixes of one cache key share that key's allowance on a machine. Without a key,
        // each beginning has its own allowance.
        let lane = if named.is_empty() {
            digest(&[b"beginning", place[0], place[1], place[2], &prefix.head])
        } else {
            digest(&[b"key", place[0], place[1], place[2], named])
        };
        let overflow = self.machines.choose(now, lane, machines);
        let machine = own.wrapping_add(overflow) % machines;
        // From GPT-5.6 on, a cache key separates accounts: one key reads nothing of another's.
        let account = if matches!(ask.caching, Caching::Breakpoints { .. }) { named } else { b"" };
        let scope = digest(&[b"machine", place[0], place[1], &machine.to_be_bytes(), account]);
        let ideal = digest(&[b"ideal", &beginning, account]);
        Reading {
            served: self.cache.serve(now, scope, prefix, ask.caching),
            ideal: self.ideal.serve(now, ideal, prefix, ask.caching).cached,
        }
    }
}

pub struct World {
    pub config: Config,
    pub clock: Clock,
    pub keys: Keys,
    pub sealer: Sealer,
    pub judge: Arc<Judge>,
    pub probes: Probes,
    pub calls: Calls,
    pub sockets: Arc<Sockets>,
    memory: Mutex<Memory>,
    /// Makes the ids of each run unlike those of any other run, whatever the seed.
    run: [u8; 16],
    next: AtomicU64,
}

impl World {
    pub fn new(config: &Config) -> Result<Self, String> {
        config.check()?;
        let mut run = [0; 16];
        getrandom::fill(&mut run).map_err(|error| format!("no randomness: {error}"))?;
        Ok(Self {
            clock: Clock::new(config.time_scale),
            keys: Keys::new(&config.key)?,
            sealer: Sealer::new(config.seed),
            judge: Arc::default(),
            probes: Probes::default(),
            calls: Calls::default(),
            sockets: Arc::default(),
            memory: Mutex::new(Memory {
                faults: Faults::default(),
                limits: Limits::new(config),
                stored: Stored::default(),
                items: Items::default(),
                archive: Archive::default(),
                traces: Traces::default(),
                machines: Machines::default(),
                cache: Cache::default(),
                ideal: Cache::default(),
            }),
            config: config.clone(),
            run,
            next: AtomicU64::new(1),
        })
    }

    pub fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that this run has not used before.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// `resp_` and 48 hexadecimal digits, unlike any other id.
    pub fn id(&self, prefix: &str) -> String {
        let bytes = self.sealer.derive(&[b"id", &self.run, &self.number().to_be_bytes()]);
        format!("{prefix}_{}", hex(&bytes[..24]))
    }

    /// A blob that only `owner` can open.
    pub fn seal(&self, kind: &str, owner: &str, filler: usize) -> String {
        let bytes = self.sealer.derive(&[b"seal", &self.run, &self.number().to_be_bytes()]);
        let mut number = [0; 8];
        // Four leading zeros, as in the time that a real blob begins with.
        number[4..].copy_from_slice(&bytes[..4]);
        self.sealer.seal(kind, owner, u64::from_be_bytes(number), filler)
    }

    /// Forgets turns, probes, faults and caches. Keys, seals and the clock stay.
    pub fn reset(&self) {
        let mut memory = self.memory();
        memory.faults.clear(&Scope::default());
        memory.limits.clear();
        memory.stored.clear();
        memory.items.clear();
        memory.archive.clear();
        memory.traces.clear();
        (memory.machines, memory.cache, memory.ideal) =
            (Machines::default(), Cache::default(), Cache::default());
        drop(memory);
        self.judge.clear();
        self.probes.clear();
        self.calls.clear();
        self.sockets.clear();
    }
}
