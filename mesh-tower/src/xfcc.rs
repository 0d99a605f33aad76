//! `x-forwarded-client-cert`: never believed, written from what TLS proved where it is asked for.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use mesh_identity::{SpiffeId, VerifiedPeer};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::connection::ConnectionInfo;

/// Set by proxies to say who the client is; from the network it is a claim, not a fact
/// ([SEC-HTTP-6], [SEC-TLS-8]).
pub(crate) const NAME: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// The longest value of ours and of what came before it.
const LONGEST: usize = 16 * 1024;

/// What becomes of `x-forwarded-client-cert` on its way to the service ([SEC-HTTP-6]).
///
/// No policy of ours takes an identity from it. On plain text it is always removed.
///
/// # Examples
///
/// ```
/// # fn with(builder: mesh_tower::MeshBuilder) -> mesh_tower::MeshBuilder {
/// builder.forward_client_cert(mesh_tower::ForwardClientCert::Set)
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub enum ForwardClientCert {
    /// Removed: handlers have the [`crate::Permit`].
    #[default]
    Sanitize,
    /// Replaced by one element about the verified peer (Envoy's SANITIZE_SET, Istio's gateways).
    Set,
    /// One element about the verified peer is appended to what the client sent (Envoy's
    /// APPEND_FORWARD, Istio's sidecars). Only the last element is proven; the others are claims of
    /// the peer.
    Append,
}

/// Removes the header, then writes it as `mode` says.
pub(crate) fn forward(
    headers: &mut HeaderMap,
    info: &ConnectionInfo,
    own_id: &SpiffeId,
    mode: ForwardClientCert,
) {
    // Most clients send none, and there are fewer names to compare than letters to hash.
    if mode == ForwardClientCert::Sanitize && !headers.keys().any(|name| *name == NAME) {
        return;
    }
    let peer = info.peer().filter(|_| mode != ForwardClientCert::Sanitize);
    let Some(peer) = peer else {
        headers.remove(NAME);
        return;
    };
    let Some(element) = info.forwarded_element(|| element(peer, own_id)) else {
        headers.remove(NAME);
        return;
    };
    let sent = joined(headers, mode);
    let value = match sent {
        None => HeaderValue::from_bytes(element.as_bytes()),
        Some(mut sent) => {
            sent.push(b',');
            sent.extend_from_slice(element.as_bytes());
            HeaderValue::from_bytes(&sent)
        }
    };
    headers.remove(NAME);
    if let Ok(value) = value {
        headers.insert(NAME, value);
    }
}

/// What the client sent, as one line, where it is kept.
fn joined(headers: &HeaderMap, mode: ForwardClientCert) -> Option<Vec<u8>> {
    if mode != ForwardClientCert::Append {
        return None;
    }
    let lines: Vec<&[u8]> = headers.get_all(NAME).iter().map(HeaderValue::as_bytes).collect();
    let usable =
        |sent: &Vec<u8>| !sent.is_empty() && sent.len() <= LONGEST && ends_outside_quotes(sent);
    Some(lines.join(&b',')).filter(usable)
}

/// Whether what follows the text is not part of a value that it has begun.
fn ends_outside_quotes(text: &[u8]) -> bool {
    let (mut quoted, mut escaped) = (false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
    }
    !quoted && !escaped
}

/// `By=…;Hash=…;Subject="…";URI=…[;DNS=…]`, as Istio's inbound sidecar writes it.
fn element(peer: &VerifiedPeer, own_id: &SpiffeId) -> Option<String> {
    let leaf = peer.chain().first()?;
    let digest = ring::digest::digest(&ring::digest::SHA256, leaf);
    let hash = hex(digest.as_ref());
    let (_, certificate) = X509Certificate::from_der(leaf).ok()?;
    let subject = subject(&certificate);
    let mut text = format!("By={own_id};Hash={hash};Subject=\"{subject}\";URI={}", peer.id());
    let names = certificate.subject_alternative_name().ok().flatten();
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        if let GeneralName::DNSName(name) = name
            && name.bytes().all(|byte| byte.is_ascii_graphic() && !b",;=\"\\".contains(&byte))
        {
            text.push_str(";DNS=");
            text.push_str(name);
        }
    }
    Some(text).filter(|text| text.len() <= LONGEST)
}

fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap_or('?');
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xF)]).collect()
}

/// The subject as RFC 2253 writes it, last attribute first, quoted for the header.
fn subject(certificate: &X509Certificate<'_>) -> String {
    let attributes = certificate.subject().iter_attributes().filter_map(|attribute| {
        let name = x509_parser::objects::oid2abbrev(
            attribute.attr_type(),
            x509_parser::objects::oid_registry(),
        );
        let name = name.map_or_else(|_| attribute.attr_type().to_id_string(), str::to_owned);
        Some(format!("{name}={}", rfc_2253(attribute.as_str().ok()?)))
    });
    let mut attributes: Vec<String> = attributes.collect();
    attributes.reverse();
    attributes.join(",").replace('\\', "\\\\").replace('"', "\\\"")
}

fn rfc_2253(value: &str) -> String {
    let mut escaped = String::new();
    for c in value.chars() {
        if matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
            escaped.push('\\');
        }
        // What a header cannot carry.
        escaped.push(if c.is_ascii_graphic() || c == ' ' { c } else { '?' });
    }
    escaped
}
