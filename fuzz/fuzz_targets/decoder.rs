//! Feeds libFuzzer's bytes to `properties::answers::decoder`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (&[u8], &[u8])| {
    let (bytes, cuts) = input;
    warmkey::properties::answers::decoder(bytes, cuts);
});
