//! What another implementation says of our certificates.

use std::path::Path;
use std::process::Command;

use crate::{DAY, HOUR, ID, NOW, id, now, root};

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// What openssl prints; nothing when there is none.
fn openssl(folder: &Path, arguments: &[&str]) -> Option<(bool, String)> {
    let run = Command::new("openssl").args(arguments).current_dir(folder).output().ok()?;
    let text = [run.stdout, run.stderr].concat();
    Some((run.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn sec_ca_4_openssl_verifies_and_reads_what_we_issue() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sec_ca_4_openssl");
    std::fs::create_dir_all(&folder).unwrap();
    if openssl(&folder, &["version"]).is_none() {
        eprintln!("SKIPPED: there is no openssl to ask");
        return;
    }
    let root = root();
    let intermediate = root.new_intermediate(DAY, now()).unwrap();
    let svid = intermediate.issue_svid(&id(), HOUR, now()).unwrap();
    std::fs::write(folder.join("leaf.pem"), pem(&svid.chain()[0])).unwrap();
    std::fs::write(folder.join("chain.pem"), pem(&svid.chain()[1])).unwrap();
    std::fs::write(folder.join("root.pem"), root.certificate_pem()).unwrap();
    let when = NOW.to_string();
    for purpose in ["sslclient", "sslserver"] {
        let (good, text) = openssl(
            &folder,
            &[
                "verify",
                "-x509_strict",
                "-purpose",
                purpose,
                "-attime",
                &when,
                "-CAfile",
                "root.pem",
                "-untrusted",
                "chain.pem",
                "leaf.pem",
            ],
        )
        .unwrap();
        assert!(good && text.contains("leaf.pem: OK"), "{purpose}: {text}");
    }
    let (_, text) = openssl(&folder, &["x509", "-in", "leaf.pem", "-noout", "-text"]).unwrap();
    for line in [
        "Version: 3 (0x2)",
        "Subject: \n",
        "X509v3 Subject Alternative Name: critical",
        &format!("URI:{ID}"),
        "X509v3 Basic Constraints: critical",
        "CA:FALSE",
        "X509v3 Key Usage: critical",
        "Digital Signature\n",
        "TLS Web Server Authentication, TLS Web Client Authentication",
        "X509v3 Subject Key Identifier:",
        "X509v3 Authority Key Identifier:",
    ] {
        assert!(text.contains(line), "{line:?} is missing in {text}");
    }
    let (_, text) = openssl(&folder, &["x509", "-in", "chain.pem", "-noout", "-text"]).unwrap();
    assert!(text.contains("CA:TRUE, pathlen:0") && text.contains("URI:spiffe://a.test"), "{text}");
}
