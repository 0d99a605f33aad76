//! Envoy's secret discovery as a conversation: what is pushed, acknowledged, refused and asked again.

use std::collections::BTreeMap;

use crate::sds::{
    DELTA, DeltaRequest, DeltaResponse, Refusal, Request, Response, SECRET, STREAM, Secret, secrets,
};
use crate::support::{Call, Raw, Warnings, World, entry, id};

/// Half of a certificate's hour, and a hundredth more.
const RENEWAL: u64 = 1900;
const INVALID: i32 = 3;
const DENIED: i32 = 7;

fn subscribe(names: &[&str]) -> Request {
    let names = names.iter().map(|&name| name.to_owned()).collect();
    Request { names, type_url: SECRET.to_owned(), ..Request::default() }
}

/// Acknowledges an answer, as Envoy does: its version, its nonce, the same names.
fn acknowledge(answer: &Response, names: &[&str]) -> Request {
    let (version, nonce) = (answer.version.clone(), answer.nonce.clone());
    Request { version, nonce, ..subscribe(names) }
}

/// Refuses an answer: its nonce, the version before it, and why.
fn refuse(answer: &Response, names: &[&str], held: &str) -> Request {
    let error = Refusal { code: 13, message: "Failed to load\ncertificate".to_owned() };
    Request { version: held.to_owned(), error: Some(error), ..acknowledge(answer, names) }
}

/// The chain of a secret's certificate, and how many roots it has.
fn chain(secret: &Secret) -> Vec<u8> {
    secret.certificate.clone().unwrap().chain.unwrap().inline
}

fn roots(secret: &Secret) -> usize {
    let pem = secret.validation.clone().unwrap().trusted.unwrap().inline;
    String::from_utf8(pem).unwrap().matches("BEGIN CERTIFICATE").count()
}

async fn stream(raw: &mut Raw, names: &[&str]) -> Call<Response> {
    raw.open(STREAM, &subscribe(names)).await
}

fn world() -> World {
    let world = World::start();
    world.register([entry("envoy")]);
    world
}

fn new_root(world: &World) {
    world.service.ca().rotate_root_now(world.clock.now()).unwrap();
}

/// What has changed is sent at once and without being asked for; what is acknowledged is not sent
/// again.
#[tokio::test]
async fn rotation_is_pushed() {
    let world = world();
    let names = ["default", "ROOTCA"];
    let mut call = stream(&mut world.connect().await, &names).await;
    let first = call.next().await.unwrap();
    call.say(&acknowledge(&first, &names));
    assert!(call.is_silent().await, "nothing has changed");

    new_root(&world);
    let second = call.next().await.unwrap();
    assert!(second.version != first.version && second.nonce != first.nonce);
    let (before, after) = (secrets(&first), secrets(&second));
    assert_eq!((roots(&before[1]), roots(&after[1])), (1, 2));
    assert_eq!(before[0], after[0], "the certificate is the same one");
    call.say(&acknowledge(&second, &names));
    assert!(call.is_silent().await);

    world.clock.forward(RENEWAL);
    let third = call.next().await.unwrap();
    assert_ne!(chain(&secrets(&third)[0]), chain(&after[0]), "renewed before it ends");
    call.say(&acknowledge(&third, &names));
    assert_eq!(world.log.text().lines().count(), 2, "one certificate for each that was sent");
}

/// A client that refuses an answer keeps what it has. The same is not sent again and again; the next
/// change is, as a new version; and the operator sees who refused and why.
#[tokio::test]
async fn what_is_refused_is_not_sent_again() {
    let warnings = Warnings::default();
    let _guard = tracing::subscriber::set_default(warnings.clone());
    let world = world();
    let names = ["default", "ROOTCA"];
    let mut call = stream(&mut world.connect().await, &names).await;
    let first = call.next().await.unwrap();
    call.say(&acknowledge(&first, &names));
    new_root(&world);
    let second = call.next().await.unwrap();
    for _ in 0..3 {
        call.say(&refuse(&second, &names, &first.version));
        assert!(call.is_silent().await, "refused, and not sent again");
    }
    let told = warnings.text();
    assert!(told.contains("secret refused") && told.contains("uid:"), "{told}");
    assert!(told.contains("Failed to load") && told.lines().count() == 3, "{told}");
    new_root(&world);
    let third = call.next().await.unwrap();
    assert!(![&first.version, &second.version].contains(&&third.version));
    // Refused once more, and nothing was issued for any of it.
    call.say(&refuse(&third, &names, &first.version));
    assert!(call.is_silent().await);
    assert_eq!(world.log.text().lines().count(), 1);
    // Other names are an answer's business again.
    call.say(&Request { error: None, ..refuse(&third, &["ROOTCA"], &first.version) });
    assert_eq!(call.next().await.unwrap().resources.len(), 1);
}

