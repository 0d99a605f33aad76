//! Envoy's secret discovery; examples/interop has the real Envoy.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;

use crate::support::{World, entry, id};

const FETCH: &str = "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets";
pub(crate) const STREAM: &str = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets";
pub(crate) const DELTA: &str = "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets";
pub(crate) const SECRET: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// The same fields as the server's, written a second time: a mistake in a number shows.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) names: Vec<String>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
    #[prost(message, optional, tag = "6")]
    pub(crate) error: Option<Refusal>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeltaRequest {
    #[prost(string, tag = "2")]
    pub(crate) type_url: String,
    #[prost(string, repeated, tag = "3")]
    pub(crate) subscribe: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub(crate) unsubscribe: Vec<String>,
    #[prost(btree_map = "string, string", tag = "5")]
    pub(crate) held: BTreeMap<String, String>,
    #[prost(string, tag = "6")]
    pub(crate) nonce: String,
    #[prost(message, optional, tag = "7")]
    pub(crate) error: Option<Refusal>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Refusal {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Response {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) resources: Vec<prost_types::Any>,
    #[prost(string, tag = "4")]
    pub(crate) type_url: String,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct DeltaResponse {
    #[prost(message, repeated, tag = "2")]
    pub(crate) resources: Vec<Resource>,
    #[prost(string, tag = "5")]
    pub(crate) nonce: String,
    #[prost(string, repeated, tag = "6")]
    pub(crate) removed: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Resource {
    #[prost(string, tag = "1")]
    pub(crate) version: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) secret: Option<prost_types::Any>,
    #[prost(string, tag = "3")]
    pub(crate) name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Secret {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) certificate: Option<Certificate>,
    #[prost(message, optional, tag = "4")]
    pub(crate) validation: Option<Validation>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Certificate {
    #[prost(message, optional, tag = "1")]
    pub(crate) chain: Option<Source>,
    #[prost(message, optional, tag = "2")]
    pub(crate) key: Option<Source>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Validation {
    #[prost(message, optional, tag = "1")]
    pub(crate) trusted: Option<Source>,
    #[prost(message, optional, tag = "12")]
    pub(crate) custom: Option<Extension>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Extension {
    #[prost(string, tag = "1")]
    pub(crate) name: String,
    #[prost(message, optional, tag = "2")]
    pub(crate) config: Option<prost_types::Any>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Source {
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) inline: Vec<u8>,
}

fn request(names: &[&str]) -> Vec<u8> {
    let names = names.iter().map(|&name| name.to_owned()).collect();
    Request { names, type_url: SECRET.to_owned(), ..Request::default() }.encode_to_vec()
}

pub(crate) fn secrets(response: &Response) -> Vec<Secret> {
    let decode = |any: &prost_types::Any| {
        assert_eq!(any.type_url, SECRET);
        Secret::decode(any.value.as_slice()).unwrap()
    };
    response.resources.iter().map(decode).collect()
}

/// Certificate and key of one, roots of the other, and no pooled roots where several are asked for.
#[tokio::test]
async fn sec_id_8_the_names_of_istio_and_spire() {
    let world = World::start();
    world.register([entry("envoy"), entry("second").with_ttl(Duration::from_secs(600))]);
    let mut raw = world.connect().await;
    let own = id("envoy");
    let names = ["default", own.as_str(), "ROOTCA", "spiffe://cluster.local", "ALL"];
    for path in [FETCH, STREAM] {
        let answer: Response = raw.call(path, &[], &request(&names)).await.unwrap();
        let secrets = secrets(&answer);
        assert_eq!(secrets.iter().map(|one| &one.name).collect::<Vec<_>>(), names);
        assert_eq!((answer.type_url.as_str(), answer.nonce.is_empty()), (SECRET, false));
        let certificate = secrets[0].certificate.clone().unwrap();
        assert_eq!(
            secrets[1].certificate.as_ref(),
            Some(&certificate),
            "one certificate, two names"
        );
        let chain = certificate.chain.unwrap().inline;
        let key = certificate.key.unwrap().inline;
        let svid = mesh_tower::identity::X509Svid::from_pem(&chain, &key).unwrap();
        assert_eq!(svid.id(), &own);
        let roots = secrets[2].validation.clone().unwrap().trusted.unwrap().inline;
        let home = "cluster.local".parse().unwrap();
        let roots = mesh_tower::identity::TrustBundle::from_pem(home, &roots).unwrap();
        assert_eq!(roots.x509_authorities(), world.service.ca().bundle().x509_authorities());
        assert_eq!(secrets[3].validation, secrets[2].validation);
        let all = secrets[4].validation.clone().unwrap();
        assert!(all.trusted.is_none());
        assert_eq!(all.custom.unwrap().name, "envoy.tls.cert_validator.spiffe");
    }
    // Without names it is all that the process has.
    let answer: Response = raw.call(FETCH, &[], &request(&[])).await.unwrap();
    let every: Vec<_> = secrets(&answer).into_iter().map(|one| one.name).collect();
    assert_eq!(every, [own.as_str(), id("second").as_str(), "spiffe://cluster.local"]);
}

/// [SEC-CA-8] What is somebody else's, and what does not exist, is refused alike; roots alone issue
/// nothing.
#[tokio::test]
async fn sec_ca_8_secrets_of_others() {
    let world = World::start();
    world.register([entry("envoy")]);
    let mut raw = world.connect().await;
    for name in [id("other").as_str(), "nothing", "spiffe://other.example", ""] {
        for path in [FETCH, STREAM] {
            let got = raw.call::<Response>(path, &[], &request(&[name])).await;
            assert_eq!(got.unwrap_err().0, 7, "{name}");
        }
    }
    let answer: Response = raw.call(FETCH, &[], &request(&["ROOTCA"])).await.unwrap();
    assert_eq!(answer.resources.len(), 1);
    assert_eq!(world.log.text(), "");
    let clusters = Request { type_url: "type.googleapis.com/x".to_owned(), ..Request::default() };
    let got = raw.call::<Response>(FETCH, &[], &clusters.encode_to_vec()).await;
    assert_eq!(got.unwrap_err().0, 3);
    world.register([]);
    for path in [FETCH, STREAM] {
        let got = raw.call::<Response>(path, &[], &request(&["ROOTCA"])).await;
        assert_eq!(got.unwrap_err().0, 7);
    }
}

/// Delta: what there is, with a version, and what there is not as removed.
#[tokio::test]
async fn delta_says_what_is_missing() {
    let world = World::start();
    world.register([entry("envoy")]);
    let mut raw = world.connect().await;
    let subscribe = ["ROOTCA", "default", "nothing"].map(str::to_owned).to_vec();
    let question =
        DeltaRequest { type_url: SECRET.to_owned(), subscribe, ..DeltaRequest::default() };
    let question = question.encode_to_vec();
    let answer: DeltaResponse = raw.call(DELTA, &[], &question).await.unwrap();
    let names: Vec<_> = answer.resources.iter().map(|one| one.name.as_str()).collect();
    assert_eq!((names, answer.removed), (vec!["ROOTCA", "default"], vec!["nothing".to_owned()]));
    assert!(answer.resources.iter().all(|one| one.version.len() == 64 && one.secret.is_some()));
    assert_eq!(answer.nonce, "1");
}
