//! `cargo fuzz run -s none bundle_json`: see `mesh_fuzz::bundle_json`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_fuzz::bundle_json(data));
