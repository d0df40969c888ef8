//! Feeds libFuzzer's bytes to `properties::quotes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| warmkey::properties::quotes(text));
