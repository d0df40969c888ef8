//! Feeds libFuzzer's bytes to `properties::events`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (&[u8], &[u8])| {
    let (text, cuts) = input;
    warmkey::properties::events(text, cuts);
});
