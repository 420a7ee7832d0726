//! The plans in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| layby::fuzzing::plan(bytes));
