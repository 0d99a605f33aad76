//! `cargo fuzz run -s none spiffe_id`: see `mesh_fuzz::spiffe_id`.

#![no_main]
#![expect(unsafe_code, reason = "libFuzzer's entry point is a C function")]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_fuzz::spiffe_id(data));
