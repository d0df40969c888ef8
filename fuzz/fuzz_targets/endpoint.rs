//! Feeds libFuzzer's bytes to `properties::endpoint`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (&str, &str)| {
    let (method, path) = input;
    warmkey::properties::endpoint(method, path);
});
