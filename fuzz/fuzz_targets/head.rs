//! What a client sends before its body.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| layby::fuzzing::head(bytes));
