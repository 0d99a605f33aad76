//! What no environment changes.

use std::process::Command;

use crate::handshake::shake;
use crate::mint::Ca;

/// [SEC-TLS-16] The variable that browsers and curl heed writes nothing.
#[test]
fn sec_tls_16_no_key_log_by_environment() {
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("sec_tls_16_key_log");
    if file.exists() {
        std::fs::remove_file(&file).unwrap();
    }
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "settings::a_handshake_under_the_callers_environment"])
        .env("SSLKEYLOGFILE", &file)
        .output()
        .unwrap();
    let text = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success() && text.contains("1 passed"), "{text}");
    assert!(!file.exists());
}

#[test]
fn a_handshake_under_the_callers_environment() {
    let ca = Ca::new();
    let (client, server) = (ca.client().config(), ca.server().config());
    shake(client.clone(), server.clone()).unwrap();
    for label in ["CLIENT_RANDOM", "CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0"] {
        assert!(!client.key_log.will_log(label) && !server.key_log.will_log(label));
    }
}
