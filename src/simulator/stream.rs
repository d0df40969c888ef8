//! Sends an answer: decides when each event is sent, and how the answer ends.
//!
//! This file decides pauses, cuts and resets, and when a client's frame ends the answer early. If
//! an answer is dropped before its terminal event was sent, the client has left, and the judge
//! learns that at once.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;

use super::answer::{Answer, Event, Step};
use super::chat::spelling::Spelling;
use super::control::Control;
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

/// How an answer ends before its time.
#[derive(Clone, Debug)]
pub enum End {
    /// The stream ends regularly, without a terminal event.
    Clean,
    /// The connection breaks.
    Broken,
    /// `response.failed` with this error.
    Failed(Refusal),
    /// A bare `error` event with this error.
    Error(Refusal),
    /// An error frame of a WebSocket.
    Frame(Refusal),
}

/// Where an answer is cut, after which pause, and how.
#[derive(Clone, Debug)]
pub struct Cut {
    pub after: u64,
    pub stall: Duration,
    pub end: End,
    /// Closes the WebSocket with this code once the answer has ended.
    pub close: Option<u16>,
}

/// The bytes that go over the wire next.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Event(Event),
    /// An error frame of a WebSocket, instead of the rest.
    Refused(Refusal),
    /// Nothing more is sent on this stream, or on this whole WebSocket.
    Close(Option<u16>),
    /// The connection breaks.
    Broken,
}

/// One answer, sent event by event.
pub struct Play {
    answer: Answer,
    steps: Vec<Step>,
    /// The next step.
    at: usize,
    /// Events sent.
    sent: u64,
    /// Finished items.
    done: usize,
    is_over: bool,
    pause: Pause,
    cut: Option<Cut>,
    control: Arc<Control>,
    entry: Entry,
}

impl Play {
    pub fn new(
        answer: Answer,
        pause: Pause,
        cut: Option<Cut>,
        control: Arc<Control>,
        entry: Entry,
    ) -> Self {
        let steps = answer.steps();
        Self { answer, steps, at: 0, sent: 0, done: 0, is_over: false, pause, cut, control, entry }
    }

    /// Finished items so far.
    pub fn done(&self) -> usize {
        self.done
    }

    pub async fn next(&mut self) -> Option<Said> {
        if self.is_over {
            return self.cut.take().and_then(|cut| cut.close).map(|code| Said::Close(Some(code)));
        }
        if let Some(cut) = self.cut.take_if(|cut| cut.after == self.sent) {
            return Some(self.end(cut).await);
        }
        let step = *self.steps.get(self.at)?;
        if step != Step::Completed && self.between_items() && self.control.is_steered() {
            return Some(self.stop("steered"));
        }
        let pause = match (step, self.pause.text) {
            (Step::Delta(..), Some(text)) => text,
            _ if self.sent == 0 => Duration::ZERO,
            _ => self.pause.event,
        };
        if !pause.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.control.cancelled() => return Some(self.stop("cancelled")),
            }
        }
        self.at += 1;
        match step {
            Step::Done(_) => self.done += 1,
            // A client may leave as soon as it has read this event, so the turn has ended
            // regularly.
            Step::Completed => self.over(Outcome::Completed),
            _ => {}
        }
        Some(self.say(self.answer.event(step, self.control.number())))
    }

    fn between_items(&self) -> bool {
        self.at.checked_sub(1).is_some_and(|last| matches!(self.steps[last], Step::Done(_)))
    }

    fn over(&mut self, outcome: Outcome) {
        self.is_over = true;
        self.entry.became(outcome);
    }

    fn say(&mut self, event: Event) -> Said {
        if self.sent == 0 {
            self.entry.note(|turn| turn.status = 200);
        }
        self.sent += 1;
        self.entry.sent_event();
        Said::Event(event)
    }

    /// Ends the answer early with its finished items, because the client asked for that.
    fn stop(&mut self, reason: &str) -> Said {
        self.over(Outcome::Incomplete);
        let tokens = self.answer.output_tokens(self.done);
        self.entry.note(|turn| turn.output_tokens = tokens);
        self.say(self.answer.incomplete(reason, self.done, self.control.number()))
    }

    async fn end(&mut self, cut: Cut) -> Said {
        if !cut.stall.is_zero() {
            tokio::time::sleep(cut.stall).await;
        }
        let failed = match &cut.end {
            End::Clean => {
                self.over(Outcome::Cut);
                return Said::Close(cut.close);
            }
            End::Broken => {
                // Earlier events are sent first, because an error drops everything that still waits
                // in the connection's buffer.
                tokio::task::yield_now().await;
                self.over(Outcome::Cut);
                return Said::Broken;
            }
            End::Failed(refusal) => self.answer.failed(&refusal.error(), self.control.number()),
            End::Error(refusal) => self.answer.error(&refusal.error(), self.control.number()),
            End::Frame(refusal) => {
                self.over(Outcome::Failed);
                let begun = self.sent > 0;
                self.entry.note(|turn| {
                    turn.status = if begun { turn.status } else { refusal.status.as_u16() };
                    turn.code.clone_from(&refusal.code);
                });
                let said = Said::Refused(refusal.clone());
                self.cut = Some(cut);
                return said;
            }
        };
        self.over(Outcome::Failed);
        self.cut = Some(cut);
        self.say(failed)
    }
}

