//! `cargo fuzz run -s none spiffe_id`: see `mesh_fuzz::spiffe_id`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_fuzz::spiffe_id(data));
