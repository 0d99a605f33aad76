//! What the crate `spiffe` reads from a Workload API: a line for each thing, `name<TAB>what it found`.

use spiffe::{TrustDomain, WorkloadApiClient};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(domain)) = (arguments.next(), arguments.next()) else {
        return Err("usage: spiffe-client <socket> <trust domain>".into());
    };
    let domain = TrustDomain::new(&domain)?;
    let client = WorkloadApiClient::connect_to(&socket).await?;

    let context = client.fetch_x509_context().await?;
    let svid = context.default_svid().ok_or("no default SVID")?;
    println!("X.509-SVID\t{}, chain of {}", svid.spiffe_id(), svid.cert_chain().len());

    let bundles = client.fetch_x509_bundles().await?;
    let bundle = bundles.get(&domain).ok_or("no X.509 bundle")?;
    println!("X.509 bundles\t{} root", bundle.authorities().len());

    let token = client.fetch_jwt_svid(["bank"], None).await?;
    println!("JWT-SVID\t{}, for {}", token.spiffe_id(), token.audience().join(" "));

    let bundles = client.fetch_jwt_bundles().await?;
    let bundle = bundles.get(&domain).ok_or("no JWT bundle")?;
    bundle.find_jwt_authority(token.key_id()).ok_or("the token's key is not in the bundle")?;
    println!("JWT bundles\thas the token's key");

    let valid = client.validate_jwt_token("bank", token.token()).await?;
    let other = client.validate_jwt_token("another", token.token()).await;
    other.err().ok_or("a token for another audience is accepted")?;
    println!("ValidateJWTSVID\t{}; another audience refused", valid.spiffe_id());
    Ok(())
}
