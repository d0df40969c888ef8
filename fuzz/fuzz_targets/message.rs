//! Feeds libFuzzer's bytes to `properties::message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| warmkey::properties::message(text));
