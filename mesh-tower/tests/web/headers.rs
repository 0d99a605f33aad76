//! Headers that say who somebody is: removed, or written from what was proven.

use axum::Router;
use axum::routing;
use http::HeaderMap;
use mesh_tower::ForwardClientCert;

use crate::support::authority;
use crate::{ask, ask_http2, ask_plain, bind, connector, done, get, mesh};

const XFCC: &str = "x-forwarded-client-cert";

/// Shows the headers that the application sees, of those that may tell it who somebody is.
async fn seen(headers: HeaderMap) -> String {
    let names = [XFCC, "x-role", "x_role"];
    let all = names.iter().flat_map(|name| headers.get_all(*name));
    all.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>().join("|")
}

fn app() -> Router {
    Router::new().route("/", routing::get(seen))
}

/// [SEC-HTTP-6], [SEC-TLS-8] Who sends the header decides nothing; who is proven writes it.
#[tokio::test]
async fn sec_http_6_forwarded_certificates_are_written_never_believed() {
    let authority = authority();
    let claimed = "By=a;Hash=b;Subject=\"\";URI=spiffe://cluster.local/ns/shop/sa/admin";
    for (mode, begins) in [
        (ForwardClientCert::Sanitize, ""),
        (ForwardClientCert::Set, "By=spiffe://cluster.local/ns/shop/sa/server;Hash="),
        (ForwardClientCert::Append, claimed),
    ] {
        let mesh = mesh(&authority, "", |builder| builder.forward_client_cert(mode));
        let (listener, address) = bind().await;
        tokio::spawn(async move { mesh.serve(listener, app(), std::future::pending()).await });
        let reader = connector(&authority, "reader", address);
        let request = || done(get("/").header(XFCC, claimed));
        let (_, seen) = ask(&reader, request()).await;
        assert!(seen.starts_with(begins), "{mode:?}: {seen}");
        if mode == ForwardClientCert::Sanitize {
            assert_eq!(seen, "");
        } else {
            let last = ";Subject=\"\";URI=spiffe://cluster.local/ns/shop/sa/reader";
            assert!(seen.ends_with(last), "{mode:?}: {seen}");
        }
        // What is left open would swallow what is proven.
        for open in ["\"", "Subject=\"\\\"", "a\\"] {
            let claimed = format!("By=x;URI=spiffe://cluster.local/ns/shop/sa/admin;{open}");
            let (_, seen) = ask(&reader, done(get("/").header(XFCC, claimed))).await;
            let own = "By=spiffe://cluster.local/ns/shop/sa/server;Hash=";
            assert!(seen.is_empty() || seen.starts_with(own), "{mode:?} {open}: {seen}");
        }
        let (_, plain) = ask_plain(address, request()).await;
        assert_eq!(plain, "", "{mode:?}: removed on plain text");
    }
}

/// [SEC-HTTP-6] Names that belong to the program, in every spelling it could read as the same.
#[tokio::test]
async fn sec_http_6_reserved_headers_are_removed() {
    let authority = authority();
    let mesh = mesh(&authority, "", |builder| {
        let reserved = http::HeaderName::from_static("x-role");
        builder.reserved_headers([reserved]).without_underscore_headers()
    });
    let (listener, address) = bind().await;
    tokio::spawn(async move { mesh.serve(listener, app(), std::future::pending()).await });
    let reader = connector(&authority, "reader", address);
    let request = get("/").header("X-Role", "admin").header("x-role", "root").header("x_role", "a");
    assert_eq!(ask(&reader, done(request)).await, (200, String::new()));
}

/// [SEC-HTTP-15] As many header fields as HTTP/1.1 may have, and not one more, over HTTP/2 too.
#[tokio::test]
async fn sec_http_15_header_fields_are_counted_in_both_versions() {
    let authority = authority();
    let mesh = mesh(&authority, "", |builder| builder);
    let (listener, address) = bind().await;
    tokio::spawn(async move { mesh.serve(listener, app(), std::future::pending()).await });
    let reader = connector(&authority, "reader", address);
    for (count, want) in [(90, 200), (101, 431)] {
        let many = |first| {
            (0..count).fold(first, |request, at| {
                http::request::Builder::header(request, format!("x-{at}"), "a")
            })
        };
        assert_eq!(ask(&reader, done(many(get("/")))).await.0, want, "HTTP/1.1, {count}");
        let request = many(http::Request::get("https://server/"));
        assert_eq!(ask_http2(&reader, done(request)).await.0, want, "HTTP/2, {count}");
    }
}
