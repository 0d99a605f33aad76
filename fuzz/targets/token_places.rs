//! `cargo fuzz run -s none token_places`: see `mesh_fuzz::token_places`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_fuzz::token_places(data));
