//! Feeds libFuzzer's bytes to `properties::json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| warmkey::properties::json(text));
