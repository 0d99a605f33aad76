//! When the server ends a connection, and that it does.

use std::time::{Duration, SystemTime};

use mesh_tower::Policies;

use crate::support::{
    STRICT, SetClock, authority, client, client_mesh, connect, connector, drained, gone, hold_both,
    hold_plain, policies, serve, status_of_new, svid, trust,
};

const HOUR: Duration = Duration::from_secs(3600);

/// What "at once" means on a busy machine.
const SOON: Duration = Duration::from_secs(2);

/// [SEC-TLS-12] At `notAfter` an idle connection ends, and what is being answered has the drain.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_12_a_connection_ends_with_the_peers_certificate() {
    let (authority, clock) = (authority(), SetClock::default());
    let drain = Duration::from_millis(700);
    let server = serve(&authority, &clock, Policies::none(), |limits| limits.drain = drain).await;
    let short = client(&authority, Duration::from_secs(3), &server);
    let begun = std::time::Instant::now();
    let idle = hold_both(&short).await;
    let streaming = hold_both(&short).await;
    let mut ends = Vec::new();
    for (mut held, end) in idle {
        assert_eq!(held.status("/").await, Some(200), "{}", held.version());
        ends.push((held, end));
    }
    let mut bodies = Vec::new();
    for (mut held, end) in streaming {
        bodies.push((tokio::spawn(drained(held.get("/stream").await.unwrap())), held, end));
    }
    for (mut held, end) in ends {
        gone(end).await;
        let age = begun.elapsed();
        assert!(age > SOON && age < Duration::from_secs(3) + SOON, "{} {age:?}", held.version());
        assert_eq!(held.status("/").await, None, "{}: requests must stop", held.version());
    }
    for (body, held, end) in bodies {
        body.await.unwrap();
        gone(end).await;
        let age = begun.elapsed();
        let most = Duration::from_secs(3) + drain + SOON;
        assert!(age < most, "{}: a stream outlived its peer: {age:?}", held.version());
    }
    // The same identity is not let in again, and others are.
    assert!(connect(&short).await.is_err());
    assert_eq!(
        hold_both(&client(&authority, HOUR, &server)).await[0].0.status("/").await,
        Some(200)
    );
}

/// [SEC-TLS-12] What is being answered is answered, and says that the connection ends.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_12_an_answer_under_way_arrives_and_announces_the_end() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, Policies::none(), |_| {}).await;
    let [(mut one, one_end), (mut two, two_end)] =
        hold_both(&client(&authority, HOUR, &server)).await;
    let answers = tokio::join!(one.get("/slow"), two.get("/slow"), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        clock.set(7200);
    });
    // The watcher of the clock looks once a second, and the answers take less.
    assert_eq!(answers.0.unwrap().status(), 200);
    assert_eq!(answers.1.unwrap().status(), 200);
    gone(one_end).await;
    gone(two_end).await;
}

/// [SEC-TLS-12] HTTP/1.1 says `connection: close` with the next answer, HTTP/2 says GOAWAY and ends
/// without an error: no client is surprised.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_12_the_end_is_announced() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, Policies::none(), |limits| limits.drain = HOUR).await;
    let short = svid(&authority, "client", Duration::from_secs(4));
    let end = Duration::from_secs(short.not_after().as_secs());
    let mesh = client_mesh(short, trust(&[&authority]), &SetClock::default());
    let [(mut one, one_end), (mut two, two_end)] = hold_both(&connector(&mesh, &server)).await;
    for held in [&mut one, &mut two] {
        let answer = held.get("/").await.unwrap();
        assert!(!answer.headers().contains_key("connection"), "{}", held.version());
    }
    // Both are asked before the certificate's end and answered after it.
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    tokio::time::sleep(end.saturating_sub(now + Duration::from_millis(200))).await;
    let (first, second) = tokio::join!(one.get("/slow"), two.get("/slow"));
    assert_eq!(first.unwrap().headers().get("connection").unwrap(), "close");
    assert_eq!(second.unwrap().status(), 200);
    for end in [one_end, two_end] {
        let ended = tokio::time::timeout(crate::support::PATIENCE, end).await;
        ended.expect("the connection ends").unwrap().expect("nothing is cut off");
    }
}

