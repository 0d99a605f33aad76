//! Requests that Envoy's HTTP layer refuses before any policy, as bytes.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use mesh_tower::authz::Semantics;
use mesh_tower::identity::{MeshSettings, Workload};
use mesh_tower::{Mesh, Policies};

use crate::wire::{Dial, ask_http1, ask_http2};
use crate::world::{Identities, LOCALHOST, Witness, bind};

/// A service that answers whatever reaches it, who sees what is decided, and a client over HTTP/2.
async fn serve(policies: Policies) -> (SocketAddr, Witness, Dial) {
    let home = "cluster.local".parse().unwrap();
    let identities = Identities::default();
    let own = "spiffe://cluster.local/ns/shop/sa/server".parse().unwrap();
    let witness = Witness::default();
    let mesh =
        Mesh::builder(Workload::new("shop"), MeshSettings::new("cluster.local".parse().unwrap()))
            .semantics(Semantics::istio())
            .observer(Arc::new(witness.clone()))
            .build(identities.svid(&own).unwrap(), identities.trust([&home]), policies)
            .unwrap();
    let (listener, address) = bind(LOCALHOST).await.unwrap();
    let app = Router::new().fallback(|| async { "served" });
    tokio::spawn(async move { mesh.serve(listener, app, std::future::pending()).await });
    (address, witness, Dial { svid: identities.svid(&own), http2: true, ..Dial::default() })
}

/// [SEC-HTTP-3] A DENY for `/pkg.S/M` is not escaped by a `:path` that a handler might read as the same:
/// without its slash, absolute, empty, or with control bytes, it is refused before policy.
#[tokio::test]
async fn sec_http_3_no_form_of_path_escapes_a_denial() {
    let deny = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-method, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {paths: [/pkg.S/M]}}]}]}
";
    let policies = Policies::read([("deny.yaml", deny)], "shop").unwrap();
    let (address, witness, dial) = serve(policies).await;
    let paths: [(&[u8], Option<u16>); 12] = [
        (b"/pkg.S/N", Some(200)),
        (b"/pkg.S/M", Some(403)),
        (b"/pkg.S/M?x", Some(403)),
        (b"pkg.S/M", None),
        (b"http://shop/pkg.S/M", None),
        (b"https://shop/pkg.S/M", None),
        (b"", None),
        (b"*", None),
        (b"/pkg.S/M\0", None),
        (b"/pkg.S/M\t", None),
        (b"\t/pkg.S/M", None),
        (b"/pkg.S/M\x7f", None),
    ];
    for (path, want) in paths {
        let fields: [(&[u8], &[u8]); 4] = [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":path", path),
            (b":authority", b"shop"),
        ];
        let mut stream = dial.connect(address).await.unwrap();
        let status = ask_http2(&mut *stream, &fields).await.map(|reply| reply.status);
        let text = path.escape_ascii();
        match want {
            Some(_) => assert_eq!(status, want, "{text}"),
            // Either the whole stream is refused or the request is.
            None => assert!(matches!(status, None | Some(400)), "{text}: {status:?}"),
        }
        let allowed = witness.take().is_some_and(|decided| decided.allowed);
        assert_eq!(allowed, want == Some(200), "{text}");
    }
}

