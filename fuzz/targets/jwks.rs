//! `cargo fuzz run -s none jwks`: see `mesh_fuzz::jwks`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_fuzz::jwks(data));
