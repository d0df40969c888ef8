//! Decides when turns stop waiting for a connection to the store. Pure.
//!
//! The breaker opens after three unanswered questions in a row, or when half of the last second's
//! questions are unanswered. Questions that wait at the same time count as one silence, because a
//! short delay that many turns share is no outage. A breaker never closes. A new connection gets a
//! new breaker once its test writes succeed.

use std::time::{Duration, Instant};

/// Silences in a row that open the breaker. Each begins after the end of the one before.
const SILENCES: u32 = 3;
/// Fewest questions in a second of which the unanswered half opens the breaker.
const FEWEST: u32 = 10;
/// The last second is counted in parts of this length.
const PART: Duration = Duration::from_millis(100);
const PARTS: usize = 10;

#[derive(Clone, Copy, Default)]
struct Part {
    /// The number of this part since the start. An older number in the same place means that the
    /// part has passed.
    number: u64,
    answered: u32,
    unanswered: u32,
    silences: u32,
}

/// The breaker of one connection.
pub struct Breaker {
    began: Instant,
    /// Silences since the last answer, and the end of the last silence.
    in_a_row: u32,
    silent_until: Instant,
    parts: [Part; PARTS],
}

impl Breaker {
    pub fn new(now: Instant) -> Self {
        Self { began: now, in_a_row: 0, silent_until: now, parts: [Part::default(); PARTS] }
    }

    pub fn record_answer(&mut self, now: Instant) {
        self.in_a_row = 0;
        self.part(now).answered += 1;
    }

    /// Records a question that was asked at `asked` and unanswered at `now`. Returns whether the
    /// breaker opens.
    pub fn unanswered(&mut self, asked: Instant, now: Instant) -> bool {
        let is_new = self.silent_until <= asked;
        let part = self.part(now);
        part.unanswered += 1;
        if is_new {
            part.silences += 1;
            self.in_a_row += 1;
            self.silent_until = now;
        }
        self.in_a_row >= SILENCES || self.is_half_silent(now)
    }

    /// Whether the last question is unanswered.
    pub const fn is_doubtful(&self) -> bool {
        self.in_a_row > 0
    }

    fn is_half_silent(&self, now: Instant) -> bool {
        let newest = self.number(now);
        let last = self.parts.iter().filter(|part| part.number + PARTS as u64 > newest);
        let sum = last.fold(Part::default(), |sum, part| Part {
            number: 0,
            answered: sum.answered + part.answered,
            unanswered: sum.unanswered + part.unanswered,
            silences: sum.silences + part.silences,
        });
        sum.silences >= SILENCES
            && sum.answered + sum.unanswered >= FEWEST
            && sum.unanswered >= sum.answered
    }

    fn part(&mut self, now: Instant) -> &mut Part {
        let number = self.number(now);
        let part = &mut self.parts[(number % PARTS as u64) as usize];
        if part.number != number {
            *part = Part { number, ..Part::default() };
        }
        part
    }

    fn number(&self, now: Instant) -> u64 {
        (now.saturating_duration_since(self.began).as_millis() / PART.as_millis()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A breaker and a clock that starts with it.
    fn breaker() -> (Breaker, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        (Breaker::new(start), move |ms| start + Duration::from_millis(ms))
    }

    #[test]
    fn breaker_opens_after_three_silences_in_a_row() {
        let (mut breaker, at) = breaker();
        assert!(!breaker.unanswered(at(0), at(50)) && breaker.is_doubtful());
        assert!(!breaker.unanswered(at(50), at(100)));
        assert!(breaker.unanswered(at(100), at(150)));
    }

    #[test]
    fn answer_between_silences_restarts_the_count() {
        let (mut breaker, at) = breaker();
        for round in 0..3 {
            let start = round * 2_000;
            assert!(!breaker.unanswered(at(start), at(start + 50)));
            assert!(!breaker.unanswered(at(start + 50), at(start + 100)));
            breaker.record_answer(at(start + 110));
            assert!(!breaker.is_doubtful());
        }
    }

    #[test]
    fn questions_that_wait_together_are_one_silence() {
        let (mut breaker, at) = breaker();
        for asked in 0..50 {
            assert!(!breaker.unanswered(at(asked), at(asked + 50)), "{asked}");
        }
        assert!(!breaker.unanswered(at(50), at(100)), "the second");
        assert!(breaker.unanswered(at(100), at(150)), "the third");
    }

    #[test]
    fn breaker_opens_when_half_of_a_second_is_silent() {
        let (mut breaker, at) = breaker();
        let opened = (0..20_u64).find(|turn| {
            breaker.record_answer(at(turn * 60));
            breaker.unanswered(at(turn * 60), at(turn * 60 + 50))
        });
        assert_eq!(opened, Some(4), "after ten questions");
    }

    #[test]
    fn breaker_stays_closed_below_half_or_after_a_second() {
        let (mut breaker, at) = breaker();
        for turn in 0..100 {
            breaker.record_answer(at(turn * 60));
            breaker.record_answer(at(turn * 60 + 1));
            assert!(!breaker.unanswered(at(turn * 60 + 2), at(turn * 60 + 52)), "{turn}");
        }
        let (mut breaker, at) = super::tests::breaker();
        for turn in 0..100 {
            breaker.record_answer(at(turn * 300));
            assert!(
                !breaker.unanswered(at(turn * 300), at(turn * 300 + 50)),
                "seven in a second are too few: {turn}"
            );
        }
    }
}
