//! Feeds libFuzzer's bytes to `properties::answers::terminal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| warmkey::properties::answers::terminal(text));
