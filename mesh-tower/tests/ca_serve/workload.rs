//! The SPIFFE Workload API: who gets what, and when.

use std::time::{Duration, Instant};

use mesh_ca::serve::{Selector, WorkloadEntry};
use mesh_tower::identity::workload_api::{X509Context, parse_x509_svids, proto};
use mesh_tower::identity::{BundleSet, TrustBundle};
use mesh_tower::{WorkloadApiFailure, WorkloadApiStream, WorkloadApiUpdate};
use prost::Message as _;
use tokio::time::timeout;

use crate::support::{PATIENCE, World, entry, id, uid};

const HEADER: (&str, &str) = ("workload.spiffe.io", "true");
const DENIED: i32 = 7;
const INVALID: i32 = 3;

async fn next<T: std::fmt::Debug>(stream: &mut WorkloadApiStream<T>) -> T {
    match timeout(PATIENCE, stream.next()).await.unwrap() {
        WorkloadApiUpdate::Taken(state) => state,
        WorkloadApiUpdate::Failed(failure) => panic!("{failure}"),
    }
}

fn serial(context: &X509Context, at: usize) -> Vec<u8> {
    let leaf = &context.svids[at].svid.chain()[0];
    x509_parser::parse_x509_certificate(leaf).unwrap().1.raw_serial().to_vec()
}

/// SPIFFE Workload Endpoint section 6: exactly `true`, exactly once, on every method.
#[tokio::test]
async fn sec_ca_8_no_call_without_the_header() {
    let world = World::start();
    world.register([entry("server")]);
    let mut raw = world.connect().await;
    let question = proto::JwtSvidRequest { audience: vec!["x".into()], spiffe_id: String::new() };
    let question = question.encode_to_vec();
    for method in
        ["FetchX509SVID", "FetchX509Bundles", "FetchJWTSVID", "FetchJWTBundles", "ValidateJWTSVID"]
    {
        let path = format!("/SpiffeWorkloadAPI/{method}");
        let bad: [&[(&str, &str)]; 4] = [
            &[],
            &[("workload.spiffe.io", "True")],
            &[("workload.spiffe.io", "false")],
            &[HEADER, HEADER],
        ];
        for headers in bad {
            let got = raw.call::<proto::X509SvidResponse>(&path, headers, &question).await;
            let want = "security header missing from request".to_owned();
            assert_eq!(got, Err((INVALID, want)), "{method} {headers:?}");
        }
    }
    let path = "/SpiffeWorkloadAPI/FetchX509SVID";
    let message: proto::X509SvidResponse = raw.call(path, &[HEADER], &[]).await.unwrap();
    assert_eq!(parse_x509_svids(message).unwrap().svids[0].svid.id(), &id("server"));
    // WIT-SVIDs are incubating; what does not exist is not confused with what is refused.
    for path in ["/SpiffeWorkloadAPI/FetchWITSVID", "/spiffe.X/Y", "/"] {
        let got = raw.call::<proto::X509SvidResponse>(path, &[HEADER], &[]).await;
        assert_eq!(got.unwrap_err().0, 12, "{path}");
    }
}

/// [SEC-CA-8] The kernel tells who asks. Who is not registered, or not for this identity, is told the
/// same, whether or not the identity exists; and nothing was signed.
#[tokio::test]
async fn sec_ca_8_only_the_callers_own_identities() {
    let world = World::start();
    let other = [Selector::Uid(uid() + 1)];
    let both = [Selector::Uid(uid()), Selector::Gid(u32::MAX)];
    let entries = || {
        [
            WorkloadEntry::new(id("other"), other).unwrap(),
            WorkloadEntry::new(id("both"), both).unwrap(),
        ]
    };
    world.register(entries());
    let denied = |got: &WorkloadApiFailure| match got {
        WorkloadApiFailure::Denied(text) => text.clone(),
        other => panic!("{other}"),
    };
    let api = world.api();
    let mut told = Vec::new();
    let WorkloadApiUpdate::Failed(failure) = api.x509_contexts().next().await else { panic!() };
    told.push(denied(&failure));
    let WorkloadApiUpdate::Failed(failure) = api.x509_bundles().next().await else { panic!() };
    told.push(denied(&failure));
    let WorkloadApiUpdate::Failed(failure) = api.jwt_bundles().next().await else { panic!() };
    told.push(denied(&failure));
    for asked in [None, Some(&id("other")), Some(&id("nobody"))] {
        told.push(denied(&api.fetch_jwt_svids(&["x"], asked).await.unwrap_err()));
    }
    told.push(denied(&api.validate_jwt_svid("x", "a.b.c").await.unwrap_err()));
    // Registered, and asking for what is somebody else's.
    world.register(entries().into_iter().chain([entry("server")]));
    for asked in [id("other"), id("both"), id("nobody")] {
        told.push(denied(&api.fetch_jwt_svids(&["x"], Some(&asked)).await.unwrap_err()));
    }
    assert!(told.iter().all(|text| text == "no identity issued"), "{told:?}");
    assert_eq!(world.log.text(), "");
    let svids = api.fetch_jwt_svids(&["x"], None).await.unwrap();
    assert_eq!((svids.len(), &svids[0].id), (1, &id("server")));
    let line: serde_json::Value = serde_json::from_str(world.log.text().trim()).unwrap();
    let caller = line["caller"].as_str().unwrap();
    assert!(caller.starts_with(&format!("unix:uid:{},gid:", uid())), "{caller}");
}

