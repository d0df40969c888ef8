//! Feeds libFuzzer's bytes to `properties::answers::error_body`.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| warmkey::properties::answers::error_body(text));
