//! `cargo fuzz run -s none bundle`: see `mesh_fuzz::bundle`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_fuzz::bundle(data));
