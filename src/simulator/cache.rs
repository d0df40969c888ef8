//! The prompt cache: what it remembers of a prefix, and for how long.
//!
//! Pure: state, time and a prefix go in; token counts come out. *Steps* regime: every step of the
//! prefix is kept and matched in order, from 1,024 tokens on. *Breakpoints* regime: only exact ends
//! are kept, and one request writes at most four. A read takes the longest remembered end; nothing
//! between two ends matches. Rounding never favors the client.

use std::collections::HashMap;
use std::time::Duration;

use super::model::Life;
use super::prefix::{Digest, End, Prefix, Stop};
use super::request::{Caching, Ttl};

/// Shortest prefix that is cached, in tokens.
const MINIMUM: u64 = 1024;
/// Number of earlier eligible ends that a request looks up besides the latest one.
const LOOK_BACK: usize = 20;
/// Number of explicit marks that a request looks up, from the front and from the back. The
/// reference says 80 from the back; this set is the smaller of the two.
const MARKS_FIRST: usize = 2;
const MARKS_LAST: usize = 50;
/// Most breakpoints that one request writes.
const WRITES: usize = 4;
/// Most entries of the cache. The least recently used ones are evicted first.
const MOST_ENTRIES: usize = 2_000_000;

/// The scope of an entry: one machine of a cache domain, or all machines of the ideal upstream.
pub type Scope = Digest;

#[derive(Clone, Copy, Debug)]
struct Entry {
    written: Duration,
    used: Duration,
    life: Life,
}

impl Entry {
    fn is_alive(&self, now: Duration) -> bool {
        now.saturating_sub(self.used) <= self.life.idle
            && now.saturating_sub(self.written) <= self.life.age
    }
}

/// How the tokens of a request were served. Tokens neither cached nor written were computed and
/// forgotten.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Served {
    pub cached: u64,
    pub written: u64,
    /// The part of `written` that lives 12 hours.
    pub written_half_day: u64,
}

/// Everything that is remembered.
#[derive(Debug, Default)]
pub struct Cache {
    entries: HashMap<(Scope, Digest), Entry>,
}

impl Cache {
    /// Reads the longest remembered part of `prefix`, then remembers what this request adds.
    pub fn serve(
        &mut self,
        now: Duration,
        scope: Scope,
        prefix: &Prefix,
        caching: Caching,
    ) -> Served {
        if self.entries.len() > MOST_ENTRIES {
            self.shrink(now);
        }
        match caching {
            Caching::Steps { tokens, life } => self.serve_steps(now, scope, prefix, tokens, life),
            Caching::Breakpoints { implicit, ttl } => {
                self.serve_ends(now, scope, prefix, implicit, ttl)
            }
        }
    }

    fn is_alive(&self, now: Duration, scope: Scope, digest: Digest) -> bool {
        self.entries.get(&(scope, digest)).is_some_and(|entry| entry.is_alive(now))
    }

    /// Adds an entry, or prolongs its life.
    fn touch(&mut self, now: Duration, scope: Scope, digest: Digest, life: Life) {
        let fresh = Entry { written: now, used: now, life };
        let entry = self.entries.entry((scope, digest)).or_insert(fresh);
        if entry.is_alive(now) {
            entry.used = now;
            entry.life =
                Life { idle: entry.life.idle.max(life.idle), age: entry.life.age.max(life.age) };
        } else {
            *entry = fresh;
        }
    }

    fn serve_steps(
        &mut self,
        now: Duration,
        scope: Scope,
        prefix: &Prefix,
        step: u64,
        life: Life,
    ) -> Served {
        if prefix.tokens < MINIMUM {
            return Served::default();
        }
        // A step depends on all steps before it, so the first missing step ends the match.
        let matched =
            prefix.steps.iter().take_while(|digest| self.is_alive(now, scope, **digest)).count();
        prefix.steps.iter().for_each(|digest| self.touch(now, scope, *digest, life));
        let cached = matched as u64 * step;
        Served { cached: if cached < MINIMUM { 0 } else { cached }, ..Served::default() }
    }

    fn serve_ends(
        &mut self,
        now: Duration,
        scope: Scope,
        prefix: &Prefix,
        implicit: bool,
        ttl: Ttl,
    ) -> Served {
        let long = |end: &&End| end.tokens >= MINIMUM;
        let marks: Vec<&End> =
            prefix.ends.iter().filter(|end| matches!(end.stop, Stop::Mark(_))).collect();
        let turns: Vec<&End> =
            prefix.ends.iter().filter(|end| !matches!(end.stop, Stop::Mark(_))).collect();

        let from = marks.len().saturating_sub(MARKS_LAST);
        let mut candidates: Vec<&End> =
            marks[..from.min(MARKS_FIRST)].iter().chain(&marks[from..]).copied().collect();
        if implicit {
            candidates.extend(turns.iter().rev().take(1 + LOOK_BACK));
            candidates.extend(turns.iter().filter(|end| end.stop == Stop::Developer));
        }
        let hit = candidates
            .into_iter()
            .filter(long)
            .filter(|end| self.is_alive(now, scope, end.digest))
            .max_by_key(|end| end.tokens);
        let cached = hit.map_or(0, |end| end.tokens);
        if let Some(entry) = hit.and_then(|end| self.entries.get_mut(&(scope, end.digest))) {
            entry.used = now;
        }

        let latest = turns.last().filter(|_| implicit).copied();
        let explicit = marks.iter().rev().take(WRITES - usize::from(implicit)).copied();
        let mut writes: Vec<&End> = explicit.chain(latest).filter(long).collect();
        writes.sort_by_key(|end| end.tokens);
        let mut served = Served { cached, ..Served::default() };
        let mut reached = cached;
        for end in writes {
            let ttl = if let Stop::Mark(Some(own)) = end.stop { own } else { ttl };
            self.touch(now, scope, end.digest, life(ttl));
            // A token is paid for once: tokens that were read, or written for an earlier end, are
            // not written again.
            let added = end.tokens.saturating_sub(reached);
            served.written += added;
            served.written_half_day += if ttl == Ttl::HalfDay { added } else { 0 };
            reached = reached.max(end.tokens);
        }
        served
    }

    /// Evicts dead entries, then the least recently used ones.
    fn shrink(&mut self, now: Duration) {
        self.entries.retain(|_, entry| entry.is_alive(now));
        if self.entries.len() > MOST_ENTRIES / 4 * 3 {
            let mut uses: Vec<Duration> = self.entries.values().map(|entry| entry.used).collect();
            let middle = uses.len() / 2;
            let (_, limit, _) = uses.select_nth_unstable(middle);
            let limit = *limit;
            self.entries.retain(|_, entry| entry.used > limit);
        }
    }
}

/// Breakpoints slide: each read begins their life anew, without end.
fn life(ttl: Ttl) -> Life {
    let idle = Duration::from_secs(match ttl {
        Ttl::HalfHour => 30 * 60,
        Ttl::HalfDay => 12 * 3600,
    });
    Life { idle, age: Duration::MAX }
}

#[cfg(test)]
mod tests;
