#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| hsm_authd_fuzz::jws::run(input));
