//! What our client of the Workload API at `SPIFFE_ENDPOINT_SOCKET` sees, line by line. `peers.py` lets
//! a server of other people's libraries talk to it.

use std::error::Error;
use std::time::Duration;

use mesh_tower::identity::workload_api::X509Context;
use mesh_tower::identity::{BundleSet, JwtAuthority};
use mesh_tower::{WorkloadApi, WorkloadApiStream, WorkloadApiUpdate};

const USAGE: &str = "usage: workload_api_client x509 | bundles | jwt-bundles | jwt AUDIENCE | \
                     validate AUDIENCE TOKEN";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    // Somebody watches: the waits of a second and more that are the default would bore them.
    let api = WorkloadApi::from_env()?.retry(Duration::from_millis(5), Duration::from_millis(200));
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["x509"] => {
            let each = |context: X509Context| {
                let svids = context.svids.iter().map(|named| {
                    let (id, hint) = (named.svid.id(), &named.hint);
                    format!("{id} {hint:?} {} s", named.svid.not_after().as_secs())
                });
                let svids = svids.collect::<Vec<_>>().join(", ");
                format!("{svids} | {} | {} lists", roots(&context.bundles), context.crls.len())
            };
            follow(api.x509_contexts(), each).await;
        }
        ["bundles"] => follow(api.x509_bundles(), |state| roots(&state.bundles)).await,
        ["jwt-bundles"] => follow(api.jwt_bundles(), |state| keys(&state.bundles)).await,
        ["jwt", audience] => {
            for svid in api.fetch_jwt_svids(&[audience], None).await? {
                println!("{} {:?} {}", svid.id, svid.hint, svid.token.as_str());
            }
        }
        ["validate", audience, token] => {
            let (id, claims) = api.validate_jwt_svid(audience, token).await?;
            println!("{id} {}", serde_json::Value::Object(claims));
        }
        _ => return Err(USAGE.into()),
    }
    Ok(())
}

/// Until somebody ends the program.
async fn follow<T>(mut stream: WorkloadApiStream<T>, show: impl Fn(T) -> String) {
    loop {
        match stream.next().await {
            WorkloadApiUpdate::Taken(state) => println!("taken {}", show(state)),
            WorkloadApiUpdate::Failed(failure) => {
                let word = if failure.withdraws() { "withdrawn" } else { "failed" };
                println!("{word} {failure}");
            }
        }
    }
}

fn roots(bundles: &BundleSet) -> String {
    let each = bundles.iter().map(|bundle| {
        format!("{} {} roots", bundle.trust_domain(), bundle.x509_authorities().len())
    });
    each.collect::<Vec<_>>().join(", ")
}

fn keys(bundles: &BundleSet) -> String {
    let each = bundles.iter().map(|bundle| {
        let keys = bundle.jwt_authorities().iter().map(JwtAuthority::kid);
        format!("{} {}", bundle.trust_domain(), keys.collect::<Vec<_>>().join(" "))
    });
    each.collect::<Vec<_>>().join(", ")
}
