//! The own chain and key, which must belong together ([SEC-ID-12]).

use mesh_identity::X509Svid;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;

use super::error::TlsError;

/// Makes what rustls signs with, or refuses a key that is not shown to be the certificate's.
pub(super) fn own_key(
    identity: &X509Svid,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, TlsError> {
    let chain = identity.chain().to_vec();
    let key = CertifiedKey::from_der(chain, identity.private_key().clone_key(), provider)?;
    // rustls lets a key pass whose public half it cannot see; every handshake would fail later.
    key.keys_match()?;
    Ok(key)
}
