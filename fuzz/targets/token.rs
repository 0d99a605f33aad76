//! `cargo fuzz run -s none token`: see `mesh_fuzz::token`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_fuzz::token(data));