/// A request that answers an older answer is void; which version it says to have does not matter.
#[tokio::test]
async fn nonces_tell_what_a_request_is_about() {
    let world = world();
    let mut call = stream(&mut world.connect().await, &["ROOTCA"]).await;
    let first = call.next().await.unwrap();
    new_root(&world);
    let second = call.next().await.unwrap();
    let other = ["default"];
    for nonce in [first.nonce.as_str(), "999", "0", " 2", "02", "two"] {
        call.say(&Request { nonce: nonce.to_owned(), ..acknowledge(&second, &other) });
        assert!(call.is_silent().await, "{nonce}");
    }
    let version = "nonsense".to_owned();
    call.say(&Request { version, ..acknowledge(&second, &other) });
    let third = call.next().await.unwrap();
    assert_eq!(secrets(&third)[0].name, "default");
}

/// Names come and go within a stream; one that is nobody's ends it.
#[tokio::test]
async fn sec_ca_8_several_secrets_and_names_that_are_nobodys() {
    let world = world();
    world.register([entry("envoy"), entry("second")]);
    let mut raw = world.connect().await;
    let mut call = stream(&mut raw, &["ROOTCA"]).await;
    let mut answer = call.next().await.unwrap();
    assert_eq!(world.log.text(), "", "trust alone issues nothing");
    let second = id("second");
    let steps: [&[&str]; 4] = [
        &["ROOTCA", "default"],
        &["ROOTCA", "default", second.as_str(), "spiffe://cluster.local"],
        &[second.as_str()],
        &["default"],
    ];
    for names in steps {
        call.say(&acknowledge(&answer, names));
        answer = call.next().await.unwrap();
        let got: Vec<_> = secrets(&answer).into_iter().map(|secret| secret.name).collect();
        assert_eq!(got, names);
    }
    call.say(&acknowledge(&answer, &["default", id("other").as_str()]));
    assert_eq!(call.next().await.unwrap_err().0, DENIED);

    let many: Vec<String> = (0..257).map(|n| format!("n{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    assert_eq!(stream(&mut raw, &many).await.next().await.unwrap_err().0, INVALID);
    let mut call = stream(&mut raw, &["ROOTCA"]).await;
    let answer = call.next().await.unwrap();
    let type_url = "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned();
    call.say(&Request { type_url, ..acknowledge(&answer, &["ROOTCA"]) });
    assert_eq!(call.next().await.unwrap_err().0, INVALID);
    // Who is nobody any more is told so in the middle of his stream.
    let mut call = stream(&mut raw, &["ROOTCA"]).await;
    call.next().await.unwrap();
    world.register([]);
    assert_eq!(call.next().await.unwrap_err().0, DENIED);
}

/// Who comes back with an old version gets all of it at once, with a key of its own.
#[tokio::test]
async fn a_stream_that_was_cut() {
    let world = world();
    let names = ["default", "ROOTCA"];
    let mut call = stream(&mut world.connect().await, &names).await;
    let first = call.next().await.unwrap();
    call.say(&acknowledge(&first, &names));
    drop(call);
    new_root(&world);
    let again = Request { version: first.version.clone(), ..subscribe(&names) };
    let mut raw = world.connect().await;
    let mut call: Call<Response> = raw.open(STREAM, &again).await;
    let mut second = call.next().await.unwrap();
    assert_ne!(chain(&secrets(&second)[0]), chain(&secrets(&first)[0]));
    if roots(&secrets(&second)[1]) == 1 {
        // It came back before the new root was published.
        second = call.next().await.unwrap();
    }
    assert_eq!(roots(&secrets(&second)[1]), 2);
    call.say(&acknowledge(&second, &names));
    assert!(call.is_silent().await);
    // Two streams of one connection have each their own state.
    let mut other = stream(&mut raw, &["ROOTCA"]).await;
    assert_eq!(other.next().await.unwrap().resources.len(), 1);
    assert!(call.is_silent().await);
}

fn delta(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaRequest {
    let owned = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let (subscribe, unsubscribe) = (owned(subscribe), owned(unsubscribe));
    DeltaRequest { type_url: SECRET.to_owned(), subscribe, unsubscribe, ..Default::default() }
}

fn names(answer: &DeltaResponse) -> Vec<&str> {
    answer.resources.iter().map(|resource| resource.name.as_str()).collect()
}

/// Delta: only what has changed is sent, after an acknowledgement as after a refusal.
#[tokio::test]
async fn delta_pushes_what_has_changed() {
    let warnings = Warnings::default();
    let _guard = tracing::subscriber::set_default(warnings.clone());
    let world = world();
    let mut raw = world.connect().await;
    let first = delta(&["ROOTCA", "default", "nobodys"], &[]);
    let mut call: Call<DeltaResponse> = raw.open(DELTA, &first).await;
    let first = call.next().await.unwrap();
    assert_eq!(
        (names(&first), &*first.removed),
        (vec!["ROOTCA", "default"], &["nobodys".into()][..])
    );
    call.say(&DeltaRequest { nonce: first.nonce.clone(), ..delta(&[], &[]) });
    assert!(call.is_silent().await);

    new_root(&world);
    let second = call.next().await.unwrap();
    assert_eq!((names(&second), second.removed.len()), (vec!["ROOTCA"], 0));
    let error = Some(Refusal { code: 13, message: "no".to_owned() });
    call.say(&DeltaRequest { nonce: second.nonce.clone(), error, ..delta(&[], &[]) });
    assert!(call.is_silent().await, "refused, and not sent again");
    assert!(warnings.text().contains("secret refused"), "{}", warnings.text());

    call.say(&delta(&[], &["ROOTCA"]));
    new_root(&world);
    assert!(call.is_silent().await, "nobody asks for the roots any more");
    world.clock.forward(RENEWAL);
    assert_eq!(names(&call.next().await.unwrap()), ["default"]);
    // Who subscribes again has lost it.
    call.say(&delta(&["ROOTCA"], &[]));
    assert_eq!(names(&call.next().await.unwrap()), ["ROOTCA"]);
    // A name that becomes somebody's.
    let second = id("second");
    call.say(&delta(&[second.as_str()], &[]));
    assert_eq!(call.next().await.unwrap().removed, [second.as_str()]);
    world.register([entry("envoy"), entry("second")]);
    assert_eq!(names(&call.next().await.unwrap()), [second.as_str()]);
    world.register([entry("envoy")]);
    assert_eq!(call.next().await.unwrap().removed, [second.as_str()]);
    world.register([]);
    assert_eq!(call.next().await.unwrap_err().0, DENIED);
}

/// Delta after a cut: what the client still has is not sent again.
#[tokio::test]
async fn delta_after_a_cut() {
    let world = world();
    let question = delta(&["ROOTCA", "default"], &[]);
    let mut call: Call<DeltaResponse> = world.connect().await.open(DELTA, &question).await;
    let first = call.next().await.unwrap();
    let versions = first.resources.iter().map(|one| (one.name.clone(), one.version.clone()));
    let held: BTreeMap<_, _> = versions.collect();
    drop(call);
    let mut raw = world.connect().await;
    let question = DeltaRequest { held: held.clone(), ..question };
    let mut call: Call<DeltaResponse> = raw.open(DELTA, &question).await;
    // The key of the stream that was cut went with it.
    assert_eq!(names(&call.next().await.unwrap()), ["default"]);
    let only = DeltaRequest { held, ..delta(&["ROOTCA"], &[]) };
    let mut call: Call<DeltaResponse> = raw.open(DELTA, &only).await;
    call.say(&delta(&[], &[]));
    assert!(call.is_silent().await);
    new_root(&world);
    assert_eq!(names(&call.next().await.unwrap()), ["ROOTCA"]);
}

/// [SEC-CA-7] Only the first message tells what the client has, and only of what it subscribes to:
/// anything else would be kept for as long as somebody goes on telling.
#[tokio::test]
async fn sec_ca_7_delta_keeps_no_more_than_is_subscribed_to() {
    let world = world();
    let domain = "spiffe://cluster.local";
    let mut raw = world.connect().await;
    let mut call: Call<DeltaResponse> = raw.open(DELTA, &delta(&["ROOTCA", domain], &[])).await;
    let first = call.next().await.unwrap();
    let versions = first.resources.iter().map(|one| (one.name.clone(), one.version.clone()));
    let held: BTreeMap<_, _> = versions.collect();

    let only = DeltaRequest { held: held.clone(), ..delta(&["ROOTCA"], &[]) };
    let mut call: Call<DeltaResponse> = raw.open(DELTA, &only).await;
    assert!(call.is_silent().await);
    call.say(&delta(&[domain], &[]));
    assert_eq!(names(&call.next().await.unwrap()), [domain], "told before it was asked for");

    let mut call: Call<DeltaResponse> = raw.open(DELTA, &delta(&[], &[])).await;
    call.say(&DeltaRequest { held, ..delta(&["ROOTCA"], &[]) });
    assert_eq!(names(&call.next().await.unwrap()), ["ROOTCA"], "told too late");

    let long = "n".repeat(30_000);
    for letter in ["a", "b", "c"] {
        call.say(&delta(&[&format!("{letter}{long}")], &[]));
    }
    let mut ended = call.next().await;
    while ended.is_ok() {
        ended = call.next().await;
    }
    assert_eq!(ended.unwrap_err().0, INVALID);
}

/// [SEC-CA-8] Who is nobody is told so, even if he asks for nothing.
#[tokio::test]
async fn sec_ca_8_a_delta_stream_is_for_the_registered() {
    let world = World::start();
    let mut raw = world.connect().await;
    let mut call: Call<DeltaResponse> = raw.open(DELTA, &delta(&[], &[])).await;
    assert_eq!(call.next().await.unwrap_err().0, DENIED);

    world.register([entry("envoy")]);
    let mut call: Call<DeltaResponse> = raw.open(DELTA, &delta(&[], &[])).await;
    assert!(call.is_silent().await);
    world.register([]);
    call.say(&delta(&[], &[]));
    assert_eq!(call.next().await.unwrap_err().0, DENIED);
}
