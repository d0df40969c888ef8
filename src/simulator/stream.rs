//! An answer on its way out: when each event is sent, and how the stream ends.
//!
//! Decides pauses, cuts and resets. A stream that is dropped before its terminal event was handed over was left by its client,
//! and the judge is told so at once.

use std::io;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;

use super::answer::{Answer, Step};
use super::judge::{Entry, Outcome};
use super::refusal::Refusal;

/// Real time between events.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pause {
    /// Before each event but the first.
    pub event: Duration,
    /// Before each text event, instead.
    pub text: Option<Duration>,
}

/// How a stream ends before its time.
#[derive(Clone, Debug)]
pub enum End {
    /// As if all had been said, without a terminal event.
    Clean,
    /// The connection breaks.
    Broken,
    /// `response.failed` with this error.
    Failed(Refusal),
    /// A bare `error` event with this error.
    Error(Refusal),
}

/// Where, after what silence and how a stream is cut.
#[derive(Clone, Debug)]
pub struct Cut {
    pub after: u64,
    pub stall: Duration,
    pub end: End,
}

struct Play {
    answer: Answer,
    steps: std::vec::IntoIter<Step>,
    sent: u64,
    pause: Pause,
    cut: Option<Cut>,
    entry: Entry,
}

/// The body of a streamed answer.
pub fn play(answer: Answer, pause: Pause, cut: Option<Cut>, entry: Entry) -> Body {
    let steps = answer.steps().into_iter();
    let play = Play { answer, steps, sent: 0, pause, cut, entry };
    Body::from_stream(futures_util::stream::unfold(Some(play), async |play| play?.next().await))
}

type Next = Option<(io::Result<Bytes>, Option<Play>)>;

impl Play {
    async fn next(mut self) -> Next {
        if let Some(cut) = self.cut.take_if(|cut| cut.after == self.sent) {
            return self.end(cut).await;
        }
        let step = self.steps.next()?;
        let pause = match (step, self.pause.text) {
            (Step::Delta(..), Some(text)) => text,
            _ if self.sent == 0 => Duration::ZERO,
            _ => self.pause.event,
        };
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let event = self.answer.event(step, self.sent);
        self.sent += 1;
        self.entry.sent_event();
        if step == Step::Completed {
            // A client may leave as soon as it has read this: that is the end of a turn, not of its patience.
            self.entry.became(Outcome::Completed);
        }
        Some((Ok(event), Some(self)))
    }

    async fn end(mut self, cut: Cut) -> Next {
        if !cut.stall.is_zero() {
            tokio::time::sleep(cut.stall).await;
        }
        let last = match cut.end {
            End::Clean => {
                self.entry.became(Outcome::Cut);
                return None;
            }
            End::Broken => {
                // What was said before is sent first: an error drops whatever still waits in the connection's buffer.
                tokio::task::yield_now().await;
                self.entry.became(Outcome::Cut);
                return Some((Err(io::ErrorKind::ConnectionReset.into()), None));
            }
            End::Failed(refusal) => self.answer.failed(&refusal.error(), self.sent),
            End::Error(refusal) => self.answer.error(&refusal.error(), self.sent),
        };
        self.entry.sent_event();
        self.entry.became(Outcome::Failed);
        Some((Ok(last), None))
    }
}

/// A body that breaks the connection before its first byte.
pub fn broken() -> Body {
    Body::from_stream(futures_util::stream::once(async { Err::<Bytes, _>(io::Error::from(io::ErrorKind::ConnectionReset)) }))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt;
    use tokio::time::Instant;

    use super::*;
    use crate::simulator::answer::{Item, Text, Usage};
    use crate::simulator::judge::{Judge, Turn};

    fn answer(events: u64) -> Answer {
        let text = Text::Words { events, seed: 0 };
        let items = vec![Item::Message { id: "msg_1".into(), text }];
        Answer {
            id: "resp_1".into(),
            created_at: 0,
            items,
            usage: Usage::default(),
            echo: r#""model":"m""#.into(),
            obfuscate: false,
        }
    }

    async fn frames(mut body: Body) -> (usize, bool) {
        let mut count = 0;
        while let Some(frame) = body.frame().await {
            if frame.is_err() {
                return (count, true);
            }
            count += 1;
        }
        (count, false)
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_stand_between_events() {
        let judge = Arc::new(Judge::default());
        let began = Instant::now();
        let pause = Pause { event: Duration::from_millis(10), text: Some(Duration::from_millis(100)) };
        assert_eq!(frames(play(answer(3), pause, None, judge.open(Turn::default()))).await, (11, false));
        assert_eq!(began.elapsed(), Duration::from_millis(3 * 100 + 7 * 10));
        assert_eq!((judge.turns()[0].outcome, judge.turns()[0].events), (Outcome::Completed, 11));
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_ends_the_stream_where_it_was_asked_to() {
        let judge = Arc::new(Judge::default());
        let cut = |end| Some(Cut { after: 4, stall: Duration::from_secs(1), end });
        let play = |end| play(answer(3), Pause::default(), cut(end), judge.open(Turn::default()));
        assert_eq!(frames(play(End::Clean)).await, (4, false));
        assert_eq!(frames(play(End::Broken)).await, (4, true));
        assert_eq!(frames(play(End::Failed(Refusal::invalid(None, None, "no")))).await, (5, false));
        let outcomes: Vec<_> = judge.turns().iter().map(|turn| turn.outcome).collect();
        assert_eq!(outcomes, [Outcome::Cut, Outcome::Cut, Outcome::Failed]);
    }

    #[tokio::test]
    async fn a_stream_that_is_dropped_was_left_and_after_its_end_it_was_not() {
        let judge = Arc::new(Judge::default());
        let mut body = play(answer(3), Pause::default(), None, judge.open(Turn::default()));
        assert!(body.frame().await.is_some_and(|frame| frame.is_ok()));
        drop(body);
        let mut body = play(answer(3), Pause::default(), None, judge.open(Turn::default()));
        for _ in 0..11 {
            assert!(body.frame().await.is_some_and(|frame| frame.is_ok()));
        }
        drop(body);
        let outcomes: Vec<_> = judge.turns().iter().map(|turn| turn.outcome).collect();
        assert_eq!(outcomes, [Outcome::ClientLeft, Outcome::Completed]);
    }
}
