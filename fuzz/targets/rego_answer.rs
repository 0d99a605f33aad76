//! `cargo fuzz run -s none rego_answer`: see `mesh_fuzz::rego_answer`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_fuzz::rego_answer(data));
