//! Feeds libFuzzer's bytes to `properties::chat`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (&[u8], &[u8])| {
    let (text, cuts) = input;
    warmkey::properties::chat::body(text);
    warmkey::properties::chat::stream(text, cuts);
});
