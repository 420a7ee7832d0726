//! What a balancer sends before the client's first byte.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| layby::fuzzing::proxy(bytes));