/// [SEC-TLS-12] A grace keeps connections beyond the certificate's end, but not for longer than a
/// minute, whatever it says; and it lets nobody in.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_12_a_grace_has_its_limit() {
    let authority = authority();
    for (grace, within, after) in [(50, 3610, 3655), (86_400, 3610, 3665)] {
        let clock = SetClock::default();
        let server = serve(&authority, &clock, Policies::none(), |limits| {
            limits.expiry_grace = Duration::from_secs(grace);
        })
        .await;
        // It must not end before its clients do.
        let lasting = svid(&authority, "server", 10 * HOUR);
        server.mesh.set_identity(lasting, trust(&[&authority])).unwrap();
        let connector = client(&authority, HOUR, &server);
        let mut held = hold_both(&connector).await;
        for (held, _) in &mut held {
            // A client is done with the handshake before the server is.
            assert_eq!(held.status("/").await, Some(200), "{}", held.version());
        }
        clock.set(within);
        tokio::time::sleep(Duration::from_millis(1500)).await;
        for (held, _) in &mut held {
            let answer = held.get("/").await;
            assert_eq!(answer.unwrap().status(), 200, "{} {grace}", held.version());
        }
        assert_eq!(status_of_new(&connector).await, None, "a handshake after the end");
        clock.set(after);
        for (mut held, end) in held {
            let status = held.status("/").await;
            assert!(matches!(status, Some(403) | None), "{} {status:?}", held.version());
            gone(end).await;
        }
    }
}

/// [SEC-TLS-12], [SEC-OPS-5] A clock set forward: the next request is refused at once, whether or
/// not anybody has noticed the jump, and the connection ends.
#[tokio::test(flavor = "multi_thread")]
async fn sec_ops_5_a_jump_forward_expires_connections() {
    for ahead in [7200, 10 * 365 * 86_400] {
        let (authority, clock) = (authority(), SetClock::default());
        let server = serve(&authority, &clock, Policies::none(), |_| {}).await;
        let held = hold_both(&client(&authority, HOUR, &server)).await;
        let plain = hold_plain(server.address).await;
        clock.set(ahead);
        for (mut held, end) in held {
            let status = held.status("/").await;
            assert!(matches!(status, Some(403) | None), "{}: {status:?}", held.version());
            assert!(gone(end).await < 2 * SOON, "{}", held.version());
        }
        let (mut plain, _end) = plain;
        assert_eq!(plain.status("/").await, Some(200), "plain text has no certificate");
        // It recovers: no part of the server has died of it.
        clock.set(0);
        let mut again = hold_both(&client(&authority, HOUR, &server)).await;
        assert_eq!(again[0].0.status("/").await, Some(200));
    }
}

/// [SEC-OPS-5] A clock set back does not put off an end that was near, nor does it break anything.
#[tokio::test(flavor = "multi_thread")]
async fn sec_ops_5_a_jump_back_revives_no_connection() {
    const YEAR: i64 = 365 * 86_400;
    let jumps = [-1, -3600, -10 * YEAR, -200 * YEAR].map(|back| async move {
        let (authority, clock) = (authority(), SetClock::default());
        let server = serve(&authority, &clock, Policies::none(), |_| {}).await;
        let held = hold_both(&client(&authority, Duration::from_secs(3), &server)).await;
        let mut ends = Vec::new();
        for (mut held, end) in held {
            assert_eq!(held.status("/").await, Some(200));
            ends.push((held, end));
        }
        clock.set(back);
        for (held, end) in ends {
            let took = gone(end).await;
            assert!(took < Duration::from_secs(4) + SOON, "{} {back}: {took:?}", held.version());
        }
    });
    futures_util::future::join_all(jumps).await;
}

/// [SEC-TLS-13] A peer whose authority left the bundle loses its connections within 5 s, streams
/// included; another authority's peers keep theirs.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_13_a_removed_authority_ends_its_peers_connections() {
    let (old, new, clock) = (authority(), authority(), SetClock::default());
    let server = serve(&old, &clock, Policies::none(), |_| {}).await;
    let leaf = svid(&old, "server", HOUR);
    server.mesh.set_identity(leaf.clone(), trust(&[&old, &new])).unwrap();
    let out = hold_both(&client(&old, HOUR, &server)).await;
    let streaming = hold_both(&client(&old, HOUR, &server)).await;
    // The new authority's client must believe the old one's server.
    let stays = client_mesh(svid(&new, "client", HOUR), trust(&[&old]), &clock);
    let stays = hold_both(&connector(&stays, &server)).await;
    let mut bodies = Vec::new();
    for (mut held, end) in streaming {
        bodies.push((tokio::spawn(drained(held.get("/stream").await.unwrap())), held, end));
    }
    server.mesh.set_identity(leaf, trust(&[&new])).unwrap();
    let begun = std::time::Instant::now();
    for (mut held, end) in out {
        let status = held.status("/").await;
        assert!(matches!(status, Some(403) | None), "{}: {status:?}", held.version());
        gone(end).await;
    }
    for (body, _held, end) in bodies {
        body.await.unwrap();
        gone(end).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    for (mut held, _end) in stays {
        assert_eq!(held.status("/").await, Some(200), "{}", held.version());
    }
}