/// Every message is the whole state: identities in the order of the entries, with hints; and a stream
/// follows the registration, up to the loss of the last identity.
#[tokio::test]
async fn a_stream_follows_the_registration() {
    let world = World::start();
    world.register([entry("server").with_hint("internal").unwrap()]);
    let mut contexts = world.api().x509_contexts();
    let first = next(&mut contexts).await;
    assert_eq!((first.svids.len(), first.svids[0].hint.as_str()), (1, "internal"));
    world.register([entry("second"), entry("server")]);
    let second = next(&mut contexts).await;
    let ids: Vec<_> = second.svids.iter().map(|one| one.svid.id().clone()).collect();
    assert_eq!(ids, [id("second"), id("server")]);
    assert_eq!(serial(&first, 0), serial(&second, 1), "what is not due is not issued again");
    world.register([]);
    let WorkloadApiUpdate::Failed(failure) = contexts.next().await else { panic!("withdrawn") };
    assert!(failure.withdraws());
    world.register([entry("server")]);
    assert_ne!(serial(&next(&mut contexts).await, 0), serial(&first, 0));
}

/// Half of a life of four seconds: the next certificate comes by itself, with another key, in time.
#[tokio::test]
async fn a_leaf_is_renewed_at_half_its_life() {
    let world = World::start();
    world.register([entry("server").with_ttl(Duration::from_secs(4))]);
    let mut contexts = world.api().x509_contexts();
    let first = next(&mut contexts).await;
    let begun = Instant::now();
    let second = next(&mut contexts).await;
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(900) && took < Duration::from_millis(3900), "{took:?}");
    assert_ne!(serial(&first, 0), serial(&second, 0));
    assert_ne!(first.svids[0].svid.public_key(), second.svids[0].svid.public_key());
}

/// [SEC-CA-6] A new root is in every open stream before it signs; afterwards what is issued chains to
/// it, and the driver takes the steps by the clock.
#[tokio::test]
async fn sec_ca_6_open_streams_get_a_new_root_before_it_signs() {
    let world = World::start();
    world.register([entry("server")]);
    let api = world.api();
    let (mut contexts, mut x509) = (api.x509_contexts(), api.x509_bundles());
    let roots = |bundles: &BundleSet| {
        bundles.get("cluster.local").map(TrustBundle::x509_authorities).unwrap().to_vec()
    };
    let first = next(&mut contexts).await;
    assert_eq!(roots(&first.bundles), roots(&next(&mut x509).await.bundles));
    world.service.ca().rotate_root_now(world.clock.now()).unwrap();
    let published = next(&mut contexts).await;
    assert_eq!(roots(&published.bundles).len(), 2);
    assert_eq!(roots(&published.bundles), roots(&next(&mut x509).await.bundles));
    assert_eq!(serial(&first, 0), serial(&published, 0), "the old one signs still");
    // Three refresh hints later it signs: the leaf that is now due, at half an hour, is its first.
    world.clock.forward(45 * 60);
    let renewed = loop {
        let context = next(&mut contexts).await;
        if serial(&context, 0) != serial(&first, 0) {
            break context;
        }
    };
    let bundles = BundleSet::from_bundles([{
        let newest = roots(&renewed.bundles)[0].clone();
        assert_ne!(newest, roots(&first.bundles)[0]);
        TrustBundle::new("cluster.local".parse().unwrap()).with_authority(newest)
    }]);
    let verified = mesh_tower::identity::x509::verify_svid(
        renewed.svids[0].svid.chain(),
        &bundles.unwrap(),
        world.clock.now(),
        mesh_tower::identity::x509::Role::Server,
        rustls::crypto::ring::default_provider().signature_verification_algorithms.all,
    );
    assert_eq!(verified.unwrap().id(), &id("server"));
}

