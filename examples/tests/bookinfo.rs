//! The walk-through's table, and the real tools that a newcomer would try on the services.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use bookinfo::serve::Section;
use bookinfo::{Outcome, run, serve};
use serde_json::Value;

/// Steps that a later capability must first make possible, with the reason the table gives.
const SKIPPED: &[&str] = &[];

#[tokio::test(flavor = "multi_thread")]
async fn every_step_passes() {
    let table = run().await.expect("the demo runs");
    let failed: Vec<String> = table
        .steps()
        .iter()
        .filter(|step| step.outcome == Outcome::Fail)
        .map(ToString::to_string)
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let skipped: Vec<&str> = table
        .steps()
        .iter()
        .filter(|step| step.outcome == Outcome::Skip)
        .map(|step| step.id)
        .collect();
    assert_eq!(skipped, SKIPPED);
    assert_eq!(table.steps().len(), 78);
}

/// A folder of its own, gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("bookinfo-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary folder");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// Starts the services as `serve --section B` does and reads what it wrote.
async fn strict_services(folder: &Path) -> Value {
    let dir = folder.to_owned();
    tokio::spawn(async move { serve::serve(&dir, Section::B).await });
    let file = folder.join("bookinfo.json");
    for _ in 0..600 {
        if let Ok(text) = fs::read_to_string(&file) {
            return serde_json::from_str(&text).expect("bookinfo.json is JSON");
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the services did not start within 30 s");
}

/// Runs a tool; nothing, loudly, where it is not installed.
async fn tool(name: &'static str, arguments: Vec<String>) -> Option<Output> {
    let run =
        move || Command::new(name).args(arguments).stdin(std::process::Stdio::null()).output();
    match tokio::task::spawn_blocking(run).await.expect("the tool's thread") {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("SKIPPED: {name} cannot be run ({error}); nothing is shown by this test");
            None
        }
    }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text in bookinfo.json").to_owned()
}

fn strings(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|&argument| argument.to_owned()).collect()
}

/// curl without TLS exits 56, curl with our certificate gets 200, and openssl shows TLS 1.3 and
/// the chain.
#[tokio::test(flavor = "multi_thread")]
async fn real_tools_see_what_a_mesh_shows() {
    let folder = Folder::new("tools");
    let world = strict_services(&folder.0).await;
    let address = text(&world["services"]["details"]["address"]);
    let identity = &world["identities"]["bookinfo-productpage"];
    let (certificate, key) = (text(&identity["certificate"]), text(&identity["key"]));
    let ca = text(&world["ca"]["certificate"]);

    let url = format!("http://{address}/details/1");
    let quiet = ["-s", "-o", "/dev/null", "-w", "%{http_code}", "--max-time", "5"];
    let plain = strings(&[&quiet[..], &[&url]].concat());
    if let Some(output) = tool("curl", plain).await {
        assert_eq!(output.status.code(), Some(56), "plain text under STRICT");
        assert_eq!(output.stdout, b"000");
    }

    // SPIFFE certificates name no host, so curl is told to trust the server without one.
    let url = format!("https://{address}/details/1");
    let with_identity = ["-k", "--cert", &certificate, "--key", &key, &url];
    let mutual = strings(&[&quiet[..], &with_identity].concat());
    if let Some(output) = tool("curl", mutual).await {
        assert_eq!(output.stdout, b"200", "curl with our certificate: {output:?}");
    }

    let arguments = ["s_client", "-connect", &address, "-cert", &certificate, "-key", &key];
    let more = ["-CAfile", &ca, "-showcerts", "-alpn", "h2,http/1.1"];
    if let Some(output) = tool("openssl", strings(&[&arguments[..], &more].concat())).await {
        let shown = String::from_utf8_lossy(&output.stdout);
        assert!(shown.contains("TLSv1.3"), "{shown}");
        assert!(shown.contains("Verify return code: 0 (ok)"), "{shown}");
        assert!(shown.contains("-----BEGIN CERTIFICATE-----"), "{shown}");
    }
}
