//! What a worker says of its answer, on the way to the client.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| layby::fuzzing::answer(bytes));
