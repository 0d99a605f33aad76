//! PEM text (RFC 7468) for what the authority hands out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Characters in a line of base64 (RFC 7468 section 2).
const LINE: usize = 64;

/// One block.
pub(crate) fn encode(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut body = String::with_capacity(text.len());
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at_checked(LINE).unwrap_or((rest, ""));
        body.push_str(line);
        body.push('\n');
        rest = more;
    }
    format!("-----BEGIN {label}-----\n{body}-----END {label}-----\n")
}
