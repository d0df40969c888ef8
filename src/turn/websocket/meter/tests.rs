//! Tests of what the unfinished messages of a connection count, and when they must end.

use super::*;
use crate::setting::Size;
use crate::turn::pace::GRACE;
use proptest::prelude::*;

/// A frame of a client with this first byte and payload length.
fn frame(first: u8, length: usize) -> Vec<u8> {
    let mut frame = vec![first];
    match length {
        0..=125 => frame.push(0x80 | length as u8),
        126..=0xffff => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        _ => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend([1, 2, 3, 4]);
    frame.resize(frame.len() + length, b'x');
    frame
}

fn outline(bytes: &[u8], step: usize) -> Outline {
    let mut outline = Outline::default();
    bytes.chunks(step).for_each(|bytes| outline.read(bytes));
    outline
}

proptest! {
    #[test]
    fn outline_counts_alike_in_all_pieces(
        lengths in proptest::collection::vec(0..70_000_usize, 1..5),
        ping in 0..126_usize,
        step in 1..5_000_usize,
    ) {
        let mut bytes = Vec::new();
        let last = lengths.len() - 1;
        for (number, length) in lengths.iter().enumerate() {
            let text = if number == 0 { 1 } else { 0 };
            let end = if number == last { 0x80 } else { 0 };
            bytes.extend(frame(text | end, *length));
            // A control frame between two fragments.
            bytes.extend(frame(0x89, ping));
        }
        let all: usize = lengths.iter().sum();
        let whole = outline(&bytes, step);
        prop_assert_eq!((whole.held, whole.is_unfinished()), (all, false));
        // The last data frame ends before the last ping does.
        let tail = frame(0x89, ping).len();
        let part = outline(&bytes[..bytes.len() - tail - 1], step);
        let is_empty_tail = lengths[last] == 0;
        prop_assert!(part.is_unfinished());
        prop_assert_eq!(part.held, if is_empty_tail { all } else { all - 1 });
    }
}

#[tokio::test(start_paused = true)]
async fn unfinished_message_is_counted_and_has_a_deadline() {
    let memory = BodyMemory::new(Size(1 << 20));
    let meter = Meter::new(Source::Client, memory.clone());
    assert_eq!(meter.deadline(), None);
    let began = Instant::now();
    meter.lock().count_received(&frame(0x01, 512 << 10)).unwrap();
    assert_eq!(memory.free_units(), 128);
    assert_eq!(meter.deadline(), Some(began + GRACE), "what came quickly allows no silence");
    // A ping between is no end of it.
    meter.lock().count_received(&frame(0x89, 5)).unwrap();
    assert!(meter.is_holding());
    assert!(meter.deadline().is_some() && meter.has_arrived() && !meter.has_arrived());
    meter.lock().count_received(&frame(0x80, 0)).unwrap();
    assert_eq!((meter.deadline(), memory.free_units()), (None, 128), "not forwarded yet");
    assert!(meter.is_holding());
    meter.note_forwarded(512 << 10);
    assert_eq!(memory.free_units(), 256);
    // A part of a ping is no message, and the first byte of one is.
    meter.lock().count_received(&[0x89]).unwrap();
    assert!(!meter.is_holding());
    meter.lock().count_received(&[0x80, 1, 2, 3, 4, 0x81]).unwrap();
    assert!(meter.is_holding());

    for source in [Source::Client, Source::Upstream] {
        let meter = Meter::new(source, memory.clone());
        let more = (1 << 20) + (100 << 10);
        let came = meter.lock().count_received(&frame(0x01, more));
        assert_eq!((came.is_err(), meter.is_full()), (source == Source::Client, came.is_err()));
        let came = meter.lock().count_received(&frame(0x00, 2 << 20));
        assert_eq!((came.is_err(), meter.is_full()), (source == Source::Upstream, true));
        assert!(
            meter.lock().count_received(&frame(0x00, 2 << 20)).is_ok(),
            "the rest is discarded"
        );
    }
    assert_eq!(memory.free_units(), 256, "nothing stays");
}

/// Control frames are no part of the message, however many come.
#[tokio::test(start_paused = true)]
async fn message_on_a_slow_line_has_time_and_a_stalled_one_ends() {
    let second = Duration::from_secs(1);
    let meter = Meter::new(Source::Client, BodyMemory::new(Size(8 << 20)));
    let began = Instant::now();
    meter.lock().count_received(&frame(0x01, 50_000)).unwrap();
    for _ in 0..100 {
        tokio::time::advance(second).await;
        meter.lock().count_received(&frame(0x00, 50_000)).unwrap();
    }
    assert_eq!(meter.deadline(), Some(began + second * 100 + GRACE), "it may go on");
    for _ in 0..10 {
        tokio::time::advance(second).await;
        (0..1_000).for_each(|_| meter.lock().count_received(&frame(0x89, 125)).unwrap());
    }
    assert_eq!(meter.deadline(), Some(began + second * 100 + GRACE), "pings are no progress");
}

#[tokio::test(start_paused = true)]
async fn peer_has_time_to_read_what_was_written() {
    let meter = Meter::new(Source::Client, BodyMemory::new(Size(1 << 20)));
    let (now, second) = (Instant::now(), Duration::from_secs(1));
    assert_eq!(meter.received(), now);
    meter.lock().count_sent(SLOWEST as usize * 3);
    assert_eq!(meter.received(), now + second * 3);
    tokio::time::advance(second * 2).await;
    meter.lock().count_sent(SLOWEST as usize);
    assert_eq!(meter.received(), now + second * 4);
    meter.lock().count_sent(1 << 30);
    assert_eq!(meter.received(), now + second * 2 + second * 512);
}