/// The body of an answer that is streamed over HTTP, in chat's `spelling` if there is one.
pub fn body(play: Play, spelling: Option<Spelling>) -> Body {
    Body::from_stream(futures_util::stream::unfold(Some((play, spelling)), async |state| {
        let (mut play, mut spelling) = state?;
        loop {
            return match play.next().await? {
                Said::Event(event) => {
                    let bytes = match &mut spelling {
                        None => event.sse(),
                        Some(spelling) => match spelling.chunks(&event) {
                            Some(bytes) => bytes,
                            None => continue,
                        },
                    };
                    Some((Ok(bytes), Some((play, spelling))))
                }
                Said::Broken => Some((Err(io::Error::from(io::ErrorKind::ConnectionReset)), None)),
                Said::Refused(_) | Said::Close(_) => None,
            };
        }
    }))
}

/// A body that breaks the connection before its first byte.
pub fn broken() -> Body {
    Body::from_stream(futures_util::stream::once(async {
        Err::<Bytes, _>(io::Error::from(io::ErrorKind::ConnectionReset))
    }))
}

#[cfg(test)]
mod tests {
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
            background: false,
            obfuscate: false,
            lane: None,
        }
    }

    fn play(answer: Answer, pause: Pause, cut: Option<Cut>, entry: Entry) -> Body {
        body(Play::new(answer, pause, cut, Arc::default(), entry), None)
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
        let pause =
            Pause { event: Duration::from_millis(10), text: Some(Duration::from_millis(100)) };
        assert_eq!(
            frames(play(answer(3), pause, None, judge.open(Turn::default()))).await,
            (11, false)
        );
        assert_eq!(began.elapsed(), Duration::from_millis(3 * 100 + 7 * 10));
        assert_eq!((judge.turns()[0].outcome, judge.turns()[0].events), (Outcome::Completed, 11));
    }

    #[tokio::test(start_paused = true)]
    async fn cut_ends_the_stream_at_its_event() {
        let judge = Arc::new(Judge::default());
        let cut = |end| Some(Cut { after: 4, stall: Duration::from_secs(1), end, close: None });
        let play = |end| play(answer(3), Pause::default(), cut(end), judge.open(Turn::default()));
        assert_eq!(frames(play(End::Clean)).await, (4, false));
        assert_eq!(frames(play(End::Broken)).await, (4, true));
        assert_eq!(frames(play(End::Failed(Refusal::invalid(None, None, "no")))).await, (5, false));
        let outcomes: Vec<_> = judge.turns().iter().map(|turn| turn.outcome).collect();
        assert_eq!(outcomes, [Outcome::Cut, Outcome::Cut, Outcome::Failed]);
    }

    #[tokio::test]
    async fn stream_that_is_dropped_before_its_end_was_left() {
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

    #[tokio::test(start_paused = true)]
    async fn frame_of_the_client_ends_an_answer_between_items_or_at_once() {
        let judge = Arc::new(Judge::default());
        let items = || {
            let mut answer = answer(3);
            answer.items.insert(0, Item::Reasoning { id: "rs_1".into(), sealed: None });
            answer
        };
        let said = async |control: &Arc<Control>, word: fn(&Control)| {
            let pause = Pause { event: Duration::from_millis(10), text: None };
            let mut play =
                Play::new(items(), pause, None, Arc::clone(control), judge.open(Turn::default()));
            let mut kinds = Vec::new();
            while let Some(Said::Event(event)) = play.next().await {
                kinds.push(event.kind);
                word(control);
            }
            (kinds.len(), kinds.pop(), play.done())
        };
        let steer = |control: &Control| {
            let _ = control.steer(crate::simulator::control::Steer {
                id: "s".into(),
                input: "[]".into(),
                sha256: String::new(),
            });
        };
        assert_eq!(said(&Arc::default(), steer).await, (5, Some("response.incomplete"), 1));
        assert_eq!(
            said(&Arc::default(), Control::cancel).await,
            (2, Some("response.incomplete"), 0)
        );
        assert!(judge.turns().iter().all(|turn| turn.outcome == Outcome::Incomplete));
    }

    #[tokio::test(start_paused = true)]
    async fn socket_is_closed_after_an_answer_however_it_ended() {
        let judge = Arc::new(Judge::default());
        for (after, end, before) in [
            (4, End::Clean, 4),
            (u64::MAX, End::Clean, 11),
            (4, End::Failed(Refusal::invalid(None, None, "no")), 5),
        ] {
            let cut = Some(Cut { after, stall: Duration::ZERO, end, close: Some(1001) });
            let mut play = Play::new(
                answer(3),
                Pause::default(),
                cut,
                Arc::default(),
                judge.open(Turn::default()),
            );
            for _ in 0..before {
                assert!(matches!(play.next().await, Some(Said::Event(_))));
            }
            assert_eq!(play.next().await, Some(Said::Close(Some(1001))));
        }
    }
}
