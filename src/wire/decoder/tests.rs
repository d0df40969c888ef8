//! Tests of limits, steps and the memory of decoders.

use super::*;
use http::HeaderValue;

/// Counts what it reads.
#[derive(Default)]
struct Count(usize);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn encoded(coding: &str, text: &[u8]) -> Vec<u8> {
    if coding == "zstd" {
        return zstd::encode_all(text, 3).unwrap();
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// Decodes chunks of this size. Returns how many bytes the reader got, if it got all.
fn decoded(coding: &'static str, bytes: &[u8], size: usize) -> Option<usize> {
    let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))]);
    let mut decoder = Decoder::new(&headers, Count::default());
    bytes.chunks(size).for_each(|chunk| decoder.observe(chunk));
    decoder.reader().map(|count| count.0)
}

#[test]
fn answer_that_unfolds_too_far_is_not_read() {
    for coding in ["gzip", "zstd"] {
        let small = vec![b' '; ANY_RATIO];
        assert_eq!(decoded(coding, &encoded(coding, &small), 64), Some(ANY_RATIO));
        let bomb = encoded(coding, &vec![b' '; 64 << 20]);
        for size in [1, 100, bomb.len()] {
            assert_eq!(decoded(coding, &bomb, size), None, "{coding} {size}");
        }
        // This text decodes to less than the ratio allows, in chunks of any size.
        let noise: Vec<u8> = (0..1_u32 << 21).flat_map(|n| (n / 8).to_be_bytes()).collect();
        let folded = encoded(coding, &noise);
        assert!(noise.len() / folded.len() < RATIO);
        for size in [4 << 10, folded.len()] {
            assert_eq!(decoded(coding, &folded, size), Some(noise.len()), "{coding}");
        }
    }
}

#[test]
fn chunk_that_decodes_to_much_is_read_in_steps() {
    let text: Vec<u8> = (0..1_u32 << 18).flat_map(|n| (n / 8).to_be_bytes()).collect();
    for coding in ["gzip", "zstd"] {
        let folded = encoded(coding, &text);
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))]);
        let mut decoder = Decoder::new(&headers, Count::default());
        let (mut steps, mut before) = (0, 0);
        loop {
            let is_read = decoder.step(&folded);
            let now = decoder.reader().unwrap().0;
            assert!(now - before <= STEP + 2 * 32 * 1024, "{coding} {}", now - before);
            (steps, before) = (steps + 1, now);
            if is_read {
                break;
            }
        }
        assert!(before == text.len() && steps >= text.len() / STEP / 2, "{coding} {steps}");
    }
}

/// Parts of a text that decode to nothing: members of gzip, frames of zstd, and blocks.
pub fn hollow(coding: &str, length: usize) -> Vec<u8> {
    let empty = encoded(coding, b"");
    let count = length / empty.len();
    empty.repeat(count)
}

/// Empty blocks of one member: each has its own codes, which a decoder builds anew.
fn hollow_blocks(length: usize) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    while encoder.get_ref().len() < length {
        // A sync flush ends a block, and adds an empty one.
        encoder.flush().unwrap();
        encoder.write_all(b"x").unwrap();
    }
    encoder.finish().unwrap()
}

#[test]
fn chunk_that_decodes_to_nothing_is_read_in_steps() {
    const LENGTH: usize = 512 * 1024;
    for (coding, chunk) in [
        ("gzip", hollow("gzip", LENGTH)),
        ("zstd", hollow("zstd", LENGTH)),
        ("gzip", hollow_blocks(LENGTH)),
    ] {
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))]);
        let mut decoder = Decoder::new(&headers, Count::default());
        let mut steps = 1;
        loop {
            if decoder.step(&chunk) {
                break;
            }
            steps += 1;
        }
        assert!(!decoder.is_blind(), "{coding}");
        let expected = chunk.len() / INPUT;
        assert!((expected..expected + 3).contains(&steps), "{coding}: {steps} steps");
    }
}

#[test]
fn answer_is_whole_only_if_its_coding_is() {
    let ended = |coding: &'static str, bytes: &[u8]| {
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))]);
        let mut decoder = Decoder::new(&headers, Count::default());
        decoder.observe(bytes);
        assert!(!decoder.is_blind(), "{coding}: what has come can be read");
        decoder.end();
        decoder.reader().map(|count| count.0)
    };
    for coding in ["gzip", "zstd"] {
        let whole = encoded(coding, b"a text that is worth it");
        assert_eq!(ended(coding, &whole), Some(23), "{coding}");
        let twice = [&whole[..], &whole].concat();
        assert_eq!(ended(coding, &twice), Some(46), "{coding}: several members or frames");
        assert_eq!(ended(coding, b""), Some(0), "{coding}: nothing has no coding");
        // The last piece fills the buffer exactly.
        let filled = encoded(coding, &vec![b'x'; PIECE]);
        assert_eq!(ended(coding, &filled), Some(PIECE), "{coding}");
        for length in 1..whole.len() {
            assert_eq!(ended(coding, &whole[..length]), None, "{coding}: {length} bytes");
        }
    }
    assert_eq!(ended("identity", b"any"), Some(3));
}

#[test]
fn memory_of_a_decoder_is_known() {
    let held = |coding: &'static str, bytes: &[u8]| {
        let headers = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static(coding))]);
        let mut decoder = Decoder::new(&headers, Count::default());
        decoder.observe(bytes);
        decoder.held()
    };
    assert_eq!(held("identity", b"x"), 0);
    assert_eq!(held("gzip", &encoded("gzip", b"x")), GZIP);
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(WINDOW).unwrap();
    encoder.write_all(&[b'x'; 64]).unwrap();
    encoder.flush().unwrap();
    let window = 1 << WINDOW;
    let large = held("zstd", &encoder.finish().unwrap());
    assert!((window..window + (1 << 20)).contains(&large), "{large}");
    let small = held("zstd", &encoded("zstd", b"x"));
    assert!(small < 1 << 20, "{small}");
    assert_eq!(held("zstd", b"no zstd at all"), 0, "nothing is kept of what cannot be read");
}

#[test]
fn window_of_a_text_is_limited() {
    for (log, expected) in [(23, Some(64)), (24, None), (27, None)] {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(&[b'x'; 64]).unwrap();
        encoder.flush().unwrap();
        let bytes = encoder.finish().unwrap();
        assert_eq!(decoded("zstd", &bytes, bytes.len()), expected, "{log}");
        let whole = unfold_zstd(&bytes).unwrap().read_to_end(&mut Vec::new());
        assert_eq!(whole.ok(), expected, "{log}");
    }
}

#[test]
fn coding_is_read_in_every_spelling() {
    let of = |values: &[&'static str]| {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(CONTENT_ENCODING, HeaderValue::from_static(value));
        }
        Coding::of(&headers)
    };
    for (values, expected) in [
        (&[][..], Coding::Plain),
        (&[""], Coding::Plain),
        (&["Identity"], Coding::Plain),
        (&["GZIP"], Coding::Gzip),
        (&["x-GZip"], Coding::Gzip),
        (&["identity, gzip"], Coding::Gzip),
        (&[" Zstd "], Coding::Zstd),
        (&["identity", "zstd"], Coding::Zstd),
        (&["br"], Coding::Unknown),
        (&["deflate"], Coding::Unknown),
        (&["gzip, zstd"], Coding::Unknown),
        (&["gzip", "gzip"], Coding::Unknown),
    ] {
        assert_eq!(of(values), expected, "{values:?}");
    }
}
