//! `cargo fuzz run -s none authz`: see `mesh_fuzz::authz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_fuzz::authz(data));
