//! `cargo fuzz run -s none authz`: see `mesh_fuzz::authz`.

#![no_main]
#![expect(unsafe_code, reason = "libFuzzer's entry point is a C function")]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_fuzz::authz(data));
