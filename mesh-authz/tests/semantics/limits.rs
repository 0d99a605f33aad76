//! [SEC-AUTHZ-10] A mebibyte of anything is read or refused, in time that grows with its length.

use std::time::Instant;

use mesh_authz::AuthorizationPolicy;

/// Texts of about `len` bytes that make parsers work.
fn texts(len: usize) -> [(&'static str, String); 12] {
    let head = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n";
    let repeated = |start: &str, piece: &str, end: &str| {
        format!("{start}{}{end}", piece.repeat(len.div_euclid(piece.len().max(1))))
    };
    let paths = format!("{head}spec:\n  rules:\n  - to:\n    - operation:\n        paths: [");
    let aliases: String = (1..=len / 40).fold("a0: &a0 [x, x]\n".to_owned(), |text, at| {
        let before = at.saturating_sub(1);
        text + &format!("a{at}: &a{at} [*a{before}, *a{before}]\n")
    });
    [
        ("values", repeated(&paths, "\"/service/*\", ", "]}")),
        ("templates", repeated(&paths, "\"/{*}/{*}/{**}\", ", "]}")),
        ("rules", repeated(&format!("{head}spec:\n  rules:\n"), "  - {}\n", "")),
        ("documents", repeated("", &format!("{head}---\n"), "")),
        ("nested lists", repeated("", "[", "")),
        ("nested maps", repeated("", "{a: ", "")),
        ("nested JSON", repeated("", "{\"a\":[", "")),
        ("aliases of aliases", aliases),
        ("one long key", repeated("", "k", ": 1")),
        ("one long text", repeated("\"", "\\u0041", "\"")),
        ("indentation", repeated("", "- ", "a")),
        ("noise", repeated("", "%&*!|>'\"@`#,[]{}?:-\n", "")),
    ]
}

#[test]
#[expect(clippy::disallowed_methods, reason = "prints how long reading takes")]
fn sec_authz_10_a_mebibyte_of_anything_is_read_or_refused() {
    for ((name, half), (_, whole)) in texts(1 << 19).into_iter().zip(texts((1 << 20) - 4096)) {
        let mut took = Vec::new();
        for text in [half, whole] {
            let begin = Instant::now();
            let read = mesh_identity::manifest::read(&text, "big.yaml", "foo");
            let accepted = read.map_or(0, |manifests| {
                let resources = manifests.resources.iter();
                resources.filter(|one| AuthorizationPolicy::from_manifest(one).is_ok()).count()
            });
            took.push(begin.elapsed());
            // Many small policies are what the size is for; the rest is beyond some limit.
            assert_eq!(accepted > 0, name == "documents", "{name}: {accepted} policies");
        }
        println!("{name}: 512 KiB in {:?}, 1 MiB in {:?}", took[0], took[1]);
    }
}
