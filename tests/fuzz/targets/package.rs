//! Holds `fleet::fuzz::package` to whatever libFuzzer comes up with.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fleet::fuzz::package(data));
