//! The engine against the model, on cases drawn from a fixed seed: `cargo test` runs a share of
//! what the fuzzer runs for hours. `MESH_FUZZ_CASES` asks for more.

#[test]
fn sem_strict_20_sec_authz_3_the_engine_agrees_with_the_model() {
    let cases = std::env::var("MESH_FUZZ_CASES").ok().and_then(|text| text.parse().ok());
    // xorshift64*, so that a failure repeats.
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    let cases: usize = cases.unwrap_or(1_000);
    let judged = (0..cases).filter(|_| {
        let data: Vec<u8> = (0..80).flat_map(|_| next().to_le_bytes()).collect();
        mesh_fuzz::judge(&data)
    });
    let judged = judged.count();
    println!("authz against the model: {judged} of {cases} cases had policies that load");
    assert!(judged > cases / 3, "only {judged} of {cases} cases said anything");
}
