//! Translates a streamed answer for a chat client: short events at once, long ones on another
//! thread.
//!
//! The last event repeats the whole answer, so an event may have many megabytes. The bytes that the
//! gateway holds of an event count in the replica's memory.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use crate::chat::stream::Stream;
use crate::client::ClientId;
use crate::error::Error;
use crate::turn::http::heavy_places::HeavyPlaces;
use crate::turn::memory::{BodyMemory, LIGHT, MemoryPlace};
use crate::wire::event::line_length;

/// Memory of a translation as a multiple of its text's length: the text, its parts, and the chunks.
const COPIES: usize = 3;

/// What the gateway's own work on an answer of one client may use.
#[derive(Clone)]
pub struct AnswerWork {
    pub heavy: Arc<HeavyPlaces>,
    pub memory: BodyMemory,
    pub client: ClientId,
}

impl AnswerWork {
    /// Translates `length` bytes by `work`: on another thread if they are many. `place` then covers
    /// the copies, but not while the work waits for its thread. Nor does it keep its place for a
    /// thread while it waits for memory.
    pub async fn translate<T: Send + 'static>(
        &self,
        length: usize,
        place: &mut MemoryPlace,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Error> {
        if length <= LIGHT {
            return Ok(work());
        }
        let take = || self.heavy.take_for_answer(&self.client);
        self.memory.await_answer_with(place, length * COPIES, take).await?.run(work).await
    }
}

/// Bytes that count in the memory until they have gone.
pub struct Counted {
    pub bytes: Vec<u8>,
    pub place: MemoryPlace,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl From<Counted> for Bytes {
    fn from(counted: Counted) -> Self {
        Self::from_owner(counted)
    }
}

type Translated = (Box<Stream>, Vec<u8>, MemoryPlace);
type Working = Pin<Box<dyn Future<Output = Result<Translated, Error>> + Send>>;

enum State {
    Ready(Box<Stream>),
    /// An event is translated on another thread.
    Working(Working),
    /// There is no memory for an event, or no thread.
    Lost,
}

/// The translation of one answer.
pub struct Translation {
    state: State,
    work: AnswerWork,
    place: MemoryPlace,
}

/// An event could not be translated for lack of memory or of a thread.
#[derive(Debug)]
pub struct NoPlace;

impl Translation {
    pub fn new(stream: Stream, work: AnswerWork) -> Self {
        Self { state: State::Ready(Box::new(stream)), work, place: MemoryPlace::default() }
    }

    /// Takes the next bytes of the upstream's stream. Returns the chunks that they complete.
    /// `None`: [`Self::poll_work`] will return them.
    pub fn push(&mut self, data: &Bytes) -> Option<Bytes> {
        let State::Ready(mut stream) = std::mem::replace(&mut self.state, State::Lost) else {
            return None;
        };
        let length = stream.held() + data.len();
        if length > LIGHT && line_length(data).is_some() {
            let (work, data) = (self.work.clone(), data.clone());
            let mut place = std::mem::take(&mut self.place);
            let translate = move || {
                let out = stream.push(&data);
                (stream, out)
            };
            self.state = State::Working(Box::pin(async move {
                let (stream, out) = work.translate(length, &mut place, translate).await?;
                Ok((stream, out, place))
            }));
            return None;
        }
        let out = stream.push(data);
        let chunks = if out.capacity() <= LIGHT {
            Some(out.into())
        } else {
            self.count(out, MemoryPlace::default())
        };
        if chunks.is_some() {
            self.hold(stream);
        }
        chunks
    }

    /// Whether another thread translates an event, or an event was lost.
    pub const fn is_working(&self) -> bool {
        !matches!(self.state, State::Ready(_))
    }

