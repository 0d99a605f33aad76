//! Our side of the comparison with OPA (`differential.py`): a policy, then one input a line; one
//! answer a line.

use std::error::Error;
use std::io::{BufRead as _, BufReader, Write as _, stdin, stdout};
use std::thread;

use mesh_tower::authz::rego::{RegoDenyReason, RegoInput, RegoOptions, RegoPolicy};
use serde_json::{Value, json};

fn run() -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut lines = BufReader::new(stdin()).lines();
    let policy: Value = serde_json::from_str(&lines.next().ok_or("no policy")??)?;
    let module = policy["module"].as_str().ok_or("no module")?;
    let data = Some(policy["data"].clone());
    let policy = RegoPolicy::compile(&[("policy.rego", module)], data, RegoOptions::default())?;
    let mut out = stdout().lock();
    for line in lines {
        let input = RegoInput::from_json(&serde_json::from_str(&line?)?, None);
        let answer = policy.answer(&input);
        let shown = match (answer.result(), answer.decision().reason()) {
            (Some(value), _) => json!({ "value": value }),
            (None, Some(RegoDenyReason::Undefined)) => json!({ "undefined": true }),
            (None, Some(RegoDenyReason::Conflict | RegoDenyReason::EvaluationError)) => {
                json!({ "error": true })
            }
            (None, other) => json!({ "other": format!("{other:?}") }),
        };
        writeln!(out, "{shown}")?;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // Evaluation recurses along the rules; a pool's workers have such a stack.
    let thread = thread::Builder::new().stack_size(64 << 20).spawn(run)?;
    thread.join().unwrap_or_else(|_| Err("the evaluation panicked".into()))
}
