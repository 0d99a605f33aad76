//! Section 6: the table of path normalization vectors.

use mesh_authz::{NormalizeError, PathNormalization};

/// `=` is unchanged; `400` a refusal.
const TABLE: &[(&[&str], &str, &str, &str, &str)] = &[
    (&["/admin", "/admin/", "/ADMIN"], "=", "=", "=", "="),
    (&["//admin"], "=", "//admin", "/admin", "/admin"),
    (&["/admin//"], "=", "/admin//", "/admin/", "/admin/"),
    (&["/a/../admin", "/a/b/../../admin"], "=", "/admin", "/admin", "/admin"),
    (&["/a/./admin"], "=", "/a/admin", "/a/admin", "/a/admin"),
    (&["/..", "/.", "/a/.."], "=", "/", "/", "/"),
    (&["/a/.", "/a/%2e", "/a/%2e/"], "=", "/a/", "/a/", "/a/"),
    (&["/a/b/../../../c"], "=", "/c", "/c", "/c"),
    (&["/%61dmin"], "=", "/admin", "/admin", "/admin"),
    (&["/%41DMIN"], "=", "/ADMIN", "/ADMIN", "/ADMIN"),
    (&["/a%2fadmin", "/a%2Fadmin", "/a%5cadmin", "/a%5Cadmin"], "=", "=", "=", "/a/admin"),
    (&["/a\\admin"], "=", "/a/admin", "/a/admin", "/a/admin"),
    (&["/a\\..\\admin"], "=", "/admin", "/admin", "/admin"),
    (&["/a/%2e%2e/admin", "/a/%2E%2E/admin", "/a/.%2e/admin"], "=", "/admin", "/admin", "/admin"),
    (&["/a%2f..%2fadmin"], "=", "=", "=", "/admin"),
    (&["/a%2f%2e%2e%2fadmin"], "=", "/a%2f..%2fadmin", "/a%2f..%2fadmin", "/admin"),
    (&["/a%252fadmin"], "=", "=", "=", "="),
    (&["/admin%20", "/admin%23x", "/admin%3Fx=1"], "=", "=", "=", "="),
    (&["/admin%00"], "=", "400", "400", "400"),
    (&["/admin%", "/admin%zz"], "=", "=", "=", "="),
    (&["/admin?x=/../y", "/admin?x=//y"], "=", "=", "=", "="),
    (&["/admin#f", "/admin#f?x"], "/admin", "/admin", "/admin", "/admin"),
    (&["/admin;x=1", "/admin;"], "=", "=", "=", "="),
    (&["/x/..;/admin", "/x/..;foo=1/admin"], "=", "/admin", "/admin", "/admin"),
    (&["/./;/admin"], "=", "/;/admin", "/;/admin", "/;/admin"),
    (&["/a/;/b"], "=", "=", "=", "="),
    (&["/a|b"], "=", "/a%7Cb", "/a%7Cb", "/a%7Cb"),
    (&["/a\"b"], "=", "/a%22b", "/a%22b", "/a%22b"),
    (&["/a^b"], "=", "/a%5Eb", "/a%5Eb", "/a%5Eb"),
    (&["/a{b}"], "=", "/a%7Bb%7D", "/a%7Bb%7D", "/a%7Bb%7D"),
    (&["/a[b]", "/a*b", "/a+b", "/a'b", "/a$b!c(d)"], "=", "=", "=", "="),
    (&["/a%7eb"], "=", "/a~b", "/a~b", "/a~b"),
    (&["/%2d%2D"], "=", "/--", "/--", "/--"),
    (&["/a%2a", "/a%c3%a9", "/a%C3%A9", "/a/%c0%af"], "=", "=", "=", "="),
    (&["/a/...", "/a/..b", "/a/.b/"], "=", "=", "=", "="),
    (&["/%2e%2e/%2e%2e/etc"], "=", "/etc", "/etc", "/etc"),
    (&["/a//../b"], "=", "/a/b", "/a/b", "/a/b"),
    (&["//..//b"], "=", "//b", "/b", "/b"),
    (&["/a%2f%2fb"], "=", "=", "=", "/a/b"),
    (&["/%5c%5cb"], "=", "=", "=", "/b"),
    (&["/a/%5c../b"], "=", "=", "=", "/a/b"),
    (&["/a/..%5cb"], "=", "=", "=", "/b"),
    (&["//"], "=", "//", "//", "//"),
    (&["///"], "=", "///", "//", "//"),
    (&["//a/..", "/a/%2e%2e//"], "=", "//", "//", "//"),
    (&["/.//a"], "=", "//a", "/a", "/a"),
    (&["/\\a"], "=", "//a", "/a", "/a"),
    (&["/a/././/b"], "=", "/a//b", "/a/b", "/a/b"),
    (&["/a;/../b"], "=", "/b", "/b", "/b"),
    (&["/a/b/..;"], "=", "/a/", "/a/", "/a/"),
    (&["/a/..;%2fb"], "=", "/", "/", "/b"),
    (&["/a/.;/..;/b"], "=", "/b", "/b", "/b"),
    (&["/a/%2e%2e;x/b", "/a/.%2E;x/b"], "=", "/a/..;x/b", "/a/..;x/b", "/a/..;x/b"),
    (&["/a/%2e%2e%3bx/b"], "=", "/a/..%3bx/b", "/a/..%3bx/b", "/a/..%3bx/b"),
    (&["/a%%2e"], "=", "/a%.", "/a%.", "/a%."),
    (&["/a/%%32e%%32e/b"], "=", "/a/%252e%252e/b", "/a/%252e%252e/b", "/a/%252e%252e/b"),
    (&["/a%%32fb", "/a%2%66b"], "=", "/a%252fb", "/a%252fb", "/a%252fb"),
    (&["/a/..?x"], "=", "/?x", "/?x", "/?x"),
    (&["/a/..%2f;x"], "=", "=", "=", "/;x"),
    (
        &["/%5Capp%2f%5c%2F%2e%2e%2fadmin%5c\\abc"],
        "=",
        "/%5Capp%2f%5c%2F..%2fadmin%5c/abc",
        "/%5Capp%2f%5c%2F..%2fadmin%5c/abc",
        "/app/admin/abc",
    ),
];

