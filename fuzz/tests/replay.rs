//! Replays the seeds of every target, so that what was found once stays found.

use std::fs;
use std::path::Path;

#[test]
fn every_seed_of_every_target_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in mesh_fuzz::TARGETS {
        let mut seeds = 0;
        for seed in fs::read_dir(corpus.join(name)).expect("every target has a folder of seeds") {
            let path = seed.expect("a folder can be listed").path();
            target(&fs::read(&path).expect("a seed can be read"));
            seeds += 1;
        }
        assert!(seeds > 0, "target {name} has no seeds");
        println!("{name}: {seeds} seeds");
    }
}
