//! Feeds libFuzzer's bytes to the properties of stored items.
#![no_main]

use warmkey::properties::items;

libfuzzer_sys::fuzz_target!(|input: (&[u8], &[u8])| {
    let (text, cuts) = input;
    items::referred_to(text);
    items::made(text, cuts);
});
