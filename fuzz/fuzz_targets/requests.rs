//! What a client sends on its connection.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| layby::fuzzing::requests(bytes));