/// [SEM-EVAL-01], [SEC-HTTP-3], [SEC-HTTP-9], [SEM-ADV-13] The layer refuses what Envoy's codecs refuse and hyper
/// lets pass, with no policy at all, which would allow everything; and it lets pass what they do.
#[tokio::test]
async fn sem_eval_01_what_envoys_codecs_refuse_reaches_nobody() {
    let (address, witness, dial) = serve(Policies::none()).await;
    let http1: [(&[u8], bool); 21] = [
        (b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n", true),
        (b"GET http://shop/x HTTP/1.1\r\nHost: shop\r\n\r\n", true),
        (b"MKCOL / HTTP/1.1\r\nHost: shop:80\r\n\r\n", true),
        (b"OPTIONS /x HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", true),
        (b"GET /%zz?%C3 HTTP/1.1\r\nHost: shop\r\n\r\n", true),
        // Methods that Envoy's parser does not know.
        (b"get / HTTP/1.1\r\nHost: shop\r\n\r\n", false),
        (b"GETT / HTTP/1.1\r\nHost: shop\r\n\r\n", false),
        (b"PRI / HTTP/1.1\r\nHost: shop\r\n\r\n", false),
        (b"X / HTTP/1.1\r\nHost: shop\r\n\r\n", false),
        // Bytes and forms of the target.
        (b"GET /caf\xc3\xa9 HTTP/1.1\r\nHost: shop\r\n\r\n", false),
        (b"GET /a\x7fb HTTP/1.1\r\nHost: shop\r\n\r\n", false),
        (b"GET * HTTP/1.1\r\nHost: shop\r\n\r\n", false),
        (b"OPTIONS * HTTP/1.1\r\nHost: shop\r\n\r\n", false),
        (b"GET admin HTTP/1.1\r\nHost: shop\r\n\r\n", false),
        // [SEC-HTTP-1] hyper takes any target for CONNECT, and a router goes by its path.
        (b"CONNECT /admin HTTP/1.1\r\nHost: shop\r\n\r\n", false),
        (b"CONNECT /a/../admin HTTP/1.1\r\nHost: shop\r\n\r\n", false),
        (b"CONNECT http://shop/admin HTTP/1.1\r\nHost: shop\r\n\r\n", false),
        // Authorities.
        (b"GET / HTTP/1.1\r\n\r\n", false),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", false),
        (b"GET / HTTP/1.1\r\nHost: a\"b\r\n\r\n", false),
        (b"GET / HTTP/1.1\r\nHost: a|b\r\n\r\n", false),
    ];
    for (request, passes) in http1 {
        let mut stream = Dial::default().connect(address).await.unwrap();
        let reply = ask_http1(&mut *stream, request, false).await;
        let text = request.escape_ascii();
        if passes {
            assert_eq!(reply.unwrap().body, b"served", "{text}");
        } else {
            assert!(reply.is_none_or(|reply| reply.status == 400), "{text}");
            assert!(witness.take().is_none_or(|decided| !decided.allowed), "{text}");
        }
        witness.take();
    }

    let get = |path: &'static [u8], authority: &'static [u8]| {
        vec![
            (&b":method"[..], &b"GET"[..]),
            (b":scheme", b"https"),
            (b":path", path),
            (b":authority", authority),
        ]
    };
    let mut rows = vec![(get(b"/", b"shop"), true), (get(b"/a?b", b"shop:443"), true)];
    let paths: [&[u8]; 9] =
        [b"", b"pkg.S/M", b"*", b"http://shop/", b"//[", b"/a b", b"/a\tb", b"/a\x7fb", b"/a\0b"];
    rows.extend(paths.map(|path| (get(path, b"shop"), path.starts_with(b"//["))));
    let authorities: [&[u8]; 5] = [b"", b"user@shop", b"a b", b"a\"b", b"a|b"];
    rows.extend(authorities.map(|authority| (get(b"/", authority), false)));
    let mut without_path = get(b"/", b"shop");
    without_path.remove(2);
    rows.push((without_path, false));
    let mut without_authority = get(b"/", b"shop");
    without_authority.truncate(3);
    rows.push((without_authority, false));
    let mut two_hosts = get(b"/", b"shop");
    two_hosts.push((b"host", b"other"));
    rows.push((two_hosts, false));
    // [SEC-HTTP-9] An extended CONNECT (RFC 8441): its tunnel could not be cut when policies change
    // [SEM-STRICT-18], so it is not offered, and refused when it comes all the same.
    let mut extended = get(b"/", b"shop");
    extended[0].1 = b"CONNECT";
    extended.insert(1, (b":protocol", b"websocket"));
    rows.push((extended, false));
    // Nor can a plain one, which is a stream among others here.
    rows.push((vec![(b":method", b"CONNECT"), (b":authority", b"shop:443")], false));
    // [SEM-ADV-21] HTTP/1 has no spaces around values, so policies do not expect them over HTTP/2.
    for (value, passes) in
        [(&b"admin"[..], true), (b"admin ", false), (b" admin", false), (b"\tadmin\t", false)]
    {
        let mut padded = get(b"/", b"shop");
        padded.push((b"x-role", value));
        rows.push((padded, passes));
    }
    for (fields, passes) in rows {
        let mut stream = dial.connect(address).await.unwrap();
        let reply = ask_http2(&mut *stream, &fields).await;
        let text: Vec<String> =
            fields.iter().map(|(_, value)| value.escape_ascii().to_string()).collect();
        if passes {
            assert_eq!(reply.map(|reply| reply.status), Some(200), "{text:?}");
        } else {
            assert!(reply.is_none_or(|reply| reply.status == 400), "{text:?}");
            assert!(witness.take().is_none_or(|decided| !decided.allowed), "{text:?}");
        }
        witness.take();
    }
}