/// [SEC-TLS-11] A rotation that overlaps ends no connection and no stream.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_11_an_overlapping_rotation_ends_nothing() {
    let (old, new, clock) = (authority(), authority(), SetClock::default());
    let server = serve(&old, &clock, Policies::none(), |_| {}).await;
    let held = hold_both(&client(&old, HOUR, &server)).await;
    server.mesh.set_identity(svid(&new, "server", HOUR), trust(&[&old, &new])).unwrap();
    server.mesh.set_policies(policies(&[STRICT])).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    for (mut held, end) in held {
        assert_eq!(held.status("/").await, Some(200), "{}", held.version());
        assert!(!end.is_finished());
    }
}

/// [SEM-STRICT-18] A mode that no longer admits plain text ends the connections that have none of
/// TLS, and the reverse; the others stay.
#[tokio::test(flavor = "multi_thread")]
async fn sem_strict_18_a_changed_mode_ends_what_it_no_longer_admits() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, Policies::none(), |_| {}).await;
    let (mut plain, plain_end) = hold_plain(server.address).await;
    assert_eq!(plain.status("/").await, Some(200));
    let tls = hold_both(&client(&authority, HOUR, &server)).await;
    server.mesh.set_policies(policies(&[STRICT])).unwrap();
    let status = plain.status("/").await;
    assert!(matches!(status, Some(403) | None), "{status:?}");
    assert!(gone(plain_end).await < SOON);
    let mut ends = Vec::new();
    for (mut held, end) in tls {
        assert_eq!(held.status("/").await, Some(200), "{}", held.version());
        ends.push(end);
    }
    server.mesh.set_policies(policies(&[&STRICT.replace("STRICT", "DISABLE")])).unwrap();
    for end in ends {
        assert!(gone(end).await < SOON);
    }
}

/// [SEC-OPS-2] A withdrawn identity is used no more, in either direction; plain text goes on, and
/// another identity brings everything back.
#[tokio::test(flavor = "multi_thread")]
async fn sec_ops_2_a_withdrawn_identity_is_used_no_more() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, Policies::none(), |_| {}).await;
    let connector = client(&authority, HOUR, &server);
    let held = hold_both(&connector).await;
    let (mut plain, _end) = hold_plain(server.address).await;
    server.mesh.withdraw_identity();
    for (held, end) in held {
        assert!(gone(end).await < SOON, "{}", held.version());
    }
    assert!(connect(&connector).await.is_err(), "a handshake with a withdrawn identity");
    let outward = crate::support::connector(&server.mesh, &server);
    let error = connect(&outward).await.unwrap_err();
    assert!(error.to_string().contains("withdrawn"), "{error}");
    assert_eq!(plain.status("/").await, Some(200));
    server.mesh.set_identity(svid(&authority, "server", HOUR), trust(&[&authority])).unwrap();
    assert!(connect(&connector).await.is_ok());
}

/// [SEC-OPS-2] An own identity that has expired lets nobody in and goes nowhere.
#[tokio::test(flavor = "multi_thread")]
async fn sec_ops_2_an_expired_own_identity_closes() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, Policies::none(), |_| {}).await;
    let connector = client(&authority, 10 * HOUR, &server);
    clock.set(7200);
    // The client's clock is right, so only the server can have refused.
    assert!(connect(&connector).await.is_err());
    let error = connect(&crate::support::connector(&server.mesh, &server)).await.unwrap_err();
    assert!(error.to_string().contains("own certificate has expired"), "{error}");
    clock.set(0);
    assert!(connect(&connector).await.is_ok());
}

/// [SEC-TLS-12] A maximum age ends connections that nothing else would end, plain ones too.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_12_a_maximum_age_can_be_set() {
    let (authority, clock) = (authority(), SetClock::default());
    let server = serve(&authority, &clock, Policies::none(), |limits| {
        limits.connection_age = Some(Duration::from_millis(1200));
    })
    .await;
    let [one, two] = hold_both(&client(&authority, HOUR, &server)).await;
    let mut held = Vec::new();
    for (mut one, end) in [one, two, hold_plain(server.address).await] {
        assert_eq!(one.status("/").await, Some(200));
        held.push((one, end));
    }
    for (_one, end) in held {
        assert!(gone(end).await < SOON);
    }
}

/// A server that stops answers what it was asked and closes what is idle.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_drains() {
    let (authority, clock) = (authority(), SetClock::default());
    let mut server = serve(&authority, &clock, Policies::none(), |_| {}).await;
    let [(mut one, _), (mut two, _)] = hold_both(&client(&authority, HOUR, &server)).await;
    let (mut idle, idle_end) = hold_plain(server.address).await;
    assert_eq!(idle.status("/").await, Some(200));
    // A client that has only connected must not keep the server.
    let _silent = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let stop = server.stop.take().unwrap();
    let (first, second, ()) = tokio::join!(one.status("/slow"), two.status("/slow"), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stop.send(()).unwrap();
    });
    assert_eq!((first, second), (Some(200), Some(200)));
    assert!(gone(idle_end).await < SOON);
    tokio::time::timeout(SOON, server.done).await.unwrap().unwrap().unwrap();
}