#[test]
fn sem_path_01_to_20_the_table_of_vectors() {
    for (sent, none, base, merge, decode) in TABLE {
        for sent in *sent {
            for (mode, want) in [
                (PathNormalization::None, none),
                (PathNormalization::Base, base),
                (PathNormalization::MergeSlashes, merge),
                (PathNormalization::DecodeAndMergeSlashes, decode),
            ] {
                let got = mode.normalize(sent.as_bytes());
                let got = got.as_ref().map_or("400", |path| path.as_str().unwrap());
                let want = if *want == "=" { sent } else { *want };
                assert_eq!(got, want, "{mode:?} {sent}");
            }
        }
    }
}

#[test]
fn sem_path_16_high_bytes_are_escaped() {
    let path = PathNormalization::Base.normalize(b"/a\xe9").unwrap();
    assert_eq!(path.as_bytes(), b"/a%E9");
    assert_eq!(PathNormalization::None.normalize(b"/a\xe9").unwrap().as_bytes(), b"/a\xe9");
}

#[test]
fn sec_authz_5_refusals_name_what_is_wrong() {
    let refuse = |raw: &[u8]| PathNormalization::Base.normalize(raw).unwrap_err();
    assert_eq!(refuse(b"/a%00"), NormalizeError::Nul);
    assert_eq!(refuse(b"a"), NormalizeError::NotAbsolute);
    assert_eq!(refuse(b""), NormalizeError::NotAbsolute);
    assert_eq!(refuse(b"/a\tb"), NormalizeError::ControlByte { at: 2 });
}

/// The table of section 6.5, methods and authorities.
#[test]
fn sem_authz_58_61_heads_that_envoy_refuses_before_policies() {
    use mesh_authz::HeadError::{Authority, Method, NoAuthority, Target};
    let (one, two) = (http::Version::HTTP_11, http::Version::HTTP_2);
    for (version, method, authority, target, want) in [
        (one, "GET", Some("a.example"), Some("/"), Ok(())),
        (one, "get", Some("a"), Some("/"), Err(Method)),
        (one, "FOO", Some("a"), Some("/"), Err(Method)),
        (two, "get", Some("a"), Some("/"), Ok(())),
        (one, "GET", None, Some("/"), Err(NoAuthority)),
        (one, "GET", Some(""), Some("/"), Ok(())),
        (two, "GET", Some(""), Some("/"), Err(NoAuthority)),
        (one, "GET", Some("u@a,b:80"), Some("/"), Ok(())),
        (two, "GET", Some("u@a"), Some("/"), Err(Authority)),
        (one, "GET", Some("a b"), Some("/"), Err(Authority)),
        (one, "GET", Some("a/b"), Some("/"), Err(Authority)),
        (one, "OPTIONS", Some("a"), Some("*"), Err(Target)),
        (one, "GET", Some("a"), Some("admin"), Err(Target)),
        (one, "GET", Some("a"), Some(""), Err(Target)),
        (one, "GET", Some("a"), Some("/a\tb"), Err(Target)),
        (one, "GET", Some("a"), Some("/\u{e9}"), Err(Target)),
        (two, "GET", Some("a"), Some("/\u{e9}"), Ok(())),
        (one, "CONNECT", Some("a:443"), None, Ok(())),
    ] {
        let got = mesh_authz::check_head(version, method, authority, target.map(str::as_bytes));
        assert_eq!(got, want, "{version:?} {method} {authority:?} {target:?}");
    }
}
