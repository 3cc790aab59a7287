//! Holds `fleet::fuzz::flows` to whatever libFuzzer comes up with.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleet::fuzz::flows(data));
