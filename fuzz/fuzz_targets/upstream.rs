//! What an HTTP server answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| layby::fuzzing::upstream(bytes));
