//! `cargo fuzz run -s none rego_input`: see `mesh_fuzz::rego_input`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_fuzz::rego_input(data));
