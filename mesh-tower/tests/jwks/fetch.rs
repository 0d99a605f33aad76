//! What the fetcher refuses to do ([SEC-JWT-13]).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mesh_tower::authn::request::KeySource;
use mesh_tower::{AddressPolicy, FetchError, HttpKeyFetcher, KeyFetcher};
use rustls::RootCertStore;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::support::fetcher;

const LIMIT: Duration = Duration::from_secs(2);

/// Answers every request with this, and counts connections.
async fn server(answer: String) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let _read = stream.read(&mut [0_u8; 4096]).await;
            let _sent = stream.write_all(answer.as_bytes()).await;
        }
    });
    (address.to_string(), asked)
}

/// [SEM-ADV-63] The cloud's credentials are not fetched: not by address, in no spelling of it, not
/// by a name, not behind a redirection.
#[tokio::test]
async fn sem_adv_63_no_fetch_from_metadata_addresses() {
    for url in [
        "http://169.254.169.254/latest/meta-data",
        "http://[::ffff:169.254.169.254]/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://[fd00:ec2::254]/",
        "http://[fe80::1]/",
        "http://0.0.0.0/",
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://0251.0376.0251.0376/",
    ] {
        let begun = Instant::now();
        let error = fetcher().fetch(url, LIMIT).await.unwrap_err();
        // Some systems read odd spellings as an address, others as a name that does not exist.
        let odd = ["2852039166", "0xa9fea9fe", "0251"].iter().any(|odd| url.contains(odd));
        let refused = matches!(error, FetchError::Address)
            || odd && matches!(error, FetchError::Connect(_) | FetchError::Deadline);
        assert!(refused, "{url}: {error}");
        assert!(odd || begun.elapsed() < Duration::from_secs(1), "{url} was asked");
    }
    // A name that leads to an address that must not be asked.
    let (address, asked) =
        server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned()).await;
    let port = address.rsplit(':').next().unwrap();
    let public = fetcher().with_address_policy(AddressPolicy::PublicOnly);
    let error = public.fetch(&format!("http://localhost:{port}/"), LIMIT).await.unwrap_err();
    assert!(matches!(error, FetchError::Address), "{error}");
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    // A redirection is no key set, wherever it leads, and its target is never shown.
    let (target, reached) =
        server("HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret".to_owned()).await;
    for location in [format!("http://{target}/"), "http://169.254.169.254/".to_owned()] {
        for status in [301, 302, 303, 307, 308] {
            let (address, _) = server(format!(
                "HTTP/1.1 {status} Away\r\nlocation: {location}\r\ncontent-length: 6\r\n\r\nsecret"
            ))
            .await;
            let error = fetcher().fetch(&format!("http://{address}/"), LIMIT).await.unwrap_err();
            assert!(matches!(error, FetchError::Status(_)), "{error}");
            assert!(!format!("{error} {error:?}").contains("secret"));
        }
    }
    assert_eq!(reached.load(Ordering::SeqCst), 0, "redirections are not followed");
}

#[tokio::test]
async fn sec_jwt_13_urls_that_are_not_asked() {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let secure = HttpKeyFetcher::new(provider, RootCertStore::empty()).unwrap();
    let (address, asked) =
        server("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned()).await;
    let error = secure.fetch(&format!("http://{address}/"), LIMIT).await.unwrap_err();
    assert!(matches!(error, FetchError::PlainHttp), "{error}");
    for url in [
        format!("http://user:secret@{address}/"),
        format!("ftp://{address}/"),
        format!("file://{address}/etc/passwd"),
        "/keys".to_owned(),
        "http://".to_owned(),
        String::new(),
        "http://a b/".to_owned(),
    ] {
        let error = fetcher().fetch(&url, LIMIT).await.unwrap_err();
        assert!(matches!(error, FetchError::Url), "{url}: {error}");
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

/// One limit for size and time, whatever the server does: the time is for all attempts together,
/// discovery included ([SEM-JWKS-04]).
#[tokio::test]
async fn sec_jwt_13_answers_are_bounded_in_size_and_time() {
    let long = "x".repeat(1024 * 1024 + 1);
    let (address, _) =
        server(format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{long}", long.len())).await;
    let error = fetcher().fetch(&format!("http://{address}/"), LIMIT).await.unwrap_err();
    assert!(matches!(error, FetchError::Body), "{error}");
    // Chunks without end.
    let chunks = format!(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}",
        format!("10000\r\n{}\r\n", "x".repeat(0x10000)).repeat(20)
    );
    let (address, _) = server(chunks).await;
    let error = fetcher().fetch(&format!("http://{address}/"), LIMIT).await.unwrap_err();
    assert!(matches!(error, FetchError::Body), "{error}");
    // Headers without end.
    let (address, _) = server(format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(2 << 20))).await;
    let error = fetcher().fetch(&format!("http://{address}/"), LIMIT).await.unwrap_err();
    assert!(matches!(error, FetchError::Http(_)), "{error}");
    // A server that accepts and says nothing, and one that lets discovery take most of the time.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = silent.local_addr().map(|address| (silent, address)).unwrap();
    let short = Duration::from_millis(300);
    let begun = Instant::now();
    let error = fetcher().fetch(&format!("http://{}/", silent.1), short).await.unwrap_err();
    assert!(matches!(error, FetchError::Deadline), "{error}");
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let issuer = format!("http://{}", listener.local_addr().unwrap());
    let document = format!("{{\"issuer\":\"{issuer}\",\"jwks_uri\":\"http://{}/\"}}", silent.1);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _read = stream.read(&mut [0_u8; 4096]).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        let answer =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{document}", document.len());
        stream.write_all(answer.as_bytes()).await.unwrap();
    });
    let source = KeySource::Discovery(issuer);
    let error = fetcher().fetch_keys(&source, short).await.unwrap_err();
    assert!(matches!(error, FetchError::Deadline), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(2), "both together");
}

/// [SEM-JWKS-03] The document names another issuer, or a URL that must not be asked.
#[tokio::test]
async fn sem_jwks_03_discovery_is_the_issuers_own_and_as_limited() {
    for (issuer, uri) in [
        ("http://else.example", "http://169.254.169.254/"),
        ("OWN", "http://169.254.169.254/"),
        ("OWN", "ftp://127.0.0.1/"),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = format!("http://{}", listener.local_addr().unwrap());
        let named = if issuer == "OWN" { &own } else { issuer };
        let document = format!("{{\"issuer\":\"{named}\",\"jwks_uri\":\"{uri}\"}}");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _read = stream.read(&mut [0_u8; 4096]).await;
            let answer =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{document}", document.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        let error = fetcher().fetch_keys(&KeySource::Discovery(own), LIMIT).await.unwrap_err();
        let refused = matches!(
            (issuer, &error),
            ("OWN", FetchError::Address | FetchError::Url) | (_, FetchError::Discovery)
        );
        assert!(refused, "{issuer} {uri}: {error}");
    }
}