    /// Returns the chunks of the event that another thread translates.
    pub fn poll_work(&mut self, context: &mut Context<'_>) -> Poll<Result<Bytes, NoPlace>> {
        let done = match &mut self.state {
            State::Working(working) => ready!(working.as_mut().poll(context)),
            State::Ready(_) => return Poll::Ready(Ok(Bytes::new())),
            State::Lost => return Poll::Ready(Err(NoPlace)),
        };
        let (stream, chunks, place) = match done {
            Ok(translated) => translated,
            Err(error) => {
                tracing::warn!(cause = %error, "an answer's event could not be translated");
                self.state = State::Lost;
                return Poll::Ready(Err(NoPlace));
            }
        };
        // The chunks take over the place. They may be longer than what they were made of.
        let Some(chunks) = self.count(chunks, place) else {
            self.state = State::Lost;
            return Poll::Ready(Err(NoPlace));
        };
        self.hold(stream);
        Poll::Ready(Ok(chunks))
    }

    /// Counts chunks in `place` until the client has them. `None`: there is no memory for them.
    fn count(&self, bytes: Vec<u8>, mut place: MemoryPlace) -> Option<Bytes> {
        match self.work.memory.follow_answer(&mut place, bytes.capacity()) {
            Ok(()) => Some(Counted { bytes, place }.into()),
            Err(error) => {
                tracing::warn!(cause = %error, "an answer's chunks found no memory");
                None
            }
        }
    }

    /// Keeps the stream, and counts the memory that it holds.
    fn hold(&mut self, stream: Box<Stream>) {
        let counted = self.work.memory.follow_answer(&mut self.place, stream.memory());
        self.state = counted.map_or(State::Lost, |()| State::Ready(stream));
    }