/// JWT-SVIDs come with the issuer, verify with the bundle of `FetchJWTBundles`, and are validated for
/// their audience only; a federated bundle is delivered under its own name.
#[tokio::test]
async fn tokens_are_issued_and_validated() {
    let world = World::start();
    world.register([entry("server").with_hint("a").unwrap(), entry("second")]);
    let api = world.api();
    let svids = api.fetch_jwt_svids(&["shop", "bank"], None).await.unwrap();
    assert_eq!(svids.iter().map(|svid| svid.hint.as_str()).collect::<Vec<_>>(), ["a", ""]);
    let token = &svids[0].token;
    for audience in ["shop", "bank"] {
        let (subject, claims) = api.validate_jwt_svid(audience, token).await.unwrap();
        assert_eq!(subject, id("server"));
        assert_eq!(claims["iss"], "https://ca.cluster.local");
        assert_eq!(claims["aud"], serde_json::json!(["shop", "bank"]));
    }
    let forged = format!("{}x", token.as_str());
    for (audience, token) in
        [("other", token.as_str()), ("shop", &forged), ("shop", ""), ("", token)]
    {
        let got = api.validate_jwt_svid(audience, token).await;
        assert!(
            matches!(got, Err(WorkloadApiFailure::Stopped { ref code, .. })
            if code == "InvalidArgument"),
            "{got:?}"
        );
    }
    let none = api.fetch_jwt_svids(&[], None).await;
    assert!(matches!(none, Err(WorkloadApiFailure::Stopped { .. })), "{none:?}");

    let mut bundles = api.jwt_bundles();
    let own = next(&mut bundles).await.bundles;
    assert_eq!(own.get("cluster.local").unwrap().jwt_authorities().len(), 1);
    let foreign = TrustBundle::new("other.example".parse().unwrap());
    world.service.set_foreign_bundles(BundleSet::from_bundles([foreign]).unwrap());
    let both = next(&mut bundles).await.bundles;
    assert!(both.get("other.example").is_some() && both.get("cluster.local").is_some());
    let context = next(&mut api.x509_contexts()).await;
    assert!(context.bundles.get("other.example").is_some());
    // A clock that has passed `exp`, and the leeway of a minute.
    world.clock.forward(361);
    assert!(api.validate_jwt_svid("shop", token).await.is_err());
}

/// [SEC-CA-7] Who asks too often is told so; others, and what he has, are not affected.
#[tokio::test]
async fn sec_ca_7_too_many_requests_over_the_wire() {
    let world = World::start();
    world.register([entry("flood")]);
    let api = world.api();
    let mut codes = Vec::new();
    for _ in 0..60 {
        if let Err(failure) = api.fetch_jwt_svids(&["x"], None).await {
            codes.push(failure.to_string());
        }
    }
    assert!(codes.len() >= 20, "{} of 60 refused", codes.len());
    assert!(codes.iter().all(|code| code.contains("ResourceExhausted")), "{codes:?}");
    world.register([entry("calm")]);
    assert!(api.fetch_jwt_svids(&["x"], None).await.is_ok());
}

/// gRPC's C core sends the socket's path, percent-encoded, as `:authority`.
#[tokio::test]
async fn clients_of_grpcs_c_core_are_served() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let world = World::start();
    world.register([entry("server")]);
    let mut stream = world.stream().await;
    let literal = |name: &str, value: &str| {
        let length = |text: &str| u8::try_from(text.len()).unwrap();
        [&[0x40, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
    };
    let headers = [
        vec![0x83, 0x86],
        literal(":path", "/SpiffeWorkloadAPI/FetchX509SVID"),
        literal(":authority", "tmp%2Fmesh-ca.sock"),
        literal("content-type", "application/grpc"),
        literal("te", "trailers"),
        literal("workload.spiffe.io", "true"),
    ]
    .concat();
    let frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
    };
    let sent = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[]),
        frame(1, 4, 1, &headers),
        frame(0, 1, 1, &[0; 5]),
    ];
    stream.write_all(&sent.concat()).await.unwrap();
    let mut read = Vec::new();
    let svid = id("server");
    while !read.windows(svid.as_str().len()).any(|part| part == svid.as_str().as_bytes()) {
        assert!(timeout(PATIENCE, stream.read_buf(&mut read)).await.unwrap().unwrap() > 0);
    }
}

/// What no client should send costs nobody else anything.
#[tokio::test]
async fn hostile_frames_are_refused() {
    let world = World::start();
    world.register([entry("server")]);
    let mut raw = world.connect().await;
    let path = "/SpiffeWorkloadAPI/FetchJWTSVID";
    let huge = vec![0x0a; 1 << 20];
    for question in [&huge[..], b"\xff\xff\xff\xff", b"\x0a\x05ab"] {
        let got = raw.call::<proto::JwtSvidResponse>(path, &[HEADER], question).await;
        assert!(got.is_err(), "{got:?}");
    }
    let question = proto::JwtSvidRequest { audience: vec![String::new()], ..Default::default() };
    let got = raw.call::<proto::JwtSvidResponse>(path, &[HEADER], &question.encode_to_vec()).await;
    assert_eq!(got.unwrap_err().0, INVALID);
    let question = proto::JwtSvidRequest {
        audience: vec!["x".into()],
        spiffe_id: "spiffe://cluster.local/ns/shop/sa/../admin".into(),
    };
    let got = raw.call::<proto::JwtSvidResponse>(path, &[HEADER], &question.encode_to_vec()).await;
    assert_eq!(got.unwrap_err().0, DENIED);
    assert!(world.api().fetch_jwt_svids(&["x"], None).await.is_ok());
}

/// [SEC-CA-7] A process that takes all places of its user and asks nothing shuts nobody out.
#[tokio::test]
async fn sec_ca_7_silent_connections_give_way() {
    let world = World::start();
    world.register([entry("server")]);
    let mut silent = Vec::new();
    for _ in 0..260 {
        silent.push(world.stream().await);
    }
    assert!(world.api().fetch_jwt_svids(&["x"], None).await.is_ok());
}
