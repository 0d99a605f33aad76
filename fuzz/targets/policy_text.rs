//! `cargo fuzz run -s none policy_text`: see `mesh_fuzz::policy_text`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mesh_fuzz::policy_text(data));