    /// Ends the stream. Returns an error if the upstream has not ended it, or if the gateway could
    /// not translate an event.
    pub fn end(self) -> Vec<u8> {
        match self.state {
            State::Ready(mut stream) => stream.end(),
            State::Working(_) | State::Lost => Stream::untranslated(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::setting::Size;

    const MIB: usize = 1 << 20;

    fn work(memory: &BodyMemory) -> AnswerWork {
        AnswerWork {
            heavy: Arc::new(HeavyPlaces::new(1)),
            memory: memory.clone(),
            client: ClientId::new("alice"),
        }
    }

    /// An event that tells a text of this length.
    fn event(length: usize) -> Vec<u8> {
        let text = "x".repeat(length);
        format!(
            "data: {{\"type\":\"response.output_text.delta\",\"output_index\":0,\"content_index\":0,\"delta\":\"{text}\"}}\n\n"
        )
        .into_bytes()
    }

    /// A chunk without its id and time.
    fn choices(chunk: &[u8]) -> &[u8] {
        let at = memchr::memmem::find(chunk, br#""choices""#).expect("a chunk");
        &chunk[at..]
    }

    #[tokio::test]
    async fn long_event_is_translated_on_another_thread_and_counted() {
        let memory = BodyMemory::new(Size(64 * MIB as u64));
        let mut translation = Translation::new(Stream::new(false), work(&memory));
        let short = translation.push(&event(20).into()).expect("a short event is translated here");
        assert!(!short.is_empty() && memory.used() == 0);
        let (long, mut most, mut told) = (event(10 * MIB), 0, Vec::new());
        for part in long.chunks(100_000) {
            match translation.push(&Bytes::copy_from_slice(part)) {
                Some(data) => told.push(data),
                None => {
                    let chunk = poll_fn(|context| translation.poll_work(context)).await;
                    told.push(chunk.expect("memory and a thread are there"));
                }
            }
            most = most.max(memory.used());
        }
        assert!((10 * MIB..32 * MIB).contains(&most), "{most}");
        let chunks: Vec<_> = told.iter().filter(|data| !data.is_empty()).collect();
        assert!(chunks.len() == 1 && chunks[0].len() > 10 * MIB);
        assert!(memory.used() > 10 * MIB, "until the client has it");
        let mut straight = Stream::new(false);
        straight.push(&event(20));
        let expected = straight.push(&long);
        assert!(choices(&expected) == choices(chunks[0]), "the same chunk");
        drop(told);
        assert_eq!(memory.used(), 0);
    }

    #[tokio::test]
    async fn copies_are_counted_only_once_there_is_a_thread() {
        let memory = BodyMemory::new(Size(64 * MIB as u64));
        let (work, mut place) = (work(&memory), MemoryPlace::default());
        memory.follow_answer(&mut place, 10 * MIB).unwrap();
        let held = work.heavy.take_for_answer(&ClientId::new("bob")).await.unwrap();
        let mut translating = std::pin::pin!(work.translate(10 * MIB, &mut place, || ()));
        assert!(futures_util::poll!(translating.as_mut()).is_pending());
        assert_eq!(memory.used(), 10 * MIB, "while it waits");
        drop(held);
        translating.await.unwrap();
        assert_eq!(memory.used(), COPIES * 10 * MIB);
    }

    #[tokio::test(start_paused = true)]
    async fn place_is_free_for_others_while_memory_is_awaited() {
        let memory = BodyMemory::new(Size(64 * MIB as u64));
        let (work, bob) = (work(&memory), ClientId::new("bob"));
        let [mut place, mut others] = [(); 2].map(|()| MemoryPlace::default());
        memory.follow_answer(&mut others, 60 * MIB).unwrap();
        let mut translating = std::pin::pin!(work.translate(10 * MIB, &mut place, || ()));
        assert!(futures_util::poll!(translating.as_mut()).is_pending(), "it waits for memory");
        let mut taking = std::pin::pin!(work.heavy.take_for_answer(&bob));
        let Poll::Ready(Ok(held)) = futures_util::poll!(taking.as_mut()) else {
            panic!("the place is not free")
        };
        drop(others);
        assert!(futures_util::poll!(translating.as_mut()).is_pending(), "it waits for its place");
        assert_eq!(memory.used(), 0, "and holds no memory meanwhile");
        drop(held);
        translating.await.unwrap();
        assert_eq!(memory.used(), COPIES * 10 * MIB);
    }

    /// Many deltas whose chunks are longer than they are: each repeats the model.
    fn growing(length: usize) -> Vec<u8> {
        let model = "m".repeat(400);
        let begin = format!(
            "data:{{\"type\":\"response.created\",\"response\":{{\"model\":\"{model}\"}}}}\n\n"
        );
        let delta = "data:{\"type\":\"response.refusal.delta\",\"delta\":\"\"}\n\n";
        (begin + &delta.repeat(length / delta.len())).into_bytes()
    }

    #[tokio::test]
    async fn chunks_count_as_long_as_they_are_or_end_the_answer() {
        for (length, is_heavy) in [(LIGHT + 100_000, true), (LIGHT / 2, false)] {
            for (total, has_room) in [(64 * MIB, true), (MIB, false)] {
                let memory = BodyMemory::new(Size(total as u64));
                let mut translation = Translation::new(Stream::new(false), work(&memory));
                let pushed = translation.push(&growing(length).into());
                assert!(!is_heavy || pushed.is_none());
                let chunks = match pushed {
                    Some(chunks) => Ok(chunks),
                    None => poll_fn(|context| translation.poll_work(context)).await,
                };
                assert_eq!(chunks.is_ok(), has_room, "{length} {total}");
                let held = chunks.as_ref().map_or(0, Bytes::len);
                assert!(!has_room || held > 5 * length, "{held}");
                assert!(memory.used() + 8 * 1024 > held, "{held}: {}", memory.used());
                drop(chunks);
                let said = String::from_utf8(translation.end()).unwrap();
                assert!(has_room || said.contains("no memory"), "{said}");
                assert_eq!(memory.used(), 0);
            }
        }
    }

    #[tokio::test]
    async fn event_without_memory_ends_the_stream() {
        let memory = BodyMemory::new(Size(MIB as u64));
        let mut translation = Translation::new(Stream::new(false), work(&memory));
        let parts = event(4 * MIB);
        let pushed = parts
            .chunks(100_000)
            .take_while(|part| translation.push(&Bytes::copy_from_slice(part)).is_some());
        let count = pushed.count();
        assert!((10..15).contains(&count), "{count}: a quarter more than the limit");
        assert!(poll_fn(|context| translation.poll_work(context)).await.is_err());
        let said = String::from_utf8(translation.end()).unwrap();
        assert!(said.contains("upstream_interrupted"), "{said}");
        assert_eq!(memory.used(), 0);
    }
}
