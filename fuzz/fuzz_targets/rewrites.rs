//! Feeds libFuzzer's bytes to the properties of the code that writes into bodies and reads queries.
#![no_main]

use warmkey::properties::rewrites;

libfuzzer_sys::fuzz_target!(|input: (&[u8], Vec<bool>)| {
    let (text, encoded) = input;
    rewrites::rename(text);
    rewrites::query(text, &encoded);
});
