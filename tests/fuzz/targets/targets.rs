//! Holds `fleet::fuzz::targets` to whatever libFuzzer comes up with.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleet::fuzz::targets(data));
