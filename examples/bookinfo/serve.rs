//! Keeps the services running so that tools from outside can be let loose on them.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::{Value, json};

use crate::BoxError;
use crate::steps::d_tokens::request_authentication;
use crate::steps::{b_strict, e_require_token, f_identities, g_rego};
use crate::world::{SERVICES, World};

/// Whose policies are in force.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Section {
    /// STRICT on details.
    B,
    /// Tokens are checked on details, not demanded.
    D,
    /// Tokens are demanded on details.
    E,
    /// ratings may be read from the namespace `default`.
    F,
    /// Rego on details and ratings, behind token verification.
    G,
}

impl FromStr for Section {
    type Err = BoxError;

    fn from_str(text: &str) -> Result<Self, BoxError> {
        match text {
            "B" => Ok(Self::B),
            "D" => Ok(Self::D),
            "E" => Ok(Self::E),
            "F" => Ok(Self::F),
            "G" => Ok(Self::G),
            _ => Err("--section takes B, D, E, F or G".into()),
        }
    }
}

/// Serves until the process is interrupted.
///
/// # Errors
///
/// When the services cannot be started or DIR cannot be written.
pub async fn serve(dir: &Path, section: Section) -> Result<(), BoxError> {
    let mut world = World::start().await?;
    let policies = apply(&mut world, section)?;
    fs::create_dir_all(dir)?;
    let files = Files { dir };
    let description = files.write_all(&world, section, &policies)?;
    // The description comes last and whole: who sees it can rely on the rest.
    files.write("bookinfo.json", &serde_json::to_string_pretty(&description)?)?;
    println!("serving; see {}", dir.join("bookinfo.json").display());
    for service in SERVICES {
        println!("  {service:<12} {}", world.address(service));
    }
    println!("press Ctrl-C to end");
    tokio::signal::ctrl_c().await?;
    Ok(())
}

/// Puts the last policies of the section into force; gives them as texts with names.
fn apply(world: &mut World, section: Section) -> Result<Vec<(&'static str, String)>, BoxError> {
    let tokens = request_authentication(&world.tokens().jwks());
    let policies = match section {
        Section::B => vec![("details-strict.yaml", b_strict::STRICT.to_owned())],
        Section::D => vec![("jwt-example.yaml", tokens)],
        Section::E => vec![
            ("jwt-example.yaml", tokens),
            ("require-jwt.yaml", e_require_token::REQUIRE_JWT.to_owned()),
        ],
        Section::F => vec![("ratings-read-only.yaml", f_identities::READ_ONLY.to_owned())],
        Section::G => vec![("jwt-example.yaml", g_rego::for_both(&tokens))],
    };
    let texts: Vec<(&str, &str)> =
        policies.iter().map(|(name, text)| (*name, text.as_str())).collect();
    world.apply(&texts)?;
    if section == Section::G {
        world.set_rego(&["details", "ratings"], g_rego::MODULE)?;
    }
    Ok(policies)
}

struct Files<'a> {
    dir: &'a Path,
}

impl Files<'_> {
    fn write_all(
        &self,
        world: &World,
        section: Section,
        policies: &[(&'static str, String)],
    ) -> Result<Value, BoxError> {
        let ca_cert = self.write("ca-cert.pem", &world.ca_certificate_pem())?;
        let ca_key = self.write_secret("ca-key.pem", &world.ca_key_pem()?)?;
        let jwt_key = self.write_secret("jwt-key.pem", world.tokens().pem())?;
        let jwks = self.write("jwks.json", &world.tokens().jwks())?;

        let mut services = json!({});
        let mut identities = json!({});
        for service in SERVICES {
            let account = format!("bookinfo-{service}");
            let (chain, key) = world.identity_pem(service)?;
            let chain = self.write(&format!("{account}-cert.pem"), &chain)?;
            let key = self.write_secret(&format!("{account}-key.pem"), &key)?;
            let id = world.identity(&account)?.to_string();
            services[service] =
                json!({ "address": world.address(service).to_string(), "spiffe_id": id });
            identities[&account] = json!({ "spiffe_id": id, "certificate": chain, "key": key });
        }

        let mut tokens = json!({});
        for (name, claims) in [
            ("valid", json!({})),
            ("other-subject", json!({ "sub": "somebody" })),
            ("expired", json!({ "exp": world.now().saturating_sub(3600) })),
            ("guest", json!({ "role": "guest", "name": "alice" })),
            ("admin", json!({ "role": "admin", "name": "bob" })),
        ] {
            let token = world.tokens().token(world.now(), &claims)?;
            tokens[name] = json!(self.write_secret(&format!("token-{name}.jwt"), &token)?);
        }

        let mut texts = Vec::new();
        for (name, text) in policies {
            texts.push(self.write(name, text)?);
        }
        if section == Section::G {
            texts.push(self.write("bookinfo.rego", g_rego::MODULE)?);
        }
        Ok(json!({
            "section": format!("{section:?}"),
            "trust_domain": "cluster.local",
            "namespace": "default",
            "issuer": crate::tokens::ISSUER,
            "services": services,
            "ca": { "certificate": ca_cert, "key": ca_key },
            "identities": identities,
            "jwt": { "key": jwt_key, "jwks": jwks, "kid": world.tokens().header()["kid"] },
            "tokens": tokens,
            "policies": texts,
        }))
    }

    /// Writes beside its name and renames, so that nobody reads half a file.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf, BoxError> {
        self.place(name, text, 0o644)
    }

    /// As [`Files::write`], readable by the owner alone.
    fn write_secret(&self, name: &str, text: &str) -> Result<PathBuf, BoxError> {
        self.place(name, text, 0o600)
    }

    fn place(&self, name: &str, text: &str, mode: u32) -> Result<PathBuf, BoxError> {
        use std::io::Write as _;
        use std::os::unix::fs::OpenOptionsExt as _;

        let path = self.dir.join(name);
        let beside = self.dir.join(format!(".{name}.new"));
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(mode);
        options.open(&beside)?.write_all(text.as_bytes())?;
        fs::rename(&beside, &path)?;
        Ok(fs::canonicalize(path)?)
    }
}
